"""What strangers send: raw bytes on real sockets, and nothing of it may reach a handler or outstay its time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from scaivaultd.gateways.rest import RestLimits
from scaivaultd.gateways.rest_answers import RequestLimits
from scaivaultd.gateways.rest_connections import ConnectionLimits
from scaivaultd.gateways.rest_sockets import UnixSocket
from tests.fakes.rest import TOKEN, Done, Served, head, served, status_of
from tests.fakes.tcp import Peer, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

ISSUE = b'{"account_id":"acme_1","domains":["a.test"],"challenge_type":"http-01"}'
JSON = {"Content-Type": "application/json"}
RENEW = "/v1/pki/certificates/c/renew"
"""It needs no body: whatever is not refused has an effect."""
AUTHORIZED = f"Authorization: Bearer {TOKEN}\r\n".encode()


@pytest.fixture
async def here() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


def with_connections(**limits: Any) -> RestLimits:
    return RestLimits(connections=ConnectionLimits(**limits))


async def test_the_good_request_of_these_tests_is_good(here: Served) -> None:
    """Else all of them would pass for the wrong reason."""
    assert status_of(await here.raw(head())) == 200
    length = {**JSON, "Content-Length": str(len(ISSUE))}
    assert status_of(await here.raw(head("POST", "/v1/pki/acme/issue", length) + ISSUE)) == 202
    chunked = {**JSON, "Transfer-Encoding": "chunked"}
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(ISSUE), ISSUE)
    assert status_of(await here.raw(head("POST", "/v1/pki/acme/issue", chunked) + body)) == 202
    assert status_of(await here.raw(b"GET /v1/sys/info HTTP/1.0\r\n" + AUTHORIZED + b"\r\n")) == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"Content-Length": "5", "Transfer-Encoding": "chunked"},
        {"Transfer-Encoding": "chunked", "Content-Length": "5"},
        {"Transfer-Encoding": "gzip, chunked"},
        {"Transfer-Encoding": "chunked\r\nTransfer-Encoding: chunked"},
        {"Transfer-Encoding": "chunked\r\nTransfer-Encoding: identity"},
        {"Transfer-Encoding": "chunked, identity"},
        {"Transfer-Encoding": "xchunked"},
        {"Transfer-Encoding": "\x0bchunked"},
        {"Transfer-Encoding": "identity"},
        {"Transfer-Encoding ": "chunked"},
        {"Content-Length": "+5"},
        {"Content-Length": "5, 5"},
        {"Content-Length": "0x5"},
        {"Content-Length": "-5"},
        {"Content-Length ": "5"},
        {"Content-Length": "5\r\nContent-Length: 6"},
        {"Content-Length": "5\r\nContent-Length: 5"},
        {"X": "a\r\n b"},
        {"X": "a\nb: c"},
        {"X": "a\rb: c"},
        {"X": "a\x00b"},
        {" X": "y"},
        {"X y": "z"},
        {"": "empty"},
        {"Host": "a\r\nHost: a"},
        {"Host": "a b"},
        {"Host": "a/b"},
        {"Host": "user@a"},
        {"Host": ""},
        {"Connection": "upgrade", "Upgrade": "websocket"},
        {"Idempotency-Key": "a\r\nIdempotency-Key: b"},
        {"Content-Type": "application/json\r\nContent-Type: text/plain"},
        {"Authorization": f"Bearer {TOKEN}\r\nAuthorization: Bearer other"},
    ],
    ids=lambda fields: repr(fields)[:60],
)
async def test_a_head_that_can_be_read_in_two_ways_is_refused(here: Served, fields: dict[str, str]) -> None:
    """Request smuggling is two readers that disagree: what stands behind such a head is never a request."""
    smuggled = b"0\r\n\r\n" + head("POST", "/v1/pki/revoke", close=False)
    answer = await here.raw(head("POST", RENEW, {**JSON, **fields}, close=False) + smuggled)
    assert status_of(answer) == 400
    assert answer.count(b"HTTP/1.") == 1
    assert here.asked == []
    # The parser may have stumbled over what came behind: alone it must be refused too.
    assert status_of(await here.raw(head("POST", RENEW, {**JSON, **fields}))) == 400
    assert here.asked == []


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET http://x/v1/sys/info HTTP/1.1", 400),
        (b"GET //v1/sys/info HTTP/1.1", 400),
        (b"GET /v1//sys/info HTTP/1.1", 400),
        (b"GET /v1/sys/info/ HTTP/1.1", 400),
        (b"GET /v1/./sys/info HTTP/1.1", 400),
        (b"GET /v1/pki/../sys/info HTTP/1.1", 400),
        (b"GET /v1/%2e%2e/v1/sys/info HTTP/1.1", 400),
        (b"GET /v1/%2E/sys/info HTTP/1.1", 400),
        (b"GET /v1/sys%2finfo HTTP/1.1", 400),
        (b"GET /v1/sys%2Finfo HTTP/1.1", 400),
        (b"GET /v1%2Fsys/info HTTP/1.1", 400),
        (b"GET /v1/pki/acme/orders/a%2Fb HTTP/1.1", 400),
        (b"GET /v1/pki/acme/orders/..%2F..%2Fsys%2Finfo HTTP/1.1", 400),
        (b"DELETE /v1/secrets/a%2F..%2Fb HTTP/1.1", 400),
        (b"DELETE /v1/secrets%2Fa HTTP/1.1", 400),
        (b"GET /v1/sys%5cinfo HTTP/1.1", 400),
        (b"GET /v1/s%79s/info HTTP/1.1", 400),
        (b"GET /v1/sys/info%00 HTTP/1.1", 400),
        (b"GET /v1/sys/info%0d%0a HTTP/1.1", 400),
        (b"GET /v1/sys/%zz HTTP/1.1", 400),
        (b"GET /v1/sys/%ff HTTP/1.1", 400),
        (b"GET /v1/sys/\xff HTTP/1.1", 400),
        (b"GET /v1/sys/info#x HTTP/1.1", 400),
        (b"GET /v1/sys\\info HTTP/1.1", 400),
        (b"GET /v1/sys/info?%zz=1 HTTP/1.1", 400),
        (b"GET /v1/sys/info?x HTTP/1.1", 400),
        (b"GET /v1/sys/info?" + b"a=1&" * 100 + b"a=1 HTTP/1.1", 400),
        (b"GET * HTTP/1.1", 400),
        (b"OPTIONS * HTTP/1.1", 400),
        (b"CONNECT x:443 HTTP/1.1", 400),
        (b"GET v1/sys/info HTTP/1.1", 400),
        (b"GET\t/v1/sys/info\tHTTP/1.1", 400),
        (b"GET /v1/sys/info", 505),
        (b"GET /v1/sys/info HTTP/1.1 x", 400),
        (b"GET /v1/sys/info HTTP/2.0", 505),
        (b"GET /v1/sys/info HTTP/0.9", 505),
        (b"GET /v1/sys/info FTP/1.1", 400),
        (b"G@T /v1/sys/info HTTP/1.1", 400),
        (b"TRACE /v1/sys/info HTTP/1.1", 405),
        (b"BREW /v1/sys/info HTTP/1.1", 400),
        (b"get /v1/sys/info HTTP/1.1", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"PRI * HTTP/2.0", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1", 400),
    ],
    ids=lambda each: repr(each)[:40],
)
async def test_a_target_has_one_spelling(here: Served, line: bytes, status: int) -> None:
    """A proxy that guards paths by their text must see the path that we serve."""
    answer = await here.raw(line + b"\r\nHost: x\r\nConnection: close\r\n" + AUTHORIZED + b"\r\n")
    assert status_of(answer) == status
    assert here.asked == []


async def test_a_refusal_is_a_problem_document_and_quotes_nothing(here: Served) -> None:
    """A head holds tokens; an answer that repeats it hands them to whoever reads the answer."""
    answer = await here.raw(b"GET /v1/sys/info HTTP/1.1\r\nHost: x\r\n" + AUTHORIZED + b" folded\r\n\r\n")
    fields, body = answer.split(b"\r\n\r\n", 1)
    assert b"application/problem+json" in fields
    assert b"Server: scaivaultd" in fields
    assert json.loads(body)["code"] == "invalid_request"
    assert b"canary" not in answer


async def test_rubbish_fills_no_log(here: Served, caplog: pytest.LogCaptureFixture) -> None:
    """aiohttp writes a traceback for each; a scanner sends thousands."""
    with caplog.at_level(logging.DEBUG):
        for _ in range(20):
            await here.raw(b"rubbish\r\n\r\n")
    assert not [each for each in caplog.records if each.name.startswith("aiohttp")]
    assert [each["event"] for each in here.capture.entries].count("rest.rejected") == 1
    assert here.gateway.rejected == {"bad_head": 20}


async def test_an_offer_of_http_2_is_passed_over(here: Served) -> None:
    """Java sends it with every first request, bodies included; what follows the answer is HTTP/1.1 as before."""
    offer = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAAA"}
    fields = {**JSON, **offer, "Content-Length": str(len(ISSUE))}
    async with connected(here.address) as peer:
        await peer.send(head("POST", "/v1/pki/acme/issue", fields, close=False) + ISSUE)
        assert status_of(await peer.some()) == 202
        await peer.send(head(fields=offer, close=False))
        assert status_of(await peer.some()) == 200
        await peer.send(head())
        assert status_of(await peer.rest()) == 200


async def test_http_1_1_needs_a_host(here: Served) -> None:
    """RFC 9112 section 3.2."""
    assert status_of(await here.raw(b"GET /v1/sys/info HTTP/1.1\r\n" + AUTHORIZED + b"\r\n")) == 400


async def test_http_1_0_knows_no_transfer_encoding(here: Served) -> None:
    """RFC 9112 section 6.1: treat it as faulty framing."""
    request = b"POST " + RENEW.encode() + b" HTTP/1.0\r\n" + AUTHORIZED
    answer = await here.raw(request + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert status_of(answer) == 400
    assert here.asked == []


async def test_compressed_bodies_are_refused(here: Served) -> None:
    """A kilobyte may be a gigabyte."""
    fields = {**JSON, "Content-Encoding": "gzip", "Content-Length": "5"}
    assert status_of(await here.raw(head("POST", "/v1/pki/acme/issue", fields) + b"\x1f\x8b\x08\x00\x00")) == 415


async def test_other_expectations_are_not_met(here: Served) -> None:
    """RFC 9110 section 10.1.1."""
    fields = {**JSON, "Expect": "miracles", "Content-Length": "2"}
    assert status_of(await here.raw(head("POST", "/v1/pki/acme/issue", fields) + b"{}")) == 417


async def test_an_announced_flood_is_refused_unread(here: Served) -> None:
    """The length is known before the first byte of it."""
    fields = {**JSON, "Content-Length": str(1 << 40), "Expect": "100-continue"}
    answer = await here.raw(head("POST", "/v1/pki/acme/issue", fields))
    assert status_of(answer) == 413


async def test_the_rest_of_a_refused_body_is_no_second_head(here: Served) -> None:
    """It is read and thrown away for a moment, so that the refusal arrives; it is answered by nothing."""
    async with connected(here.address) as peer:
        fields = {"Authorization": "none", "Content-Length": "100000"}
        await peer.send(head("POST", "/v1/pki/acme/issue", fields, close=False))
        assert status_of(await peer.some()) == 401
        await peer.send(b"GET / HTTP/1.1\r\n\r\n".ljust(100000, b"x") + head(fields={"X-Request-Id": "next"}))
        answer = await peer.rest()
    assert answer.count(b"HTTP/1.") == 1
    assert b"X-Request-Id: next" in answer
    assert here.gateway.rejected == {}


@pytest.mark.parametrize("body", [b"zz\r\n", b"5\r\nabc\r\n0\r\n\r\n", b"-1\r\n\r\n", b"5;\x00\r\nhello\r\n0\r\n\r\n"])
async def test_chunks_that_are_none_are_refused(here: Served, body: bytes) -> None:
    """Nothing of such a body may be taken for the next request."""
    fields = {**JSON, "Transfer-Encoding": "chunked"}
    answer = await here.raw(head("POST", "/v1/pki/acme/issue", fields) + body + head())
    assert status_of(answer) == 400
    assert here.asked == []


async def test_a_caller_who_hangs_up_in_its_body_is_no_fault_of_ours(here: Served) -> None:
    """A traceback for each of them would let any caller fill the log."""
    async with connected(here.address) as peer:
        fields = {**JSON, "Content-Length": "200", "Expect": "100-continue"}
        await peer.send(head("POST", "/v1/pki/acme/issue", fields))
        assert status_of(await peer.some()) == 100
    await here.until_logged("rest.refused")
    assert "rest.failed" not in [each["event"] for each in here.capture.entries]


async def test_several_requests_on_one_connection_are_answered_in_order(here: Served) -> None:
    """Keep-alive and pipelining are what proxies live on."""
    answer = await here.raw(head(close=False) + head(target="/v1/nowhere", close=False) + head())
    assert [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]


async def test_a_head_in_single_bytes_is_a_head(here: Served) -> None:
    """Networks cut where they like."""
    async with connected(here.address) as peer:
        for each in head():
            await peer.send(bytes([each]))
        assert status_of(await peer.rest()) == 200


class TestSizes:
    async def test_a_large_field_is_refused(self, here: Served) -> None:
        """4 KiB hold every token there is."""
        assert status_of(await here.raw(head(fields={"X": "x" * 5000}))) == 400

    async def test_many_fields_are_refused(self, here: Served) -> None:
        """Each costs an object."""
        assert status_of(await here.raw(head(fields={f"X-{number}": "x" for number in range(100)}))) == 400

    @pytest.mark.parametrize("end", [None, -2])
    async def test_many_large_fields_are_refused(self, here: Served, end: int | None) -> None:
        """Complete or not: each alone is within its limit."""
        data = head(fields={f"X-{number}": "x" * 1000 for number in range(30)})
        async with connected(here.address) as peer:
            await peer.send(data[:end])
            assert status_of(await peer.some()) == 431
        assert here.asked == []


class TestTimes:
    async def test_a_head_that_drips_ends_at_its_deadline(self) -> None:
        """aiohttp alone would wait for ever: slowloris."""
        async with served(limits=with_connections(head_seconds=0.3)) as here, connected(here.address) as peer:
            gone = asyncio.create_task(peer.until_gone())
            data = head(fields={"X": "x" * 3000})
            sent = 0
            while not gone.done():
                try:
                    await peer.send(data[sent : sent + 1])
                except OSError:
                    break
                sent += 1
                await asyncio.wait([gone], timeout=0.02)
            await gone
            assert sent < 100
            assert here.gateway.rejected == {"timed_out": 1}

    async def test_a_connection_that_says_nothing_ends_too(self) -> None:
        """It costs a descriptor."""
        async with served(limits=with_connections(head_seconds=0.2)) as here, connected(here.address) as peer:
            await peer.until_gone()
            assert here.gateway.connections == 0

    async def test_the_second_head_has_its_time_too(self) -> None:
        """Else one good request would be a ticket for slowloris."""
        async with served(limits=with_connections(idle_seconds=0.2)) as here, connected(here.address) as peer:
            await peer.send(head(close=False) + b"GET /v1")
            assert status_of(await peer.some()) == 200
            await peer.until_gone()

    async def test_a_slow_handler_outlives_the_deadline_of_the_head(self) -> None:
        """The clock stops when the request is complete."""
        async with served(limits=with_connections(head_seconds=0.2, idle_seconds=0.2)) as here:
            done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.6, done.set_result, Done())
            here.answers["sys.info"] = lambda _: _awaited(done)
            assert status_of(await here.raw(head())) == 200

    async def test_a_body_that_does_not_come_ends_at_its_deadline(self) -> None:
        """Nobody announces a body in order to keep it."""
        async with served(limits=RestLimits(request=RequestLimits(body_seconds=0.2))) as here:
            fields = {**JSON, "Content-Length": "100"}
            answer = await here.raw(head("POST", "/v1/pki/acme/issue", fields, close=False) + b"{")
            assert status_of(answer) == 408
            assert here.asked == []

    async def test_an_answer_that_nobody_reads_ends_too(self) -> None:
        """It holds memory as long as it waits."""
        limits = with_connections(answer_seconds=0.3)
        async with served(limits=limits) as here, connected(here.address) as peer:
            here.answers["sys.info"] = lambda _: Done(text="x" * (32 << 20))
            await peer.send(head(close=False))
            await here.until_rejected("timed_out")
            await peer.until_gone()


class TestNumbers:
    async def test_of_the_idle_the_one_that_was_so_for_longest_goes(self) -> None:
        """Who has just asked is likely to ask again."""
        async with served(limits=with_connections(connections=2)) as here, AsyncExitStack() as stack:
            useful = await stack.enter_async_context(connected(here.address))
            silent = await stack.enter_async_context(connected(here.address))
            await useful.send(head(close=False))
            assert status_of(await useful.some()) == 200
            assert status_of(await here.raw(head())) == 200
            await silent.until_gone()
            await useful.send(head())
            assert status_of(await useful.rest()) == 200

    async def test_a_process_without_descriptors_pauses_and_comes_back(self, here: Served) -> None:
        """asyncio alone would write a traceback for each connection in the backlog."""
        clients = [socket.socket() for _ in range(3)]
        before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            for each in clients:
                each.setblocking(False)
                await asyncio.get_running_loop().sock_connect(each, here.address)
                await Peer(each).send(head())
            await here.until_logged("rest.accept_paused")
            resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
            assert [status_of(await Peer(each).rest()) for each in clients] == [200, 200, 200]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))
            for each in clients:
                each.close()

    async def test_when_full_the_idle_go_and_the_new_come_in(self) -> None:
        """Refusing the new would let idle connections keep everybody out."""
        async with served(limits=with_connections(connections=4)) as here, AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(connected(here.address)) for _ in range(10)]
            assert status_of(await here.raw(head())) == 200
            await asyncio.gather(*(each.until_gone() for each in idle[:6]))
            assert here.gateway.connections <= 4
            assert here.gateway.rejected["evicted"] >= 6

    async def test_who_has_work_is_never_put_out(self) -> None:
        """The new one goes when all of them have."""
        async with served(limits=with_connections(connections=2)) as here, AsyncExitStack() as stack:
            begun, may_end = asyncio.Semaphore(0), asyncio.Event()

            async def hang(_: Any) -> Done:
                begun.release()
                await may_end.wait()
                return Done()

            here.answers["sys.info"] = hang
            busy = [await stack.enter_async_context(connected(here.address)) for _ in range(2)]
            for each in busy:
                await each.send(head())
                await begun.acquire()
            late = await stack.enter_async_context(connected(here.address))
            await late.until_gone()
            assert here.gateway.rejected == {"full": 1}
            may_end.set()
            assert [status_of(await each.rest()) for each in busy] == [200, 200]

    async def test_a_flood_over_tcp_leaves_the_unix_socket_free(self, tmp_path: Path) -> None:
        """The administrator comes in that way, above all during a flood."""
        unix = UnixSocket(path=tmp_path / "rest.sock")
        limits = with_connections(connections=1)
        async with served(limits=limits, unix=unix) as here, AsyncExitStack() as stack:
            reader, writer = await asyncio.open_unix_connection(unix.path)
            for _ in range(3):
                await stack.enter_async_context(connected(here.address))
            assert status_of(await here.raw(head())) == 200
            writer.write(head())
            assert status_of(await asyncio.wait_for(reader.read(), 10)) == 200
            writer.close()
            await writer.wait_closed()


async def _awaited(future: asyncio.Future[Done]) -> Done:
    return await future
