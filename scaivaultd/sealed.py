"""The daemon without its master key: it lives and says what it lacks, until it is given the key.

A service manager that starts it again and again would help nobody, and a key may come yet: a file that is put back, a
credential that is mounted late, a passphrase that somebody types.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from scaivaultd.api import access_messages as am
from scaivaultd.api import commands
from scaivaultd.api import messages as m
from scaivaultd.model import errors as e
from scaivaultd.plugin import Secret
from scaivaultd.services.master_keys import rotation_reply
from scaivaultd.state import PASSPHRASE
from scaivaultd.store.master_key import NoMasterKey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.access import Access
    from scaivaultd.api.commands import Binding, RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.sealing import SealingRecord
    from scaivaultd.state import Unlocking
    from scaivaultd.store.sealing import EnvelopeSealer

RETRY_SECONDS = 30.0
SAY_AGAIN_SECONDS = 600.0
WRONG_MAX = 5
WRONG_SECONDS = 60.0


class Unsealing:
    """Waits for the key, and answers for the daemon meanwhile. `sealer` is there once `run` has returned."""

    def __init__(self, unlocking: Unlocking, trouble: NoMasterKey, *, clock: Clock, log: FilteringBoundLogger) -> None:
        self._unlocking = unlocking
        self._trouble = trouble
        self._clock = clock
        self._log = log
        self._said: tuple[str, float] | None = None
        self._wake = asyncio.Event()
        self._deriving = asyncio.Lock()
        self._wrong: deque[float] = deque(maxlen=WRONG_MAX)
        self.sealer: EnvelopeSealer | None = None

    def bindings(self, access: Access) -> Sequence[Binding]:
        """Every row of the table: a few have an answer, the others say that the daemon is sealed."""
        answered = [
            commands.HEALTH.bind(self.health),
            commands.MASTER_KEY.bind(self.get),
            commands.UNSEAL.bind(self.unseal),
            commands.WHO_AM_I.bind(access.answers.who_am_i),
        ]
        names = {each.command.name for each in answered}
        return [*answered, *(each.bind(self._refuse) for each in commands.COMMANDS if each.name not in names)]

    def retry(self) -> None:
        """Look for the key now."""
        self._wake.set()

    async def run(self) -> None:
        """Look for the key again and again, until it is there.

        Raises:
            StartupError: it can never be: the configuration must be changed.
        """
        while self.sealer is None:
            self._say()
            await self._pause()
            if self.sealer is None:
                await self._look()

    async def _pause(self) -> None:
        pause = asyncio.ensure_future(self._clock.sleep(RETRY_SECONDS))
        woken = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait((pause, woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            woken.cancel()
        self._wake.clear()

    async def _look(self) -> None:
        if self._unlocking.source.startswith("env:"):
            return  # what a process was started with does not change, and was taken away when it was read
        try:
            self._unsealed(await self._unlocking.attempt())
        except NoMasterKey as trouble:
            self._trouble = trouble
        except e.StorageUnavailable as error:
            self._log.warning("store.unavailable", reason=error.detail)

    def _unsealed(self, sealer: EnvelopeSealer) -> None:
        if self.sealer is None:
            self.sealer = sealer
            self._log.info("secrets.unsealed", key_id=sealer.kid, source=self._unlocking.source)
        self._wake.set()

    def _say(self) -> None:
        """Tell what is missing; the same again only now and then."""
        now, text = self._clock.monotonic(), str(self._trouble)
        if self._said is None or self._said[0] != text or now - self._said[1] >= SAY_AGAIN_SECONDS:
            self._said = (text, now)
            self._log.error("secrets.sealed", reason=self._trouble.reason, detail=text)

    async def report(self) -> m.HealthReply:
        """How the daemon is: sealed, and why."""
        detail = f"{self._trouble.reason}: {self._trouble}"
        return m.HealthReply(
            status="sealed", components=[m.ComponentHealth(name="master_key", status="down", detail=detail)]
        )

    async def health(self, request: m.Nothing, context: RequestContext) -> m.HealthReply:
        """Handle `sys.health`."""
        return await self.report()

    async def get(self, request: m.Nothing, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.master_key.get`."""
        return self._reply(await self._record())

    async def unseal(self, request: am.Unseal, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.unseal`."""
        if context.principal.kind != "unix":
            raise e.PermissionDenied("a passphrase is taken over the UNIX socket only: run `scaivaultctl unseal` there")
        if self._unlocking.source != PASSPHRASE:
            raise e.Conflict(
                f"the master key is looked for in {self._unlocking.source}, not made from a passphrase: {self._trouble}"
            )
        self._require_patience()
        async with self._deriving:
            await self._try(Secret(request.passphrase), context)
        return self._reply(await self._record())

    def _require_patience(self) -> None:
        if self._deriving.locked():
            raise e.RateLimited("another passphrase is being tried just now", 1)
        if len(self._wrong) == WRONG_MAX:
            left = self._wrong[0] + WRONG_SECONDS - self._clock.monotonic()
            if left > 0:
                raise e.RateLimited(f"{WRONG_MAX} wrong passphrases within a minute", left)

    async def _try(self, passphrase: Secret, context: RequestContext) -> None:
        if self.sealer is not None:
            return
        try:
            sealer = await self._unlocking.by_passphrase(passphrase)
        except NoMasterKey as error:
            self._wrong.append(self._clock.monotonic())
            self._log.warning("secrets.unseal_refused", principal=str(context.principal), detail=str(error))
            raise e.PermissionDenied(str(error)) from error
        self._unsealed(sealer)

    async def _record(self) -> SealingRecord | None:
        try:
            return await self._unlocking.record()
        except NoMasterKey:
            return None  # damaged; the trouble says so

    def _reply(self, record: SealingRecord | None) -> am.MasterKeyReply:
        is_sealed = self.sealer is None
        return am.MasterKeyReply(
            is_sealed=is_sealed,
            reason=self._trouble.reason if is_sealed else None,
            detail=str(self._trouble) if is_sealed else "",
            kid=None if record is None else record.kid,
            source=self._unlocking.source,
            created_at=None if record is None else record.created_at,
            rotation=None if record is None else rotation_reply(record),
        )

    async def _refuse(self, request: Any, context: RequestContext) -> NoReturn:
        raise e.Sealed(f"the daemon is sealed: {self._trouble}")
