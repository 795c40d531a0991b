"""`scaivaultctl backup` and `resume`: where a backup goes, what opens it, and no secret in an argument."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.ctl_session import EX_USAGE
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.plugin import Secret
from scaivaultd.store.backup_keys import check_recipient, new_identity, recipient_of
from scaivaultd.store.backup_writing import BackupMaker
from scaivaultd.store.master_key import load_master_key
from scaivaultd.store.sealing import EnvelopeSealer
from scaivaultd.store.sqlite_backup import document_in
from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION_1 = Path(__file__).parent / "store/version_1"
CONTENT = b"a backup" * 1000
PASSPHRASE = "correct horse battery"
NAME = "scaivaultd-20260102T030405Z.scvb"
IN_SAFE_MODE: dict[str, Any] = {
    "status": "degraded",
    "components": [{"name": "safe_mode", "status": "degraded", "detail": "restored"}],
}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies["sys.health"] = {"status": "ok", "components": []}
        yield found


@pytest.fixture
def made(tool: ctl.Tool, tmp_path: Path) -> Path:
    """The backup that the daemon says it has made."""
    path = tmp_path / "state/backups" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    tool.api.replies["sys.backup"] = {
        "path": str(path),
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "created_at": "2026-01-02T03:04:05Z",
        "documents": 3,
        "audit_records": 2,
    }
    return path


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    (tmp_path / "passphrase").write_text(f"{PASSPHRASE}\n")
    return tmp_path / "passphrase"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """A backup that can be opened by the passphrase."""
    source = tmp_path / "source"
    shutil.copytree(VERSION_1, source)
    (source / "master.key").chmod(0o600)
    key = load_master_key(f"file:{source / 'master.key'}", environment={}, credentials_directory=None)
    sealer = EnvelopeSealer.unlock(key, document_in(source / "store.db", SEALING_KEY) or b"")
    written = BackupMaker(source, "store.db", sealer, version="1").write(
        recipient=None,
        passphrase=Secret(PASSPHRASE),
        node_id="node_1",
        now=datetime(2026, 1, 1, tzinfo=UTC),
        stop=threading.Event(),
    )
    return Path(written.path)


class TestCreate:
    def test_a_passphrase_is_read_from_its_file_or_standard_input(
        self, tool: ctl.Tool, made: Path, passphrase: Path
    ) -> None:
        """Arguments are seen by everybody on the host."""
        assert tool("backup", "create", "--passphrase-file", str(passphrase)).code == 0
        assert tool("backup", "create", given=f"{PASSPHRASE}\n").code == 0
        assert [asked for asked in tool.api.asked if asked[0] == "sys.backup"] == [
            ("sys.backup", {"passphrase": PASSPHRASE})
        ] * 2

    def test_a_recipient_needs_no_passphrase(self, tool: ctl.Tool, made: Path) -> None:
        """A timer has none to give."""
        ended = tool("backup", "create", "--recipient", "scvr1x")
        assert ended.code == 0
        assert tool.last == ("sys.backup", {"recipient": "scvr1x"})
        assert str(made) in ended.out

    def test_it_is_moved_whole_and_for_its_owner_alone(self, tool: ctl.Tool, made: Path, tmp_path: Path) -> None:
        """On the same disk as the store it is of little use."""
        (tmp_path / "to").mkdir()
        ended = tool("backup", "create", "--recipient", "scvr1x", "--to", str(tmp_path / "to"), "--json")
        moved = tmp_path / "to" / made.name
        assert ended.json["path"] == str(moved)
        assert moved.read_bytes() == CONTENT
        assert stat.S_IMODE(moved.stat().st_mode) == 0o600
        assert not made.exists()
        assert [each.name for each in (tmp_path / "to").iterdir()] == [made.name]

    def test_nothing_is_written_over(self, tool: ctl.Tool, made: Path, tmp_path: Path) -> None:
        """And that is found out before there is a backup that would lie somewhere else."""
        (tmp_path / "older.scvb").touch()
        for to in ("older.scvb", "missing/backup.scvb"):
            assert tool("backup", "create", "--recipient", "scvr1x", "--to", str(tmp_path / to)).code == 1
        assert tool.api.asked == []

    def test_what_is_not_the_daemons_file_is_not_moved(self, tool: ctl.Tool, made: Path, tmp_path: Path) -> None:
        """The daemon may be on another host, with the same paths."""
        made.write_bytes(b"something else")
        ended = tool("backup", "create", "--recipient", "scvr1x", "--to", str(tmp_path / "b"))
        assert ended.code == 1
        assert str(made) in ended.err
        made.unlink()
        ended = tool("backup", "create", "--recipient", "scvr1x", "--to", str(tmp_path / "b"))
        assert (ended.code, "on the daemon's host" in ended.err) == (1, True)
        assert not (tmp_path / "b").exists()

    def test_only_the_newest_are_kept(self, tool: ctl.Tool, made: Path) -> None:
        """A disk that fills up with backups stops the daemon; what has another name is somebody's."""
        for number in range(1, 5):
            older = made.with_name(f"scaivaultd-2025010{number}T000000Z.scvb")
            older.touch()
            os.utime(older, (number, number))
        made.with_name("mine.scvb").touch()
        assert tool("backup", "create", "--recipient", "scvr1x", "--keep", "2").code == 0
        assert sorted(each.name for each in made.parent.iterdir()) == [
            "mine.scvb",
            "scaivaultd-20250104T000000Z.scvb",
            made.name,
        ]

    def test_an_identity_is_not_sent(self, tool: ctl.Tool, made: Path) -> None:
        """It is in the shell's history now; the daemon's host shall not have it too."""
        ended = tool("backup", "create", "--recipient", new_identity())
        assert (ended.code, "scvi1" in ended.err) == (EX_USAGE, False)
        assert tool.api.asked == []

    def test_one_lock_and_not_two(self, tool: ctl.Tool, made: Path, passphrase: Path) -> None:
        """Nobody knows which one was meant."""
        ended = tool("backup", "create", "--recipient", "scvr1x", "--passphrase-file", str(passphrase))
        assert ended.code == EX_USAGE


