"""From what a request says to the terms of an order: shared by `pki.acme.issue` and `pki.certificates.update`.

What is certain to fail is refused here, with a pointer to the member that is wrong; where names lead and what the CA
thinks of them is found out by the order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme.csr import at_csr, read_csr
from scaivaultd.acme.signing import thumbprint_in
from scaivaultd.model.dns import PropagationOverride
from scaivaultd.model.errors import (
    Conflict,
    FieldError,
    InvalidRequest,
    NotFound,
    UnsupportedChallenge,
)
from scaivaultd.model.ids import AccountId
from scaivaultd.model.names import Identifier, parse_identifiers, require_provable
from scaivaultd.model.resources import Account, KeyType, Terms
from scaivaultd.services.accounts import require_usable
from scaivaultd.services.compromised_keys import is_compromised
from scaivaultd.services.dns_providers import require_resolvers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from scaivaultd.acme.csr import CsrRequest
    from scaivaultd.api import messages as m
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.dns_providers import DnsProviders
    from scaivaultd.services.ports import Store
    from scaivaultd.services.solvers import Solvers

DURATION_MAX = 3_153_600_000.0
"""A hundred years, as for durations in seconds."""

_KEY_TYPE_UNSAID: KeyType = "ec-p256"
"""With a CSR nobody can tell whether that was asked for, or nothing."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Lookups(msgspec.Struct, frozen=True, kw_only=True):
    """Where the things that requests name are found."""

    store: Store
    accounts: Accounts
    solvers: Solvers
    providers: DnsProviders


async def terms_from(request: m.Issue, lookups: Lookups, now: datetime) -> Terms:
    """The terms of a new certificate.

    Raises:
        NotFound, AccountUnusable: one of its accounts is not there, or cannot order.
        Conflict: the key of its CSR is in wrong hands.
        InvalidRequest: its names, its CSR or one of its other members cannot be meant.
        UnsupportedChallenge: the names cannot be proven that way, or nobody here solves that challenge.
    """
    if not request.domains and request.csr is None:
        raise _no_names()  # before anything is looked up: it is what the caller has forgotten
    accounts = accounts_of(request.account_id, request.account_ids)
    loaded = await usable(accounts, lookups.accounts, request)
    csr = None if request.csr is None else await csr_from(request.csr, lookups.store, lookups.accounts)
    identifiers = identifiers_from(request.domains, csr)
    if csr is not None and request.key_type not in (_KEY_TYPE_UNSAID, csr.key_type):
        raise not_that_of_the_csr(csr.key_type)
    require_names(request.domains, csr, loaded, request.challenge_type)
    lookups.solvers.get(request.challenge_type, request.solver)
    terms = Terms(
        account_id=accounts[0],
        account_ids=accounts if len(accounts) > 1 else (),
        identifiers=identifiers,
        challenge_type=request.challenge_type,
        key_type=request.key_type if csr is None else csr.key_type,
        solver=request.solver,
        dns_provider=request.dns_provider,
        propagation=override_of(request.propagation),
        profile=request.profile,
        profile_is_required=request.profile_policy == "required",
        preferred_chain=request.preferred_chain,
        lifetime_seconds=_lifetime(request.not_after, now),
        reuse_key=request.reuse_key,
        csr_der=None if csr is None else csr.der,
    )
    await require_dns(terms, lookups.providers)
    return terms


def seconds_of(duration: float | str, pointer: str = "/renew_before") -> float:
    """`90m`, `36h`, `30d` or a number of seconds, as seconds.

    Raises:
        InvalidRequest: nothing at all, or more than a hundred years.
    """
    seconds = float(int(duration[:-1]) * _UNITS[duration[-1]]) if isinstance(duration, str) else float(duration)
    if not 0 < seconds <= DURATION_MAX:
        raise invalid(pointer, "out_of_range", f"{duration!r}: more than nothing is meant, and at most a hundred years")
    return seconds


def accounts_of(account_id: str, further: Iterable[str]) -> tuple[AccountId, ...]:
    """The accounts to try in their order, each once."""
    return tuple(dict.fromkeys(AccountId(each) for each in (account_id, *further)))


def override_of(request: m.PropagationRequest | None) -> PropagationOverride | None:
    """What a request says of propagation."""
    if request is None:
        return None
    return PropagationOverride(
        visibility=request.visibility,
        timeout=request.timeout,
        interval=request.interval,
        resolvers=None if request.resolvers is None else tuple(request.resolvers),
        delay=request.delay,
        on_failure=request.on_failure,
    )


async def csr_from(text: str, store: Store, accounts: Accounts) -> CsrRequest:
    """A caller's CSR.

    Raises:
        InvalidRequest: it cannot be taken, or has the key of an account (RFC 8555 section 11.1).
        Conflict: its key must not be certified again.
    """
    csr = read_csr(text)
    if await is_compromised(store, csr.spki_sha256):
        detail = "the key of this CSR was revoked as compromised; make another key, and a CSR with it"
        raise Conflict(detail, [FieldError(pointer="/csr", code="compromised_key", detail=detail)])
    if (account_id := await accounts.with_key(thumbprint_in(csr.der))) is not None:
        raise invalid("/csr", "account_key", f"this is the key of account {account_id}; a certificate needs its own")
    return csr


