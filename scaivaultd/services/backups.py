"""Backups of everything, and the end of the safe mode of a daemon that was restored from one."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Protocol

import msgspec

from scaivaultd.api import operation_messages as om
from scaivaultd.model.errors import Conflict, FieldError, InvalidRequest, PermissionDenied
from scaivaultd.plugin import Secret

if TYPE_CHECKING:
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.backups import BackupWritten
    from scaivaultd.model.clock import Clock
    from scaivaultd.services.safe_mode import SafeMode

STOP_SECONDS = 2.0


class BackupMaker(Protocol):
    """Writes backups; one at a time."""

    def mistake_in(self, recipient: str) -> str | None:
        """Why no backup can be locked for this recipient; None if one can."""
        ...

    def write(
        self, *, recipient: str | None, passphrase: Secret | None, node_id: str, now: datetime, stop: threading.Event
    ) -> BackupWritten:
        """Write one, for the recipient if there is one. Blocks; ends with an exception soon after `stop` was set.

        Raises:
            Conflict: the master key changed at this moment.
            StorageUnavailable: the disk does not let us; nothing is left of it.
        """
        ...


class Backups:
    """Handlers of `sys.backup` and `sys.resume`."""

    def __init__(
        self, *, maker: BackupMaker, safe_mode: SafeMode, node_id: str, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._maker = maker
        self._safe_mode = safe_mode
        self._node_id = node_id
        self._clock = clock
        self._log = log
        self._is_busy = False

    async def create(self, request: om.CreateBackup, context: RequestContext) -> om.BackupReply:
        """Handle `sys.backup`."""
        self._require_lock(request, context)
        if self._is_busy:
            raise Conflict("a backup is being made already; ask again when that has ended")
        self._is_busy = True
        stop = threading.Event()
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, request, stop))
        writing.add_done_callback(self._ended)
        try:
            written = await asyncio.shield(writing)
        except asyncio.CancelledError:
            # A caller who has gone away wants none any more, nor does a daemon that stops.
            stop.set()
            await asyncio.wait([writing], timeout=STOP_SECONDS)
            raise
        self._log.info("backup.created", path=written.path, bytes=written.bytes, request_id=context.request_id)
        return om.BackupReply(**msgspec.structs.asdict(written))

    def _write(self, request: om.CreateBackup, stop: threading.Event) -> BackupWritten:
        return self._maker.write(
            recipient=request.recipient,
            passphrase=None if request.passphrase is None else Secret(request.passphrase),
            node_id=self._node_id,
            now=self._clock.now(),
            stop=stop,
        )

    def _ended(self, writing: asyncio.Future[BackupWritten]) -> None:
        self._is_busy = False
        if not writing.cancelled():
            writing.exception()  # a caller who has gone away does not ask for it

    def _require_lock(self, request: om.CreateBackup, context: RequestContext) -> None:
        if (request.recipient is None) == (request.passphrase is None):
            raise _refused("/recipient", "a backup is locked by a recipient or by a passphrase: give one of the two")
        if request.passphrase is not None and context.principal.kind != "unix":
            detail = "a passphrase is taken over the UNIX socket only; give a recipient"
            raise PermissionDenied(detail, [FieldError(pointer="/passphrase", code="wrong_way", detail=detail)])
        if request.recipient is not None and (mistake := self._maker.mistake_in(request.recipient)) is not None:
            raise _refused("/recipient", mistake)

    async def resume(self, request: m.Nothing, context: RequestContext) -> om.ResumeReply:
        """Handle `sys.resume`."""
        restored = await self._safe_mode.end()
        if restored is None:
            return om.ResumeReply(was_paused=False)
        return om.ResumeReply(was_paused=True, restored_from=restored.backup)


def _refused(pointer: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code="invalid_value", detail=detail)])
