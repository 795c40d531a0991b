"""The nonce pool: newest first, bounded, forgetful."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from scaivaultd.net.nonces import NoncePool


class StillClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


def test_the_newest_comes_first_and_each_once(clock: StillClock) -> None:
    """The oldest is the likeliest to be dead; a nonce used twice is always refused."""
    pool = NoncePool(clock)
    for nonce in ("a", "b", "c"):
        pool.put(nonce)
    assert [pool.take() for _ in range(4)] == ["c", "b", "a", None]


def test_it_is_bounded_and_lets_the_oldest_go(clock: StillClock) -> None:
    """A CA sends one with every answer, for years."""
    pool = NoncePool(clock, capacity=2)
    for nonce in ("a", "b", "c"):
        pool.put(nonce)
    assert len(pool) == 2
    assert [pool.take() for _ in range(3)] == ["c", "b", None]


def test_a_pool_that_lay_idle_is_emptied(clock: StillClock) -> None:
    """When the newest is too old all of them are: fetch one instead of being refused a hundred times."""
    pool = NoncePool(clock, idle_seconds=10)
    pool.put("a")
    clock.time = 5
    pool.put("b")
    clock.time = 15
    assert pool.take() == "b"
    pool.put("c")
    clock.time = 25.1
    assert pool.take() is None
    assert len(pool) == 0


def test_after_a_bad_nonce_only_what_came_later_is_kept(clock: StillClock) -> None:
    """A fail-over of the CA makes every nonce stale at once, except those the new machine has given."""
    pool = NoncePool(clock)
    pool.put("old")
    clock.time = 1
    pool.put("as old as the request")
    clock.time = 2
    pool.put("from the refusal")
    pool.flush(1)
    assert [pool.take(), pool.take()] == ["from the refusal", None]
