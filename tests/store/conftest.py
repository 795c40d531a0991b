"""Shared by the store's tests: a clock that jumps, a log that remembers, and the backends to judge."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from structlog.typing import EventDict, FilteringBoundLogger


class FakeClock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


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


@asynccontextmanager
async def _sqlite(tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "state" / "store.db", clock=clock, log=log)
    try:
        yield store
    finally:
        await store.close()


# Another backend is one more entry: an async context manager that yields an empty store.
_BACKENDS = {"sqlite": _sqlite}


@pytest.fixture(params=sorted(_BACKENDS))
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
) -> AsyncIterator[SqliteStore]:
    """An empty store of each backend in turn."""
    async with _BACKENDS[request.param](tmp_path, clock, log) as store:
        yield store
