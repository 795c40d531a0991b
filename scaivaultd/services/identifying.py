"""Who is asking: by token, by the uid behind a UNIX socket, or by a token's id that a NATS server vouches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.model.principals import Principal
from scaivaultd.services.policies import LOCAL_ADMINS

if TYPE_CHECKING:
    from collections.abc import Collection

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.plugin import Secret
    from scaivaultd.services.tokens import Tokens


class Identifying:
    """Knows principals by what they show."""

    def __init__(
        self, *, tokens: Tokens, own_uid: int, admin_gid: int | None, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._tokens = tokens
        self._own_uid = own_uid
        self._admin_gid = admin_gid
        self._clock = clock
        self._log = log

    async def identify(
        self, *, token: Secret | None, address: str | None, uid: int | None, gids: Collection[int]
    ) -> Principal | None:
        """Who sent an HTTP request; None: nobody that is known. A token counts before the uid of its sender.

        Raises:
            RateLimited: too many wrong tokens have come from this address.
        """
        if token is not None:
            return self.by_token(token, address)
        return None if uid is None else self.by_uid(uid, gids)

    def by_uid(self, uid: int, gids: Collection[int]) -> Principal:
        """Who is behind a UNIX socket."""
        is_admin = uid in (0, self._own_uid) or self._admin_gid in gids
        return Principal(kind="unix", id=str(uid), policies=(LOCAL_ADMINS,) if is_admin else ())

    def by_token(self, token: Secret, address: str | None) -> Principal | None:
        """Who has a token.

        Raises:
            RateLimited: too many wrong tokens have come from this address.
        """
        return None

    def by_token_id(self, token_id: str) -> Principal | None:
        """Whose token has that id, as long as it is good; somebody else has seen the token itself."""
        return None
