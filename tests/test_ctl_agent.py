"""`cert export`, `agent --once` and `events replay` before a faked daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scaivaultd.ctl_export import reload_fails
from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CERTIFICATE = {
    "id": "cert_01hzx3v5kq0000000000000000",
    "version": 3,
    "has_private_key": True,
    "domains": ["a.example"],
    "order_id": "order_1",
    "account_id": "acme_1",
    "status": "valid",
    "issuer": "CN=CA",
    "fingerprint_sha256": "00",
    "key_type": "ec-p256",
    "serial_number": "01",
    "challenge_type": "dns-01",
    "auto_renew": True,
    "not_before": "2026-11-01T00:00:00Z",
    "not_after": "2027-02-01T00:00:00Z",
    "created_at": "2026-11-01T00:00:00Z",
    "issued_at": "2026-11-01T00:00:00Z",
}
PLACE = {"id": CERTIFICATE["id"], "version": 3}
CONFIRMED = {
    "id": CERTIFICATE["id"],
    "host": "web1",
    "version": 3,
    "current_version": 3,
    "is_current": True,
    "is_overdue": False,
    "where": "",
    "error": None,
    "first_seen_at": "2026-11-01T00:00:00Z",
    "confirmed_at": "2026-11-01T00:00:00Z",
    "confirmed_by": "root",
}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies.update(
            {
                "pki.certificates.get": CERTIFICATE,
                "pki.certificates.pem": {**PLACE, "part": "leaf", "pem": "PEM\n"},
                "pki.certificates.key": {**PLACE, "key_type": CERTIFICATE["key_type"], "private_key_pem": "KEY\n"},
                "pki.certificates.confirm": CONFIRMED,
                "events.list": {"items": [], "next_after": 4, "oldest": 1},
            }
        )
        yield found


def test_export_touches_nothing_where_the_same_is_there(tool: ctl.Tool, tmp_path: Path) -> None:
    """It runs from cron, too."""
    arguments = ("cert", "export", str(CERTIFICATE["id"]), "--to", str(tmp_path / "x"), "--json")
    assert tool(*arguments).json["changed"] is True
    there = (tmp_path / "x").readlink()
    assert tool(*arguments).json["changed"] is False
    assert ((tmp_path / "x").readlink(), (tmp_path / "x/privkey.pem").read_text()) == (there, "KEY\n")


def test_a_reload_that_fails_is_told(tool: ctl.Tool, tmp_path: Path) -> None:
    """The service still has the old certificate."""
    ended = tool(
        "cert", "export", str(CERTIFICATE["id"]), "--to", str(tmp_path / "x"), "--reload-command", "/bin/false"
    )
    assert (ended.code, "/bin/false ended with 1" in ended.err) == (1, True), ended.err


def _config(tool: ctl.Tool, tmp_path: Path, reload: list[str]) -> str:
    file = tmp_path / "agent.toml"
    file.write_text(
        f'address = "unix:{tool.socket}"\nhost = "web1"\nstate_dir = "{tmp_path}/state"\n'
        + "".join(
            f'[[certificate]]\nid = "{CERTIFICATE["id"]}"\ndirectory = "{tmp_path}/{name}"\nreload = {reload}\n'
            for name in ("x", "y")
        )
    )
    return str(file)


def test_the_agent_reloads_once_and_confirms(tool: ctl.Tool, tmp_path: Path) -> None:
    """Two folders with one service: it is reloaded once, and not again when nothing has changed."""
    ran = tmp_path / "ran"
    config = _config(tool, tmp_path, ["/bin/sh", "-c", f"echo ran >> {ran}"])
    assert tool("agent", "--config", config, "--once").code == 0
    assert tool("agent", "--config", config, "--once").code == 0
    assert ran.read_text() == "ran\n"
    confirmed = [body for name, body in tool.api.asked if name == "pki.certificates.confirm"]
    assert [(each["host"], each["version"]) for each in confirmed] == [("web1", 3)] * 2


def test_the_agent_runs_a_failed_reload_again(tool: ctl.Tool, tmp_path: Path) -> None:
    """The files are new already: only its memory tells that the service does not use them."""
    assert tool("agent", "--config", _config(tool, tmp_path, ["/bin/false"]), "--once").code == 1
    assert "ended with 1" in tool.last[1]["error"]
    assert tool("agent", "--config", _config(tool, tmp_path, ["/bin/true"]), "--once").code == 0
    assert "error" not in tool.last[1]


def test_replay_ends(tool: ctl.Tool) -> None:
    """At what is newest."""
    assert tool("events", "replay", "--from", "5").code == 0


def test_one_bad_owner_is_told_with_its_place(tool: ctl.Tool, tmp_path: Path) -> None:
    """At the start, as other mistakes of the file are."""
    config = tmp_path / "agent.toml"
    config.write_text('[[certificate]]\nid = "x"\ndirectory = "/x"\nowner = "nobody-here"\n')
    ended = tool("agent", "--config", str(config))
    assert ended.code == 78
    assert "[[certificate]] 1, /x: owner: there is no user 'nobody-here'" in " ".join(ended.err.split())


def test_a_reload_that_hangs_is_killed_with_its_children() -> None:
    """What it started would hold the service's locks for ever."""
    assert reload_fails(["/bin/sh", "-c", "sleep 1000 & wait"], 0.2) == "/bin/sh did not end within 0.2 s"
