"""The events as the daemon keeps them: for those who were away, and for those who have no NATS."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.api import operation_messages as om
from scaivaultd.api.gate import UNLIMITED
from scaivaultd.model.access import CertificateTerms
from scaivaultd.model.errors import InvalidRequest
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.storage import LogScan
from scaivaultd.services.access_terms import ANY_CERTIFICATE, account_refs, terms_of_certificate, terms_of_order
from scaivaultd.services.documents import CERTIFICATES, ORDERS, PAGE_BYTES

if TYPE_CHECKING:
    import asyncio

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.api.gate import Permits
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.names import Identifier
    from scaivaultd.model.storage import LogBounds, Pending
    from scaivaultd.services.ports import EventLog, Store
    from scaivaultd.services.waiting import Waiting

LOOKS_MAX = 10
"""A page of what is rare, or of what few may see, is filled up by so many looks at the log at most."""
_SCANNED = 200
WAITERS_MAX = 128
"""Requests that wait at once; a connection that waits is one that nobody else can have. Others are answered at once."""


class EventFeed:
    """Handler of `events.list`."""

    def __init__(self, *, store: Store, events: EventLog, waiting: Waiting, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._waiting = waiting
        self._clock = clock
        self._waiters = 0

    async def list(self, request: om.ListEvents, context: RequestContext) -> om.EventList:
        """Handle `events.list`."""
        bounds = await self._events.log_bounds()
        after = bounds.newest if request.after is None else request.after
        if after > bounds.newest:
            # A store that was restored from a backup is behind its readers: they would wait for ever.
            raise InvalidRequest(f"there is no event {after} yet: the newest is {bounds.newest}; go on behind that")
        sight = _Sight(self._store, context.permits)
        until = self._clock.monotonic() + request.wait_seconds
        while True:
            moved = self._events.next_events()
            bounds = await self._events.log_bounds()
            page = await self._page(request, after, bounds, sight)
            after = page.next_after
            # Short of the end there is more to look at, not to wait for.
            if page.items or after < bounds.newest or not await self._moves(moved, until - self._clock.monotonic()):
                return page

    async def _moves(self, moved: asyncio.Event, seconds: float) -> bool:
        if self._waiters >= WAITERS_MAX:
            return False
        self._waiters += 1
        try:
            return await self._waiting.moved(moved, seconds)
        finally:
            self._waiters -= 1

    async def _page(self, request: om.ListEvents, after: int, bounds: LogBounds, sight: _Sight) -> om.EventList:
        """Events behind `after`, and where to go on: beyond those that were passed over."""
        found: list[om.EventReply] = []

        def ended(at: int) -> om.EventList:
            return om.EventList(items=found, next_after=at, oldest=bounds.oldest)

        size = 0
        limit = request.limit if sight.is_all else max(request.limit, _SCANNED)
        for _ in range(LOOKS_MAX):
            page = await self._events.logged_events(
                LogScan(after=after, limit=limit, type=request.type, resource_id=request.resource_id)
            )
            if page.reached == after:
                # Nothing is left of what there was.
                return ended(max(after, bounds.newest))
            for each in page.items:
                if await sight.sees(each):
                    size += len(each.event.data)
                    if found and size > PAGE_BYTES:
                        return ended(after)
                    found.append(_reply(each))
                after = each.sequence
                if len(found) == request.limit:
                    return ended(after)
            after = page.reached
        return ended(after)


class _Sight:
    """Which events somebody may see: all, or those about certificates and orders that they may read."""

    def __init__(self, store: Store, permits: Permits) -> None:
        self._store = store
        self._permits = permits
        self.is_all = permits is UNLIMITED or permits.allows("event.read")
        self._judged: dict[tuple[str, str, tuple[str, ...]], bool] = {}

    async def sees(self, pending: Pending) -> bool:
        """Whether they may see this one."""
        if self.is_all:
            return True
        family = pending.event.type.partition(".")[0]
        if family not in ("certificate", "order"):
            return False
        data: dict[str, Any] = msgspec.json.decode(pending.event.data)
        what = (family, pending.event.resource_id, tuple(data.get("domains", ())))
        if what not in self._judged:
            self._judged[what] = await self._judge(*what, account_id=data.get("account_id"))
        return self._judged[what]

    async def _judge(self, family: str, resource_id: str, domains: tuple[str, ...], account_id: str | None) -> bool:
        # What the event tells counts too: the names may have been others then.
        told = parse_identifiers(domains, public_ca=False) if domains else ()
        terms = await self._terms(family, resource_id) or await self._terms_of_gone(told, account_id)
        if terms is None:
            return False
        terms = msgspec.structs.replace(terms, names=tuple(dict.fromkeys((*terms.names, *told))))
        return self._permits.allows("cert.read" if family == "certificate" else "order.read", certificate=terms)

    async def _terms(self, family: str, resource_id: str) -> CertificateTerms | None:
        if family == "certificate":
            certificate = await CERTIFICATES.get(self._store, resource_id)
            return None if certificate is None else await terms_of_certificate(self._store, certificate.value)
        order = await ORDERS.get(self._store, resource_id)
        return None if order is None else await terms_of_order(self._store, order.value)

    async def _terms_of_gone(self, names: tuple[Identifier, ...], account_id: str | None) -> CertificateTerms | None:
        """What is left of something that is not there any more: its names, if the event tells them."""
        if not names:
            return None
        accounts = ANY_CERTIFICATE.accounts if account_id is None else await account_refs(self._store, [account_id])
        return msgspec.structs.replace(ANY_CERTIFICATE, names=names, accounts=accounts)


def _reply(pending: Pending) -> om.EventReply:
    event = pending.event
    return om.EventReply(
        sequence=pending.sequence,
        id=event.id,
        type=event.type,
        resource_id=event.resource_id,
        time=datetime.fromisoformat(event.time),
        data=msgspec.json.decode(event.data),
    )
