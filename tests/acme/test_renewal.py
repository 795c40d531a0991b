"""The moment of renewal, the pace after failures, who is at fault, and the announcements of the end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaivaultd.acme.causes import Cause, cause_of, cause_of_trouble
from scaivaultd.acme.renewal import (
    ExpiryNotice,
    expiry_notices,
    next_attempt,
    next_notice,
    notices_due,
    renewal_moment,
)
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    CertificatePending,
    ChallengeFailed,
    Conflict,
    DnsError,
    DnsPropagationTimeout,
    DnsProviderError,
    Internal,
    InvalidRequest,
    Problem,
    ScaivaultError,
    SecretNotFound,
    Standby,
    StorageUnavailable,
    Timeout,
)
from scaivaultd.model.resources import FailureKind, IdentifierTrouble, Trouble

START = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
YEAR = 365 * DAY
ALMOST_ONE = 1 - 2**-53
URN = "urn:ietf:params:acme:error:"

fractions = st.floats(min_value=0, max_value=1, exclude_max=True)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - bounds
lifetimes = st.timedeltas(SECOND, 10 * YEAR) | st.timedeltas(SECOND, 20 * DAY) | st.timedeltas(SECOND, HOUR)
kinds: st.SearchStrategy[FailureKind] = st.sampled_from(["transient", "permanent"])


def moment_in(
    lifetime: timedelta,
    *,
    point: timedelta | None = None,
    renew_before: timedelta | None = None,
    fraction: float = 0.0,
) -> timedelta:
    """The renewal moment as time from the start of the certificate's life."""
    moment = renewal_moment(
        START,
        START + lifetime,
        window_point=None if point is None else START + point,
        renew_before=renew_before,
        fraction=fraction,
    )
    return moment - START


def pause_after(
    failures: int,
    kind: FailureKind = "transient",
    *,
    lifetime: timedelta = 90 * DAY,
    left: timedelta = 30 * DAY,
    retry_in: timedelta | None = None,
    fraction: float = 0.0,
) -> timedelta:
    """How long the next attempt is away."""
    attempt = next_attempt(
        failures,
        kind,
        retry_at=None if retry_in is None else START + retry_in,
        not_after=START + left,
        lifetime=lifetime,
        now=START,
        fraction=fraction,
    )
    return attempt - START


@pytest.mark.parametrize(
    ("lifetime", "left"),
    [
        (90 * DAY, 30 * DAY),
        (45 * DAY, 15 * DAY),
        (10 * DAY, 10 * DAY / 3),
        (10 * DAY - SECOND, (10 * DAY - SECOND) / 2),
        (160 * HOUR, 80 * HOUR),
        (HOUR, 30 * MINUTE),
        (60 * SECOND, 30 * SECOND),
        (10 * YEAR, 10 * YEAR / 3),
    ],
)
def test_without_ari_a_share_of_the_actual_lifetime_is_kept_in_hand(lifetime: timedelta, left: timedelta) -> None:
    """A fixed number of days would never renew short certificates, or all the time."""
    assert lifetime - moment_in(lifetime) == left
    assert left < lifetime - moment_in(lifetime, fraction=ALMOST_ONE) <= left * 1.05


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (10 * DAY, 10 * DAY),
        (62 * DAY, 62 * DAY),
        (75 * DAY, 75 * DAY),
        (timedelta(0), timedelta(0)),
        (-5 * DAY, timedelta(0)),
        (76 * DAY, 75 * DAY),
        (90 * DAY, 75 * DAY),
        (400 * DAY, 75 * DAY),
    ],
)
def test_the_cas_point_counts_but_not_into_the_last_sixth(point: timedelta, expected: timedelta) -> None:
    """A CA may move renewal as it likes; a window at the very end would leave no time for a second try."""
    assert moment_in(90 * DAY, point=point) == expected


def test_a_point_of_the_ca_gets_no_jitter_of_ours_and_the_limit_does() -> None:
    """The point is drawn by chance already; at the limit a whole fleet with one bad window would meet."""
    assert moment_in(60 * SECOND, point=40 * SECOND, fraction=0.9) == 40 * SECOND
    assert moment_in(60 * SECOND, point=50 * SECOND, fraction=0.9) == 50 * SECOND
    assert 49 * SECOND < moment_in(60 * SECOND, point=59 * SECOND, fraction=0.9) < 50 * SECOND


