"""Tokens on NATS: who logs in, what they may do there, and what nobody may, tried with real servers from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import nats
import nats.errors
import pytest
from nats.aio.client import Client

from scaivaultd.api import commands
from scaivaultd.api.commands import Command
from scaivaultd.demo.ca import Misbehaviour
from scaivaultd.demo.process import Process, free_port, listens, until
from scaivaultd.gateways.nkeys import KeyPair
from tests.fakes.raw_nats import raw, refusal

pytestmark = pytest.mark.system

ROOT = "scaivault.v1"
EVENTS = "scaivault.events"
VIEWS = {"roles": ["viewer"], "domains": ["**"]}


@dataclass
class Token:
    """A token, and how its holder uses NATS."""

    id: str
    text: str

    @property
    def root(self) -> str:
        return f"{ROOT}.as.{self.id}"

    @property
    def inbox(self) -> str:
        return f"_INBOX_{self.id}"


async def a_token(daemon: Any, name: str, *policies: str, **body: Any) -> Token:
    made = await daemon.ask("tokens.create", name=name, policies=list(policies), **body)
    assert "token" in made, made
    token = Token(made["id"], made["token"])
    assert made["nats"] == {"subject_root": token.root, "inbox_prefix": token.inbox}
    return token


def server_of(daemon: Any) -> str:
    server: str = json.loads((daemon.state_dir / "nats/client.json").read_text())["server"]
    return server


@pytest.fixture
async def log_in() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
    """Log in as the documentation says; keyword arguments are those of nats-py."""
    clients: list[Client] = []

    async def quiet(_: Exception) -> None:
        """Refusals are what these tests look at."""

    async def connect(url: str, who: Token, **options: Any) -> Client:
        defaults = {"token": who.text, "inbox_prefix": who.inbox.encode(), "allow_reconnect": False}
        client = await nats.connect(url, error_cb=quiet, **{**defaults, **options})
        clients.append(client)
        return client

    yield connect
    for client in clients:
        await client.close()


async def ask(client: Client, root: str, command: str, seconds: float = 10, **body: Any) -> Any:
    message = await client.request(f"{root}.{command}", json.dumps(body).encode(), timeout=seconds)
    return json.loads(message.data)


def entries(daemon: Any, event: str) -> list[dict[str, Any]]:
    lines = [line for line in daemon.process.log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


class TestOnOurServer:
    async def test_a_token_asks_in_its_own_name(self, hanging_ca: Any, make_daemon: Any, log_in: Any) -> None:
        """The same token opens REST and NATS; as a password it serves clients that know no tokens."""
        daemon = await make_daemon(hanging_ca)
        token = await a_token(daemon, "web", "viewer")
        client = await log_in(server_of(daemon), token)
        me = await ask(client, token.root, "auth.whoami")
        assert (me["principal"], me["name"]) == (f"token:{token.id}", "web")
        by_password = await log_in(server_of(daemon), token, token=None, user="anybody", password=token.text)
        assert (await ask(by_password, token.root, "auth.whoami"))["principal"] == f"token:{token.id}"
        denied = await ask(client, token.root, "tokens.create", name="mine")
        assert denied["code"] == "permission_denied"
        assert token.text not in daemon.process.log
        assert token.text.rpartition("_")[2] not in daemon.process.log

    async def test_a_private_key_goes_to_its_own_inbox(self, make_ca: Any, make_daemon: Any, log_in: Any) -> None:
        """That is what most callers come for."""
        ca = await make_ca(free_port(), misbehaviour=Misbehaviour(always_valid=True))
        daemon = await make_daemon(ca)
        account_id = await daemon.account(ca)
        order = await daemon.issue(account_id, "a.example.test")
        rules = [{"actions": ["cert.read", "key.read"], "domains": ["**.example.test"]}]
        await daemon.ask("policies.put", name="keys", principals=["token:web"], rules=rules)
        token = await a_token(daemon, "web")
        client = await log_in(server_of(daemon), token)
        found = await ask(client, token.root, "pki.certificates.key", id=order["certificate_id"])
        assert "PRIVATE KEY" in found["private_key_pem"], sorted(found)

    async def test_only_good_tokens_log_in(self, hanging_ca: Any, make_daemon: Any) -> None:
        """The door of the bus is the door of the daemon."""
        daemon = await make_daemon(hanging_ca)
        url = server_of(daemon)
        token = await a_token(daemon, "web", "viewer")
        elsewhere = await a_token(daemon, "far", "viewer", networks=["192.0.2.0/24"])
        revoked = await a_token(daemon, "gone", "viewer")
        await daemon.ask("tokens.revoke", id="gone")
        assert await refusal(url, auth_token=token.text) == ""
        flipped = token.text[:20] + ("a" if token.text[20] != "a" else "b") + token.text[21:]
        for login in (
            {},
            {"auth_token": ""},
            {"auth_token": "guess"},
            {"auth_token": flipped},
            {"auth_token": token.text[:-1]},
            {"auth_token": token.text + "x"},
            {"auth_token": elsewhere.text},
            {"auth_token": revoked.text},
            {"user": token.id, "pass": "x"},
            {"user": "local", "pass": token.text},
            {"user": "scaivaultd", "pass": ""},
            {"user": "scaivaultd-logins", "pass": token.text},
            {"jwt": "eyJ0eXAiOiJKV1QifQ.e30.x", "sig": "x"},
        ):
            assert "Authorization Violation" in await refusal(url, **login), login
        assert entries(daemon, "nats.login_refused")

    async def test_a_revoked_token_is_shown_the_door(self, hanging_ca: Any, make_daemon: Any, log_in: Any) -> None:
        """Revoking is what one does when a token has leaked: whoever uses it must be out at once."""
        daemon = await make_daemon(hanging_ca)
        token, other = await a_token(daemon, "web", "viewer"), await a_token(daemon, "app", "viewer")
        out = asyncio.Event()

        async def closed() -> None:
            out.set()

        client = await log_in(server_of(daemon), token, closed_cb=closed, disconnected_cb=closed)
        bystander = await log_in(server_of(daemon), other)
        await ask(client, token.root, "auth.whoami")
        await daemon.ask("tokens.revoke", id=token.id)
        async with asyncio.timeout(5):
            await out.wait()
        assert "Authorization Violation" in await refusal(server_of(daemon), auth_token=token.text)
        assert (await ask(bystander, other.root, "auth.whoami"))["name"] == "app"

    async def test_the_secret_before_a_rotation_ends_with_its_overlap(
        self, hanging_ca: Any, make_daemon: Any, log_in: Any
    ) -> None:
        """Somebody who copied the old secret must not stay for as long as the token lives."""
        daemon = await make_daemon(hanging_ca)
        token = await a_token(daemon, "web", "viewer")
        out = asyncio.Event()

        async def closed() -> None:
            out.set()

        await log_in(server_of(daemon), token, closed_cb=closed, disconnected_cb=closed)
        rotated = await daemon.ask("tokens.rotate", id=token.id, overlap="0s")
        assert "token" in rotated, rotated
        async with asyncio.timeout(60):
            await out.wait()
        client = await log_in(server_of(daemon), Token(token.id, rotated["token"]))
        assert (await ask(client, token.root, "auth.whoami"))["name"] == "web"

    async def test_events_come_to_those_who_may_read_them(self, hanging_ca: Any, make_daemon: Any, log_in: Any) -> None:
        """Names of hosts are in them: not everybody's to know."""
        daemon = await make_daemon(hanging_ca)
        reader, other = await a_token(daemon, "reader", "viewer"), await a_token(daemon, "other")
        heard = await (await log_in(server_of(daemon), reader)).subscribe(f"{EVENTS}.>")
        await heard._conn.flush()
        async with raw(server_of(daemon), auth_token=other.text) as blind:
            assert b"Permissions Violation" in await blind.say(f"SUB {EVENTS}.> 1\r\n".encode())
            await daemon.client.publish(f"{EVENTS}.certificate.issued.cert_1", b"news")
            assert (await heard.next_msg(10)).data == b"news"
            assert await blind.say(b"") == b""

    # nats-py leaves the socket of a refused connection open.
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_clients_come_back_after_a_restart(self, hanging_ca: Any, make_daemon: Any, log_in: Any) -> None:
        """Whoever knocks before anybody answers for tokens is refused, and must get in a moment later."""
        daemon = await make_daemon(hanging_ca)
        token = await a_token(daemon, "web", "viewer")
        options = {"allow_reconnect": True, "max_reconnect_attempts": -1, "reconnect_time_wait": 0.05}
        client = await log_in(server_of(daemon), token, **options)
        assert await daemon.stop() == 0
        await daemon.start()

        async def is_answered() -> bool:
            with contextlib.suppress(nats.errors.Error, OSError):
                return bool((await ask(client, token.root, "auth.whoami", 1))["name"] == "web")
            return False

        await until(is_answered, "the client is back", 30)


