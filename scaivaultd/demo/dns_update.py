"""Dynamic updates to the development DNS server (RFC 2136 section 3), as BIND carries them out."""

from __future__ import annotations

import dns.rcode
import dns.rdataset
import dns.rdatatype
import dns.update
from dns.name import Name
from dns.rcode import Rcode
from dns.rdataclass import RdataClass
from dns.rdataset import Rdataset
from dns.rdatatype import RdataType
from dns.rrset import RRset

from scaivaultd.demo.dns_zones import Nodes, World, with_next_serial, with_set


class UpdateRefused(Exception):
    """The update is answered with `rcode`, and nothing is changed."""

    def __init__(self, rcode: Rcode) -> None:
        super().__init__(dns.rcode.to_text(rcode))
        self.rcode = rcode


def updated(world: World, message: dns.update.UpdateMessage) -> World:
    """The world after the update: all of it or nothing. The same object if nothing has changed.

    Raises:
        UpdateRefused: the message, its zone or its prerequisites stand against it.
    """
    origin = _origin(world, message)
    for rrset in message.prerequisite:
        _require(world[origin], origin, rrset)
    for rrset in message.update:
        _prescan(origin, rrset)
    after = world
    for rrset in message.update:
        after = _deleted(after, origin, rrset) if rrset.deleting else _added(after, origin, rrset)
    return world if after is world else with_next_serial(after, origin)


def _origin(world: World, message: dns.update.UpdateMessage) -> Name:
    """Section 3.1. Only the very name of a zone will do; a name inside one is NOTAUTH."""
    if len(message.zone) != 1 or message.zone[0].rdtype != RdataType.SOA:
        raise UpdateRefused(dns.rcode.FORMERR)
    origin = message.zone[0].name
    if message.zone[0].rdclass != RdataClass.IN or origin not in world:
        raise UpdateRefused(dns.rcode.NOTAUTH)
    return origin


def _require(nodes: Nodes, origin: Name, rrset: RRset) -> None:
    """Section 3.2, but for prerequisites that compare values."""
    if not rrset.name.is_subdomain(origin):
        raise UpdateRefused(dns.rcode.NOTZONE)
    if rrset.deleting is None:
        raise UpdateRefused(dns.rcode.NOTIMP)
    node = nodes.get(rrset.name, {})
    is_whole_name = rrset.rdtype == RdataType.ANY
    exists = bool(node) if is_whole_name else rrset.rdtype in node
    if rrset.deleting == RdataClass.ANY and not exists:
        raise UpdateRefused(dns.rcode.NXDOMAIN if is_whole_name else dns.rcode.NXRRSET)
    if rrset.deleting == RdataClass.NONE and exists:
        raise UpdateRefused(dns.rcode.YXDOMAIN if is_whole_name else dns.rcode.YXRRSET)


def _prescan(origin: Name, rrset: RRset) -> None:
    """Section 3.4.1."""
    if not rrset.name.is_subdomain(origin):
        raise UpdateRefused(dns.rcode.NOTZONE)
    deletes_all = rrset.deleting == RdataClass.ANY and rrset.rdtype == RdataType.ANY
    if dns.rdatatype.is_metatype(rrset.rdtype) and not deletes_all:
        raise UpdateRefused(dns.rcode.FORMERR)


def _added(world: World, origin: Name, rrset: RRset) -> World:
    """Section 3.4.2.2. The TTL of the record becomes that of the whole set."""
    node = world[origin].get(rrset.name, {})
    others = set(node) - {rrset.rdtype}
    # A CNAME suffers no data beside it, and whoever comes second is ignored without an error.
    if RdataType.CNAME in others or (rrset.rdtype == RdataType.CNAME and others) or rrset.rdtype == RdataType.SOA:
        return world
    before = node.get(rrset.rdtype)
    kept = [] if before is None or rrset.rdtype == RdataType.CNAME else list(before)
    after = dns.rdataset.from_rdata_list(rrset.ttl, [*kept, *rrset])
    if _are_same(before, after):
        return world
    return with_set(world, origin, rrset.name, rrset.rdtype, after)


def _deleted(world: World, origin: Name, rrset: RRset) -> World:
    """Sections 3.4.2.3 and 3.4.2.4; a zone keeps its SOA and its NS records whatever comes."""
    node = world[origin].get(rrset.name, {})
    kinds = list(node) if rrset.rdtype == RdataType.ANY else [rrset.rdtype]
    for kind in kinds:
        before = node.get(kind)
        is_vital = rrset.name == origin and kind in (RdataType.SOA, RdataType.NS)
        if before is None or is_vital:
            continue
        left = [each for each in before if each not in rrset] if rrset.deleting == RdataClass.NONE else []
        after = dns.rdataset.from_rdata_list(before.ttl, left) if left else None
        if not _are_same(before, after):
            world = with_set(world, origin, rrset.name, kind, after)
    return world


def _are_same(before: Rdataset | None, after: Rdataset | None) -> bool:
    # Sets compare by their records alone.
    return before == after and (before is None or after is None or before.ttl == after.ttl)
