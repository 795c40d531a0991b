"""Rights at each renewal: who lost them gets no new version, hears of it once, and goes on as soon as they are back."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.api import messages as m
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.ids import BulkRenewalId, CertificateId
from scaivaultd.model.resources import BulkRenewal
from scaivaultd.services.documents import BULK_RENEWALS
from tests.fakes.judging import SHOP, WEB, ScriptedJudge, asked_by
from tests.fakes.renewals import RenewalRig, SteppedClock, rig_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
ID = CertificateId("cert_1")
BLOCKED = "certificate.renewal_blocked"


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def rig(make_world: Callable[..., Any], clock: SteppedClock) -> AsyncIterator[RenewalRig]:
    async with rig_over(make_world, clock) as rig:
        yield rig


def judge_of(rig: RenewalRig) -> ScriptedJudge:
    judge: ScriptedJudge = rig.world.judge
    return judge


async def blocked(rig: RenewalRig, **changes: Any) -> None:
    """A certificate of WEB's that came due and was stopped."""
    judge_of(rig).refused.add(str(WEB))
    await rig.add(**{"requested_by": WEB, **changes})
    await rig.start()
    await rig.forward(61 * DAY)


async def told(rig: RenewalRig) -> list[dict[str, Any]]:
    return [body for kind, body in await rig.world.events() if kind == BLOCKED]


