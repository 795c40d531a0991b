"""ARI: asked when the CA says, believed as far as it makes sense, and never a reason to renew without end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.model.errors import BackendRateLimited, CaMisbehaved, CaUnavailable
from scaivaultd.model.ids import AccountId, CertificateId
from scaivaultd.model.resources import Renewal, RenewalPoint, RenewalWindow
from scaivaultd.services.documents import ACCOUNTS, RENEWALS
from scaivaultd.services.renewal_polls import Reading, read
from tests.fakes.renewals import RenewalRig, SteppedClock, rig_over
from tests.fakes.scripted_ca import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
ID = CertificateId("cert_1")


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def rig(make_world: Callable[..., Any], clock: SteppedClock) -> AsyncIterator[RenewalRig]:
    async with rig_over(make_world, clock) as rig:
        yield rig


async def begun(rig: RenewalRig, **changes: Any) -> None:
    """One certificate with ARI, and the room looks after it."""
    await rig.add(account_id=await rig.world.account(), has_ari=True, **changes)
    await rig.start()


def days(start: float, end: float) -> Callable[[str], tuple[datetime, datetime]]:
    return lambda _: (BEGIN + start * DAY, BEGIN + end * DAY)


def just_past(rig: RenewalRig) -> Callable[[str], tuple[datetime, datetime]]:
    """What Let's Encrypt says of a revoked certificate, whenever it is asked."""
    return lambda _: (rig.clock.now() - HOUR, rig.clock.now() - HOUR / 2)


class TestTheWindow:
    async def test_it_is_asked_for_at_once_and_its_random_point_is_kept_and_kept_to(self, rig: RenewalRig) -> None:
        """One draw for one window; another draw at each poll would crowd renewals at its start."""
        rig.ari.window = days(50, 55)
        await begun(rig)
        point = (await rig.renewal()).point
        assert point is not None
        assert BEGIN + 50 * DAY <= point.moment < BEGIN + 55 * DAY
        await rig.forward(40 * DAY)
        assert (await rig.renewal()).point == point
        rig.ari.window = lambda ari_id: days(50, 55)(ari_id) if ari_id.endswith(".1") else days(100, 105)(ari_id)
        await rig.forward(15 * DAY)
        assert rig.issuing.orders == [(point.moment, ID, "ari")]

    async def test_its_point_survives_a_restart(self, rig: RenewalRig) -> None:
        """Else a daemon that restarts often would renew early."""
        rig.ari.window = days(50, 55)
        await begun(rig)
        point = (await rig.renewal()).point
        for _ in range(3):
            await rig.die()
            rig.clock.advance(86400)
            await rig.start()
        assert (await rig.renewal()).point == point

    async def test_a_window_that_moves_takes_the_moment_with_it(self, rig: RenewalRig) -> None:
        """A CA brings renewals forward before an incident, and spreads them when it is busy."""
        rig.ari.window = days(50, 55)
        await begun(rig)
        for start in (20, 52):
            rig.ari.window = days(start, start + 2)
            rig.ari.explanation_url = f"https://ca.test/{start}"
            await rig.forward(DAY)
            renewal = await rig.renewal()
            assert renewal.point is not None
            assert BEGIN + start * DAY <= renewal.point.moment < BEGIN + (start + 2) * DAY
            assert renewal.explanation_url == f"https://ca.test/{start}"
        told = rig.world.said("renewal.window_changed")
        assert [each["explanation_url"] for each in told] == ["https://ca.test/20", "https://ca.test/52"]
        assert told[0]["log_level"] == "info"

    async def test_a_window_far_too_late_is_not_waited_for(self, rig: RenewalRig) -> None:
        """A CA may suggest, and never make us late."""
        rig.ari.window = days(89, 89.9)
        await begun(rig)
        await rig.forward(76 * DAY)
        assert (await rig.certificate()).version == 2
        assert rig.issuing.orders[0][2] == "schedule"

    async def test_each_version_is_asked_about_by_its_own_name(self, rig: RenewalRig) -> None:
        """And nobody asks about one that has a successor (RFC 9773 section 4.3)."""
        rig.ari.window = days(5, 6)
        await begun(rig)
        rig.ari.window = lambda ari_id: days(5, 6)(ari_id) if ari_id.endswith(".1") else days(60, 61)(ari_id)
        await rig.forward(10 * DAY)
        names = [ari_id for _, ari_id in rig.ari.asked]
        assert names == sorted(names)
        assert set(names) == {"cert_1.1", "cert_1.2"}

    async def test_a_version_that_comes_while_the_ca_answers_is_not_given_the_answer(self, rig: RenewalRig) -> None:
        """The window was about the one before."""
        rig.ari.window = lambda ari_id: days(50, 55)(ari_id) if ari_id.endswith(".1") else days(60, 61)(ari_id)

        async def renewed() -> None:
            await rig.issuing.renew(ID, "request")

        rig.ari.instead.append(renewed)
        await begun(rig)
        renewal = await rig.renewal()
        assert renewal.point is not None
        assert (renewal.version, renewal.point.window.start) == (2, BEGIN + 60 * DAY)


