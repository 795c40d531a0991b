"""Two connections joined into one: every byte in order, ends passed on, nothing kept for anybody without bound."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Protocol

import pytest

from scaivaultd.listeners.splice import SpliceLimits, Splicer
from tests.fakes.tcp import PATIENCE_SECONDS, Peer, Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.clock import Clock

    class MovedClock(Clock, Protocol):
        """The clock of conftest."""

        async def advance(self, seconds: float) -> None: ...


FAREWELL = b"not at home\n"
SMALL = SpliceLimits(buffer_bytes=4096)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """The server that clients are joined with."""
    server = Upstream()
    yield server
    server.close()


@pytest.fixture
async def opened() -> AsyncIterator[list[Splicer]]:
    """Splicers to be closed."""
    splicers: list[Splicer] = []
    yield splicers
    for each in splicers:
        await each.close()


@pytest.fixture
def splicer_for(
    upstream: Upstream, clock: MovedClock, log: FilteringBoundLogger, opened: list[Splicer]
) -> Callable[[SpliceLimits], Splicer]:
    """A splicer to the server, with other limits."""

    def make(limits: SpliceLimits) -> Splicer:
        opened.append(
            Splicer(
                upstream.address,
                farewell=lambda: FAREWELL,
                clock=clock,
                log=log,
                unreachable_event="test.upstream_unreachable",
                limits=limits,
            )
        )
        return opened[-1]

    return make


@pytest.fixture
def splicer(splicer_for: Callable[[SpliceLimits], Splicer]) -> Splicer:
    """One with small buffers."""
    return splicer_for(SMALL)


@pytest.fixture
def clients() -> Iterator[list[Peer]]:
    """The clients, to be closed."""
    made: list[Peer] = []
    yield made
    for each in made:
        each.socket.close()


@pytest.fixture
def spliced(clients: list[Peer]) -> Callable[..., object]:
    """A client that has been handed to a splicer having said something."""

    async def splice(splicer: Splicer, said: bytes = b"hello", source: str = "127.0.0.1") -> Peer:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            clients.append(Peer(socket.create_connection(listening.getsockname())))
            accepted, _ = listening.accept()
        accepted.setblocking(False)
        transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, accepted)
        transport.pause_reading()
        splicer.splice(transport, said, source)
        return clients[-1]

    return splice


class Splice(Protocol):
    """The fixture `spliced`."""

    async def __call__(self, splicer: Splicer, said: bytes = b"hello", source: str = "127.0.0.1") -> Peer: ...


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop turn until something holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not is_so():  # noqa: ASYNC110 - what the kernel tells is no event of ours
            await asyncio.sleep(0)


async def test_bytes_pass_in_order_behind_those_that_were_read_before(
    splicer: Splicer, spliced: Splice, upstream: Upstream
) -> None:
    """Whoever is spliced speaks TLS or HTTP: one byte out of place ends it."""
    client = await spliced(splicer, b"read before, ")
    await client.send(b"read later")
    behind = await upstream.accept()
    assert await behind.exactly(23) == b"read before, read later"
    await behind.send(b"answer")
    assert await client.exactly(6) == b"answer"
    assert splicer.counters.connections == 1


async def test_megabytes_pass_both_ways_at_once(splicer: Splicer, spliced: Splice, upstream: Upstream) -> None:
    """Buffers are shared: what waits to be sent must not be overwritten by what is read."""
    up, down = bytes(range(256)) * 8192, bytes(range(255, -1, -1)) * 8192
    client = await spliced(splicer, b"")
    behind = await upstream.accept()

    async def speak(peer: Peer, data: bytes) -> None:
        await peer.send(data)
        peer.end()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(speak(client, up))
        tasks.create_task(speak(behind, down))
        got_up, got_down = tasks.create_task(behind.rest()), tasks.create_task(client.rest())
    assert got_up.result() == up
    assert got_down.result() == down
    await until(lambda: splicer.counters.connections == 0)


async def test_who_stops_sending_still_gets_its_answer(splicer: Splicer, spliced: Splice, upstream: Upstream) -> None:
    """`curl` of HTTP/1.0, `nc -N`: a half-closed connection is not a closed one."""
    client = await spliced(splicer)
    client.end()
    behind = await upstream.accept()
    assert await behind.rest() == b"hello"
    await behind.send(b"a late answer")
    behind.end()
    assert await client.rest() == b"a late answer"
    await until(lambda: splicer.counters.connections == 0)


async def test_a_server_that_stops_sending_still_hears_the_client(
    splicer: Splicer, spliced: Splice, upstream: Upstream
) -> None:
    """The other direction is as good as this one."""
    client = await spliced(splicer)
    behind = await upstream.accept()
    behind.end()
    assert await client.rest() == b""
    await client.send(b", and more")
    client.end()
    assert await behind.rest() == b"hello, and more"


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_reset_is_passed_on(splicer: Splicer, spliced: Splice, upstream: Upstream, side: str) -> None:
    """A polite end in its place would make half an answer look like a whole one."""
    client = await spliced(splicer)
    behind = await upstream.accept()
    assert await behind.exactly(5) == b"hello"
    left, other = (client, behind) if side == "client" else (behind, client)
    left.reset()
    with pytest.raises(ConnectionResetError):
        await other.rest()
    await until(lambda: splicer.counters.connections == 0)


async def test_a_server_that_answers_and_resets_has_its_answer_delivered(
    splicer: Splicer, spliced: Splice, upstream: Upstream
) -> None:
    """Web servers close on a client that sends too much; a slow one still needs the whole of its 413."""
    answer = bytes(1024 * 1024)  # more than a client's kernel takes unread: the rest waits in ours
    client = await spliced(splicer)
    behind = await upstream.accept()
    await behind.send(answer)
    behind.end()
    for _ in range(2000):  # enough to see the end
        await asyncio.sleep(0)
    behind.reset()
    # After an end nobody waits for the server any more: that it has reset shows when something is sent to it.
    await client.send(b"x")
    await until(lambda: splicer.counters.connections == 0)
    assert len(await client.rest()) == len(answer)


async def test_what_the_client_does_not_take_is_not_read_from_the_server(
    splicer: Splicer, spliced: Splice, upstream: Upstream
) -> None:
    """A thousand slow downloads must not become a thousand downloads in our memory."""
    client = await spliced(splicer)
    behind = await upstream.accept()
    sent = 0
    idle_turns = 0
    while idle_turns < 200:
        try:
            sent += behind.socket.send(bytes(65536))
            idle_turns = 0
        except BlockingIOError:
            idle_turns += 1
        assert sent < 64 * 2**20
        await asyncio.sleep(0)
    behind.end()
    assert len(await client.rest()) == sent


async def test_where_nothing_moves_both_ends_are_closed(
    splicer: Splicer, spliced: Splice, upstream: Upstream, clock: MovedClock
) -> None:
    """Half-dead connections would fill the house over the weeks; a busy one stays, however old."""
    client = await spliced(splicer)
    behind = await upstream.accept()
    assert await behind.exactly(5) == b"hello"
    start = clock.monotonic()
    assert splicer.sweep(start + 599.9)
    await pass_seconds(clock, 500.0)
    await behind.send(b"x")
    assert await client.some() == b"x"
    assert splicer.sweep(start + 1099.9)
    assert splicer.counters.connections == 1
    splicer.sweep(start + 1100.0)
    await client.until_gone()
    await behind.until_gone()
    assert splicer.counters.timed_out == 1
    assert not splicer.sweep(start + 1100.0)


async def pass_seconds(clock: MovedClock, seconds: float) -> None:
    sleeping = asyncio.create_task(clock.sleep(seconds))
    await clock.advance(seconds)
    await sleeping


async def test_when_full_the_quietest_goes(
    splicer_for: Callable[[SpliceLimits], Splicer], spliced: Splice, upstream: Upstream
) -> None:
    """Refusing the new one instead would let idle clients keep everybody from the web server."""
    splicer = splicer_for(SpliceLimits(connections=2))
    older, newer = await spliced(splicer), await spliced(splicer)
    behind_older, behind_newer = await upstream.accept(), await upstream.accept()
    await behind_older.send(b"x")
    assert await older.some() == b"x"
    newest = await spliced(splicer)
    await newer.until_gone()
    await behind_newer.until_gone()
    behind_newest = await upstream.accept()
    await behind_newest.send(b"y")
    assert await newest.some() == b"y"
    assert (splicer.counters.evicted, splicer.counters.connections) == (1, 2)


async def test_a_network_has_its_share(splicer_for: Callable[[SpliceLimits], Splicer], spliced: Splice) -> None:
    """One customer must not take all places; its quietest goes for its next, and it gets a free place back."""
    splicer = splicer_for(SpliceLimits(per_network=1))
    first = await spliced(splicer, source="192.0.2.1")
    await spliced(splicer, source="192.0.2.2")
    second = await spliced(splicer, source="192.0.2.1")
    await first.until_gone()
    assert (splicer.counters.evicted, splicer.counters.connections) == (1, 2)
    second.reset()
    await until(lambda: splicer.counters.connections == 1)
    await spliced(splicer, source="192.0.2.1")
    assert (splicer.counters.evicted, splicer.counters.connections) == (1, 2)


async def test_who_finds_nobody_is_told_so_and_gone_a_second_later(
    splicer: Splicer, spliced: Splice, upstream: Upstream, clock: MovedClock, logged: list[EventDict]
) -> None:
    """The last words must arrive even if the client goes on sending, and nobody may stay for them."""
    upstream.close()
    client = await spliced(splicer)
    await client.send(b"more")
    assert await client.rest() == FAREWELL
    assert splicer.sweep(clock.monotonic() + 0.9)
    splicer.sweep(clock.monotonic() + 1.0)
    await until(lambda: splicer.counters.connections == 0)
    await (await spliced(splicer)).until_gone()
    assert (splicer.counters.unreachable, splicer.counters.timed_out) == (2, 0)
    assert logged == [
        {
            "event": "test.upstream_unreachable",
            "log_level": "warning",
            "upstream": upstream.address,
            "error": logged[0]["error"],
            "suppressed": 0,
        }
    ]
    assert "Connect call failed" in logged[0]["error"] or "refused" in logged[0]["error"]


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that answers no connection: its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        waiting = []
        for _ in range(4):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        for each in waiting:
            each.close()


async def test_a_server_that_does_not_answer_is_given_up(
    silent: str, clock: MovedClock, log: FilteringBoundLogger, spliced: Splice, opened: list[Splicer]
) -> None:
    """The kernel would try for two minutes, and the client would look at an empty page."""
    limits = SpliceLimits(connect_seconds=0.05)
    opened.append(
        Splicer(silent, farewell=lambda: FAREWELL, clock=clock, log=log, unreachable_event="u", limits=limits)
    )
    assert await (await spliced(opened[0])).rest() == FAREWELL


async def test_who_is_put_out_while_it_is_being_joined_leaves_nothing_behind(
    silent: str, clock: MovedClock, log: FilteringBoundLogger, spliced: Splice, opened: list[Splicer]
) -> None:
    """In a flood each would leave an attempt to connect, with its descriptor, for seconds."""
    limits = SpliceLimits(connections=1, connect_seconds=60.0)
    opened.append(
        Splicer(silent, farewell=lambda: FAREWELL, clock=clock, log=log, unreachable_event="u", limits=limits)
    )
    for _ in range(5):
        await spliced(opened[0])
    await until(lambda: len([each for each in asyncio.all_tasks() if each.get_name() == "listener.splice"]) == 1)
    assert opened[0].counters.evicted == 4


async def test_close_disconnects_everybody_and_may_be_repeated(
    splicer: Splicer, spliced: Splice, upstream: Upstream
) -> None:
    """A stopping daemon waits for no web browser."""
    client, early = await spliced(splicer), await spliced(splicer)
    behind = await upstream.accept()
    await splicer.close()
    for each in (client, early, behind):
        await each.until_gone()
    assert splicer.counters.connections == 0
    await splicer.close()
