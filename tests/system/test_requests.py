"""What a caller may send and what it gets back: shapes, refusals, repetition, paging, discovery, secrecy."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nats.aio.msg import Msg

from scaivaultd.api import commands
from scaivaultd.demo.process import free_port, until
from scaivaultd.model.resources import SealedKey
from scaivaultd.store.backup_keys import new_identity, recipient_of
from scaivaultd.store.master_key import load_master_key
from scaivaultd.store.sealing import EnvelopeSealer

pytestmark = pytest.mark.system

ROOT = "scaivault.v1"
REFERENCE = Path(__file__).parents[2] / "docs/reference"
ULID = "[0-9a-hjkmnp-tv-z]{26}"
RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


# What the reference says a reply holds


def documented(command: str) -> tuple[set[str], dict[str, set[str]]]:
    """Members of a command's reply by the reference, and those of the objects in its lists."""
    (section,) = re.findall(
        rf"^## `{re.escape(command)}`\n(.*?)(?=^## |\Z)",
        (REFERENCE / "commands.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ", section.partition("\nReply:\n")[2], re.MULTILINE)
    assert rows, f"the reference shows no reply of {command}"
    nested = {
        name: set(re.findall(r"`(\w+)`", listed[1]))
        for name, kind in rows
        if (listed := re.match(r"list of object \((.*)\)", kind))
    }
    return {name for name, _ in rows}, nested


def documented_commands() -> list[str]:
    return re.findall(r"^## `([\w.]+)`$", (REFERENCE / "commands.md").read_text(), re.MULTILINE)


def documented_codes() -> set[str]:
    return set(re.findall(r"^## (\w+)$", (REFERENCE / "errors.md").read_text(), re.MULTILINE))


def assert_as_documented(command: str, reply: dict[str, Any]) -> None:
    members, nested = documented(command)
    assert set(reply) == members, command
    for name, inner in nested.items():
        for item in reply[name]:
            # What is kept as it was written, a rule or an audit record, shows what was said only.
            as_kept = command.startswith("policies.") or command == "audit.list"
            assert set(item) <= inner if as_kept else set(item) == inner, f"{command}: {name}"


# Asking with headers and raw bodies


async def send(daemon: Any, command: str, body: bytes, headers: dict[str, str] | None = None) -> Msg:
    assert daemon.client is not None
    message: Msg = await daemon.client.request(f"{ROOT}.{command}", body, timeout=10, headers=headers)
    return message


def problem_of(message: Msg) -> dict[str, Any]:
    """The problem document of a refusal, after checking everything that holds for all of them."""
    problem: dict[str, Any] = json.loads(message.data)
    headers = message.headers or {}
    assert headers.get("Content-Type") == "application/problem+json", problem
    assert headers["Nats-Service-Error-Code"] == problem["code"]
    assert headers["Nats-Service-Error"] == problem["title"] != ""
    assert headers["X-Request-Id"] == problem["request_id"]
    assert re.fullmatch(f"req_{ULID}", problem["request_id"])
    assert problem["type"] == f"urn:scaivault:error:{problem['code']}"
    assert problem["code"] in documented_codes()
    assert 400 <= problem["status"] <= 599
    assert problem["detail"]
    assert len(message.data) < 64 << 10, "a refusal must not echo the request"
    for trace in (b"Traceback", b'File \\"', b".py", b"Error:"):
        assert trace not in message.data
    return problem


async def refused(daemon: Any, command: str, body: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return problem_of(await send(daemon, command, raw, headers))


def new_account(ca: Any, name: str | None = None, **changes: Any) -> dict[str, Any]:
    body = {"name": name or f"a-{uuid.uuid4()}", "provider": "custom", "directory_url": ca.directory_url}
    return {**body, "wait_seconds": 0, **changes}


async def pending_account(daemon: Any, ca: Any, **changes: Any) -> str:
    account = await daemon.ask("pki.acme.accounts.create", **new_account(ca, **changes))
    assert account["status"] == "pending", account
    return str(account["id"])


def an_order(account_id: str, *domains: str, **changes: Any) -> dict[str, Any]:
    names = list(domains) or ["www.example.test"]
    return {"account_id": account_id, "domains": names, "challenge_type": "http-01", "wait_seconds": 0, **changes}


# A client of another making


class RawNats:
    """The NATS protocol by hand, as a program without any library of ours would speak it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._replies = 0
        self.unsolicited: list[tuple[str, dict[str, str], bytes]] = []

    @classmethod
    async def connect(cls, url: str) -> RawNats:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        word, _, info = (await reader.readline()).partition(b" ")
        assert word == b"INFO"
        assert json.loads(info)["headers"] is True
        options = {"verbose": False, "pedantic": True, "headers": True, "no_responders": True, "lang": "by-hand"}
        options |= {"version": "0", "protocol": 1, "user": parts.username, "pass": parts.password}
        client = cls(reader, writer)
        await client._send(f"CONNECT {json.dumps(options)}")
        await client._send("SUB inbox.by.hand.* 1")
        await client._send("PING")
        assert await reader.readline() == b"PONG\r\n"
        return client

    async def subscribe(self, subject: str) -> None:
        await self._send(f"SUB {subject} 2")

    async def request(
        self, subject: str, body: bytes, headers: dict[str, str] | None = None
    ) -> tuple[dict[str, str], bytes]:
        self._replies += 1
        inbox = f"inbox.by.hand.{self._replies}"
        if headers is None:
            await self._send(f"PUB {subject} {inbox} {len(body)}", body)
        else:
            lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            head = f"NATS/1.0\r\n{lines}\r\n".encode()
            await self._send(f"HPUB {subject} {inbox} {len(head)} {len(head) + len(body)}", head + body)
        while True:
            arrived_at, arrived_headers, data = await self.message()
            if arrived_at == inbox:
                return arrived_headers, data
            self.unsolicited.append((arrived_at, arrived_headers, data))

    async def message(self) -> tuple[str, dict[str, str], bytes]:
        """The next MSG or HMSG; answers the server's PINGs in between."""
        while True:
            line = (await self._reader.readline()).decode()
            match line.split():
                case ["PING"]:
                    await self._send("PONG")
                case ["MSG", subject, *_, size]:
                    return subject, {}, (await self._payload(int(size)))
                case ["HMSG", subject, *_, head, size]:
                    payload = await self._payload(int(size))
                    return subject, _headers(payload[: int(head)]), payload[int(head) :]
                case [("+OK" | "INFO"), *_]:
                    pass
                case _:
                    raise AssertionError(f"the server says {line!r}")

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def _payload(self, size: int) -> bytes:
        return (await self._reader.readexactly(size + 2))[:-2]

    async def _send(self, line: str, payload: bytes | None = None) -> None:
        self._writer.write(line.encode() + b"\r\n" + (b"" if payload is None else payload + b"\r\n"))
        await self._writer.drain()


def _headers(block: bytes) -> dict[str, str]:
    status, *lines = block.decode().rstrip("\r\n").split("\r\n")
    assert status == "NATS/1.0"
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
async def by_hand() -> AsyncIterator[Any]:
    """Connects clients of another making."""
    clients: list[RawNats] = []

    async def connect(daemon: Any) -> RawNats:
        connection = json.loads((daemon.state_dir / "nats/client.json").read_text())
        clients.append(await RawNats.connect(connection["url"]))
        return clients[-1]

    yield connect
    for client in clients:
        await client.close()


async def test_a_client_of_another_making_gets_a_certificate(make_pebble: Any, make_daemon: Any, by_hand: Any) -> None:
    """The contract is the NATS protocol and JSON, not a library: services are written in any language."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    client = await by_hand(daemon)
    await client.subscribe("scaivault.events.>")

    async def ask(command: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
        replied, data = await client.request(f"{ROOT}.{command}", json.dumps(body).encode(), headers)
        assert replied["Content-Type"] == "application/json", data
        assert re.fullmatch(f"req_{ULID}", replied["X-Request-Id"])
        return json.loads(data)

    account = await ask(
        "pki.acme.accounts.create", name="by hand", provider="custom", directory_url=pebble.directory_url
    )
    key = {"IDEMPOTENCY-KEY": "by-hand-1"}
    request = {"account_id": account["id"], "domains": ["raw.example.test"], "challenge_type": "http-01"}
    order = await ask("pki.acme.issue", key, **request)
    assert (await ask("pki.acme.issue", key, **request))["order_id"] == order["order_id"]
    async with asyncio.timeout(30):
        while order["status"] in ("pending", "ready", "processing"):
            await asyncio.sleep(0.05)
            order = await ask("pki.acme.orders.get", order_id=order["order_id"])
    assert order["status"] == "valid", order
    pem = await ask("pki.certificates.pem", id=order["certificate_id"])
    assert pem["pem"].startswith("-----BEGIN CERTIFICATE-----")

    refusal, data = await client.request(f"{ROOT}.pki.certificates.get", b'{"id":"cert_none"}')
    assert refusal["Nats-Service-Error-Code"] == json.loads(data)["code"] == "not_found"
    async with asyncio.timeout(10):
        while len(client.unsolicited) < 2:
            client.unsolicited.append(await client.message())
    (_, created, _), (subject, issued, body) = client.unsolicited
    assert (created["ce-type"], issued["ce-type"]) == ("account.created", "certificate.issued")
    assert subject == f"scaivault.events.certificate.issued.{order['certificate_id']}"
    assert json.loads(body)["order_id"] == order["order_id"]


# Shapes


async def test_every_command_answers_as_the_reference_says(make_pebble: Any, make_daemon: Any) -> None:
    """Callers are written from the reference: no member may be missing, and none undocumented."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble, dns='resolvers = ["127.0.0.1:9"]')
    seen: dict[str, Any] = {}

    async def ask(command: str, **body: Any) -> Any:
        message = await send(daemon, command, json.dumps(body).encode() if body else b"")
        assert (message.headers or {})["Content-Type"] == "application/json", message.data
        seen[command] = json.loads(message.data)
        assert_as_documented(command, seen[command])
        return seen[command]

    account = await ask("pki.acme.accounts.create", **new_account(pebble, "shapes", wait_seconds=10))
    assert re.fullmatch(f"acme_{ULID}", account["id"])
    assert account.items() >= {
        "name": "shapes", "provider": "custom", "environment": "production", "email": None, "status": "valid"
    }.items()  # fmt: skip
    assert await ask("pki.acme.accounts.get", id=account["id"]) == account
    assert (await ask("pki.acme.accounts.list"))["items"] == [account]
    names = ["WWW.Example.test.", "www.example.test", "bücher.test"]
    order = await ask("pki.acme.issue", **an_order(account["id"], *names, wait_seconds=10))
    assert re.fullmatch(f"acme_order_{ULID}", order["order_id"])
    assert order["status"] in ("pending", "ready", "processing", "valid")
    assert order["domains"] == ["www.example.test", "xn--bcher-kva.test"]
    assert {(each["domain"], each["type"]) for each in order["challenges"]} == {
        (name, "http-01") for name in order["domains"]
    }
    for challenge in order["challenges"]:
        assert challenge["key_authorization"] == f"{challenge['token']}.{account['key_thumbprint']}"
    await daemon.finished(order["order_id"])
    order = await ask("pki.acme.orders.get", order_id=order["order_id"])
    assert order["status"] == "valid"
    assert (await ask("pki.acme.orders.list"))["items"] == [order]
    certificate = await ask("pki.certificates.get", id=order["certificate_id"])
    assert re.fullmatch(f"cert_{ULID}", certificate["id"])
    assert re.fullmatch("([0-9A-F]{2}:)+[0-9A-F]{2}", certificate["serial_number"])
    assert (await ask("pki.certificates.list"))["items"] == [certificate]
    assert (await ask("pki.certificates.list", domain="BÜCHER.test."))["items"] == [certificate]
    assert (await ask("pki.certificates.list", domain="other.test"))["items"] == []
    parts = [
        (await ask("pki.certificates.pem", id=certificate["id"], part=part))["pem"].count("-----BEGIN CERTIFICATE-----")
        for part in ("leaf", "chain", "fullchain")
    ]
    assert parts[0] == 1
    assert parts[1] >= 1
    assert parts[2] == parts[0] + parts[1]
    await ask("pki.certificates.key", id=certificate["id"])
    assert (await ask("sys.health"))["status"] == "ok"
    assert (await ask("sys.info"))["challenge_types"] == ["dns-01", "http-01", "tls-alpn-01"]
    await ask_about_dns(ask)
    await ask_about_hosts(ask, account, certificate)
    await ask_about_life(daemon, ask, account, certificate)
    await ask_about_access(ask)
    for moment in (account["created_at"], order["created_at"], order["not_after"], certificate["not_before"]):
        assert RFC_3339.fullmatch(moment), moment
    # A daemon that is not sealed has no answer to it but an error.
    assert sorted([*seen, "sys.unseal"]) == sorted(documented_commands())


async def ask_about_hosts(
    ask: Callable[..., Awaitable[Any]], account: dict[str, Any], certificate: dict[str, Any]
) -> None:
    """What a host tells of itself, what was told meanwhile, and what an administrator does on a quiet day."""
    confirmed = await ask("pki.certificates.confirm", id=certificate["id"], host="web1", version=1, where="/etc/tls")
    assert (confirmed["host"], confirmed["is_current"]) == ("web1", True)
    assert (await ask("pki.certificates.deployments", id=certificate["id"]))["items"] == [confirmed]
    assert (await ask("pki.certificates.forget_deployment", id=certificate["id"], host="web1"))["deleted"]
    events = await ask("events.list", after=0, type="certificate.*", resource_id=certificate["id"])
    assert [each["type"] for each in events["items"]] == ["certificate.issued", "certificate.deployed"]
    assert (await ask("events.list", after=events["next_after"], type="certificate.*"))["items"] == []
    imported = {**commands.IMPORT_CERTIFICATE.example, "account_id": account["id"], "auto_renew": False}
    assert (await ask("pki.certificates.import", **imported))["domains"] == ["www.example.org"]
    backup = await ask("sys.backup", recipient=recipient_of(new_identity()))
    assert backup["documents"] > 0
    assert (await ask("sys.resume")) == {"was_paused": False, "restored_from": None}
    assert (await ask("sys.reload"))["ok"]


async def ask_about_access(ask: Callable[..., Awaitable[Any]]) -> None:
    """Who may do what: a policy, a token from its making to its end, the log of all that, and the master key."""
    rules = [{"actions": ["cert.read"], "domains": ["*.example.test"]}]
    policy = await ask("policies.put", name="shapes", principals=["token:shapes"], rules=rules)
    assert await ask("policies.get", name="shapes") == policy
    assert policy in (await ask("policies.list"))["items"]
    token = await ask("tokens.create", name="shapes", policies=["viewer"])
    assert re.fullmatch("scvt_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}", token["token"])
    shown = {name: value for name, value in token.items() if name != "token"}
    assert await ask("tokens.get", id="shapes") == shown
    assert (await ask("tokens.list"))["items"] == [shown]
    assert (await ask("tokens.rotate", id=token["id"]))["token"] != token["token"]
    decision = await ask("auth.can_i", action="cert.read", domains=["a.example.test"], principal="token:shapes")
    assert decision["allowed"], decision
    assert (await ask("auth.whoami"))["policies"]
    assert (await ask("tokens.revoke", id=token["id"]))["status"] == "revoked"
    assert (await ask("policies.delete", name="shapes")) == {"name": "shapes"}
    records = (await ask("audit.list", action="token.revoke"))["items"]
    assert {each["result"] for each in records} == {"begun", "ok"}
    assert (await ask("audit.verify"))["is_sound"]
    before = await ask("sys.master_key.get")
    assert not before["is_sealed"]
    assert (await ask("sys.master_key.rotate"))["rotation"]["from_kid"] == before["kid"]


async def ask_about_life(
    daemon: Any, ask: Callable[..., Awaitable[Any]], account: dict[str, Any], certificate: dict[str, Any]
) -> None:
    """What follows after an issue: other versions, revocation, many at once, and the account to its end."""
    order = await ask("pki.acme.issue", **an_order(account["id"], "cancelled.test", wait_seconds=0))
    assert (await ask("pki.acme.orders.cancel", order_id=order["order_id"]))["status"] == "deactivated"
    renewed = await ask("pki.certificates.renew", id=certificate["id"])
    assert (await daemon.finished(renewed["order_id"]))["version"] == 2
    listed = (await ask("pki.certificates.versions", id=certificate["id"]))["items"]
    assert [each["version"] for each in listed] == [1, 2]
    assert (await ask("pki.certificates.update", id=certificate["id"], auto_renew=False))["auto_renew"] is False
    revocation = await ask("pki.revoke", serial_number=certificate["serial_number"], reason="superseded")
    assert (revocation["status"], revocation["version"]) == ("done", 1)
    assert await ask("pki.revocations.get", id=revocation["id"]) == revocation
    bulk = await ask("pki.bulk_renewals.create", certificate_ids=[certificate["id"]], per_minute=0.01, note="trial")
    assert bulk["total"] == 1
    assert [each["id"] for each in (await ask("pki.bulk_renewals.list"))["items"]] == [bulk["id"]]
    assert (await ask("pki.bulk_renewals.get", id=bulk["id"]))["note"] == "trial"
    assert (await ask("pki.bulk_renewals.cancel", id=bulk["id"]))["status"] in ("cancelled", "finished")
    assert (await ask("pki.acme.limits"))["items"] == []
    assert (await ask("pki.acme.accounts.update", id=account["id"], name="renamed"))["name"] == "renamed"
    rotated = await ask("pki.acme.accounts.rotate_key", id=account["id"])
    assert rotated["key_thumbprint"] != account["key_thumbprint"]
    assert (await ask("pki.acme.accounts.deactivate", id=account["id"], confirm="renamed"))["status"] == "deactivated"


async def ask_about_dns(ask: Callable[..., Awaitable[Any]]) -> None:
    """The commands around dns-01, with a name server that does not exist."""
    secret = await ask("secrets.put", path="dns/tsig", value="c2VjcmV0")
    assert secret["version"] == 1
    config = {"server": "127.0.0.1", "port": 9, "tsig_key_name": "k", "tsig_secret_path": "dns/tsig", "max_retries": 0}
    provider = await ask("pki.dns_providers.create", name="dns", type="rfc2136", zones=["example.test"], config=config)
    assert re.fullmatch(f"dnsp_{ULID}", provider["id"])
    assert await ask("pki.dns_providers.get", id="dns") == provider
    assert (await ask("pki.dns_providers.list"))["items"] == [provider]
    assert (await ask("pki.dns_providers.update", id=provider["id"], zones=["a.test"]))["zones"] == ["a.test"]
    tested = await ask("pki.dns_providers.test", id="dns", timeout_seconds=1)
    assert (tested["ok"], tested["steps"][-1]["status"]) == (False, "failed")
    assert (await ask("pki.dns_providers.trace", name="*.a.test"))["problems"]
    assert [each["used_by"] for each in (await ask("secrets.list"))["items"]] == [["dns"]]
    assert (await ask("pki.dns_providers.delete", id="dns"))["deleted"]
    assert (await ask("secrets.delete", path="dns/tsig"))["deleted"]


@pytest.mark.parametrize("body", [b"", b"{}", b" {} \n"])
async def test_no_body_stands_for_an_empty_request(waiting_daemon: Any, body: bytes) -> None:
    """`nats request scaivault.v1.sys.info ''` is what people type first."""
    message = await send(waiting_daemon, "sys.info", body)
    assert (message.headers or {})["Content-Type"] == "application/json"


# Refusals

LONG = "x" * 100_000
GET = "pki.acme.orders.get"
CREATE = "pki.acme.accounts.create"
NO_REQUEST = {
    "not JSON": b"{not json",
    "nothing of text": b"\x00\xff\xfe\x80" * 64,
    "NUL bytes": b"\x00" * 100,
    "broken UTF-8": b'{"order_id":"\xff\xfe"}',
    "half a surrogate pair": rb'{"order_id":"\ud800"}',
    "a list": b"[]",
    "null": b"null",
    "a text": b'"acme_order"',
    "a number": b"1",
    "two values": b"{} {}",
    "1 MiB of rubbish": bytes(range(1, 256)) * 4100,
    "1 MiB of JSON": json.dumps({"order_id": "x" * (1 << 20)}).encode(),
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 40_000,
    "deep inside": b'{"order_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep in an unknown member": b'{"order_id":"x","more":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a number beyond all": b'{"limit":1' + b"0" * 5000 + b"}",
}


@pytest.mark.parametrize("body", NO_REQUEST.values(), ids=NO_REQUEST.keys())
async def test_what_is_no_request_is_refused_as_one(waiting_daemon: Any, body: bytes) -> None:
    """Anybody can publish anything on the subject; the answer is the same kind of refusal for all of it."""
    for command in (GET, "pki.acme.issue", "pki.certificates.list"):
        problem = await refused(waiting_daemon, command, body)
        assert (problem["code"], problem["status"]) == ("invalid_request", 400)


ISSUE_FIELDS = {
    "a wrong type": ({"domains": "a.example.test"}, "/domains", "invalid_value"),
    "a wrong type in a list": ({"domains": ["a.example.test", 1]}, "/domains/1", "invalid_value"),
    "an unknown challenge type": ({"challenge_type": "dns-02"}, "/challenge_type", "invalid_value"),
    "an unknown key type": ({"key_type": "ed25519"}, "/key_type", "invalid_value"),
    "too long a wait": ({"wait_seconds": 61}, "/wait_seconds", "invalid_value"),
    "a negative wait": ({"wait_seconds": -0.1}, "/wait_seconds", "invalid_value"),
    "a wait in words": ({"wait_seconds": "2"}, "/wait_seconds", "invalid_value"),
    "no names": ({"domains": []}, "/domains", "missing_field"),
    "101 names": ({"domains": [f"h{n}.example.test" for n in range(101)]}, "/domains", "too_many_names"),
    "1001 names": ({"domains": ["a.example.test"] * 1001}, "/domains", "invalid_value"),
    "a name without end": ({"domains": [LONG]}, "/domains/0", "invalid_value"),
    "a null": ({"account_id": None}, "/account_id", "invalid_value"),
}


@pytest.mark.parametrize(("change", "pointer", "code"), ISSUE_FIELDS.values(), ids=ISSUE_FIELDS.keys())
async def test_a_wrong_member_is_pointed_at(
    waiting_daemon: Any, waiting_ca: Any, change: dict[str, Any], pointer: str, code: str
) -> None:
    """A caller learns which member to correct, by a pointer a program can follow."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    problem = await refused(waiting_daemon, "pki.acme.issue", {**an_order(account_id), **change})
    assert problem["code"] == "invalid_request"
    ((found),) = problem["errors"]
    assert (found["pointer"], found["code"]) == (pointer, code)


@pytest.mark.parametrize("limit", [0, -1, 501, 1.5, "10", True, 2**70])
@pytest.mark.parametrize("command", ["pki.acme.accounts.list", "pki.acme.orders.list", "pki.certificates.list"])
async def test_a_limit_outside_its_bounds_is_refused(waiting_daemon: Any, command: str, limit: Any) -> None:
    """A page of everything would hold the store; a page of nothing would never end."""
    problem = await refused(waiting_daemon, command, {"limit": limit})
    assert problem["errors"][0]["pointer"] == "/limit"


async def test_an_unknown_member_is_refused_with_the_nearest_known(waiting_daemon: Any) -> None:
    """A misspelt option that is silently ignored costs a day; the hint costs nothing."""
    problem = await refused(waiting_daemon, "pki.acme.issue", {"account_id": "a", "domain": ["x.test"]})
    (error,) = problem["errors"]
    assert (error["pointer"], error["code"]) == ("/domain", "unknown_field")
    assert "did you mean 'domains'" in error["detail"]
    problem = await refused(
        waiting_daemon, CREATE, {"name": "a", "provider": "google", "eab": {"key_id": "k", "hmac": "x"}}
    )
    assert (problem["errors"][0]["pointer"], problem["errors"][0]["code"]) == ("/eab/hmac", "unknown_field")


async def test_a_missing_member_is_named(waiting_daemon: Any) -> None:
    """The pointer is where the member should stand."""
    problem = await refused(waiting_daemon, "pki.acme.issue", {"account_id": "a", "challenge_type": "http-01"})
    (error,) = problem["errors"]
    assert (error["pointer"], error["code"]) == ("/domains", "missing_field")
    problem = await refused(waiting_daemon, GET, b"")
    assert problem["errors"][0]["pointer"] == "/order_id"


STRANGE_IDS = {
    "unknown": "acme_order_00000000000000000000000000",
    "empty": "",
    "of another kind": "cert_00000000000000000000000000",
    "a path": "../../meta/node",
    "with a slash": "a/b",
    "dot": ".",
    "dots": "..",
    "dots and more": "a..b",
    "a wildcard": "*",
    "all below": ">",
    "with a bar": "a|b",
    "with a NUL": "a\x00b",
    "with a line end": "a\r\nb",
    "letters beyond ASCII": "acme_é",
    "digits beyond ASCII": "acme_٣",
    "letters beyond the basic plane": "acme_𝟘𐐀",
    "SQL": "' OR 1=1 --",
    "long": LONG,
    "just too long": "a" * 201,
    "long as may be": "a" * 200,
    "the store's longest": "a" * 250,
}


@pytest.mark.parametrize("strange", STRANGE_IDS.values(), ids=STRANGE_IDS.keys())
async def test_any_text_may_be_asked_for_as_an_id(waiting_daemon: Any, strange: str) -> None:
    """What is not there is not found, whatever it looks like; it is never `internal` and never something else."""
    for command, member in {
        GET: "order_id",
        "pki.acme.accounts.get": "id",
        "pki.certificates.get": "id",
        "pki.certificates.pem": "id",
        "pki.certificates.key": "id",
    }.items():
        problem = await refused(waiting_daemon, command, {member: strange})
        assert problem["code"] == "not_found", command
    problem = await refused(waiting_daemon, "pki.acme.issue", an_order(strange))
    assert problem["code"] == "not_found"


@pytest.mark.parametrize("strange", STRANGE_IDS.values(), ids=STRANGE_IDS.keys())
async def test_any_text_may_stand_in_a_filter_or_cursor(waiting_daemon: Any, strange: str) -> None:
    """Filters and cursors come from callers too: a page, or a refusal, and nothing of other kinds in it."""
    for command in ("pki.acme.accounts.list", "pki.acme.orders.list", "pki.certificates.list"):
        message = await send(waiting_daemon, command, json.dumps({"cursor": strange}).encode())
        if (message.headers or {})["Content-Type"] == "application/json":
            assert_as_documented(command, json.loads(message.data))
        else:
            assert problem_of(message)["code"] == "invalid_request"
    page = await waiting_daemon.ask("pki.acme.orders.list", account_id=strange)
    assert page == {"items": [], "next_cursor": None}
    message = await send(waiting_daemon, "pki.certificates.list", json.dumps({"domain": strange}).encode())
    if (message.headers or {})["Content-Type"] != "application/json":
        assert problem_of(message)["code"] == "invalid_request"


BAD_NAMES = {
    "": "empty",
    "   ": "empty",
    "a..example.test": "empty_label",
    ".example.test": "empty_label",
    "-a.example.test": "bad_hyphen",
    "a-.example.test": "bad_hyphen",
    "ab--c.example.test": "bad_hyphen",
    "a_b.example.test": "bad_character",
    "a b.example.test": "bad_character",
    "a\x00b.example.test": "bad_character",
    f"{'a' * 64}.example.test": "label_too_long",
    f"{'a.' * 130}test": "name_too_long",
    "a.*.example.test": "bad_wildcard",
    "*.*.example.test": "bad_wildcard",
    "a*.example.test": "bad_wildcard",
    "https://example.test": "not_a_name",
    "example.test:443": "not_a_name",
    "10.0.0.0/8": "not_a_name",
    "1.2.3": "not_a_name",
    "xn--a.example.test": "bad_idn",
    "\u200d.example.test": "bad_idn",
}


async def test_every_bad_name_is_refused_with_its_own_reason(waiting_daemon: Any, waiting_ca: Any) -> None:
    """All are told at once, each by its place in the request, and the good ones among them are not accused."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    names = ["good.example.test", *BAD_NAMES, "bücher.example.test"]
    problem = await refused(waiting_daemon, "pki.acme.issue", an_order(account_id, *names))
    assert problem["code"] == "invalid_request"
    found = {error["pointer"]: error["code"] for error in problem["errors"]}
    assert found == {f"/domains/{place}": code for place, code in enumerate(BAD_NAMES.values(), 1)}
    assert all(error["detail"] for error in problem["errors"])


async def test_names_without_a_fitting_challenge_are_refused(waiting_daemon: Any, waiting_ca: Any) -> None:
    """A wildcard needs dns-01, and dns-01 needs a provider: both are told before a CA is asked."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    wildcard = an_order(account_id, "example.test", "*.example.test")
    problem = await refused(waiting_daemon, "pki.acme.issue", wildcard)
    assert (problem["code"], problem["status"]) == ("unsupported_challenge", 422)
    assert [error["pointer"] for error in problem["errors"]] == ["/domains/1"]
    request = {**an_order(account_id), "challenge_type": "dns-01"}
    problem = await refused(waiting_daemon, "pki.acme.issue", request)
    assert problem["code"] == "unsupported_challenge"
    assert [(error["pointer"], error["code"]) for error in problem["errors"]] == [
        ("/challenge_type", "no_dns_provider")
    ]


async def test_the_pointer_at_a_wildcard_counts_as_the_caller_does(waiting_daemon: Any, waiting_ca: Any) -> None:
    """A pointer is into the request as sent, duplicates included."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    wildcard = an_order(account_id, "example.test", "EXAMPLE.test", "*.example.test")
    problem = await refused(waiting_daemon, "pki.acme.issue", wildcard)
    assert [error["pointer"] for error in problem["errors"]] == ["/domains/2"]


HMAC = base64.urlsafe_b64encode(b"a mac key of thirty-two bytes ...").decode()
BAD_ACCOUNTS = {
    "a discontinued CA": ({"provider": "buypass"}, "/provider", "discontinued: orders ended on 15 October 2025"),
    "no such environment": (
        {"provider": "zerossl", "environment": "staging", "eab": {"key_id": "k", "hmac_key": HMAC}},
        "/environment",
        "never asked in production instead",
    ),
    "zerossl without EAB": ({"provider": "zerossl"}, "/eab", "external account binding"),
    "google without EAB": ({"provider": "google"}, "/eab", "external account binding"),
    "a directory for a preset": ({"provider": "letsencrypt", "directory_url": "https://x.test/"}, "/directory_url", ""),
    "no directory": ({"provider": "custom"}, "/directory_url", "needs the directory_url"),
    "plain http": ({"provider": "custom", "directory_url": "http://localhost:1/"}, "/directory_url", "https only"),
    "an inner address": ({"provider": "custom", "directory_url": "https://127.0.0.1:9/"}, "/directory_url", "private"),
    "an inner name": ({"provider": "custom", "directory_url": "https://localhost:9/"}, "/directory_url", "private"),
    "a link-local address": (
        {"provider": "custom", "directory_url": "https://169.254.169.254/latest"}, "/directory_url", "private"
    ),
    "an inner address in IPv6": (
        {"provider": "custom", "directory_url": "https://[::ffff:127.0.0.1]:9/"}, "/directory_url", "private"
    ),
    "a user in the URL": ({"provider": "custom", "directory_url": "https://a:b@x.test/"}, "/directory_url", ""),
    "a NUL in the URL": ({"provider": "custom", "directory_url": "https://x.test/\x00"}, "/directory_url", ""),
    "two addresses": ({"provider": "letsencrypt", "email": "a@x.test,b@x.test"}, "/email", "one plain address"),
    "no name": ({"name": "", "provider": "letsencrypt"}, "/name", ""),
    "a line end in the name": ({"name": "a\nb", "provider": "letsencrypt"}, "/name", ""),
    "no EAB key": ({"provider": "google", "eab": {"key_id": "k"}}, "/eab", "exactly one"),
    "two EAB keys": (
        {"provider": "google", "eab": {"key_id": "k", "hmac_key": HMAC, "hmac_key_path": "cred:x"}},
        "/eab",
        "exactly one",
    ),
    "no base64": ({"provider": "google", "eab": {"key_id": "k", "hmac_key": "Zm9!"}}, "/eab/hmac_key", "base64"),
    "a file not allowed": (
        {"provider": "google", "eab": {"key_id": "k", "hmac_key_path": "file:/etc/shadow"}}, "/eab/hmac_key_path", ""
    ),
    "no PEM": ({"provider": "letsencrypt", "ca_certificates_pem": "x"}, "/ca_certificates_pem", "PEM"),
}  # fmt: skip


@pytest.mark.parametrize(("request_", "pointer", "text"), BAD_ACCOUNTS.values(), ids=BAD_ACCOUNTS.keys())
async def test_an_account_that_cannot_work_is_refused_before_any_ca_is_asked(
    waiting_daemon: Any, request_: dict[str, Any], pointer: str, text: str
) -> None:
    """Nothing is written down and nobody is asked; the reason says what to do instead."""
    before = await waiting_daemon.ask("pki.acme.accounts.list", limit=500)
    problem = await refused(waiting_daemon, CREATE, {"name": "refused", **request_})
    assert problem["code"] == "invalid_request"
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert text in problem["detail"]
    assert "Zm9!" not in json.dumps(problem)
    assert await waiting_daemon.ask("pki.acme.accounts.list", limit=500) == before


async def test_control_characters_in_an_address_are_refused(waiting_daemon: Any, waiting_ca: Any) -> None:
    """What no mail system takes should not reach a CA as a contact."""
    problem = await refused(waiting_daemon, CREATE, new_account(waiting_ca, email="a\x00b@example.test"))
    assert problem["errors"][0]["pointer"] == "/email"


async def test_a_request_without_a_reply_subject_is_done_all_the_same(waiting_daemon: Any, waiting_ca: Any) -> None:
    """Somebody will publish instead of asking; it must neither crash a task nor stop the endpoint."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    await waiting_daemon.client.publish(f"{ROOT}.pki.acme.issue", json.dumps(an_order(account_id)).encode())
    await waiting_daemon.client.publish(f"{ROOT}.pki.acme.issue", b"rubbish")
    await until_orders(waiting_daemon, account_id, 1)


async def orders_of(daemon: Any, account_id: str, **where: Any) -> list[str]:
    page = await daemon.ask("pki.acme.orders.list", account_id=account_id, limit=500, **where)
    return [order["order_id"] for order in page["items"]]


async def until_orders(daemon: Any, account_id: str, count: int) -> None:
    async def are_there() -> bool:
        return len(await orders_of(daemon, account_id)) >= count

    await until(are_there, f"{count} orders", 10)


# Repetition


async def test_an_idempotency_key_makes_a_repetition_the_first_request(waiting_daemon: Any, waiting_ca: Any) -> None:
    """A caller whose answer was lost asks again, and pays for one certificate only."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = await waiting_daemon.ask("pki.acme.issue", _headers=key, **an_order(account_id))
    again = await waiting_daemon.ask("pki.acme.issue", _headers=key, **an_order(account_id, wait_seconds=0.1))
    assert again["order_id"] == first["order_id"]
    for other in (an_order(account_id, "b.example.test"), an_order(account_id, key_type="rsa-2048")):
        problem = await refused(waiting_daemon, "pki.acme.issue", other, key)
        assert (problem["code"], problem["status"]) == ("conflict", 409)
    # Without a key it is the same order too, as long as that is under way.
    without = await waiting_daemon.ask("pki.acme.issue", **an_order(account_id))
    assert await orders_of(waiting_daemon, account_id) == [first["order_id"]] == [without["order_id"]]


async def test_ten_repetitions_at_once_make_one_order(waiting_daemon: Any, waiting_ca: Any) -> None:
    """A retrying caller behind a load balancer repeats itself within milliseconds."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    key = {"idempotency-key": str(uuid.uuid4())}
    answers = await asyncio.gather(
        *(waiting_daemon.ask("pki.acme.issue", _headers=key, **an_order(account_id)) for _ in range(10))
    )
    assert len({answer["order_id"] for answer in answers}) == 1
    assert await orders_of(waiting_daemon, account_id) == [answers[0]["order_id"]]


@pytest.mark.parametrize("key", ["two words", "x" * 256, "schlüssel"])
async def test_an_idempotency_key_that_is_none_is_refused(waiting_daemon: Any, waiting_ca: Any, key: str) -> None:
    """To take it as absent would break the very promise it asks for."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    problem = await refused(waiting_daemon, "pki.acme.issue", an_order(account_id), {"Idempotency-Key": key})
    assert problem["code"] == "invalid_request"
    assert await orders_of(waiting_daemon, account_id) == []


async def test_the_same_account_request_finds_the_same_account(waiting_daemon: Any, waiting_ca: Any) -> None:
    """Set-up scripts run many times; ten of them at once still make one account."""
    body = new_account(waiting_ca, email="ops@example.test")
    answers = await asyncio.gather(*(waiting_daemon.ask(CREATE, **body) for _ in range(10)))
    assert len({answer.get("id") for answer in answers}) == 1
    page = await waiting_daemon.ask("pki.acme.accounts.list", limit=500)
    assert [account["name"] for account in page["items"]].count(body["name"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"email": "other@example.test"},
        {"directory_url": "/other"},
        {"eab": {"key_id": "k", "hmac_key": HMAC}},
        {"environment": "staging"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_another_account_of_the_same_name_is_a_conflict(
    waiting_daemon: Any, waiting_ca: Any, change: dict[str, Any]
) -> None:
    """To answer with an account that was not described would issue from the wrong CA."""
    body = new_account(waiting_ca)
    account = await waiting_daemon.ask(CREATE, **body)
    if "directory_url" in change:
        change = {"directory_url": waiting_ca.directory_url + change["directory_url"]}
    problem = await refused(waiting_daemon, CREATE, {**body, **change})
    assert problem["code"] == "conflict"
    assert account["id"] in problem["detail"]


# Lists


async def test_paging_loses_and_repeats_nothing(waiting_daemon: Any, waiting_ca: Any) -> None:
    """Twenty-five orders by tens, while new ones arrive behind them."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    other = await pending_account(waiting_daemon, waiting_ca)
    made = []
    for number in range(25):
        order = await waiting_daemon.ask("pki.acme.issue", **an_order(account_id, f"h{number}.example.test"))
        made.append(order["order_id"])
    await waiting_daemon.ask("pki.acme.issue", **an_order(other))
    for where in ({}, {"status": "pending"}):
        pages: list[list[str]] = []
        cursor = None
        while cursor is not None or not pages:
            body = {"account_id": account_id, "limit": 10, **where}
            page = await waiting_daemon.ask("pki.acme.orders.list", **body, cursor=cursor)
            pages.append([order["order_id"] for order in page["items"]])
            cursor = page["next_cursor"]
        assert [len(page) for page in pages] == [10, 10, 5]
        # In the order of their ids, which is that of their age.
        assert [order_id for page in pages for order_id in page] == sorted(made)
    exactly = await waiting_daemon.ask("pki.acme.orders.list", account_id=account_id, limit=25)
    assert exactly["next_cursor"] is None
    first = await waiting_daemon.ask("pki.acme.accounts.list", limit=1)
    second = await waiting_daemon.ask("pki.acme.accounts.list", limit=1, cursor=first["next_cursor"])
    assert first["items"][0]["id"] < second["items"][0]["id"]


async def test_lists_filter_by_every_status(make_pebble: Any, make_daemon: Any) -> None:
    """Each order is found under its own status and under no other."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    async with aiohttp.ClientSession() as session:
        await session.post(
            f"http://127.0.0.1:{pebble.dns_control_port}/add-a",
            json={"host": "lost.example.test.", "addresses": ["127.0.0.2"]},
        )
    valid = await daemon.issue(account_id, "found.example.test")
    invalid = await daemon.issue(account_id, "lost.example.test")
    await pebble.stop()
    pending = await daemon.ask("pki.acme.issue", **an_order(account_id, "later.example.test"))
    expected = {"valid": [valid], "invalid": [invalid], "pending": [pending]}
    for status in ("pending", "ready", "processing", "valid", "invalid", "deactivated", "revoked", "expired"):
        found = await orders_of(daemon, account_id, status=status)
        assert found == [order["order_id"] for order in expected.get(status, [])], status
    for status in ("pending", "valid", "invalid", "deactivated"):
        page = await daemon.ask("pki.acme.accounts.list", status=status)
        assert [account["id"] for account in page["items"]] == ([account_id] if status == "valid" else [])


# Discovery


async def test_discovery_shows_every_command_with_its_schemas(waiting_daemon: Any) -> None:
    """`nats micro info scaivaultd` is the manual at hand: subjects and schemas must be there and true."""
    client = waiting_daemon.client
    ping = json.loads((await client.request("$SRV.PING", b"", timeout=5)).data)
    assert (ping["name"], ping["type"]) == ("scaivaultd", "io.nats.micro.v1.ping_response")
    info = json.loads((await client.request(f"$SRV.INFO.scaivaultd.{ping['id']}", b"", timeout=5)).data)
    assert info["type"] == "io.nats.micro.v1.info_response"
    assert info["version"] == (await waiting_daemon.ask("sys.info"))["version"]
    endpoints = {endpoint["subject"]: endpoint for endpoint in info["endpoints"]}
    assert sorted(endpoints) == sorted(f"{ROOT}.{command}" for command in documented_commands())
    for command in documented_commands():
        metadata = endpoints[f"{ROOT}.{command}"]["metadata"]
        assert metadata["summary"]
        request, reply = (json.loads(metadata[f"{kind}_schema"]) for kind in ("request", "reply"))
        assert _properties(reply).keys() == documented(command)[0]
        assert _resolved(request)["additionalProperties"] is False
        assert set(filter(None, metadata["errors"].split(","))) <= documented_codes()


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        resolved: dict[str, Any] = schema["$defs"][schema["$ref"].rpartition("/")[2]]
        return resolved
    return schema


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = _resolved(schema)["properties"]
    return properties


async def test_statistics_count_requests_and_refusals(waiting_daemon: Any) -> None:
    """Operators watch them: a flood or a broken caller shows there."""

    async def stats() -> dict[str, Any]:
        reply = json.loads((await waiting_daemon.client.request("$SRV.STATS.scaivaultd", b"", timeout=5)).data)
        assert reply["type"] == "io.nats.micro.v1.stats_response"
        (found,) = [each for each in reply["endpoints"] if each["subject"] == f"{ROOT}.{GET}"]
        endpoint: dict[str, Any] = found
        return endpoint

    before = await stats()
    for _ in range(3):
        await refused(waiting_daemon, GET, {"order_id": "none"})
    after = await stats()
    assert after["num_requests"] - before["num_requests"] == 3
    assert after["data"]["failed"] - before["data"]["failed"] == 3
    assert after["data"]["answered"] == before["data"]["answered"]


# Side by side


async def test_slow_requests_delay_nobody(waiting_daemon: Any, waiting_ca: Any) -> None:
    """Waiting for a CA is the common case; the others must not queue behind it."""
    account_id = await pending_account(waiting_daemon, waiting_ca)
    started = time.monotonic()
    slow = [
        asyncio.create_task(
            waiting_daemon.ask("pki.acme.issue", **an_order(account_id, f"s{number}.example.test", wait_seconds=5))
        )
        for number in range(20)
    ]
    await until_orders(waiting_daemon, account_id, 20)

    async def quick(number: int) -> float:
        begun = time.monotonic()
        await waiting_daemon.ask("pki.acme.issue", **an_order(account_id, f"q{number}.example.test"))
        await waiting_daemon.ask("pki.acme.accounts.get", id=account_id)
        return time.monotonic() - begun

    delays = await asyncio.gather(*(quick(number) for number in range(50)))
    assert max(delays) < 2.5, max(delays)
    assert not any(task.done() for task in slow)
    orders = await asyncio.gather(*slow)
    assert 4.9 < time.monotonic() - started < 8
    assert {order["status"] for order in orders} == {"pending"}


async def test_nothing_so_far_was_unexpected(waiting_process: Any) -> None:
    """Runs last on the module's daemon: no handler, job or callback raised what it should not have."""
    entries = [json.loads(line) for line in waiting_process.process.log.splitlines() if line.startswith("{")]
    assert len(entries) > 10
    faults = [entry for entry in entries if "exception" in entry or entry["event"].endswith(".exception")]
    assert faults == []
    assert not [line for line in waiting_process.process.log.splitlines() if not line.startswith("{")]


# Secrecy


class Secrets:
    """What must stand nowhere in the clear, in every form it could have."""

    def __init__(self) -> None:
        self._needles: dict[str, bytes] = {}

    def text(self, name: str, text: str) -> None:
        self._needles[name] = text.encode()

    def raw(self, name: str, secret: bytes) -> None:
        self._needles |= {
            f"{name}, raw": secret,
            f"{name}, hex": secret.hex().encode(),
            f"{name}, base64": base64.b64encode(secret).rstrip(b"="),
            f"{name}, base64url": base64.urlsafe_b64encode(secret).rstrip(b"="),
        }

    def private_key(self, name: str, pem_or_der: bytes) -> None:
        load = serialization.load_pem_private_key if b"BEGIN" in pem_or_der else serialization.load_der_private_key
        key = load(pem_or_der, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        der = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.raw(f"{name}, whole", der)
        self.raw(f"{name}, scalar", key.private_numbers().private_value.to_bytes(32, "big"))
        encoded = base64.b64encode(der)
        for start in (0, 64, 128):
            self._needles[f"{name}, PEM line {start // 64}"] = encoded[start : start + 64]

    def found_in(self, places: dict[str, bytes]) -> list[str]:
        return [
            f"{name} in {place}"
            for place, content in places.items()
            for name, needle in self._needles.items()
            if needle and needle in content
        ]


def stored_in(state_dir: Path) -> dict[str, bytes]:
    paths = [path for path in state_dir.iterdir() if path.name.startswith("store.db")]
    return {path.name: path.read_bytes() for path in paths}


def sealed_keys(state_dir: Path) -> list[bytes]:
    """Every private key of a stopped daemon's store, opened with its master key."""
    master_key = load_master_key(f"file:{state_dir}/master.key", environment={}, credentials_directory=None)
    connection = sqlite3.connect(f"file:{state_dir}/store.db?mode=ro", uri=True)
    try:
        documents = dict(connection.execute("SELECT key, document FROM documents"))
    finally:
        connection.close()
    sealer = EnvelopeSealer.unlock(master_key, documents["meta/sealing"])
    return [
        sealer.open(msgspec.json.decode(document, type=SealedKey).sealed, key, "private_key")
        for key, document in documents.items()
        if key.startswith("key/")
    ]


async def secrets_and_places(make_pebble: Any, make_daemon: Any) -> tuple[Secrets, Secrets, Any, Any]:
    """A working day with every secret there is: the keys, the key authorizations, and where they could have leaked."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    keys, proofs = Secrets(), Secrets()
    for name in ("a.example.test", "b.example.test"):
        order = await daemon.issue(account_id, name)
        assert order["status"] == "valid"
        key = await daemon.ask("pki.certificates.key", id=order["certificate_id"])
        keys.private_key(f"key of {name}", key["private_key_pem"].encode())
        assert order["challenges"]
        for challenge in order["challenges"]:
            proofs.text(f"key authorization of {name}", challenge["key_authorization"])
    hmac_key = bytes(range(100, 132))
    sent = base64.urlsafe_b64encode(hmac_key).decode().rstrip("=")
    keys.raw("EAB key", hmac_key)
    bound: dict[str, Any] = {"eab": {"key_id": "kid-1", "hmac_key": sent}}
    # One that the CA refuses, one that stays pending with its key stored, and refusals with the key in them.
    await daemon.ask(CREATE, **new_account(pebble, wait_seconds=5, **bound))
    await daemon.ask(CREATE, **new_account(pebble, "waiting", wait_seconds=0, **bound))
    await refused(daemon, CREATE, {"name": "x", "provider": "buypass", **bound})
    await refused(daemon, CREATE, {"name": "x", "provider": "google", "eab": {"key_id": "k", "hmac_kee": sent}})
    await refused(daemon, CREATE, {"name": "x", "provider": "google", "eab": sent})
    await refused(daemon, CREATE, f'{{"eab": {{"hmac_key": "{sent}"'.encode())
    async with asyncio.timeout(10):
        while len(await daemon.events()) < 3:  # noqa: ASYNC110 - another process, polled as a caller does
            await asyncio.sleep(0.05)
    events = json.dumps(await daemon.events()).encode()
    assert events.count(b'"certificate.issued"') == 2
    while_running = stored_in(daemon.state_dir)
    assert "store.db-wal" in while_running
    await daemon.stop()
    for number, der in enumerate(sealed_keys(daemon.state_dir)):
        keys.private_key(f"stored key {number}", der)
    elsewhere = {"the log": daemon.process.log.encode(), "the events": events}
    assert elsewhere["the log"].count(b"certificate.key_read") == 2
    stores = while_running | {f"{name} afterwards": content for name, content in stored_in(daemon.state_dir).items()}
    return keys, proofs, elsewhere, stores


async def test_no_secret_stands_in_log_event_or_store(make_pebble: Any, make_daemon: Any) -> None:
    """Logs are shipped, events are read by many, and disks are thrown away."""
    keys, proofs, elsewhere, stores = await secrets_and_places(make_pebble, make_daemon)
    assert keys.found_in(elsewhere | stores) == []
    assert proofs.found_in(elsewhere) == []


async def test_a_registration_that_does_not_come_through_can_be_corrected(make_ca: Any, new_daemon: Any) -> None:
    """Who forgot the CA's root must not wait an hour until the name is free again."""
    local = await make_ca(free_port())
    daemon = new_daemon(local)
    daemon.configuration = daemon.configuration.replace(f'["{local.trust_file}"]', "[]")
    await daemon.start()
    wrong = {"name": "mine", "provider": "custom", "directory_url": local.directory_url, "wait_seconds": 4}
    first = await daemon.ask(CREATE, **wrong)
    assert (first["status"], first["error"]["code"]) == ("pending", "ca_unavailable"), first
    second = await daemon.ask(CREATE, **wrong, ca_certificates_pem=local.trust_file.read_text())
    assert second["status"] == "valid", second
    assert (await daemon.ask("pki.acme.accounts.get", id=first["id"]))["status"] == "invalid"
