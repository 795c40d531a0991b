"""How many certificates a principal may have, as policies say: new ones in 24 hours, and valid ones at one time.

Orders for new certificates count, by whatever rule they were let in and however they end; renewals never do. What an
owner has is read from the store when it first matters, and counted on from there. A place is taken before the order
is committed, so that requests that come at once do not all find the last one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import PermissionDenied, RevisionConflict, ScaivaultError
from scaivaultd.model.ids import OrderId, ulid
from scaivaultd.model.resources import UNFINISHED
from scaivaultd.services.documents import CERTIFICATES, ORDERS, owner_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scaivaultd.model.access import Quota
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.principals import Principal
    from scaivaultd.model.resources import Order
    from scaivaultd.services.ports import Store

DAY = timedelta(hours=24)
OWNERS_MAX = 1_000
"""What so many owners have is kept in mind."""
PAGE = 500


class _Ordered(msgspec.Struct, frozen=True):
    """All that is read of an order to count it."""

    id: OrderId
    created_at: datetime


class _Active(msgspec.Struct, frozen=True):
    """All that is read of a certificate to count it."""

    order_id: OrderId
    not_after: datetime


_ORDERED = msgspec.json.Decoder(_Ordered)
_ACTIVE = msgspec.json.Decoder(_Active)


class _Taken:
    """What one owner has.

    `active` is never less than there is: certificates that end are missed only when it matters, by counting again.
    `pending` are orders whose commit is under way; the store may not show them yet.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.ordered: dict[OrderId, datetime] | None = None
        self.active: int | None = None
        self.pending: dict[OrderId, datetime] = {}


class Quotas:
    """Counts what is ordered for new certificates, and refuses what is too much."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._taken: dict[str, _Taken] = {}

    @asynccontextmanager
    async def taking(self, order: Order | None, quota: Quota | None) -> AsyncIterator[None]:
        """Commit an order for a new certificate inside; None takes nothing. What fails inside has taken nothing.

        Raises:
            PermissionDenied: its owner has as much already as `quota` allows; nothing was done.
        """
        owner = None if order is None else order.requested_by
        if order is None or owner is None or (quota is None and owner_key(owner) not in self._taken):
            yield
            return
        taken = self._of(owner)
        async with taken.lock:
            if quota is not None:
                await self._require_room(owner, taken, quota)
            _take(taken, order)
        try:
            yield
        except (ScaivaultError, RevisionConflict):
            _give_back(taken, order)
            raise
        finally:
            # After a cancellation nobody knows whether it was committed: it counts.
            taken.pending.pop(order.id, None)

    def taken_over(self, owner: Principal) -> None:
        """Certificates have become that owner's which were not before."""
        if (taken := self._taken.get(owner_key(owner))) is not None:
            taken.active = None

    def _of(self, owner: Principal) -> _Taken:
        key = owner_key(owner)
        if key not in self._taken and len(self._taken) >= OWNERS_MAX:
            self._taken = {name: each for name, each in self._taken.items() if each.pending or each.lock.locked()}
        return self._taken.setdefault(key, _Taken())

    async def _require_room(self, owner: Principal, taken: _Taken, quota: Quota) -> None:
        if quota.issue_per_day is not None:
            await self._require_day(owner, taken, quota.issue_per_day)
        if quota.active is not None:
            await self._require_active(owner, taken, quota.active)

    async def _require_day(self, owner: Principal, taken: _Taken, most: int) -> None:
        since = self._clock.now() - DAY
        if taken.ordered is None:
            taken.ordered = {**await self._ordered_since(since, owner), **taken.pending}
        taken.ordered = {order_id: at for order_id, at in taken.ordered.items() if at > since}
        if len(taken.ordered) < most:
            return
        next_at = sorted(taken.ordered.values())[-most] + DAY
        raise _reached(owner, f"{most} new certificates in 24 hours", f"next at {_shown(next_at)}")

    async def _require_active(self, owner: Principal, taken: _Taken, most: int) -> None:
        if taken.active is not None and taken.active < most:
            return
        ends = await self._active(owner, taken)
        taken.active = len(ends)
        if len(ends) < most:
            return
        first = min((each for each in ends if each is not None), default=None)
        until = "" if first is None else f": the first at {_shown(first)}, unless it is renewed"
        raise _reached(owner, f"{most} active certificates", f"next when one expires or is revoked{until}")

    async def _ordered_since(self, since: datetime, owner: Principal) -> dict[OrderId, datetime]:
        # Ids sort by age: years of orders need not be read for those of a day.
        milliseconds = max(0, int(since.timestamp() * 1000))
        after = ORDERS.key(f"acme_order_{ulid(milliseconds, bytes(10))}")
        orders = [_ORDERED.decode(each) for each in await self._documents(ORDERS.key(""), owner, after)]
        return {each.id: each.created_at for each in orders}

    async def _active(self, owner: Principal, taken: _Taken) -> list[datetime | None]:
        """The end of each certificate that is valid, and None for each that is on its way."""
        unfinished = set(taken.pending)
        # Orders first: one that ends in between is then seen as both, and counts once.
        for status in UNFINISHED:
            orders = await self._documents(ORDERS.key(""), owner, status=status)
            unfinished |= {_ORDERED.decode(each).id for each in orders}
        certificates = await self._documents(CERTIFICATES.key(""), owner, status="valid")
        valid = [_ACTIVE.decode(each) for each in certificates]
        return [*(each.not_after for each in valid if each.order_id not in unfinished), *(None for _ in unfinished)]

    async def _documents(self, prefix: str, owner: Principal, after: str | None = None, **where: str) -> list[bytes]:
        found: list[bytes] = []
        while True:
            page = await self._store.scan(
                prefix, where={"requested_by": owner_key(owner), **where}, after=after, limit=PAGE
            )
            found.extend(each.document for each in page.items)
            if (after := page.next_cursor) is None:
                return found


def _take(taken: _Taken, order: Order) -> None:
    taken.pending[order.id] = order.created_at
    if taken.ordered is not None:
        taken.ordered[order.id] = order.created_at
    if taken.active is not None:
        taken.active += 1


def _give_back(taken: _Taken, order: Order) -> None:
    if taken.ordered is not None:
        taken.ordered.pop(order.id, None)
    if taken.active is not None:
        taken.active -= 1


def _reached(owner: Principal, bound: str, next_at: str) -> PermissionDenied:
    name = "" if owner.name is None else f" ({owner.name})"
    return PermissionDenied(f"the quota of {owner}{name} is reached: {bound}; {next_at}")


def _shown(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
