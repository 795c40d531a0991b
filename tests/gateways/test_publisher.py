"""Events from the real store to a real nats-server: each once, in order, whatever happens in between."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import nats
import nats.js.errors
import pytest
import structlog
from nats.js.api import DiscardPolicy, StreamConfig
from structlog.testing import LogCapture

from scaivaultd.gateways.nats_bus import BusSettings, NatsBus
from scaivaultd.gateways.nats_server import NatsServerChild, find_server
from scaivaultd.gateways.publisher import STREAM, Publisher
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import OutboxEvent
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from nats.aio.client import Client
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.storage import Pending

DEADLINE = 20.0


def event(number: int, resource: str = "cert_1", size: int = 0) -> OutboxEvent:
    return OutboxEvent(
        id=EventId(f"event-{number}"),
        type="certificate.issued",
        resource_id=resource,
        time="2026-01-01T00:00:00.000Z",
        data=json.dumps({"number": number, "padding": "x" * size}).encode(),
    )


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(capture: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    return logger


@pytest.fixture
async def server(tmp_path: Path, log: FilteringBoundLogger) -> AsyncIterator[NatsServerChild]:
    child = NatsServerChild(
        tmp_path / "state", find_server(None), clock=SystemClock(), randomness=SystemRandomness(), log=log
    )
    async with child:
        yield child


@pytest.fixture
async def client(server: NatsServerChild) -> AsyncIterator[Client]:
    """A client of our own, to look at what arrives."""

    async def quiet(_: Exception) -> None:
        """A server that was killed is no news here."""

    client = await nats.connect(
        server.url,
        user=server.user,
        password=server.password.reveal(),
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.05,
        error_cb=quiet,
    )
    yield client
    await client.close()


@pytest.fixture
async def store(tmp_path: Path, log: FilteringBoundLogger) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db", clock=SystemClock(), log=log)
    try:
        yield store
    finally:
        await store.close()


class CrashingOutbox:
    """The outbox of a process that dies between the acknowledgement and forgetting the event."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.published = asyncio.Event()

    async def pending_events(self, limit: int = 100) -> Sequence[Pending]:
        return await self._store.pending_events(limit)

    async def wait_for_events(self) -> None:
        await self._store.wait_for_events()

    async def forget_events(self, sequences: Sequence[int]) -> None:
        self.published.set()
        await asyncio.Event().wait()


class CountingOutbox(CrashingOutbox):
    """An outbox that remembers what was forgotten together."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store)
        self.forgotten: list[list[int]] = []

    async def forget_events(self, sequences: Sequence[int]) -> None:
        self.forgotten.append(list(sequences))
        await self._store.forget_events(sequences)


class WatchedOutbox(CrashingOutbox):
    """An outbox that notes what health would say each time somebody waits for events."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store)
        self.publisher: Publisher | None = None
        self.said: list[str | None] = []
        self.was_asked_thrice = asyncio.Event()

    async def wait_for_events(self) -> None:
        await self._store.wait_for_events()
        if self.publisher is not None:
            self.said.append(self.publisher.blocked_by)
        if len(self.said) == 3:
            self.was_asked_thrice.set()

    async def forget_events(self, sequences: Sequence[int]) -> None:
        await self._store.forget_events(sequences)


class FailingOutbox(CrashingOutbox):
    """The outbox on a disk that fails a few times."""

    def __init__(self, store: SqliteStore) -> None:
        super().__init__(store)
        self.failures = 3
        self.looks = 0

    async def pending_events(self, limit: int = 100) -> Sequence[Pending]:
        self.looks += 1
        self._fail()
        return await super().pending_events(limit)

    async def forget_events(self, sequences: Sequence[int]) -> None:
        self._fail()
        await self._store.forget_events(sequences)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("full")


@asynccontextmanager
async def publishing(
    server: NatsServerChild | Nobody, outbox: Any, log: FilteringBoundLogger, source: str = "/scaivault/node_1"
) -> AsyncIterator[Publisher]:
    """One life of a publisher."""
    clock = SystemClock()
    password = server.password.reveal if server.password is not None else None
    settings = BusSettings(servers=(server.url,), user=server.user, password=password)
    bus = NatsBus(settings, clock=clock, log=log)
    publisher = Publisher(bus, outbox, events_root="scaivault.events", source=source, clock=clock, log=log)
    await bus.connect()
    task = asyncio.create_task(publisher.run())
    try:
        yield publisher
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await bus.close(1)


async def emptied(store: SqliteStore) -> None:
    """Wait until every event has been carried out."""
    async with asyncio.timeout(DEADLINE):
        while await store.pending_events(1):  # noqa: ASYNC110 - emptied in the publisher's own time
            await asyncio.sleep(0.01)


async def messages(client: Client) -> list[Any]:
    """Everything in the stream."""
    jetstream = client.jetstream()
    info = await jetstream.stream_info(STREAM)
    if not info.state.messages:
        return []
    return [
        await jetstream.get_msg(STREAM, sequence) for sequence in range(info.state.first_seq, info.state.last_seq + 1)
    ]


