"""Events to read again: in order, with a place to go on from, for those who may know of what they are about."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.api import operation_messages as om
from scaivaultd.api.gate import UNLIMITED, Permits
from scaivaultd.model.errors import InvalidRequest
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import OutboxEvent
from scaivaultd.services import event_feed
from scaivaultd.services.event_feed import EventFeed
from scaivaultd.store import sqlite_read
from scaivaultd.store.sqlite_apply import KeepEvents
from tests.fakes.judging import WEB, Permitted, asked_by

if TYPE_CHECKING:
    from collections.abc import Callable

READER = ("cert.read", "order.read")


@pytest.fixture
def feed(world: Any) -> EventFeed:
    return EventFeed(store=world.store, events=world.sqlite, waiting=world.waiting, clock=world.clock)


def event(name: str, type_: str = "audit.anchored", resource_id: str = "audit", **data: Any) -> OutboxEvent:
    body, time = json.dumps(data).encode(), "2026-01-01T00:00:00.000Z"
    return OutboxEvent(id=EventId(name), type=type_, resource_id=resource_id, time=time, data=body)


def about(name: str, *domains: str, type_: str = "certificate.expiring", resource_id: str = "cert_gone") -> OutboxEvent:
    return event(name, type_, resource_id, certificate_id=resource_id, domains=list(domains))


async def read(feed: EventFeed, permits: Permits = UNLIMITED, **members: Any) -> om.EventList:
    return await feed.list(om.ListEvents(**{"after": 0, **members}), asked_by(WEB, permits))


def ids(page: om.EventList) -> list[str]:
    return [each.id for each in page.items]


class TestPages:
    async def test_an_event_is_as_it_went_out(self, world: Any, feed: EventFeed) -> None:
        """The same id, time and body as on NATS."""
        order = await world.issue("a.example.test")
        (issued,) = (await read(feed, type="certificate.issued")).items
        assert (issued.id, issued.resource_id) == (f"{order.id}.certificate.issued", order.certificate_id)
        assert issued.data["domains"] == ["a.example.test"]
        assert issued.time == datetime.fromisoformat(issued.time.isoformat()).astimezone(UTC)

    async def test_each_page_goes_on_behind_the_one_before(self, world: Any, feed: EventFeed) -> None:
        """Asked again with `next_after` until nothing moves, all come once."""
        for each in range(7):
            await world.sqlite.commit([], [event(str(each))])
        found: list[str] = []
        after = 0
        while (page := await read(feed, after=after, limit=3)).items:
            found += ids(page)
            after = page.next_after
        assert found == [str(each) for each in range(7)]
        assert page.next_after == after

    async def test_without_a_place_it_begins_now(self, world: Any, feed: EventFeed) -> None:
        """Whoever follows from now on learns where that is."""
        await world.sqlite.commit([], [event("before")])
        page = await read(feed, after=None)
        assert (page.items, page.next_after) == ([], 1)

    async def test_what_is_passed_over_is_left_behind(self, world: Any, feed: EventFeed) -> None:
        """Else a reader of rare events would look at all others again each time, and take their end for a gap."""
        await world.sqlite.commit([], [event(str(each)) for each in range(20)])
        page = await read(feed, type="order.*")
        assert (page.items, page.next_after) == ([], 20)

    async def test_a_long_search_ends_and_goes_on(
        self, world: Any, feed: EventFeed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is answered with how far it came, at once, even if it would wait: there is more to look at."""
        monkeypatch.setattr(sqlite_read, "LOOKED_AT", 2)
        monkeypatch.setattr(event_feed, "LOOKS_MAX", 3)
        await world.sqlite.commit([], [event(str(each)) for each in range(20)])
        async with asyncio.timeout(20):
            page = await read(feed, type="order.*", wait_seconds=60)
        assert (page.items, page.next_after) == ([], 6)

    async def test_a_gap_can_be_told(self, world: Any, feed: EventFeed) -> None:
        """The oldest that is kept stands in every answer; a reader that is behind it has missed some."""
        world.sqlite.keeping = KeepEvents(count=3, seconds=1e9)
        for each in range(10):
            await world.sqlite.commit([], [event(str(each))])
        page = await read(feed, after=2)
        assert (page.oldest, ids(page)) == (8, ["7", "8", "9"])

    async def test_where_all_are_gone_it_goes_on_at_the_end(self, world: Any, feed: EventFeed) -> None:
        """A reader that came never further would ask without a pause."""
        world.sqlite.keeping = KeepEvents(count=1000, seconds=1)
        await world.sqlite.commit([], [event("old")])
        world.clock.advance(100)
        await world.sqlite.commit([], [event("old too")])
        page = await read(feed)
        assert (page.items, page.next_after, page.oldest) == ([], 2, None)

    async def test_a_place_that_is_not_yet_is_refused(self, world: Any, feed: EventFeed) -> None:
        """The store was restored from a backup: its readers are ahead, and would wait for ever."""
        with pytest.raises(InvalidRequest, match="the newest is 0"):
            await read(feed, after=5)


