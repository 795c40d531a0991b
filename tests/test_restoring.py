"""A state directory out of a backup: complete or not there, with the right key, and marked as restored."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import resource
import shutil
import sqlite3
import stat
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import structlog

from scaivaultd.model.backups import RESTORED_KEY, Restored
from scaivaultd.model.clock import SystemClock
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.model.storage import Put
from scaivaultd.plugin import Secret
from scaivaultd.restoring import OpeningKey, Owner, Verdict, restore, verify
from scaivaultd.services.sealed_values import SEALED
from scaivaultd.store.backup_keys import CannotOpen, new_identity, recipient_of
from scaivaultd.store.backup_writing import BackupMaker
from scaivaultd.store.master_key import create_master_key_file, load_master_key
from scaivaultd.store.sealing import EnvelopeSealer, read_record
from scaivaultd.store.sqlite import SqliteStore
from scaivaultd.store.sqlite_backup import document_in

if TYPE_CHECKING:
    from scaivaultd.model.sealing import SealingRecord
    from scaivaultd.restoring import RestoredState

VERSION_1 = Path(__file__).parent / "store/version_1"
IDENTITY = new_identity()
KEY = OpeningKey(identity=IDENTITY)
US = Owner(uid=os.geteuid(), gid=os.getegid())
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OTHER = b"o" * 32


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A state directory with something of everything."""
    shutil.copytree(VERSION_1, tmp_path / "source")
    (tmp_path / "source/master.key").chmod(0o600)
    return tmp_path / "source"


def key_in(path: Path) -> bytes:
    return load_master_key(f"file:{path}", environment={}, credentials_directory=None)


def record_in(folder: Path) -> SealingRecord:
    return read_record(document_in(folder / "store.db", SEALING_KEY) or b"")


async def put(folder: Path, *changes: Put) -> None:
    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    store = await SqliteStore.open(folder / "store.db", clock=SystemClock(), log=silent)
    await store.commit(changes)
    await store.close()


def backed_up(source: Path, passphrase: str | None = None, key: bytes | None = None) -> Path:
    record = document_in(source / "store.db", SEALING_KEY) or b""
    sealer = EnvelopeSealer.unlock(key or key_in(source / "master.key"), record)
    written = BackupMaker(source, "store.db", sealer, version="1").write(
        recipient=None if passphrase else recipient_of(IDENTITY),
        passphrase=Secret(passphrase) if passphrase else None,
        node_id="node_1",
        now=NOW,
        stop=threading.Event(),
    )
    return Path(written.path)


def restored(backup: Path, tmp_path: Path, master_key: str | None = None) -> RestoredState:
    return restore(backup, tmp_path / "new", KEY, master_key=master_key, owner=US)


def beside(tmp_path: Path) -> list[str]:
    """What lies there that was not there before."""
    return sorted({each.name for each in tmp_path.iterdir()} - {"source"})


def all_opens(folder: Path, key: bytes) -> int:
    """How many sealed values a key opens; one that it does not open is an error."""
    sealer = EnvelopeSealer.unlock(key, document_in(folder / "store.db", SEALING_KEY) or b"")
    opened = 0

    def note(sealed: bytes, place: str, field: str) -> bytes:
        nonlocal opened
        sealer.open(sealed, place, field)
        opened += 1
        return sealed

    async def look() -> None:
        silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        store = await SqliteStore.open(folder / "store.db", clock=SystemClock(), log=silent)
        for each in SEALED:
            for item in (await each.shelf.page(store, where={}, cursor=None, limit=1000)).items:
                each.rewrapped(item.value, note)
        await store.close()

    asyncio.run(look())
    return opened


