"""Who may do what: the judgement, its words, and what a policy may not say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from publicsuffixlist import PublicSuffixList

from scaivaultd.api.commands import COMMANDS, EVERYBODY
from scaivaultd.api.policies import (
    ACTIONS,
    KEY_READ,
    ROLES,
    Rules,
    decide,
    decide_action,
    policies_from,
    policies_from_toml,
)
from scaivaultd.model.access import (
    AccessRequest,
    AccountRef,
    CertificateTerms,
    Decision,
    Policy,
    PolicyRule,
    Quota,
)
from scaivaultd.model.errors import InvalidRequest
from scaivaultd.model.names import Identifier, parse_identifiers
from scaivaultd.model.principals import Principal

if TYPE_CHECKING:
    from collections.abc import Sequence

SUFFIXES = PublicSuffixList(accept_unknown=False)
WEB = Principal(kind="token", id="Ab3dEf9h", name="web-ci")
ACCOUNT = AccountRef("acme_01k2v7m0e8zq3c9x5w1r4t6y8b", "le")
OTHER_ACCOUNT = AccountRef("acme_01k2v7m0e8zq3c9x5w1r4t6y8c", "zerossl")


def policy(*rules: PolicyRule, **changes: Any) -> Policy:
    return Policy(**{"name": "web-team", "principals": ("token:web-*",), "tenant": "web", "rules": rules, **changes})


def allow(*domains: str, **changes: Any) -> PolicyRule:
    return PolicyRule(**{"actions": ("cert.issue",), "domains": domains, **changes})


def deny(*domains: str, **changes: Any) -> PolicyRule:
    return PolicyRule(**{"effect": "deny", "actions": ("*",), "domains": domains, **changes})


def terms(*names: str | Identifier, **changes: Any) -> CertificateTerms:
    identifiers = tuple(
        each if isinstance(each, Identifier) else parse_identifiers([each], public_ca=False)[0] for each in names
    )
    return CertificateTerms(
        **{
            "names": identifiers,
            "accounts": (ACCOUNT,),
            "challenge_type": "dns-01",
            "key_type": "ec-p256",
            **changes,
        }
    )


def request(certificate: CertificateTerms | None, **changes: Any) -> AccessRequest:
    return AccessRequest(
        **{"principal": WEB, "action": "cert.issue", "tenant": "web", "certificate": certificate, **changes}
    )


def judged(rules: Sequence[PolicyRule], *names: str | Identifier, **changes: Any) -> Decision:
    return decide([policy(*rules)], request(terms(*names), **changes), SUFFIXES)


def words(decision: Decision) -> str:
    return " | ".join(f"{reason.about}: {reason.detail}" for reason in decision.reasons if not reason.allowed)


@pytest.mark.parametrize(
    ("pattern", "name", "allowed"),
    [
        ("api.example.net", "api.example.net", True),
        ("api.example.net", "API.Example.NET.", True),
        ("api.example.net", "x.api.example.net", False),
        ("api.example.net", "xapi.example.net", False),
        ("*.example.net", "a.example.net", True),
        ("*.example.net", "a.b.example.net", False),
        ("*.example.net", "example.net", False),
        ("*.example.net", "evilexample.net", False),
        ("*.example.net", "a.example.net.evil.org", False),
        ("**.example.net", "a.example.net", True),
        ("**.example.net", "a.b.c.example.net", True),
        ("**.example.net", "example.net", False),
        ("**.example.net", "evilexample.net", False),
        ("**.example.net", "a.example.network", False),
        ("**", "anything.example.org", True),
        ("*.xn--bcher-kva.example", "a.bücher.example", True),
        ("*.bucher.example", "a.bücher.example", False),
        ("*.example.net", "a.\u0435\u0445ample.net", False),
        ("*.example.net", "a。example。net", True),
        ("*.example.net", "10.0.0.1", False),
        ("**", "10.0.0.1", False),
        ("**", "*.example.net", False),
    ],
)
def test_patterns_mean_what_is_documented(pattern: str, name: str, allowed: bool) -> None:
    """One label more or less is somebody else's certificate."""
    assert judged([allow(pattern)], name).allowed is allowed


@pytest.mark.parametrize(
    ("rule", "name", "allowed"),
    [
        (allow("example.net", wildcards=True), "*.example.net", True),
        (allow("example.net"), "*.example.net", False),
        (allow("*.example.net", wildcards=True), "*.example.net", False),
        (allow("*.example.net", wildcards=True), "*.a.example.net", True),
        (allow("**.example.net", wildcards=True), "*.example.net", False),
        (allow("**", wildcards=True), "*.example.net", True),
        (allow("**", wildcards=True), "*.co.uk", False),
        (allow("**"), "co.uk", False),
        (allow("**"), "github.io", False),
        (allow("**"), "localhost", True),
        (allow("db.corp"), "db.corp", True),
        (allow("*.corp"), "db.corp", True),
        (allow(ips=("192.0.2.0/24",)), "192.0.2.7", True),
        (allow(ips=("192.0.2.0/24",)), "192.0.3.7", False),
        (allow(ips=("192.0.2.0/24",)), "a.example.net", False),
        (allow(ips=("2001:db8::/32",)), "2001:DB8::1", True),
        (allow(ips=("0.0.0.0/0", "::/0")), "::ffff:192.0.2.7", False),
    ],
)
def test_wildcards_suffixes_and_addresses_have_rules_of_their_own(rule: PolicyRule, name: str, allowed: bool) -> None:
    """A wildcard needs its base and leave; a public suffix is nobody's; an address is in a network or not."""
    assert judged([rule], name).allowed is allowed


