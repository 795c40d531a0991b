"""Whether whoever owns a certificate still may have it renewed: judged each time before an order is made for it.

Where they may not, its renewal stops: `error` says so, with our own code, and `next_try_at` when it is judged again;
that is done by the hour, and at once when policies change. Nothing else is touched, so that it goes on where it was.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import events
from scaivaultd.model.errors import PermissionDenied
from scaivaultd.model.resources import Trouble
from scaivaultd.services import renewals
from scaivaultd.services.documents import BULK_RENEWALS
from scaivaultd.services.owners import owned_by
from scaivaultd.services.renewal_changes import Draft, certificate_of, change

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.access import Decision
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import BulkRenewalId, CertificateId
    from scaivaultd.model.resources import Certificate, OrderCause, Renewal
    from scaivaultd.services.ports import RenewalJudge, Store

JUDGED_EVERY = timedelta(hours=1)
_BY_ITSELF: tuple[OrderCause, ...] = ("schedule", "ari", "bulk")
_REASONS_SHOWN = 5


class RenewalRights:
    """Asks the judge, and keeps which judgements hold until policies change."""

    def __init__(self, store: Store, judge: RenewalJudge, clock: Clock, log: FilteringBoundLogger) -> None:
        self._store = store
        self._judge = judge
        self._clock = clock
        self._log = log
        self._stopped: set[CertificateId] = set()

    def due_at(self, renewal: Renewal, now: datetime) -> datetime | None:
        """When its next order is to be made, or whether it may be made is to be judged again; None: never."""
        if is_blocked(renewal) and renewal.certificate_id not in self._stopped:
            return renewals.due_at(msgspec.structs.replace(renewal, next_try_at=None), now)
        return renewals.due_at(renewal, now)

    def forget_judgements(self) -> Collection[CertificateId]:
        """Policies have changed; returns what they had stopped."""
        # A new set, not an empty one: a judgement under way is by the policies from before.
        stopped, self._stopped = self._stopped, set()
        return stopped

    async def may_renew(self, renewal: Renewal, cause: OrderCause) -> bool:
        """Whether an order may be made; if not, that is written down. What somebody asks for was judged then.

        Raises:
            NotFound: there is no such certificate.
            StorageUnavailable: nothing is known.
        """
        if cause not in _BY_ITSELF:
            return True
        stopped = self._stopped
        certificate = (await certificate_of(self._store, renewal)).value
        if cause == "bulk" and renewal.bulk_id is not None:
            return await self._may_renew_in_bulk(certificate, renewal.bulk_id)
        decision = await self._judge.judge_renewal(certificate)
        if decision.allowed:
            stopped.discard(certificate.id)
            if is_blocked(renewal):
                await self._unblock(renewal)
            return True
        if await self._block(certificate, decision):
            stopped.add(certificate.id)
        return False

    async def _may_renew_in_bulk(self, certificate: Certificate, bulk_id: BulkRenewalId) -> bool:
        """By the right of whoever renews many at once. If they have lost it, only their wish is void."""
        bulk = await BULK_RENEWALS.get(self._store, bulk_id)
        requested_by = None if bulk is None else bulk.value.requested_by
        decision = await self._judge.judge_renewal(owned_by(requested_by, certificate))
        if decision.allowed:
            return True

        async def draft(renewal: Renewal) -> Draft | None:
            if renewal.order_id is not None or renewal.bulk_id != bulk_id:
                return None
            unasked = msgspec.structs.replace(renewal, is_due=False, cause=None, bulk_id=None, next_try_at=None)
            return Draft(renewal=unasked)

        await change(self._store, certificate.id, draft)
        self._log.warning("bulk_renewal.not_allowed", certificate_id=certificate.id, bulk_renewal_id=bulk_id)
        return False

    async def _block(self, judged: Certificate, decision: Decision) -> bool:
        """Write down that it has stopped; False if it is another's by now, or being renewed."""
        is_stopped = is_new = False

        async def draft(renewal: Renewal) -> Draft | None:
            nonlocal is_stopped, is_new
            certificate = (await certificate_of(self._store, renewal)).value
            is_stopped = renewal.order_id is None and certificate == judged
            if not is_stopped:
                return None
            is_new, now = not is_blocked(renewal), self._clock.now()
            trouble = _trouble(certificate, decision, now + JUDGED_EVERY)
            blocked = msgspec.structs.replace(renewal, error=trouble, next_try_at=trouble.retry_at)
            told = (events.certificate_renewal_blocked(certificate, trouble, now),) if is_new else ()
            return Draft(renewal=blocked, events=told)

        renewal = await change(self._store, judged.id, draft)
        if is_new and renewal is not None and renewal.error is not None:
            self._log.error("certificate.renewal_blocked", certificate_id=judged.id, detail=renewal.error.detail)
        return is_stopped

    async def _unblock(self, blocked: Renewal) -> None:
        async def draft(renewal: Renewal) -> Draft | None:
            if not is_blocked(renewal):
                return None
            return Draft(renewal=msgspec.structs.replace(renewal, error=None, next_try_at=None))

        await change(self._store, blocked.certificate_id, draft)
        self._log.info("certificate.renewal_unblocked", certificate_id=blocked.certificate_id)


def is_blocked(renewal: Renewal) -> bool:
    """Whether policies have stopped it."""
    return renewal.error is not None and renewal.error.code == PermissionDenied.code


def _trouble(certificate: Certificate, decision: Decision, judged_again_at: datetime) -> Trouble:
    owner = certificate.requested_by
    whose = str(owner) if owner is None or owner.name is None else f"{owner} ({owner.name})"
    against = [f"{each.about}: {each.detail}" for each in decision.reasons if not each.allowed]
    more = f"; and {len(against) - _REASONS_SHOWN} more" if len(against) > _REASONS_SHOWN else ""
    why = "; ".join(against[:_REASONS_SHOWN]) or "no policy allows it"
    return Trouble(
        code=PermissionDenied.code,
        detail=f"{whose}, whose it is, may not renew it any more: {why}{more}",
        retryable=True,
        retry_at=judged_again_at,
        kind="permanent",
        fault="here",
        remedy=_remedy(whose, decision),
    )


def _remedy(whose: str, decision: Decision) -> str:
    if decision.policy is None:
        change_it = f"Allow cert.renew for its names to {whose} in a policy"
    else:
        change_it = f"Change rule {decision.rule} of policy {decision.policy!r}, which denies it to {whose}"
    return (
        f"{change_it} (`policies.put`): it is then renewed by itself. Or have somebody who may renew it "
        "(`pki.certificates.renew`)."
    )
