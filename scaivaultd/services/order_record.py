"""An order as its attempt holds it: the document as last committed, changed by compare-and-set only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.model.errors import RevisionConflict
from scaivaultd.services.documents import ORDERS, Versioned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.model.resources import Order
    from scaivaultd.model.storage import Change, OutboxEvent
    from scaivaultd.services.ports import Store


class Superseded(Exception):
    """Somebody else changed the order: it is theirs now."""


class OrderRecord:
    """One order for as long as nobody else changes it. A commit that meets another revision raises Superseded."""

    def __init__(self, store: Store, current: Versioned[Order]) -> None:
        self._store = store
        self._current = current

    @property
    def order(self) -> Order:
        """The order as last committed."""
        return self._current.value

    async def commit(self, changes: Sequence[Change] = (), told: Sequence[OutboxEvent] = (), **fields: Any) -> None:
        """Commit the order with `fields` changed, together with `changes` and events.

        Raises:
            Superseded: the order is not as it was any more; nothing was applied.
            RevisionConflict: one of `changes` met another revision; nothing was applied.
            StorageUnavailable: the store failed.
        """
        order = msgspec.structs.replace(self.order, **fields)
        key = ORDERS.key(order.id)
        try:
            revisions = await self._store.commit([*changes, ORDERS.put(order, self._current.revision)], told)
        except RevisionConflict as conflict:
            if conflict.key == key:
                raise Superseded from conflict
            raise
        self._current = Versioned(order, revisions[key])

    async def forget_ca_order(self, changes: Sequence[Change] = ()) -> None:
        """Commit that there is no order at the CA (any more): the next attempt asks for a new one."""
        await self.commit(changes, **FORGOTTEN)


FORGOTTEN: dict[str, Any] = {
    "url": None,
    "finalize_url": None,
    "certificate_url": None,
    "expires_at": None,
    "poll_after": None,
    "challenges": (),
    "status": "pending",
    "asked": False,
    "spent_at": None,
    "replaces": None,
    "profile_sent": None,
}
"""The members of an order that speak of what the CA has, as they are without."""
