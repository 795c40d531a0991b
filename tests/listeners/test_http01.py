"""The http-01 listener: what it reads, whom it lets in, and what a client gets on a real socket."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaivaultd.listeners.http01 import Http01Listener
from scaivaultd.listeners.http01_admission import Admission, Http01Limits, Sampler, network_of
from scaivaultd.listeners.http01_head import Asked, HeadReader, Refused
from scaivaultd.listeners.sockets import bind_all
from scaivaultd.listeners.tlsalpn01 import TlsAlpn01Limits
from scaivaultd.model.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.clock import Clock

    class MovedClock(Clock, Protocol):
        """The clock of conftest."""

        async def advance(self, seconds: float) -> None: ...

    class Serve(Protocol):
        """The fixture that runs a listener."""

        def __call__(
            self, limits: Http01Limits, sockets: Sequence[socket.socket] | None = None
        ) -> AbstractAsyncContextManager[Http01Listener]: ...


TOKEN = b"LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf"
KEY_AUTHORIZATION = b"LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
PATH = b"/.well-known/acme-challenge/" + TOKEN
HOST = b"Host: example.org\r\n"
REQUEST = b"GET " + PATH + b" HTTP/1.1\r\n" + HOST + b"\r\n"

GET = Asked(TOKEN, is_head=False)
ELSEWHERE = Asked(None, is_head=False)
BAD = Refused("bad_request")
TOO_LARGE = Refused("head_too_large")


def request(
    target: bytes = PATH, *, method: bytes = b"GET", version: bytes = b"HTTP/1.1", fields: bytes = HOST
) -> bytes:
    return method + b" " + target + b" " + version + b"\r\n" + fields + b"\r\n"


def lines(count: int) -> bytes:
    """Host and as many fields as make `count` lines with the request line."""
    return HOST + b"A: b\r\n" * (count - 2)


def sized(total: int) -> bytes:
    """A valid head of exactly so many bytes."""
    frame = len(request(fields=HOST + b"A: \r\n"))
    return request(fields=HOST + b"A: " + b"b" * (total - frame) + b"\r\n")


HEADS: dict[str, tuple[bytes, Asked | Refused | None]] = {
    "get": (request(), GET),
    "head": (request(method=b"HEAD"), Asked(TOKEN, is_head=True)),
    "bytes after the head": (request() + b"GET / HTTP/1.1\r\n\r\n\n\x00", GET),
    "http/1.0 without host": (request(version=b"HTTP/1.0", fields=b""), GET),
    "http/1.0 with host": (request(version=b"HTTP/1.0"), GET),
    "http/1.2 is read as 1.1": (request(version=b"HTTP/1.2"), GET),
    "usual fields": (request(fields=HOST + b"User-Agent: Mozilla/5.0 (x; +http://y)\r\nAccept: */*\r\nX:\r\n"), GET),
    "obs-text in a value": (request(fields=HOST + b"X: caf\xe9\r\n"), GET),
    # Host
    "host with port": (request(fields=b"host:example.org:80\r\n"), GET),
    "host with empty port": (request(fields=b"Host: example.org:\r\n"), GET),
    "host is ipv4": (request(fields=b"Host: 192.0.2.1:8080\r\n"), GET),
    "host is ipv6": (request(fields=b"Host: [2001:db8::1]\r\n"), GET),
    "host is ipv6 with port": (request(fields=b"Host: \t [::1]:5002 \t\r\n"), GET),
    "no host": (request(fields=b""), BAD),
    "two hosts": (request(fields=HOST + HOST), BAD),
    "two hosts in http/1.0": (request(version=b"HTTP/1.0", fields=HOST + HOST), BAD),
    "empty host": (request(fields=b"Host:\r\n"), BAD),
    "host with a path": (request(fields=b"Host: example.org/x\r\n"), BAD),
    "host with a user": (request(fields=b"Host: a@example.org\r\n"), BAD),
    "host list": (request(fields=b"Host: a, b\r\n"), BAD),
    "bare ipv6": (request(fields=b"Host: 2001:db8::1\r\n"), BAD),
    "no ipv6 in brackets": (request(fields=b"Host: [::1::2]\r\n"), BAD),
    "port out of range": (request(fields=b"Host: example.org:65536\r\n"), BAD),
    # paths
    "root": (request(b"/"), ELSEWHERE),
    "prefix only": (request(b"/.well-known/acme-challenge/"), ELSEWHERE),
    "query": (request(PATH + b"?x=1"), ELSEWHERE),
    "empty query": (request(PATH + b"?"), ELSEWHERE),
    "fragment": (request(PATH + b"#x"), ELSEWHERE),
    "slash at the end": (request(PATH + b"/"), ELSEWHERE),
    "traversal": (request(b"/.well-known/acme-challenge/../../../../etc/passwd"), ELSEWHERE),
    "traversal to the token": (request(b"/x/.." + PATH), ELSEWHERE),
    "double slash": (request(b"/" + PATH), ELSEWHERE),
    "percent-encoded token": (request(PATH.replace(b"L", b"%4c")), ELSEWHERE),
    "percent-encoded dots": (request(b"/.well-known/acme-challenge/%2e%2e%2fsecret-secret"), ELSEWHERE),
    "percent-encoded nul": (request(PATH + b"%00"), ELSEWHERE),
    "case of the prefix": (request(PATH.replace(b"acme", b"ACME")), ELSEWHERE),
    "15 characters": (request(PATH[:-17]), ELSEWHERE),
    "16 characters": (request(PATH[:-16]), Asked(TOKEN[:-16], is_head=False)),
    "128 characters": (request(PATH + b"x" * 96), Asked(TOKEN + b"x" * 96, is_head=False)),
    "129 characters": (request(PATH + b"x" * 97), ELSEWHERE),
    # other forms of target
    "absolute-form": (request(b"http://example.org" + PATH), GET),
    "absolute-form, other host, port and case": (request(b"HTTP://[::1]:80" + PATH), GET),
    "absolute-form needs host too": (request(b"http://example.org" + PATH, fields=b""), BAD),
    "absolute-form without path": (request(b"http://example.org"), ELSEWHERE),
    "absolute-form without host": (request(b"http://" + PATH), BAD),
    "absolute-form with user": (request(b"http://a:b@example.org" + PATH), BAD),
    "another scheme": (request(b"https://example.org" + PATH), BAD),
    "relative path": (request(PATH[1:]), BAD),
    "asterisk-form": (request(b"*"), BAD),
    # methods and versions
    "post": (request(method=b"POST"), Refused("method_not_allowed")),
    "connect": (request(b"example.org:443", method=b"CONNECT"), Refused("method_not_allowed")),
    "options": (request(b"*", method=b"OPTIONS"), Refused("method_not_allowed")),
    "methods have a case": (request(method=b"get"), Refused("method_not_allowed")),
    "http/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Refused("version_not_supported")),
    "http/0.9": (b"GET " + PATH + b"\r\n\r\n", BAD),
    "version in lower case": (request(version=b"http/1.1"), BAD),
    "version too long": (request(version=b"HTTP/1.10"), BAD),
    "two spaces": (b"GET  " + PATH + b" HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "tab for space": (b"GET\t" + PATH + b" HTTP/1.1\r\n" + HOST + b"\r\n", BAD),
    "space at the end": (b"GET " + PATH + b" HTTP/1.1 \r\n" + HOST + b"\r\n", BAD),
    "eight-bit target": (request(b"/caf\xe9"), BAD),
    "nul in target": (request(PATH + b"\x00"), BAD),
    "bad host of a HEAD": (request(method=b"HEAD", fields=b""), Refused("bad_request", is_head=True)),
    # lines
    "lf only": (request().replace(b"\r\n", b"\n"), BAD),
    "one lf": (b"GET " + PATH + b" HTTP/1.1\n" + HOST + b"\r\n", BAD),
    "lf at the end": (b"GET " + PATH + b" HTTP/1.1\r\n" + HOST + b"\n", BAD),
    "bare cr": (request(fields=HOST + b"A: b\rHost: c\r\n"), BAD),
    "cr cr lf": (request(fields=HOST + b"A: b\r\r\n"), BAD),
    "empty line first": (b"\r\n" + request(), GET),
    "two empty lines first": (b"\r\n\r\n" + request(), BAD),
    "bare line feed first": (b"\n" + request(), BAD),
    "only an empty line": (b"\r\n", None),
    "folded": (request(fields=HOST + b"A: b\r\n c\r\n"), BAD),
    "folded first": (request(fields=b" A: b\r\n" + HOST), BAD),
    "space before colon": (request(fields=b"Host : example.org\r\n"), BAD),
    "no colon": (request(fields=HOST + b"A\r\n"), BAD),
    "no name": (request(fields=HOST + b": b\r\n"), BAD),
    "nul in value": (request(fields=HOST + b"A: \x00\r\n"), BAD),
    "control in value": (request(fields=HOST + b"A: \x1b[1m\r\n"), BAD),
    "delete in value": (request(fields=HOST + b"A: \x7f\r\n"), BAD),
    # bodies
    "length": (request(fields=HOST + b"Content-Length: 5\r\n") + b"hello", GET),
    "chunked": (request(fields=HOST + b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n", GET),
    "length and chunked": (request(fields=HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), BAD),
    "two lengths": (request(fields=HOST + b"Content-Length: 5\r\ncontent-length: 6\r\n"), BAD),
    "signed length": (request(fields=HOST + b"Content-Length: +5\r\n"), BAD),
    "length list": (request(fields=HOST + b"Content-Length: 5, 5\r\n"), BAD),
    # sizes
    "64 lines": (request(fields=lines(64)), GET),
    "65 lines": (request(fields=lines(65)), TOO_LARGE),
    "lines without end": (request(fields=lines(65))[:-2], TOO_LARGE),
    "4096 bytes": (sized(4096), GET),
    "4097 bytes": (sized(4097), TOO_LARGE),
    "4096 bytes without end": (b"A" * 4096, TOO_LARGE),
    "4095 bytes without end": (b"A" * 4095, None),
    "a long line": (b"GET /" + b"a" * 100_000, TOO_LARGE),
    "unfinished": (request()[:-1], None),
    "nothing": (b"", None),
}


def read(pieces: Sequence[bytes]) -> Asked | Refused | None:
    reader = HeadReader(Http01Limits())
    for piece in pieces:
        verdict = reader.feed(piece)
        if verdict is not None:
            return verdict
    return None


@pytest.mark.parametrize(("head", "expected"), HEADS.values(), ids=HEADS)
def test_heads_are_read_one_way(head: bytes, expected: Asked | Refused | None) -> None:
    """Whatever is read generously here is read otherwise by somebody else."""
    assert read([head]) == expected


@pytest.mark.parametrize(("head", "expected"), HEADS.values(), ids=HEADS)
def test_heads_are_read_the_same_byte_by_byte(head: bytes, expected: Asked | Refused | None) -> None:
    """TCP keeps no boundaries: a verdict that depends on them is luck."""
    assert read([head[at : at + 1] for at in range(len(head))]) == expected


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A head of the table with some bytes overwritten by ones that matter to a parser."""
    head = bytearray(draw(st.sampled_from(sorted(head for head, _ in HEADS.values()))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(head) - 1)))
        head[at : at + draw(st.integers(0, 2))] = draw(
            st.sampled_from([b"\r", b"\n", b"\r\n", b"\x00", b":", b" ", b"["])
        )
    return bytes(head)


