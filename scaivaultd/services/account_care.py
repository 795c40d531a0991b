"""What becomes of an account after its registration: changes, key rollover, its end, and the CA's terms."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from scaivaultd.model.errors import Internal

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import IdMaker
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import Sealer, Store
    from scaivaultd.services.renewing import Renewing
    from scaivaultd.services.waiting import Waiting


class AccountCare:
    """Handlers of `pki.acme.accounts.update`, `.rotate_key` and `.deactivate`, their jobs, and the daily look."""

    def __init__(
        self,
        *,
        store: Store,
        sealer: Sealer,
        accounts: Accounts,
        issuing: Issuing,
        renewing: Renewing,
        jobs: Jobs,
        waiting: Waiting,
        ids: IdMaker,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._accounts = accounts
        self._issuing = issuing
        self._renewing = renewing
        self._jobs = jobs
        self._waiting = waiting
        self._ids = ids
        self._clock = clock
        self._randomness = randomness
        self._log = log

    async def update(self, request: m.UpdateAccount, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.update`."""
        raise Internal("not built yet")

    async def rotate_key(self, request: m.RotateAccountKey, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.rotate_key`."""
        raise Internal("not built yet")

    async def deactivate(self, request: m.DeactivateAccount, context: RequestContext) -> m.AccountReply:
        """Handle `pki.acme.accounts.deactivate`."""
        raise Internal("not built yet")

    async def resume(self) -> None:
        """Finish key changes and deactivations that a stop interrupted, before any order goes on."""

    async def run(self) -> None:
        """Look at every account's directory once a day, and at accounts that wait for a person; until cancelled."""
        await asyncio.Event().wait()
