"""The room that renews by itself: at the right moment, once, one CA never in the way of another, over any stop."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import (
    AccountUnusable,
    Conflict,
    InvalidRequest,
    NotFound,
    RateLimited,
    StorageUnavailable,
    UnsupportedChallenge,
)
from scaivaultd.model.ids import BulkRenewalId, CertificateId, OrderId
from scaivaultd.model.resources import Renewal, Terms
from scaivaultd.model.storage import Delete, Put
from scaivaultd.services.documents import CERTIFICATES, RENEWALS
from tests.fakes.renewals import RenewalRig, SteppedClock, rig_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
CONTEXT = RequestContext(request_id="req_1")
ID = CertificateId("cert_1")


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def rig(make_world: Callable[..., Any], clock: SteppedClock) -> AsyncIterator[RenewalRig]:
    async with rig_over(make_world, clock) as rig:
        yield rig


def request(**changes: Any) -> m.RenewCertificate:
    return m.RenewCertificate(**{"id": ID, "wait_seconds": 0, **changes})


class TestTheMoment:
    async def test_a_certificate_is_renewed_with_a_third_of_its_life_left_again_and_again(
        self, rig: RenewalRig
    ) -> None:
        """That is what the daemon is for: years without anybody doing anything."""
        await rig.add()
        await rig.start()
        await rig.forward(1200 * DAY)
        moments = [at for at, _, _ in rig.issuing.orders]
        pauses = [(later - earlier) / DAY for earlier, later in zip([BEGIN, *moments], moments, strict=False)]
        assert len(moments) in (20, 21)
        assert all(58.5 <= pause <= 60.001 for pause in pauses)
        assert {cause for _, _, cause in rig.issuing.orders} == {"schedule"}
        assert await rig.world.event_types() == ["certificate.renewed"] * len(moments)
        assert (await rig.certificate()).version == len(moments) + 1

    @pytest.mark.parametrize(
        ("lifetime", "earliest", "latest"),
        [
            (timedelta(seconds=60), 28.4, 30.001),
            (timedelta(days=6), 0.47 * 6 * 86400, 3 * 86400 + 1),
            (timedelta(days=3650), 0.64 * 3650 * 86400, 3650 * 86400 * 2 / 3 + 1),
        ],
    )
    async def test_every_lifetime_goes_the_same_way(
        self, rig: RenewalRig, lifetime: timedelta, earliest: float, latest: float
    ) -> None:
        """Certificates of a minute come from inner CAs, of ten years too."""
        await rig.add(lifetime=lifetime)
        await rig.start()
        await rig.forward(lifetime * 0.9)
        at = rig.issuing.orders[0][0] - BEGIN
        assert earliest <= at.total_seconds() <= latest

    async def test_what_is_not_to_be_renewed_is_not(self, rig: RenewalRig) -> None:
        """A caller said so, or has revoked it."""
        await rig.add("cert_1", auto_renew=False)
        await rig.add("cert_2")
        await rig.change("cert_2", is_stopped=True)
        await rig.start()
        await rig.forward(200 * DAY)
        assert rig.issuing.orders == []

    async def test_it_sleeps_half_a_minute_at_most_and_not_for_each_certificate(self, rig: RenewalRig) -> None:
        """The clock may be set and the machine may sleep; and waiting costs the same for any number."""
        for number in range(50):
            await rig.add(f"cert_{number}")
        await rig.start()
        rig.clock.slept.clear()
        for _ in range(10):
            rig.clock.advance(30)
            await rig.settle()
            await turns()
        assert max(rig.clock.slept) == 30.0
        assert len(rig.clock.slept) <= 11

    async def test_sleeps_to_the_moment_itself_where_that_is_nearer(self, rig: RenewalRig) -> None:
        """Half a minute late is half a life late for a certificate of a minute."""
        await rig.add(lifetime=timedelta(seconds=30))
        await rig.start()
        await turns()
        assert 14.0 < rig.clock.slept[-1] <= 15.0

    async def test_a_change_that_is_told_of_is_seen_at_once(self, rig: RenewalRig) -> None:
        """Whoever commits a change to a Renewal says so, and does not wait for the old time to come."""
        await rig.add()
        await rig.start()
        await rig.change(is_due=True, cause="update")
        await rig.settle()
        assert rig.issuing.orders == [(BEGIN, ID, "update")]

    async def test_a_change_during_a_look_is_not_overlooked(self, rig: RenewalRig) -> None:
        """The look may have read the document before it."""
        await rig.add()
        await rig.start()
        reads = 0

        async def after_get(key: str) -> None:
            nonlocal reads
            if key == RENEWALS.key(ID) and not reads:
                reads += 1
                await rig.change(is_due=True, cause="update")

        rig.world.store.after_get = after_get
        rig.renewing.changed(ID)
        await rig.settle()
        assert rig.issuing.ordered() == [ID]

    async def test_telling_of_a_certificate_a_thousand_times_costs_one_entry(self, rig: RenewalRig) -> None:
        """The room is told by many, and must hold no more than it has certificates."""
        await rig.add()
        await rig.start()
        reads: list[str] = []

        async def after_get(key: str) -> None:
            reads.append(key)

        rig.world.store.after_get = after_get
        rig.clock.slept.clear()
        for _ in range(1000):
            rig.renewing.changed(ID)
        await rig.settle()
        await turns()
        assert len(reads) <= 2
        assert len(rig.clock.slept) <= 3

    async def test_nobody_is_told_of_what_is_not_there(self, rig: RenewalRig) -> None:
        """A certificate may be gone by the time the room looks."""
        await rig.start()
        rig.renewing.changed(CertificateId("cert_none"))
        await rig.settle()
        assert rig.renewing.next_look_at is None

    async def test_while_an_order_is_under_way_nobody_makes_another(self, rig: RenewalRig) -> None:
        """One order at a time makes the next version."""
        await rig.add()
        rig.issuing.holds = lambda _: True
        await rig.start()
        await rig.forward(100 * DAY)
        assert rig.issuing.ordered() == [ID]

    async def test_an_order_that_never_rests_does_not_hold_its_place_for_ever(
        self, rig: RenewalRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every wait has a deadline."""
        monkeypatch.setattr("scaivaultd.services.renewal_orders.REST_SECONDS", 0.01)
        await rig.add()
        await rig.change(is_due=True)
        rig.issuing.holds = lambda _: True
        await rig.start()
        await rest_of(rig, lambda: not rig.tasks())
        assert rig.issuing.ordered() == [ID]


