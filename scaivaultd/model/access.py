"""Who may do what, and what they did: principals, API tokens, policies, roles, audit records.

What stands in a policy is in its only spelling, or the Struct refuses it: a pattern that can never match would
allow less than it says, and, in a rule that denies, more. `api/policies.py` reads what people type.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime, timedelta
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from scaivaultd.model.errors import InvalidRequest
from scaivaultd.model.names import Identifier, parse_identifiers
from scaivaultd.model.principals import Principal
from scaivaultd.model.resources import ChallengeType, KeyType

RoleName = Literal["viewer", "issuer", "operator", "admin"]

ANY_TENANT = "*"
"""What a policy for every tenant says in place of one."""

_PRINCIPAL_PATTERN = re.compile(
    r"(?:token|nats|nkey|mtls|unix):\*|(?:token|nats|mtls):[!-)+-~]{1,1000}\*?|nkey:U[A-Z2-7]{55}|unix:(?:0|[1-9][0-9]{0,9})|system"
)

# Nothing that leads elsewhere, and nothing that may be read in two ways; `//` is only for schemes like `op://`.
_NO_DOTS = r"(?!\.{1,2}(?:[/#]|$))"
_REFERENCE_WORD = rf"{_NO_DOTS}(?:[^/#%\\?*\s\x00-\x1f\x7f]|#{_NO_DOTS})+"
_PLAIN_REFERENCE = re.compile(
    rf"(?:file:/|(?!file:)[a-z][a-z0-9+-]*:/{{0,2}})?{_REFERENCE_WORD}(?:/{_REFERENCE_WORD})*"
)
_OPEN_ENDS = ("/", ":", "_", "-")


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An API token as it is kept: a digest of its secret, never the secret.

    `previous_sha256` is the secret before the last rotation, good until `previous_until`. `tenant` None: all tenants.
    `networks` are the addresses it may come from (CIDR), empty for any. `announced` is how many days before its end
    that was announced last.
    """

    id: str
    name: str
    secret_sha256: bytes
    created_at: datetime
    created_by: str
    expires_at: datetime
    tenant: str | None = None
    policies: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    previous_sha256: bytes | None = None
    previous_until: datetime | None = None
    rotated_at: datetime | None = None
    announced: int | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None


def principal_of(token: Token) -> Principal:
    """Who somebody with that token is."""
    return Principal(
        kind="token",
        id=token.id,
        name=token.name,
        tenant=token.tenant,
        policies=token.policies,
        scopes=token.scopes,
    )


class Role(msgspec.Struct, frozen=True, kw_only=True):
    """A name for what a kind of people does."""

    name: RoleName
    summary: str
    actions: frozenset[str]


class Quota(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How much each principal may have by a rule."""

    issue_per_day: Annotated[int, Meta(ge=1, description="New certificates in 24 hours.")] | None = None
    active: Annotated[int, Meta(ge=1, description="Certificates that are valid at one time.")] | None = None


class PolicyRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One rule. To allow, it must fit all of a request, alone; to deny, any part of it."""

    effect: Annotated[Literal["allow", "deny"], Meta(description="A rule that denies beats all that allow.")] = "allow"
    actions: Annotated[
        tuple[str, ...],
        Meta(description="What it is about: `cert.issue`, `cert.*`, `*`. Only `key.read` itself allows to read keys."),
    ] = ()
    roles: Annotated[tuple[RoleName, ...], Meta(description="Actions by the name of a role.")] = ()
    domains: Annotated[
        tuple[str, ...],
        Meta(
            description="Host names: `a.example.net` itself, `*.example.net` one label below it, `**.example.net` any "
            "number of labels below it, `**` all."
        ),
    ] = ()
    wildcards: Annotated[
        bool, Meta(description="Whether `*.name` may be certified where `name` is among the domains.")
    ] = False
    ips: Annotated[tuple[str, ...], Meta(description="Networks (CIDR) whose addresses may be certified.")] = ()
    accounts: Annotated[
        tuple[str, ...] | None, Meta(description="ACME accounts by name, or by id (`acme_...`); all where absent.")
    ] = None
    challenges: Annotated[tuple[ChallengeType, ...] | None, Meta(description="Challenge types; all where absent.")] = (
        None
    )
    key_types: Annotated[tuple[KeyType, ...] | None, Meta(description="Key types; all where absent.")] = None
    secrets: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="Secret references, for `secret.*`. `infra/aws` means itself and what is below it, not "
            "`infra/aws-prod`; what ends in `/`, `:`, `_` or `-` means all that begins so (`cred:dns_`). All where "
            "absent."
        ),
    ] = None
    max_names: Annotated[int, Meta(ge=1, description="Most names in one certificate.")] | None = None
    quota: Annotated[Quota | None, Meta(description="How much each principal may have by this rule.")] = None

    def __post_init__(self) -> None:
        """Refuse patterns that are not in their only spelling.

        Raises:
            ValueError: with that spelling.
        """
        for member, spelling in (("domains", domain_pattern), ("ips", network_pattern), ("secrets", secret_pattern)):
            for place, given in enumerate(getattr(self, member) or ()):
                try:
                    normal = spelling(given)
                except ValueError as error:
                    raise ValueError(f"{member}/{place}: {error}") from None
                if given != normal:
                    raise ValueError(f"{member}/{place}: {given[:80]!r} is spelled {normal!r}")


