"""The words of access: what is no normal form never becomes one of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scaivaultd.model.access import (
    AuditEntry,
    Policy,
    PolicyRule,
    Token,
    begins_with,
    domain_pattern,
    is_plain_reference,
    network_pattern,
    principal_of,
    principal_pattern,
    secret_pattern,
)
from scaivaultd.model.principals import Principal, principal_from

NOW = datetime(2026, 11, 1, tzinfo=UTC)
NKEY = "U" + "A2" * 27 + "B"


@pytest.mark.parametrize(
    "text",
    [
        "token:Ab3dEf9h",
        "nats:APP/web",
        f"nkey:{NKEY}",
        "mtls:spiffe://example.org/web",
        "mtls:" + "0f" * 32,
        "unix:0",
        "unix:33",
        "system",
    ],
)
def test_a_principal_reads_as_it_is_written(text: str) -> None:
    """Logs, audit and policies all speak of principals by this text."""
    assert str(principal_from(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "root",
        "token:",
        "token:web-ci",
        "token:Ab3dEf9*",
        "token:Ab3dEf9h\n",
        "TOKEN:Ab3dEf9h",
        "nats:APP",
        "nats:APP/web/x",
        "nats:APP/*",
        "nats:APP/w b",
        "nats:APP/wéb",
        "nkey:UABC",
        "unix:",
        "unix:033",
        "unix:-1",
        "unix:٣",
        "system:",
        "system:x",
        "mtls:",
        "mtls:spiffe://x/web/../admin",
        "mtls:spiffe://x/web/%2e%2E/admin",
        "mtls:spiffe://x/web/.",
        "mtls:spiffe://x/*",
    ],
)
def test_what_is_no_normal_form_is_no_principal(text: str) -> None:
    """A second spelling would slip by a policy that denies, or look like a pattern in one."""
    with pytest.raises(ValueError, match="is no principal"):
        principal_from(text)


@pytest.mark.parametrize("name", ["Ab3dEf9h", "Web", "", "9web", "web*", "web ci", "web\n", "a" * 64])
def test_a_token_is_never_named_like_the_id_of_another(name: str) -> None:
    """Policies speak of tokens by name or id; who may make tokens must not become another one by a name."""
    with pytest.raises(ValueError, match="have a name"):
        Principal(kind="token", id="Zz3dEf9h", name=name)


def test_only_tokens_have_names() -> None:
    """A name given to another principal would be compared with patterns."""
    with pytest.raises(ValueError, match="only tokens"):
        Principal(kind="unix", id="33", name="web")


def test_a_token_stands_for_its_principal() -> None:
    """What confines the token confines whoever carries it."""
    token = Token(
        id="Ab3dEf9h",
        name="web-ci",
        secret_sha256=bytes(32),
        created_at=NOW,
        created_by="unix:0",
        expires_at=NOW,
        tenant="web",
        policies=("web-team",),
        scopes=("cert.read",),
    )
    assert principal_of(token) == Principal(
        kind="token", id="Ab3dEf9h", name="web-ci", tenant="web", policies=("web-team",), scopes=("cert.read",)
    )


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("API.Example.NET.", "api.example.net"),
        ("*.Example.net", "*.example.net"),
        ("**.bücher.example", "**.xn--bcher-kva.example"),
        ("*.例え。example.com", "*.xn--r8jz45g.example.com"),
        (" ** ", "**"),
    ],
)
def test_a_pattern_has_one_spelling(text: str, normal: str) -> None:
    """Names are compared as CAs see them; so must patterns be."""
    assert domain_pattern(text) == normal == domain_pattern(normal)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.",
        "**.",
        "***.example.net",
        "*.*.example.net",
        "**.*.example.net",
        "*.**.example.net",
        "a.*.example.net",
        "w*.example.net",
        "**example.net",
        ".example.net",
        "*..example.net",
        "a..example.net",
        "example.net..",
        "%2e.example.net",
        "example%2enet",
        "10.0.0.1",
        "*.10.0.0.1",
        "https://example.net",
        "example.net/x",
        "xn--zz--zz.example.net",
    ],
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    """A pattern nobody understands alike must not decide anything."""
    with pytest.raises(ValueError, match=r".+"):
        domain_pattern(text)


@given(st.text(alphabet="aA.*%2eü。-xn", max_size=20))
def test_a_pattern_is_a_fixed_point_or_refused(text: str) -> None:
    """Reading what was written must not change it."""
    try:
        normal = domain_pattern(text)
    except ValueError:
        return
    assert domain_pattern(normal) == normal
    PolicyRule(domains=(normal,))


@pytest.mark.parametrize("pattern", ["Example.net", "example.net.", "*.bücher.example", "*"])
def test_a_rule_takes_patterns_in_their_only_spelling(pattern: str) -> None:
    """From the store too: a rule that denies `Example.net` would otherwise deny nothing."""
    with pytest.raises(msgspec.ValidationError, match="domains/1: "):
        msgspec.convert({"effect": "deny", "actions": ["*"], "domains": ["a.example", pattern]}, PolicyRule)


def test_networks_have_one_spelling() -> None:
    """Bits beyond the prefix are a mistake in one or the other."""
    assert network_pattern("2001:DB8::/32") == "2001:db8::/32"
    assert network_pattern("192.0.2.7") == "192.0.2.7/32"
    for wrong in ("192.0.2.7/24", "example.net", "192.0.2.0/33", ""):
        with pytest.raises(ValueError, match="is no network"):
            network_pattern(wrong)
    with pytest.raises(ValueError, match="is spelled"):
        PolicyRule(ips=("192.0.2.7",))


@pytest.mark.parametrize(
    ("pattern", "reference", "fits"),
    [
        ("infra/aws", "infra/aws", True),
        ("infra/aws", "infra/aws/key", True),
        ("infra/aws", "infra/aws-prod/key", False),
        ("infra/aws", "infra/awsome", False),
        ("infra/aws/", "infra/aws/key", True),
        ("infra/aws/", "infra/aws", False),
        ("infra/aws-", "infra/aws-prod/key", True),
        ("cred:dns_", "cred:dns_token", True),
        ("cred:dns_", "cred:dns", False),
        ("cred:", "cred:dns_token", True),
        ("cred:", "credentials", False),
        ("vault:kv/dns", "vault:kv/dns#token", True),
        ("vault:kv/dns", "vault:kv/dnssec#token", False),
        ("op://infra/", "op://infra/dns/token", True),
        ("file:/", "file:/etc/shadow", True),
        ("file:/etc/ok", "file:/etc/ok/key", True),
        ("file:/etc/ok", "file:/etc/shadow", False),
    ],
)
def test_a_secret_is_meant_by_how_its_reference_begins(pattern: str, reference: str, fits: bool) -> None:
    """At a boundary: who may use one team's secrets may not use those of a team with a longer name."""
    assert secret_pattern(pattern) == pattern
    assert is_plain_reference(reference)
    assert begins_with(pattern, reference) is fits