class TestBlocked:
    async def test_it_is_not_renewed_and_says_why(self, rig: RenewalRig) -> None:
        """Otherwise a right that was taken away would last as long as the CA."""
        await blocked(rig)
        assert rig.issuing.orders == []
        renewal = await rig.renewal()
        error = renewal.error
        assert error is not None
        assert (error.code, error.kind, error.fault) == ("permission_denied", "permanent", "here")
        assert error.detail == (
            "token:Web00000 (web-ci), whose it is, may not renew it any more: cert-1.example.test: "
            "no policy allows it by 'a.example.test'"
        )
        assert "Allow cert.renew" in str(error.remedy)
        assert not renewal.is_stopped
        shown = await rig.world.certificate_service.get(m.CertificateById(id=ID), asked_by(WEB))
        assert shown.renewal.error == error
        assert shown.renewal.next_try_at == error.retry_at

    async def test_the_event_comes_once_and_names_the_rule(self, rig: RenewalRig) -> None:
        """Whoever gets it at night must know what to change, and not get it each hour."""
        judge_of(rig).policy = "web-team"
        await blocked(rig)
        await rig.forward(3 * DAY)
        (body,) = await told(rig)
        assert body["certificate_id"] == ID
        assert body["error"]["code"] == "permission_denied"
        assert "rule 2 of policy 'web-team'" in body["remedy"]
        assert len(rig.world.said(BLOCKED)) == 1

    async def test_many_names_make_no_endless_text(self, rig: RenewalRig) -> None:
        """A certificate has up to a hundred, and each has its reason."""
        names = (await rig.add("cert_2")).identifiers * 7
        await blocked(rig, identifiers=names)
        assert str((await rig.renewal()).error).count("no policy allows") == 5
        assert "and 2 more" in str((await rig.renewal()).error)

    async def test_its_end_is_still_announced(self, rig: RenewalRig) -> None:
        """Somebody has to act before it comes."""
        await blocked(rig)
        await rig.forward(40 * DAY)
        types = await rig.world.event_types()
        assert "certificate.expiring" in types
        assert "certificate.expired" in types

    async def test_it_is_judged_again_by_the_hour_and_not_more(self, rig: RenewalRig) -> None:
        """Tokens and accounts change without anybody telling policies."""
        await blocked(rig)
        await rig.forward(HOUR)
        asked = len(judge_of(rig).asked)
        await rig.forward(10 * HOUR)
        assert len(judge_of(rig).asked) - asked == 10
        judge_of(rig).refused.clear()
        await rig.forward(HOUR)
        assert rig.issuing.ordered() == [ID]
        renewal = await rig.renewal()
        assert (renewal.version, renewal.error) == (2, None)

    async def test_it_goes_on_at_once_when_policies_change(self, rig: RenewalRig) -> None:
        """The administrator looks at it right then, and the certificate may end soon."""
        await blocked(rig)
        judge_of(rig).refused.clear()
        rig.issuing.holds = lambda _: True
        rig.renewing.policies_changed()
        await rig.settle()
        assert rig.issuing.ordered() == [ID]
        assert (await rig.renewal()).error is None  # while its order is under way, too
        assert len(rig.world.said("certificate.renewal_unblocked")) == 1

    async def test_one_that_stays_blocked_over_a_change_says_nothing_new(self, rig: RenewalRig) -> None:
        """Policies change all day; but the reason that is shown is the present one."""
        await blocked(rig)
        judge_of(rig).detail = "rule 1 of policy other: it is not among the domains"
        rig.renewing.policies_changed()
        await rig.settle()
        assert len(await told(rig)) == 1
        assert "policy other" in str((await rig.renewal()).error)
        asked = len(judge_of(rig).asked)
        await rig.forward(timedelta(minutes=50))
        assert len(judge_of(rig).asked) == asked

    async def test_a_change_while_it_is_being_judged_is_not_missed(self, rig: RenewalRig) -> None:
        """The judgement was by the policies from before."""
        judge = judge_of(rig)

        async def change() -> None:
            judge.before = None
            judge.refused.clear()
            rig.renewing.policies_changed()

        judge.before = change
        judge.refused.add(str(WEB))
        await rig.add(requested_by=WEB)
        await rig.start()
        await rig.change(is_due=True, cause="schedule")
        await rig.settle()
        assert rig.issuing.ordered() == [ID]

    async def test_it_is_judged_again_at_a_start(self, rig: RenewalRig) -> None:
        """Policies may stand in files, changed while the daemon was down."""
        await blocked(rig)
        judge_of(rig).refused.clear()
        await rig.die()
        await rig.start()
        assert rig.issuing.ordered() == [ID]

    async def test_a_second_time_is_told_again(self, rig: RenewalRig) -> None:
        """It is another blocking."""
        await blocked(rig)
        judge_of(rig).refused.clear()
        rig.renewing.policies_changed()
        await rig.settle()
        judge_of(rig).refused.add(str(WEB))
        await rig.forward(61 * DAY)
        assert [each["version"] for each in await told(rig)] == [1, 2]

    async def test_failures_from_before_are_not_forgotten(self, rig: RenewalRig) -> None:
        """A CA that did not want it yesterday is not asked more often for this."""
        await rig.add(requested_by=WEB)
        await rig.start()
        await rig.forward(59 * DAY)
        await rig.change(attempt=3)
        judge_of(rig).refused.add(str(WEB))
        await rig.forward(2 * DAY)
        assert ((await rig.renewal()).attempt, len(await told(rig))) == (3, 1)

    async def test_another_owner_meanwhile_is_judged_for_itself(self, rig: RenewalRig) -> None:
        """Somebody who may has taken it over at that moment: they must not wait an hour."""
        judge = judge_of(rig)
        judge.refused.add(str(WEB))

        async def take_over() -> None:
            judge.before = None
            request = m.UpdateCertificate(id=ID, account_id=await rig.world.account())
            await rig.world.updating.update(request, asked_by(SHOP))

        judge.before = take_over
        await rig.add(requested_by=WEB)
        await rig.start()
        await rig.forward(61 * DAY)
        assert rig.issuing.ordered() == [ID]
        assert await told(rig) == []
        assert judge.asked == [str(WEB), str(SHOP)]

    async def test_a_store_that_fails_blocks_nothing(self, rig: RenewalRig) -> None:
        """Nobody knows then, and it is asked again."""
        judge = judge_of(rig)

        async def fail() -> None:
            judge.before = None
            raise StorageUnavailable("the disk is full")

        judge.before = fail
        await rig.add(requested_by=WEB)
        await rig.start()
        await rig.change(is_due=True, cause="schedule")
        async with asyncio.timeout(20):
            while not rig.world.said("renewal.store_unavailable"):  # noqa: ASYNC110 - the room gets there by itself
                await asyncio.sleep(0)
        rig.clock.advance(5)
        await rig.settle()
        assert rig.issuing.ordered() == [ID]
        assert await told(rig) == []