class TestThePace:
    @pytest.mark.parametrize(
        ("retry_after", "pause"), [(7200, 7200), (5, 60), (10 * 86400, 86400), (60, 60), (86400, 86400)]
    )
    async def test_the_ca_is_asked_again_exactly_when_it_says_within_reason(
        self, rig: RenewalRig, retry_after: float, pause: float
    ) -> None:
        """Retry-After is the soonest and the latest time at once (RFC 9773 section 4.3.2)."""
        rig.ari.window, rig.ari.retry_after = days(50, 55), retry_after
        await begun(rig)
        await rig.forward(timedelta(seconds=2.5 * pause))
        moments = [(at - BEGIN).total_seconds() for at, _ in rig.ari.asked]
        assert moments == pytest.approx([0, pause, 2 * pause], abs=0.01)

    async def test_the_pace_survives_a_restart(self, rig: RenewalRig) -> None:
        """A daemon in a restart loop must not ask for a hundred thousand windows each time."""
        rig.ari.window = days(50, 55)
        await begun(rig)
        for _ in range(5):
            await rig.die()
            await rig.start()
        assert len(rig.ari.asked) == 1

    async def test_failures_that_may_pass_get_a_few_quick_tries(self, rig: RenewalRig) -> None:
        """Then the pace for lasting ones (RFC 9773 section 4.3.3)."""
        rig.ari.window = days(50, 55)
        rig.ari.instead.extend([CaUnavailable("503")] * 5)
        await begun(rig)
        assert (await rig.renewal()).polls_failed == 1
        await rig.forward(14 * HOUR)
        pauses = [(later - earlier) for (earlier, _), (later, _) in pairwise(rig.ari.asked)]
        assert MINUTE <= pauses[0] <= 1.25 * MINUTE
        assert 5 * MINUTE <= pauses[1] <= 6.25 * MINUTE
        assert 15 * MINUTE <= pauses[2] <= 18.75 * MINUTE
        assert 6 * HOUR <= pauses[3] <= 6.6 * HOUR
        assert (await rig.renewal()).polls_failed == 0

    @pytest.mark.parametrize(
        "error", [refused("malformed", 404, "unknown certificate"), CaMisbehaved("no JSON")], ids=["404", "nonsense"]
    )
    async def test_failures_that_last_are_looked_at_in_hours(self, rig: RenewalRig, error: Exception) -> None:
        """A CA that does not know the certificate will not know it in a minute."""
        rig.ari.window = days(50, 55)
        rig.ari.instead.append(error)
        await begun(rig)
        await rig.forward(7 * HOUR)
        assert 6 * HOUR <= rig.ari.asked[1][0] - rig.ari.asked[0][0] <= 6.6 * HOUR
        (told,) = rig.world.said("renewal.window_unknown")
        assert told["code"] == "ca_error"

    async def test_an_outage_is_two_lines_however_many_certificates_there_are(self, rig: RenewalRig) -> None:
        """Ten thousand warnings are none."""
        rig.ari.window = days(50, 55)
        account_id = await rig.world.account()
        for number in range(30):
            await rig.add(f"cert_{number}", account_id=account_id, has_ari=True)
        rig.ari.instead.extend([CaUnavailable("503")] * 60)
        await rig.start()
        await rig.forward(7 * HOUR)
        said = rig.world.said("renewal.window_unknown")
        assert [each["log_level"] for each in said] == ["warning", *["debug"] * 59]
        (end,) = rig.world.said("renewal.windows_known_again")
        assert (end["log_level"], end["directory_url"]) == ("info", said[0]["directory_url"])

    async def test_who_never_failed_does_not_end_an_outage(self, rig: RenewalRig) -> None:
        """A CA that does not know one certificate and knows all others would be told about at each look."""
        rig.ari.window = days(50, 55)
        account_id = await rig.world.account()
        await rig.add("cert_0", account_id=account_id, has_ari=True)
        rig.ari.instead.append(refused("malformed", 404, "unknown certificate"))
        await rig.start()
        await rig.add("cert_1", account_id=account_id, has_ari=True)
        rig.renewing.changed(CertificateId("cert_1"))
        await rig.settle()
        assert (await rig.renewal("cert_1")).point is not None
        assert rig.world.said("renewal.windows_known_again") == []
        await rig.forward(7 * HOUR)
        assert len(rig.world.said("renewal.windows_known_again")) == 1

    async def test_polls_are_begun_at_most_fifty_a_second(self, rig: RenewalRig) -> None:
        """After a downtime ten thousand are due at once, and a fast CA would be asked hundreds of times a second."""
        rig.ari.window = days(50, 55)
        account_id = await rig.world.account()
        for number in range(120):
            await rig.add(f"cert_{number}", account_id=account_id, has_ari=True)
        await rig.start()
        asked = [len(rig.ari.asked)]
        for _ in range(3):
            rig.clock.advance(1)
            await rig.settle()
            asked.append(len(rig.ari.asked))
        assert asked == [50, 100, 120, 120]

    async def test_while_a_ca_does_not_answer_the_local_rule_decides(self, rig: RenewalRig) -> None:
        """ARI is help; without it certificates are renewed all the same."""
        rig.ari.instead.extend([CaUnavailable("503")] * 1000)
        await begun(rig)
        await rig.forward(61 * DAY)
        assert [cause for _, _, cause in rig.issuing.orders] == ["schedule"]

    async def test_a_ca_without_ari_is_found_out_once_for_all_its_certificates(self, rig: RenewalRig) -> None:
        """Nothing is written down for it, and a day later it may have learnt it."""
        account_id = await rig.world.account()
        for number in range(30):
            await rig.add(f"cert_{number}", account_id=account_id, has_ari=True)
        written: list[str] = []

        async def before_commit(changes: Any) -> None:
            written.extend(each.key for each in changes if each.key.startswith(RENEWALS.key("")))

        rig.world.store.before_commit = before_commit
        await rig.start()
        assert rig.ari.looked <= 9  # eight at once, and the registration
        assert written == []
        looked = rig.ari.looked
        await rig.forward(23 * HOUR)
        assert rig.ari.looked == looked
        rig.ari.window = days(50, 55)
        await rig.forward(2 * HOUR)
        assert all([(await rig.renewal(f"cert_{number}")).point for number in range(30)])

    @pytest.mark.parametrize(
        ("error", "minutes"),
        [
            (BackendRateLimited("slow down", retry_after=3600), 60),
            (BackendRateLimited("slow down"), 1),
            (BackendRateLimited("never again", retry_after=1e9), 24 * 60),
            (CaUnavailable("503", 3600), 60),
        ],
    )
    async def test_a_ca_that_asks_to_be_left_alone_is_asked_about_no_certificate(
        self, rig: RenewalRig, error: Exception, minutes: int
    ) -> None:
        """After a downtime ten thousand are due at once; what it says of one counts for all."""
        rig.ari.window = days(50, 55)
        rig.ari.instead.extend([error] * 8)
        account_id = await rig.world.account()
        for number in range(30):
            await rig.add(f"cert_{number}", account_id=account_id, has_ari=True)
        await rig.start()
        assert len(rig.ari.asked) <= 8
        asked = len(rig.ari.asked)
        await rig.forward(0.9 * minutes * MINUTE)
        assert len(rig.ari.asked) == asked
        await rig.forward(minutes * MINUTE)
        assert all([(await rig.renewal(f"cert_{number}")).point for number in range(30)])

    async def test_a_short_life_looks_for_ari_more_often(self, rig: RenewalRig) -> None:
        """A tenth of the lifetime, as for every other failure."""
        await begun(rig, lifetime=10 * HOUR)
        looked = rig.ari.looked
        await rig.forward(HOUR + MINUTE)
        assert rig.ari.looked == looked + 1

    async def test_a_kill_over_the_answer_does_not_ask_again_the_next_moment(self, rig: RenewalRig) -> None:
        """The CA has said when; that the answer was lost is not its fault (RFC 9773 section 4.3)."""
        rig.ari.window = days(50, 55)
        rig.ari.hangs = lambda _: True
        await begun(rig)
        assert len(rig.ari.asked) == 1
        await rig.die()
        rig.ari.hangs = lambda _: False
        await rig.start()
        await rig.forward(timedelta(seconds=59))
        assert len(rig.ari.asked) == 1
        await rig.forward(timedelta(seconds=2))
        assert len(rig.ari.asked) == 2

    async def test_what_has_expired_or_is_stopped_is_not_asked_about(self, rig: RenewalRig) -> None:
        """Clients must stop at some point (RFC 9773 section 4.3)."""
        rig.ari.window = days(50, 55)
        await begun(rig, auto_renew=False)
        await rig.forward(100 * DAY)
        assert rig.ari.asked[-1][0] < BEGIN + 90 * DAY
        assert (await rig.renewal()).poll_at is None
        assert rig.renewing.next_look_at is None

    async def test_what_expired_in_a_downtime_is_not_asked_about(self, rig: RenewalRig) -> None:
        """The first thing to notice is that it is over."""
        rig.ari.window = days(50, 55)
        await rig.add(account_id=await rig.world.account(), has_ari=True, auto_renew=False)
        rig.clock.advance(91 * 86400)
        await rig.start()
        assert rig.ari.asked == []

    @pytest.mark.parametrize("stopped", [True, False])
    async def test_what_was_revoked_by_us_is_not_asked_about(self, rig: RenewalRig, stopped: bool) -> None:
        """Nor while its replacement is made."""
        rig.ari.window = days(50, 55)
        await rig.add(account_id=await rig.world.account(), has_ari=True, status="valid" if stopped else "revoked")
        await rig.change(is_stopped=stopped)
        await rig.start()
        await rig.forward(5 * DAY)
        assert rig.ari.asked == []

    async def test_what_was_put_off_while_it_waited_is_not_asked_about(self, rig: RenewalRig) -> None:
        """The document counts as it is when its turn comes."""
        rig.ari.window = days(50, 55)
        account_id = await rig.world.account()
        await rig.add(account_id=account_id, has_ari=True)
        put_off = False

        async def after_get(key: str) -> None:
            nonlocal put_off
            if key == ACCOUNTS.key(account_id) and not put_off:
                put_off = True
                await rig.change(poll_at=BEGIN + HOUR)

        rig.world.store.after_get = after_get
        await rig.start()
        assert (put_off, rig.ari.asked) == (True, [])

    async def test_what_has_no_name_for_ari_is_not_asked_about(self, rig: RenewalRig) -> None:
        """Whatever its document says."""
        await rig.add(account_id=await rig.world.account())
        await rig.change(poll_at=BEGIN)
        await rig.start()
        assert rig.ari.asked == []

    async def test_a_deactivated_account_does_not_matter(self, rig: RenewalRig) -> None:
        """The request is not signed."""
        rig.ari.window = days(50, 55)
        account_id = await rig.world.account()
        account = await rig.world.read(ACCOUNTS, account_id)
        await rig.world.sqlite.commit(
            [ACCOUNTS.put(msgspec.structs.replace(account.value, status="deactivated"), account.revision)]
        )
        await rig.add(account_id=account_id, has_ari=True)
        await rig.start()
        assert len(rig.ari.asked) == 1

    async def test_an_account_that_is_gone_does_no_harm(self, rig: RenewalRig) -> None:
        """The certificate is renewed by the local rule."""
        await rig.add(account_id=AccountId("acme_gone"), has_ari=True)
        await rig.start()
        await rig.forward(61 * DAY)
        assert rig.issuing.ordered() == [ID]

    async def test_a_certificate_of_a_minute_is_asked_about_once(self, rig: RenewalRig) -> None:
        """A minute is the least pause, and then it is over."""
        rig.ari.window = lambda _: (rig.clock.now() + timedelta(seconds=40), rig.clock.now() + timedelta(seconds=42))
        rig.ari.retry_after = 6
        await begun(rig, lifetime=timedelta(seconds=60))
        first = (await rig.renewal()).point
        assert first is not None
        await rig.forward(timedelta(seconds=50))
        assert rig.issuing.orders == [(first.moment, ID, "ari")]
        assert [name for _, name in rig.ari.asked] == ["cert_1.1", "cert_1.2"]

    async def test_a_ca_that_hangs_is_asked_about_eight_certificates_and_holds_up_no_other(
        self, rig: RenewalRig
    ) -> None:
        """Nor the announcements and renewals of its own."""
        a, b = [await rig.world.account(name=each, directory_url=f"https://{each}.test/directory") for each in "ab"]
        rig.ari.window = days(50, 55)
        rig.ari.hangs = lambda ari_id: ari_id.startswith("cert_a")
        for number in range(20):
            await rig.add(f"cert_a{number}", account_id=a, has_ari=True)
        await rig.add("cert_b", account_id=b, has_ari=True)
        await rig.start()
        assert sorted(name for _, name in rig.ari.asked)[-1] == "cert_b.1"
        assert len(rig.ari.asked) == 9
        await rig.change("cert_a0", is_due=True)
        await rig.settle()
        assert rig.issuing.ordered() == ["cert_a0"]

    async def test_a_clock_that_was_wrong_does_not_put_the_next_look_off(self, rig: RenewalRig) -> None:
        """No pause is longer than a day."""
        rig.ari.window = days(800, 810)
        await begun(rig, lifetime=1000 * DAY)
        rig.clock.set_to(BEGIN + 300 * DAY)
        rig.renewing.changed(ID)
        await rig.settle()
        asked = len(rig.ari.asked)
        rig.clock.set_to(BEGIN)
        rig.clock.advance(30)
        await rig.settle()
        assert len(rig.ari.asked) == asked + 1


