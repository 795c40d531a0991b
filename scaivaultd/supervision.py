"""Tells the service manager how the daemon is, from its start to its end.

The watchdog hears of real progress only: a store that still answers, a scheduler that still turns, an event loop that
still runs this. A CA or a NATS server that is away is not told to it: no restart would bring them back.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from scaivaultd.model.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.messages import HealthReply
    from scaivaultd.model.clock import Clock
    from scaivaultd.systemd import Notifier

STATUS_SECONDS = 30.0
EXTEND_EVERY_SECONDS = 5.0
EXTEND_SECONDS = 15.0
START_SECONDS_MAX = 300.0
STOP_SECONDS_MAX = 75.0
_AGAIN_SECONDS = 1.0
_DESCRIBE_SECONDS = 5.0
_STATUS_LENGTH_MAX = 400


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """A part that must go on turning: when it last did (`Clock.monotonic`), and how long ago that may be."""

    name: str
    last_at: Callable[[], float]
    seconds_max: float


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """How a daemon can be felt. `touch_store` returns when the store has really done something."""

    health: Callable[[], Awaitable[HealthReply]]
    touch_store: Callable[[], Awaitable[object]]
    certificates: Callable[[], int] | None = None
    orders: Callable[[], int] | None = None
    heartbeats: Sequence[Heartbeat] = ()


class Supervised(Protocol):
    """The daemon, as far as this goes."""

    @property
    def ready(self) -> asyncio.Event:
        """Set when it answers, be it sealed."""
        ...

    @property
    def vitals(self) -> Vitals | None:
        """None before it answers; others when it is unsealed."""
        ...


class Supervision:
    """One daemon under a service manager. Without one it does nothing, at no cost."""

    def __init__(
        self,
        notifier: Notifier,
        daemon: Supervised,
        *,
        watchdog_seconds: float | None,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._notifier = notifier
        self._daemon = daemon
        self._watchdog_seconds = watchdog_seconds
        self._clock = clock
        self._log = log
        self._store_at = clock.monotonic()
        self._late: list[str] = []
        self._text = ""
        self._trouble = ""
        self._is_told = False
        self._is_stopping = asyncio.Event()

    async def run(self) -> None:
        """Tell of it until cancelled."""
        if not self._notifier.is_heard:
            return
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(self._extend(START_SECONDS_MAX))
            stopping = tasks.create_task(self._follow_the_end())
            running = tasks.create_task(self._follow_the_daemon(starting))
            await self._is_stopping.wait()
            starting.cancel()
            running.cancel()
            await stopping

    def reloading(self) -> None:
        """A reload begins."""
        if self._is_told and not self._is_stopping.is_set():
            self._notifier.reloading(self._clock.monotonic())

    def reloaded(self, trouble: str = "") -> None:
        """A reload is over; `trouble` says why what held before holds on, and is shown until a reload goes well."""
        self._trouble = f"reload failed, the configuration before holds on: {trouble}" if trouble else ""
        if self._is_told and not self._is_stopping.is_set():
            self._notifier.ready(self._line)

    def stopping(self) -> None:
        """The end begins. May be repeated."""
        if not self._is_stopping.is_set():
            self._is_stopping.set()
            self._notifier.stopping("Stopping: answering requests, parking orders")

    async def _follow_the_daemon(self, starting: asyncio.Task[None]) -> None:
        await self._daemon.ready.wait()
        starting.cancel()
        self._text = await self._describe()
        while not self._notifier.ready(self._line):
            self._log.warning("systemd.unheard", retry_after_seconds=_AGAIN_SECONDS)
            await self._clock.sleep(_AGAIN_SECONDS)
        self._is_told = True
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_for_ever())
            if self._watchdog_seconds is not None:
                tasks.create_task(self._ping_for_ever(self._watchdog_seconds))
                tasks.create_task(self._touch_for_ever(self._watchdog_seconds))

    async def _follow_the_end(self) -> None:
        await self._is_stopping.wait()
        await self._extend(STOP_SECONDS_MAX)

    async def _extend(self, seconds_max: float) -> None:
        """Ask for time while something is still going on, but not for ever: what hangs must be ended."""
        began = self._clock.monotonic()
        while self._clock.monotonic() - began < seconds_max:
            self._notifier.extend(EXTEND_SECONDS)
            await self._clock.sleep(EXTEND_EVERY_SECONDS)

    async def _tell_for_ever(self) -> None:
        while True:
            await self._clock.sleep(STATUS_SECONDS)
            said, self._text = self._line, await self._describe()
            if self._line != said:
                self._notifier.status(self._line)

    async def _describe(self) -> str:
        vitals = self._daemon.vitals
        if vitals is None:
            return "Starting"
        try:
            async with asyncio.timeout(_DESCRIBE_SECONDS):
                health = await vitals.health()
        except TimeoutError:
            return "Hanging: its own parts do not answer"
        certificates = None if vitals.certificates is None else vitals.certificates()
        orders = None if vitals.orders is None else vitals.orders()
        return status_text(health, certificates=certificates, orders=orders)

    @property
    def _line(self) -> str:
        return "; ".join(filter(None, (self._text, self._trouble)))[:_STATUS_LENGTH_MAX]

    async def _ping_for_ever(self, watchdog_seconds: float) -> None:
        while True:
            late = self._late_parts(watchdog_seconds)
            if not late:
                self._notifier.alive()
            elif late != self._late:
                self._log.error("watchdog.withheld", late=late, watchdog_seconds=watchdog_seconds)
                self._notifier.status(f"Hanging: {', '.join(late)} gave no sign of life; the watchdog will end this")
            self._late = late
            await self._clock.sleep(watchdog_seconds / 3)

    def _late_parts(self, watchdog_seconds: float) -> list[str]:
        vitals = self._daemon.vitals
        store = Heartbeat(name="store", last_at=lambda: self._store_at, seconds_max=2 * watchdog_seconds)
        now = self._clock.monotonic()
        beats = (store, *(vitals.heartbeats if vitals is not None else ()))
        return [each.name for each in beats if now - each.last_at() > each.seconds_max]

    async def _touch_for_ever(self, watchdog_seconds: float) -> None:
        while True:
            if (vitals := self._daemon.vitals) is not None:
                # A full disk refuses at once: that is an answer too, and nothing that a restart would cure.
                with suppress(StorageUnavailable):
                    await vitals.touch_store()
                self._store_at = self._clock.monotonic()
            await self._clock.sleep(watchdog_seconds / 3)


def status_text(health: HealthReply, *, certificates: int | None, orders: int | None) -> str:
    """One line for an administrator: how it is, what it looks after, and what is wrong."""
    wrong = [
        f"{each.name} {each.status}" + (f": {each.detail}" if each.detail else "")
        for each in health.components
        if each.status != "ok"
    ]
    if health.status == "sealed":
        details = "; ".join(each.detail or "" for each in health.components)
        return f"Sealed, nothing is renewed: {details}"
    counts = [
        _counted(number, what)
        for number, what in ((certificates, "certificate"), (orders, "order"))
        if number is not None
    ]
    word = {"ok": "Ready", "degraded": "Degraded", "down": "Down"}[health.status]
    return "; ".join([f"{word}: {', '.join(counts)}{' under way' if orders is not None else ''}", *wrong])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
