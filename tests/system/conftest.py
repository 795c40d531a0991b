"""Real servers on loopback: Pebble, nats-server, and the daemon itself as a process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nats.aio.client import Client

from scaivaultd.demo import pebble as pebble_program
from scaivaultd.demo.ca import DevelopmentCa
from scaivaultd.demo.pebble import Pebble
from scaivaultd.demo.process import Process, free_port, listens, until

# As days before the end they are more than any lifetime here, and so without effect.
_NUMBERS = itertools.count(4000)


@dataclass
class Daemon:
    """The real daemon as a process, spoken to over NATS."""

    folder: Path
    configuration: str
    arguments: list[str] = field(default_factory=lambda: [sys.executable, "-m", "scaivaultd", "serve"])
    url: str | None = None
    process: Process | None = None
    lives: list[Process] = field(default_factory=list)
    client: Client | None = None

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "scaivaultd.toml"
        config.write_text(f'state_dir = "{self.state_dir}"\n{self.configuration}')
        self.process = Process([*self.arguments, "--config", str(config)], self.folder)
        self.lives.append(self.process)
        self.process.start()
        await self.connect()

    async def connect(self) -> None:
        """Connect a client and wait until the daemon answers."""
        await until(self._is_up, "the daemon answers")

    async def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.is_alive(), f"the daemon has ended:\n{self.process.log[-3000:]}"
        try:
            if self.client is None or not self.client.is_connected:
                await self.disconnect()
                self.client = await self._client()
            await self.client.request("scaivault.v1.sys.info", b"", timeout=1)
        except (nats.errors.Error, OSError, KeyError, ValueError):
            return False
        return True

    async def _client(self) -> Client:
        async def quiet(_: Exception) -> None:
            return None

        url = self.url or json.loads((self.state_dir / "nats/client.json").read_text())["url"]
        options = {"connect_timeout": 1, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.1}
        return await nats.connect(url, error_cb=quiet, allow_reconnect=False, **options)

    async def disconnect(self) -> None:
        if self.client is not None:
            await self.client.close()
            self.client = None

    async def ask(self, command: str, _timeout: float = 10, _headers: dict[str, str] | None = None, **body: Any) -> Any:
        assert self.client is not None
        message = await self.client.request(
            f"scaivault.v1.{command}", json.dumps(body).encode(), timeout=_timeout, headers=_headers
        )
        return json.loads(message.data)

    async def account(self, pebble: Any, **changes: Any) -> str:
        body = {"name": "test", "provider": "custom", "directory_url": pebble.directory_url, **changes}
        reply = await self.ask("pki.acme.accounts.create", **body)
        assert reply.get("status") == "valid", reply
        return str(reply["id"])

    async def finished(self, order_id: str, seconds: float = 60) -> dict[str, Any]:
        """Poll as a caller does until the order has ended."""
        async with asyncio.timeout(seconds):
            while True:
                order: dict[str, Any] = await self.ask("pki.acme.orders.get", order_id=order_id)
                if order.get("status") not in ("pending", "ready", "processing"):
                    return order
                await asyncio.sleep(0.05)

    async def issue(self, account_id: str, *domains: str, **changes: Any) -> dict[str, Any]:
        """One order of its own to its end: the same request while one is under way would be the same order."""
        asked = {"account_id": account_id, "domains": list(domains), "challenge_type": "http-01"}
        body = {**asked, "renew_before": f"{next(_NUMBERS)}d", **changes}
        order = await self.ask("pki.acme.issue", **body)
        assert "order_id" in order, order
        return await self.finished(order["order_id"])

    async def events(self) -> list[tuple[str, dict[str, str], Any]]:
        """All events in the stream: subject, headers, body."""
        assert self.client is not None
        jetstream = self.client.jetstream()
        found = []
        with contextlib.suppress(nats.js.errors.NotFoundError):
            info = await jetstream.stream_info("SCAIVAULT_EVENTS")
            for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
                message = await jetstream.get_msg("SCAIVAULT_EVENTS", sequence)
                found.append((message.subject or "", message.headers or {}, json.loads(message.data or b"")))
        return found

    async def events_of(self, kind: str, count: int) -> list[tuple[str, dict[str, str], Any]]:
        """The events of one type, once there are at least `count`: they follow their commit a moment later."""
        async with asyncio.timeout(30):
            while True:
                found = [event for event in await self.events() if event[1]["ce-type"] == kind]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.05)

    async def stop(self, number: int = signal.SIGTERM) -> int:
        await self.disconnect()
        assert self.process is not None
        return await self.process.stop(number)


def tlsalpn01_listen(ca: Any) -> str:
    """Where a CA asks for tls-alpn-01, if it does."""
    port = getattr(ca, "tlsalpn01_port", None)
    return f'listen = ["127.0.0.1:{port}"]' if port else "listen = []"


def configuration(pebble: Any, **sections: str) -> str:
    """A configuration for a CA on loopback; `sections` add lines to a section."""
    host = pebble.directory_url.split("/")[2]
    lines = {
        "nats": "",
        "http01": f'listen = ["127.0.0.1:{pebble.http01_port}"]',
        "tlsalpn01": tlsalpn01_listen(pebble),
        "acme": f'trust_files = ["{pebble.trust_file}"]\nprivate_directories = ["{host}"]',
        "log": 'level = "debug"\nformat = "json"',
    }
    for section, more in sections.items():
        lines[section] = f"{lines.get(section, '')}\n{more}"
    return "\n".join(f"[{section}]\n{text}" for section, text in lines.items())


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


MakePebble = Callable[..., Awaitable[Pebble]]
MakeDaemon = Callable[..., Awaitable[Daemon]]


@pytest.fixture
def make_pebble(stack: AsyncExitStack, tmp_path: Path) -> MakePebble:
    """Start a Pebble; keyword arguments are its environment (PEBBLE_VA_NOSLEEP and so on)."""
    if not pebble_program.is_installed():
        pytest.fail("Debian's package pebble is missing: `make test` installs it, or: apt-get install pebble")

    async def make(dns_server: str | None = None, **environment: str) -> Pebble:
        settings = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0", **environment}
        pebble = Pebble(tmp_path / "pebble", free_port(), settings, dns_server=dns_server)
        stack.push_async_callback(pebble.stop)
        await pebble.start()
        return pebble

    return make


@pytest.fixture
def new_daemon(stack: AsyncExitStack, tmp_path: Path) -> Callable[..., Daemon]:
    """A daemon for a CA, not started yet."""

    def make(pebble: Any, name: str = "daemon", *, url: str | None = None, **sections: str) -> Daemon:
        daemon = Daemon(tmp_path / name, configuration(pebble, **sections), url=url)

        async def end() -> None:
            await daemon.disconnect()
            if daemon.process is not None and daemon.process.is_alive():
                await daemon.process.stop(signal.SIGKILL)

        stack.push_async_callback(end)
        return daemon

    return make


@pytest.fixture
def make_daemon(new_daemon: Callable[..., Daemon]) -> MakeDaemon:
    """Start a daemon for a CA."""

    async def make(pebble: Any, *, url: str | None = None, **sections: str) -> Daemon:
        daemon = new_daemon(pebble, url=url, **sections)
        await daemon.start()
        return daemon

    return make


@dataclass
class NatsServer:
    """An external nats-server on a port that it keeps over restarts; the store goes with the folder."""

    folder: Path
    port: int = field(default_factory=free_port)
    jetstream: bool = True
    user: str = ""
    password: str = ""
    process: Process | None = None

    @property
    def url(self) -> str:
        login = f"{self.user}:{self.password}@" if self.user else ""
        return f"nats://{login}127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [f"listen: 127.0.0.1:{self.port}"]
        if self.jetstream:
            lines.append(f"jetstream {{ store_dir: {json.dumps(str(self.folder / 'store'))} }}")
        if self.user:
            lines.append(f"authorization {{ user: {self.user}, password: {self.password} }}")
        config = self.folder / "server.conf"
        config.write_text("\n".join(lines))
        self.process = Process([str(Path(sys.executable).with_name("nats-server")), "-c", str(config)], self.folder)
        self.process.start()
        await until(lambda: listens(self.port), "nats-server listens")

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            await self.process.stop(number)


@pytest.fixture
def new_nats(stack: AsyncExitStack, tmp_path: Path) -> Callable[..., NatsServer]:
    """An external nats-server, not started yet; keyword arguments are its fields."""

    def make(name: str = "nats", **fields: Any) -> NatsServer:
        server = NatsServer(tmp_path / name, **fields)

        async def end() -> None:
            if server.process is not None and server.process.is_alive():
                await server.process.stop(signal.SIGKILL)

        stack.push_async_callback(end)
        return server

    return make


@dataclass
class HangingCa:
    """A CA whose port takes connections and never says a word: what is asked of it stays under way."""

    folder: Path
    socket: socket.socket
    http01_port: int = 0

    @property
    def directory_url(self) -> str:
        return f"https://localhost:{self.socket.getsockname()[1]}/dir"

    @property
    def trust_file(self) -> Path:
        """Vouches for nobody; the daemon wants certificates in it."""
        path = self.folder / "nobody.pem"
        if not path.exists():
            path.write_bytes(_self_signed())
        return path


def _self_signed() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def _hanging_ca(folder: Path) -> HangingCa:
    # The kernel accepts for us, and nobody ever reads.
    return HangingCa(folder, socket.create_server(("127.0.0.1", 0), backlog=512))


@pytest.fixture
def hanging_ca(tmp_path: Path) -> Iterator[HangingCa]:
    ca = _hanging_ca(tmp_path)
    with ca.socket:
        yield ca


def launched(daemon: Daemon) -> Process:
    """Start the daemon's process without waiting for an answer: it may never give one."""
    daemon.folder.mkdir(parents=True, exist_ok=True)
    config = daemon.folder / "scaivaultd.toml"
    config.write_text(f'state_dir = "{daemon.state_dir}"\n{daemon.configuration}')
    daemon.process = Process([*daemon.arguments, "--config", str(config)], daemon.folder)
    daemon.process.start()
    return daemon.process


