"""The development CA's look at a challenge: where each type is looked for, and what is said of those it cannot see."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.demo.ca_dns01 import Dns01
from scaivaultd.demo.ca_http01 import Http01
from scaivaultd.demo.ca_problems import Finding, problem
from scaivaultd.demo.ca_tlsalpn01 import TlsAlpn01

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.demo.ca_identifiers import Identifier


class Perspective(msgspec.Struct, frozen=True, kw_only=True):
    """Where it looks; None: nowhere, so that no such challenge can be met."""

    http01_port: int
    tlsalpn01_port: int | None = None
    dns_server: str | None = None


class Validator:
    """Looks from one perspective, on loopback; holds no state.

    Raises:
        ValueError: the DNS server is not `address:port`.
    """

    def __init__(self, perspective: Perspective, resolve: Callable[[str], str] | None, seconds: float) -> None:
        port, server = perspective.tlsalpn01_port, perspective.dns_server
        self._http01 = Http01(perspective.http01_port, seconds)
        self._tlsalpn01 = TlsAlpn01(port, seconds) if port is not None else None
        self._dns01 = Dns01(server, seconds) if server is not None else None
        self._resolve = resolve

    async def validate(self, identifier: Identifier, type_: str, token: str, key_authorization: str) -> Finding:
        """Look once, for no longer than it is meant to."""
        match type_:
            case "http-01" | "tls-alpn-01":
                return await self._connect(identifier, type_, token, key_authorization)
            case "dns-01" if self._dns01 is not None:
                return await self._dns01.look(identifier, key_authorization)
            case "dns-01":
                return problem("dns", f"this CA looks up no TXT records, so not _acme-challenge.{identifier.base}")
            case _:
                return problem("malformed", f"this CA does not validate {type_}")

    async def _connect(self, identifier: Identifier, type_: str, token: str, key_authorization: str) -> Finding:
        try:
            address = "127.0.0.1" if self._resolve is None else self._resolve(identifier.value)
        except LookupError:
            return problem("dns", f"{identifier.value} has no address")
        if type_ == "http-01":
            return await self._http01.look(identifier, address, token, key_authorization)
        if self._tlsalpn01 is None:
            return problem("tls", f"this CA opens no TLS connections, so not to {identifier.value}")
        return await self._tlsalpn01.look(identifier, address, key_authorization)
