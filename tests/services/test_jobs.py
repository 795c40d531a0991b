"""Work that outlives its request: owned, bounded, and harmless when it breaks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scaivaultd.model.errors import CaUnavailable, Internal, NotFound
from scaivaultd.services.jobs import Jobs, outcome_of, unbroken


class Work:
    """A job that a test lets go on, and that knows what happened to it."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.go_on = asyncio.Event()
        self.runs = 0
        self.cancelled = False

    async def __call__(self) -> None:
        self.runs += 1
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def settle(jobs: Jobs) -> None:
    async with asyncio.timeout(5):
        while len(jobs):  # noqa: ASYNC110 - the jobs take themselves off the list
            await asyncio.sleep(0)


async def test_a_name_has_one_job_at_a_time_and_may_have_another_later(log: Any) -> None:
    """Two jobs for one order would race each other to the CA."""
    jobs, work = Jobs(log), Work()
    jobs.start("order 1", work)
    jobs.start("order 1", work)
    await work.started.wait()
    assert (len(jobs), work.runs) == (1, 1)
    work.go_on.set()
    await settle(jobs)
    jobs.start("order 1", work)
    await settle(jobs)
    assert work.runs == 2


async def test_a_broken_job_is_logged_and_takes_nobody_with_it(log: Any, logged: Any) -> None:
    """One order that meets a bug must not end the daemon."""
    jobs, good = Jobs(log), Work()

    async def broken() -> None:
        raise ZeroDivisionError

    jobs.start("broken", broken)
    jobs.start("good", good)
    await good.started.wait()
    good.go_on.set()
    await settle(jobs)
    (entry,) = [each for each in logged if each["event"] == "job.failed"]
    assert entry["job"] == "broken"
    assert not good.cancelled


async def test_closing_cancels_waits_and_takes_no_more_work(log: Any) -> None:
    """After the stop nothing may start again behind the daemon's back."""
    jobs, work = Jobs(log), Work()
    jobs.start("order 1", work)
    await work.started.wait()
    await jobs.close(5)
    assert work.cancelled
    jobs.start("order 2", work)
    await jobs.close(5)
    assert (len(jobs), work.runs) == (0, 1)


async def test_closing_ends_in_time_even_when_a_job_will_not(log: Any) -> None:
    """Systemd kills after its own limit; everything else still has to be closed before that."""
    jobs, release, stubborn_started = Jobs(log), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        stubborn_started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    jobs.start("stubborn", stubborn)
    await stubborn_started.wait()
    async with asyncio.timeout(5):
        await jobs.close(0.01)
    assert len(jobs) == 1
    release.set()
    await settle(jobs)


@pytest.mark.parametrize(
    ("raised", "kind"), [(NotFound("gone"), NotFound), (CaUnavailable("down"), CaUnavailable), (None, type(None))]
)
async def test_an_attempt_ends_with_the_error_it_foresaw(log: Any, raised: Exception | None, kind: type) -> None:
    """What the tree of errors knows is judged, not guessed."""

    async def attempt() -> None:
        if raised is not None:
            raise raised

    assert isinstance(await outcome_of(attempt(), log), kind)


async def test_an_unforeseen_error_becomes_internal_and_its_text_stays_in_the_log(log: Any, logged: Any) -> None:
    """The text of a stranger's exception may hold anything, also secrets; callers get none of it."""

    async def attempt() -> None:
        raise RuntimeError("hunter2")

    error = await outcome_of(attempt(), log)
    assert isinstance(error, Internal)
    assert "hunter2" not in error.detail
    (entry,) = logged
    assert entry["event"] == "job.attempt_failed"
    assert entry["exc_info"]


async def test_errors_to_let_pass_and_cancellation_are_not_outcomes(log: Any) -> None:
    """A pause is no setback, and a cancelled attempt must not be written down as failed."""

    async def attempt(error: BaseException) -> None:
        raise error

    with pytest.raises(LookupError):
        await outcome_of(attempt(LookupError()), log, let_pass=(LookupError,))
    with pytest.raises(asyncio.CancelledError):
        await outcome_of(attempt(asyncio.CancelledError()), log)


async def test_a_step_may_end_within_its_grace_when_its_caller_is_cancelled() -> None:
    """An order asked for and not written down would be lost, and asked for again."""
    started, go_on, done = asyncio.Event(), asyncio.Event(), []

    async def step() -> None:
        started.set()
        await go_on.wait()
        done.append("written down")

    task = asyncio.create_task(unbroken(step(), 5))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["written down"]


async def test_a_step_that_overruns_its_grace_is_torn_after_all() -> None:
    """The stop of the daemon has an end, whatever a CA does."""
    started, torn = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            torn.set()

    task = asyncio.create_task(unbroken(step(), 0.01))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        await torn.wait()


async def test_a_step_gives_its_result_and_raises_its_own_error() -> None:
    """In fair weather it is as if nothing stood between."""

    async def fine() -> int:
        return 3

    async def bad() -> int:
        raise NotFound("gone")

    assert await unbroken(fine(), 5) == 3
    with pytest.raises(NotFound):
        await unbroken(bad(), 5)


async def test_a_step_that_fails_within_its_grace_leaves_no_unheard_exception() -> None:
    """asyncio would complain about it at some random later time, far from the cause."""
    started, go_on, complaints = asyncio.Event(), asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def step() -> None:
        started.set()
        await go_on.wait()
        raise CaUnavailable("down")

    task = asyncio.create_task(unbroken(step(), 5))
    await started.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    await asyncio.sleep(0)
    assert complaints == []
