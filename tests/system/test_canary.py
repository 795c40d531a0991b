"""Secrets are planted in a real daemon, put in wrong places too, and looked for in everything that comes out of it."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from yarl import URL

from scaivaultd.api import commands
from scaivaultd.api.commands import COMMANDS, Command
from scaivaultd.demo.process import free_port, until
from tests.fakes import digitalocean
from tests.fakes.digitalocean import FakeDigitalOcean
from tests.system.canaries import Search, of_key, of_text

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

EXEMPT = {
    "master.key*": "the master key itself, mode 0600: what the store is sealed with cannot be sealed with it",
    "nats/client.json": "the login of this host's administrator, mode 0600",
    "nats/credentials.json": "the same, and what the next start of the embedded nats-server needs, mode 0600",
    "nats/*.conf": "the logins that the embedded nats-server knows, mode 0600",
}
UNUSED = {"sys.unseal", "sys.master_key.rotate"}
"""Called once, by hand: their examples would do something."""


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)])
def test_the_search_finds_a_key_in_every_form(key: Any, tmp_path: Path) -> None:
    """A search that finds nothing proves nothing unless it could have."""
    search = Search()
    search.plant(of_key("key", pem_of(key)))
    search.plant(of_key("other", pem_of(ec.generate_private_key(ec.SECP256R1()))))
    number = key.private_numbers().private_value if hasattr(key, "curve") else key.private_numbers().d
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    old = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    forms = [pem_of(key).encode(), json.dumps(pem_of(key)).encode(), old, raw, raw.hex().encode()]
    forms.append(base64.urlsafe_b64encode(raw))
    forms.append(base64.b64encode(b"x" + raw + b"yz"))
    for place, form in enumerate(forms):
        (tmp_path / f"{place}").write_bytes(b"\x00before" + form + b"after\xff")
    (tmp_path / "public.pem").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    search.read(tmp_path, {})
    assert search.leaks() == [f"key in file {place}" for place in range(len(forms))]


def test_the_search_finds_a_text_in_every_form_and_knows_who_was_meant(tmp_path: Path) -> None:
    """And leaves out only what it is told to leave out."""
    secret = "a/B+c " + secrets.token_urlsafe(20)
    search = Search()
    search.plant(of_text("text", secret))
    login = base64.b64encode(f"u:{secret}".encode()).decode()
    for form in (secret, json.dumps({"x": secret}), login, secret.encode().hex(), f"?q={quote(secret, safe='')}"):
        search.hear("there", form.encode())
    search.hear("where it is the answer", secret.encode(), "text")
    search.hear("elsewhere", secret[:-1].encode())
    (tmp_path / "nats").mkdir()
    (tmp_path / "nats/client.json").write_text(secret)
    (tmp_path / "nats/other.json").write_text(secret)
    search.read(tmp_path, EXEMPT)
    assert search.leaks() == ["text in there"] * 5 + ["text in file nats/other.json"]


class Callers:
    """Asks the daemon over every way there is, and tells the search what comes back."""

    def __init__(self, daemon: Any, search: Search, unix: aiohttp.ClientSession, tcp: str) -> None:
        self.daemon = daemon
        self.search = search
        self.token = ""
        self._unix = unix
        self._tcp = tcp

    async def http(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *meant: str,
        by_tcp: bool = False,
        **headers: str,
    ) -> Any:
        """One request; over TCP with the token, unless the headers say otherwise."""
        if by_tcp:
            headers = {"Authorization": f"Bearer {self.token}", **headers}
        if body is not None:
            headers = {"Content-Type": "application/json", **headers}
        url = URL(f"{self._tcp if by_tcp else 'http://localhost'}{target}", encoded=True)
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(aiohttp.ClientSession()) if by_tcp else self._unix
            answer = await stack.enter_async_context(session.request(method, url, data=body, headers=headers))
            data = await answer.read()
            head = json.dumps([list(each) for each in answer.headers.items()])
        self.search.hear(f"HTTP {method} {'TCP' if by_tcp else 'UNIX'}: {data[:60]!r}", head.encode() + data, *meant)
        try:
            return json.loads(data)
        except ValueError:
            return None

    async def rest(self, command: Command[Any, Any], *meant: str, by_tcp: bool = False, **members: Any) -> Any:
        """One command with its members, in the path, and in the query or the body."""
        path, rest = command.path, dict(members)
        for name in members:
            if f"{{{name}}}" in path:
                path = path.replace(f"{{{name}}}", str(URL.build(path=str(rest.pop(name)).lstrip("/"))))
        if command.method in ("GET", "DELETE"):
            query = "&".join(f"{name}={value}" for name, value in rest.items() if isinstance(value, str | int))
            return await self.http(command.method, f"{path}?{query}" if query else path, None, *meant, by_tcp=by_tcp)
        return await self.http(command.method, path, json.dumps(rest).encode(), *meant, by_tcp=by_tcp)

    async def nats(self, name: str, body: bytes, *meant: str, **headers: str) -> Any:
        """One request with the login of this host's administrator."""
        message = await self.daemon.client.request(f"scaivault.v1.{name}", body, timeout=60, headers=headers or None)
        said = json.dumps(message.headers or {}).encode() + message.data
        self.search.hear(f"NATS {name}: {message.data[:60]!r}", said, *meant)
        return json.loads(message.data)

    async def everywhere(self, command: Command[Any, Any], body: bytes) -> None:
        """The same bytes over NATS, the UNIX socket and TCP."""
        await self.nats(command.name, body)
        path = command.path.replace("{path}", "some/path").replace("{", "").replace("}", "")
        for by_tcp in (False, True):
            await self.http(command.method, path, body if command.method != "GET" else None, by_tcp=by_tcp)


