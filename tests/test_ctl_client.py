"""How `scaivaultctl` finds a daemon, is known to it, and ends when it cannot go on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaivaultd.ctl_client import address_of
from scaivaultd.model.errors import WIRE_ERRORS
from tests.fakes import ctl
from tests.fakes.api_socket import served, served_over_tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

HEALTH = {"status": "ok", "components": [{"name": "store", "status": "ok"}]}
TOKEN = "scvt_Ab3dEf9h_canary"


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies["sys.health"] = HEALTH
        yield found


class TestAddress:
    def test_what_is_given_beats_a_configuration_and_that_the_environment(self, tmp_path: Path) -> None:
        """The nearer to the hand, the stronger."""
        config = tmp_path / "d.toml"
        config.write_text(f'state_dir = "{tmp_path}/state"\n')
        environment = {"SCAIVAULT_ADDR": "https://vault.example.org"}
        assert address_of("/a.sock", config, environment) == "unix:/a.sock"
        assert address_of(None, config, environment) == f"unix:{tmp_path}/state/api.sock"
        assert address_of(None, None, environment) == "https://vault.example.org"
        assert address_of(None, None, {}) == "unix:/run/scaivaultd/api.sock"

    @pytest.mark.parametrize("path", ["/run/own.sock", "unix:/run/own.sock"])
    def test_the_socket_that_a_configuration_names_is_used(self, tmp_path: Path, path: str) -> None:
        """Beside addresses, which are for others."""
        config = tmp_path / "d.toml"
        config.write_text(f'state_dir = "/s"\n[rest]\nlisten = ["127.0.0.1:8420", "{path}"]\n')
        assert address_of(None, config, {}) == "unix:/run/own.sock"

    @pytest.mark.parametrize(
        ("address", "told"),
        [
            ("http://vault.example.org", "in the clear"),
            ("ftp://vault.example.org", "https://HOST"),
            ("vault.example.org", "https://HOST"),
            ("unix:api.sock", "unix:/PATH"),
            ("https://", "https://HOST"),
            ("https://vault.example.org:99999", "range"),
            ("https://vault.example.org/v1", "nothing else"),
            ("https://user:pw@vault.example.org", "nothing else"),
        ],
    )
    def test_what_is_no_address_is_a_usage_error(self, address: str, told: str) -> None:
        """A token must never go where it can be read on the way."""
        ended = ctl.run("status", "--address", address)
        assert (ended.code, ended.out) == (2, "")
        assert told in ended.err

    @pytest.mark.parametrize(
        ("text", "told"),
        [(None, "No such file"), ("[rest", "not valid TOML"), ("a = 1", "no conf"), ("rest = 1", "no conf")],
    )
    def test_a_configuration_that_does_not_help_is_a_usage_error(
        self, tmp_path: Path, text: str | None, told: str
    ) -> None:
        """Without a traceback, and with its name."""
        config = tmp_path / "d.toml"
        if text is not None:
            config.write_text(text)
        ended = ctl.run("status", "--config", str(config))
        assert ended.code == 2
        assert told in ended.err
        assert str(config) in ended.err


class TestToken:
    def test_a_token_goes_as_a_header_from_the_environment_or_a_file(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """Arguments are seen by every user of the host."""
        tool("status")
        assert "Authorization" not in tool.api.headers[-1]
        tool("status", SCAIVAULT_TOKEN=f"{TOKEN}\n")
        assert tool.api.headers[-1]["Authorization"] == f"Bearer {TOKEN}"
        (tmp_path / "token").write_text("scvt_Of_the_file\n")
        tool("status", "--token-file", str(tmp_path / "token"), SCAIVAULT_TOKEN=TOKEN)
        assert tool.api.headers[-1]["Authorization"] == "Bearer scvt_Of_the_file"

    @pytest.mark.parametrize("content", [b"\xff\xfe", b"scvt_a\nX: y", b"", b"two words"])
    def test_what_is_no_token_is_not_sent_and_not_shown(self, tool: ctl.Tool, tmp_path: Path, content: bytes) -> None:
        """It may be another secret, or would be another header."""
        (tmp_path / "token").write_bytes(content)
        ended = tool("status", "--token-file", str(tmp_path / "token"))
        assert (ended.code, ended.out, tool.api.headers) == (2, "", [])
        assert ended.err == (
            f"scaivaultctl: what {tmp_path}/token holds is no token: one is scvt_, letters and digits\n"
        )

    def test_a_token_file_that_is_not_there_is_a_usage_error(self, tool: ctl.Tool) -> None:
        """Rather than going on as somebody else."""
        assert tool("status", "--token-file", "/nowhere/token").code == 2


class TestUnreachable:
    def test_where_it_was_looked_for_and_how_to_name_another_are_told(self, tmp_path: Path) -> None:
        """The code is for scripts that wait for the daemon."""
        ended = ctl.run("status", "--address", f"{tmp_path}/none.sock")
        assert (ended.code, ended.out) == (8, "")
        assert f"unix:{tmp_path}/none.sock" in ended.err
        assert "--address" in ended.err
        assert "--config" in ended.err

    def test_a_socket_that_a_dead_daemon_left_is_told_apart(self, tmp_path: Path) -> None:
        """The file alone proves nothing."""
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "api.sock"))
        ended = ctl.run("status", "--address", f"{tmp_path}/api.sock")
        assert ended.code == 8
        assert "nobody listens there" in ended.err

    @pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody else")
    def test_somebody_without_rights_is_told_which_group_to_join(self, tool: ctl.Tool) -> None:
        """The commonest first experience of a new administrator."""
        program = (
            "import os, sys\n"
            "from scaivaultd.ctl import main\n"
            "import scaivaultd.api.commands\n"
            "os.setgroups([]), os.setegid(65534), os.seteuid(65534)\n"
            "main(['status', '--address', sys.argv[1]])\n"
        )
        tool.socket.chmod(0o660)
        command = [sys.executable, "-c", program, str(tool.socket)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stdout) == (8, "")
        assert ended.stderr.startswith(f"scaivaultctl: unix:{tool.socket}: this user may not use the socket")
        assert "[access] admin_group" in ended.stderr

    @pytest.mark.parametrize(
        "raw",
        [
            b"SSH-2.0-OpenSSH\r\n",
            b"",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{",
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
            b"HTTP/1.1 301 Moved\r\nLocation: https://x\r\nContent-Length: 0\r\n\r\n",
            b'HTTP/1.1 502 Bad Gateway\r\nContent-Length: 15\r\n\r\n{"error": "no"}',
        ],
    )
    def test_whoever_else_answers_there_is_no_daemon(self, tool: ctl.Tool, raw: bytes) -> None:
        """Proxies, other programs, and a daemon that was killed in the middle of its answer."""
        tool.api.raw = raw
        ended = tool("status")
        assert (ended.code, ended.out) == (8, "")
        assert len(ended.err.splitlines()) == 1


def test_a_socket_with_a_long_path_is_reached(tmp_path: Path) -> None:
    """The kernel takes 107 bytes; state directories of containers and tests are longer."""
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    opened = os.open(directory, os.O_PATH)
    try:
        with served(Path(f"/proc/self/fd/{opened}/api.sock")) as api:
            api.replies["sys.health"] = HEALTH
            assert ctl.run("status", "--address", f"{directory}/api.sock").code == 0
    finally:
        os.close(opened)


def test_the_same_goes_over_tcp() -> None:
    """The daemon's own loopback addresses need no TLS."""
    with served_over_tcp() as (api, address):
        api.replies["sys.health"] = HEALTH
        assert ctl.run("status", SCAIVAULT_ADDR=address, SCAIVAULT_TOKEN=TOKEN).code == 0
        assert api.headers[-1]["Authorization"] == f"Bearer {TOKEN}"