class TestKeygen:
    def test_the_identity_is_in_the_file_alone(self, tmp_path: Path) -> None:
        """The recipient is what is put into a configuration, and shown."""
        ended = ctl.run("backup", "keygen", "--to", str(tmp_path / "id"))
        recipient = ended.out.strip()
        check_recipient(recipient)
        content = (tmp_path / "id").read_text()
        identity = re.search(r"scvi1\w+", content)
        assert identity is not None
        assert recipient_of(identity[0]) == recipient
        assert "scvi1" not in ended.out + ended.err
        assert stat.S_IMODE((tmp_path / "id").stat().st_mode) == 0o600
        assert ctl.run("backup", "keygen", "--to", str(tmp_path / "id")).code == 1
        assert (tmp_path / "id").read_text() == content

    def test_without_a_file_it_goes_to_standard_output(self, tmp_path: Path) -> None:
        """For a password manager; and the output is such a file."""
        out = ctl.run("backup", "keygen").out
        assert [line[:12] for line in out.splitlines()] == ["# recipient:", out.splitlines()[1][:12]]
        (tmp_path / "id").write_text(out)
        assert out.splitlines()[1].startswith("scvi1")


class TestWithoutADaemon:
    def test_a_backup_is_verified_and_restored(self, real: Path, passphrase: Path, tmp_path: Path) -> None:
        """On the day when there is none."""
        given = ("--passphrase-file", str(passphrase))
        verified = ctl.run("backup", "verify", str(real), *given, "--json")
        assert verified.code == 0
        assert verified.json["opened"] is True
        assert "configuration file" in verified.err
        new = tmp_path / "new"
        ended = ctl.run("backup", "restore", str(real), *given, "--state-dir", str(new))
        assert ended.code == 0
        assert str(new) in ended.out
        assert "scaivaultctl resume" in ended.err
        assert "master.key" in ended.err
        assert (new / "store.db").exists()
        assert max(map(len, ended.out.splitlines())) <= 80

    def test_what_cannot_be_checked_is_said(self, real: Path) -> None:
        """Nobody shall believe that a backup is good because it is there."""
        ended = ctl.run("backup", "verify", str(real), "--without-key")
        assert ended.code == 0
        assert "header and the length only" in ended.out
        assert "nobody can tell more" in ended.err

    @pytest.mark.parametrize("verb", [("verify",), ("restore", "--state-dir", "new")])
    def test_a_wrong_key_is_told_in_a_line(self, real: Path, tmp_path: Path, verb: tuple[str, ...]) -> None:
        """And the file that was meant is named."""
        (tmp_path / "wrong").write_text("another\n")
        words = [str(tmp_path / word) if word == "new" else word for word in verb]
        for given in (["--passphrase-file", str(tmp_path / "wrong")], ["--identity", str(tmp_path / "wrong")]):
            ended = ctl.run("backup", words[0], str(real), *words[1:], *given)
            assert ended.code == 1
            assert ended.err.startswith("scaivaultctl: ")
        assert not (tmp_path / "new").exists()

    def test_a_backup_for_a_recipient_asks_for_the_identity(self, tmp_path: Path, real: Path) -> None:
        """Not for a passphrase that there never was."""
        identity = tmp_path / "id"
        identity.write_text(new_identity())
        ended = ctl.run("backup", "verify", str(real), "--identity", str(identity))
        assert "locked by a passphrase" in ended.err

    @pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"no backup at all"])
    def test_what_is_no_backup_is_told(self, tmp_path: Path, content: bytes) -> None:
        """The wrong file is the most likely mistake."""
        (tmp_path / "b").write_bytes(content)
        ended = ctl.run("backup", "verify", str(tmp_path / "b"), given="x\n")
        assert ended.code == 1
        assert "no backup of scaivaultd" in ended.err
        assert ctl.run("backup", "verify", str(tmp_path / "missing"), given="x\n").code == 1


class TestResume:
    def test_it_asks_first(self, tool: ctl.Tool) -> None:
        """Two daemons with the same accounts do harm that nothing takes back."""
        tool.api.replies["sys.health"] = IN_SAFE_MODE
        tool.api.replies["sys.resume"] = {"was_paused": True, "restored_from": NAME}
        assert tool("resume").code == EX_USAGE
        assert tool.last[0] == "sys.health"
        ended = tool("resume", "--yes")
        assert (ended.code, tool.last[0]) == (0, "sys.resume")
        assert NAME in ended.out

    def test_there_may_be_nothing_to_do(self, tool: ctl.Tool) -> None:
        """And then nothing is asked."""
        tool.api.replies["sys.resume"] = {"was_paused": False}
        ended = tool("resume")
        assert ended.code == 0
        assert "was not in safe mode" in ended.err
