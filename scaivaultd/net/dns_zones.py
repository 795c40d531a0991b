"""Zones as the resolvers know them: the one above a name, its name servers, their addresses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dns.rcode
import dns.rdatatype

from scaivaultd.model.dns import Delegation, NameServer
from scaivaultd.model.errors import DnsError
from scaivaultd.net import dns_reading as reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dns.message import Message
    from dns.rdatatype import RdataType

    from scaivaultd.net.dns_resolvers import Resolvers

SERVERS_MAX = 32
ADDRESSES_MAX = 16
"""Whoever owns a zone decides how many servers it has, but not how many packets we send."""


class Zones:
    """Finds where to begin; how it goes on is for the authoritative servers to say."""

    def __init__(self, resolvers: Resolvers) -> None:
        self._resolvers = resolvers

    async def above(self, name: str) -> Delegation:
        """The closest zone that the resolvers see above `name`; they are not told the name itself.

        Where they fail without saying why (SERVFAIL), this is a zone further up: its servers delegate to the ones
        that are broken.

        Raises:
            DnsError: `no_zone`, `dnssec_bogus`, `lame_delegation` (no name servers), `unreachable`.
        """
        candidate, trouble, silence = name, "", None
        while candidate != ".":
            candidate = reading.parent_of(candidate)
            try:
                message = await self._resolvers.ask(candidate, dns.rdatatype.SOA)
            except DnsError as error:
                # A resolver that waits for dead servers is silent itself; one that is silent twice is dead.
                if silence is not None:
                    raise
                silence = error
                continue
            if message.rcode() == dns.rcode.SERVFAIL:
                await self._require_not_bogus(candidate, dns.rdatatype.SOA)
            if (zone := reading.zone_of(message, candidate)) is not None:
                _require_zone_below_top(message, name, candidate, zone)
                return await self._delegation(zone)
            # No resolver, but a server of some zone above: it says where to go instead.
            if (referral := reading.referral_of(message, candidate)) is not None:
                return await self.delegated(referral, {})
            if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                trouble = trouble or f"{candidate}: {reading.status_of(message)}"
        if silence is not None:
            raise silence
        if trouble:
            raise DnsError(f"the resolvers do not tell the zone of {name} ({trouble})", "unreachable")
        raise DnsError(f"there is no zone above {name}", "no_zone")

    async def delegated(self, referral: reading.Referral, known: Mapping[str, Sequence[str]]) -> Delegation:
        """The delegation that a referral points to; `known` are addresses found on the way."""
        return Delegation(zone=referral.zone, servers=await self.servers(referral.servers, {**known, **referral.glue}))

    async def servers(self, names: Sequence[str], glue: Mapping[str, Sequence[str]]) -> tuple[NameServer, ...]:
        """Name servers with their addresses, looked up as far as `glue` has none of a family."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._server(name, glue.get(name, ()))) for name in names[:SERVERS_MAX]]
        return tuple(task.result() for task in tasks)

    async def _delegation(self, zone: str) -> Delegation:
        message = await self._resolvers.ask(zone, dns.rdatatype.NS)
        if message.rcode() == dns.rcode.SERVFAIL:
            await self._require_not_bogus(zone, dns.rdatatype.NS)
        names = reading.name_servers(message, zone)
        if not names:
            status = reading.status_of(message)
            raise DnsError(f"the resolvers find no name servers of {zone} ({status})", "lame_delegation")
        return Delegation(zone=zone, servers=await self.servers(names, reading.glue_of(message, names)))

    async def _require_not_bogus(self, name: str, rdtype: RdataType) -> None:
        for endpoint in self._resolvers.endpoints():
            if why := await self._resolvers.why_bogus(endpoint, name, rdtype):
                raise DnsError(f"{name} does not pass DNSSEC validation ({why})", "dnssec_bogus")

    async def _server(self, name: str, glue: Sequence[str]) -> NameServer:
        found: list[str] = []
        errors: list[str] = []
        for rdtype, is_of_family in ((dns.rdatatype.A, _is_ipv4), (dns.rdatatype.AAAA, _is_ipv6)):
            known = [address for address in glue if is_of_family(address)]
            try:
                found += known or await self._addresses(name, rdtype)
            except DnsError as error:
                errors.append(error.detail)
        if found:
            return NameServer(name=name, addresses=tuple(found[:ADDRESSES_MAX]))
        return NameServer(name=name, error=errors[0] if errors else "it has no address")

    async def _addresses(self, name: str, rdtype: RdataType) -> Sequence[str]:
        message = await self._resolvers.ask(name, rdtype)
        if message.rcode() != dns.rcode.NOERROR:
            raise DnsError(f"no address: {reading.status_of(message)}", "unreachable")
        return reading.addresses(message, name, rdtype)


def _require_zone_below_top(message: Message, name: str, candidate: str, zone: str) -> None:
    # A top-level name may be a zone of ours (`lan`, `corp`), but then the host in it exists.
    if message.rcode() == dns.rcode.NXDOMAIN and "." not in zone.strip("."):
        of = "the root" if zone == "." else f"the top-level zone {zone}"
        raise DnsError(f"there is no zone for {name}: {of} says that {candidate} does not exist", "no_zone")


def _is_ipv4(address: str) -> bool:
    return ":" not in address


def _is_ipv6(address: str) -> bool:
    return ":" in address
