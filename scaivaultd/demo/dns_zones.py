"""What the development DNS server knows: zones as snapshots that never change, and the answer to a question in one.

A change makes a new snapshot that shares all it can with the old one. So a server that lags, or is held, simply
goes on looking at an older one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rdtypes.ANY.SOA
import dns.rdtypes.ANY.TXT
import dns.rrset
import msgspec
from dns.name import Name
from dns.rdataset import Rdataset
from dns.rdatatype import RdataType
from dns.rrset import RRset

Node = Mapping[RdataType, Rdataset]
Nodes = Mapping[Name, Node]
World = Mapping[Name, Nodes]
"""Zones by their origin."""

CNAMES_MAX = 16
TTL_SECONDS = 60
STRING_MAX = 255


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a server answers to a question."""

    rcode: dns.rcode.Rcode = dns.rcode.NOERROR
    authoritative: bool = True
    answer: Sequence[RRset] = ()
    authority: Sequence[RRset] = ()
    additional: Sequence[RRset] = ()


def find(world: World, name: Name, rdtype: RdataType, default_address: str | None) -> Finding:
    """Answer as RFC 1034 section 4.3.2 says: referrals, CNAMEs through all zones here, wildcards, denials with SOA.

    With `default_address` every name in a zone that could be a host's has that A record, unless it has others.
    """
    answer: list[RRset] = []
    for _ in range(CNAMES_MAX):
        origin = closest_zone(world, name)
        if origin is None:
            break
        nodes = world[origin]
        if cut := _delegation(nodes, origin, name):
            return Finding(authoritative=bool(answer), answer=answer, authority=[cut], additional=_glue(nodes, cut))
        node = _node(nodes, origin, name, default_address)
        if node is None:
            return Finding(rcode=dns.rcode.NXDOMAIN, answer=answer, authority=[_denial(nodes, origin)])
        if (alias := node.get(RdataType.CNAME)) and rdtype not in (RdataType.CNAME, RdataType.ANY):
            answer.append(_rrset(name, alias))
            name = alias[0].target
            continue
        found = [_rrset(name, each) for kind, each in node.items() if rdtype in (kind, RdataType.ANY)]
        return Finding(answer=[*answer, *found], authority=[] if found else [_denial(nodes, origin)])
    if answer:
        return Finding(answer=answer)
    return Finding(rcode=dns.rcode.REFUSED, authoritative=False)


def closest_zone(world: World, name: Name) -> Name | None:
    """The zone with the longest name that encloses `name`."""
    return next((each for each in upwards(name) if each in world), None)


def upwards(name: Name) -> Iterator[Name]:
    """The name and all names above it, the root last."""
    yield name
    while name != dns.name.root:
        name = name.parent()
        yield name


def with_set(world: World, origin: Name, name: Name, rdtype: RdataType, rdataset: Rdataset | None) -> World:
    """The world with this record set in place of what was there; None or an empty set takes it away."""
    node = {kind: each for kind, each in world[origin].get(name, {}).items() if kind != rdtype}
    if rdataset:
        node[rdtype] = rdataset
    nodes = {owner: each for owner, each in world[origin].items() if owner != name}
    if node:
        nodes[name] = node
    return {**world, origin: nodes}


def with_next_serial(world: World, origin: Name) -> World:
    """The world with the zone's serial counted up by one."""
    soa = world[origin][origin][RdataType.SOA]
    raised = soa[0].replace(serial=(soa[0].serial + 1) & 0xFFFFFFFF)
    return with_set(world, origin, origin, RdataType.SOA, dns.rdataset.from_rdata(soa.ttl, raised))


