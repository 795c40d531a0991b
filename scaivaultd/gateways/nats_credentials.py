"""NATS credentials files (`.creds`): a user JWT and the seed that signs the server's nonce.

The layout is that of the `nsc` tool: two blocks between dashed BEGIN and END lines. The file is read at each
connection, so that a rotated one is used without a restart.
"""

from __future__ import annotations

import base64
import contextlib
import re
from typing import TYPE_CHECKING

from scaivaultd.gateways.nkeys import KeyPair, read_seed
from scaivaultd.model.errors import StartupError
from scaivaultd.plugin import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BLOCK = re.compile(r"-{3,}\s*BEGIN ([A-Z ]+?)\s*-{3,}\s*(\S+)\s*-{3,}\s*END")


class CredentialsFile:
    """The two callbacks a NATS connection wants. Prints as its path only."""

    def __init__(self, path: Path) -> None:
        """Read the file once, to fail early.

        Raises:
            StartupError: it cannot be read or is no credentials file.
        """
        self._path = path
        first = self._read()
        # Behind a function: whoever prints this object's attributes sees no secret.
        self._last: Callable[[], tuple[str, str]] = lambda: first

    def __repr__(self) -> str:
        return f"CredentialsFile({str(self._path)!r})"

    def user_jwt(self) -> bytearray:
        """The user JWT as the server wants it."""
        return bytearray(self._current()[0].encode())

    def sign(self, nonce: str) -> bytes:
        """The server's nonce signed with the seed, base64."""
        return base64.b64encode(_key_of(self._current()[1]).sign(nonce.encode()))

    def _current(self) -> tuple[str, str]:
        # An exception here would end the client's reconnecting for ever; a file that is away for a
        # moment, or half written, is no reason not to try with what we had.
        with contextlib.suppress(StartupError):
            now = self._read()
            self._last = lambda: now
        return self._last()

    def _read(self) -> tuple[str, str]:
        try:
            blocks = dict(_BLOCK.findall(self._path.read_text("ascii")))
            jwt, seed = blocks["NATS USER JWT"], blocks["USER NKEY SEED"]
            _key_of(seed)
        except OSError as error:
            raise StartupError(f"nats.credentials_file {self._path}: {error.strerror}") from error
        except (KeyError, ValueError):
            # No cause: its text would hold parts of the file.
            raise StartupError(
                f"nats.credentials_file {self._path} is no NATS credentials file (.creds, as "
                "`nsc generate creds` writes it)"
            ) from None
        return jwt, seed


def _key_of(seed: str) -> KeyPair:
    return read_seed(Secret(seed), "U")
