"""Many certificates renewed ahead of their time, with a throttle and progress."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from scaivaultd.model.errors import Internal

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import IdMaker
    from scaivaultd.services.ports import Store
    from scaivaultd.services.renewing import Renewing


class BulkRenewals:
    """Handlers of `pki.bulk_renewals.*`, and the room that sets them going."""

    def __init__(
        self, *, store: Store, renewing: Renewing, ids: IdMaker, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._store = store
        self._renewing = renewing
        self._ids = ids
        self._clock = clock
        self._log = log

    async def create(self, request: m.CreateBulkRenewal, context: RequestContext) -> m.BulkRenewalReply:
        """Handle `pki.bulk_renewals.create`."""
        raise Internal("not built yet")

    async def list(self, request: m.ListBulkRenewals, context: RequestContext) -> m.BulkRenewalList:
        """Handle `pki.bulk_renewals.list`."""
        raise Internal("not built yet")

    async def get(self, request: m.BulkRenewalById, context: RequestContext) -> m.BulkRenewalReply:
        """Handle `pki.bulk_renewals.get`."""
        raise Internal("not built yet")

    async def cancel(self, request: m.BulkRenewalById, context: RequestContext) -> m.BulkRenewalReply:
        """Handle `pki.bulk_renewals.cancel`."""
        raise Internal("not built yet")

    async def run(self) -> None:
        """Set the certificates of every running bulk renewal going, at its pace, until cancelled."""
        await asyncio.Event().wait()