class TestARestore:
    def test_brings_everything_back_and_says_that_it_is_a_copy(self, source: Path, tmp_path: Path) -> None:
        """Without the mark two daemons would renew with the same accounts."""
        backup = backed_up(source)
        made = restored(backup, tmp_path)
        new = tmp_path / "new"
        assert all_opens(new, key_in(new / "master.key")) == made.verdict.sealed_values >= 7
        mark = msgspec.json.decode(document_in(new / "store.db", RESTORED_KEY) or b"", type=Restored)
        assert (mark.backup, mark.backup_created_at) == (backup.name, NOW)
        before = (source / "audit/audit-000000000001.jsonl").read_bytes()
        assert (new / "audit/audit-000000000001.jsonl").read_bytes() == before
        with closing(sqlite3.connect(new / "store.db")) as store:
            assert store.execute("SELECT count(*) FROM outbox").fetchone() == (4,)

    def test_is_for_its_owner_alone(self, source: Path, tmp_path: Path) -> None:
        """There is a master key in it."""
        restored(backed_up(source), tmp_path)
        new = tmp_path / "new"
        for path in [new, *new.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
        assert sorted(each.name for each in new.iterdir()) == ["audit", "master.key", "store.db"]
        assert beside(tmp_path) == ["new"]

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
    def test_by_root_it_is_given_to_the_daemons_user(self, source: Path, tmp_path: Path) -> None:
        """Else the daemon could not even open it."""
        made = restore(
            backed_up(source),
            tmp_path / "new",
            KEY,
            master_key=f"file:{tmp_path}/key",
            owner=Owner(uid=65534, gid=65534),
        )
        assert made.key_file == f"{tmp_path}/key"
        for path in [tmp_path / "key", tmp_path / "new", *(tmp_path / "new").rglob("*")]:
            assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)

    def test_takes_an_empty_directory_that_is_there(self, source: Path, tmp_path: Path) -> None:
        """A package or a unit has made it, perhaps."""
        (tmp_path / "new").mkdir()
        restored(backed_up(source), tmp_path)
        assert (tmp_path / "new/store.db").exists()

    def test_throws_away_what_a_killed_one_has_left(self, source: Path, tmp_path: Path) -> None:
        """There may be a master key in it, and half of a store."""
        left = tmp_path / ".new.restoring"
        (left / "audit").mkdir(parents=True)
        (left / "store.db").write_bytes(b"half")
        (left / "audit/old").write_bytes(b"x")
        restored(backed_up(source), tmp_path)
        assert sorted(each.name for each in (tmp_path / "new").iterdir()) == ["audit", "master.key", "store.db"]
        assert beside(tmp_path) == ["new"]

    def test_opens_by_a_passphrase_too(self, source: Path, tmp_path: Path) -> None:
        """The way without a key pair."""
        backup = backed_up(source, "correct horse")
        with pytest.raises(CannotOpen, match="not the passphrase"):
            restore(backup, tmp_path / "new", OpeningKey(passphrase="wrong"), owner=US)
        assert beside(tmp_path) == []
        restore(backup, tmp_path / "new", OpeningKey(passphrase="correct horse"), owner=US)
        assert (tmp_path / "new/store.db").exists()


