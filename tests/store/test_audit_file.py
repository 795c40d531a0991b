"""The files of the audit log: whole lines in order, whatever the disk, a kill or somebody else does to them."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaivaultd.store.audit_file import LINE_BYTES, AuditFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHILD = Path(__file__).with_name("appending_child.py")


def files(path: Path, *, file_bytes: int = 1 << 20, keep: int = 0) -> AuditFiles:
    return AuditFiles(path / "audit", file_bytes=file_bytes, keep=keep)


def names(path: Path) -> list[str]:
    return sorted(each.name for each in (path / "audit").iterdir())


def lines_back(file: AuditFiles, cursor: str | None = None) -> list[bytes]:
    return [line for _, line in file.read_back(cursor)]


def written(path: Path, lines: Sequence[bytes], *, file_bytes: int = 1 << 20, keep: int = 0) -> AuditFiles:
    """Files with these lines, each appended alone."""
    file = files(path, file_bytes=file_bytes, keep=keep)
    file.resume()
    for sequence, line in enumerate(lines, 1):
        file.append([line], sequence=sequence, durably=False)
    return file


def test_what_was_appended_is_read_in_both_directions_over_all_files(tmp_path: Path) -> None:
    """A file ends when it is full, and nobody who reads notices."""
    lines = [b"line %d " % number + b"x" * 90 for number in range(40)]
    file = written(tmp_path, lines, file_bytes=480)
    assert names(tmp_path)[:3] == ["audit-000000000001.jsonl", "audit-000000000006.jsonl", "audit-000000000011.jsonl"]
    assert list(file.read()) == lines
    assert lines_back(file) == lines[::-1]


@pytest.mark.parametrize("length", [1, 100, 4095, 60_000])
def test_lines_of_any_length_are_read_back(tmp_path: Path, length: int) -> None:
    """What is read in blocks must not fall apart where they meet."""
    lines = [bytes([65 + number % 26]) * (length + number) for number in range(20)]
    file = written(tmp_path, lines, file_bytes=200_000)
    assert lines_back(file) == lines[::-1]


def test_the_cursor_of_a_line_leads_to_the_one_before(tmp_path: Path) -> None:
    """Page by page nothing is shown twice or left out, while records are added at the other end."""
    lines = [b"line %d" % number for number in range(30)]
    file = written(tmp_path, lines, file_bytes=64)
    found = []
    cursor: str | None = None
    for number in range(30):
        cursor, line = next(iter(file.read_back(cursor)))
        found.append(line)
        file.append([b"more"], sequence=31 + number, durably=False)
        if number == 0:
            assert line == lines[-1]
    assert found == lines[::-1]
    assert lines_back(file, cursor) == []


@pytest.mark.parametrize("cursor", ["", "x", "1", "1-", "-1-5", "1-5-9", "../audit-1", "1-" + "9" * 400, "\u0661-1"])
def test_a_cursor_of_somebody_else_is_refused(tmp_path: Path, cursor: str) -> None:
    """It comes from a caller."""
    file = written(tmp_path, [b"a"])
    with pytest.raises(ValueError, match="is no cursor"):
        lines_back(file, cursor)


@pytest.mark.parametrize(("cursor", "found"), [("1-99999", [b"b", b"a"]), ("0-5", []), ("7-0", [b"b", b"a"])])
def test_a_cursor_beyond_what_is_there_does_no_harm(tmp_path: Path, cursor: str, found: list[bytes]) -> None:
    """Files may have been deleted since the page before."""
    assert lines_back(written(tmp_path, [b"a", b"b"]), cursor) == found


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    """It says who uses what."""
    written(tmp_path, [b"a"])
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "audit/audit-000000000001.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("torn", [b"", b"{", b"x" * 200_000, b"\0" * 5000])
def test_a_line_without_an_end_is_cut_off_at_the_next_start(tmp_path: Path, torn: bytes) -> None:
    """A kill in the middle of a write, or a file that grew before its content came."""
    written(tmp_path, [b"one", b"two"]).close()
    path = tmp_path / "audit/audit-000000000001.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    file = files(tmp_path)
    assert file.resume() == len(torn)
    file.append([b"three"], sequence=3, durably=True)
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_a_file_of_nothing_but_a_torn_line_becomes_empty(tmp_path: Path) -> None:
    """The first record of all may be the torn one."""
    (tmp_path / "audit").mkdir()
    path = tmp_path / "audit/audit-000000000001.jsonl"
    path.write_bytes(b"y" * 70_000)
    file = files(tmp_path)
    assert file.resume() == 70_000
    file.append([b"one"], sequence=1, durably=False)
    assert path.read_bytes() == b"one\n"


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE stands for a full disk: the first part of a write succeeds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_what_the_disk_did_not_take_leaves_no_half(tmp_path: Path) -> None:
    """The next write is whole again, and nobody reads a torn line meanwhile."""
    file = written(tmp_path, [b"one"])
    path = tmp_path / "audit/audit-000000000001.jsonl"
    with room_for(100):
        for durably in (False, True):
            with pytest.raises(OSError, match="File too large"):
                file.append([b"x" * 60, b"y" * 60], sequence=2, durably=durably)
            assert path.read_bytes() == b"one\n"
            assert file.disturbance() is None
    file.append([b"x" * 60, b"y" * 60], sequence=2, durably=True)
    assert lines_back(file) == [b"y" * 60, b"x" * 60, b"one"]


def test_a_half_that_could_not_be_cut_off_goes_before_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails may fail at that too; it is our half, and nobody's attack."""
    file = written(tmp_path, [b"one"])
    path = tmp_path / "audit/audit-000000000001.jsonl"

    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched, room_for(100):
        patched.setattr(os, "ftruncate", fails)
        with pytest.raises(OSError, match="File too large"):
            file.append([b"x" * 60, b"y" * 60], sequence=2, durably=False)
        assert path.stat().st_size == 100
        assert file.disturbance() is None
    file.append([b"two"], sequence=2, durably=True)
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_sync_that_failed_takes_its_lines_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may never reach the disk, whatever a later sync says: they are to be written anew."""
    file = written(tmp_path, [b"one"])

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output error"):
            file.append([b"two"], sequence=2, durably=True)
    assert list(file.read()) == [b"one"]


def test_what_is_durable_is_so_with_all_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that has just ended as well, and the name of the new one."""
    file = written(tmp_path, [b"x" * 100], file_bytes=80)
    synced: list[str] = []
    sync = os.fsync

    def remembered(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", remembered)
    file.append([b"two"], sequence=2, durably=True)
    assert synced == ["audit-000000000001.jsonl", "audit", "audit-000000000002.jsonl"]
    file.append([b"three"], sequence=3, durably=False)
    assert len(synced) == 3


@pytest.mark.parametrize("after", ["remove", "rename", "replace", "truncate", "append", "directory"])
def test_what_somebody_does_to_the_newest_file_is_noticed(tmp_path: Path, after: str) -> None:
    """It is left as it is, and a new file goes on."""
    file = written(tmp_path, [b"one", b"two"])
    path = tmp_path / "audit/audit-000000000001.jsonl"
    assert file.disturbance() is None
    if after == "remove":
        path.unlink()
    elif after == "rename":
        path.rename(tmp_path / "elsewhere")
    elif after == "replace":
        (tmp_path / "other").write_bytes(path.read_bytes())
        (tmp_path / "other").rename(path)
    elif after == "truncate":
        os.truncate(path, 5)
    elif after == "append":
        path.write_bytes(path.read_bytes() + b"more\n")
    else:
        path.unlink()
        path.parent.rmdir()
    left = path.read_bytes() if path.exists() else None
    assert "audit-000000000001.jsonl" in (file.disturbance() or "")
    assert file.disturbance() is None
    file.append([b"three"], sequence=3, durably=True)
    assert (tmp_path / "audit/audit-000000000003.jsonl").read_bytes() == b"three\n"
    assert (path.read_bytes() if path.exists() else None) == left


def test_a_new_file_comes_after_all_that_are_there(tmp_path: Path) -> None:
    """Files of a longer chain that were put here must not end up behind the new one, nor be overwritten."""
    file = written(tmp_path, [b"one"])
    strange = tmp_path / "audit/audit-000000000900.jsonl"
    strange.write_bytes(b"strange\n")
    (tmp_path / "audit/audit-000000000001.jsonl").unlink()
    assert file.disturbance() is not None
    file.append([b"two"], sequence=2, durably=False)
    assert names(tmp_path) == ["audit-000000000900.jsonl", "audit-000000000901.jsonl"]
    assert list(file.read()) == [b"strange", b"two"]


@pytest.mark.parametrize("kind", ["fifo", "link", "directory"])
def test_only_regular_files_are_read_and_written(tmp_path: Path, kind: str) -> None:
    """A link would send the log elsewhere; a FIFO would hold reader and writer for ever."""
    written(tmp_path, [b"one"]).close()
    path = tmp_path / "audit/audit-000000000007.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "target").write_bytes(b"elsewhere\n")
        path.symlink_to(tmp_path / "target")
    else:
        path.mkdir()
    file = files(tmp_path, file_bytes=1)
    file.resume()
    file.append([b"two"], sequence=2, durably=True)
    assert list(file.read()) == [b"one", b"two"]
    assert lines_back(file) == [b"two", b"one"]
    assert names(tmp_path)[-1] == "audit-000000000008.jsonl"


def test_the_oldest_files_go_and_the_newest_is_never_counted(tmp_path: Path) -> None:
    """`keep` ended files stay; deleting waits until somebody has written down where the log now begins."""
    lines = [b"line %d " % number + b"x" * 90 for number in range(20)]
    file = written(tmp_path, lines, file_bytes=480, keep=2)
    assert len(names(tmp_path)) == 4
    surplus = file.surplus()
    assert surplus == ("audit-000000000006.jsonl", lines[5])
    assert file.delete_before(surplus[0]) == 1
    assert file.surplus() is None
    assert list(file.read()) == lines[5:]


@pytest.mark.parametrize("keep", [0, 4])
def test_nothing_is_too_much_without_a_bound_or_below_it(tmp_path: Path, keep: int) -> None:
    """0 keeps everything."""
    file = written(tmp_path, [b"x" * 90] * 20, file_bytes=480, keep=keep)
    assert file.surplus() is None


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    """Somebody who can write the disk could make the daemon read a line of gigabytes."""
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit/audit-000000000001.jsonl").write_bytes(b"z" * (LINE_BYTES * 9 + 5) + b"\nlast\n")
    file = files(tmp_path)
    for found in (list(file.read()), lines_back(file)[::-1]):
        assert found[-1] == b"last"
        assert max(map(len, found)) <= 2 * LINE_BYTES
        assert sum(map(len, found)) == LINE_BYTES * 9 + 9


def test_reading_ends_where_the_log_did_when_it_began(tmp_path: Path) -> None:
    """Somebody verifies while others write: what comes later is not half of it."""
    file = written(tmp_path, [b"one", b"two"])
    lines = file.read()
    file.append([b"three"], sequence=3, durably=False)
    assert list(lines) == [b"one", b"two"]


def test_without_a_directory_there_is_nothing_to_read(tmp_path: Path) -> None:
    """Verification from outside names a directory, and must not make one."""
    file = files(tmp_path)
    assert (list(file.read()), lines_back(file)) == ([], [])
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize("lines_before_kill", [1, 300, 2000])
def test_a_killed_writer_leaves_whole_lines_in_order(tmp_path: Path, lines_before_kill: int) -> None:
    """What it was promised is there, and at most the end is torn."""
    with subprocess.Popen(
        [sys.executable, str(CHILD), str(tmp_path / "audit")], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as child:
        assert child.stdout is not None
        promised = [child.stdout.readline() for _ in range(lines_before_kill)]
        child.kill()
        promised += child.stdout.readlines()
    file = files(tmp_path)
    file.resume()
    found = [int(line.split()[0]) for line in file.read()]
    assert found == list(range(1, len(found) + 1))
    assert found[-1] >= int(promised[-1] if promised[-1].endswith(b"\n") else promised[-2])
