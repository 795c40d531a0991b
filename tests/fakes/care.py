"""Ends and kills for tests of the life of accounts: all jobs of a world, those of accounts too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import ScaivaultError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

CONTEXT = RequestContext(request_id="req_1")
DEADLINE = 20.0
JOBS = ("order ", "register ", "rotate ", "deactivate ")


def jobs() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(JOBS)]


async def idle() -> None:
    """Wait until no job is left."""
    async with asyncio.timeout(DEADLINE):
        while tasks := jobs():
            await asyncio.wait(tasks)


async def kill(world: Any, *requests: asyncio.Task[Any]) -> None:
    """kill -9: the jobs and the requests under way are torn, and another life begins on the same store."""
    torn = [*jobs(), *requests]
    for task in torn:
        task.cancel()
    await asyncio.gather(*torn, return_exceptions=True)
    world.store.before_commit = None
    await world.die()


class Stop:
    """A place at which everything stands still until the kill; `acts` is still done before it."""

    def __init__(self, acts: Callable[[], Any] = lambda: None) -> None:
        self._acts = acts
        self.reached = asyncio.Event()

    async def __call__(self) -> None:
        self._acts()
        self.reached.set()
        await asyncio.Event().wait()

    def at_commit(self, number: int) -> Callable[[Any], Awaitable[None]]:
        """For `before_commit`: stands still before the commit of that number, counted from 1."""
        commits = 0

        async def look(_: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == number:
                await self()

        return look


async def until_stopped(stop: Stop, request: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Begin a request, and go on until the stop is reached."""
    task = asyncio.ensure_future(request)
    async with asyncio.timeout(DEADLINE):
        await stop.reached.wait()
    return task


def rotate(world: Any, account_id: str, **members: Any) -> Coroutine[Any, Any, m.AccountReply]:
    reply: Coroutine[Any, Any, m.AccountReply] = world.care.rotate_key(
        m.RotateAccountKey(id=account_id, **members), CONTEXT
    )
    return reply


def deactivate(world: Any, account_id: str, **members: Any) -> Coroutine[Any, Any, m.AccountReply]:
    request = m.DeactivateAccount(**{"id": account_id, "confirm": "test", **members})
    reply: Coroutine[Any, Any, m.AccountReply] = world.care.deactivate(request, CONTEXT)
    return reply


def update(world: Any, account_id: str, **members: Any) -> Coroutine[Any, Any, m.AccountReply]:
    reply: Coroutine[Any, Any, m.AccountReply] = world.care.update(m.UpdateAccount(id=account_id, **members), CONTEXT)
    return reply


async def failing(world: Any, **changes: Any) -> ScaivaultError:
    """The error a registration ends with."""
    with pytest.raises(ScaivaultError) as caught:
        await world.account(**changes)
    return caught.value
