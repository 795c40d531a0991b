"""What CAs limit: the presets, what a request counts as, and what a refusal says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from publicsuffixlist import PublicSuffixList

from scaivaultd.acme.directories import directory_url_for
from scaivaultd.acme.limit_rules import (
    LETSENCRYPT,
    LETSENCRYPT_STAGING,
    LIMITS,
    NewAccount,
    NewOrder,
    Rule,
    cause_of,
    order_for,
    refusal_from,
    registered_domain,
    rules_for,
    subjects_of,
)
from scaivaultd.model.errors import Problem
from scaivaultd.model.names import Identifier, parse_identifiers

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=5)
SUFFIXES = PublicSuffixList()


def order(*names: str) -> NewOrder:
    return order_for("acme_1", parse_identifiers(names, public_ca=False), "new", SUFFIXES)


def problem(detail: str, *identifiers: str) -> Problem:
    subproblems = tuple(Problem(type="rateLimited", identifier=each) for each in identifiers)
    return Problem(type="urn:ietf:params:acme:error:rateLimited", detail=detail, subproblems=subproblems)


@pytest.mark.parametrize(
    ("rules", "limit", "amount", "interval_seconds"),
    [
        (LETSENCRYPT, "new_accounts_per_address", 10, 18 * 60),
        (LETSENCRYPT, "new_orders_per_account", 300, 36),
        (LETSENCRYPT, "certificates_per_registered_domain", 50, 12_096),
        (LETSENCRYPT, "certificates_per_name_set", 5, 120_960),
        (LETSENCRYPT, "failed_authorizations_per_name", 5, 720),
        (LETSENCRYPT_STAGING, "new_accounts_per_address", 50, 216),
        (LETSENCRYPT_STAGING, "new_orders_per_account", 1500, 7.2),
        (LETSENCRYPT_STAGING, "certificates_per_registered_domain", 30_000, 0.000034),
        (LETSENCRYPT_STAGING, "certificates_per_name_set", 30_000, 20.16),
        (LETSENCRYPT_STAGING, "failed_authorizations_per_name", 200, 18),
    ],
)
def test_the_presets_refill_as_published(
    rules: tuple[Rule, ...], limit: str, amount: int, interval_seconds: float
) -> None:
    """Let's Encrypt names both the size of each bucket and the time one token takes: they must agree."""
    (rule,) = [rule for rule in rules if rule.limit == limit]
    assert (rule.amount, rule.interval.total_seconds()) == (amount, interval_seconds)


def test_a_ca_that_publishes_nothing_has_no_rules() -> None:
    """Holding a private CA to somebody else's limits would delay certificates for nothing."""
    assert rules_for(directory_url_for("letsencrypt", "production", None)) is LETSENCRYPT
    assert rules_for(directory_url_for("letsencrypt", "staging", None)) is LETSENCRYPT_STAGING
    assert rules_for("https://ca.internal/directory") == ()


def test_rules_come_from_configuration() -> None:
    """Limits of other CAs are configured in these words, with the reserve left to its default."""
    text = b'{"kind": "new_orders", "scope": "account", "amount": 20, "window_seconds": 60}'
    rule = msgspec.json.decode(text, type=Rule)
    assert (rule.limit, rule.interval, rule.reserved) == ("new_orders_per_account", timedelta(seconds=3), 2)


@pytest.mark.parametrize(
    "wrong",
    [
        '"kind": "failed_authorizations", "scope": "registered_domain", "amount": 1, "window_seconds": 1',
        '"kind": "new_accounts", "scope": "account", "amount": 1, "window_seconds": 1',
        '"kind": "new_orders", "scope": "account", "amount": 0, "window_seconds": 1',
        '"kind": "new_orders", "scope": "account", "amount": 1, "window_seconds": 0',
        '"kind": "new_orders", "scope": "account", "amount": 1, "window_seconds": 1, "reserve_percent": 100',
        '"kind": "new_orders", "scope": "account", "amount": 1, "window_seconds": 1, "burst": 3',
    ],
)
def test_a_rule_that_cannot_work_is_refused(wrong: str) -> None:
    """A limit that is never counted, or never opens, is found when the configuration is read."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(f"{{{wrong}}}", type=Rule)


@pytest.mark.parametrize(
    ("rule", "reserved"),
    [
        (Rule(kind="new_orders", scope="account", amount=100, window_seconds=60), 10),
        (Rule(kind="new_orders", scope="account", amount=100, window_seconds=60, exempt=("ari",)), 10),
        (Rule(kind="new_orders", scope="account", amount=100, window_seconds=60, exempt=("renewal",)), 0),
        (Rule(kind="new_orders", scope="account", amount=1, window_seconds=60, reserve_percent=99), 0),
        (Rule(kind="new_accounts", scope="address", amount=100, window_seconds=60), 0),
    ],
)
def test_only_what_renewals_need_is_reserved(rule: Rule, reserved: int) -> None:
    """A reserve that nobody may draw on is lost to everybody, and one of the last token closes for ever."""
    assert rule.reserved == reserved


@pytest.mark.parametrize(
    ("replaces", "moment", "same", "cause"),
    [
        ("aki.serial", NOW, True, "ari"),
        ("aki.serial", NOW, False, "ari"),
        ("aki.serial", NOW - timedelta(microseconds=1), True, "renewal"),
        ("aki.serial", LATER - timedelta(microseconds=1), True, "ari"),
        ("aki.serial", LATER, True, "renewal"),
        (None, NOW, True, "renewal"),
        (None, NOW, False, "new"),
        ("aki.serial", LATER, False, "new"),
    ],
)
def test_a_claim_to_exemption_needs_replaces_and_the_window(
    replaces: str | None, moment: datetime, same: bool, cause: str
) -> None:
    """Let's Encrypt exempts a replacement inside its window only; hoping for more ends in a refusal."""
    assert cause_of(moment, renews_same_names=same, replaces=replaces, window=(NOW, LATER)) == cause
    if cause == "ari":
        assert cause_of(moment, renews_same_names=same, replaces=replaces, window=None) != "ari"


