"""A consistent copy of the store's file while the daemon writes to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGES_AT_ONCE = 256

_BUSY_SECONDS = 5.0


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a copy."""

    schema_version: int
    documents: int
    pending_events: int


def copy_store(source: Path, target: Path, look: Callable[[], None]) -> Copied:
    """Copy the store as it is at this moment into an empty file. Blocks; commits go on meanwhile.

    `look` is called every now and then, and ends the copying by raising.

    Raises:
        sqlite3.Error: one of the two files cannot be read or written.
    """
    with closing(_connected(source, "ro")) as reader, closing(_connected(target, "rw")) as writer:
        # A copy that reads in several transactions begins anew whenever somebody writes in between, and never ends.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        # Nobody needs half a copy: if this process ends, what there is of it is thrown away.
        writer.execute("PRAGMA journal_mode = OFF")
        writer.execute("PRAGMA synchronous = OFF")
        reader.backup(writer, pages=PAGES_AT_ONCE, progress=lambda *_: look(), sleep=0)
        reader.execute("ROLLBACK")
    return count(target)


def count(path: Path) -> Copied:
    """What is in a store that nobody writes to; raises sqlite3.Error."""
    with closing(open_still(path)) as connection:

        def number(query: str) -> int:
            found: int = connection.execute(query).fetchone()[0]
            return found

        return Copied(
            schema_version=number("PRAGMA user_version"),
            documents=number("SELECT count(*) FROM documents"),
            pending_events=number("SELECT count(*) FROM outbox"),
        )


def document_in(path: Path, key: str) -> bytes | None:
    """One document of a store that nobody writes to; raises sqlite3.Error."""
    with closing(open_still(path)) as connection:
        found = connection.execute("SELECT document FROM documents WHERE key = ?", (key,)).fetchone()
    return None if found is None else bytes(found[0])


def open_still(path: Path) -> sqlite3.Connection:
    """Read a store that nobody writes to, without making files beside it."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=_BUSY_SECONDS, isolation_level=None
    )
