"""The drill: a backup under load, another machine, a daemon that waits for a word, and certificates that go on."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import nats
import nats.errors
import pytest

from scaivaultd.demo.ca_settings import CaSettings
from scaivaultd.demo.process import free_port, until
from scaivaultd.model.backups import RESTORED_KEY, Restored
from tests.fakes.ctl import Ended

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MakeCa = Callable[..., Awaitable[Any]]
PASSPHRASE = "correct horse battery staple"
VERSION_1 = Path(__file__).parent.parent / "store/version_1"


async def ctl(*arguments: str, given: str = "") -> Ended:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scaivaultd.ctl",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(given.encode()), 60)
    return Ended(int(process.returncode or 0), out.decode(), err.decode())


def socket_of(daemon: Any) -> tuple[str, str]:
    return "--address", f"unix:{daemon.state_dir / 'api.sock'}"


async def certificate_of(daemon: Any, certificate_id: str, version: int) -> Any:
    """The certificate once it has that version."""
    async with asyncio.timeout(60):
        while True:
            certificate = await daemon.ask("pki.certificates.get", id=certificate_id)
            if certificate["version"] >= version:
                return certificate
            await asyncio.sleep(0.05)


async def test_the_drill(make_ca: MakeCa, new_daemon: Callable[..., Any], tmp_path: Path) -> None:
    """What is restored asks the CA nothing while the old daemon may live, and then renews with the same account."""
    ca = await make_ca(free_port(), settings=CaSettings(lifetime=timedelta(seconds=20)))
    old = new_daemon(ca, "old")
    await old.start()
    account_id = await old.account(ca)
    order = await old.issue(account_id, "a.example.test")

    # Orders come in while the copy is made.
    more = [
        asyncio.create_task(
            old.ask(
                "pki.acme.issue", account_id=account_id, domains=[f"b{number}.example.test"], challenge_type="http-01"
            )
        )
        for number in range(8)
    ]
    made = await ctl("backup", "create", *socket_of(old), "--to", str(tmp_path), "--json", given=f"{PASSPHRASE}\n")
    assert made.code == 0, made.err
    backup = json.loads(made.out)["path"]
    await asyncio.gather(*more)
    await old.stop(signal.SIGKILL)

    verified = await ctl("backup", "verify", backup, "--json", given=f"{PASSPHRASE}\n")
    assert verified.code == 0, verified.err
    assert verified.json["sealed_values"] >= 3

    new = new_daemon(ca, "new")
    new.folder.mkdir()
    key_file = tmp_path / "new.key"
    restored = await ctl(
        "backup",
        "restore",
        backup,
        "--state-dir",
        str(new.state_dir),
        "--master-key",
        f"file:{key_file}",
        given=f"{PASSPHRASE}\n",
    )
    assert restored.code == 0, restored.err
    new.configuration += f'\n[secrets]\nmaster_key = "file:{key_file}"\n'
    before = ca.ca.requests.total()
    await new.start()

    await new.events_of("certificate.expiring", 1)
    version = await expired(new, order["certificate_id"])
    health = await new.ask("sys.health")
    assert {each["name"]: each["status"] for each in health["components"]}["safe_mode"] == "degraded"
    refused = await new.ask("pki.certificates.renew", id=order["certificate_id"])
    assert (refused["code"], "scaivaultctl resume" in refused["detail"]) == ("conflict", True)
    await new.stop()
    await new.start()
    assert (await new.ask("pki.acme.accounts.get", id=account_id))["status"] == "valid"
    assert ca.ca.requests.total() == before

    resumed = await ctl("resume", "--yes", *socket_of(new), "--json")
    assert resumed.json == {"was_paused": True, "restored_from": Path(backup).name}
    await certificate_of(new, order["certificate_id"], version + 1)
    assert len(ca.ca.accounts) == 1
    assert ca.ca.requests["newAccount"] == 1
    assert (await new.ask("audit.verify"))["is_sound"] is True
    assert (await new.ask("sys.health"))["status"] == "ok"
    assert ca.ca.violations == []
    assert await new.stop() == 0


async def expired(daemon: Any, certificate_id: str) -> int:
    """The version that has come to its end without being renewed."""
    async with asyncio.timeout(60):
        while True:
            certificate = await daemon.ask("pki.certificates.get", id=certificate_id)
            if certificate["status"] == "expired":
                return int(certificate["version"])
            await asyncio.sleep(0.05)


async def test_at_a_shared_server_nothing_is_taken_that_may_be_meant_for_the_old_daemon(
    hanging_ca: Any, new_daemon: Callable[..., Any], new_nats: Callable[..., Any], launch: Callable[..., Any]
) -> None:
    """Its refusals would come to a part of all who ask the daemon that works."""
    server = new_nats()
    await server.start()
    daemon = new_daemon(hanging_ca, url=server.url, nats=f'servers = ["{server.url}"]')
    daemon.folder.mkdir()
    shutil.copytree(VERSION_1, daemon.state_dir)
    (daemon.state_dir / "master.key").chmod(0o600)
    mark_restored(daemon.state_dir)
    launch(daemon)

    async def is_up() -> bool:
        ended = await ctl("status", *socket_of(daemon), "--json")
        parts = ended.json["components"] if ended.out else []
        return ("nats", "ok") in [(each["name"], each["status"]) for each in parts]

    await until(is_up, "the daemon is connected")
    client = await nats.connect(server.url)
    with pytest.raises(nats.errors.NoRespondersError):
        await client.request("scaivault.v1.sys.info", b"", timeout=10)
    await client.close()
    assert (await ctl("resume", "--yes", *socket_of(daemon))).code == 0
    await daemon.connect()
    assert await daemon.stop() == 0


def mark_restored(state_dir: Path) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    mark = msgspec.json.encode(Restored(backup="b.scvb", backup_created_at=now, restored_at=now))
    with closing(sqlite3.connect(state_dir / "store.db")) as store:
        store.execute("INSERT INTO documents (key, document) VALUES (?, ?)", (RESTORED_KEY, mark))
        store.commit()


async def test_the_state_of_the_first_version_runs(hanging_ca: Any, new_daemon: Callable[..., Any]) -> None:
    """Who upgrades finds everything as it was; the old events go out."""
    daemon = new_daemon(hanging_ca)
    daemon.folder.mkdir()
    shutil.copytree(VERSION_1, daemon.state_dir)
    (daemon.state_dir / "master.key").chmod(0o600)
    await daemon.start()
    listed = (await daemon.ask("pki.certificates.list"))["items"]
    assert len(listed) == 2
    key = await daemon.ask("pki.certificates.key", id=listed[0]["id"])
    assert key["private_key_pem"].startswith("-----BEGIN PRIVATE KEY-----")
    for kind, count in (("account.created", 1), ("certificate.issued", 2), ("certificate.renewed", 1)):
        await daemon.events_of(kind, count)
    assert (await daemon.ask("audit.verify"))["is_sound"] is True
    assert (await daemon.ask("sys.health"))["status"] == "ok"
    assert await daemon.stop() == 0
