"""dns-01 for real: Pebble asks the DNS server that the daemon's rfc2136 provider updates."""

from __future__ import annotations

import asyncio
import base64
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.dns import DevelopmentDns
from scaivaultd.demo.process import until
from tests.fakes.bind import Bind, Key, Zone, free_port, zone_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.system

SECRET = base64.b64encode(secrets.token_bytes(32)).decode()
ZONE = "example.org"
FOREIGN = ("somebody else's",)


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


async def rfc2136(daemon: Any, server: DevelopmentDns | Bind, name: str = "dev", **config: Any) -> dict[str, Any]:
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


async def until_txt(server: DevelopmentDns, name: str, holds: Callable[[tuple[str, ...]], bool], what: str) -> None:
    """Wait until the primary's values of a name are as wanted."""

    async def is_so() -> bool:
        return holds(server.txt(name, "127.0.0.1"))

    await until(is_so, what)


async def gone(server: DevelopmentDns, name: str) -> None:
    """Wait until a name has no TXT values any more."""
    await until_txt(server, name, lambda values: not values, f"{name} has no values any more")


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
    server.set_txt("_acme-challenge.example.org", FOREIGN)
    orders = await asyncio.gather(
        *(daemon.issue(account, "*.example.org", "example.org", challenge_type="dns-01") for _ in range(20))
    )
    assert [order["status"] for order in orders] == ["valid"] * 20, orders
    name = "_acme-challenge.example.org"
    await until_txt(server, name, lambda values: values == FOREIGN, "only what is not ours is left")


async def test_a_provider_is_tried_step_by_step(world: Any) -> None:
    """An administrator wants to know today whether the renewal at night will work."""
    daemon, _, server, _ = world
    report = await daemon.ask("pki.dns_providers.test", id="dev", domain="www.example.org", _timeout=60)
    assert report["ok"], report
    assert [each["name"] for each in report["steps"]] == ["open", "check", "route", "write", "visible", "remove"]
    assert report["record_name"] == "_acme-challenge.www.example.org"
    assert server.txt("_acme-challenge.www.example.org") == ()


async def test_a_name_is_traced_without_writing(world: Any) -> None:
    """Where the CNAMEs lead, who serves the zone, which provider would write."""
    daemon, _, server, _ = world
    server.put("_acme-challenge.www.example.org", "CNAME", "www.acme.example.org.")
    trace = await daemon.ask("pki.dns_providers.trace", name="*.www.example.org", _timeout=30)
    assert trace["chain"] == ["www.acme.example.org"]
    assert (trace["target"], trace["zone"]) == ("www.acme.example.org", ZONE)
    assert trace["dns_provider"]["name"] == "dev"
    assert len(trace["name_servers"]) == 2
    # The only resolver here knows nothing of the zones above.
    assert [each for each in trace["problems"] if "CAA" not in each] == []
    assert not any(each.is_update for each in server.seen)


async def test_a_delegated_challenge_is_written_where_the_cname_leads(world: Any) -> None:
    """Most zones of a large organisation are not ours to write."""
    daemon, _, server, account = world
    server.put("_acme-challenge.www.example.org", "CNAME", "www.acme.example.org.")
    order = await daemon.issue(account, "www.example.org", challenge_type="dns-01")
    assert order["status"] == "valid", order
    assert order["dns_records"][0]["record_name"] == "www.acme.example.org"
    await gone(server, "www.acme.example.org")


async def test_a_missing_secret_is_named_when_a_provider_is_created_and_when_it_is_used(world: Any) -> None:
    """By its reference; nobody has to guess which of five it was."""
    daemon, _, server, account = world
    config = {"server": "127.0.0.1", "port": server.port, "tsig_key_name": "acme-key", "tsig_secret_path": "dns/none"}
    reply = await daemon.ask("pki.dns_providers.create", name="other", type="rfc2136", config=config)
    assert (reply["code"], "dns/none" in reply["detail"]) == ("secret_not_found", True)
    deleted = await daemon.ask("secrets.delete", path="dns/tsig")
    assert deleted["used_by"] == ["dev"]
    order = await daemon.issue(account, "www.example.org", challenge_type="dns-01")
    assert (order["status"], order["error"]["code"]) == ("invalid", "secret_not_found")
    assert "dns/tsig" in order["error"]["detail"]


async def test_two_providers_for_one_zone_have_to_be_told_apart(world: Any) -> None:
    """A guess would write the value where nobody looks."""
    daemon, _, server, account = world
    await rfc2136(daemon, server, name="twin")
    order = await daemon.issue(account, "www.example.org", challenge_type="dns-01")
    assert (order["status"], order["error"]["code"]) == ("invalid", "dns_provider_error")
    assert "dev, twin" in order["error"]["detail"]
    order = await daemon.issue(account, "www.example.org", challenge_type="dns-01", dns_provider="twin")
    assert order["status"] == "valid", order


