"""Making a backup of a state directory in use: copied first, then locked away, then given its name."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.backups import BackupWritten
from scaivaultd.model.errors import Conflict, StorageUnavailable
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.store import backup_file
from scaivaultd.store.backup_file import KEYS, STORE, Keys, Manifest
from scaivaultd.store.backup_keys import (
    FILE_KEY_BYTES,
    CannotOpen,
    Lock,
    check_recipient,
    lock_by_passphrase,
    lock_for,
)
from scaivaultd.store.backup_sources import AuditSnapshot, Source
from scaivaultd.store.durable import sync_directory
from scaivaultd.store.master_key import NoMasterKey
from scaivaultd.store.sealing import EnvelopeSealer, read_record
from scaivaultd.store.sqlite_backup import copy_store, document_in
from scaivaultd.store.sqlite_errors import translated

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from datetime import datetime
    from pathlib import Path
    from typing import BinaryIO

    from scaivaultd.plugin import Secret

FOLDER = "backups"
SUFFIX = ".scvb"


class BackupStopped(Exception):
    """Whoever wanted the backup does not any more."""


class BackupMaker:
    """Writes backups into a folder of the state directory; as `services/backups.py` wants it."""

    def __init__(self, state_dir: Path, store_name: str, keyring: EnvelopeSealer, *, version: str) -> None:
        self._folder = state_dir / FOLDER
        self._audit = state_dir / "audit"
        self._store = state_dir / store_name
        self._keyring = keyring
        self._version = version

    def mistake_in(self, recipient: str) -> str | None:
        """Why no backup can be locked for this."""
        try:
            check_recipient(recipient)
        except CannotOpen as error:
            return str(error)
        return None

    def write(
        self, *, recipient: str | None, passphrase: Secret | None, node_id: str, now: datetime, stop: threading.Event
    ) -> BackupWritten:
        """Write one. Blocks; ends with BackupStopped soon after `stop` was set. Nothing is left of one that failed.

        Raises:
            Conflict: the master key changed at this moment.
            StorageUnavailable: the disk does not let us.
        """

        def look() -> None:
            if stop.is_set():
                raise BackupStopped

        file_key = secrets.token_bytes(FILE_KEY_BYTES)
        lock = lock_by_passphrase(file_key, passphrase.reveal()) if passphrase else lock_for(file_key, recipient or "")
        try:
            self._make_folder()
            return self._write(lock, file_key, node_id, now, look)
        except sqlite3.Error as error:
            raise StorageUnavailable(f"no backup was made: {translated(error)}") from error
        except OSError as error:
            raise StorageUnavailable(
                f"no backup was made: the folder {FOLDER} of state_dir cannot be written ({error.strerror})"
            ) from error

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        # What a process has left that was killed.
        for each in self._folder.glob(".*.tmp"):
            each.unlink(missing_ok=True)

    def _write(
        self, lock: Lock, file_key: bytes, node_id: str, now: datetime, look: Callable[[], None]
    ) -> BackupWritten:
        # The audit log is opened first: what the store's anchors know must be in its files, even if they go now.
        with AuditSnapshot(self._audit) as audit, self._temporary("store") as (copy, copy_file):
            copied = copy_store(self._store, copy, look)
            record = document_in(copy, SEALING_KEY) or b""
            keys = msgspec.msgpack.encode(Keys(master_key=self._key_of(record)))
            audit_sources = audit.sources()
            sources = [
                Source.of_bytes(KEYS, keys),
                Source.of_file(STORE, copy_file.fileno(), copy.stat().st_size),
                *audit_sources,
            ]
            parts = [each.described(look) for each in sources]
            sealing = read_record(record)
            manifest = Manifest(
                created_at=now,
                version=self._version,
                schema_version=copied.schema_version,
                store_id=sealing.store_id,
                kid=sealing.kid,
                node_id=node_id,
                documents=copied.documents,
                pending_events=copied.pending_events,
                audit_records=sum(each.lines for each in audit_sources),
                parts=parts,
                lock=lock,
            )
            with self._temporary("backup") as (path, file):
                content = (block for each in sources for block in each.blocks(look))
                sha256 = backup_file.write(file, manifest, file_key, content)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
                target = self._named(path, now)
        return BackupWritten(
            path=str(target),
            bytes=size,
            sha256=sha256,
            created_at=now,
            documents=manifest.documents,
            audit_records=manifest.audit_records,
        )

    def _key_of(self, record: bytes) -> bytes:
        """The master key that opens the copy; the one in use may have changed since it was made."""
        key = self._keyring.master_key
        try:
            EnvelopeSealer.unlock(key, record)
        except NoMasterKey as error:
            raise Conflict("the master key was changed while the store was copied; make the backup again") from error
        return key

    @contextmanager
    def _temporary(self, what: str) -> Iterator[tuple[Path, BinaryIO]]:
        path = self._folder / f".{what}-{secrets.token_hex(4)}.tmp"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield path, file
        finally:
            path.unlink(missing_ok=True)

    def _named(self, path: Path, now: datetime) -> Path:
        number = 0
        while True:
            more = f"-{number}" if number else ""
            target = self._folder / f"scaivaultd-{now:%Y%m%dT%H%M%SZ}{more}{SUFFIX}"
            try:
                # Unlike a rename, this never takes the place of another one.
                os.link(path, target)
            except FileExistsError:
                number += 1
                continue
            sync_directory(self._folder)
            return target
