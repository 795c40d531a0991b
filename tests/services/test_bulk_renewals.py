"""Many certificates renewed ahead of their time: which, how fast, once each, and what a caller sees of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import Conflict, Internal, InvalidRequest, NotFound, StorageUnavailable
from scaivaultd.model.ids import AccountId, BulkRenewalId, CertificateId, KeyId, OrderId
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import BulkRenewal, Certificate, Order, Revocation, Trouble
from scaivaultd.model.storage import Delete, Put
from scaivaultd.services import renewals
from scaivaultd.services.bulk_renewals import RUNNING_MAX, BulkRenewals
from scaivaultd.services.bulk_walks import PAGE, STEP, Pace, choice_page, fits
from scaivaultd.services.documents import BULK_RENEWALS, CERTIFICATES, ORDERS, RENEWALS
from scaivaultd.services.waiting import Waiting
from tests.fakes.judging import WEB, Permitted, asked_by
from tests.fakes.renewals import SteppedClock
from tests.fakes.scripted_ca import FakeClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaivaultd.model.resources import OrderCause, OrderStatus
    from scaivaultd.model.storage import Change
    from scaivaultd.services.renewing import Renewing
    from tests.fakes.judging import ScriptedJudge

CONTEXT = RequestContext(request_id="req_1")
DEADLINE = 20.0
START = datetime(2025, 12, 1, tzinfo=UTC)


def name_of(number: int) -> CertificateId:
    return CertificateId(f"cert_{number:04d}")


def made(number: int = 0, *names: str, **changes: Any) -> Certificate:
    certificate = Certificate(
        id=name_of(number),
        order_id=OrderId(f"acme_order_{number:04d}"),
        account_id=AccountId("acme_1"),
        identifiers=tuple(Identifier("dns", each) for each in names or (f"n{number}.example.test",)),
        challenge_type="http-01",
        key_type="ec-p256",
        key_id=KeyId("key_1"),
        version=1,
        status="valid",
        serial_number=f"{number:02X}",
        fingerprint_sha256="00",
        issuer="R10",
        not_before=START,
        not_after=START + timedelta(days=90),
        chain_pem="",
        created_at=START,
        issued_at=START,
        auto_renew=True,
    )
    return msgspec.structs.replace(certificate, **changes)


class Asked:
    """In place of the scheduler: notes who asks for what, as the scheduler does, and goes on as the test says."""

    def __init__(self, store: Any, clock: FakeClock) -> None:
        self._store = store
        self._clock = clock
        self.calls: list[tuple[CertificateId, str, BulkRenewalId | None]] = []
        self.at: list[float] = []
        self.then: Callable[[CertificateId], Awaitable[None]] | None = None
        self.before: dict[CertificateId, list[Exception]] = {}

    @property
    def ids(self) -> list[CertificateId]:
        return [certificate_id for certificate_id, _, _ in self.calls]

    async def ask_for(
        self, certificate_id: CertificateId, cause: OrderCause, bulk_id: BulkRenewalId | None = None
    ) -> None:
        if errors := self.before.get(certificate_id):
            raise errors.pop(0)
        held = await RENEWALS.get(self._store, certificate_id)
        assert held is not None
        await self._store.commit([RENEWALS.put(renewals.asked_for(held.value, cause, bulk_id), held.revision)])
        self.calls.append((certificate_id, cause, bulk_id))
        self.at.append(self._clock.monotonic())
        if self.then is not None:
            await self.then(certificate_id)


class Bench:
    """Bulk renewals over certificates that are documents only."""

    def __init__(self, world: Any, clock: FakeClock) -> None:
        self.world = world
        self.clock = clock
        self.store = world.store
        self.asked = Asked(world.store, clock)
        self._room: asyncio.Task[None] | None = None
        self.begin()

    def begin(self) -> None:
        """Another life of the room."""
        self.bulks = BulkRenewals(
            store=self.store,
            renewing=cast("Renewing", self.asked),
            judge=self.world.judge,
            ids=self.world.ids,
            clock=self.clock,
            log=self.world.log,
        )

    def open(self) -> None:
        self._room = asyncio.create_task(self.bulks.run())

    async def close(self) -> None:
        if self._room is not None:
            self._room.cancel()
            await asyncio.wait([self._room])
            self._room = None

    async def over(self) -> None:
        """Wait until no walk is left."""
        async with asyncio.timeout(DEADLINE):
            while walks := [each for each in asyncio.all_tasks() if each.get_name().startswith("bulk ")]:
                await asyncio.wait(walks)

    async def put(self, *certificates: Certificate) -> None:
        for each in certificates:
            renewal = renewals.begun(each, None, now=self.clock.now(), fraction=0.5)
            await self.world.sqlite.commit([CERTIFICATES.put(each), RENEWALS.put(renewal)])

    async def change(self, number: int, **changes: Any) -> None:
        held = await self.world.read(CERTIFICATES, name_of(number))
        await self.world.sqlite.commit(
            [CERTIFICATES.put(msgspec.structs.replace(held.value, **changes), held.revision)]
        )

    async def change_renewal(self, certificate_id: CertificateId, **changes: Any) -> None:
        held = await self.world.read(RENEWALS, certificate_id)
        await self.world.sqlite.commit([RENEWALS.put(msgspec.structs.replace(held.value, **changes), held.revision)])

    async def renew(self, certificate_id: CertificateId) -> None:
        """Have the next version come at once, as an order of the bulk renewal that has asked for it."""
        held = await self.world.read(CERTIFICATES, certificate_id)
        renewal = await self.world.read(RENEWALS, certificate_id)
        order = self.order(held.value, "valid", renewal.value.bulk_id)
        now = self.clock.now() + timedelta(milliseconds=1)
        renewed = msgspec.structs.replace(
            held.value, version=held.value.version + 1, order_id=order.id, not_before=now, issued_at=now
        )
        await self.world.sqlite.commit(
            [
                ORDERS.put(order),
                CERTIFICATES.put(renewed, held.revision),
                RENEWALS.put(renewals.begun(renewed, renewal.value, now=now, fraction=0.5), renewal.revision),
            ]
        )

    def order(self, certificate: Certificate, status: OrderStatus, bulk_id: str | None) -> Order:
        return Order(
            id=self.world.ids.order(),
            account_id=certificate.account_id,
            identifiers=certificate.identifiers,
            challenge_type="http-01",
            key_type="ec-p256",
            auto_renew=True,
            status=status,
            created_at=self.clock.now(),
            give_up_at=self.clock.now(),
            cause="bulk",
            renews=certificate.id,
            bulk_id=None if bulk_id is None else BulkRenewalId(bulk_id),
        )

    async def create(self, context: RequestContext = CONTEXT, **members: Any) -> m.BulkRenewalReply:
        request = m.CreateBulkRenewal(**{"per_minute": 6000.0, **members})
        return await self.bulks.create(request, context)

    async def shown(self, reply: m.BulkRenewalReply) -> m.BulkRenewalReply:
        return await self.bulks.get(m.BulkRenewalById(id=str(reply.id)), CONTEXT)

    async def reached(self, reply: m.BulkRenewalReply, reached: Callable[[BulkRenewal], bool]) -> m.BulkRenewalReply:
        """The bulk renewal as soon as its document is so."""
        value = await Waiting(self.world.sqlite).until(BULK_RENEWALS, str(reply.id), DEADLINE, reached)
        assert reached(value), value
        return await self.shown(reply)

    async def ended(self, reply: m.BulkRenewalReply) -> m.BulkRenewalReply:
        return await self.reached(reply, lambda each: each.status != "running")


@pytest.fixture
async def bench(world: Any, clock: FakeClock) -> Any:
    bench = Bench(world, clock)
    bench.asked.then = bench.renew
    yield bench
    await bench.close()


WANTED = BulkRenewal(
    id=BulkRenewalId("bulk_1"), status="running", created_at=START + timedelta(days=1), per_minute=60.0
)


@pytest.mark.parametrize(
    ("filters", "certificate", "chosen"),
    [
        ({}, made(), True),
        ({"account_id": "acme_1"}, made(), True),
        ({"account_id": "acme_2"}, made(), False),
        ({"issuer": "R10"}, made(), True),
        ({"issuer": "R1"}, made(), False),
        ({"domain": "example.test"}, made(0, "example.test"), True),
        ({"domain": "example.test"}, made(0, "other.test", "a.b.example.test"), True),
        ({"domain": "example.test"}, made(0, "*.example.test"), True),
        ({"domain": "example.test"}, made(0, "badexample.test"), False),
        ({"domain": "a.example.test"}, made(0, "example.test"), False),
        ({"issued_before": START + timedelta(seconds=1)}, made(), True),
        ({"issued_before": START}, made(), False),
        ({"account_id": "acme_1", "issuer": "R11"}, made(), False),
        ({}, made(created_at=START + timedelta(days=2)), False),
        ({}, made(status="revoked", revocation=Revocation(at=START, origin="acme")), False),
        ({}, made(status="revoked", revocation=Revocation(at=START, origin="outside")), True),
        ({}, made(status="expired"), True),
        ({}, made(status="expired", auto_renew=False), False),
        ({}, made(auto_renew=False), True),
        ({"certificate_ids": (name_of(0),)}, made(status="expired", auto_renew=False), True),
        ({"certificate_ids": (name_of(0),), "issuer": "R11"}, made(), False),
    ],
)
def test_all_filters_together_choose(filters: dict[str, Any], certificate: Certificate, chosen: bool) -> None:
    """What nobody uses any more is chosen only by id: it would fail, and cost the CA's patience."""
    assert fits(msgspec.structs.replace(WANTED, **filters), certificate) is chosen


