"""Watchers inside this process: told of every change, never in the way of one.

A watcher that keeps pace sees each change in commit order. One that falls `CAPACITY` changes
behind is told the latest state of each key only, until it has caught up; so what waits for it
is bounded by the number of keys it watches, a commit never waits, and the last word on a key is
never lost.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from scaivaultd.model.storage import Changed

CAPACITY = 1000


class Watchers:
    """All watchers of one store."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._watchers: set[_Watcher] = set()

    @contextmanager
    def watching(self, prefix: str) -> Iterator[AsyncIterator[Changed]]:
        """Register a watcher for as long as the context lasts; its iteration ends with it."""
        watcher = _Watcher(prefix, self._capacity)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            watcher.end()

    def tell(self, changes: Iterable[Changed]) -> None:
        """Hand changes, in commit order, to whoever watches their keys. Never waits."""
        if not self._watchers:
            return
        for changed in changes:
            for watcher in self._watchers:
                watcher.offer(changed)

    def end(self) -> None:
        """Let every watcher's iteration end once it has seen what waits for it."""
        for watcher in self._watchers:
            watcher.end()


class _Watcher:
    """One reader of changes. Waiting changes stand under a number, or under their key while it lags."""

    def __init__(self, prefix: str, capacity: int) -> None:
        self._prefix = prefix
        self._capacity = capacity
        self._waiting: OrderedDict[int | str, Changed] = OrderedDict()
        self._numbers = itertools.count()
        self._is_lagging = False
        self._has_ended = False
        self._wake = asyncio.Event()

    def offer(self, changed: Changed) -> None:
        if not changed.key.startswith(self._prefix):
            return
        if not self._is_lagging and len(self._waiting) >= self._capacity:
            self._coalesce()
        slot = changed.key if self._is_lagging else next(self._numbers)
        self._put(slot, changed)
        self._wake.set()

    def end(self) -> None:
        self._has_ended = True
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Changed]:
        return self

    async def __anext__(self) -> Changed:
        while not self._waiting:
            if self._has_ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        _, changed = self._waiting.popitem(last=False)
        self._is_lagging = self._is_lagging and bool(self._waiting)
        return changed

    def _coalesce(self) -> None:
        self._is_lagging = True
        changes, self._waiting = self._waiting, OrderedDict()
        for changed in changes.values():
            self._put(changed.key, changed)

    def _put(self, slot: int | str, changed: Changed) -> None:
        # The latest state of a key takes the place of its last change, not of its first: keys
        # changed together are then read together.
        self._waiting.pop(slot, None)
        self._waiting[slot] = changed
