"""TLS from files, or with a certificate that others bring; exchanged while connections go on."""

from __future__ import annotations

import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate with its chain and its private key, both PEM."""

    certificate: Path
    key: Path


class Tls:
    """Serves the certificate that it was given last; until there is one, nobody is served."""

    def __init__(self, files: TlsFiles | None = None) -> None:
        """Raises StartupError when the files cannot be used."""
        self._files = files
        self._current: ssl.SSLContext | None = None
        self.context: ssl.SSLContext | None = None
        """What handshakes begin with; each goes on with the newest certificate. None: there is none yet."""
        self.reload()

    def reload(self) -> bool:
        """Read the files again; whether there are any. Connections that are there keep what they have.

        Raises:
            StartupError: they cannot be used; what was read before stays in use.
        """
        if self._files is None:
            return False
        files = self._files
        self._exchange(lambda: _context(files.certificate, files.key))
        return True

    def use(self, chain_pem: str, key_pem: str) -> None:
        """Serve that certificate from the next handshake on.

        Raises:
            StartupError: it cannot be used; the one before stays in use.
        """
        with _in_memory(f"{chain_pem}\n{key_pem}") as path:
            self._exchange(lambda: _context(path, path))

    def _exchange(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._current = make()
        if self.context is None:
            self.context = make()
            self.context.sni_callback = self._choose

    def _choose(self, handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, begun_with: ssl.SSLContext) -> None:
        # Called without a name too. Loading into the living context instead could stop between certificate and key.
        if self._current is not None:
            handshake.context = self._current


@contextmanager
def _in_memory(pem: str) -> Iterator[str]:
    """A path to a text that is on no disk: OpenSSL's loader wants one."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pem.encode())
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _context(certificate: Path | str, key: Path | str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password, even an empty one, so that OpenSSL never asks for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except FileNotFoundError as error:
        raise StartupError(f"TLS for REST: {certificate} or {key} is not there") from error
    except PermissionError as error:
        raise StartupError(f"TLS for REST: {certificate} or {key} may not be read by this user") from error
    except (OSError, ValueError) as error:
        raise StartupError(
            f"TLS for REST: {certificate} and {key} cannot be used ({_reason(error)}). They must be PEM, "
            "belong together, and the key must not be encrypted"
        ) from error
    return context


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
