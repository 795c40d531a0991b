"""The log of events: what was told stays to be read again, in its order, for a while."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from scaivaultd.model.errors import RevisionConflict
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import ABSENT, LogScan, OutboxEvent, Put
from scaivaultd.store import sqlite_read
from scaivaultd.store.sqlite_apply import KeepEvents

if TYPE_CHECKING:
    from scaivaultd.store.sqlite import SqliteStore
    from tests.store.conftest import FakeClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def event(name: str, type_: str = "order.failed", resource_id: str = "acme_order_1", at: datetime = NOW) -> OutboxEvent:
    time = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return OutboxEvent(id=EventId(name), type=type_, resource_id=resource_id, time=time, data=b"{}")


async def ids(
    store: SqliteStore, after: int = 0, limit: int = 100, type_: str | None = None, resource_id: str | None = None
) -> list[str]:
    page = await store.logged_events(LogScan(after=after, limit=limit, type=type_, resource_id=resource_id))
    return [each.event.id for each in page.items]


async def test_an_event_stays_after_it_was_told(store: SqliteStore) -> None:
    """Whoever was away reads it, and it is the very same."""
    told = event("one")
    await store.commit([], [told])
    await store.forget_events([each.sequence for each in await store.pending_events()])
    page = await store.logged_events(LogScan(after=0, limit=10))
    assert [each.event for each in page.items] == [told]
    assert page.reached == page.items[0].sequence


async def test_one_of_a_commit_that_failed_is_nowhere(store: SqliteStore) -> None:
    """An event is a fact."""
    await store.commit([Put(key="a/1", document=b"")])
    with pytest.raises(RevisionConflict):
        await store.commit([Put(key="a/1", document=b"", expect_revision=ABSENT)], [event("one")])
    assert await ids(store) == []


async def test_the_same_one_again_is_in_it_once(store: SqliteStore) -> None:
    """It may have been told, and be committed again after an unknown outcome."""
    for _ in range(2):
        await store.commit([], [event("one"), event("two")])
        await store.forget_events([each.sequence for each in await store.pending_events()])
    assert await ids(store) == ["one", "two"]


async def test_the_order_is_that_of_the_commits(store: SqliteStore) -> None:
    """However many come at once: a reader goes on behind the last one it has, and must miss none."""
    await asyncio.gather(*(store.commit([], [event(f"{each}a"), event(f"{each}b")]) for each in range(50)))
    found = await ids(store)
    assert [each[:-1] + "b" for each in found[::2]] == found[1::2]
    pending = [each.event.id for each in await store.pending_events()]
    assert found == pending
    last = (await store.logged_events(LogScan(after=0, limit=40))).items[-1].sequence
    assert await ids(store, after=last) == found[40:]


@pytest.mark.parametrize(
    ("type_", "resource_id", "expected"),
    [
        (None, None, ["1", "2", "3", "4"]),
        ("certificate.*", None, ["1", "2"]),
        ("certificate.issued", None, ["1"]),
        ("certificate", None, []),
        ("cert*", None, []),
        (None, "cert_1", ["1", "3"]),
        ("certificate.*", "cert_1", ["1"]),
        ("%", None, []),
    ],
)
async def test_some_are_picked_by_type_and_resource(
    store: SqliteStore, type_: str | None, resource_id: str | None, expected: list[str]
) -> None:
    """A family is all that begins with it and a dot: what only begins alike is another one."""
    await store.commit(
        [],
        [
            event("1", "certificate.issued", "cert_1"),
            event("2", "certificate.expired", "cert_2"),
            event("3", "certificates.other", "cert_1"),
            event("4", "order.failed", "cert_3"),
        ],
    )
    assert await ids(store, type_=type_, resource_id=resource_id) == expected


async def test_what_is_rare_is_looked_for_a_stretch_at_a_time(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reader must not keep the store from all others; it is told how far the look went."""
    monkeypatch.setattr(sqlite_read, "LOOKED_AT", 10)
    await store.commit([], [event(str(each)) for each in range(25)])
    await store.commit([], [event("rare", "audit.anchored")])
    after, looks = 0, 0
    while not (page := await store.logged_events(LogScan(after=after, limit=5, type="audit.*"))).items:
        assert page.reached > after
        after, looks = page.reached, looks + 1
    assert (page.items[0].event.id, looks) == ("rare", 2)


async def test_old_ones_go_a_few_with_each_commit(store: SqliteStore, clock: FakeClock) -> None:
    """The log is bounded by time, and no commit waits for all that is to go at once."""
    store.keeping = KeepEvents(count=1000, seconds=86_400)
    for start in (0, 60):
        await store.commit([], [event(f"old{each}") for each in range(start, start + 60)])
    clock.advance(2 * 86_400)
    left = []
    for number in range(4):
        await store.commit([], [event(f"new{number}", at=NOW + timedelta(days=2))])
        left.append(len(await ids(store, limit=1000)))
    assert left == [71, 22, 3, 4]
    bounds = await store.log_bounds()
    assert (bounds.oldest, bounds.newest) == (121, 124)


async def test_too_many_are_the_oldest(store: SqliteStore) -> None:
    """However young: a flood must not fill the disk."""
    store.keeping = KeepEvents(count=5, seconds=86_400)
    for each in range(20):
        await store.commit([], [event(str(each))])
    assert await ids(store) == ["15", "16", "17", "18", "19"]


async def test_places_are_not_used_again(store: SqliteStore, clock: FakeClock) -> None:
    """A reader would go on behind what it has never seen."""
    store.keeping = KeepEvents(count=1000, seconds=60)
    await store.commit([], [event("one"), event("two")])
    clock.advance(3600)
    await store.commit([], [event("three")])
    assert await ids(store) == []
    bounds = await store.log_bounds()
    assert (bounds.oldest, bounds.newest) == (None, 3)
    await store.commit([], [event("four", at=clock.now())])
    assert (await store.logged_events(LogScan(after=0, limit=9))).items[0].sequence == 4


async def test_a_commit_with_events_wakes_who_waits(store: SqliteStore) -> None:
    """And one without them does not."""
    moved = store.next_events()
    await store.commit([Put(key="a/1", document=b"")])
    assert not moved.is_set()
    await store.commit([], [event("one")])
    assert moved.is_set()
    assert not store.next_events().is_set()
