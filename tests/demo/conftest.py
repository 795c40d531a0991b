"""Shared by the development CA's tests: a small ACME client of its own, an http-01 responder, a clock moved by hand."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from josepy.b64 import b64encode
from josepy.jwk import JWK, JWKEC, JWKRSA

from scaivaultd.demo.ca import DevelopmentCa, Misbehaviour

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class FakeClock:
    """Time stands still until a test moves it; who sleeps wakes when its moment has come."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._sleepers.append((self._monotonic + seconds, woken))
        await woken.wait()

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
        for due, woken in self._sleepers:
            if due <= self._monotonic:
                woken.set()


class Reply:
    """An HTTP answer, read to its end."""

    def __init__(self, response: aiohttp.ClientResponse, body: bytes) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def problem(self) -> str:
        """The name of the problem; fails the test if this is none."""
        assert self.headers["Content-Type"] == "application/problem+json"
        assert self.json["status"] == self.status
        kind: str = self.json["type"]
        return kind.removeprefix("urn:ietf:params:acme:error:")

    @property
    def location(self) -> str:
        return self.headers["Location"]


class Responder:
    """Answers http-01 for every name: token to body. Remembers the Host headers it has seen."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.status = 200
        self.hosts: list[str] = []
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        self.hosts.append(next(line[6:] for line in head.split("\r\n") if line.lower().startswith("host:")))
        body = self.answers.get(path.removeprefix("/.well-known/acme-challenge/"), "")
        status = self.status if body else 404
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()


def b64(data: bytes) -> str:
    return b64encode(data).decode()


def jwk_object(key: Key) -> JWK:
    return JWKEC(key=key) if isinstance(key, ec.EllipticCurvePrivateKey) else JWKRSA(key=key)


def public_jwk(key: Key) -> dict[str, Any]:
    members: dict[str, Any] = jwk_object(key).public_key().to_json()
    return members


def thumbprint(key: Key) -> str:
    return b64(jwk_object(key).thumbprint(hash_function=hashes.SHA256))


def algorithm(key: Key) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        return "RS256"
    return {256: "ES256", 384: "ES384"}[key.curve.key_size]


def sign(key: Key, data: bytes) -> bytes:
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    size = key.curve.key_size // 8
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256() if size == 32 else hashes.SHA384())))
    return r.to_bytes(size) + s.to_bytes(size)


def jws(key: Key, protected: Mapping[str, Any], payload: bytes) -> dict[str, Any]:
    head, body = b64(json.dumps(protected).encode()), b64(payload)
    return {"protected": head, "payload": body, "signature": b64(sign(key, f"{head}.{body}".encode()))}


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class Client:
    """One account of one CA. Every step can be bent: `header` changes members, None removes one."""

    def __init__(self, ca: DevelopmentCa, session: aiohttp.ClientSession, responder: Responder) -> None:
        self.ca = ca
        self.session = session
        self.responder = responder
        self.key: Key = new_key()
        self.kid: str | None = None

    def url(self, path: str) -> str:
        return self.ca.directory_url.replace("/directory", path)

    async def request(self, method: str, url: str, **options: Any) -> Reply:
        async with self.session.request(method, url, allow_redirects=False, **options) as response:
            return Reply(response, await response.read())

    async def nonce(self) -> str:
        return (await self.request("HEAD", self.url("/new-nonce"))).headers["Replay-Nonce"]

    async def signed(
        self, url: str, payload: Any, *, header: Mapping[str, Any] | None = None, key: Key | None = None
    ) -> dict[str, Any]:
        """A JWS for `url`; payload None is a POST-as-GET."""
        key = key or self.key
        signer = {"kid": self.kid} if self.kid else {"jwk": public_jwk(key)}
        changed = {"alg": algorithm(key), "nonce": await self.nonce(), "url": url, **signer, **(header or {})}
        protected = {name: value for name, value in changed.items() if value is not None}
        return jws(key, protected, b"" if payload is None else json.dumps(payload).encode())

    async def send(self, url: str, body: Any, **headers: str) -> Reply:
        """Put a JWS on the wire as it is."""
        fields = {"Content-Type": "application/jose+json", "User-Agent": "tests", **headers}
        return await self.request("POST", url, data=json.dumps(body).encode(), headers=fields)

    async def post(
        self, url: str, payload: Any = None, *, header: Mapping[str, Any] | None = None, key: Key | None = None
    ) -> Reply:
        url = self.url(url) if url.startswith("/") else url
        return await self.send(url, await self.signed(url, payload, header=header, key=key))

    async def register(self, **members: Any) -> Reply:
        self.kid = None
        reply = await self.post("/new-account", {"termsOfServiceAgreed": True, **members})
        if reply.status < 300:
            self.kid = reply.location
        return reply

    def binding(self, kid: str, key: bytes, **header: Any) -> dict[str, str]:
        """An external account binding for this account's key."""
        protected = {"alg": "HS256", "kid": kid, "url": self.url("/new-account"), **header}
        head, body = b64(json.dumps(protected).encode()), b64(json.dumps(public_jwk(self.key)).encode())
        mac = hmac.digest(key, f"{head}.{body}".encode(), hashlib.sha256)
        return {"protected": head, "payload": body, "signature": b64(mac)}

    async def order(self, *names: str) -> Reply:
        return await self.post("/new-order", {"identifiers": [{"type": _kind(name), "value": name} for name in names]})

    async def challenge(self, authorization_url: str, kind: str = "http-01") -> dict[str, Any]:
        """The challenge of that type, with its answer put in place."""
        offered = (await self.post(authorization_url)).json["challenges"]
        challenge: dict[str, Any] = next(each for each in offered if each["type"] == kind)
        self.responder.answers[challenge["token"]] = f"{challenge['token']}.{thumbprint(self.key)}"
        return challenge

    async def settled(self, url: str, *unsettled: str) -> dict[str, Any]:
        """Read until the status is another; each reading is a round trip, so this does not spin."""
        async with asyncio.timeout(10):
            while True:
                document = (await self.post(url)).json
                if document["status"] not in (unsettled or ("pending", "processing")):
                    return document

    async def prove(self, order: Reply, kind: str = "http-01") -> None:
        for url in order.json["authorizations"]:
            challenge = await self.challenge(url, kind)
            await self.post(challenge["url"], {})
            await self.settled(url)

    async def ready_order(self, *names: str) -> Reply:
        order = await self.order(*names)
        await self.prove(order)
        return order

    async def finalize(self, order: Reply, key: Key | None = None, names: list[str] | None = None) -> Reply:
        names = names or [each["value"] for each in order.json["identifiers"]]
        return await self.post(order.json["finalize"], {"csr": csr(key or new_key(), names)})

    async def issue(self, *names: str, key: Key | None = None) -> Reply:
        """Everything; the answer with the chain."""
        done = await self.finalize(await self.ready_order(*names), key)
        return await self.post(done.json["certificate"])