@pytest.mark.parametrize(
    "name",
    [
        "A.example.net",
        "a.example.net.",
        "a%2eexample.net",
        "a..example.net",
        ".example.net",
        "a。example.net",
        "bücher.example.net",
        "*.*.example.net",
        "**.example.net",
        "*",
        "",
        "a.example.net\n",
        " a.example.net",
        "a.example.net/x",
        "xn--zz--zz.example.net",
        "ab--c.example.net",
        "a\0.example.net",
    ],
)
def test_a_name_out_of_its_normal_form_is_refused_whatever_allows_it(name: str) -> None:
    """Whoever forgets to normalise must not get a certificate by it."""
    decision = judged([allow("**", "**.example.net", wildcards=True)], Identifier("dns", name))
    assert not decision.allowed
    assert "normal form" in words(decision)


@pytest.mark.parametrize("name", [Identifier("ip", "a.example.net"), Identifier("dns", "192.0.2.7")])
def test_a_name_of_the_wrong_type_is_refused(name: Identifier) -> None:
    """An address that calls itself a name would be held against domains."""
    assert not judged([allow("**", ips=("0.0.0.0/0",))], name).allowed


def test_nothing_is_allowed_by_default() -> None:
    """No policy, a policy for others, one of another tenant, one without the action: all the same."""
    rule = allow("a.example.net")
    wanted = request(terms("a.example.net"))
    for policies in (
        [],
        [policy()],
        [policy(rule, principals=("token:db-*",))],
        [policy(rule, principals=())],
        [policy(rule, tenant="db")],
        [policy(allow("a.example.net", actions=("cert.read",)))],
    ):
        decision = decide(policies, wanted, SUFFIXES)
        assert not decision.allowed
        assert decision.policy is None
        assert decision.reasons
    assert decide([policy(rule)], wanted, SUFFIXES).allowed


def test_every_name_must_be_allowed() -> None:
    """One name that is somebody else's spoils the certificate; the words say which."""
    decision = judged([allow("*.example.net")], "a.example.net", "b.example.org")
    assert not decision.allowed
    assert [(each.about, each.allowed) for each in decision.reasons] == [
        ("a.example.net", True),
        ("b.example.org", False),
    ]


def test_rules_do_not_add_up() -> None:
    """A certificate that joins what two rules allow apart is allowed by neither."""
    decision = judged([allow("a.example.net"), allow("b.example.net")], "a.example.net", "b.example.net")
    assert not decision.allowed
    assert "no rule allows all" in words(decision)


def test_the_decision_names_policy_rule_and_quota() -> None:
    """The audit record and whoever counts need them."""
    quota = Quota(issue_per_day=5)
    decision = judged([allow("x.example.net"), allow("a.example.net", quota=quota)], "a.example.net")
    assert (decision.policy, decision.rule, decision.quota) == ("web-team", 2, quota)
    assert [(each.about, each.detail) for each in decision.reasons] == [
        ("action", "rule 2 of policy web-team allows cert.issue"),
        ("a.example.net", "rule 2 of policy web-team allows it by 'a.example.net'"),
    ]


@pytest.mark.parametrize(
    ("denied", "name"),
    [
        ("admin.example.net", "admin.example.net"),
        ("admin.example.net", "*.example.net"),
        ("example.net", "*.example.net"),
        ("*.example.net", "*.example.net"),
        ("**.example.net", "*.example.net"),
        ("*.example.net", "*.a.example.net"),
        ("**.example.net", "*.a.b.example.net"),
        ("**", "a.example.net"),
    ],
)
def test_denying_wins_over_what_a_wildcard_would_cover_too(denied: str, name: str) -> None:
    """A certificate for `*.example.net` is one for `admin.example.net`."""
    for rules in ([allow("**", wildcards=True), deny(denied)], [deny(denied), allow("**", wildcards=True)]):
        decision = judged(rules, "ok.example.org", name)
        assert not decision.allowed
        assert (decision.policy, rules[(decision.rule or 0) - 1].effect) == ("web-team", "deny")
        assert name in words(decision)


@pytest.mark.parametrize(
    ("denied", "name"),
    [
        ("a.admin.example.net", "*.example.net"),
        ("admin.example.net", "*.admin.example.org"),
        ("*.example.net", "example.net"),
        ("**.example.net", "notexample.net"),
        ("*.example.net", "192.0.2.7"),
    ],
)
def test_denying_touches_nothing_else(denied: str, name: str) -> None:
    """A rule that denies more than it says stops renewals."""
    rules = [allow("**", wildcards=True, ips=("0.0.0.0/0",)), deny(denied)]
    assert judged(rules, name).allowed


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        (deny(), False),
        (deny(ips=("192.0.2.0/24",)), True),
        (deny(accounts=("le",)), False),
        (deny(accounts=("zerossl",)), True),
        (deny(accounts=("zerossl", ACCOUNT.id)), False),
        (deny(challenges=("dns-01",)), False),
        (deny(challenges=("http-01",)), True),
        (deny(key_types=("ec-p256",)), False),
        (deny(key_types=("rsa-2048",)), True),
        (deny("a.example.net", challenges=("http-01",)), True),
        (deny("b.example.net", challenges=("dns-01",)), True),
        (deny(actions=("cert.issue",)), False),
        (deny(actions=("cert.*",)), False),
        (deny(actions=("order.*",)), True),
        (deny(actions=(), roles=("issuer",)), False),
        (deny(actions=(), roles=("viewer",)), True),
    ],
)
def test_a_rule_denies_where_all_its_conditions_are_met(rule: PolicyRule, allowed: bool) -> None:
    """And only there."""
    assert judged([allow("a.example.net"), rule], "a.example.net").allowed is allowed


