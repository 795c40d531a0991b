"""Every provider for real: the daemon speaks to the provider's API, and Pebble asks the DNS that this API feeds."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from scaivaultd.demo.dns import DevelopmentDns
from scaivaultd.demo.process import until
from tests.fakes import azure, cloudflare, digitalocean, hetzner
from tests.fakes.acme_dns import FakeAcmeDns
from tests.fakes.azure import FakeAzure
from tests.fakes.cloudflare import FakeCloudflare
from tests.fakes.digitalocean import FakeDigitalOcean
from tests.fakes.google import FakeGoogle
from tests.fakes.hetzner import FakeHetzner
from tests.fakes.http import FakeApi
from tests.fakes.httpreq import FakeHttpreq
from tests.fakes.route53 import FakeRoute53

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

pytestmark = pytest.mark.system

ZONE = "example.org"
NAME = f"_acme-challenge.{ZONE}"


@dataclass(frozen=True)
class Service:
    """A provider's server, and what to tell the daemon of it."""

    server: FakeApi
    config: Mapping[str, Any]
    secrets: Mapping[str, str]


def a_cloudflare() -> Service:
    server = FakeCloudflare()
    return Service(server, {"api_token_path": "dns/token", "api_base": ""}, {"dns/token": cloudflare.TOKEN})


def a_digitalocean() -> Service:
    server = FakeDigitalOcean()
    return Service(server, {"api_token_path": "dns/token", "api_base": ""}, {"dns/token": digitalocean.TOKEN})


def a_hetzner() -> Service:
    server = FakeHetzner()
    return Service(server, {"api_token_path": "dns/token", "api_base": ""}, {"dns/token": hetzner.TOKEN})


def a_google() -> Service:
    server = FakeGoogle(rsa.generate_private_key(65537, 2048))
    server.add_zone("the-zone", ZONE)
    return Service(server, {"service_account_json_path": "dns/key", "api_base": ""}, {"dns/key": ""})


def an_azure() -> Service:
    server = FakeAzure()
    server.add_zone("Group", ZONE)
    config = {
        "tenant_id": azure.TENANT,
        "client_id": azure.CLIENT,
        "client_secret_path": "dns/secret",
        "subscription_id": azure.SUBSCRIPTION,
        "api_base": "",
        "authority_url": "",
    }
    return Service(server, config, {"dns/secret": server.client_secret})


def a_route53() -> Service:
    server = FakeRoute53()
    server.add_zone("Z1ORG", ZONE)
    server.pending_polls = 0
    [(key_id, (secret, _))] = server.keys.items()
    config = {"access_key_id_path": "dns/id", "secret_access_key_path": "dns/secret", "endpoint_url": ""}
    return Service(server, config, {"dns/id": key_id, "dns/secret": secret})


SERVICES: Mapping[str, Callable[[], Service]] = {
    "cloudflare": a_cloudflare,
    "digitalocean": a_digitalocean,
    "hetzner": a_hetzner,
    "google_cloud_dns": a_google,
    "azure_dns": an_azure,
    "aws_route53": a_route53,
}


@pytest.fixture
async def development_dns() -> AsyncIterator[DevelopmentDns]:
    async with DevelopmentDns([ZONE], default_address="127.0.0.1") as server:
        yield server


def dns_at(port: int, api: str) -> str:
    """Where DNS is asked, and which service on loopback callers may configure."""
    return f'resolvers = ["127.0.0.1:{port}"]\nauthoritative_port = {port}\nprivate_apis = ["{api.split("/")[2]}"]'


@pytest.fixture(params=sorted(SERVICES))
async def configured(
    request: pytest.FixtureRequest,
    development_dns: DevelopmentDns,
    make_pebble: Callable[..., Awaitable[Any]],
    make_daemon: Callable[..., Awaitable[Any]],
) -> AsyncIterator[tuple[Any, str, FakeApi]]:
    """The daemon with that provider configured over NATS, an account, and the provider's server."""
    service = SERVICES[request.param]()
    service.server.on_txt = lambda name, values: development_dns.set_txt(name, values)
    async with service.server as server:
        pebble = await make_pebble(dns_server=f"127.0.0.1:{development_dns.port}")
        port = development_dns.port
        root = getattr(server, "api_base", server.url)
        daemon = await make_daemon(pebble, dns=dns_at(port, root))
        for path, value in service.secrets.items():
            given = value or server.key_file()  # type: ignore[attr-defined]  # Google: the key names its server
            assert (await daemon.ask("secrets.put", path=path, value=given))["version"] == 1
        config = {member: value or root for member, value in service.config.items()}
        reply = await daemon.ask("pki.dns_providers.create", name="it", type=request.param, config=config)
        assert reply.get("status") == "ready", reply
        yield daemon, await daemon.account(pebble), server
        assert server.violations == []