@pytest.fixture
def launch() -> Callable[[Daemon], Process]:
    return launched


@pytest.fixture(scope="module")
def waiting_ca(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HangingCa]:
    ca = _hanging_ca(tmp_path_factory.mktemp("waiting_ca"))
    with ca.socket:
        yield ca


@pytest.fixture(scope="module")
def waiting_process(waiting_ca: HangingCa, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for a whole module, whose CA hangs: accounts and orders stay pending. Not connected yet."""
    daemon = Daemon(tmp_path_factory.mktemp("waiting") / "daemon", configuration(waiting_ca))
    process = launched(daemon)
    yield daemon
    asyncio.run(process.stop(signal.SIGKILL))


@pytest.fixture
async def waiting_daemon(waiting_process: Daemon) -> AsyncIterator[Daemon]:
    """The module's daemon with a client for this test."""
    await waiting_process.connect()
    yield waiting_process
    await waiting_process.disconnect()


@dataclass
class LocalCa:
    """A development CA in the test process, as `configuration` and `Daemon.account` want it."""

    ca: DevelopmentCa
    http01_port: int
    trust_file: Path

    @property
    def directory_url(self) -> str:
        return self.ca.directory_url


@pytest.fixture
def make_ca(stack: AsyncExitStack, tmp_path: Path) -> Callable[..., Awaitable[LocalCa]]:
    """Start a development CA in this process; it validates at `http01_port`, where the daemon is to listen."""

    async def make(http01_port: int, *, stack: AsyncExitStack = stack, **options: Any) -> LocalCa:
        ca = await stack.enter_async_context(DevelopmentCa(http01_port=http01_port, **options))
        trust_file = tmp_path / f"{ca.directory_url.split(':')[2].partition('/')[0]}.pem"
        trust_file.write_text(ca.root_pem)
        return LocalCa(ca, http01_port, trust_file)

    return make


@pytest.fixture(scope="session")
def daemon_for(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractAsyncContextManager[Daemon]]:
    """A daemon that may go to several development CAs; usable in any event loop. Its callers bring the roots."""

    @asynccontextmanager
    async def run(http01_port: int, cas: Sequence[DevelopmentCa], **sections: str) -> AsyncIterator[Daemon]:
        folder = tmp_path_factory.mktemp("daemon")
        (folder / "root.pem").write_text(cas[0].root_pem)
        hosts = [ca.directory_url.split("/")[2] for ca in cas]
        one = configuration(LocalCa(cas[0], http01_port, folder / "root.pem"), **sections)
        daemon = Daemon(folder, one.replace(json.dumps(hosts[:1]), json.dumps(hosts)))
        try:
            await daemon.start()
            yield daemon
        finally:
            await daemon.disconnect()
            if daemon.process is not None and daemon.process.is_alive():
                await daemon.process.stop(signal.SIGKILL)

    return run
