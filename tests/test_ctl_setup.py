"""`scaivaultctl setup systemd`, into a tree that is not running; test_systemd.py in `system/` does it for real."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fakes import ctl

if TYPE_CHECKING:
    from pathlib import Path

UNITS = "etc/systemd/system"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image with the daemon in it."""
    program = tmp_path / "opt/scaivaultd/bin/scaivaultd"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return tmp_path


def setup(root: Path, *options: str, version: int = 252) -> ctl.Ended:
    where = ["--root", str(root), "--prefix", "/opt/scaivaultd", "--systemd-version", str(version)]
    return ctl.run("setup", "systemd", *where, *options)


def plan(ended: ctl.Ended) -> dict[str, str]:
    assert ended.code == 0, ended.err
    return {each["path"]: each["action"] for each in ended.json["files"]}


def test_it_installs_all_that_a_host_needs(root: Path) -> None:
    """And the configuration, which the administrator then fills, is there to begin with."""
    ended = setup(root, "--yes")
    assert (ended.code, ended.out) == (0, "")
    assert "systemctl enable scaivaultd" in ended.err
    there = {str(each.relative_to(root)) for each in (root / "etc").rglob("*") if each.is_file()}
    assert there == {
        f"{UNITS}/scaivaultd.service",
        f"{UNITS}/scaivaultd-http.socket",
        f"{UNITS}/scaivaultd-tls.socket",
        f"{UNITS}/scaivaultd-api.socket",
        f"{UNITS}/scaivaultd-backup.service",
        f"{UNITS}/scaivaultd-backup.timer",
        "etc/sysusers.d/scaivaultd.conf",
        "etc/tmpfiles.d/scaivaultd.conf",
        "etc/scaivaultd/scaivaultd.toml",
    }


def test_the_configuration_it_leaves_is_a_good_one(root: Path) -> None:
    """The first start must not fail of what we wrote ourselves."""
    from scaivaultd.settings import load

    setup(root, "--yes")
    assert str(load(root / "etc/scaivaultd/scaivaultd.toml").state_dir) == "/var/lib/scaivaultd"


def test_once_more_changes_nothing(root: Path) -> None:
    """It is run from configuration management; a person is asked for nothing then."""
    setup(root, "--yes")
    again = setup(root, "--json")
    assert set(plan(again).values()) == {"unchanged"}


def test_other_options_change_only_what_they_are_about(root: Path) -> None:
    """An upgrade of systemd, and later one back."""
    setup(root, "--yes")
    own = root / UNITS / "scaivaultd.service.d/override.conf"
    own.parent.mkdir()
    own.write_text("[Service]\nMemoryMax=2G\n")
    drop_in = f"/{UNITS}/scaivaultd.service.d/10-notify-reload.conf"
    newer = plan(setup(root, "--yes", "--json", version=253))
    assert {path: action for path, action in newer.items() if action != "unchanged"} == {drop_in: "create"}
    assert plan(setup(root, "--yes", "--json"))[drop_in] == "remove"
    assert not (root / drop_in.lstrip("/")).exists()
    assert own.read_text() == "[Service]\nMemoryMax=2G\n"


def test_sockets_that_are_not_wanted_any_more_go_with_their_links(root: Path) -> None:
    """A dangling link is a warning at every boot, and a socket unit would hold the port the daemon is to bind."""
    setup(root, "--yes")
    wants = root / UNITS / "sockets.target.wants"
    wants.mkdir()
    for each in ("http", "tls", "api"):
        (wants / f"scaivaultd-{each}.socket").symlink_to(f"/{UNITS}/scaivaultd-{each}.socket")
    assert setup(root, "--no-sockets", "--yes").code == 0
    assert list(wants.iterdir()) == list((root / UNITS).glob("*.socket")) == []


def test_a_configuration_that_is_there_stays(root: Path) -> None:
    """It is the administrator's, whatever is in it."""
    config = root / "etc/scaivaultd/scaivaultd.toml"
    config.parent.mkdir(parents=True)
    config.write_text("# mine\n")
    assert plan(setup(root, "--yes", "--json"))["/etc/scaivaultd/scaivaultd.toml"] == "unchanged"
    assert config.read_text() == "# mine\n"


def test_a_dry_run_shows_the_files_and_writes_none(root: Path) -> None:
    """Whoever reviews wants to see them before."""
    ended = setup(root, "--dry-run", "--json", "--external-nats")
    assert set(plan(ended).values()) == {"create"}
    contents = {each["path"]: each["content"] for each in json.loads(ended.out)["files"]}
    assert "ExecStart=" in contents[f"/{UNITS}/scaivaultd.service"]
    assert "SocketBindDeny=any" in contents[f"/{UNITS}/scaivaultd.service.d/10-external-nats.conf"]
    assert not (root / "etc").exists()


def test_without_a_person_to_ask_it_needs_a_yes(root: Path) -> None:
    """A script that was not meant to change the host does not."""
    ended = setup(root)
    assert (ended.code, (root / "etc").exists()) == (2, False)
    assert "--yes" in ended.err


def test_an_installation_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Units for nothing would fail at the next boot only."""
    ended = setup(tmp_path, "--yes")
    assert (ended.code, (tmp_path / "etc").exists()) == (2, False)
    assert "there is no /opt/scaivaultd/bin/scaivaultd" in ended.err


def test_the_agent_alone(root: Path) -> None:
    """For hosts that only use certificates."""
    assert plan(setup(root, "--agent", "--yes", "--json")) == {f"/{UNITS}/scaivaultd-agent.service": "create"}
    assert setup(root, "--agent", "--external-nats").code == 2


def test_a_disk_that_refuses_is_told(root: Path) -> None:
    """With the file, and without a traceback."""
    (root / "etc").write_text("not a directory")
    ended = setup(root, "--yes")
    assert ended.code == 1
    assert "Not a directory" in ended.err or "File exists" in ended.err
