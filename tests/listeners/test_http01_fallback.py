"""What becomes of requests on port 80 that are for no challenge of ours."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import pytest

from scaivaultd.listeners.http01 import Http01Fallback, Http01Listener
from scaivaultd.listeners.sockets import bind_all
from tests.fakes.tcp import Upstream, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractAsyncContextManager

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.clock import Clock

    class MovedClock(Clock, Protocol):
        """The clock of conftest."""

        async def advance(self, seconds: float) -> None: ...

    class Serve(Protocol):
        """The fixture below."""

        def __call__(self, fallback: Http01Fallback) -> AbstractAsyncContextManager[Http01Listener]: ...


TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf"
KEY_AUTHORIZATION = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
PATH = f"/.well-known/acme-challenge/{TOKEN}".encode()
UNKNOWN = PATH[:-1] + b"x"
HOST = b"Host: example.org\r\n"
REDIRECT = Http01Fallback(kind="redirect")


def request(target: bytes = b"/", *, method: bytes = b"GET", fields: bytes = HOST, version: bytes = b"1.1") -> bytes:
    return method + b" " + target + b" HTTP/" + version + b"\r\n" + fields + b"\r\n"


@pytest.fixture
def serve(clock: MovedClock, log: FilteringBoundLogger) -> Serve:
    """Runs a listener that knows one token."""

    @asynccontextmanager
    async def run(fallback: Http01Fallback) -> AsyncIterator[Http01Listener]:
        listener = Http01Listener(bind_all(["127.0.0.1:0"]).sockets, clock=clock, log=log, fallback=fallback)
        listener.put(TOKEN, KEY_AUTHORIZATION)
        await listener.start()
        try:
            yield listener
        finally:
            await listener.close()

    return run


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """The web server."""
    server = Upstream()
    yield server
    server.close()


async def ask(listener: Http01Listener, data: bytes) -> bytes:
    async with connected(listener.addresses[0]) as peer:
        await peer.send(data)
        return await peer.rest()


def status_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n")[0].removeprefix(b"HTTP/1.1 ")


def location_of(answer: bytes) -> bytes:
    [location] = [line for line in answer.split(b"\r\n") if line.startswith(b"Location: ")]
    return location.removeprefix(b"Location: ")


@pytest.mark.parametrize(
    ("data", "location"),
    [
        (request(), b"https://example.org/"),
        (request(b"/a/b?c=d&e=%2f"), b"https://example.org/a/b?c=d&e=%2f"),
        (request(UNKNOWN), b"https://example.org" + UNKNOWN),
        (request(b"/", method=b"HEAD"), b"https://example.org/"),
        (request(b"/form", method=b"POST"), b"https://example.org/form"),
        (request(fields=b"Host: example.org:8080\r\n"), b"https://example.org/"),
        (request(fields=b"Host: example.org:\r\n"), b"https://example.org/"),
        (request(fields=b"Host: 192.0.2.1:80\r\n"), b"https://192.0.2.1/"),
        (request(fields=b"Host: [2001:db8::1]:80\r\n"), b"https://[2001:db8::1]/"),
        (request(fields=b"Host: [2001:db8::1]\r\n"), b"https://[2001:db8::1]/"),
        (request(fields=HOST, version=b"1.0"), b"https://example.org/"),
        (request(b"http://other.example:80/x"), b"https://other.example/x"),
        (request(b"http://other.example?x"), b"https://other.example/?x"),
        (request(b"http://other.example"), b"https://other.example/"),
        (request(b"//evil.example/x"), b"https://example.org//evil.example/x"),
    ],
)
async def test_redirect_sends_everybody_to_the_same_place_by_https(serve: Serve, data: bytes, location: bytes) -> None:
    """Host, path and query stay as they are, only the port goes: nobody is sent to another host."""
    async with serve(REDIRECT) as listener:
        answer = await ask(listener, data)
        assert status_of(answer) == b"308 Permanent Redirect"
        assert location_of(answer) == location
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\n" if data.startswith(b"HEAD") else b"\r\n\r\nPermanent Redirect\n")
        assert listener.counters.redirected == 1


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(fields=b"", version=b"1.0"), b"404 Not Found"),
        (request(fields=b"Host: ..\r\n"), b"404 Not Found"),
        (request(fields=b"Host: .\r\n"), b"404 Not Found"),
        (request(fields=b""), b"400 Bad Request"),
        (request(fields=HOST + HOST), b"400 Bad Request"),
        (request(fields=b"Host: evil.example/x\r\n"), b"400 Bad Request"),
        (request(fields=b"Host: a@evil.example\r\n"), b"400 Bad Request"),
        (request(b"/\rX: y"), b"400 Bad Request"),
        (request(b"*", method=b"OPTIONS"), b"405 Method Not Allowed"),
        (request(b"example.org:443", method=b"CONNECT"), b"405 Method Not Allowed"),
        (request(version=b"2.0"), b"505 HTTP Version Not Supported"),
        (request(fields=HOST + b"A: " + b"b" * 5000 + b"\r\n"), b"431 Request Header Fields Too Large"),
    ],
)
async def test_redirect_goes_nowhere_without_a_sound_host(serve: Serve, data: bytes, status: bytes) -> None:
    """A location made of what is no host is a way to lead people elsewhere."""
    async with serve(REDIRECT) as listener:
        answer = await ask(listener, data)
        assert status_of(answer) == status
        assert b"Location" not in answer
        assert listener.counters.redirected == 0


@pytest.mark.parametrize("kind", ["404", "redirect", "proxy"])
async def test_a_known_token_is_answered_whatever_the_fallback(serve: Serve, upstream: Upstream, kind: str) -> None:
    """The challenge comes first, or the port is shared in vain."""
    fallback = Http01Fallback(kind="proxy", upstream=upstream.address)
    fallback = {"404": Http01Fallback(), "redirect": REDIRECT, "proxy": fallback}[kind]
    async with serve(fallback) as listener:
        assert (await ask(listener, request(PATH))).endswith(KEY_AUTHORIZATION.encode())


PROXIED = {
    "root": request(),
    "an unknown token": request(UNKNOWN),
    "a form": request(method=b"POST", fields=HOST + b"Content-Length: 5\r\n") + b"hello",
    "a form for our token": request(PATH, method=b"POST"),
    "anything for the whole server": request(b"*", method=b"OPTIONS"),
    "an upgrade": request(fields=HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
    "two requests": request() + request(PATH),
    "http/1.0": request(fields=b"", version=b"1.0"),
}


@pytest.mark.parametrize("data", PROXIED.values(), ids=PROXIED)
@pytest.mark.parametrize("is_dripping", [False, True], ids=["at once", "in pieces"])
async def test_proxy_passes_every_byte_on(serve: Serve, upstream: Upstream, data: bytes, is_dripping: bool) -> None:
    """One interpretation of the head, the web server's: nothing to smuggle, nothing lost."""
    async with (
        serve(Http01Fallback(kind="proxy", upstream=upstream.address)) as listener,
        connected(listener.addresses[0]) as peer,
    ):
        for piece in (data[:7], data[7:40], data[40:]) if is_dripping else (data,):
            await peer.send(piece)
        behind = await upstream.accept()
        assert await behind.exactly(len(data)) == data
        await behind.send(b"HTTP/1.1 200 OK\r\n\r\n")
        assert await peer.exactly(19) == b"HTTP/1.1 200 OK\r\n\r\n"
        await peer.send(b"later")
        assert await behind.exactly(5) == b"later"
        peer.end()
        assert await behind.rest() == b""
        behind.end()
        assert await peer.rest() == b""
        assert (listener.counters.connections, listener.counters.not_found) == (0, 0)