@pytest.mark.parametrize(
    ("identifier", "domain"),
    [
        (Identifier("dns", "new.blog.example.co.uk"), "example.co.uk"),
        (Identifier("dns", "*.example.org"), "example.org"),
        (Identifier("dns", "a.user.github.io"), "user.github.io"),
        (Identifier("dns", "github.io"), "github.io"),
        (Identifier("dns", "co.uk"), "co.uk"),
        (Identifier("dns", "a.host.intranet"), "host.intranet"),
        (Identifier("dns", "a.xn--85x722f.xn--55qx5d.cn"), "xn--85x722f.xn--55qx5d.cn"),
        (Identifier("ip", "192.0.2.7"), "192.0.2.7"),
        (Identifier("ip", "2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64"),
    ],
)
def test_a_registered_domain_is_what_was_bought(identifier: Identifier, domain: str) -> None:
    """Counted by anything else, fifty customers of one hoster share a budget, or one customer has fifty."""
    assert registered_domain(identifier, SUFFIXES) == domain


def test_an_order_counts_once_for_each_name_and_domain() -> None:
    """A wildcard and its base are one name to validate; order and spelling of the names do not matter."""
    wanted = order("www.example.org", "*.example.org", "example.org", "example.net")
    assert wanted.names == ("example.org", "example.net", "www.example.org")
    assert wanted.domains == ("example.org", "example.net")
    assert wanted == order("EXAMPLE.net", "example.org", "www.example.org", "*.example.org")
    assert wanted.name_set.startswith("example.org+3/")
    assert wanted.name_set != order("example.org", "www.example.org", "a.example.org", "*.example.org").name_set


def test_every_limit_has_its_subjects() -> None:
    """A limit without subjects would never hold anybody."""
    counted = {
        (kind, scope): subjects_of(order("a.example.org", "b.example.org"), kind, scope) for kind, scope in LIMITS
    }
    assert counted.pop(("new_accounts", "address")) == ()
    assert counted["failed_authorizations", "name"] == ("acme_1/a.example.org", "acme_1/b.example.org")
    assert counted["certificates", "registered_domain"] == ("example.org",)
    assert counted["new_orders", "account"] == ("acme_1",)
    assert all(counted.values())
    registering = {limit for limit in LIMITS if subjects_of(NewAccount(), *limit)}
    assert registering == {("new_accounts", "address")}


@pytest.mark.parametrize(
    ("detail", "limit"),
    [
        ("too many new registrations (10) from this IP address in the last 3h0m0s", ("new_accounts", "address")),
        ("too many new orders (300) from this account in the last 3h0m0s", ("new_orders", "account")),
        (
            'too many certificates (50) already issued for "example.org" in the last 168h0m0s',
            ("certificates", "registered_domain"),
        ),
        ("too many certificates already issued for: example.org", ("certificates", "registered_domain")),
        (
            "too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s",
            ("certificates", "name_set"),
        ),
        (
            "Error: too many certificates (5) already issued for this exact set of domains in the last 168 hours",
            ("certificates", "name_set"),
        ),
        (
            'too many failed authorizations (5) for "a.example.org" in the last 1h0m0s',
            ("failed_authorizations", "name"),
        ),
        ("Service busy; retry later.", None),
    ],
)
def test_a_refusal_is_understood_by_its_words(detail: str, limit: tuple[str, str] | None) -> None:
    """The problem document has no member for it, and the wrong bucket closed leaves the right one open."""
    refusal = refusal_from(problem(detail), LATER)
    assert (refusal.limit, refusal.until, refusal.is_pause) == (limit, LATER, False)


@pytest.mark.parametrize(
    ("detail", "retry_at", "until"),
    [
        (
            "too many, retry after 2026-11-25 01:02:03 UTC: see https://x",
            None,
            datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC),
        ),
        ("too many, retry after 2026-11-25T01:02:03Z", None, datetime(2026, 11, 25, 1, 2, 3, tzinfo=UTC)),
        ("too many, retry after 2026-11-25 01:02:03 UTC", LATER, LATER),
        ("too many, retry after 2026-13-45 01:02:03 UTC", None, None),
        ("too many, retry after lunch", None, None),
    ],
)
def test_a_time_in_the_text_serves_when_the_header_is_missing(
    detail: str, retry_at: datetime | None, until: datetime | None
) -> None:
    """The header counts from the CA's own clock, so it wins; without either the caller has a default."""
    assert refusal_from(problem(detail), retry_at).until == until


def test_names_are_found_in_text_and_subproblems() -> None:
    """A certificate for several domains must close the one that is exhausted, not the first one."""
    refusal = refusal_from(problem('issued for "Example.org", and 2001:db8::/64: see https://x', "*.example.net"), None)
    assert {"example.org", "2001:db8::/64", "example.net"} <= refusal.named


def test_a_pause_is_told_from_a_limit() -> None:
    """Time does not open a paused name; somebody must follow the CA's link."""
    detail = (
        "Your account is temporarily prevented from requesting certificates for a.example.org and possibly others. "
        "Please visit: https://portal.example/unpause"
    )
    refusal = refusal_from(problem(detail), None)
    assert refusal.is_pause
    assert "a.example.org" in refusal.named


def test_a_refusal_without_a_problem_still_has_its_time() -> None:
    """A front end answers 429 with Retry-After and a page of HTML."""
    assert refusal_from(None, LATER).until == LATER
