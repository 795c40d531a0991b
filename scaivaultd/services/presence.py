"""What an order has in place for its CA to see, from the journal to the clean-up."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from scaivaultd.model import metrics
from scaivaultd.model.errors import ChallengeFailed, ScaivaultError, Timeout
from scaivaultd.plugin import ChallengeResponse, ClaimingSolver, SolverError
from scaivaultd.services.jobs import Overdue, bounded, outcome_of, side_by_side, unbroken
from scaivaultd.services.solvers import Share

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Any

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.resources import Order
    from scaivaultd.services.solvers import Claims, OpenSolver

T = TypeVar("T")

CLEAN_UP_SECONDS = 10.0
RECLAIM_SECONDS = 60.0
AT_ONCE = 100
"""Responses of one order that are put in place side by side: each may wait for DNS, none for another."""


class Presence:
    """What one order has in place at this moment; it outlives setbacks, because the CA may look at any time.

    `was_away`: the order was under way when an earlier process ended, so the CA may have looked for
    our answers while nobody was there to give them.
    """

    def __init__(
        self, solver: OpenSolver, claims: Claims, log: FilteringBoundLogger, *, was_away: bool = False
    ) -> None:
        self._kind = solver.kind
        self._solver = solver.solver
        self._claims = claims
        self._log = log
        self._begun: dict[str, ChallengeResponse] = {}
        self._in_place: set[str] = set()
        self._claimed: dict[str, Share] = {}
        self._holding = AsyncExitStack()
        self._settled = asyncio.Event()
        self.was_away = was_away

    @property
    def solver_name(self) -> str:
        """Which solver does it."""
        return self._kind.name

    @property
    def may_wait(self) -> bool:
        """Whether putting things in place may take minutes, for DNS or for another order."""
        return self._kind.is_slow or isinstance(self._solver, ClaimingSolver)

    async def settled(self) -> None:
        """Wait until `restore` has done what it can."""
        await self._settled.wait()

    async def restore(self, journal: Mapping[str, ChallengeResponse], *, is_in_place: bool = False) -> None:
        """Put back what the order had in place in an earlier process; failures are tried again by the attempts.

        What a lasting solver had in place is still there: it is only remembered, to be cleaned up. `is_in_place` says
        that there is something, so it takes its share again before anybody else may have it.
        """
        try:
            if self._kind.is_lasting:
                self._begun.update(journal)
                if is_in_place and (error := await outcome_of(self._reclaim(journal), self._log)):
                    self._log.warning("order.not_reclaimed", detail=error.detail)
                return
            if error := await outcome_of(self.present(journal), self._log):
                self._log.warning("order.not_presented", detail=error.detail)
        finally:
            self._settled.set()

    async def _reclaim(self, journal: Mapping[str, ChallengeResponse]) -> None:
        try:
            async with asyncio.timeout(RECLAIM_SECONDS):
                await self._claim(journal)
        except TimeoutError as error:
            raise Timeout(f"its share was not free after {RECLAIM_SECONDS:.0f} s") from error

    async def present(self, responses: Mapping[str, ChallengeResponse]) -> None:
        """Put responses in place, by challenge URL; those that are there already stay.

        One that is there with another key authorization (the account has another key by now) is replaced.

        Raises:
            Timeout: they were not in place in time; what was begun is cleaned up with the rest.
            ChallengeFailed: the solver cannot do it.
        """
        missing = {
            url: each for url, each in responses.items() if url not in self._in_place or self._begun.get(url) != each
        }
        if not missing:
            return
        await self._take_away([url for url, each in missing.items() if self._begun.get(url, each) != each])
        seconds = self._kind.present_seconds
        try:
            async with asyncio.timeout(seconds):
                # For what is in place, too: it takes its share until it is cleaned up.
                await self._claim({**self._begun, **missing})
                self._begun.update(missing)
                await side_by_side([self._present(url, each) for url, each in missing.items()], AT_ONCE)
        except TimeoutError as error:
            raise Timeout(f"the challenges were not in place after {seconds:.0f} s") from error

    async def _take_away(self, urls: Sequence[str]) -> None:
        outdated = [self._begun.pop(url) for url in urls]
        self._in_place.difference_update(urls)
        await side_by_side([self._clean_up(each) for each in outdated], AT_ONCE)

    async def _claim(self, responses: Mapping[str, ChallengeResponse]) -> None:
        solver = self._solver
        if not isinstance(solver, ClaimingSolver):
            return
        each_claims = await side_by_side(
            [self._asked(each, partial(solver.claims, each)) for each in responses.values()], AT_ONCE
        )
        wanted = self._shares(each_claims)
        if all(key in self._claimed and self._claimed[key].count >= share.count for key, share in wanted.items()):
            return
        if self._claimed:
            # Taking more while holding some could make a circle: let go, and take all in order.
            await self._let_go()
        try:
            await self._claims.take(wanted, self._holding)
        except BaseException:
            await self._let_go()
            raise
        self._claimed = wanted

    def _shares(self, claims: Sequence[Mapping[str, int]]) -> dict[str, Share]:
        counts = Counter(key for each in claims for key in each)
        capacities = {key: capacity for each in claims for key, capacity in each.items()}
        return {f"{self._kind.name} {key}": Share(count, max(1, capacities[key])) for key, count in counts.items()}

    async def _let_go(self) -> None:
        await self._holding.aclose()
        self._holding = AsyncExitStack()
        self._claimed = {}

    async def _present(self, url: str, response: ChallengeResponse) -> None:
        await self._asked(response, partial(self._solver.present, response))
        self._in_place.add(url)

    async def _asked(self, response: ChallengeResponse, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a stranger's solver says; whatever else it does becomes an error of ours."""
        try:
            return await bounded(work(), self._kind.present_seconds)
        except (ScaivaultError, Overdue):
            raise
        except SolverError as error:
            raise _failed(response, error.detail, may_pass=error.retryable) from error
        except Exception as error:
            metrics.PLUGIN_ERRORS.labels(plugin=self._kind.name, hook="solver").inc()
            self._log.exception("solver.broke", solver=self._kind.name, challenge_type=self._kind.challenge_type)
            detail = f"the solver {self._kind.name} broke ({type(error).__name__}); the daemon's log tells more"
            raise _failed(response, detail, may_pass=True) from error

    async def clean_up(self) -> None:
        """Take everything away; at most `CLEAN_UP_SECONDS`, also when cancelled."""
        try:
            if self._begun:
                await unbroken(self._clean_up_all(), CLEAN_UP_SECONDS)
        finally:
            await self._let_go()

    async def _clean_up_all(self) -> None:
        try:
            async with asyncio.timeout(CLEAN_UP_SECONDS):
                await side_by_side([self._clean_up(each) for each in self._begun.values()], AT_ONCE)
        except TimeoutError:
            self._log.warning("challenge.clean_up_timed_out")
        self._begun.clear()
        self._in_place.clear()

    async def _clean_up(self, response: ChallengeResponse) -> None:
        # Each on its own: one that does not go must not keep the others in place.
        clean_up = bounded(self._solver.clean_up(response), CLEAN_UP_SECONDS)
        if error := await outcome_of(clean_up, self._log):
            self._log.warning("challenge.not_cleaned_up", identifier=response.identifier, detail=error.detail)


def _failed(response: ChallengeResponse, detail: str, *, may_pass: bool) -> ChallengeFailed:
    error = ChallengeFailed(f"{response.identifier}: {detail}", may_pass=may_pass)
    error.identifier = response.identifier
    return error


def journalled(order: Order) -> dict[str, ChallengeResponse]:
    """What the order had in place, by its own journal."""
    return {
        each.url: ChallengeResponse(
            identifier=each.identifier,
            type=each.type,
            token=each.token,
            key_authorization=each.key_authorization,
            order_id=order.id,
            dns_provider=order.dns_provider,
        )
        for each in order.challenges
    }
