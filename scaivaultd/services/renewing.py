"""The scheduler: every certificate in one heap, by the moment at which somebody has to look at it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from scaivaultd.model.errors import Internal

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import BulkRenewalId, CertificateId
    from scaivaultd.model.resources import OrderCause
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.ports import Store


class Renewing:
    """Handler of `pki.certificates.renew`, and the room that renews, polls ARI and announces the end."""

    def __init__(
        self,
        *,
        store: Store,
        accounts: Accounts,
        issuing: Issuing,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
        renewals_per_ca: int,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._issuing = issuing
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._renewals_per_ca = renewals_per_ca

    async def renew(self, request: m.RenewCertificate, context: RequestContext) -> m.OrderReply:
        """Handle `pki.certificates.renew`."""
        raise Internal("not built yet")

    async def ask_for(
        self, certificate_id: CertificateId, cause: OrderCause, bulk_id: BulkRenewalId | None = None
    ) -> None:
        """Have a certificate renewed at once, in its turn; raises NotFound."""
        raise Internal("not built yet")

    def changed(self, certificate_id: CertificateId) -> None:
        """Look at a certificate's `Renewal` again: somebody has committed a change to it. Never blocks."""

    async def resume(self) -> None:
        """Put every certificate into the heap; makes the `Renewal` of certificates that have none yet."""

    async def run(self) -> None:
        """Look after all certificates until cancelled."""
        await asyncio.Event().wait()