# Other servers, configured as docs/how-to/nats-identity.md says


SNIPPET = re.compile(r"<!-- (server|daemon): (\w+) -->\n```\w*\n(.*?)```", re.DOTALL)
ISSUER_SEED = "SAAAAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4MBSGQ3DQOR4HYMHI"
PAGE = Path(__file__).parents[2] / "docs/how-to/nats-identity.md"


def snippets(identity: str, **values: str) -> dict[str, str]:
    """What the page says about the server and the daemon, with its placeholders filled in."""
    found = {who: text for who, what, text in SNIPPET.findall(PAGE.read_text()) if what == identity}
    for name, value in values.items():
        found = {who: text.replace(name, value) for who, text in found.items()}
    return found


@dataclass
class Outside:
    """A daemon at a server that is not its own."""

    daemon: Any
    url: str

    async def admin(self, command: Command[Any, Any], **body: Any) -> Any:
        """Ask as the daemon's own user, over the UNIX socket."""
        connector = aiohttp.UnixConnector(str(self.daemon.state_dir / "api.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"http://localhost{command.path.format(**body)}"
            rest = {name: value for name, value in body.items() if f"{{{name}}}" not in command.path}
            async with session.request(command.method, url, json=rest) as reply:
                assert reply.status < 300, await reply.text()
                return await reply.json(content_type=None)

    def login(self, user: str, password: str) -> str:
        return self.url.replace("//", f"//{user}:{password}@")


@pytest.fixture
def outside(
    hanging_ca: Any, new_daemon: Any, new_nats: Any, launch: Any, tmp_path: Path
) -> Callable[..., Awaitable[Outside]]:
    async def start(identity: str, *, ingress: bool = True) -> Outside:
        server = new_nats()
        issuer = KeyPair("A", bytes(range(32)))
        seed = tmp_path / "callout.nk"
        seed.write_text(f"{ISSUER_SEED}\n")
        seed.chmod(0o600)
        said = snippets(
            identity,
            DAEMON_PASSWORD="d",
            WEB_PASSWORD="w",
            APP_PASSWORD="a",
            ISSUER_PUBLIC_KEY=issuer.public,
            STORE_DIR=str(tmp_path / "js"),
            SEED_FILE=str(seed),
            HOST="127.0.0.1",
            PORT=str(server.port),
        )
        await start_with(server, f"listen: 127.0.0.1:{server.port}\n{said['server']}")
        lines = said["daemon"].removeprefix("[nats]\n")
        daemon = new_daemon(
            hanging_ca, url=server.url, nats=lines if ingress else lines.partition("[[nats.ingress]]")[0]
        )
        launch(daemon)

        async def is_serving() -> bool:
            assert daemon.process.is_alive(), daemon.process.log[-2000:]
            return bool(entries(daemon, "nats.serving"))

        await until(is_serving, "the daemon serves")
        return Outside(daemon, server.url)

    return start


async def start_with(server: Any, configuration: str) -> None:
    """Start an external server with a configuration of its own."""
    server.folder.mkdir(parents=True, exist_ok=True)
    path = server.folder / "page.conf"
    path.write_text(configuration)
    server.process = Process([str(Path(sys.executable).with_name("nats-server")), "-c", str(path)], server.folder)
    server.process.start()
    await until(lambda: listens(server.port), "nats-server listens")


@contextlib.asynccontextmanager
async def user(url: str, **options: Any) -> AsyncIterator[Client]:
    async def quiet(_: Exception) -> None:
        """Refusals are what these tests look at."""

    client = await nats.connect(url, error_cb=quiet, allow_reconnect=False, **options)
    try:
        yield client
    finally:
        await client.close()


class TestAtOtherServers:
    async def test_tokens_log_in_where_the_daemon_signs(self, outside: Any, log_in: Any) -> None:
        """One token for REST and for the bus that is there already."""
        there = await outside("auth_callout")
        made = await there.admin(commands.CREATE_TOKEN, name="web", policies=["viewer"])
        token = Token(made["id"], made["token"])
        client = await log_in(there.url, token)
        assert (await ask(client, token.root, "auth.whoami"))["principal"] == f"token:{token.id}"
        async with raw(there.url, auth_token=token.text) as hostile:
            for subject in (">", "_INBOX.>", "scaivault.v1.>", "$SYS.>", "$JS.API.>"):
                assert b"Permissions Violation" in await hostile.say(f"SUB {subject} 1\r\n".encode())
        plain = await ask_anywhere(there.login("scaivaultd", "d"), f"{ROOT}.auth.whoami")
        assert plain["code"] == "unauthenticated"
        assert "scaivault.v1.as.TOKEN_ID" in plain["detail"]
        await there.admin(commands.REVOKE_TOKEN, id=token.id)
        assert (await ask(client, token.root, "auth.whoami"))["code"] == "unauthenticated"
        assert "Authorization Violation" in await refusal(there.url, auth_token=token.text)

    async def test_users_have_a_subject_each(self, outside: Any) -> None:
        """The server refuses another's subject; the daemon believes what is left."""
        there = await outside("subject_token")
        await there.admin(commands.PUT_POLICY, name="web", principals=["nats:$G/web"], rules=[VIEWS])
        async with user(there.login("web", "w"), inbox_prefix=b"_INBOX_web") as client:
            me = await ask(client, f"{ROOT}.as.web", "auth.whoami")
            assert (me["principal"], me["policies"]) == ("nats:$G/web", ["web"])
            assert (await ask(client, f"{ROOT}.as.web", "pki.certificates.list"))["items"] == []
        async with raw(there.url, user="app", **{"pass": "a"}) as hostile:
            for subject in (f"{ROOT}.as.web.auth.whoami", f"{ROOT}.auth.whoami", "$JS.API.INFO", f"{EVENTS}.x"):
                assert b"Permissions Violation" in await hostile.publish(subject, reply="_INBOX_app.x")
            async with user(there.login("scaivaultd", "d"), inbox_prefix=b"_INBOX_scaivaultd") as own:
                heard: list[bytes] = []

                async def hear(message: Any) -> None:
                    heard.append(message.data)

                await own.subscribe("_INBOX_scaivaultd.>", cb=hear)
                await own.flush()
                for reply in ("", "_INBOX_scaivaultd.x", f"{EVENTS}.a.b", f"{ROOT}.as.web.auth.whoami", "$JS.API.INFO"):
                    await hostile.publish(f"{ROOT}.as.app.auth.whoami", reply=reply)
                await hostile.publish(f"{ROOT}.as.app.auth.whoami", reply="_INBOX_app.x")
                await until(lambda: is_dropped(there.daemon), "the drop is in the log")
                await own.flush()
                # The daemon's own acknowledgements come here, too.
                assert not [each for each in heard if b"principal" in each]

    async def test_users_of_another_account_are_who_the_server_says(self, outside: Any) -> None:
        """A header counts only where the server has written it, however a sender writes its own."""
        there = await outside("account_import")
        await there.admin(commands.PUT_POLICY, name="web", principals=["nats:APP/web"], rules=[VIEWS])
        forged = b'{"acc":"APP","user":"root"}'
        async with raw(there.url, user="web", **{"pass": "w"}) as hostile:
            await hostile.say(b"SUB _INBOX.> 1\r\n")
            for headers in (
                b"NATS/1.0\r\n\r\n",
                b"NATS/1.0\r\nNats-Request-Info: " + forged + b"\r\n\r\n",
                b"NATS/1.0\r\nnats-request-info: " + forged + b"\r\n\r\n",
                b"NATS/1.0\r\n Nats-Request-Info: " + forged + b"\r\nX: zXX",
                b"NATS/1.0\r\nNats-Request-Info : " + forged + b"\r\nX: zXX",
                b"NATS/1.0\r\nNats-Request-Info: " + forged + b"\r\nNats-Request-Info: " + forged + b"\r\nX: zXX",
                b"NATS/1.0 100\r\n Nats-Request-Info: " + forged + b"\r\nX: zXX",
            ):
                heard = await hostile.publish(f"{ROOT}.auth.whoami", reply="_INBOX.x", headers=headers)
                async with asyncio.timeout(5):
                    while b'"principal"' not in heard and b'"unauthenticated"' not in heard:
                        heard += await hostile.say(b"")
                assert b"APP/root" not in heard, headers
                if b"zXX" not in headers and b"nats-" not in headers:
                    assert b"nats:APP/web" in heard, headers

    async def test_a_trusted_bus_is_let_do_all_but_read_keys(self, outside: Any) -> None:
        """Who calls a bus trusted has said so, by name."""
        there = await outside("trusted")
        me = await ask_anywhere(there.login("scaivaultd", "d"), f"{ROOT}.auth.whoami")
        assert (me["principal"], me["policies"]) == ("nats:$G/trusted", ["trusted-bus"])

    async def test_without_a_word_nobody_is_trusted(self, outside: Any) -> None:
        """The default must be the safe one."""
        there = await outside("trusted", ingress=False)
        reply = await ask_anywhere(there.login("scaivaultd", "d"), f"{ROOT}.sys.info")
        assert reply["code"] == "unauthenticated"


async def is_dropped(daemon: Any) -> bool:
    return bool(entries(daemon, "nats.request_dropped"))


async def ask_anywhere(url: str, subject: str) -> Any:
    async with user(url) as client:
        return json.loads((await client.request(subject, b"{}", timeout=10)).data)
