"""The files of the audit log: one line for each record, a new file when one is full.

A file is named after the sequence that its first record has, and its name is above those of all older files, so that
names in order are records in order. Only the newest one is written to; what is in a file is never changed, except
that what is left of a write that failed, or of a killed process, is cut off its end.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from scaivaultd.store.durable import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_NAME = re.compile(r"audit-([0-9]{12})\.jsonl")
_CURSOR = re.compile(r"([0-9]{1,12})-([0-9]{1,15})")
_BLOCK_BYTES = 64 << 10
LINE_BYTES = 64 << 10
"""No record is as long; what is longer without an end is read in pieces, so that no line fills the memory."""


class AuditFiles:
    """Files in one directory (0700). Every call may block; only one of `resume`, `append`, `sync` runs at a time."""

    def __init__(self, directory: Path, *, file_bytes: int, keep: int) -> None:
        """`keep` is how many ended files stay; 0: all."""
        self._directory = directory
        self._file_bytes = file_bytes
        self._keep = keep
        self._newest: _Newest | None = None

    def resume(self) -> int:
        """As `services/ports.py` says."""
        self.close()
        self._make_place()
        paths = self._paths()
        if not paths:
            return 0
        self._newest = _Newest(paths[-1], os.O_RDWR)
        return self._newest.cut_torn_line()

    def disturbance(self) -> str | None:
        """As `services/ports.py` says."""
        if self._newest is None or (found := self._newest.disturbance()) is None:
            return None
        # Whatever stands there is evidence, and not to be written into.
        self.close()
        return found

    def append(self, lines: Sequence[bytes], *, sequence: int, durably: bool) -> None:
        """As `services/ports.py` says."""
        if self._newest is not None and self._newest.size >= self._file_bytes:
            self.sync()
            self.close()
        if self._newest is None:
            self._newest = self._begin(sequence)
        self._newest.write(b"".join(line + b"\n" for line in lines), durably=durably)

    def sync(self) -> None:
        """As `services/ports.py` says."""
        if self._newest is not None:
            self._newest.sync()

    def close(self) -> None:
        """As `services/ports.py` says."""
        if self._newest is not None:
            self._newest.close()
            self._newest = None

    def read(self) -> Iterator[bytes]:
        """As `services/ports.py` says."""
        sizes = [(path, path.stat().st_size) for path in self._paths()]
        return (line for path, size in sizes for line in _lines_of(path, size))

    def read_back(self, cursor: str | None = None) -> Iterator[tuple[str, bytes]]:
        """As `services/ports.py` says."""
        number, offset = _place(cursor)
        for path in reversed(self._paths()):
            if number is not None and _number(path) > number:
                continue
            end = offset if _number(path) == number else None
            with suppress(FileNotFoundError):
                for start, line in _lines_back(path, end):
                    yield f"{_number(path)}-{start}", line

    def surplus(self) -> tuple[str, bytes] | None:
        """As `services/ports.py` says."""
        paths = self._paths()
        kept = paths[-1 - self._keep :]
        if self._keep == 0 or len(kept) == len(paths):
            return None
        return kept[0].name, next(_lines_of(kept[0], kept[0].stat().st_size), b"")

    def delete_before(self, name: str) -> int:
        """As `services/ports.py` says."""
        gone = [path for path in self._paths()[:-1] if path.name < name]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def _paths(self) -> list[Path]:
        return audit_files(self._directory)

    def _named(self) -> list[Path]:
        return _named_in(self._directory)

    def _make_place(self) -> None:
        if not self._directory.is_dir():
            self._directory.mkdir(mode=0o700)
            sync_directory(self._directory.parent)

    def _begin(self, sequence: int) -> _Newest:
        self._make_place()
        paths = self._named()
        # After files of a longer chain were put here, a sequence alone would make a file in between.
        number = max(sequence, _number(paths[-1]) + 1) if paths else sequence
        newest = _Newest(self._directory / f"audit-{number:012d}.jsonl", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            sync_directory(self._directory)
        except OSError:
            newest.close()
            raise
        return newest


class _Newest:
    """The file that is written to, held open; `size` is where the last whole line ends."""

    def __init__(self, path: Path, flags: int) -> None:
        self._path = path
        # O_RDWR, because a FIFO put in its place would block a writer for ever.
        self._descriptor = os.open(path, flags | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._descriptor)
            raise OSError(errno.EINVAL, "its file is no regular file")
        self._identity = (status.st_dev, status.st_ino)
        self.size = status.st_size
        self._is_torn = False

    def cut_torn_line(self) -> int:
        """Cut off what comes after the last line end; returns how much that was."""
        torn = self.size
        while torn > 0:
            block = os.pread(self._descriptor, _BLOCK_BYTES, max(0, torn - _BLOCK_BYTES))
            torn = max(0, torn - _BLOCK_BYTES)
            if (end := block.rfind(b"\n")) >= 0:
                torn += end + 1
                break
        cut, self.size = self.size - torn, torn
        if cut:
            os.ftruncate(self._descriptor, torn)
            os.fsync(self._descriptor)
        return cut

    def disturbance(self) -> str | None:
        """What somebody else did to the file."""
        try:
            there = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return f"{self._path.name} was removed or renamed"
        if (there.st_dev, there.st_ino) != self._identity:
            return f"{self._path.name} was replaced by another file"
        if there.st_size != self.size and not self._is_torn:
            return f"{self._path.name} has {there.st_size} bytes, and {self.size} were written"
        return None

    def write(self, data: bytes, *, durably: bool) -> None:
        """All of it, or nothing."""
        self._mend()
        self._is_torn = True
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._descriptor, left) :]
            if durably:
                # After an fsync that failed, what was written may never reach the disk: it is to be written anew.
                self.sync()
        except OSError:
            # What the disk has no room for now may fit later; half of it must not stand there meanwhile.
            with suppress(OSError):
                self._mend()
            raise
        self._is_torn = False
        self.size += len(data)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)

    def _mend(self) -> None:
        if self._is_torn:
            os.ftruncate(self._descriptor, self.size)
            self._is_torn = False


def audit_files(directory: Path) -> list[Path]:
    """The files of an audit log, oldest first."""
    # A FIFO would hold whoever reads it for ever, and a link lead elsewhere.
    return [path for path in _named_in(directory) if stat.S_ISREG(path.lstat().st_mode)]


def _named_in(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))


def _number(path: Path) -> int:
    return int(path.name[len("audit-") :].partition(".")[0])


def _place(cursor: str | None) -> tuple[int | None, int]:
    if cursor is None:
        return None, 0
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise ValueError(f"{cursor[:40]!r} is no cursor")
    return int(found[1]), int(found[2])


def _lines_of(path: Path, size: int) -> Iterator[bytes]:
    """The lines up to `size`, without their ends."""
    with path.open("rb") as file:
        while size > 0 and (line := file.readline(min(size, LINE_BYTES))):
            size -= len(line)
            yield line.removesuffix(b"\n")


def _lines_back(path: Path, end: int | None) -> Iterator[tuple[int, bytes]]:
    """Where each line begins, and the line without its end, from `end` to the beginning."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = size if end is None else min(end, size)
        rest: bytes | None = None
        while start > 0:
            file.seek(block_start := max(0, start - _BLOCK_BYTES))
            block = file.read(start - block_start)
            # What the last line end is followed by is no line.
            text = block.removesuffix(b"\n") if rest is None else block + rest
            start = block_start
            rest, *lines = text.split(b"\n")
            line_end = start + len(text)
            for line in reversed(lines):
                yield line_end - len(line), line
                line_end -= len(line) + 1
            if len(rest) >= LINE_BYTES and start > 0:
                yield start, rest
                rest = b""
        if rest is not None:
            yield 0, rest