@pytest.mark.parametrize(
    ("lifetime", "renew_before", "point", "expected"),
    [
        (90 * DAY, 10 * DAY, None, 80 * DAY),
        (90 * DAY, 60 * DAY, None, 30 * DAY),
        (60 * SECOND, 5 * SECOND, None, 55 * SECOND),
        (90 * DAY, 60 * DAY, 62 * DAY, 30 * DAY),
        (90 * DAY, 10 * DAY, 89 * DAY, 80 * DAY),
        (90 * DAY, 10 * DAY, DAY, DAY),
        (6 * DAY, 30 * DAY, None, 3 * DAY),
        (6 * DAY, 6 * DAY, None, 3 * DAY),
        (6 * DAY, 30 * DAY, 2 * DAY, 2 * DAY),
    ],
)
def test_renew_before_overrides_but_hears_a_revocation_and_never_loops(
    lifetime: timedelta, renew_before: timedelta, point: timedelta | None, expected: timedelta
) -> None:
    """Thirty days on a certificate of six would order a new one the moment it has come."""
    assert moment_in(lifetime, renew_before=renew_before, point=point) == expected


@given(
    start=moments,
    lifetime=lifetimes,
    point=st.none() | moments,
    renew_before=st.none() | st.timedeltas(-YEAR, 10 * YEAR),
    fraction=fractions,
)
def test_the_moment_lies_within_the_life(
    start: datetime, lifetime: timedelta, point: datetime | None, renew_before: timedelta | None, fraction: float
) -> None:
    """Before its life there is nothing to renew, after it there is nothing left to save."""
    moment = renewal_moment(start, start + lifetime, window_point=point, renew_before=renew_before, fraction=fraction)
    assert start <= moment <= start + lifetime


@given(start=moments, lifetime=lifetimes, point=st.none() | moments, fraction=fractions)
def test_a_sixth_of_the_life_is_always_left_for_more_tries(
    start: datetime, lifetime: timedelta, point: datetime | None, fraction: float
) -> None:
    """Whatever a CA says, its outage of some hours must not be the end of a certificate of months."""
    moment = renewal_moment(start, start + lifetime, window_point=point, renew_before=None, fraction=fraction)
    assert start + lifetime - moment >= lifetime / 6 - timedelta(microseconds=1)


@given(first=lifetimes, second=lifetimes, fraction=fractions)
def test_a_longer_life_is_not_renewed_earlier(first: timedelta, second: timedelta, fraction: float) -> None:
    """The step at ten days must not turn the order of two certificates around."""
    shorter, longer = sorted((first, second))
    assert moment_in(shorter, fraction=fraction) <= moment_in(longer, fraction=fraction)


@pytest.mark.parametrize(
    ("failures", "pause"),
    [
        (0, MINUTE),
        (1, MINUTE),
        (2, 10 * MINUTE),
        (3, HOUR),
        (4, 3 * HOUR),
        (5, 6 * HOUR),
        (6, 6 * HOUR),
        (100_000, 6 * HOUR),
    ],
)
def test_failures_are_followed_by_longer_and_longer_pauses(failures: int, pause: timedelta) -> None:
    """A passing fault is over in a minute; what lasts must not cost a CA more than four tries a day."""
    assert pause_after(failures) == pause
    assert 0.79 * pause < pause_after(failures, fraction=ALMOST_ONE) < pause


@pytest.mark.parametrize("lifetime", [60 * SECOND, HOUR, 90 * DAY])
def test_a_permanent_cause_goes_to_the_slow_step_at_once(lifetime: timedelta) -> None:
    """A deactivated account is not convinced by hammering, and a short life is no excuse for it."""
    assert pause_after(1, "permanent", lifetime=lifetime, left=lifetime / 2) == 6 * HOUR


@pytest.mark.parametrize(
    ("lifetime", "left", "pause"),
    [
        (60 * SECOND, 30 * SECOND, 1.2 * SECOND),
        (60 * SECOND, -HOUR, 1.2 * SECOND),
        (10 * SECOND, 5 * SECOND, SECOND),
        (HOUR, 20 * MINUTE, 72 * SECOND),
        (100 * HOUR, 50 * HOUR, 2 * HOUR),
        (90 * DAY, DAY, 6 * HOUR),
        (90 * DAY, 4 * HOUR, HOUR),
        (90 * DAY, 2 * MINUTE, MINUTE),
        (90 * DAY, timedelta(0), 6 * HOUR),
        (90 * DAY, -DAY, 6 * HOUR),
    ],
)
def test_a_short_life_and_a_near_end_quicken_the_pace(lifetime: timedelta, left: timedelta, pause: timedelta) -> None:
    """Six hours may be more than there is; what has lapsed for good is no reason to hurry."""
    assert pause_after(9, lifetime=lifetime, left=left) == pause


