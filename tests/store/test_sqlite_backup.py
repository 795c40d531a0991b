"""A copy of the store that is whole, whatever is written meanwhile."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.model.storage import Put
from scaivaultd.store.sqlite import SqliteStore
from scaivaultd.store.sqlite_backup import copy_store, document_in

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

BLOB = b"x" * 4000
COUNT = 600


@pytest.fixture
async def store(tmp_path: Path, clock: Any, log: FilteringBoundLogger) -> AsyncIterator[SqliteStore]:
    """A store of some megabytes: copying it takes several steps."""
    store = await SqliteStore.open(tmp_path / "store.db", clock=clock, log=log)
    for start in range(0, COUNT, 100):
        await store.commit([Put(key=f"a/{number}", document=BLOB) for number in range(start, start + 100)])
    yield store
    await store.close()


async def test_the_copy_is_of_one_moment_however_much_is_written_meanwhile(store: SqliteStore, tmp_path: Path) -> None:
    """An order without its certificate is what no restart could mend; and a copy must not begin anew for ever."""
    (copy := tmp_path / "copy").touch()
    looks = 0
    writer = sqlite3.connect(tmp_path / "store.db", isolation_level=None)

    def look() -> None:
        nonlocal looks
        looks += 1
        # Another connection, as the store's own thread has: both or none of the two may be seen.
        writer.execute("BEGIN IMMEDIATE")
        for key in (f"b/{looks}", "a/0"):
            writer.execute("INSERT OR REPLACE INTO documents (key, document) VALUES (?, ?)", (key, b"later"))
        writer.execute("COMMIT")

    copied = copy_store(tmp_path / "store.db", copy, look)
    writer.close()
    assert 1 < looks < 20
    assert copied.documents == COUNT
    assert document_in(copy, "a/0") == BLOB
    assert document_in(copy, "b/1") is None
    with sqlite3.connect(copy) as whole:
        assert whole.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_who_looks_may_end_it(store: SqliteStore, tmp_path: Path) -> None:
    """A daemon that stops must not wait for a gigabyte."""
    (tmp_path / "copy").touch()

    def look() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        copy_store(tmp_path / "store.db", tmp_path / "copy", look)
    await store.commit([Put(key="a/after", document=b"1")])
