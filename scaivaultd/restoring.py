"""Backups without a daemon: looking into one, and making a state directory of it."""

from __future__ import annotations

import asyncio
import fcntl
import io
import logging
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from scaivaultd.api.audit import verify_kept
from scaivaultd.model.backups import RESTORED_KEY, Restored
from scaivaultd.model.clock import SystemClock
from scaivaultd.model.errors import ScaivaultError, StartupError
from scaivaultd.model.sealing import SEALING_KEY, SealingRecord
from scaivaultd.model.storage import Put
from scaivaultd.services import audit_anchors
from scaivaultd.services.sealed_values import SEALED
from scaivaultd.store.audit_file import AuditFiles
from scaivaultd.store.backup_file import KEYS, STORE, BackupFile, Keys, Manifest
from scaivaultd.store.backup_keys import CannotOpen, open_by_identity, open_by_passphrase
from scaivaultd.store.durable import sync_directory
from scaivaultd.store.master_key import create_master_key_file, load_master_key
from scaivaultd.store.sealing import EnvelopeSealer, read_record
from scaivaultd.store.sqlite import SqliteStore
from scaivaultd.store.sqlite_backup import count, document_in, open_still

if TYPE_CHECKING:
    from typing import BinaryIO

    from scaivaultd.api.audit import ChainReport
    from scaivaultd.store.backup_file import Part

_PAGE = 500
OWN_KEY = "master.key"
NOT_WRITTEN = "none"


class OpeningKey(msgspec.Struct, frozen=True, kw_only=True):
    """What opens a backup: exactly one of the two."""

    passphrase: str | None = None
    identity: str | None = None

    def __repr__(self) -> str:
        return "OpeningKey()"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What was found in a backup. Without the key only the manifest and the length were looked at."""

    manifest: Manifest
    bytes: int
    is_opened: bool = False
    sealed_values: int = 0
    audit_records: int = 0
    audit_broken: str | None = None


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """To whom a restored state directory is given."""

    uid: int
    gid: int


class RestoredState(msgspec.Struct, frozen=True, kw_only=True):
    """What a restore has made.

    `key_file` is where the master key was written, if it was; `is_sealed_anew`: another key was there, and the daemon
    will seal everything under that one; `has_passphrase`: the store's key is made from a passphrase.
    """

    verdict: Verdict
    key_file: str | None
    is_sealed_anew: bool
    has_passphrase: bool


def verify(path: Path, key: OpeningKey | None) -> Verdict:
    """Look whether everything in a backup can be used. Needs room for the store in the temporary directory.

    Raises:
        CannotOpen: something is not as it should be; the text says what.
    """
    with BackupFile(path) as backup:
        if not backup.has_all_bytes:
            raise CannotOpen(f"{path} has {backup.size} bytes, which is not what its header tells: it was cut off")
        if key is None:
            return Verdict(manifest=backup.manifest, bytes=backup.size)
        with tempfile.TemporaryDirectory(prefix="scaivault-verify-") as folder, _told(folder):
            return _judged(Path(folder), backup, _unpack(backup, key, Path(folder)))


def restore(
    path: Path, state_dir: Path, key: OpeningKey, *, master_key: str | None = None, owner: Owner
) -> RestoredState:
    """Make a state directory of a backup, or leave nothing; one that is there must be empty.

    It is built beside its place and takes that in one step, so that a process that is killed leaves an empty place or
    a complete one; what it has left beside, the next one throws away. `master_key` is `file:PATH`: a key that is there
    takes the place of the backup's, else the backup's is written there; `none`: it is not written; None: it is
    written into the state directory, unless it comes from a passphrase.

    Raises:
        CannotOpen: the backup, the place, or the key there cannot be used; nothing was changed.
    """
    state_dir = state_dir.absolute()
    _require_place(state_dir)
    with BackupFile(path) as backup, _told(state_dir), _building(state_dir) as folder:
        keys = _unpack(backup, key, folder)
        verdict = _judged(folder, backup, keys)
        document = document_in(folder / STORE, SEALING_KEY) or b""
        sealer, record = EnvelopeSealer.unlock(keys.master_key, document), read_record(document)
        plan = _planned(master_key, state_dir, record, keys, owner)
        asyncio.run(_adapted(folder, path.name, backup.manifest, sealer, record, plan))
        if plan.write_to is not None:
            _write_key(plan.write_to, folder, state_dir, keys, owner)
        _hand_over(folder, owner)
        folder.rename(state_dir)
        sync_directory(state_dir.parent)
    return RestoredState(
        verdict=verdict,
        key_file=None if plan.write_to is None else str(plan.write_to),
        is_sealed_anew=plan.replace_by is not None,
        has_passphrase=record.salt is not None,
    )


def default_owner(state_dir: Path) -> Owner:
    """Whose the directory is that is there; else the daemon's user, if we are root and there is one; else we."""
    import pwd

    if state_dir.is_dir():
        status = state_dir.stat()
        return Owner(uid=status.st_uid, gid=status.st_gid)
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("scaivaultd")
        except KeyError:
            pass
        else:
            return Owner(uid=user.pw_uid, gid=user.pw_gid)
    return Owner(uid=os.geteuid(), gid=os.getegid())


