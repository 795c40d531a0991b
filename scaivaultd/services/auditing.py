"""The audit log: who did what, by which rule, and how it ended.

Records wait in a queue; one task takes them in batches, links each to the one before it, and has a thread write them.
The head of the chain moves only once the file has them. What cannot be written stays in the queue and is tried again:
nothing is left out of the chain except what the queue had no place for, and that is counted in it.

Every now and then the head is kept in the store (`audit_anchors.py`). When the daemon starts, the end of the chain is
compared with the last anchor; only `audit.verify` reads all of it.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.api import events
from scaivaultd.api.audit import GENESIS, decode, link
from scaivaultd.model import metrics
from scaivaultd.model.access import Anchor
from scaivaultd.model.errors import Conflict, FieldError, Internal, InvalidRequest, StorageUnavailable
from scaivaultd.services import audit_anchors
from scaivaultd.services.audit_anchors import AnchorBook
from scaivaultd.services.audit_queue import AuditQueue, Queued, own_entry
from scaivaultd.services.audit_reading import find_end, fits, page, verified
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.audit import ChainReport
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.access import AuditEntry
    from scaivaultd.model.clock import Clock
    from scaivaultd.services.ports import AuditFile, Sealer, Store

DURABLY_SECONDS = 5.0
CLOSE_SECONDS = 1.0
READ_SECONDS = 10.0
ANCHOR_RECORDS = 1_000
ANCHOR_SECONDS = 60.0
RETRY_SECONDS = 5.0
ALARM_SECONDS = 60.0
ANNOUNCE_EVERY = timedelta(days=1)

_CATCH_UP_SECONDS = 1.0
_SEALED_LOOK = timedelta(hours=1)


class _Failure(msgspec.Struct):
    """A time in which nothing can be written."""

    since: datetime
    reason: str
    is_told: bool = False


class Auditing:
    """Handlers of `audit.*`, and the writer behind every record: at work from `resume` to `close`."""

    def __init__(self, *, file: AuditFile, store: Store, clock: Clock, log: FilteringBoundLogger) -> None:
        self._file = file
        self._store = store
        self._clock = clock
        self._log = log
        self._queue = AuditQueue()
        self._head = GENESIS
        self._head_at_start = GENESIS
        self._is_resumed = False
        self._sealer: Sealer | None = None
        # None until the chain was compared with it.
        self._book: AnchorBook | None = None
        self._anchored_at = 0.0
        self._no_anchor_before = 0.0
        self._announce_at = clock.now()
        self._failure: _Failure | None = None
        self._broken: str | None = None
        self._alarmed_at: dict[str, float] = {}
        self._busy_since: float | None = None
        self._is_verifying = False
        self._is_closing = False
        self._wake = asyncio.Event()
        # Held by whoever uses the end of the files.
        self._end = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def resume(self) -> None:
        """Find the end of the chain, and begin to write; what cannot be read is said, and is tried again."""
        async with self._at_the_end():
            try:
                await self._find_end()
            except OSError as error:
                self._failed(error, 0)
        self._task = asyncio.create_task(self._write_and_anchor(), name="audit log")

    def unlock(self, sealer: Sealer) -> None:
        """Anchors are sealed from now on, and compared with those there are."""
        self._sealer = sealer
        self._wake.set()

    async def run(self) -> None:
        """Stand by the writer: a fault of ours in it ends the daemon. Ends by cancellation, or with `close`."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """Write and anchor what is left; what the disk has not taken after a second is lost, and that is logged."""
        self._is_closing = True
        self._wake.set()
        if self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            if not done:
                self._task.cancel()
                await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            else:
                # A thread that hangs in a write still has the file: its descriptor must not become another's.
                self._file.close()
        if self._queue:
            self._log.error("audit.lost_at_stop", records=len(self._queue), **self._reason())
        for each in self._queue:
            each.tell("the daemon stops")

    @property
    def head(self) -> Anchor:
        """The last record that is in the files."""
        return self._head

    @property
    def trouble(self) -> str | None:
        """What is wrong with the log: it cannot be written right now, or is not what was written."""
        if self._failure is not None:
            lost = f", {self._queue.lost} more are lost" if self._queue.lost else ""
            return f"records cannot be written: {self._failure.reason}; {len(self._queue)} wait{lost}"
        if self._busy_since is not None and self._clock.monotonic() - self._busy_since > DURABLY_SECONDS:
            return f"records cannot be written: the disk does not answer; {len(self._queue)} wait"
        if self._queue.lost:
            return f"{self._queue.lost} records found no place to wait, and are lost"
        return self._broken

    def record(self, entry: AuditEntry) -> None:
        """Have it written soon; that it could not is an alarm, and nobody waits for it."""
        if self._enqueue(Queued(entry)) and self._failure is None:
            self._wake.set()

    async def record_durably(self, entry: AuditEntry) -> None:
        """Write it to stable storage.

        Raises:
            StorageUnavailable: it was not written within five seconds. It still may be, since it was attempted.
        """
        written: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        if self._is_closing or not self._enqueue(Queued(entry, written, durably=True)):
            raise StorageUnavailable("the audit log takes no more records: it is behind, or the daemon stops")
        self._wake.set()
        try:
            async with asyncio.timeout(DURABLY_SECONDS):
                failure = await written
        except TimeoutError as error:
            raise StorageUnavailable("the audit log cannot be written: its disk does not answer") from error
        if failure is not None:
            raise StorageUnavailable(f"the audit log cannot be written: {failure}")

    async def list(self, request: am.ListAudit, context: RequestContext) -> am.AuditList:
        """Handle `audit.list`."""
        await self._catch_up()
        try:
            async with asyncio.timeout(READ_SECONDS):
                return await asyncio.to_thread(page, self._file, request)
        except OSError as error:
            raise StorageUnavailable(f"the audit log cannot be read: {_said(error)}") from error
        except ValueError as error:
            wrong = FieldError(pointer="/cursor", code="invalid", detail=str(error))
            raise InvalidRequest(f"cursor: {error}", [wrong]) from error

    async def verify(self, request: am.VerifyAudit, context: RequestContext) -> am.AuditVerification:
        """Handle `audit.verify`."""
        if self._is_verifying:
            raise Conflict("the audit log is being verified already; ask again when that has ended")
        self._is_verifying = True
        stop = threading.Event()
        try:
            book, report = await self._verified(stop)
        except (OSError, TimeoutError) as error:
            raise StorageUnavailable(f"the audit log cannot be read: {_said(error)}") from error
        finally:
            stop.set()
            self._is_verifying = False
        self._judge(report)
        return _verification(report, len(book.all))

    async def _verified(self, stop: threading.Event) -> tuple[AnchorBook, ChainReport]:
        async with asyncio.timeout(READ_SECONDS), self._at_the_end():
            await self._get_ready()
            lines, head = await asyncio.to_thread(self._file.read), self._head
        book = self._book or AnchorBook()
        begin = None if self._book is None else book.begin
        # What we have written ourselves needs no seal to be known.
        anchors = [*([head] if head.sequence else []), *book.all]
        return book, await asyncio.to_thread(verified, lines, begin, anchors, stop=stop, log=self._log)

    def _judge(self, report: ChainReport) -> None:
        if report.broken is None:
            self._broken = None
            self._log.info("audit.verified", sequence=report.head.sequence, hash=report.head.hash, sound=report.sound)
            return
        said = f"{report.broken.kind} at record {report.broken.sequence}: {report.broken.detail}"
        if said != self._broken:
            self._found_broken(said)
            self.record(own_entry("audit.broken", said, self._clock.now()))

    def _enqueue(self, queued: Queued) -> bool:
        if self._queue.add(queued):
            return True
        self._alarm("audit.record_lost", lost=self._queue.lost, **self._reason())
        return False

    async def _catch_up(self) -> None:
        """Whoever asks what was done wants to see what has just been done; waits a second at most."""
        last = self._queue.newest
        if last is None or self._failure is not None:
            return
        if last.written is None:
            last.written = asyncio.get_running_loop().create_future()
        await asyncio.wait([last.written], timeout=_CATCH_UP_SECONDS)

    @asynccontextmanager
    async def _at_the_end(self) -> AsyncIterator[None]:
        """Alone with the end of the files; `trouble` sees how long that takes."""
        async with self._end:
            self._busy_since = self._clock.monotonic()
            try:
                yield
            finally:
                self._busy_since = None

    async def _write_and_anchor(self) -> None:
        while True:
            self._wake.clear()
            await self._write()
            await self._look_after_anchor()
            if self._failure is not None:
                await self._tell_failure()
            if self._is_closing and (self._failure is not None or not self._queue):
                return
            if self._failure is not None or not self._queue:
                await sleep_until(self._clock, self._next_look(), self._wake)

    async def _write(self) -> None:
        """Write one batch, and whatever has to be in the chain before it."""
        async with self._at_the_end():
            waiting = len(self._queue)
            try:
                await self._get_ready()
                waiting = len(self._queue)
                batch = self._queue.batch()
                if batch:
                    self._head = await asyncio.to_thread(self._append, self._head, batch)
                elif self._failure is not None:
                    await asyncio.to_thread(self._file.sync)
            except OSError as error:
                self._failed(error, waiting)
                return
            self._queue.written(batch)
            self._succeeded()

    def _append(self, head: Anchor, batch: Sequence[Queued]) -> Anchor:
        lines, new_head = link(head, (each.entry for each in batch))
        self._file.append(lines, sequence=head.sequence + 1, durably=any(each.durably for each in batch))
        return new_head

    async def _get_ready(self) -> None:
        if not self._is_resumed:
            await self._find_end()
        if self._sealer is not None and self._book is None:
            await self._compare(self._sealer)
        if self._queue and (found := await asyncio.to_thread(self._file.disturbance)) is not None:
            self._found_broken(f"while the daemon was running, {found}", in_front=True)

    async def _find_end(self) -> None:
        end = await asyncio.to_thread(find_end, self._file)
        self._head = self._head_at_start = end.head
        self._is_resumed = True
        if end.unreadable_lines:
            what = f"{end.unreadable_lines} lines behind record {end.head.sequence} are no records"
            self._found_broken(what, in_front=True)
        if end.torn_bytes:
            self._log.warning("audit.repaired", cut_bytes=end.torn_bytes, sequence=end.head.sequence)
            what = f"{end.torn_bytes} bytes of a record without an end were cut off behind record {end.head.sequence}"
            self._queue.add_first(own_entry("audit.repaired", what, self._clock.now()))

    async def _compare(self, sealer: Sealer) -> None:
        """See whether the chain still goes as far as it was anchored, before anything is added to it."""
        try:
            book = await audit_anchors.load(self._store, sealer)
        except StorageUnavailable:
            return  # with the next batch
        except Internal as error:
            book = None
            self._found_broken(f"its anchors cannot be used: {error.detail}", in_front=True)
        else:
            if book is None:
                # A store is made with a book. Without this, nobody would miss a log that went with its anchors.
                what = f"its anchors are gone from the store; {self._head_at_start.sequence} records are there"
                self._found_broken(what, in_front=True)
        if book is not None and book.newest.sequence:
            book = await self._compared(book)
        self._book = book or AnchorBook()
        self._anchored_at = self._clock.monotonic()
        # Nothing is worth telling of a chain that begins.
        self._announce_at = self._clock.now() + (timedelta() if self._head.sequence else ANNOUNCE_EVERY)

    async def _compared(self, book: AnchorBook) -> AnchorBook:
        newest = book.newest
        if newest.sequence > self._head.sequence:
            what = f"it ends with record {self._head.sequence}, and was anchored at record {newest.sequence}"
            self._found_broken(f"cut off: {what}", in_front=True)
            # Never the same number twice: the gap can be seen for ever, and be filled from a copy.
            self._head = newest
            return book.with_misfit(newest)
        if not await asyncio.to_thread(fits, self._file, newest):
            what = f"record {newest.sequence} is not the one that was anchored"
            self._found_broken(f"rewritten: {what}", in_front=True)
            return book.with_misfit(newest)
        return book

    async def _look_after_anchor(self) -> None:
        if self._sealer is None or self._book is None or self._failure is not None:
            return
        if self._clock.monotonic() < self._no_anchor_before and not self._is_closing:
            return
        new = self._head.sequence - self._book.newest.sequence
        is_announced = self._head.sequence > 0 and self._clock.now() >= self._announce_at
        is_time = self._is_closing or self._clock.monotonic() - self._anchored_at >= ANCHOR_SECONDS
        if is_announced or new >= ANCHOR_RECORDS or (new > 0 and is_time):
            await self._anchor(self._sealer, self._book, is_announced=is_announced)

    async def _anchor(self, sealer: Sealer, book: AnchorBook, *, is_announced: bool) -> None:
        """Keep the head in the store. Only what is safely on the disk: an anchor must not outlive its record."""
        now = self._clock.now()
        self._anchored_at = self._clock.monotonic()
        try:
            async with self._at_the_end():
                await asyncio.to_thread(self._file.sync)
                head = self._head
                surplus = None if self._is_verifying else await asyncio.to_thread(self._file.surplus)
            book = book.with_anchor(head) if head != book.newest else book
            if surplus is not None and (begin := _followed_by(surplus[1])) is not None:
                book = book.beginning_after(begin)
            told = [events.audit_anchored(head, now)] if is_announced else []
            await self._store.commit([audit_anchors.put(book, sealer)], told)
            self._book = book
            if is_announced:
                self._announce_at = now + ANNOUNCE_EVERY
                self._log.info("audit.anchored", sequence=head.sequence, hash=head.hash)
            if surplus is not None and not self._is_verifying:
                await self._delete_before(surplus[0])
        except OSError as error:
            self._failed(error, 0)
        except StorageUnavailable as error:
            self._no_anchor_before = self._clock.monotonic() + ANCHOR_SECONDS
            self._alarm("audit.not_anchored", reason=error.detail)

    async def _delete_before(self, name: str) -> None:
        try:
            deleted = await asyncio.to_thread(self._file.delete_before, name)
        except OSError as error:
            self._alarm("audit.files_not_deleted", reason=_said(error))
        else:
            self._log.info("audit.files_deleted", files=deleted, first_kept=name)

    def _next_look(self) -> datetime:
        now = self._clock.now()
        if self._failure is not None:
            return now + timedelta(seconds=RETRY_SECONDS)
        if self._book is None:
            return now + (_SEALED_LOOK if self._sealer is None else timedelta(seconds=RETRY_SECONDS))
        is_new = self._head.sequence > self._book.newest.sequence
        due = max(self._anchored_at + (ANCHOR_SECONDS if is_new else 0), self._no_anchor_before)
        in_turn = now + timedelta(seconds=max(1.0, due - self._clock.monotonic()))
        return in_turn if is_new else max(self._announce_at, in_turn)

    def _failed(self, error: OSError, waiting: int) -> None:
        """Tell those who waited for this write; who came later has a try of their own."""
        reason = _said(error)
        metrics.AUDIT_WRITE_FAILURES.inc()
        if self._failure is None:
            self._failure = _Failure(since=self._clock.now(), reason=reason)
        self._failure.reason = reason
        for each in islice(self._queue, waiting):
            each.tell(reason)
        self._alarm("audit.write_failed", reason=reason, waiting=len(self._queue), lost=self._queue.lost)

    def _succeeded(self) -> None:
        if self._failure is not None:
            self._log.info("audit.writable_again", since=self._failure.since, lost=self._queue.lost)
            self._failure = None
        if self._queue.lost:
            what = f"{self._queue.lost} records found no place to wait"
            if self._queue.add(Queued(own_entry("audit.lost", what, self._clock.now()))):
                self._queue.lost = 0

    async def _tell_failure(self) -> None:
        failure = self._failure
        if failure is None or failure.is_told:
            return
        event = events.audit_write_failed(
            failure.reason, failure.since, len(self._queue), self._queue.lost, self._clock.now()
        )
        # The store is on the same disk, perhaps: then with the next try.
        with suppress(StorageUnavailable, TimeoutError):
            async with asyncio.timeout(DURABLY_SECONDS):
                await self._store.commit([], [event])
            failure.is_told = True

    def _found_broken(self, what: str, *, in_front: bool = False) -> None:
        self._broken = f"the audit log is not as it was written: {what}"
        self._log.error("audit.broken", detail=what, advice="scaivaultctl audit verify")
        if in_front:
            self._queue.add_first(own_entry("audit.broken", what, self._clock.now()))

    def _reason(self) -> dict[str, str]:
        return {} if self._failure is None else {"reason": self._failure.reason}

    def _alarm(self, event: str, **about: object) -> None:
        now = self._clock.monotonic()
        if now - self._alarmed_at.get(event, -ALARM_SECONDS) >= ALARM_SECONDS:
            self._alarmed_at[event] = now
            self._log.error(event, **about)


def _followed_by(line: bytes) -> Anchor | None:
    try:
        record = decode(line)
    except ValueError:
        return None
    return Anchor(sequence=record.sequence - 1, hash=record.previous)


def _said(error: OSError) -> str:
    return error.strerror or str(error) or "its disk does not answer"


def _verification(report: ChainReport, anchors: int) -> am.AuditVerification:
    broken = report.broken
    return am.AuditVerification(
        is_sound=broken is None,
        records=report.sound,
        head_sequence=report.head.sequence,
        head_hash=report.head.hash,
        anchors=anchors,
        broken=None
        if broken is None
        else am.AuditBreak(sequence=broken.sequence, kind=broken.kind, detail=broken.detail),
    )
