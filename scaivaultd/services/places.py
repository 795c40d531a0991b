"""How many orders are worked on at one CA at a time, and who is next."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AWAY_SHARE = 8
"""How many orders may wait for their CA without a place, for each place there is: each of them is begun there."""


class Places:
    """The places at one CA, first come, first served; but who had one and comes back goes before all who are new.

    So orders that were begun are finished first, and a crowd does not keep all of them half done.
    """

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._away_max = capacity * AWAY_SHARE
        self._away = 0
        self._returning: deque[asyncio.Future[None]] = deque()
        self._new: deque[asyncio.Future[None]] = deque()

    async def take(self, *, returns: bool) -> None:
        """Wait for a place; cancelled, it takes none."""
        if self._free > 0:
            self._free -= 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._returning if returns else self._new
        queue.append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self.give()  # it came at the same moment
            elif granted in queue:  # whoever gave a place meanwhile has passed it over
                queue.remove(granted)
            raise

    def give(self) -> None:
        """Let the next one have it."""
        for queue in (self._returning, self._new):
            while queue:
                granted = queue.popleft()
                if not granted.done():
                    granted.set_result(None)
                    return
        self._free += 1

    def leave(self) -> bool:
        """Whether one more may be away from its place for a while; `back` is said when it is over."""
        if self._away >= self._away_max:
            return False
        self._away += 1
        return True

    def back(self) -> None:
        """One that was away wants its place again."""
        self._away -= 1


class Place:
    """A place of one order; given up while it waits for something else than an answer of the CA."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._held = False

    async def __aenter__(self) -> Self:
        await self._take(returns=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._give()

    @asynccontextmanager
    async def given_up(self) -> AsyncIterator[None]:
        """Let another order have it, and be the next to get one afterwards."""
        self._give()
        yield
        await self._take(returns=True)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[None]:
        """The same for a pause that the CA asks for, as long as not too many orders make one."""
        if not self._places.leave():
            yield
            return
        try:
            async with self.given_up():
                yield
        finally:
            self._places.back()

    async def _take(self, *, returns: bool) -> None:
        await self._places.take(returns=returns)
        self._held = True

    def _give(self) -> None:
        if self._held:
            self._held = False
            self._places.give()
