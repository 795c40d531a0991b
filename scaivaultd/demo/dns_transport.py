"""DNS over UDP and TCP (RFC 1035 section 4.2) on the same port of several loopback addresses."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self

Transport = Literal["udp", "tcp"]
Silence = Literal["drop", "hang"]
Handler = Callable[[bytes, str, Transport], bytes | Silence]
"""Takes a message, the address of the server it came to, and the transport; decides without waiting."""

PORT_TRIES = 50
IDLE_SECONDS = 10.0
HANG_SECONDS = 300.0
CONNECTIONS_MAX = 200


class DnsSockets:
    """The sockets, and who is connected. `port` is known once the context is entered."""

    def __init__(self, addresses: Sequence[str], handler: Handler) -> None:
        """Nothing is opened yet."""
        self.port = 0
        self._addresses = tuple(addresses)
        self._handler = handler
        self._streams: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._transports: list[asyncio.DatagramTransport] = []

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.port, pairs = _bound(self._addresses)
        for address, (stream, datagram) in zip(self._addresses, pairs, strict=True):
            self._servers.append(await asyncio.start_server(self._acceptor(address), sock=stream))
            transport, _ = await loop.create_datagram_endpoint(self._receiver(address), sock=datagram)
            self._transports.append(transport)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.close()
        for transport in self._transports:
            transport.close()
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._streams, return_exceptions=True)
        # Sockets are closed by callbacks that the loop has yet to run.
        await asyncio.sleep(0)

    def _receiver(self, address: str) -> Callable[[], asyncio.DatagramProtocol]:
        return lambda: _Datagrams(address, self._handler)

    def _acceptor(self, address: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._streams) >= CONNECTIONS_MAX:
                writer.transport.abort()
                return
            task = asyncio.create_task(self._serve(address, reader, writer))
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)

        return accept

    async def _serve(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    wire = await reader.readexactly(length)
                answer = self._handler(wire, address, "tcp")
                if answer == "hang":
                    async with asyncio.timeout(HANG_SECONDS):
                        await reader.read()
                if isinstance(answer, str):
                    return
                writer.write(len(answer).to_bytes(2, "big") + answer)
                async with asyncio.timeout(IDLE_SECONDS):
                    await writer.drain()
        except (OSError, EOFError):
            pass  # the client went away or stayed too long (TimeoutError): its own affair
        finally:
            writer.transport.abort()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, address: str, handler: Handler) -> None:
        self._address = address
        self._handler = handler
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # it is one
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self._handler(data, self._address, "udp")
        if not isinstance(answer, str) and self._transport is not None:
            self._transport.sendto(answer, addr)


def _bound(addresses: Sequence[str]) -> tuple[int, list[tuple[socket.socket, socket.socket]]]:
    """A TCP and a UDP socket for each address, all with one port; the kernel proposes, and may have to do so again."""
    for _ in range(PORT_TRIES):
        with ExitStack() as opened:
            port = 0
            pairs = []
            try:
                for address in addresses:
                    stream = opened.enter_context(_socket(address, port, socket.SOCK_STREAM))
                    port = stream.getsockname()[1]
                    pairs.append((stream, opened.enter_context(_socket(address, port, socket.SOCK_DGRAM))))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            opened.pop_all()
            return port, pairs
    raise OSError(errno.EADDRINUSE, f"no port is free for UDP and TCP at all of {', '.join(addresses)}")


def _socket(address: str, port: int, kind: socket.SocketKind) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made
