"""The real daemon reads its configuration again."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from scaivaultd.demo.process import until

pytestmark = pytest.mark.system


def entries(daemon: Any, event: str) -> list[dict[str, Any]]:
    """What the log says of an event."""
    lines = [json.loads(line) for line in daemon.process.log.splitlines() if line.startswith("{")]
    return [each for each in lines if each.get("event") == event]


async def configuration(daemon: Any) -> dict[str, Any]:
    health = await daemon.ask("sys.health")
    return next(each for each in health["components"] if each["name"] == "configuration")


async def hang_up(daemon: Any, event: str) -> dict[str, Any]:
    """Send SIGHUP, and return what the log says when it was heard."""
    before = len(entries(daemon, event))
    os.kill(daemon.process.pid, signal.SIGHUP)

    async def is_said() -> bool:
        return len(entries(daemon, event)) > before

    await until(is_said, f"the log tells of {event}")
    return entries(daemon, event)[-1]


async def test_a_bad_file_changes_nothing_and_a_good_one_is_in_force_at_once(hanging_ca: Any, make_daemon: Any) -> None:
    """Whoever makes a mistake at night has a daemon that works, and is told what to mend."""
    daemon = await make_daemon(hanging_ca)
    file = daemon.folder / "scaivaultd.toml"
    policies = daemon.folder / "policies.toml"
    good = file.read_text()

    file.write_text(good.replace('level = "debug"', 'level = "loud"') + '[preflight]\ncaa = "block"\n')
    refused = await hang_up(daemon, "configuration.not_reloaded")
    assert len(refused["mistakes"]) == 1
    assert refused["mistakes"][0].startswith(f"{file}:")
    assert (await configuration(daemon))["status"] == "degraded"
    reply = await daemon.ask("sys.reload")
    assert (reply["ok"], reply["changed"], reply["mistakes"]) == (False, [], refused["mistakes"])

    rule = '[[policy.rule]]\nactions = ["cert.issue"]\ndomains = ["*.lab.example.org"]\n'
    policies.write_text(f'[[policy]]\nname = "lab"\nprincipals = ["token:x"]\n{rule}')
    drop_ins = daemon.folder / "conf.d"
    drop_ins.mkdir()
    (drop_ins / "10-more.toml").write_text(
        f'[log]\nlevel = "info"\n[access]\npolicy_files = ["{policies}"]\n[acme]\norders_per_ca = 3\n'
        '[[dns_provider]]\nname = "hooks"\ntype = "exec"\nconfig = { program = "/bin/true" }\n'
        '[deployments]\noverdue_seconds = 60\n[preflight]\ncaa = "off"\n'
    )
    file.write_text(good)
    applied = await hang_up(daemon, "configuration.reloaded")
    assert applied["changed"] == [
        "access.policy_files",
        "deployments.overdue_seconds",
        "dns_provider",
        "log.level",
        "preflight.caa",
    ]
    assert applied["needs_restart"] == ["acme.orders_per_ca"]
    assert (await configuration(daemon))["status"] == "ok"
    assert (await daemon.ask("policies.get", name="lab"))["origin"] == "file"
    assert [each["name"] for each in (await daemon.ask("pki.dns_providers.list"))["items"]] == ["hooks"]
    later = daemon.process.log.partition('"configuration.reloaded"')[2].splitlines()[1:]
    assert '"level": "debug"' not in "".join(later)

    policies.write_text('[[policy]]\nname = "admin"\n')
    await hang_up(daemon, "configuration.not_reloaded")
    assert (await daemon.ask("policies.get", name="lab"))["origin"] == "file"
    (drop_ins / "10-more.toml").unlink()
    reply = await daemon.ask("sys.reload")
    assert (reply["ok"], reply["needs_restart"], len(reply["changed"])) == (True, [], 5)
    assert (await daemon.ask("pki.dns_providers.list"))["items"] == []
