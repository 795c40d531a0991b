"""What CAs limit: rules as data, presets (state: November 2026), what a request counts as, the words of a refusal.

A rule is a token bucket: it holds `amount` tokens and refills evenly, the whole of it in
`window_seconds`. A CA that counts in a rolling window allows less than a bucket of the same size
(a full bucket and its refill fit into one window); half the amount keeps within such a rule.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import msgspec
from msgspec import Meta

from scaivaultd.acme.directories import directory_url_for
from scaivaultd.model.names import name_set_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.model.errors import Problem
    from scaivaultd.model.names import Identifier

Kind = Literal["new_accounts", "new_orders", "certificates", "failed_authorizations"]
Scope = Literal["address", "account", "registered_domain", "name_set", "name"]
Cause = Literal["new", "renewal", "ari"]

_SCOPES: dict[Kind, tuple[Scope, ...]] = {
    "new_accounts": ("address",),
    "new_orders": ("address", "account", "registered_domain", "name_set"),
    "certificates": ("address", "account", "registered_domain", "name_set"),
    "failed_authorizations": ("account", "name"),
}


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One limit of a CA."""

    kind: Annotated[Kind, Meta(description="What the CA counts.")]
    scope: Annotated[
        Scope,
        Meta(
            description="What has a budget of its own: this host's address, an ACME account, a registered domain "
            "(public suffix list; an IPv4 address, an IPv6 /64), an exact set of names, or a name within an account."
        ),
    ]
    amount: Annotated[int, Meta(ge=1, le=1_000_000, description="How many are allowed in one burst.")]
    window_seconds: Annotated[
        int, Meta(ge=1, le=366 * 86_400, description="Seconds in which a spent budget refills, evenly.")
    ]
    reserve_percent: Annotated[
        int,
        Meta(
            ge=0,
            le=99,
            description="The last part of the budget, kept for renewals; without effect where renewals are exempt.",
        ),
    ] = 10
    exempt: Annotated[
        tuple[Cause, ...],
        Meta(
            description="Who spends nothing here: `renewal` (the same set of names again), `ari` (with `replaces`, "
            "within the window the CA suggested)."
        ),
    ] = ()

    def __post_init__(self) -> None:
        """Refuse what can never be counted.

        Raises:
            ValueError: `kind` and `scope` do not go together.
        """
        if self.scope not in _SCOPES[self.kind]:
            raise ValueError(f"{self.kind} are counted per {' or '.join(_SCOPES[self.kind])}, not per {self.scope}")

    @property
    def limit(self) -> str:
        """Its name in answers and errors: `new_orders_per_account`."""
        return limit_name(self.kind, self.scope)

    @property
    def interval(self) -> timedelta:
        """The time one token takes; rounded up, so that we never count on a token too early."""
        return timedelta(microseconds=-(-self.window_seconds * 1_000_000 // self.amount))

    @property
    def reserved(self) -> int:
        """Tokens that new certificates may not take: none where renewals never draw from the bucket."""
        never_renewed = self.kind == "new_accounts" or "renewal" in self.exempt
        return 0 if never_renewed else self.amount * self.reserve_percent // 100


def limit_name(kind: Kind, scope: Scope) -> str:
    """The name of a limit: `certificates_per_name_set`."""
    return f"{kind}_per_{scope}"


LIMITS = tuple((kind, scope) for kind, scopes in _SCOPES.items() for scope in scopes)
"""Every limit there can be."""


def _letsencrypt(
    accounts: int, orders: int, per_domain: tuple[int, int], per_set: int, failed: int
) -> tuple[Rule, ...]:
    domain_amount, domain_seconds = per_domain
    return (
        Rule(kind="new_accounts", scope="address", amount=accounts, window_seconds=3 * 3600),
        Rule(kind="new_orders", scope="account", amount=orders, window_seconds=3 * 3600, exempt=("renewal", "ari")),
        Rule(
            kind="certificates",
            scope="registered_domain",
            amount=domain_amount,
            window_seconds=domain_seconds,
            exempt=("renewal", "ari"),
        ),
        # A fifth of five is the one token that saves the renewal after somebody has played with `issue`.
        Rule(
            kind="certificates",
            scope="name_set",
            amount=per_set,
            window_seconds=7 * 86_400,
            reserve_percent=20,
            exempt=("ari",),
        ),
        Rule(
            kind="failed_authorizations",
            scope="name",
            amount=failed,
            window_seconds=3600,
            reserve_percent=20,
            exempt=("ari",),
        ),
    )


LETSENCRYPT = _letsencrypt(10, 300, (50, 7 * 86_400), 5, 5)
"""letsencrypt.org/docs/rate-limits."""

LETSENCRYPT_STAGING = _letsencrypt(50, 1500, (30_000, 1), 30_000, 200)
"""letsencrypt.org/docs/staging-environment: the same limits, other amounts."""


def rules_for(directory_url: str) -> tuple[Rule, ...]:
    """The published limits of that CA; none for a CA that publishes none: it teaches us by refusing."""
    if directory_url == directory_url_for("letsencrypt", "production", None):
        return LETSENCRYPT
    if directory_url == directory_url_for("letsencrypt", "staging", None):
        return LETSENCRYPT_STAGING
    return ()


def cause_of(
    now: datetime, *, renews_same_names: bool, replaces: str | None, window: tuple[datetime, datetime] | None
) -> Cause:
    """Which exemptions an order has a claim to.

    `window` is what the CA suggested last (RFC 9773), `replaces` what the order will carry. Before
    and after its window an ARI renewal is an ordinary one: Let's Encrypt exempts it within only.
    """
    if replaces is not None and window is not None and window[0] <= now < window[1]:
        return "ari"
    return "renewal" if renews_same_names else "new"


class PublicSuffixes(Protocol):
    """The public suffix list, as `publicsuffixlist.PublicSuffixList` has it."""

    def privatesuffix(self, domain: str, /) -> str | None:
        """The public suffix and one label more; None when `domain` is a public suffix itself."""
        ...


def registered_domain(identifier: Identifier, suffixes: PublicSuffixes) -> str:
    """What a limit per registered domain counts by.

    A public suffix counts as itself. Addresses have no registrar: Let's Encrypt takes an IPv4
    address, or the /64 of an IPv6 address.
    """
    if identifier.type == "dns":
        return suffixes.privatesuffix(identifier.base) or identifier.base
    address = ipaddress.ip_address(identifier.value)
    if address.version == 4:
        return address.compressed
    return ipaddress.ip_network((address, 64), strict=False).compressed


class NewAccount(msgspec.Struct, frozen=True):
    """Registering an account."""


class NewOrder(msgspec.Struct, frozen=True, kw_only=True):
    """One order, and the certificate it is for; made by `order_for`.

    `account` is any text that stands for the account (no two for one), `names` are without `*.`.
    """

    account: str
    cause: Cause
    names: tuple[str, ...]
    domains: tuple[str, ...]
    name_set: str


Request = NewAccount | NewOrder


def order_for(account: str, identifiers: Sequence[Identifier], cause: Cause, suffixes: PublicSuffixes) -> NewOrder:
    """What an order for `identifiers` (at least one) will be counted by."""
    ordered = sorted(identifiers)
    return NewOrder(
        account=account,
        cause=cause,
        names=tuple(dict.fromkeys(each.base for each in ordered)),
        domains=tuple(dict.fromkeys(registered_domain(each, suffixes) for each in ordered)),
        # The digest alone would tell nobody which certificate it is about.
        name_set=f"{ordered[0].base}+{len(ordered) - 1}/{name_set_key(ordered)}",
    )


def account_of(request: Request) -> str:
    """The account a request belongs to; none yet for a new one."""
    return request.account if isinstance(request, NewOrder) else ""


def cause_in(request: Request) -> Cause:
    """The claim a request has to exemptions; registering has none."""
    return request.cause if isinstance(request, NewOrder) else "new"


def subjects_of(request: Request, kind: Kind, scope: Scope) -> tuple[str, ...]:
    """Whose budgets of that limit a request touches: nobody's, one, or one for each name or domain."""
    if isinstance(request, NewAccount) or kind == "new_accounts":
        return ("",) if isinstance(request, NewAccount) and kind == "new_accounts" else ()
    match scope:
        case "address":
            return ("",)
        case "account":
            return (request.account,)
        case "registered_domain":
            return request.domains
        case "name_set":
            return (request.name_set,)
        case "name":
            return tuple(name_within(request.account, each) for each in request.names)


def name_within(account: str, name: str) -> str:
    """The subject of limits per name: CAs count failures for each account apart, a wildcard with its base."""
    return f"{account}/{name.removeprefix('*.')}"


# Let's Encrypt's words (and those of every Boulder), the most telling first: the limit has no member
# of its own in the problem document.
_WORDS: tuple[tuple[str, Kind, Scope], ...] = (
    ("already issued for this exact set", "certificates", "name_set"),
    ("certificates already issued for", "certificates", "registered_domain"),
    ("too many failed authorizations", "failed_authorizations", "name"),
    ("too many new orders", "new_orders", "account"),
    ("too many new registrations", "new_accounts", "address"),
)
_PAUSED = "temporarily prevented from requesting certificates"
_COUNT = re.compile(r" \([0-9]{1,9}\)")
_MOMENT = re.compile(r"retry after ([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:Z| UTC)")
_BETWEEN_NAMES = re.compile(r"[^a-z0-9*_:./-]+")


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """What a CA's refusal says; what it does not say is None or empty.

    `named` are words of the text that may be identifiers, for the caller to compare with its own.
    """

    limit: tuple[Kind, Scope] | None = None
    until: datetime | None = None
    is_pause: bool = False
    named: frozenset[str] = frozenset()


def refusal_from(problem: Problem | None, retry_at: datetime | None) -> Refusal:
    """Read a refusal; `retry_at` (from Retry-After) has precedence over a time in the text."""
    if problem is None:
        return Refusal(until=retry_at)
    text = _COUNT.sub("", problem.detail.lower())
    words = {each.rstrip(".:") for each in _BETWEEN_NAMES.split(text)}
    blamed = {each.identifier.lower() for each in problem.subproblems if each.identifier}
    return Refusal(
        limit=next(((kind, scope) for phrase, kind, scope in _WORDS if phrase in text), None),
        until=retry_at or _moment_in(problem.detail),
        is_pause=_PAUSED in text,
        named=frozenset(each.removeprefix("*.") for each in words | blamed),
    )


def _moment_in(text: str) -> datetime | None:
    match = _MOMENT.search(text)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(f"{match[1]}T{match[2]}").replace(tzinfo=UTC)
    except ValueError:
        return None
