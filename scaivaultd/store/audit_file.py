"""The files of the audit log: one line for each record, a new file when one is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class AuditFiles:
    """Files in one directory (0700), named after the sequence of their first record. Every call may block."""

    def __init__(self, directory: Path, *, file_bytes: int, keep: int) -> None:
        """`keep` is how many ended files stay; 0: all."""
        self._directory = directory
        self._file_bytes = file_bytes
        self._keep = keep

    def append(self, lines: Sequence[bytes], *, durably: bool) -> None:
        """As `services/ports.py` says."""

    def read(self) -> Iterator[bytes]:
        """Every line, oldest first."""
        return iter(())

    def read_back(self) -> Iterator[bytes]:
        """Every line, newest first."""
        return iter(())