def new_zone(origin: Name, addresses: Sequence[str]) -> Nodes:
    """A zone with `ns1`, `ns2` ... as its name servers at these addresses."""
    servers = [Name((f"ns{number}".encode(), *origin.labels)) for number in range(1, len(addresses) + 1)]
    soa = f"{servers[0]} hostmaster.invalid. 1 3600 600 86400 {TTL_SECONDS}"
    nodes: dict[Name, Node] = {
        origin: {
            RdataType.SOA: rdataset_of(RdataType.SOA, [soa]),
            RdataType.NS: rdataset_of(RdataType.NS, [str(server) for server in servers]),
        }
    }
    for server, address in zip(servers, addresses, strict=True):
        kind = RdataType.AAAA if ":" in address else RdataType.A
        nodes[server] = {kind: rdataset_of(kind, [address])}
    return nodes


def rdataset_of(rdtype: RdataType, texts: Sequence[str], ttl: int = TTL_SECONDS) -> Rdataset:
    """A record set from presentation form; names need their dot at the end."""
    return dns.rdataset.from_text_list("IN", rdtype, ttl, texts)


def txt_set(values: Sequence[str], ttl: int = TTL_SECONDS) -> Rdataset | None:
    """A TXT set from bare texts, cut into strings of 255 bytes."""
    records = [dns.rdtypes.ANY.TXT.TXT(dns.rdataclass.IN, RdataType.TXT, _strings(value)) for value in values]
    return dns.rdataset.from_rdata_list(ttl, records) if records else None


def txt_values(rdataset: Rdataset | None) -> tuple[str, ...]:
    """The bare texts of a TXT set."""
    return tuple(b"".join(record.strings).decode() for record in rdataset or ())


def _strings(value: str) -> list[bytes]:
    raw = value.encode()
    return [raw[place : place + STRING_MAX] for place in range(0, len(raw), STRING_MAX)] or [b""]


def _rrset(name: Name, rdataset: Rdataset, ttl: int | None = None) -> RRset:
    return dns.rrset.from_rdata_list(name, rdataset.ttl if ttl is None else ttl, list(rdataset))


def _delegation(nodes: Nodes, origin: Name, name: Name) -> RRset | None:
    """The NS set of the topmost zone cut at or above the name, below the zone's own name."""
    below = [each for each in upwards(name) if each != origin and each.is_subdomain(origin)]
    for each in reversed(below):
        if servers := nodes.get(each, {}).get(RdataType.NS):
            return _rrset(each, servers)
    return None


def _glue(nodes: Nodes, cut: RRset) -> list[RRset]:
    sets = [(server.target, nodes.get(server.target, {}).get(kind)) for server in cut for kind in _ADDRESSES]
    return [_rrset(owner, rdataset) for owner, rdataset in sets if rdataset]


_ADDRESSES = (RdataType.A, RdataType.AAAA)


def _node(nodes: Nodes, origin: Name, name: Name, default_address: str | None) -> Node | None:
    """What stands at the name, by a wildcard if need be (RFC 4592); None if the name does not exist."""
    node = _written(nodes, name)
    if node is None:
        encloser = next(each for each in upwards(name.parent()) if _written(nodes, each) is not None)
        node = nodes.get(Name((b"*", *encloser.labels)))
    could_be_host = name != origin and not any(label.startswith(b"_") for label in name.labels)
    if default_address is None or not could_be_host or any(kind in (node or {}) for kind in (*_ADDRESSES, _CNAME)):
        return node
    return {**(node or {}), RdataType.A: rdataset_of(RdataType.A, [default_address])}


_CNAME = RdataType.CNAME


def _written(nodes: Nodes, name: Name) -> Node | None:
    """The node, empty if there are only names below it (RFC 8020)."""
    if name in nodes:
        return nodes[name]
    return {} if any(each.is_subdomain(name) for each in nodes) else None


def _denial(nodes: Nodes, origin: Name) -> RRset:
    """The SOA record with the time for which a denial may be remembered (RFC 2308 section 3)."""
    soa = nodes[origin][RdataType.SOA]
    return _rrset(origin, soa, min(soa.ttl, soa[0].minimum))
