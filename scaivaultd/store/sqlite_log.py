"""Emptying SQLite's log beside the store: it keeps what has been overwritten long after it is gone from the file."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from scaivaultd.store.sqlite_errors import translated

if TYPE_CHECKING:
    from pathlib import Path

_BUSY_SECONDS = 1.0


async def fold_log(path: Path) -> bool:
    """Bring the log of the store at `path` into the file, and empty it; False when others kept it in use meanwhile.

    Raises:
        StorageUnavailable: the medium failed.
    """
    try:
        return await asyncio.to_thread(_fold, path)
    except sqlite3.Error as error:
        raise translated(error) from error


def _fold(path: Path) -> bool:
    # A connection of its own: those of the store are always inside a transaction, or only read.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS)) as connection:
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy
