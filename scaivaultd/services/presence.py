"""What an order has in place for its CA to see, from the journal to the clean-up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from scaivaultd.model.errors import Timeout
from scaivaultd.plugin import ChallengeResponse
from scaivaultd.services.jobs import outcome_of, side_by_side, unbroken

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.resources import Order
    from scaivaultd.plugin import ChallengeSolver

PRESENT_SECONDS = 300.0
CLEAN_UP_SECONDS = 10.0


class Presence:
    """What one order has in place at this moment; it outlives setbacks, because the CA may look at any time.

    `was_away`: the order was under way when an earlier process ended, so the CA may have looked for
    our answers while nobody was there to give them.
    """

    def __init__(self, solver: ChallengeSolver, log: FilteringBoundLogger, *, was_away: bool = False) -> None:
        self._solver = solver
        self._log = log
        self._begun: dict[str, ChallengeResponse] = {}
        self._in_place: set[str] = set()
        self._settled = asyncio.Event()
        self.was_away = was_away

    async def settled(self) -> None:
        """Wait until `restore` has done what it can."""
        await self._settled.wait()

    async def restore(self, journal: Mapping[str, ChallengeResponse]) -> None:
        """Put back what the order had in place in an earlier process; failures are tried again by the attempts."""
        try:
            if error := await outcome_of(self.present(journal), self._log):
                self._log.warning("order.not_presented", detail=error.detail)
        finally:
            self._settled.set()

    async def present(self, responses: Mapping[str, ChallengeResponse]) -> None:
        """Put responses in place, by challenge URL; those that are there already stay.

        Raises:
            Timeout: they were not in place in time; what was begun is cleaned up with the rest.
        """
        missing = {url: each for url, each in responses.items() if url not in self._in_place}
        self._begun.update(missing)
        try:
            async with asyncio.timeout(PRESENT_SECONDS):
                await side_by_side([self._present(url, each) for url, each in missing.items()])
        except TimeoutError as error:
            raise Timeout(f"the challenges were not in place after {PRESENT_SECONDS:.0f} s") from error

    async def _present(self, url: str, response: ChallengeResponse) -> None:
        await self._solver.present(response)
        self._in_place.add(url)

    async def clean_up(self) -> None:
        """Take everything away; at most `CLEAN_UP_SECONDS`, also when cancelled."""
        if self._begun:
            await unbroken(self._clean_up_all(), CLEAN_UP_SECONDS)

    async def _clean_up_all(self) -> None:
        try:
            async with asyncio.timeout(CLEAN_UP_SECONDS):
                await side_by_side([self._clean_up(each) for each in self._begun.values()])
        except TimeoutError:
            self._log.warning("challenge.clean_up_timed_out")
        self._begun.clear()
        self._in_place.clear()

    async def _clean_up(self, response: ChallengeResponse) -> None:
        # Each on its own: one that does not go must not keep the others in place.
        if error := await outcome_of(self._solver.clean_up(response), self._log):
            self._log.warning("challenge.not_cleaned_up", identifier=response.identifier, detail=error.detail)


def journalled(order: Order) -> dict[str, ChallengeResponse]:
    """What the order had in place, by its own journal."""
    return {
        each.url: ChallengeResponse(
            identifier=each.identifier, type=each.type, token=each.token, key_authorization=each.key_authorization
        )
        for each in order.challenges
    }