class TestWhoseRight:
    async def test_what_is_nobodys_is_judged_as_that(self, rig: RenewalRig) -> None:
        """Certificates from before there were owners go on."""
        await rig.add()
        await rig.start()
        await rig.forward(61 * DAY)
        assert judge_of(rig).asked == ["None"]
        assert rig.issuing.ordered() == [ID]

    async def test_somebody_who_may_forces_it_in_their_own_right(self, rig: RenewalRig) -> None:
        """The gate has judged them; the next renewal by itself is the owner's again."""
        await blocked(rig)
        await rig.renewing.renew(m.RenewCertificate(id=ID, wait_seconds=0), asked_by(SHOP))
        await rig.settle()
        assert [cause for _, _, cause in rig.issuing.orders] == ["request"]
        assert (await rig.renewal()).error is None
        await rig.forward(61 * DAY)
        assert len(rig.issuing.orders) == 1
        assert len(await told(rig)) == 2

    async def test_a_window_of_the_ca_gives_no_rights(self, rig: RenewalRig) -> None:
        """What the CA wants early is a renewal like any other."""
        judge_of(rig).refused.add(str(WEB))
        await rig.add(requested_by=WEB, account_id=await rig.world.account(), has_ari=True)
        begin = rig.clock.now()
        rig.ari.window = lambda _: (begin + DAY, begin + 2 * DAY)
        await rig.start()
        await rig.forward(4 * DAY)
        assert rig.issuing.orders == []
        assert len(await told(rig)) == 1

    @pytest.mark.parametrize("cause", ["request", "update", "revocation"])
    async def test_what_was_asked_for_is_tried_again_without_a_judge(self, rig: RenewalRig, cause: Any) -> None:
        """It was judged when it was asked for."""
        judge_of(rig).refused.add(str(WEB))
        await rig.add(requested_by=WEB)
        await rig.start()
        await rig.change(is_due=True, cause=cause)
        await rig.settle()
        assert [each for _, _, each in rig.issuing.orders] == [cause]


class TestBulk:
    async def asked(self, rig: RenewalRig, by: Any, **changes: Any) -> None:
        bulk = BulkRenewal(
            id=BulkRenewalId("bulk_1"),
            status="running",
            created_at=rig.clock.now(),
            per_minute=60.0,
            requested_by=by,
        )
        await rig.world.sqlite.commit([BULK_RENEWALS.put(bulk)])
        await rig.start()
        await rig.change(is_due=True, cause="bulk", bulk_id=bulk.id, **changes)
        await rig.settle()

    async def test_many_at_once_go_by_the_right_of_whoever_asked(self, rig: RenewalRig) -> None:
        """In an incident an operator renews what its owners may not any more."""
        judge_of(rig).refused.add(str(WEB))
        await rig.add(requested_by=WEB)
        await self.asked(rig, SHOP)
        assert (rig.issuing.ordered(), rig.issuing.bulk_ids) == ([ID], ["bulk_1"])

    async def test_one_who_has_lost_the_right_spoils_nothing_for_the_owner(self, rig: RenewalRig) -> None:
        """The wish is void; the certificate is renewed in its time, and nobody is alarmed."""
        judge_of(rig).refused.add(str(SHOP))
        await rig.add(requested_by=WEB)
        await self.asked(rig, SHOP)
        renewal = await rig.renewal()
        assert (renewal.is_due, renewal.bulk_id, renewal.error) == (False, None, None)
        assert rig.issuing.orders == []
        await rig.forward(61 * DAY)
        assert [each for _, _, each in rig.issuing.orders] == ["schedule"]
        assert await told(rig) == []

    async def test_without_its_document_it_is_nobodys(self, rig: RenewalRig) -> None:
        """A store that was mended by hand must not stand still."""
        judge_of(rig).refused.add(str(WEB))
        await rig.add(requested_by=WEB)
        await rig.start()
        await rig.change(is_due=True, cause="bulk", bulk_id=BulkRenewalId("bulk_gone"))
        await rig.settle()
        assert rig.issuing.ordered() == [ID]
