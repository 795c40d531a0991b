"""What goes into a backup, as pieces that are read twice: to be described in its header, and to be written."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from scaivaultd.store.audit_file import audit_files
from scaivaultd.store.backup_file import AUDIT, Part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

_BLOCK_BYTES = 1 << 20


class Source:
    """One part to be. `lines` is there once it was described."""

    def __init__(self, name: str, size: int, read: Callable[[int, int], bytes]) -> None:
        """`read` gets a size and an offset, as `os.pread` does."""
        self.name = name
        self.lines = 0
        self._size = size
        self._read = read

    @classmethod
    def of_bytes(cls, name: str, content: bytes) -> Source:
        """What is in memory."""
        return cls(name, len(content), lambda size, offset: content[offset : offset + size])

    @classmethod
    def of_file(cls, name: str, descriptor: int, size: int) -> Source:
        """The beginning of an open file, which nobody changes meanwhile."""
        return cls(name, size, partial(os.pread, descriptor))

    def described(self, look: Callable[[], None]) -> Part:
        """What the header says of it. `look` is called for each block."""
        digest, lines = hashlib.sha256(), 0
        for block in self.blocks(look):
            digest.update(block)
            lines += block.count(b"\n")
        self.lines = lines
        return Part(name=self.name, size=self._size, sha256=digest.hexdigest())

    def blocks(self, look: Callable[[], None]) -> Iterator[bytes]:
        """All of it, from the beginning."""
        offset = 0
        while offset < self._size:
            look()
            block = self._read(min(_BLOCK_BYTES, self._size - offset), offset)
            if not block:
                raise OSError(errno.EIO, f"{self.name} became shorter while it was read")
            offset += len(block)
            yield block


class AuditSnapshot:
    """The files of the audit log from the moment on at which this is entered, also those that are deleted meanwhile."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        self._stack = ExitStack()

    def __enter__(self) -> AuditSnapshot:
        self._open_new()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def sources(self) -> Sequence[Source]:
        """All of them as far as they are written now, whole lines only."""
        self._open_new()
        return [
            Source.of_file(AUDIT + name, file.fileno(), _whole_lines(file.fileno(), os.fstat(file.fileno()).st_size))
            for name, file in sorted(self._files.items())
        ]

    def _open_new(self) -> None:
        for path in audit_files(self._directory):
            if path.name not in self._files:
                self._files[path.name] = self._stack.enter_context(path.open("rb"))


def _whole_lines(descriptor: int, size: int) -> int:
    """Where the last line ends: a record may be on its way into the file."""
    while size > 0:
        start = max(0, size - _BLOCK_BYTES)
        end = os.pread(descriptor, size - start, start).rfind(b"\n")
        if end >= 0:
            return start + end + 1
        size = start
    return 0
