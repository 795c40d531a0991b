"""How a batch of jobs is run: reads one by one, writes as one group commit.

An fsync costs as much as fifty small writes, so commits that wait together share one transaction
and one fsync. Each stands in its own savepoint: a revision conflict of one does not touch its
neighbours. Nobody hears of success before the COMMIT is durable.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from scaivaultd.store.sqlite_errors import fault_of, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.store.sqlite_thread import Job


def run_each(connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> None:
    """Run reads, each on the newest committed state; one that fails fails alone."""
    for job in jobs:
        try:
            job.attempt(connection)
        except Exception as error:  # noqa: BLE001 - nothing is swallowed: the job's caller gets it
            job.fail(error)


class GroupCommit:
    """Runs writes as one transaction; when the medium fails all of them fail, and the next group tries anew."""

    def __init__(self, log: FilteringBoundLogger, require_file: Callable[[], None] = lambda: None) -> None:
        """`require_file` raises sqlite3.Error when the file is gone, into which a commit would be lost."""
        self._log = log
        self._require_file = require_file
        self._is_failing = False

    def __call__(self, connection: sqlite3.Connection, jobs: Sequence[Job[Any]]) -> None:
        """Apply and commit; blocks until the commit is on stable storage."""
        try:
            _begin(connection)
            for job in jobs:
                _attempt_alone(connection, job)
            self._require_file()
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            for job in jobs:
                job.fail(error)
            self._note_failure(error)
            _undo(connection)
        else:
            self._note_success()

    def _note_failure(self, error: sqlite3.Error) -> None:
        # Once per outage, not once per refused commit.
        if not self._is_failing:
            self._is_failing = True
            self._log.error("store.unavailable", error=name_of(error), reason=fault_of(error) or str(error))

    def _note_success(self) -> None:
        if self._is_failing:
            self._is_failing = False
            self._log.info("store.recovered")


def _begin(connection: sqlite3.Connection) -> None:
    _undo(connection)  # a rollback may have failed with the medium
    connection.execute("BEGIN IMMEDIATE")


def _undo(connection: sqlite3.Connection) -> None:
    # SQLite rolls back by itself after some errors (a full disk) and not after others.
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _attempt_alone(connection: sqlite3.Connection, job: Job[Any]) -> None:
    """Run one job so that its failure leaves no trace in the group.

    Raises:
        sqlite3.Error: the medium failed, and with it the whole group.
    """
    connection.execute("SAVEPOINT job")
    try:
        job.attempt(connection)
    except Exception as error:
        if isinstance(error, sqlite3.Error) and fault_of(error):
            raise
        job.fail(error)
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")
