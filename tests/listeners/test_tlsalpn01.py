"""The tls-alpn-01 listener on a real socket: who sees a certificate, who is passed on, who is sent away."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from cryptography import x509

from scaivaultd.listeners.sockets import bind_all
from scaivaultd.listeners.splice import SpliceLimits
from scaivaultd.listeners.tlsalpn01 import TlsAlpn01Limits, TlsAlpn01Listener
from tests.fakes.tcp import PATIENCE_SECONDS, Peer, Upstream, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.clock import Clock

    class MovedClock(Clock, Protocol):
        """The clock of conftest."""

        async def advance(self, seconds: float) -> None: ...


KEY_AUTHORIZATION = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
ACME = ("acme-tls/1",)
DECODE_ERROR, UNRECOGNIZED_NAME, NO_APPLICATION_PROTOCOL = 50, 112, 120
INTERNAL_ERROR = bytes((21, 3, 3, 0, 2, 2, 80))


def alert(description: int) -> bytes:
    return bytes((21, 3, 3, 0, 2, 2, description))


@pytest.fixture
def serve(
    clock: MovedClock, log: FilteringBoundLogger
) -> Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]]:
    """Runs a listener for a.test, with other arguments than usual."""

    @asynccontextmanager
    async def run(sockets: Sequence[socket.socket] | None = None, **more: Any) -> AsyncIterator[TlsAlpn01Listener]:
        bound = bind_all(["127.0.0.1:0"]).sockets if sockets is None else sockets
        listener = TlsAlpn01Listener(bound, clock=clock, log=log, **more)
        listener.put("a.test", KEY_AUTHORIZATION)
        await listener.start()
        try:
            yield listener
        finally:
            await listener.close()

    return run


@pytest.fixture
async def listener(serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]]) -> AsyncIterator[Any]:
    """A listener without a server behind it."""
    async with serve() as running:
        yield running


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """A server behind the listener."""
    server = Upstream()
    yield server
    server.close()


class TlsClient:
    """A client of OpenSSL's on somebody's connection."""

    def __init__(
        self,
        peer: Peer,
        name: str | None = "a.test",
        protocols: Sequence[str] = ACME,
        version: ssl.TLSVersion | None = None,
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if protocols:
            context.set_alpn_protocols(list(protocols))
        if version is not None:
            context.minimum_version = context.maximum_version = version
        self._peer = peer
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    def hello(self) -> bytes:
        """The first thing to say."""
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.do_handshake()
        return self._outgoing.read()

    async def say_hello(self) -> None:
        await self._peer.send(self.hello())

    async def finish(self) -> bytes:
        """The rest of the handshake, then whatever the server says until its end, decrypted."""
        await self._handshake()
        received = bytearray()
        while data := await self._peer.some():
            self._incoming.write(data)
        self._incoming.write_eof()
        while data := self.tls.read(1000):  # ends at close_notify, raises without one
            received += data
        return bytes(received)

    async def _handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._peer.some()
                if not data:
                    raise ConnectionResetError from None
                self._incoming.write(data)
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        if data := self._outgoing.read():
            await self._peer.send(data)

    @property
    def certificate(self) -> x509.Certificate:
        """What the server has shown."""
        der = self.tls.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der)


async def look(listener: TlsAlpn01Listener, *asked: Any, **more: Any) -> TlsClient:
    """What a validator does."""
    async with connected(listener.addresses[0]) as peer:
        client = TlsClient(peer, *asked, **more)
        await client.say_hello()
        assert await client.finish() == b""
        return client


def sans(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in names]


def digest(certificate: x509.Certificate) -> bytes:
    extension = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")).value
    assert isinstance(extension, x509.UnrecognizedExtension)
    return extension.value


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_validator_sees_the_certificate_and_a_polite_end(
    listener: TlsAlpn01Listener, version: ssl.TLSVersion
) -> None:
    """The validator checks version, protocol and certificate; application data, a ticket even, would be too much."""
    client = await look(listener, version=version)
    assert client.tls.selected_alpn_protocol() == "acme-tls/1"
    assert sans(client.certificate) == ["a.test"]
    assert digest(client.certificate) == b"\x04\x20" + hashlib.sha256(KEY_AUTHORIZATION.encode()).digest()
    session = client.tls.session
    assert session is None or not session.has_ticket
    assert listener.counters.answers == 1


@pytest.mark.parametrize("name", ["A.TEST", "a.test."])
async def test_a_name_is_recognised_in_any_spelling(listener: TlsAlpn01Listener, name: str) -> None:
    """CAs draw the case of a name by lot, and RFC 8738 allows the final dot."""
    assert sans((await look(listener, name)).certificate) == ["a.test"]


@pytest.mark.parametrize(
    ("address", "name"),
    [("192.0.2.1", "1.2.0.192.in-addr.arpa"), ("2001:db8::1", f"1.{'0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa.")],
)
async def test_an_address_is_asked_for_in_reverse(listener: TlsAlpn01Listener, address: str, name: str) -> None:
    """RFC 8738: that is the only way to ask for one."""
    listener.put(address, KEY_AUTHORIZATION)
    assert sans((await look(listener, name)).certificate) == [address]


async def test_an_address_and_its_reverse_name_are_two_identifiers(listener: TlsAlpn01Listener) -> None:
    """Cleaning up one order must not take away what another one, of a later moment, has put."""
    listener.put("192.0.2.1", KEY_AUTHORIZATION)
    listener.put("1.2.0.192.in-addr.arpa", KEY_AUTHORIZATION)
    listener.remove("192.0.2.1")
    assert sans((await look(listener, "1.2.0.192.in-addr.arpa")).certificate) == ["1.2.0.192.in-addr.arpa"]


async def test_the_last_response_is_shown(listener: TlsAlpn01Listener) -> None:
    """After a restart the solver presents again, perhaps with another account key."""
    listener.put("A.test", "other.thumbprint")
    assert digest((await look(listener)).certificate) == b"\x04\x20" + hashlib.sha256(b"other.thumbprint").digest()


async def test_what_is_removed_is_unknown(listener: TlsAlpn01Listener) -> None:
    """A leftover would answer for a challenge that is over; cleaning up twice is no error."""
    listener.remove("A.test")
    listener.remove("a.test")
    listener.remove("*")
    async with connected(listener.addresses[0]) as peer:
        await TlsClient(peer).say_hello()
        assert await peer.rest() == alert(UNRECOGNIZED_NAME)


def hello_for(*asked: Any, **more: Any) -> bytes:
    with socket.socket() as unused:
        return TlsClient(Peer(unused), *asked, **more).hello()


REFUSED = {
    "unknown name": (hello_for("b.test"), alert(UNRECOGNIZED_NAME), "unknown_name"),
    "no name": (hello_for(None), alert(UNRECOGNIZED_NAME), "unknown_name"),
    "mixed protocols": (hello_for("a.test", ["h2", "acme-tls/1"]), alert(NO_APPLICATION_PROTOCOL), "mixed_protocols"),
    "a browser": (hello_for("a.test", ["h2"]), alert(NO_APPLICATION_PROTOCOL), "other_protocol"),
    "no protocol": (hello_for("a.test", []), alert(NO_APPLICATION_PROTOCOL), "other_protocol"),
    "malformed": (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01x", alert(DECODE_ERROR), "malformed"),
    "too large": (b"\x16\x03\x01\x40\x00\x01\x00\xff\x00" + bytes(16_375), alert(DECODE_ERROR), "too_large"),
    "not tls": (b"GET / HTTP/1.1\r\n\r\n", b"", "not_tls"),
}


@pytest.mark.parametrize(("said", "answer", "reason"), REFUSED.values(), ids=REFUSED)
async def test_others_get_an_alert_and_are_closed(
    listener: TlsAlpn01Listener, logged: list[EventDict], said: bytes, answer: bytes, reason: str
) -> None:
    """Who debugs a validation sees why; nobody ever sees a default certificate."""
    async with connected(listener.addresses[0]) as peer:
        await peer.send(said)
        assert await peer.rest() == answer
    assert listener.counters.rejected == {reason: 1}
    assert [(each["event"], each["reason"]) for each in logged] == [("tlsalpn01.rejected", reason)]


@pytest.mark.parametrize("said", [said for said, _, _ in REFUSED.values()], ids=REFUSED)
async def test_others_reach_the_server_behind_with_what_they_said(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], upstream: Upstream, said: bytes
) -> None:
    """An existing web server, or another ACME client, must not notice that we stand in front of it."""
    async with serve(upstream=upstream.address) as listener, connected(listener.addresses[0]) as peer:
        await peer.send(said)
        behind = await upstream.accept()
        assert await behind.exactly(len(said)) == said
        await behind.send(b"its answer")
        assert await peer.exactly(10) == b"its answer"
        peer.end()
        assert await behind.rest() == b""
        behind.end()
        assert await peer.rest() == b""
        counters = listener.counters
        assert (counters.rejected, counters.connections) == ({}, 0)
        assert counters.splices is not None
        assert counters.splices.spliced == 1


async def test_a_validator_is_answered_in_front_of_a_server(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], upstream: Upstream
) -> None:
    """Passing a pending challenge on would fail the order."""
    async with serve(upstream=upstream.address) as listener:
        assert sans((await look(listener)).certificate) == ["a.test"]


async def test_a_server_that_is_away_costs_an_alert(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], upstream: Upstream, logged: list[EventDict]
) -> None:
    """A silent close looks like a broken network; the log names the server."""
    upstream.close()
    async with serve(upstream=upstream.address) as listener, connected(listener.addresses[0]) as peer:
        await peer.send(hello_for("a.test", ["h2"]))
        assert await peer.rest() == INTERNAL_ERROR
    [line] = logged
    assert (line["event"], line["upstream"]) == ("tlsalpn01.upstream_unreachable", upstream.address)


async def test_the_share_of_a_network_holds_for_the_server_behind_too(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]],
    upstream: Upstream,
    distant: socket.socket,
) -> None:
    """One customer must not take all places of the web server."""
    limits = SpliceLimits(per_network=1)
    async with serve([distant], upstream=upstream.address, splice_limits=limits) as listener, AsyncExitStack() as both:
        first = await both.enter_async_context(connected(listener.addresses[0]))
        await first.send(hello_for(None, []))
        await upstream.accept()
        second = await both.enter_async_context(connected(listener.addresses[0]))
        await second.send(hello_for(None, []))
        await first.until_gone()
        await upstream.accept()
        assert listener.counters.splices is not None
        assert listener.counters.splices.evicted == 1


@pytest.fixture
def distant() -> socket.socket:
    """A listening socket whose clients all seem to come from one foreign address."""

    class Distant(socket.socket):
        def accept(self) -> tuple[socket.socket, tuple[str, int]]:
            return super().accept()[0], ("192.0.2.7", 50000)

    listening = Distant(fileno=bind_all(["127.0.0.1:0"]).sockets[0].detach())
    listening.setblocking(False)
    return listening


async def test_a_hello_must_be_complete_five_seconds_after_accept(
    listener: TlsAlpn01Listener, clock: MovedClock
) -> None:
    """A deadline that starts anew with every byte is none."""
    async with connected(listener.addresses[0]) as dripping:
        hello = hello_for()
        await dripping.send(hello[:50])
        await look(listener)
        await clock.advance(4.9)
        await dripping.send(hello[50:60])
        await clock.advance(0.1)
        await dripping.until_gone()
    assert listener.counters.rejected == {"timed_out": 1}


async def test_a_handshake_must_be_over_five_seconds_after_its_hello(
    listener: TlsAlpn01Listener, clock: MovedClock
) -> None:
    """Hung clients would use up the places for handshakes."""
    async with connected(listener.addresses[0]) as hung:
        await TlsClient(hung).say_hello()
        assert (await hung.some()).startswith(b"\x16\x03\x03")
        await clock.advance(4.9)
        assert listener.counters.connections == 1
        await clock.advance(0.1)
        await hung.until_gone()
    assert listener.counters.rejected == {"timed_out": 1}
    assert listener.counters.connections == 0


async def test_who_finishes_but_does_not_close_is_gone_a_second_later(
    listener: TlsAlpn01Listener, clock: MovedClock
) -> None:
    """Not to close must not be a way to stay."""
    async with connected(listener.addresses[0]) as peer:
        client = TlsClient(peer)
        await client.say_hello()
        await client.finish()
        assert listener.counters.connections == 1
        await clock.advance(1.0)
        await peer.until_gone()
        await until(lambda: listener.counters.connections == 0)


async def test_only_so_many_handshakes_are_under_way_and_others_wait_for_their_turn(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], clock: MovedClock
) -> None:
    """Several perspectives of several orders come at once: none of them may be refused for it."""
    async with serve(limits=TlsAlpn01Limits(handshakes=1)) as listener, AsyncExitStack() as stack:
        clients = []
        for _ in range(3):
            peer = await stack.enter_async_context(connected(listener.addresses[0]))
            clients.append(TlsClient(peer))
            await clients[-1].say_hello()
        assert await clients[0].finish() == b""
        assert await clients[1].finish() == b""
        assert await clients[2].finish() == b""
        assert listener.counters.answers == 3


async def test_who_stalls_half_a_second_has_to_go_for_who_waits(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], clock: MovedClock
) -> None:
    """Who knows the name of a pending challenge must not be able to keep the CA out with a few idle connections."""
    async with serve(limits=TlsAlpn01Limits(handshakes=1)) as listener, AsyncExitStack() as stack:
        stalling, waiting = [await stack.enter_async_context(connected(listener.addresses[0])) for _ in range(2)]
        await TlsClient(stalling).say_hello()
        assert await stalling.some()
        client = TlsClient(waiting)
        await client.say_hello()
        await clock.advance(0.4)
        finishing = asyncio.create_task(client.finish())
        await until(lambda: listener.counters.connections == 2)
        assert not finishing.done()
        await clock.advance(0.1)
        assert await finishing == b""
        await stalling.until_gone()
        assert listener.counters.rejected == {"timed_out": 1}


async def test_a_crowd_at_one_name_does_not_keep_the_others_out(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]],
) -> None:
    """Whoever knows the name of one pending challenge must not be able to end the validation of all others."""
    async with serve(limits=TlsAlpn01Limits(handshakes=3, waiting=2)) as listener, AsyncExitStack() as stack:
        listener.put("b.test", KEY_AUTHORIZATION)
        crowd = [await stack.enter_async_context(connected(listener.addresses[0])) for _ in range(6)]
        for each in crowd:
            await TlsClient(each).say_hello()
        await crowd[3].until_gone()  # six came for three places and two to wait
        assert sans((await look(listener, "b.test")).certificate) == ["b.test"]
        await crowd[0].until_gone()
        assert listener.counters.rejected == {"crowded_out": 3}


async def test_nothing_is_signed_for_a_client_that_has_left(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], logged: list[EventDict]
) -> None:
    """A hello costs its sender nothing, and a signature us much: a flood of both is one of the first only."""
    async with serve(limits=TlsAlpn01Limits(handshakes=1)) as listener:
        async with connected(listener.addresses[0]) as first, connected(listener.addresses[0]) as second:
            await TlsClient(first).say_hello()
            assert await first.some()
            await TlsClient(second).say_hello()
            second.socket.shutdown(socket.SHUT_WR)
            await until(lambda: listener.counters.connections == 2)
            first.reset()
            assert await second.rest() == b""
        assert listener.counters.rejected == {"handshake_failed": 2}


async def test_without_a_socket_nothing_can_be_shown(clock: MovedClock, log: FilteringBoundLogger) -> None:
    """The order says so itself, and the CA does not count a failed validation."""
    with pytest.raises(ValueError, match="listens nowhere"):
        TlsAlpn01Listener([], clock=clock, log=log).put("a.test", KEY_AUTHORIZATION)


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until something holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():  # noqa: ASYNC110 - what the kernel tells is no event of ours
            await asyncio.sleep(0)


async def test_a_client_that_leaves_frees_its_place(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]],
) -> None:
    """A leak in this count would end all validations until a restart."""
    async with serve(limits=TlsAlpn01Limits(handshakes=1)) as listener:
        for _ in range(3):
            async with connected(listener.addresses[0]) as peer:
                await TlsClient(peer).say_hello()
                assert await peer.some()
        assert (await look(listener)).certificate is not None
        assert listener.counters.rejected == {"handshake_failed": 3}


async def test_a_client_that_agrees_on_nothing_is_told_so(listener: TlsAlpn01Listener, logged: list[EventDict]) -> None:
    """OpenSSL's own word helps whoever looks into a CA that still speaks TLS 1.1."""
    async with connected(listener.addresses[0]) as peer:
        hello = hello_for(version=ssl.TLSVersion.TLSv1_2)
        start = 44 + hello[43]  # behind record and message header, version, random and session
        length = int.from_bytes(hello[start : start + 2], "big")
        await peer.send(hello[: start + 2] + b"\x00\x05" * (length // 2) + hello[start + 2 + length :])
        assert (await peer.rest())[:1] == b"\x15"
    assert [(each["reason"], each["error"]) for each in logged] == [("handshake_failed", "NO_SHARED_CIPHER")]


async def test_the_oldest_unfinished_hello_goes_for_a_new_client(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]],
) -> None:
    """Refusing the new one instead would let idle clients keep a CA out."""
    async with serve(limits=TlsAlpn01Limits(connections=9, unfinished=2)) as listener, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(listener.addresses[0])) for _ in range(2)]
        for each in idle:
            await each.send(b"\x16")
        await until(lambda: listener.counters.connections == 2)
        assert sans((await look(listener)).certificate) == ["a.test"]
        await idle[0].until_gone()
        assert listener.counters.evicted == 1