def named_owner(text: str) -> Owner:
    """`USER` or `USER:GROUP`; raises CannotOpen where there is none."""
    import grp
    import pwd

    name, _, group = text.partition(":")
    try:
        user = pwd.getpwnam(name)
        return Owner(uid=user.pw_uid, gid=grp.getgrnam(group).gr_gid if group else user.pw_gid)
    except KeyError as error:
        raise CannotOpen(f"there is no such user or group: {text}") from error


@contextmanager
def _told(place: Path | str) -> Iterator[None]:
    """Errors of the disk and of the store in words."""
    try:
        yield
    except (StartupError, ScaivaultError) as error:
        raise CannotOpen(str(error)) from error
    except sqlite3.Error as error:
        raise CannotOpen(f"the store in the backup cannot be used: {error}") from error
    except OSError as error:
        raise CannotOpen(f"{error.filename or place}: {error.strerror}") from error


def _require_place(state_dir: Path) -> None:
    if not state_dir.parent.is_dir():
        raise CannotOpen(f"{state_dir.parent} is missing: make it first")
    if not os.path.lexists(state_dir):
        return
    if state_dir.is_symlink() or not state_dir.is_dir():
        raise CannotOpen(f"{state_dir} is no directory")
    if state_dir.is_mount():
        raise CannotOpen(
            f"{state_dir} is a mount point, which cannot be replaced in one step: restore into a directory below it, "
            "and name that as state_dir"
        )
    if any(state_dir.iterdir()):
        running = " (a daemon is running there)" if _is_locked(state_dir / "lock") else ""
        raise CannotOpen(f"{state_dir} is not empty{running}: a restore never writes over anything; move it away first")


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def _building(state_dir: Path) -> Iterator[Path]:
    """A folder beside the state directory, ours alone; gone at the end, unless it has got its place."""
    folder = state_dir.with_name(f".{state_dir.name}.restoring")
    folder.mkdir(mode=0o700, exist_ok=True)
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(held).st_uid != os.geteuid():
            raise CannotOpen(f"{folder} belongs to somebody else: remove it")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotOpen(f"another restore into {state_dir} is under way") from error
        try:
            # What a restore has left that was killed; there may be a master key in it.
            _empty(folder)
            yield folder
        finally:
            if folder.exists():
                shutil.rmtree(folder)
    finally:
        os.close(held)


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


class _Memory(io.BytesIO):
    """A file that never touches the disk; `content` is there once it was closed."""

    content = b""

    def close(self) -> None:
        if not self.closed:
            self.content = self.getvalue()
        super().close()


def _unpack(backup: BackupFile, key: OpeningKey, folder: Path) -> Keys:
    """The parts into files, the keys into memory alone."""
    lock = backup.manifest.lock
    if key.identity is not None:
        file_key = open_by_identity(lock, key.identity)
    else:
        file_key = open_by_passphrase(lock, key.passphrase or "")
    keys = _Memory()

    def into(part: Part) -> BinaryIO:
        if part.name == KEYS:
            return keys
        return _new_file(_place_of(part.name, folder))

    backup.unpack(file_key, into)
    try:
        return msgspec.msgpack.decode(keys.content, type=Keys)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise CannotOpen("the backup holds no master key that this version can read") from None


def _place_of(name: str, folder: Path) -> Path:
    if name == STORE:
        return folder / STORE
    if re.fullmatch(r"audit/audit-[0-9]{12}\.jsonl", name):
        (folder / "audit").mkdir(mode=0o700, exist_ok=True)
        return folder / name
    raise CannotOpen(f"the backup holds {name!r}, which this version does not know")


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _judged(folder: Path, backup: BackupFile, keys: Keys) -> Verdict:
    """Look at everything that was unpacked, as a daemon would use it."""
    manifest, store = backup.manifest, folder / STORE
    with closing(open_still(store)) as connection:
        verdict: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if verdict != "ok":
        raise CannotOpen(f"the store in the backup is damaged: {verdict}")
    if count(store).documents != manifest.documents:
        raise CannotOpen("the store in the backup has not as many documents as its header says")
    sealer = EnvelopeSealer.unlock(keys.master_key, document_in(store, SEALING_KEY) or b"")
    opened, report = asyncio.run(_looked_into(folder, sealer))
    broken = report.broken
    return Verdict(
        manifest=manifest,
        bytes=backup.size,
        is_opened=True,
        sealed_values=opened,
        audit_records=report.sound,
        audit_broken=None if broken is None else f"{broken.kind} at record {broken.sequence}: {broken.detail}",
    )


