"""What is kept at hand of the store, and that it is never older than what was committed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.storage import Changed, Delete, Put, Stored
from scaivaultd.store.recent import Recent
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from tests.store.conftest import FakeClock


def written(key: str, revision: int, document: bytes = b"{}") -> Changed:
    return Changed(key=key, stored=Stored(key=key, revision=revision, document=document))


def read(key: str, revision: int) -> Stored:
    return Stored(key=key, revision=revision, document=b"{}")


def test_what_was_committed_last_is_at_hand() -> None:
    """A newer revision takes the place of the older one."""
    recent = Recent()
    recent.note_commit([written("a", 1)], ())
    recent.note_commit([written("a", 2)], ())
    found = recent.get("a")
    assert found is not None
    assert found.revision == 2


def test_what_was_removed_is_not_at_hand() -> None:
    """Whoever deletes a document must not see it again."""
    recent = Recent()
    recent.note_commit([written("a", 1)], ())
    recent.note_commit([Changed(key="a", stored=None)], ())
    assert recent.get("a") is None


def test_a_document_that_expires_is_not_kept_and_takes_the_place_of_one_that_did_not() -> None:
    """Nobody looks at the clock here."""
    recent = Recent()
    recent.note_commit([written("a", 1)], ())
    recent.note_commit([written("a", 2)], {"a"})
    assert recent.get("a") is None


def test_a_read_is_kept() -> None:
    """What was written in an earlier life is at hand from its first use on."""
    recent = Recent()
    recent.note_read(read("a", 1), recent.moment)
    assert recent.get("a") == read("a", 1)


def test_a_read_that_something_was_written_beside_is_not_kept() -> None:
    """It may show the time before: a document removed meanwhile would come back for good."""
    recent = Recent()
    began = recent.moment
    recent.note_commit([Changed(key="a", stored=None)], ())
    recent.note_read(read("a", 1), began)
    assert recent.get("a") is None


def test_what_was_used_longest_ago_goes_first_when_room_is_short() -> None:
    """Memory is bounded whatever the store holds."""
    recent = Recent(capacity_bytes=3000)
    for name in ("a", "b"):
        recent.note_commit([written(name, 1, bytes(1000))], ())
    assert recent.get("a") is not None
    recent.note_commit([written("c", 1, bytes(1000))], ())
    assert recent.get("b") is None
    assert recent.get("a") is not None
    assert recent.get("c") is not None


def test_room_is_counted_once_for_each_document() -> None:
    """A document written a thousand times must not push the others out."""
    recent = Recent(capacity_bytes=3000)
    recent.note_commit([written("a", 1, bytes(1000))], ())
    for revision in range(1000):
        recent.note_commit([written("b", revision, bytes(1000))], ())
        recent.note_read(Stored(key="b", revision=revision, document=bytes(1000)), recent.moment)
    assert recent.get("a") is not None


def test_a_document_larger_than_all_room_is_not_kept() -> None:
    """Nor does it break anything."""
    recent = Recent(capacity_bytes=3000)
    recent.note_commit([written("a", 1, bytes(5000))], ())
    assert recent.get("a") is None


@pytest.fixture
async def store(tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db", clock=clock, log=log)
    try:
        yield store
    finally:
        await store.close()


async def test_a_document_at_hand_ends_with_its_time(store: SqliteStore, clock: FakeClock) -> None:
    """An Idempotency-Key counts for a day, also when it was just read."""
    await store.commit([Put(key="a", document=b"1", ttl_seconds=10)])
    assert await store.get("a") is not None
    clock.advance(11)
    assert await store.get("a") is None


async def test_a_document_given_an_end_is_not_remembered_without(store: SqliteStore, clock: FakeClock) -> None:
    """The other order of things: it was at hand before it was to end."""
    await store.commit([Put(key="a", document=b"1")])
    await store.commit([Put(key="a", document=b"2", ttl_seconds=10)])
    clock.advance(11)
    assert await store.get("a") is None


async def test_readers_beside_writers_end_with_the_last_word(store: SqliteStore) -> None:
    """Reads and writes cross the threads in any order; what stays at hand is what was committed last."""
    keys = [f"k{number}" for number in range(20)]

    async def write(key: str) -> None:
        for number in range(30):
            await store.commit([Put(key=key, document=str(number).encode())])
        if key == "k0":
            await store.commit([Delete(key=key)])

    async def look(key: str) -> None:
        newest = -1
        for _ in range(200):
            found = await store.get(key)
            if found is not None:
                assert int(found.document) >= newest
                newest = int(found.document)
            await asyncio.sleep(0)

    await asyncio.gather(*(write(key) for key in keys), *(look(key) for key in keys))
    last = [await store.get(key) for key in keys]
    assert [each and each.document for each in last] == [None, *([b"29"] * 19)]


async def test_a_closed_store_has_nothing_at_hand(tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger) -> None:
    """A service that goes on after the end must hear of it, not live on memories."""
    store = await SqliteStore.open(tmp_path / "store.db", clock=clock, log=log)
    await store.commit([Put(key="a", document=b"1")])
    await store.close()
    with pytest.raises(StorageUnavailable):
        await store.get("a")
