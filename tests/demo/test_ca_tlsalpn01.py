"""The development CA's look at tls-alpn-01: every rule of RFC 8737 and RFC 8738 section 6, broken one at a time."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from scaivaultd.demo.ca import CaSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.demo.conftest import Client

    Serve = Callable[..., AbstractAsyncContextManager[Client]]

NAME = "a.example.test"
DNS_NAME = x509.DNSName(NAME)
SUBJECT = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "challenge")])
OTHER = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "somebody else")])
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


class TlsServer:
    """Answers tls-alpn-01 with one certificate for whatever name; each rule can be broken by a member."""

    def __init__(self, folder: Path) -> None:
        self.port = 0
        self.names: Sequence[x509.GeneralName] = [DNS_NAME]
        self.protocols: Sequence[str] = ["acme-tls/1"]
        self.critical = True
        self.prefix = b"\x04\x20"
        self.issuer = SUBJECT
        self.signer: ec.EllipticCurvePrivateKey | None = None
        self.with_mark = True
        self.with_names = True
        self.asked: list[str | None] = []
        self._folder = folder
        self._context: ssl.SSLContext | None = None

    def prove(self, key_authorization: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key = ec.generate_private_key(ec.SECP256R1())
        path = self._folder / "challenge.pem"
        key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(key_pem + self._certificate(key, key_authorization).public_bytes(Encoding.PEM))
        context.load_cert_chain(path)
        if self.protocols:
            context.set_alpn_protocols(list(self.protocols))
        context.sni_callback = lambda _socket, name, _context: self.asked.append(name)
        self._context = context

    def _certificate(self, key: ec.EllipticCurvePrivateKey, key_authorization: str) -> x509.Certificate:
        now = datetime.now(UTC)
        digest = self.prefix + hashlib.sha256(key_authorization.encode()).digest()
        builder = (
            x509.CertificateBuilder()
            .subject_name(SUBJECT)
            .issuer_name(self.issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
        )
        if self.with_names:
            builder = builder.add_extension(x509.SubjectAlternativeName(self.names), critical=False)
        if self.with_mark:
            mark = x509.UnrecognizedExtension(ACME_IDENTIFIER, digest)
            builder = builder.add_extension(mark, critical=self.critical)
        return builder.sign(self.signer or key, hashes.SHA256())

    async def serve(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._context is not None, "nothing to show yet"
        try:
            await writer.start_tls(self._context)
        except OSError:
            pass  # the CA may hang up in the middle
        finally:
            writer.transport.abort()


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[TlsServer]:
    answering = TlsServer(tmp_path)
    server = await asyncio.start_server(answering.serve, "127.0.0.1", 0)
    async with server:
        answering.port = server.sockets[0].getsockname()[1]
        yield answering


@pytest.fixture
async def account(serve: Serve, tls: TlsServer) -> AsyncIterator[Client]:
    async with serve(tlsalpn01_port=tls.port) as client:
        await client.register()
        yield client


async def outcome(
    client: Client, prove: Callable[[str], None] | None, identifier: str = NAME
) -> tuple[str, dict[str, Any]]:
    """Status of the authorization and the challenge's error."""
    order = await client.order(identifier)
    url = order.json["authorizations"][0]
    challenge = await client.challenge(url, "tls-alpn-01")
    if prove is not None:
        prove(client.responder.answers[challenge["token"]])
    await client.post(challenge["url"], {})
    authorization = await client.settled(url)
    [settled] = [each for each in authorization["challenges"] if each["type"] == "tls-alpn-01"]
    return authorization["status"], settled.get("error", {})


async def refused(client: Client, prove: Callable[[str], None] | None) -> tuple[str, str]:
    """Type and detail of the error of a challenge that must fail."""
    status, error = await outcome(client, prove)
    assert status == "invalid", "the CA believed it"
    return error["type"].removeprefix("urn:ietf:params:acme:error:"), error["detail"]


@asynccontextmanager
async def answering(reply: bytes | None) -> AsyncIterator[tuple[int, asyncio.Future[bytes]]]:
    """A port that takes a ClientHello and answers these bytes; None: it never answers."""
    hello: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readexactly(5)
        hello.set_result(head + await reader.readexactly(int.from_bytes(head[3:], "big")))
        if reply is None:
            await reader.read()
        else:
            writer.write(reply)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], hello


async def test_the_right_certificate_convinces(account: Client, tls: TlsServer) -> None:
    """The yardstick for all that follow: each breaks one thing of this."""
    assert await outcome(account, tls.prove) == ("valid", {})
    assert tls.asked == [NAME]


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
async def test_an_address_is_asked_for_by_its_reverse_name(account: Client, tls: TlsServer, address: str) -> None:
    """RFC 8738 section 6: SNI cannot hold an address, the certificate must."""
    parsed = ipaddress.ip_address(address)
    tls.names = [x509.IPAddress(parsed)]
    assert await outcome(account, tls.prove, address) == ("valid", {})
    assert tls.asked == [parsed.reverse_pointer]


async def test_an_address_is_not_proven_by_its_reverse_name(account: Client, tls: TlsServer) -> None:
    """That certificate would answer for a name in in-addr.arpa."""
    tls.names = [x509.DNSName("7.2.0.192.in-addr.arpa")]
    status, error = await outcome(account, tls.prove, "192.0.2.7")
    assert (status, "unexpected identifiers" in error["detail"]) == ("invalid", True)


