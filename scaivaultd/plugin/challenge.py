"""The contract between the daemon and a challenge solver."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec


class ChallengeResponse(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be in place before the CA is told to look.

    `identifier` is the authorized name (without `*.`) or address, `token` and `key_authorization`
    are those of RFC 8555 section 8.1.
    """

    identifier: str
    type: str
    token: str
    key_authorization: str

    def __repr__(self) -> str:
        return f"ChallengeResponse(identifier={self.identifier!r}, type={self.type!r})"


class ChallengeSolver(Protocol):
    """Puts responses in place and takes them away again."""

    async def present(self, response: ChallengeResponse) -> None:
        """Make the response visible to the CA; returns when it is.

        Called again with the same response after a restart. Calls for different responses overlap.
        """
        ...

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Take away exactly what `present` put in place; what is not there is no error."""
        ...


class Http01Responses(Protocol):
    """The daemon's own http-01 listener as a solver sees it (RFC 8555 section 8.3)."""

    def put(self, token: str, key_authorization: str) -> None:
        """Answer for `token` from now on."""
        ...

    def remove(self, token: str) -> None:
        """Answer no more; an unknown token is no error."""
        ...


class SolverContext(msgspec.Struct, frozen=True, kw_only=True):
    """What the host lends a solver."""

    http01: Http01Responses


class SolverKind(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin registers: which challenge type it solves and how to open the solver.

    `open` is called once at start; the context manager it returns is left when the daemon stops.
    """

    name: str
    challenge_type: str
    open: Callable[[SolverContext], AbstractAsyncContextManager[ChallengeSolver]]
