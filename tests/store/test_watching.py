"""Watchers at their limits, with a capacity small enough to see."""

from __future__ import annotations

import asyncio

import pytest

from scaivaultd.model.storage import Changed, Stored
from scaivaultd.store.watching import Watchers


def change(key: str, revision: int) -> Changed:
    return Changed(key=key, stored=Stored(key=key, revision=revision, document=b""))


async def take(watchers: Watchers, told: list[Changed]) -> list[Changed]:
    """What a watcher of everything sees that wakes up after all of it was told."""
    async with asyncio.timeout(10):
        with watchers.watching("") as changes:
            watchers.tell(told)
            watchers.end()
            return [changed async for changed in changes]


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ([("a", 1), ("a", 2), ("a", 3)], [("a", 1), ("a", 2), ("a", 3)]),
        ([("a", 1), ("a", 2), ("a", 3), ("a", 4)], [("a", 4)]),
        ([("a", 1), ("b", 2), ("a", 3), ("c", 4)], [("b", 2), ("a", 3), ("c", 4)]),
        ([("a", 1), ("b", 2), ("c", 3), ("d", 4), ("a", 5)], [("b", 2), ("c", 3), ("d", 4), ("a", 5)]),
    ],
)
async def test_only_a_lagging_watcher_loses_what_was_overtaken(
    told: list[tuple[str, int]], seen: list[tuple[str, int]]
) -> None:
    """Up to its capacity it sees everything; beyond, the latest of each key in the order of the last changes."""
    watchers = Watchers(capacity=3)
    assert await take(watchers, [change(*entry) for entry in told]) == [change(*entry) for entry in seen]


async def test_a_watcher_that_left_is_not_told() -> None:
    """A forgotten watcher must not gather changes for ever."""
    watchers = Watchers()
    with watchers.watching("") as changes:
        pass
    watchers.tell([change("a", 1)])
    with pytest.raises(StopAsyncIteration):
        await anext(changes)


async def test_a_cancelled_wait_loses_nothing() -> None:
    """A reader with a deadline comes back and finds the change that came meanwhile."""
    watchers = Watchers()
    with watchers.watching("") as changes:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(changes)
        watchers.tell([change("a", 1)])
        assert await anext(changes) == change("a", 1)