async def test_one_network_gets_its_share_only(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], distant: socket.socket
) -> None:
    """One customer's machines must not fill the house."""
    async with (
        serve([distant], limits=TlsAlpn01Limits(per_network=1)) as listener,
        connected(listener.addresses[0]) as first,
    ):
        await first.send(b"\x16")
        await until(lambda: listener.counters.connections == 1)
        assert (await look(listener)).certificate is not None
        await first.until_gone()
        assert listener.counters.evicted == 1


async def test_a_flood_of_hellos_does_not_starve_a_validator(listener: TlsAlpn01Listener) -> None:
    """Anybody can send them; a renewal must go through meanwhile, and nothing is signed for them."""
    hello = hello_for("b.test")
    address = listener.addresses[0]

    async def flood() -> None:
        for _ in range(300):
            async with connected(address) as peer:
                await peer.send(hello)
                await peer.until_gone()

    async with asyncio.TaskGroup() as floods:
        for _ in range(4):
            floods.create_task(flood())
        for _ in range(5):
            await look(listener)
    assert listener.counters.answers == 5
    assert listener.counters.rejected == {"unknown_name": 1200}


async def test_hits_are_logged_and_say_nothing_secret(listener: TlsAlpn01Listener, logged: list[EventDict]) -> None:
    """Operators look here first."""
    await look(listener)
    hit = {
        "event": "tlsalpn01.answered",
        "log_level": "info",
        "source": "127.0.0.1",
        "identifier": "a.test",
        "tls_version": "TLSv1.3",
    }
    assert logged == [hit]


async def test_close_disconnects_everybody_and_may_be_repeated(
    serve: Callable[..., AbstractAsyncContextManager[TlsAlpn01Listener]], upstream: Upstream
) -> None:
    """A stopping daemon waits for no stranger, whatever it is doing."""
    async with serve(upstream=upstream.address) as listener, AsyncExitStack() as stack:
        idle, shaking, spliced = [await stack.enter_async_context(connected(listener.addresses[0])) for _ in range(3)]
        await idle.send(b"\x16")
        await TlsClient(shaking).say_hello()
        assert await shaking.some()
        await spliced.send(b"SSH-2.0-x\r\n")
        behind = await upstream.accept()
        await listener.close()
        for each in (idle, shaking, spliced, behind):
            await each.until_gone()
        assert listener.counters.connections == 0
        await listener.close()
        assert listener.addresses == []
