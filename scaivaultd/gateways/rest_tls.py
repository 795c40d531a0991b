"""TLS from files, exchanged while connections go on."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import StartupError

if TYPE_CHECKING:
    from pathlib import Path


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate with its chain and its private key, both PEM."""

    certificate: Path
    key: Path


class Tls:
    """Serves the certificate of the files as they were last read."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises StartupError when the files cannot be used."""
        self._files = files
        self._current = _context(files)
        self.context = _context(files)
        """What handshakes begin with; each goes on with the newest certificate."""
        self.context.sni_callback = self._choose

    def reload(self) -> None:
        """Read the files again. Connections that are there keep what they have.

        Raises:
            StartupError: they cannot be used; what was read before stays in use.
        """
        self._current = _context(self._files)

    def _choose(self, handshake: ssl.SSLObject | ssl.SSLSocket, name: str | None, begun_with: ssl.SSLContext) -> None:
        # Called without a name too. Loading into the living context instead could stop between certificate and key.
        handshake.context = self._current


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A password, even an empty one, so that OpenSSL never asks for one on the terminal.
        context.load_cert_chain(files.certificate, files.key, password="")
    except FileNotFoundError as error:
        raise StartupError(f"TLS for REST: {files.certificate} or {files.key} is not there") from error
    except PermissionError as error:
        raise StartupError(f"TLS for REST: {files.certificate} or {files.key} may not be read by this user") from error
    except (OSError, ValueError) as error:
        raise StartupError(
            f"TLS for REST: {files.certificate} and {files.key} cannot be used ({_reason(error)}). They must be PEM, "
            "belong together, and the key must not be encrypted"
        ) from error
    return context


def _reason(error: Exception) -> str:
    return getattr(error, "reason", None) or type(error).__name__