@pytest.mark.parametrize(
    ("failures", "kind", "retry_in", "expected"),
    [
        (1, "transient", 34 * HOUR, 34 * HOUR),
        (1, "permanent", 34 * HOUR, 34 * HOUR),
        (5, "transient", MINUTE, 6 * HOUR),
        (1, "transient", timedelta(0), MINUTE),
        (1, "transient", -DAY, MINUTE),
        (1, "transient", 100 * DAY, 100 * DAY),
    ],
)
def test_the_cas_time_wins_where_it_is_later(
    failures: int, kind: FailureKind, retry_in: timedelta, expected: timedelta
) -> None:
    """Before a rate limit ends every try is refused and counted; one that says "now" for ever is not obeyed."""
    assert pause_after(failures, kind, retry_in=retry_in) == expected


def test_the_cas_time_holds_against_the_hurry_of_short_lives() -> None:
    """Asking before Retry-After is a breach, whatever is at stake here."""
    assert pause_after(1, lifetime=60 * SECOND, left=30 * SECOND, retry_in=20 * SECOND) == 20 * SECOND


@given(
    failures=st.integers(0, 10**6),
    kind=kinds,
    retry_at=st.none() | moments,
    not_after=moments,
    lifetime=lifetimes,
    now=moments,
    fraction=fractions,
)
def test_the_next_attempt_is_always_later_and_never_before_the_cas_time(
    failures: int,
    kind: FailureKind,
    retry_at: datetime | None,
    not_after: datetime,
    lifetime: timedelta,
    now: datetime,
    fraction: float,
) -> None:
    """Whatever the clock shows: a try "now" after every failure would be a loop, a try never would be the end."""
    attempt = next_attempt(
        failures, kind, retry_at=retry_at, not_after=not_after, lifetime=lifetime, now=now, fraction=fraction
    )
    assert attempt >= now + SECOND
    assert retry_at is None or attempt >= retry_at
    assert attempt <= max(now + 6 * HOUR, (retry_at or now) + MINUTE)


@given(failures=st.integers(1, 20), lifetime=lifetimes, left=lifetimes, fraction=fractions)
def test_a_transient_cause_never_waits_more_than_a_fiftieth_of_the_life(
    failures: int, lifetime: timedelta, left: timedelta, fraction: float
) -> None:
    """So even a third of a life has room for a dozen tries and more."""
    pause = pause_after(failures, lifetime=lifetime, left=left, fraction=fraction)
    assert pause <= max(lifetime / 50, SECOND)


@given(failures=st.integers(1, 20), lifetime=lifetimes, first=lifetimes, second=lifetimes, fraction=fractions)
def test_less_time_left_never_means_a_longer_pause(
    failures: int, lifetime: timedelta, first: timedelta, second: timedelta, fraction: float
) -> None:
    """Tries come closer together as the end comes closer, never further apart."""
    less, more = sorted((first, second))
    assert pause_after(failures, lifetime=lifetime, left=less, fraction=fraction) <= pause_after(
        failures, lifetime=lifetime, left=more, fraction=fraction
    )


@given(lifetime=lifetimes, fraction=fractions)
def test_a_whole_renewal_that_fails_has_many_tries_and_not_too_many(lifetime: timedelta, fraction: float) -> None:
    """From the moment of renewal to the end: enough tries for a CA that is there now and then, no flood."""
    assume(lifetime >= 60 * SECOND)
    not_after = START + lifetime
    now = renewal_moment(START, not_after, window_point=None, renew_before=None, fraction=fraction)
    tries = 0
    while now < not_after and tries < 2_000:
        tries += 1
        now = next_attempt(
            tries, "transient", retry_at=None, not_after=not_after, lifetime=lifetime, now=now, fraction=fraction
        )
    assert tries >= 15
    assert tries <= 60 + lifetime / (12 * HOUR)


def refused(name: str, detail: str = "no", *subproblems: Problem) -> CaRefused:
    return CaRefused("the CA refused", Problem(type=URN + name, detail=detail, subproblems=subproblems))


