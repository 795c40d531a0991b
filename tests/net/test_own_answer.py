"""The look at our own answers, at the daemon's listeners and at servers that mean no good."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from aiohttp.abc import ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scaivaultd.listeners.http01 import Http01Fallback, Http01Listener
from scaivaultd.listeners.http01_admission import Http01Limits
from scaivaultd.listeners.sockets import bind_all
from scaivaultd.listeners.tlsalpn01 import TlsAlpn01Listener
from scaivaultd.listeners.tlsalpn01_certificate import challenge_context
from scaivaultd.model.clock import SystemClock
from scaivaultd.net.own_answer import ADDRESSES_MAX, BODY_MAX, OwnAnswers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf"
PROOF = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
DIGEST = hashlib.sha256(PROOF.encode()).digest()
NAME = "a.example.test"
GOOD = f"HTTP/1.1 200 OK\r\nContent-Length: {len(PROOF)}\r\n\r\n{PROOF}".encode()
SHORT = 0.3
"""For servers that never end."""

log = structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()])


def answers(port: int, *addresses: str, **more: Any) -> OwnAnswers:
    """Looks at `addresses` for every name, on one port for both types."""

    async def look_up(host: str, at: int, family: socket.AddressFamily) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=each, port=at, family=family, proto=0, flags=0)
            for each in addresses or ("127.0.0.1",)
        ]

    return OwnAnswers(
        **{
            "http01_port": port,
            "tlsalpn01_port": port,
            "user_agent": "scaivaultd-test",
            "look_up": look_up,
            **more,
        }
    )


@asynccontextmanager
async def http01_listener(listen: str = "127.0.0.1:0", **more: Any) -> AsyncIterator[int]:
    """The daemon's own, with an answer for TOKEN."""
    listener = Http01Listener(bind_all([listen]).sockets, clock=SystemClock(), log=log, limits=Http01Limits(), **more)
    listener.put(TOKEN, PROOF)
    await listener.start()
    try:
        yield listener.addresses[0][1]
    finally:
        await listener.close()


@asynccontextmanager
async def tlsalpn01_listener(*identifiers: str) -> AsyncIterator[int]:
    listener = TlsAlpn01Listener(bind_all(["127.0.0.1:0"]).sockets, clock=SystemClock(), log=log)
    for each in identifiers or (NAME,):
        listener.put(each, PROOF)
    await listener.start()
    try:
        yield listener.addresses[0][1]
    finally:
        await listener.close()


@dataclass
class Server:
    """What was asked of a server, connection by connection, and what it says."""

    says: Sequence[bytes] = ()
    port: int = 0
    heads: list[str] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    act: Act | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.act is not None:
                await self.act(reader, writer)
                return
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            writer.write(self.says[min(len(self.heads), len(self.says)) - 1].replace(b"PORT", str(self.port).encode()))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.gone.set()
            writer.close()