def test_a_denial_with_names_leaves_lists_alone() -> None:
    """What is listed is judged one by one."""
    rules = [allow("**", actions=("cert.read",)), deny("a.example.net")]
    assert decide([policy(*rules)], request(None, action="cert.read"), SUFFIXES).allowed
    assert not judged(rules, "a.example.net", action="cert.read").allowed


def test_denials_of_every_policy_count() -> None:
    """A token cannot escape from a policy by carrying another one."""
    guard = policy(deny("a.example.net"), name="guard", principals=("token:*",), tenant="*")
    decision = decide([policy(allow("**")), guard], request(terms("a.example.net")), SUFFIXES)
    assert (decision.allowed, decision.policy, decision.rule) == (False, "guard", 1)


@pytest.mark.parametrize(
    ("conditions", "changes", "about"),
    [
        ({"accounts": ("zerossl",)}, {}, "account"),
        ({"accounts": ("le",)}, {"accounts": (ACCOUNT, OTHER_ACCOUNT)}, "account"),
        ({"accounts": (ACCOUNT.id,)}, {"accounts": (AccountRef("acme_x", str(ACCOUNT.id)),)}, "account"),
        ({"challenges": ("http-01",)}, {}, "challenge_type"),
        ({"key_types": ("rsa-2048",)}, {}, "key_type"),
        ({"max_names": 1}, {}, "names"),
    ],
)
def test_conditions_hold_for_orders(conditions: dict[str, Any], changes: dict[str, Any], about: str) -> None:
    """Every fallback account too; an account that is named like another's id is not that one."""
    wanted = terms("a.example.net", "b.example.net", **changes)
    for action in ("cert.issue", "cert.renew", "cert.update"):
        rule = allow("**", actions=(action,), **conditions)
        decision = decide([policy(rule)], request(wanted, action=action), SUFFIXES)
        assert not decision.allowed
        assert [each.about for each in decision.reasons if not each.allowed] == [about]
    # How it is asked for says nothing of what is there; whose account it is by does.
    rule = allow("**", actions=("cert.read", "cert.revoke", KEY_READ), **conditions)
    for action in rule.actions:
        decision = decide([policy(rule)], request(wanted, action=action), SUFFIXES)
        assert decision.allowed is (about != "account")


def test_conditions_that_fit_are_no_hindrance() -> None:
    """By name and by id, at the very limit."""
    rule = allow("**", accounts=("le", OTHER_ACCOUNT.id), challenges=("dns-01",), key_types=("ec-p256",), max_names=2)
    wanted = terms("a.example.net", "b.example.net", accounts=(ACCOUNT, OTHER_ACCOUNT))
    assert decide([policy(rule)], request(wanted), SUFFIXES).allowed


@pytest.mark.parametrize(
    ("certificate", "action"),
    [
        (None, "cert.issue"),
        (None, "cert.update"),
        (None, "cert.revoke"),
        (None, KEY_READ),
        (None, "order.cancel"),
        (terms(), "cert.issue"),
        (terms(), "cert.read"),
        (terms("a.example.net", accounts=()), "cert.issue"),
        (None, "account.create"),
        (None, "account.update"),
        (None, "cert.isue"),
        (None, "*"),
        (None, "cert.*"),
        (None, ""),
    ],
)
def test_what_cannot_be_judged_is_refused(certificate: CertificateTerms | None, action: str) -> None:
    """Whoever forgets to say what a request is about must not be let through."""
    rule = allow("**", actions=("*", KEY_READ), ips=("0.0.0.0/0",))
    assert not decide([policy(rule)], request(certificate, action=action), SUFFIXES).allowed


def test_a_denied_account_is_denied_as_a_fallback() -> None:
    """The order may end up there."""
    wanted = terms("a.example.net", accounts=(ACCOUNT, OTHER_ACCOUNT))
    rules = [allow("**"), deny(accounts=("zerossl",))]
    assert not decide([policy(*rules)], request(wanted), SUFFIXES).allowed


def test_accounts_are_held_against_their_condition() -> None:
    """Who may look after one account may not look after all."""
    rule = PolicyRule(actions=("account.*",), accounts=("le",))

    def may(action: str, account: AccountRef | None) -> bool:
        return decide([policy(rule)], request(None, action=action, account=account), SUFFIXES).allowed

    assert may("account.update", ACCOUNT)
    assert may("account.create", AccountRef(None, "le"))
    assert may("account.read", None)
    assert not may("account.update", OTHER_ACCOUNT)
    assert not may("account.read", OTHER_ACCOUNT)
    barred = [policy(PolicyRule(actions=("account.*",)), deny(accounts=("le",)))]
    assert not decide(barred, request(None, action="account.update", account=ACCOUNT), SUFFIXES).allowed
    assert decide(barred, request(None, action="account.update", account=OTHER_ACCOUNT), SUFFIXES).allowed


