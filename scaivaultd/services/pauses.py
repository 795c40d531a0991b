"""The pauses of a job that must come to its end, however long that takes."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from scaivaultd.services import setbacks
from scaivaultd.services.setbacks import Memory
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.errors import ScaivaultError

LONGEST = timedelta(days=30)
AFTER_REFUSAL = timedelta(hours=1)
"""What was clearly refused is asked again all the same, since a person may have put it right."""


class Pauses:
    """As after any setback, but without an end; made anew for each job."""

    def __init__(self, clock: Clock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._attempt = 0

    async def after(self, error: ScaivaultError) -> None:
        """Sleep as long as the error asks for."""
        now = self._clock.now()
        memory = Memory(attempt=self._attempt, misbehaved=0, give_up_at=now + LONGEST)
        verdict = setbacks.judge(error, memory, now=now, fraction=self._randomness.fraction())
        self._attempt = verdict.attempt
        await sleep_until(self._clock, verdict.next_try_at or now + AFTER_REFUSAL)
