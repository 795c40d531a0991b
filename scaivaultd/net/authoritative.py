"""DNS as it is served: the host's own lookups for dns-01.

A challenge name is asked for at the authoritative servers only. A resolver that was asked too early remembers for
minutes that the name was not there (RFC 2308), and so may the one that the CA uses, when the two share a cache.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import dns.exception
import dns.name
import dns.rdatatype

from scaivaultd.model.dns import Delegation, NameServer, Route, ServerVerdict
from scaivaultd.model.errors import DnsError
from scaivaultd.net import dns_caa
from scaivaultd.net import dns_reading as reading
from scaivaultd.net.dns_descent import Descent, Place
from scaivaultd.net.dns_exchange import Endpoint, Exchange, NoAnswer, Patience, Question, endpoint_from
from scaivaultd.net.dns_look import Looker, Target
from scaivaultd.net.dns_resolvers import RESOLV_CONF, Resolvers
from scaivaultd.net.dns_zones import Zones

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.dns import CaaSet

HOPS_MAX = 10
WARNED_MAX = 1000


class AuthoritativeDns:
    """Finds where a challenge name leads and who serves it, and asks those servers. Nothing is cached."""

    def __init__(
        self,
        resolvers: Sequence[str],
        *,
        authoritative_port: int,
        clock: Clock,
        log: FilteringBoundLogger,
        patience: Patience | None = None,
        resolv_conf: Path = RESOLV_CONF,
    ) -> None:
        """`resolvers` are `address` or `address:port`; none means those of `resolv_conf`, read again when it changes.

        Raises:
            ValueError: a resolver is no such thing.
        """
        self._patience = patience or Patience()
        self._exchange = Exchange(self._patience)
        self._resolvers = Resolvers(resolvers, self._exchange, clock, resolv_conf=resolv_conf)
        self._zones = Zones(self._resolvers)
        self._descent = Descent(self._zones, self._exchange, authoritative_port)
        self._looker = Looker(self._exchange, self._patience)
        self._log = log
        self._warned: deque[str] = deque(maxlen=WARNED_MAX)

    async def route(self, name: str, *, follow_cname: bool = True) -> Route:
        """Follow the CNAMEs of `name` to where its TXT records have to be, and find the zone there.

        Takes at most 30 s. Without `follow_cname` the target is the name, whatever stands there.

        Raises:
            DnsError: a loop, more than ten hops, no zone, a lame or bogus one, or nobody to ask.
        """
        _require_possible(name)
        try:
            async with asyncio.timeout(self._patience.route_seconds):
                return await self._route(name, follow_cname=follow_cname)
        except TimeoutError:
            seconds = self._patience.route_seconds
            raise DnsError(f"{name} did not lead to a zone within {seconds:g} s", "unreachable") from None

    async def look(self, delegation: Delegation, name: str, values: Collection[str]) -> Sequence[ServerVerdict]:
        """Ask every address of every server once for the TXT values of `name`; at most about 10 s."""
        without_address = [
            ServerVerdict(server=each.name, address="", answer="failed", detail=each.error or "it has no address")
            for each in delegation.servers
            if not each.addresses
        ]
        verdicts = await self._looker.look(self._descent.targets(delegation), name, values, delegation.zone)
        return [*verdicts, *without_address]

    async def look_at_resolvers(
        self, resolvers: Sequence[str], name: str, values: Collection[str]
    ) -> Sequence[ServerVerdict]:
        """The same at recursive servers (`address` or `address:port`).

        Raises:
            ValueError: a resolver is no such thing.
        """
        targets = [Target(text, endpoint_from(text, 53), is_resolver=True) for text in resolvers]
        return await self._looker.look(targets, name, values, None)

    async def caa(self, name: str) -> CaaSet:
        """The relevant CAA record set (RFC 8659 section 3) as the resolvers see it; takes at most 30 s.

        Raises:
            DnsError: they do not say.
        """
        _require_possible(name)
        try:
            async with asyncio.timeout(self._patience.route_seconds):
                return await dns_caa.relevant_set(self._resolvers, name)
        except TimeoutError:
            seconds = self._patience.route_seconds
            raise DnsError(f"the CAA records of {name} were not found within {seconds:g} s", "unreachable") from None

    async def bogus(self, zone: str) -> str | None:
        """Why a validating resolver refuses `zone` (DNSSEC), or None when none of ours does."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._resolvers.why_bogus(endpoint, zone, dns.rdatatype.SOA))
                for endpoint in self._resolvers.endpoints()
            ]
        return next((why for task in tasks if (why := task.result())), None)

    async def _route(self, name: str, *, follow_cname: bool) -> Route:
        chain: list[str] = []
        target = name
        while True:
            place = await self._locate(target)
            if place.alias is None or not follow_cname:
                return Route(name=name, chain=tuple(chain), target=target, delegation=place.delegation)
            target = place.alias
            _require_new(name, chain, target)
            chain.append(target)

    async def _locate(self, name: str) -> Place:
        try:
            return await self._descent.locate(name, await self._zones.above(name))
        except DnsError as error:
            if error.reason not in ("no_zone", "unreachable") or not self._resolvers.are_configured:
                raise
            place = await self._place_at_stand_ins(name)
            if place is None:
                raise
            return place

    async def _place_at_stand_ins(self, name: str) -> Place | None:
        """The last resort: servers configured as resolvers that are none, and answer for the name themselves.

        Test servers do so, which know neither SOA nor NS records.
        """
        async with asyncio.TaskGroup() as group:
            tasks = {each: group.create_task(self._answers_itself(each, name)) for each in self._resolvers.endpoints()}
        texts = [endpoint.full_text for endpoint, task in tasks.items() if task.result()]
        if not texts:
            return None
        servers = tuple(NameServer(name=text, addresses=(text,)) for text in texts)
        try:
            place = await self._descent.locate(name, Delegation(zone=reading.parent_of(name), servers=servers))
        except DnsError:
            return None
        if name not in self._warned:
            self._warned.append(name)
            self._log.warning("dns.resolvers_stand_in", name=name, zone=place.delegation.zone, servers=texts)
        return place

    async def _answers_itself(self, endpoint: Endpoint, name: str) -> bool:
        # Asked about the name above: if this is a resolver after all, its cache must not learn of the challenge name.
        question = Question(reading.parent_of(name), dns.rdatatype.SOA)
        try:
            return not reading.is_recursive(await self._exchange.ask(endpoint, question))
        except NoAnswer:
            return False


def _require_possible(name: str) -> None:
    # A name of 253 characters is none any more with a label in front of it.
    try:
        dns.name.from_text(name)
    except dns.exception.DNSException as error:
        raise DnsError(f"{name} cannot be a name in DNS: {error}", "no_zone") from error


def _require_new(name: str, chain: Sequence[str], target: str) -> None:
    if target == name or target in chain:
        way = " -> ".join((name, *chain, target))
        raise DnsError(f"the CNAMEs of {name} lead in a circle: {way}", "cname_loop")
    if len(chain) == HOPS_MAX:
        raise DnsError(
            f"{name} leads through more than {HOPS_MAX} CNAMEs; the last seen is {chain[-1]}", "cname_too_long"
        )
