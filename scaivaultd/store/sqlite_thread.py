"""A connection and the one thread that uses it: work goes in by a bounded queue, results come back in order.

SQLite blocks, and an fsync blocks long, so none of it happens on the event loop. Whatever waits
when the thread is free is taken together: that is what makes group commit possible. Results
cross back in one call per batch, and what a result sets off (`settled`) runs on the loop, in the
order of the work, before the caller resumes.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.store.sqlite_errors import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

_PATIENCE_SECONDS = 30.0  # how long a caller waits for a place in the queue, and a closer for its end


class Job(Generic[T]):
    """One piece of work, and what came of it. `is_done` and `error` are set by the thread alone."""

    def __init__(
        self,
        work: Callable[[sqlite3.Connection], T],
        settled: Callable[[T], None] | None,
        future: asyncio.Future[T],
    ) -> None:
        self._work = work
        self._settled = settled
        self._result: T
        self.future = future
        self.is_done = False
        self.error: Exception | None = None

    def attempt(self, connection: sqlite3.Connection) -> None:
        """Do the work; the caller says by `fail` what became of an exception."""
        self._result = self._work(connection)
        self.is_done = True

    def fail(self, error: Exception) -> None:
        """Nothing of the work stands, this is why."""
        self.is_done = False
        self.error = error

    def settle(self) -> None:
        """On the loop: let follow what follows, and wake the caller if it still waits."""
        if self.is_done and self._settled is not None:
            self._settled(self._result)
        if self.future.done():
            return  # the caller was cancelled; what was committed stays committed
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self._result)


class SqliteThread:
    """Owns the connection and the thread from construction to `close`."""

    def __init__(
        self,
        name: str,
        connection: sqlite3.Connection,
        run: Callable[[sqlite3.Connection, Sequence[Job[Any]]], None],
        *,
        capacity: int,
        batch: int,
    ) -> None:
        self._connection = connection
        self._run = run
        self._batch = batch
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(capacity)
        # Bounded by the slots; None is the end.
        self._jobs: queue.SimpleQueue[Job[Any] | None] = queue.SimpleQueue()
        self._is_closing = False
        self._stopped = asyncio.Event()
        # A daemon thread: a disk that hangs must not keep a finished process alive, and SQLite
        # survives being stopped anywhere.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    async def call(self, work: Callable[[sqlite3.Connection], T], settled: Callable[[T], None] | None = None) -> T:
        """Have `work` done by the thread.

        Waits at most 30 s for a place in the queue. From there on only the disk decides how long
        it takes; the caller may be cancelled at any time: work not begun is then not done, work
        begun is finished, and `settled` runs whenever the work was done.

        Raises:
            StorageUnavailable: the medium failed, the store is closed, or the queue stayed full.
            Internal: SQLite refused what we asked of it.
        """
        await self._take_slot()
        job: Job[T] = Job(work, settled, self._loop.create_future())
        self._jobs.put(job)
        try:
            return await job.future
        except sqlite3.Error as error:
            raise translated(error) from error

    async def close(self) -> None:
        """Finish what is queued, then close the connection. May be repeated.

        Raises:
            StorageUnavailable: the disk hangs; what it has not taken after 30 s is lost.
        """
        if not self._is_closing:
            self._is_closing = True
            self._jobs.put(None)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._stopped.wait()
        except TimeoutError as error:
            raise StorageUnavailable("the store cannot be closed: its disk hangs") from error
        self._thread.join()

    @property
    def is_open(self) -> bool:
        """Whether work is still taken."""
        return not self._is_closing

    async def _take_slot(self) -> None:
        if self._slots.locked():
            await self._wait_for_slot()
        else:
            await self._slots.acquire()
        if self._is_closing:  # perhaps while we waited
            self._slots.release()
            raise StorageUnavailable("the store cannot be used: it is closed")

    async def _wait_for_slot(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._slots.acquire()
        except TimeoutError as error:
            raise StorageUnavailable("the store cannot be used: it is far behind with its work") from error

    def _serve(self) -> None:
        is_open = True
        while is_open:
            jobs, is_open = self._next_jobs()
            self._do([job for job in jobs if not job.future.cancelled()])
            self._loop.call_soon_threadsafe(self._settle, jobs)
        try:
            self._connection.close()
        finally:
            self._loop.call_soon_threadsafe(self._stopped.set)

    def _next_jobs(self) -> tuple[Sequence[Job[Any]], bool]:
        """Wait for work, then take all that is there, up to one batch; False when it was the last."""
        jobs: list[Job[Any]] = []
        try:
            while len(jobs) < self._batch:
                job = self._jobs.get(block=not jobs)
                if job is None:
                    return jobs, False
                jobs.append(job)
        except queue.Empty:
            pass
        return jobs, True

    def _do(self, jobs: Sequence[Job[Any]]) -> None:
        try:
            if jobs:
                self._run(self._connection, jobs)
        except Exception as error:  # noqa: BLE001 - nothing is swallowed: every waiting caller gets it
            for job in jobs:
                job.fail(error)

    def _settle(self, jobs: Sequence[Job[Any]]) -> None:
        for job in jobs:
            self._slots.release()
            job.settle()
