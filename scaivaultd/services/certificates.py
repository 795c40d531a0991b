"""Certificates as callers see them: record, PEM, private key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.acme import x509
from scaivaultd.api import messages as m
from scaivaultd.model.errors import Internal, InvalidRequest, NotFound
from scaivaultd.model.names import parse_identifiers
from scaivaultd.services.documents import CERTIFICATES, KEYS

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.resources import Certificate
    from scaivaultd.services.ports import Sealer, Store


class Certificates:
    """Handlers of `pki.certificates.*`."""

    def __init__(self, *, store: Store, sealer: Sealer, clock: Clock, log: FilteringBoundLogger) -> None:
        self._store = store
        self._clock = clock
        self._sealer = sealer
        self._log = log

    async def get(self, request: m.CertificateById, context: RequestContext) -> m.CertificateReply:
        """Handle `pki.certificates.get`."""
        return _reply(await self._load(request.id))

    async def list(self, request: m.ListCertificates, context: RequestContext) -> m.CertificateList:
        """Handle `pki.certificates.list`."""
        page = await CERTIFICATES.page(
            self._store, where=_where(request.domain), cursor=request.cursor, limit=request.limit
        )
        return m.CertificateList(items=[_reply(each.value) for each in page.items], next_cursor=page.next_cursor)

    async def pem(self, request: m.CertificatePem, context: RequestContext) -> m.PemReply:
        """Handle `pki.certificates.pem`."""
        certificate = await self._load(request.id)
        leaf, *chain = x509.split_chain(certificate.chain_pem)
        parts = {"leaf": leaf, "chain": "".join(chain), "fullchain": certificate.chain_pem}
        return m.PemReply(id=certificate.id, version=certificate.version, part=request.part, pem=parts[request.part])

    async def versions(self, request: m.ListVersions, context: RequestContext) -> m.VersionList:
        """Handle `pki.certificates.versions`."""
        raise Internal("not built yet")

    async def key(self, request: m.CertificateKey, context: RequestContext) -> m.KeyReply:
        """Handle `pki.certificates.key`; every answer leaves a log record."""
        certificate = await self._load(request.id)
        if certificate.key_id is None:
            raise NotFound(f"the private key of {certificate.id} was never here: its CSR came from a caller")
        stored = await KEYS.get(self._store, certificate.key_id)
        if stored is None:
            raise NotFound(f"the private key of {certificate.id} is not in the store")
        private_key = self._sealer.open(stored.value.sealed, KEYS.key(certificate.key_id), "private_key")
        self._log.info("certificate.key_read", certificate_id=certificate.id, request_id=context.request_id)
        return m.KeyReply(
            id=certificate.id,
            version=certificate.version,
            key_type=certificate.key_type,
            private_key_pem=x509.private_key_pem(private_key),
        )

    async def _load(self, certificate_id: str) -> Certificate:
        certificate = await CERTIFICATES.get(self._store, certificate_id)
        if certificate is None:
            raise NotFound(f"there is no certificate {certificate_id[:100]!r}")
        return certificate.value


def _where(domain: str | None) -> dict[str, str | None]:
    if domain is None:
        return {}
    try:
        (identifier,) = parse_identifiers([domain], public_ca=False, pointer="/domain")
    except InvalidRequest as error:
        # The pointer of a list is not ours here.
        raise InvalidRequest(error.detail) from error
    return {f"domain:{identifier}": "yes"}


def _reply(certificate: Certificate) -> m.CertificateReply:
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
    )
