"""http-01 through the daemon's own listener (RFC 8555 section 8.3)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from scaivaultd.plugin import (
    ChallengeResponse,
    ChallengeSolver,
    Http01Responses,
    SolverContext,
    SolverError,
    SolverKind,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

SCAIVAULTD_PLUGIN_API = "1.1"


class Http01Solver:
    """Hands responses to the listener; they are visible the moment they are put."""

    def __init__(self, responses: Http01Responses) -> None:
        self._responses = responses

    async def present(self, response: ChallengeResponse) -> None:
        """Let the listener answer for the token.

        Raises:
            SolverError: there is no listener, or no request can ask for such a token.
        """
        try:
            self._responses.put(response.token, response.key_authorization)
        except ValueError as error:
            raise SolverError(str(error)) from error

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Let the listener forget the token."""
        self._responses.remove(response.token)


@asynccontextmanager
async def _open(context: SolverContext) -> AsyncIterator[ChallengeSolver]:
    yield Http01Solver(context.http01)


@hookimpl
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """The one solver of this plugin."""
    return [SolverKind(name="http-01", challenge_type="http-01", open=_open)]
