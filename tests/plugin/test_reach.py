"""`open_api` and the host's judgement of addresses: what is out of reach is not connected to, whatever it is called."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator

import msgspec
import pytest

from scaivaultd.plugin import PermanentError, PluginContext, ProviderSettings, TransientError
from scaivaultd.plugin.http import HttpAnswer, no_authorization, open_api
from scaivaultd.plugin.testing import FixedSecrets, make_context


class Inside:
    """A host that counts its visitors."""

    def __init__(self) -> None:
        self.visits = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


@pytest.fixture
async def inside() -> AsyncIterator[Inside]:
    host = Inside()
    async with await asyncio.start_server(host.serve, "127.0.0.1", 0) as server:
        host.port = server.sockets[0].getsockname()[1]
        yield host


def context(*reachable: str) -> PluginContext:
    """One that lets these addresses be reached; like the daemon's it is asked about nothing but addresses."""
    return msgspec.structs.replace(
        make_context(FixedSecrets({})),
        may_reach=lambda host, port, address: str(ipaddress.ip_address(address)) in reachable,
    )


async def ask(root: str, lent: PluginContext, *, repeatable: bool = True) -> None:
    def unread(answer: HttpAnswer) -> None:
        return None

    settings = ProviderSettings(max_retries=0)
    async with open_api(root, settings, lent, authorize=no_authorization, error_from=unread) as api:
        await api.call("GET", "/", repeatable=repeatable)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "127.0.0.1.", "\uff11\uff12\uff17.1"]
)
async def test_what_is_out_of_reach_is_never_connected_to(inside: Inside, host: str) -> None:
    """By number, by name, and in spellings that only some readers take for an address; it is no passing fault."""
    for scheme in ("http", "https"):
        for repeatable in (True, False):
            with pytest.raises(PermanentError):
                await ask(f"{scheme}://{host}:{inside.port}", context("8.8.8.8"), repeatable=repeatable)
    assert inside.visits == 0


async def test_the_refusal_says_what_would_allow_it(inside: Inside) -> None:
    """To whoever configured the provider, who has to find the administrator."""
    for host in ("127.0.0.1", "localhost", "[::1]"):
        with pytest.raises(PermanentError) as caught:
            await ask(f"https://{host}:{inside.port}", context())
        assert f'private_apis = ["{host}:{inside.port}"]' in caught.value.detail


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_what_is_within_reach_is_connected_to(inside: Inside, host: str) -> None:
    """And nothing is out of reach where the host does not judge: third parties' tests run on loopback."""
    for lent in (context("127.0.0.1"), make_context(FixedSecrets({}))):
        before = inside.visits
        with pytest.raises(TransientError):
            await ask(f"http://{host}:{inside.port}", lent)
        assert inside.visits > before
