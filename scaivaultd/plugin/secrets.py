"""The contract for secrets: how a plugin reads them, and how a plugin can be where they are kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import msgspec

if TYPE_CHECKING:
    from scaivaultd.plugin.context import PluginContext


class Secret:
    """A secret's text. It prints as `Secret(...)`, compares by value, and cannot be encoded or pickled."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the line that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret cannot be pickled")


class SecretReader(Protocol):
    """Reads secrets by reference. Read at the moment of use: the host caches for at most 60 s."""

    async def read(self, reference: str) -> Secret:
        """The secret, without white space around it.

        Raises:
            SecretMissing: it is not there; the text names the reference, never the value.
        """
        ...

    def forget(self, reference: str) -> None:
        """Drop a cached value: the service it belongs to has just refused it, so it may have been rotated."""
        ...


class SecretMissing(Exception):
    """A referenced secret is not there or cannot be read; `reference` says which."""

    def __init__(self, reference: str, detail: str) -> None:
        super().__init__(f"{reference}: {detail}")
        self.reference = reference
        self.detail = detail


class SecretBackend(Protocol):
    """A place where secrets are kept."""

    async def read(self, path: str) -> str:
        """The text of the secret at `path`, which is what stands behind `scheme:` in a reference.

        Called at most once a minute for each reference that is in use. The host gives it 30 s.

        Raises:
            SecretMissing: it is not there, or may not be read. Say which, never a value.
        """
        ...


class SecretBackendKind(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin registers: which scheme of references it reads and how to open it.

    `scheme` is a lower-case word (`vault` for `vault:kv/dns#token`). `settings` describes the table
    `[secrets.backends.SCHEME]` of the configuration file; `open` is called once at start, and the context
    manager it returns is left when the daemon stops. Its context can read secrets of other schemes.
    """

    scheme: str
    summary: str
    settings: type[msgspec.Struct]
    open: Callable[[Any, PluginContext], AbstractAsyncContextManager[SecretBackend]]