@pytest.mark.parametrize(
    ("rules", "secret", "allowed"),
    [
        ([PolicyRule(actions=("secret.*",))], "infra/aws/key", True),
        ([PolicyRule(actions=("secret.use",), secrets=("infra/aws",))], "infra/aws/key", True),
        ([PolicyRule(actions=("secret.use",), secrets=("infra/aws",))], "infra/aws-prod/key", False),
        ([PolicyRule(actions=("secret.use",), secrets=("infra/aws",))], "infra/aws/../bank", False),
        ([PolicyRule(actions=("secret.use",), secrets=("a", "infra/"))], "infra/aws/key", True),
        ([PolicyRule(actions=("secret.write",), secrets=("infra/",))], "infra/aws/key", False),
        ([PolicyRule(actions=("secret.use",))], None, False),
        (
            [
                PolicyRule(actions=("secret.*",)),
                PolicyRule(effect="deny", actions=("secret.use",), secrets=("infra/aws",)),
            ],
            "infra/aws/key",
            False,
        ),
        (
            [PolicyRule(actions=("*",), domains=("**",)), PolicyRule(effect="deny", actions=("*",), secrets=("bank",))],
            "infra/aws/key",
            True,
        ),
        (
            [PolicyRule(actions=("*",), domains=("**",)), PolicyRule(effect="deny", actions=("*",), secrets=("bank",))],
            "infra/../bank",
            False,
        ),
    ],
)
def test_secrets_are_judged_by_how_references_begin(rules: list[PolicyRule], secret: str | None, allowed: bool) -> None:
    """Whoever may name any secret in a request could have it sent to a host of their own."""
    decision = decide([policy(*rules)], request(None, action="secret.use", secret=secret), SUFFIXES)
    assert decision.allowed is allowed
    assert secret is None or secret not in words(decision)


def test_secrets_say_nothing_of_other_actions() -> None:
    """A rule for an operator has them beside domains."""
    rules = [allow("a.example.net", actions=("cert.issue", "secret.use"), secrets=("infra/",))]
    assert judged(rules, "a.example.net").allowed
    denying = [*rules, PolicyRule(effect="deny", actions=("*",), secrets=("bank/",))]
    assert judged(denying, "a.example.net").allowed
    listed = [PolicyRule(actions=("secret.list",)), PolicyRule(effect="deny", actions=("*",), secrets=("bank/",))]
    assert decide([policy(*listed)], request(None, action="secret.list"), SUFFIXES).allowed
    assert not decide([policy(*listed)], request(None, action="secret.list", secret="bank/a"), SUFFIXES).allowed


@pytest.mark.parametrize(
    ("rules", "changes", "allowed"),
    [
        ([allow("a.example.net")], {}, True),
        ([allow("a.example.net")], {"action": "cert.revoke"}, False),
        ([allow("a.example.net", accounts=("zerossl",))], {}, True),
        ([allow("a.example.net"), deny("a.example.net")], {}, True),
        ([allow("a.example.net"), deny()], {}, False),
        ([allow("a.example.net")], {"principal": msgspec.structs.replace(WEB, scopes=("cert.read",))}, False),
        ([allow("a.example.net")], {"principal": msgspec.structs.replace(WEB, tenant="bank")}, False),
        ([allow("a.example.net")], {"action": "auth.self"}, False),
    ],
)
def test_an_action_alone_is_judged_whatever_it_is_about(
    rules: list[PolicyRule], changes: dict[str, Any], allowed: bool
) -> None:
    """Before anything is looked up: only who may do it to something is told what there is."""
    about = request(terms("other.example.org"), **changes)
    assert decide_action([policy(*rules)], about).allowed is allowed


@pytest.mark.parametrize("name", ["a.b.example.net", "*.b.example.net", "b.example.net", "10.0.0.1", "other.org"])
def test_of_several_rules_that_allow_the_first_decides(name: str) -> None:
    """Whichever pattern it is found by; without words the answer is the same."""
    every: list[dict[str, Any]] = [
        {"domains": ("other.net",), "ips": ("192.0.2.0/24",)},
        {"domains": ("**.example.net",)},
        {"domains": ("*.b.example.net",), "ips": ("10.0.0.0/8",)},
        {"domains": ("b.example.net", "*.example.net"), "wildcards": True},
        {"domains": ("a.b.example.net",), "ips": ("0.0.0.0/0",)},
    ]
    found = [
        policy(PolicyRule(actions=("cert.issue",), **members), name=f"p{place}") for place, members in enumerate(every)
    ]
    asked = request(terms(name))
    decision = decide(found, asked, SUFFIXES)
    alone = [each.name for each in found if decide([each], asked, SUFFIXES).allowed]
    assert decision.policy == (alone[0] if alone else None)
    assert Rules(found).allow(asked, SUFFIXES) is decision.allowed is bool(alone)


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ([PolicyRule(actions=("event.read",))], True),
        ([PolicyRule(roles=("viewer",), domains=("**",))], True),
        ([PolicyRule(roles=("viewer",), domains=("*.web.example.org", "a.example.net"))], False),
        ([PolicyRule(roles=("viewer",), ips=("10.0.0.0/8",))], False),
        ([PolicyRule(roles=("viewer",), domains=("**",), accounts=("le",))], False),
        ([PolicyRule(actions=("event.read",)), deny("bank.example.org", actions=("*",))], False),
        ([PolicyRule(actions=("event.read",)), deny(actions=("event.*",), accounts=("le",))], False),
        ([PolicyRule(actions=("event.read",)), deny("bank.example.org", actions=("cert.*",))], True),
    ],
)
def test_events_are_for_who_may_see_all_of_them(rules: list[PolicyRule], allowed: bool) -> None:
    """They tell of every team's names, and nobody gets a part of them."""
    decision = decide([policy(*rules)], request(None, action="event.read"), SUFFIXES)
    assert decision.allowed is allowed
    assert all(each.about == "action" for each in decision.reasons)


