"""The state directory: held by one process, unlocked by one master key, named by one node id."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import StartupError
from scaivaultd.model.ids import NodeId
from scaivaultd.model.storage import ABSENT, Put
from scaivaultd.store.master_key import create_master_key_file, load_master_key
from scaivaultd.store.sealing import EnvelopeSealer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import IdMaker
    from scaivaultd.services.ports import Store

_NODE_KEY = "meta/node"
_SEALING_KEY = "meta/sealing"


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


async def unlock(
    store: Store,
    state_dir: Path,
    source: str | None,
    *,
    environment: Mapping[str, str],
    credentials_directory: Path | None,
    clock: Clock,
    log: FilteringBoundLogger,
) -> EnvelopeSealer:
    """The sealer of this store; on an empty store the key that is there now becomes its key.

    Without a configured source the key is `master.key` in the state directory, made on an empty store.

    Raises:
        StartupError: no key, or another store's key; nothing was changed.
    """
    record = await store.get(_SEALING_KEY)
    if source is None:
        source = _own_key_file(state_dir, may_create=record is None, log=log)
    key = load_master_key(source, environment=environment, credentials_directory=credentials_directory)
    if record is not None:
        return EnvelopeSealer.unlock(key, record.document)
    store_id = os.urandom(16).hex()
    sealer = EnvelopeSealer(key, store_id)
    await store.commit([Put(key=_SEALING_KEY, document=sealer.check_record(clock.now()), expect_revision=ABSENT)])
    log.info("store.initialised", store_id=store_id, key_id=sealer.kid)
    return sealer


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


def _own_key_file(state_dir: Path, *, may_create: bool, log: FilteringBoundLogger) -> str:
    path = state_dir / "master.key"
    if not path.exists():
        if not may_create:
            raise StartupError(
                f"the master key {path} is missing, but the store holds keys sealed with it; put it back, or name "
                "its place in [secrets] master_key"
            )
        create_master_key_file(path)
    log.warning(
        "secrets.master_key_beside_store",
        path=str(path),
        advice="whoever copies state_dir has the key too; set [secrets] master_key to a file elsewhere",
    )
    return own_key_source(state_dir)