@pytest.mark.parametrize("moment", ["before the CA looks", "after the CA has looked"])
async def test_a_kill_leaves_nothing_behind(world: Any, moment: str) -> None:
    """The journal knows what is ours, whoever wrote it."""
    daemon, _, server, account = world
    name = "_acme-challenge.example.org"
    server.set_txt(name, FOREIGN)
    if moment == "before the CA looks":
        server.hold("127.0.0.2")
    body = {"account_id": account, "domains": ["*.example.org", "example.org"], "challenge_type": "dns-01"}
    order = await daemon.ask("pki.acme.issue", **body, wait_seconds=0)
    await until_txt(server, name, lambda values: len(values) == 3, "both values are written")
    await daemon.stop(signal.SIGKILL)
    server.release("127.0.0.2")
    assert len(server.txt(name)) >= 2
    await daemon.start()
    finished = await daemon.finished(order["order_id"])
    assert finished["status"] == "valid", finished
    await until_txt(server, name, lambda values: values == FOREIGN, "only what is not ours is left")


@pytest.fixture
async def bind(tmp_path: Path) -> AsyncIterator[Bind]:
    """A primary, a secondary that hears of every change, and one that hears of none for an hour."""
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    port = free_port(*addresses)
    records = "\n".join(f"@ NS ns{n}\nns{n} A {address}" for n, address in enumerate(addresses, 1))
    text = zone_text(f"{records}\n* A 127.0.0.1\n@ A 127.0.0.1")
    key = Key("acme-key", SECRET)
    primary = Zone(ZONE, text, update_policy='grant "acme-key" zonesub TXT;', also_notify=[f"127.0.0.2 port {port}"])
    second = Zone(ZONE, type="secondary", primaries=[f"127.0.0.1 port {port}"])
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(
            Bind(tmp_path / "bind1", [primary], addresses=["127.0.0.1"], port=port, keys=[key])
        )
        for number in (2, 3):
            other = Bind(tmp_path / f"bind{number}", [second], addresses=[f"127.0.0.{number}"], port=port)
            await stack.enter_async_context(other)
        yield one


@pytest.fixture
async def bind_world(
    bind: Bind, make_pebble: Callable[..., Awaitable[Any]], make_daemon: Callable[..., Awaitable[Any]]
) -> tuple[Any, str, Bind]:
    pebble = await make_pebble(dns_server=f"127.0.0.1:{bind.port}")
    section = f'resolvers = ["127.0.0.1:{bind.port}"]\nauthoritative_port = {bind.port}'
    daemon = await make_daemon(pebble, dns=section)
    return daemon, await daemon.account(pebble), bind


async def test_a_secondary_that_lags_is_named_with_what_it_says(bind_world: Any) -> None:
    """That it did not work is no answer for somebody who runs three name servers."""
    daemon, account, server = bind_world
    await rfc2136(daemon, server, propagation_timeout=3, polling_interval=0.5)
    order = await daemon.issue(account, "*.example.org", "example.org", challenge_type="dns-01")
    assert (order["status"], order["error"]["code"]) == ("invalid", "dns_propagation_timeout"), order
    assert "ns3.example.org (127.0.0.3" in order["error"]["detail"]
    assert "ns2.example.org" not in order["error"]["detail"]
    [cause, *_] = order["error"]["identifiers"]
    assert [(each["server"], each["answer"]) for each in cause["servers"]] == [("ns3.example.org", "absent")]
    [(_, _, event)] = await daemon.events_of("order.failed", 1)
    assert event["error"]["identifiers"][0]["servers"][0]["server"] == "ns3.example.org"


async def test_a_quorum_does_not_wait_for_the_one_that_lags(bind_world: Any) -> None:
    """Some set-ups never converge; whoever knows that says so."""
    daemon, account, server = bind_world
    await rfc2136(daemon, server, propagation_timeout=20)
    order = await daemon.issue(
        account, "*.example.org", "example.org", challenge_type="dns-01", propagation={"visibility": "quorum"}
    )
    assert order["status"] == "valid", order
    answers = {each["server"]: each["answer"] for each in order["dns_records"][0]["verdicts"]}
    assert answers == {"ns1.example.org": "complete", "ns2.example.org": "complete", "ns3.example.org": "absent"}


async def test_a_wrong_key_is_named_as_what_it_is(bind_world: Any) -> None:
    """Refused credentials are somebody's to mend, at once and not after an hour of tries."""
    daemon, account, server = bind_world
    await rfc2136(daemon, server, tsig_key_name="other-key")
    order = await daemon.issue(account, "example.org", challenge_type="dns-01", dns_provider="dev")
    assert (order["status"], order["error"]["code"]) == ("invalid", "dns_provider_error"), order
    assert "other-key" in order["error"]["detail"]
    assert SECRET not in str(order)