async def _looked_into(folder: Path, sealer: EnvelopeSealer) -> tuple[int, ChainReport]:
    opened = 0

    def open_it(sealed: bytes, place: str, field: str) -> bytes:
        nonlocal opened
        sealer.open(sealed, place, field)
        opened += 1
        return sealed

    async with _store(folder) as store:
        for each in SEALED:
            cursor = None
            while True:
                page = await each.shelf.page(store, where={}, cursor=cursor, limit=_PAGE)
                for document in page.items:
                    each.rewrapped(document.value, open_it)
                if page.unreadable:
                    raise CannotOpen(f"the document {page.unreadable[0]} in the backup does not decode")
                if (cursor := page.next_cursor) is None:
                    break
        book = await audit_anchors.load(store, sealer)
    lines = AuditFiles(folder / "audit", file_bytes=1, keep=0).read()
    begin, anchors = (None, ()) if book is None else (book.begin, book.all)
    return opened, verify_kept(lines, begin=begin, anchors=anchors)


@asynccontextmanager
async def _store(folder: Path) -> AsyncIterator[SqliteStore]:
    """The unpacked store, brought forward to the schema of this version."""
    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    store = await SqliteStore.open(folder / STORE, clock=SystemClock(), log=silent)
    try:
        yield store
    finally:
        await store.close()


class _KeyPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the master key: written to `write_to`, or replaced by `replace_by`, which is there already."""

    source: str | None = None
    write_to: Path | None = None
    replace_by: bytes | None = None

    def __repr__(self) -> str:
        return f"_KeyPlan(source={self.source!r})"


def _planned(master_key: str | None, state_dir: Path, record: SealingRecord, keys: Keys, owner: Owner) -> _KeyPlan:
    if master_key == NOT_WRITTEN or (master_key is None and record.salt is not None):
        return _KeyPlan()
    if master_key is None:
        return _KeyPlan(write_to=state_dir / OWN_KEY)
    path = Path(master_key.removeprefix("file:"))
    if not master_key.startswith("file:") or not path.is_absolute():
        raise CannotOpen(f"--master-key is file:PATH with an absolute path, or {NOT_WRITTEN}")
    if not os.path.lexists(path):
        return _KeyPlan(source=master_key, write_to=path)
    there = load_master_key(master_key, environment={}, credentials_directory=None, also_of=owner.uid)
    if there == keys.master_key:
        return _KeyPlan(source=master_key)
    if record.rotation is not None and record.rotation.is_under_way:
        raise CannotOpen(
            f"the master key was being changed when the backup was made, and {path} holds a third one: restore with "
            "the backup's own key (another --master-key), and rotate later"
        )
    return _KeyPlan(source=master_key, replace_by=there)


async def _adapted(
    folder: Path, backup_name: str, manifest: Manifest, sealer: EnvelopeSealer, record: SealingRecord, plan: _KeyPlan
) -> None:
    """Have the store know that it was restored, and where its key is from now on."""
    clock = SystemClock()
    now = clock.now()
    restored = Restored(backup=backup_name, backup_created_at=manifest.created_at, restored_at=now)
    if plan.replace_by is not None:
        # A rotation, begun: the daemon seals anew what is there, and opens it by either key until that is done.
        record = sealer.rotation_to(
            plan.replace_by, record, source=plan.source or "", replaces_file=False, salt=None, now=now
        )
    elif record.rotation is not None and record.rotation.replaces_file:
        # The file of another machine.
        record = msgspec.structs.replace(record, rotation=msgspec.structs.replace(record.rotation, replaces_file=False))
    async with _store(folder) as store:
        await store.commit(
            [
                Put(key=RESTORED_KEY, document=msgspec.json.encode(restored)),
                Put(key=SEALING_KEY, document=msgspec.msgpack.encode(record)),
            ]
        )


def _write_key(path: Path, folder: Path, state_dir: Path, keys: Keys, owner: Owner) -> None:
    is_inside = path.parent == state_dir
    target = folder / path.name if is_inside else path
    create_master_key_file(target, keys.master_key)
    if not is_inside and os.geteuid() == 0:
        os.chown(target, owner.uid, owner.gid)


def _hand_over(folder: Path, owner: Owner) -> None:
    """All of it to its owner, for nobody else, and on stable storage."""
    for path in [folder, *folder.rglob("*")]:
        if os.geteuid() == 0:
            os.chown(path, owner.uid, owner.gid)
        path.chmod(0o700 if path.is_dir() else 0o600)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
