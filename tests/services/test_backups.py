"""Backups by request: how they are locked, one at a time, and what becomes of one whose caller has gone."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api import operation_messages as om
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.backups import RESTORED_KEY, BackupWritten, Restored
from scaivaultd.model.errors import Conflict, InvalidRequest, PermissionDenied, StorageUnavailable
from scaivaultd.model.principals import Principal
from scaivaultd.model.storage import Put
from scaivaultd.services.backups import Backups
from scaivaultd.services.safe_mode import SafeMode

if TYPE_CHECKING:
    from scaivaultd.plugin import Secret

UNIX = RequestContext(request_id="req_1", principal=Principal(kind="unix", id="0"))
TOKEN = RequestContext(request_id="req_1", principal=Principal(kind="token", id="abcdefgh"))
WRITTEN = BackupWritten(
    path="/b", bytes=1, sha256="00", created_at=datetime(2026, 1, 1, tzinfo=UTC), documents=1, audit_records=0
)


class Maker:
    """Makes a backup as soon as it may."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.begun = threading.Event()
        self.fails: Exception | None = None
        self.stopped = False
        self.locks: list[tuple[str | None, str | None]] = []

    def mistake_in(self, recipient: str) -> str | None:
        return None if recipient == "scvr1good" else "there is a mistake in it"

    def write(self, *, recipient: str | None, passphrase: Secret | None, stop: threading.Event, **_: Any) -> Any:
        self.locks.append((recipient, None if passphrase is None else passphrase.reveal()))
        self.begun.set()
        while not self.may_end.wait(0.01):
            if stop.is_set():
                self.stopped = True
                raise InterruptedError
        if self.fails is not None:
            raise self.fails
        return WRITTEN


@pytest.fixture
def maker() -> Maker:
    maker = Maker()
    maker.may_end.set()
    return maker


@pytest.fixture
def backups(maker: Maker, sqlite: Any, clock: Any, log: Any) -> Backups:
    return Backups(maker=maker, safe_mode=SafeMode(sqlite, log), node_id="node_1", clock=clock, log=log)


@pytest.mark.parametrize(
    ("request_", "context", "error"),
    [
        (om.CreateBackup(), UNIX, InvalidRequest),
        (om.CreateBackup(recipient="scvr1good", passphrase="long enough"), UNIX, InvalidRequest),
        (om.CreateBackup(recipient="scvr1bad"), UNIX, InvalidRequest),
        (om.CreateBackup(passphrase="long enough"), TOKEN, PermissionDenied),
    ],
)
async def test_a_backup_has_one_lock_and_a_passphrase_one_way(
    backups: Backups, maker: Maker, request_: om.CreateBackup, context: RequestContext, error: type[Exception]
) -> None:
    """A passphrase that has crossed the bus is none."""
    with pytest.raises(error):
        await backups.create(request_, context)
    assert maker.locks == []


async def test_a_recipient_may_come_from_anywhere(backups: Backups, maker: Maker) -> None:
    """A timer on another host has no passphrase, and needs none."""
    reply = await backups.create(om.CreateBackup(recipient="scvr1good"), TOKEN)
    assert (reply.path, reply.sha256) == ("/b", "00")
    await backups.create(om.CreateBackup(passphrase="long enough"), UNIX)
    assert maker.locks == [("scvr1good", None), (None, "long enough")]


async def test_one_at_a_time(backups: Backups, maker: Maker) -> None:
    """Each needs the room of a store; and after one that failed there may be another."""
    maker.may_end.clear()
    request = om.CreateBackup(recipient="scvr1good")
    first = asyncio.create_task(backups.create(request, UNIX))
    await asyncio.to_thread(maker.begun.wait, 30)
    with pytest.raises(Conflict):
        await backups.create(request, UNIX)
    maker.fails = StorageUnavailable("full")
    maker.may_end.set()
    with pytest.raises(StorageUnavailable):
        await first
    maker.fails = None
    assert (await backups.create(request, UNIX)).bytes == 1


async def test_a_caller_who_goes_ends_it(backups: Backups, maker: Maker) -> None:
    """Nothing is written for nobody, and a daemon that stops does not wait for a gigabyte."""
    maker.may_end.clear()
    request = om.CreateBackup(recipient="scvr1good")
    task = asyncio.create_task(backups.create(request, UNIX))
    await asyncio.to_thread(maker.begun.wait, 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert maker.stopped
    maker.may_end.set()
    assert (await backups.create(request, UNIX)).bytes == 1


async def test_resume_tells_what_the_state_was_restored_from(
    sqlite: Any, backups: Backups, clock: Any, log: Any
) -> None:
    """And says so where there was nothing to end."""
    reply = await _resumed(sqlite, log, clock)
    assert reply == om.ResumeReply(was_paused=True, restored_from="b.scvb")
    ordinary = SafeMode(sqlite, log)
    await ordinary.load()
    again = Backups(maker=Maker(), safe_mode=ordinary, node_id="n", clock=clock, log=log)
    assert await again.resume(m.Nothing(), UNIX) == om.ResumeReply(was_paused=False)


async def _resumed(sqlite: Any, log: Any, clock: Any) -> om.ResumeReply:
    await mark_restored(sqlite)
    safe_mode = SafeMode(sqlite, log)
    await safe_mode.load()

    async def begin() -> None: ...

    room = asyncio.create_task(safe_mode.work(begin, then=lambda: None))
    backups = Backups(maker=Maker(), safe_mode=safe_mode, node_id="n", clock=clock, log=log)
    reply = await backups.resume(m.Nothing(), UNIX)
    await room
    return reply


async def mark_restored(sqlite: Any) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    document = msgspec.json.encode(Restored(backup="b.scvb", backup_created_at=now, restored_at=now))
    await sqlite.commit([Put(key=RESTORED_KEY, document=document)])
