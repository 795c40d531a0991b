"""Renewing one certificate that is due, and what is noted when not even an order could be made."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme import causes
from scaivaultd.api import events
from scaivaultd.model.errors import NotFound, RateLimited, ScaivaultError, StorageUnavailable
from scaivaultd.model.resources import UNFINISHED
from scaivaultd.services import renewals
from scaivaultd.services.documents import ORDERS, RENEWALS
from scaivaultd.services.renewal_changes import Draft, as_of, certificate_of, change
from scaivaultd.services.setbacks import trouble_of

if TYPE_CHECKING:
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import CertificateId
    from scaivaultd.model.resources import OrderCause, Renewal, Trouble
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.ports import Store
    from scaivaultd.services.renewal_rights import RenewalRights

REST_SECONDS = 1800.0
"""No order holds a place for longer; some CAs process for hours."""


class RenewalOrders:
    """Makes the orders of certificates that are due."""

    def __init__(
        self,
        store: Store,
        issuing: Issuing,
        rights: RenewalRights,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._issuing = issuing
        self._rights = rights
        self._clock = clock
        self._randomness = randomness
        self._log = log

    async def renew(self, certificate_id: CertificateId) -> None:
        """Renew a certificate if it still is due, and return when its order has ended or pauses.

        Raises:
            NotFound: there is no such certificate.
            StorageUnavailable: nothing was done.
        """
        found = await RENEWALS.get(self._store, certificate_id)
        if found is None:
            raise NotFound(f"there is no renewal of {certificate_id}")
        now = self._clock.now()
        renewal = as_of(found.value, now)
        due_at = self._rights.due_at(renewal, now)
        if due_at is None or due_at > now:
            return
        cause = cause_for(renewal)
        try:
            if not await self._rights.may_renew(found.value, cause):
                return
            order = await self._issuing.renew(certificate_id, cause, bulk_id=renewal.bulk_id)
        except (NotFound, StorageUnavailable):
            raise
        except ScaivaultError as error:
            await self._set_back(certificate_id, error)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_SECONDS):
                await self._issuing.rest(order.id)

    async def mend(self, renewal: Renewal) -> bool:
        """Forget an order that has ended without anybody's word; whether there was one to forget.

        The certificate would wait for it for ever.

        Whoever ends an order clears its name here in the same commit; this is for stores that were mended by hand.
        """
        order_id = renewal.order_id
        if order_id is None or self._issuing.has_job(order_id):
            return False
        order = await ORDERS.get(self._store, order_id)
        if order is not None and order.value.status in UNFINISHED:
            return False  # its solver is not installed at the moment

        async def draft(current: Renewal) -> Draft | None:
            if current.order_id != order_id:
                return None
            return Draft(renewal=msgspec.structs.replace(current, order_id=None))

        await change(self._store, renewal.certificate_id, draft)
        self._log.warning("renewal.order_lost", certificate_id=renewal.certificate_id, order_id=order_id)
        return True

    async def _set_back(self, certificate_id: CertificateId, error: ScaivaultError) -> None:
        """No order could be made: note why and when it is tried again, and tell a person who has to act, once."""
        fraction = self._randomness.fraction()

        async def draft(renewal: Renewal) -> Draft | None:
            if renewal.order_id is not None:
                return None  # somebody else could make one meanwhile
            now = self._clock.now()
            trouble = _trouble(error, renewal, now, fraction)
            changed = renewals.set_back(renewal, trouble, trouble.retry_at, goes_on=False)
            if trouble.kind == "transient" or _is_known(renewal, trouble):
                return Draft(renewal=changed)
            certificate = (await certificate_of(self._store, renewal)).value
            return Draft(renewal=changed, events=(events.certificate_renewal_blocked(certificate, trouble, now),))

        await change(self._store, certificate_id, draft)
        self._log.warning("renewal.not_ordered", certificate_id=certificate_id, code=error.code, detail=error.detail)


def cause_for(renewal: Renewal) -> OrderCause:
    """Why a certificate that is due is renewed."""
    if renewal.is_due:
        return renewal.cause or "request"
    if renewal.point is not None and renewals.moment_of(renewal) == renewal.point.moment:
        return "ari"
    return "schedule"


def _trouble(error: ScaivaultError, renewal: Renewal, now: datetime, fraction: float) -> Trouble:
    cause = causes.cause_of(error)
    retry_at = now + timedelta(seconds=error.retry_after) if isinstance(error, RateLimited) else None
    next_try_at = renewals.next_try(renewal, cause.kind, retry_at=retry_at, now=now, fraction=fraction)
    return causes.judged(trouble_of(error, next_try_at), cause)


def _is_known(renewal: Renewal, trouble: Trouble) -> bool:
    known = renewal.error
    return known is not None and (known.code, known.detail) == (trouble.code, trouble.detail)
