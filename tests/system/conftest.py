"""Real servers on loopback: Pebble, nats-server, and the daemon itself as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import nats
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nats.aio.client import Client

START_SECONDS = 30.0


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Process:
    """A child with its output in files, ended by its pid."""

    arguments: list[str]
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    handle: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.handle = subprocess.Popen(
                self.arguments,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                env={**os.environ, **self.environment},
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.handle is not None
        return self.handle.pid

    async def wait(self, seconds: float) -> int:
        assert self.handle is not None
        async with asyncio.timeout(seconds):
            return await asyncio.to_thread(self.handle.wait, seconds)

    async def stop(self, number: int = signal.SIGTERM, seconds: float = 15) -> int:
        assert self.handle is not None
        if self.handle.poll() is None:
            self.handle.send_signal(number)
        return await self.wait(seconds)

    def is_alive(self) -> bool:
        return self.handle is not None and self.handle.poll() is None


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = START_SECONDS) -> None:
    """Ask a foreign server again and again whether it is up; it has no event to wait for."""
    try:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - a foreign process, see above
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{what} within {seconds} s") from None


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def server_certificate(folder: Path) -> Path:
    """A throw-away root and a certificate for localhost below it; returns the root's file."""
    now = datetime.now(UTC)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test HTTPS root")])

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=2))
        )

    root = (
        builder(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        builder(x509.Name([]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=True)
        .sign(root_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "root.pem").write_bytes(root.public_bytes(pem))
    (folder / "cert.pem").write_bytes(leaf.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "root.pem"


@dataclass
class Pebble:
    """Debian's Pebble with its DNS server; every name resolves to 127.0.0.1."""

    folder: Path
    http01_port: int
    environment: dict[str, str]
    directory_url: str = ""
    trust_file: Path = Path()
    management_port: int = 0
    dns_control_port: int = 0
    processes: list[Process] = field(default_factory=list)

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.trust_file = server_certificate(self.folder)
        port, self.management_port, dns, control = free_port(), free_port(), free_port(), free_port()
        configuration = {
            "listenAddress": f"127.0.0.1:{port}",
            "managementListenAddress": f"127.0.0.1:{self.management_port}",
            "certificate": str(self.folder / "cert.pem"),
            "privateKey": str(self.folder / "key.pem"),
            "httpPort": self.http01_port,
            "tlsPort": free_port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
        }
        (self.folder / "config.json").write_text(json.dumps({"pebble": configuration}))
        challtestsrv = ["pebble-challtestsrv", "-defaultIPv6", "", "-dns01", f"127.0.0.1:{dns}"]
        challtestsrv += ["-http01", "", "-https01", "", "-tlsalpn01", "", "-management", f"127.0.0.1:{control}"]
        pebble = ["pebble", "-config", str(self.folder / "config.json"), "-dnsserver", f"127.0.0.1:{dns}"]
        self.processes = [
            Process(challtestsrv, self.folder / "dns"),
            Process(pebble, self.folder / "pebble", self.environment),
        ]
        for process in self.processes:
            process.start()
        self.directory_url = f"https://localhost:{port}/dir"
        self.dns_control_port = control
        await until(lambda: answers(port), "Pebble listens")
        await until(lambda: answers(control), "pebble-challtestsrv listens")

    async def stop(self) -> None:
        for process in self.processes:
            await process.stop()

    async def root_pem(self) -> bytes:
        context = ssl.create_default_context(cafile=str(self.trust_file))
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://localhost:{self.management_port}/roots/0", ssl=context) as response,
        ):
            return await response.read()

    @property
    def requests(self) -> int:
        """How many requests it has seen, by its log."""
        return len(re.findall(r"^Pebble .* (?:GET|HEAD|POST) /", self.processes[1].log, re.MULTILINE))


@dataclass
class Daemon:
    """The real daemon as a process, spoken to over NATS."""

    folder: Path
    configuration: str
    arguments: list[str] = field(default_factory=lambda: [sys.executable, "-m", "scaivaultd", "serve"])
    url: str | None = None
    process: Process | None = None
    client: Client | None = None

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "scaivaultd.toml"
        config.write_text(f'state_dir = "{self.state_dir}"\n{self.configuration}')
        self.process = Process([*self.arguments, "--config", str(config)], self.folder)
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

        url = self.url or json.loads((self.state_dir / "nats/client.json").read_text())["url_with_credentials"]
        return await nats.connect(url, connect_timeout=1, allow_reconnect=False, error_cb=quiet)

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
        body = {"account_id": account_id, "domains": list(domains), "challenge_type": "http-01", **changes}
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
            for sequence in range(info.state.first_seq, info.state.last_seq + 1):
                message = await jetstream.get_msg("SCAIVAULT_EVENTS", sequence)
                found.append((message.subject or "", message.headers or {}, json.loads(message.data or b"")))
        return found

    async def stop(self, number: int = signal.SIGTERM) -> int:
        await self.disconnect()
        assert self.process is not None
        return await self.process.stop(number)


def configuration(pebble: Any, **sections: str) -> str:
    """A configuration for a CA on loopback; `sections` add lines to a section."""
    host = pebble.directory_url.split("/")[2]
    lines = {
        "nats": "",
        "http01": f'listen = ["127.0.0.1:{pebble.http01_port}"]',
        "tlsalpn01": "listen = []",
        "acme": f'trust_files = ["{pebble.trust_file}"]\nprivate_directories = ["{host}"]',
        "log": 'level = "debug"\nformat = "json"',
    }
    for section, more in sections.items():
        lines[section] = f"{lines[section]}\n{more}"
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
    if shutil.which("pebble") is None or shutil.which("pebble-challtestsrv") is None:
        pytest.fail("Debian's package pebble is missing: `make test` installs it, or: apt-get install pebble")

    async def make(**environment: str) -> Pebble:
        settings = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0", **environment}
        pebble = Pebble(tmp_path / "pebble", free_port(), settings)
        stack.push_async_callback(pebble.stop)
        await pebble.start()
        return pebble

    return make


@pytest.fixture
def make_daemon(stack: AsyncExitStack, tmp_path: Path) -> MakeDaemon:
    """Start a daemon for a CA."""

    async def make(pebble: Any, *, url: str | None = None, **sections: str) -> Daemon:
        daemon = Daemon(tmp_path / "daemon", configuration(pebble, **sections), url=url)

        async def end() -> None:
            await daemon.disconnect()
            if daemon.process is not None and daemon.process.is_alive():
                await daemon.process.stop(signal.SIGKILL)

        stack.push_async_callback(end)
        await daemon.start()
        return daemon

    return make
