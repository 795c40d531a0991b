"""How much a principal may have: counted over stops, under load, and never renewals."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.model.access import Quota
from scaivaultd.model.errors import PermissionDenied, StorageUnavailable
from scaivaultd.model.principals import SYSTEM, Principal
from scaivaultd.model.resources import UNFINISHED, Order
from scaivaultd.services.documents import CERTIFICATES, ORDERS
from scaivaultd.services.quotas import OWNERS_MAX, PAGE, Quotas
from tests.fakes.judging import SHOP, WEB, Permitted, asked_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.model.storage import Change

TWO_A_DAY = Quota(issue_per_day=2)
TWO_ACTIVE = Quota(active=2)
HOUR = timedelta(hours=1)


async def ask(
    world: Any, name: str, quota: Quota | None = TWO_A_DAY, by: Principal = WEB, key: str | None = None
) -> m.OrderReply:
    """Ask for a certificate, without waiting for it."""
    request = m.Issue(
        account_id=await world.account(), domains=[f"{name}.example.test"], challenge_type="http-01", wait_seconds=0
    )
    reply: m.OrderReply = await world.issuing.issue(request, asked_by(by, Permitted("", quota=quota), key))
    return reply


async def have(world: Any, name: str, quota: Quota | None = TWO_A_DAY, by: Principal = WEB) -> Order:
    """Ask for it, and wait until it is there."""
    order: Order = await world.ended((await ask(world, name, quota, by)).order_id)
    return order


async def refusal(world: Any, name: str, quota: Quota = TWO_A_DAY) -> str:
    with pytest.raises(PermissionDenied) as caught:
        await ask(world, name, quota)
    return caught.value.detail


class TestPerDay:
    async def test_the_next_one_is_refused_until_a_day_has_passed(self, world: Any, clock: Any) -> None:
        """A team's broken loop must not eat the CA's limits, and is told when it may go on."""
        began = clock.now()
        first = await ask(world, "a")
        clock.advance(3600)
        await ask(world, "b")
        await world.idle()
        free_at = (await world.shown(first.order_id)).created_at + timedelta(hours=24)
        assert await refusal(world, "c") == (
            "the quota of token:Web00000 (web-ci) is reached: 2 new certificates in 24 hours; "
            f"next at {free_at.isoformat(timespec='seconds').replace('+00:00', 'Z')}"
        )
        clock.advance((free_at - clock.now()).total_seconds() - 1)
        await refusal(world, "c")
        clock.advance(1)
        await have(world, "c")
        await refusal(world, "d")
        assert clock.now() - began > timedelta(hours=23)

    async def test_whoever_has_more_waits_until_there_is_room(self, world: Any, clock: Any) -> None:
        """As after a quota was made smaller: the first to go is not enough then."""
        moments = []
        for name in "abcd":
            moments.append((await have(world, name, None)).created_at)
            clock.advance(3600)
        free_at = moments[2] + timedelta(hours=24)
        assert free_at.isoformat(timespec="seconds").replace("+00:00", "Z") in await refusal(world, "e")
        clock.advance((free_at - clock.now()).total_seconds())
        await have(world, "e")

    async def test_nothing_is_left_of_what_was_refused(self, world: Any) -> None:
        """Nobody pursues it, and asking again and again does not put the next one off."""
        await have(world, "a")
        await have(world, "b")
        told = {await refusal(world, "c") for _ in range(3)}
        assert len(told) == 1
        assert len(await world.certificates()) == 2
        assert len((await world.issuing.list(m.ListOrders(), asked_by(WEB))).items) == 2

    async def test_it_counts_over_stops(self, world: Any, clock: Any) -> None:
        """A restart is no way around it."""
        await have(world, "a")
        await have(world, "b")
        await world.die()
        await refusal(world, "c")
        clock.advance(25 * 3600)
        await world.die()
        await have(world, "c")

    @pytest.mark.parametrize("quota", [TWO_A_DAY, TWO_ACTIVE, Quota(issue_per_day=2, active=3)])
    async def test_requests_at_once_do_not_all_find_the_last_place(self, world: Any, quota: Quota) -> None:
        """That is how quotas are got around."""
        await world.account()
        outcomes = await asyncio.gather(*(ask(world, f"n{each}", quota) for each in range(8)), return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, PermissionDenied)]
        assert len(refused) == 6
        await world.idle()
        assert len(await world.certificates()) == 2

    async def test_a_failed_order_counts(self, world: Any, ca_refuses: Any) -> None:
        """It has cost the CA's patience all the same."""
        world.ca.script["new_order"].append(ca_refuses("rejectedIdentifier"))
        assert (await have(world, "a")).status == "invalid"
        await have(world, "b")
        await refusal(world, "c")

    async def test_each_has_its_own(self, world: Any) -> None:
        """One team's loop is not another's."""
        await have(world, "a")
        await have(world, "b")
        await have(world, "a", by=SHOP)
        await have(world, "c", by=SYSTEM)
        await refusal(world, "d")

    async def test_what_was_let_in_by_another_rule_counts_too(self, world: Any) -> None:
        """How much somebody has does not depend on who let them, before it was first counted and after."""
        await have(world, "a", None)
        await have(world, "b")
        await refusal(world, "c")
        await have(world, "d", None)
        await refusal(world, "e", Quota(issue_per_day=3))
        await have(world, "e", Quota(issue_per_day=4))

    async def test_the_same_request_again_is_not_another_one(self, world: Any) -> None:
        """Its answer was lost, or it comes twice while under way."""
        first = await ask(world, "a", key="k")
        assert (await ask(world, "a")).order_id == first.order_id
        await have(world, "b")
        assert (await ask(world, "a", key="k")).order_id == first.order_id
        await refusal(world, "c")

    async def test_renewals_and_updates_never_count(self, world: Any) -> None:
        """A certificate must not lapse, nor its renewals use up what is meant for new ones."""
        order = await have(world, "a", Quota(issue_per_day=1, active=1))
        for _ in range(3):
            await world.renewing.renew(m.RenewCertificate(id=str(order.certificate_id), wait_seconds=0), asked_by(WEB))
            await world.idle()
        await have(world, "b")
        await refusal(world, "c")

    async def test_what_could_not_be_written_down_was_not_ordered(self, world: Any) -> None:
        """A full disk costs nobody their certificates."""
        await have(world, "a")

        async def fails(changes: Sequence[Change]) -> None:
            world.store.before_commit = None
            raise StorageUnavailable("the disk is full")

        world.store.before_commit = fails
        with pytest.raises(StorageUnavailable):
            await ask(world, "b")
        await have(world, "b")
        await refusal(world, "c")

    async def test_what_is_being_written_down_counts_for_whoever_reads_the_store(self, world: Any) -> None:
        """The first count comes while others are on their way into the store."""
        await world.account()
        await have(world, "a", Quota(active=9))
        gate, arrived = asyncio.Event(), asyncio.Event()

        async def hold(changes: Sequence[Change]) -> None:
            arrived.set()
            await gate.wait()

        world.store.before_commit = hold
        held = asyncio.create_task(ask(world, "b", Quota(active=9)))
        await arrived.wait()
        assert "2 new certificates" in await refusal(world, "c")
        assert "2 active certificates" in await refusal(world, "c", TWO_ACTIVE)
        gate.set()
        await held
        await world.idle()

    async def test_after_a_cancellation_it_counts(self, world: Any) -> None:
        """Nobody knows whether it was committed, and a place too many may be left, never one too few."""
        await world.account()
        await have(world, "a")
        gate, arrived = asyncio.Event(), asyncio.Event()

        async def hold(changes: Sequence[Change]) -> None:
            arrived.set()
            await gate.wait()

        world.store.before_commit = hold
        held = asyncio.create_task(ask(world, "b"))
        await arrived.wait()
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        world.store.before_commit = None
        await refusal(world, "c")