@pytest.mark.parametrize(
    "reference",
    [
        "infra/aws/../bank/key",
        "infra/aws/./key",
        "infra/aws/..",
        "..",
        "../bank",
        "infra//aws",
        "infra/aws/",
        "/infra",
        "",
        "file://etc/shadow",
        "file:/etc/ok/../shadow",
        "file:/etc/ok/%2e%2e/shadow",
        "vault:kv/ok/..#key",
        "vault:kv/ok/../bank#key",
        "vault:kv/ok?path=bank",
        "infra\\..\\bank",
        "infra/aws key",
        "infra/aws\n",
        "infra/aws\0",
    ],
)
def test_a_reference_that_may_lead_elsewhere_is_not_plain(reference: str) -> None:
    """It begins like one secret, and may be another one."""
    assert not is_plain_reference(reference)


@pytest.mark.parametrize("pattern", ["", "*", "infra/*", "infra//", "../", "infra/../bank/", "file://", "a b", "/"])
def test_a_beginning_that_no_reference_has_is_refused(pattern: str) -> None:
    """A rule that denies by it would deny nothing."""
    with pytest.raises(ValueError, match=r".+"):
        secret_pattern(pattern)
    with pytest.raises(msgspec.ValidationError, match="secrets/1: "):
        msgspec.convert({"actions": ["secret.use"], "secrets": ["a", pattern]}, PolicyRule)


@example("#..", "")
@example("a#", "..")
@given(st.text(alphabet="ab/.:-_#%", max_size=12), st.text(alphabet="ab/.:-_#%", max_size=12))
def test_what_follows_a_beginning_stays_below_it(pattern: str, rest: str) -> None:
    """Whatever is appended, the place that is named does not change, only what is taken there."""
    try:
        secret_pattern(pattern)
    except ValueError:
        return
    reference = pattern + rest
    if is_plain_reference(reference) and begins_with(pattern, reference):
        assert ".." not in reference.replace("#", "/").split("/")
        assert rest == "" or pattern[-1] in "/:_-" or rest[0] in "/#"


@pytest.mark.parametrize(
    "text", ["token:web-*", "token:*", "token:Ab3dEf9h", "nats:APP/*", "nats:APP/web", "mtls:spiffe://x/*", "unix:33"]
)
def test_principals_can_be_named(text: str) -> None:
    """One by one, by how they begin, or all of a kind."""
    assert principal_pattern(text) == text


@pytest.mark.parametrize(
    "text", ["*", "", "web", "tok*", "token:", "token:w*b", "unix:3*", "unix:033", "nkey:U*", "system*", "**"]
)
def test_patterns_for_nobody_in_particular_are_refused(text: str) -> None:
    """`unix:3*` would be whoever has such a number, and `unix:033` denies nobody anything."""
    with pytest.raises(ValueError, match="names no principal"):
        Policy(name="web", principals=(text,))


@pytest.mark.parametrize("name", ["web\n", "Web", "-web", "we b", "wéb"])
def test_a_policy_has_a_plain_name(name: str) -> None:
    """Tokens and audit records speak of policies by name."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"name": name}, Policy)


def test_a_rule_with_an_unknown_member_is_no_rule() -> None:
    """A condition that is not understood must not be left out."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"actions": ["cert.read"], "domain": ["a.example.net"]}, PolicyRule)


def test_an_audit_entry_is_in_utc() -> None:
    """One moment, one text: the hash is over the text."""
    with pytest.raises(ValueError, match="UTC"):
        AuditEntry(
            at=NOW.astimezone(timezone(timedelta(hours=1))),
            principal="system",
            tenant="default",
            action="cert.read",
            object="",
            decision="allow",
            result="ok",
            request_id="req_1",
        )
