"""Whose turn it is with an account's key: many sign with it at once, and whoever changes it is alone."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from scaivaultd.model.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from scaivaultd.model.ids import AccountId


class Turns:
    """The turns of all accounts; what nobody holds or waits for is not remembered."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[AccountId, _Turn] = WeakValueDictionary()

    @asynccontextmanager
    async def shared(self, account_id: AccountId) -> AsyncIterator[None]:
        """Beside others; behind whoever waits to be alone, so that he is not kept waiting for ever."""
        turn = self._turn(account_id)
        await turn.until(lambda: not turn.is_alone and turn.wanting == 0)
        turn.sharing += 1
        try:
            yield
        finally:
            turn.sharing -= 1
            turn.tell()

    @asynccontextmanager
    async def alone(self, account_id: AccountId, seconds: float) -> AsyncIterator[None]:
        """With nobody else.

        Raises:
            Conflict: those who were there before have not left within `seconds`.
        """
        turn = self._turn(account_id)
        turn.wanting += 1
        try:
            async with asyncio.timeout(seconds):
                await turn.until(lambda: not turn.is_alone and turn.sharing == 0)
            turn.is_alone = True
        except TimeoutError:
            raise Conflict(
                f"orders are under way: {turn.sharing} still work with the key of account {account_id} after "
                f"{seconds:.0f} s; ask again when they have ended"
            ) from None
        finally:
            turn.wanting -= 1
            turn.tell()
        try:
            yield
        finally:
            turn.is_alone = False
            turn.tell()

    def _turn(self, account_id: AccountId) -> _Turn:
        return self._turns.setdefault(account_id, _Turn())


class _Turn:
    def __init__(self) -> None:
        self.sharing = 0
        self.wanting = 0
        self.is_alone = False
        self._changed = asyncio.Event()

    async def until(self, is_free: Callable[[], bool]) -> None:
        """Return in the same step in which it became free: nobody comes in between."""
        while not is_free():
            await self._changed.wait()

    def tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
