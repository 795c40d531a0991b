"""`scaivaultctl agent` as a process: a host follows, catches up after it was away, and is told of when it does not."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.process import Process, free_port, until
from tests.system.test_ctl import Shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]

NAME = "www.example.test"


class Host:
    """A host that uses one certificate."""

    def __init__(self, folder: Path, address: str, token: str) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "token").write_text(token)
        (folder / "token").chmod(0o600)
        self.config = folder / "agent.toml"
        self.config.write_text(
            f'address = "{address}"\ntoken_file = "{folder}/token"\nhost = "web1"\nstate_dir = "{folder}/state"\n'
            f'[[certificate]]\nname = "{NAME}"\ndirectory = "{folder}/tls"\n'
            f'reload = ["sh", "-c", "cat {folder}/tls/cert.pem | wc -l >> {folder}/reloads"]\n'
        )

    @asynccontextmanager
    async def following(self) -> AsyncIterator[Process]:
        process = Process([sys.executable, "-m", "scaivaultd.ctl", "agent", "--config", str(self.config)], self.folder)
        process.start()
        try:
            yield process
        finally:
            await process.stop()

    @property
    def certificate(self) -> str:
        return (self.folder / "tls/cert.pem").read_text()

    @property
    def reloads(self) -> int:
        return len((self.folder / "reloads").read_text().splitlines())


async def deployed(ctl: Shell, version: int, state: str) -> None:
    """Wait until the daemon knows of the host what it should."""

    async def is_so() -> bool:
        found = (await ctl("cert", "deployments", NAME, "--json")).json["items"]
        return [(each["version"], each["is_overdue"]) for each in found] == [(version, state == "overdue")]

    await until(is_so, f"web1 has version {version}, {state}", 60)


async def test_a_host_follows(new_daemon: Callable[..., Any], make_ca: Any, tmp_path: Path) -> None:
    """Installed, renewed, away for a while, and back: the files are the current ones, and each was put in use once."""
    port = free_port()
    ca = await make_ca(free_port())
    daemon = new_daemon(
        ca, rest=f'listen = ["127.0.0.1:{port}"]', deployments="overdue_seconds = 1", preflight='delegation = "off"'
    )
    await daemon.start()
    account = await daemon.account(ca)
    await daemon.issue(account, NAME)
    ctl = Shell({"SCAIVAULT_ADDR": f"unix:{daemon.state_dir}/api.sock"})
    rules = [{"actions": ["cert.read", "key.read", "cert.confirm"], "domains": [NAME]}]
    await daemon.ask("policies.put", name="web", principals=["token:web1"], rules=rules)
    token = (await ctl("token", "create", "web1", "--policy", "web")).out.strip()
    host = Host(tmp_path / "web1", f"http://127.0.0.1:{port}", token)

    once = await ctl("agent", "--config", str(host.config), "--once")
    assert once.code == 0, once.err
    first = host.certificate
    assert (host.folder / "tls/privkey.pem").stat().st_mode & 0o777 == 0o600
    await deployed(ctl, 1, "current")
    assert host.reloads == 1

    async with host.following():
        assert (await ctl("cert", "renew", NAME)).code == 0
        await deployed(ctl, 2, "current")
        assert host.certificate != first
        assert host.reloads == 2
        # The daemon goes and comes back: whoever follows goes on by itself.
        await daemon.stop()
        await daemon.start()
        assert (await ctl("cert", "renew", NAME)).code == 0
        await deployed(ctl, 3, "current")

    second = host.certificate
    assert (await ctl("cert", "renew", NAME)).code == 0
    await deployed(ctl, 3, "overdue")
    told = [body for _, _, body in await daemon.events_of("certificate.deploy_overdue", 1)]
    # A second is short: there may have been one for an earlier version, too.
    assert (told[-1]["host"], told[-1]["version"], told[-1]["current_version"]) == ("web1", 3, 4)

    async with host.following():
        await deployed(ctl, 4, "current")
    assert host.certificate != second
    assert host.reloads == 4
    shown = (await ctl("cert", "show", NAME)).out
    assert "web1" in shown


async def test_a_host_without_the_right_to_the_key_says_so(
    new_daemon: Callable[..., Any], make_ca: Any, tmp_path: Path
) -> None:
    """For cron: exit code 1, one line of JSON, and nothing half installed."""
    port = free_port()
    ca = await make_ca(free_port())
    daemon = new_daemon(ca, rest=f'listen = ["127.0.0.1:{port}"]', preflight='delegation = "off"')
    await daemon.start()
    account = await daemon.account(ca)
    await daemon.issue(account, NAME)
    ctl = Shell({"SCAIVAULT_ADDR": f"unix:{daemon.state_dir}/api.sock"})
    token = (await ctl("token", "create", "web1", "--policy", "viewer")).out.strip()
    host = Host(tmp_path / "web1", f"http://127.0.0.1:{port}", token)
    ended = await ctl("agent", "--config", str(host.config), "--once")
    assert ended.code == 1
    [failed] = [json.loads(line) for line in ended.err.splitlines() if "install_failed" in line]
    assert "key.read" in failed["error"]
    assert not (host.folder / "tls").exists()


async def test_events_are_followed_as_they_come(new_daemon: Callable[..., Any], make_ca: Any) -> None:
    """`events tail` shows what happens while one looks."""
    ca = await make_ca(free_port())
    daemon = new_daemon(ca, preflight='delegation = "off"')
    await daemon.start()
    account = await daemon.account(ca)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scaivaultd.ctl", "--json",
        "--address", f"unix:{daemon.state_dir}/api.sock", "events", "tail", "--since", "1h",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        created = json.loads(await asyncio.wait_for(process.stdout.readline(), 60))
        assert created["type"] == "account.created"
        await daemon.issue(account, NAME)
        kinds = []
        async with asyncio.timeout(60):
            while "certificate.issued" not in kinds:
                kinds.append(json.loads(await process.stdout.readline())["type"])
    finally:
        process.kill()
        await process.wait()