@settings(deadline=None, database=None, derandomize=True, max_examples=500)
@given(data=st.binary(max_size=6000) | spoilt(), cuts=st.lists(st.integers(0, 6000), max_size=6))
def test_no_bytes_break_the_reader(data: bytes, cuts: list[int]) -> None:
    """It stands in the open: every input ends in a verdict or in waiting, however it is cut."""
    whole = read([data])
    edges = [0, *sorted(cuts), len(data)]
    assert read([data[start:end] for start, end in pairwise(edges)]) == whole
    if len(data) >= 4096 or b"\r\n\r\n" in data:
        assert isinstance(whole, Asked | Refused)
    if isinstance(whole, Asked) and whole.token is not None:
        assert b"/.well-known/acme-challenge/" + whole.token + b" HTTP/1." in data


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", b"\xc0\x00\x02\x01"),
        ("2001:db8:1:2:3::4", b"\x20\x01\x0d\xb8\x00\x01\x00\x02"),
        ("fe80::1%eth0", b"\xfe\x80\x00\x00\x00\x00\x00\x00"),
        ("::ffff:192.0.2.1", b"\xc0\x00\x02\x01"),
        ("127.9.9.9", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
    ],
)
def test_clients_are_counted_by_what_one_customer_has(address: str, network: bytes | None) -> None:
    """Counted by address, a /64 would be 2^64 clients; counted at loopback, a proxy would be one."""
    assert network_of(address) == network


