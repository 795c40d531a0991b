"""The store's file: created, opened, checked, and brought forward to the schema of this version.

`PRAGMA user_version` is the schema version. A migration is appended, never edited: files in the
field have run the old ones. There is no way back; a newer file is refused rather than guessed at.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from scaivaultd.model.errors import StartupError
from scaivaultd.store.durable import sync_directory
from scaivaultd.store.sqlite_errors import fault_of

if TYPE_CHECKING:
    from pathlib import Path

# A document's revision is its AUTOINCREMENT row id: SQLite itself then guarantees that revisions
# are unique in the store, only grow, and are not used again after a delete or a restart. A new
# revision replaces the row, and the foreign key takes the old revision's index pairs with it.
_VERSION_1 = (
    """
    CREATE TABLE documents (
        revision INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL UNIQUE,
        document BLOB NOT NULL,
        expires_at INTEGER
    )
    """,
    "CREATE INDEX documents_expiring ON documents (expires_at) WHERE expires_at IS NOT NULL",
    """
    CREATE TABLE document_index (
        name TEXT NOT NULL,
        value TEXT NOT NULL,
        key TEXT NOT NULL,
        revision INTEGER NOT NULL REFERENCES documents (revision) ON DELETE CASCADE,
        PRIMARY KEY (name, value, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX document_index_revision ON document_index (revision)",
    """
    CREATE TABLE outbox (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        resource_id TEXT NOT NULL,
        time TEXT NOT NULL,
        data BLOB NOT NULL
    )
    """,
    """
    CREATE TABLE leases (
        name TEXT NOT NULL PRIMARY KEY,
        holder TEXT NOT NULL,
        expires_at INTEGER NOT NULL
    ) WITHOUT ROWID
    """,
)

# What was told, for those who were away: an event stays here when it has left the outbox, until it is pruned.
_VERSION_2 = (
    """
    CREATE TABLE event_log (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL,
        resource_id TEXT NOT NULL,
        time TEXT NOT NULL,
        data BLOB NOT NULL,
        traceparent TEXT
    )
    """,
    "ALTER TABLE outbox ADD COLUMN traceparent TEXT",
    "CREATE INDEX event_log_resource ON event_log (resource_id, sequence)",
    """
    INSERT INTO event_log (id, type, resource_id, time, data)
    SELECT id, type, resource_id, time, data FROM outbox ORDER BY sequence
    """,
)

MIGRATIONS = (_VERSION_1, _VERSION_2)
"""Statements that lead from each schema version to the next; the last one's number is ours."""

_BUSY_SECONDS = 5.0  # a backup or a curious administrator may hold a lock for a moment
_LEFTOVER_WAL_BYTES = 16 << 20  # a burst must not leave a huge log behind for ever


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the store for writing: made if missing (file 0600, folder 0700), checked, migrated. Blocks.

    The check reads the whole file, about one second per gigabyte.

    Raises:
        StartupError: not ours, newer than us, damaged, or the disk does not let us.
    """
    try:
        _create(path)
        connection = _connect(path, "rw")
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection
    except sqlite3.Error as error:
        raise _startup_error(path, error) from error
    except OSError as error:
        raise StartupError(f"the store {path} cannot be opened: {error.strerror}", exit_code=75) from error


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a second, read-only view of a store that `open_writer` has opened. Blocks.

    Raises:
        StartupError: the file cannot be opened again.
    """
    try:
        return _connect(path, "ro")
    except sqlite3.Error as error:
        raise _startup_error(path, error) from error


def _create(path: Path) -> None:
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, parents=True)
        sync_directory(path.parent.parent)
    # SQLite gives its log files the mode of the main file, so this one mode rules all three.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """One connection, used by one thread at a time but opened by another; transactions are ours to begin."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    version = _version(connection)
    _refuse_strangers(connection, path, version)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # an answered commit survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")  # what a new master key has sealed anew shall not be there twice
    connection.execute(f"PRAGMA journal_size_limit = {_LEFTOVER_WAL_BYTES}")
    _check(connection, path)
    for number in range(version, len(MIGRATIONS)):
        _migrate(connection, number)


def _version(connection: sqlite3.Connection) -> int:
    with closing(connection.execute("PRAGMA user_version")) as cursor:
        version: int = cursor.fetchone()[0]
    return version


def _refuse_strangers(connection: sqlite3.Connection, path: Path, version: int) -> None:
    if version > len(MIGRATIONS):
        raise StartupError(
            f"the store {path} has schema version {version}, this program knows versions up to {len(MIGRATIONS)}: "
            "it was written by a newer scaivaultd. Install that version again, or restore a backup from before "
            "the upgrade; nothing was changed."
        )
    tables: int = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if version == 0 and tables:
        raise StartupError(
            f"{path} is another program's SQLite database; nothing was changed. Name another `state_dir`."
        )


def _check(connection: sqlite3.Connection, path: Path) -> None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise _damaged(path, verdict.splitlines()[-1])  # the lines before it are a heading


def _migrate(connection: sqlite3.Connection, number: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in MIGRATIONS[number]:
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {number + 1}")  # part of the transaction
    connection.execute("COMMIT")


def _startup_error(path: Path, error: sqlite3.Error) -> StartupError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return StartupError(
            f"{path} is not an SQLite database; nothing was changed. Move it away, or restore a backup over it."
        )
    if code == sqlite3.SQLITE_CORRUPT:
        return _damaged(path, str(error))
    # EX_TEMPFAIL: a full disk or a lock may pass, so the service manager shall try again.
    return StartupError(f"the store {path} cannot be opened: {fault_of(error) or error}", exit_code=75)


def _damaged(path: Path, verdict: str) -> StartupError:
    return StartupError(
        f"the store {path} is damaged ({verdict}). Keep a copy of it and its -wal file, then restore a backup."
    )
