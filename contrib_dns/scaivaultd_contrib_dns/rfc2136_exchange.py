"""One signed question or update to a DNS server, and what its answer means for those who have to act.

Nothing is repeated here but over the server's addresses; repeating is the provider's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from datetime import UTC, datetime
from typing import Literal

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.tsig
from dns.message import Message
from dns.rcode import Rcode

from scaivaultd.plugin import PermanentError, ProviderAuthError, ProviderError, TransientError
from scaivaultd_contrib_dns.rfc2136_key import TsigKey

LOOKUP_SECONDS = 10.0
# A datagram that is lost never comes; whoever waits the whole time for it does not get to ask again.
DATAGRAM_SECONDS = 5.0
# Knot DNS looks for the zone first and for the key afterwards: of names that it does not serve it says so unsigned. Who
# forges that gets no more than who drops our messages: nothing is taken for written.
UNSIGNED_DENIALS = {dns.opcode.QUERY: dns.rcode.REFUSED, dns.opcode.UPDATE: dns.rcode.NOTAUTH}


class Server:
    """A DNS server by its host name or address; asked at all of its addresses until one answers."""

    def __init__(self, host: str, port: int, transport: Literal["tcp", "udp"], timeout_seconds: float) -> None:
        """`timeout_seconds` is for one question to one address."""
        self.host = host.removeprefix("[").removesuffix("]")
        self._port = port
        self._transport = transport
        self._timeout_seconds = timeout_seconds

    async def ask(self, message: Message, key: TsigKey | None) -> Message:
        """Send, and return an answer that is signed as the message was, or denies in `UNSIGNED_DENIALS`' words.

        Raises:
            ProviderAuthError: the server does not accept the key, its secret, or our clock.
            TransientError: no address answers, or an answer cannot be trusted.
            PermanentError: another answer is not signed, or the server's name is none.
        """
        if key is not None:
            message.use_tsig(key)
        failures: list[str] = []
        for address in await self._addresses():
            try:
                answer = await self._exchange(message, address)
            except TimeoutError:
                failures.append(f"{address} does not answer")
            except (OSError, EOFError, dns.exception.DNSException, ValueError) as error:
                failures.append(f"{address}: {_reason(error)}")
            else:
                return _verified(answer, message, key, self.host)
        raise TransientError(f"no answer from {self.host} port {self._port} ({self._transport}): {'; '.join(failures)}")

    async def _addresses(self) -> list[str]:
        try:
            return [str(ipaddress.ip_address(self.host))]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await asyncio.get_running_loop().getaddrinfo(self.host, self._port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise TransientError(f"{self.host}: its address was not found within {LOOKUP_SECONDS:.0f} s") from error
        except OSError as error:
            raise TransientError(f"{self.host}: its address cannot be found ({_reason(error)})") from error
        except UnicodeError as error:
            raise PermanentError(f"{self.host} is no host name") from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def _exchange(self, message: Message, address: str) -> Message:
        if self._transport == "udp":
            async with asyncio.timeout(min(self._timeout_seconds, DATAGRAM_SECONDS)):
                answer = await _by_udp(message, address, self._port)
            if not answer.flags & dns.flags.TC:
                return answer
        async with asyncio.timeout(self._timeout_seconds):
            return await _by_tcp(message, address, self._port)


# Signatures are looked at later (`keyring=False`): an answer that fails them still has a status to tell of.


async def _by_tcp(message: Message, address: str, port: int) -> Message:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(message.to_wire(prepend_length=True))
        await writer.drain()
        length = int.from_bytes(await reader.readexactly(2), "big")
        answer = dns.message.from_wire(await reader.readexactly(length), keyring=False)
    finally:
        writer.close()
    if not message.is_response(answer):
        raise ValueError("it answers another question")
    return answer


async def _by_udp(message: Message, address: str, port: int) -> Message:
    answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    # Connected: the kernel drops what comes from elsewhere, and tells when nobody listens.
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Receiver(message, answered), remote_addr=(address, port)
    )
    try:
        transport.sendto(message.to_wire())
        return await answered
    finally:
        transport.close()


class _Receiver(asyncio.DatagramProtocol):
    """Waits for the answer; datagrams that are none, garbage or late ones, are passed over."""

    def __init__(self, message: Message, answered: asyncio.Future[Message]) -> None:
        self._message = message
        self._answered = answered

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            answer = dns.message.from_wire(data, keyring=False)
        except (dns.exception.DNSException, ValueError):
            return
        if self._message.is_response(answer) and not self._answered.done():
            self._answered.set_result(answer)

    def error_received(self, exc: Exception) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc)


def _verified(answer: Message, message: Message, key: TsigKey | None, host: str) -> Message:
    if key is None:
        return answer
    if not answer.had_tsig:
        if answer.rcode() == UNSIGNED_DENIALS.get(message.opcode()):
            return answer
        raise _unsigned(answer.rcode(), key, host)
    try:
        return dns.message.from_wire(answer.wire or b"", keyring=key, request_mac=message.mac)
    except dns.exception.DNSException as error:
        raise _tsig_error(error, answer, key, host) from error


def _unsigned(rcode: Rcode, key: TsigKey, host: str) -> ProviderError:
    status = dns.rcode.to_text(rcode)
    text = (
        f"the answer of {host} ({status}) is not signed although the request was, with the key {key.title}: "
        "the server does not do TSIG, or something between answers in its place"
    )
    # A server, or a balancer before it, that is in trouble may not come as far as signing.
    return TransientError(text) if rcode == dns.rcode.SERVFAIL else PermanentError(text, status)


def _tsig_error(error: Exception, answer: Message, key: TsigKey, host: str) -> ProviderError:
    match error:
        case dns.tsig.PeerBadKey():
            return ProviderAuthError(
                f"{host} does not know the TSIG key {key.title} (BADKEY): compare the key's name, letter by letter, "
                "and its algorithm with the server's configuration (Knot DNS says so, too, when no access list lets "
                "the key do this)"
            )
        case dns.tsig.PeerBadSignature() | dns.tsig.PeerBadTruncation():
            return ProviderAuthError(
                f"{host} knows a TSIG key of the name {key.title}, but not with this secret (BADSIG)"
            )
        case dns.tsig.PeerBadTime() | dns.tsig.BadTime():
            return ProviderAuthError(
                f"the clock of this host and that of {host} are more than 300 s apart (BADTIME)"
                f"{_their_time(answer)}: TSIG needs both set right"
            )
        case dns.tsig.PeerError():
            return ProviderAuthError(f"{host} refuses the TSIG key {key.title}: {error}")
        case _:
            return TransientError(
                f"the signature of the answer of {host} is wrong ({type(error).__name__}) for the key {key.title}: "
                "it was changed on the way, or does not come from there"
            )


def _their_time(answer: Message) -> str:
    """The server's time, which comes along with BADTIME (RFC 8945 section 5.2.3)."""
    other = getattr(answer.tsig[0], "other", b"") if answer.tsig else b""
    if len(other) != 6:
        return ""
    try:
        moment = datetime.fromtimestamp(int.from_bytes(other, "big"), UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return f"; there it is {moment:%Y-%m-%d %H:%M:%S} UTC"


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it broke the connection off"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
