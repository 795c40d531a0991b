"""The writes, inside a transaction that somebody else begins and commits. Times are Unix milliseconds."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import RevisionConflict
from scaivaultd.model.storage import ABSENT, Changed, Delete, Put, Stored

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from scaivaultd.model.storage import Change, OutboxEvent

_SWEEP_LIMIT = 50  # expired documents removed along with one commit: a little each time, never a long pause


class KeepEvents(msgspec.Struct, frozen=True, kw_only=True):
    """How many events are kept after they were told, and for how long."""

    count: int = 200_000
    seconds: float = 30 * 86_400.0


class Applied(msgspec.Struct, frozen=True):
    """What a commit did: the revision of each key put, and what watchers are to be told."""

    revisions: Mapping[str, int]
    changed: Sequence[Changed]


def apply(
    connection: sqlite3.Connection,
    changes: Sequence[Change],
    events: Sequence[OutboxEvent],
    now: int,
    keeping: KeepEvents,
) -> Applied:
    """Apply one commit; expired documents elsewhere, and events that are kept no longer, go along with it.

    Raises:
        RevisionConflict: a change expected another revision; the caller undoes what was done before.
    """
    _check_expectations(connection, changes, now)
    changed = [told for change in changes if (told := _apply_change(connection, change, now))]
    _queue(connection, events)
    if events:
        _prune(connection, now, keeping)
    revisions = {told.key: told.stored.revision for told in changed if told.stored}
    return Applied(revisions, [*changed, *_sweep(connection, now)])


def forget_events(connection: sqlite3.Connection, sequences: Sequence[int]) -> bool:
    """Remove events from the outbox; whether any are left."""
    connection.executemany("DELETE FROM outbox WHERE sequence = ?", [(sequence,) for sequence in sequences])
    return has_events(connection)


def has_events(connection: sqlite3.Connection) -> bool:
    """Whether the outbox holds anything."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM outbox)").fetchone()[0])


def take_lease(connection: sqlite3.Connection, name: str, holder: str, now: int, expires_at: int) -> bool:
    """Take or prolong a lease unless another holder's is still running."""
    cursor = connection.execute(
        """
        INSERT INTO leases (name, holder, expires_at) VALUES (?1, ?2, ?3)
        ON CONFLICT (name) DO UPDATE SET holder = ?2, expires_at = ?3 WHERE holder = ?2 OR expires_at <= ?4
        """,
        (name, holder, expires_at, now),
    )
    return cursor.rowcount == 1


def release_lease(connection: sqlite3.Connection, name: str, holder: str) -> None:
    """Give a lease up; another holder's is left alone."""
    connection.execute("DELETE FROM leases WHERE name = ? AND holder = ?", (name, holder))


def _check_expectations(connection: sqlite3.Connection, changes: Sequence[Change], now: int) -> None:
    expected = {change.key: change.expect_revision for change in changes if change.expect_revision is not None}
    if not expected:
        return
    marks = ", ".join("?" * len(expected))
    found: dict[str, int] = dict(
        connection.execute(
            f"SELECT key, revision FROM documents WHERE key IN ({marks})"  # noqa: S608 - only marks are put in
            " AND (expires_at IS NULL OR expires_at > ?)",
            (*expected, now),
        ).fetchall()
    )
    for key, revision in expected.items():
        if found.get(key, ABSENT) != revision:
            raise RevisionConflict(key)


def _apply_change(connection: sqlite3.Connection, change: Change, now: int) -> Changed | None:
    match change:
        case Put():
            return Changed(key=change.key, stored=_put(connection, change, now))
        case Delete():
            cursor = connection.execute("DELETE FROM documents WHERE key = ?", (change.key,))
            return Changed(key=change.key, stored=None) if cursor.rowcount else None


def _put(connection: sqlite3.Connection, put: Put, now: int) -> Stored:
    expires_at = None if put.ttl_seconds is None else later(now, put.ttl_seconds)
    cursor = connection.execute(
        "INSERT OR REPLACE INTO documents (key, document, expires_at) VALUES (?, ?, ?)",
        (put.key, put.document, expires_at),
    )
    assert cursor.lastrowid is not None
    revision = cursor.lastrowid
    if put.index:
        connection.executemany(
            "INSERT INTO document_index (name, value, key, revision) VALUES (?, ?, ?, ?)",
            [(name, value, put.key, revision) for name, value in put.index.items()],
        )
    return Stored(key=put.key, revision=revision, document=put.document)


def later(now: int, seconds: float) -> int:
    """The millisecond `seconds` after `now`; what is meant to last for ever stays within 64 bits."""
    return min(now + max(1, round(seconds * 1000)), (1 << 63) - 1)


def _queue(connection: sqlite3.Connection, events: Sequence[OutboxEvent]) -> None:
    if not events:
        return
    # An id that waits already is the same event once more (a commit repeated after an unknown
    # outcome): it keeps its place.
    rows = [(event.id, event.type, event.resource_id, event.time, event.data, event.traceparent) for event in events]
    for table in ("outbox", "event_log"):
        connection.executemany(
            f"INSERT INTO {table} (id, type, resource_id, time, data, traceparent)"  # noqa: S608 - one of the two
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            rows,
        )


def _prune(connection: sqlite3.Connection, now: int, keeping: KeepEvents) -> None:
    (newest,) = connection.execute("SELECT max(sequence) FROM event_log").fetchone()
    earliest = datetime.fromtimestamp(max(0.0, now / 1000 - keeping.seconds), UTC).isoformat()
    # From the oldest on to the first that stays: nearly always that is the first one looked at.
    query = "SELECT sequence, time FROM event_log ORDER BY sequence LIMIT ?"
    with closing(connection.execute(query, (_SWEEP_LIMIT,))) as oldest:
        over = takewhile(lambda row: row[0] <= newest - keeping.count or row[1] < earliest, oldest)
        gone = [(sequence,) for sequence, _ in over]
    connection.executemany("DELETE FROM event_log WHERE sequence = ?", gone)


def _sweep(connection: sqlite3.Connection, now: int) -> Sequence[Changed]:
    expired = connection.execute(
        "SELECT revision, key FROM documents WHERE expires_at <= ? LIMIT ?", (now, _SWEEP_LIMIT)
    ).fetchall()
    if not expired:
        return ()
    connection.executemany("DELETE FROM documents WHERE revision = ?", [(revision,) for revision, _ in expired])
    return [Changed(key=key, stored=None) for _, key in expired]
