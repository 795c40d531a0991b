"""Who is asking: by token, by the uid behind a UNIX socket, or by a token's id that a NATS server vouches for."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from scaivaultd.api.tokens import MalformedToken, judge_token, parse_token
from scaivaultd.model import metrics
from scaivaultd.model.access import principal_of
from scaivaultd.model.errors import RateLimited
from scaivaultd.model.principals import Principal
from scaivaultd.services.policies import LOCAL_ADMINS

if TYPE_CHECKING:
    from collections.abc import Collection

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.plugin import Secret
    from scaivaultd.services.tokens import Tokens

FAILURES_MAX = 10
"""So many wrong tokens of one address are answered one by one; those that follow are too many."""
FAILURES_SECONDS = 60.0
"""In which time they count, and how long others are too many."""
ADDRESSES_MAX = 10_000


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
        self._failures: dict[str, list[float]] = {}

    async def identify(
        self, *, token: Secret | None, address: str | None, uid: int | None, gids: Collection[int]
    ) -> Principal | None:
        """Who sent an HTTP request; None: nobody that is known. A token counts before the uid of its sender.

        Raises:
            RateLimited: too many wrong tokens have come from this address.
        """
        if token is not None:
            return self.by_token(token, address, transport="http")
        if uid is None:
            metrics.AUTH_FAILURES.labels(transport="http", reason="missing").inc()
            return None
        return self.by_uid(uid, gids)

    def by_uid(self, uid: int, gids: Collection[int]) -> Principal:
        """Who is behind a UNIX socket."""
        is_admin = uid in (0, self._own_uid) or self._admin_gid in gids
        return Principal(kind="unix", id=str(uid), policies=(LOCAL_ADMINS,) if is_admin else ())

    def by_token(self, token: Secret, address: str | None, *, transport: str = "nats") -> Principal | None:
        """Who has a token. One that is good is taken from anywhere: many may share an address with a bad one.

        Raises:
            RateLimited: too many wrong tokens have come from this address.
        """
        try:
            presented = parse_token(token.reveal())
        except MalformedToken:
            metrics.AUTH_FAILURES.labels(transport=transport, reason="malformed").inc()
            self._refuse("malformed", None, address)
            return None
        # Sessions and bootstrap tokens are made alike, and are no tokens for requests.
        kept = self._tokens.find(presented.id) if presented.kind == "token" else None
        verdict = judge_token(presented, kept, self._clock.now(), address)
        if kept is None or verdict != "good":
            metrics.AUTH_FAILURES.labels(transport=transport, reason=verdict).inc()
            self._refuse(verdict, presented.id, address)
            return None
        self._tokens.used(kept.id)
        return principal_of(kept)

    def by_token_id(self, token_id: str) -> Principal | None:
        """Whose token has that id, as long as it is good; somebody else has seen the token itself."""
        token = self._tokens.find(token_id)
        if token is None or token.revoked_at is not None or self._clock.now() >= token.expires_at:
            return None
        self._tokens.used(token.id)
        return principal_of(token)

    def _refuse(self, reason: str, token_id: str | None, address: str | None) -> None:
        """Tell the log what the caller is not told; raises RateLimited where it has been told enough."""
        source = _source_of(address)
        now = self._clock.monotonic()
        times = self._failures.pop(source, [])
        left = times[-1] + FAILURES_SECONDS - now if len(times) == FAILURES_MAX else 0.0
        if left > 0:
            self._failures[source] = times
            raise RateLimited("too many wrong tokens have come from this address", left)
        times = [*(each for each in times if each > now - FAILURES_SECONDS), now]
        self._failures[source] = times
        if len(self._failures) > ADDRESSES_MAX:
            del self._failures[next(iter(self._failures))]
        claimed = None if token_id is None else f"token:{token_id}"
        self._log.info("authentication.failed", reason=reason, claimed=claimed, address=address)
        if len(times) == FAILURES_MAX:
            self._log.warning("authentication.limited", address=address, seconds=FAILURES_SECONDS)


def _source_of(address: str | None) -> str:
    """Who counts as one: an address, or the /64 that one customer has of IPv6."""
    if address is None:
        return "local"
    try:
        at = ipaddress.ip_address(address)
    except ValueError:
        return address[:100]
    if isinstance(at, ipaddress.IPv4Address):
        return str(at)
    if at.ipv4_mapped is not None:
        return str(at.ipv4_mapped)
    return f"{int(at) >> 64:x}/64"
