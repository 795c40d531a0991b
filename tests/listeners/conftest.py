"""Shared by the listeners' tests: a clock that is moved by hand, a log that remembers, a listener on real sockets."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd.listeners.http01 import Http01Listener
from scaivaultd.listeners.http01_admission import Http01Limits
from scaivaultd.listeners.sockets import bind_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from structlog.typing import EventDict, FilteringBoundLogger


class FakeClock:
    """Time stands still until a test moves it; who sleeps wakes when its moment has come."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._asleep = asyncio.Event()

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._monotonic + seconds, woken))
        self._asleep.set()
        await woken

    async def advance(self, seconds: float) -> None:
        """Wait until somebody sleeps, then move on."""
        await asyncio.wait_for(self._asleep.wait(), 10)
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
        due = [each for each in self._sleepers if each[0] <= self._monotonic]
        self._sleepers = [each for each in self._sleepers if each not in due]
        if not self._sleepers:
            self._asleep.clear()
        for _, woken in due:
            if not woken.done():
                woken.set_result(None)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(capture: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    return logger


@pytest.fixture
def logged(capture: LogCapture) -> list[EventDict]:
    """What has been logged so far."""
    return capture.entries


@pytest.fixture
def serve(
    clock: FakeClock, log: FilteringBoundLogger
) -> Callable[[Http01Limits, Sequence[socket.socket] | None], AbstractAsyncContextManager[Http01Listener]]:
    """Runs a listener with other limits, or on other sockets than one on 127.0.0.1."""

    @asynccontextmanager
    async def run(
        limits: Http01Limits, sockets: Sequence[socket.socket] | None = None
    ) -> AsyncIterator[Http01Listener]:
        bound = bind_all(["127.0.0.1:0"]).sockets if sockets is None else sockets
        listener = Http01Listener(bound, clock=clock, log=log, limits=limits)
        await listener.start()
        try:
            yield listener
        finally:
            await listener.close()

    return run


@pytest.fixture
async def listener(
    serve: Callable[[Http01Limits], AbstractAsyncContextManager[Http01Listener]],
) -> AsyncIterator[Http01Listener]:
    """A listener on 127.0.0.1 with the default limits."""
    async with serve(Http01Limits()) as running:
        yield running
