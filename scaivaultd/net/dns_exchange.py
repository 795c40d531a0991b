"""One question to one server: UDP, TCP when the answer is cut short, and a deadline for each try."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
from typing import TYPE_CHECKING

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import msgspec

if TYPE_CHECKING:
    from dns.message import Message
    from dns.rdatatype import RdataType

EDNS_PAYLOAD = 1232
"""What passes every path unfragmented: the size agreed on at the DNS flag day of 2020."""
IN_FLIGHT_MAX = 50
_NO_ROUTE = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What connecting fails with, sending nothing, on a host that has no way into an address family."""
_WITHOUT_EDNS = (dns.rcode.FORMERR, dns.rcode.NOTIMP)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long is waited, in seconds: for one try over UDP or TCP, for one look at one address, for a whole route."""

    udp_seconds: float = 3.0
    tcp_seconds: float = 5.0
    look_seconds: float = 10.0
    route_seconds: float = 30.0


class Endpoint(msgspec.Struct, frozen=True):
    """Where a server listens."""

    host: str
    port: int

    @property
    def text(self) -> str:
        """The address as people are shown it: with its port where that is not 53."""
        if self.port == 53:
            return self.host
        return self.full_text

    @property
    def full_text(self) -> str:
        """The address with its port."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family_name(self) -> str:
        """`IPv4` or `IPv6`."""
        return "IPv6" if ":" in self.host else "IPv4"


def endpoint_from(text: str, default_port: int) -> Endpoint:
    """Read `address`, `address:port` or `[v6]:port`.

    Raises:
        ValueError: it is none of them; names are not resolved here.
    """
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        if rest and not rest.startswith(":"):
            raise ValueError(f"{text!r} is no address of a name server")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    ipaddress.ip_address(host)
    number = int(port) if port else default_port
    if not 0 < number < 65536:
        raise ValueError(f"{text!r} has no possible port")
    return Endpoint(host, number)


class NoAnswer(Exception):
    """A server gave no answer that can be read. `is_unroutable`: this host cannot reach its address family at all."""

    def __init__(self, detail: str, *, is_unroutable: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.is_unroutable = is_unroutable


class Question(msgspec.Struct, frozen=True):
    """What is asked. `is_recursive` sets RD, `is_unchecked` sets CD: the server is to skip DNSSEC validation."""

    name: str
    type: RdataType
    is_recursive: bool = False
    is_unchecked: bool = False

    def message(self, *, with_edns: bool) -> Message:
        """A fresh query with an id of its own."""
        query = dns.message.make_query(
            dns.name.from_text(self.name), self.type, use_edns=0 if with_edns else False, payload=EDNS_PAYLOAD
        )
        query.flags = dns.flags.Flag(0)
        if self.is_recursive:
            query.flags |= dns.flags.RD
        if self.is_unchecked:
            query.flags |= dns.flags.CD
        return query


class Exchange:
    """Asks questions, at most `IN_FLIGHT_MAX` at the same time."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._places = asyncio.Semaphore(IN_FLIGHT_MAX)

    async def ask(
        self, endpoint: Endpoint, question: Question, *, tries: int = 2, seconds: float | None = None
    ) -> Message:
        """The answer of one server, whatever it says.

        Only silence is tried again; a cut answer is fetched over TCP, an old server asked without EDNS. `seconds` is
        for all of that, but not for the wait until there is a place.

        Raises:
            NoAnswer: no answer in time, nothing listens there, or no way leads there.
            TimeoutError: `seconds` are over.
        """
        async with self._places, asyncio.timeout(seconds):
            answer = await self._with_fallback(endpoint, question.message(with_edns=True), tries)
            if answer.rcode() in _WITHOUT_EDNS:
                answer = await self._with_fallback(endpoint, question.message(with_edns=False), tries)
            return answer

    async def _with_fallback(self, endpoint: Endpoint, query: Message, tries: int) -> Message:
        answer = await self._over_udp(endpoint, query, tries)
        if not answer.flags & dns.flags.TC:
            return answer
        return await self._over_tcp(endpoint, query)

    async def _over_udp(self, endpoint: Endpoint, query: Message, tries: int) -> Message:
        listener = _Listener(query)
        transport = await _connected(endpoint, listener)
        try:
            for _ in range(tries):
                transport.sendto(query.to_wire())
                await asyncio.wait({listener.answer}, timeout=self._patience.udp_seconds)
                if listener.answer.done():
                    return _message(listener.answer.result())
            raise NoAnswer(f"no answer within {self._patience.udp_seconds:g} s")
        finally:
            transport.close()

    async def _over_tcp(self, endpoint: Endpoint, query: Message) -> Message:
        said = "its answer is too long for UDP, and over TCP"
        try:
            return await dns.asyncquery.tcp(
                query, endpoint.host, timeout=self._patience.tcp_seconds, port=endpoint.port
            )
        except (dns.exception.Timeout, TimeoutError):
            raise NoAnswer(f"{said} there is none within {self._patience.tcp_seconds:g} s") from None
        except (OSError, EOFError) as error:
            raise NoAnswer(f"{said}: {_reason(error)}") from error
        except (dns.exception.DNSException, ValueError) as error:
            raise NoAnswer(f"{said} it cannot be read ({type(error).__name__})") from error


class _Listener(asyncio.DatagramProtocol):
    """Waits for the one packet that answers the query; anything else is noise, or somebody's guess."""

    def __init__(self, query: Message) -> None:
        self._query = query
        self.answer: asyncio.Future[Message | Exception] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            message = dns.message.from_wire(data, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError):
            return
        if self._query.is_response(message):
            self._deliver(message)

    def error_received(self, exc: Exception) -> None:
        self._deliver(exc)

    def _deliver(self, what: Message | Exception) -> None:
        if not self.answer.done():
            self.answer.set_result(what)


async def _connected(endpoint: Endpoint, listener: _Listener) -> asyncio.DatagramTransport:
    # A connected socket learns of a closed port at once, takes packets from nobody else, and fails when no route
    # leads to the address.
    loop = asyncio.get_running_loop()
    try:
        transport, _ = await loop.create_datagram_endpoint(lambda: listener, remote_addr=(endpoint.host, endpoint.port))
    except ValueError as error:
        # An IPv6 address with a zone that is none is looked up like a name, and some cannot even be that.
        raise NoAnswer("no such address") from error
    except OSError as error:
        if error.errno in _NO_ROUTE:
            raise NoAnswer(f"this host has no {endpoint.family_name} route", is_unroutable=True) from error
        raise NoAnswer(_reason(error)) from error
    return transport


def _message(received: Message | Exception) -> Message:
    if isinstance(received, Exception):
        raise NoAnswer(_reason(received)) from received
    return received


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return "the connection broke off"
