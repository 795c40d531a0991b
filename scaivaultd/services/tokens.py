"""API tokens: made, listed, rotated, revoked; all of them in memory, so that nobody waits to be recognised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.services.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import access_messages as am
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.access import Token
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.services.policies import Policies
    from scaivaultd.services.ports import Store


class Tokens:
    """Handlers of `tokens.*`."""

    def __init__(
        self,
        *,
        store: Store,
        policies: Policies,
        nats_login: Callable[[str], am.NatsLogin | None],
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        """`nats_login` tells the place on NATS of the token with an id, where tokens log in there."""
        self._store = store
        self._policies = policies
        self._nats_login = nats_login
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self.ended: Signal[str] = Signal()
        """Told the id of a token that was revoked."""

    async def resume(self) -> None:
        """Read all tokens; to be done before anybody is recognised."""

    async def run(self) -> None:
        """Announce what expires soon, and write down when tokens were used last; ends by cancellation."""

    def find(self, token_id: str) -> Token | None:
        """The token with that id, whatever its state."""
        return None

    def used(self, token_id: str) -> None:
        """Somebody has just used it."""

    async def create(self, request: am.CreateToken, context: RequestContext) -> am.TokenCreated:
        """Handle `tokens.create`."""
        raise NotImplementedError

    async def list(self, request: am.ListTokens, context: RequestContext) -> am.TokenList:
        """Handle `tokens.list`."""
        raise NotImplementedError

    async def get(self, request: am.TokenById, context: RequestContext) -> am.TokenReply:
        """Handle `tokens.get`."""
        raise NotImplementedError

    async def rotate(self, request: am.RotateToken, context: RequestContext) -> am.TokenCreated:
        """Handle `tokens.rotate`."""
        raise NotImplementedError

    async def revoke(self, request: am.TokenById, context: RequestContext) -> am.TokenReply:
        """Handle `tokens.revoke`."""
        raise NotImplementedError
