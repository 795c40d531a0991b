"""Whether the file of a store is still where it was opened.

In WAL mode SQLite does not look: it goes on in a file that has no name any more, and whatever is committed there is
gone with the process.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class PlaceOfFile:
    """The place of one file, as it was when this was made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found = path.stat()

    def require(self) -> None:
        """Look at it.

        Raises:
            sqlite3.OperationalError: another file is there, or none (SQLite's own SQLITE_READONLY_DBMOVED).
        """
        if self._is_in_place():
            return
        moved = sqlite3.OperationalError("the database file is not where it was opened")
        moved.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
        moved.sqlite_errorname = "SQLITE_READONLY_DBMOVED"
        raise moved

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), self._found)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # nobody can tell; what is wrong with the disk, SQLite will meet itself
