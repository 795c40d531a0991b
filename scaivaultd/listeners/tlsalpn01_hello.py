"""The first message of a TLS client, from bytes to what it asks for; opens no socket, signs nothing.

Only what decides is read: server name (RFC 6066 section 3) and application protocols (RFC 7301 section 3.1).
Everything else is stepped over by its length, so unknown and GREASE values (RFC 8701) mean nothing here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

ACME_TLS_1 = b"acme-tls/1"

Flaw = Literal["not_tls", "malformed", "too_large"]
"""Why a client's first bytes are no ClientHello."""

# RFC 8446 sections 4 and 5.1.
_HANDSHAKE_RECORD = 22
_CLIENT_HELLO = 1
_RECORD_HEADER_BYTES = 5
_MESSAGE_HEADER_BYTES = 4
_LONGEST_FRAGMENT = 2**14
_SERVER_NAME = 0
_HOST_NAME = 0
_ALPN = 16
# A-labels, and the underscores some hosts have (RFC 6066: ASCII without a trailing dot; RFC 8738 allows the dot).
_NAME = re.compile(rb"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_LONGEST_NAME = 254


class Hello(msgspec.Struct, frozen=True):
    """What a client asks for: the server name in lower case without a final dot, and its protocols in order."""

    server_name: str | None
    protocols: tuple[bytes, ...]


class Bad(msgspec.Struct, frozen=True):
    """Bytes that begin no ClientHello we can read."""

    flaw: Flaw


class _Malformed(Exception):
    """A length leads past the end of what holds it, or a value is not allowed where it stands."""


class HelloReader:
    """Reads one ClientHello, fed in pieces of any size and cut into records of any size.

    The verdict does not depend on how the bytes were cut. No input makes it raise.
    """

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes` bounds what may come before the hello is complete, record headers included."""
        self._most_bytes = most_bytes
        self._message = bytearray()
        self._next_record = 0
        self.raw = bytearray()
        """Everything fed so far, what came behind the hello included."""

    def feed(self, data: bytes | memoryview) -> Hello | Bad | None:
        """Take more bytes; None while the hello is not complete. Not to be called after a verdict."""
        self.raw += data
        try:
            while self._take_record():
                if (body := self._body()) is not None:
                    return _read_hello(body)
        except _Malformed:
            return Bad("malformed")
        if self.raw and self.raw[0] != _HANDSHAKE_RECORD:
            return Bad("not_tls")
        return Bad("too_large") if len(self.raw) >= self._most_bytes else None

    def _take_record(self) -> bool:
        """Move the next whole record's fragment to the message; whether there was one."""
        start = self._next_record
        header = self.raw[start : start + _RECORD_HEADER_BYTES]
        # Judged as early as possible: what is no TLS may never send as much as a header.
        if header[:1] and header[0] != _HANDSHAKE_RECORD and start:
            raise _Malformed
        if len(header) < _RECORD_HEADER_BYTES or header[0] != _HANDSHAKE_RECORD:
            return False
        length = int.from_bytes(header[3:], "big")
        # A fragment of a handshake message is not empty (RFC 8446 section 5.1).
        if header[1] != 3 or not 0 < length <= _LONGEST_FRAGMENT:
            raise _Malformed
        end = start + _RECORD_HEADER_BYTES + length
        if end > min(len(self.raw), self._most_bytes):
            return False
        self._message += self.raw[start + _RECORD_HEADER_BYTES : end]
        self._next_record = end
        return True

    def _body(self) -> bytes | None:
        """The ClientHello without its header, once it is complete."""
        message = self._message
        if message[0] != _CLIENT_HELLO:
            raise _Malformed
        if len(message) < _MESSAGE_HEADER_BYTES:
            return None
        end = _MESSAGE_HEADER_BYTES + int.from_bytes(message[1:_MESSAGE_HEADER_BYTES], "big")
        return bytes(message[_MESSAGE_HEADER_BYTES:end]) if len(message) >= end else None


class _Cursor:
    """Takes vectors of TLS's presentation language (RFC 8446 section 3.4) from the front of some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Malformed
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def vector(self, width: int, *, least: int = 0) -> bytes:
        """What a length of `width` bytes stands in front of."""
        length = self.number(width)
        if length < least:
            raise _Malformed
        return self.take(length)


def _read_hello(body: bytes) -> Hello | Bad:
    # RFC 8446 section 4.1.2: version, random, session id, cipher suites, compression methods, extensions.
    cursor = _Cursor(body)
    cursor.take(2 + 32)
    if len(cursor.vector(1)) > 32 or len(cursor.vector(2, least=2)) % 2:
        raise _Malformed
    cursor.vector(1, least=1)
    extensions = dict(_extensions(cursor.vector(2))) if cursor else {}
    if cursor:
        raise _Malformed
    return Hello(_server_name(extensions.get(_SERVER_NAME)), _protocols(extensions.get(_ALPN)))


def _extensions(block: bytes) -> Iterator[tuple[int, bytes]]:
    cursor, seen = _Cursor(block), set[int]()
    while cursor:
        kind = cursor.number(2)
        # Two of a kind could be read in two ways; RFC 8446 section 4.2 forbids them.
        if kind in seen:
            raise _Malformed
        seen.add(kind)
        yield kind, cursor.vector(2)


def _server_name(extension: bytes | None) -> str | None:
    if extension is None:
        return None
    cursor = _Cursor(extension)
    names = _Cursor(cursor.vector(2, least=1))
    # One name of each type, and only one type was ever defined (RFC 6066 section 3).
    if names.number(1) != _HOST_NAME:
        raise _Malformed
    name = names.vector(2, least=1)
    if cursor or names or len(name) > _LONGEST_NAME or not _NAME.fullmatch(name):
        raise _Malformed
    return name.decode("ascii").lower().removesuffix(".")


def _protocols(extension: bytes | None) -> tuple[bytes, ...]:
    if extension is None:
        return ()
    cursor = _Cursor(extension)
    names = _Cursor(cursor.vector(2, least=2))
    if cursor:
        raise _Malformed
    protocols = []
    while names:
        protocols.append(names.vector(1, least=1))
    return tuple(protocols)