@pytest.fixture
async def callers(
    new_daemon: Callable[..., Any], make_ca: Any, service: FakeDigitalOcean, eab: bytes
) -> AsyncIterator[Callers]:
    """A daemon with everything on, and who calls it."""
    tcp = free_port()
    local = await make_ca(free_port(), eab_keys={"kid-1": eab})
    daemon = new_daemon(
        local,
        rest=f'listen = ["127.0.0.1:{tcp}"]',
        dns=f'private_apis = ["{service.url.split("/")[2]}"]',
    )
    daemon.ca = local
    await daemon.start()
    connector = aiohttp.UnixConnector(path=str(daemon.state_dir / "api.sock"))
    async with aiohttp.ClientSession(connector=connector) as unix:
        yield Callers(daemon, Search(), unix, f"http://127.0.0.1:{tcp}")


@pytest.fixture
async def service() -> AsyncIterator[FakeDigitalOcean]:
    async with FakeDigitalOcean() as running:
        yield running


@pytest.fixture
def eab() -> bytes:
    return secrets.token_bytes(32)


async def test_no_secret_comes_out_anywhere(callers: Callers, service: FakeDigitalOcean, eab: bytes) -> None:
    """Logs, events, audit, answers, and every file: only where a secret is the answer may it stand."""
    daemon, search = callers.daemon, callers.search
    login = URL(json.loads((daemon.state_dir / "nats/client.json").read_text())["url"])
    search.plant(of_text("the login at NATS", login.password or ""))
    search.plant(of_text("the master key", (daemon.state_dir / "master.key").read_bytes().strip()))
    await plant_tokens(callers)
    await plant_secrets(callers, service)
    account_id = await plant_account_keys(callers, eab)
    await plant_certificate_keys(callers, account_id)
    await ask_everything(callers)
    await put_secrets_in_wrong_places(callers, account_id)
    await ask_for_new_master_key(callers)
    for subject, headers, event in await daemon.events():
        search.hear(f"event {subject}", json.dumps([headers, event]).encode())
    search.hear("the log", daemon.process.log.encode())
    search.hear_process(daemon.process.pid)
    search.read(daemon.state_dir, EXEMPT)
    await daemon.stop()
    search.hear("the log at the end", daemon.process.log.encode())
    search.read(daemon.state_dir, EXEMPT)
    assert {"file store.db", "file store.db-wal"} <= {where for where, _, _ in search.heard}
    assert any(where.startswith("file audit/") for where, _, _ in search.heard)
    assert search.leaks() == []


async def plant_tokens(callers: Callers) -> None:
    """One is made and rotated; the old and the new secret are in use."""
    made = await callers.rest(commands.CREATE_TOKEN, "token", name="canary", policies=["admin"])
    callers.search.plant(of_text("token", made["token"].rpartition("_")[2][:43]))
    rotated = await callers.rest(commands.ROTATE_TOKEN, "rotated token", id=made["id"])
    callers.search.plant(of_text("rotated token", rotated["token"].rpartition("_")[2][:43]))
    callers.token = rotated["token"]
    assert "principal" in await callers.rest(commands.WHO_AM_I, by_tcp=True)
    rules = [{"actions": ["key.read"], "domains": ["**"]}]
    assert "name" in await callers.rest(commands.PUT_POLICY, name="readers", principals=["token:canary"], rules=rules)


