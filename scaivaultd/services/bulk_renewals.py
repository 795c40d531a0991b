"""Many certificates renewed ahead of their time, with a throttle and progress."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import messages as m
from scaivaultd.api.commands import CREATE_BULK_RENEWAL
from scaivaultd.model.errors import Conflict, FieldError, NotFound, RevisionConflict
from scaivaultd.model.ids import AccountId, CertificateId
from scaivaultd.model.resources import BulkRenewal
from scaivaultd.services import visible
from scaivaultd.services.access_terms import account_ref
from scaivaultd.services.bulk_walks import BulkWalk, Tally, choice_page, fits, load, tally
from scaivaultd.services.documents import ACCOUNTS, BULK_RENEWALS, CERTIFICATES
from scaivaultd.services.idempotency import Repeatable
from scaivaultd.services.jobs import outcome_of, side_by_side
from scaivaultd.services.owners import owner_in
from scaivaultd.services.requests import invalid, not_found, one_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.api.gate import Permits
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import BulkRenewalId, IdMaker
    from scaivaultd.services.ports import RenewalJudge, Store
    from scaivaultd.services.renewing import Renewing

RUNNING_MAX = 20
_PAUSE_SECONDS = 5.0
_LISTED_MAX = 5


class BulkRenewals:
    """Handlers of `pki.bulk_renewals.*`, and the room that sets their certificates going."""

    def __init__(
        self,
        *,
        store: Store,
        renewing: Renewing,
        judge: RenewalJudge,
        ids: IdMaker,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._renewing = renewing
        self._judge = judge
        self._ids = ids
        self._clock = clock
        self._log = log
        self._created = asyncio.Event()
        self._walking: set[BulkRenewalId] = set()

    async def create(self, request: m.CreateBulkRenewal, context: RequestContext) -> m.BulkRenewalReply:
        """Handle `pki.bulk_renewals.create`."""
        if request.dry_run:
            return _reply(await self._wanted(request, context), _NOTHING, self._clock.now(), is_dry_run=True)
        repeatable = Repeatable(CREATE_BULK_RENEWAL, request, context)
        while True:
            if made := await repeatable.made_before(self._store):
                return await self._shown((await load(self._store, made)).value)
            bulk = await self._wanted(request, context)
            await self._require_room()
            try:
                await self._store.commit([BULK_RENEWALS.put(bulk), *repeatable.changes(bulk.id)])
            except RevisionConflict:
                continue  # the same key came twice at once: the other one's is the answer
            break
        self._log.info(
            "bulk_renewal.created",
            bulk_renewal_id=bulk.id,
            total=bulk.total,
            per_minute=bulk.per_minute,
            note=bulk.note,
            request_id=context.request_id,
        )
        self._created.set()
        return _reply(bulk, _NOTHING, self._clock.now())

    async def _require_room(self) -> None:
        running = await BULK_RENEWALS.page(self._store, where={"status": "running"}, cursor=None, limit=RUNNING_MAX)
        if len(running.items) >= RUNNING_MAX:
            raise Conflict(f"{len(running.items)} bulk renewals are running already; cancel one, or wait for its end")

    async def list(self, request: m.ListBulkRenewals, context: RequestContext) -> m.BulkRenewalList:
        """Handle `pki.bulk_renewals.list`."""
        sees = visible.bulk_renewals(context.permits, context.principal)
        page = await BULK_RENEWALS.page_seen(
            self._store, sees, where={"status": request.status}, cursor=request.cursor, limit=request.limit
        )
        items = await side_by_side([self._shown(each.value) for each in page.items])
        return m.BulkRenewalList(items=items, next_cursor=page.next_cursor)

    async def get(self, request: m.BulkRenewalById, context: RequestContext) -> m.BulkRenewalReply:
        """Handle `pki.bulk_renewals.get`."""
        return await self._shown((await load(self._store, request.id)).value)

    async def cancel(self, request: m.BulkRenewalById, context: RequestContext) -> m.BulkRenewalReply:
        """Handle `pki.bulk_renewals.cancel`; once more for one that is cancelled already changes nothing."""
        while True:
            found = await load(self._store, request.id)
            if found.value.status == "finished":
                raise Conflict(f"bulk renewal {found.value.id} has finished")
            if found.value.status == "cancelled":
                return await self._shown(found.value)
            cancelled = msgspec.structs.replace(found.value, status="cancelled", finished_at=self._clock.now())
            try:
                await self._store.commit([BULK_RENEWALS.put(cancelled, found.revision)])
            except RevisionConflict:
                continue  # its progress was written down at the same moment
            self._log.info("bulk_renewal.cancelled", bulk_renewal_id=cancelled.id, request_id=context.request_id)
            return await self._shown(cancelled)

    async def run(self) -> None:
        """Set the certificates of every running bulk renewal going, at its pace, until cancelled."""
        async with asyncio.TaskGroup() as walks:
            while True:
                self._created.clear()
                if (error := await outcome_of(self._begin_walks(walks), self._log)) is not None:
                    self._log.warning("bulk_renewal.not_begun", error_code=error.code, detail=error.detail)
                    await self._clock.sleep(_PAUSE_SECONDS)
                else:
                    await self._created.wait()

    async def _begin_walks(self, walks: asyncio.TaskGroup) -> None:
        for each in await BULK_RENEWALS.all(self._store, self._log, status="running"):
            if each.value.id not in self._walking:
                self._walking.add(each.value.id)
                walks.create_task(self._walk(each.value), name=f"bulk {each.value.id}")

    async def _walk(self, bulk: BulkRenewal) -> None:
        """Walk on after every error, until there is an end."""
        try:
            while (error := await outcome_of(self._walk_once(bulk.id), self._log)) is not None:
                self._log.warning(
                    "bulk_renewal.interrupted", bulk_renewal_id=bulk.id, error_code=error.code, detail=error.detail
                )
                await self._clock.sleep(_PAUSE_SECONDS)
        finally:
            self._walking.discard(bulk.id)

    async def _walk_once(self, bulk_renewal_id: BulkRenewalId) -> None:
        bulk = (await load(self._store, bulk_renewal_id)).value
        walk = BulkWalk(
            bulk, store=self._store, renewing=self._renewing, judge=self._judge, clock=self._clock, log=self._log
        )
        await walk.run()

    async def _wanted(self, request: m.CreateBulkRenewal, context: RequestContext) -> BulkRenewal:
        bulk = self._described(request, context)
        if request.certificate_ids:
            total = await self._count_named(bulk, request.certificate_ids, context.permits)
        else:
            total = await self._count(bulk, context.permits)
        if bulk.account_id is not None and total == 0:
            await self._require_account(bulk.account_id, context.permits)
        return msgspec.structs.replace(bulk, total=total)

    async def _require_account(self, account_id: AccountId, permits: Permits) -> None:
        """Refuse an account that is not there, or not for these eyes."""
        found = await ACCOUNTS.get(self._store, account_id)
        if found is None or not permits.allows("account.read", account=account_ref(found.value)):
            raise not_found("/account_id", f"there is no account {account_id[:100]!r}")

    def _described(self, request: m.CreateBulkRenewal, context: RequestContext) -> BulkRenewal:
        filters = (request.certificate_ids, request.account_id, request.issuer, request.domain, request.issued_before)
        if not request.all and not any(filters):
            raise invalid("/all", "no_filter", "give at least one filter, or say that all are meant")
        return BulkRenewal(
            id=self._ids.bulk_renewal(),
            status="running",
            created_at=self._clock.now(),
            per_minute=request.per_minute,
            note=request.note,
            certificate_ids=tuple(sorted({CertificateId(each) for each in request.certificate_ids})),
            account_id=None if request.account_id is None else AccountId(request.account_id),
            issuer=request.issuer,
            domain=None if request.domain is None else one_name(request.domain).base,
            issued_before=request.issued_before,
            requested_by=owner_in(context),
        )

    async def _count(self, bulk: BulkRenewal, permits: Permits) -> int:
        total = 0
        may_renew = visible.certificates(self._store, permits, "cert.renew")
        while True:
            page = await choice_page(self._store, bulk, self._log, may_renew)
            total += len(page.certificate_ids)
            if page.next_cursor is None:
                return total
            bulk = msgspec.structs.replace(bulk, cursor=page.next_cursor)

    async def _count_named(self, bulk: BulkRenewal, as_given: Sequence[str], permits: Permits) -> int:
        sees = [visible.certificates(self._store, permits, each) for each in ("cert.read", "cert.renew")]

        async def is_chosen(certificate_id: CertificateId) -> bool | None:
            found = await CERTIFICATES.get(self._store, certificate_id)
            if found is None or not any([each is None or await each(found.value) for each in sees]):
                return None
            return fits(bulk, found.value)

        chosen = await side_by_side([is_chosen(each) for each in bulk.certificate_ids])
        unknown = [each for each, found in zip(bulk.certificate_ids, chosen, strict=True) if found is None]
        if unknown:
            raise _not_found(unknown, as_given)
        return sum(map(bool, chosen))

    async def _shown(self, bulk: BulkRenewal) -> m.BulkRenewalReply:
        return _reply(bulk, _kept(bulk) or await tally(self._store, bulk.id), self._clock.now())


_NOTHING = Tally(renewed=0, failed=0, under_way=0, certificates=0)


def _kept(bulk: BulkRenewal) -> Tally | None:
    """What was counted when it finished."""
    if bulk.renewed is None or bulk.failed is None:
        return None
    return Tally(renewed=bulk.renewed, failed=bulk.failed, under_way=0, certificates=0)


def _reply(bulk: BulkRenewal, orders: Tally, now: datetime, *, is_dry_run: bool = False) -> m.BulkRenewalReply:
    # Progress is written down in steps; the orders may know of more by now.
    started = max(bulk.started, orders.certificates)
    left = max(0, bulk.total - started - bulk.skipped)
    is_running = bulk.status == "running" and not is_dry_run
    return m.BulkRenewalReply(
        id=None if is_dry_run else bulk.id,
        status="finished" if is_dry_run else bulk.status,
        created_at=bulk.created_at,
        note=bulk.note,
        per_minute=bulk.per_minute,
        total=bulk.total,
        started=started,
        skipped=bulk.skipped,
        renewed=orders.renewed,
        failed=orders.failed,
        under_way=orders.under_way,
        finished_at=bulk.finished_at,
        estimated_end=now + timedelta(minutes=left / bulk.per_minute) if is_running else None,
    )


def _not_found(certificate_ids: Sequence[str], as_given: Sequence[str]) -> NotFound:
    listed = certificate_ids[:_LISTED_MAX]
    more = len(certificate_ids) - len(listed)
    return NotFound(
        f"there is no certificate {', '.join(map(repr, listed))}" + (f", nor {more} more of these" if more else ""),
        [
            FieldError(
                pointer=f"/certificate_ids/{as_given.index(each)}",
                code=NotFound.code,
                detail=f"there is no certificate {each!r}",
            )
            for each in listed
        ],
    )
