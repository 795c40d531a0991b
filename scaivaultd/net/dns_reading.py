"""What a DNS answer means. Pure: a message in, a finding out.

Names come out complete, in lower case, without a trailing dot; the root is `.`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.edns
import dns.flags
import dns.name
import dns.rcode
import dns.rdatatype
import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from dns.message import Message
    from dns.rrset import RRset

    from scaivaultd.model.dns import Answer

CHAIN_MAX = 16
EDE_TEXT_MAX = 200


class Alias(msgspec.Struct, frozen=True):
    """A CNAME stands at the name."""

    target: str


class Referral(msgspec.Struct, frozen=True):
    """A zone further down is served by others: their names, and the addresses that came along."""

    zone: str
    servers: tuple[str, ...]
    glue: Mapping[str, tuple[str, ...]]


class Served(msgspec.Struct, frozen=True):
    """The server is authoritative for the name; `zone` as far as the answer tells."""

    zone: str | None


class Useless(msgspec.Struct, frozen=True):
    """The server does not serve the name; `said` is what it said instead."""

    said: str


Finding = Alias | Referral | Served | Useless


class Judgement(msgspec.Struct, frozen=True):
    """What an answer says of a set of TXT values; `serial` when the zone's SOA came along."""

    answer: Answer
    detail: str
    serial: int | None = None


def text_of(name: dns.name.Name) -> str:
    """A name as everything else here writes it."""
    return name.to_text(omit_final_dot=True).lower()


def parent_of(name: str) -> str:
    """The name one label up; of a top-level name the root."""
    return name.partition(".")[2] or "."


def contains(zone: str, name: str) -> bool:
    """Whether `name` is `zone` or below it."""
    return zone == "." or name == zone or name.endswith(f".{zone}")


def status_of(message: Message) -> str:
    """The status with the server's own explanation, if it sent one (RFC 8914)."""
    status = dns.rcode.to_text(message.rcode())
    explanation = explanation_of(message)
    return f"{status} ({explanation})" if explanation else status


def explanation_of(message: Message) -> str:
    """The extended DNS errors of an answer in words (RFC 8914), or nothing."""
    errors = [option for option in message.options if isinstance(option, dns.edns.EDEOption)]
    return "; ".join(_error_text(error) for error in errors)[:EDE_TEXT_MAX]


def is_recursive(message: Message) -> bool:
    """Whether the server offers to find out what it does not know."""
    return bool(message.flags & dns.flags.RA)


def alias_at(message: Message, name: str) -> str | None:
    """The target of the CNAME at `name`; one made from a DNAME counts (RFC 6672 section 3.1)."""
    found = _rrset(message.answer, name, dns.rdatatype.CNAME)
    return text_of(found[0].target) if found else None


def end_of_chain(message: Message, name: str) -> str:
    """Where the CNAMEs of the answer lead from `name`, as far as the answer tells; loops end somewhere."""
    for _ in range(CHAIN_MAX):
        target = alias_at(message, name)
        if target is None:
            break
        name = target
    return name


def zone_of(message: Message, name: str) -> str | None:
    """The zone that `name` is in by the SOA in an answer to SOA at `name`; None when it does not tell."""
    if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN) or alias_at(message, name) is not None:
        return None
    if _rrset(message.answer, name, dns.rdatatype.SOA):
        return name
    return _zone_of_denial(message, name)


def referral_of(message: Message, name: str, above: str | None = None) -> Referral | None:
    """The delegation that an answer points to instead of answering; only one below `above`, where that is given."""
    if message.rcode() != dns.rcode.NOERROR or message.answer or message.flags & dns.flags.AA:
        return None
    if any(each.rdtype == dns.rdatatype.SOA for each in message.authority):
        return None
    for found in message.authority:
        zone = text_of(found.name)
        if found.rdtype != dns.rdatatype.NS or not contains(zone, name) or zone == ".":
            continue
        if above is None or (contains(above, zone) and zone != above):
            servers = server_names(found)
            # Addresses of names outside its own zone are hearsay.
            trusted = [server for server in servers if above is None or contains(above, server)]
            return Referral(zone, servers, glue_of(message, trusted))
    return None


def name_servers(message: Message, zone: str) -> tuple[str, ...]:
    """The NS records of `zone` in the answer."""
    found = _rrset(message.answer, zone, dns.rdatatype.NS)
    return server_names(found) if found else ()