class TestActive:
    async def test_no_more_are_made_than_may_be_valid_at_a_time(self, world: Any, clock: Any) -> None:
        """Those under way count as those there are: they will be valid."""
        await have(world, "a", TWO_ACTIVE)
        await ask(world, "b", TWO_ACTIVE)
        assert (await refusal(world, "c", TWO_ACTIVE)).startswith(
            "the quota of token:Web00000 (web-ci) is reached: 2 active certificates; next when one expires or is "
            "revoked: the first at "
        )
        await world.idle()
        clock.advance(30 * 3600)
        await refusal(world, "c", TWO_ACTIVE)

    async def test_one_that_is_revoked_makes_room(self, world: Any) -> None:
        """And one that has expired, or could not be had."""
        order = await have(world, "a", TWO_ACTIVE)
        await have(world, "b", TWO_ACTIVE)
        await refusal(world, "c", TWO_ACTIVE)
        await world.revoking.revoke(m.RevokeCertificate(certificate_id=order.certificate_id), asked_by(WEB))
        await world.idle()
        await have(world, "c", TWO_ACTIVE)
        await refusal(world, "d", TWO_ACTIVE)

    async def test_one_that_failed_makes_room(self, world: Any, ca_refuses: Any) -> None:
        """It never was."""
        await have(world, "a", TWO_ACTIVE)
        world.ca.script["new_order"].append(ca_refuses("rejectedIdentifier"))
        await have(world, "b", TWO_ACTIVE)
        await have(world, "c", TWO_ACTIVE)
        await refusal(world, "d", TWO_ACTIVE)

    async def test_it_counts_over_stops(self, world: Any) -> None:
        """Those under way at the stop too."""
        await have(world, "a", TWO_ACTIVE)
        await ask(world, "b", TWO_ACTIVE)
        await world.die()
        await refusal(world, "c", TWO_ACTIVE)

    async def test_all_under_way_have_no_end_yet(self, world: Any) -> None:
        """Nobody can say when there is room."""
        await ask(world, "a", TWO_ACTIVE)
        await ask(world, "b", TWO_ACTIVE)
        assert (await refusal(world, "c", TWO_ACTIVE)).endswith("next when one expires or is revoked")
        await world.idle()

    @pytest.mark.parametrize("status", UNFINISHED)
    async def test_each_state_on_the_way_counts(self, world: Any, status: Any) -> None:
        """The CA may take hours between any two of them."""
        order = await have(world, "a", None)
        (certificate,) = await world.certificates()
        held = await world.read(CERTIFICATES, certificate.id)
        gone = msgspec.structs.replace(certificate, status="revoked")
        await world.sqlite.commit([CERTIFICATES.put(gone, held.revision)])
        await world.change(order.id, status=status)
        assert "1 active" in await refusal(world, "b", Quota(active=1))

    async def test_an_order_seen_with_its_certificate_counts_once(self, world: Any) -> None:
        """It became valid between two looks."""
        order = await have(world, "a", None)
        await world.change(order.id, status="processing")
        await have(world, "b", Quota(active=2))
        assert await refusal(world, "c", Quota(active=2))

    async def test_one_that_was_taken_over_counts_for_its_new_owner(self, world: Any) -> None:
        """Not for the old one any more."""
        order = await have(world, "a", TWO_ACTIVE, by=SHOP)
        await have(world, "b", TWO_ACTIVE)
        update = m.UpdateCertificate(id=str(order.certificate_id), domains=["z.example.test"])
        await world.updating.update(update, asked_by(WEB))
        await world.idle()
        await refusal(world, "c", TWO_ACTIVE)
        await have(world, "d", Quota(active=1), by=SHOP)


