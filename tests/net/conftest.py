"""A CA at the socket: TLS and HTTP spoken by hand, so that it can say anything."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import logging
import socket
import ssl
import subprocess
from collections import defaultdict, deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import LogCapture

from scaivaultd.acme.signing import AccountKey
from scaivaultd.acme.x509 import make_key
from scaivaultd.net.acme_http import CaConnection, CaSettings
from scaivaultd.net.guard import AddressGuard
from tests.fakes.bind import Bind, Zone, free_port, root_hints, zone_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from structlog.typing import EventDict, FilteringBoundLogger


class FakeClock:
    """Sleeping moves time at once; every look at it costs a moment, as on a real machine."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        self._monotonic += 0.001
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


class NoJitter:
    def token_bytes(self, length: int) -> bytes:
        return bytes(length)

    def fraction(self) -> float:
        return 0.0


@dataclass
class Request:
    """One request as it stood on the wire."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    peer: int

    @property
    def jws(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.body)
        return read

    @property
    def protected(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(unpadded(self.jws["protected"]))
        return read


@dataclass
class Reply:
    """An ordinary answer, with a nonce unless `nonce` says otherwise."""

    status: int = 200
    body: bytes = b'{"status":"valid"}'
    headers: dict[str, str] = field(default_factory=dict)
    nonce: bool = True


class WireCa:
    """Answers by path: first what is scripted, then what an honest CA would say."""

    def __init__(self) -> None:
        self.script: defaultdict[str, deque[Any]] = defaultdict(deque)
        self.requests: list[Request] = []
        self.nonces: set[str] = set()
        self.base = ""
        self._given = 0
        self._connections = 0
        self._open: set[asyncio.StreamWriter] = set()
        self.gone = asyncio.Event()

    def asked(self, path: str) -> list[Request]:
        """The requests for that path."""
        return [each for each in self.requests if each.path == path]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        peer = self._connections
        self._open.add(writer)
        try:
            while True:
                request = await self._read(reader, peer)
                self.requests.append(request)
                await self._answer(request, writer)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, peer: int) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        return Request(method, path, headers, body, peer)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        scripted = self.script[request.path].popleft() if self.script[request.path] else self._honest(request)
        if callable(scripted):
            scripted = await scripted(writer)
        if scripted is None:
            return
        data = scripted if isinstance(scripted, bytes) else self.encode(scripted, request.method)
        writer.write(data)
        await writer.drain()

    def encode(self, reply: Reply, method: str = "GET") -> bytes:
        headers = {"Content-Length": str(len(reply.body)), "Content-Type": "application/json", **reply.headers}
        if reply.nonce:
            headers["Replay-Nonce"] = self.give_nonce()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {reply.status} Any\r\n{lines}\r\n".encode() + (b"" if method == "HEAD" else reply.body)

    def give_nonce(self) -> str:
        self._given += 1
        nonce = f"nonce-{self._given}"
        self.nonces.add(nonce)
        return nonce

    def _honest(self, request: Request) -> Reply:
        if request.path == "/directory":
            names = ("newNonce", "newAccount", "newOrder")
            document = {name: f"{self.base}/{name}" for name in names}
            return Reply(body=json.dumps(document).encode(), nonce=False)
        if request.path == "/newNonce":
            return Reply(body=b"")
        if request.protected["nonce"] not in self.nonces:
            return bad_nonce()
        self.nonces.remove(request.protected["nonce"])
        location = {"Location": f"{self.base}/made"} if request.path in ("/newAccount", "/newOrder") else {}
        return Reply(status=201 if location else 200, headers=location)

    async def reset(self, writer: asyncio.StreamWriter) -> None:
        """Script entry: drop the connection."""
        writer.transport.abort()
        raise ConnectionResetError

    async def hang(self, writer: asyncio.StreamWriter) -> None:
        """Script entry: answer nothing until the test is over."""
        await self.gone.wait()

    async def close(self) -> None:
        self.gone.set()
        for writer in list(self._open):
            writer.close()


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def problem(name: str, status: int = 400, **headers: str) -> Reply:
    body = {"type": f"urn:ietf:params:acme:error:{name}", "detail": f"about {name}"}
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json", **headers})


def bad_nonce() -> Reply:
    return problem("badNonce")


@dataclass
class Identity:
    """A self-signed certificate for loopback, as files and as PEM."""

    pem: str
    context: ssl.SSLContext


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2120, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder: Path = tmp_path_factory.mktemp("tls")
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(pem + key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return Identity(pem.decode(), context)


@pytest.fixture(scope="session")
def account_key() -> AccountKey:
    return AccountKey(make_key("ec-p256"))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def logged(capture: LogCapture) -> list[EventDict]:
    return capture.entries


@pytest.fixture
def log(capture: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    return logger


@pytest.fixture
async def ca(identity: Identity) -> AsyncIterator[WireCa]:
    ca = WireCa()
    server = await asyncio.start_server(ca.serve, "127.0.0.1", 0, ssl=identity.context, limit=4 << 20)
    ca.base = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield ca
    finally:
        server.close()
        await ca.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await server.wait_closed()


@pytest.fixture
async def make_connection(
    ca: WireCa, identity: Identity, clock: FakeClock, log: FilteringBoundLogger
) -> AsyncIterator[Callable[..., CaConnection]]:
    """A connection to the CA; keyword arguments change what it is made with."""
    async with AsyncExitStack() as stack:

        def make(
            *, pem: str | None = identity.pem, listed: bool = True, url: str | None = None, **settings: Any
        ) -> CaConnection:
            host = ca.base.removeprefix("https://")
            connection = CaConnection(
                url or f"{ca.base}/directory",
                pem,
                CaSettings(user_agent="scaivaultd/test", **settings),
                guard=AddressGuard([host] if listed else []),
                clock=clock,
                randomness=NoJitter(),
                log=log,
            )
            stack.push_async_callback(connection.close)
            return connection

        yield make


@pytest.fixture
def reply() -> type[Reply]:
    return Reply


@pytest.fixture
def refusal() -> Callable[..., Reply]:
    """An answer with a problem document."""
    return problem


class World:
    """A DNS of its own on loopback: root, two servers of zones in all kinds of trouble, a validating resolver."""

    ROOT, FIRST, SECOND, STRANGER, RESOLVER, SILENT, CLOSED = (f"127.0.0.{number}" for number in range(1, 8))

    def __init__(self, folder: Path) -> None:
        self.port = free_port(self.ROOT, self.FIRST, self.SECOND, self.STRANGER, self.RESOLVER, self.SILENT, "::1")
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def resolver(self) -> str:
        return f"{self.RESOLVER}:{self.port}"

    def at(self, address: str) -> str:
        """An address as verdicts show it."""
        return f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"

    def servers(self) -> list[Bind]:
        root = [Zone(".", zone_text(f"@ NS ns.root.\nns.root. A {self.ROOT}")), Zone("test", self._top())]
        return [
            self._bind("root", [self.ROOT], root),
            self._bind("first", [self.FIRST, "::1"], self._first()),
            self._bind("second", [self.SECOND], self._second()),
            self._bind("stranger", [self.STRANGER], [Zone("stranger", zone_text(f"@ NS ns\nns A {self.STRANGER}"))]),
            self._bind(
                "resolver",
                [self.RESOLVER],
                [root_hints(self.ROOT)],
                recursion=True,
                options="dnssec-validation yes; servfail-ttl 0;",
                more=f"trust-anchors {{ {self._anchor('expired.test')} {self._anchor('signed.test')} }};",
            ),
        ]

    def _bind(self, name: str, addresses: list[str], zones: list[Zone], **more: Any) -> Bind:
        return Bind(self._folder / name, zones, addresses=addresses, port=self.port, **more)

    def _top(self) -> str:
        served_by = {
            "example": ["ns1.example", "ns2.example"],
            "other": ["ns1.example"],
            "lame": ["ns1.example", "ns.stranger"],
            "half": ["ns1.example", "ns.stranger"],
            "silent": ["ns.silent", "ns2.silent"],
            "homeless": ["ns.nowhere.invalid."],
            "expired": ["ns1.example"],
            "signed": ["ns1.example"],
            "six": ["ns.six"],
            "late": ["ns1.late", "ns2.late"],
        }
        lines = ["@ NS ns.root."]
        lines += [f"{zone} NS {server}" for zone, servers in served_by.items() for server in servers]
        addresses = {"ns1.example": self.FIRST, "ns2.example": self.SECOND, "ns.stranger": self.STRANGER}
        addresses |= {
            "ns1.late": self.SECOND,
            "ns2.late": self.FIRST,
            "ns.silent": self.SILENT,
            "ns2.silent": self.CLOSED,
        }
        lines += [f"{name} A {address}" for name, address in addresses.items()]
        return zone_text("\n".join([*lines, "ns.six AAAA ::1", "ns.six AAAA 2001:db8::53"]))

    def _example(self) -> list[str]:
        big = "\n".join(f'big TXT "{number:02}-{"x" * 200}" "{"y" * 40}"' for number in range(40))
        hops = "\n".join(f"hop{number} CNAME hop{number + 1}" for number in range(12))
        example = f"""
            @ NS ns1
            @ NS ns2
            ns1 A {self.FIRST}
            ns2 A {self.SECOND}
            @ CAA 0 issue "ca.test"
            @ CAA 128 ISSUEWILD ";"
            www A 192.0.2.1
            _acme-challenge.www CNAME www.acme.other.test.
            _acme-challenge.long CNAME _acme-challenge.www
            loop1 CNAME loop2
            loop2 CNAME loop1
            selfish CNAME selfish
            into CNAME loop1
            {hops}
            tree DNAME acme.other.test.
            alias CNAME www.other.test.
            nowhere CNAME x.y.missing.
            dead CNAME x.lame.test.
            *.wild A 192.0.2.2
            *.cwild CNAME wild.acme.other.test.
            *.awild CNAME www.other.test.
            sub NS ns2
            _acme-challenge.own NS ns2
            values TXT one
            values TXT "t" "wo"
            values TXT three
            inner NS ns1
            {big}
        """
        return [line.strip() for line in example.splitlines()]

    def _late(self) -> str:
        return f"@ NS ns1\n@ NS ns2\nns1 A {self.SECOND}\nns2 A {self.FIRST}"

    def _first(self) -> list[Zone]:
        other = ["@ NS ns1.example.test.", "www A 192.0.2.3", 'www CAA 0 issue "other-ca.test"']
        other += [f"_acme-challenge.{each} NS ns1.example.test." for each in ("same", "empty")]
        return [
            Zone("example.test", zone_text("\n".join(self._example()), serial=20)),
            Zone("inner.example.test", zone_text("@ NS ns1.example.test.\nthere TXT value")),
            Zone("other.test", zone_text("\n".join(other))),
            Zone("_acme-challenge.same.other.test", zone_text("@ NS ns1.example.test.\n@ TXT value")),
            Zone("_acme-challenge.empty.other.test", zone_text("@ NS ns1.example.test.")),
            Zone("late.test", zone_text(f"{self._late()}\nnew CNAME x.other.test.\nzone NS ns2", serial=2)),
            Zone("zone.late.test", zone_text("@ NS ns2.late.test.")),
            Zone("half.test", zone_text("@ NS ns1.example.test.\n@ NS ns.stranger.test.\nx TXT value")),
            Zone("six.test", zone_text("@ NS ns\nns AAAA ::1\nns AAAA 2001:db8::53\nx TXT value")),
            Zone("signed.test", self._signed("signed.test", "-e", "+8640000")),
            Zone("expired.test", self._signed("expired.test", "-s", "20200101000000", "-e", "20200201000000")),
        ]

    def _second(self) -> list[Zone]:
        unheard = ("values TXT t", "values TXT three", "_acme-challenge.www")
        lagging = [line for line in self._example() if not line.replace('"', "").startswith(unheard)]
        return [
            Zone("example.test", zone_text("\n".join(lagging), serial=19)),
            Zone("late.test", zone_text(self._late())),
            Zone("sub.example.test", zone_text("@ NS ns2.example.test.\nwww A 192.0.2.4")),
            Zone("_acme-challenge.own.example.test", zone_text("@ NS ns2.example.test.")),
        ]

    def _keys(self, zone: str) -> str:
        # One key that does all: what is tested is the resolver's verdict, not how keys are rolled.
        if not (made := sorted(self._folder.glob(f"K{zone}.*.key"))):
            self._run("dnssec-keygen", "-q", "-a", "ECDSAP256SHA256", "-f", "KSK", zone)
            made = sorted(self._folder.glob(f"K{zone}.*.key"))
        return made[0].read_text(encoding="utf-8")

    def _anchor(self, zone: str) -> str:
        record = next(line for line in self._keys(zone).splitlines() if not line.startswith(";")).split()
        return f'"{zone}" static-key 257 3 13 "{"".join(record[record.index("257") + 3 :])}";'

    def _signed(self, zone: str, *validity: str) -> str:
        key = self._keys(zone)
        unsigned = self._folder / f"{zone}.unsigned"
        unsigned.write_text(zone_text(f"@ NS ns1.example.test.\nx TXT value\n{key}"), encoding="utf-8")
        signed = self._folder / f"{zone}.signed"
        self._run("dnssec-signzone", "-q", "-P", "-z", "-o", zone, *validity, "-f", str(signed), str(unsigned))
        return signed.read_text(encoding="utf-8")

    def _run(self, *command: str) -> None:
        subprocess.run(command, cwd=self._folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dns")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(world_folder: Path) -> AsyncIterator[World]:
    world = World(world_folder)
    async with AsyncExitStack() as stack:
        for server in world.servers():
            await stack.enter_async_context(server)
        silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind((world.SILENT, world.port))
        yield world
