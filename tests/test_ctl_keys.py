"""`scaivaultctl keys` and `unseal`: the master key, and its secrets that never are arguments."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = "2026-11-01T00:00:00Z"
OPEN: dict[str, Any] = {"is_sealed": False, "kid": "0123abcd", "source": "file:/k", "created_at": NOW}
SEALED: dict[str, Any] = {"is_sealed": True, "reason": "passphrase_needed", "detail": "run unseal", "kid": "0123abcd"}
GOING: dict[str, Any] = {
    **OPEN,
    "rotation": {
        "from_kid": "0123abcd",
        "to_kid": "4567abcd",
        "started_at": NOW,
        "rewrapped": 500,
    },
}
ENDED: dict[str, Any] = {**OPEN, "rotation": {**GOING["rotation"], "finished_at": "2026-11-01T00:01:00Z"}}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies["sys.master_key.get"] = OPEN
        yield found


def test_a_sealed_daemon_says_why(tool: ctl.Tool) -> None:
    """And what to do."""
    tool.api.replies["sys.master_key.get"] = SEALED
    assert tool("keys", "status").out.splitlines() == [
        "sealed  yes",
        "reason  passphrase_needed",
        "detail  run unseal",
        "key     0123abcd",
    ]


class TestKeyFile:
    def test_what_was_written_down_makes_the_same_file_again(self, tmp_path: Path) -> None:
        """The recovery key alone is on standard output; the file is the owner's alone."""
        made, again = tmp_path / "master.key", tmp_path / "again.key"
        ended = ctl.run("keys", "init", "--file", str(made))
        assert ended.code == 0
        assert len(ended.out.split()) == 1
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        typed = ended.out.lower().replace("-", " ")
        assert ctl.run("keys", "recover", "--file", str(again), given=typed).code == 0
        assert again.read_bytes() == made.read_bytes()
        assert stat.S_IMODE(again.stat().st_mode) == 0o600

    def test_no_key_is_ever_overwritten(self, tmp_path: Path) -> None:
        """It may be the only one."""
        key = tmp_path / "master.key"
        recovery = ctl.run("keys", "init", "--file", str(key)).out
        before = key.read_bytes()
        for again in (
            ctl.run("keys", "init", "--file", str(key)),
            ctl.run("keys", "recover", "--file", str(key), given=recovery),
        ):
            assert (again.code, again.out) == (1, "")
            assert "never overwritten" in again.err
        assert key.read_bytes() == before

    @pytest.mark.parametrize("typed", ["", "\n", "ABCD-EFGH", "0" * 56])
    def test_a_wrong_recovery_key_makes_no_file_and_is_not_repeated(self, tmp_path: Path, typed: str) -> None:
        """One letter of 56 is easily wrong, and the terminal is seen by others."""
        ended = ctl.run("keys", "recover", "--file", str(tmp_path / "k"), given=typed)
        assert ended.code in (1, 2)
        assert not (tmp_path / "k").exists()
        assert not typed.strip() or typed.strip() not in ended.err


class TestRotation:
    def test_it_is_not_begun_unasked(self, tool: ctl.Tool) -> None:
        """The old key opens nothing any more then."""
        ended = tool("keys", "rotate-master")
        assert (ended.code, ended.out) == (2, "")
        assert "--yes" in ended.err
        assert [name for name, _ in tool.api.asked] == ["sys.master_key.get"]

    def test_its_end_is_waited_for(self, tool: ctl.Tool, monkeypatch: pytest.MonkeyPatch) -> None:
        """The next step of a script takes the old key away."""
        monkeypatch.setattr("scaivaultd.ctl_keys._LOOK_SECONDS", 0)
        tool.api.replies["sys.master_key.get"] = [OPEN, GOING, ENDED]
        tool.api.replies["sys.master_key.rotate"] = GOING
        ended = tool("keys", "rotate-master", "--yes", "--new-source", "credential:new")
        assert ended.out.splitlines()[-1].startswith("rotated  2026-11-01 00:01 UTC (")
        assert "opens only backups" in ended.err
        assert [each for each in tool.api.asked if each[1]] == [
            ("sys.master_key.rotate", {"new_source": "credential:new"})
        ]

    def test_nobody_needs_to_wait(self, tool: ctl.Tool) -> None:
        """It goes on by itself."""
        tool.api.replies["sys.master_key.rotate"] = GOING
        ended = tool("keys", "rotate-master", "--yes", "--no-wait")
        assert ended.out.splitlines()[-1] == "rotation  0123abcd to 4567abcd, 500 done"
        assert tool.last[0] == "sys.master_key.rotate"

    def test_a_new_passphrase_comes_by_standard_input(self, tool: ctl.Tool) -> None:
        """Arguments are seen by every user of the host."""
        tool.api.replies["sys.master_key.rotate"] = ENDED
        ended = tool("keys", "rotate-master", "--yes", "--new-passphrase", given="correct horse\n")
        assert tool.last == ("sys.master_key.rotate", {"new_passphrase": "correct horse"})
        assert "correct horse" not in ended.out + ended.err


class TestUnseal:
    def test_the_passphrase_comes_by_standard_input_as_it_is(self, tool: ctl.Tool) -> None:
        """Blanks are part of it, the end of the line is not."""
        tool.api.replies["sys.master_key.get"] = SEALED
        tool.api.replies["sys.unseal"] = OPEN
        ended = tool("unseal", given=" correct horse \r\n")
        assert (ended.code, ended.out.splitlines()[0]) == (0, "sealed  no")
        assert tool.last == ("sys.unseal", {"passphrase": " correct horse "})
        assert "horse" not in ended.out + ended.err

    @pytest.mark.parametrize(("given", "told"), [("", "is empty"), ("\n", "is empty"), (b"\xff\n", "not UTF-8")])
    def test_nothing_is_no_passphrase(self, tool: ctl.Tool, given: str | bytes, told: str) -> None:
        """A wrong one counts, and after five the next must wait."""
        tool.api.replies["sys.master_key.get"] = SEALED
        ended = tool("unseal", given=given)
        assert ended.code == 2
        assert told in ended.err
        assert tool.last[0] == "sys.master_key.get"

    def test_the_first_one_ever_is_warned_of(self, tool: ctl.Tool) -> None:
        """Whoever loses it loses everything."""
        tool.api.replies["sys.master_key.get"] = {**SEALED, "kid": None}
        tool.api.replies["sys.unseal"] = OPEN
        assert "the only way" in tool("unseal", given="correct horse").err

    def test_a_daemon_that_is_open_is_left_alone(self, tool: ctl.Tool) -> None:
        """No passphrase is asked for in vain."""
        ended = tool("unseal", given="")
        assert (ended.code, ended.err) == (0, "The daemon is not sealed.\n")
