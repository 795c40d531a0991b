"""`scaivaultctl doctor` at the real daemon: nothing is wrong with one that is well, and what breaks is found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.process import free_port
from tests.system.test_ctl import Shell

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.system


async def test_a_daemon_before_and_after_it_breaks(new_daemon: Callable[..., Any], make_ca: Any, tmp_path: Any) -> None:
    """The same command by day and by night."""
    ca = await make_ca(free_port())
    daemon = new_daemon(ca, preflight='delegation = "off"')
    await daemon.start()
    account = await daemon.account(ca)
    assert (await daemon.issue(account, "www.example.test"))["status"] == "valid"
    ctl = Shell({"SCAIVAULT_ADDR": ""})
    config = ("--config", str(daemon.folder / "scaivaultd.toml"), "--root", str(tmp_path), "--json")
    checks = ("D01", "D02", "D03", "D04", "D05", "D06", "D07", "D13", "D14", "D15", "D16", "D17")

    ended = await ctl("doctor", *checks, *config)
    found = {each["id"]: each for each in ended.json["checks"]}
    # Of the host's processes only those of one's own are seen without root: then who holds the port is not known.
    wrong = [each for each in found.values() if each["verdict"] != "ok"]
    assert wrong == []
    assert ended.code == 0

    await daemon.stop()
    (daemon.state_dir / "master.key").write_bytes(b"\x00" * 32)
    (daemon.state_dir / "master.key").chmod(0o644)
    ended = await ctl("doctor", *checks, *config)
    found = {each["id"]: each for each in ended.json["checks"]}
    assert ended.code == 10
    assert found["D02"]["verdict"] == found["D13"]["verdict"] == "error"
    assert found["D03"]["verdict"] == "ok"
    assert found["D15"]["verdict"] == "skipped"