def test_who_has_its_answer_goes_first_then_the_oldest_unfinished() -> None:
    """A flood of answered clients that do not close must not put out who comes next before it is read."""
    admission: Admission[str] = Admission(Http01Limits(connections=3))
    assert [admission.enter(client, None, now) for now, client in enumerate("abc")] == [None, None, None]
    admission.linger("b", 3.0)
    assert admission.enter("d", None, 4.0) == "b"
    assert admission.enter("e", None, 5.0) == "a"
    assert len(admission) == 3


def test_too_many_unfinished_ones_are_no_reason_to_put_out_another() -> None:
    """It would not make them fewer."""
    admission: Admission[str] = Admission(TlsAlpn01Limits(connections=9, unfinished=2))
    for client in "abc":
        admission.enter(client, None, 0.0)
        if client == "a":
            admission.linger("a", 0.0)
    assert admission.enter("d", None, 0.0) == "b"


def test_only_answered_clients_inside_are_put_out_in_their_order() -> None:
    """The new client may be the CA's; those inside have been answered."""
    admission: Admission[str] = Admission(Http01Limits(connections=2))
    for client in "ab":
        admission.enter(client, None, 0.0)
    admission.linger("b", 0.1)
    admission.linger("a", 0.2)
    assert admission.enter("c", None, 0.3) == "b"


