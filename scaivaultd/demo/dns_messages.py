"""Messages of the development DNS server: read, authenticated (RFC 8945), answered, and fitted to their transport."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tsig
import dns.update
import msgspec
from dns.message import Message
from dns.name import Name
from dns.rcode import Rcode
from dns.rdtypes.ANY.TSIG import TSIG

from scaivaultd.demo.dns_update import UpdateRefused, updated
from scaivaultd.demo.dns_zones import World, find

UDP_PLAIN_MAX = 512
UDP_MAX = 1232
TCP_MAX = 65535
HEADER_SIZE = 12
FUDGE_SECONDS = 300


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A message as it was understood. With a `tsig_error` it is signed, but not by a key that we know, or not now."""

    message: Message
    key: dns.tsig.Key | None = None
    server_time: datetime
    tsig_error: Rcode = dns.rcode.NOERROR

    @property
    def is_update(self) -> bool:
        """Whether it wants to change something."""
        return self.message.opcode() == dns.opcode.UPDATE

    @property
    def is_signed(self) -> bool:
        """Whether it is signed as it should be."""
        return self.message.had_tsig and self.tsig_error == dns.rcode.NOERROR


def read(wire: bytes, keys: Mapping[Name, dns.tsig.Key], now: datetime) -> Request | None:
    """Read and authenticate; None is to be ignored: no DNS message, or an answer.

    Raises:
        dns.exception.DNSException, ValueError: a message that deserves FORMERR.
    """
    if len(wire) < HEADER_SIZE or wire[2] & 0x80:
        return None
    message = dns.message.from_wire(wire, keyring=False)
    if not message.tsig:
        return Request(message=message, server_time=now)
    key = keys.get(message.tsig.name)
    if key is None or key.algorithm != message.keyalgorithm:
        return Request(message=message, server_time=now, tsig_error=dns.rcode.BADKEY)
    return _authenticated(wire, message, key, now)


def _authenticated(wire: bytes, unverified: Message, key: dns.tsig.Key, now: datetime) -> Request:
    try:
        message = dns.message.from_wire(wire, keyring=key)
    except dns.tsig.BadSignature:
        return Request(message=unverified, server_time=now, tsig_error=dns.rcode.BADSIG)
    except dns.tsig.BadTime:
        return Request(message=unverified, key=key, server_time=now, tsig_error=dns.rcode.BADTIME)
    # dnspython compares with the machine's clock; ours may be another one.
    is_off = abs(_tsig_of(message).time_signed - now.timestamp()) > FUDGE_SECONDS
    tsig_error = dns.rcode.BADTIME if is_off else dns.rcode.NOERROR
    return Request(message=message, key=key, server_time=now, tsig_error=tsig_error)


def form_error(wire: bytes) -> bytes:
    """FORMERR for a message of which the header alone can be read."""
    answer = Message(int.from_bytes(wire[:2], "big"))
    answer.flags = dns.flags.QR
    answer.set_opcode(dns.opcode.from_flags(int.from_bytes(wire[2:4], "big")))
    answer.set_rcode(dns.rcode.FORMERR)
    return answer.to_wire()


def answer_to(
    request: Request, view: World, primary: World | None, default_address: str | None
) -> tuple[Message, World | None]:
    """The answer, and the world after an update, if it was one and is carried out.

    Questions are answered from `view`; `primary` is what updates change, None at a secondary.
    """
    message = request.message
    if isinstance(message, dns.update.UpdateMessage):
        if primary is None or not request.is_signed:
            return status_only(request, dns.rcode.REFUSED), None
        try:
            return status_only(request, dns.rcode.NOERROR), updated(primary, message)
        except UpdateRefused as error:
            return status_only(request, error.rcode), None
    if message.opcode() != dns.opcode.QUERY:
        return status_only(request, dns.rcode.NOTIMP), None
    if len(message.question) != 1:
        return status_only(request, dns.rcode.FORMERR), None
    return _found(message, view, default_address), None


def objection(request: Request) -> Message | None:
    """The answer to a request whose signature or EDNS version is not accepted, whatever it asks for."""
    if request.tsig_error:
        return _not_authenticated(request)
    if request.message.edns > 0:
        return status_only(request, dns.rcode.BADVERS)
    return None


def status_only(request: Request, rcode: Rcode) -> Message:
    """An answer without records, signed if the request was."""
    answer = dns.message.make_response(request.message, our_payload=UDP_MAX)
    answer.set_rcode(rcode)
    return answer


def _not_authenticated(request: Request) -> Message:
    """NOTAUTH with the error in the TSIG record: signed with our time for BADTIME, else not at all (section 5.2)."""
    message = request.message
    answer = status_only(request, dns.rcode.NOTAUTH)
    if request.key is not None:
        our_time = int(request.server_time.timestamp()).to_bytes(6, "big")
        answer.use_tsig(request.key, tsig_error=request.tsig_error, other_data=our_time)
        answer.request_mac = message.mac or b""
        return answer
    assert message.tsig is not None
    signed = _tsig_of(message)
    error = signed.replace(mac=b"", error=request.tsig_error, other=b"")
    answer.tsig = dns.rrset.from_rdata(message.tsig.name, 0, error)
    return answer


def _tsig_of(message: Message) -> TSIG:
    assert message.tsig is not None
    record = message.tsig[0]
    assert isinstance(record, TSIG)
    return record


def fitted(answer: Message, request: Request, *, over_tcp: bool) -> bytes:
    """The answer on the wire; too large for UDP it says so (TC), and the client comes by TCP."""
    payload = request.message.payload if request.message.edns >= 0 else UDP_PLAIN_MAX
    limit = TCP_MAX if over_tcp else min(max(payload, UDP_PLAIN_MAX), UDP_MAX)
    return answer.to_wire(max_size=limit, prefer_truncation=True)


def _found(message: Message, view: World, default_address: str | None) -> Message:
    question = message.question[0]
    answer = dns.message.make_response(message, our_payload=UDP_MAX)
    if question.rdclass != dns.rdataclass.IN or question.rdtype in (dns.rdatatype.AXFR, dns.rdatatype.IXFR):
        answer.set_rcode(dns.rcode.REFUSED)
        return answer
    finding = find(view, question.name, question.rdtype, default_address)
    answer.set_rcode(finding.rcode)
    if finding.authoritative:
        answer.flags |= dns.flags.AA
    answer.answer, answer.authority = list(finding.answer), list(finding.authority)
    answer.additional = list(finding.additional)
    return answer