PAUSED = (
    "Your account is temporarily prevented from requesting certificates for example.org and possibly others. "
    "Please visit: https://portal.test/sfe/v1/unpause?jwt=x"
)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (CaUnavailable("503"), Cause("transient", "ca")),
        (CertificatePending("404"), Cause("transient", "ca")),
        (CaMisbehaved("not JSON"), Cause("transient", "ca")),
        (CaMisbehaved("odd", Problem(type=URN + "unauthorized")), Cause("transient", "ca")),
        (CaRefused("said nothing"), Cause("transient", "ca")),
        (BackendRateLimited("429"), Cause("transient", "ca")),
        (BackendRateLimited("429", Problem(type=URN + "rateLimited", detail="too many")), Cause("transient", "ca")),
        (BackendRateLimited("429", Problem(type=URN + "rateLimited", detail=PAUSED)), Cause("permanent", "ca")),
        (refused("rateLimited", "locked: see https://ca.test/unpause?x"), Cause("permanent", "ca")),
        (refused("rateLimited", "You are temporarily prevented from requesting more."), Cause("permanent", "ca")),
        (refused("rateLimited", "too many certificates for unpause.example"), Cause("transient", "ca")),
        (refused("paused"), Cause("permanent", "ca")),
        (refused("unauthorized"), Cause("permanent", "ca")),
        (refused("accountDoesNotExist"), Cause("permanent", "ca")),
        (refused("externalAccountRequired"), Cause("permanent", "ca")),
        (refused("userActionRequired"), Cause("permanent", "ca")),
        (refused("rejectedIdentifier"), Cause("permanent", "ca")),
        (refused("unsupportedIdentifier"), Cause("permanent", "ca")),
        (refused("badPublicKey"), Cause("permanent", "ca")),
        (refused("invalidProfile"), Cause("permanent", "ca")),
        (refused("caa"), Cause("permanent", "domain")),
        (refused("dns"), Cause("transient", "domain")),
        (refused("malformed"), Cause("transient", "ca")),
        (refused("orderNotReady"), Cause("transient", "ca")),
        (refused("inventedLastWeek"), Cause("transient", "ca")),
        (refused("compound"), Cause("transient", "ca")),
        (
            refused("compound", "two", Problem(type=URN + "caa"), Problem(type=URN + "dns")),
            Cause("permanent", "domain"),
        ),
        (refused("compound", "one", Problem(type=URN + "serverInternal")), Cause("transient", "ca")),
        (ChallengeFailed("port 80 is taken"), Cause("transient", "domain")),
        (DnsError("no answer", "unreachable"), Cause("transient", "domain")),
        (DnsError("bogus", "dnssec_bogus"), Cause("transient", "domain")),
        (DnsProviderError("slow"), Cause("transient", "domain")),
        (DnsProviderError("bad token", is_final=True), Cause("permanent", "domain")),
        (DnsPropagationTimeout("one server lags", ()), Cause("transient", "domain")),
        (Timeout("still processing"), Cause("transient", "ca")),
        (InvalidRequest("no such profile"), Cause("permanent", "here")),
        (Conflict("account deactivated"), Cause("permanent", "here")),
        (SecretNotFound("vault is sealed"), Cause("transient", "here")),
        (StorageUnavailable("disk full"), Cause("transient", "here")),
        (Standby("stopping"), Cause("transient", "here")),
        (Internal("ours"), Cause("transient", "here")),
    ],
    ids=lambda value: getattr(value, "detail", None) or getattr(value, "kind", None),
)
def test_every_error_has_a_pace_and_somebody_at_fault(error: ScaivaultError, cause: Cause) -> None:
    """A wrong word here hammers a CA that has said no, or moves an order to a CA that cannot help either."""
    assert cause_of(error) == cause


