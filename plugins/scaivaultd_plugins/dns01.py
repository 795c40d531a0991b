"""dns-01 through the daemon's own way to DNS (RFC 8555 section 8.4)."""

from __future__ import annotations

import base64
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from scaivaultd.plugin import ChallengeResponse, ChallengeSolver, Dns01Records, SolverContext, SolverKind, hookimpl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

SCAIVAULTD_PLUGIN_API = "1.1"

PRESENT_SECONDS = 3 * 3600.0
"""Longer than any wait inside: writes and propagation have deadlines of their own, and orders may queue up."""


class Dns01Solver:
    """Hands values to the host, which finds the zone, writes, waits and cleans up."""

    def __init__(self, records: Dns01Records) -> None:
        self._records = records

    async def present(self, response: ChallengeResponse) -> None:
        """Write the value and wait until every name server shows it."""
        await self._records.put(response, txt_value(response.key_authorization))

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Give the value up."""
        await self._records.remove(response, txt_value(response.key_authorization))

    async def claims(self, response: ChallengeResponse) -> Mapping[str, int]:
        """How many values a record name holds at once."""
        return await self._records.claims(response)


def txt_value(key_authorization: str) -> str:
    """What the CA looks for: base64url of SHA-256, 43 characters."""
    digest = hashlib.sha256(key_authorization.encode("ascii")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


@asynccontextmanager
async def _open(context: SolverContext) -> AsyncIterator[ChallengeSolver]:
    yield Dns01Solver(context.dns01)


@hookimpl
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """The one solver of this plugin."""
    return [
        SolverKind(
            name="dns-01",
            challenge_type="dns-01",
            open=_open,
            present_seconds=PRESENT_SECONDS,
            is_slow=True,
            is_lasting=True,
        )
    ]