@asynccontextmanager
async def serving(
    *says: bytes,
    act: Act | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """A server that says these things, one per connection and the last for ever, or does `act`."""
    played = Server(says, act=act)
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(played.serve, host, port, ssl=tls)
        stack.callback(server.close)
        played.port = server.sockets[0].getsockname()[1]
        yield played


@pytest.fixture
def closed_port() -> int:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port: int = gone.getsockname()[1]
    return port


async def stays_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.read(65536):
        pass


async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    writer.transport.abort()


async def apologizes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


def talks_for_ever(head: bytes, again: bytes) -> Act:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(again)
            await writer.drain()

    return talk


class TestHttp01:
    async def test_our_own_answer_is_seen(self) -> None:
        """All is well: the daemon's own listener answers under the name."""
        async with http01_listener() as port:
            assert await answers(port).http01(NAME, TOKEN, PROOF) is None

    @pytest.mark.parametrize(("host", "listen"), [("127.0.0.1", "127.0.0.1:0"), ("::1", "[::1]:0")])
    async def test_addresses_are_looked_at_without_dns(self, host: str, listen: str) -> None:
        """RFC 8738: an address proves itself; there is nothing to look up."""

        async def never(*_: Any) -> list[ResolveResult]:
            raise AssertionError("an address was looked up")

        async with http01_listener(listen) as port:
            assert await answers(port, look_up=never).http01(host, TOKEN, PROOF) is None

    async def test_an_unknown_token_is_told_by_its_status(self) -> None:
        """Another instance behind the name that does not know of the order is the usual fault."""
        async with http01_listener() as port:
            assert await answers(port).http01(NAME, "x" * 30, PROOF) == f"127.0.0.1:{port}: status 404"

    async def test_the_request_says_who_asks_and_nothing_else(self) -> None:
        """It goes to hosts of strangers."""
        async with serving(GOOD) as server:
            assert await answers(server.port).http01(NAME, TOKEN, PROOF) is None
        request, *fields = server.heads[0].split("\r\n")
        assert request == f"GET /.well-known/acme-challenge/{TOKEN} HTTP/1.1"
        assert sorted(each for each in fields if each) == [
            "Accept-Encoding: identity",
            "Accept: */*",
            "Connection: close",
            f"Host: {NAME}:{server.port}",
            "User-Agent: scaivaultd-test",
        ]

    async def test_white_space_at_the_end_is_nothing(self) -> None:
        """RFC 8555 section 8.3; files end in line breaks."""
        async with serving(b"HTTP/1.0 200 OK\r\n\r\n" + PROOF.encode() + b" \r\n\n") as server:
            assert await answers(server.port).http01(NAME, TOKEN, PROOF) is None

    @pytest.mark.parametrize(
        ("said", "seen"),
        [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<evil", "another answer of 5 bytes"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "another answer of 0 bytes"),
            (b"HTTP/1.0 200 OK\r\n\r\n " + PROOF.encode(), f"another answer of {len(PROOF) + 1} bytes"),
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"x" * (BODY_MAX + 1),
                f"another answer of more than {BODY_MAX} bytes",
            ),
            (GOOD.replace(b"200 OK", b"206 Partial"), "status 206"),
            (b"HTTP/1.1 503 <script>\r\nContent-Length: 0\r\n\r\n", "status 503"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "no valid HTTP answer"),
            (b"", "the connection was closed without an answer"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", "no valid HTTP answer"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "no valid HTTP answer"),
            (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "a redirect that cannot be read"),
            (b"HTTP/1.1 302 Found\r\nLocation: http://[::\r\n\r\n", "a redirect that cannot be read"),
        ],
    )
    async def test_what_else_is_there_is_told_in_our_words(self, said: bytes, seen: str) -> None:
        """The text goes into the order; whoever answers must not write into it."""
        async with serving(said) as server:
            assert await answers(server.port).http01(NAME, TOKEN, PROOF) == f"127.0.0.1:{server.port}: {seen}"

    async def test_a_closed_port_is_told(self, closed_port: int) -> None:
        """The listener is not on, or a firewall says no."""
        assert await answers(closed_port).http01(NAME, TOKEN, PROOF) == f"127.0.0.1:{closed_port}: connection refused"

    async def test_a_reset_is_told(self) -> None:
        """Middleboxes do so."""
        async with serving(act=resets) as server:
            seen = await answers(server.port).http01(NAME, TOKEN, PROOF)
        assert seen == f"127.0.0.1:{server.port}: connection reset by peer"

    @pytest.mark.parametrize(
        "act",
        [
            stays_silent,
            talks_for_ever(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
            talks_for_ever(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 10),
        ],
        ids=["silence", "continue", "a chunk size without end"],
    )
    async def test_servers_that_never_end_cost_their_time_limit(self, act: Act) -> None:
        """An order waits for it, and the connection must not outlive it."""
        async with serving(act=act) as server:
            seen = await answers(server.port, total_seconds=SHORT).http01(NAME, TOKEN, PROOF)
            assert seen in (
                f"127.0.0.1:{server.port}: no answer in time",
                f"127.0.0.1:{server.port}: no valid HTTP answer",
            )
            await asyncio.wait_for(server.gone.wait(), 10)

    @pytest.mark.parametrize(
        ("head", "again"),
        [
            (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
            (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", b"x" * 65536),
        ],
        ids=["body", "head", "body of an error"],
    )
    async def test_of_an_endless_answer_little_is_read(self, head: bytes, again: bytes) -> None:
        """Memory is ours, and what is too much ends at once."""
        async with serving(act=talks_for_ever(head, again)) as server:
            seen = await answers(server.port, total_seconds=30).http01(NAME, TOKEN, PROOF)
            assert seen is not None
            assert "in time" not in seen
            await asyncio.wait_for(server.gone.wait(), 10)

    async def test_connecting_has_a_limit_of_its_own(self) -> None:
        """Packets that vanish are the usual firewall; that is to be known before the order's time is over."""
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full, socket.socket() as waiting:
            waiting.connect(full.getsockname())
            port = full.getsockname()[1]
            looker = answers(port, connect_seconds=0.1, total_seconds=30)
            seen = await looker.http01(NAME, TOKEN, PROOF), await looker.tlsalpn01(NAME, DIGEST)
        assert seen == (f"127.0.0.1:{port}: no answer in time",) * 2


class TestRedirects:
    """CAs follow them (RFC 8555 section 8.3); we do only where a caller cannot send us anywhere by them."""

    @staticmethod
    def to(location: str, status: int = 301) -> bytes:
        return f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_the_same_host_is_followed(self, status: int) -> None:
        """Web servers send challenges to other paths."""
        async with serving(
            self.to(f"http://{NAME.upper()}:PORT/elsewhere?x=1", status), self.to("more"), GOOD
        ) as server:
            assert await answers(server.port).http01(NAME, TOKEN, PROOF) is None
        assert [each.split(" ")[1] for each in server.heads[1:]] == ["/elsewhere?x=1", "/more"]

    async def test_https_is_followed_without_a_question_of_trust(self, certificate: ssl.SSLContext) -> None:
        """ "Everything to https" is the usual redirect, before there is a certificate."""
        async with AsyncExitStack() as stack:
            secure = await stack.enter_async_context(serving(GOOD, tls=certificate))
            plain = await stack.enter_async_context(serving(self.to(f"https://{NAME}:{secure.port}/x")))
            looker = answers(plain.port, tlsalpn01_port=secure.port)
            assert await looker.http01(NAME, TOKEN, PROOF) is None

    async def test_our_own_redirecting_fallback_leads_to_another_port(self) -> None:
        """The listener sends what it does not know to https on 443, where nobody is here."""
        async with http01_listener(fallback=Http01Fallback(kind="redirect")) as port:
            seen = await answers(port, "127.0.0.9").http01(NAME, "x" * 30, PROOF)
            assert seen == f"127.0.0.9:{port}: connection refused"

    async def test_a_circle_ends(self) -> None:
        """Three are enough for every honest server."""
        async with serving(self.to(f"/.well-known/acme-challenge/{TOKEN}")) as server:
            seen = await answers(server.port).http01(NAME, TOKEN, PROOF)
        assert seen == f"127.0.0.1:{server.port}: more than 3 redirects"
        assert len(server.heads) == 4

    @pytest.mark.parametrize(
        ("location", "seen"),
        [
            ("http://127.0.0.1:PORT/", "a redirect to another host, which is not looked at from here"),
            ("http://other.example.test:PORT/", "a redirect to another host, which is not looked at from here"),
            ("//x@other.example.test:PORT/", "a redirect to another host, which is not looked at from here"),
            (f"http://{NAME}:22/", "a redirect that CAs do not follow: neither http at port 80 nor https at port 443"),
            (f"ftp://{NAME}/", "a redirect that CAs do not follow: neither http at port 80 nor https at port 443"),
            ("file:///etc/passwd", "a redirect that CAs do not follow: neither http at port 80 nor https at port 443"),
        ],
    )
    async def test_nobody_is_sent_elsewhere(self, location: str, seen: str) -> None:
        """A redirect into our own network is how such a look would be misused."""
        async with serving(self.to(location), GOOD) as server:
            assert await answers(server.port).http01(NAME, TOKEN, PROOF) == f"127.0.0.1:{server.port}: {seen}"
        assert len(server.heads) == 1

    async def test_cookies_and_users_are_not_sent_back(self) -> None:
        """We are nobody there."""
        first = self.to(f"http://user:word@{NAME}:PORT/x").replace(b"Content", b"Set-Cookie: a=b; Path=/\r\nContent")
        async with serving(first, GOOD) as server:
            assert await answers(server.port).http01(NAME, TOKEN, PROOF) is None
        assert "Cookie" not in server.heads[1]
        assert "Authorization" not in server.heads[1]


class TestAddresses:
    async def test_each_address_is_looked_at(self, closed_port: int) -> None:
        """A CA asks one of them, and which is not ours to choose."""
        async with http01_listener() as port:
            looker = answers(port, "::1", "127.0.0.1", "127.0.0.2")
            seen = await looker.http01(NAME, TOKEN, PROOF)
        assert seen == f"[::1]:{port}: connection refused; 127.0.0.2:{port}: connection refused"

    async def test_both_families_have_their_share(self, closed_port: int) -> None:
        """Many AAAA records must not hide the one A record, nor may anybody make us connect everywhere."""
        many = [f"::ffff:127.0.0.{number}" for number in range(1, 9)]
        seen = await answers(closed_port, *many, "127.0.0.1").http01(NAME, TOKEN, PROOF)
        assert seen is not None
        assert seen.count("connection refused") == ADDRESSES_MAX
        assert f"; 127.0.0.1:{closed_port}: " in seen

    async def test_an_address_without_a_route_says_nothing_of_the_name(self) -> None:
        """Hosts without IPv6 are common, and CAs have it. Linux has no route for TCP to the address of all."""
        nowhere = "255.255.255.255"
        async with http01_listener() as port:
            assert await answers(port, nowhere, "127.0.0.1").http01(NAME, TOKEN, PROOF) is None
            seen = await answers(port, nowhere).http01(NAME, TOKEN, PROOF)
            seen_by_tls = await answers(port, nowhere).tlsalpn01(NAME, DIGEST)
        assert seen == seen_by_tls == f"{nowhere}:{port}: this host has no route to it"

    @pytest.mark.parametrize(
        ("error", "seen"),
        [
            (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "it has no address"),
            (UnicodeError("label too long"), "it has no address"),
            (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "no name server gave its address"),
        ],
    )
    async def test_a_name_without_address_is_told(self, error: Exception, seen: str) -> None:
        """The CA will not find it either."""

        async def look_up(*_: Any) -> list[ResolveResult]:
            raise error

        looker = answers(80, look_up=look_up)
        assert (await looker.http01(NAME, TOKEN, PROOF), await looker.tlsalpn01(NAME, DIGEST)) == (seen, seen)

    async def test_name_servers_that_stay_silent_have_a_limit(self) -> None:
        """A look-up by the system may take a minute."""

        async def look_up(*_: Any) -> list[ResolveResult]:
            await asyncio.Event().wait()
            raise AssertionError

        seen = await answers(80, look_up=look_up, total_seconds=0.05).http01(NAME, TOKEN, PROOF)
        assert seen == "no name server gave its address within 0.05 s"

    async def test_the_system_is_asked_by_default(self) -> None:
        """What `localhost` is, every system knows."""
        async with http01_listener() as port:
            looker = OwnAnswers(http01_port=port, tlsalpn01_port=1, user_agent="x")
            seen = await looker.http01("localhost", TOKEN, PROOF)
        assert seen in (None, f"[::1]:{port}: connection refused")


@pytest.fixture
def certificate(tmp_path: Path) -> ssl.SSLContext:
    """TLS of an ordinary web server, with a certificate nobody trusts."""
    return web_tls(tmp_path)


def web_tls(folder: Path, *protocols: str) -> ssl.SSLContext:
    """TLS of an ordinary web server."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + made.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


class TestTlsAlpn01:
    @pytest.mark.parametrize("host", [NAME, "127.0.0.1"])
    async def test_our_own_certificate_is_seen(self, host: str) -> None:
        """All is well: for a name, and for an address by its reverse name (RFC 8738 section 6)."""
        async with tlsalpn01_listener(host) as port:
            assert await answers(port).tlsalpn01(host, DIGEST) is None

    async def test_an_unknown_name_is_told(self) -> None:
        """The order's response is not in place at the instance that answers."""
        async with tlsalpn01_listener() as port:
            seen = await answers(port).tlsalpn01("b.example.test", DIGEST)
        assert seen == f"127.0.0.1:{port}: it has no answer for this name"

    async def test_another_key_authorization_is_told(self) -> None:
        """Another ACME client is at work on the same name."""
        async with tlsalpn01_listener() as port:
            seen = await answers(port).tlsalpn01(NAME, bytes(32))
        assert seen == f"127.0.0.1:{port}: its certificate answers another challenge: the acmeIdentifier is not ours"

    async def test_a_web_server_without_alpn_is_told(self, certificate: ssl.SSLContext) -> None:
        """It shows its own certificate to everybody."""
        async with serving(tls=certificate, act=stays_silent) as server:
            seen = await answers(server.port).tlsalpn01(NAME, DIGEST)
        assert seen == f"127.0.0.1:{server.port}: it does not speak acme-tls/1"

    async def test_a_web_server_with_other_protocols_is_told(self, tmp_path: Path) -> None:
        """It may refuse, or go on without ALPN."""
        async with serving(tls=web_tls(tmp_path, "h2", "http/1.1"), act=stays_silent) as server:
            seen = await answers(server.port).tlsalpn01(NAME, DIGEST)
        assert seen == f"127.0.0.1:{server.port}: it does not speak acme-tls/1"

    async def test_the_acme_protocol_with_a_useless_certificate_is_told(self, tmp_path: Path) -> None:
        """Some proxies agree to every protocol."""
        async with serving(tls=web_tls(tmp_path, "acme-tls/1"), act=stays_silent) as server:
            seen = await answers(server.port).tlsalpn01(NAME, DIGEST)
        assert seen == f"127.0.0.1:{server.port}: its certificate answers no challenge: it has no acmeIdentifier"

    @pytest.mark.parametrize(
        ("act", "seen"),
        [
            (resets, "connection reset by peer"),
            (stays_silent, "no answer in time"),
            (apologizes, "the TLS handshake failed (WRONG_VERSION_NUMBER)"),
        ],
    )
    async def test_no_tls_is_told(self, act: Act, seen: str) -> None:
        """In words that tell the network's fault from the server's."""
        async with serving(act=act) as server:
            found = await answers(server.port, total_seconds=SHORT).tlsalpn01(NAME, DIGEST)
            assert found == f"127.0.0.1:{server.port}: {seen}"
            await asyncio.wait_for(server.gone.wait(), 10)

    async def test_one_that_talks_for_ever_ends_with_our_time_or_its_nonsense(self) -> None:
        """Whichever comes first: never with the daemon's patience."""
        async with serving(act=talks_for_ever(b"", b"220 smtp.example.test\r\n")) as server:
            found = await answers(server.port, total_seconds=SHORT).tlsalpn01(NAME, DIGEST)
            assert found is not None
            assert "no answer in time" in found or "WRONG_VERSION_NUMBER" in found
            await asyncio.wait_for(server.gone.wait(), 10)

    async def test_an_end_without_a_word_is_told(self) -> None:
        """Some servers close on a protocol they do not know."""

        async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)

        async with serving(act=closes) as server:
            seen = await answers(server.port).tlsalpn01(NAME, DIGEST)
        assert seen == f"127.0.0.1:{server.port}: the connection was closed without an answer"

    async def test_a_closed_port_is_told(self, closed_port: int) -> None:
        """Nobody listens there."""
        seen = await answers(closed_port).tlsalpn01(NAME, DIGEST)
        assert seen == f"127.0.0.1:{closed_port}: connection refused"

    async def test_application_data_is_neither_sent_nor_read(self) -> None:
        """The handshake is all there is (RFC 8737 section 3)."""
        received = asyncio.get_running_loop().create_future()

        async def listens(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                received.set_result(await reader.read(100))
            except (ssl.SSLError, ConnectionError):
                received.set_result(b"")

        async with serving(tls=challenge_context(NAME, PROOF, datetime.now(UTC)), act=listens) as server:
            assert await answers(server.port).tlsalpn01(NAME, DIGEST) is None
            assert await asyncio.wait_for(received, 10) == b""
