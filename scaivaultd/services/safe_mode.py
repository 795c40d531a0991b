"""Safe mode: a daemon that was restored from a backup does nothing outside until somebody says that it may.

The daemon it was copied from may live on. Two that work with the same accounts would renew the same certificates
twice, answer each other's challenges and take away each other's records in DNS. So a restored one reads, tells of what
ends, and takes what changes only its own store; nothing of it asks a CA, and nothing that is requested does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.api import commands as c
from scaivaultd.api.messages import ComponentHealth
from scaivaultd.model.backups import RESTORED_KEY, Restored
from scaivaultd.model.errors import Conflict, Internal
from scaivaultd.model.storage import Delete

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Binding, RequestContext
    from scaivaultd.services.ports import Store

REFUSED = frozenset(
    each.name
    for each in (
        c.CREATE_ACCOUNT,
        c.UPDATE_ACCOUNT,
        c.ROTATE_ACCOUNT_KEY,
        c.DEACTIVATE_ACCOUNT,
        c.ISSUE,
        c.CANCEL_ORDER,
        c.RENEW_CERTIFICATE,
        c.UPDATE_CERTIFICATE,
        c.IMPORT_CERTIFICATE,
        c.CREATE_BULK_RENEWAL,
        c.REVOKE,
    )
)
"""The commands that a CA hears of, at once or later."""

_ADVICE = "`scaivaultctl resume` ends that, once nothing else works with this state"


class SafeMode:
    """Whether the daemon may work. `load` comes first."""

    def __init__(self, store: Store, log: FilteringBoundLogger) -> None:
        self._store = store
        self._log = log
        self._restored: Restored | None = None
        self._ending = asyncio.Event()
        self._ended = asyncio.Event()

    async def load(self) -> None:
        """Find out; raises Internal where the store does not say it in a way that is understood."""
        stored = await self._store.get(RESTORED_KEY)
        if stored is None:
            self._ending.set()
            self._ended.set()
            return
        try:
            self._restored = msgspec.json.decode(stored.document, type=Restored)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Internal("what the store says of its backup does not decode") from error
        self._log.warning(
            "daemon.safe_mode",
            backup=self._restored.backup,
            backup_created_at=self._restored.backup_created_at.isoformat(),
            advice=_ADVICE,
        )

    @property
    def is_on(self) -> bool:
        """Whether nothing may be done."""
        return not self._ended.is_set()

    async def end(self) -> Restored | None:
        """Let the daemon work, durably; returns once it does. None: it did already."""
        restored = self._restored
        if not self.is_on or restored is None:
            return None
        await self._store.commit([Delete(key=RESTORED_KEY)])
        self._ending.set()
        await self.over()
        return restored

    async def work(self, begin: Callable[[], Awaitable[None]], *, then: Callable[[], None]) -> None:
        """As soon as the daemon may work, have it begun: before anybody's request is let through.

        Ends at once where it works already. What `begin` raises ends the daemon, whose next start is an ordinary one.
        """
        if not self.is_on:
            return
        await self._ending.wait()
        await begin()
        then()
        self._log.info("daemon.resumed")
        self._ended.set()

    async def over(self) -> None:
        """Return as soon as the daemon works."""
        await self._ended.wait()

    async def after(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run a room as soon as the daemon works; ends as the room does."""
        await self.over()
        await run()

    def guarded(self, *bindings: Binding) -> Sequence[Binding]:
        """The same rows, refused in safe mode if a CA would hear of it."""
        return [self._guarded(each) for each in bindings]

    def _guarded(self, binding: Binding) -> Binding:
        if binding.command.name not in REFUSED:
            return binding

        async def handler(request: Any, context: RequestContext) -> msgspec.Struct:
            if self.is_on:
                raise Conflict(f"the daemon is in safe mode, having been restored from a backup: {_ADVICE}")
            return await binding.handler(request, context)

        return msgspec.structs.replace(binding, handler=handler)

    async def health(self) -> ComponentHealth:
        """The probe of it."""
        restored = self._restored
        if not self.is_on or restored is None:
            return ComponentHealth(name="safe_mode", status="ok")
        made = f"{restored.backup_created_at:%Y-%m-%d %H:%M} UTC"
        detail = f"restored from a backup of {made}; nothing is renewed: {_ADVICE}"
        return ComponentHealth(name="safe_mode", status="degraded", detail=detail)
