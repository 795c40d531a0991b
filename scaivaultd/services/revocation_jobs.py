"""The job behind every pending revocation: replace the version if that is wanted, ask the CA, write the end down.

It goes on from the documents alone: each look finds out what has come by now, and each step commits once. The CA may
be asked twice, and says then that the version was revoked before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from scaivaultd.api import events
from scaivaultd.model.errors import Conflict, NotFound, RevisionConflict, ScaivaultError, StorageUnavailable, Timeout
from scaivaultd.model.resources import UNFINISHED, Revocation, RevocationRequest
from scaivaultd.services import renewals, setbacks
from scaivaultd.services.compromised_keys import spki_sha256_in
from scaivaultd.services.documents import CERTIFICATES, ORDERS, RENEWALS, REVOCATIONS, Versioned
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.renewal_changes import order_ended
from scaivaultd.services.revocation_at_ca import RevocationAtCa
from scaivaultd.services.revocation_targets import Place, load
from scaivaultd.services.setbacks import Memory
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from scaivaultd.model.ids import CertificateId, OrderId, RevocationId
    from scaivaultd.model.resources import Certificate, Issued, Order
    from scaivaultd.model.storage import OutboxEvent, Put
    from scaivaultd.services.documents import Shelf
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.pursuit import Tools
    from scaivaultd.services.revocation_targets import Target
    from scaivaultd.services.waiting import Waiting

T = TypeVar("T", bound=msgspec.Struct)

LOOK_AGAIN_SECONDS = 60.0
"""How long a wait for the replacement may miss what nobody tells: that it is tried again, or not wanted any more."""

_STORAGE_PAUSE_SECONDS = 5.0
_PAUSE_SECONDS = 1.0


class RevocationJobs:
    """Starts the jobs, and is what they do."""

    def __init__(self, tools: Tools, jobs: Jobs, waiting: Waiting, issuing: Issuing) -> None:
        self._tools = tools
        self._store = tools.store
        self._clock = tools.clock
        self._jobs = jobs
        self._waiting = waiting
        self._issuing = issuing
        self._at_ca = RevocationAtCa(tools)

    def start(self, revocation_id: RevocationId) -> None:
        """Have a pending revocation pursued, unless it is."""
        self._jobs.start(f"revoke {revocation_id}", lambda: self._pursue(revocation_id))

    async def resume(self) -> None:
        """Go on with those that a stop interrupted."""
        for pending in await REVOCATIONS.all(self._store, self._tools.log, status="pending"):
            self.start(pending.value.id)

    async def _pursue(self, revocation_id: RevocationId) -> None:
        while True:
            try:
                current = await self._due(revocation_id)
                if current is None:
                    return
                await self._step(current)
            except RevisionConflict:
                continue  # somebody else has changed what it is about: look again
            except StorageUnavailable as error:
                self._tools.log.warning(
                    "revocation.store_unavailable", revocation_id=revocation_id, detail=error.detail
                )
                await self._clock.sleep(_STORAGE_PAUSE_SECONDS)

    async def _due(self, revocation_id: RevocationId) -> Versioned[RevocationRequest] | None:
        """The revocation as soon as there is something to do; None when it has ended."""
        while True:
            current = await self._load(revocation_id)
            if current.value.status != "pending":
                return None
            next_try_at = current.value.next_try_at
            if next_try_at is None or next_try_at <= self._clock.now():
                return current
            await sleep_until(self._clock, next_try_at)

    async def _load(self, revocation_id: RevocationId) -> Versioned[RevocationRequest]:
        current = await REVOCATIONS.get(self._store, revocation_id)
        if current is None:
            raise NotFound(f"revocation {revocation_id} is gone")
        return current

    async def _step(self, current: Versioned[RevocationRequest]) -> None:
        log = self._tools.log.bind(revocation_id=current.value.id)
        error = await outcome_of(self._attempt(current), log, let_pass=(RevisionConflict,))
        if isinstance(error, StorageUnavailable):
            raise error
        if error is not None:
            await self._set_back(current, error)

    async def _attempt(self, current: Versioned[RevocationRequest]) -> None:
        request = current.value
        # The order first: one seen here as valid has brought its version before that is looked at.
        order = await self._order(request.order_id) if request.order_id else None
        target = await self._target(request)
        if request.replace and not _is_replaced(target):
            await self._replace(current, target.certificate.value, order)
            return
        if request.use_acme:
            was_revoked_already = not await self._at_ca.revoke(target.version, request.reason)
        else:
            was_revoked_already = target.version.status == "revoked"
        await self._end(request.id, was_revoked_already=was_revoked_already)

    async def _order(self, order_id: OrderId) -> Order | None:
        order = await ORDERS.get(self._store, order_id)
        return order.value if order else None

    async def _target(self, request: RevocationRequest) -> Target:
        return await load(self._store, Place(request.certificate_id, request.version))

    async def _replace(self, current: Versioned[RevocationRequest], latest: Certificate, order: Order | None) -> None:
        """See to it that a version with another key comes: one step, or one wait."""
        request = current.value
        if self._clock.now() >= request.give_up_at:
            last = f" (its order: {request.error.detail})" if request.error else ""
            raise Timeout(f"version {request.version} was not replaced in time, and is not revoked{last}")
        if order is None:
            await self._have_ordered(current)
        elif order.status in UNFINISHED:
            await self._await_end(current, order)
        elif latest.version > request.version:
            await self._require_other_cause(latest)
            await self._have_ordered(current)
        else:
            await self._await_another(current, order)

    async def _have_ordered(self, current: Versioned[RevocationRequest]) -> None:
        order = await self._issuing.renew(current.value.certificate_id, "revocation")
        # For those who look; after a crash before this is written, `renew` finds the same order.
        await self._commit(current, order_id=order.id, error=None, next_try_at=None)

    async def _await_end(self, current: Versioned[RevocationRequest], order: Order) -> None:
        if current.value.error != order.error:
            await self._commit(current, error=order.error)
            return
        await self._wait(ORDERS, order.id, lambda each: each.status not in UNFINISHED or each.error != order.error)

    async def _require_other_cause(self, latest: Certificate) -> None:
        """An order that was under way already may bring the old key again; one of ours has to bring a new one."""
        order = await self._order(latest.order_id)
        if order is not None and order.cause == "revocation":
            raise Conflict(f"version {latest.version} has the key of the one to be revoked, which is therefore kept")

    async def _await_another(self, current: Versioned[RevocationRequest], ended: Order) -> None:
        """The order has failed; the certificate's renewal goes on by itself, in its own time."""
        request = current.value
        renewal = await RENEWALS.get(self._store, request.certificate_id)
        next_order_id = renewal.value.order_id if renewal else None
        if next_order_id is not None and next_order_id != ended.id:
            await self._commit(current, order_id=next_order_id)
        elif request.error != ended.error:
            await self._commit(current, error=ended.error)
        else:
            await self._wait(CERTIFICATES, request.certificate_id, lambda each: each.version > request.version)

    async def _wait(self, shelf: Shelf[T], resource_id: str, reached: Callable[[T], bool]) -> None:
        if not reached(await self._waiting.until(shelf, resource_id, LOOK_AGAIN_SECONDS, reached)):
            # When the daemon stops every wait ends at once: no reason to run in circles until it has stopped.
            await self._clock.sleep(_PAUSE_SECONDS)

    async def _set_back(self, current: Versioned[RevocationRequest], error: ScaivaultError) -> None:
        request = current.value
        memory = Memory(attempt=request.attempt, misbehaved=request.misbehaved, give_up_at=request.give_up_at)
        verdict = setbacks.judge(error, memory, now=self._clock.now(), fraction=self._tools.randomness.fraction())
        await self._commit(
            current,
            status="pending" if verdict.next_try_at else "failed",
            error=verdict.trouble,
            attempt=verdict.attempt,
            misbehaved=verdict.misbehaved,
            next_try_at=verdict.next_try_at,
        )
        tell = self._tools.log.warning if verdict.next_try_at else self._tools.log.error
        tell(
            "revocation.set_back" if verdict.next_try_at else "revocation.failed",
            revocation_id=request.id,
            certificate_id=request.certificate_id,
            version=request.version,
            error_code=error.code,
            detail=error.detail,
            next_try_at=verdict.next_try_at and verdict.next_try_at.isoformat(),
        )

    async def _commit(self, current: Versioned[RevocationRequest], **changes: Any) -> None:
        changed = msgspec.structs.replace(current.value, **changes)
        await self._store.commit([REVOCATIONS.put(changed, current.revision)])

    async def _end(self, revocation_id: RevocationId, *, was_revoked_already: bool) -> None:
        """Write down that it is done, in one commit with all that follows from it."""
        while True:
            # Read again each time: the version may have become an earlier one while the CA was asked.
            current = await self._load(revocation_id)
            if current.value.status != "pending":
                return
            target = await self._target(current.value)
            changes, queued = await self._end_of(current, target, was_revoked_already=was_revoked_already)
            try:
                await self._store.commit(changes, queued)
            except RevisionConflict:
                continue
            break
        self._tools.log.info(
            "certificate.revoked",
            revocation_id=revocation_id,
            certificate_id=current.value.certificate_id,
            version=current.value.version,
            reason=current.value.reason,
            use_acme=current.value.use_acme,
            was_revoked_already=was_revoked_already,
        )
        self._tools.renewals.tell(current.value.certificate_id)

    async def _end_of(
        self, current: Versioned[RevocationRequest], target: Target, *, was_revoked_already: bool
    ) -> tuple[Sequence[Put], Sequence[OutboxEvent]]:
        request, version, now = current.value, target.version, self._clock.now()
        revocation = _revocation_of(version, request, was_revoked_already=was_revoked_already, now=now)
        done = msgspec.structs.replace(
            request, status="done", was_revoked_already=was_revoked_already, error=None, next_try_at=None
        )
        changes = [
            REVOCATIONS.put(done, current.revision),
            target.put(status="revoked", revocation=revocation),
            *await order_ended(self._store, version.order_id, "revoked"),
        ]
        if target.is_current:
            changes.extend(await self._renewal_changes(request.certificate_id))
        if version.status == "revoked":
            return changes, ()
        return changes, (events.certificate_revoked(target.certificate.value, version, revocation, now),)

    async def _renewal_changes(self, certificate_id: CertificateId) -> Sequence[Put]:
        """Who revokes the current version without a replacement does not want it renewed by itself."""
        renewal = await RENEWALS.get(self._store, certificate_id)
        if renewal is None:
            return ()
        stopped = msgspec.structs.replace(
            renewals.stopped(renewal.value, None),
            poll_at=None,
            # An order under way goes on, and the version it brings is looked after again.
            order_id=renewal.value.order_id,
        )
        return (RENEWALS.put(stopped, renewal.revision),)


def _is_replaced(target: Target) -> bool:
    """Whether a later version with another key is there."""
    if target.is_current:
        return False
    return spki_sha256_in(target.certificate.value.chain_pem) != spki_sha256_in(target.version.chain_pem)


def _revocation_of(
    version: Issued, request: RevocationRequest, *, was_revoked_already: bool, now: datetime
) -> Revocation:
    prior = version.revocation
    if prior is None or (request.use_acme and not _is_known_to_ca(prior, was_revoked_already=was_revoked_already)):
        return Revocation(at=now, origin="acme" if request.use_acme else "store", reason=request.reason)
    # It stays revoked as of then; that its key is compromised is worth more than the reason that was given first.
    return msgspec.structs.replace(prior, reason="key_compromise") if request.reason == "key_compromise" else prior


def _is_known_to_ca(prior: Revocation, *, was_revoked_already: bool) -> bool:
    return prior.origin == "acme" or (prior.origin == "outside" and was_revoked_already)
