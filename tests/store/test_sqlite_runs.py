"""Group commit, watched at the connection itself."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.store.sqlite_errors import fault_of
from scaivaultd.store.sqlite_runs import GroupCommit
from scaivaultd.store.sqlite_thread import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE t (n UNIQUE)")
    yield connection
    connection.close()


def job(work: Callable[[sqlite3.Connection], Any]) -> Job[Any]:
    return Job(work, None, asyncio.get_running_loop().create_future())


def inserting(number: int) -> Callable[[sqlite3.Connection], Any]:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?)", (number,)).rowcount


def rows(connection: sqlite3.Connection) -> list[int]:
    return [number for (number,) in connection.execute("SELECT n FROM t ORDER BY n").fetchall()]


async def test_commits_that_wait_together_share_one_transaction(
    connection: sqlite3.Connection, log: FilteringBoundLogger
) -> None:
    """One fsync for all of them is the whole point."""
    statements: list[str] = []
    connection.set_trace_callback(statements.append)
    GroupCommit(log)(connection, [job(inserting(number)) for number in range(20)])
    assert statements.count("COMMIT") == 1
    assert rows(connection) == list(range(20))


@pytest.mark.parametrize("fault", [ValueError("a bug"), sqlite3.IntegrityError("a constraint")])
async def test_a_failing_job_is_undone_alone(
    connection: sqlite3.Connection, log: FilteringBoundLogger, fault: Exception
) -> None:
    """A fault in one commit is told to its caller and leaves no trace."""

    def half(connection: sqlite3.Connection) -> None:
        inserting(50)(connection)
        raise fault

    jobs = [job(inserting(1)), job(half), job(inserting(2))]
    GroupCommit(log)(connection, jobs)
    assert [entry.error for entry in jobs] == [None, fault, None]
    assert rows(connection) == [1, 2]


def overfill(connection: sqlite3.Connection) -> None:
    """SQLite itself gives up, and rolls the whole transaction back."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))")


def fail_to_read(_: sqlite3.Connection) -> None:
    """An I/O error of the kind after which SQLite leaves the transaction open."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    raise error


@pytest.mark.parametrize(
    ("faulty", "fault"), [(overfill, "its disk is full"), (fail_to_read, "its disk reports an I/O error")]
)
async def test_a_failing_medium_fails_the_group_and_the_next_one_starts_clean(
    connection: sqlite3.Connection,
    log: FilteringBoundLogger,
    faulty: Callable[[sqlite3.Connection], None],
    fault: str,
) -> None:
    """When the disk refuses one write of the group, none of it was durable: nobody may hear of success."""
    run = GroupCommit(log)
    jobs = [job(inserting(1)), job(faulty), job(inserting(2))]
    run(connection, jobs)
    for entry in jobs:
        assert isinstance(entry.error, sqlite3.Error)
        assert fault_of(entry.error) == fault
        assert not entry.is_done
    assert not connection.in_transaction
    assert rows(connection) == []
    run(connection, [job(inserting(3))])
    assert rows(connection) == [3]


async def test_a_transaction_that_could_not_be_undone_is_undone_later(
    connection: sqlite3.Connection, log: FilteringBoundLogger
) -> None:
    """A disk that fails even the rollback must not leave the writer stuck for ever."""
    connection.execute("BEGIN")
    inserting(1)(connection)
    jobs = [job(inserting(2))]
    GroupCommit(log)(connection, jobs)
    assert jobs[0].error is None
    assert rows(connection) == [2]
