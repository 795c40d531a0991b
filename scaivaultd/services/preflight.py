"""What can be known before a CA is asked: CAA, delegation, and whether our own answer is seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.resources import Account, Order, PreflightVerdict
    from scaivaultd.plugin import ChallengeResponse
    from scaivaultd.services.ports import NameServers, OwnAnswer

Mode = Literal["off", "warn", "block"]


class PreflightModes(msgspec.Struct, frozen=True, kw_only=True):
    """What is checked, and what follows; see `[preflight]` in the configuration."""

    caa: Mode = "warn"
    delegation: Mode = "warn"
    reachability: Mode = "off"
    timeout_seconds: float = 5.0


class Preflight:
    """The checks; each gives verdicts and never raises for what it finds."""

    def __init__(
        self,
        modes: PreflightModes,
        *,
        name_servers: NameServers,
        own_answer: OwnAnswer,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._modes = modes
        self._name_servers = name_servers
        self._own_answer = own_answer
        self._clock = clock
        self._log = log

    async def before_order(self, order: Order, account: Account) -> Sequence[PreflightVerdict]:
        """CAA and delegation of every name, before newOrder; raises PreflightFailed if one of them blocks.

        The error carries the verdicts as `verdicts`.
        """
        return ()

    async def before_answer(
        self, order: Order, responses: Mapping[str, ChallengeResponse]
    ) -> Sequence[PreflightVerdict]:
        """Whether what was put in place is seen from here, before the CA is told; raises PreflightFailed."""
        return ()

    async def caa_forbids(self, order: Order, account: Account) -> str | None:
        """Why CAA forbids this account's CA one of the names; None when it does not, or nobody knows."""
        return None