def test_a_public_suffix_can_be_read_and_revoked() -> None:
    """What a private CA has certified before must not be out of reach for ever."""
    rule = allow("**", actions=("cert.read", "cert.revoke", "cert.renew"))
    assert judged([rule], "github.io", action="cert.read").allowed
    assert judged([rule], "github.io", action="cert.revoke").allowed
    assert not judged([rule], "github.io", action="cert.renew").allowed


@given(st.from_regex(r"[a-z0-9.*-]{1,40}\Z", fullmatch=True))
def test_the_short_way_agrees_with_the_long_one(name: str) -> None:
    """A name that is taken for plain is in its normal form."""
    decision = judged([allow("**", wildcards=True)], Identifier("dns", name))
    try:
        is_normal = parse_identifiers([name], public_ca=False) == (Identifier("dns", name),)
    except InvalidRequest:
        is_normal = False
    assert is_normal or not decision.allowed


@pytest.mark.parametrize(
    ("pattern", "principal", "fits"),
    [
        ("token:web-*", WEB, True),
        ("token:web-ci", WEB, True),
        ("token:Ab3dEf9h", WEB, True),
        ("token:*", WEB, True),
        ("token:web", WEB, False),
        ("nats:*", WEB, False),
        ("token:web-*", Principal(kind="token", id="Ab3dEf9h"), False),
        ("nats:APP/*", Principal(kind="nats", id="APP/web"), True),
        ("nats:APP/*", Principal(kind="nats", id="APP2/web"), False),
        ("nats:APP/web", Principal(kind="nats", id="APP/webmaster"), False),
        ("unix:33", Principal(kind="unix", id="33"), True),
        ("unix:33", Principal(kind="unix", id="333"), False),
        ("mtls:spiffe://x/web/*", Principal(kind="mtls", id="spiffe://x/web/a"), True),
        ("mtls:spiffe://x/web/*", Principal(kind="mtls", id="spiffe://x/website"), False),
        ("system", Principal(kind="system"), True),
        ("unix:*", Principal(kind="system"), False),
    ],
)
def test_policies_are_for_whom_they_name(pattern: str, principal: Principal, fits: bool) -> None:
    """The daemon itself too has only what a policy gives it."""
    wanted = request(terms("a.example.net"), principal=principal)
    assert decide([policy(allow("**"), principals=(pattern,))], wanted, SUFFIXES).allowed is fits


def test_a_principal_brings_policies_scopes_and_a_tenant() -> None:
    """A token may be given a policy by name, be confined to a few actions, and to one tenant."""
    team = policy(allow("**", actions=("*", KEY_READ)), principals=())
    everywhere = policy(allow("**", actions=("*", KEY_READ)), principals=("token:*",), tenant="*")

    def may(given: Policy, action: str = "cert.issue", tenant: str = "web", **changes: Any) -> bool:
        principal = msgspec.structs.replace(WEB, **changes)
        wanted = request(terms("a.example.net"), principal=principal, action=action, tenant=tenant)
        return decide([given], wanted, SUFFIXES).allowed

    assert may(team, policies=("web-team",))
    assert not may(team, policies=("web",))
    assert not may(team, policies=("web-team",), tenant="db")
    assert may(everywhere, tenant="db")
    assert may(everywhere, scopes=("cert.*",))
    assert not may(everywhere, scopes=("cert.read", "order.*"))
    assert not may(everywhere, KEY_READ, scopes=("*", "key.*"))
    assert may(everywhere, KEY_READ, scopes=(KEY_READ,))


def test_a_token_of_one_tenant_is_nobody_in_another() -> None:
    """Even where a policy is for every tenant."""
    everywhere = policy(allow("**"), principals=("token:*",), tenant="*")
    confined = msgspec.structs.replace(WEB, tenant="web")
    assert decide([everywhere], request(terms("a.example.net"), principal=confined), SUFFIXES).allowed
    elsewhere = request(terms("a.example.net"), principal=confined, tenant="db")
    assert not decide([everywhere], elsewhere, SUFFIXES).allowed


