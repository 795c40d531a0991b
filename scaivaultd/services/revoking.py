"""Revocation (RFC 8555 section 7.6): written down first, then done, after a replacement if one is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.model.errors import Internal

if TYPE_CHECKING:
    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.pursuit import Tools
    from scaivaultd.services.renewing import Renewing
    from scaivaultd.services.waiting import Waiting


class Revoking:
    """Handlers of `pki.revoke` and `pki.revocations.get`, and the job behind every pending revocation."""

    def __init__(
        self,
        tools: Tools,
        jobs: Jobs,
        waiting: Waiting,
        *,
        issuing: Issuing,
        renewing: Renewing,
        patience_seconds: float,
    ) -> None:
        self._tools = tools
        self._jobs = jobs
        self._waiting = waiting
        self._issuing = issuing
        self._renewing = renewing
        self._patience_seconds = patience_seconds

    async def revoke(self, request: m.RevokeCertificate, context: RequestContext) -> m.RevocationReply:
        """Handle `pki.revoke`."""
        raise Internal("not built yet")

    async def get(self, request: m.RevocationById, context: RequestContext) -> m.RevocationReply:
        """Handle `pki.revocations.get`."""
        raise Internal("not built yet")

    async def resume(self) -> None:
        """Go on with revocations that a stop interrupted."""
