"""A NATS client that no library keeps from doing wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

DEADLINE = 10.0


class Raw:
    """One connection, spoken by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def connect(self, **login: Any) -> bytes:
        """Log in; `+OK`, or why not."""
        options = {"verbose": True, "headers": True, "no_responders": True, **login}
        self._writer.write(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
        async with asyncio.timeout(DEADLINE):
            return await self._reader.readline()

    async def say(self, text: bytes) -> bytes:
        """Send something; what the server says until it has taken all of it, or hangs up."""
        self._writer.write(text + b"PING\r\n")
        heard = b""
        async with asyncio.timeout(DEADLINE):
            while b"PONG\r\n" not in heard and (more := await self._reader.read(65536)):
                heard += more
        return heard.replace(b"PONG\r\n", b"").replace(b"+OK\r\n", b"")

    async def publish(self, subject: str, body: bytes = b"{}", *, reply: str = "", headers: bytes = b"") -> bytes:
        """Publish; `headers` are sent as they are."""
        if not headers:
            return await self.say(f"PUB {subject} {reply} {len(body)}\r\n".encode() + body + b"\r\n")
        sizes = f"{len(headers)} {len(headers) + len(body)}"
        return await self.say(f"HPUB {subject} {reply} {sizes}\r\n".encode() + headers + body + b"\r\n")


@contextlib.asynccontextmanager
async def raw(url: str, **login: Any) -> AsyncIterator[Raw]:
    """A connection that was let in."""
    async with _open(url) as client:
        assert await client.connect(**login) == b"+OK\r\n"
        yield client


async def refusal(url: str, **login: Any) -> str:
    """What the server says to a login that it refuses; empty when it lets it in."""
    async with _open(url) as client:
        return (await client.connect(**login)).decode().removeprefix("+OK\r\n")


@contextlib.asynccontextmanager
async def _open(url: str) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
    try:
        assert (await reader.readline()).startswith(b"INFO ")
        yield Raw(reader, writer)
    finally:
        writer.close()