class TestFailures:
    @pytest.mark.parametrize(
        "error",
        [
            AccountUnusable("the account is deactivated"),
            Conflict("the key is compromised"),
            UnsupportedChallenge("no solver is installed"),
            InvalidRequest("no such profile"),
        ],
    )
    async def test_what_a_person_must_repair_is_told_once_and_tried_four_times_a_day(
        self, rig: RenewalRig, error: Exception
    ) -> None:
        """Then whoever repairs it has nothing more to do, and nobody is called twice for one thing."""
        await rig.add()
        rig.issuing.always[ID] = error
        await rig.start()
        await rig.forward(60 * DAY)
        rig.world.logged.clear()
        await rig.forward(2 * DAY)
        assert 8 <= len(rig.world.said("renewal.not_ordered")) <= 11
        assert await rig.world.event_types() == ["certificate.renewal_blocked"]
        renewal = await rig.renewal()
        assert renewal.error is not None
        assert (renewal.error.kind, renewal.error.detail) == ("permanent", str(error))
        assert renewal.error.remedy
        assert renewal.attempt >= 8
        rig.issuing.always.clear()
        await rig.forward(DAY / 4)
        assert (await rig.certificate()).version == 2
        assert (await rig.renewal()).error is None

    async def test_another_thing_to_repair_is_told_too(self, rig: RenewalRig) -> None:
        """The person who repaired the first is to hear of the second."""
        await rig.add()
        rig.issuing.refuses.extend([Conflict("one"), Conflict("one"), Conflict("two")])
        await rig.start()
        await rig.forward(62 * DAY)
        blocked = [body["error"]["detail"] for kind, body in await rig.world.events() if "blocked" in kind]
        assert blocked == ["one", "two"]

    async def test_an_order_that_a_request_made_meanwhile_is_not_set_back(self, rig: RenewalRig) -> None:
        """The refusal came too late to be true."""
        await rig.add()

        async def before_order() -> None:
            rig.issuing.resting[OrderId("acme_order_other")] = asyncio.Event()
            await rig.change(order_id="acme_order_other")

        rig.issuing.before_order = before_order
        rig.issuing.refuses.append(Conflict("no"))
        await rig.start()
        await rig.change(is_due=True)
        await rig.settle()
        renewal = await rig.renewal()
        assert (renewal.order_id, renewal.attempt, renewal.error) == ("acme_order_other", 0, None)

    async def test_an_order_that_is_not_there_any_more_is_not_waited_for(self, rig: RenewalRig) -> None:
        """A certificate that counts on it would never be renewed again."""
        await rig.add()
        await rig.change(order_id="acme_order_gone")
        await rig.start()
        await rig.forward(100 * DAY)
        assert rig.issuing.ordered() == [ID]
        assert len(rig.world.said("renewal.order_lost")) == 1

    async def test_a_full_daemon_is_asked_again_when_it_says(self, rig: RenewalRig) -> None:
        """Nothing is wrong with the certificate, and nobody has to act."""
        await rig.add()
        rig.issuing.refuses.extend([RateLimited("too much", 600.0)])
        await rig.start()
        await rig.change(is_due=True, cause="request")
        await rig.settle()
        renewal = await rig.renewal()
        assert renewal.next_try_at is not None
        assert timedelta(seconds=600) <= renewal.next_try_at - BEGIN <= timedelta(seconds=660)
        await rig.forward(timedelta(seconds=661))
        assert rig.issuing.ordered() == [ID]
        assert "certificate.renewal_blocked" not in await rig.world.event_types()

    async def test_a_certificate_that_is_gone_is_forgotten(self, rig: RenewalRig) -> None:
        """It must not be asked for again and again."""
        await rig.add()
        rig.issuing.always[ID] = NotFound("gone")
        await rig.start()
        await rig.change(is_due=True)
        await rig.settle()
        assert len(rig.world.said("renewal.forgotten")) == 1

    async def test_a_renewal_without_its_certificate_is_forgotten_too(self, rig: RenewalRig) -> None:
        """Nothing can be announced of it, and nothing renewed."""
        await rig.add()
        await rig.world.sqlite.commit([Delete(key=CERTIFICATES.key(ID))])
        await rig.start()
        await rig.forward(100 * DAY)
        assert len(rig.world.said("renewal.forgotten")) == 1
        assert rig.world.said("job.failed") == []

    async def test_a_store_that_fails_is_asked_again_in_seconds_and_by_nobody_meanwhile(self, rig: RenewalRig) -> None:
        """A full disk is repaired while the daemon runs; thousands of looks at it would only fill the log."""
        for number in range(100):
            await rig.add(f"cert_{number}")
        await rig.start()
        rig.world.store.is_down = True
        rig.clock.advance(61 * 86400)
        await rest_of(rig, lambda: bool(rig.world.said("renewal.store_unavailable")))
        for _ in range(3):
            rig.clock.advance(5)
            await turns(200)
        said = rig.world.said("renewal.store_unavailable")
        assert 2 <= len(said) <= 5
        assert [each["log_level"] for each in said] == ["warning", *["debug"] * (len(said) - 1)]
        rig.world.store.is_down = False
        rig.clock.advance(5)
        await rig.forward(timedelta(minutes=1))
        assert [each["log_level"] for each in rig.world.said("renewal.store_available")] == ["info"]
        assert len(set(rig.issuing.ordered())) == 100
        assert len(rig.issuing.ordered()) == 100

    async def test_a_store_that_still_reads_is_not_called_available(self, rig: RenewalRig) -> None:
        """A full disk is one outage, although every second step succeeds; the next one is another."""
        await rig.add()
        await rig.start()
        # The look that finds it due has ended well by then.
        rig.issuing.before_order = lambda: turns(20)
        for outage in (1, 2):
            rig.issuing.refuses.extend([StorageUnavailable("full")] * 5)
            await rig.change(is_due=True)
            for number in range(5):
                await said(rig, "renewal.store_unavailable", 5 * outage - 4 + number)
                rig.clock.advance(5)
            assert len(rig.world.said("renewal.store_available")) == outage - 1
            await rig.forward(timedelta(minutes=2))
            assert len(rig.world.said("renewal.store_available")) == outage
        assert [each["log_level"] for each in rig.world.said("renewal.store_unavailable")] == 2 * (
            ["warning", *["debug"] * 4]
        )

    async def test_an_order_that_the_store_refuses_is_made_a_little_later(self, rig: RenewalRig) -> None:
        """The failure was not the certificate's, so nothing is noted against it."""
        await rig.add()
        rig.issuing.refuses.append(StorageUnavailable("full"))
        await rig.start()
        await rig.change(is_due=True)
        await rest_of(rig, lambda: bool(rig.world.said("renewal.store_unavailable")))
        assert (await rig.renewal()).error is None
        rig.clock.advance(5)
        await rig.settle()
        assert rig.issuing.ordered() == [ID]

    async def test_one_broken_certificate_takes_none_with_it(self, rig: RenewalRig) -> None:
        """An unreadable document, a fault of ours: looked at again in a minute, and the others go on."""
        await rig.add("cert_1")
        await rig.add("cert_2")
        await rig.add("cert_3")
        rig.issuing.always["cert_2"] = RuntimeError("a fault of ours")
        await rig.world.sqlite.commit([Put(key=RENEWALS.key("cert_3"), document=b"{")])
        await rig.start()
        await rig.change("cert_1", is_due=True)
        await rig.change("cert_2", is_due=True)
        await rig.forward(timedelta(minutes=5))
        assert rig.issuing.ordered() == ["cert_1"]
        assert rig.world.said("document.unreadable") == [
            {"event": "document.unreadable", "log_level": "error", "key": "renewal/cert_3"}
        ]
        rig.issuing.always.clear()
        certificate = await rig.certificate("cert_3")
        await rig.world.sqlite.commit(
            [RENEWALS.put(msgspec.structs.replace(await renewal_like(rig), certificate_id=certificate.id), None)]
        )
        await rig.forward(timedelta(minutes=2))
        assert set(rig.issuing.ordered()) == {"cert_1", "cert_2", "cert_3"}

    async def test_what_can_never_be_read_is_tried_once_a_minute(self, rig: RenewalRig) -> None:
        """Not as fast as the processor goes."""
        await rig.world.sqlite.commit([Put(key=RENEWALS.key("cert_3"), document=b"{")])
        await rig.start()
        await rig.forward(timedelta(minutes=10))
        assert 9 <= len(rig.world.said("job.failed")) <= 12


