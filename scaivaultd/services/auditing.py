"""The audit log: who did what, by which rule, and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import access_messages as am
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.access import AuditEntry
    from scaivaultd.model.clock import Clock
    from scaivaultd.services.ports import AuditFile, Sealer, Store


class Auditing:
    """Handlers of `audit.*`, and the writer behind every record."""

    def __init__(self, *, file: AuditFile, store: Store, clock: Clock, log: FilteringBoundLogger) -> None:
        self._file = file
        self._store = store
        self._clock = clock
        self._log = log

    async def resume(self) -> None:
        """Find the end of the chain; what cannot be read is said, and does not keep the daemon down."""

    def unlock(self, sealer: Sealer) -> None:
        """Anchors are sealed from now on, and compared with those there are."""

    async def run(self) -> None:
        """Write what is recorded, and anchor it now and then; ends by cancellation, after `close`."""

    async def close(self) -> None:
        """Write what is left."""

    @property
    def trouble(self) -> str | None:
        """Why records cannot be written right now."""
        return None

    def record(self, entry: AuditEntry) -> None:
        """Have it written soon; that it could not is an alarm, and nobody waits for it."""

    async def record_durably(self, entry: AuditEntry) -> None:
        """Write it to stable storage.

        Raises:
            StorageUnavailable: it could not be written.
        """

    async def list(self, request: am.ListAudit, context: RequestContext) -> am.AuditList:
        """Handle `audit.list`."""
        raise NotImplementedError

    async def verify(self, request: am.VerifyAudit, context: RequestContext) -> am.AuditVerification:
        """Handle `audit.verify`."""
        raise NotImplementedError
