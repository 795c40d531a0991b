"""A TLS handshake between bytes and bytes; opens no socket."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class Going(msgspec.Struct, frozen=True):
    """The client's next bytes are awaited; `output` is to be sent."""

    output: bytes


class Done(msgspec.Struct, frozen=True):
    """Both sides have finished; `output` says goodbye already. `version` is like "TLSv1.3"."""

    output: bytes
    version: str


class Failed(msgspec.Struct, frozen=True):
    """It cannot go on; `output` is the alert, if there is one, and `error` what OpenSSL calls it."""

    output: bytes
    error: str


class Handshake:
    """The server's side of one handshake, and of the goodbye right behind it: no application data is exchanged."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def feed(self, data: bytes | memoryview | bytearray) -> Going | Done | Failed:
        """Take the client's bytes. Not to be called after Done or Failed. Does not raise."""
        self._incoming.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return Going(self._outgoing.read())
        except ssl.SSLError as error:
            return Failed(self._outgoing.read(), error.reason or type(error).__name__)
        _without_waiting(self._tls.unwrap)
        return Done(self._outgoing.read(), self._tls.version() or "")


def _without_waiting(unwrap: Callable[[], object]) -> None:
    """Write close_notify. What the client says to that, or said too early, does not matter any more."""
    try:
        unwrap()
    except ssl.SSLError:
        return
