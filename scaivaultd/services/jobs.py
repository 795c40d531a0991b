"""Jobs: work that outlives the request which started it. A job's failure never ends the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, TypeVar

from structlog.contextvars import bound_contextvars

from scaivaultd.model import tracing
from scaivaultd.model.errors import Internal, ScaivaultError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Any

    from structlog.typing import FilteringBoundLogger

T = TypeVar("T")

SIDE_BY_SIDE = 8
"""Requests of one order at once: more would cost a nonce fetch each and gain nothing."""

ABANDON_SECONDS = 1.0


class Jobs:
    """Owns the tasks of all jobs, at most one for each name."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start `work` unless a job of that name runs already, or the daemon is stopping."""
        if self._closing or name in self._tasks:
            return
        task = asyncio.create_task(self._bounded(name, work), name=name)
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def close(self, grace_seconds: float) -> None:
        """Cancel all jobs and wait for them: what they have committed stands, the rest is done again after a restart.

        Jobs in a step that must not be torn get `grace_seconds` to end it.
        """
        self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)

    async def _bounded(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # Its lines, those about requests to the CA among them, say which job they are about.
        with tracing.span(name.partition(" ")[0], job=name), bound_contextvars(job=name):
            try:
                await work()
            except Exception:  # noqa: BLE001 - the job boundary: one broken job must not take the daemon down
                self._log.exception("job.failed", job=name)


async def outcome_of(
    attempt: Coroutine[Any, Any, None], log: FilteringBoundLogger, *, let_pass: tuple[type[Exception], ...] = ()
) -> ScaivaultError | None:
    """Run one attempt of a job and return what it failed with, None when it did not fail.

    An error nobody foresaw becomes `Internal`: the log has its text, the resource a hint where to look.
    """
    try:
        await attempt
    except let_pass:
        raise
    except ScaivaultError as error:
        return error
    except Exception:
        log.exception("job.attempt_failed")
        return Internal("an unexpected error; the daemon's log tells more at this time under job.attempt_failed")
    return None


async def unbroken(step: Coroutine[Any, Any, T], grace_seconds: float) -> T:
    """Run a step that should not be torn by a cancellation: it gets `grace_seconds` more to end.

    For steps whose half is worse than nothing, such as asking for a new order and writing down its URL.
    The cancellation is raised afterwards all the same.
    """
    task = asyncio.ensure_future(step)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        done, pending = await asyncio.wait({task}, timeout=grace_seconds)
        for unfinished in pending:
            unfinished.cancel()
        for ended in done:
            # Heard and passed over: whoever cancelled does not care how the step ended.
            if not ended.cancelled():
                ended.exception()
        raise


class Overdue(TimeoutError):
    """Time ran out for a stranger's step; one that raises TimeoutError itself has its own reasons."""


class CancelledItself(Exception):
    """A stranger's step ended as cancelled, and nobody here had cancelled it."""


class Escaped(Exception):
    """A stranger's step raised what no `except Exception` sees, such as SystemExit."""


async def bounded(step: Coroutine[Any, Any, T], seconds: float) -> T:
    """Run a stranger's step for at most `seconds`, whatever it does with its cancellation.

    A step that does not end when it is cancelled is left behind after `ABANDON_SECONDS`; nothing waits for it.

    Raises:
        Overdue: time ran out.
        CancelledItself, Escaped: its own doing; as what it raised, either would end more than the step.
    """
    task = asyncio.ensure_future(_kept_in(step))
    if isinstance(step, Coroutine):
        # Cancelled before its first step, it was never begun: closed, so that nobody complains about that.
        task.add_done_callback(lambda _: step.close())
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        await _abandon(task)
        raise
    if not done:
        await _abandon(task)
        raise Overdue
    if task.cancelled():
        raise CancelledItself
    return task.result()


async def _kept_in(step: Awaitable[T]) -> T:
    try:
        return await step
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException:  # noqa: BLE001 - raised in a task, SystemExit would stop the event loop at once
        raise Escaped from None


async def _abandon(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=ABANDON_SECONDS)
    # Its outcome is nobody's any more; heard, so that the loop does not complain about it.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())


async def side_by_side(work: Sequence[Coroutine[Any, Any, T]], at_once: int = SIDE_BY_SIDE) -> list[T]:
    """Run all, `at_once` at a time; the first error cancels the rest and is raised as itself."""
    gate = asyncio.Semaphore(at_once)

    async def gated(one: Coroutine[Any, Any, T]) -> T:
        async with gate:
            return await one

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(gated(one)) for one in work]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    finally:
        # Those that waited at the gate when another failed were never begun.
        for one in work:
            one.close()
    return [task.result() for task in tasks]