async def test_a_long_body_right_behind_a_short_first_piece_is_passed_on_whole(
    serve: Serve, upstream: Upstream
) -> None:
    """The head's limit ends with the head: what came in the same read belongs to the web server."""
    head = request(method=b"POST", fields=HOST + b"Content-Length: 9000\r\n")
    async with (
        serve(Http01Fallback(kind="proxy", upstream=upstream.address)) as listener,
        connected(listener.addresses[0]) as peer,
    ):
        await peer.send(head[:10])
        for _ in range(20):
            await ask(listener, request(PATH))
        await peer.send(head[10:] + bytes(9000))
        behind = await upstream.accept()
        assert await behind.exactly(len(head) + 9000) == head + bytes(9000)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no http\r\n\r\n", b"400 Bad Request"),
        (
            request(fields=HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
            b"400 Bad Request",
        ),
        (request(version=b"2.0"), b"505 HTTP Version Not Supported"),
        (request(fields=HOST + b"A: " + b"b" * 5000 + b"\r\n"), b"431 Request Header Fields Too Large"),
    ],
)
async def test_what_is_no_request_is_not_passed_on(
    serve: Serve, upstream: Upstream, data: bytes, status: bytes
) -> None:
    """The limits and the one reading of a head hold for the web server too."""
    async with serve(Http01Fallback(kind="proxy", upstream=upstream.address)) as listener:
        assert status_of(await ask(listener, data)) == status
        assert listener.counters.splices is not None
        assert listener.counters.splices.spliced == 0


async def test_a_slow_head_does_not_reach_the_web_server(serve: Serve, upstream: Upstream, clock: MovedClock) -> None:
    """It is guarded against slow clients better than by its own limits."""
    async with (
        serve(Http01Fallback(kind="proxy", upstream=upstream.address)) as listener,
        connected(listener.addresses[0]) as peer,
    ):
        await peer.send(b"GET / HTTP/1.1\r\n")
        await ask(listener, request(PATH))
        await clock.advance(5.0)
        await peer.until_gone()
        assert listener.counters.rejected == {"timed_out": 1}


async def test_an_idle_spliced_connection_ends_with_time(serve: Serve, upstream: Upstream, clock: MovedClock) -> None:
    """The listener's own timer looks after those it has given away."""
    async with (
        serve(Http01Fallback(kind="proxy", upstream=upstream.address)) as listener,
        connected(listener.addresses[0]) as peer,
    ):
        await peer.send(request())
        behind = await upstream.accept()
        assert await behind.exactly(len(request())) == request()
        await clock.advance(599.9)
        await behind.send(b"x")
        assert await peer.some() == b"x"
        await clock.advance(600.0)
        await peer.until_gone()
        await behind.until_gone()


async def test_a_web_server_that_is_away_is_a_bad_gateway(
    serve: Serve, upstream: Upstream, logged: list[EventDict]
) -> None:
    """Visitors see whose fault it is, operators which address was tried; challenges go on."""
    upstream.close()
    async with serve(Http01Fallback(kind="proxy", upstream=upstream.address)) as listener:
        answer = await ask(listener, request(method=b"POST") + bytes(20_000))
        assert status_of(answer) == b"502 Bad Gateway"
        assert answer.endswith(b"\r\n\r\nBad Gateway\n")
        assert (await ask(listener, request(PATH))).endswith(KEY_AUTHORIZATION.encode())
    assert [(each["event"], each["log_level"]) for each in logged] == [
        ("http01.upstream_unreachable", "warning"),
        ("http01.answered", "info"),
    ]
