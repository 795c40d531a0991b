"""The ledger of rate limits, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from publicsuffixlist import PublicSuffixList

from scaivaultd.acme.limit_rules import (
    LETSENCRYPT,
    NewAccount,
    NewOrder,
    Refusal,
    Rule,
    order_for,
    refusal_from,
)
from scaivaultd.acme.limits import Ledger, Wait
from scaivaultd.model.errors import Problem
from scaivaultd.model.names import parse_identifiers

if TYPE_CHECKING:
    from scaivaultd.acme.limit_rules import Cause, Request

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SUFFIXES = PublicSuffixList()
SET_INTERVAL = timedelta(seconds=120_960)
DOMAIN_INTERVAL = timedelta(seconds=12_096)
EMPTY = Ledger(rules=LETSENCRYPT)


def order(*names: str, cause: Cause = "new", account: str = "acme_1") -> NewOrder:
    return order_for(account, parse_identifiers(names or ("a.example.org",), public_ca=False), cause, SUFFIXES)


def spent(ledger: Ledger, request: Request, times: int = 1, now: datetime = NOW) -> Ledger:
    for _ in range(times):
        outcome = ledger.spend(now, request)
        assert outcome.wait is None
        ledger = outcome.ledger
    return ledger


def refused(ledger: Ledger, request: Request, detail: str, until: datetime | None, now: datetime = NOW) -> Ledger:
    return ledger.refused(now, request, refusal_from(Problem(type="rateLimited", detail=detail), until))


@pytest.mark.parametrize(
    ("cause", "limit", "times", "until"),
    [
        # One of five is kept for renewals: the fifth new one waits for the bucket to hold two.
        ("new", "certificates_per_name_set", 4, NOW + SET_INTERVAL),
        ("renewal", "certificates_per_name_set", 5, NOW + SET_INTERVAL),
    ],
)
def test_the_same_names_go_five_times_a_week(cause: Cause, limit: str, times: int, until: datetime) -> None:
    """The limit without override: a loop that issues the same set again locks its own renewal out."""
    wait = spent(EMPTY, order(cause=cause), times).spend(NOW, order(cause=cause)).wait
    assert wait == Wait(limit=limit, subject=order().name_set, until=until)


def test_a_registered_domain_goes_fifty_times_a_week() -> None:
    """All accounts and all subdomains share this budget; the next one goes a fiftieth of a week later."""
    ledger = EMPTY
    for number in range(50):
        ledger = spent(ledger, order(f"h{number}.example.co.uk", account=f"acme_{number}"))
    assert ledger.forecast(NOW, order("h50.example.co.uk")) == Wait(
        limit="certificates_per_registered_domain", subject="example.co.uk", until=NOW + DOMAIN_INTERVAL
    )
    assert ledger.forecast(NOW, order("other.co.uk")) is None
    assert ledger.forecast(NOW + DOMAIN_INTERVAL, order("h50.example.co.uk")) is None


def test_accounts_have_their_orders_apart() -> None:
    """300 orders are for each account; another account at the same CA goes on."""
    ledger = EMPTY
    for number in range(300):
        ledger = spent(ledger, order(f"a.d{number}.org"))
    wait = ledger.forecast(NOW, order("a.another.org"))
    assert wait == Wait(limit="new_orders_per_account", subject="acme_1", until=NOW + timedelta(seconds=36))
    assert ledger.forecast(NOW, order("a.another.org", account="acme_2")) is None


def test_ten_accounts_in_three_hours() -> None:
    """Registrations count for the host; none of them is reserved, because accounts are not renewed."""
    ledger = spent(EMPTY, NewAccount(), 10)
    wait = ledger.spend(NOW, NewAccount()).wait
    assert wait == Wait(limit="new_accounts_per_address", subject="", until=NOW + timedelta(minutes=18))
    assert ledger.forecast(NOW, order()) is None


def test_a_renewal_of_the_same_names_skips_two_limits_only() -> None:
    """A fleet of one domain renews on: orders and the domain are not counted, the exact set is."""
    ledger = spent(EMPTY, order(cause="renewal"))
    assert {key.partition("/")[0] for key in ledger.buckets} == {"certificates_per_name_set"}


def test_an_ari_renewal_spends_nothing_and_waits_for_nothing() -> None:
    """In its window a renewal is exempt from all: the reason to do ARI at all."""
    ledger = spent(EMPTY, order(), 4).failed(NOW, "acme_1", ["a.example.org"] * 5)
    outcome = ledger.spend(NOW, order(cause="ari"))
    assert outcome.wait is None
    assert outcome.ledger is ledger


@pytest.mark.parametrize(("cause", "failures"), [("new", 4), ("renewal", 5)])
def test_a_name_that_fails_is_left_alone(cause: Cause, failures: int) -> None:
    """Five failures an hour close the name at the CA for us; the last try is a renewal's."""
    ledger = EMPTY
    for _ in range(failures):
        assert ledger.forecast(NOW, order(cause=cause)) is None
        ledger = ledger.failed(NOW, "acme_1", ["a.example.org"])
    assert ledger.forecast(NOW, order("b.example.org", "*.a.example.org", cause=cause)) == Wait(
        limit="failed_authorizations_per_name", subject="acme_1/a.example.org", until=NOW + timedelta(minutes=12)
    )
    assert ledger.forecast(NOW, order("b.example.org", cause=cause)) is None
    assert ledger.forecast(NOW, order(account="acme_2", cause=cause)) is None


