"""What may end the guided run before its time: a signal, or the daemon's death.

The acts run in a task of their own, and what they have started is ended by another, which nobody cancels.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any, TypeVar

from scaivaultd.demo.tour_stage import DemoFailed, ended

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import FrameType

    from scaivaultd.demo.process import Process

T = TypeVar("T")

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WATCH_SECONDS = 0.2
INSIST_SECONDS = 0.5


class Interrupted(Exception):
    """Somebody has pressed Ctrl-C, sent SIGTERM or closed the terminal."""


class Ending:
    """Listens to the signals from its making on; the first counts, those that follow find it ending."""

    def __init__(self) -> None:
        self._come = asyncio.Event()
        # Not the loop's own handlers: it closes the pipe that they write to before it takes them away, and a signal
        # that a thread gets in between would be complained of. This pipe lives as long as the process.
        self._heard, told = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        asyncio.get_running_loop().add_reader(self._heard, self._hear)
        for number in ENDINGS:
            signal.signal(number, _nothing)

    def be_deaf(self) -> None:
        """No signal ends the process any more: not even when the interpreter takes its handlers away."""
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)

    def _hear(self) -> None:
        os.read(self._heard, 4096)
        self._come.set()

    async def or_result(self, act: Coroutine[Any, Any, T], daemon: Process | None = None) -> T:
        """What the act comes to, unless something ends it.

        Raises:
            Interrupted: a signal came.
            DemoFailed: the daemon ended by itself, or the act says so.
        """
        acting = asyncio.create_task(act)
        watching = [asyncio.create_task(self._interrupt())]
        if daemon is not None:
            watching.append(asyncio.create_task(_watch(daemon)))
        try:
            done, _ = await asyncio.wait((acting, *watching), return_when=asyncio.FIRST_COMPLETED)
            for each in watching:
                if each in done:
                    each.result()
            return acting.result()
        except DemoFailed as error:
            if daemon is None or daemon.is_alive():
                raise
            raise ended(daemon) from error
        finally:
            for each in watching:
                each.cancel()
            await _end(acting)
            await asyncio.gather(acting, *watching, return_exceptions=True)

    async def _interrupt(self) -> None:
        await self._come.wait()
        raise Interrupted


def _nothing(number: int, frame: FrameType | None) -> None:
    """The pipe has told it."""


async def _watch(daemon: Process) -> None:
    while daemon.is_alive():  # noqa: ASYNC110 - a child has no event, and a thread would outlive us
        await asyncio.sleep(WATCH_SECONDS)
    raise DemoFailed("the daemon ended")


async def _end(task: asyncio.Task[T]) -> None:
    """Cancel a task until it ends: `asyncio.wait_for` before Python 3.12 may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=INSIST_SECONDS)
