"""tls-alpn-01 through the daemon's own listener (RFC 8737, RFC 8738)."""

from __future__ import annotations

import ipaddress
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from scaivaultd.plugin import (
    ChallengeResponse,
    ChallengeSolver,
    SolverContext,
    SolverError,
    SolverKind,
    TlsAlpn01Responses,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

SCAIVAULTD_PLUGIN_API = "1.1"


class TlsAlpn01Solver:
    """Hands responses to the listener; they are visible the moment they are put."""

    def __init__(self, responses: TlsAlpn01Responses) -> None:
        self._responses = responses

    async def present(self, response: ChallengeResponse) -> None:
        """Let the listener show the certificate for the identifier.

        Raises:
            SolverError: there is no listener, nobody can ask for the identifier by TLS, or no certificate can be made
                at the moment.
        """
        try:
            self._responses.put(response.identifier, response.key_authorization)
        except ValueError as error:
            raise SolverError(str(error)) from error
        except OSError as error:
            raise SolverError(f"no certificate could be made: {error.strerror}", retryable=True) from error

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Let the listener forget the identifier."""
        self._responses.remove(response.identifier)

    async def claims(self, response: ChallengeResponse) -> Mapping[str, int]:
        """What a validator says and nothing else, so there is one certificate for it at a time.

        For an address that is its reverse name (RFC 8738 section 6), which may be asked for as a name, too.
        """
        try:
            return {ipaddress.ip_address(response.identifier).reverse_pointer: 1}
        except ValueError:
            return {response.identifier.lower(): 1}


@asynccontextmanager
async def _open(context: SolverContext) -> AsyncIterator[ChallengeSolver]:
    yield TlsAlpn01Solver(context.tlsalpn01)


@hookimpl
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """The one solver of this plugin."""
    return [SolverKind(name="tls-alpn-01", challenge_type="tls-alpn-01", open=_open)]