def test_a_network_has_its_share_and_gets_it_back() -> None:
    """A leak in this count would lock a CA out for ever."""
    admission: Admission[str] = Admission(Http01Limits(connections=9, per_network=2))
    here, there = b"here", b"there"
    for client, network in (("a", there), ("b", here), ("c", here), ("d", there), ("e", None), ("f", None)):
        assert admission.enter(client, network, 0.0) is None
    admission.leave("c")
    admission.leave("c")
    assert admission.enter("g", here, 0.0) is None
    assert admission.enter("h", here, 0.0) == "b"
    admission.linger("h", 0.0)
    assert admission.enter("i", here, 0.0) == "h"


def test_a_network_with_its_share_puts_out_its_own_quietest() -> None:
    """A flood from one address would else keep out a CA behind the same one, or others' clients."""
    admission: Admission[str] = Admission(Http01Limits(connections=9, per_network=2))
    admission.enter("elsewhere", b"there", 0.0)
    admission.enter("a", b"here", 1.0)
    admission.enter("b", b"here", 2.0)
    admission.renew("a", 3.0)
    assert admission.enter("c", b"here", 4.0) == "b"
    admission.attend("a")
    assert admission.enter("d", b"here", 5.0) == "a"


def test_nothing_is_kept_of_who_has_left() -> None:
    """Every address of the Internet may come by once."""
    limits = Http01Limits(connections=2)
    admission: Admission[int] = Admission(limits)
    for client in range(100):
        admission.enter(client, b"network %d" % client, 0.0)
    for client in range(100):
        admission.linger(client, 0.0)
        admission.leave(client)
    assert repr(vars(admission)) == repr(vars(Admission(limits)))


def test_time_is_up_in_order_and_not_before() -> None:
    """The deadline runs from accept on; an answered client has a second of its own."""
    admission: Admission[str] = Admission(Http01Limits(head_seconds=5.0))
    admission.enter("a", None, 0.0)
    admission.enter("b", None, 1.0)
    admission.enter("c", None, 1.0)
    admission.linger("c", 4.9)
    assert admission.next_overdue(4.99) is None
    assert admission.next_overdue(5.0) == ("a", True)
    admission.leave("a")
    assert admission.next_overdue(5.8) is None
    assert admission.next_overdue(5.9) == ("c", False)
    admission.leave("c")
    assert admission.next_overdue(6.0) == ("b", True)


async def test_a_sampler_lets_one_line_through_and_says_how_many_it_kept_back(clock: MovedClock) -> None:
    """A scanner must not fill the disk with our log."""
    sampler = Sampler(clock)
    assert [sampler.due() for _ in range(4)] == [0, None, None, None]
    sleeper = asyncio.create_task(clock.sleep(10.0))
    await clock.advance(9.9)
    assert sampler.due() is None
    await clock.advance(0.1)
    assert sampler.due() == 4
    await sleeper