class TestRevokedOutside:
    async def test_a_window_moved_into_the_past_says_so_and_it_is_renewed_at_once(self, rig: RenewalRig) -> None:
        """Somebody had it revoked with its key, or the CA has to; minutes count."""
        rig.ari.window = days(50, 55)
        await begun(rig)
        rig.ari.window = lambda ari_id: just_past(rig)(ari_id) if ari_id.endswith(".1") else days(50, 55)(ari_id)
        await rig.forward(7 * HOUR)
        assert await rig.world.event_types() == ["account.created", "certificate.revoked", "certificate.renewed"]
        _, body = (await rig.world.events())[1]
        assert (body["origin"], body["version"], body["is_current"]) == ("outside", 1, True)
        assert len(rig.issuing.orders) == 1
        at, _, cause = rig.issuing.orders[0]
        assert cause == "ari"
        assert at - BEGIN == 6 * HOUR
        assert len(rig.world.said("certificate.revoked_outside")) == 1

    async def test_it_is_written_down_with_its_order_and_told_once(self, rig: RenewalRig) -> None:
        """Whoever looks at the certificate must see it."""
        rig.ari.window = days(50, 55)
        await begun(rig, auto_renew=False)
        rig.ari.window = just_past(rig)
        await rig.forward(3 * DAY)
        await rig.die()
        await rig.start()
        await rig.forward(3 * DAY)
        certificate = await rig.certificate()
        assert certificate.status == "revoked"
        assert certificate.revocation is not None
        assert certificate.revocation.origin == "outside"
        assert (await rig.world.shown(certificate.order_id)).status == "revoked"
        assert (await rig.world.event_types()).count("certificate.revoked") == 1
        assert (await rig.renewal()).poll_at is None
        assert rig.issuing.orders == []

    async def test_a_failed_replacement_is_tried_again_and_the_revocation_told_once(self, rig: RenewalRig) -> None:
        """A revoked certificate stays due."""
        rig.ari.window = days(50, 55)
        await begun(rig)
        rig.ari.window = lambda ari_id: just_past(rig)(ari_id) if ari_id.endswith(".1") else days(50, 55)(ari_id)
        rig.issuing.refuses.append(CaUnavailable("503"))
        await rig.forward(8 * HOUR)
        assert (await rig.world.event_types()).count("certificate.revoked") == 1
        assert (await rig.certificate()).version == 2

    async def test_a_window_that_time_has_passed_is_no_revocation(self, rig: RenewalRig) -> None:
        """A certificate that is not renewed outlives its window."""
        rig.ari.window = days(50, 55)
        await begun(rig, auto_renew=False)
        await rig.forward(80 * DAY)
        assert (await rig.certificate()).status == "valid"
        assert "certificate.revoked" not in await rig.world.event_types()

    async def test_the_first_answer_after_a_long_downtime_is_no_revocation(self, rig: RenewalRig) -> None:
        """A usual window has passed by then: it is renewed, and nobody is told a falsehood."""
        rig.ari.window = lambda ari_id: days(58, 60)(ari_id) if ari_id.endswith(".1") else days(150, 155)(ari_id)
        await rig.add(account_id=await rig.world.account(), has_ari=True)
        rig.clock.advance(80 * 86400)
        await rig.start()
        assert (await rig.certificate()).version == 2
        assert "certificate.revoked" not in await rig.world.event_types()

    async def test_a_ca_whose_windows_are_always_past_has_little_renewed_too_early(self, rig: RenewalRig) -> None:
        """Each time it is believed half as soon; a naive client would renew without end."""
        rig.ari.window = just_past(rig)
        await begun(rig)
        assert rig.issuing.orders == []
        assert len(rig.world.said("renewal.window_in_the_past")) == 1
        await rig.forward(200 * DAY)
        ages = [0.0, *((at - BEGIN) / DAY for at, _, _ in rig.issuing.orders)]
        pauses = [later - earlier for earlier, later in pairwise(ages)]
        assert pauses[0] == pytest.approx(1.8, abs=0.5)
        assert all(pause > 1.7 * before for before, pause in pairwise(pauses[:5]))
        assert len(pauses) <= 10

    async def test_a_ca_whose_windows_are_always_past_lets_a_certificate_of_a_minute_live(
        self, rig: RenewalRig
    ) -> None:
        """A fiftieth of a minute is no time; a minute is the least."""
        rig.ari.window, rig.ari.retry_after = just_past(rig), 1
        await begun(rig, lifetime=timedelta(seconds=60))
        await rig.forward(timedelta(minutes=5))
        assert 9 <= len(rig.issuing.orders) <= 11