async def test_case_of_the_name_does_not_matter(account: Client, tls: TlsServer) -> None:
    """RFC 8737 section 3 compares names as DNS does."""
    tls.names = [x509.DNSName("A.Example.TEST")]
    assert await outcome(account, tls.prove) == ("valid", {})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"protocols": []}, "Cannot negotiate ALPN"),
        ({"protocols": ["h2", "http/1.1"]}, "Cannot negotiate ALPN"),
        ({"names": [DNS_NAME, x509.DNSName("b.example.test")]}, "unexpected identifiers: a.example.test, b.example"),
        ({"names": [DNS_NAME, DNS_NAME]}, "unexpected identifiers"),
        ({"names": [x509.DNSName("b.example.test")]}, "unexpected identifiers: b.example.test"),
        ({"names": [x509.RFC822Name(NAME)]}, "unexpected identifiers"),
        ({"names": [DNS_NAME, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]}, "unexpected identifiers"),
        ({"with_names": False}, "without subjectAltName"),
        ({"with_mark": False}, "without acmeIdentifier"),
        ({"critical": False}, "not critical"),
        ({"prefix": b""}, "acmeIdentifier extension value"),
        ({"prefix": b"\x03\x20"}, "acmeIdentifier extension value"),
        ({"issuer": OTHER}, "not self-signed"),
        ({"signer": ec.generate_private_key(ec.SECP256R1())}, "not self-signed"),
    ],
    ids=[
        "no protocol",
        "other protocols",
        "two names",
        "the name twice",
        "another name",
        "a mail address",
        "an address besides",
        "no names",
        "no acmeIdentifier",
        "acmeIdentifier not critical",
        "a bare digest",
        "not an octet string",
        "another issuer",
        "another signer",
    ],
)
async def test_a_certificate_that_breaks_a_rule_is_unauthorized(
    account: Client, tls: TlsServer, broken: dict[str, Any], said: str
) -> None:
    """Real CAs refuse each of these; a listener that gets away with one here fails in the field."""
    for member, value in broken.items():
        setattr(tls, member, value)
    kind, detail = await refused(account, tls.prove)
    assert kind == "unauthorized"
    assert said in detail


async def test_the_digest_is_of_this_key_authorization(account: Client, tls: TlsServer) -> None:
    """An answer to yesterday's challenge is no answer to today's; both digests help to see which it was."""
    wanted: list[str] = []

    def prove(key_authorization: str) -> None:
        wanted.append(hashlib.sha256(key_authorization.encode()).hexdigest())
        tls.prove(f"{key_authorization}x")

    kind, detail = await refused(account, prove)
    assert kind == "unauthorized"
    assert f"expected {wanted[0]}" in detail


async def test_it_offers_one_protocol_one_name_and_modern_tls(serve: Serve) -> None:
    """RFC 8737 sections 3 and 4: nothing but acme-tls/1, and no TLS before 1.2."""
    async with answering(b"") as (port, hello), serve(tlsalpn01_port=port) as client:
        await client.register()
        await refused(client, None)
        sent = await hello
    assert b"\x00\x10\x00\x0d\x00\x0b\x0aacme-tls/1" in sent
    assert b"\x00\x2b\x00\x05\x04\x03\x04\x03\x03" in sent
    assert b"\x00\x00\x0ea.example.test" in sent


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "tls"),
        (b"\x15\x03\x03\x00\x02\x02\x70", "tls"),
        (b"\x15\x03\x03\x00\x02\x02\x78", "tls"),
        (b"\x16\x03\x03\x00\x04abcd", "tls"),
        (b"", "connection"),
    ],
    ids=["not tls", "unrecognized_name", "no_application_protocol", "nonsense", "hangs up"],
)
async def test_what_ends_the_handshake_is_told_apart(serve: Serve, reply: bytes, kind: str) -> None:
    """`tls` sends people to their TLS server, `connection` to their firewall."""
    async with answering(reply) as (port, _), serve(tlsalpn01_port=port) as client:
        await client.register()
        found, detail = await refused(client, None)
    assert (found, f"127.0.0.1:{port}" in detail) == (kind, True)


async def test_nobody_listening_is_a_connection_problem(serve: Serve) -> None:
    """With the words that a real CA has for it."""
    async with answering(b"") as (port, _):
        pass
    async with serve(tlsalpn01_port=port) as client:
        await client.register()
        kind, detail = await refused(client, None)
    assert (kind, "Connect" in detail) == ("connection", True)


async def test_a_server_that_never_answers_is_given_up(serve: Serve) -> None:
    """A CA does not wait for ever, so a hung listener has to fail."""
    settings = CaSettings(validation_seconds=0.2)
    async with answering(None) as (port, _), serve(tlsalpn01_port=port, settings=settings) as client:
        await client.register()
        kind, detail = await refused(client, None)
    assert kind == "connection"
    assert "no TLS handshake within 0.2 s" in detail


async def test_the_resolver_says_where_it_connects(serve: Serve, tls: TlsServer) -> None:
    """A name without an address is found out before anything is connected."""

    def resolve(name: str) -> str:
        raise LookupError(name)

    async with serve(tlsalpn01_port=tls.port, resolve=resolve) as client:
        await client.register()
        assert (await refused(client, tls.prove))[0] == "dns"
    assert tls.asked == []
