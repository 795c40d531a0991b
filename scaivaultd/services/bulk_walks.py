"""The way of one bulk renewal through its certificates, in key order and at its pace.

`cursor` and the counts are written down in steps. After a stop the way goes on from there, over certificates that may
have been set going already: those say so themselves, in their `Renewal` or in the order of their version.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from scaivaultd.model.errors import NotFound, RevisionConflict, StorageUnavailable
from scaivaultd.model.ids import CertificateId
from scaivaultd.model.resources import UNFINISHED
from scaivaultd.services.documents import BULK_RENEWALS, CERTIFICATES, ORDERS, RENEWALS, Versioned
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.owners import owned_by
from scaivaultd.services.waiting import Waiting

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import BulkRenewalId, OrderId
    from scaivaultd.model.resources import BulkRenewal, Certificate, Renewal
    from scaivaultd.services.documents import Sees
    from scaivaultd.services.ports import RenewalJudge, Store
    from scaivaultd.services.renewing import Renewing

PAGE = 500
STEP = 25
"""So many are set going between two writes of the progress."""
LONG_PAUSE_SECONDS = 1.0
"""Before a pause of that length the progress is written down."""
CATCH_UP_SECONDS = 1.0
LOOK_SECONDS = 15.0
"""At most so long passes until a cancelled walk is over."""
PATIENCE_SECONDS = 600.0


Verdict = Literal["due", "started", "skipped", "no_matter"]


class ChoicePage(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the certificates to look at; `next_cursor` None: there are no more."""

    certificate_ids: tuple[CertificateId, ...]
    next_cursor: CertificateId | None


async def choice_page(
    store: Store, bulk: BulkRenewal, log: FilteringBoundLogger, sees: Sees[Certificate] | None = None
) -> ChoicePage:
    """The next certificates behind the cursor, as they are now; those named by id are not looked at yet.

    Only those that `sees` lets through; None lets all through.
    """
    if named := bulk.certificate_ids:
        start = 0 if bulk.cursor is None else bisect_right(named, bulk.cursor)
        some = named[start : start + PAGE]
        return ChoicePage(certificate_ids=some, next_cursor=some[-1] if start + PAGE < len(named) else None)
    page = await CERTIFICATES.page(store, where={"account": bulk.account_id}, cursor=bulk.cursor, limit=PAGE)
    for key in page.unreadable:
        log.error("document.unreadable", key=key)
    chosen = [each.value for each in page.items if fits(bulk, each.value) or _is_renewed_since(bulk, each.value)]
    return ChoicePage(
        certificate_ids=tuple([each.id for each in chosen if sees is None or await sees(each)]),
        next_cursor=None if page.next_cursor is None else CertificateId(page.next_cursor),
    )


def fits(bulk: BulkRenewal, certificate: Certificate) -> bool:
    """Whether a certificate passes all filters and was there when the bulk renewal was made.

    Those that their owner has revoked or let expire are chosen by id only: nobody else wants them back.
    """
    return (
        certificate.created_at <= bulk.created_at
        and (bool(bulk.certificate_ids) or _is_in_service(certificate))
        and bulk.account_id in (None, certificate.account_id)
        and bulk.issuer in (None, certificate.issuer)
        and (bulk.issued_before is None or certificate.not_before < bulk.issued_before)
        and (bulk.domain is None or any(_is_below(each.base, bulk.domain) for each in certificate.identifiers))
    )


def _is_in_service(certificate: Certificate) -> bool:
    if certificate.status == "revoked":
        return certificate.revocation is not None and certificate.revocation.origin == "outside"
    return certificate.status == "valid" or certificate.auto_renew


def _is_below(name: str, domain: str) -> bool:
    return name == domain or name.endswith(f".{domain}")


def _is_renewed_since(bulk: BulkRenewal, certificate: Certificate) -> bool:
    return (certificate.issued_at or certificate.not_before) > bulk.created_at >= certificate.created_at


