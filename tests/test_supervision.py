"""When the service manager is told what, and when the watchdog hears nothing any more."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from scaivaultd.api.messages import ComponentHealth, HealthReply
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.supervision import Heartbeat, Supervision, Vitals, status_text
from scaivaultd.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LOG = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(50))
FINE = HealthReply(status="ok", components=[ComponentHealth(name="store", status="ok")])


class SteppedClock:
    """Time goes on only when the test says so."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        return self._seconds

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._seconds + seconds, woken))
        await woken

    async def advance(self, seconds: float) -> None:
        """One second after the other, and whoever wakes has its turn."""
        for _ in range(round(seconds)):
            self._seconds += 1.0
            due = [each for each in self._sleepers if each[0] <= self._seconds]
            self._sleepers = [each for each in self._sleepers if each[0] > self._seconds]
            for _, woken in due:
                if not woken.done():
                    woken.set_result(None)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


class Daemon:
    """As much of one as is supervised."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.vitals: Vitals | None = None
        self.health = FINE
        self.certificates = 2
        self.store: asyncio.Event | Exception | None = None
        self.turned_at = 0.0

    def begin(self, *heartbeats: Heartbeat) -> None:
        self.vitals = Vitals(
            health=self._health,
            touch_store=self._touch,
            certificates=lambda: self.certificates,
            orders=lambda: 1,
            heartbeats=heartbeats,
        )
        self.ready.set()

    async def _health(self) -> HealthReply:
        return self.health

    async def _touch(self) -> None:
        if isinstance(self.store, Exception):
            raise self.store
        if self.store is not None:
            await self.store.wait()


class World:
    def __init__(self, manager: socket.socket, *, watchdog_seconds: float | None) -> None:
        self._manager = manager
        self.clock = SteppedClock()
        self.daemon = Daemon()
        self.notifier = Notifier(manager.getsockname())
        self.supervision = Supervision(
            self.notifier,
            self.daemon,
            watchdog_seconds=watchdog_seconds,
            clock=self.clock,
            log=LOG,
        )

    def heard(self) -> list[str]:
        """All datagrams since the last look; their lines in one."""
        found = []
        with suppress(BlockingIOError):
            while True:
                found.append(self._manager.recv(4096).decode().replace("\n", " "))
        return found

    async def later(self, seconds: float) -> list[str]:
        """What is heard in that time; read while it goes, since the kernel keeps only a few datagrams."""
        found = []
        for _ in range(round(seconds)):
            await self.clock.advance(1)
            found += self.heard()
        return found

    async def now(self) -> list[str]:
        await self.clock.settle()
        return self.heard()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.setblocking(False)
        yield bound


@asynccontextmanager
async def world(manager: socket.socket, *, watchdog_seconds: float | None = None) -> AsyncIterator[World]:
    made = World(manager, watchdog_seconds=watchdog_seconds)
    task = asyncio.create_task(made.supervision.run())
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        made.notifier.close()


async def test_a_start_asks_for_time_until_it_is_over(manager: socket.socket) -> None:
    """Unlocking keys and recovering a large store may take longer than the unit allows; hanging for ever may not."""
    async with world(manager) as it:
        assert await it.now() == ["EXTEND_TIMEOUT_USEC=15000000"]
        assert await it.later(10) == ["EXTEND_TIMEOUT_USEC=15000000"] * 2
        it.daemon.begin()
        assert await it.now() == ["READY=1 STATUS=Ready: 2 certificates, 1 order under way"]
        assert await it.later(20) == []


async def test_a_start_that_hangs_is_not_excused_for_ever(manager: socket.socket) -> None:
    """After five minutes systemd ends it, and starts it again."""
    async with world(manager) as it:
        await it.later(400)
        assert await it.later(60) == []


async def test_the_status_follows_the_daemon(manager: socket.socket) -> None:
    """`systemctl status` is the first place to look; but a line that says the same is not told again."""
    async with world(manager) as it:
        it.daemon.begin()
        await it.now()
        assert await it.later(65) == []
        it.daemon.certificates = 3
        assert await it.later(30) == ["STATUS=Ready: 3 certificates, 1 order under way"]


async def test_reloads_are_told_from_begin_to_end(manager: socket.socket) -> None:
    """Type=notify-reload waits for the READY, and takes only a RELOADING that is younger than its request."""
    async with world(manager) as it:
        it.daemon.begin()
        await it.now()
        await it.later(5)
        it.supervision.reloading()
        it.supervision.reloaded()
        ready = "READY=1 STATUS=Ready: 2 certificates, 1 order under way"
        assert it.heard() == ["RELOADING=1 MONOTONIC_USEC=5000000 STATUS=Reloading", ready]
        it.supervision.reloading()
        it.supervision.reloaded("line 3: no such key")
        trouble = "; reload failed, the configuration before holds on: line 3: no such key"
        assert it.heard()[1] == ready + trouble
        it.daemon.certificates = 4
        assert await it.later(30) == [f"STATUS=Ready: 4 certificates, 1 order under way{trouble}"]
        it.supervision.reloading()
        it.supervision.reloaded()
        assert it.heard()[1] == "READY=1 STATUS=Ready: 4 certificates, 1 order under way"


async def test_a_reload_during_the_start_does_not_end_the_start(manager: socket.socket) -> None:
    """Its READY would tell systemd that the daemon answers, which it does not yet."""
    async with world(manager) as it:
        await it.now()
        it.supervision.reloading()
        it.supervision.reloaded()
        assert it.heard() == []


async def test_a_stop_asks_for_time_and_is_told_once(manager: socket.socket) -> None:
    """Orders are parked and requests answered; a second SIGTERM is no second stop. No sign of life follows."""
    async with world(manager, watchdog_seconds=30) as it:
        it.daemon.begin()
        await it.now()
        it.supervision.stopping()
        it.supervision.stopping()
        stopping = "STOPPING=1 STATUS=Stopping: answering requests, parking orders"
        assert await it.now() == [stopping, "EXTEND_TIMEOUT_USEC=15000000"]
        it.supervision.reloading()
        it.supervision.reloaded()
        assert await it.later(60) == ["EXTEND_TIMEOUT_USEC=15000000"] * 12
        await it.later(20)
        assert await it.later(60) == []


async def test_without_a_manager_nothing_runs() -> None:
    """On a desk and in most containers there is nobody to tell."""
    supervision = Supervision(Notifier(None), Daemon(), watchdog_seconds=3, clock=SteppedClock(), log=LOG)
    await asyncio.wait_for(supervision.run(), 20)


class TestWatchdog:
    async def test_it_hears_three_signs_of_life_in_its_time(self, manager: socket.socket) -> None:
        """One that is late by a moment must not end a daemon."""
        async with world(manager, watchdog_seconds=30) as it:
            it.daemon.begin()
            assert (await it.now())[-1] == "WATCHDOG=1"
            assert await it.later(30) == ["WATCHDOG=1"] * 3

    async def test_it_hears_nothing_before_the_daemon_answers(self, manager: socket.socket) -> None:
        """A start has a timeout of its own."""
        async with world(manager, watchdog_seconds=30) as it:
            await it.now()
            assert "WATCHDOG=1" not in await it.later(60)

    async def test_a_store_that_hangs_is_told_to_it(self, manager: socket.socket) -> None:
        """A disk that never answers is what a restart on another node can cure, and waiting cannot."""
        async with world(manager, watchdog_seconds=30) as it:
            it.daemon.begin()
            await it.now()
            it.daemon.store = asyncio.Event()
            await it.later(30)
            heard = await it.later(90)
            assert heard[-1] == "STATUS=Hanging: store gave no sign of life; the watchdog will end this"
            assert "WATCHDOG=1" not in await it.later(60)
            it.daemon.store.set()
            assert "WATCHDOG=1" in await it.later(30)

    async def test_a_store_that_refuses_is_alive(self, manager: socket.socket) -> None:
        """A full disk fills no less by restarts, and reading goes on meanwhile."""
        async with world(manager, watchdog_seconds=30) as it:
            it.daemon.begin()
            it.daemon.store = StorageUnavailable("the disk is full")
            await it.now()
            await it.later(200)
            assert "WATCHDOG=1" in await it.later(10)

    async def test_a_room_that_stands_still_is_told_to_it(self, manager: socket.socket) -> None:
        """A daemon that answers everything and renews nothing is the worst of all."""
        async with world(manager, watchdog_seconds=30) as it:
            it.daemon.begin(Heartbeat(name="renewal", last_at=lambda: it.daemon.turned_at, seconds_max=120.0))
            await it.now()
            assert (await it.later(120)).count("WATCHDOG=1") == 12
            assert [each for each in await it.later(40) if each == "WATCHDOG=1"] == []
            it.daemon.turned_at = it.clock.monotonic()
            assert "WATCHDOG=1" in await it.later(10)

    @pytest.mark.parametrize("name", ["nats", "ca"])
    async def test_what_is_away_outside_is_not(self, manager: socket.socket, name: str) -> None:
        """No restart of ours brings a NATS server or a CA back."""
        async with world(manager, watchdog_seconds=30) as it:
            it.daemon.health = HealthReply(
                status="degraded", components=[ComponentHealth(name=name, status="down", detail="no answer")]
            )
            it.daemon.begin()
            await it.now()
            assert (await it.later(300)).count("WATCHDOG=1") == 30


@pytest.mark.parametrize(
    ("health", "counts", "line"),
    [
        (FINE, {"certificates": 1, "orders": 0}, "Ready: 1 certificate, 0 orders under way"),
        (
            HealthReply(
                status="degraded",
                components=[
                    ComponentHealth(name="store", status="ok"),
                    ComponentHealth(name="nats", status="degraded", detail="reconnecting"),
                ],
            ),
            {"certificates": 5, "orders": 2},
            "Degraded: 5 certificates, 2 orders under way; nats degraded: reconnecting",
        ),
        (
            HealthReply(
                status="sealed", components=[ComponentHealth(name="master_key", status="down", detail="no key")]
            ),
            {"certificates": None, "orders": None},
            "Sealed, nothing is renewed: no key",
        ),
    ],
)
def test_the_status_says_how_it_is_in_one_line(health: HealthReply, counts: dict[str, Any], line: str) -> None:
    """It is read by somebody who was woken up."""
    assert status_text(health, **counts) == line
