"""One change of a `Renewal` document and of what hangs on it, against whoever else changes it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme.ari import POLL_LATEST
from scaivaultd.model.errors import Internal, NotFound, RevisionConflict
from scaivaultd.model.resources import Order, Renewal
from scaivaultd.model.storage import OutboxEvent, Put
from scaivaultd.services.documents import CERTIFICATES, ORDERS, RENEWALS, Versioned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from scaivaultd.model.ids import CertificateId, OrderId
    from scaivaultd.model.resources import Certificate, OrderStatus
    from scaivaultd.services.ports import Store

TRIES = 20
LONGEST_PAUSE = timedelta(days=31)
"""No CA's rate limit lasts longer than this."""


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be committed together."""

    renewal: Renewal
    changes: tuple[Put, ...] = ()
    events: tuple[OutboxEvent, ...] = ()


async def change(
    store: Store, certificate_id: CertificateId, draft: Callable[[Renewal], Awaitable[Draft | None]]
) -> Renewal | None:
    """Commit what `draft` makes of the document, read again and made again while others change it too.

    Returns it as committed, or as it stands where there was nothing to change; None if there is none.
    """
    for _ in range(TRIES):
        found = await RENEWALS.get(store, certificate_id)
        if found is None:
            return None
        made = await draft(found.value)
        if made is None:
            return found.value
        try:
            await store.commit([RENEWALS.put(made.renewal, found.revision), *made.changes], made.events)
        except RevisionConflict:
            continue
        return made.renewal
    raise Internal(f"the renewal of {certificate_id} is changed by others all the time")


async def certificate_of(store: Store, renewal: Renewal) -> Versioned[Certificate]:
    """The certificate itself; raises NotFound."""
    found = await CERTIFICATES.get(store, renewal.certificate_id)
    if found is None:
        raise NotFound(f"there is a renewal of {renewal.certificate_id}, but no such certificate")
    return found


async def order_ended(store: Store, order_id: OrderId, status: OrderStatus) -> tuple[Put, ...]:
    """The change that lets an order share the end of the certificate it brought."""
    found: Versioned[Order] | None = await ORDERS.get(store, order_id)
    if found is None or found.value.status != "valid":
        return ()
    return (ORDERS.put(msgspec.structs.replace(found.value, status=status), found.revision),)


def as_of(renewal: Renewal, now: datetime) -> Renewal:
    """What of it holds now.

    A pause that ends later than any pause can was begun by a clock that was wrong: it is over. ARI is not
    asked about a version that is never to be renewed.
    """
    poll_at, next_try_at = renewal.poll_at, renewal.next_try_at
    if poll_at is not None and poll_at > now + POLL_LATEST:
        poll_at = now
    if renewal.is_stopped or renewal.ari_id is None:
        poll_at = None
    if next_try_at is not None and next_try_at > max(renewal.not_after, now + LONGEST_PAUSE):
        next_try_at = now
    if (poll_at, next_try_at) == (renewal.poll_at, renewal.next_try_at):
        return renewal
    return msgspec.structs.replace(renewal, poll_at=poll_at, next_try_at=next_try_at)
