"""Buses that hang, users of the bus who want more than is theirs, answers that do not fit, misplaced secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest

from scaivaultd.demo.ca import Misbehaviour
from scaivaultd.demo.ca_misbehaviour import Status
from scaivaultd.demo.process import free_port, until
from tests.fakes.raw_nats import raw, refusal

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
    trusted = '[[nats.ingress]]\nroot = "scaivault.v1"\nidentity = "trusted"'
    daemon = new_daemon(local, url=server.url, nats=f'servers = ["{server.url}"]\n{trusted}')
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


class Bus:
    """A daemon with two tokens that may do all there is, and one client that sees everything that goes by."""

    def __init__(
        self, daemon: Any, alice: dict[str, Any], mallory: dict[str, Any], seen: list[tuple[str, bytes]]
    ) -> None:
        self.daemon = daemon
        self.alice = alice
        self.mallory = mallory
        self.seen = seen
        self.url = json.loads((daemon.state_dir / "nats/client.json").read_text())["server"]
        self.root = f"scaivault.v1.as.{mallory['id']}"
        self.alices_root = f"scaivault.v1.as.{alice['id']}"
        self.alices_inbox = f"_INBOX_{alice['id']}"

    async def settle(self) -> None:
        """Wait until what was published has gone by, and has been answered."""
        await self.daemon.ask("sys.info")
        await self.daemon.ask("sys.info")


@pytest.fixture
async def bus(hanging_ca: Any, make_daemon: Any) -> Bus:
    daemon = await make_daemon(hanging_ca)
    rule = {"actions": ["*", "key.read"], "domains": ["**"]}
    await daemon.ask("policies.put", name="all", principals=["token:*"], rules=[rule])
    alice = await daemon.ask("tokens.create", name="alice", policies=["admin"])
    mallory = await daemon.ask("tokens.create", name="mallory", policies=["admin"])
    seen: list[tuple[str, bytes]] = []

    async def see(message: Any) -> None:
        seen.append((message.subject, message.data))

    await daemon.client.subscribe(">", cb=see)
    return Bus(daemon, alice, mallory, seen)


async def test_nobody_hears_what_is_not_theirs(bus: Bus) -> None:
    """Replies carry private keys, questions about logins carry tokens."""
    async with raw(bus.url, auth_token=bus.mallory["token"]) as client:
        for subject in (
            ">",
            "*.>",
            "_INBOX.>",
            "*",
            f"{bus.alices_inbox}.>",
            f"{bus.alices_inbox}.*",
            f"{bus.alices_inbox}.x queue",
            "_INBOX_scaivaultd.>",
            "scaivault.v1.>",
            f"{bus.alices_root}.>",
            f"{bus.root}.>",
            "scaivault.v1.as.*.>",
            "$SYS.>",
            "$SYS.REQ.USER.AUTH",
            "$JS.>",
            "$JS.API.>",
            "$JS.ACK.>",
            "$SRV.>",
            "_R_.>",
        ):
            said = await client.say(f"SUB {subject} 1\r\n".encode())
            assert b"Permissions Violation for Subscription" in said, subject


async def test_nobody_publishes_what_is_not_theirs(bus: Bus) -> None:
    """Requests in another's name, forged events, forged replies, and JetStream, which would deliver them."""
    async with raw(bus.url, auth_token=bus.mallory["token"]) as client:
        for subject in (
            f"{bus.alices_root}.auth.whoami",
            "scaivault.v1.auth.whoami",
            "scaivault.v1.tokens.create",
            "scaivault.v1.as.auth.whoami",
            "scaivault.events.certificate.issued.cert_1",
            f"{bus.alices_inbox}.x",
            f"_INBOX_{bus.mallory['id']}.x",
            "_INBOX_scaivaultd.x",
            "$SYS.REQ.USER.AUTH",
            "$SYS.REQ.SERVER.PING.CONNZ",
            "$SYS._INBOX.x.y",
            "$JS.API.INFO",
            "$JS.API.STREAM.DELETE.SCAIVAULT_EVENTS",
            "$JS.API.CONSUMER.CREATE.SCAIVAULT_EVENTS.x",
            "$JS.ACK.SCAIVAULT_EVENTS.x.1.1.1.1.1",
            "$SRV.PING",
            "$SRV.INFO",
        ):
            said = await client.publish(subject, reply=f"_INBOX_{bus.mallory['id']}.x")
            assert b"Permissions Violation for Publish" in said, subject
        await bus.settle()
    assert not [each for each in bus.seen if bus.alice["id"] in each[0] or each[0].startswith("scaivault.events")]


