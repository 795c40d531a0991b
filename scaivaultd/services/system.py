"""How the daemon is, and what is running."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.api import messages as m

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scaivaultd.api.commands import RequestContext

_RANK = {"ok": 0, "degraded": 1, "down": 2}


class System:
    """Handlers of `sys.*`; the probes are handed in by the roof, which knows the neighbours."""

    def __init__(
        self,
        probes: Sequence[Callable[[], Awaitable[m.ComponentHealth]]],
        info: Callable[[], m.InfoReply],
    ) -> None:
        self._probes = probes
        self._info = info

    async def health(self, request: m.Nothing, context: RequestContext) -> m.HealthReply:
        """Handle `sys.health`: the worst part tells."""
        return await self.report()

    async def report(self) -> m.HealthReply:
        """How every part is."""
        components = [await probe() for probe in self._probes]
        worst = max(components, key=lambda each: _RANK[each.status])
        return m.HealthReply(status=worst.status, components=components)

    async def info(self, request: m.Nothing, context: RequestContext) -> m.InfoReply:
        """Handle `sys.info`."""
        return self._info()