def test_every_permission_of_the_table_is_an_action_of_a_role() -> None:
    """A command that nobody can be allowed is a command that does not work."""
    permissions = {command.permission for command in COMMANDS} - {EVERYBODY}
    assert permissions <= ACTIONS
    assert permissions - ROLES["admin"].actions == {KEY_READ}
    assert EVERYBODY not in ACTIONS
    reading = {command.permission for command in COMMANDS if command.method == "GET"} - {KEY_READ, EVERYBODY}
    assert reading <= ROLES["viewer"].actions | {
        "secret.list",
        "token.read",
        "policy.read",
        "audit.read",
        "master_key.read",
    }


def test_each_role_has_more_than_the_one_before() -> None:
    """And none changes anything as a viewer."""
    viewer, issuer, operator, admin = (ROLES[each].actions for each in ("viewer", "issuer", "operator", "admin"))
    assert viewer < issuer < operator < admin < ACTIONS
    changing = {command.permission for command in COMMANDS if command.method != "GET"}
    assert not viewer & changing - {"cert.read"}


@pytest.mark.parametrize(
    "rule",
    [
        allow("**", actions=("*",)),
        allow("**", actions=("key.*",)),
        allow("**", actions=("*", "key.*"), roles=("viewer", "issuer", "operator", "admin")),
    ],
)
def test_reading_keys_is_implied_by_nothing(rule: PolicyRule) -> None:
    """A private key leaves only where somebody wrote so."""
    assert not judged([rule], "a.example.net", action=KEY_READ).allowed
    assert judged([allow("**", actions=(KEY_READ,))], "a.example.net", action=KEY_READ).allowed


@pytest.mark.parametrize("pattern", ["*", "key.*", KEY_READ])
def test_denying_everything_denies_reading_keys(pattern: str) -> None:
    """What is hard to give is easy to take."""
    rules = [allow("**", actions=(KEY_READ,)), deny(actions=(pattern,))]
    assert not judged(rules, "a.example.net", action=KEY_READ).allowed


@pytest.mark.parametrize(
    ("rule", "name", "said"),
    [
        (allow("*.example.net"), "a.b.example.net", "'*.example.net' means names one label below example.net only"),
        (allow("*.example.net"), "example.net", "'*.example.net' does not mean example.net itself"),
        (allow("**.example.net"), "example.net", "'**.example.net' does not mean example.net itself"),
        (allow("example.net"), "a.example.net", "'example.net' means that name only"),
        (allow("example.net"), "evilexample.net", "it is not among the domains"),
        (allow("example.net"), "*.example.net", "example.net is among the domains, but wildcard"),
        (allow("*.example.net"), "*.example.net", "a wildcard certificate needs its base, and example.net is not"),
        (allow(ips=("192.0.2.0/24",)), "a.example.net", "it allows no host names"),
        (allow("a.example.net"), "192.0.2.7", "it allows no addresses"),
        (allow(ips=("192.0.2.0/24",)), "198.51.100.7", "its networks do not hold 198.51.100.7"),
        (allow("**"), "co.uk", "co.uk is a public suffix"),
        (deny("*.example.net"), "a.example.net", "rule 1 of policy web-team denies it by '*.example.net'"),
    ],
)
def test_a_refusal_says_why(rule: PolicyRule, name: str, said: str) -> None:
    """Whoever asks `can-i` wants to know what to write."""
    decision = judged([rule], name)
    assert said in words(decision)
    assert name in {reason.about for reason in decision.reasons}


@pytest.mark.parametrize(
    ("policies", "changes", "said"),
    [
        ([], {}, "no policy in tenant web is for token:Ab3dEf9h"),
        ([policy(allow("**", actions=("cert.read",)))], {}, "allows cert.issue: web-team"),
        ([], {"action": "cert.isue"}, "there is no action 'cert.isue' (did you mean 'cert.issue'?)"),
        (
            [],
            {"principal": msgspec.structs.replace(WEB, scopes=("cert.read",))},
            "token:Ab3dEf9h is confined to cert.read",
        ),
    ],
)
def test_a_refusal_of_the_action_says_why(policies: list[Policy], changes: dict[str, Any], said: str) -> None:
    """No policy, no rule, a mistyped word: three things to mend."""
    assert said in words(decide(policies, request(terms("a.example.net"), **changes), SUFFIXES))


def test_only_the_rules_that_come_nearest_are_spoken_of() -> None:
    """Where a rule allows the names, what others say of the challenge type is noise; and a page is not read."""
    rules = [
        allow("b.example.net", challenges=("tls-alpn-01",)),
        allow("a.example.net", challenges=("http-01",)),
    ]
    said = words(judged(rules, "a.example.net"))
    assert said == "challenge_type: rule 2 of policy web-team takes http-01, not dns-01"
    many = words(judged([allow(f"{number}.example.net") for number in range(20)], "a.example.net"))
    assert many.count("it is not among the domains") == 5


LABEL = st.text(alphabet="abü-xn1", min_size=1, max_size=5)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join).map(lambda text: f"{text}.example.net")
TRICK = st.text(alphabet="aA.*%2eü。\uff0e\u200b\x00\n /:@-é\u0435xn", max_size=14)


