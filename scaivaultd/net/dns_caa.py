"""Which CAs may issue for a name (RFC 8659), as the resolvers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.rcode
import dns.rdatatype

from scaivaultd.model.dns import CaaRecord, CaaSet
from scaivaultd.model.errors import DnsError
from scaivaultd.net import dns_reading as reading

if TYPE_CHECKING:
    from dns.message import Message

    from scaivaultd.net.dns_resolvers import Resolvers

HOPS_MAX = 10


async def relevant_set(resolvers: Resolvers, name: str) -> CaaSet:
    """Climb from `name` to the first CAA record set (RFC 8659 section 3); the root has none.

    `owner` is the name whose set it is, which is where the climb stopped, not where a CNAME led from there. Tags are in
    lower case: they are compared without regard to it (section 4.1).

    Raises:
        DnsError: the resolvers do not say; a CA would see the same, and must not issue then.
    """
    name = name.removeprefix("*.")
    while name != ".":
        if records := await _records(resolvers, name):
            return CaaSet(owner=name, records=records)
        name = reading.parent_of(name)
    return CaaSet(owner=None, records=())


async def _records(resolvers: Resolvers, name: str) -> tuple[CaaRecord, ...]:
    asked = name
    for _ in range(HOPS_MAX):
        message = await resolvers.ask(asked, dns.rdatatype.CAA)
        if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
            raise await _refusal(resolvers, asked, message)
        end = reading.end_of_chain(message, asked)
        records = _records_at(message, end)
        if records or end == asked or message.rcode() == dns.rcode.NXDOMAIN:
            return records
        asked = end
    raise DnsError(f"{name} leads through more than {HOPS_MAX} CNAMEs", "cname_too_long")


def _records_at(message: Message, name: str) -> tuple[CaaRecord, ...]:
    return tuple(
        CaaRecord(
            flags=item.flags,
            tag=item.tag.decode("ascii", "replace").lower(),
            value=item.value.decode("utf-8", "replace"),
        )
        for found in message.answer
        if found.rdtype == dns.rdatatype.CAA and reading.text_of(found.name) == name
        for item in found
    )


async def _refusal(resolvers: Resolvers, name: str, message: Message) -> DnsError:
    for endpoint in resolvers.endpoints():
        if why := await resolvers.why_bogus(endpoint, name, dns.rdatatype.CAA):
            return DnsError(f"the CAA records of {name} do not pass DNSSEC validation ({why})", "dnssec_bogus")
    # They were reached, and it is their servers that do not serve the name, or they themselves.
    return DnsError(
        f"the resolvers do not tell the CAA records of {name}: {reading.status_of(message)}", "lame_delegation"
    )
