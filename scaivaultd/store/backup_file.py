"""The file of a backup: a header in plain, and behind it everything in one encrypted stream.

    8 bytes   "SCVBKUP" and the version of the format, 1
    4 bytes   length of the header, big endian
    header    JSON: `Manifest`; the lock on the file key is in it
    stream    the parts one after the other, cut into chunks of 64 KiB, each sealed by ChaCha20-Poly1305

The key of the stream is HKDF-SHA256 of the file key with the SHA-256 of all before the stream as its salt: a header
that was changed opens nothing. A chunk's nonce is its number and, in the last byte, whether it is the last one, so that
chunks that were moved, left out or cut off do not open (the STREAM construction of Hoang et al. as age uses it). The
nonces can count because the key is used for one file only. Nothing is ever held but one chunk.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, Literal

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from scaivaultd.store.backup_keys import CannotOpen, Lock

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 64 << 10

_MAGIC = b"SCVBKUP\x01"
_LENGTH_BYTES = 4
_HEADER_MAX = 16 << 20
_TAG_BYTES = 16
_INFO = b"scaivault/backup/stream/v1"

KEYS, STORE, AUDIT = "keys", "store.db", "audit/"
"""The parts, in this order: the master key, the store, and each file of the audit log below `audit/`."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of what is inside, by what it holds in plain."""

    name: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What everybody can see of a backup; nobody can change it unnoticed by whoever has the key."""

    format: Literal["scaivault-backup/1"] = "scaivault-backup/1"
    created_at: datetime
    version: str
    schema_version: int
    store_id: str
    kid: str
    node_id: str
    documents: int
    pending_events: int
    audit_records: int
    parts: list[Part]
    lock: Lock


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """The part `keys`: what opens the sealed values in the store."""

    master_key: bytes

    def __repr__(self) -> str:
        return "Keys()"


def write(file: BinaryIO, manifest: Manifest, file_key: bytes, content: Iterable[bytes]) -> str:
    """Write a backup whose parts are as the manifest says; returns the SHA-256 of the file. Blocks.

    Raises:
        OSError: the disk does not take it.
    """
    encoded = msgspec.json.encode(manifest)
    head = _MAGIC + len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded
    cipher = _cipher(file_key, head)
    digest = hashlib.sha256(head)
    file.write(head)
    for number, (chunk, is_last) in enumerate(_chunks(content)):
        sealed = cipher.encrypt(_nonce(number, is_last=is_last), chunk, None)
        digest.update(sealed)
        file.write(sealed)
    return digest.hexdigest()


class BackupFile:
    """A backup that is read; a context, which closes the file."""

    def __init__(self, path: Path) -> None:
        """Read what everybody can see.

        Raises:
            CannotOpen: it is no backup, one of a newer version, or cannot be read.
        """
        try:
            # Without O_NONBLOCK a FIFO of that name would be waited for.
            self._file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        except OSError as error:
            raise CannotOpen(f"{path} cannot be read: {error.strerror}") from error
        try:
            self._head, self.manifest = _read_head(self._file, path)
        except OSError as error:
            self._file.close()
            raise CannotOpen(f"{path} cannot be read: {error.strerror}") from error
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> BackupFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """How long the file is."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def has_all_bytes(self) -> bool:
        """Whether the file is as long as its header says it must be: all that can be told without the key."""
        plain = sum(part.size for part in self.manifest.parts)
        chunks = max(1, -(-plain // CHUNK_BYTES))
        return self.size == len(self._head) + plain + chunks * _TAG_BYTES

    def unpack(self, file_key: bytes, into: Callable[[Part], BinaryIO]) -> None:
        """Decrypt all parts, each into a file that `into` opens and this closes. Once only. Blocks.

        Raises:
            CannotOpen: something in it is not as it was written; then nothing of what was unpacked may be used.
            OSError: the disk does not take it.
        """
        plain = _Plain(self._opened(file_key))
        for part in self.manifest.parts:
            digest = hashlib.sha256()
            with into(part) as target:
                for piece in plain.take(part.size):
                    digest.update(piece)
                    target.write(piece)
            if not hmac.compare_digest(digest.hexdigest(), part.sha256):
                raise CannotOpen(f"{part.name} in the backup is not what its header says: do not use it")
        plain.require_end()

    def _opened(self, file_key: bytes) -> Iterator[bytes]:
        cipher = _cipher(file_key, self._head)
        number = 0
        sealed = self._file.read(CHUNK_BYTES + _TAG_BYTES)
        while True:
            following = self._file.read(CHUNK_BYTES + _TAG_BYTES)
            try:
                yield cipher.decrypt(_nonce(number, is_last=not following), sealed, None)
            except (InvalidTag, ValueError):
                raise CannotOpen(
                    f"the backup is damaged or cut off in its {number + 1}. chunk of 64 KiB: take another copy of it"
                ) from None
            if not following:
                return
            number, sealed = number + 1, following


class _Plain:
    """The stream in plain, taken in pieces of any size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def take(self, size: int) -> Iterator[bytes]:
        while size > 0:
            if not self._rest:
                self._rest = next(self._chunks, b"")
            if not self._rest:
                raise CannotOpen("the backup holds less than its header says: do not use it")
            piece, self._rest = self._rest[:size], self._rest[size:]
            size -= len(piece)
            yield piece

    def require_end(self) -> None:
        if self._rest or any(self._chunks):
            raise CannotOpen("the backup holds more than its header says: do not use it")


def _read_head(file: BinaryIO, path: Path) -> tuple[bytes, Manifest]:
    start = file.read(len(_MAGIC) + _LENGTH_BYTES)
    magic, length = start[: len(_MAGIC)], int.from_bytes(start[len(_MAGIC) :], "big")
    if magic[:-1] != _MAGIC[:-1]:
        raise CannotOpen(f"{path} is no backup of scaivaultd")
    if magic != _MAGIC:
        raise CannotOpen(f"{path} has a form that this version does not know: open it by the version that made it")
    encoded = file.read(length) if length <= _HEADER_MAX else b""
    try:
        manifest = msgspec.json.decode(encoded, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CannotOpen(f"the header of {path} is damaged: take another copy of it") from None
    return start + encoded, manifest


def _cipher(file_key: bytes, head: bytes) -> ChaCha20Poly1305:
    key = HKDF(SHA256(), 32, salt=hashlib.sha256(head).digest(), info=_INFO).derive(file_key)
    return ChaCha20Poly1305(key)


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])


def _chunks(content: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The content in chunks, each with whether it is the last one; one that is empty if there is nothing at all."""
    gathered = bytearray()
    for piece in content:
        gathered += piece
        while len(gathered) > CHUNK_BYTES:
            yield bytes(gathered[:CHUNK_BYTES]), False
            del gathered[:CHUNK_BYTES]
    yield bytes(gathered), True
