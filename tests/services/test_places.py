"""Places at a CA: never more than there are, in order, and those that were begun before those that are new."""

from __future__ import annotations

import asyncio

import pytest

from scaivaultd.services.places import AWAY_SHARE, Place, Places


class Crowd:
    """Orders that take a place, say so, and leave it when they are let go."""

    def __init__(self, capacity: int) -> None:
        self.places = Places(capacity)
        self.inside: list[str] = []
        self.order: list[str] = []
        self._gates: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def enter(self, name: str) -> None:
        self._gates[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._stay(name))
        await self.settle()

    async def leave(self, name: str) -> None:
        self._gates[name].set()
        await self.settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await asyncio.gather(self._tasks[name], return_exceptions=True)
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def _stay(self, name: str) -> None:
        async with Place(self.places):
            self.inside.append(name)
            self.order.append(name)
            try:
                await self._gates[name].wait()
            finally:
                self.inside.remove(name)


async def test_no_more_are_inside_than_there_are_places_and_the_first_comes_first() -> None:
    """The bound is what keeps a CA from being flooded."""
    crowd = Crowd(2)
    for name in "abcd":
        await crowd.enter(name)
    assert crowd.inside == ["a", "b"]
    await crowd.leave("a")
    assert crowd.inside == ["b", "c"]
    await crowd.leave("b")
    await crowd.leave("c")
    await crowd.leave("d")
    assert crowd.order == ["a", "b", "c", "d"]


async def test_who_gives_up_waiting_leaves_the_way_free() -> None:
    """A cancelled order must neither hold nor lose a place."""
    crowd = Crowd(1)
    for name in "abc":
        await crowd.enter(name)
    await crowd.cancel("b")
    await crowd.leave("a")
    assert crowd.inside == ["c"]
    await crowd.leave("c")
    await crowd.enter("d")
    assert crowd.inside == ["d"]


async def test_a_place_that_comes_with_the_cancellation_is_passed_on() -> None:
    """Both at once: nobody must be left waiting for a place that nobody has."""
    places = Places(1)
    await places.take(returns=False)
    waiting = asyncio.create_task(places.take(returns=False))
    await asyncio.sleep(0)
    places.give()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(1):
        await places.take(returns=False)


async def test_who_is_cancelled_while_a_place_is_given_is_passed_over() -> None:
    """Its task has not heard of it yet; it must end as cancelled, and the next one gets the place."""
    places = Places(1)
    await places.take(returns=False)
    first, second = (asyncio.create_task(places.take(returns=False)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    places.give()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(1):
        await second


async def test_who_comes_back_goes_before_who_is_new() -> None:
    """What was begun is finished first."""
    crowd = Crowd(1)
    went_away, come_back, is_back = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def begun() -> None:
        async with Place(crowd.places) as place:
            async with place.lent():
                went_away.set()
                await come_back.wait()
            is_back.set()

    first = asyncio.create_task(begun())
    await went_away.wait()
    await crowd.enter("a")
    await crowd.enter("b")
    assert crowd.inside == ["a"]
    come_back.set()
    await crowd.settle()
    assert not is_back.is_set()
    await crowd.leave("a")
    assert is_back.is_set()
    await first
    await crowd.settle()
    assert crowd.inside == ["b"]
    await crowd.leave("b")


async def test_only_so_many_may_be_away() -> None:
    """Each of them has an order at the CA: those beyond keep their place while they pause."""
    places = Places(1)
    away = [places.leave() for _ in range(AWAY_SHARE + 1)]
    assert away == [True] * AWAY_SHARE + [False]
    async with Place(places) as place, place.lent():
        waiting = asyncio.create_task(places.take(returns=False))
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
    places.back()
    async with Place(places) as place, place.lent():
        async with asyncio.timeout(1):
            await places.take(returns=False)
        places.give()