@given(
    TRICK,
    st.sampled_from(
        ["example.net", "EXAMPLE.NET", "example.net.", "example%2enet", "\u0435\u0445ample.net", "evilexample.net"]
    ),
)
def test_no_spelling_gets_a_name_outside_the_domain(front: str, back: str) -> None:
    """Whatever is allowed ends with the domain, at a label's border, with labels of plain characters only."""
    for text in (front + back, f"{front}.{back}", back + front):
        decision = judged([allow("**.example.net", "example.net", wildcards=True)], Identifier("dns", text))
        if decision.allowed:
            base = text.removeprefix("*.")
            assert base == "example.net" or base.endswith(".example.net")
            assert all(
                set(label) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and label for label in base.split(".")
            )


@given(st.lists(st.sampled_from("ab"), max_size=3), st.lists(st.sampled_from("ab"), max_size=3), st.booleans())
def test_patterns_agree_with_labels(front: list[str], below: list[str], is_wildcard: bool) -> None:
    """The same judgement made by labels, not by text: what is allowed, and what a denial touches."""
    name, base = ".".join([*front, "example.net"]), ".".join([*below, "example.net"])
    more = len(front) - len(below) if front[len(front) - len(below) :] == below and len(front) >= len(below) else -1
    wanted = f"*.{name}" if is_wildcard else name
    # The wildcard itself covers what is one label below its name.
    covers = below[1:] == front and len(below) == len(front) + 1 if is_wildcard else False
    meant = {base: more == 0, f"*.{base}": more == 1, f"**.{base}": more >= 1}
    touched = {
        base: more == 0 or covers,
        f"*.{base}": more == 1 or (is_wildcard and more == 0),
        f"**.{base}": more >= 1 or (is_wildcard and more == 0),
    }
    for pattern in meant:
        assert judged([allow(pattern, wildcards=True)], wanted).allowed is meant[pattern]
        assert judged([allow("**", wildcards=True), deny(pattern)], wanted).allowed is not touched[pattern]


@given(st.lists(NAME, min_size=1, max_size=4), st.integers(0, 3))
def test_asking_for_less_is_never_refused(names: list[str], place: int) -> None:
    """The subset rule: what is allowed stays allowed without one of its names."""
    try:
        identifiers = parse_identifiers(names, public_ca=True)
    except InvalidRequest:
        assume(False)
    rules = [allow("*.example.net"), allow("**.a.example.net", "*.example.net"), deny("a.example.net")]
    fewer = [each for at, each in enumerate(identifiers) if at != place % len(identifiers)]
    if fewer and judged(rules, *identifiers).allowed:
        assert judged(rules, *fewer).allowed


@given(st.lists(NAME, min_size=1, max_size=3), st.permutations(range(3)))
def test_order_of_rules_decides_nothing(names: list[str], order: list[int]) -> None:
    """Who sorts a file must not change who may do what."""
    try:
        identifiers = parse_identifiers(names, public_ca=True)
    except InvalidRequest:
        assume(False)
    rules = [allow("*.example.net"), allow("**.example.net"), deny("*.a.example.net")]
    turned = [rules[at] for at in order]
    assert judged(rules, *identifiers).allowed is judged(turned, *identifiers).allowed


@given(st.sampled_from(["*", "key.*", "cert.*", "k*", "key.rea", "KEY.READ", "key.read ", "key.read.*", "**", ".*"]))
def test_no_pattern_of_actions_reaches_keys(pattern: str) -> None:
    """Only the whole word does."""
    assert not judged([allow("**", actions=(pattern,))], "a.example.net", action=KEY_READ).allowed


SAMPLE = """
[[policy]]
name = "web-team"
principals = ["token:web-*", "nats:APP/web", "unix:33"]
tenant = "web"
  [[policy.rule]]
  actions   = ["cert.issue", "cert.renew", "cert.read"]
  domains   = ["API.example.net.", "*.web.example.net", "**.bücher.example"]
  wildcards = false
  ips       = ["2001:DB8::/32"]
  challenges = ["dns-01"]
  accounts  = ["letsencrypt-production"]
  key_types = ["ec-p256", "ec-p384"]
  max_names = 25
  quota = { issue_per_day = 50, active = 200 }

  [[policy.rule]]
  effect = "deny"
  actions = ["*"]
  domains = ["**.com"]
"""


def test_a_file_is_read_into_normal_form() -> None:
    """People write names as they see them."""
    (read,) = policies_from_toml(SAMPLE, SUFFIXES)
    assert read.principals == ("token:web-*", "nats:APP/web", "unix:33")
    assert read.rules[0].domains == ("api.example.net", "*.web.example.net", "**.xn--bcher-kva.example")
    assert read.rules[0].ips == ("2001:db8::/32",)
    assert read.rules[0].quota == Quota(issue_per_day=50, active=200)
    assert read.rules[1].effect == "deny"
    assert msgspec.json.decode(msgspec.json.encode(read), type=Policy) == read
    assert policies_from({}, SUFFIXES) == ()