async def test_certificates_that_are_named_come_in_pages(world: Any) -> None:
    """Ten thousand may be named, and nobody is to look at all of them for each."""
    ids = tuple(name_of(number) for number in range(PAGE + 1))
    wanted = msgspec.structs.replace(WANTED, certificate_ids=ids)
    page = await choice_page(world.store, wanted, world.log)
    assert (page.certificate_ids, page.next_cursor) == (ids[:PAGE], ids[PAGE - 1])
    page = await choice_page(world.store, msgspec.structs.replace(wanted, cursor=page.next_cursor), world.log)
    assert (page.certificate_ids, page.next_cursor) == (ids[PAGE:], None)


def test_the_pace_is_even_and_catches_up_with_a_second_only() -> None:
    """A store that hung for an hour must not be followed by an hour's worth of orders at once."""
    clock = FakeClock()
    pace = Pace(clock, per_minute=120)
    assert pace.left_seconds() <= 0
    pace.take()
    assert pace.left_seconds() == pytest.approx(0.5)
    clock.advance(3600)
    taken = 0
    while pace.left_seconds() <= 0:
        pace.take()
        taken += 1
    assert taken == 3


class TestCreate:
    async def test_without_any_filter_nothing_is_meant(self, bench: Bench) -> None:
        """An empty request must not renew everything there is."""
        with pytest.raises(InvalidRequest) as caught:
            await bench.create()
        assert caught.value.fields[0].pointer == "/all"
        assert (await bench.create(all=True)).total == 0

    async def test_a_dry_run_counts_and_keeps_nothing(self, bench: Bench) -> None:
        """Before an incident's work begins, one wants to know how much it is."""
        await bench.put(*(made(number) for number in range(5)), made(5, issuer="R11"))
        bench.open()
        reply = await bench.create(issuer="R10", dry_run=True)
        assert (reply.id, reply.total, reply.status, reply.estimated_end) == (None, 5, "finished", None)
        assert (await bench.bulks.list(m.ListBulkRenewals(), CONTEXT)).items == []
        assert bench.asked.calls == []

    async def test_the_count_goes_over_all_pages(self, bench: Bench) -> None:
        """A page ends by its size in bytes, long before its limit."""
        await bench.put(*(made(number, chain_pem="x" * 100_000) for number in range(12)))
        assert (await bench.create(all=True, dry_run=True)).total == 12

    async def test_certificates_may_be_named(self, bench: Bench) -> None:
        """In any order and more than once; the other filters count as well."""
        await bench.put(*(made(number) for number in range(4)))
        reply = await bench.create(certificate_ids=[name_of(3), name_of(1), name_of(3)])
        assert reply.total == 2
        held = await bench.world.read(BULK_RENEWALS, str(reply.id))
        assert held.value.certificate_ids == (name_of(1), name_of(3))
        assert (await bench.create(certificate_ids=[name_of(1)], issuer="R11", dry_run=True)).total == 0

    async def test_a_name_that_nobody_has_is_said(self, bench: Bench) -> None:
        """A list from elsewhere may be of another store."""
        await bench.put(made(1))
        with pytest.raises(NotFound, match=r"'cert_0002'.*nor 2 more"):
            await bench.create(certificate_ids=[name_of(number) for number in range(1, 9)])

    async def test_they_are_pointed_at_as_they_were_given(self, bench: Bench) -> None:
        """In a list of thousands."""
        await bench.put(made(3))
        with pytest.raises(NotFound) as caught:
            await bench.create(certificate_ids=[name_of(number) for number in (9, 3, 3, 1)])
        assert {(each.pointer, each.code) for each in caught.value.fields} == {
            ("/certificate_ids/0", "not_found"),
            ("/certificate_ids/3", "not_found"),
        }

    @pytest.mark.parametrize("dry_run", [False, True])
    async def test_an_account_that_nobody_has_is_said(self, bench: Bench, dry_run: bool) -> None:
        """A total of nothing would look as if all were well."""
        await bench.put(made(1))
        with pytest.raises(NotFound) as caught:
            await bench.create(account_id="acme_none", dry_run=dry_run)
        assert [(each.pointer, each.code) for each in caught.value.fields] == [("/account_id", "not_found")]
        account_id = await bench.world.account()
        assert (await bench.create(account_id=account_id, dry_run=dry_run)).total == 0

    async def test_a_domain_is_any_spelling_of_a_name(self, bench: Bench) -> None:
        """As everywhere else."""
        await bench.put(made(0, "a.example.test"))
        assert (await bench.create(domain="Example.Test.", dry_run=True)).total == 1
        with pytest.raises(InvalidRequest) as caught:
            await bench.create(domain="not a name")
        assert caught.value.fields[0].pointer == "/domain"

    async def test_only_so_many_run_side_by_side(self, bench: Bench) -> None:
        """Each of them walks through all certificates."""
        for _ in range(RUNNING_MAX):
            await bench.create(all=True)
        with pytest.raises(Conflict):
            await bench.create(all=True)
        assert (await bench.create(all=True, dry_run=True)).total == 0


