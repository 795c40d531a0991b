"""httpreq against a bridge that takes nothing but the default mode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
import pytest
from scaivaultd_contrib_dns import httpreq

from scaivaultd.plugin import ProviderAuthError, Zone
from scaivaultd.plugin.dns import DnsProviderKind
from scaivaultd.plugin.testing import (
    ONE,
    TWO,
    DnsProviderContract,
    FaultKind,
    FixedSecrets,
    Rig,
    everything_about,
    make_context,
)
from tests.fakes.httpreq import FakeHttpreq

(KIND,) = httpreq.scaivaultd_dns_providers()
NAME = "_acme-challenge.www.example.org"
ZONE = Zone(name="example.org")


class HttpreqRig:
    """A bridge that wants a token."""

    kind: DnsProviderKind = KIND
    zone = "example.org"
    secrets: Mapping[str, str] = {"bridge/token": "token-of-the-bridge"}
    wrong_secrets: Mapping[str, str] | None = {"bridge/token": "token-that-is-wrong"}

    def __init__(self, server: FakeHttpreq) -> None:
        self.server = server
        server.authorization = "Bearer token-of-the-bridge"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"endpoint": f"{self.server.url}/acme/", "bearer_token_path": "bridge/token"}

    async def values(self, name: str) -> Sequence[str]:
        return self.server.records.get(name, [])

    async def put_foreign(self, name: str, value: str) -> None:
        self.server.records.setdefault(name, []).append(value)

    async def fail(self, fault: FaultKind, times: int) -> None:
        await self.fail_writes(fault, times)

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        """Nothing but writes."""
        if fault == "rate_limit":
            self.server.fail("status", times=times, status=429)
        elif fault == "server_error":
            self.server.fail("status", times=times)
        else:
            self.server.fail(fault, times=times)

    def complaints(self) -> Sequence[str]:
        return self.server.violations


class TestHttpreqContract(DnsProviderContract):
    """What every provider has to do, as far as a bridge that tells nothing lets it."""

    cannot = frozenset({"zones"})

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        async with FakeHttpreq() as server:
            yield HttpreqRig(server)


@pytest.fixture
async def server() -> AsyncIterator[FakeHttpreq]:
    async with FakeHttpreq() as server:
        yield server
        assert not server.violations


async def test_each_value_is_a_request_of_the_default_mode(server: FakeHttpreq) -> None:
    """Bridges written for lego take exactly this."""
    settings = httpreq.HttpreqSettings(endpoint=f"{server.url}/acme")
    async with httpreq.open_httpreq(settings, make_context(FixedSecrets({}))) as provider:
        await provider.add_txt(ZONE, NAME, [ONE, TWO], 60)
        assert server.records == {NAME: [ONE, TWO]}
        await provider.remove_txt(ZONE, NAME, [ONE], None)
    assert server.records == {NAME: [TWO]}
    assert [msgspec.json.decode(each.body) for each in server.asked("/present")] == [
        {"fqdn": f"{NAME}.", "value": ONE},
        {"fqdn": f"{NAME}.", "value": TWO},
    ]


async def test_a_password_is_sent_as_basic_and_not_shown_when_refused(server: FakeHttpreq) -> None:
    """The bridge may print our headers into its answer; nothing of that is repeated."""
    server.demand_password("ünser", "päss:word")
    settings = httpreq.HttpreqSettings(endpoint=f"{server.url}/acme", username_path="u", password_path="p")
    right = make_context(FixedSecrets({"u": "ünser", "p": "päss:word"}))
    async with httpreq.open_httpreq(settings, right) as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
    wrong = make_context(FixedSecrets({"u": "ünser", "p": "another-word"}))
    async with httpreq.open_httpreq(settings, wrong) as provider:
        with pytest.raises(ProviderAuthError) as caught:
            await provider.add_txt(ZONE, NAME, [TWO], 60)
    assert "another-word" not in everything_about(caught.value)
    assert server.records == {NAME: [ONE]}


@pytest.mark.parametrize(
    "members",
    [
        {"username_path": "u"},
        {"password_path": "p"},
        {"username_path": "u", "password_path": "p", "bearer_token_path": "t"},
    ],
)
def test_half_a_login_or_two_are_refused(members: Mapping[str, str]) -> None:
    """Told when it is configured, not when a certificate is due."""
    with pytest.raises(msgspec.ValidationError, match="username_path"):
        msgspec.convert({"endpoint": "https://a.test", **members}, KIND.settings)


def test_only_the_configuration_file_may_name_an_endpoint() -> None:
    """A request that could would make the daemon call any host."""
    assert KIND.configuration_file_only
    assert KIND.capabilities.any_zone
