"""Renewing by request, and the way into the room that renews by itself."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api.commands import RENEW_CERTIFICATE
from scaivaultd.model.errors import NotFound, ScaivaultError, StorageUnavailable
from scaivaultd.model.ids import CertificateId, OrderId
from scaivaultd.services import renewals
from scaivaultd.services.idempotency import Repeatable
from scaivaultd.services.renewal_changes import Draft, change
from scaivaultd.services.renewal_room import RenewalRoom

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import BulkRenewalId
    from scaivaultd.model.resources import OrderCause, Renewal
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.ports import RenewalJudge, Store


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
        judge: RenewalJudge,
    ) -> None:
        self._store = store
        self._issuing = issuing
        self._room = RenewalRoom(
            store=store,
            accounts=accounts,
            issuing=issuing,
            clock=clock,
            randomness=randomness,
            log=log,
            renewals_per_ca=renewals_per_ca,
            judge=judge,
        )

    @property
    def next_look_at(self) -> float | None:
        """When a certificate is to be looked at next (Unix time); None when none ever is."""
        return self._room.next_look_at

    @property
    def turned_at(self) -> float:
        """When the room last looked round (`Clock.monotonic`)."""
        return self._room.turned_at

    @property
    def certificates(self) -> int:
        """How many certificates are looked after."""
        return len(self._room)

    async def renew(self, request: m.RenewCertificate, context: RequestContext) -> m.OrderReply:
        """Handle `pki.certificates.renew`."""
        certificate_id = CertificateId(request.id)
        repeatable = Repeatable(RENEW_CERTIFICATE, request, context)
        try:
            order_id = await self._order_there(certificate_id, repeatable) or await self._order(
                certificate_id, repeatable
            )
        finally:
            self.changed(certificate_id)
        return await self._issuing.shown(order_id, request.wait_seconds, request.wait_end_seconds)

    async def ask_for(
        self, certificate_id: CertificateId, cause: OrderCause, bulk_id: BulkRenewalId | None = None
    ) -> None:
        """Have a certificate renewed at once, in its turn; raises NotFound.

        Where an order is under way already there is nothing to do.
        """
        await self._ask_for(certificate_id, cause, bulk_id)
        self.changed(certificate_id)

    def changed(self, certificate_id: CertificateId) -> None:
        """Look at a certificate's `Renewal` again: somebody has committed a change to it. Never blocks."""
        self._room.changed(certificate_id)

    def policies_changed(self) -> None:
        """Look again at what policies have stopped: they may allow it now. Never blocks."""
        self._room.policies_changed()

    def pause(self) -> None:
        """Only announce from now on: ask no CA anything. Before `run`."""
        self._room.pause()

    def go_on(self) -> None:
        """End that. Never blocks."""
        self._room.go_on()

    async def resume(self) -> None:
        """Put every certificate into the heap; makes the `Renewal` of certificates that have none yet."""
        await self._room.resume()

    async def run(self) -> None:
        """Look after all certificates until cancelled."""
        await self._room.run()

    async def _order_there(self, certificate_id: CertificateId, repeatable: Repeatable) -> OrderId | None:
        """The order that the request has made before; or the one that makes the next version already, from now on
        without the pauses of its failures."""
        made: str | None = None

        async def draft(renewal: Renewal) -> Draft | None:
            nonlocal made
            made = await repeatable.made_before(self._store)
            if made is not None or renewal.order_id is None:
                return None
            hurried = msgspec.structs.replace(renewal, attempt=0, next_try_at=None, error=None)
            changes = repeatable.changes(renewal.order_id)
            return Draft(renewal=hurried, changes=changes) if changes or hurried != renewal else None

        renewal = _required(await change(self._store, certificate_id, draft), certificate_id)
        if made is not None:
            return OrderId(made)
        if renewal.order_id is not None:
            self._issuing.hurry(renewal.order_id)
        return renewal.order_id

    async def _order(self, certificate_id: CertificateId, repeatable: Repeatable) -> OrderId:
        """A new order. The wish is written down first, and taken back if no order can be made."""
        before = await self._ask_for(certificate_id, "request")
        try:
            order = await self._issuing.renew(certificate_id, "request", repeatable=repeatable)
        except ScaivaultError:
            with suppress(StorageUnavailable):
                await self._take_back(before)
            raise
        return order.id

    async def _ask_for(
        self, certificate_id: CertificateId, cause: OrderCause, bulk_id: BulkRenewalId | None = None
    ) -> Renewal:
        """Note that somebody wants it renewed; returns the document as it was before."""
        before: Renewal | None = None

        async def draft(renewal: Renewal) -> Draft | None:
            nonlocal before
            before = renewal
            if renewal.order_id is not None:
                return None
            return Draft(renewal=renewals.asked_for(renewal, cause, bulk_id))

        await change(self._store, certificate_id, draft)
        return _required(before, certificate_id)

    async def _take_back(self, before: Renewal) -> None:
        async def draft(renewal: Renewal) -> Draft | None:
            if renewal.version != before.version or renewal.order_id is not None:
                return None
            return Draft(
                renewal=msgspec.structs.replace(
                    renewal,
                    is_due=before.is_due,
                    is_stopped=before.is_stopped,
                    cause=before.cause,
                    bulk_id=before.bulk_id,
                    attempt=before.attempt,
                    next_try_at=before.next_try_at,
                    error=before.error,
                )
            )

        await change(self._store, before.certificate_id, draft)


def _required(renewal: Renewal | None, certificate_id: CertificateId) -> Renewal:
    if renewal is None:
        raise NotFound(f"there is no certificate {certificate_id[:100]!r}")
    return renewal