class TestWalk:
    async def test_each_certificate_is_set_going_once_in_order_and_at_the_pace(self, bench: Bench) -> None:
        """The pace is what keeps a CA's limits, and the order what a restart goes on by."""
        await bench.put(*(made(number) for number in range(7)))
        bench.open()
        reply = await bench.create(all=True, per_minute=12.0, note="incident")
        assert (reply.total, reply.status) == (7, "running")
        assert reply.estimated_end == bench.clock.now() + timedelta(seconds=35)
        ended = await bench.ended(reply)
        assert bench.asked.calls == [(name_of(number), "bulk", reply.id) for number in range(7)]
        gaps = [later - earlier for earlier, later in zip(bench.asked.at, bench.asked.at[1:], strict=False)]
        assert gaps == pytest.approx([5.0] * 6)
        assert (ended.status, ended.started, ended.skipped, ended.renewed) == ("finished", 7, 0, 7)
        assert (ended.note, ended.estimated_end) == ("incident", None)
        assert ended.finished_at is not None

    async def test_several_go_side_by_side(self, make_world: Any, sqlite: Any) -> None:
        """A slow one that began in the morning must not hold up the urgent one."""
        clock = SteppedClock()
        bench = Bench(make_world(clock=clock), clock)
        bench.asked.then = bench.renew
        await bench.put(*(made(number) for number in range(4)))
        bench.open()
        slow = await bench.create(certificate_ids=[name_of(0), name_of(1)], per_minute=1)
        await bench.reached(slow, lambda each: each.started == 1)
        quick = await bench.ended(await bench.create(certificate_ids=[name_of(2)]))
        assert (quick.status, quick.started) == ("finished", 1)
        assert (await bench.shown(slow)).status == "running"
        await bench.close()

    async def test_what_is_renewed_or_under_way_already_is_passed_over(self, bench: Bench) -> None:
        """Twice within minutes helps nobody and costs budget."""
        await bench.put(*(made(number) for number in range(6)))
        reply = await bench.create(all=True)
        await bench.change_renewal(name_of(0), order_id=OrderId("acme_order_x"))
        await bench.change_renewal(name_of(1), is_due=True, cause="request")
        await bench.renew(name_of(2))
        await bench.world.sqlite.commit([Delete(key=CERTIFICATES.key(name_of(3)))])
        await bench.change(4, issuer="R11")
        bench.open()
        ended = await bench.ended(reply)
        assert bench.asked.ids == [name_of(4), name_of(5)]
        assert (ended.total, ended.started, ended.skipped) == (6, 2, 4)

    async def test_the_filter_is_asked_again_when_the_turn_comes(self, bench: Bench) -> None:
        """The walk may take a day; what does not fit any more is not meant any more."""
        await bench.put(*(made(number) for number in range(3)))

        async def change(changes: Sequence[Change]) -> None:
            # The progress is written down before each pause.
            if changes[0].key.startswith("bulk_renewal/") and bench.asked.ids == [name_of(0)]:
                bench.store.before_commit = None
                await bench.change(1, issuer="R11")

        bench.store.before_commit = change
        bench.open()
        ended = await bench.ended(await bench.create(issuer="R10", per_minute=1))
        assert bench.asked.ids == [name_of(0), name_of(2)]
        assert (ended.total, ended.started, ended.skipped) == (3, 2, 1)

    async def test_one_that_fails_for_long_is_set_going_again(self, bench: Bench) -> None:
        """It waits for hours after its failures, and whoever renews everything wants it tried now."""
        await bench.put(made(0))
        later = bench.clock.now() + timedelta(hours=9)
        await bench.change_renewal(
            name_of(0), is_due=True, attempt=5, next_try_at=later, bulk_id=BulkRenewalId("bulk_0")
        )
        bench.open()
        ended = await bench.ended(await bench.create(all=True))
        assert (ended.started, ended.renewed) == (1, 1)

    async def test_new_certificates_are_not_part_of_it(self, bench: Bench) -> None:
        """Otherwise it would not end while others are issued."""
        await bench.put(made(0))
        reply = await bench.create(all=True)
        bench.clock.advance(1)
        await bench.put(made(1, created_at=bench.clock.now(), issued_at=bench.clock.now()))
        bench.open()
        ended = await bench.ended(reply)
        assert (ended.started, ended.skipped, bench.asked.ids) == (1, 0, [name_of(0)])

    @pytest.mark.parametrize("error", [NotFound("gone"), Internal("broken"), ValueError("unforeseen")])
    async def test_one_that_cannot_be_set_going_does_not_stop_the_others(self, bench: Bench, error: Exception) -> None:
        """In an incident there is no time to look at one of a thousand first."""
        await bench.put(*(made(number) for number in range(3)))
        bench.asked.before[name_of(1)] = [error]
        bench.open()
        ended = await bench.ended(await bench.create(all=True))
        assert (ended.started, ended.skipped) == (2, 1)
        assert [each["certificate_id"] for each in bench.world.said("bulk_renewal.passed_over")] == [name_of(1)]

    async def test_a_store_that_fails_only_costs_time(self, bench: Bench) -> None:
        """The disk is full for a minute: nobody has to begin again."""
        await bench.put(*(made(number) for number in range(3)))
        bench.asked.before[name_of(1)] = [StorageUnavailable("full"), StorageUnavailable("full")]
        bench.open()
        ended = await bench.ended(await bench.create(all=True))
        assert (ended.started, ended.skipped) == (3, 0)
        assert bench.asked.ids == [name_of(0), name_of(1), name_of(2)]
        assert len(bench.world.said("bulk_renewal.interrupted")) == 2

    async def test_the_room_comes_up_while_the_store_is_down(self, bench: Bench) -> None:
        """What was running before the start goes on as soon as it can be read."""
        await bench.put(made(0))
        reply = await bench.create(all=True)
        bench.begin()
        bench.store.is_down = True
        bench.open()
        async with asyncio.timeout(DEADLINE):
            while not bench.world.said("bulk_renewal.not_begun"):  # noqa: ASYNC110 - the room gets there by itself
                await asyncio.sleep(0)
        bench.store.is_down = False
        assert (await bench.ended(reply)).renewed == 1

    async def test_a_certificate_that_cannot_be_read_hides_no_other(self, bench: Bench) -> None:
        """It is logged by its key."""
        await bench.put(made(0), made(2))
        await bench.world.sqlite.commit([Put(key=CERTIFICATES.key(name_of(1)), document=b"{")])
        bench.open()
        ended = await bench.ended(await bench.create(all=True))
        assert (ended.total, ended.started) == (2, 2)
        assert {each["key"] for each in bench.world.said("document.unreadable")} == {CERTIFICATES.key(name_of(1))}


