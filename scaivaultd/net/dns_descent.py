"""From a zone downwards by the word of its own servers, never of a cache, to the servers of one name.

A name may be a zone of its own, or be in one that the resolvers do not know of.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import dns.rdatatype
import msgspec

from scaivaultd.model.dns import Delegation
from scaivaultd.model.errors import DnsError
from scaivaultd.net import dns_reading as reading
from scaivaultd.net.dns_exchange import Endpoint, NoAnswer, Question, endpoint_from
from scaivaultd.net.dns_look import Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.net.dns_exchange import Exchange
    from scaivaultd.net.dns_zones import Zones

DEPTH_MAX = 20
GRACE_SECONDS = 1.0
"""How long the next server is waited for when one has answered: those that lag must not win for being near."""


class Place(msgspec.Struct, frozen=True):
    """Where a name is served, and the target if a CNAME stands there."""

    delegation: Delegation
    alias: str | None = None


class _Said(msgspec.Struct, frozen=True):
    target: Target
    finding: reading.Finding | NoAnswer

    @property
    def is_useful(self) -> bool:
        return not isinstance(self.finding, reading.Useless | NoAnswer)

    @property
    def weight(self) -> tuple[int, int]:
        match self.finding:
            case reading.Alias():
                return 3, 0
            case reading.Referral(zone):
                return 2, zone.count(".")
            case reading.Served(None):
                return 1, 1
            case reading.Served(str(zone)):
                return 0, zone.count(".")
            case _:
                return 0, 0

    @property
    def text(self) -> str:
        detail = self.finding.said if isinstance(self.finding, reading.Useless) else str(self.finding)
        return f"{self.target.server} ({self.target.endpoint.text}): {detail}"


class Descent:
    """Asks the servers of a zone about a name, then those that they delegate it to."""

    def __init__(self, zones: Zones, exchange: Exchange, port: int) -> None:
        self._zones = zones
        self._exchange = exchange
        self._port = port

    async def locate(self, name: str, delegation: Delegation) -> Place:
        """Go down from `delegation` to the servers that have authority for `name`.

        Raises:
            DnsError: `lame_delegation` when servers answer but none serves the zone, `unreachable` when none answers.
        """
        for _ in range(DEPTH_MAX):
            said = await self._weightiest(name, delegation)
            match said.finding:
                case reading.Referral() as referral:
                    deeper = await self._zones.delegated(referral, _known(delegation))
                case reading.Alias(target):
                    # There is no zone at a CNAME (RFC 1034 section 3.6.2), but there may be one just above.
                    asked = reading.parent_of(name)
                    return Place(await self._own_zone(said.target, asked, None, delegation), target)
                case reading.Served(zone):
                    deeper = await self._own_zone(said.target, name, zone, delegation)
                case _:
                    raise AssertionError(said)
            if deeper.zone == delegation.zone:
                return Place(deeper)
            delegation = deeper
        raise DnsError(f"the delegations of {name} do not end at {delegation.zone}", "lame_delegation")

    def targets(self, delegation: Delegation) -> list[Target]:
        """All addresses of all servers; a server called by its own address is a resolver that stands in."""
        return [
            Target(server.name, endpoint_from(address, self._port), is_stand_in=server.name == address)
            for server in delegation.servers
            for address in server.addresses
        ]

    async def _weightiest(self, name: str, delegation: Delegation) -> _Said:
        """What the servers say, asked all at once: one that is down must not cost its time limit each time.

        Where they differ, what is there weighs more than what is not (a CNAME, a delegation, values, a zone further
        down): a server that lags has not heard of it.
        """
        targets = self.targets(delegation)
        if not targets:
            errors = "; ".join(f"{server.name}: {server.error}" for server in delegation.servers)
            raise DnsError(f"no name server of {delegation.zone} has an address ({errors})", "lame_delegation")
        tasks = [asyncio.create_task(self._ask(target, name, delegation.zone)) for target in targets]
        try:
            said = await _all_in_time(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if useful := [each for each in said if each.is_useful]:
            return max(useful, key=lambda each: each.weight)
        raise _nobody_serves(delegation.zone, said)

    async def _ask(self, target: Target, name: str, zone: str) -> _Said:
        try:
            message = await self._exchange.ask(target.endpoint, Question(name, dns.rdatatype.TXT))
        except NoAnswer as error:
            return _Said(target, error)
        return _Said(target, reading.finding_of(message, name, zone, needs_authority=not target.is_stand_in))

    async def _own_zone(self, target: Target, name: str, zone: str | None, delegation: Delegation) -> Delegation:
        """The zone of `name` when a server has zones further down, too; it answers for those without a referral."""
        if zone is None:
            zone = await self._zone_at(target.endpoint, name)
        if zone is None or zone == delegation.zone:
            return delegation
        if target.is_stand_in:
            return msgspec.structs.replace(delegation, zone=zone)
        if not reading.contains(delegation.zone, zone):
            return delegation
        return await self._deeper(target.endpoint, zone, delegation)

    async def _zone_at(self, endpoint: Endpoint, name: str) -> str | None:
        try:
            message = await self._exchange.ask(endpoint, Question(name, dns.rdatatype.SOA))
        except NoAnswer:
            return None
        return reading.zone_of(message, name)

    async def _deeper(self, endpoint: Endpoint, zone: str, delegation: Delegation) -> Delegation:
        try:
            message = await self._exchange.ask(endpoint, Question(zone, dns.rdatatype.NS))
        except NoAnswer:
            return msgspec.structs.replace(delegation, zone=zone)
        names = reading.name_servers(message, zone)
        if not names:
            return msgspec.structs.replace(delegation, zone=zone)
        glue = reading.glue_of(message, [each for each in names if reading.contains(delegation.zone, each)])
        return Delegation(zone=zone, servers=await self._zones.servers(names, {**_known(delegation), **glue}))


async def _all_in_time(tasks: Sequence[asyncio.Task[_Said]]) -> list[_Said]:
    """What all have said, but nobody waits for the slow when one has said something useful."""
    pending, late = set(tasks), False
    while pending and not late:
        has_useful = any(task.done() and task.result().is_useful for task in tasks)
        done, pending = await asyncio.wait(
            pending, timeout=GRACE_SECONDS if has_useful else None, return_when=asyncio.FIRST_COMPLETED
        )
        late = not done
    return [task.result() for task in tasks if task.done()]


def _known(delegation: Delegation) -> dict[str, tuple[str, ...]]:
    return {server.name: server.addresses for server in delegation.servers}


def _nobody_serves(zone: str, said: Sequence[_Said]) -> DnsError:
    words = "; ".join(each.text for each in said)
    if all(isinstance(each.finding, NoAnswer) for each in said):
        return DnsError(f"no name server of {zone} answers ({words})", "unreachable")
    return DnsError(f"{zone} is delegated to name servers that do not serve it ({words})", "lame_delegation")