class TestItsPlace:
    def test_is_never_written_over(self, source: Path, tmp_path: Path) -> None:
        """It may be the only copy of something else."""
        backup, new = backed_up(source), tmp_path / "new"
        new.mkdir()
        (new / "precious").touch()
        with pytest.raises(CannotOpen, match="not empty"):
            restored(backup, tmp_path)
        shutil.rmtree(new)
        new.touch()
        with pytest.raises(CannotOpen, match="no directory"):
            restored(backup, tmp_path)
        new.unlink()
        new.symlink_to(source)
        with pytest.raises(CannotOpen, match="no directory"):
            restored(backup, tmp_path)

    def test_may_be_a_running_daemons(self, source: Path, tmp_path: Path) -> None:
        """Who mixes up two machines is told what stands there."""
        backup = backed_up(source)
        with (source / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(CannotOpen, match="a daemon is running there"):
                restore(backup, source, KEY, owner=US)

    def test_is_for_one_restore_at_a_time(self, source: Path, tmp_path: Path) -> None:
        """The second would throw away what the first one builds."""
        (tmp_path / ".new.restoring").mkdir()
        held = os.open(tmp_path / ".new.restoring", os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(CannotOpen, match="under way"):
                restored(backed_up(source), tmp_path)
        finally:
            os.close(held)

    def test_stays_empty_when_the_disk_is_full(self, source: Path, tmp_path: Path) -> None:
        """Half a state directory would be found by a daemon."""
        backup, before = backed_up(source), resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        try:
            with pytest.raises(CannotOpen, match=r"File too large|store\.db"):
                restored(backup, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert beside(tmp_path) == []

    def test_stays_empty_when_the_backup_is_damaged(self, source: Path, tmp_path: Path) -> None:
        """What was decrypted before the damage was met is not used."""
        backup = backed_up(source)
        content = backup.read_bytes()
        backup.write_bytes(content[:-20] + bytes(20))
        with pytest.raises(CannotOpen, match="damaged"):
            restored(backup, tmp_path)
        assert beside(tmp_path) == []


class TestTheMasterKey:
    def test_goes_where_it_is_wanted(self, source: Path, tmp_path: Path) -> None:
        """Beside the store it would be copied with it."""
        key_file = tmp_path / "elsewhere.key"
        made = restored(backed_up(source), tmp_path, f"file:{key_file}")
        assert made.key_file == str(key_file)
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert not (tmp_path / "new/master.key").exists()
        assert all_opens(tmp_path / "new", key_in(key_file)) >= 7

    def test_may_be_there_already(self, source: Path, tmp_path: Path) -> None:
        """A restore that was killed had written it; or it was brought along."""
        made = restored(backed_up(source), tmp_path, f"file:{source / 'master.key'}")
        assert (made.key_file, made.is_sealed_anew) == (None, False)
        assert all_opens(tmp_path / "new", key_in(source / "master.key")) >= 7

    def test_another_one_that_is_there_takes_its_place(self, source: Path, tmp_path: Path) -> None:
        """The new machine has a key of its own; the daemon seals everything anew under it, whatever stops it."""
        create_master_key_file(tmp_path / "own.key", OTHER)
        made = restored(backed_up(source), tmp_path, f"file:{tmp_path / 'own.key'}")
        assert made.is_sealed_anew
        record = record_in(tmp_path / "new")
        assert record.rotation is not None
        assert (record.rotation.is_under_way, record.rotation.replaces_file) == (True, False)
        for key in (OTHER, key_in(source / "master.key")):
            assert all_opens(tmp_path / "new", key) >= 7

    def test_need_not_be_written_at_all(self, source: Path, tmp_path: Path) -> None:
        """A credential of the service manager has it."""
        made = restored(backed_up(source), tmp_path, "none")
        assert made.key_file is None
        assert not (tmp_path / "new/master.key").exists()

    async def test_that_comes_from_a_passphrase_is_not_left_on_the_disk(self, source: Path, tmp_path: Path) -> None:
        """Who gives it by hand does so for a reason."""
        record = msgspec.structs.replace(record_in(source), salt=b"s" * 16)
        await put(source, Put(key=SEALING_KEY, document=msgspec.msgpack.encode(record)))
        made = await asyncio.to_thread(restored, backed_up(source), tmp_path)
        assert (made.key_file, made.has_passphrase) == (None, True)
        assert not (tmp_path / "new/master.key").exists()

    async def test_that_was_being_changed_is_the_new_one_and_goes_to_no_other_machines_file(
        self, source: Path, tmp_path: Path
    ) -> None:
        """Its rotation goes on where it is restored."""
        old, before = key_in(source / "master.key"), record_in(source)
        sealer = EnvelopeSealer.unlock(old, msgspec.msgpack.encode(before))
        record = sealer.rotation_to(
            OTHER, before, source="file:/old/machine.key", replaces_file=True, salt=None, now=NOW
        )
        await put(source, Put(key=SEALING_KEY, document=msgspec.msgpack.encode(record)))
        backup = backed_up(source, key=old)
        create_master_key_file(tmp_path / "third.key", b"t" * 32)
        with pytest.raises(CannotOpen, match="being changed"):
            await asyncio.to_thread(restored, backup, tmp_path, f"file:{tmp_path / 'third.key'}")
        await asyncio.to_thread(restored, backup, tmp_path)
        assert key_in(tmp_path / "new/master.key") == OTHER
        rotation = record_in(tmp_path / "new").rotation
        assert rotation is not None
        assert (rotation.is_under_way, rotation.replaces_file) == (True, False)

    @pytest.mark.parametrize("where", ["relative.key", "file:relative.key", "env:KEY"])
    def test_has_an_absolute_place(self, source: Path, tmp_path: Path, where: str) -> None:
        """The daemon looks for it from elsewhere."""
        with pytest.raises(CannotOpen, match="absolute path"):
            restored(backed_up(source), tmp_path, where)
        assert beside(tmp_path) == []


class TestAVerification:
    def test_looks_at_everything(self, source: Path) -> None:
        """A backup that nobody has opened is a hope."""
        found = verify(backed_up(source), KEY)
        assert (found.is_opened, found.audit_records, found.audit_broken) == (True, 12, None)
        assert found.sealed_values >= 7
        assert found.manifest.documents == 30

    def test_without_the_key_sees_what_everybody_can_see(self, source: Path) -> None:
        """Whoever fetches it knows at least that it is all there."""
        backup = backed_up(source)
        found: Verdict = verify(backup, None)
        assert (found.is_opened, found.manifest.documents) == (False, 30)
        backup.write_bytes(backup.read_bytes()[:-1])
        with pytest.raises(CannotOpen, match="cut off"):
            verify(backup, None)

    def test_tells_of_an_audit_log_that_is_not_as_it_was_written(self, source: Path, tmp_path: Path) -> None:
        """It was so before the backup: that is worth knowing, and no reason not to restore."""
        log = source / "audit/audit-000000000001.jsonl"
        log.write_bytes(log.read_bytes().replace(b'"decision":"allow"', b'"decision":"denyy"', 1))
        backup = backed_up(source)
        assert "record 1" in (verify(backup, KEY).audit_broken or "")
        assert restored(backup, tmp_path).verdict.audit_broken

    async def test_finds_a_value_that_does_not_open(self, source: Path) -> None:
        """It was copied as it is, and would be missed on the day it is needed."""
        with closing(sqlite3.connect(source / "store.db")) as store:
            key, document = store.execute("SELECT key, document FROM documents WHERE key LIKE 'key/%'").fetchone()
        head, _, rest = document.partition(b'"sealed":"')
        damaged = head + b'"sealed":"' + rest[:40] + bytes([rest[40] ^ 1]) + rest[41:]
        await put(source, Put(key=key, document=damaged))
        backup = backed_up(source)
        with pytest.raises(CannotOpen, match=key):
            await asyncio.to_thread(verify, backup, KEY)

    async def test_refuses_a_store_of_a_later_version(self, source: Path) -> None:
        """And says which program can open it."""
        with closing(sqlite3.connect(source / "store.db")) as store:
            store.execute("PRAGMA user_version = 999")
        with pytest.raises(CannotOpen, match="newer scaivaultd"):
            await asyncio.to_thread(verify, backed_up(source), KEY)
