"""The master key as administrators see it: which one, where from, and its rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.model.errors import Conflict

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import access_messages as am
    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.services.ports import Sealer, Store


class MasterKeys:
    """Handlers of `sys.master_key.*` and `sys.unseal` while the daemon is not sealed."""

    def __init__(self, *, store: Store, sealer: Sealer, source: str, clock: Clock, log: FilteringBoundLogger) -> None:
        self._store = store
        self._sealer = sealer
        self._source = source
        self._clock = clock
        self._log = log

    async def resume(self) -> None:
        """Go on with a rotation that a stop has interrupted."""

    async def run(self) -> None:
        """Rewrap what a rotation has left to do; ends by cancellation."""

    async def get(self, request: m.Nothing, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.master_key.get`."""
        raise NotImplementedError

    async def rotate(self, request: am.RotateMasterKey, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.master_key.rotate`."""
        raise NotImplementedError

    async def unseal(self, request: am.Unseal, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.unseal`; there is nothing to unseal."""
        raise Conflict("the daemon is not sealed")