class TestRefusals:
    @pytest.mark.parametrize("error", WIRE_ERRORS, ids=lambda error: error.code)
    def test_every_refusal_tells_what_where_what_to_do_and_its_id(self, tool: ctl.Tool, error: type) -> None:
        """Whoever reads it should not need the manual, and can name the request to whoever reads the log."""
        code = str(error.code)  # type: ignore[attr-defined]
        tool.api.replies["tokens.list"] = code
        ended = tool("token", "ls")
        assert ended.out == ""
        lines = ended.err.splitlines()
        assert lines[0] == f"scaivaultctl: this is {code}"
        assert lines[1] == "  /name: another name, please"
        assert len(lines) > 3, "the remedy"
        assert lines[-1] == f"  [{code}, request req_1]"
        assert all(len(line) <= 80 for line in lines)

    @pytest.mark.parametrize(
        ("code", "status"),
        [
            ("invalid_request", 2),
            ("not_found", 3),
            ("unauthenticated", 4),
            ("permission_denied", 4),
            ("conflict", 5),
            ("rate_limited", 7),
            ("sealed", 1),
            ("internal", 1),
        ],
    )
    def test_scripts_tell_refusals_apart_by_the_exit_code(self, tool: ctl.Tool, code: str, status: int) -> None:
        """As documented; everything else is 1."""
        tool.api.replies["tokens.list"] = code
        assert tool("token", "ls").code == status

    def test_nobody_known_is_told_how_to_give_a_token(self, tool: ctl.Tool) -> None:
        """To this tool, not as a header."""
        tool.api.replies["tokens.list"] = "unauthenticated"
        told = tool("token", "ls").err
        assert "--token-file" in told
        assert "Bearer" not in told


def test_control_characters_of_strangers_do_not_reach_the_terminal(tool: ctl.Tool) -> None:
    """A name in the audit log may be an attacker's: it must not move the cursor of whoever reads it."""
    tool.api.replies["sys.health"] = {
        "status": "ok",
        "components": [{"name": "store", "status": "ok", "detail": "\x1b[2Jé\x9b1A\u202e\n-> fine"}],
    }
    told = tool("status").out
    assert told.splitlines()[-1] == "store  ok      \\x1b[2Jé\\x9b1A\\u202e\\n-> fine"
    as_json = tool("status", "--json")
    assert as_json.out.isascii()
    assert as_json.json["components"][0]["detail"].startswith("\x1b")
    assert [each for each in as_json.out if not each.isprintable() and each != "\n"] == []


def test_an_answer_that_cannot_be_written_is_a_failure_in_one_line(tool: ctl.Tool) -> None:
    """A token is made then and nobody has it: who asked must know."""
    environment = {**os.environ, "SCAIVAULT_ADDR": f"unix:{tool.socket}"}
    command = [sys.executable, "-m", "scaivaultd.ctl", "status"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment
        )
    assert ended.returncode == 1
    assert ended.stderr == (
        "scaivaultctl: the answer cannot be written: No space left on device; what was asked for is done\n"
    )


def test_a_reader_that_has_had_enough_is_no_error_to_tell() -> None:
    """`scaivaultctl commands | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "scaivaultd.ctl", "commands"]
    ended = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert ended.stderr == ""
