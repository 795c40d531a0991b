"""`scaivaultctl cert issue` and `order` at the real daemon and Pebble: what a person reads, in good and bad times."""

from __future__ import annotations

import asyncio
import base64
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.dns import DevelopmentDns
from scaivaultd.demo.process import free_port
from tests.system.test_ctl import Shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def shell(daemon: Any) -> Shell:
    return Shell({"SCAIVAULT_ADDR": f"unix:{daemon.state_dir}/api.sock"})


async def test_a_certificate_by_hand(make_pebble: Any, make_daemon: Any, tmp_path: Any) -> None:
    """Ordered, found by its name, printed, renewed, and revoked: without ever typing an id.

    Its key is given to nobody whom no policy allows it, root neither.
    """
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    ctl = shell(daemon)
    await daemon.account(pebble)

    ended = await ctl("cert", "issue", "www.example.test", "example.test", "--wait")
    assert ended.code == 0, ended.err
    assert "www.example.test, example.test" in ended.out
    assert "www.example.test +1: " in ended.err
    listed = await ctl("cert", "ls")
    assert listed.out.splitlines()[1].startswith("www.example.test +1 ")
    shown = await ctl("cert", "show", "www.example.test")
    assert shown.code == 0
    assert max(map(len, (listed.out + shown.out).splitlines())) <= 80
    pem = (await ctl("cert", "pem", "example.test", "--part", "leaf")).out
    assert pem.startswith("-----BEGIN CERTIFICATE-----\n")

    key = tmp_path / "www.key"
    refused = await ctl("cert", "key", "www.example.test", "--to", str(key))
    assert (refused.code, key.exists(), "key.read" in refused.err) == (4, False, True)
    assert (await ctl("cert", "renew", "www.example.test")).code == 0
    history = (await ctl("cert", "history", "www.example.test")).out.splitlines()
    assert [line.split()[0] for line in history[1:]] == ["2", "1"]
    revoked = await ctl("cert", "revoke", "www.example.test", "--reason", "superseded", "--yes")
    assert revoked.code == 0, revoked.err
    assert (await ctl("cert", "ls", "--status", "revoked", "--json")).json[0]["domains"][0] == "www.example.test"


@asynccontextmanager
async def other_web_server(port: int) -> AsyncIterator[None]:
    """A web server that knows nothing of challenges."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnone")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield


@pytest.mark.parametrize("is_served", [True, False], ids=["another web server", "nothing listens"])
async def test_a_name_that_leads_elsewhere_is_told_with_what_was_seen_and_the_remedy(
    make_pebble: Any, new_daemon: Any, is_served: bool
) -> None:
    """The CA's words alone do not say who answered there, nor what to do."""
    pebble = await make_pebble()
    port, pebble.http01_port = pebble.http01_port, free_port()
    daemon = new_daemon(pebble, preflight=f'reachability = "off"\nhttp01_port = {port}')
    await daemon.start()
    ctl = shell(daemon)
    await daemon.account(pebble)
    if is_served:
        async with other_web_server(port):
            ended = await ctl("cert", "issue", "127.0.0.1")
        seen, remedy = "status 404", "another web server answers"
    else:
        ended = await ctl("cert", "issue", "127.0.0.1")
        seen, remedy = "connection refused", "Have something listen"
    assert (ended.code, ended.out) == (6, "")
    shown = await ctl("order", "show", "127.0.0.1")
    for told in (ended.err, shown.out):
        # A URL of the CA stays whole, so that it can be opened.
        assert max(len(line) for line in told.splitlines() if "http://" not in line) <= 80
        words = " ".join(told.split())
        assert "The CA says: " in words
        assert f"What was seen from here: NO 127.0.0.1:{port}: " in words
        assert seen in words
        assert f"Most likely remedy: {'Forward' if is_served else remedy}" in words
        assert remedy in words


async def test_watching_a_dns_01_order_shows_every_name_server(make_pebble: Any, make_daemon: Any) -> None:
    """Which of them lags is what one waits for."""
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    async with DevelopmentDns(
        ["example.org"], addresses=["127.0.0.1", "127.0.0.2"], keys={"acme-key": key}, default_address="127.0.0.1"
    ) as dns:
        pebble = await make_pebble(dns_server=f"127.0.0.1:{dns.port}")
        daemon = await make_daemon(pebble, dns=f'resolvers = ["127.0.0.1:{dns.port}"]\nauthoritative_port = {dns.port}')
        ctl = shell(daemon)
        await daemon.account(pebble)
        assert (await ctl("secret", "put", "dns/tsig", given=f"{key}\n")).code == 0
        config = {"server": "127.0.0.1", "port": dns.port, "tsig_key_name": "acme-key", "tsig_secret_path": "dns/tsig"}
        made = await daemon.ask("pki.dns_providers.create", name="dev", type="rfc2136", config=config)
        assert made.get("status") == "ready", made

        ordered = await ctl("cert", "issue", "*.example.org", "--no-wait")
        assert ordered.code == 0, ordered.err
        watched = await ctl("order", "watch", ordered.out.strip())
        assert watched.code == 0, watched.err
        for address in ("127.0.0.1", "127.0.0.2"):
            assert any(f"({address}" in line and "complete" in line for line in watched.err.splitlines()), watched.err