async def test_years_of_orders_are_not_read_for_those_of_a_day(world: Any, clock: Any) -> None:
    """A busy team has a hundred thousand of them."""
    await have(world, "a", None)
    clock.advance(48 * 3600)
    await have(world, "b", None)
    read: list[int] = []
    scan = world.store.scan

    async def counted(*args: Any, **members: Any) -> Any:
        page = await scan(*args, **members)
        if "requested_by" in (members["where"] or {}):
            read.append(len(page.items))
        return page

    world.store.scan = counted
    await have(world, "c")
    await refusal(world, "d")
    assert read == [1]


async def test_all_of_a_day_are_counted_whatever_their_number(world: Any) -> None:
    """They come in pages."""
    order = await have(world, "a", None)
    many = [ORDERS.put(msgspec.structs.replace(order, id=world.ids.order(), url=None)) for _ in range(PAGE + 1)]
    for start in range(0, len(many), 100):
        await world.sqlite.commit(many[start : start + 100])
    await refusal(world, "b", Quota(issue_per_day=PAGE + 2))


async def test_only_some_owners_are_kept_in_mind(world: Any, clock: Any) -> None:
    """Tokens come and go, and what they had is read again when it matters."""
    counting, example = Quotas(store=world.store, clock=clock), await have(world, "a", None)

    async def take(uid: int) -> None:
        order = msgspec.structs.replace(example, id=world.ids.order(), requested_by=Principal(kind="unix", id=str(uid)))
        async with counting.taking(order, Quota(issue_per_day=1)):
            pass

    await take(0)
    with pytest.raises(PermissionDenied):
        await take(0)
    for uid in range(1, OWNERS_MAX + 1):
        await take(uid)
    await take(0)  # the store never heard of the first
