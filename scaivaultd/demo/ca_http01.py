"""The development CA's look at http-01 (RFC 8555 section 8.3): a plain request of its own, no redirects."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from scaivaultd.demo.ca_problems import Finding, problem

if TYPE_CHECKING:
    from scaivaultd.demo.ca_identifiers import Identifier

_MAX_BODY = 16 * 1024


class Http01:
    """Asks at one port, for at most so many seconds."""

    def __init__(self, port: int, seconds: float) -> None:
        self._port = port
        self._seconds = seconds

    async def look(self, identifier: Identifier, address: str, token: str, key_authorization: str) -> Finding:
        """None for status 200 with exactly the key authorization."""
        place = f"http://{_host(identifier)}:{self._port}/.well-known/acme-challenge/{token} at {address}"
        try:
            async with asyncio.timeout(self._seconds):
                status, body = await self._get(address, _host(identifier), token)
        except TimeoutError:
            return problem("connection", f"{place}: no answer within {self._seconds:g} s")
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            return problem("connection", f"{place}: {type(error).__name__}")
        except ValueError as error:
            return problem("connection", f"{place}: {error}")
        if status != 200:
            return problem("incorrectResponse", f"{place}: status {status}")
        if body != key_authorization.encode():
            return problem("incorrectResponse", f"{place}: {len(body)} octets that are not the key authorization")
        return None

    async def _get(self, address: str, host: str, token: str) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection(address, self._port)
        try:
            writer.write(
                f"GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {host}\r\n"
                "User-Agent: scaivaultd-development-ca\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode()
            )
            await writer.drain()
            return await _read_answer(reader)
        finally:
            # Aborted, not closed: a close may wait for a peer that has stopped reading.
            writer.transport.abort()


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body; raises ValueError for what is not HTTP, or more than we read."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
    version, _, rest = status_line.partition(" ")
    if version not in {"HTTP/1.0", "HTTP/1.1"} or not rest[:3].isdecimal():
        raise ValueError("not an HTTP/1.1 answer")
    headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    if "transfer-encoding" in headers:
        raise ValueError("a chunked answer, which this CA does not read")
    length = headers.get("content-length")
    if length is None:
        return int(rest[:3]), await _read_to_end(reader)
    if not length.isdecimal() or int(length) > _MAX_BODY:
        raise ValueError(f"Content-Length {length!r}")
    return int(rest[:3]), await reader.readexactly(int(length))


async def _read_to_end(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while chunk := await reader.read(_MAX_BODY):
        body += chunk
        if len(body) > _MAX_BODY:
            raise ValueError("an endless body")
    return body


def _host(identifier: Identifier) -> str:
    return f"[{identifier.value}]" if ":" in identifier.value else identifier.value