class TestSight:
    @pytest.mark.parametrize("where", ["there", "gone"])
    async def test_who_may_read_a_certificate_is_told_of_it(self, world: Any, feed: EventFeed, where: str) -> None:
        """By its names; those the event has count when it is not there any more."""
        await world.issue("a.mine.test")
        await world.issue("b.theirs.test")
        if where == "gone":
            others = about("theirs", "c.mine.test", "d.theirs.test")
            await world.sqlite.commit([], [about("mine", "c.mine.test"), others])
        found = await read(feed, Permitted(".mine.test", actions=READER), type="certificate.*")
        expected = [["a.mine.test"], *([["c.mine.test"]] if where == "gone" else [])]
        assert [each.data["domains"] for each in found.items] == expected

    async def test_names_that_it_had_then_count_too(self, world: Any, feed: EventFeed) -> None:
        """An event tells the names of its time."""
        order = await world.issue("a.mine.test")
        await world.sqlite.commit([], [about("then", "a.theirs.test", resource_id=order.certificate_id)])
        found = await read(feed, Permitted(".mine.test", actions=READER), type="certificate.expiring")
        assert ids(found) == []

    async def test_one_that_names_nothing_is_about_the_certificate(self, world: Any, feed: EventFeed) -> None:
        """A host that has confirmed tells no names."""
        order = await world.issue("a.mine.test")
        told = event("deployed", "certificate.deployed", order.certificate_id, certificate_id=order.certificate_id)
        await world.sqlite.commit([], [told, event("gone", "certificate.deployed", "cert_gone", certificate_id="x")])
        for suffix, expected in ((".mine.test", ["deployed"]), (".theirs.test", [])):
            found = await read(feed, Permitted(suffix, actions=READER), type="certificate.deployed")
            assert ids(found) == expected

    @pytest.mark.parametrize(("actions", "expected"), [(READER, ["failed"]), (("cert.read",), [])])
    async def test_orders_are_for_who_may_read_orders(
        self, world: Any, feed: EventFeed, actions: tuple[str, ...], expected: list[str]
    ) -> None:
        """Their errors tell more than a certificate does."""
        told = event("failed", "order.failed", "acme_order_gone", order_id="acme_order_gone", domains=["a.mine.test"])
        await world.sqlite.commit([], [told])
        assert ids(await read(feed, Permitted(".mine.test", actions=actions))) == expected

    @pytest.mark.parametrize(
        "told",
        [
            event("audit"),
            event("token", "token.expiring", "Ab3dEf9h"),
            event("account", "account.action_required", "acme_1", account_id="acme_1", order_id="acme_order_1"),
        ],
        ids=lambda each: each.type,
    )
    async def test_all_others_are_for_who_may_read_events(self, world: Any, feed: EventFeed, told: OutboxEvent) -> None:
        """Accounts, tokens and the audit log are nobody's certificate."""
        await world.sqlite.commit([], [told])
        assert ids(await read(feed, Permitted("", actions=READER))) == []
        assert ids(await read(feed, Permitted("", actions=(*READER, "event.read")))) == [told.id]

    async def test_pages_are_full_and_judged_once_for_each_certificate(self, world: Any, feed: EventFeed) -> None:
        """One in four is theirs; the log is long, and policies are not for nothing."""
        names = ["a.mine.test" if each % 4 == 3 else f"n{each % 4}.theirs.test" for each in range(200)]
        await world.sqlite.commit([], [about(str(place), name) for place, name in enumerate(names)])
        permits = Permitted(".mine.test", actions=READER)
        page = await read(feed, permits, limit=30)
        assert ids(page) == [str(each) for each in range(3, 120, 4)]
        assert permits.judged <= 10


class TestWaiting:
    async def test_it_is_woken_by_what_happens(self, world: Any, feed: EventFeed) -> None:
        """A long poll is as quick as a subscription."""
        waiting = asyncio.create_task(read(feed, wait_seconds=60, type="order.failed"))
        await asyncio.sleep(0)
        await world.sqlite.commit([], [event("other")])
        await world.sqlite.commit([], [about("that", type_="order.failed")])
        async with asyncio.timeout(20):
            assert ids(await waiting) == ["that"]

    async def test_none_is_missed_between_the_look_and_the_wait(self, world: Any, feed: EventFeed) -> None:
        """One that is committed just then wakes it too."""
        found: list[str] = []
        after = 0

        async def follow() -> None:
            nonlocal after
            while len(found) < 50:
                page = await read(feed, after=after, wait_seconds=60, limit=3)
                found.extend(ids(page))
                after = page.next_after

        following = asyncio.create_task(follow())
        for each in range(50):
            await world.sqlite.commit([], [event(str(each))])
        async with asyncio.timeout(20):
            await following
        assert found == [str(each) for each in range(50)]

    async def test_it_ends_when_the_daemon_stops(self, world: Any, feed: EventFeed) -> None:
        """A stop must not wait for a minute, and the answer says where to go on."""
        await world.sqlite.commit([], [event("one")])
        waiting = asyncio.create_task(read(feed, after=1, wait_seconds=60))
        await until(lambda: len(world.waiting) == 1)
        world.waiting.end()
        async with asyncio.timeout(20):
            assert (await waiting).next_after == 1

    async def test_too_many_are_answered_at_once(
        self, world: Any, feed: EventFeed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection that waits is one that nobody else can have."""
        monkeypatch.setattr(event_feed, "WAITERS_MAX", 2)
        waiting = [asyncio.create_task(read(feed, wait_seconds=60)) for _ in range(2)]
        await until(lambda: len(world.waiting) == 2)
        async with asyncio.timeout(20):
            assert (await read(feed, wait_seconds=60)).items == []
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert len(world.waiting) == 0


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - the request gets there by itself
            await asyncio.sleep(0)
