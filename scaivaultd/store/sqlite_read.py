"""The reads, each one statement and so one consistent state. Times are Unix milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import Backlog, LogBounds, LogPage, OutboxEvent, Page, Pending, Stored
from scaivaultd.store.batches import end_of_prefix

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from scaivaultd.model.storage import LogScan

LOOKED_AT = 5_000
"""Events of the log that one read looks at: it must not keep all others waiting."""

_EVENT = "sequence, id, type, resource_id, time, data, traceparent"


class Scan(msgspec.Struct, frozen=True, kw_only=True):
    """What a page shall hold; see `Store.scan`."""

    prefix: str
    where: Mapping[str, str]
    after: str | None
    limit: int


class Found(msgspec.Struct, frozen=True):
    """A document, and whether its time will be over one day."""

    stored: Stored
    expires: bool


def read_document(connection: sqlite3.Connection, key: str, now: int) -> Found | None:
    """The document at `key`, None when there is none or its time is over."""
    row = connection.execute(
        "SELECT revision, document, expires_at FROM documents WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)",
        (key, now),
    ).fetchone()
    return None if row is None else Found(Stored(key=key, revision=row[0], document=row[1]), row[2] is not None)


def read_page(connection: sqlite3.Connection, scan: Scan, now: int) -> Page:
    """One page in key order."""
    statement, values = _page_statement(scan, now)
    rows = connection.execute(statement, values).fetchall()
    items = tuple(Stored(key=key, revision=revision, document=document) for key, revision, document in rows)
    if len(items) <= scan.limit:
        return Page(items=items)
    items = items[: scan.limit]  # one more was read to see whether there is one more
    return Page(items=items, next_cursor=items[-1].key)


def read_events(connection: sqlite3.Connection, limit: int) -> Sequence[Pending]:
    """The oldest events of the outbox."""
    query = f"SELECT {_EVENT} FROM outbox ORDER BY sequence LIMIT ?"  # noqa: S608 - a constant
    rows = connection.execute(query, (limit,)).fetchall()
    return [_pending(row) for row in rows]


def read_backlog(connection: sqlite3.Connection) -> Backlog:
    """How many events the outbox holds, and how old the oldest is."""
    (count,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
    oldest = connection.execute("SELECT time FROM outbox ORDER BY sequence LIMIT 1").fetchone()
    return Backlog(count=count, oldest=oldest[0] if oldest else None)


def read_log(connection: sqlite3.Connection, scan: LogScan) -> LogPage:
    """Events behind a place of the log, in its order, among the next `LOOKED_AT`.

    Types have no index, so that commits need not keep one: what is rare is looked for a stretch at a time.
    """
    (reached,) = connection.execute(
        "SELECT max(sequence) FROM (SELECT sequence FROM event_log WHERE sequence > ? ORDER BY sequence LIMIT ?)",
        (scan.after, LOOKED_AT),
    ).fetchone()
    if reached is None:
        return LogPage(items=(), reached=scan.after)
    conditions: list[str] = ["sequence > ?", "sequence <= ?"]
    values: list[str | int] = [scan.after, reached]
    if scan.type is not None and scan.type.endswith(".*"):
        # What comes after a dot is a slash: all that begin with the family and a dot.
        conditions.append("type >= ? AND type < ?")
        values += [scan.type[:-1], f"{scan.type[:-2]}/"]
    elif scan.type is not None:
        conditions.append("type = ?")
        values.append(scan.type)
    if scan.resource_id is not None:
        conditions.append("resource_id = ?")
        values.append(scan.resource_id)
    rows = connection.execute(
        f"SELECT {_EVENT} FROM event_log WHERE {' AND '.join(conditions)}"  # noqa: S608 - marks only
        " ORDER BY sequence LIMIT ?",
        (*values, scan.limit),
    )
    items = tuple(_pending(row) for row in rows)
    return LogPage(items=items, reached=items[-1].sequence if len(items) == scan.limit else reached)


def read_log_bounds(connection: sqlite3.Connection) -> LogBounds:
    """Where the log begins and ends."""
    (oldest,) = connection.execute("SELECT min(sequence) FROM event_log").fetchone()
    newest = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event_log'").fetchone()
    return LogBounds(oldest=oldest, newest=newest[0] if newest else 0)


def _pending(row: Sequence[Any]) -> Pending:
    sequence, id_, type_, resource_id, time, data, traceparent = row
    event = OutboxEvent(
        id=EventId(id_), type=type_, resource_id=resource_id, time=time, data=data, traceparent=traceparent
    )
    return Pending(sequence=sequence, event=event)


def _page_statement(scan: Scan, now: int) -> tuple[str, Sequence[str | int]]:
    """SELECT by key, or along the first pair of `where`, whose index is in key order too.

    CROSS JOIN fixes that order for SQLite: a page then costs what it looks at, with no sorting.
    """
    pairs = list(scan.where.items())
    tables = [*(f"document_index AS i{number}" for number in range(len(pairs))), "documents"]
    key = "i0.key" if pairs else "documents.key"
    # One lower bound only: with two of them SQLite begins at the first, and each page would cost all those before it.
    is_further = scan.after is not None and scan.after >= scan.prefix
    conditions = [f"{key} > ?" if is_further else f"{key} >= ?"]
    conditions.append("(documents.expires_at IS NULL OR documents.expires_at > ?)")
    values: list[str | int] = [scan.after if is_further and scan.after is not None else scan.prefix, now]
    if (end := end_of_prefix(scan.prefix)) is not None:
        conditions.append(f"{key} < ?")
        values.append(end)
    for number, (name, value) in enumerate(pairs):
        conditions.append(f"i{number}.name = ? AND i{number}.value = ? AND i{number}.key = i0.key")
        values += (name, value)
    if pairs:
        conditions.append("documents.revision = i0.revision")
    statement = (
        f"SELECT documents.key, documents.revision, documents.document FROM {' CROSS JOIN '.join(tables)}"  # noqa: S608 - only marks and our own names are put in
        f" WHERE {' AND '.join(conditions)} ORDER BY {key} LIMIT ?"
    )
    return statement, (*values, scan.limit + 1)
