"""TCP ends without opinions: a client that sees resets, and a server that a test plays by hand."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATIENCE_SECONDS = 10.0


class Peer:
    """One end of a connection, read and written as bytes."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        opened.setblocking(False)

    async def send(self, data: bytes) -> None:
        """Everything, or an exception."""
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.socket, data), PATIENCE_SECONDS)

    async def some(self) -> bytes:
        """What comes next; empty at the other's end."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 65536), PATIENCE_SECONDS)

    async def exactly(self, count: int) -> bytes:
        """So many bytes, or fewer if the other one ends before."""
        received = bytearray()
        while len(received) < count and (data := await self.some()):
            received += data
        return bytes(received)

    async def rest(self) -> bytes:
        """Everything until the other's end; ConnectionResetError when it ends rudely."""
        received = bytearray()
        while data := await self.some():
            received += data
        return bytes(received)

    async def until_gone(self) -> None:
        """Returns when the other end has closed, politely or not."""
        with suppress(ConnectionError):
            await self.rest()

    def end(self) -> None:
        """Say that nothing more comes."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Disconnect rudely."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()


@asynccontextmanager
async def connected(address: tuple[str, int]) -> AsyncIterator[Peer]:
    """A client of `address`."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as opened:
        opened.setblocking(False)
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(opened, address), PATIENCE_SECONDS)
        yield Peer(opened)


class Upstream:
    """A listening socket on loopback whose connections a test takes one by one."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setblocking(False)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        """Where it is, as a configuration has it; after `close` nobody is there."""
        self._peers: list[Peer] = []

    async def accept(self) -> Peer:
        """The next connection."""
        accepting = asyncio.get_running_loop().sock_accept(self._listening)
        accepted, _ = await asyncio.wait_for(accepting, PATIENCE_SECONDS)
        self._peers.append(Peer(accepted))
        return self._peers[-1]

    def close(self) -> None:
        """Close everything."""
        self._listening.close()
        for each in self._peers:
            each.socket.close()
