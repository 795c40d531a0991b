"""Changing what a certificate's next orders ask for.

A change and its consequence are one commit: with other names a certificate is due as of then, and whoever comes up
after a stop orders it. An order for the old names is ended before, so that no stop in between leaves it behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from scaivaultd.api import messages as m
from scaivaultd.api.commands import UPDATE_CERTIFICATE
from scaivaultd.model.errors import Conflict, NotFound, RevisionConflict, ScaivaultError
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.resources import UNFINISHED, terms_of
from scaivaultd.model.storage import ABSENT
from scaivaultd.services import renewals
from scaivaultd.services.documents import CERTIFICATES, ORDERS, RENEWALS, Versioned
from scaivaultd.services.idempotency import Repeatable
from scaivaultd.services.owners import owner_in
from scaivaultd.services.requests import (
    accounts_of,
    csr_from,
    invalid,
    not_that_of_the_csr,
    override_of,
    require_dns,
    require_names,
    require_same_names,
    seconds_of,
    usable,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.acme.csr import CsrRequest
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.ids import AccountId
    from scaivaultd.model.names import Identifier
    from scaivaultd.model.resources import Certificate, KeyType, Order, Renewal, Terms
    from scaivaultd.model.storage import Put
    from scaivaultd.services.certificates import Certificates
    from scaivaultd.services.dns_providers import DnsProviders
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.pursuit import Tools
    from scaivaultd.services.quotas import Quotas
    from scaivaultd.services.waiting import Waiting

TRIES_MAX = 20
"""An update gives up when others have changed the certificate so often while it was made."""

_AS_GIVEN = ("challenge_type", "reuse_key", "profile", "preferred_chain", "dns_provider", "solver")
_ORDERED_AT_ONCE = ("identifiers", "csr_der")
_MAY_HELP = ("accounts", "challenge_type", "solver", "dns_provider", "propagation", "profile", "profile_is_required")
"""Terms whose change is a reason to give up an order that does not get on, and to begin anew."""
_MAKE_OWNER = ("identifiers", "accounts", "challenge_type")
"""Terms whose change makes a caller the owner: from then on it is renewed as long as they may have it so."""


class Updating:
    """Handler of `pki.certificates.update`."""

    def __init__(
        self,
        tools: Tools,
        *,
        issuing: Issuing,
        certificates: Certificates,
        providers: DnsProviders,
        quotas: Quotas,
        waiting: Waiting,
    ) -> None:
        self._tools = tools
        self._store = tools.store
        self._issuing = issuing
        self._certificates = certificates
        self._providers = providers
        self._quotas = quotas
        self._waiting = waiting

    async def update(self, request: m.UpdateCertificate, context: RequestContext) -> m.CertificateReply:
        """Handle `pki.certificates.update`."""
        repeatable = Repeatable(UPDATE_CERTIFICATE, request, context)
        begins_anew = False
        for _ in range(TRIES_MAX):
            if await repeatable.made_before(self._store):
                # It may have been changed again since, and this request has had its turn.
                return await self._certificates.reply((await self._load(request.id)).value)
            held = await self._load(request.id)
            changed = await self._changed(request, held.value, context)
            noted = repeatable.changes(held.value.id)
            if changed == held.value and not begins_anew:
                if await self._is_committed(noted):
                    return await self._certificates.reply(held.value)
                continue
            renewal = await RENEWALS.get(self._store, held.value.id)
            order = None if renewal is None else await self._under_way(renewal.value)
            is_ordered = begins_anew or _differ(held.value, changed, _ORDERED_AT_ONCE)
            if order is not None and (is_ordered or (_is_failing(order) and _differ(held.value, changed, _MAY_HELP))):
                await self._end(order, context)
                begins_anew = True
            elif await self._commit(held, changed, renewal, noted, is_ordered=is_ordered):
                if changed.requested_by is not None and changed.requested_by != held.value.requested_by:
                    self._quotas.taken_over(changed.requested_by)
                self._log(held.value, changed, context)
                return await self._followed(changed, request.wait_seconds, is_ordered=is_ordered)
        raise Conflict(f"certificate {request.id} is being changed by others at this moment; ask again")

    async def _changed(
        self, request: m.UpdateCertificate, certificate: Certificate, context: RequestContext
    ) -> Certificate:
        fields: dict[str, Any] = {}
        if request.auto_renew is not UNSET:
            fields["auto_renew"] = request.auto_renew
        if request.renew_before is not UNSET:
            wanted = request.renew_before
            fields["renew_before_seconds"] = None if wanted is None else seconds_of(wanted)
        before = terms_of(certificate)
        terms = await self._terms(request, before)
        if terms != before:
            fields["terms"] = terms
        if _any(before, terms, _MAKE_OWNER):
            fields["requested_by"] = owner_in(context)
        return msgspec.structs.replace(certificate, **fields)

    async def _terms(self, request: m.UpdateCertificate, before: Terms) -> Terms:
        csr = None if request.csr is UNSET else await csr_from(request.csr, self._store, self._tools.accounts)
        accounts = _accounts(request, before)
        terms = msgspec.structs.replace(
            before,
            **_members(request, before),
            account_id=accounts[0],
            account_ids=accounts if len(accounts) > 1 else (),
            identifiers=_identifiers(request, before, csr),
            key_type=_key_type(request, before, csr),
            csr_der=before.csr_der if csr is None else csr.der,
        )
        await self._check(request, before, terms, csr)
        return terms

    async def _check(self, request: m.UpdateCertificate, before: Terms, terms: Terms, csr: CsrRequest | None) -> None:
        """What is not changed is not judged again: it must not stand in the way of what is."""
        if terms.accounts != before.accounts:
            await usable(terms.accounts, self._tools.accounts, request)
        if csr is not None or _any(before, terms, ("accounts", "challenge_type", "identifiers")):
            accounts = [(await self._tools.accounts.load(each)).value for each in terms.accounts]
            domains = [str(each) for each in terms.identifiers] if request.domains is UNSET else request.domains
            require_names(domains if csr is None else (), csr, accounts, terms.challenge_type)
        if _any(before, terms, ("challenge_type", "solver")):
            self._tools.solvers.get(terms.challenge_type, terms.solver)
        if _any(before, terms, ("challenge_type", "solver", "dns_provider", "propagation")):
            await require_dns(terms, self._providers)

    async def _under_way(self, renewal: Renewal) -> Order | None:
        order = None if renewal.order_id is None else await ORDERS.get(self._store, renewal.order_id)
        return order.value if order is not None and order.value.status in UNFINISHED else None

    async def _end(self, order: Order, context: RequestContext) -> None:
        try:
            await self._issuing.cancel(m.CancelOrder(order_id=order.id), context)
        except Conflict:
            ended = await ORDERS.get(self._store, order.id)
            if ended is not None and ended.value.status in UNFINISHED:
                raise

    async def _commit(
        self,
        held: Versioned[Certificate],
        changed: Certificate,
        renewal: Versioned[Renewal] | None,
        noted: Sequence[Put],
        *,
        is_ordered: bool,
    ) -> bool:
        if renewal is None:
            begun = renewals.begun(
                changed, None, now=self._tools.clock.now(), fraction=self._tools.randomness.fraction()
            )
            renewal = Versioned(begun, ABSENT)
        puts = [
            CERTIFICATES.put(changed, held.revision),
            RENEWALS.put(_renewal(renewal.value, changed, is_ordered=is_ordered), renewal.revision),
            *noted,
        ]
        if not await self._is_committed(puts):
            return False
        self._tools.renewals.tell(changed.id)
        return True

    async def _is_committed(self, puts: Sequence[Put]) -> bool:
        """Commit; False when others were faster, and it is to be looked at again."""
        try:
            if puts:
                await self._store.commit(puts)
        except RevisionConflict:
            return False
        return True

    async def _followed(self, changed: Certificate, wait_seconds: float, *, is_ordered: bool) -> m.CertificateReply:
        if not is_ordered:
            return await self._certificates.reply(changed)
        try:
            await self._issuing.renew(changed.id, "update")
        except ScaivaultError as error:
            # The change stands and is due: it is ordered in its turn, and what is wrong then shows in the renewal.
            self._tools.log.warning(
                "certificate.update_not_ordered",
                certificate_id=changed.id,
                error_code=error.code,
                detail=error.detail,
            )
        shown = await self._waiting.until(
            CERTIFICATES, changed.id, wait_seconds, lambda each: each.version > changed.version
        )
        return await self._certificates.reply(shown)

    def _log(self, before: Certificate, changed: Certificate, context: RequestContext) -> None:
        old, new = terms_of(before), terms_of(changed)
        members = [each for each in old.__struct_fields__ if getattr(old, each) != getattr(new, each)]
        members += [
            each for each in ("auto_renew", "renew_before_seconds") if getattr(before, each) != getattr(changed, each)
        ]
        self._tools.log.info(
            "certificate.updated", certificate_id=changed.id, members=members, request_id=context.request_id
        )

    async def _load(self, certificate_id: str) -> Versioned[Certificate]:
        certificate = await CERTIFICATES.get(self._store, certificate_id)
        if certificate is None:
            raise NotFound(f"there is no certificate {certificate_id[:100]!r}")
        return certificate


def _accounts(request: m.UpdateCertificate, before: Terms) -> tuple[AccountId, ...]:
    first, *further = before.accounts
    return accounts_of(
        first if request.account_id is UNSET else request.account_id,
        further if request.account_ids is UNSET else request.account_ids,
    )


def _identifiers(request: m.UpdateCertificate, before: Terms, csr: CsrRequest | None) -> tuple[Identifier, ...]:
    if request.domains is UNSET:
        if csr is not None:
            require_same_names(csr, before.identifiers, "/csr")
        return before.identifiers
    named = parse_identifiers(request.domains, public_ca=False)
    if set(named) == set(before.identifiers):
        named = before.identifiers
    elif csr is None and before.csr_der is not None:
        raise invalid("/csr", "missing_field", "these names are not those of the caller's CSR: give another csr too")
    if csr is not None:
        require_same_names(csr, named, "/domains")
    return named


def _members(request: m.UpdateCertificate, before: Terms) -> dict[str, Any]:
    given = {each: value for each in _AS_GIVEN if (value := getattr(request, each)) is not UNSET}
    if request.profile_policy is not UNSET:
        given["profile_is_required"] = request.profile_policy == "required"
    if request.propagation is not UNSET:
        given["propagation"] = override_of(request.propagation)
    if given.get("challenge_type", before.challenge_type) == before.challenge_type:
        return given
    # What was said for the other challenge says nothing for this one.
    return {"solver": None, "dns_provider": None, "propagation": None, **given}


def _key_type(request: m.UpdateCertificate, before: Terms, csr: CsrRequest | None) -> KeyType:
    if csr is None and before.csr_der is None:
        return before.key_type if request.key_type is UNSET else request.key_type
    there = before.key_type if csr is None else csr.key_type
    if request.key_type not in (UNSET, there):
        raise not_that_of_the_csr(there)
    return there


def _renewal(renewal: Renewal, certificate: Certificate, *, is_ordered: bool) -> Renewal:
    """As it is after a change; nothing is remembered of failures of what was asked for before."""
    anew = msgspec.structs.replace(
        renewal,
        auto_renew=certificate.auto_renew,
        renew_before_seconds=certificate.renew_before_seconds,
        attempt=0,
        next_try_at=None,
        error=None,
        is_stopped=False,
    )
    if not is_ordered:
        return anew
    return renewals.asked_for(msgspec.structs.replace(anew, order_id=None), "update")


def _is_failing(order: Order) -> bool:
    return order.attempt > 0 or order.error is not None


def _differ(before: Certificate, changed: Certificate, members: tuple[str, ...]) -> bool:
    return _any(terms_of(before), terms_of(changed), members)


def _any(before: Terms, terms: Terms, members: tuple[str, ...]) -> bool:
    return any(getattr(before, each) != getattr(terms, each) for each in members)