@pytest.mark.parametrize(
    ("rule", "pointer", "said"),
    [
        ({"actions": ["cert.isue"], "domains": ["**"]}, "/actions/0", "did you mean 'cert.issue'?"),
        ({"actions": ["certs.*"], "domains": ["**"]}, "/actions/0", "there is no action 'certs.*'"),
        ({"actions": ["key.*"], "domains": ["**"]}, "/actions/0", "'key.*' allows nothing: write 'key.read'"),
        ({"actions": []}, "/actions", "give actions, or roles"),
        ({"actions": ["cert.issue"]}, "/domains", "cert.issue is judged by names: give domains"),
        ({"roles": ["viewer"]}, "/domains", "cert.read is judged by names"),
        ({"roles": ["root"], "domains": ["**"]}, "/roles/0", "Invalid enum value 'root'; it takes"),
        ({"actions": ["*"], "domains": ["a.example.net", "w*.example.net"]}, "/domains/1", "in front of a name"),
        ({"actions": ["*"], "domains": ["a..example.net"]}, "/domains/0", "an empty label"),
        ({"actions": ["*"], "domains": ["10.0.0.1"]}, "/domains/0", "by `ips`"),
        ({"actions": ["*"], "domains": ["**.co.uk"]}, "/domains/0", "co.uk is a public suffix"),
        ({"actions": ["*"], "domains": ["*.com"]}, "/domains/0", "com is a public suffix"),
        ({"actions": ["*"], "domains": ["github.io"]}, "/domains/0", "github.io is a public suffix"),
        ({"actions": ["*"], "domains": "**"}, "/domains", "Expected `array`"),
        ({"actions": ["*"], "domains": [5]}, "/domains/0", "Expected `str`"),
        ({"actions": ["*"], "ips": ["10.0.0.1/8"]}, "/ips/0", "has host bits set"),
        ({"actions": ["*"], "domains": ["**"], "domain": []}, "/domain", "did you mean 'domains'?"),
        ({"actions": ["*"], "domains": ["**"], "accounts": []}, "/accounts", "leave it out for all"),
        ({"actions": ["*"], "domains": ["**"], "secrets": []}, "/secrets", "leave it out for all"),
        ({"actions": ["secret.use"], "secrets": ["a", "b/*"]}, "/secrets/1", "without a '*'"),
        ({"actions": ["*"], "domains": ["**"], "challenges": []}, "/challenges", "leave it out for all"),
        ({"actions": ["*"], "domains": ["**"], "key_types": ["ed25519"]}, "/key_types/0", "it takes 'ec-p256'"),
        ({"actions": ["*"], "domains": ["**"], "max_names": 0}, "/max_names", ">= 1"),
        ({"effect": "deny", "actions": ["*"], "wildcards": True}, "/wildcards", "no use for it"),
        ({"effect": "deny", "actions": ["*"], "max_names": 5}, "/max_names", "no use for it"),
        ({"effect": "deny", "actions": ["*"], "quota": {"active": 5}}, "/quota", "no use for it"),
        ({"effect": "block", "actions": ["*"]}, "/effect", "it takes 'allow', 'deny'"),
        ([], "", "expected a rule"),
    ],
)
def test_a_mistake_in_a_rule_is_pointed_at(rule: object, pointer: str, said: str) -> None:
    """A policy that means something else than its author is worse than none."""
    document = {"policy": [{"name": "a"}, {"name": "b", "rule": [{"actions": ["sys.*"]}, rule]}]}
    (mistake,) = mistakes_in(document)
    assert mistake[0] == f"/policy/1/rule/1{pointer}"
    assert said in mistake[1]


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ([], ""),
        ({"policy": {}}, ""),
        ({"policy": [], "policies": []}, ""),
        ({"policy": [5]}, "/policy/0"),
        ({"policy": [{}]}, "/policy/0/name"),
        ({"policy": [{"name": "A"}]}, "/policy/0/name"),
        ({"policy": [{"name": "a", "rules": []}]}, "/policy/0/rules"),
        ({"policy": [{"name": "a", "rule": {}}]}, "/policy/0/rule"),
        ({"policy": [{"name": "a", "principals": ["unix:0", "web"]}]}, "/policy/0/principals/1"),
        ({"policy": [{"name": "a", "tenant": ""}]}, "/policy/0/tenant"),
        ({"policy": [{"name": "a"}, {"name": "a"}]}, "/policy/1/name"),
    ],
)
def test_a_mistake_in_a_policy_is_pointed_at(document: object, pointer: str) -> None:
    """Wherever it stands."""
    assert [each[0] for each in mistakes_in(document)] == [pointer]


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody should mend a file one answer at a time."""
    rules = [{"actions": ["cert.isue", "crt.read"], "domains": ["**"]}, {"actions": ["*"], "domains": ["a..b", "*"]}]
    document = {"policy": [{"name": "A", "rule": rules}, {"name": "b", "principals": ["x"]}]}
    assert [each[0] for each in mistakes_in(document)] == [
        "/policy/0/rule/0/actions/0",
        "/policy/0/rule/0/actions/1",
        "/policy/0/rule/1/domains/0",
        "/policy/0/rule/1/domains/1",
        "/policy/0/name",
        "/policy/1/principals/0",
    ]


def test_what_is_no_toml_says_where() -> None:
    """The line is in the words of the parser."""
    with pytest.raises(InvalidRequest, match="line 2"):
        policies_from_toml("\n[[policy\nname = 1", SUFFIXES)


def mistakes_in(document: object) -> list[tuple[str, str]]:
    with pytest.raises(InvalidRequest) as caught:
        policies_from(document, SUFFIXES)
    return [(each.pointer, each.detail) for each in caught.value.fields]