async def plant_secrets(callers: Callers, service: FakeDigitalOcean) -> None:
    """One is used for a DNS provider, the other never."""
    callers.search.plant(of_text("the provider's token", digitalocean.TOKEN))
    put = await callers.rest(commands.PUT_SECRET, path="dns/token", value=digitalocean.TOKEN)
    assert put["version"] == 1, put
    idle = secrets.token_urlsafe(40)
    callers.search.plant(of_text("an idle secret", idle))
    assert (await callers.nats("secrets.put", json.dumps({"path": "idle", "value": idle}).encode()))["version"] == 1
    config = {"api_token_path": "dns/token", "api_base": service.url}
    made = await callers.rest(commands.CREATE_DNS_PROVIDER, name="it", type="digitalocean", config=config)
    assert made["status"] == "ready", made
    await callers.rest(commands.TEST_DNS_PROVIDER, id="it", domain="example.org")
    assert service.seen


async def plant_account_keys(callers: Callers, eab: bytes) -> str:
    """A binding's key, and account keys of the caller's own; returns the id of the account that is good."""
    ca = callers.daemon.ca
    about = {"provider": "custom", "directory_url": ca.directory_url}
    callers.search.plant(of_text("the binding's key", eab))
    hmac_key = base64.urlsafe_b64encode(eab).decode().rstrip("=")
    bound = {"key_id": "kid-1", "hmac_key": hmac_key}
    made = await callers.rest(commands.CREATE_ACCOUNT, name="bound", eab=bound, by_tcp=True, **about)
    assert made["status"] == "valid", made
    for name, key in (("ec", ec.generate_private_key(ec.SECP256R1())), ("rsa", rsa.generate_private_key(65537, 2048))):
        pem = pem_of(key)
        callers.search.plant(of_key(f"an account's {name} key", pem))
        await callers.rest(commands.CREATE_ACCOUNT, name=f"own-{name}", account_key_pem=pem, **about)
    return str(made["id"])


async def plant_certificate_keys(callers: Callers, account_id: str) -> None:
    """Of both kinds, fetched in plain and sealed."""
    for key_type in ("ec-p256", "rsa-2048"):
        asked: dict[str, Any] = {"account_id": account_id, "domains": ["canary.example.test"]}
        order = await callers.rest(commands.ISSUE, challenge_type="http-01", key_type=key_type, **asked)
        assert "order_id" in order, order
        order = await callers.daemon.finished(order["order_id"])
        assert order["status"] == "valid", order
        about, name = {"id": order["certificate_id"]}, f"a certificate's {key_type} key"
        reply = await callers.rest(commands.GET_KEY, name, by_tcp=True, **about)
        callers.search.plant(of_key(name, reply["private_key_pem"]))
        public = X25519PrivateKey.generate().public_key().public_bytes_raw()
        recipient = base64.urlsafe_b64encode(public).decode()
        sealed = await callers.rest(commands.GET_KEY, by_tcp=True, recipient_key=recipient, **about)
        assert sealed["sealed_key"]
        assert (await callers.rest(commands.GET_KEY, **about))["code"] == "permission_denied"


def bodies_of(command: Command[Any, Any], right: dict[str, Any], secret: str) -> Iterator[bytes]:
    """Right, and wrong in every member, with a secret in the wrong one."""
    yield json.dumps(right).encode()
    yield f'{{"x": "{secret}"'.encode()
    yield json.dumps({**right, "unknown": secret}).encode()
    for name in command.request.__struct_fields__:
        yield json.dumps({**right, name: {"value": secret}}).encode()
        yield json.dumps({**right, name: [[secret]]}).encode()


async def ask_everything(callers: Callers) -> None:
    """Every command, right and wrong, over every way."""
    secret = secrets.token_urlsafe(40)
    callers.search.plant(of_text("a secret in a wrong member", secret))
    # The CAs of the examples are real ones.
    account = {"name": "right", "provider": "custom", "directory_url": callers.daemon.ca.directory_url}
    for command in COMMANDS:
        right = account if command is commands.CREATE_ACCOUNT else command.example
        for body in bodies_of(command, right, secret):
            if command.name not in UNUSED:
                await callers.everywhere(command, body)


