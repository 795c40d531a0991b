"""Buses that hang, answers that do not fit, and secrets in the wrong member."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scaivaultd.demo.ca import Misbehaviour
from scaivaultd.demo.ca_misbehaviour import Status
from scaivaultd.demo.process import free_port, until

pytestmark = pytest.mark.system

INFO = b'INFO {"server_id":"x","version":"2.11.0","proto":1,"max_payload":1048576,"headers":true}\r\n'


@pytest.fixture
async def half_a_server() -> AsyncIterator[str]:
    """A NATS server that greets, answers one PING, and then says nothing any more."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        with contextlib.suppress(OSError):
            while (line := await reader.readline()) and not line.startswith(b"PING"):
                pass
            writer.write(b"PONG\r\n")
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_bus_that_hangs_does_not_stop_the_daemon(
    make_ca: Any, new_daemon: Any, launch: Any, half_a_server: str
) -> None:
    """http-01 and every order under way would go down with it."""
    local = await make_ca(free_port())
    daemon = new_daemon(local, url=half_a_server, nats=f'servers = ["{half_a_server}"]')
    process = launch(daemon)

    async def complains() -> bool:
        assert process.is_alive(), process.log[-2000:]
        return '"nats.not_serving_yet"' in process.log

    await until(complains, "the daemon says that it cannot serve yet", 60)
    assert process.is_alive()
    assert await process.stop() == 0


async def test_long_lists_come_in_pages_that_fit_the_bus(make_ca: Any, new_nats: Any, new_daemon: Any) -> None:
    """Forty orders of a hundred names are more than a message may hold; none may be lost between the pages."""
    server = new_nats()
    await server.start()
    local = await make_ca(free_port(), misbehaviour=Misbehaviour(always_valid=True))
    daemon = new_daemon(local, url=server.url, nats=f'servers = ["{server.url}"]')
    await daemon.start()
    account_id = await daemon.account(local)
    ids = []
    for number in range(40):
        names = [f"host-{each}.service-{number}.prod.example-company.test" for each in range(100)]
        body = {"account_id": account_id, "domains": names, "challenge_type": "http-01", "wait_seconds": 0}
        ids.append((await daemon.ask("pki.acme.issue", _timeout=30, **body))["order_id"])
    await asyncio.gather(*(daemon.finished(each, 90) for each in ids))
    found: list[str] = []
    cursor = None
    while cursor is not None or not found:
        page = await daemon.ask("pki.acme.orders.list", cursor=cursor, limit=500)
        assert len(json.dumps(page)) < 1_000_000
        found += [each["order_id"] for each in page["items"]]
        cursor = page["next_cursor"]
    assert found == ids


async def test_a_secret_in_the_wrong_member_is_not_repeated(make_ca: Any, make_daemon: Any) -> None:
    """To paste the MAC key where its reference belongs is the obvious mistake."""
    secret = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
    local = await make_ca(free_port())
    daemon = await make_daemon(local)
    eab = {"key_id": "kid", "hmac_key_path": secret}
    reply = await daemon.ask("pki.acme.accounts.create", name="z", provider="zerossl", eab=eab)
    assert reply["code"] == "invalid_request"
    assert secret not in json.dumps(reply)
    assert secret not in daemon.process.log


async def test_a_poisoned_problem_keeps_neither_list_nor_start_from_working(make_ca: Any, make_daemon: Any) -> None:
    """`"status": true` in a subproblem, stored and read again, by the real daemon across a restart."""
    local = await make_ca(free_port())
    daemon = await make_daemon(local)
    account_id = await daemon.account(local)
    members = {"subproblems": [{"type": "y", "status": True}]}
    local.ca.misbehaviour.script["newOrder"] = [
        Status(code=429, type="rateLimited", headers={"Retry-After": "600"}, members=members)
    ]
    order = await daemon.ask("pki.acme.issue", account_id=account_id, domains=["x.test.test"], challenge_type="http-01")

    async def is_set_back() -> bool:
        shown = await daemon.ask("pki.acme.orders.get", order_id=order["order_id"])
        return bool(shown.get("error"))

    await until(is_set_back, "the order shows its setback")
    assert await daemon.stop() == 0
    await daemon.start()
    page = await daemon.ask("pki.acme.orders.list")
    assert [each["order_id"] for each in page["items"]] == [order["order_id"]]