def identifiers_from(domains: Sequence[str], csr: CsrRequest | None) -> tuple[Identifier, ...]:
    """The names that are asked for; raises InvalidRequest if there are none, or if the two do not say the same."""
    if not domains and csr is None:
        raise _no_names()
    named = parse_identifiers(domains, public_ca=False) if domains else ()
    if csr is None:
        return named
    if domains:
        require_same_names(csr, named, "/domains")
    return csr.identifiers


def _no_names() -> InvalidRequest:
    return invalid("/domains", "missing_field", "give domains, or a csr")


def require_same_names(csr: CsrRequest, named: Iterable[Identifier], pointer: str) -> None:
    """Refuse a CSR for other names than those that are asked for: a CA takes no other CSR than one for all of them."""
    wanted, there = set(named), set(csr.identifiers)
    if wanted == there:
        return
    differences = {"missing in the CSR": wanted - there, "in the CSR but not asked for": there - wanted}
    detail = "; ".join(f"{how}: {', '.join(sorted(map(str, those)))}" for how, those in differences.items() if those)
    raise invalid(pointer, "not_the_names_of_the_csr", detail)


def not_that_of_the_csr(key_type: KeyType) -> InvalidRequest:
    """The error about a `key_type` that differs from the CSR's."""
    return invalid("/key_type", "not_that_of_the_csr", f"the key of the CSR is {key_type}; it cannot be another")


def one_name(text: str) -> Identifier:
    """The name that is looked for; raises InvalidRequest."""
    try:
        (identifier,) = parse_identifiers([text], public_ca=False)
    except InvalidRequest as error:
        raise invalid("/domain", error.fields[0].code, error.fields[0].detail) from None
    return identifier


def require_names(
    domains: Sequence[str], csr: CsrRequest | None, accounts: Iterable[Account], challenge_type: str
) -> None:
    """Refuse names that these accounts' CAs may not certify, or that cannot be proven that way.

    Raises:
        InvalidRequest, UnsupportedChallenge: pointing at the caller's own texts, or at the CSR.
    """
    texts = domains or ([str(each) for each in csr.identifiers] if csr is not None else ())
    public_ca = any(each.provider != "custom" for each in accounts)
    try:
        parse_identifiers(texts, public_ca=public_ca)
        require_provable(texts, challenge_type)
    except InvalidRequest as error:
        if domains:
            raise
        raise at_csr(error) from None


async def usable(
    account_ids: Iterable[str], accounts: Accounts, request: m.Issue | m.UpdateCertificate
) -> list[Account]:
    """The accounts, each of which can order or may still be registered; raises NotFound and AccountUnusable.

    NotFound points at the member of `request` that names it.
    """
    loaded = []
    for account_id in account_ids:
        try:
            loaded.append((await accounts.load(account_id)).value)
        except NotFound as error:
            raise not_found(_pointer_to(account_id, request), error.detail) from None
    for account in loaded:
        require_usable(account)
    return loaded


def _pointer_to(account_id: str, request: m.Issue | m.UpdateCertificate) -> str:
    further = request.account_ids or []
    return f"/account_ids/{further.index(account_id)}" if account_id in further else "/account_id"


async def require_dns(terms: Terms, providers: DnsProviders) -> None:
    """Refuse what is said of DNS for another challenge than dns-01, and dns-01 that nobody can serve.

    Raises:
        InvalidRequest: with a pointer to the member.
        UnsupportedChallenge: there is no DNS provider at all.
    """
    if terms.challenge_type != "dns-01":
        for member in ("dns_provider", "propagation"):
            if getattr(terms, member) is not None:
                raise invalid(f"/{member}", "not_for_this_challenge", f"{member} goes with dns-01 only")
        return
    _require_resolvers(terms.propagation)
    if terms.dns_provider is not None:
        try:
            await providers.find(terms.dns_provider)
        except NotFound as error:
            raise invalid("/dns_provider", "not_found", error.detail) from None
    elif terms.solver in (None, "dns-01") and not await providers.all():
        detail = "no DNS provider is configured; create one with pki.dns_providers.create"
        field = FieldError(pointer="/challenge_type", code="no_dns_provider", detail=detail)
        raise UnsupportedChallenge(detail, [field])


def _require_resolvers(wishes: PropagationOverride | None) -> None:
    if wishes is None or wishes.resolvers is None:
        return
    require_resolvers(wishes.resolvers, "/propagation/resolvers")
    if wishes.visibility == "resolvers" and not wishes.resolvers:
        raise invalid("/propagation/resolvers", "empty", "visibility `resolvers` needs somebody to ask")


def invalid(pointer: str, code: str, detail: str) -> InvalidRequest:
    """The error about one member of a request."""
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])


def not_found(pointer: str, detail: str) -> NotFound:
    """The error about a member that names something that is not there."""
    return NotFound(detail, [FieldError(pointer=pointer, code=NotFound.code, detail=detail)])


def _lifetime(not_after: datetime | None, now: datetime) -> float | None:
    if not_after is None:
        return None
    seconds = (not_after - now).total_seconds()
    if seconds <= 0:
        raise invalid("/not_after", "in_the_past", f"{not_after.isoformat()} is in the past")
    return seconds
