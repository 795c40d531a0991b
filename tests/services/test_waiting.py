"""Waiting for a document: woken by its change, never longer than asked, never past the stop."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from scaivaultd.model.errors import NotFound
from scaivaultd.model.ids import CertificateId
from scaivaultd.model.resources import NamePointer
from scaivaultd.model.storage import Delete
from scaivaultd.services.documents import NAME_POINTERS
from scaivaultd.services.waiting import Waiting, sleep_until

FIRST = NamePointer(certificate_id=CertificateId("cert_1"), version=1)


def is_second(pointer: NamePointer) -> bool:
    return pointer.version >= 2


@pytest.fixture
async def written(sqlite: Any) -> Any:
    """A store with one document, and the change that brings its next version."""
    await sqlite.commit([NAME_POINTERS.put_at("a", FIRST, 0)])
    return sqlite


async def move_on(store: Any, version: int) -> None:
    found = await NAME_POINTERS.get(store, "a")
    assert found is not None
    await store.commit([NAME_POINTERS.put_at("a", msgspec.structs.replace(FIRST, version=version), found.revision)])


async def test_what_holds_already_is_answered_at_once(written: Any) -> None:
    """A caller who asks about a finished order must not sit out the time it offered."""
    await move_on(written, 2)
    async with asyncio.timeout(5):
        pointer = await Waiting(written).until(NAME_POINTERS, "a", 60, is_second)
    assert pointer.version == 2


async def test_the_change_wakes_the_waiter(written: Any) -> None:
    """Polling callers would be slower and cost more."""
    waiter = asyncio.create_task(Waiting(written).until(NAME_POINTERS, "a", 60, is_second))
    await asyncio.sleep(0)
    await move_on(written, 2)
    async with asyncio.timeout(5):
        assert (await waiter).version == 2


async def test_a_change_that_does_not_reach_it_wakes_nobody(written: Any) -> None:
    """Orders change many times on their way."""
    looked: list[int] = []

    def reached(pointer: NamePointer) -> bool:
        looked.append(pointer.version)
        return pointer.version == 3

    waiter = asyncio.create_task(Waiting(written).until(NAME_POINTERS, "a", 60, reached))
    await asyncio.sleep(0)
    await move_on(written, 2)
    await move_on(written, 3)
    async with asyncio.timeout(5):
        assert (await waiter).version == 3
    assert looked[-1] == 3


@pytest.mark.parametrize("seconds", [0, 0.02])
async def test_a_wait_that_is_over_brings_what_there_is(written: Any, seconds: float) -> None:
    """The reply is the resource as it stands; the work goes on after it."""
    async with asyncio.timeout(5):
        pointer = await Waiting(written).until(NAME_POINTERS, "a", seconds, is_second)
    assert pointer == FIRST


async def test_the_stop_ends_every_wait_and_lets_no_new_one_begin(written: Any) -> None:
    """Callers shall have their answer before the connection goes, and the daemon stops in seconds."""
    waiting = Waiting(written)
    waiters = [asyncio.create_task(waiting.until(NAME_POINTERS, "a", 60, is_second)) for _ in range(3)]
    while len(waiting._deadlines) < 3:  # noqa: ASYNC110 - they get there by themselves
        await asyncio.sleep(0)
    waiting.end()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*waiters) == [FIRST] * 3
        assert await waiting.until(NAME_POINTERS, "a", 60, is_second) == FIRST


async def test_waiting_for_what_is_not_there_says_so(written: Any) -> None:
    """An id that leads nowhere is the caller's to know at once."""
    with pytest.raises(NotFound):
        await Waiting(written).until(NAME_POINTERS, "b", 60, is_second)


async def test_a_document_that_vanishes_ends_the_wait(written: Any) -> None:
    """Nobody waits for something that will never be."""
    waiter = asyncio.create_task(Waiting(written).until(NAME_POINTERS, "a", 60, is_second))
    await asyncio.sleep(0)
    await written.commit([Delete(key=NAME_POINTERS.key("a"))])
    with pytest.raises(NotFound):
        async with asyncio.timeout(5):
            await waiter


async def test_a_clock_that_is_set_forward_ends_the_wait_soon(clock: Any) -> None:
    """A pause of a day, begun by a clock that was a day behind: the correction is noticed within a minute."""
    moment = clock.now() + timedelta(days=1)
    waiting = asyncio.create_task(sleep_until(clock, moment))
    async with asyncio.timeout(5):
        while len(clock.slept) < 3:  # noqa: ASYNC110 - the fake clock moves by itself
            await asyncio.sleep(0)
        clock.advance(86_400)
        before = len(clock.slept)
        await waiting
    assert len(clock.slept) <= before + 1
    assert max(clock.slept) <= 60


async def test_a_moment_that_has_passed_is_not_waited_for(clock: Any) -> None:
    """What was due while the daemon was down is due now."""
    await sleep_until(clock, clock.now() - timedelta(days=1))
    assert clock.slept == []
