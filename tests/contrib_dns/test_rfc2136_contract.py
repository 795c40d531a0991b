"""`rfc2136` does what every provider must, against the development DNS server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import pytest
from scaivaultd_contrib_dns import rfc2136

from scaivaultd.demo.dns import DevelopmentDns, Fault
from scaivaultd.plugin import DnsProviderKind
from scaivaultd.plugin.testing import DnsProviderContract, FaultKind, Rig

SECRET = "b25lIHNlY3JldCBvZiB0aGlydHktdHdvIGJ5dGVzLi4="
OTHER_SECRET = "YW5vdGhlciBzZWNyZXQgb2YgdGhpcnR5LXR3byBieXQ="
FAULTS: Mapping[FaultKind, Literal["status", "drop_before", "drop_after", "hang"]] = {
    "server_error": "status",
    "drop_before": "drop_before",
    "drop_after": "drop_after",
    "hang": "hang",
}


class Rfc2136Rig:
    """The provider with a key of its own, and the server."""

    zone = "example.test"
    secrets: Mapping[str, str] = {"infra/tsig": SECRET}
    wrong_secrets: Mapping[str, str] | None = {"infra/tsig": OTHER_SECRET}

    def __init__(self, server: DevelopmentDns, transport: str) -> None:
        self._server = server
        self._transport = transport

    @property
    def kind(self) -> DnsProviderKind:
        return next(iter(rfc2136.scaivaultd_dns_providers()))

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "server": self._server.addresses[0],
            "port": self._server.port,
            "tsig_key_name": "acme.key",
            "tsig_secret_path": "infra/tsig",
            "transport": self._transport,
        }

    async def values(self, name: str) -> Sequence[str]:
        return self._server.txt(name)

    async def put_foreign(self, name: str, value: str) -> None:
        self._server.set_txt(name, [*self._server.txt(name), value])

    async def fail(self, fault: FaultKind, times: int) -> None:
        self._server.fail(Fault(kind=FAULTS[fault]), times)

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self._server.fail(Fault(kind=FAULTS[fault], updates_only=True), times)

    def complaints(self) -> Sequence[str]:
        return [f"unsigned: {each}" for each in self._server.seen if not each.key_name]


class TestRfc2136Contract(DnsProviderContract):
    """By TCP, which is the default."""

    cannot = frozenset({"rate_limit"})  # there is no such answer in DNS
    transport = "tcp"

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        async with DevelopmentDns(["example.test"], keys={"acme.key": SECRET}) as server:
            yield Rfc2136Rig(server, self.transport)


class TestRfc2136ContractByUdp(TestRfc2136Contract):
    """Datagrams get lost, are truncated, and come from anywhere."""

    cannot = frozenset({"rate_limit", "drop_before", "drop_after"})  # a lost datagram is a hang
    transport = "udp"