def server_names(found: RRset) -> tuple[str, ...]:
    """The servers named by NS records, sorted."""
    return tuple(sorted({text_of(each.target) for each in found}))


def glue_of(message: Message, servers: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """Addresses of servers in the additional section."""
    found: dict[str, tuple[str, ...]] = {}
    for each in message.additional:
        server = text_of(each.name)
        if server in servers and each.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            found[server] = (*found.get(server, ()), *(item.address for item in each))
    return found


def addresses(message: Message, name: str, rdtype: dns.rdatatype.RdataType) -> tuple[str, ...]:
    """The addresses of `name` in the answer, behind CNAMEs too."""
    found = _rrset(message.answer, end_of_chain(message, name), rdtype)
    return tuple(item.address for item in found) if found else ()


def finding_of(message: Message, name: str, zone: str, *, needs_authority: bool = True) -> Finding:
    """What a server of `zone` says about a name, asked for its TXT records."""
    has_authority = not needs_authority or message.flags & dns.flags.AA
    target = alias_at(message, name)
    if has_authority and target is not None:
        # The status is about where the CNAME leads: NXDOMAIN, or SERVFAIL when it leads in a circle.
        return Alias(target)
    if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Useless(status_of(message))
    if not has_authority:
        return referral_of(message, name, zone) or Useless(f"{status_of(message)} without authority")
    return Served(_zone_of_denial(message, name))


def judgement_of(message: Message, name: str, values: Collection[str], *, needs_authority: bool) -> Judgement:
    """What an answer to TXT at `name` says of `values`: TXT strings are joined and compared exactly."""
    status = status_of(message)
    has_authority = not needs_authority or message.flags & dns.flags.AA
    target = alias_at(message, name)
    if has_authority and target is not None:
        return Judgement("absent", f"{status}, a CNAME to {target} stands there now")
    if message.rcode() == dns.rcode.REFUSED:
        return Judgement("refused", status)
    if message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return Judgement("failed", status)
    if not has_authority:
        return Judgement("not_authoritative", f"{status} without authority (lame)")
    return _count(status, texts_at(message, name), values, _serial_of_denial(message, name))


def texts_at(message: Message, name: str) -> frozenset[bytes]:
    """The TXT values at `name`, each with its strings joined."""
    found = _rrset(message.answer, name, dns.rdatatype.TXT)
    return frozenset(b"".join(item.strings) for item in found) if found else frozenset()


def serial_of(message: Message, zone: str) -> int | None:
    """The serial in an answer to SOA at `zone`."""
    found = _rrset(message.answer, zone, dns.rdatatype.SOA)
    return int(found[0].serial) if found else None


def _error_text(error: dns.edns.EDEOption) -> str:
    words = dns.edns.EDECode.to_text(error.code).replace("_", " ").lower()
    # Anybody's text: nothing in it may move a terminal's cursor.
    said = "".join(character if character.isprintable() else "?" for character in error.text or "")
    return f"{words} (EDE {int(error.code)}{f', {said}' if said else ''})"


def _count(status: str, there: frozenset[bytes], values: Collection[str], serial: int | None) -> Judgement:
    wanted = {value.encode() for value in values}
    has, others = len(wanted & there), len(there - wanted)
    if not there:
        detail = status if status.startswith("NXDOMAIN") else f"{status}, no TXT records"
        return Judgement("absent" if wanted else "complete", detail, serial)
    more = f" (and {others} other{'' if others == 1 else 's'})" if others else ""
    detail = f"{status}, has {has} of {len(wanted)} value{'' if len(wanted) == 1 else 's'}{more}"
    if has == len(wanted):
        return Judgement("complete", detail, serial)
    return Judgement("partial" if has else "absent", detail, serial)


def _zone_of_denial(message: Message, name: str) -> str | None:
    owners = [text_of(each.name) for each in message.authority if each.rdtype == dns.rdatatype.SOA]
    return next((owner for owner in owners if contains(owner, name)), None)


def _serial_of_denial(message: Message, name: str) -> int | None:
    zone = _zone_of_denial(message, name)
    found = _rrset(message.authority, zone, dns.rdatatype.SOA) if zone else None
    return int(found[0].serial) if found else None


def _rrset(section: list[RRset], name: str, rdtype: dns.rdatatype.RdataType) -> RRset | None:
    return next((each for each in section if each.rdtype == rdtype and text_of(each.name) == name and each), None)