def test_failures_of_exempt_orders_are_counted() -> None:
    """Exempt is the order, not the failure: the CA counts it, and the next order would run into it."""
    wildcard = EMPTY.failed(NOW, "acme_1", ["*.a.example.org"])
    assert wildcard == EMPTY.failed(NOW, "acme_1", ["a.example.org"])
    assert wildcard.buckets


def test_failures_beyond_the_limit_do_not_pile_up() -> None:
    """A CA refuses rather than count further: five hundred failures open again after twelve minutes."""
    ledger = EMPTY
    for _ in range(500):
        ledger = ledger.failed(NOW, "acme_1", ["a.example.org"])
    wait = ledger.forecast(NOW, order(cause="renewal"))
    assert wait is not None
    assert wait.until == NOW + timedelta(minutes=12)


def test_failures_per_account_count_every_name() -> None:
    """A CA that limits failures for the whole account counts each name of an order."""
    rule = Rule(kind="failed_authorizations", scope="account", amount=10, window_seconds=100, reserve_percent=0)
    ledger = Ledger(rules=(rule,)).failed(NOW, "acme_1", [f"h{number}.example.org" for number in range(10)])
    wait = ledger.forecast(NOW, order("z.example.org"))
    assert wait == Wait(limit="failed_authorizations_per_account", subject="acme_1", until=NOW + timedelta(seconds=10))


def test_the_latest_of_several_waits_is_told() -> None:
    """An order goes when all its limits let it; a forecast of the first would be a promise broken."""
    ledger = spent(EMPTY, order(cause="renewal"), 5).failed(NOW, "acme_1", ["a.example.org"] * 5)
    ledger = ledger.failed(NOW, "acme_1", ["a.example.org"])
    wait = ledger.forecast(NOW, order(cause="renewal"))
    assert wait is not None
    assert (wait.limit, wait.until) == ("certificates_per_name_set", NOW + SET_INTERVAL)


def test_an_order_that_must_wait_spends_nothing() -> None:
    """Half an order's price taken at each look would starve the queue by looking."""
    ledger = spent(EMPTY, order(), 4)
    assert ledger.spend(NOW, order()).ledger is ledger


def test_what_never_became_a_certificate_is_given_back() -> None:
    """Fifty failed orders a week must not keep the fifty-first from being issued; the orders themselves count."""
    ledger = spent(EMPTY, order())
    back = ledger.refund(NOW, order(), NOW)
    assert {budget.limit for budget in back.budgets(NOW)} == {"new_orders_per_account"}


def test_only_what_has_not_refilled_is_given_back() -> None:
    """The token of a long order has partly come back by itself; giving it back whole would count it twice."""
    ledger = spent(EMPTY, order(cause="renewal"))
    later = NOW + SET_INTERVAL * 3 / 4
    again = spent(ledger, order(cause="renewal"), now=later)
    back = again.refund(later, order(cause="renewal"), NOW)
    (budget,) = back.budgets(later)
    assert budget.full_at == later + SET_INTERVAL
    assert again.refund(NOW + SET_INTERVAL, order(cause="renewal"), NOW) is again


