"""The real daemon among hosts that would like it to go elsewhere: CAs, and callers who configure DNS providers.

Elsewhere is a host on loopback that counts its visitors, and that the administrator has opened for something else:
being reachable is not enough.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from scaivaultd.demo.ca import Malformed
from scaivaultd.demo.process import free_port, until
from tests.fakes import digitalocean
from tests.fakes.digitalocean import FakeDigitalOcean

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


class Elsewhere:
    """Counts its visitors and says nothing."""

    visits = 0

    def __init__(self) -> None:
        self.place = ""

    @property
    def url(self) -> str:
        return f"https://{self.place}/x"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.visits += 1
        writer.close()


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    other = Elsewhere()
    async with await asyncio.start_server(other.serve, "127.0.0.1", 0) as server:
        other.place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield other


@pytest.fixture
async def local(make_ca: Any) -> Any:
    """A CA in this process."""
    return await make_ca(free_port())


@pytest.fixture
def started(new_daemon: Callable[..., Any], local: Any, elsewhere: Elsewhere) -> Callable[..., Any]:
    """Start the daemon; the place elsewhere is open to it, as the private directory of another CA."""

    async def start(**sections: str) -> Any:
        daemon = new_daemon(local, **sections)
        own = local.directory_url.split("/")[2]
        daemon.configuration = daemon.configuration.replace(f'["{own}"]', json.dumps([own, elsewhere.place]))
        await daemon.start()
        return daemon

    return start


def answer(document: Mapping[str, Any], elsewhere: Elsewhere) -> Malformed:
    return Malformed(body=json.dumps(document).replace("ELSEWHERE", elsewhere.url).encode())


async def setback(daemon: Any, account_id: str, name: str) -> dict[str, Any]:
    """The first error of a new order, once there is one."""
    order = await daemon.ask(
        "pki.acme.issue", account_id=account_id, domains=[name], challenge_type="http-01", wait_seconds=0
    )
    seen: list[dict[str, Any]] = []

    async def is_set_back() -> bool:
        shown = await daemon.ask("pki.acme.orders.get", order_id=order["order_id"])
        seen.extend([shown["error"]] if shown["error"] else [])
        return bool(seen)

    await until(is_set_back, f"the order for {name} is set back")
    return seen[0]


ORDERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "authorization": ("newOrder", {"status": "pending", "authorizations": ["ELSEWHERE"], "finalize": "ELSEWHERE"}),
    "challenge": (
        "authorization",
        {
            "status": "pending",
            "identifier": {"type": "dns", "value": "challenge.example.test"},
            "challenges": [{"type": "http-01", "url": "ELSEWHERE", "token": "a" * 43, "status": "pending"}],
        },
    ),
    "finalize": ("order", {"status": "ready", "authorizations": [], "finalize": "ELSEWHERE"}),
    "certificate": ("order", {"status": "valid", "authorizations": [], "certificate": "ELSEWHERE"}),
}


async def test_no_url_of_a_ca_leads_to_another_host(started: Any, local: Any, elsewhere: Elsewhere) -> None:
    """In whichever document it stands; the caller reads `ca_error`, the administrator what would allow it."""
    daemon = await started()
    account_id = await daemon.account(local)
    for place, (resource, document) in ORDERS.items():
        local.ca.misbehaviour.script[resource] = [answer(document, elsewhere)] * 20
        error = await setback(daemon, account_id, f"{place}.example.test")
        local.ca.misbehaviour.script.clear()
        assert error["code"] == "ca_error", (place, error)
        assert f'further_hosts = ["{elsewhere.place}"]' in error["detail"], (place, error)
    await daemon.stop()
    assert elsewhere.visits == 0


async def test_a_directory_that_points_elsewhere_registers_nobody(
    started: Any, local: Any, elsewhere: Elsewhere
) -> None:
    """Every endpoint counts, those too that are needed only once something has to be revoked."""
    daemon = await started()
    base = local.directory_url.rpartition("/")[0]
    endpoints = ("newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo")
    for endpoint in endpoints:
        directory = {each: f"{base}/{each}" for each in endpoints} | {endpoint: "ELSEWHERE"}
        local.ca.misbehaviour.script["directory"] = [answer(directory, elsewhere)] * 20
        reply = await daemon.ask(
            "pki.acme.accounts.create", name=endpoint, provider="custom", directory_url=local.directory_url
        )
        # Refused, or still being tried: a CA that misbehaves gets a few more chances.
        error = reply.get("error") or reply
        assert error["code"] == "ca_error", (endpoint, reply)
        assert f'further_hosts = ["{elsewhere.place}"]' in error["detail"]
    assert local.ca.requests["newAccount"] == 0
    await daemon.stop()
    assert elsewhere.visits == 0


async def test_a_further_host_of_the_administrator_is_visited(started: Any, local: Any, elsewhere: Elsewhere) -> None:
    """Some CAs keep a part of themselves elsewhere."""
    daemon = await started(acme=f'further_hosts = ["{elsewhere.place}"]')
    account_id = await daemon.account(local)
    document = {"status": "pending", "authorizations": ["ELSEWHERE"], "finalize": "ELSEWHERE"}
    local.ca.misbehaviour.script["newOrder"] = [answer(document, elsewhere)]
    error = await setback(daemon, account_id, "further.example.test")
    assert error["code"] == "ca_unavailable", error
    assert elsewhere.visits > 0


async def created(daemon: Any, name: str, root: str) -> Any:
    config = {"api_token_path": "dns/token", "api_base": root}
    return await daemon.ask("pki.dns_providers.create", name=name, type="digitalocean", config=config)


async def test_a_provider_of_a_caller_does_not_reach_the_inner_network(
    started: Any, local: Any, elsewhere: Elsewhere
) -> None:
    """By address it is refused at once, by a name when it is used: the token is sent to neither."""
    daemon = await started()
    await daemon.ask("secrets.put", path="dns/token", value=digitalocean.TOKEN)
    port = elsewhere.place.rpartition(":")[2]
    inside = ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1")
    for host in (*inside, "2130706433", "127.1", "127.0.0.1.", "\uff11\uff12\uff17.0.0.1"):
        reply = await created(daemon, "by-address", f"https://{host}:{port}/v2")
        assert (reply["code"], reply["errors"][0]["pointer"]) == ("invalid_request", "/config"), (host, reply)
        assert host not in inside or "private_apis" in reply["detail"]
    for scheme in ("https", "http"):
        reply = await created(daemon, f"by-name-{scheme}", f"{scheme}://localhost:{port}/v2")
        assert reply.get("status") == "ready", reply
        tested = await daemon.ask("pki.dns_providers.test", id=f"by-name-{scheme}", domain="example.org", _timeout=60)
        assert not tested["ok"], tested
        assert f'private_apis = [\\"localhost:{port}\\"]' in json.dumps(tested), tested
    await daemon.stop()
    assert elsewhere.visits == 0


async def test_a_listed_api_and_a_provider_of_the_file_are_free(started: Any, local: Any, elsewhere: Elsewhere) -> None:
    """The administrator has said so."""
    async with FakeDigitalOcean() as service:
        place, token = service.url.split("/")[2], "dns/token"
        daemon = await started(
            dns=f'private_apis = ["{place}"]\n[[dns_provider]]\nname = "own"\ntype = "digitalocean"\n'
            f'zones = ["example.org"]\nconfig = {{ api_token_path = "{token}", api_base = "http://{elsewhere.place}" }}'
        )
        await daemon.ask("secrets.put", path=token, value=digitalocean.TOKEN)
        assert (await created(daemon, "listed", service.url))["status"] == "ready"
        await daemon.ask("pki.dns_providers.test", id="listed", domain="example.org", _timeout=60)
        assert service.seen
        assert elsewhere.visits == 0
        await daemon.ask("pki.dns_providers.test", id="own", domain="example.org", _timeout=60)
        assert elsewhere.visits > 0