def window(start: float, end: float) -> RenewalWindow:
    return RenewalWindow(start=BEGIN + start * DAY, end=BEGIN + end * DAY)


@pytest.mark.parametrize(
    ("before", "said", "at_day", "hurried", "expected"),
    [
        (None, window(60, 62), 0, 0, "open"),
        (None, window(9, 11), 10, 0, "open"),
        (None, window(9, 9.5), 10, 0, "revoked"),
        (None, window(9, 10), 10, 0, "revoked"),
        (None, window(0.5, 0.6), 1, 0, "nonsense"),
        (None, window(1.7, 1.75), 1.8, 0, "nonsense"),
        (None, window(1.7, 1.75), 1.81, 0, "revoked"),
        (None, window(3, 3.1), 3.5, 1, "nonsense"),
        (None, window(3, 3.1), 3.7, 1, "revoked"),
        (None, window(3, 3.1), 40, 400, "nonsense"),
        (None, window(58, 59), 70, 0, "open"),
        (window(50, 55), window(0.1, 0.2), 0.5, 0, "revoked"),
        (window(50, 55), window(0.1, 0.2), 0.5, 400, "revoked"),
        (window(50, 55), window(50, 55), 70, 0, "open"),
        (window(50, 55), window(70, 71), 72, 0, "open"),
        (window(0.1, 0.2), window(0.1, 0.2), 0.5, 0, "open"),
        (window(1, 2), window(2, 2.5), 10, 0, "revoked"),
    ],
)
def test_what_a_window_says(
    before: RenewalWindow | None, said: RenewalWindow, at_day: float, hurried: int, expected: Reading
) -> None:
    """By the one before it, the age of the version, and how often the CA has cried before; issued for 90 days."""
    renewal = Renewal(
        certificate_id=ID,
        account_id=AccountId("acme_1"),
        version=1,
        not_before=BEGIN,
        not_after=BEGIN + 90 * DAY,
        auto_renew=True,
        looked_at=BEGIN,
        fraction=0.0,
        hurried=hurried,
        point=None if before is None else RenewalPoint(window=before, moment=before.start),
    )
    assert read(renewal, said, issued_at=BEGIN, now=BEGIN + at_day * DAY) == expected


async def test_a_version_is_new_from_when_it_was_issued(rig: RenewalRig) -> None:
    """CAs date certificates back by an hour or more, longer than a short life counts as new."""
    rig.ari.window = just_past(rig)
    now = rig.clock.now()
    await begun(rig, lifetime=5 * HOUR, not_before=now - HOUR, not_after=now + 4 * HOUR)
    assert (await rig.certificate()).status == "valid"
    assert rig.issuing.orders == []
