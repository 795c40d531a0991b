"""A name server that tells which of several zones of one name is delegated to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import dns.message
import dns.rrset


class NameServer(asyncio.DatagramProtocol):
    """Answers every question with one NS set."""

    def __init__(self, *servers: str) -> None:
        self._servers = servers

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query, recursion_available=True)
        answer.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "NS", *self._servers))
        self._transport.sendto(answer.to_wire(), addr)


@asynccontextmanager
async def name_server(*servers: str) -> AsyncIterator[str]:
    """A name server at the address that is yielded."""
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: NameServer(*servers), local_addr=("127.0.0.1", 0)
    )
    try:
        yield "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