async def test_orders_at_once_for_a_wildcard_and_its_apex(
    configured: tuple[Any, str, FakeApi], development_dns: DevelopmentDns
) -> None:
    """Values of several orders under one name, at a service that may know sets only; none is lost, none is left."""
    daemon, account, _ = configured
    tested = await daemon.ask("pki.dns_providers.test", id="it", domain=ZONE, _timeout=60)
    assert tested["ok"], tested
    orders = await asyncio.gather(
        *(daemon.issue(account, ZONE, f"*.{ZONE}", challenge_type="dns-01") for _ in range(4))
    )
    assert [order["status"] for order in orders] == ["valid"] * 4, json.dumps(orders, indent=1)

    async def is_clean() -> bool:
        return development_dns.txt(NAME) == ()

    await until(is_clean, "no value of ours is left")


async def test_orders_take_turns_at_a_service_that_holds_two_values(
    development_dns: DevelopmentDns,
    make_pebble: Callable[..., Awaitable[Any]],
    make_daemon: Callable[..., Awaitable[Any]],
) -> None:
    """acme-dns keeps the last two values of an account: a third at once would push one of them out."""
    development_dns.put(NAME, "CNAME", "sub-one.auth.example.org.")
    account = {
        "username": "u",
        "password": "p4ssw0rd",
        "subdomain": "sub-one",
        "fulldomain": "sub-one.auth.example.org",
    }
    server = FakeAcmeDns(asyncio.get_running_loop().time)
    server.register("sub-one", account["username"], account["password"])
    server.on_txt = lambda name, values: development_dns.set_txt(name, values)
    async with server:
        pebble = await make_pebble(dns_server=f"127.0.0.1:{development_dns.port}")
        port = development_dns.port
        daemon = await make_daemon(pebble, dns=dns_at(port, server.url))
        await daemon.ask("secrets.put", path="dns/account", value=json.dumps(account))
        config = {"api_base": server.url, "account_path": "dns/account"}
        reply = await daemon.ask("pki.dns_providers.create", name="it", type="acme_dns", config=config)
        assert reply.get("status") == "ready", reply
        acme_account = await daemon.account(pebble)
        orders = await asyncio.gather(
            *(daemon.issue(acme_account, ZONE, f"*.{ZONE}", challenge_type="dns-01") for _ in range(5))
        )
        assert [order["status"] for order in orders] == ["valid"] * 5, json.dumps(orders, indent=1)
        assert server.violations == []


SCRIPT = """\
#!{python}
import sys
import dns.query, dns.tsigkeyring, dns.update

action, name, value = sys.argv[1:]
update = dns.update.UpdateMessage("example.org", keyring=dns.tsigkeyring.from_text({{"key": "{secret}"}}))
if action == "present":
    update.add(name, 60, "TXT", value)
else:
    update.delete(name, "TXT", value)
assert dns.query.tcp(update, "127.0.0.1", port={port}, timeout=5).rcode() == 0
"""


async def test_a_program_of_the_administrator_writes_the_records(
    tmp_path: Path,
    make_pebble: Callable[..., Awaitable[Any]],
    make_daemon: Callable[..., Awaitable[Any]],
) -> None:
    """Whatever can be scripted can be a provider; only the configuration file may say so."""
    async with DevelopmentDns([ZONE], default_address="127.0.0.1", keys={"key": "c2VjcmV0"}) as server:
        program = tmp_path / "hook"
        program.write_text(SCRIPT.format(python=sys.executable, secret="c2VjcmV0", port=server.port))
        program.chmod(0o755)
        pebble = await make_pebble(dns_server=f"127.0.0.1:{server.port}")
        daemon = await make_daemon(
            pebble,
            dns=f'resolvers = ["127.0.0.1:{server.port}"]\nauthoritative_port = {server.port}\n'
            f'[[dns_provider]]\nname = "hook"\ntype = "exec"\nzones = ["{ZONE}"]\nconfig = {{ program = "{program}" }}',
        )
        refused = await daemon.ask(
            "pki.dns_providers.create", name="other", type="exec", config={"program": "/usr/bin/true"}
        )
        assert refused["errors"][0]["code"] == "configuration_file_only"
        order = await daemon.issue(await daemon.account(pebble), ZONE, f"*.{ZONE}", challenge_type="dns-01")
        assert order["status"] == "valid", order


async def test_a_bridge_of_the_administrator_writes_the_records(
    development_dns: DevelopmentDns,
    make_pebble: Callable[..., Awaitable[Any]],
    make_daemon: Callable[..., Awaitable[Any]],
) -> None:
    """Many small DNS bridges speak httpreq already."""
    async with FakeHttpreq() as bridge:
        bridge.demand_password("acme", "the-password")
        bridge.on_txt = lambda name, values: development_dns.set_txt(name, values)
        pebble = await make_pebble(dns_server=development_dns.address)
        daemon = await make_daemon(
            pebble,
            dns=f'resolvers = ["{development_dns.address}"]\nauthoritative_port = {development_dns.port}\n'
            f'[[dns_provider]]\nname = "bridge"\ntype = "httpreq"\nzones = ["{ZONE}"]\n'
            f'config = {{ endpoint = "{bridge.url}/acme", username_path = "dns/user", password_path = "dns/pass" }}',
        )
        await daemon.ask("secrets.put", path="dns/user", value="acme")
        await daemon.ask("secrets.put", path="dns/pass", value="the-password")
        order = await daemon.issue(await daemon.account(pebble), ZONE, f"*.{ZONE}", challenge_type="dns-01")
        assert order["status"] == "valid", order
        assert bridge.violations == []
