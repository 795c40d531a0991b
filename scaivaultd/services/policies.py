"""The policies there are: built in, from files, and written by request; all of them in memory, judged at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.api.policies import decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import access_messages as am
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.api.policies import PublicSuffixes
    from scaivaultd.model.access import AccessRequest, Decision, Policy
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.principals import Principal
    from scaivaultd.services.ports import Store

LOCAL_ADMINS = "local-admins"
"""The built-in policy of root, of the daemon's own user, and of members of the admin group, over the UNIX socket."""
LOCAL_NATS = "nats:$G/local"
"""Whoever logs in to the embedded NATS server with `client.json`, for its own user and root."""
TRUSTED_BUS = "nats:$G/trusted"
"""Everybody on a bus that the administrator has called trusted."""


class Policies:
    """Handlers of `policies.*`, and the judge of every request."""

    def __init__(
        self,
        *,
        store: Store,
        from_file: Sequence[Policy],
        own_uid: int,
        suffixes: PublicSuffixes,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`from_file` are those of the administrator, who alone changes them."""
        self._store = store
        self._from_file = tuple(from_file)
        self._own_uid = own_uid
        self._suffixes = suffixes
        self._clock = clock
        self._log = log

    async def resume(self) -> None:
        """Read what was written before; to be done before anything is judged."""

    def reload(self, from_file: Sequence[Policy]) -> None:
        """Take other policies of the administrator from now on."""
        self._from_file = tuple(from_file)

    def decide(self, request: AccessRequest) -> Decision:
        """Judge a request by all policies there are now."""
        return decide(self._from_file, request, self._suffixes)

    def applying(self, principal: Principal) -> Sequence[str]:
        """The names of the policies that are for a principal."""
        return ()

    async def put(self, request: am.PutPolicy, context: RequestContext) -> am.PolicyReply:
        """Handle `policies.put`."""
        raise NotImplementedError

    async def list(self, request: am.ListPolicies, context: RequestContext) -> am.PolicyList:
        """Handle `policies.list`."""
        raise NotImplementedError

    async def get(self, request: am.PolicyByName, context: RequestContext) -> am.PolicyReply:
        """Handle `policies.get`."""
        raise NotImplementedError

    async def delete(self, request: am.PolicyByName, context: RequestContext) -> am.PolicyDeleted:
        """Handle `policies.delete`."""
        raise NotImplementedError
