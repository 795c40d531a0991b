"""Which accounts are left alone for a while because their CA was at fault; only where there is another to turn to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import AccountId

_FIRST_SECONDS = 60.0
_LONGEST_SECONDS = 3600.0


class _State(msgspec.Struct, frozen=True):
    failures: int
    open_until: float


class Breakers:
    """One circuit breaker for each account; in memory, since a restart may well look again."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._states: dict[AccountId, _State] = {}

    def is_open(self, account_id: AccountId) -> bool:
        """Whether the account failed a short while ago. When that is over one order after another tries it again."""
        state = self._states.get(account_id)
        return state is not None and self._clock.monotonic() < state.open_until

    def failed(self, account_id: AccountId) -> None:
        """Its CA was at fault: leave it alone for a minute, then for twice as long each time, up to an hour."""
        state = self._states.get(account_id, _State(0, 0.0))
        now = self._clock.monotonic()
        if now < state.open_until:
            return  # one outage, many orders: it counts once
        pause = min(_FIRST_SECONDS * 2**state.failures, _LONGEST_SECONDS)
        self._states[account_id] = _State(min(state.failures + 1, 16), now + pause)

    def worked(self, account_id: AccountId) -> None:
        """Its CA has brought a certificate."""
        self._states.pop(account_id, None)