def test_an_exempt_order_gives_nothing_back() -> None:
    """What was never taken would otherwise be somebody else's."""
    ledger = spent(EMPTY, order())
    assert ledger.refund(NOW, order(cause="ari"), NOW) is ledger


@pytest.mark.parametrize(
    ("detail", "limit", "subjects", "held", "free"),
    [
        (
            'too many certificates (50) already issued for "example.net" in the last 168h0m0s',
            "certificates_per_registered_domain",
            ["example.net"],
            order("z.example.net"),
            order("z.example.org"),
        ),
        (
            "too many certificates (5) already issued for this exact set of identifiers",
            "certificates_per_name_set",
            [order("a.example.org", "b.example.net").name_set],
            order("a.example.org", "b.example.net", account="acme_2"),
            order("a.example.org"),
        ),
        (
            "too many new orders (300) from this account",
            "new_orders_per_account",
            ["acme_1"],
            order("z.example.com"),
            order("z.example.com", account="acme_2"),
        ),
        (
            'too many failed authorizations (5) for "b.example.net"',
            "failed_authorizations_per_name",
            ["acme_1/b.example.net"],
            order("b.example.net"),
            order("a.example.org"),
        ),
        (
            "too many certificates (50) already issued for something else",
            "certificates_per_registered_domain",
            ["example.net", "example.org"],
            order("z.example.net"),
            order("z.example.com"),
        ),
        ("slow down", "unnamed", ["acme_1"], order("z.example.com"), order(account="acme_2")),
    ],
)
@pytest.mark.parametrize("rules", [LETSENCRYPT, ()])
def test_a_refusal_closes_what_it_is_about(
    rules: tuple[Rule, ...], detail: str, limit: str, subjects: list[str], held: NewOrder, free: NewOrder
) -> None:
    """Others counted too, or our count was lost: the CA has the last word, for that bucket and no other."""
    until = NOW + HOUR
    ledger = refused(Ledger(rules=rules), order("a.example.org", "b.example.net"), detail, until)
    assert sorted(ledger.closures) == sorted(f"{limit}:{each}" for each in subjects)
    wait = ledger.forecast(NOW, held)
    assert wait is not None
    assert wait.limit == limit
    assert wait.until is not None
    assert wait.until >= until
    assert ledger.forecast(NOW, free) is None
    assert ledger.forecast(wait.until, held) is None


def test_after_a_refusal_the_bucket_is_as_empty_as_the_ca_says() -> None:
    """When the time has come the CA has one token, not the fifty we would have counted."""
    ledger = refused(EMPTY, order(), 'too many certificates already issued for "example.org"', NOW + HOUR)
    ledger = spent(ledger, order("b.example.org"), now=NOW + HOUR)
    wait = ledger.forecast(NOW + HOUR, order("c.example.org"))
    assert wait is not None
    assert wait.until == NOW + HOUR + DOMAIN_INTERVAL


def test_a_refusal_never_shortens_what_we_counted() -> None:
    """The CA's bucket may be shared with the reserve or an older debt of ours; the longer wait is kept."""
    ledger = spent(EMPTY, order(cause="renewal"), 5)
    ledger = refused(ledger, order(cause="renewal"), "too many certificates already issued for this exact set", NOW)
    wait = ledger.forecast(NOW, order(cause="renewal"))
    assert wait is not None
    assert wait.until == NOW + SET_INTERVAL


@pytest.mark.parametrize(
    ("detail", "until", "opens"),
    [
        ("too many certificates already issued for this exact set", None, SET_INTERVAL),
        ("too many certificates already issued for this exact set", NOW + 1000 * SET_INTERVAL, timedelta(days=31)),
        ("too many certificates already issued for this exact set", NOW - HOUR, timedelta(0)),
        ("busy", None, timedelta(minutes=1)),
        ("busy", NOW + 24 * HOUR, HOUR),
    ],
)
def test_times_of_refusals_are_kept_within_reason(detail: str, until: datetime | None, opens: timedelta) -> None:
    """Without a time the next token decides; a time of centuries is a mistake; an unnamed one holds bystanders."""
    ledger = refused(EMPTY, order(cause="renewal"), detail, until)
    wait = ledger.forecast(NOW, order(cause="renewal"))
    assert (timedelta(0) if wait is None or wait.until is None else wait.until - NOW) == opens


