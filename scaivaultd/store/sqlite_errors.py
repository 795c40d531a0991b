"""What SQLite's errors mean to the daemon: the one table by which they are translated."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from scaivaultd.model.errors import Internal, StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

# Primary result codes; the extended ones (which kind of I/O) carry them in their low byte, go to the log by
# name, and stand here only where they ask for something else to be done. The words reach callers, so they name no path.
_FAULTS: Mapping[int, str] = {
    sqlite3.SQLITE_READONLY_DBMOVED: "its file was moved, removed or replaced while in use: put it back, "
    "or stop the daemon, restore a backup and start it",
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_IOERR: "its disk reports an I/O error",
    sqlite3.SQLITE_READONLY: "its file or file system is read-only",
    sqlite3.SQLITE_CANTOPEN: "its files cannot be opened",
    sqlite3.SQLITE_PERM: "its files may not be used",
    sqlite3.SQLITE_BUSY: "another program keeps it locked",
    sqlite3.SQLITE_LOCKED: "another program keeps it locked",
    sqlite3.SQLITE_PROTOCOL: "another program keeps it locked",
    sqlite3.SQLITE_NOMEM: "memory is exhausted",
    sqlite3.SQLITE_CORRUPT: "its file is damaged: restore a backup",
    sqlite3.SQLITE_NOTADB: "its file is damaged: restore a backup",
}


def fault_of(error: sqlite3.Error) -> str | None:
    """What is wrong with the medium, in words; None when the error is a fault of ours (bad SQL, misuse)."""
    code: int | None = getattr(error, "sqlite_errorcode", None)  # absent on errors of the Python module itself
    return None if code is None else _FAULTS.get(code, _FAULTS.get(code & 0xFF))


def name_of(error: sqlite3.Error) -> str:
    """SQLite's own name of the error, for the log."""
    name: str = getattr(error, "sqlite_errorname", type(error).__name__)
    return name


def translated(error: sqlite3.Error) -> StorageUnavailable | Internal:
    """The error as a caller of the store meets it; raise it `from` the original."""
    fault = fault_of(error)
    if fault is None:
        return Internal(f"the store was misused: {error}")
    return StorageUnavailable(f"the store cannot be used: {fault}")