class TestStops:
    @pytest.mark.parametrize("finish", [False, True])
    @pytest.mark.parametrize("stop_at", range(1, 9))
    async def test_nothing_is_set_going_twice_wherever_the_process_stops(
        self, bench: Bench, stop_at: int, finish: bool
    ) -> None:
        """Between any two commits; what was set going may have been renewed by the time it comes up again."""
        await bench.put(*(made(number) for number in range(4)))
        reply = await bench.create(issued_before=START + timedelta(seconds=1), per_minute=30.0)
        counted = 0
        stopped = asyncio.Event()

        async def stop(changes: Sequence[Change]) -> None:
            nonlocal counted
            counted += 1
            if counted == stop_at:
                stopped.set()
                await asyncio.Event().wait()

        bench.asked.then = None
        bench.store.before_commit = stop
        bench.open()
        await asyncio.wait_for(stopped.wait(), DEADLINE)
        await bench.close()
        bench.store.before_commit = None
        if finish:
            for certificate_id in bench.asked.ids:
                await bench.renew(certificate_id)
        bench.begin()
        bench.open()
        await bench.reached(reply, lambda each: each.started == 4)
        assert bench.asked.ids == [name_of(number) for number in range(4)]
        for each in bench.asked.ids:
            if (await bench.world.read(RENEWALS, each)).value.is_due:
                await bench.renew(each)
        ended = await bench.ended(reply)
        assert (ended.started, ended.skipped, ended.renewed) == (4, 0, 4)

    async def test_progress_is_written_in_steps(self, bench: Bench) -> None:
        """One write for each certificate would double the load at a hundred a second."""
        await bench.put(*(made(number) for number in range(2 * STEP)))
        writes = 0

        async def count(changes: Sequence[Change]) -> None:
            nonlocal writes
            writes += any(each.key.startswith("bulk_renewal/") for each in changes)

        bench.store.before_commit = count
        bench.open()
        ended = await bench.ended(await bench.create(all=True))
        assert ended.started == 2 * STEP
        assert writes <= 6

    async def test_what_has_orders_was_set_going(self, bench: Bench) -> None:
        """Between two writes of the progress a caller would see none started and eleven under way."""
        certificates = [made(number) for number in range(STEP)]
        await bench.put(*certificates)
        reply = await bench.create(all=True)
        for each in certificates[: STEP - 1]:
            await bench.world.sqlite.commit([ORDERS.put(bench.order(each, "pending", reply.id))])
        # One that failed, and is tried again.
        await bench.world.sqlite.commit([ORDERS.put(bench.order(certificates[0], "invalid", reply.id))])
        shown = await bench.shown(reply)
        assert (shown.started, shown.under_way, shown.failed) == (STEP - 1, STEP - 1, 1)
        assert shown.estimated_end == bench.clock.now() + timedelta(minutes=1 / 6000)