async def renewal_like(rig: RenewalRig) -> Renewal:
    """A Renewal that is due."""
    return msgspec.structs.replace(await rig.renewal("cert_2"), is_due=True)


class TestPlaces:
    async def accounts(self, rig: RenewalRig) -> Sequence[str]:
        return [
            await rig.world.account(name=name, directory_url=f"https://{name}.test/directory") for name in ("a", "b")
        ]

    async def test_a_ca_that_hangs_holds_up_its_own_certificates_only(self, rig: RenewalRig) -> None:
        """Ten thousand certificates of a broken CA must not starve one of another."""
        a, b = await self.accounts(rig)
        for number in range(10):
            await rig.add(f"cert_a{number}", account_id=a)
        await rig.add("cert_b", account_id=b)
        rig.issuing.holds = lambda each: each.startswith("cert_a")
        await rig.start()
        rig.clock.advance(61 * 86400)
        await rig.settle()
        assert (await rig.certificate("cert_b")).version == 2
        assert len([each for each in rig.issuing.ordered() if each.startswith("cert_a")]) == 2

    async def test_the_most_urgent_goes_first_when_a_place_is_free(self, rig: RenewalRig) -> None:
        """After a long outage those that expire next cannot wait for the others."""
        a, _ = await self.accounts(rig)
        lifetimes = {0: 90, 1: 80, 2: 70, 3: 66, 4: 64, 5: 63}
        for number, days in lifetimes.items():
            await rig.add(f"cert_{number}", account_id=a, lifetime=days * DAY)
        rig.issuing.holds = lambda _: True
        await rig.start()
        rig.clock.advance(62 * 86400)
        await rig.settle()
        while rig.issuing.resting:
            await rig.issuing.finish(next(iter(rig.issuing.resting)))
            await rig.settle()
        later = [lifetimes[int(each.removeprefix("cert_"))] for each in rig.issuing.ordered()[2:]]
        assert later == sorted(later)
        assert len(set(rig.issuing.ordered())) == 6

    async def test_what_was_done_while_it_waited_is_not_done_again(self, rig: RenewalRig) -> None:
        """A request may have renewed it meanwhile, or a person may have stopped it."""
        a, _ = await self.accounts(rig)
        for number in range(3):
            await rig.add(f"cert_{number}", account_id=a, lifetime=(80 + number) * DAY)
        rig.issuing.holds = lambda _: True
        await rig.start()
        rig.clock.advance(62 * 86400)
        await rig.settle()
        await rig.change("cert_2", is_stopped=True)
        for order_id in list(rig.issuing.resting):
            await rig.issuing.finish(order_id)
        await rig.settle()
        assert rig.issuing.ordered() == ["cert_0", "cert_1"]

    async def test_the_place_is_at_the_ca_that_will_be_asked(self, rig: RenewalRig) -> None:
        """The current version may have come from another CA than the next one is to come from."""
        a, b = await self.accounts(rig)
        for number in range(3):
            terms = Terms(account_id=b, identifiers=(), challenge_type="http-01", key_type="ec-p256")  # type: ignore[arg-type]
            await rig.add(f"cert_{number}", account_id=a, terms=terms)
        await rig.add("cert_a", account_id=a)
        rig.issuing.holds = lambda each: each != "cert_a"
        await rig.start()
        rig.clock.advance(61 * 86400)
        await rig.settle()
        assert "cert_a" in rig.issuing.ordered()
        assert len(rig.issuing.orders) == 3

    async def test_ten_thousand_changes_are_looked_at_a_few_at_a_time(self, rig: RenewalRig) -> None:
        """A burst of looks would hold up every request at the store."""
        for number in range(60):
            await rig.add(f"cert_{number}")
        await rig.start()
        most = 0

        async def after_get(key: str) -> None:
            nonlocal most
            most = max(most, len(rig.tasks()))
            await asyncio.sleep(0)

        rig.world.store.after_get = after_get
        rig.clock.slept.clear()
        for number in range(60):
            rig.renewing.changed(CertificateId(f"cert_{number}"))
        await rig.settle()
        assert 2 <= most <= 16
        assert 0.0 not in rig.clock.slept