async def test_an_answer_goes_to_the_senders_own_inbox_only(bus: Bus) -> None:
    """The server lets everybody choose any reply subject; it is the daemon that would publish there."""
    replies = [
        "",
        f"{bus.alices_inbox}.x",
        "_INBOX.x.y",
        "_INBOX_scaivaultd.x",
        "scaivault.events.certificate.issued.cert_1",
        f"{bus.alices_root}.tokens.create",
        "scaivault.v1.tokens.create",
        "$JS.API.STREAM.DELETE.SCAIVAULT_EVENTS",
        "$SYS.REQ.USER.AUTH",
        "$SRV.PING",
        f"_INBOX_{bus.mallory['id']}",
        f"_INBOX_{bus.mallory['id']}x.y",
    ]
    async with raw(bus.url, auth_token=bus.mallory["token"]) as client:
        for number, reply in enumerate(replies):
            body = json.dumps({"name": f"forged-{number}"}).encode()
            assert await client.publish(f"{bus.root}.tokens.create", body, reply=reply) == b""
        for header in (b"Nats-Trace-Dest: scaivault.events.x.y", b"Nats-Trace-Dest: " + bus.alices_inbox.encode()):
            headers = b"NATS/1.0\r\n" + header + b"\r\n\r\n"
            await client.publish(f"{bus.root}.auth.whoami", reply="_INBOX.q", headers=headers)
    await bus.settle()
    subjects = [subject for subject, _ in bus.seen]
    assert subjects.count(f"{bus.root}.tokens.create") == len(replies)
    assert not set(subjects) & set(replies)
    assert not [each for each in subjects if each.startswith(("scaivault.events", bus.alices_inbox))]
    names = [each["name"] for each in (await bus.daemon.ask("tokens.list"))["items"]]
    assert sorted(names) == ["alice", "mallory"]
    assert '"nats.request_dropped"' in bus.daemon.process.log


async def test_nobody_silences_the_daemon_by_what_cannot_be_read(bus: Bus) -> None:
    """Reply subjects and headers are any bytes; one request of anybody must not stop those of all."""
    client = await nats.connect(bus.url, token=bus.alice["token"], inbox_prefix=bus.alices_inbox.encode())
    inbox = f"_INBOX_{bus.mallory['id']}"
    await bus.daemon.client.close()
    async with raw(bus.url, auth_token=bus.mallory["token"], pedantic=False) as hostile:
        for headers in (
            b"N",
            b"\xff\xfe",
            b"NATS/1.0",
            b"NATS/1.0 \xff\xff\xff\r\n\r\n",
            b"NATS/1.0 503\r\nX: \xff\r\n\r\n",
        ):
            await hostile.publish(f"{bus.root}.auth.whoami", reply=f"{inbox}.x", headers=headers)
        for reply in (b".\xff", b".a\x0bb", b".\x0c", b".\x00"):
            await hostile.say(b"PUB %s.auth.whoami %s%s 2\r\n{}\r\n" % (bus.root.encode(), inbox.encode(), reply))
    for _ in range(3):
        answer = await client.request(f"{bus.alices_root}.auth.whoami", b"{}", timeout=5)
        assert json.loads(answer.data)["principal"] == f"token:{bus.alice['id']}"
    await client.close()
    assert '"nats.disconnected"' not in bus.daemon.process.log
    assert bus.daemon.process.log.count('"nats.error"') == 1


async def test_headers_make_nobody_somebody_else(bus: Bus) -> None:
    """What other roots believe of a server is here but the word of a client."""
    client = await nats.connect(bus.url, token=bus.mallory["token"], inbox_prefix=f"_INBOX_{bus.mallory['id']}")
    forged = json.dumps({"acc": "$G", "user": "local"})
    headers = {"Nats-Request-Info": forged, "Authorization": f"Bearer {bus.alice['token']}", "Nats-Client-Info": forged}
    reply = await client.request(f"{bus.root}.auth.whoami", b"{}", timeout=5, headers=headers)
    assert json.loads(reply.data)["principal"] == f"token:{bus.mallory['id']}"
    await client.close()


async def test_the_login_of_the_client_file_cannot_ask_as_a_token(bus: Bus) -> None:
    """Its holder may do everything, under its own name: the audit log must not say that it was another."""
    login = json.loads((bus.daemon.state_dir / "nats/client.json").read_text())
    async with raw(bus.url, user=login["user"], **{"pass": login["password"]}) as client:
        assert b"Permissions Violation" in await client.publish(f"{bus.alices_root}.auth.whoami", reply="_INBOX.x")
        # Who asks about logins, and answers, is in another account.
        await client.say(b"SUB $SYS.REQ.USER.AUTH 1\r\n")
        assert await refusal(bus.url, auth_token=bus.alice["token"]) == ""
        assert await client.say(b"") == b""
    await bus.settle()
    assert not [body for subject, body in bus.seen if bus.alice["token"].encode() in body]


async def test_a_flood_of_wrong_tokens_does_not_keep_good_ones_out(bus: Bus) -> None:
    """On loopback all come from one address."""
    wrong = bus.alice["token"][:-7] + "1234567"
    assert all(await asyncio.gather(*(refusal(bus.url, auth_token=wrong) for _ in range(60))))
    assert await refusal(bus.url, auth_token=bus.mallory["token"]) == ""
    assert bus.daemon.process.log.count('"nats.login_refused"') < 10