class Client:
    """A TCP client without opinions."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.socket, data), 10)

    async def receive(self) -> bytes:
        """Everything until the server closes; ConnectionResetError when it does so rudely."""
        received = bytearray()
        async with asyncio.timeout(20):
            while data := await asyncio.get_running_loop().sock_recv(self.socket, 65536):
                received += data
        return bytes(received)

    async def until_gone(self) -> None:
        """Returns when the server has thrown us out."""
        with suppress(ConnectionError):
            await self.receive()


@asynccontextmanager
async def connected(listener: Http01Listener, at: int = 0) -> AsyncIterator[Client]:
    host, port = listener.addresses[at]
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as opened:
        opened.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(opened, (host, port)), 10)
        yield Client(opened)


async def ask(listener: Http01Listener, data: bytes = REQUEST, at: int = 0) -> bytes:
    async with connected(listener, at) as client:
        await client.send(data)
        return await client.receive()


def expected(status: str, fields: Sequence[str], body: bytes) -> bytes:
    # The fake clock stands at 1 January 2026.
    head = [f"HTTP/1.1 {status}", "Date: Thu, 01 Jan 2026 00:00:00 GMT", *fields, "Connection: close", "", ""]
    return "\r\n".join(head).encode() + body


def fields(media_type: str, length: int) -> list[str]:
    return [
        f"Content-Type: {media_type}",
        f"Content-Length: {length}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
    ]


ANSWER = expected("200 OK", fields("application/octet-stream", len(KEY_AUTHORIZATION)), KEY_AUTHORIZATION)
NOT_FOUND = expected("404 Not Found", fields("text/plain", 10), b"Not Found\n")


def put(listener: Http01Listener) -> None:
    listener.put(TOKEN.decode(), KEY_AUTHORIZATION.decode())


@pytest.mark.parametrize("entry", ["127.0.0.1:0", "[::1]:0"])
async def test_a_known_token_gets_its_key_authorization_and_nothing_else(serve: Serve, entry: str) -> None:
    """A CA compares the body byte for byte, and asks over IPv6 first where it can."""
    async with serve(Http01Limits(), bind_all([entry]).sockets) as listener:
        put(listener)
        assert await ask(listener) == ANSWER
        assert listener.counters.answers == 1


async def test_all_sockets_answer(serve: Serve) -> None:
    """IPv4 and IPv6 are two sockets of one listener."""
    async with serve(Http01Limits(), bind_all(["127.0.0.1:0", "[::1]:0"]).sockets) as listener:
        put(listener)
        assert [await ask(listener, at=at) for at in (0, 1)] == [ANSWER, ANSWER]


async def test_a_head_request_has_the_same_fields_and_no_body(listener: Http01Listener) -> None:
    """Administrators try the path with `curl -I`; a body would be the start of another answer."""
    put(listener)
    assert await ask(listener, request(method=b"HEAD")) == ANSWER.removesuffix(KEY_AUTHORIZATION)
    assert await ask(listener, request(b"/", method=b"HEAD")) == NOT_FOUND.removesuffix(b"Not Found\n")


async def test_a_token_that_was_removed_is_unknown(listener: Http01Listener) -> None:
    """What is cleaned up must not be answered any more, and cleaning up twice is no error."""
    put(listener)
    assert await ask(listener) == ANSWER
    listener.remove(TOKEN.decode())
    listener.remove(TOKEN.decode())
    assert await ask(listener) == NOT_FOUND
    assert listener.counters.not_found == 1


async def test_a_token_put_twice_has_its_last_answer(listener: Http01Listener) -> None:
    """After a restart the solver presents again, perhaps with another account key."""
    listener.put(TOKEN.decode(), "old.thumbprint")
    put(listener)
    assert await ask(listener) == ANSWER


@pytest.mark.parametrize(
    ("token", "key_authorization"),
    [
        ("short", "a.b"),
        ("x" * 129, "a.b"),
        ("../../../../etc/passwd", "a.b"),
        ("ä" * 22, "a.b"),
        ("x" * 22, ""),
        ("x" * 22, "a\r\nb"),
        ("x" * 22, "ä"),
        ("x" * 22, "a" * 513),
    ],
)
async def test_what_nobody_could_ask_for_is_refused(
    listener: Http01Listener, token: str, key_authorization: str
) -> None:
    """Otherwise the order would wait for a validation that cannot succeed."""
    with pytest.raises(ValueError, match="base64url"):
        listener.put(token, key_authorization)


def test_without_a_socket_nothing_can_be_answered(clock: MovedClock, log: FilteringBoundLogger) -> None:
    """The order says so itself, and the CA does not count a failed validation."""
    with pytest.raises(ValueError, match=r"\[http01\] listen is empty"):
        Http01Listener([], clock=clock, log=log).put(TOKEN.decode(), KEY_AUTHORIZATION.decode())


@pytest.mark.parametrize(
    ("data", "status", "more"),
    [
        (request(b"/../../etc/passwd"), "404 Not Found", ()),
        (request(PATH.replace(b"L", b"%4c")), "404 Not Found", ()),
        (request().replace(b"\r\n", b"\n"), "400 Bad Request", ()),
        (
            request(method=b"POST", fields=HOST + b"Content-Length: 5\r\n") + b"hello",
            "405 Method Not Allowed",
            ("Allow: GET, HEAD",),
        ),
        (
            request(fields=HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
            "400 Bad Request",
            (),
        ),
        (sized(9000), "431 Request Header Fields Too Large", ()),
        (request(version=b"HTTP/2.0"), "505 HTTP Version Not Supported", ()),
    ],
)
async def test_everything_else_gets_a_short_answer(
    listener: Http01Listener, data: bytes, status: str, more: tuple[str, ...]
) -> None:
    """Whoever debugs a validation sees a status, never a silent close."""
    put(listener)
    body = f"{status[4:]}\n".encode()
    assert await ask(listener, data) == expected(status, [*fields("text/plain", len(body)), *more], body)
    assert listener.counters.answers == 0


async def test_absolute_form_is_answered(listener: Http01Listener) -> None:
    """RFC 9112 section 3.2.2: a validator behind a forward proxy may send it."""
    put(listener)
    assert await ask(listener, request(b"http://example.org" + PATH)) == ANSWER


async def test_a_client_that_stops_sending_after_its_request_is_answered(listener: Http01Listener) -> None:
    """`nc -N` and some health checks half-close at once."""
    put(listener)
    async with connected(listener) as client:
        await client.send(REQUEST)
        client.socket.shutdown(socket.SHUT_WR)
        assert await client.receive() == ANSWER


async def test_a_client_that_gives_up_is_forgotten_at_once(listener: Http01Listener) -> None:
    """A port scan must not fill the house for five seconds."""
    async with connected(listener) as client:
        await client.send(b"GET / HT")
        client.socket.shutdown(socket.SHUT_WR)
        assert await client.receive() == b""
        assert listener.counters.connections == 0


@pytest.mark.parametrize("extra", [b"\n", REQUEST, b"\x00" * 48 * 1024], ids=["a byte", "a request", "48 KiB"])
async def test_bytes_after_the_request_do_not_cost_the_answer(listener: Http01Listener, extra: bytes) -> None:
    """Closing on unread bytes sends RST, which overtakes the answer: the validation would fail now and then."""
    put(listener)
    assert await ask(listener, REQUEST + extra) == ANSWER
    for _ in range(200):
        await asyncio.sleep(0)
    assert listener.counters.connections == 0  # it has closed, and that is noticed behind the extra bytes


async def test_a_client_that_sends_without_end_has_its_answer_and_one_second(
    listener: Http01Listener, clock: MovedClock
) -> None:
    """It must neither lose the answer nor keep us busy."""
    put(listener)
    async with connected(listener) as client:
        sending = asyncio.create_task(client.send(REQUEST + bytes(16 * 1024 * 1024)))
        assert await client.receive() == ANSWER
        for _ in range(10_000):  # enough to read it all, if anybody did
            await asyncio.sleep(0)
        assert not sending.done()
        assert listener.counters.connections == 1
        await clock.advance(1.0)
        with pytest.raises(ConnectionError):
            await sending
    assert listener.counters.connections == 0


async def test_a_client_that_does_not_close_is_gone_a_second_after_its_answer(
    listener: Http01Listener, clock: MovedClock
) -> None:
    """Not to read the answer, or not to close, must not be a way to stay."""
    async with connected(listener) as client:
        await client.send(REQUEST)
        assert await client.receive() == NOT_FOUND
        await clock.advance(0.9)
        await client.send(b"x")  # still there
        assert await ask(listener, b"\n") != b""
        await clock.advance(0.1)
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionError):
                while True:
                    await client.send(b"x")
                    await asyncio.sleep(0)


async def test_the_deadline_runs_from_accept_however_busily_a_client_drips(
    listener: Http01Listener, clock: MovedClock
) -> None:
    """A deadline that starts anew with every byte is none."""
    put(listener)
    async with connected(listener) as dripping, connected(listener) as slow:
        for client in (dripping, slow):
            await client.send(REQUEST[:-2])
        assert await ask(listener) == ANSWER
        await clock.advance(4.9)
        await dripping.send(b"X")
        await slow.send(b"\r\n")
        assert (await slow.receive()).endswith(KEY_AUTHORIZATION)
        await clock.advance(0.1)
        assert await dripping.receive() == b""
    assert listener.counters.rejected == {"timed_out": 1}


async def test_the_deadline_holds_on_the_machines_clock(log: FilteringBoundLogger) -> None:
    """The sweep must work without anybody moving the time."""
    clock = SystemClock()
    listener = Http01Listener(
        bind_all(["127.0.0.1:0"]).sockets, clock=clock, log=log, limits=Http01Limits(head_seconds=0.3)
    )
    await listener.start()
    began = clock.monotonic()
    async with connected(listener) as client:
        await client.send(b"GET / HTTP/1.1\r\n")
        assert await client.receive() == b""
    assert 0.25 <= clock.monotonic() - began < 5.0
    await listener.close()


async def test_when_full_the_oldest_unfinished_goes_and_the_new_client_is_answered(serve: Serve) -> None:
    """Refusing the new client instead would let idle ones keep a CA out."""
    async with serve(Http01Limits(connections=2)) as listener, connected(listener) as first:
        put(listener)
        await first.send(b"GET / HTTP/1.1\r\n")
        async with connected(listener) as second:
            await second.send(REQUEST[:-2])
            assert await ask(listener) == ANSWER
            await first.until_gone()
            await second.send(b"\r\n")
            assert await second.receive() == ANSWER
        assert listener.counters.evicted == 1


async def test_a_client_evicted_before_it_was_looked_at_is_gone_too(serve: Serve) -> None:
    """In a burst one turn of the loop accepts and evicts the same client; it must not live on uncounted."""
    async with serve(Http01Limits(connections=1)) as listener:
        put(listener)
        burst = [Client(socket.create_connection(listener.addresses[0], 10)) for _ in range(3)]
        try:
            for each in burst:
                each.socket.setblocking(False)
            for each in burst[:2]:
                await each.until_gone()
            await burst[2].send(REQUEST)
            assert await burst[2].receive() == ANSWER
        finally:
            for each in burst:
                each.socket.close()
        assert listener.counters.evicted == 2


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("this many connections need 4,096 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_honest_clients_are_answered_among_1500_slow_ones(listener: Http01Listener) -> None:
    """The attack that costs nothing must not stop renewals."""
    put(listener)
    slow: list[Client] = []
    answers: list[bytes] = []
    try:
        for count in range(1500):
            opened = socket.socket()
            slow.append(Client(opened))
            opened.setblocking(False)
            await asyncio.get_running_loop().sock_connect(opened, listener.addresses[0])
            await slow[-1].send(b"GET / HTTP/1.1\r\nX: ")
            if count % 30 == 29:
                answers.append(await ask(listener))
        assert answers == [ANSWER] * 50
        assert listener.counters.evicted >= 1500 - 1024
        assert listener.counters.connections <= 1024
        await slow[0].until_gone()
        await slow[-1].send(b"y\r\n" + HOST + b"\r\n")
        assert await slow[-1].receive() == NOT_FOUND
    finally:
        for each in slow:
            each.socket.close()


class Distant(socket.socket):
    """A listening socket whose clients all seem to come from one foreign address."""

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        return super().accept()[0], ("192.0.2.7", 50000)


async def test_one_network_gets_its_share_only(serve: Serve) -> None:
    """One customer's machines must not fill the house; their oldest goes for their next, which may be a CA's."""
    distant = Distant(fileno=bind_all(["127.0.0.1:0"]).sockets[0].detach())
    distant.setblocking(False)
    async with serve(Http01Limits(per_network=2), [distant]) as listener:
        put(listener)
        async with connected(listener) as first, connected(listener) as second:
            for each in (first, second):
                await each.send(b"GET")
            async with asyncio.timeout(10):
                while listener.counters.connections < 2:  # noqa: ASYNC110 - what the kernel tells is no event of ours
                    await asyncio.sleep(0)
            assert await ask(listener) == ANSWER
            await first.until_gone()
        assert listener.counters.evicted == 1


async def test_loopback_has_no_share(serve: Serve) -> None:
    """Behind a proxy on this host everybody is loopback."""
    async with serve(Http01Limits(per_network=1)) as listener, connected(listener) as first:
        put(listener)
        await first.send(b"GET")
        assert await ask(listener) == ANSWER


async def test_running_out_of_descriptors_is_one_line_and_passes(
    listener: Http01Listener, clock: MovedClock, logged: list[EventDict]
) -> None:
    """A daemon short of descriptors must come back by itself, and its log must still be readable."""
    put(listener)
    clients = [socket.socket() for _ in range(3)]
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        for each in clients:
            each.setblocking(False)
            await asyncio.get_running_loop().sock_connect(each, listener.addresses[0])
            await Client(each).send(REQUEST)
        for _ in range(22):  # tried again every second, in vain
            await clock.advance(0.5)
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
        await clock.advance(1.0)
        answers = [await Client(each).receive() for each in clients]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
        for each in clients:
            each.close()
    assert all(each.endswith(KEY_AUTHORIZATION) for each in answers)
    line = {
        "event": "http01.accept_paused",
        "log_level": "warning",
        "error": "EMFILE",
        "retry_after_seconds": 1.0,
    }
    warnings = [each for each in logged if each["log_level"] != "info"]
    assert warnings == [{**line, "suppressed": 0}, {**line, "suppressed": 9}]


async def test_hits_are_logged_with_little_of_the_token(listener: Http01Listener, logged: list[EventDict]) -> None:
    """Operators look here first; whoever reads logs must not be able to ask for the rest."""
    put(listener)
    await ask(listener)
    await ask(listener)
    hit = {
        "event": "http01.answered",
        "source": "127.0.0.1",
        "found": True,
        "challenge": "LoqXcYV8",
        "log_level": "info",
    }
    assert logged == [hit, hit]


async def test_other_requests_are_counted_and_logged_now_and_then(
    listener: Http01Listener, clock: MovedClock, logged: list[EventDict]
) -> None:
    """Port 80 is scanned all day; one line tells that it happens, the counters how much."""
    for _ in range(2):
        async with connected(listener) as slow:
            await slow.send(b"GET")
            for data in (REQUEST, request(b"/"), request(method=b"POST"), b"\n"):
                await ask(listener, data)
            await clock.advance(5.0)
            assert await slow.receive() == b""
    assert logged == [
        {
            "event": "http01.answered",
            "source": "127.0.0.1",
            "found": False,
            "challenge": "LoqXcYV8",
            "suppressed": 0,
            "log_level": "info",
        },
        {
            "event": "http01.rejected",
            "source": "127.0.0.1",
            "reason": "timed_out",
            "suppressed": 8,
            "log_level": "info",
        },
    ]
    assert listener.counters.not_found == 4
    assert listener.counters.rejected == {"method_not_allowed": 2, "bad_request": 2, "timed_out": 2}


async def test_close_disconnects_everybody_and_may_be_repeated(serve: Serve) -> None:
    """A stopping daemon waits for no stranger, and the port is free when `close` returns."""
    async with serve(Http01Limits()) as listener:
        host, port = listener.addresses[0]
        async with connected(listener) as client:
            await client.send(b"GET")
            await ask(listener)
            await listener.close()
            assert listener.counters.connections == 0
            await client.until_gone()
        await listener.close()
        assert listener.addresses == []
        for each in bind_all([f"{host}:{port}"]).sockets:
            each.close()