class TestTheEnd:
    async def test_each_mark_is_announced_once_and_the_end_is_written_down(self, rig: RenewalRig) -> None:
        """Whoever watches the events hears in time, and nobody is told twice."""
        await rig.add(auto_renew=False)
        await rig.start()
        await rig.forward(100 * DAY)
        events = await rig.world.events()
        assert [(kind, body.get("percent_left")) for kind, body in events] == [
            ("certificate.expiring", 25),
            ("certificate.expiring", 15),
            ("certificate.expiring", 5),
            ("certificate.expired", None),
        ]
        certificate = await rig.certificate()
        assert certificate.status == "expired"
        assert (await rig.world.shown(certificate.order_id)).status == "expired"
        assert rig.renewing.next_look_at is None

    async def test_a_long_downtime_loses_none_of_them(self, rig: RenewalRig) -> None:
        """Each mark is a fact that somebody may count on."""
        await rig.add(auto_renew=False)
        rig.clock.advance(80 * 86400)
        await rig.start()
        assert [body["percent_left"] for _, body in await rig.world.events()] == [25, 15]
        await rig.die()
        rig.clock.advance(30 * 86400)
        await rig.start()
        assert await rig.world.event_types() == ["certificate.expiring"] * 3 + ["certificate.expired"]

    async def test_each_comes_once_whenever_the_daemon_is_killed(self, rig: RenewalRig) -> None:
        """The announcement and how far they have come are one commit."""
        await rig.add(auto_renew=False)
        for _ in range(50):
            rig.clock.advance(2 * 86400)
            await rig.start()
            await rig.die()
        assert await rig.world.event_types() == ["certificate.expiring"] * 3 + ["certificate.expired"]

    async def test_the_last_failure_is_told_with_it(self, rig: RenewalRig) -> None:
        """The announcement of an end that should not come says why it comes."""
        await rig.add()
        rig.issuing.always[ID] = Conflict("the key is compromised")
        await rig.start()
        await rig.forward(68 * DAY)
        kind, body = (await rig.world.events())[-1]
        assert kind == "certificate.expiring"
        assert body["error"]["detail"] == "the key is compromised"
        assert body["attempt"] > 0

    async def test_what_is_revoked_stays_so_when_it_expires(self, rig: RenewalRig) -> None:
        """Revoked says more than expired."""
        await rig.add(auto_renew=False, status="revoked")
        await rig.start()
        await rig.forward(100 * DAY)
        certificate = await rig.certificate()
        assert certificate.status == "revoked"
        assert (await rig.world.shown(certificate.order_id)).status == "valid"

    async def test_an_order_that_says_more_than_valid_keeps_its_word(self, rig: RenewalRig) -> None:
        """Cancelled or revoked stays to be read."""
        certificate = await rig.add(auto_renew=False)
        await rig.world.change(certificate.order_id, status="revoked")
        await rig.start()
        await rig.forward(100 * DAY)
        assert (await rig.world.shown(certificate.order_id)).status == "revoked"
        assert (await rig.certificate()).status == "expired"

    async def test_a_certificate_that_has_lapsed_is_renewed_all_the_same(self, rig: RenewalRig) -> None:
        """The daemon may have been down; late is better than never."""
        await rig.add()
        rig.clock.advance(120 * 86400)
        await rig.start()
        assert (await rig.certificate()).version == 2
        assert (await rig.certificate()).status == "valid"

    async def test_a_version_that_comes_meanwhile_is_not_announced_as_expiring(self, rig: RenewalRig) -> None:
        """The event would call for help that nobody needs."""
        await rig.add(auto_renew=False)
        await rig.start()
        begun = False

        async def before_commit(changes: Sequence[Any]) -> None:
            nonlocal begun
            if not begun:
                begun = True
                rig.issuing.changed = lambda _: None
                await rig.issuing.renew(ID, "request")

        rig.world.store.before_commit = before_commit
        rig.clock.advance(70 * 86400)
        await rig.settle()
        assert await rig.world.event_types() == ["certificate.renewed"]