def _kind(name: str) -> str:
    return "ip" if ":" in name or name.replace(".", "").isdecimal() else "dns"


def csr(key: Key, names: list[str], common_name: str | None = None) -> str:
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    san = x509.SubjectAlternativeName([_general_name(name) for name in names])
    request = builder.add_extension(san, critical=True).sign(key, hashes.SHA256())
    return b64(request.public_bytes(Encoding.DER))


def _general_name(name: str) -> x509.GeneralName:
    if _kind(name) == "dns":
        return x509.DNSName(name)
    return x509.IPAddress(ipaddress.ip_address(name))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def misbehaviour() -> Misbehaviour:
    return Misbehaviour()


@pytest.fixture
async def responder() -> AsyncIterator[Responder]:
    answering = Responder()
    server = await asyncio.start_server(answering.serve, "127.0.0.1", 0)
    async with server:
        answering.port = server.sockets[0].getsockname()[1]
        yield answering


@pytest.fixture
def serve(
    clock: FakeClock, misbehaviour: Misbehaviour, responder: Responder
) -> Callable[..., AbstractAsyncContextManager[Client]]:
    """Runs a CA with other options, and a client that has no account yet."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[Client]:
        chosen = {"http01_port": responder.port, "clock": clock, "misbehaviour": misbehaviour, **options}
        async with AsyncExitStack() as exits:
            ca = await exits.enter_async_context(DevelopmentCa(**chosen))
            trust = ssl.create_default_context(cadata=ca.root_pem)
            connector = aiohttp.TCPConnector(ssl=trust)
            session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20))
            yield Client(ca, await exits.enter_async_context(session), responder)

    return run


@pytest.fixture
async def stranger(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> AsyncIterator[Client]:
    """A client of a CA with default settings, without an account."""
    async with serve() as client:
        yield client


@pytest.fixture
async def client(stranger: Client) -> Client:
    """A client with an account."""
    await stranger.register()
    return stranger


@pytest.fixture
def neighbour(client: Client) -> Client:
    """Another client of the same CA, without an account."""
    return Client(client.ca, client.session, client.responder)


@pytest.fixture
def make_key() -> Callable[[], Key]:
    return new_key


@pytest.fixture
def make_csr() -> Callable[..., str]:
    return csr


@pytest.fixture
def make_jws() -> Callable[[Key, Mapping[str, Any], bytes], dict[str, Any]]:
    return jws


@pytest.fixture
def jwk_of() -> Callable[[Key], dict[str, Any]]:
    return public_jwk