class Pace:
    """So many a minute, evenly; what was late is caught up with for a second's worth at most."""

    def __init__(self, clock: Clock, per_minute: float) -> None:
        self._clock = clock
        self._seconds = 60 / per_minute
        self._next = clock.monotonic()

    def left_seconds(self) -> float:
        """How long to wait for the next; zero or less: now."""
        return self._next - self._clock.monotonic()

    def take(self) -> None:
        """One is set going."""
        self._next = max(self._next, self._clock.monotonic() - CATCH_UP_SECONDS) + self._seconds


class BulkWalk:
    """One bulk renewal from its cursor to its end."""

    def __init__(
        self,
        bulk: BulkRenewal,
        *,
        store: Store,
        renewing: Renewing,
        judge: RenewalJudge,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._bulk = bulk
        self._store = store
        self._judge = judge
        self._renewing = renewing
        self._clock = clock
        self._log = log.bind(bulk_renewal_id=bulk.id)
        self._pace = Pace(clock, bulk.per_minute)
        self._unsaved = 0

    async def run(self) -> None:
        """Go to the end, or until somebody cancels it; after an error another walk goes on from what is stored."""
        while await self._is_running():
            page = await choice_page(self._store, self._bulk, self._log)
            for certificate_id in page.certificate_ids:
                if not await self._come_to(certificate_id):
                    await self._save()
                    return
            if page.next_cursor is None:
                await self._end()
                return
            self._bulk = msgspec.structs.replace(self._bulk, cursor=page.next_cursor)
            await self._save()

    async def _is_running(self) -> bool:
        return (await self._load()).value.status == "running"

    async def _come_to(self, certificate_id: CertificateId) -> bool:
        """Set one certificate going in its turn, or pass it over; False when the walk was cancelled before that."""
        verdict = await self._verdict(certificate_id)
        if verdict == "due":
            if not await self._turn():
                return False
            # It has been a while: somebody may have renewed it, or changed what it is.
            verdict = await self._verdict(certificate_id)
        if verdict == "due":
            verdict = await self._ask_for(certificate_id)
        counts = {each: getattr(self._bulk, each) + (verdict == each) for each in ("started", "skipped")}
        self._bulk = msgspec.structs.replace(self._bulk, cursor=certificate_id, **counts)
        self._unsaved += 1
        if self._unsaved >= STEP:
            await self._save()
        return True

    async def _verdict(self, certificate_id: CertificateId) -> Verdict:
        found = await CERTIFICATES.get(self._store, certificate_id)
        if found is None:
            return "skipped"
        certificate = found.value
        if _is_renewed_since(self._bulk, certificate):
            if await self._is_ours(certificate.order_id):
                return "started"
            return "skipped" if fits(self._bulk, certificate) else "no_matter"
        if not fits(self._bulk, certificate):
            return "no_matter"
        if not (await self._judge.judge_renewal(owned_by(self._bulk.requested_by, certificate))).allowed:
            # Not among those that a filter has chosen: whoever may not renew them must not learn how many there are.
            return "skipped" if self._bulk.certificate_ids else "no_matter"
        renewal = await RENEWALS.get(self._store, certificate_id)
        return "due" if renewal is None else self._verdict_by(renewal.value)

    def _verdict_by(self, renewal: Renewal) -> Verdict:
        is_moving = renewal.order_id is not None or renewal.is_due
        if is_moving and renewal.bulk_id == self._bulk.id:
            return "started"
        if renewal.order_id is not None or (renewal.is_due and renewal.next_try_at is None):
            return "skipped"
        return "due"

    async def _is_ours(self, order_id: OrderId) -> bool:
        order = await ORDERS.get(self._store, order_id)
        return order is not None and order.value.bulk_id == self._bulk.id

    async def _turn(self) -> bool:
        """Wait for it; False when the walk is cancelled meanwhile."""
        if self._pace.left_seconds() > LONG_PAUSE_SECONDS and self._unsaved:
            await self._save()
        while await self._is_running():
            if (left := self._pace.left_seconds()) <= 0:
                return True
            await self._clock.sleep(min(left, LOOK_SECONDS))
        return False

    async def _ask_for(self, certificate_id: CertificateId) -> Verdict:
        error = await outcome_of(self._renewing.ask_for(certificate_id, "bulk", self._bulk.id), self._log)
        if isinstance(error, StorageUnavailable):
            raise error
        if error is not None:
            self._log.warning(
                "bulk_renewal.passed_over", certificate_id=certificate_id, error_code=error.code, detail=error.detail
            )
            return "skipped"
        self._pace.take()
        return "started"

    async def _end(self) -> None:
        # Those that no filter found any more were chosen once: they are gone, or renewed by themselves.
        skipped = max(self._bulk.skipped, self._bulk.total - self._bulk.started)
        self._bulk = msgspec.structs.replace(self._bulk, skipped=skipped)
        await self._save()
        await self._all_through()
        brought = await tally(self._store, self._bulk.id)
        await self._save(
            status="finished", finished_at=self._clock.now(), renewed=brought.renewed, failed=brought.failed
        )

    async def _all_through(self) -> None:
        """Wait until nothing that was set going is under way; what has failed is tried again as usual."""
        cursor: str | None = None
        while True:
            page = await RENEWALS.page(self._store, where={}, cursor=cursor, limit=PAGE)
            for each in page.items:
                if self._is_under_way(each.value):
                    await self._wait_for(each.value.certificate_id)
            if (cursor := page.next_cursor) is None:
                return

    def _is_under_way(self, renewal: Renewal) -> bool:
        waits_for_its_turn = renewal.is_due and renewal.attempt == 0
        return renewal.bulk_id == self._bulk.id and (renewal.order_id is not None or waits_for_its_turn)

    async def _wait_for(self, certificate_id: CertificateId) -> None:
        waiting = Waiting(self._store)
        while await self._is_running():
            try:
                renewal = await waiting.until(
                    RENEWALS, certificate_id, PATIENCE_SECONDS, lambda each: not self._is_under_way(each)
                )
            except NotFound:
                return
            if not self._is_under_way(renewal):
                return

    async def _save(self, **fields: Any) -> None:
        """Write the progress down, on top of a cancellation; `fields` only if there is none."""
        while True:
            found = await self._load()
            progress = {each: getattr(self._bulk, each) for each in ("cursor", "started", "skipped")}
            given = fields if found.value.status == "running" else {}
            bulk = msgspec.structs.replace(found.value, **progress, **given)
            try:
                await self._store.commit([BULK_RENEWALS.put(bulk, found.revision)])
            except RevisionConflict:
                continue
            self._bulk = bulk
            self._unsaved = 0
            return

    async def _load(self) -> Versioned[BulkRenewal]:
        return await load(self._store, self._bulk.id)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How the orders of a bulk renewal stand; `certificates` is for how many there have been any."""

    renewed: int
    failed: int
    under_way: int
    certificates: int


async def tally(store: Store, bulk_renewal_id: BulkRenewalId) -> Tally:
    """Count them; reads every one."""
    statuses: Counter[str] = Counter()
    certificates: set[str | None] = set()
    cursor: str | None = None
    while True:
        page = await store.scan(ORDERS.key(""), where={"bulk": bulk_renewal_id}, after=cursor, limit=PAGE)
        for each in page.items:
            order = _COUNTED.decode(each.document)
            statuses[order.status] += 1
            certificates.add(order.renews)
        if (cursor := page.next_cursor) is None:
            break
    return Tally(
        renewed=sum(statuses[each] for each in ("valid", "revoked", "expired")),
        failed=sum(statuses[each] for each in ("invalid", "deactivated")),
        under_way=sum(statuses[each] for each in UNFINISHED),
        certificates=len(certificates),
    )


class _Counted(msgspec.Struct, frozen=True):
    """All that is read of an order to count it."""

    status: str
    renews: str | None = None


_COUNTED = msgspec.json.Decoder(_Counted)


async def load(store: Store, bulk_renewal_id: str) -> Versioned[BulkRenewal]:
    """A bulk renewal; raises NotFound."""
    found = await BULK_RENEWALS.get(store, bulk_renewal_id)
    if found is None:
        raise NotFound(f"there is no bulk renewal {bulk_renewal_id[:100]!r}")
    return found