class TestEnd:
    async def test_what_has_finished_is_not_counted_again(self, bench: Bench) -> None:
        """A list of old ones would read every order there ever was; what their orders come to later is not theirs."""
        await bench.put(made(0), made(1))
        reply = await bench.create(all=True)
        failed = bench.order(made(1), "invalid", reply.id)
        await bench.world.sqlite.commit([ORDERS.put(failed)])
        bench.open()
        ended = await bench.ended(reply)
        assert (ended.renewed, ended.failed, ended.started) == (2, 1, 2)
        await bench.world.sqlite.commit([ORDERS.put(bench.order(made(1), "valid", reply.id))])
        assert await bench.shown(reply) == ended
        assert (await bench.bulks.list(m.ListBulkRenewals(), CONTEXT)).items == [ended]

    async def test_one_of_an_older_store_is_counted_still(self, bench: Bench) -> None:
        """Its document has no counts."""
        old = msgspec.structs.replace(WANTED, status="finished", started=1)
        await bench.world.sqlite.commit([BULK_RENEWALS.put(old), ORDERS.put(bench.order(made(), "valid", old.id))])
        shown = await bench.bulks.get(m.BulkRenewalById(id=old.id), CONTEXT)
        assert (shown.renewed, shown.started) == (1, 1)

    async def test_it_is_finished_when_nothing_is_under_way_any_more(self, bench: Bench) -> None:
        """`finished` is what somebody waits for before an old CA is switched off."""
        await bench.put(made(0), made(1))
        bench.asked.then = None
        bench.open()
        reply = await bench.create(all=True)
        await bench.reached(reply, lambda each: each.started == 2)
        await bench.renew(name_of(0))
        assert (await bench.shown(reply)).status == "running"
        order = bench.order((await bench.world.read(CERTIFICATES, name_of(1))).value, "pending", reply.id)
        await bench.world.sqlite.commit([ORDERS.put(order)])
        await bench.change_renewal(name_of(1), order_id=order.id)
        shown = await bench.shown(reply)
        assert (shown.status, shown.renewed, shown.under_way, shown.failed) == ("running", 1, 1, 0)
        held = await bench.world.read(ORDERS, order.id)
        ended = ORDERS.put(msgspec.structs.replace(held.value, status="invalid"), held.revision)
        renewal = await bench.world.read(RENEWALS, name_of(1))
        failed = renewals.set_back(
            renewal.value, Trouble(code="ca_error", detail="no"), bench.clock.now() + timedelta(hours=1), goes_on=False
        )
        await bench.world.sqlite.commit([ended, RENEWALS.put(failed, renewal.revision)])
        shown = await bench.ended(reply)
        assert (shown.status, shown.renewed, shown.under_way, shown.failed) == ("finished", 1, 0, 1)

    async def test_states_of_orders_are_counted_by_what_they_brought(self, bench: Bench) -> None:
        """A certificate that was renewed and then revoked was renewed."""
        reply = await bench.create(all=True)
        states: list[OrderStatus] = [
            "valid",
            "revoked",
            "expired",
            "invalid",
            "deactivated",
            "pending",
            "ready",
            "processing",
        ]
        for status in states:
            await bench.world.sqlite.commit([ORDERS.put(bench.order(made(), status, reply.id))])
        await bench.world.sqlite.commit([ORDERS.put(bench.order(made(), "valid", BulkRenewalId("bulk_other")))])
        shown = await bench.shown(reply)
        assert (shown.renewed, shown.failed, shown.under_way) == (3, 2, 3)

    @pytest.mark.parametrize("per_minute", [1.0, 6000.0])
    async def test_cancelled_it_sets_nothing_more_going(self, bench: Bench, per_minute: float) -> None:
        """Also in the middle of a pause; what it did so far stays to be seen."""
        await bench.put(*(made(number) for number in range(5)))
        reply = await bench.create(all=True, per_minute=per_minute)

        async def cancel(certificate_id: CertificateId) -> None:
            await bench.renew(certificate_id)
            if certificate_id == name_of(1):
                cancelled = await bench.bulks.cancel(m.BulkRenewalById(id=str(reply.id)), CONTEXT)
                assert cancelled.status == "cancelled"

        bench.asked.then = cancel
        bench.open()
        await bench.ended(reply)
        await bench.over()
        ended = await bench.shown(reply)
        assert (ended.status, ended.started) == ("cancelled", 2)
        assert bench.asked.ids == [name_of(0), name_of(1)]
        assert (ended.renewed, ended.estimated_end) == (2, None)
        assert ended.finished_at is not None
        assert await bench.bulks.cancel(m.BulkRenewalById(id=str(reply.id)), CONTEXT) == ended

    async def test_a_cancellation_wins_over_the_end(self, bench: Bench) -> None:
        """Whoever cancelled was told so."""
        await bench.put(made(0))
        reply = await bench.create(all=True)

        async def cancel(changes: Sequence[Change]) -> None:
            if any(b'"finished"' in each.document for each in changes if isinstance(each, Put)):
                bench.store.before_commit = None
                await bench.bulks.cancel(m.BulkRenewalById(id=str(reply.id)), CONTEXT)

        bench.store.before_commit = cancel
        bench.open()
        assert (await bench.ended(reply)).status == "cancelled"
        await bench.over()
        assert (await bench.shown(reply)).status == "cancelled"

    async def test_what_has_finished_cannot_be_cancelled(self, bench: Bench) -> None:
        """It would look as if something had been left out."""
        bench.open()
        reply = await bench.ended(await bench.create(all=True))
        with pytest.raises(Conflict):
            await bench.bulks.cancel(m.BulkRenewalById(id=str(reply.id)), CONTEXT)
        for ask in (bench.bulks.get, bench.bulks.cancel):
            with pytest.raises(NotFound):
                await ask(m.BulkRenewalById(id="bulk_none"), CONTEXT)

    async def test_they_are_listed_by_state(self, bench: Bench) -> None:
        """Page by page, oldest first."""
        first = await bench.create(all=True, note="first")
        bench.clock.advance(1)
        second = await bench.create(all=True, note="second")
        await bench.bulks.cancel(m.BulkRenewalById(id=str(first.id)), CONTEXT)
        running = await bench.bulks.list(m.ListBulkRenewals(status="running"), CONTEXT)
        assert [each.id for each in running.items] == [second.id]
        page = await bench.bulks.list(m.ListBulkRenewals(limit=1), CONTEXT)
        assert ([each.note for each in page.items], page.next_cursor) == (["first"], first.id)


