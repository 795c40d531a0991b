"""The ledgers of all CAs: what orders may go, who waits for his turn, and what refusals have taught us.

One `acme.limits.Ledger` stands for one directory. It is in memory, and the changes to it are handed to the caller
as documents for the commit of the order that they belong to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.api import messages as m

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.limit_rules import Rule
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.errors import BackendRateLimited
    from scaivaultd.model.ids import OrderId
    from scaivaultd.model.resources import Account, Order, Queued, RenewalWindow
    from scaivaultd.model.storage import Change
    from scaivaultd.services.ports import Store


class Held(Exception):
    """An order has to wait for its turn; nothing was spent.

    `queued.until` is when to ask again. `needs_human`: time does not help, the CA has paused a name of it.
    """

    def __init__(self, queued: Queued, *, needs_human: bool = False) -> None:
        super().__init__(f"{queued.limit} of {queued.subject} until {queued.until.isoformat()}")
        self.queued = queued
        self.needs_human = needs_human


class Budgets:
    """Handler of `pki.acme.limits`, and the counting behind it."""

    def __init__(
        self, *, store: Store, rules: Mapping[str, Sequence[Rule]], clock: Clock, log: FilteringBoundLogger
    ) -> None:
        """`rules` are those of the configuration, by directory URL; they replace what `limit_rules` knows."""
        self._store = store
        self._rules = rules
        self._clock = clock
        self._log = log

    async def resume(self) -> None:
        """Read what was spent and refused before."""

    def spend(
        self, order: Order, account: Account, *, replaces: str | None, window: RenewalWindow | None
    ) -> Sequence[Change]:
        """Take what a newOrder for `order` costs; the changes go into the commit that says it is asked.

        Raises:
            Held: it is not its turn.
        """
        return ()

    def refused(self, order: Order, account: Account, refusal: BackendRateLimited) -> Sequence[Change]:
        """Learn from what the CA says no to."""
        return ()

    def failed(self, order: Order, account: Account, names: Sequence[str]) -> Sequence[Change]:
        """Count failed authorizations, by identifier."""
        return ()

    def gave_nothing(self, order: Order, account: Account) -> Sequence[Change]:
        """An order spent for at `order.spent_at` ended without a certificate: give back what was not used."""
        return ()

    def resumed(self, order: Order, account: Account) -> Sequence[Change]:
        """Its names may be asked for again: a certificate came, or a person has acted."""
        return ()

    def left(self, order_id: OrderId) -> None:
        """An order that may have waited does not wait any more, whatever became of it."""

    def spend_account(self, directory_url: str) -> tuple[Sequence[Change], datetime | None]:
        """Take what registering an account costs; with a moment it has to wait until then, and nothing is taken."""
        return (), None

    async def limits(self, request: m.ListLimits, context: RequestContext) -> m.LimitsReply:
        """Handle `pki.acme.limits`."""
        return m.LimitsReply(cas=[], items=[], waiting=[])
