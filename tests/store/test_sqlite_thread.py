"""The thread behind the store: bounded, and honest about what was done."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest

from scaivaultd.model.errors import Internal, StorageUnavailable
from scaivaultd.store import sqlite_thread
from scaivaultd.store.sqlite_runs import run_each
from scaivaultd.store.sqlite_thread import SqliteThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def thread() -> AsyncIterator[SqliteThread]:
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    thread = SqliteThread("test", connection, run_each, capacity=2, batch=1)
    yield thread
    await thread.close()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_queue_is_bounded_and_order_is_kept(thread: SqliteThread) -> None:
    """A slow disk slows its callers down instead of filling memory."""
    gate = threading.Event()
    order: list[str] = []
    slow = asyncio.create_task(thread.call(lambda _: gate.wait(10)))
    await turns(3)
    second = asyncio.create_task(thread.call(lambda _: order.append("second")))
    third = asyncio.create_task(thread.call(lambda _: order.append("third")))
    await turns(3)
    third.cancel()  # it has no place yet, and gives none back
    fourth = asyncio.create_task(thread.call(lambda _: order.append("fourth")))
    await turns(3)
    assert order == []
    gate.set()
    assert await slow
    await asyncio.gather(second, fourth)
    assert order == ["second", "fourth"]
    with pytest.raises(asyncio.CancelledError):
        await third


async def test_cancelled_work_that_was_not_begun_is_not_done(thread: SqliteThread) -> None:
    """Giving up early saves the disk the work, and its place in the queue comes back."""
    gate = threading.Event()
    done: list[str] = []
    slow = asyncio.create_task(thread.call(lambda _: gate.wait(10)))
    await turns(3)
    waiting = asyncio.create_task(thread.call(lambda _: done.append("cancelled")))
    await turns(3)
    waiting.cancel()
    await turns(3)
    gate.set()
    await slow
    for _ in range(5):
        await thread.call(lambda _: done.append("after"))
    assert done == ["after"] * 5


async def test_what_follows_from_work_follows_though_its_caller_is_gone(thread: SqliteThread) -> None:
    """A commit that was made is told to watchers, whoever asked for it."""
    begun, gate = threading.Event(), threading.Event()
    settled: list[bool] = []

    def work(_: sqlite3.Connection) -> bool:
        begun.set()
        return gate.wait(10)

    task = asyncio.create_task(thread.call(work, settled.append))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await turns(3)
    gate.set()
    await thread.call(lambda _: None)
    assert settled == [True]


async def test_faults_of_ours_are_internal(thread: SqliteThread) -> None:
    """Bad SQL is no reason to tell an administrator to look at his disk."""
    with pytest.raises(Internal):
        await thread.call(lambda connection: connection.execute("SELECT * FROM nothing"))


async def test_a_place_in_the_queue_is_not_waited_for_for_ever(
    thread: SqliteThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a disk that hangs callers hear of it, and what got a place is done when it goes on."""
    monkeypatch.setattr(sqlite_thread, "_PATIENCE_SECONDS", 0.0)
    gate = threading.Event()
    slow = asyncio.create_task(thread.call(lambda _: gate.wait(10)))
    second = asyncio.create_task(thread.call(lambda _: "second"))
    await turns(3)
    with pytest.raises(StorageUnavailable, match="far behind"):
        await thread.call(lambda _: "third")
    gate.set()
    assert await slow
    assert await second == "second"
    monkeypatch.undo()
