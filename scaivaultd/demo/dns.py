"""The development DNS server: authoritative, on loopback, updated by RFC 2136, and as slow or broken as it is told.

Its servers share a port and the zones; each may lag behind. It answers questions that want recursion, too, so a
CA or a daemon under test can take it for its resolver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import dns.exception
import dns.name
import dns.rcode
import dns.rdatatype
import dns.tsig
import msgspec
from dns.message import Message
from dns.name import Name
from dns.rdatatype import RdataType

from scaivaultd.demo.dns_messages import Request, answer_to, fitted, form_error, objection, read, status_only
from scaivaultd.demo.dns_transport import DnsSockets, Silence, Transport
from scaivaultd.demo.dns_views import Views
from scaivaultd.demo.dns_zones import (
    TTL_SECONDS,
    World,
    closest_zone,
    new_zone,
    rdataset_of,
    txt_set,
    txt_values,
    with_next_serial,
    with_set,
)
from scaivaultd.model.clock import Clock, SystemClock

SEEN_MAX = 1000


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong with a message.

    `status`: it is answered with `rcode` instead. `drop_before`, `drop_after`: the connection is closed before or
    after it is carried out (UDP: no answer). `hang`: it is carried out, and never answered.
    """

    kind: Literal["status", "drop_before", "drop_after", "hang"] = "status"
    rcode: str = "SERVFAIL"
    updates_only: bool = False


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A message that came in: to which server, by which transport, signed with which key (rightly or wrongly)."""

    server: str
    transport: Transport
    is_update: bool
    name: str
    rdtype: str
    key_name: str


class DevelopmentDns:
    """Zones on one or more loopback addresses, UDP and TCP, all on one port that the kernel chose.

    Use it as an async context manager, once. The first address is the primary: it alone takes updates. Names are
    complete, with or without a dot at the end; TXT values are bare texts.
    """

    def __init__(
        self,
        zones: Sequence[str] = (),
        *,
        addresses: Sequence[str] = ("127.0.0.1",),
        keys: Mapping[str, str] | None = None,
        default_address: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make the zones; sockets open with the context.

        Args:
            zones: their names; each gets SOA, NS and the address records of its name servers.
            addresses: loopback addresses (127.0.0.x, ::1), one name server each.
            keys: TSIG keys (hmac-sha256): base64 secrets by name. Without any, all updates are refused.
            default_address: IPv4 address of every host in the zones that has no address of its own.
            clock: for signatures and for lagging; one that is off shows what clients make of BADTIME.
        """
        self.addresses = tuple(addresses)
        self.default_address = default_address
        self.seen: deque[Seen] = deque(maxlen=SEEN_MAX)
        """The last messages, oldest first."""
        self._clock = clock or SystemClock()
        self._keys = {key.name: key for key in (dns.tsig.Key(*each) for each in (keys or {}).items())}
        self._views = Views(self._clock, self.addresses)
        self._faults: list[tuple[Fault, int]] = []
        self._sockets = DnsSockets(self.addresses, self._answer)
        for zone in zones:
            self.add_zone(zone)

    @property
    def port(self) -> int:
        """The port of all servers, known once the context is entered."""
        return self._sockets.port

    @property
    def address(self) -> str:
        """`address:port` of the primary."""
        host = self.addresses[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def add_zone(self, zone: str) -> None:
        """A new, or emptied, zone. A zone below it is not delegated to: who asks here gets the answer of the lower."""
        origin = _name(zone)
        self._views.commit({**self._views.current, origin: new_zone(origin, self.addresses)})

    def remove_zone(self, zone: str) -> None:
        """Serve it no more."""
        origin = _name(zone)
        self._views.commit({each: nodes for each, nodes in self._views.current.items() if each != origin})

    def put(self, name: str, rdtype: str, *texts: str, ttl: int = TTL_SECONDS) -> None:
        """Make this the record set of a name, in presentation form (names end in a dot); without texts it goes.

        NS records below a zone's own name make a delegation.

        Raises:
            LookupError: no zone here encloses the name.
        """
        kind = dns.rdatatype.from_text(rdtype)
        world, origin, owner = self._place(name)
        rdataset = rdataset_of(kind, texts, ttl) if texts else None
        self._views.commit(with_next_serial(with_set(world, origin, owner, kind, rdataset), origin))

    def add_a(self, name: str, address: str) -> None:
        """One more IPv4 address for a name; raises LookupError as `put`."""
        world, origin, owner = self._place(name)
        there = world[origin].get(owner, {}).get(RdataType.A) or ()
        self.put(name, "A", *(record.address for record in there), address)

    def set_txt(self, name: str, values: Sequence[str], ttl: int = TTL_SECONDS) -> None:
        """Make these the TXT values of a name; raises LookupError as `put`."""
        world, origin, owner = self._place(name)
        self._views.commit(
            with_next_serial(with_set(world, origin, owner, RdataType.TXT, txt_set(values, ttl)), origin)
        )

    def txt(self, name: str, server: str | None = None) -> tuple[str, ...]:
        """The TXT values of a name, as the primary, or a given server, shows them."""
        world = self._views.seen_by(server or self.addresses[0])
        owner = _name(name)
        origin = closest_zone(world, owner)
        return txt_values(world[origin].get(owner, {}).get(RdataType.TXT)) if origin else ()

    def lag(self, server: str, seconds: float) -> None:
        """Let the server at this address show every change that much later; 0 ends that."""
        self._views.lag(server, seconds)

    def hold(self, server: str) -> None:
        """Let the server show no change until `release`."""
        self._views.hold(server)

    def release(self, server: str) -> None:
        """Let the server show what it is meant to."""
        self._views.release(server)

    def fail(self, fault: Fault, times: int = 1) -> None:
        """Let the next messages fail, after those that earlier calls meant. `times` = 0 forgets all faults."""
        self._faults = [*self._faults, (fault, times)] if times else []

    async def __aenter__(self) -> Self:
        await self._sockets.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._sockets.__aexit__(kind, error, traceback)

    def _place(self, name: str) -> tuple[World, Name, Name]:
        world, owner = self._views.current, _name(name)
        origin = closest_zone(world, owner)
        if origin is None:
            raise LookupError(f"{name} is in none of the zones here")
        return world, origin, owner

    def _answer(self, wire: bytes, server: str, transport: Transport) -> bytes | Silence:
        try:
            request = read(wire, self._keys, self._clock.now())
        except (dns.exception.DNSException, ValueError):
            return form_error(wire)
        if request is None:
            return "drop"
        self.seen.append(_seen(request, server, transport))
        fault = self._next_fault(request)
        if fault is not None and fault.kind == "drop_before":
            return "drop"
        if fault is not None and fault.kind == "status":
            answer = status_only(request, dns.rcode.from_text(fault.rcode))
        else:
            answer = objection(request) or self._carried_out(request, server)
        if fault is not None and fault.kind != "status":
            return "hang" if fault.kind == "hang" else "drop"
        return fitted(answer, request, over_tcp=transport == "tcp")

    def _carried_out(self, request: Request, server: str) -> Message:
        primary = self._views.current if server == self.addresses[0] else None
        answer, after = answer_to(request, self._views.seen_by(server), primary, self.default_address)
        if after is not None and after is not primary:
            self._views.commit(after)
        return answer

    def _next_fault(self, request: Request) -> Fault | None:
        for place, (fault, left) in enumerate(self._faults):
            if request.is_update or not fault.updates_only:
                rest = [(fault, left - 1)] if left > 1 else []
                self._faults[place : place + 1] = rest
                return fault
        return None


def _name(text: str) -> Name:
    return dns.name.from_text(text).canonicalize()


def _seen(request: Request, server: str, transport: Transport) -> Seen:
    message = request.message
    asked = next(iter(message.sections[0]), None)
    return Seen(
        server=server,
        transport=transport,
        is_update=request.is_update,
        name=asked.name.to_text(omit_final_dot=True).lower() if asked is not None else "",
        rdtype=dns.rdatatype.to_text(asked.rdtype) if asked is not None else "",
        key_name=message.keyname.to_text(omit_final_dot=True).lower() if message.keyname else "",
    )
