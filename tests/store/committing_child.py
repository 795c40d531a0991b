"""Commits without end until it is killed, and says on stdout which commits it was promised.

Usage: committing_child.py STORE. Each commit is three documents and an event of one number.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

import structlog

from scaivaultd.model.clock import SystemClock
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import ABSENT, OutboxEvent, Put
from scaivaultd.store.sqlite import SqliteStore

_WORKERS = 16


async def commit_for_ever(path: Path) -> None:
    store = await SqliteStore.open(path, clock=SystemClock(), log=structlog.get_logger())
    numbers = itertools.count()

    async def work() -> None:
        for number in numbers:
            event = OutboxEvent(id=EventId(f"{number}"), type="t", resource_id="r", time="", data=bytes(300))
            puts = [Put(key=f"{part}/{number}", document=bytes(900), expect_revision=ABSENT) for part in "abc"]
            await store.commit(puts, [event])
            print(number, flush=True)

    async with asyncio.TaskGroup() as group:
        for _ in range(_WORKERS):
            group.create_task(work())


asyncio.run(commit_for_ever(Path(sys.argv[1])))
