"""Announcing the end of a certificate that has not been renewed: each mark once, whatever the clock does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme import renewal as rules
from scaivaultd.api import events
from scaivaultd.services.documents import CERTIFICATES
from scaivaultd.services.renewal_changes import Draft, certificate_of, change, order_ended

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.renewal import ExpiryNotice
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import CertificateId
    from scaivaultd.model.resources import Certificate, Renewal
    from scaivaultd.model.storage import Put
    from scaivaultd.services.documents import Versioned
    from scaivaultd.services.ports import Store


class Notices:
    """Commits what is to be announced together with how far the announcements have come."""

    def __init__(self, store: Store, clock: Clock, log: FilteringBoundLogger) -> None:
        self._store = store
        self._clock = clock
        self._log = log

    async def announce(self, certificate_id: CertificateId) -> Renewal | None:
        """Announce what is due, in order, in one commit; returns the document as it is then."""
        announced: Sequence[ExpiryNotice] = ()

        async def draft(renewal: Renewal) -> Draft | None:
            nonlocal announced
            now = self._clock.now()
            announced = rules.notices_due(renewal.not_before, renewal.not_after, looked_at=renewal.looked_at, now=now)
            if not announced:
                return None
            certificate = await certificate_of(self._store, renewal)
            has_expired = announced[-1].percent_left == 0
            return Draft(
                # ARI is not asked about what has expired (RFC 9773 section 4.3).
                renewal=msgspec.structs.replace(
                    renewal, looked_at=now, poll_at=None if has_expired else renewal.poll_at
                ),
                changes=await self._expired(certificate) if has_expired else (),
                events=tuple(
                    events.certificate_expiring(certificate.value, renewal, each.percent_left, now)
                    for each in announced
                ),
            )

        renewal = await change(self._store, certificate_id, draft)
        for each in announced:
            self._tell(certificate_id, each)
        return renewal

    async def _expired(self, certificate: Versioned[Certificate]) -> tuple[Put, ...]:
        if certificate.value.status != "valid":
            return ()
        expired = msgspec.structs.replace(certificate.value, status="expired")
        order = await order_ended(self._store, certificate.value.order_id, "expired")
        return (CERTIFICATES.put(expired, certificate.revision), *order)

    def _tell(self, certificate_id: CertificateId, notice: ExpiryNotice) -> None:
        if notice.percent_left:
            self._log.warning("certificate.expiring", certificate_id=certificate_id, percent_left=notice.percent_left)
        else:
            self._log.error("certificate.expired", certificate_id=certificate_id)