async def test_certificates_are_renewed_by_real_orders(world: Any, clock: FakeClock) -> None:
    """With the orders as they are: what is counted is what they write."""
    ids = [(await world.issue(f"{name}.example.test")).certificate_id for name in ("a", "b", "c")]
    clock.advance(3600)
    bench = Bench(world, clock)
    world.ca.refuses["b.example.test"] = "nothing there"
    bulk: list[m.BulkRenewalReply] = []

    async def order(certificate_id: CertificateId) -> None:
        await world.issuing.renew(certificate_id, "bulk", bulk_id=bulk[0].id)

    bench.asked.then = order
    bulk.append(await bench.create(domain="example.test"))
    bench.open()
    ended = await bench.ended(bulk[0])
    await world.idle()
    await bench.close()
    assert (ended.total, ended.started, ended.renewed, ended.failed, ended.under_way) == (3, 3, 2, 1, 0)
    versions = {each.id: each.version for each in await world.certificates()}
    assert versions == {ids[0]: 2, ids[1]: 1, ids[2]: 2}


class TestRights:
    """Of whoever has asked for it, since nobody is there any more when their turn comes."""

    async def test_what_may_not_be_renewed_is_neither_counted_nor_renewed(self, bench: Bench) -> None:
        """`all` by somebody with few rights is all of theirs, and must not tell how many others there are."""
        await bench.put(*(made(number, f"n{number}.{'mine' if number % 2 else 'theirs'}.test") for number in range(6)))
        permits = Permitted(".mine.test", actions=("cert.renew",))
        judge: ScriptedJudge = bench.world.judge
        judge.refuses = lambda each: str(each.requested_by) == str(WEB) and ".theirs." in str(each.identifiers[0])
        bench.open()
        dry = await bench.create(asked_by(WEB, permits), all=True, dry_run=True)
        reply = await bench.ended(await bench.create(asked_by(WEB, permits), all=True))
        assert (dry.total, reply.total, reply.started, reply.skipped) == (3, 3, 3, 0)
        assert bench.asked.ids == [name_of(1), name_of(3), name_of(5)]

    async def test_one_that_is_named_and_may_be_seen_is_passed_over(self, bench: Bench) -> None:
        """Whoever names it is to learn that it was not renewed."""
        await bench.put(made(1, "a.mine.test"), made(2, "b.mine.test"))
        bench.world.judge.refuses = lambda each: each.id == name_of(2)
        bench.open()
        permits = Permitted(".mine.test", actions=("cert.read",))
        reply = await bench.create(asked_by(WEB, permits), certificate_ids=[name_of(1), name_of(2)])
        reply = await bench.ended(reply)
        assert (reply.total, reply.started, reply.skipped) == (2, 1, 1)

    async def test_one_that_may_not_be_seen_is_not_there(self, bench: Bench) -> None:
        """By the same words as one that is not."""
        await bench.put(made(1, "a.mine.test"), made(2, "b.theirs.test"))
        with pytest.raises(NotFound, match=r"there is no certificate 'cert_0002'$"):
            await bench.create(asked_by(WEB, Permitted(".mine.test")), certificate_ids=[name_of(1), name_of(2)])

    async def test_one_that_was_lost_on_the_way_is_passed_over(self, bench: Bench) -> None:
        """The right is that of the moment, not of the day on which it was asked for."""
        await bench.put(made(1), made(2))
        bench.world.judge.refuses = lambda each: each.id == name_of(2)
        bench.open()
        reply = await bench.ended(await bench.create(asked_by(WEB), all=True))
        assert (reply.total, reply.started, reply.skipped) == (2, 1, 1)
        assert set(bench.world.judge.asked) == {str(WEB)}
