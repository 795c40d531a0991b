"""A solver as a stranger writes one: it knows `scaivaultd.plugin` and nothing else of ours.

That this file has no type errors is the promise; `test_plugin_contract.py` checks it as a foreign project would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from scaivaultd.plugin import (
    ENTRY_POINT_GROUP,
    PLUGIN_API,
    ChallengeResponse,
    ChallengeSolver,
    Http01Responses,
    SolverContext,
    SolverKind,
    hookimpl,
)

SCAIVAULTD_PLUGIN_API: str = PLUGIN_API
GROUP: str = ENTRY_POINT_GROUP


class StrangersSolver:
    """Presents by way of the listener it is lent, and remembers for whom."""

    def __init__(self, responses: Http01Responses) -> None:
        self._responses = responses
        self._names: dict[str, str] = {}

    async def present(self, response: ChallengeResponse) -> None:
        """Put it in place."""
        name: str = response.identifier
        kind: str = response.type
        self._names[response.token] = f"{name} by {kind}"
        self._responses.put(response.token, response.key_authorization)

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Take it away."""
        self._names.pop(response.token, None)
        self._responses.remove(response.token)


@asynccontextmanager
async def open_solver(context: SolverContext) -> AsyncIterator[ChallengeSolver]:
    """Open for as long as the daemon runs."""
    yield StrangersSolver(context.http01)


@hookimpl
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """Tell the host what there is."""
    yield SolverKind(name="stranger", challenge_type="http-01", open=open_solver)
