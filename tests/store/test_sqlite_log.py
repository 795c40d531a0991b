"""What was overwritten in the store is not left in its files."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import structlog

from scaivaultd.model.clock import SystemClock
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.storage import Delete, Put
from scaivaultd.store.sqlite import SqliteStore
from scaivaultd.store.sqlite_log import fold_log

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECRET = b"sealed under the key of before"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    store = await SqliteStore.open(tmp_path / "store.db", clock=SystemClock(), log=log)
    try:
        yield store
    finally:
        await store.close()


def files(folder: Path) -> bytes:
    return b"".join(each.read_bytes() for each in folder.iterdir() if not each.name.endswith("-shm"))


@pytest.mark.parametrize("size", [1, 400])
async def test_what_was_overwritten_is_in_no_file(store: SqliteStore, tmp_path: Path, size: int) -> None:
    """Large documents leave whole pages behind, small ones holes in a page, and both leave copies in the log."""
    for number in range(20):
        await store.commit([Put(key=f"key/{number}", document=SECRET * size)])
    assert SECRET in files(tmp_path)
    for number in range(10):
        await store.commit([Put(key=f"key/{number}", document=b"sealed anew")])
    await store.commit([Delete(key=f"key/{number}") for number in range(10, 20)])
    assert SECRET in files(tmp_path)
    assert await fold_log(tmp_path / "store.db")
    assert SECRET not in files(tmp_path)
    assert b"sealed anew" in files(tmp_path)
    await store.commit([Put(key="key/0", document=b"and on")])
    found = await store.get("key/0")
    assert found is not None
    assert found.document == b"and on"


async def test_a_reader_from_outside_keeps_the_log(store: SqliteStore, tmp_path: Path) -> None:
    """A backup under way: the caller hears that it is not done."""
    await store.commit([Put(key="key/0", document=SECRET)])
    with closing(sqlite3.connect(tmp_path / "store.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM documents").fetchone()
        await store.commit([Put(key="key/0", document=b"sealed anew")])
        assert not await fold_log(tmp_path / "store.db")
    assert await fold_log(tmp_path / "store.db")


async def test_a_store_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    """An empty file in its place would look like a new store."""
    with pytest.raises(StorageUnavailable):
        await fold_log(tmp_path / "store.db")
    assert not (tmp_path / "store.db").exists()
