"""A conformance kit for DNS providers: derive a test class, supply a rig, run it with pytest.

    class TestAcme(DnsProviderContract):
        @pytest.fixture
        async def rig(self) -> AsyncIterator[Rig]:
            async with FakeAcme() as server:
                yield AcmeRig(server)

Needs pytest and pytest-asyncio (`asyncio_mode = "auto"`). Nothing of it is used by the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from scaivaultd.plugin.dns import DnsProviderKind

FaultKind = Literal["rate_limit", "server_error", "drop_before", "drop_after", "hang"]


class Rig(Protocol):
    """A provider's kind and a server for it: real, or one that behaves like it at the socket."""

    @property
    def kind(self) -> DnsProviderKind:
        """What is tested."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that work with the server, as they stand in a request's `config`; with small time limits."""
        ...

    @property
    def secrets(self) -> Mapping[str, str]:
        """The secrets by reference. Their values are searched for in logs and exceptions."""
        ...

    @property
    def wrong_secrets(self) -> Mapping[str, str] | None:
        """The same references with values that the server refuses; None when it has no credentials."""
        ...

    @property
    def zone(self) -> str:
        """A zone that the provider can write."""
        ...

    async def values(self, name: str) -> Sequence[str]:
        """The TXT values of a name as the server has them, bare."""
        ...

    async def put_foreign(self, name: str, value: str) -> None:
        """Another program adds a value, not through the provider."""
        ...

    async def fail(self, fault: FaultKind, times: int) -> None:
        """Let the next `times` requests fail: see `FaultKind`; `drop_after` and `hang` carry them out first."""
        ...

    def complaints(self) -> Sequence[str]:
        """What the server objects to in the requests so far; looked at after every test."""
        ...
