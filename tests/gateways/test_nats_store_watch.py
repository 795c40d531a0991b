"""When a nats-server is restarted for its store, and how often."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd.gateways.nats_store_watch import ROOM_BYTES, StoreWatch, bytes_left, room
from tests.fakes.scripted_ca import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

GAVE_UP = "JetStream stream '$G > E' critical write error: write 1.blk: input/output error"
DEADLINE = 5.0


class Patient:
    """A server whose store gives up `relapses` times, each `healthy_seconds` after its restart."""

    def __init__(self, folder: Path, *, relapses: int = 0, healthy_seconds: float = 0.0) -> None:
        self.clock = FakeClock()
        self.capture = LogCapture()
        log = structlog.wrap_logger(
            None, processors=[self.capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
        )
        self.watch = StoreWatch(folder, self._restart, room=self._room, clock=self.clock, log=log)
        self.room = [ROOM_BYTES]
        self.restarts: list[float] = []
        self.is_well = asyncio.Event()
        self._relapses = relapses
        self._healthy_seconds = healthy_seconds

    def said(self) -> list[str]:
        return [f"{entry['log_level']} {entry['event']}" for entry in self.capture.entries]

    def _room(self, _: Path) -> int:
        return self.room.pop(0) if len(self.room) > 1 else self.room[0]

    async def _restart(self) -> None:
        self.restarts.append(self.clock.monotonic())
        if len(self.restarts) > self._relapses:
            self.is_well.set()
        else:
            asyncio.get_running_loop().call_soon(self._relapse)

    def _relapse(self) -> None:
        self.clock.advance(self._healthy_seconds)
        self.watch.hear(GAVE_UP)


@asynccontextmanager
async def watching(patient: Patient) -> AsyncIterator[None]:
    """The watch runs until its patient is well."""
    task = asyncio.create_task(patient.watch.run())
    try:
        async with asyncio.timeout(DEADLINE):
            yield
            await patient.is_well.wait()
            await asyncio.sleep(0)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Filestore [E] Critical write error: write 1.blk: no space left on device", True),
        (GAVE_UP, True),
        ("JetStream failed to store a msg on stream '$G > E': write 1.blk: no space left on device", True),
        ("JetStream out of File resources, will be DISABLED", True),
        ("JetStream out of space, will be DISABLED", True),
        ("127.0.0.1:4222 - cid:1 - authentication error", False),
    ],
)
async def test_the_servers_words_say_that_it_gave_up(tmp_path: Path, text: str, is_one: bool) -> None:
    """Clients see timeouts only, which may mean anything."""
    watch = Patient(tmp_path).watch
    assert [watch.hear(text), watch.hear(text)] == [False, is_one]
    assert (text in (watch.trouble or "")) is is_one


async def test_it_is_said_once_and_what_is_done_about_it(tmp_path: Path) -> None:
    """An outage of a night is two lines."""
    patient = Patient(tmp_path)
    patient.room = [0] * 1000 + [ROOM_BYTES]
    async with watching(patient):
        patient.watch.hear(GAVE_UP)
    assert patient.said() == ["warning nats_server.store_gave_up", "warning nats_server.restarting"]
    assert patient.restarts == [1001.0]
    assert patient.watch.trouble is None


async def test_less_than_needed_is_no_room(tmp_path: Path) -> None:
    """A restart into the last kilobytes would end where it began."""
    patient = Patient(tmp_path)
    patient.room = [ROOM_BYTES - 1, ROOM_BYTES]
    async with watching(patient):
        patient.watch.hear(GAVE_UP)
    assert patient.restarts == [2.0]


async def test_restarts_that_do_not_help_come_more_and_more_rarely(tmp_path: Path) -> None:
    """A disk that breaks has room too; clients lose their connection at each restart."""
    patient = Patient(tmp_path, relapses=10)
    async with watching(patient):
        patient.watch.hear(GAVE_UP)
    pauses = [later - earlier for earlier, later in zip([0.0, *patient.restarts], patient.restarts, strict=False)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


async def test_after_a_minute_of_health_the_pause_is_short_again(tmp_path: Path) -> None:
    """The next full disk is another one."""
    patient = Patient(tmp_path, relapses=3, healthy_seconds=60.0)
    async with watching(patient):
        patient.watch.hear(GAVE_UP)
    assert patient.restarts == [1.0, 62.0, 123.0, 184.0]


def test_room_is_what_is_free_where_the_directory_is(tmp_path: Path) -> None:
    """And nothing where there is no directory: a disk that is gone is no place to restart on."""
    assert room(tmp_path) > 0
    assert room(tmp_path / "gone") == 0


@pytest.mark.parametrize(("files", "files_left", "expected"), [(0, 0, 40 << 12), (9, 1, 40 << 12), (9, 0, 0)])
def test_a_disk_that_takes_no_more_files_has_no_room(files: int, files_left: int, expected: int) -> None:
    """nats-server begins new files all the time; and what is left for root alone is not for us."""
    found = os.statvfs_result((1 << 16, 1 << 12, 100, 50, 40, files, files_left, files_left, 0, 255))
    assert bytes_left(found) == expected
