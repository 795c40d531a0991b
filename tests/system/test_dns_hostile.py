"""Plugins at their worst in the real daemon: it serves everybody else meanwhile, and ends when it is told to."""

from __future__ import annotations

import asyncio
import base64
import secrets
import signal
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.dns import DevelopmentDns
from scaivaultd.demo.process import until
from tests.fakes.sample_plugin import add_distribution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.system

ZONE = "example.org"
TSIG = base64.b64encode(secrets.token_bytes(32)).decode()
WORST = """
import asyncio, sys, time
from contextlib import asynccontextmanager
from scaivaultd.plugin import DnsProviderKind, ProviderSettings, Zone, hookimpl

SCAIVAULTD_PLUGIN_API = "1.1"

class Settings(ProviderSettings, frozen=True, kw_only=True):
    how: str
    where: str

class Provider:
    def __init__(self, settings):
        self.settings = settings

    async def meet(self, where):
        if where != self.settings.where:
            return
        match self.settings.how:
            case "exits":
                sys.exit("hunter2")
            case "cancels itself":
                raise asyncio.CancelledError("hunter2")
            case "sits in a thread":
                await asyncio.to_thread(time.sleep, 60)
            case "goes on for ever":
                while True:
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        pass

    async def find_zone(self, name):
        await self.meet("find_zone")
        return Zone(name="example.org")

    async def add_txt(self, zone, name, values, ttl):
        await self.meet("add_txt")

    async def remove_txt(self, zone, name, values, handle):
        await self.meet("remove_txt")

@asynccontextmanager
async def open_it(settings, context):
    provider = Provider(settings)
    yield provider
    await provider.meet("close")

@hookimpl
def scaivaultd_dns_providers():
    example = {"how": "exits", "where": "add_txt"}
    return [DnsProviderKind(name="worst", title="Worst", settings=Settings, open=open_it, example=example)]
"""


@pytest.fixture
async def development_dns() -> AsyncIterator[DevelopmentDns]:
    async with DevelopmentDns([ZONE], keys={"acme-key": TSIG}, default_address="127.0.0.1") as server:
        yield server


@pytest.fixture
async def world(
    tmp_path: Path,
    development_dns: DevelopmentDns,
    monkeypatch: pytest.MonkeyPatch,
    make_pebble: Callable[..., Awaitable[Any]],
    make_daemon: Callable[..., Awaitable[Any]],
) -> tuple[Any, str]:
    """A daemon with an honest provider for the zone, and the worst plugin installed; and an account."""
    site = tmp_path / "site"
    site.mkdir()
    add_distribution(site, "xworst", WORST)
    monkeypatch.setenv("PYTHONPATH", str(site))
    pebble = await make_pebble(dns_server=f"127.0.0.1:{development_dns.port}")
    port = development_dns.port
    daemon = await make_daemon(pebble, dns=f'resolvers = ["127.0.0.1:{port}"]\nauthoritative_port = {port}')
    await daemon.ask("secrets.put", path="dns/tsig", value=TSIG)
    config = {"server": "127.0.0.1", "port": port, "tsig_key_name": "acme-key", "tsig_secret_path": "dns/tsig"}
    reply = await daemon.ask("pki.dns_providers.create", name="honest", type="rfc2136", config=config)
    assert reply.get("status") == "ready", reply
    return daemon, await daemon.account(pebble)


async def worst(daemon: Any, how: str, where: str) -> None:
    """Configure it for a zone of its own, so that orders that name nobody do not come to it."""
    reply = await daemon.ask(
        "pki.dns_providers.create",
        name="worst",
        type="worst",
        zones=["elsewhere.test"],
        config={"how": how, "where": where},
    )
    assert reply.get("status") == "ready", reply


async def ordered(daemon: Any, account: str) -> str:
    order = await daemon.ask(
        "pki.acme.issue",
        account_id=account,
        domains=["a.example.org"],
        challenge_type="dns-01",
        dns_provider="worst",
        wait_seconds=0,
    )
    return str(order["order_id"])


@pytest.mark.parametrize("where", ["find_zone", "add_txt"])
@pytest.mark.parametrize("how", ["exits", "cancels itself"])
async def test_what_ends_a_task_or_a_process_ends_one_try_of_one_order(world: Any, how: str, where: str) -> None:
    """The order tells what happened and tries again; everybody else hears nothing of it."""
    daemon, account = world
    await worst(daemon, how, where)
    order_id = await ordered(daemon, account)
    seen: dict[str, Any] = {}

    async def has_failed() -> bool:
        seen.update(await daemon.ask("pki.acme.orders.get", order_id=order_id))
        return bool(seen.get("error"))

    await until(has_failed, "the order tells of its first setback")
    assert (seen["error"]["code"], "broke" in seen["error"]["detail"]) == ("dns_provider_error", True)
    assert seen["error"]["retryable"]
    order = await daemon.issue(account, "b.example.org", challenge_type="dns-01")
    assert order["status"] == "valid", order
    assert len(daemon.lives) == 1
    assert "hunter2" not in daemon.process.log


@pytest.mark.parametrize(
    ("how", "where"),
    [("goes on for ever", "find_zone"), ("goes on for ever", "add_txt"), ("sits in a thread", "add_txt")],
)
async def test_a_plugin_that_does_not_let_go_does_not_hold_the_daemon(world: Any, how: str, where: str) -> None:
    """A restart that hangs until somebody kills it is an outage."""
    daemon, account = world
    await worst(daemon, how, where)
    await ordered(daemon, account)
    order = await daemon.issue(account, "b.example.org", challenge_type="dns-01")
    assert order["status"] == "valid", order
    async with asyncio.timeout(14):
        assert await daemon.stop(signal.SIGTERM) == 0
    assert '"daemon.stopped"' in daemon.process.log
    assert '"daemon.held_up"' in daemon.process.log