async def put_secrets_in_wrong_places(callers: Callers, account_id: str) -> None:
    """As people do who are in a hurry. What is refused must not be repeated: not to the log, not to anybody."""
    token, password, value = (secrets.token_urlsafe(40) for _ in range(3))
    key = ec.generate_private_key(ec.SECP256R1())
    for name, secret in (("a mistyped token", token), ("a password in a URL", password), ("a value as a path", value)):
        callers.search.plant(of_text(name, secret))
    callers.search.plant(of_key("a key as a name", pem_of(key)))
    for by_tcp in (False, True):
        for query in (f"token={callers.token}", f"access_token={token}", token, f"limit={token}"):
            await callers.http("GET", f"/v1/pki/certificates?{query}", by_tcp=by_tcp)
        for scheme in ("Bearer", "Basic", "Token", ""):
            for text in (token, base64.b64encode(f"user:{token}".encode()).decode(), f"scvt_Ab3dEf9h_{token}"):
                await callers.http("GET", "/v1/tokens", by_tcp=by_tcp, Authorization=f"{scheme} {text}".strip())
        await callers.http("GET", "/v1/tokens", by_tcp=by_tcp, Cookie=f"session={token}")
        await callers.http("POST", "/v1/pki/acme/issue", b"{}", by_tcp=by_tcp, **{"Idempotency-Key": f"{token}\t"})
    await callers.nats(
        "pki.acme.issue", b"{}", **{"Idempotency-Key": f"{token} \u00e4", "Authorization": f"Bearer {token}"}
    )
    reference, directory = f"Va/{value}+", callers.daemon.ca.directory_url
    mistakes: list[tuple[Command[Any, Any], dict[str, Any]]] = [
        (commands.PUT_SECRET, {"path": reference, "value": "x"}),
        (commands.DELETE_SECRET, {"path": reference}),
        (commands.ISSUE, {"account_id": account_id, "domains": [pem_of(key)], "challenge_type": "http-01"}),
        (commands.CAN_I, {"action": "cert.issue", "domains": [pem_of(key)]}),
        (commands.CAN_I, {"action": "secret.use", "secret": reference}),
        *(
            (commands.CREATE_ACCOUNT, {"name": "x", "provider": "custom", **mistake})
            for mistake in (
                {"directory_url": f"https://u:{password}@ca.test/"},
                {"directory_url": directory, "account_key_path": pem_of(key)},
                {"directory_url": directory, "ca_certificates_pem": pem_of(key)},
                {"directory_url": directory, "eab": {"key_id": "kid-1", "hmac_key_path": reference}},
            )
        ),
        (commands.ISSUE, {"account_id": account_id, "csr": pem_of(key), "challenge_type": "http-01"}),
        *(
            (commands.CREATE_DNS_PROVIDER, {"name": "x", "type": "digitalocean", "config": config})
            for config in (
                {"api_token_path": "dns/token", "api_base": f"https://u:{password}@127.0.0.1/"},
                {"api_token_path": reference},
                {"api_token_path": "dns/token", "ttl": reference},
                {"api_token": value},
            )
        ),
    ]
    for command, members in mistakes:
        reply = await callers.nats(command.name, json.dumps(members).encode())
        assert "code" in reply or command is commands.CAN_I, (command.name, list(members))
        if command.method != "GET":
            path = command.path.replace("{path}", value)
            await callers.http(command.method, path, json.dumps(members).encode())


async def ask_for_new_master_key(callers: Callers) -> None:
    """A passphrase where none is wanted, and then another key."""
    passphrase = secrets.token_urlsafe(40)
    callers.search.plant(of_text("a passphrase", passphrase))
    await callers.rest(commands.UNSEAL, passphrase=passphrase)
    await callers.rest(commands.ROTATE_MASTER_KEY, new_passphrase=passphrase)
    await callers.rest(commands.ROTATE_MASTER_KEY)

    async def is_rotated() -> bool:
        shown = await callers.rest(commands.MASTER_KEY)
        return not shown["rotation"] or bool(shown["rotation"]["finished_at"])

    await until(is_rotated, "the master key is rotated")
    key = (callers.daemon.state_dir / "master.key").read_bytes().strip()
    callers.search.plant(of_text("the new master key", key))
