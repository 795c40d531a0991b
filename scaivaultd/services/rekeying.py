"""Seals everything in the store under another master key, while the daemon works and whatever stops it.

The store's sealing record says what there is to do, so a restart needs no special path:

    rotation under way     new values are under the new key, old ones are rewrapped; either master key opens the store
    earlier keys kept      the new master key alone opens it; what was on its way into the store is looked for once more
    none kept              done

Values are rewrapped, not encrypted anew: 60 bytes each. Every commit expects the revision it has read, so what a
service writes meanwhile wins, and is looked at in the next round.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from scaivaultd.model.errors import Internal, RevisionConflict, StorageUnavailable
from scaivaultd.model.sealing import SEALING_KEY, SealingRecord
from scaivaultd.model.storage import Put
from scaivaultd.services.documents import Versioned
from scaivaultd.services.ports import Sealer
from scaivaultd.services.sealed_values import SEALED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.plugin import Secret
    from scaivaultd.services.ports import Store
    from scaivaultd.services.sealed_values import SealedShelf

BATCH = 499  # with the record they are as much as one commit takes
ROUND_SECONDS = 1.0
ROUNDS = 5
"""What is still there in as many rounds is not there because somebody writes it again and again."""


class Keyring(Sealer, Protocol):
    """The seal, as whoever changes its key knows it."""

    @property
    def kid(self) -> str:
        """The public name of the key that values are sealed under."""
        ...

    def rewrapped(self, sealed: bytes, place: str, field: str) -> bytes:
        """The same value under the key in use; raises Internal when it cannot be."""
        ...

    def rotation_to(
        self,
        new_key: bytes,
        record: SealingRecord,
        *,
        source: str,
        replaces_file: bool,
        salt: bytes | None,
        now: datetime,
    ) -> SealingRecord:
        """The record with which a rotation begins; raises ValueError when that key is in use already."""
        ...

    def adopt(self, record: SealingRecord) -> None:
        """Seal by the record from now on."""
        ...

    def new_key(self, record: SealingRecord) -> bytes:
        """The new master key of a rotation that is under way."""
        ...


class KeySources(Protocol):
    """Where master keys are. `source` is `file:PATH`, `credential:NAME` or `env:NAME`."""

    async def read(self, source: str) -> bytes:
        """The key there; raises StartupError when there is none that can be used."""
        ...

    async def derive(self, passphrase: Secret, salt: bytes) -> bytes:
        """The key that a passphrase stands for."""
        ...

    async def stage(self, source: str) -> bytes:
        """Draw a new key and write it beside the file of a source; raises OSError."""
        ...

    async def unstage(self, source: str) -> None:
        """Take it away again."""
        ...

    async def replace(self, source: str, key: bytes) -> None:
        """Put it in the place of the key in that file; raises OSError. May be repeated."""
        ...


class Rekeying:
    """Carries out what the sealing record says is to be done."""

    def __init__(
        self,
        *,
        store: Store,
        keyring: Keyring,
        sources: KeySources,
        forget: Callable[[], Awaitable[bool]],
        marks_of: Callable[[str], Collection[bytes]],
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`forget` takes what was overwritten out of the store's files, if it can.

        `marks_of` tells by which bytes a document is known that holds a value under a key.
        """
        self._store = store
        self._keyring = keyring
        self._sources = sources
        self._forget = forget
        self._marks_of = marks_of
        self._clock = clock
        self._log = log
        self._stuck: set[str] = set()
        self.stuck: Sequence[str] = ()
        """The documents whose values could not be sealed anew, when all were looked at last."""

    async def record(self) -> Versioned[SealingRecord]:
        """What the store says of its seal."""
        stored = await self._store.get(SEALING_KEY)
        if stored is None:
            raise Internal("the store's sealing record is gone")
        try:
            return Versioned(msgspec.msgpack.decode(stored.document, type=SealingRecord), stored.revision)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Internal("the store's sealing record is damaged") from error

    async def carry_on(self) -> bool:
        """Go on to the next state; whether there is more to be done later. May be repeated after any failure.

        Raises:
            StorageUnavailable: the store cannot be written now.
            OSError: the key file cannot be written now.
            RevisionConflict: another rotation has begun meanwhile.
        """
        began = (await self.record()).value
        self._keyring.adopt(began)
        if not began.kept:
            return False
        left = await self._rewrap_all(began.kept)
        current = await self.record()
        if current.value.kid != began.kid:
            return True  # another rotation has begun, and its old key was not among those looked for
        rotation = current.value.rotation
        if rotation is not None and rotation.is_under_way:
            await self._finish(current)
            return True
        await self._drop(current, left)
        return bool(left)

    async def _finish(self, current: Versioned[SealingRecord]) -> None:
        record, rotation = current.value, current.value.rotation
        assert rotation is not None
        if rotation.replaces_file:
            # Before the record: until that is written either key opens the store, and afterwards only this one.
            await self._sources.replace(rotation.source, self._keyring.new_key(record))
        ended = msgspec.structs.replace(rotation, new_key=None, finished_at=self._clock.now())
        await self._write(msgspec.structs.replace(record, rotation=ended), current.revision)
        await self._forget_overwritten()
        self._log.info(
            "master_key.rotated",
            from_kid=rotation.old.kid,
            to_kid=record.kid,
            source=rotation.source,
            rewrapped=rotation.rewrapped,
        )

    async def _drop(self, current: Versioned[SealingRecord], left: Collection[str]) -> None:
        kept = {kid: each for kid, each in current.value.kept.items() if kid in left}
        if kept != current.value.kept:
            await self._write(msgspec.structs.replace(current.value, kept=kept), current.revision)
            await self._forget_overwritten()
            self._log.info("master_key.dropped", kids=sorted(current.value.kept.keys() - kept.keys()))

    async def _forget_overwritten(self) -> None:
        try:
            is_done = await self._forget()
        except StorageUnavailable as error:
            self._log.warning("master_key.log_not_emptied", reason=error.detail)
        else:
            if not is_done:
                self._log.warning("master_key.log_not_emptied", reason="others read in it")

    async def _write(self, record: SealingRecord, revision: int) -> None:
        await self._store.commit([put_record(record, revision)])
        self._keyring.adopt(record)

    async def _rewrap_all(self, kids: Collection[str]) -> Collection[str]:
        """Round and round until nothing is left that can be rewrapped; the keys that something needs all the same."""
        self._stuck = set()
        seen: Counter[str] = Counter()
        while True:
            for each in SEALED:
                await self._rewrap_shelf(each)
            left = await self._left(kids)
            seen.update(left.keys())
            for key in left:
                if seen[key] >= ROUNDS:
                    self._note_stuck(key, "a value in it is under an earlier key, in no place that this version knows")
            if left.keys() <= self._stuck:
                self.stuck = sorted(left)  # the other ones need no key of before
                return {kid for found in left.values() for kid in found}
            await self._clock.sleep(ROUND_SECONDS)

    async def _rewrap_shelf(self, sealed: SealedShelf[Any]) -> None:
        cursor = None
        while True:
            page = await sealed.shelf.page(self._store, where={}, cursor=cursor, limit=BATCH)
            for key in page.unreadable:
                self._note_stuck(key, "the document does not decode")
            puts = [put for each in page.items if (put := self._rewrapped(sealed, each)) is not None]
            if puts:
                await self._commit(puts)
            if (cursor := page.next_cursor) is None:
                return

    def _rewrapped(self, sealed: SealedShelf[Any], document: Versioned[Any]) -> Put | None:
        try:
            value = sealed.rewrapped(document.value, self._keyring.rewrapped)
        except Internal as error:
            self._note_stuck(sealed.shelf.put(document.value).key, error.detail)
            return None
        return None if value == document.value else sealed.shelf.put(value, document.revision)

    async def _commit(self, puts: Sequence[Put]) -> None:
        current = await self.record()
        try:
            await self._store.commit([*puts, _counted(current, len(puts))])
        except RevisionConflict:
            for put in puts:
                await self._commit_alone(put)

    async def _commit_alone(self, put: Put) -> None:
        current = await self.record()
        try:
            await self._store.commit([put, _counted(current, 1)])
        except RevisionConflict:
            self._log.debug("master_key.document_changed", key=put.key)  # the next round sees what it is now

    async def _left(self, kids: Collection[str]) -> dict[str, set[str]]:
        """The documents that hold a value under one of these keys, whatever their kind, and which keys."""
        marks = {mark: kid for kid in kids for mark in self._marks_of(kid)}
        left: dict[str, set[str]] = {}
        after = None
        while True:
            page = await self._store.scan("", after=after, limit=BATCH)
            for each in page.items:
                found = {kid for mark, kid in marks.items() if mark in each.document}
                if found and each.key != SEALING_KEY:
                    left[each.key] = found
            if (after := page.next_cursor) is None:
                return left

    def _note_stuck(self, key: str, detail: str) -> None:
        if key not in self._stuck:
            self._stuck.add(key)
            self._log.error("master_key.not_rewrapped", key=key, detail=detail)


def put_record(record: SealingRecord, revision: int) -> Put:
    """The change that writes the sealing record over the one that was read."""
    return Put(key=SEALING_KEY, document=msgspec.msgpack.encode(record), expect_revision=revision)


def _counted(current: Versioned[SealingRecord], more: int) -> Put:
    record, rotation = current.value, current.value.rotation
    if rotation is not None and rotation.is_under_way:
        counted = msgspec.structs.replace(rotation, rewrapped=rotation.rewrapped + more)
        record = msgspec.structs.replace(record, rotation=counted)
    return put_record(record, current.revision)
