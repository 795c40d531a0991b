"""The state directory: held by one process, unlocked by one master key, named by one node id."""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import StartupError
from scaivaultd.model.ids import NodeId
from scaivaultd.model.sealing import SEALING_KEY, SealingRecord
from scaivaultd.model.storage import ABSENT, Put
from scaivaultd.services import audit_anchors
from scaivaultd.services.audit_anchors import AnchorBook
from scaivaultd.services.sealed_values import SEALED
from scaivaultd.store.master_key import SALT_BYTES, NoMasterKey
from scaivaultd.store.sealing import EnvelopeSealer, read_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import IdMaker
    from scaivaultd.plugin import Secret
    from scaivaultd.services.ports import Store
    from scaivaultd.store.key_sources import KeySources

PASSPHRASE = "passphrase"  # noqa: S105 - the name of a source
_NODE_KEY = "meta/node"


class _Node(msgspec.Struct, frozen=True, kw_only=True):
    id: NodeId


class StateDirectory:
    """The directory with an exclusive lock on it; the lock goes with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        """Make the directory if need be (0700) and lock it.

        Raises:
            StartupError: another process has it, or it cannot be used.
        """
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StartupError(f"state_dir {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise StartupError(
                f"state_dir {path} is in use by another scaivaultd (pid {holder}); stop it first, or give this one "
                "its own state_dir",
                exit_code=1,
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._lock)


class Unlocking:
    """Finds the key of a store. On an empty store the key that is there now becomes its key."""

    def __init__(
        self,
        store: Store,
        state_dir: Path,
        source: str | None,
        *,
        sources: KeySources,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """Without a configured source the key is `master.key` in the state directory, made on an empty store."""
        self._store = store
        self._has_own_file = source is None
        self._own_file = state_dir / "master.key"
        self._sources = sources
        self._clock = clock
        self._log = log
        # A plain text: it goes out in replies.
        self.source = str(source or own_key_source(state_dir))

    async def record(self) -> SealingRecord | None:
        """What the store says of its key; None while it is empty.

        Raises:
            NoMasterKey: that cannot be read.
        """
        stored = await self._store.get(SEALING_KEY)
        return None if stored is None else read_record(stored.document)

    async def attempt(self) -> EnvelopeSealer:
        """The sealer, by the key in the configured source.

        Raises:
            NoMasterKey: there is none that fits, and it may come yet; nothing was changed.
            StartupError: there can be no such source.
        """
        record = await self._require_whole()
        if self.source == PASSPHRASE:
            _require_salt(record)
            raise NoMasterKey(
                "passphrase_needed", "the master key is made from a passphrase: run `scaivaultctl unseal`"
            )
        if not self._has_own_file:
            return await self._sealer_of(await self._configured_key(record), record)
        if not self._own_file.exists():
            await self._make_own_file(record)
        sealer = await self._sealer_of(await self._sources.read(self.source), record)
        self._log.warning(
            "secrets.master_key_beside_store",
            path=str(self._own_file),
            advice="whoever copies state_dir has the key too; set [secrets] master_key to a file elsewhere",
        )
        return sealer

    async def by_passphrase(self, passphrase: Secret) -> EnvelopeSealer:
        """The sealer, by the key that is made from a passphrase; the first one ever given is the store's.

        Raises:
            NoMasterKey: it is another one.
        """
        record = await self._require_whole()
        if record is None:
            salt = secrets.token_bytes(SALT_BYTES)
            return await self._sealer_of(await self._sources.derive(passphrase, salt), None, salt)
        _require_salt(record)
        for salt in _salts(record):
            with suppress(NoMasterKey):
                return await self._sealer_of(await self._sources.derive(passphrase, salt), record)
        raise NoMasterKey("key_mismatch", "that is not the passphrase of this store")

    async def _require_whole(self) -> SealingRecord | None:
        record = await self.record()
        if record is None and await self._holds_sealed():
            raise NoMasterKey(
                "key_mismatch",
                "the store holds sealed values, but its key check record is gone: restore a backup of the store",
            )
        return record

    async def _holds_sealed(self) -> bool:
        for each in SEALED:
            if (await self._store.scan(each.prefix, limit=1)).items:
                return True
        return False

    async def _sealer_of(self, key: bytes, record: SealingRecord | None, salt: bytes | None = None) -> EnvelopeSealer:
        if record is not None:
            return EnvelopeSealer.unlock(key, msgspec.msgpack.encode(record))
        store_id = secrets.token_hex(16)
        sealer = EnvelopeSealer(key, store_id)
        document = sealer.check_record(self._clock.now(), salt)
        # With a book for the audit log's anchors from the first moment on: where there is none, somebody took it away.
        book = audit_anchors.put(AnchorBook(), sealer)
        await self._store.commit([Put(key=SEALING_KEY, document=document, expect_revision=ABSENT), book])
        self._log.info("store.initialised", store_id=store_id, key_id=sealer.kid)
        return sealer

    async def _configured_key(self, record: SealingRecord | None) -> bytes:
        try:
            return await self._sources.read(self.source)
        except NoMasterKey as error:
            # A variable holds a key with a mistake in it, perhaps: what is started from here must not see that either.
            self._sources.forget(self.source)
            if record is None and self.source.startswith("file:"):
                path = self.source.removeprefix("file:")
                advice = f"{error}. The store is new: `scaivaultctl keys init --file {path}` makes a key for it"
                raise NoMasterKey(error.reason, advice) from error
            raise

    async def _make_own_file(self, record: SealingRecord | None) -> None:
        if record is not None:
            raise NoMasterKey(
                "key_missing",
                f"the master key {self._own_file} is missing, but the store holds keys sealed with it; put it back, "
                "or name its place in [secrets] master_key",
            )
        try:
            await self._sources.create(self.source)
        except StartupError as error:
            raise NoMasterKey("key_missing", str(error)) from error


async def node_id(store: Store, ids: IdMaker) -> NodeId:
    """Who this state directory is: made once, kept for ever."""
    stored = await store.get(_NODE_KEY)
    if stored is not None:
        return msgspec.json.decode(stored.document, type=_Node).id
    node = _Node(id=ids.node())
    await store.commit([Put(key=_NODE_KEY, document=msgspec.json.encode(node), expect_revision=ABSENT)])
    return node.id


def own_key_source(state_dir: Path) -> str:
    """The source of the key that the daemon makes for itself where none is configured."""
    return f"file:{state_dir / 'master.key'}"


def _salts(record: SealingRecord) -> Sequence[bytes]:
    rotation = record.rotation
    old = rotation.old.salt if rotation is not None and rotation.is_under_way else None
    return [each for each in (record.salt, old) if each is not None]


def _require_salt(record: SealingRecord | None) -> None:
    if record is not None and not _salts(record):
        raise NoMasterKey(
            "key_mismatch",
            f"this store's master key {record.kid} does not come from a passphrase: name its place in "
            "[secrets] master_key",
        )