def test_a_refused_exemption_is_no_exemption() -> None:
    """When the CA counts an ARI renewal after all, insisting on the exemption would be hammering."""
    detail = "too many certificates already issued for this exact set"
    plain = refused(EMPTY, order(cause="renewal"), detail, NOW + HOUR)
    assert plain.forecast(NOW, order(cause="ari")) is None
    exempt = refused(EMPTY, order(cause="ari"), detail, NOW + HOUR)
    assert exempt.forecast(NOW, order(cause="ari")) is not None
    both = refused(exempt, order(cause="renewal"), detail, NOW + 2 * HOUR)
    assert both.forecast(NOW + HOUR, order(cause="ari")) is not None
    assert both.forecast(NOW + 2 * HOUR, order(cause="ari")) is None
    later = refused(exempt, order(cause="renewal"), detail, NOW + 3 * HOUR, now=NOW + 2 * HOUR)
    assert later.forecast(NOW + 2 * HOUR, order(cause="ari")) is None


def test_of_several_times_the_shortest_is_refused() -> None:
    """Emptying the hour's bucket for a refusal that was about a minute would slow everything for an hour."""
    minute = Rule(kind="new_orders", scope="account", amount=10, window_seconds=60, reserve_percent=0)
    hour = Rule(kind="new_orders", scope="account", amount=100, window_seconds=3600, reserve_percent=0)
    ledger = refused(Ledger(rules=(hour, minute)), order(), "too many new orders", NOW + timedelta(seconds=6))
    assert list(ledger.buckets) == ["new_orders_per_account/60:acme_1"]


PAUSE = "Your account is temporarily prevented from requesting certificates for a.example.org and possibly others."


@pytest.mark.parametrize("cause", ["new", "renewal", "ari"])
def test_a_paused_name_waits_for_a_human(cause: Cause) -> None:
    """After 1152 failures in a row time does not help, nor does ARI: somebody must follow the CA's link."""
    ledger = refused(EMPTY, order("a.example.org", "b.example.org"), PAUSE, None)
    held = order("*.a.example.org", "c.example.org", cause=cause)
    expected = Wait(limit="paused", subject="acme_1/a.example.org", until=None)
    for later in (NOW, NOW + 10_000 * HOUR):
        assert ledger.swept(later).forecast(later, held) == expected
    assert ledger.forecast(NOW, order("b.example.org", cause=cause)) is None
    assert ledger.forecast(NOW, order(account="acme_2", cause=cause)) is None
    resumed = ledger.resumed("acme_1", ["*.a.example.org", "b.example.org"])
    assert resumed.forecast(NOW, held) is None
    assert resumed.resumed("acme_1", ["a.example.org"]) is resumed


def test_a_pause_outweighs_every_time() -> None:
    """A forecast for a paused name would be a promise that nobody keeps."""
    ledger = refused(spent(EMPTY, order(), 4), order(), PAUSE, None)
    wait = ledger.forecast(NOW, order())
    assert wait is not None
    assert wait.until is None


@pytest.mark.parametrize("step", [timedelta(seconds=2), timedelta(days=40_000)])
def test_a_clock_that_was_set_back_holds_nobody_longer(step: timedelta) -> None:
    """A host that booted in the wrong year would otherwise wait for that year; our debts stay as they were."""
    ahead = NOW + step
    ledger = spent(EMPTY, order(cause="renewal"), 5, now=ahead)
    ledger = refused(ledger, order("b.example.org"), "too many new orders", ahead + HOUR, now=ahead)
    for request, opens in ((order(cause="renewal"), SET_INTERVAL), (order("b.example.net"), HOUR)):
        outcome = ledger.spend(NOW, request)
        assert outcome.wait is not None
        assert outcome.wait.until == NOW + opens
        # What spend returned remembers the new time, so that the promise holds.
        assert outcome.ledger.spend(NOW + opens - timedelta(microseconds=1), request).wait is not None
        assert outcome.ledger.spend(NOW + opens, request).wait is None


