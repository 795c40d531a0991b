"""Waiting for a document to change: with a deadline, and no longer than the daemon takes requests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from scaivaultd.model.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime

    from scaivaultd.model.clock import Clock
    from scaivaultd.services.documents import Shelf
    from scaivaultd.services.ports import Store

T = TypeVar("T", bound=msgspec.Struct)
V = TypeVar("V")


LOOK_AT_THE_CLOCK_SECONDS = 60.0


async def sleep_until(clock: Clock, moment: datetime, hurry: asyncio.Event | None = None) -> None:
    """Sleep until a moment of the wall clock, in steps: it may be set, and the machine may have slept too.

    Ends earlier once `hurry` is set.
    """
    while (left := (moment - clock.now()).total_seconds()) > 0 and not (hurry and hurry.is_set()):
        sleep = clock.sleep(min(left, LOOK_AT_THE_CLOCK_SECONDS))
        if hurry is None:
            await sleep
        else:
            await _first_of(sleep, hurry.wait())


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(each) for each in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Signal(Generic[V]):
    """Tells whoever has subscribed that something has changed; never blocks, never fails for the teller."""

    def __init__(self) -> None:
        self._heard_by: list[Callable[[V], None]] = []

    def subscribe(self, heard: Callable[[V], None]) -> None:
        """Have `heard` called at each `tell`, at once and in the teller's task."""
        self._heard_by.append(heard)

    def tell(self, value: V) -> None:
        """Call everybody who has subscribed."""
        for heard in self._heard_by:
            heard(value)


class Waiting:
    """Every wait of a request for work that goes on without it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._deadlines: set[asyncio.Timeout] = set()
        self._over = False

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._deadlines)

    def end(self) -> None:
        """Let every wait end at once with what there is: the daemon stops, and callers shall have their answer."""
        self._over = True
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(asyncio.get_running_loop().time())

    async def moved(self, event: asyncio.Event, seconds: float) -> bool:
        """Whether an event came before `seconds` were over, or the daemon stops."""
        if event.is_set() or seconds <= 0 or self._over:
            return event.is_set()
        deadline = asyncio.timeout(seconds)
        self._deadlines.add(deadline)
        try:
            async with deadline:
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._deadlines.discard(deadline)
        return event.is_set()

    async def until(self, shelf: Shelf[T], resource_id: str, seconds: float, reached: Callable[[T], bool]) -> T:
        """The document once `reached` holds, or as it stands when `seconds` are over; raises NotFound."""
        async with self._store.watch(shelf.key(resource_id)) as changes:
            # Watch first, look second: nothing that happens in between is missed.
            value = await self._load(shelf, resource_id)
            if reached(value) or seconds <= 0 or self._over:
                return value
            deadline = asyncio.timeout(seconds)
            self._deadlines.add(deadline)
            try:
                async with deadline:
                    async for _ in changes:
                        value = await self._load(shelf, resource_id)
                        if reached(value):
                            return value
            except TimeoutError:
                pass
            finally:
                self._deadlines.discard(deadline)
        return await self._load(shelf, resource_id)

    async def _load(self, shelf: Shelf[T], resource_id: str) -> T:
        found = await shelf.get(self._store, resource_id)
        if found is None:
            raise NotFound(f"{resource_id} is gone")
        return found.value
