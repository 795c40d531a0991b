"""Backups of a state directory in use: complete, nothing left of one that fails, the key that opens the copy."""

from __future__ import annotations

import resource
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.api.audit import GENESIS, link
from scaivaultd.model.access import AuditEntry
from scaivaultd.model.errors import Conflict, StorageUnavailable
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.model.storage import Put
from scaivaultd.plugin import Secret
from scaivaultd.store.audit_file import AuditFiles
from scaivaultd.store.backup_file import BackupFile
from scaivaultd.store.backup_keys import new_identity, recipient_of
from scaivaultd.store.backup_writing import BackupMaker, BackupStopped
from scaivaultd.store.sealing import EnvelopeSealer
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.backups import BackupWritten

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RECIPIENT = recipient_of(new_identity())


@pytest.fixture
def sealer() -> EnvelopeSealer:
    return EnvelopeSealer(b"k" * 32, "store_1")


@pytest.fixture
async def store(
    tmp_path: Path, clock: Any, log: FilteringBoundLogger, sealer: EnvelopeSealer
) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db", clock=clock, log=log)
    await store.commit([Put(key=SEALING_KEY, document=sealer.check_record(NOW))])
    yield store
    await store.close()


@pytest.fixture
def maker(store: SqliteStore, sealer: EnvelopeSealer, tmp_path: Path) -> BackupMaker:
    return BackupMaker(tmp_path, "store.db", sealer, version="1")


def made(maker: BackupMaker, stop: threading.Event | None = None) -> BackupWritten:
    return maker.write(recipient=RECIPIENT, passphrase=None, node_id="node_1", now=NOW, stop=stop or threading.Event())


def left(tmp_path: Path) -> list[str]:
    return sorted(each.name for each in (tmp_path / "backups").iterdir())


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        at=NOW,
        principal="unix:0",
        tenant="default",
        action=f"a{number}",
        object="",
        decision="allow",
        result="ok",
        request_id="r",
    )


class TestABackup:
    def test_is_for_its_owner_alone_and_never_replaces_another(self, maker: BackupMaker, tmp_path: Path) -> None:
        """Two within a second are two."""
        first, second = made(maker), made(maker)
        assert first.path != second.path
        assert left(tmp_path) == ["scaivaultd-20260102T030405Z-1.scvb", "scaivaultd-20260102T030405Z.scvb"]
        status = Path(first.path).stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_size == first.bytes
        assert stat.S_IMODE((tmp_path / "backups").stat().st_mode) == 0o700

    def test_holds_whole_records_of_all_audit_files(self, maker: BackupMaker, tmp_path: Path) -> None:
        """A record that is being written is not torn into it, and will be in the next one."""
        files = AuditFiles(tmp_path / "audit", file_bytes=300, keep=0)
        head = GENESIS
        for number in range(5):
            lines, head = link(head, [entry(number)])
            files.append(lines, sequence=head.sequence, durably=False)
        files.close()
        newest = sorted((tmp_path / "audit").iterdir())[-1]
        whole = newest.stat().st_size
        with newest.open("ab") as file:
            file.write(b'{"half of')
        written = made(maker)
        with BackupFile(tmp_path / written.path) as backup:
            sizes = {part.name: part.size for part in backup.manifest.parts}
        assert written.audit_records == 5
        assert len(sizes) > 3
        assert sizes[f"audit/{newest.name}"] == whole

    def test_says_nothing_of_what_is_inside(self, maker: BackupMaker, sealer: EnvelopeSealer) -> None:
        """Not the master key, in whatever form."""
        content = Path(made(maker).path).read_bytes()
        assert sealer.master_key not in content
        assert SEALING_KEY.encode() not in content


class TestWhatFails:
    @pytest.mark.parametrize("bytes_max", [8_000, None], ids=["copying", "writing"])
    def test_a_full_disk_leaves_nothing(self, maker: BackupMaker, tmp_path: Path, bytes_max: int | None) -> None:
        """The disk needs its room back, and half a backup is none."""
        first = made(maker)
        with BackupFile(Path(first.path)) as backup:
            # The copy is as large as that, the backup of it a little larger.
            copy_size = next(part.size for part in backup.manifest.parts if part.name == "store.db")
        before, size = resource.getrlimit(resource.RLIMIT_FSIZE), bytes_max or copy_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(StorageUnavailable, match="no backup was made"):
                made(maker)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert left(tmp_path) == [Path(first.path).name]

    def test_a_place_that_is_no_directory_is_told(self, maker: BackupMaker, tmp_path: Path) -> None:
        """And it is not the store that is at fault."""
        (tmp_path / "backups").write_text("mine")
        with pytest.raises(StorageUnavailable, match="folder backups of state_dir"):
            made(maker)

    def test_one_that_is_stopped_leaves_nothing(self, maker: BackupMaker, tmp_path: Path) -> None:
        """A daemon that stops ends its backup."""
        stop = threading.Event()
        stop.set()
        with pytest.raises(BackupStopped):
            made(maker, stop)
        assert left(tmp_path) == []

    def test_what_a_killed_daemon_left_goes_with_the_next(self, maker: BackupMaker, tmp_path: Path) -> None:
        """Copies of the store must not pile up."""
        (tmp_path / "backups").mkdir()
        (tmp_path / "backups/.store-1234.tmp").write_text("half")
        written = made(maker)
        assert left(tmp_path) == [written.path.rpartition("/")[2]]

    async def test_a_key_that_does_not_open_the_copy_is_not_put_with_it(
        self, maker: BackupMaker, store: SqliteStore, tmp_path: Path
    ) -> None:
        """A rotation at the same moment would make a backup that nobody opens."""
        other = EnvelopeSealer(b"o" * 32, "store_1")
        await store.commit([Put(key=SEALING_KEY, document=other.check_record(NOW))])
        with pytest.raises(Conflict, match="again"):
            made(maker)
        assert left(tmp_path) == []


def test_a_passphrase_locks_it_too(maker: BackupMaker, tmp_path: Path) -> None:
    """The way without a key pair."""
    written = maker.write(
        recipient=None, passphrase=Secret("pass phrase"), node_id="n", now=NOW, stop=threading.Event()
    )
    with BackupFile(tmp_path / written.path) as backup:
        assert "passphrase" in type(backup.manifest.lock).__name__.lower()


def test_a_mistake_in_a_recipient_is_told(maker: BackupMaker) -> None:
    """Before anything is copied."""
    assert maker.mistake_in(RECIPIENT) is None
    mistyped = RECIPIENT[:-9] + ("a" if RECIPIENT[-9] != "a" else "b") + RECIPIENT[-8:]
    assert "checksum" in (maker.mistake_in(mistyped) or "")
