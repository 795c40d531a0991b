"""DNS for checks that may be left out: look-ups are shared, remembered for a while, and cheap where nobody answers."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from scaivaultd.model.errors import DnsError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.dns import CaaSet, Route
    from scaivaultd.services.ports import NameServers

T = TypeVar("T")

REMEMBERED_SECONDS = 60.0
REMEMBERED_MAX = 4096


class LookUps:
    """What the name servers say, as a value: their errors are findings here.

    Before names are asked about it must have been seen, a minute ago at most, that DNS answers at all: by an answer,
    else by asking for the CAA records of a top-level name. Where it does not, nobody asks for a minute.
    """

    def __init__(
        self, name_servers: NameServers, *, probe_seconds: float, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._name_servers = name_servers
        self._probe_seconds = probe_seconds
        self._clock = clock
        self._log = log
        self._remembered: Remembered[Any] = Remembered(clock, REMEMBERED_SECONDS, REMEMBERED_MAX)
        self._flights: Flights[Any] = Flights()
        self._heard_until = 0.0
        self._silent_until = 0.0
        self._silence = DnsError("", "unreachable")

    async def caa(self, name: str) -> CaaSet | DnsError:
        """The relevant CAA record set of a name."""
        return cast("CaaSet | DnsError", await self._told(f"caa {name}", lambda: self._name_servers.caa(name), name))

    async def route(self, name: str, *, follow_cname: bool) -> Route | DnsError:
        """Where a name leads, and who serves it."""

        def ask() -> Coroutine[Any, Any, Route]:
            return self._name_servers.route(name, follow_cname=follow_cname)

        return cast("Route | DnsError", await self._told(f"route {name} {follow_cname}", ask, name))

    async def _told(self, key: str, ask: Callable[[], Coroutine[Any, Any, Any]], name: str) -> Any:
        if (known := self._remembered.get(key)) is not None:
            return known
        if (silence := await self._silent(name)) is not None:
            return silence
        try:
            return await self._flights.join(key, lambda: self._ask(key, ask))
        except asyncio.CancelledError:
            # It took too long, most likely: is anybody there still?
            self._heard_until = 0.0
            raise

    async def _ask(self, key: str, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        told = await self._outcome(ask)
        self._remembered.put(key, told)
        return told

    async def _silent(self, name: str) -> DnsError | None:
        now = self._clock.monotonic()
        if now < self._silent_until:
            return self._silence
        if now < self._heard_until:
            return None
        silence: DnsError | None = await self._flights.join("", lambda: self._probe(name.rpartition(".")[2]))
        return silence

    async def _probe(self, top: str) -> DnsError | None:
        try:
            async with asyncio.timeout(self._probe_seconds):
                await self._outcome(lambda: self._name_servers.caa(top))
        except TimeoutError:
            self._log.debug("preflight.no_answer", seconds=self._probe_seconds)
        if self._clock.monotonic() < self._heard_until:
            return None
        self._silent_until = self._clock.monotonic() + REMEMBERED_SECONDS
        until = self._clock.now() + timedelta(seconds=REMEMBERED_SECONDS)
        self._silence = DnsError(f"no resolver answers; not looked again before {until:%H:%M:%S} UTC", "unreachable")
        self._log.warning("preflight.no_resolver", until=until.isoformat())
        return self._silence

    async def _outcome(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T | DnsError:
        told: T | DnsError
        try:
            told = await ask()
        except DnsError as error:
            told = error
        unheard = isinstance(told, DnsError) and told.reason == "unreachable"
        self._heard_until = 0.0 if unheard else self._clock.monotonic() + REMEMBERED_SECONDS
        return told


class Remembered(Generic[T]):
    """Values by key, each for some seconds; of too many the one that was not wanted for longest goes."""

    def __init__(self, clock: Clock, seconds: float, entries_max: int) -> None:
        self._clock = clock
        self._seconds = seconds
        self._entries_max = entries_max
        self._entries: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> T | None:
        """The value, unless it is too old."""
        if (held := self._entries.get(key)) is None:
            return None
        until, value = held
        if until <= self._clock.monotonic():
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return value

    def put(self, key: str, value: T) -> None:
        """Remember it from now on."""
        self._entries[key] = (self._clock.monotonic() + self._seconds, value)
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._entries.popitem(last=False)


class Flights(Generic[T]):
    """Work that several wait for is done once; it ends with the last who waits."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def join(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the work of that key, begun now if it is not under way."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work(), name=f"look-up {key}"))
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if not flight.waiting:
                flight.task.cancel()
            if self._flights.get(key) is flight and (flight.task.done() or not flight.waiting):
                del self._flights[key]


class _Flight(Generic[T]):
    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.waiting = 0
