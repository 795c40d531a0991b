"""What is said of a backup that was made, and of one that was restored."""

from __future__ import annotations

from datetime import datetime

import msgspec


class BackupWritten(msgspec.Struct, frozen=True, kw_only=True):
    """A backup on stable storage; `path` is where."""

    path: str
    bytes: int
    sha256: str
    created_at: datetime
    documents: int
    audit_records: int


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """Stands in a store that was restored, until somebody says that nothing else works with this state any more."""

    backup: str
    backup_created_at: datetime
    restored_at: datetime


RESTORED_KEY = "meta/restored"
"""Where it lives."""
