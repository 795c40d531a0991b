"""dns-01 for real: Pebble asks the DNS server that the daemon's rfc2136 provider updates."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.dns import DevelopmentDns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.system

SECRET = base64.b64encode(secrets.token_bytes(32)).decode()
ZONE = "example.org"


@pytest.fixture
async def development_dns() -> AsyncIterator[DevelopmentDns]:
    async with DevelopmentDns(
        [ZONE],
        addresses=["127.0.0.1", "127.0.0.2"],
        keys={"acme-key": SECRET},
        default_address="127.0.0.1",
    ) as server:
        yield server


def dns_section(server: DevelopmentDns) -> str:
    return f'resolvers = ["127.0.0.1:{server.port}"]\nauthoritative_port = {server.port}'


async def rfc2136(daemon: Any, server: DevelopmentDns, name: str = "dev", **config: Any) -> dict[str, Any]:
    put = await daemon.ask("secrets.put", path="dns/tsig", value=SECRET)
    assert put["version"] >= 1, put
    settings = {
        "server": "127.0.0.1",
        "port": server.port,
        "tsig_key_name": "acme-key",
        "tsig_secret_path": "dns/tsig",
        **config,
    }
    reply: dict[str, Any] = await daemon.ask("pki.dns_providers.create", name=name, type="rfc2136", config=settings)
    assert reply.get("status") == "ready", reply
    return reply


@pytest.fixture
async def world(
    development_dns: DevelopmentDns,
    make_pebble: Callable[..., Awaitable[Any]],
    make_daemon: Callable[..., Awaitable[Any]],
) -> tuple[Any, Any, DevelopmentDns, str]:
    pebble = await make_pebble(dns_server=f"127.0.0.1:{development_dns.port}")
    daemon = await make_daemon(pebble, dns=dns_section(development_dns))
    account = await daemon.account(pebble)
    await rfc2136(daemon, development_dns)
    return daemon, pebble, development_dns, account


async def gone(server: DevelopmentDns, name: str) -> None:
    """Wait until a name has no TXT values any more."""
    async with asyncio.timeout(20):
        while server.txt(name):
            await asyncio.sleep(0.05)


async def test_a_wildcard_and_its_apex_are_issued_in_one_order(world: Any) -> None:
    """Two values under one name at the same time: where most clients have lost one."""
    daemon, _, server, account = world
    order = await daemon.issue(account, "*.example.org", "example.org", challenge_type="dns-01")
    assert order["status"] == "valid", order
    (report,) = order["dns_records"]
    assert (report["record_name"], report["zone"], report["status"]) == ("_acme-challenge.example.org", ZONE, "visible")
    assert {each["address"].split(":")[0] for each in report["verdicts"]} == {"127.0.0.1", "127.0.0.2"}
    assert all(each["answer"] == "complete" for each in report["verdicts"])
    await gone(server, "_acme-challenge.example.org")


async def test_twenty_orders_at_once_for_the_same_names_lose_nothing(world: Any) -> None:
    """Forty values under one name, each there as long as somebody needs it."""
    daemon, _, server, account = world
    server.set_txt("_acme-challenge.example.org", ["somebody else's"])
    orders = await asyncio.gather(
        *(daemon.issue(account, "*.example.org", "example.org", challenge_type="dns-01") for _ in range(20))
    )
    assert [order["status"] for order in orders] == ["valid"] * 20, orders
    async with asyncio.timeout(20):
        while server.txt("_acme-challenge.example.org") != ("somebody else's",):
            await asyncio.sleep(0.05)
