"""A CA at the socket: TLS and HTTP spoken by hand, so that it can say anything."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import json
import logging
import ssl
from collections import defaultdict, deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
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