class TestClocksThatJump:
    async def test_forwards_everything_due_is_done_once(self, rig: RenewalRig) -> None:
        """A laptop that slept, a clock that was wrong at the start."""
        for number in range(40):
            await rig.add(f"cert_{number}")
        await rig.start()
        rig.clock.advance(61 * 86400)
        await rig.settle()
        await rig.forward(DAY)
        assert sorted(rig.issuing.ordered()) == sorted(f"cert_{number}" for number in range(40))

    async def test_back_what_was_put_off_by_the_wrong_clock_is_not_waited_for(self, rig: RenewalRig) -> None:
        """An hour of a wrong year must not put a retry off by a year."""
        await rig.add(lifetime=900 * DAY)
        await rig.start()
        rig.clock.set_to(BEGIN + 700 * DAY)
        rig.issuing.refuses.append(Conflict("not now"))
        rig.renewing.changed(ID)
        await rig.settle()
        await rig.change(not_after=BEGIN + 90 * DAY)
        await rig.settle()
        assert rig.issuing.orders == []
        rig.clock.set_to(BEGIN)
        rig.clock.advance(30)
        await rest_of(rig, lambda: bool(rig.world.said("renewal.clock_set_back")))
        await rig.settle()
        assert rig.issuing.ordered() == [ID]

    async def test_back_the_orders_that_pause_by_the_wrong_clock_go_on(self, rig: RenewalRig) -> None:
        """The order of a certificate that is due would wait for a day that is two days off, and the name lapse."""
        rig.issuing.holds = lambda _: True
        await rig.add()
        await rig.start()
        rig.clock.set_to(BEGIN + 61 * DAY)
        rig.clock.advance(30)
        await rest_of(rig, lambda: bool(rig.issuing.resting))
        (order_id,) = rig.issuing.resting
        rig.clock.set_to(BEGIN + 59 * DAY)
        rig.clock.advance(30)
        await rest_of(rig, lambda: bool(rig.world.said("renewal.clock_set_back")))
        assert rig.issuing.hurried == [order_id]

    async def test_back_a_renewal_far_off_is_not_done_now(self, rig: RenewalRig) -> None:
        """Only pauses begun by the wrong clock are in doubt; the dates of a certificate are its own."""
        await rig.add()
        await rig.start()
        await rig.forward(10 * DAY)
        rig.clock.set_to(BEGIN)
        await rig.forward(50 * DAY)
        assert rig.issuing.orders == []
        await rig.forward(10 * DAY)
        assert rig.issuing.ordered() == [ID]

    async def test_back_while_the_store_is_down_is_not_forgotten(self, rig: RenewalRig) -> None:
        """The look at all certificates is made up for."""
        await rig.add()
        await rig.change(next_try_at=BEGIN + 680 * DAY)
        rig.clock.set_to(BEGIN + 660 * DAY)
        await rig.start()
        assert rig.issuing.orders == []
        rig.world.store.is_down = True
        rig.clock.set_to(BEGIN)
        rig.clock.advance(30)
        await rest_of(rig, lambda: bool(rig.world.said("renewal.store_unavailable")))
        rig.world.store.is_down = False
        rig.clock.advance(5)
        await rest_of(rig, lambda: bool(rig.issuing.orders))
        assert rig.issuing.ordered() == [ID]

    async def test_a_small_correction_is_nothing(self, rig: RenewalRig) -> None:
        """NTP moves the clock all the time."""
        await rig.add()
        await rig.start()
        rig.clock.set_to(BEGIN - timedelta(seconds=45))
        rig.clock.advance(30)
        await turns(200)
        assert rig.world.said("renewal.clock_set_back") == []


