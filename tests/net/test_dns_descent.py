"""What follows from servers that differ: two of them, one near and one far, at ports of their own."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rrset
import pytest

from scaivaultd.model.dns import Delegation, NameServer
from scaivaultd.net.dns_descent import Descent
from scaivaultd.net.dns_exchange import Exchange, Patience
from scaivaultd.net.dns_resolvers import Resolvers
from scaivaultd.net.dns_zones import Zones

if TYPE_CHECKING:
    from scaivaultd.model.clock import Clock

NAME = "_acme-challenge.example.test"
ALIAS = f"{NAME}. 60 IN CNAME x.other.test."
FAR_SECONDS = 0.1


class Server(asyncio.DatagramProtocol):
    """Has authority for everything, and one record at most; the far one takes its time."""

    def __init__(self, record: str | None, seconds: float) -> None:
        self._record = record
        self._seconds = seconds
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = dns.message.make_response(dns.message.from_wire(data))
        answer.flags |= dns.flags.AA
        if self._record:
            name, ttl, *rest = self._record.split(" ", 4)
            answer.answer.append(dns.rrset.from_text(name, int(ttl), *rest))
        asyncio.get_running_loop().call_later(self._seconds, self._transport.sendto, answer.to_wire(), addr)


@pytest.mark.parametrize(("near", "far"), [(None, ALIAS), (ALIAS, None)])
async def test_a_cname_that_one_server_knows_is_followed(clock: Clock, near: str | None, far: str | None) -> None:
    """The near server may be the one that lags; the records have to be where the others send the CA."""
    exchange = Exchange(Patience())
    descent = Descent(Zones(Resolvers(["127.0.0.1"], exchange, clock)), exchange, 53)
    loop = asyncio.get_running_loop()
    servers: list[NameServer] = []
    async with AsyncExitStack() as stack:
        for record, seconds in ((near, 0.0), (far, FAR_SECONDS)):
            transport, _ = await loop.create_datagram_endpoint(
                lambda record=record, seconds=seconds: Server(record, seconds),  # type: ignore[misc]  # bound early
                local_addr=("127.0.0.1", 0),
            )
            stack.callback(transport.close)
            address = "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
            servers.append(NameServer(name=f"ns{len(servers)}.example.test", addresses=(address,)))
        place = await descent.locate(NAME, Delegation(zone="example.test", servers=tuple(servers)))
    assert place.alias == "x.other.test"