class Policy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What some principals may do in a tenant."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}\Z", description="Unique among policies.")]
    principals: Annotated[
        tuple[str, ...],
        Meta(
            description="For whom: `token:web-ci` (by name, or by id), `nats:APP/web`, `nkey:U...`, `mtls:...`, "
            "`unix:33`, `system`; a `*` at the end stands for any rest."
        ),
    ] = ()
    tenant: Annotated[str, Meta(min_length=1, max_length=63, description="Where; `*` is every tenant.")] = "default"
    rules: Annotated[tuple[PolicyRule, ...], Meta(description="Its rules.")] = msgspec.field(name="rule", default=())

    def __post_init__(self) -> None:
        """Refuse what can name no principal.

        Raises:
            ValueError: which pattern.
        """
        for each in self.principals:
            principal_pattern(each)


def principal_pattern(text: str) -> str:
    """The text itself, which has one spelling only, where it can name a principal.

    Raises:
        ValueError: it does not begin with a kind of principal, or has a `*` where it has no meaning.
    """
    if not _PRINCIPAL_PATTERN.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} names no principal: write token:NAME, nats:ACCOUNT/USER, nkey:U..., mtls:..., unix:UID or "
            "system; '*' stands for all of a kind, or for the rest of a name"
        )
    return text


def domain_pattern(text: str) -> str:
    """The only spelling of a pattern for host names: A-labels, lower case, no trailing dot.

    Raises:
        ValueError: it is no pattern.
    """
    stripped = text.strip()
    if stripped == "**":
        return stripped
    prefix = next((each for each in ("**.", "*.") if stripped.startswith(each)), "")
    base = stripped.removeprefix(prefix)
    if "*" in base:
        raise ValueError(f"{text[:80]!r}: '*.' or '**.' may only be in front of a name")
    try:
        (identifier,) = parse_identifiers([base], public_ca=False)
    except InvalidRequest as error:
        raise ValueError(error.detail) from None
    if identifier.type == "ip":
        raise ValueError(f"{text[:80]!r}: addresses are allowed by `ips`")
    return f"{prefix}{identifier.value}"


def network_pattern(text: str) -> str:
    """The only spelling of a network; an address alone stands for itself.

    Raises:
        ValueError: it is none, or has bits set beyond its prefix.
    """
    try:
        network = ipaddress.ip_network(text.strip(), strict=True)
    except ValueError as error:
        raise ValueError(f"{text[:80]!r} is no network: {error}") from None
    return network.compressed


def secret_pattern(text: str) -> str:
    """The text itself, which has one spelling only, where references can begin so.

    Raises:
        ValueError: none can.
    """
    if "*" in text:
        raise ValueError(f"{text[:80]!r}: write how references begin, without a '*': infra/aws/")
    if not is_plain_reference(f"{text}x" if text.endswith(_OPEN_ENDS) else text):
        raise ValueError(f"{text[:80]!r}: no reference to a secret begins so")
    return text


def is_plain_reference(reference: str) -> bool:
    """Whether a reference to a secret says where it leads: without `..`, `//`, `%`, `?`, or white space."""
    return _PLAIN_REFERENCE.fullmatch(reference) is not None


def begins_with(pattern: str, reference: str) -> bool:
    """Whether a plain reference is among those that a pattern of `secrets` means."""
    if pattern.endswith(_OPEN_ENDS):
        return reference.startswith(pattern)
    return reference == pattern or reference.startswith((f"{pattern}/", f"{pattern}#"))


class StoredPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy that was written by request."""

    policy: Policy
    created_at: datetime
    updated_at: datetime


class TokenName(msgspec.Struct, frozen=True, kw_only=True):
    """Which token has a name; a name is never given again, since policies speak of tokens by it."""

    name: str
    token_id: str


class AccountRef(msgspec.Struct, frozen=True):
    """An ACME account as policies see it; `id` is None while it is only asked for."""

    id: str | None
    name: str


class CertificateTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What of a certificate, or of an order, policies judge: its names (in normal form), and how it is asked for."""

    names: tuple[Identifier, ...]
    accounts: tuple[AccountRef, ...]
    challenge_type: ChallengeType
    key_type: KeyType


class AccessRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to do, in whose tenant.

    `certificate` is what it is about, `account` the ACME account, `secret` the reference or path of a secret. All None:
    about none, or about many that will be judged one by one. A change of a certificate's names is two requests: as it
    is, and as it will be.
    """

    principal: Principal
    action: str
    tenant: str
    certificate: CertificateTerms | None = None
    account: AccountRef | None = None
    secret: str | None = None


class Reason(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was found about one part of a request, for a person: about a name, or about `action`, `account` ..."""

    about: str
    allowed: bool
    detail: str


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whether, by which rule (of that policy, counted from 1; None: no rule speaks of it), and why.

    `quota` is that rule's: whoever carries the decision out counts.
    """

    allowed: bool
    policy: str | None = None
    rule: int | None = None
    reasons: tuple[Reason, ...] = ()
    quota: Quota | None = None


class Anchor(msgspec.Struct, frozen=True, kw_only=True):
    """How far an audit chain went: the last record's sequence and hash, kept where the chain is not."""

    sequence: int
    hash: str


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What happened. `decision` is by `policy` and its `rule`; `result` is `ok` or the error's code.

    `at` is in UTC. `object` is what it was about, by id or name; `source` where the principal came from.
    """

    at: datetime
    principal: str
    tenant: str
    action: str
    object: str
    decision: Literal["allow", "deny"]
    policy: str | None = None
    rule: int | None = None
    result: str
    request_id: str
    source: str | None = None

    def __post_init__(self) -> None:
        """Refuse a moment that could be written in two ways.

        Raises:
            ValueError: it is not in UTC.
        """
        if self.at.utcoffset() != timedelta(0):
            raise ValueError("an audit record's time is in UTC")


class AuditRecord(AuditEntry, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An entry in its place in the chain; `previous` is the hash of the record before it."""

    sequence: int
    previous: str