async def numbers(client: Client) -> list[int]:
    return [json.loads(each.data)["number"] for each in await messages(client)]


async def test_an_event_reaches_the_stream_and_plain_subscribers_alike(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """One message for both: subject by type and resource, CloudEvents headers, the body as it was stored."""
    subscription = await client.subscribe("scaivault.events.certificate.>")
    await client.flush()
    async with publishing(server, store, log):
        await store.commit([], [event(1)])
        plain = await subscription.next_msg(timeout=DEADLINE)
        await emptied(store)
    (stored,) = await messages(client)
    for message in (plain, stored):
        assert message.headers is not None
        assert message.subject == "scaivault.events.certificate.issued.cert_1"
        assert message.data == event(1).data
        assert message.headers["ce-id"] == message.headers["Nats-Msg-Id"] == "event-1"
        assert message.headers["ce-source"] == "/scaivault/node_1"
        assert message.headers["ce-type"] == "certificate.issued"


async def test_events_arrive_in_commit_order(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """`revoked` before `issued` would be nonsense; more than one batch, some from before the start."""
    for start in range(0, 150, 50):
        await store.commit([], [event(n, f"cert_{n % 3}") for n in range(start, start + 50)])
    async with publishing(server, store, log):
        await store.commit([], [event(n, f"cert_{n % 3}") for n in range(150, 230)])
        await emptied(store)
    assert await numbers(client) == list(range(230))


async def test_the_stream_is_there_before_the_first_event(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """Subscribers can bind to it from the start, and it keeps what it should."""
    async with publishing(server, store, log), asyncio.timeout(DEADLINE):
        while True:
            with suppress(nats.js.errors.NotFoundError):
                info = await client.jetstream().stream_info(STREAM)
                break
            await asyncio.sleep(0.01)
    assert info.config.subjects == ["scaivault.events.>"]
    assert info.config.storage == "file"
    assert info.config.max_bytes
    assert info.config.max_bytes > 0
    assert info.config.duplicate_window == 600


async def test_a_stream_an_administrator_made_is_left_as_it_is(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """They chose replicas, limits and placement."""
    made = await client.jetstream().add_stream(
        StreamConfig(name=STREAM, subjects=["scaivault.events.>"], max_msgs=7, description="ours")
    )
    async with publishing(server, store, log):
        await store.commit([], [event(1)])
        await emptied(store)
    assert (await client.jetstream().stream_info(STREAM)).config == made.config
    assert await numbers(client) == [1]


async def crash_after_publishing(
    server: NatsServerChild, store: SqliteStore, log: FilteringBoundLogger, *events: OutboxEvent
) -> None:
    """A life that ends when the first event is in the stream and still in the outbox."""
    outbox = CrashingOutbox(store)
    async with publishing(server, outbox, log):
        await store.commit([], events)
        async with asyncio.timeout(DEADLINE):
            await outbox.published.wait()


async def test_a_left_over_event_is_not_sent_twice_even_when_the_window_is_over(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """A daemon that was down for a week comes back; the server has long forgotten what it saw."""
    jetstream = client.jetstream()
    await jetstream.add_stream(
        StreamConfig(name=STREAM, subjects=["scaivault.events.>", "probe"], duplicate_window=0.1)
    )
    await crash_after_publishing(server, store, log, event(1), event(2), event(3, "cert_2"))
    probe = functools.partial(jetstream.publish, "probe", b"", headers={"Nats-Msg-Id": "probe"})
    await probe()
    async with asyncio.timeout(DEADLINE):
        while (await probe()).duplicate:  # noqa: ASYNC110 - the server tells nobody when it forgets
            await asyncio.sleep(0.02)
    async with publishing(server, store, log):
        await emptied(store)
    found = [each for each in await messages(client) if each.subject != "probe"]
    assert [json.loads(each.data)["number"] for each in found] == [1, 2, 3]


async def test_events_of_one_subject_do_not_wait_to_be_forgotten_together(
    server: NatsServerChild, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """After a crash the stream is asked for the last event of a subject, and an older one would look unsent."""
    outbox = CountingOutbox(store)
    await store.commit([], [event(1, "a"), event(2, "b"), event(3, "a"), event(4, "c")])
    sequences = [pending.sequence for pending in await store.pending_events()]
    async with publishing(server, outbox, log):
        await emptied(store)
    assert outbox.forgotten == [sequences[:2], sequences[2:]]


async def test_a_left_over_event_that_was_never_sent_is_sent(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """At least once: doubt must not turn into loss, also when the subject holds an older event."""
    async with publishing(server, store, log):
        await store.commit([], [event(1)])
        await emptied(store)
    await store.commit([], [event(2)])
    async with publishing(server, store, log):
        await emptied(store)
    assert await numbers(client) == [1, 2]


async def test_events_go_on_after_the_stream_was_removed(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """A tidy administrator must not silence the daemon."""
    async with publishing(server, store, log) as publisher:
        await store.commit([], [event(1)])
        await emptied(store)
        await client.jetstream().delete_stream(STREAM)
        await store.commit([], [event(2)])
        await emptied(store)
        async with asyncio.timeout(DEADLINE):
            while publisher.blocked_by is not None:  # noqa: ASYNC110 - set in the publisher's own time
                await asyncio.sleep(0.01)
    assert await numbers(client) == [2]


async def test_events_wait_while_nats_is_away_and_go_out_when_it_is_back(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """Health says why; nothing is lost, nothing doubled."""
    async with publishing(server, store, log) as publisher:
        await store.commit([], [event(1)])
        await emptied(store)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await store.commit([], [event(2), event(3)])
        await emptied(store)
        async with asyncio.timeout(DEADLINE):
            while publisher.blocked_by is not None:  # noqa: ASYNC110 - set in the publisher's own time
                await asyncio.sleep(0.01)
    assert await numbers(client) == [1, 2, 3]


async def test_a_stream_that_takes_nothing_is_said_until_it_does(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """Health must not turn well with each new try: whoever looks in that moment would miss an outage of days."""
    jetstream = client.jetstream()
    settings = StreamConfig(name=STREAM, subjects=["scaivault.events.>"], max_msgs=1, discard=DiscardPolicy.NEW)
    await jetstream.add_stream(settings)
    outbox = WatchedOutbox(store)
    async with publishing(server, outbox, log) as publisher:
        outbox.publisher = publisher
        await store.commit([], [event(1), event(2)])
        async with asyncio.timeout(DEADLINE):
            await outbox.was_asked_thrice.wait()
        assert outbox.said[0] is None
        assert all(outbox.said[1:]), outbox.said
        settings.max_msgs = -1
        await jetstream.update_stream(settings)
        await emptied(store)
        async with asyncio.timeout(DEADLINE):
            while publisher.blocked_by is not None:  # noqa: ASYNC110 - set in the publisher's own time
                await asyncio.sleep(0.01)
    assert await numbers(client) == [1, 2]


async def test_a_disk_that_fails_for_a_while_stops_nothing_for_good(
    server: NatsServerChild, client: Client, store: SqliteStore, log: FilteringBoundLogger, capture: LogCapture
) -> None:
    """The publisher is a permanent room: if it died the daemon would."""
    outbox = FailingOutbox(store)
    await store.commit([], [event(1)])
    async with publishing(server, outbox, log):
        await emptied(store)
        outbox.failures = 1
        await store.commit([], [event(2)])
        await emptied(store)
    assert await numbers(client) == [1, 2]
    assert [each["event"] for each in capture.entries].count("events.waiting") == 1


async def test_many_complaints_are_one_line_a_minute(
    store: SqliteStore, server: NatsServerChild, client: Client, log: FilteringBoundLogger, capture: LogCapture
) -> None:
    """A night without a stream must not fill the disk with warnings."""
    await client.jetstream().add_stream(StreamConfig(name=STREAM, subjects=["elsewhere"]))
    outbox = FailingOutbox(store)
    outbox.failures = 0
    async with publishing(server, outbox, log):
        await store.commit([], [event(1)])
        async with asyncio.timeout(DEADLINE):
            while outbox.looks < 6:  # noqa: ASYNC110 - two looks for each try, in the publisher's own time
                await asyncio.sleep(0.01)
    assert [each["event"] for each in capture.entries].count("events.waiting") == 1
    assert len(await store.pending_events()) == 1


LARGE = 1 << 20


class Nobody(msgspec.Struct):
    """A server that asks for no password."""

    url: str
    user: None = None
    password: None = None


def _listening_at(folder: Path) -> str | None:
    for file in folder.glob("*.ports"):
        with suppress(ValueError):
            url: str = json.loads(file.read_text())["nats"][0]
            return url
    return None


@asynccontextmanager
async def ordinary_server(folder: Path) -> AsyncIterator[Nobody]:
    """An external server as it comes: a megabyte in one message."""
    config = folder / "server.conf"
    config.write_text(f'listen: "127.0.0.1:-1"\nports_file_dir: "{folder}"\njetstream: {{ store_dir: "{folder}" }}\n')
    process = await asyncio.create_subprocess_exec(
        find_server(None), "-c", str(config), "-l", str(folder / "server.log")
    )
    try:
        async with asyncio.timeout(DEADLINE):
            while (url := _listening_at(folder)) is None:  # noqa: ASYNC110 - another process, polled
                await asyncio.sleep(0.02)
        yield Nobody(url)
    finally:
        process.kill()
        await process.wait()


async def test_an_event_too_large_for_the_server_does_not_hold_up_the_others(
    tmp_path: Path, store: SqliteStore, log: FilteringBoundLogger
) -> None:
    """The store takes a megabyte, an ordinary server a megabyte with its headers: one monster, and all is silent."""
    async with ordinary_server(tmp_path) as server, publishing(server, store, log):
        client = await nats.connect(server.url)
        try:
            await store.commit([], [event(1, size=LARGE - 100), event(2)])
            async with asyncio.timeout(2):
                await emptied(store)
            assert 2 in await numbers(client)
        finally:
            await client.close()
