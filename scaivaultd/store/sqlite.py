"""The store of one node: an SQLite file. Satisfies `Store` of the services, and the publisher's outbox."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from scaivaultd.model import metrics
from scaivaultd.model.storage import Put
from scaivaultd.store.batches import MAX_PAGE, check_batch, check_key, check_prefix, check_ttl
from scaivaultd.store.recent import Recent
from scaivaultd.store.sqlite_apply import KeepEvents, apply, forget_events, has_events, later, release_lease, take_lease
from scaivaultd.store.sqlite_place import PlaceOfFile
from scaivaultd.store.sqlite_read import (
    Scan,
    read_backlog,
    read_document,
    read_events,
    read_log,
    read_log_bounds,
    read_page,
)
from scaivaultd.store.sqlite_runs import GroupCommit, run_each
from scaivaultd.store.sqlite_schema import open_reader, open_writer
from scaivaultd.store.sqlite_thread import SqliteThread
from scaivaultd.store.watching import Watchers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.storage import (
        Backlog,
        Change,
        Changed,
        LogBounds,
        LogPage,
        LogScan,
        OutboxEvent,
        Page,
        Pending,
        Stored,
    )
    from scaivaultd.store.sqlite_apply import Applied

_WRITE_QUEUE = 1024
_GROUP = 256  # commits that share an fsync; more would only delay the first of them
_READ_QUEUE = 1024
_READ_BATCH = 16


class SqliteStore:
    """Documents, outbox and leases in one SQLite file; made by `open`, for one process at a time.

    One thread writes, in group commits, and one reads beside it: a read never waits for an fsync,
    and sees every commit that has returned. What was used last is at hand without either.

    Expired documents are invisible at once; they are removed, and watchers told, along with the
    next commit of anything.
    """

    def __init__(
        self,
        writer: sqlite3.Connection,
        reader: sqlite3.Connection,
        place: PlaceOfFile,
        *,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._clock = clock
        self._watchers = Watchers()
        self._recent = Recent()
        self._outbox_filled = asyncio.Event()
        self._log_moved = asyncio.Event()
        self.keeping = KeepEvents()
        self._note_outbox(has_events(writer))
        commits = GroupCommit(log, place.require)
        self._writer = SqliteThread("store-writer", writer, commits, capacity=_WRITE_QUEUE, batch=_GROUP)
        self._reader = SqliteThread("store-reader", reader, run_each, capacity=_READ_QUEUE, batch=_READ_BATCH)

    @classmethod
    async def open(cls, path: Path, *, clock: Clock, log: FilteringBoundLogger) -> SqliteStore:
        """Open the store at `path`, making it (and its folder, 0700) when missing.

        That no second process has it open is the daemon's to see to.

        Raises:
            StartupError: damaged, not ours, of a newer version, or not to be opened; says what to do.
        """
        writer, reader, place = await asyncio.to_thread(_open, path)
        return cls(writer, reader, place, clock=clock, log=log)

    async def close(self) -> None:
        """Finish the commits under way, end all watches, fold the log into the file. May be repeated.

        Raises:
            StorageUnavailable: the disk hangs.
        """
        # The reader first: the last connection to close folds the log into the file and removes it.
        try:
            await self._reader.close()
        finally:
            await self._writer.close()
            self._watchers.end()

    async def get(self, key: str) -> Stored | None:
        """The document at `key` as last committed, or None."""
        check_key(key)
        if (stored := self._recent.get(key)) is not None and self._reader.is_open:
            return stored
        now, began = self._now(), self._recent.moment
        with self._timed("read"):
            found = await self._reader.call(lambda connection: read_document(connection, key, now))
        if found is None:
            return None
        if not found.expires:
            self._recent.note_read(found.stored, began)
        return found.stored

    async def scan(
        self,
        prefix: str,
        *,
        where: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """One page of documents in key order; at most 1000, whatever `limit` says.

        It walks along the first pair of `where`: name the one that fits the fewest documents first.
        """
        check_prefix(prefix)
        if limit < 1:
            raise ValueError(f"a page holds at least one document, not {limit}")
        scan = Scan(prefix=prefix, where=dict(where or {}), after=after, limit=min(limit, MAX_PAGE))
        now = self._now()
        with self._timed("scan"):
            return await self._reader.call(lambda connection: read_page(connection, scan, now))

    async def commit(self, changes: Sequence[Change], events: Sequence[OutboxEvent] = ()) -> Mapping[str, int]:
        """Apply all changes and queue all events, or nothing; on stable storage when it returns.

        An event whose id is in the outbox already is the same event once more: it keeps its place.
        A cancelled caller does not know the outcome; the commit is then whole, or absent.

        Raises:
            RevisionConflict: a change expected another revision. Nothing was applied.
            StorageUnavailable: the medium failed. Nothing was applied.
            ValueError: no store could carry this commit (`store/batches.py`).
        """
        changes, events = tuple(changes), tuple(events)
        check_batch(changes, events)
        now, keeping = self._now(), self.keeping

        expiring = {each.key for each in changes if isinstance(each, Put) and each.ttl_seconds is not None}

        def settled(applied: Applied) -> None:
            self._recent.note_commit(applied.changed, expiring)
            self._watchers.tell(applied.changed)
            if events:
                self._note_outbox(True)
                self._log_moved.set()
                self._log_moved = asyncio.Event()

        with self._timed("commit"):
            applied = await self._writer.call(
                lambda connection: apply(connection, changes, events, now, keeping), settled
            )
        return applied.revisions

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[Changed]]:
        """Changes under `prefix` from now on, in commit order; a watcher 1000 changes behind gets the latest only.

        One reader per watch. The iteration ends with the context, and when the store closes.
        """
        check_prefix(prefix)
        with self._watchers.watching(prefix) as changes:
            yield changes

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> SqliteLease | None:
        """Take the lease `name`; None while another holder has it. The same holder gets it again.

        It runs by the wall clock and outlives a restart.
        """
        check_ttl(ttl_seconds)
        lease = SqliteLease(self._writer, self._clock, name=name, holder=holder, ttl_seconds=ttl_seconds)
        return lease if await lease.renew() else None

    async def backlog(self) -> Backlog:
        """How much the outbox holds, and since when."""
        return await self._reader.call(read_backlog)

    async def pending_events(self, limit: int = 100) -> Sequence[Pending]:
        """The oldest events of the outbox, in commit order."""
        return await self._reader.call(lambda connection: read_events(connection, limit))

    async def forget_events(self, sequences: Sequence[int]) -> None:
        """Remove events that have been carried out; what is gone already is no error."""
        sequences = tuple(sequences)
        await self._writer.call(lambda connection: forget_events(connection, sequences), self._note_outbox)

    async def wait_for_events(self) -> None:
        """Return as soon as the outbox is not empty, at once when it is not. Bring your own deadline."""
        await self._outbox_filled.wait()

    def next_events(self) -> asyncio.Event:
        """What is set when events are committed from now on; ask for it before looking, and nothing is missed."""
        return self._log_moved

    async def log_bounds(self) -> LogBounds:
        """Where the log of events begins and ends."""
        return await self._reader.call(read_log_bounds)

    async def logged_events(self, scan: LogScan) -> LogPage:
        """Events, told or not, in commit order, as long as they are kept (`keeping`)."""
        return await self._reader.call(lambda connection: read_log(connection, scan))

    def _note_outbox(self, is_filled: bool) -> None:
        if is_filled:
            self._outbox_filled.set()
        else:
            self._outbox_filled.clear()

    def _now(self) -> int:
        return _milliseconds(self._clock)

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        started = self._clock.monotonic()
        try:
            yield
        finally:
            seconds = self._clock.monotonic() - started
            metrics.STORE_OPERATION_DURATION.labels(operation=operation).observe(seconds)


class SqliteLease:
    """A lease of this store. Ours as long as nobody took it after it ran out."""

    def __init__(self, writer: SqliteThread, clock: Clock, *, name: str, holder: str, ttl_seconds: float) -> None:
        self._writer = writer
        self._clock = clock
        self._name = name
        self._holder = holder
        self._ttl_seconds = ttl_seconds

    @property
    def name(self) -> str:
        """What is held."""
        return self._name

    async def renew(self) -> bool:
        """Hold it for another full `ttl_seconds` from now; False when somebody else has it meanwhile."""
        now = _milliseconds(self._clock)
        expires_at = later(now, self._ttl_seconds)
        return await self._writer.call(
            lambda connection: take_lease(connection, self._name, self._holder, now, expires_at)
        )

    async def release(self) -> None:
        """Give it up at once. A lease that is no longer ours is left alone."""
        await self._writer.call(lambda connection: release_lease(connection, self._name, self._holder))


def _milliseconds(clock: Clock) -> int:
    return int(clock.now().timestamp() * 1000)


def _open(path: Path) -> tuple[sqlite3.Connection, sqlite3.Connection, PlaceOfFile]:
    writer = open_writer(path)
    try:
        return writer, open_reader(path), PlaceOfFile(path)
    except BaseException:
        writer.close()
        raise
