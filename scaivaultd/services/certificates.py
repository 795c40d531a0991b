"""Certificates as callers see them: record, versions, PEM, private key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme import x509
from scaivaultd.api import messages as m
from scaivaultd.model.errors import Internal, NotFound
from scaivaultd.model.resources import terms_of
from scaivaultd.services import key_delivery, visible
from scaivaultd.services.documents import CERTIFICATES, KEYS, RENEWALS, VERSIONS, version_id
from scaivaultd.services.jobs import side_by_side
from scaivaultd.services.owners import shown_owner
from scaivaultd.services.renewals import due_at
from scaivaultd.services.requests import one_name
from scaivaultd.services.revocation_targets import serial_of

if TYPE_CHECKING:
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.resources import Certificate, Issued, Renewal
    from scaivaultd.services.ports import Sealer, Store


class Certificates:
    """Handlers of `pki.certificates.*` that only read."""

    def __init__(self, *, store: Store, sealer: Sealer, clock: Clock, log: FilteringBoundLogger) -> None:
        self._store = store
        self._clock = clock
        self._sealer = sealer
        self._log = log

    async def get(self, request: m.CertificateById, context: RequestContext) -> m.CertificateReply:
        """Handle `pki.certificates.get`."""
        return await self.reply(await self._load(request.id))

    async def list(self, request: m.ListCertificates, context: RequestContext) -> m.CertificateList:
        """Handle `pki.certificates.list`."""
        sees = visible.certificates(self._store, context.permits)
        page = await CERTIFICATES.page_seen(
            self._store, sees, where=_where(request), cursor=request.cursor, limit=request.limit
        )
        items = await side_by_side([self.reply(each.value) for each in page.items])
        return m.CertificateList(items=items, next_cursor=page.next_cursor)

    async def versions(self, request: m.ListVersions, context: RequestContext) -> m.VersionList:
        """Handle `pki.certificates.versions`."""
        # The current one first: what becomes an earlier version in between is then found twice, and never missed.
        current = await self._load(request.id)
        page = await VERSIONS.page_seen(
            self._store,
            visible.versions(self._store, context.permits, current),
            where={"certificate": current.id},
            cursor=request.cursor,
            limit=request.limit,
        )
        earlier = [each.value for each in page.items if each.value.version < current.version]
        items = [_version(each, current) for each in earlier]
        if page.next_cursor is not None:
            return m.VersionList(items=items, next_cursor=page.next_cursor)
        if len(items) < request.limit:
            return m.VersionList(items=[*items, _version(current, current)], next_cursor=None)
        return m.VersionList(items=items, next_cursor=version_id(current.id, earlier[-1].version))

    async def pem(self, request: m.CertificatePem, context: RequestContext) -> m.PemReply:
        """Handle `pki.certificates.pem`."""
        issued = await self._issued(request.id, request.version)
        leaf, *chain = x509.split_chain(issued.chain_pem)
        parts = {"leaf": leaf, "chain": "".join(chain), "fullchain": issued.chain_pem}
        return m.PemReply(id=request.id, version=issued.version, part=request.part, pem=parts[request.part])

    async def key(self, request: m.CertificateKey, context: RequestContext) -> m.KeyReply:
        """Handle `pki.certificates.key`; every answer leaves a log record."""
        recipient = None if request.recipient_key is None else key_delivery.recipient_from(request.recipient_key)
        key_delivery.require_way_back(takes_keys=context.takes_keys or recipient is not None)
        issued = await self._issued(request.id, request.version)
        if issued.key_id is None:
            raise NotFound(
                f"the private key of {request.id}, version {issued.version}, was never here: its CSR came from a caller"
            )
        stored = await KEYS.get(self._store, issued.key_id)
        if stored is None:
            raise NotFound(f"the private key of {request.id}, version {issued.version}, is not in the store")
        private_key = self._sealer.open(stored.value.sealed, KEYS.key(issued.key_id), "private_key")
        # Which key is whose stands in the store without a seal: another's, or an account's, must not go out instead.
        if x509.spki_of_key(private_key) != x509.spki_of_chain(issued.chain_pem):
            raise Internal(
                f"{issued.key_id} is not the key of {request.id}, version {issued.version}: look at the store"
            )
        private_key_pem = x509.private_key_pem(private_key)
        self._log.info(
            "certificate.key_read",
            certificate_id=request.id,
            version=issued.version,
            principal=str(context.principal),
            is_sealed=recipient is not None,
            request_id=context.request_id,
        )
        reply = m.KeyReply(id=request.id, version=issued.version, key_type=issued.key_type)
        if recipient is None:
            return msgspec.structs.replace(reply, private_key_pem=private_key_pem)
        info = key_delivery.info_for(request.id, issued.version, context.principal)
        return msgspec.structs.replace(
            reply, sealed_key=key_delivery.sealed(private_key_pem, recipient, info), sealed_for=info
        )

    async def reply(self, certificate: Certificate) -> m.CertificateReply:
        """A certificate as callers see it, with what is known of its renewal."""
        renewal = await RENEWALS.get(self._store, certificate.id)
        return m.CertificateReply(
            id=certificate.id,
            order_id=certificate.order_id,
            account_id=certificate.account_id,
            status=certificate.status,
            domains=[str(each) for each in certificate.identifiers],
            version=certificate.version,
            serial_number=certificate.serial_number,
            fingerprint_sha256=certificate.fingerprint_sha256,
            issuer=certificate.issuer,
            key_type=certificate.key_type,
            challenge_type=certificate.challenge_type,
            auto_renew=certificate.auto_renew,
            not_before=certificate.not_before,
            not_after=certificate.not_after,
            created_at=certificate.created_at,
            issued_at=certificate.issued_at,
            has_private_key=certificate.key_id is not None,
            revocation=certificate.revocation,
            renewal=None if renewal is None else _renewal(renewal.value, self._clock.now()),
            terms=_terms(certificate),
            requested_by=shown_owner(certificate.requested_by),
        )

    async def _load(self, certificate_id: str) -> Certificate:
        certificate = await CERTIFICATES.get(self._store, certificate_id)
        if certificate is None:
            raise NotFound(f"there is no certificate {certificate_id[:100]!r}")
        return certificate.value

    async def _issued(self, certificate_id: str, version: int | None) -> Issued:
        current = await self._load(certificate_id)
        if version in (None, current.version):
            return current
        earlier = await VERSIONS.get(self._store, version_id(current.id, version))
        if earlier is None:
            raise NotFound(f"certificate {current.id} has no version {version}; its current one is {current.version}")
        return earlier.value


def _where(request: m.ListCertificates) -> dict[str, str | None]:
    serial = request.serial_number
    where = {
        "serial": None if serial is None else serial_of(serial),
        "status": request.status,
        "account": request.account_id,
    }
    if request.domain is None:
        return where
    # The store goes along the first pair: what few certificates have comes first.
    return {f"domain:{one_name(request.domain)}": "yes", **where}


def _renewal(renewal: Renewal, now: datetime) -> m.RenewalReply:
    window = renewal.point.window if renewal.point else None
    return m.RenewalReply(
        moment=due_at(renewal, now),
        next_try_at=renewal.next_try_at,
        attempt=renewal.attempt,
        error=renewal.error,
        order_id=renewal.order_id,
        is_stopped=renewal.is_stopped,
        window_start=window.start if window else None,
        window_end=window.end if window else None,
        explanation_url=renewal.explanation_url,
        window_polled_at=renewal.poll_at,
    )


def _terms(certificate: Certificate) -> m.TermsReply:
    terms = terms_of(certificate)
    return m.TermsReply(
        account_ids=list(terms.accounts),
        domains=[str(each) for each in terms.identifiers],
        challenge_type=terms.challenge_type,
        key_type=terms.key_type,
        reuse_key=terms.reuse_key,
        profile=terms.profile,
        profile_policy="required" if terms.profile_is_required else "preferred",
        preferred_chain=terms.preferred_chain,
        lifetime_seconds=terms.lifetime_seconds,
        solver=terms.solver,
        dns_provider=terms.dns_provider,
        has_csr=terms.csr_der is not None,
        renew_before_seconds=certificate.renew_before_seconds,
    )


def _version(issued: Issued, current: Certificate) -> m.VersionReply:
    return m.VersionReply(
        id=current.id,
        version=issued.version,
        is_current=issued.version == current.version,
        status=issued.status,
        order_id=issued.order_id,
        account_id=issued.account_id,
        domains=[str(each) for each in issued.identifiers],
        key_type=issued.key_type,
        serial_number=issued.serial_number,
        fingerprint_sha256=issued.fingerprint_sha256,
        issuer=issued.issuer,
        not_before=issued.not_before,
        not_after=issued.not_after,
        issued_at=issued.issued_at,
        has_private_key=issued.key_id is not None,
        revocation=issued.revocation,
    )
