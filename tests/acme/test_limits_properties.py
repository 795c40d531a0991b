"""What holds for every history of the ledger of rate limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from scaivaultd.acme.limit_rules import NewAccount, NewOrder, Refusal, Rule, cause_in, subjects_of
from scaivaultd.acme.limits import Ledger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.acme.limit_rules import Request

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)

# Small amounts and odd windows, so that every bucket runs dry and intervals have to be rounded.
RULES = (
    Rule(kind="new_accounts", scope="address", amount=2, window_seconds=60),
    Rule(kind="new_orders", scope="account", amount=7, window_seconds=60, exempt=("renewal", "ari")),
    Rule(kind="new_orders", scope="account", amount=20, window_seconds=300, reserve_percent=30, exempt=("ari",)),
    Rule(kind="certificates", scope="registered_domain", amount=6, window_seconds=100, exempt=("renewal", "ari")),
    Rule(kind="certificates", scope="name_set", amount=3, window_seconds=100, reserve_percent=34, exempt=("ari",)),
    Rule(kind="failed_authorizations", scope="name", amount=3, window_seconds=50, reserve_percent=34, exempt=("ari",)),
)


def order(account: str, cause: str, names: Sequence[str]) -> NewOrder:
    return msgspec.convert(
        {
            "account": account,
            "cause": cause,
            "names": tuple(names),
            "domains": tuple(dict.fromkeys(each.partition(".")[2] for each in names)),
            "name_set": ",".join(names),
        },
        NewOrder,
    )


names = st.lists(st.sampled_from(["a.x.org", "b.x.org", "a.y.org"]), min_size=1, max_size=2, unique=True).map(sorted)
orders = st.builds(order, st.sampled_from(["one", "two"]), st.sampled_from(["new", "new", "renewal", "ari"]), names)
requests: st.SearchStrategy[Request] = st.one_of(orders, orders, orders, st.just(NewAccount()))
seconds = st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 120))
refusals = st.builds(
    Refusal,
    limit=st.sampled_from([None, ("certificates", "name_set"), ("new_orders", "account"), ("certificates", "account")]),
    until=st.one_of(st.none(), st.floats(-10, 500).map(lambda offset: NOW + timedelta(seconds=offset))),
    is_pause=st.sampled_from([False, False, False, True]),
    named=st.sampled_from([frozenset(), frozenset({"a.x.org"})]),
)
events = st.one_of(
    st.tuples(st.just("spend"), requests),
    st.tuples(st.just("spend"), requests),
    st.tuples(st.just("fail"), orders),
    st.tuples(st.just("refund"), orders),
    st.tuples(st.just("refuse"), st.tuples(requests, refusals)),
)
histories = st.lists(st.tuples(seconds, events), max_size=40)


def after(history: Sequence[tuple[float, tuple[str, object]]]) -> tuple[datetime, Ledger]:
    """Any ledger that can come about, and the time."""
    now, ledger = NOW, Ledger(rules=RULES)
    for wait, (event, what) in history:
        now += timedelta(seconds=wait)
        match event, what:
            case "spend", NewAccount() | NewOrder() as request:
                ledger = ledger.spend(now, request).ledger
            case "fail", NewOrder() as failing:
                ledger = ledger.failed(now, failing.account, failing.names)
            case "refund", NewOrder() as issued:
                ledger = ledger.refund(now, issued, now - timedelta(seconds=wait))
            case "refuse", (NewAccount() | NewOrder() as request, Refusal() as refusal):
                ledger = ledger.refused(now, request, refusal)
            case _:
                raise AssertionError(event)
    return now, ledger


def assert_within(rule: Rule, moments: Sequence[datetime]) -> None:
    """From any spending to any later one: the amount and what refills in between, in exact numbers."""
    for first, start in enumerate(moments):
        for count, end in enumerate(moments[first:], start=1):
            assert (count - rule.amount) * rule.window_seconds <= (end - start).total_seconds() * rule.amount


def counted(rule: Rule, requests_at: Sequence[tuple[datetime, Request]]) -> dict[str, list[datetime]]:
    """When each budget of the rule was drawn on, by a count of our own."""
    found: dict[str, list[datetime]] = {}
    for moment, request in requests_at:
        if cause_in(request) not in rule.exempt:
            for subject in subjects_of(request, rule.kind, rule.scope):
                found.setdefault(subject, []).append(moment)
    return found


@settings(deadline=None)
@given(st.lists(st.tuples(seconds, requests), max_size=80))
def test_never_more_than_the_rule_allows_within_any_window(history: list[tuple[float, Request]]) -> None:
    """The promise of the whole ledger: a CA with these rules never has to refuse us."""
    now, ledger, gone = NOW, Ledger(rules=RULES), []
    for wait, request in history:
        now += timedelta(seconds=wait)
        outcome = ledger.spend(now, request)
        ledger = outcome.ledger
        if outcome.wait is None:
            gone.append((now, request))
    for rule in RULES:
        if rule.kind != "failed_authorizations":
            for moments in counted(rule, gone).values():
                assert_within(rule, moments)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40), st.booleans(), st.floats(0, 60)), max_size=60))
def test_giving_back_never_makes_more_than_there_is(history: list[tuple[float, bool, float]]) -> None:
    """Failed orders are taken off the count; the certificates that came must stay within the rule."""
    now, ledger, issued = NOW, Ledger(rules=RULES), []
    running: list[tuple[datetime, datetime]] = []
    renewal = order("one", "renewal", ["a.x.org"])
    for wait, fails, lasts in history:
        now += timedelta(seconds=wait)
        for ends_at, spent_at in sorted(each for each in running if each[0] <= now):
            ledger = ledger.refund(ends_at, renewal, spent_at)
        running = [each for each in running if each[0] > now]
        outcome = ledger.spend(now, renewal)
        ledger = outcome.ledger
        if outcome.wait is None and fails:
            running.append((now + timedelta(seconds=lasts), now))
        elif outcome.wait is None:
            issued.append(now)
    (rule,) = [rule for rule in RULES if rule.limit == "certificates_per_name_set"]
    assert_within(rule, issued)


@settings(deadline=None)
@given(histories, requests, st.floats(0, 200))
def test_the_forecast_is_the_earliest_moment(
    history: list[tuple[float, tuple[str, object]]], request: Request, later: float
) -> None:
    """Sooner is a refusal, later is time lost while a certificate ages."""
    now, ledger = after(history)
    wait = ledger.forecast(now, request)
    assert (ledger.spend(now, request).wait is None) == (wait is None)
    if wait is None or wait.until is None:
        return
    assert wait.until > now
    assert ledger.spend(wait.until, request).wait is None
    assert ledger.spend(wait.until - TICK, request).wait is not None
    between = min(now + timedelta(seconds=later), wait.until - TICK)
    assert ledger.forecast(between, request) is not None
    assert ledger.spend(wait.until + timedelta(seconds=later), request).wait is None


@settings(deadline=None)
@given(histories, names)
def test_exempt_spending_never_changes_the_ledger(
    history: list[tuple[float, tuple[str, object]]], wanted: list[str]
) -> None:
    """A million ARI renewals cost nobody else anything."""
    now, ledger = after(history)
    assert ledger.spend(now, order("one", "ari", wanted)).ledger is ledger


@settings(deadline=None)
@given(histories)
def test_what_is_stored_is_what_was_there(history: list[tuple[float, tuple[str, object]]]) -> None:
    """A restart forgets nothing and invents nothing, be it kept whole or entry by entry."""
    _, ledger = after(history)
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(ledger), type=Ledger) == ledger


@settings(deadline=None)
@given(histories, requests, st.floats(0, 300))
def test_sweeping_changes_no_answer(
    history: list[tuple[float, tuple[str, object]]], request: Request, later: float
) -> None:
    """What vanishes said nothing, and after the longest window and closure nothing is left but pauses."""
    now, ledger = after(history)
    then = now + timedelta(seconds=later)
    swept = ledger.swept(now)
    assert swept.forecast(then, request) == ledger.forecast(then, request)
    assert swept.budgets(then) == ledger.budgets(then)
    # A refused bucket holds one token when the closure ends and needs its window again.
    rest = ledger.swept(now + timedelta(seconds=500 + 3600 + 300))
    assert rest.buckets == {}
    assert all(closure.until is None for closure in rest.closures.values())


@settings(deadline=None)
@given(histories)
def test_budgets_add_up(history: list[tuple[float, tuple[str, object]]]) -> None:
    """Numbers that contradict each other send people looking in the wrong place."""
    now, ledger = after(history)
    for budget in ledger.budgets(now):
        if budget.amount is None or budget.left is None or budget.used is None:
            continue
        assert budget.left + budget.used == budget.amount
        assert 0 <= budget.left < budget.amount
        assert budget.refills_at is not None
        assert budget.full_at is not None
        assert now < budget.refills_at <= budget.full_at
        (again,) = [each for each in ledger.budgets(budget.refills_at - TICK) if _same(each, budget)]
        assert again.left == budget.left
        assert all(each.left == budget.left + 1 for each in ledger.budgets(budget.refills_at) if _same(each, budget))


def _same(one: object, other: object) -> bool:
    identity = ("limit", "subject", "window_seconds")
    return all(getattr(one, name) == getattr(other, name) for name in identity)


@settings(deadline=None)
@given(st.lists(st.tuples(seconds, st.one_of(st.just(0.0), st.floats(0, 1e9)), requests), max_size=60))
def test_a_clock_that_goes_back_gives_nothing_away(history: list[tuple[float, float, Request]]) -> None:
    """In the time of the CA, which does not go back, we stay within the rules all the same."""
    true_time, clock, ledger, gone = NOW, NOW, Ledger(rules=RULES), []
    for wait, back, request in history:
        true_time += timedelta(seconds=wait)
        clock += timedelta(seconds=wait - back)
        outcome = ledger.spend(clock, request)
        ledger = outcome.ledger
        if outcome.wait is None:
            gone.append((true_time, request))
    for rule in RULES:
        if rule.kind != "failed_authorizations":
            for moments in counted(rule, gone).values():
                assert_within(rule, moments)


@settings(deadline=None)
@given(histories, requests, st.floats(0, 1e9))
def test_a_clock_that_goes_back_closes_nothing(
    history: list[tuple[float, tuple[str, object]]], request: Request, back: float
) -> None:
    """From the moment the ledger notices, its forecast holds again and is no later than a refill or a closure takes."""
    now, ledger = after(history)
    before = now - timedelta(seconds=back)
    outcome = ledger.spend(before, request)
    if outcome.wait is None or outcome.wait.until is None:
        return
    assert outcome.wait.until - before <= timedelta(seconds=3600 + 300)
    assert outcome.wait == ledger.forecast(before, request)
    assert outcome.ledger.spend(outcome.wait.until - TICK, request).wait is not None
    assert outcome.ledger.spend(outcome.wait.until, request).wait is None
