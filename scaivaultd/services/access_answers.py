"""What principals may ask about themselves: who they are, and what they may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.api import access_messages as am
    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.services.policies import Policies
    from scaivaultd.services.ports import Store
    from scaivaultd.services.tokens import Tokens


class AccessAnswers:
    """Handlers of `auth.*`."""

    def __init__(
        self,
        *,
        store: Store,
        policies: Policies,
        tokens: Tokens,
        nats_login: Callable[[str], am.NatsLogin | None],
    ) -> None:
        self._store = store
        self._policies = policies
        self._tokens = tokens
        self._nats_login = nats_login

    async def can_i(self, request: am.CanI, context: RequestContext) -> am.CanIReply:
        """Handle `auth.can_i`."""
        raise NotImplementedError

    async def who_am_i(self, request: m.Nothing, context: RequestContext) -> am.WhoAmIReply:
        """Handle `auth.whoami`."""
        raise NotImplementedError
