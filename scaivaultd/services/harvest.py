"""The certificate of an order: fetched, judged, and committed with all that follows from it (write order, step 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from scaivaultd.acme import x509
from scaivaultd.acme.directories import ca_name
from scaivaultd.api import events
from scaivaultd.model import metrics
from scaivaultd.model.errors import CertificatePending, Conflict, Internal, RevisionConflict, ScaivaultError
from scaivaultd.model.resources import Certificate, CertificateVersion, Issued, NamePointer, terms_in
from scaivaultd.model.storage import ABSENT, Delete
from scaivaultd.services import renewals
from scaivaultd.services.compromised_keys import COMPROMISED, is_compromised
from scaivaultd.services.documents import (
    CERTIFICATES,
    KEYS,
    NAME_POINTERS,
    RENEWALS,
    VERSIONS,
    name_pointer_id,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.resources import Account, Challenge, Order
    from scaivaultd.model.storage import Change, OutboxEvent
    from scaivaultd.services.documents import Versioned
    from scaivaultd.services.order_record import OrderRecord
    from scaivaultd.services.ports import CaClient
    from scaivaultd.services.pursuit import Tools

T = TypeVar("T")

PATIENCE_SECONDS = 10.0
"""The longest pause made for a certificate that is not there yet; a CA that wants more is left for the next attempt."""
_LAGS_SECONDS = (0.2, 0.5, 1.0, 2.0)


class Harvest:
    """The last part of an attempt."""

    def __init__(
        self, tools: Tools, record: OrderRecord, account: Account, client: CaClient, log: FilteringBoundLogger
    ) -> None:
        self._tools = tools
        self._record = record
        self._account = account
        self._client = client
        self._log = log

    @property
    def _order(self) -> Order:
        return self._record.order

    async def download(self, url: str, challenges: tuple[Challenge, ...]) -> Certificate:
        """Fetch the chain at `url` and keep it; `challenges` are the order's, as they ended.

        Raises:
            CertificateRefused: it is not what was asked for; nothing was kept, and what was there before still is.
        """
        try:
            chain, warnings = await self._chain(url)
        except ScaivaultError:
            if self._order.certificate_url is None:
                # From now on the CA is not at work any more, and the patience for that does not count.
                await self._record.commit(certificate_url=url, status="processing")
            raise
        if not chain.has_authority_key_identifier:
            self._log.warning("certificate.no_authority_key_identifier", serial_number=chain.serial_number)
        return await self._keep(chain, challenges, warnings)

    async def csr(self) -> bytes:
        """The CSR of the order: the caller's own, or one for the stored key.

        Raises:
            Conflict: its key has been certified before, and somebody has said since that it is in wrong hands.
        """
        order = self._order
        if order.csr_der is not None:
            await self._refuse_compromised(x509.spki_of_csr(order.csr_der))
            return order.csr_der
        private_key = await self._private_key()
        if order.reuse_key:
            await self._refuse_compromised(x509.spki_of_key(private_key))
        return x509.csr_der(private_key, order.identifiers)

    async def _refuse_compromised(self, spki: bytes) -> None:
        if await is_compromised(self._tools.store, x509.spki_sha256(spki)):
            raise Conflict(COMPROMISED)

    async def _private_key(self) -> bytes:
        key_id = self._order.key_id
        stored = await KEYS.get(self._tools.store, key_id) if key_id else None
        if key_id is None or stored is None:
            raise Internal(f"the private key of order {self._order.id} is missing from the store")
        return self._tools.sealer.open(stored.value.sealed, KEYS.key(key_id), "private_key")

    async def _chain(self, url: str) -> tuple[x509.Chain, tuple[str, ...]]:
        preferred = self._order.preferred_chain
        if preferred is None:
            return await self._checked(await self._patiently(lambda: self._client.certificate(url))), ()
        bodies = await self._patiently(lambda: self._client.chains(url))
        choice = x509.choose_chain(bodies, preferred, self._tools.accounts.roots(self._account))
        if choice.reason is not None:
            self._log.warning("certificate.chain_not_preferred", detail=choice.reason)
            return await self._checked(bodies[0]), (choice.reason,)
        return await self._checked(bodies[choice.index]), ()

    async def _checked(self, body: bytes) -> x509.Chain:
        order, now = self._order, self._tools.clock.now()
        if order.csr_der is not None:
            return x509.check_chain_for(body, x509.spki_of_csr(order.csr_der), order.identifiers, now)
        return x509.check_chain(body, await self._private_key(), order.identifiers, now)

    async def _patiently(self, fetch: Callable[[], Awaitable[T]]) -> T:
        for pause in _LAGS_SECONDS:
            try:
                return await fetch()
            except CertificatePending as lag:
                # The URL may lag behind the order's state.
                wanted = lag.retry_after or 0.0
                if wanted > PATIENCE_SECONDS:
                    raise
                self._log.debug("certificate.not_there_yet")
                await self._tools.clock.sleep(max(pause, wanted))
        return await fetch()

    async def _keep(
        self, chain: x509.Chain, challenges: tuple[Challenge, ...], warnings: tuple[str, ...]
    ) -> Certificate:
        while True:
            previous = await self._previous()
            certificate = self._certificate(chain, previous.value if previous else None)
            changes = [
                *await self._documents(certificate, previous),
                *self._tools.budgets.resumed(self._order, self._account),
            ]
            try:
                await self._record.commit(
                    changes,
                    [self._event(certificate, previous.value if previous else None)],
                    status="valid",
                    owner=None,
                    certificate_id=certificate.id,
                    version=certificate.version,
                    not_after=certificate.not_after,
                    error=None,
                    challenges=challenges,
                    warnings=(*self._order.warnings, *warnings),
                )
            except RevisionConflict:
                # Somebody else wrote the certificate, its renewal or the pointer a moment ago: on top of that, then.
                continue
            self._count()
            return certificate

    def _count(self) -> None:
        order = self._order
        ca = ca_name(self._account.directory_url)
        kind = "new" if order.renews is None else "renewal"
        metrics.ISSUANCES.labels(ca=ca, challenge=order.challenge_type, kind=kind, result="issued").inc()
        seconds = (self._tools.clock.now() - order.created_at).total_seconds()
        metrics.ISSUANCE_DURATION.labels(ca=ca, challenge=order.challenge_type).observe(max(seconds, 0.0))

    async def _previous(self) -> Versioned[Certificate] | None:
        if self._order.renews is None:
            return None
        held = await CERTIFICATES.get(self._tools.store, self._order.renews)
        if held is None:
            raise Internal(f"certificate {self._order.renews} is missing from the store")
        return held

    def _certificate(self, chain: x509.Chain, previous: Certificate | None) -> Certificate:
        order, now = self._order, self._tools.clock.now()
        return Certificate(
            id=self._tools.ids.certificate() if previous is None else previous.id,
            order_id=order.id,
            account_id=order.account_id,
            identifiers=order.identifiers,
            challenge_type=order.challenge_type,
            key_type=order.key_type,
            key_id=order.key_id,
            version=1 if previous is None else previous.version + 1,
            status="valid",
            auto_renew=order.auto_renew if previous is None else previous.auto_renew,
            serial_number=chain.serial_number,
            fingerprint_sha256=chain.fingerprint_sha256,
            issuer=chain.issuer,
            not_before=chain.not_before,
            not_after=chain.not_after,
            chain_pem=chain.pem,
            created_at=now if previous is None else previous.created_at,
            issued_at=now,
            ari_id=chain.ari_id,
            renew_before_seconds=order.renew_before_seconds if previous is None else previous.renew_before_seconds,
            terms=terms_in(order) if previous is None or previous.terms is None else previous.terms,
            requested_by=order.requested_by if previous is None else previous.requested_by,
        )

    async def _documents(self, certificate: Certificate, previous: Versioned[Certificate] | None) -> list[Change]:
        store = self._tools.store
        pointer_id = name_pointer_id(certificate.identifiers, certificate.key_type)
        pointer = NamePointer(certificate_id=certificate.id, version=certificate.version)
        held = await NAME_POINTERS.get(store, pointer_id)
        prior = None if previous is None else await RENEWALS.get(store, certificate.id)
        renewal = renewals.begun(
            certificate,
            prior.value if prior else None,
            now=self._tools.clock.now(),
            fraction=self._tools.randomness.fraction(),
        )
        changes: list[Change] = [
            CERTIFICATES.put(certificate, previous.revision if previous else ABSENT),
            RENEWALS.put(renewal, prior.revision if prior else ABSENT),
            NAME_POINTERS.put_at(pointer_id, pointer, held.revision if held else ABSENT),
        ]
        if previous is not None:
            changes.append(VERSIONS.put(_earlier(previous.value)))
            changes += await self._old_pointer(previous.value, pointer_id)
        return changes

    async def _old_pointer(self, previous: Certificate, pointer_id: str) -> list[Change]:
        """Take away what pointed to this certificate by names or a key type that it does not have any more."""
        old_id = name_pointer_id(previous.identifiers, previous.key_type)
        held = None if old_id == pointer_id else await NAME_POINTERS.get(self._tools.store, old_id)
        if held is None or held.value.certificate_id != previous.id:
            return []
        return [Delete(key=NAME_POINTERS.key(old_id), expect_revision=held.revision)]

    def _event(self, certificate: Certificate, previous: Certificate | None) -> OutboxEvent:
        now = self._tools.clock.now()
        if previous is None:
            return events.certificate_issued(certificate, self._order, now)
        return events.certificate_renewed(certificate, previous, self._order, now)


def _earlier(certificate: Certificate) -> CertificateVersion:
    issued = {name: getattr(certificate, name) for name in Issued.__struct_fields__}
    return CertificateVersion(certificate_id=certificate.id, **issued)
