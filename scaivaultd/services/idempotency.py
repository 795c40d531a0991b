"""`Idempotency-Key`: for a day the same request with the same key is answered with what the first one made.

A key counts per command and principal: nobody is answered with what somebody else has made. What it stands for is
written in the commit that makes it, so no stop comes in between.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import Conflict
from scaivaultd.model.resources import IdempotentResult
from scaivaultd.model.storage import ABSENT
from scaivaultd.services.documents import IDEMPOTENCY, IDEMPOTENCY_SECONDS, digest

if TYPE_CHECKING:
    from typing import Any

    from scaivaultd.api.commands import Command, RequestContext
    from scaivaultd.api.messages import Request
    from scaivaultd.model.storage import Put
    from scaivaultd.services.ports import Store

NOT_PART_OF_IT = ("wait_seconds", "wait_end_seconds")
"""How long a caller waits says nothing of what is asked for."""


class Repeatable:
    """A request that may have been made before; without a key it never has."""

    def __init__(self, command: Command[Any, Any], request: Request, context: RequestContext) -> None:
        principal, key = str(context.principal), context.idempotency_key
        self.digest = digest(principal, msgspec.json.encode(_without_wait(request)))
        """The same for the same request of the same principal."""
        self._id = None if key is None else digest(command.name, principal, key)

    async def made_before(self, store: Store) -> str | None:
        """The id of what it made; raises Conflict if the key was given with another request."""
        made = None if self._id is None else await IDEMPOTENCY.get(store, self._id)
        if made is None:
            return None
        if made.value.request_digest != self.digest:
            raise Conflict("this Idempotency-Key was used for another request within the last 24 hours")
        return made.value.resource_id

    def changes(self, resource_id: str) -> tuple[Put, ...]:
        """What goes into the commit that makes it.

        A RevisionConflict may mean that the same key came twice at once: `made_before` then knows what the other made.
        """
        if self._id is None:
            return ()
        result = IdempotentResult(resource_id=resource_id, request_digest=self.digest)
        return (IDEMPOTENCY.put_at(self._id, result, ABSENT, IDEMPOTENCY_SECONDS),)


def _without_wait(request: Request) -> Request:
    return msgspec.structs.replace(request, **{name: 0 for name in NOT_PART_OF_IT if hasattr(request, name)})
