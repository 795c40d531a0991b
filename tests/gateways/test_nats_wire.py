"""What comes over the wire from nats-server, as other clients have written it: a server is played, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.aio.msg import Msg

from scaivaultd.gateways.nats_wire import ReadingClient, UnreadableMessage

DEADLINE = 5.0
INFO = {"server_id": "N", "version": "2.15.1", "max_payload": 1 << 20, "headers": True}


class Server:
    """Says what it is told, to the last that has connected."""

    def __init__(self) -> None:
        self.connections = 0
        self.changed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"INFO " + json.dumps(INFO).encode() + b" \r\n")
        try:
            while line := await reader.readline():
                if line == b"PING\r\n":
                    writer.write(b"PONG\r\n")
                if line.startswith(b"SUB "):
                    self._writer = writer
                    self.connections += 1
                    self.changed.set()
        finally:
            writer.close()

    def say(self, text: bytes) -> None:
        assert self._writer is not None
        self._writer.write(text)


class Played:
    """The client, what it has heard, and what it complains of."""

    def __init__(self) -> None:
        self.server = Server()
        self.client = ReadingClient()
        self.heard: asyncio.Queue[Msg] = asyncio.Queue()
        self.errors: list[Exception] = []

    async def hear(self, message: Msg) -> None:
        self.heard.put_nowait(message)

    async def complain(self, error: Exception) -> None:
        self.errors.append(error)

    async def next(self) -> Msg:
        async with asyncio.timeout(DEADLINE):
            return await self.heard.get()


@pytest.fixture
async def played() -> AsyncIterator[Played]:
    it = Played()
    listening = await asyncio.start_server(it.server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    await it.client.connect(
        f"nats://127.0.0.1:{port}", error_cb=it.complain, reconnect_time_wait=0, max_reconnect_attempts=-1
    )
    await it.client.subscribe("a.>", cb=it.hear)
    async with asyncio.timeout(DEADLINE):
        await it.server.changed.wait()
    yield it
    with contextlib.suppress(Exception):
        await it.client.close()
    listening.close()


def message(reply: bytes = b"", headers: bytes = b"", body: bytes = b"x", subject: bytes = b"a.b") -> bytes:
    """A message as a server delivers it."""
    to = reply and reply + b" "
    if not headers:
        return b"MSG %s 1 %s%d\r\n%s\r\n" % (subject, to, len(body), body)
    return b"HMSG %s 1 %s%d %d\r\n%s%s\r\n" % (subject, to, len(headers), len(headers) + len(body), headers, body)


async def test_messages_come_in_any_pieces(played: Played) -> None:
    """TCP knows no messages."""
    text = b"PING\r\n+OK\r\n" + message(b"r.1", b"NATS/1.0\r\nX: y\r\n\r\n", b"\r\nMSG a.b 1 5\r\n") + message(body=b"")
    for at in range(len(text)):
        played.server.say(text[at : at + 1])
        await asyncio.sleep(0)
    first, second = await played.next(), await played.next()
    assert (first.subject, first.reply, first.headers, first.data) == ("a.b", "r.1", {"X": "y"}, b"\r\nMSG a.b 1 5\r\n")
    assert (second.reply, second.headers, second.data) == ("", None, b"")
    assert played.errors == []


@pytest.mark.parametrize(
    "poison",
    [
        message(headers=b"N"),
        message(headers=b"NATS/1.0"),
        message(headers=b"\xff\xfe\x00\x01"),
        message(headers=b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
        message(headers=b"NATS/1.0 503\r\nX: \xff\r\n\r\n"),
        message(b"r.\xff"),
        message(subject=b"a.\xff"),
    ],
)
async def test_nobody_stops_the_client_by_a_message(played: Played, poison: bytes) -> None:
    """Whoever may send one request could otherwise silence the daemon for all, until the server hangs up on it."""
    played.server.say(poison + message(b"r.2", body=b"next"))
    assert (await played.next()).data == b"next"
    (error,) = played.errors
    assert isinstance(error, UnreadableMessage)
    assert played.server.connections == 1


@pytest.mark.parametrize("white", ["\x0b", "\x0c", "\x1c", "\u00a0", "\u2028"])
async def test_what_is_white_is_part_of_a_subject(played: Played, white: str) -> None:
    """The server lets it pass; a client that divides there takes another word for the reply subject, or gives up."""
    reply = f"r{white}7"
    played.server.say(message(reply.encode(), b"NATS/1.0\r\n\r\n") + message(reply.encode()))
    assert [(await played.next()).reply, (await played.next()).reply] == [reply, reply]
    assert played.server.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        b"-ERR 'Maximum Connections Exceeded'\r\n",
        b"-ERR 'User Authentication Expired'\r\n",
        b"-ERR 'Authorization Violation'\r\n",
        b"-ERR 'Stale Connection'\r\n",
        b"-ERR '\xff'\r\n",
        b"MSG a.b 1 x\r\n",
        b"MSG a.b x 1\r\n",
        b"MSG a.b\r\n",
        b"INFO {\r\n",
        b"nonsense\r\n",
        b"x" * (2 << 20),
    ],
)
async def test_the_client_comes_back_whatever_the_server_says(played: Played, said: bytes) -> None:
    """A server that is at its limit, or reloads its users, is no reason to be gone for good."""
    played.server.changed.clear()
    played.server.say(said)
    async with asyncio.timeout(DEADLINE):
        await played.server.changed.wait()
    played.server.say(message(body=b"again"))
    assert (await played.next()).data == b"again"


async def test_a_refused_subject_is_told_and_nothing_more(played: Played) -> None:
    """One thing that the daemon may not do there: the rest goes on."""
    played.server.say(b"-ERR 'Permissions Violation for Publish to \"b.\xff\"'\r\n" + message())
    await played.next()
    assert [str(each) for each in played.errors] == ['nats: permissions violation for publish to "b.\ufffd"']
    assert played.server.connections == 1


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        (b'NATS/1.0\r\nNats-Request-Info: {"acc":"A"}\r\n\r\n', '{"acc":"A"}'),
        (b'NATS/1.0\r\nNats-Request-Info: {"acc":"A"}\r\nX: zNats-Request-Info: {"acc":"B"}\r\n\r\n', None),
    ],
)
async def test_a_doubled_word_of_the_server_is_nobodys(played: Played, headers: bytes, found: Any) -> None:
    """One of them is the sender's own."""
    played.server.say(message(headers=headers))
    assert ((await played.next()).headers or {}).get("Nats-Request-Info") == found
