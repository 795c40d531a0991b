"""How fast the store commits, reads and seals, beside a plain sqlite3 loop doing the same writes.

Run: python bench/store.py [FOLDER]. The folder decides which disk is measured. Takes about ten seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from scaivaultd.model.clock import SystemClock
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import ABSENT, OutboxEvent, Put
from scaivaultd.store.sealing import EnvelopeSealer
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_SECONDS = 1.5
_DOCUMENT = bytes(1000)
_EVENT_DATA = bytes(300)


async def rate(work: Callable[[int], Awaitable[object]], in_flight: int) -> tuple[float, float, float]:
    """Calls per second, and p50 and p99 of one call in milliseconds."""
    numbers, took = itertools.count(), []
    start = time.perf_counter()

    async def worker() -> None:
        while time.perf_counter() - start < _SECONDS:
            begun = time.perf_counter()
            await work(next(numbers))
            took.append(time.perf_counter() - begun)

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    elapsed = time.perf_counter() - start
    centiles = statistics.quantiles(took, n=100)
    return len(took) / elapsed, centiles[49] * 1000, centiles[98] * 1000


def peer_rate(path: Path) -> float:
    """Commits per second of a bare sqlite3 loop: the same rows and durability, one thread, one after another."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE d (key TEXT PRIMARY KEY, revision INTEGER, document BLOB)")
    connection.execute("CREATE TABLE i (name TEXT, value TEXT, key TEXT, PRIMARY KEY (name, value, key)) WITHOUT ROWID")
    connection.execute("CREATE TABLE o (sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, data BLOB)")
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < _SECONDS:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO d VALUES (?, ?, ?)", (f"order/{count}", count, _DOCUMENT))
        connection.execute("INSERT INTO i VALUES ('status', 'valid', ?)", (f"order/{count}",))
        connection.execute("INSERT INTO o (id, data) VALUES (?, ?)", (f"evt_{count}", _EVENT_DATA))
        connection.execute("COMMIT")
        count += 1
    elapsed = time.perf_counter() - start
    connection.close()
    return count / elapsed


async def measure_store(path: Path, in_flight: int, peer: float) -> None:
    store = await SqliteStore.open(path, clock=SystemClock(), log=structlog.get_logger())

    async def commit(number: int) -> None:
        event = OutboxEvent(id=EventId(f"evt_{number}"), type="t", resource_id="r", time="", data=_EVENT_DATA)
        put = Put(key=f"order/{number}", document=_DOCUMENT, expect_revision=ABSENT, index={"status": "valid"})
        await store.commit([put], [event])

    per_second, p50, p99 = await rate(commit, in_flight)
    print(
        f"commit, {in_flight:2} in flight   {per_second:8.0f}/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms"
        f"   {per_second / peer:5.2f} x plain loop"
    )
    per_second, p50, p99 = await rate(lambda number: store.get(f"order/{number % 1000}"), in_flight)
    print(f"get,    {in_flight:2} in flight   {per_second:8.0f}/s   p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
    await store.close()


def measure_sealing() -> None:
    sealer, count = EnvelopeSealer(bytes(32), "store_1"), 20_000
    sealed = sealer.seal(_DOCUMENT, "key/key_1", "private_key")
    start = time.perf_counter()
    for _ in range(count):
        sealer.seal(_DOCUMENT, "key/key_1", "private_key")
    sealing = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(count):
        sealer.open(sealed, "key/key_1", "private_key")
    opening = time.perf_counter() - start
    print(f"seal 1000 bytes         {sealing / count * 1e6:6.1f} us   open {opening / count * 1e6:6.1f} us")


def main(folder: Path) -> None:
    peer = peer_rate(folder / "peer.db")
    print(f"plain sqlite3 loop      {peer:8.0f}/s   (document, index pair and event; WAL, synchronous=FULL)")
    for in_flight in (1, 64):
        asyncio.run(measure_store(folder / f"store-{in_flight}.db", in_flight, peer))
    measure_sealing()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        main(Path(name))
