"""The master key as administrators see it: which one, where from, and its rotation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.model.errors import (
    Conflict,
    FieldError,
    InvalidRequest,
    PermissionDenied,
    RevisionConflict,
    ScaivaultError,
    StartupError,
)
from scaivaultd.plugin import Secret
from scaivaultd.services.rekeying import Rekeying, put_record

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.sealing import SealingRecord
    from scaivaultd.services.ports import Store
    from scaivaultd.services.rekeying import Keyring, KeySources

SETTLE_SECONDS = 120.0
"""How long a value may be on its way into the store, sealed under the key of before."""

AGAIN_SECONDS = 3600.0
RETRY_SECONDS = 10.0
_SALT_BYTES = 16


class _NewKey(msgspec.Struct, frozen=True, kw_only=True):
    key: bytes
    source: str
    salt: bytes | None = None
    replaces_file: bool = False

    def __repr__(self) -> str:
        return f"_NewKey(source={self.source!r})"


class MasterKeys:
    """Handlers of `sys.master_key.*` and `sys.unseal` while the daemon is not sealed."""

    def __init__(
        self,
        *,
        store: Store,
        keyring: Keyring,
        source: str,
        sources: KeySources,
        forget: Callable[[], Awaitable[bool]],
        marks_of: Callable[[str], Collection[bytes]],
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        """`source` is where the key came from; the others are as in `Rekeying`."""
        self._store = store
        self._keyring = keyring
        self._source = source
        self._places = {source}
        self._sources = sources
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._rekeying = Rekeying(
            store=store, keyring=keyring, sources=sources, forget=forget, marks_of=marks_of, clock=clock, log=log
        )
        self._begun = asyncio.Event()
        self._beginning = asyncio.Lock()
        self._trouble = ""

    async def resume(self) -> None:
        """Go on with a rotation that a stop has interrupted."""
        rotation = (await self._rekeying.record()).value.rotation
        if rotation is not None:
            self._places.add(rotation.source)
        if rotation is not None and rotation.is_under_way:
            self._log.info("master_key.rotation_resumed", to_kid=self._keyring.kid, rewrapped=rotation.rewrapped)
        self._begun.set()

    async def run(self) -> None:
        """Rewrap what a rotation has left to do; ends by cancellation."""
        while True:
            await self._begun.wait()
            self._begun.clear()
            await self._carry_on()

    async def _carry_on(self) -> None:
        """Until there is nothing more to be done."""
        is_left = True
        while is_left:
            pause = SETTLE_SECONDS
            try:
                is_left = await self._rekeying.carry_on()
                self._trouble = ""
                if self._rekeying.stuck:
                    pause = AGAIN_SECONDS
            except RevisionConflict:
                continue
            except (ScaivaultError, StartupError, OSError) as error:
                self._trouble = f"the rotation waits: {error}"
                self._log.warning("master_key.rotation_waits", reason=str(error))
                pause = RETRY_SECONDS
            if is_left and not self._begun.is_set():
                await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Wait, or less where another rotation begins."""
        pause = asyncio.ensure_future(self._clock.sleep(seconds))
        begun = asyncio.ensure_future(self._begun.wait())
        try:
            await asyncio.wait((pause, begun), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            begun.cancel()

    @property
    def trouble(self) -> str | None:
        """What keeps a rotation from ending, for whoever asks how the daemon is."""
        if self._trouble:
            return self._trouble
        if stuck := self._rekeying.stuck:
            some = ", ".join(stuck[:3])
            return f"{len(stuck)} documents could not be sealed anew, and need the key of before: {some}"
        return None

    @property
    def places(self) -> Collection[str]:
        """Every source of a master key, old or to come, and the files beside them in which a new one is staged."""
        staged = [
            f"file:{path.with_name(path.name + '.next')}"
            for each in self._places
            if each.startswith("file:")
            for path in {Path(each[5:]), Path(each[5:]).resolve()}
        ]
        return [*self._places, *staged]

    @property
    def kid(self) -> str:
        """The key that values are sealed under."""
        return self._keyring.kid

    async def get(self, request: m.Nothing, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.master_key.get`."""
        return self._reply((await self._rekeying.record()).value)

    async def rotate(self, request: am.RotateMasterKey, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.master_key.rotate`."""
        async with self._beginning:
            current = await self._rekeying.record()
            if current.value.rotation is not None and current.value.rotation.is_under_way:
                raise Conflict("a rotation is under way; `sys.master_key.get` shows how far it is")
            new = await self._new_key(request, context)
            self._places.add(new.source)
            try:
                record = self._keyring.rotation_to(
                    new.key,
                    current.value,
                    source=new.source,
                    replaces_file=new.replaces_file,
                    salt=new.salt,
                    now=self._clock.now(),
                )
                await self._store.commit([put_record(record, current.revision)])
            except (ScaivaultError, RevisionConflict, ValueError) as error:
                if new.replaces_file:
                    await self._sources.unstage(new.source)
                if isinstance(error, ScaivaultError):
                    raise
                raise Conflict(f"{error}; look at `sys.master_key.get`") from error
            finally:
                # However the commit ended: what is in the store counts, and the room finds out.
                self._begun.set()
            self._keyring.adopt(record)
            self._source = new.source
        self._log.info(
            "master_key.rotation_begun",
            from_kid=current.value.kid,
            to_kid=record.kid,
            source=new.source,
            request_id=context.request_id,
        )
        return self._reply(record)

    async def unseal(self, request: am.Unseal, context: RequestContext) -> am.MasterKeyReply:
        """Handle `sys.unseal`; there is nothing to unseal."""
        raise Conflict("the daemon is not sealed")

    async def _new_key(self, request: am.RotateMasterKey, context: RequestContext) -> _NewKey:
        if request.new_passphrase is not None:
            _require_alone(request, context)
            salt = self._randomness.token_bytes(_SALT_BYTES)
            key = await self._sources.derive(Secret(request.new_passphrase), salt)
            return _NewKey(key=key, source="passphrase", salt=salt)
        if request.new_source is not None:
            return _NewKey(key=await self._read(request.new_source), source=request.new_source)
        if not self._source.startswith("file:"):
            detail = f"the daemon cannot write a key to {self._source}; make one elsewhere and name it in `new_source`"
            raise _refused("/new_source", detail)
        try:
            return _NewKey(key=await self._sources.stage(self._source), source=self._source, replaces_file=True)
        except OSError as error:
            raise Conflict(
                f"a new key cannot be written beside {self._source.removeprefix('file:')} ({error.strerror}): let the "
                "daemon write in that directory, or make a key elsewhere and name it in `new_source`"
            ) from error

    async def _read(self, source: str) -> bytes:
        if source.startswith("file:") and not source.startswith("file:/"):
            raise _refused("/new_source", "the path behind 'file:' must be absolute")
        if "\0" in source:
            raise _refused("/new_source", "no place has a NUL in its name")
        try:
            return await self._sources.read(source)
        except StartupError as error:
            raise _refused("/new_source", str(error)) from error

    def _reply(self, record: SealingRecord) -> am.MasterKeyReply:
        return am.MasterKeyReply(
            is_sealed=False,
            detail=self.trouble or "",
            kid=record.kid,
            source=self._source,
            created_at=record.created_at,
            rotation=rotation_reply(record),
        )


def rotation_reply(record: SealingRecord) -> am.RotationReply | None:
    """How far the last rotation is."""
    if (rotation := record.rotation) is None:
        return None
    return am.RotationReply(
        from_kid=rotation.old.kid,
        to_kid=record.kid,
        started_at=rotation.started_at,
        rewrapped=rotation.rewrapped,
        finished_at=rotation.finished_at,
    )


def _require_alone(request: am.RotateMasterKey, context: RequestContext) -> None:
    if request.new_source is not None:
        raise _refused("/new_passphrase", "give a new source or a new passphrase, not both")
    if context.principal.kind != "unix":
        detail = "a passphrase is taken over the UNIX socket only"
        raise PermissionDenied(detail, [FieldError(pointer="/new_passphrase", code="wrong_way", detail=detail)])


def _refused(pointer: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code="bad_source", detail=detail)])