def failed(*types: str) -> Trouble:
    return Trouble(
        code="challenge_failed",
        detail="not convinced",
        identifiers=tuple(IdentifierTrouble(identifier=f"{n}.example.org", type=each) for n, each in enumerate(types)),
    )


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (failed(), Cause("transient", "domain")),
        (failed(URN + "unauthorized"), Cause("transient", "domain")),
        (failed(URN + "connection", URN + "dns"), Cause("transient", "domain")),
        (failed(URN + "caa"), Cause("permanent", "domain")),
        (failed(URN + "serverInternal"), Cause("transient", "ca")),
        (failed(URN + "rateLimited"), Cause("transient", "ca")),
        (failed(URN + "serverInternal", URN + "dns"), Cause("transient", "domain")),
        (failed(URN + "rejectedIdentifier", URN + "serverInternal"), Cause("permanent", "ca")),
        (failed("not_offered"), Cause("permanent", "ca")),
        (failed("authorization_expired"), Cause("transient", "domain")),
        (Trouble(code="ca_error", detail="no reason"), Cause("transient", "ca")),
        (Trouble(code="ca_error", detail="x", acme=Problem(type=URN + "caa")), Cause("permanent", "domain")),
        (Trouble(code="ca_error", detail="x", acme=Problem(type=URN + "unauthorized")), Cause("permanent", "ca")),
        (
            Trouble(code="backend_rate_limited", detail="x", acme=Problem(type=URN + "rateLimited", detail=PAUSED)),
            Cause("permanent", "ca"),
        ),
        (Trouble(code="dns_propagation_timeout", detail="one server lags"), Cause("transient", "domain")),
        (Trouble(code="a_code_of_tomorrow", detail="x"), Cause("transient", "here")),
    ],
)
def test_what_an_order_kept_is_weighed_like_the_error_itself(trouble: Trouble, cause: Cause) -> None:
    """After a restart only the stored trouble is left; `unauthorized` at a name is not the account's."""
    assert cause_of_trouble(trouble) == cause


def test_the_end_is_announced_by_shares_of_the_lifetime() -> None:
    """A quarter of ninety days is time to act in; a quarter of a minute is too, for a machine."""
    assert expiry_notices(START, START + 100 * SECOND) == (
        ExpiryNotice(percent_left=25, at=START + 75 * SECOND),
        ExpiryNotice(percent_left=15, at=START + 85 * SECOND),
        ExpiryNotice(percent_left=5, at=START + 95 * SECOND),
        ExpiryNotice(percent_left=0, at=START + 100 * SECOND),
    )


@pytest.mark.parametrize(
    ("looked_at", "now", "percents"),
    [
        (0, 74, []),
        (0, 75, [25]),
        (75, 84, []),
        (75, 85, [15]),
        (0, 99, [25, 15, 5]),
        (95, 100, [0]),
        (0, 10_000, [25, 15, 5, 0]),
        (100, 10_000, []),
        (90, 80, []),
    ],
)
def test_an_announcement_is_due_once_between_two_looks(looked_at: int, now: int, percents: list[int]) -> None:
    """The edge belongs to one side only, else the same alarm comes twice or not at all."""
    due = notices_due(START, START + 100 * SECOND, looked_at=START + looked_at * SECOND, now=START + now * SECOND)
    assert [each.percent_left for each in due] == percents


@given(lifetime=lifetimes, looks=st.lists(st.floats(-2, 3), max_size=30))
def test_no_announcement_comes_twice_or_is_lost_however_the_clock_jumps(
    lifetime: timedelta, looks: list[float]
) -> None:
    """A clock set back and forth must neither repeat an alarm nor swallow one."""
    not_after = START + lifetime
    looked_at, seen = START, list[ExpiryNotice]()
    for share in looks:
        now = START + lifetime * share
        seen.extend(notices_due(START, not_after, looked_at=looked_at, now=now))
        looked_at = max(looked_at, now)
    assert seen == [each for each in expiry_notices(START, not_after) if each.at <= looked_at]


@pytest.mark.parametrize(("looked_at", "percent"), [(0, 25), (74, 25), (75, 15), (85, 5), (95, 0), (100, None)])
def test_the_next_announcement_is_the_first_not_made_yet(looked_at: int, percent: int | None) -> None:
    """One that was made just now must not be waited for again: the wait would be a loop."""
    waiting = next_notice(START, START + 100 * SECOND, looked_at=START + looked_at * SECOND)
    assert (waiting.percent_left if waiting else None) == percent


@given(lifetime=lifetimes, looked_at=st.floats(-1, 2))
def test_waiting_for_the_next_announcement_finds_it(lifetime: timedelta, looked_at: float) -> None:
    """Whoever sleeps until that moment wakes to exactly this announcement."""
    not_after, before = START + lifetime, START + lifetime * looked_at
    waiting = next_notice(START, not_after, looked_at=before)
    if waiting is None:
        assert before >= not_after
    else:
        assert notices_due(START, not_after, looked_at=before, now=waiting.at) == (waiting,)
