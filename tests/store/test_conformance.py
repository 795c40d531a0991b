"""What every store must do, whatever it is made of: the judge of the contract in `services/ports.py`.

Nothing here knows a backend; `conftest.py` runs it all against each.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import pytest

from scaivaultd.model.errors import RevisionConflict
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import ABSENT, Changed, Delete, OutboxEvent, Put, Stored
from scaivaultd.services.ports import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from scaivaultd.model.storage import Pending
    from tests.store.conftest import FakeClock


class OutboxStore(Store, Protocol):
    """The contract, with the side that the publisher sees."""

    async def pending_events(self, limit: int = 100) -> Sequence[Pending]: ...

    async def forget_events(self, sequences: Sequence[int]) -> None: ...

    async def wait_for_events(self) -> None: ...


def event(name: str) -> OutboxEvent:
    return OutboxEvent(
        id=EventId(name), type="order.failed", resource_id="acme_order_1", time="2026-01-01T00:00:00Z", data=b"{}"
    )


async def keys_of(store: Store, prefix: str, where: Mapping[str, str] | None = None) -> list[str]:
    return [stored.key for stored in (await store.scan(prefix, where=where, limit=1000)).items]


async def next_of(changes: AsyncIterator[Changed]) -> Changed:
    async with asyncio.timeout(10):
        return await anext(changes)


class TestRevisions:
    async def test_put_is_read_back_with_the_revision_it_was_given(self, store: OutboxStore) -> None:
        """The caller goes on with the revision it was told, so it must be the one that is read."""
        revisions = await store.commit([Put(key="order/1", document=b"\x00new\xff")])
        assert await store.get("order/1") == Stored(
            key="order/1", revision=revisions["order/1"], document=b"\x00new\xff"
        )
        assert revisions["order/1"] >= 1

    async def test_get_of_an_absent_key_is_none(self, store: OutboxStore) -> None:
        """Absence is an answer, not an error."""
        assert await store.get("order/1") is None

    async def test_put_expecting_absence_refuses_an_existing_key(self, store: OutboxStore) -> None:
        """Two daemons accept the same idempotency key; only one may have it."""
        await store.commit([Put(key="idem/1", document=b"first", expect_revision=ABSENT)])
        with pytest.raises(RevisionConflict) as caught:
            await store.commit([Put(key="idem/1", document=b"second", expect_revision=ABSENT)])
        stored = await store.get("idem/1")
        assert caught.value.key == "idem/1"
        assert stored is not None
        assert stored.document == b"first"

    async def test_put_expecting_a_revision_takes_that_one_only(self, store: OutboxStore) -> None:
        """The revision is the fence against a stale owner."""
        first = await store.commit([Put(key="order/1", document=b"1")])
        second = await store.commit([Put(key="order/1", document=b"2", expect_revision=first["order/1"])])
        assert second["order/1"] > first["order/1"]
        with pytest.raises(RevisionConflict):
            await store.commit([Put(key="order/1", document=b"3", expect_revision=first["order/1"])])

    async def test_put_expecting_a_revision_refuses_an_absent_key(self, store: OutboxStore) -> None:
        """What was deleted meanwhile must not come back to life."""
        with pytest.raises(RevisionConflict):
            await store.commit([Put(key="order/1", document=b"1", expect_revision=1)])

    async def test_put_without_expectation_writes_over(self, store: OutboxStore) -> None:
        """None means: whatever is there."""
        await store.commit([Put(key="order/1", document=b"1")])
        revisions = await store.commit([Put(key="order/1", document=b"2")])
        assert await store.get("order/1") == Stored(key="order/1", revision=revisions["order/1"], document=b"2")

    async def test_delete_takes_the_expected_revision_only(self, store: OutboxStore) -> None:
        """A clean-up must not remove what was written anew."""
        first = await store.commit([Put(key="chal/1", document=b"1")])
        second = await store.commit([Put(key="chal/1", document=b"2")])
        with pytest.raises(RevisionConflict):
            await store.commit([Delete(key="chal/1", expect_revision=first["chal/1"])])
        assert await store.commit([Delete(key="chal/1", expect_revision=second["chal/1"])]) == {}
        assert await store.get("chal/1") is None

    async def test_delete_of_an_absent_key_is_no_error(self, store: OutboxStore) -> None:
        """Clean-up is repeated after a crash."""
        assert await store.commit([Delete(key="chal/1")]) == {}

    async def test_revisions_are_unique_and_grow_across_keys_and_deletes(self, store: OutboxStore) -> None:
        """A revision seen once must never come to mean another state (the ABA problem)."""
        seen = []
        for _ in range(3):
            revisions = await store.commit([Put(key="a", document=b""), Put(key="b", document=b"")])
            seen += [revisions["a"], revisions["b"]]
            await store.commit([Delete(key="a"), Delete(key="b")])
        assert seen == sorted(set(seen))

    async def test_one_of_many_rivals_wins(self, store: OutboxStore) -> None:
        """Compare and set must hold between commits that share a transaction."""
        results = await asyncio.gather(
            *(
                store.commit([Put(key="order/1", document=str(number).encode(), expect_revision=ABSENT)])
                for number in range(20)
            ),
            return_exceptions=True,
        )
        won = [number for number, result in enumerate(results) if not isinstance(result, BaseException)]
        stored = await store.get("order/1")
        assert len(won) == 1
        assert stored is not None
        assert stored.document == str(won[0]).encode()
        assert sum(isinstance(result, RevisionConflict) for result in results) == 19


class TestAtomicity:
    async def test_a_refused_commit_leaves_nothing(self, store: OutboxStore) -> None:
        """Certificate, pointer and event stand together or not at all."""
        await store.commit([Put(key="name/x", document=b"old", index={"kind": "old"})])
        with pytest.raises(RevisionConflict):
            await store.commit(
                [
                    Put(key="cert/1", document=b"pem"),
                    Delete(key="name/x"),
                    Put(key="order/1", document=b"valid", expect_revision=7),
                ],
                [event("evt_1")],
            )
        assert await keys_of(store, "") == ["name/x"]
        assert await keys_of(store, "", {"kind": "old"}) == ["name/x"]
        assert await store.pending_events() == []

    async def test_a_conflict_does_not_touch_commits_beside_it(self, store: OutboxStore) -> None:
        """Strangers share an fsync, not their fate."""
        good, bad, other = await asyncio.gather(
            store.commit([Put(key="good", document=b"1")], [event("evt_good")]),
            store.commit([Put(key="torn", document=b"1"), Put(key="bad", document=b"", expect_revision=9)]),
            store.commit([Put(key="other", document=b"1")]),
            return_exceptions=True,
        )
        assert isinstance(bad, RevisionConflict)
        assert not isinstance(good, BaseException)
        assert not isinstance(other, BaseException)
        assert await keys_of(store, "") == ["good", "other"]

    async def test_an_empty_commit_is_nothing(self, store: OutboxStore) -> None:
        """A caller with nothing to say needs no special case."""
        assert await store.commit([]) == {}

    async def test_a_cancelled_commit_is_whole_or_absent(self, store: OutboxStore) -> None:
        """A caller that gave up must find one of two states, never a third."""
        for turns in range(6):
            tasks = [
                asyncio.create_task(
                    store.commit(
                        [Put(key=f"a/{turns}-{number}", document=b""), Put(key=f"b/{turns}-{number}", document=b"")],
                        [event(f"evt_{turns}-{number}")],
                    )
                )
                for number in range(20)
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert not any(isinstance(result, BaseException) for result in results[1::2])
        await store.commit([])  # behind everything that was under way
        left = [key.removeprefix("a/") for key in await keys_of(store, "a/")]
        right = [key.removeprefix("b/") for key in await keys_of(store, "b/")]
        events = sorted(pending.event.id.removeprefix("evt_") for pending in await store.pending_events(1000))
        assert left == right == events
        assert len(left) >= 60

    async def test_two_hundred_commits_at_once_all_arrive(self, store: OutboxStore) -> None:
        """A wave of renewals must not lose or mix one."""
        results = await asyncio.gather(
            *(store.commit([Put(key=f"cert/{number:03}", document=b"%d" % number)]) for number in range(200))
        )
        page = await store.scan("cert/", limit=1000)
        assert [stored.document for stored in page.items] == [b"%d" % number for number in range(200)]
        assert [stored.revision for stored in page.items] == [
            result[f"cert/{number:03}"] for number, result in enumerate(results)
        ]
        assert len({stored.revision for stored in page.items}) == 200

    async def test_what_was_committed_is_read_at_once(self, store: OutboxStore) -> None:
        """Read your writes: a service reads back what it has just stored, by get and by scan."""

        async def write_and_read(name: str) -> None:
            for number in range(30):
                revisions = await store.commit([Put(key=name, document=b"%d" % number, index={"n": str(number)})])
                stored = await store.get(name)
                assert stored == Stored(key=name, revision=revisions[name], document=b"%d" % number)
                assert (await store.scan(name, where={"n": str(number)})).items == (stored,)

        async with asyncio.TaskGroup() as group:
            for name in ("w", "x", "y", "z"):
                group.create_task(write_and_read(name))


class TestScan:
    async def test_pages_follow_in_key_order_and_hold_each_key_once(self, store: OutboxStore) -> None:
        """A listing walked by cursor is complete."""
        keys = [f"order/{number:02}" for number in range(25)]
        await store.commit([Put(key=key, document=b"") for key in reversed(keys)])
        seen: list[str] = []
        cursor: str | None = None
        sizes = []
        while True:
            page = await store.scan("order/", after=cursor, limit=10)
            seen += [stored.key for stored in page.items]
            sizes.append(len(page.items))
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        assert seen == keys
        assert sizes == [10, 10, 5]

    async def test_a_page_that_holds_exactly_the_rest_is_the_last(self, store: OutboxStore) -> None:
        """No empty page at the end."""
        await store.commit([Put(key="a/1", document=b""), Put(key="a/2", document=b"")])
        assert (await store.scan("a/", limit=2)).next_cursor is None

    async def test_after_may_be_any_key(self, store: OutboxStore) -> None:
        """The key under a cursor may be gone when the next page is asked for."""
        await store.commit([Put(key=key, document=b"") for key in ("a/1", "a/3", "a/5")])
        assert [stored.key for stored in (await store.scan("a/", after="a/2")).items] == ["a/3", "a/5"]
        assert [stored.key for stored in (await store.scan("a/", after="Z")).items] == ["a/1", "a/3", "a/5"]
        assert (await store.scan("a/", after="b")).items == ()

    @pytest.mark.parametrize(
        ("prefix", "found"),
        [
            ("", ["A/1", "a", "a-b", "a/", "a/1", "a/B", "a/_", "a0", "aa"]),
            ("a", ["a", "a-b", "a/", "a/1", "a/B", "a/_", "a0", "aa"]),
            ("a/", ["a/", "a/1", "a/B", "a/_"]),
            ("a/_", ["a/_"]),
            ("a0", ["a0"]),
            ("A", ["A/1"]),
            ("b", []),
        ],
    )
    async def test_prefix_means_what_it_says(self, store: OutboxStore, prefix: str, found: list[str]) -> None:
        """`a/` and `a0` are neighbours, `_` is no wildcard, and case counts."""
        keys = {"a", "a-b", "a/1", "a/B", "a/_", "a0", "aa", "A/1"}
        await store.commit([Put(key=key, document=b"") for key in keys])
        assert await keys_of(store, prefix) == [key for key in found if key in keys]

    async def test_where_wants_all_pairs(self, store: OutboxStore) -> None:
        """Filters narrow; a pair the document is not listed under excludes it."""
        await store.commit(
            [
                Put(key="order/1", document=b"1", index={"status": "valid", "account": "x"}),
                Put(key="order/2", document=b"2", index={"status": "valid", "account": "y"}),
                Put(key="order/3", document=b"3", index={"status": "pending", "account": "x"}),
                Put(key="order/4", document=b"4"),
                Put(key="cert/1", document=b"5", index={"status": "valid", "account": "x"}),
            ]
        )
        assert await keys_of(store, "order/", {"status": "valid"}) == ["order/1", "order/2"]
        assert await keys_of(store, "order/", {"status": "valid", "account": "x"}) == ["order/1"]
        assert await keys_of(store, "", {"account": "x", "status": "valid"}) == ["cert/1", "order/1"]
        assert await keys_of(store, "order/", {"status": "Valid"}) == []
        assert await keys_of(store, "order/", {}) == ["order/1", "order/2", "order/3", "order/4"]

    async def test_where_pages_like_the_rest(self, store: OutboxStore) -> None:
        """A filtered listing is walked by cursor too."""
        await store.commit(
            [Put(key=f"o/{number:02}", document=b"", index={"odd": str(number % 2)}) for number in range(10)]
        )
        first = await store.scan("o/", where={"odd": "1"}, limit=3)
        assert first.next_cursor == "o/05"
        second = await store.scan("o/", where={"odd": "1"}, after=first.next_cursor, limit=3)
        assert [stored.key for stored in second.items] == ["o/07", "o/09"]
        assert second.next_cursor is None

    async def test_a_new_revision_replaces_the_index(self, store: OutboxStore) -> None:
        """An order that became valid must not be listed as pending any more."""
        await store.commit([Put(key="o/1", document=b"", index={"status": "pending"})])
        await store.commit([Put(key="o/1", document=b"", index={"status": "valid"})])
        assert await keys_of(store, "o/", {"status": "pending"}) == []
        assert await keys_of(store, "o/", {"status": "valid"}) == ["o/1"]
        await store.commit([Put(key="o/1", document=b"", index={"status": "valid", "account": "x"})])
        assert await keys_of(store, "o/", {"status": "valid", "account": "x"}) == ["o/1"]
        await store.commit([Delete(key="o/1")])
        assert await keys_of(store, "o/", {"status": "valid"}) == []


class TestTimeToLive:
    async def test_an_expired_document_is_gone_for_every_reader(self, store: OutboxStore, clock: FakeClock) -> None:
        """A challenge token must not be answered after its time."""
        await store.commit([Put(key="t/1", document=b"", ttl_seconds=60, index={"kind": "t"})])
        clock.advance(59.9)
        assert await keys_of(store, "t/", {"kind": "t"}) == ["t/1"]
        clock.advance(0.1)
        assert await store.get("t/1") is None
        assert await keys_of(store, "t/") == []
        assert await keys_of(store, "t/", {"kind": "t"}) == []

    async def test_an_expired_key_is_absent_to_a_commit(self, store: OutboxStore, clock: FakeClock) -> None:
        """An idempotency key can be used anew after its time, and its old revision holds nothing."""
        old = await store.commit([Put(key="idem/1", document=b"old", ttl_seconds=60)])
        clock.advance(60)
        with pytest.raises(RevisionConflict):
            await store.commit([Put(key="idem/1", document=b"x", expect_revision=old["idem/1"])])
        new = await store.commit([Put(key="idem/1", document=b"new", expect_revision=ABSENT)])
        assert new["idem/1"] > old["idem/1"]

    async def test_writing_again_starts_the_time_again(self, store: OutboxStore, clock: FakeClock) -> None:
        """The time to live is of a revision; one without it stays."""
        await store.commit([Put(key="a", document=b"", ttl_seconds=60), Put(key="b", document=b"", ttl_seconds=60)])
        clock.advance(50)
        await store.commit([Put(key="a", document=b"", ttl_seconds=60), Put(key="b", document=b"")])
        clock.advance(50)
        assert await keys_of(store, "") == ["a", "b"]
        clock.advance(50)
        assert await keys_of(store, "") == ["b"]

    async def test_watchers_hear_of_expiry(self, store: OutboxStore, clock: FakeClock) -> None:
        """A listener that holds tokens in memory drops them when the store does."""
        await store.commit([Put(key="t/1", document=b"", ttl_seconds=60)])
        async with store.watch("t/") as changes:
            clock.advance(61)
            await store.commit([Put(key="other", document=b"")])
            assert await next_of(changes) == Changed(key="t/1", stored=None)


class TestWatch:
    async def test_changes_come_in_commit_order(self, store: OutboxStore) -> None:
        """Each new state and each removal is seen once, and other keys are not."""
        await store.commit([Put(key="o/1", document=b"before")])
        async with store.watch("o/") as changes:
            first = await store.commit([Put(key="o/1", document=b"1"), Put(key="o2", document=b"")])
            await store.commit([Delete(key="o/1")])
            await store.commit([Delete(key="o/1")])  # nothing changes
            second = await store.commit([Put(key="o/2", document=b"2")])
            assert [await next_of(changes) for _ in range(3)] == [
                Changed(key="o/1", stored=Stored(key="o/1", revision=first["o/1"], document=b"1")),
                Changed(key="o/1", stored=None),
                Changed(key="o/2", stored=Stored(key="o/2", revision=second["o/2"], document=b"2")),
            ]

    async def test_a_refused_commit_is_not_seen(self, store: OutboxStore) -> None:
        """A watcher acts on what happened, not on what was tried."""
        async with store.watch("") as changes:
            with pytest.raises(RevisionConflict):
                await store.commit([Put(key="a", document=b""), Put(key="b", document=b"", expect_revision=5)])
            await store.commit([Put(key="c", document=b"")])
            assert (await next_of(changes)).key == "c"

    async def test_a_waiting_watcher_wakes(self, store: OutboxStore) -> None:
        """Watching is waiting, not asking again and again."""
        async with store.watch("o/") as changes:
            waiting = asyncio.create_task(next_of(changes))
            await asyncio.sleep(0)
            await store.commit([Put(key="o/1", document=b"")])
            assert (await waiting).key == "o/1"

    async def test_a_watcher_that_lags_gets_the_latest_of_each_key(self, store: OutboxStore) -> None:
        """A stuck reader costs bounded memory, and still ends with the truth."""
        keys = [f"o/{number:03}" for number in range(300)]
        async with store.watch("o/") as changes:
            for turn in range(5):
                await store.commit([Put(key=key, document=b"%d" % turn) for key in keys])
            await store.commit([Delete(key=keys[0]), Put(key="o/end", document=b"")])
            seen: list[Changed] = []
            while not seen or seen[-1].key != "o/end":
                seen.append(await next_of(changes))
            assert len(seen) < 5 * 300
            latest = {changed.key: changed.stored and changed.stored.document for changed in seen}
            assert latest == {keys[0]: None, **dict.fromkeys(keys[1:], b"4"), "o/end": b""}
            # Caught up: from here on every change is seen again.
            for turn in range(3):
                await store.commit([Put(key="o/1", document=b"%d" % turn)])
            documents = [
                changed.stored and changed.stored.document for changed in [await next_of(changes) for _ in "123"]
            ]
            assert documents == [b"0", b"1", b"2"]

    async def test_two_watchers_do_not_share(self, store: OutboxStore) -> None:
        """One reader's progress is not another's."""
        async with store.watch("o/") as left, store.watch("o/") as right:
            await store.commit([Put(key="o/1", document=b"")])
            assert (await next_of(left)).key == (await next_of(right)).key == "o/1"

    async def test_the_iteration_ends_with_the_context(self, store: OutboxStore) -> None:
        """Whoever still iterates after the watch was left must not wait for ever."""
        async with store.watch("o/") as changes:
            pass
        await store.commit([Put(key="o/1", document=b"")])
        with pytest.raises(StopAsyncIteration):
            await next_of(changes)


class TestLease:
    async def test_one_holder_at_a_time(self, store: OutboxStore) -> None:
        """Two nodes must not both believe they are alive under one name."""
        lease = await store.lease("node/a", "me", 15)
        assert lease is not None
        assert lease.name == "node/a"
        assert await store.lease("node/a", "you", 15) is None
        assert await store.lease("node/b", "you", 15) is not None

    async def test_the_same_holder_gets_it_again(self, store: OutboxStore) -> None:
        """A restarted daemon does not wait for its own ghost."""
        await store.lease("node/a", "me", 15)
        assert await store.lease("node/a", "me", 15) is not None

    async def test_renewal_counts_from_now(self, store: OutboxStore, clock: FakeClock) -> None:
        """A holder that renews in time is never interrupted."""
        lease = await store.lease("node/a", "me", 15)
        assert lease is not None
        for _ in range(3):
            clock.advance(14)
            assert await lease.renew()
            assert await store.lease("node/a", "you", 15) is None

    async def test_a_lease_that_ran_out_can_be_taken_and_then_not_renewed(
        self, store: OutboxStore, clock: FakeClock
    ) -> None:
        """The old holder learns that it is not the holder any more."""
        old = await store.lease("node/a", "me", 15)
        assert old is not None
        clock.advance(15)
        assert await store.lease("node/a", "you", 15) is not None
        assert not await old.renew()
        await old.release()
        assert await store.lease("node/a", "me", 15) is None

    async def test_a_lease_that_ran_out_untaken_can_be_renewed(self, store: OutboxStore, clock: FakeClock) -> None:
        """A pause that nobody used does no harm."""
        lease = await store.lease("node/a", "me", 15)
        assert lease is not None
        clock.advance(100)
        assert await lease.renew()
        assert await store.lease("node/a", "you", 15) is None

    async def test_release_is_at_once(self, store: OutboxStore) -> None:
        """A daemon that stops in order hands over without a wait."""
        lease = await store.lease("node/a", "me", 15)
        assert lease is not None
        await lease.release()
        assert await store.lease("node/a", "you", 15) is not None

    async def test_one_of_many_claimants_gets_it(self, store: OutboxStore) -> None:
        """All nodes notice a dead one in the same second."""
        leases = await asyncio.gather(*(store.lease("node/a", f"node-{number}", 15) for number in range(20)))
        assert sum(lease is not None for lease in leases) == 1


class TestOutbox:
    async def test_events_wait_in_commit_order_until_forgotten(self, store: OutboxStore) -> None:
        """The publisher carries them out in the order of what they report."""
        await store.commit([Put(key="a", document=b"")], [event("evt_z"), event("evt_a")])
        await store.commit([], [event("evt_m")])
        pending = await store.pending_events()
        assert [entry.event for entry in pending] == [event("evt_z"), event("evt_a"), event("evt_m")]
        assert [entry.sequence for entry in pending] == sorted({entry.sequence for entry in pending})
        await store.forget_events([pending[0].sequence, pending[1].sequence])
        await store.forget_events([pending[0].sequence])
        assert await store.pending_events() == [pending[2]]

    async def test_limit_takes_the_oldest(self, store: OutboxStore) -> None:
        """A long queue is carried out piece by piece."""
        await store.commit([], [event(f"evt_{number}") for number in range(10)])
        assert [entry.event.id for entry in await store.pending_events(3)] == ["evt_0", "evt_1", "evt_2"]

    async def test_sequences_are_not_used_again(self, store: OutboxStore) -> None:
        """A late `forget_events` must not remove a younger event."""
        await store.commit([], [event("evt_1")])
        (first,) = await store.pending_events()
        await store.forget_events([first.sequence])
        await store.commit([], [event("evt_2")])
        (second,) = await store.pending_events()
        assert second.sequence > first.sequence

    async def test_an_event_that_waits_already_is_not_queued_twice(self, store: OutboxStore) -> None:
        """A commit repeated after an unknown outcome reports once, and the rest of it counts."""
        await store.commit([Put(key="a", document=b"1")], [event("evt_1"), event("evt_2")])
        await store.commit([Put(key="a", document=b"2")], [event("evt_1"), event("evt_3")])
        stored = await store.get("a")
        assert [entry.event.id for entry in await store.pending_events()] == ["evt_1", "evt_2", "evt_3"]
        assert stored is not None
        assert stored.document == b"2"

    async def test_waiting_ends_when_a_commit_queues_an_event(self, store: OutboxStore) -> None:
        """Events leave at once, without polling; commits without events wake nobody."""
        waiting = asyncio.create_task(store.wait_for_events())
        await store.commit([Put(key="a", document=b"")])
        assert not waiting.done()
        await store.commit([], [event("evt_1")])
        async with asyncio.timeout(10):
            await waiting
            await store.wait_for_events()  # still not empty: at once

    async def test_waiting_starts_again_when_the_outbox_is_empty(self, store: OutboxStore) -> None:
        """A publisher that carried everything out rests; one with a rest goes on."""
        await store.commit([], [event("evt_1"), event("evt_2")])
        first, second = await store.pending_events()
        await store.forget_events([first.sequence])
        async with asyncio.timeout(10):
            await store.wait_for_events()
        await store.forget_events([second.sequence])
        waiting = asyncio.create_task(store.wait_for_events())
        await store.commit([Put(key="a", document=b"")])
        assert not waiting.done()
        await store.commit([], [event("evt_3")])
        async with asyncio.timeout(10):
            await waiting


class TestMisuse:
    @pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a b", "a*", "ä", "a\n", "a" * 256])
    async def test_what_is_no_key_is_refused(self, store: OutboxStore, key: str) -> None:
        """Keys must fit every backend, also as NATS subjects and file names."""
        with pytest.raises(ValueError, match="not a key"):
            await store.commit([Put(key=key, document=b"")])
        with pytest.raises(ValueError, match="not a key"):
            await store.get(key)

    async def test_limits_of_a_commit(self, store: OutboxStore) -> None:
        """What one backend could not carry no backend accepts."""
        with pytest.raises(ValueError, match="at most 500"):
            await store.commit([Put(key=f"a/{number}", document=b"") for number in range(500)], [event("evt_1")])
        with pytest.raises(ValueError, match="1048576"):
            await store.commit([Put(key="a", document=bytes((1 << 20) + 1))])
        with pytest.raises(ValueError, match="twice"):
            await store.commit([Put(key="a", document=b""), Delete(key="a")])
        await store.commit([Put(key="a", document=bytes(1 << 20))])
        await store.commit([Put(key=f"a/{number}", document=b"") for number in range(499)], [event("evt_1")])

    @pytest.mark.parametrize("ttl_seconds", [0, -1, float("nan"), float("inf")])
    async def test_a_time_to_live_is_positive(self, store: OutboxStore, ttl_seconds: float) -> None:
        """A lease or document that is over before it begins is a mistake."""
        with pytest.raises(ValueError, match="positive"):
            await store.commit([Put(key="a", document=b"", ttl_seconds=ttl_seconds)])
        with pytest.raises(ValueError, match="positive"):
            await store.lease("node/a", "me", ttl_seconds)

    async def test_a_scan_has_a_sane_prefix_and_limit(self, store: OutboxStore) -> None:
        """A wildcard is not a prefix."""
        with pytest.raises(ValueError, match="beginning of a key"):
            await store.scan("a*")
        with pytest.raises(ValueError, match="at least one"):
            await store.scan("a", limit=0)
