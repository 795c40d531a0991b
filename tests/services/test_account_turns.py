"""Turns with an account's key: many at once or one alone, in fair order, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc

import pytest

from scaivaultd.model.errors import Conflict
from scaivaultd.model.ids import AccountId
from scaivaultd.services.account_turns import Turns

ONE, TWO = AccountId("acme_1"), AccountId("acme_2")


class Log:
    """Who came in, in order; each stays until the gate is open."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.came: list[str] = []
        self.gate = asyncio.Event()

    async def share(self, name: str, account_id: AccountId = ONE) -> None:
        async with self.turns.shared(account_id):
            self.came.append(name)
            await self.gate.wait()

    async def alone(self, name: str, seconds: float = 10) -> None:
        async with self.turns.alone(ONE, seconds):
            self.came.append(name)


async def spin() -> None:
    """Let everybody go as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_many_share_and_accounts_do_not_touch_each_other() -> None:
    """Orders of one account run side by side."""
    log = Log()
    tasks = [asyncio.ensure_future(log.share(each)) for each in "ab"]
    tasks.append(asyncio.ensure_future(log.share("c", TWO)))
    await spin()
    assert log.came == ["a", "b", "c"]
    log.gate.set()
    await asyncio.gather(*tasks)


async def test_who_is_alone_waits_for_all_and_newcomers_wait_behind() -> None:
    """A stream of orders must not put a key change off for ever."""
    log = Log()
    first = asyncio.ensure_future(log.share("first"))
    await spin()
    alone = asyncio.ensure_future(log.alone("alone"))
    await spin()
    late = asyncio.ensure_future(log.share("late"))
    await spin()
    assert log.came == ["first"]
    log.gate.set()
    await asyncio.gather(first, alone, late)
    assert log.came == ["first", "alone", "late"]


async def test_nobody_is_beside_who_is_alone() -> None:
    """Neither another one, nor an order."""
    log = Log()
    async with log.turns.alone(ONE, 1):
        tasks = [asyncio.ensure_future(log.alone("alone")), asyncio.ensure_future(log.share("shared"))]
        await spin()
        assert log.came == []
    log.gate.set()
    await asyncio.gather(*tasks)
    assert log.came == ["alone", "shared"]


async def test_time_runs_out_with_a_word_and_lets_the_others_in() -> None:
    """Those who queued behind must not wait for somebody who has left."""
    log = Log()
    first = asyncio.ensure_future(log.share("first"))
    await spin()
    alone = asyncio.ensure_future(log.alone("alone", 0.05))
    await spin()
    late = asyncio.ensure_future(log.share("late"))
    with pytest.raises(Conflict, match="orders are under way: 1 still work"):
        await alone
    await spin()
    assert log.came == ["first", "late"]
    log.gate.set()
    await asyncio.gather(first, late)


@pytest.mark.parametrize("who", ["waiting to be alone", "alone", "sharing"])
async def test_a_cancellation_leaves_no_turn_behind(who: str) -> None:
    """A request is cancelled at any moment; the account must not be stuck after it."""
    log = Log()
    first = asyncio.ensure_future(log.share("first"))
    await spin()
    if who == "waiting to be alone":
        torn = asyncio.ensure_future(log.alone("torn"))
    elif who == "sharing":
        torn = asyncio.ensure_future(log.share("torn"))
    else:
        first.cancel()
        await spin()

        async def hold() -> None:
            async with log.turns.alone(ONE, 1):
                await asyncio.Event().wait()

        torn = asyncio.ensure_future(hold())
    await spin()
    torn.cancel()
    await spin()
    log.gate.set()
    await asyncio.gather(first, return_exceptions=True)
    await log.alone("alone")
    await log.share("shared")
    assert log.came[-2:] == ["alone", "shared"]


async def test_what_nobody_holds_is_forgotten() -> None:
    """Accounts come and go; a daemon stays up for months."""
    log = Log()
    log.gate.set()
    await log.share("a")
    await log.alone("b")
    gc.collect()
    assert len(log.turns._turns) == 0