def test_what_is_over_vanishes() -> None:
    """The ledger of 100,000 certificates holds this week's only."""
    ledger = spent(EMPTY, order())
    ledger = refused(ledger, order("b.example.net"), "too many new orders", NOW + HOUR)
    assert ledger.swept(NOW) is ledger
    assert len(ledger.swept(NOW + timedelta(hours=3)).buckets) == 3
    over = ledger.swept(NOW + SET_INTERVAL + HOUR)
    assert (over.buckets, over.closures) == ({}, {})


def test_buckets_of_a_rule_that_is_gone_vanish() -> None:
    """A limit taken out of the configuration must not haunt the list of budgets."""
    ledger = Ledger(rules=(), buckets=spent(EMPTY, order()).buckets)
    assert ledger.budgets(NOW) == ()
    assert ledger.swept(NOW).buckets == {}


def test_two_rules_of_one_limit_and_time_are_refused() -> None:
    """They would share a bucket and each take the other's count for its own."""
    with pytest.raises(ValueError, match="new_orders_per_account/60"):
        Ledger(rules=(Rule(kind="new_orders", scope="account", amount=1, window_seconds=60),) * 2)


def test_budgets_show_what_is_left_and_when() -> None:
    """What `pki.acme.limits` answers: the scarcest first."""
    ledger = spent(EMPTY, order(), 2)
    scarce, *others = ledger.budgets(NOW + HOUR)
    assert (scarce.limit, scarce.subject) == ("certificates_per_name_set", order().name_set)
    assert (scarce.amount, scarce.used, scarce.left, scarce.reserved) == (5, 2, 3, 1)
    assert (scarce.refills_at, scarce.full_at) == (NOW + SET_INTERVAL, NOW + 2 * SET_INTERVAL)
    assert (scarce.new_at, scarce.renewal_at) == (None, None)
    assert [(each.limit, each.used) for each in others] == [("certificates_per_registered_domain", 2)]


def test_budgets_tell_new_certificates_from_renewals() -> None:
    """The reserve shows as a forecast of its own, and exempt renewals show as free."""
    (budget,) = [each for each in spent(EMPTY, order(), 4).budgets(NOW) if each.limit == "certificates_per_name_set"]
    assert (budget.left, budget.new_at, budget.renewal_at) == (1, NOW + SET_INTERVAL, None)
    ledger = refused(EMPTY, order(), 'too many certificates already issued for "example.org"', NOW + HOUR)
    (budget,) = ledger.budgets(NOW)
    assert (budget.left, budget.refills_at, budget.new_at, budget.renewal_at) == (0, NOW + HOUR, NOW + HOUR, None)
    exempt = refused(
        ledger, order(cause="renewal"), 'too many certificates already issued for "example.org"', NOW + HOUR
    )
    assert exempt.budgets(NOW)[0].renewal_at == NOW + HOUR


def test_budgets_show_what_only_the_ca_knows() -> None:
    """A closed account and a paused name are the first thing to look at when nothing moves."""
    ledger = refused(refused(EMPTY, order(), "busy", NOW + HOUR), order(), PAUSE, None)
    paused, unnamed = ledger.budgets(NOW)
    assert (paused.limit, paused.subject, paused.needs_human) == ("paused", "acme_1/a.example.org", True)
    assert (unnamed.limit, unnamed.subject, unnamed.amount) == ("unnamed", "acme_1", None)
    assert (unnamed.new_at, unnamed.renewal_at, unnamed.needs_human) == (NOW + HOUR, NOW + HOUR, False)
    assert [each.limit for each in ledger.budgets(NOW + HOUR)] == ["paused"]


@pytest.mark.parametrize("detail", ["too many new registrations", "busy", PAUSE])
def test_a_refused_registration_leaves_orders_alone(detail: str) -> None:
    """Accounts that exist go on while no new one can be made."""
    ledger = refused(EMPTY, NewAccount(), detail, NOW + HOUR)
    assert ledger.forecast(NOW, NewAccount()) is not None
    assert ledger.forecast(NOW, order()) is None


def test_a_refusal_that_fits_no_subject_counts_as_unnamed() -> None:
    """A CA that talks of registrations when an order was sent still wants us to slow down."""
    ledger = EMPTY.refused(NOW, order(), Refusal(limit=("new_accounts", "address"), until=NOW + HOUR))
    assert list(ledger.closures) == ["unnamed:acme_1"]
