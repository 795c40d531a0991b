"""One question to one server that does not behave."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from scaivaultd.net.dns_exchange import IN_FLIGHT_MAX, Endpoint, Exchange, NoAnswer, Patience, Question, endpoint_from
from tests.fakes.bind import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

QUESTION = Question("x.example.test", dns.rdatatype.TXT)
QUICK = Patience(udp_seconds=0.2, tcp_seconds=0.2)


class Port(asyncio.DatagramProtocol):
    """Answers each datagram with those that a function makes of it, and counts them."""

    def __init__(self, answers: Callable[[dns.message.Message], list[bytes]]) -> None:
        self._answers = answers
        self._transport: Any = None
        self.seen: list[dns.message.Message] = []
        self.asked = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        self.seen.append(query)
        if len(self.seen) >= IN_FLIGHT_MAX:
            self.asked.set()
        for answer in self._answers(query):
            self._transport.sendto(answer, addr)


@asynccontextmanager
async def served(
    answers: Callable[[dns.message.Message], list[bytes]], *, holds_streams: bool = False
) -> AsyncIterator[tuple[Port, Endpoint]]:
    """The port, over UDP; over TCP nobody listens, or somebody who takes connections and says nothing."""
    loop = asyncio.get_running_loop()
    number = free_port("127.0.0.1")
    held: list[asyncio.StreamWriter] = []
    async with AsyncExitStack() as stack:
        transport, port = await loop.create_datagram_endpoint(lambda: Port(answers), local_addr=("127.0.0.1", number))
        stack.callback(transport.close)
        if holds_streams:
            server = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", number)
            stack.callback(server.close)
        yield port, Endpoint("127.0.0.1", number)
        for writer in held:
            writer.close()
            await writer.wait_closed()


def answer(query: dns.message.Message, status: int = dns.rcode.NOERROR, flags: int = 0) -> bytes:
    made = dns.message.make_response(query)
    made.set_rcode(dns.rcode.Rcode.make(status))
    made.flags |= flags
    return made.to_wire()


async def test_noise_is_not_taken_for_an_answer() -> None:
    """Whoever guesses the port must guess the id and the question as well."""

    def noisy(query: dns.message.Message) -> list[bytes]:
        other = dns.message.make_query("other.test", "TXT", id=query.id)
        guess = dns.message.make_query("x.example.test", "TXT", id=query.id ^ 1)
        return [b"", b"\x00", query.to_wire(), answer(other), answer(guess), answer(query, dns.rcode.NXDOMAIN)]

    async with served(noisy) as (_, endpoint):
        message = await Exchange(QUICK).ask(endpoint, QUESTION)
    assert message.rcode() == dns.rcode.NXDOMAIN


async def test_silence_is_asked_again_once() -> None:
    """One lost packet is no reason to call a server dead."""
    async with served(lambda _: []) as (port, endpoint):
        with pytest.raises(NoAnswer, match=r"no answer within 0\.2 s"):
            await Exchange(QUICK).ask(endpoint, QUESTION)
    assert [query.id for query in port.seen] == [port.seen[0].id] * 2


async def test_a_lost_packet_does_no_harm() -> None:
    """The second try must reach who missed the first."""
    drops = [True, False]
    async with served(lambda query: [] if drops.pop(0) else [answer(query)]) as (_, endpoint):
        message = await Exchange(QUICK).ask(endpoint, QUESTION)
    assert message.rcode() == dns.rcode.NOERROR


async def test_old_servers_are_asked_without_edns() -> None:
    """Some answer EDNS with an error since 1999."""

    def old(query: dns.message.Message) -> list[bytes]:
        return [answer(query, dns.rcode.FORMERR if query.edns >= 0 else dns.rcode.NOERROR)]

    async with served(old) as (port, endpoint):
        message = await Exchange(QUICK).ask(endpoint, QUESTION)
    assert message.rcode() == dns.rcode.NOERROR
    assert [(query.edns, query.payload) for query in port.seen] == [(0, 1232), (-1, 0)]


async def test_a_cut_answer_without_tcp_says_so() -> None:
    """Firewalls that block DNS over TCP are found by this text."""
    async with served(lambda query: [answer(query, flags=dns.flags.TC)]) as (_, endpoint):
        with pytest.raises(NoAnswer, match="too long for UDP, and over TCP: connection refused"):
            await Exchange(QUICK).ask(endpoint, QUESTION)


async def test_tcp_has_a_deadline() -> None:
    """A connection that is taken and never served must not hold a look."""
    async with served(lambda query: [answer(query, flags=dns.flags.TC)], holds_streams=True) as (_, endpoint):
        with pytest.raises(NoAnswer, match=r"over TCP there is none within 0\.2 s"):
            await Exchange(QUICK).ask(endpoint, QUESTION)


@pytest.mark.parametrize("flag", ["is_recursive", "is_unchecked"])
async def test_flags_are_set_on_demand_only(flag: str) -> None:
    """RD at an authoritative server may be refused; CD decides about DNSSEC."""
    async with served(lambda query: [answer(query)]) as (port, endpoint):
        await Exchange(QUICK).ask(endpoint, QUESTION)
        await Exchange(QUICK).ask(endpoint, Question("x.example.test", dns.rdatatype.TXT, **{flag: True}))
    expected = {"is_recursive": dns.flags.RD, "is_unchecked": dns.flags.CD}[flag]
    assert [int(query.flags) for query in port.seen] == [0, int(expected)]


async def test_questions_in_flight_are_bounded() -> None:
    """Dozens of orders at once must not open a socket for each server of each of them."""
    async with served(lambda _: []) as (port, endpoint):
        exchange = Exchange(Patience(udp_seconds=5.0))
        tasks = [asyncio.create_task(exchange.ask(endpoint, QUESTION)) for _ in range(IN_FLIGHT_MAX + 20)]
        async with asyncio.timeout(5):
            await port.asked.wait()
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert len(port.seen) == IN_FLIGHT_MAX
    assert {type(result) for result in results} == {asyncio.CancelledError}


@pytest.mark.parametrize(
    ("text", "endpoint", "shown"),
    [
        ("192.0.2.1", Endpoint("192.0.2.1", 53), "192.0.2.1"),
        ("192.0.2.1:5301", Endpoint("192.0.2.1", 5301), "192.0.2.1:5301"),
        ("::1", Endpoint("::1", 53), "::1"),
        ("[::1]", Endpoint("::1", 53), "::1"),
        ("[::1]:5301", Endpoint("::1", 5301), "[::1]:5301"),
        ("fe80::1%lo", Endpoint("fe80::1%lo", 53), "fe80::1%lo"),
    ],
)
def test_addresses_are_read_and_shown(text: str, endpoint: Endpoint, shown: str) -> None:
    """The forms of the configuration file and of verdicts."""
    assert endpoint_from(text, 53) == endpoint
    assert endpoint.text == shown


@pytest.mark.parametrize("text", ["", "ns.example.test", "192.0.2.1:0", "192.0.2.1:x", "[::1]x", "192.0.2.1:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    """A name here would have to be resolved by those that it names."""
    with pytest.raises(ValueError, match=r"."):
        endpoint_from(text, 53)