class TestStops:
    async def test_a_stop_ends_everything_at_once_and_the_next_life_goes_on(self, rig: RenewalRig) -> None:
        """Nothing is kept in memory that is needed."""
        await rig.add("cert_1")
        await rig.add("cert_2")
        rig.issuing.holds = lambda _: True
        await rig.start()
        rig.clock.advance(61 * 86400)
        await rig.settle()
        await rig.die()
        assert rig.tasks() == []
        rig.issuing.holds = lambda _: False
        for order_id in list(rig.issuing.resting):
            await rig.issuing.finish(order_id)
        await rig.start()
        await rig.forward(DAY)
        assert sorted(rig.issuing.ordered()) == ["cert_1", "cert_2"]
        assert (await rig.certificate("cert_1")).version == 2

    async def test_what_was_asked_for_is_done_by_the_next_life(self, rig: RenewalRig) -> None:
        """A kill between the wish and the order loses nothing."""
        await rig.add(auto_renew=False)
        await rig.renewing.ask_for(ID, "revocation")
        await rig.die()
        await rig.start()
        assert rig.issuing.orders == [(BEGIN, ID, "revocation")]


class TestByRequest:
    async def test_a_request_renews_at_once_and_answers_with_the_order(self, rig: RenewalRig) -> None:
        """Somebody has changed what the certificate is for, or wants to see that renewal works."""
        await rig.add()
        await rig.start()
        rig.issuing.holds = lambda _: True
        reply = await rig.renewing.renew(request(wait_seconds=7), CONTEXT)
        await rig.settle()
        assert reply.status == "pending"
        assert rig.issuing.orders == [(BEGIN, ID, "request")]
        assert rig.issuing.shown_for == [7]
        assert (await rig.renewal()).order_id == reply.order_id

    async def test_the_same_request_again_finds_the_order_and_hurries_it(self, rig: RenewalRig) -> None:
        """Asking twice must not order twice; and it means that somebody has repaired what stood in the way."""
        await rig.add()
        await rig.start()
        rig.issuing.holds = lambda _: True
        first = await rig.renewing.renew(request(), CONTEXT)
        await rig.change(attempt=4, next_try_at=BEGIN + DAY)
        second = await rig.renewing.renew(request(), CONTEXT)
        assert second.order_id == first.order_id
        assert rig.issuing.hurried == [first.order_id]
        assert len(rig.issuing.orders) == 1
        renewal = await rig.renewal()
        assert (renewal.attempt, renewal.next_try_at, renewal.error) == (0, None, None)

    @pytest.mark.parametrize("status", ["valid", "revoked", "expired"])
    async def test_it_works_for_what_is_not_renewed_by_itself(self, rig: RenewalRig, status: str) -> None:
        """A request is a wish of its own."""
        await rig.add(auto_renew=False, status=status)
        await rig.change(is_stopped=True)
        await rig.start()
        await rig.renewing.renew(request(), CONTEXT)
        await rig.settle()
        certificate = await rig.certificate()
        assert (certificate.version, certificate.status) == (2, "valid")
        assert not (await rig.renewal()).is_due

    async def test_what_cannot_be_ordered_is_refused_and_the_wish_taken_back(self, rig: RenewalRig) -> None:
        """The caller has its answer; a renewal later, by itself, would be a surprise."""
        await rig.add(auto_renew=False)
        await rig.change(is_stopped=True, attempt=3, cause="schedule")
        await rig.start()
        before = await rig.renewal()
        rig.issuing.refuses.append(Conflict("the key is compromised"))
        with pytest.raises(Conflict, match="compromised"):
            await rig.renewing.renew(request(), CONTEXT)
        await rig.settle()
        assert await rig.renewal() == before
        assert rig.issuing.orders == []

    async def test_an_order_that_somebody_else_made_meanwhile_is_not_taken_back(self, rig: RenewalRig) -> None:
        """The refusal came too late to be true."""
        await rig.add()
        await rig.start()

        async def before_order() -> None:
            await rig.change(order_id="acme_order_other")

        rig.issuing.before_order = before_order
        rig.issuing.refuses.append(Conflict("no"))
        with pytest.raises(Conflict):
            await rig.renewing.renew(request(), CONTEXT)
        renewal = await rig.renewal()
        assert (renewal.order_id, renewal.is_due) == ("acme_order_other", True)

    async def test_a_store_that_fails_then_is_the_answer(self, rig: RenewalRig) -> None:
        """Taking the wish back fails too; the error that counts is the first, and the room sees to the wish."""
        await rig.add(auto_renew=False)
        await rig.start()

        async def before_order() -> None:
            rig.world.store.is_down = True

        rig.issuing.before_order = before_order
        rig.issuing.refuses.append(StorageUnavailable("the first"))
        with pytest.raises(StorageUnavailable, match="the first"):
            await rig.renewing.renew(request(), CONTEXT)
        rig.issuing.before_order = None
        await rest_of(rig, lambda: bool(rig.world.said("renewal.store_unavailable")))
        rig.world.store.is_down = False
        rig.clock.advance(5)
        await rig.settle()
        assert rig.issuing.ordered() == [ID]

    @pytest.mark.parametrize("certificate_id", ["cert_none", "../etc", "x" * 500])
    async def test_a_certificate_that_is_not_there_is_not_found(self, rig: RenewalRig, certificate_id: str) -> None:
        """Ids come from callers."""
        with pytest.raises(NotFound):
            await rig.renewing.renew(request(id=certificate_id), CONTEXT)
        with pytest.raises(NotFound):
            await rig.renewing.ask_for(CertificateId(certificate_id), "bulk")

    async def test_asking_returns_before_the_order_and_the_room_makes_it(self, rig: RenewalRig) -> None:
        """Thousands may be asked for at once, and each waits for its place."""
        await rig.add(auto_renew=False)
        await rig.start()
        await rig.renewing.ask_for(ID, "bulk", BulkRenewalId("bulk_1"))
        assert rig.issuing.orders == []
        await rig.settle()
        assert rig.issuing.orders == [(BEGIN, ID, "bulk")]
        assert rig.issuing.bulk_ids == ["bulk_1"]

    async def test_asking_while_an_order_is_under_way_changes_nothing(self, rig: RenewalRig) -> None:
        """The next version is being made already."""
        await rig.add()
        rig.issuing.holds = lambda _: True
        await rig.start()
        await rig.renewing.renew(request(), CONTEXT)
        before = await rig.renewal()
        await rig.renewing.ask_for(ID, "bulk", BulkRenewalId("bulk_1"))
        await rig.settle()
        assert await rig.renewal() == before

    async def test_a_request_that_failed_later_is_tried_again_as_one(self, rig: RenewalRig) -> None:
        """Its cause is told in the events of its end."""
        await rig.add(auto_renew=False)
        await rig.start()
        await rig.renewing.ask_for(ID, "update")
        rig.issuing.refuses.append(Conflict("not yet"))
        await rig.settle()
        assert rig.issuing.orders == []
        await rig.forward(DAY / 4)
        assert [(each, cause) for _, each, cause in rig.issuing.orders] == [(ID, "update")]

    async def test_a_change_by_others_at_the_same_time_is_kept(self, rig: RenewalRig) -> None:
        """The document is written by many."""
        await rig.add()
        changed = False

        async def before_commit(changes: Sequence[Any]) -> None:
            nonlocal changed
            if not changed:
                changed = True
                await rig.change(polls_failed=3)

        rig.world.store.before_commit = before_commit
        await rig.renewing.ask_for(ID, "request")
        renewal = await rig.renewal()
        assert (renewal.is_due, renewal.polls_failed) == (True, 3)


async def turns(count: int = 50) -> None:
    """Let the others run for a while."""
    for _ in range(count):
        await asyncio.sleep(0)


async def said(rig: RenewalRig, event: str, count: int) -> None:
    """Wait until that was logged so often."""
    await rest_of(rig, lambda: len(rig.world.said(event)) == count)


async def rest_of(rig: RenewalRig, reached: Callable[[], bool]) -> None:
    """Let the others run until something holds."""
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - the tasks get there by themselves
            await asyncio.sleep(0)
