"""Looking at our own challenge answers from here, as a CA would from outside (RFC 8555 section 8.3, RFC 8737)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaivaultd.model.clock import Clock


class OwnAnswers:
    """One look at each address of a host, bounded in time and size."""

    def __init__(self, *, http01_port: int, tlsalpn01_port: int, user_agent: str, clock: Clock) -> None:
        self._http01_port = http01_port
        self._tlsalpn01_port = tlsalpn01_port
        self._user_agent = user_agent
        self._clock = clock

    async def http01(self, host: str, token: str, expected: str) -> str | None:
        """What stands in the way of the key authorization at `host`, in words; None when it is there."""
        return None

    async def tlsalpn01(self, host: str, expected_digest: bytes) -> str | None:
        """The same for the `acme-tls/1` certificate; `host` is a name or an address."""
        return None
