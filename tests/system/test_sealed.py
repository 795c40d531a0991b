"""The real daemon without its master key, with another one, with a passphrase, and while it gets a new one."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import pytest

from scaivaultd.demo.process import free_port, until
from scaivaultd.model.resources import SealedKey, StoredSecret
from scaivaultd.services.documents import SECRETS, digest
from scaivaultd.store.master_key import create_master_key_file, from_recovery_key, load_master_key, recovery_key
from scaivaultd.store.sealing import EnvelopeSealer, marks_of, read_record

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

KILLING_DAEMON = Path(__file__).with_name("killing_daemon.py")
PHRASE = "correct horse battery staple"


async def http(daemon: Any, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """One request over the daemon's UNIX socket, which asks with the uid of this process."""
    connector = aiohttp.UnixConnector(path=str(daemon.state_dir / "api.sock"))
    async with (
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as session,
        session.request(method, f"http://daemon{path}", json=body) as response,
    ):
        return response.status, await response.json(content_type=None)


async def is_open(daemon: Any) -> bool:
    try:
        status, reply = await http(daemon, "GET", "/readyz")
    except (aiohttp.ClientError, OSError, ValueError):
        return False
    return status == 200 and reply["status"] != "sealed"


async def opened(daemon: Any) -> None:
    await until(lambda: is_open(daemon), "the daemon is not sealed any more")
    await daemon.connect()


async def rotated(daemon: Any) -> dict[str, Any]:
    """The master key once its rotation has ended."""
    async with asyncio.timeout(30):
        while True:
            _, reply = await http(daemon, "GET", "/v1/sys/master-key")
            if reply["rotation"] and reply["rotation"]["finished_at"]:
                found: dict[str, Any] = reply
                return found
            await asyncio.sleep(0.02)


def with_key(new_daemon: Callable[..., Any], ca: Any, name: str = "daemon", source: str | None = None) -> Any:
    daemon = new_daemon(ca, name)
    source = source or f"file:{daemon.folder / 'master.key'}"
    daemon.configuration += f"\n[secrets]\nmaster_key = {json.dumps(source)}\n"
    return daemon


async def test_a_daemon_without_its_key_lives_and_says_so_until_it_is_back(new_daemon: Any, make_ca: Any) -> None:
    """No crash loop: every way in answers, and with the key it goes on in the same process."""
    ca = await make_ca(free_port())
    daemon = with_key(new_daemon, ca)
    key = daemon.folder / "master.key"
    daemon.folder.mkdir(parents=True)
    create_master_key_file(key)
    await daemon.start()
    account = await daemon.account(ca)
    order = await daemon.issue(account, "a.example.test")
    before = await daemon.ask("pki.certificates.key", id=order["certificate_id"])
    written_down = recovery_key(load_master_key(f"file:{key}", environment={}, credentials_directory=None))
    await daemon.stop()
    key.unlink()

    await daemon.start()
    process = daemon.process
    assert (await http(daemon, "GET", "/livez"))[0] == 200
    assert (await http(daemon, "GET", "/readyz")) == (503, {"status": "sealed"})
    status, health = await http(daemon, "GET", "/v1/sys/health")
    assert (status, health["status"]) == (503, "sealed")
    assert [each["name"] for each in health["components"]] == ["master_key"]
    assert health["components"][0]["detail"].startswith("key_missing: ")
    assert (await daemon.ask("sys.health"))["status"] == "sealed"
    for command in ("pki.certificates.list", "sys.info", "pki.acme.accounts.list"):
        assert (await daemon.ask(command))["code"] == "sealed"
    status, refused = await http(daemon, "GET", "/v1/pki/certificates")
    assert (status, refused["code"]) == (503, "sealed")
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{ca.http01_port}/x") as answer:
        assert answer.status == 404
    assert process.log.count("secrets.sealed") == 1

    create_master_key_file(key, from_recovery_key(written_down))
    process._handle.send_signal(signal.SIGHUP)
    await opened(daemon)
    assert await daemon.ask("pki.certificates.key", id=order["certificate_id"]) == before
    assert (await daemon.issue(account, "b.example.test"))["status"] == "valid"
    assert daemon.process is process
    assert await daemon.stop() == 0


async def test_a_sealed_daemon_stops_as_any_other(new_daemon: Any, hanging_ca: Any) -> None:
    """systemd must not have to kill it."""
    daemon = with_key(new_daemon, hanging_ca)
    hanging_ca.http01_port = free_port()
    await daemon.start()
    assert (await daemon.ask("sys.health"))["status"] == "sealed"
    assert await daemon.stop() == 0
    assert not (daemon.state_dir / "api.sock").exists()


@pytest.mark.parametrize("swap", ["key", "store"])
async def test_a_swapped_key_or_store_is_recognised(new_daemon: Any, hanging_ca: Any, swap: str) -> None:
    """Two backups were mixed up: nothing is overwritten, and which key is wanted is said."""
    daemons = [with_key(new_daemon, hanging_ca, name) for name in ("one", "two")]
    kids = []
    for daemon in daemons:
        daemon.folder.mkdir(parents=True)
        create_master_key_file(daemon.folder / "master.key")
        await daemon.start()
        kids.append((await daemon.ask("sys.master_key.get"))["kid"])
        await daemon.stop()
    one, two = daemons
    if swap == "key":
        shutil.copy(two.folder / "master.key", one.folder / "master.key")
    else:
        shutil.copy(two.state_dir / "store.db", one.state_dir / "store.db")
    wanted = kids[0] if swap == "key" else kids[1]
    await one.start()
    reply = await one.ask("sys.master_key.get")
    assert (reply["is_sealed"], reply["reason"], reply["kid"]) == (True, "key_mismatch", wanted)
    assert f"store wants kid {wanted}, got " in reply["detail"]
    assert "nothing was changed" in reply["detail"]


async def test_a_passphrase_opens_it_over_the_unix_socket_only(new_daemon: Any, hanging_ca: Any) -> None:
    """The first one ever given is the store's; a restart, even by kill -9, asks for it again."""
    daemon = with_key(new_daemon, hanging_ca, source="passphrase")
    await daemon.start()
    status, reply = await http(daemon, "GET", "/v1/sys/master-key")
    assert (status, reply["reason"], reply["kid"]) == (200, "passphrase_needed", None)
    assert (await daemon.ask("sys.unseal", passphrase=PHRASE))["code"] == "permission_denied"
    status, reply = await http(daemon, "POST", "/v1/sys/unseal", {"passphrase": PHRASE})
    assert (status, reply["is_sealed"]) == (200, False)
    kid = reply["kid"]
    await opened(daemon)
    assert (await daemon.ask("secrets.put", path="infra/dns/token", value="hush"))["version"] == 1
    await daemon.stop(signal.SIGKILL)

    await daemon.start()
    assert (await http(daemon, "POST", "/v1/sys/unseal", {"passphrase": "not this one"}))[0] == 403
    assert (await http(daemon, "GET", "/v1/sys/master-key"))[1]["kid"] == kid
    status, reply = await http(daemon, "POST", "/v1/sys/unseal", {"passphrase": PHRASE})
    assert (status, reply["kid"]) == (200, kid)
    await opened(daemon)
    assert (await http(daemon, "POST", "/v1/sys/unseal", {"passphrase": PHRASE}))[1]["code"] == "conflict"
    status, reply = await http(daemon, "POST", "/v1/sys/master-key/rotate", {"new_passphrase": "another passphrase"})
    assert status == 202
    await rotated(daemon)
    await daemon.stop()

    await daemon.start()
    assert (await http(daemon, "POST", "/v1/sys/unseal", {"passphrase": PHRASE}))[0] == 403
    assert (await http(daemon, "POST", "/v1/sys/unseal", {"passphrase": "another passphrase"}))[0] == 200
    await opened(daemon)
    for text in (PHRASE, "another passphrase"):
        assert text not in daemon.process.log
        assert text.encode() not in (daemon.state_dir / "store.db").read_bytes()


async def test_a_key_from_the_environment_is_not_passed_on(new_daemon: Any, hanging_ca: Any) -> None:
    """Children of the daemon, its nats-server first, run without it."""
    daemon = with_key(new_daemon, hanging_ca, source="env:SCAIVAULT_TEST_KEY")
    key = "ab" * 32
    daemon.arguments = ["env", f"SCAIVAULT_TEST_KEY={key}", *daemon.arguments]
    await daemon.start()
    components = (await daemon.ask("sys.health"))["components"]
    assert [each["status"] for each in components if each["name"] == "master_key"] == ["ok"]
    assert not (await daemon.ask("sys.master_key.get"))["is_sealed"]
    environments = environments_of_children(daemon.process.pid)
    assert environments
    assert not any(key.encode() in each for each in environments)
    assert "secrets.master_key_in_environment" in daemon.process.log
    assert key not in daemon.process.log


async def test_a_crash_leaves_no_keys_in_a_core_file(new_daemon: Any, hanging_ca: Any) -> None:
    """What is in the memory of the daemon and of its nats-server is all that the seal protects."""
    daemon = new_daemon(hanging_ca)
    daemon.arguments = ["bash", "-c", 'ulimit -c hard; exec "$@"', "bash", *daemon.arguments]
    await daemon.start()
    pids = [daemon.process.pid, *children_of(daemon.process.pid)]
    assert len(pids) > 1
    for limits in map(limits_of, pids):
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), limits


def limits_of(pid: int) -> str:
    return Path(f"/proc/{pid}/limits").read_text()


def environments_of_children(pid: int) -> list[bytes]:
    return [Path(f"/proc/{child}/environ").read_bytes() for child in children_of(pid)]


def children_of(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_certificates_are_issued_while_everything_gets_a_new_key(new_daemon: Any, make_ca: Any) -> None:
    """Nobody has to stop for it, and every private key is the same afterwards."""
    ca = await make_ca(free_port())
    daemon = with_key(new_daemon, ca)
    daemon.folder.mkdir(parents=True)
    create_master_key_file(daemon.folder / "master.key")
    old = (daemon.folder / "master.key").read_bytes()
    await daemon.start()
    account = await daemon.account(ca)
    first = [await daemon.issue(account, f"h{number}.example.test") for number in range(3)]
    ids = [order["certificate_id"] for order in first]
    keys = [await daemon.ask("pki.certificates.key", id=each) for each in ids]
    issuing = asyncio.gather(*(daemon.issue(account, f"n{number}.example.test") for number in range(8)))
    status, begun = await http(daemon, "POST", "/v1/sys/master-key/rotate", {})
    assert status == 202
    done = await rotated(daemon)
    assert [order["status"] for order in await issuing] == ["valid"] * 8
    assert [await daemon.ask("pki.certificates.key", id=each) for each in ids] == keys
    await daemon.stop()
    assert (daemon.folder / "master.key").read_bytes() != old

    await daemon.start()
    assert (await daemon.ask("sys.master_key.get"))["kid"] == done["kid"] == begun["kid"]
    assert [await daemon.ask("pki.certificates.key", id=each) for each in ids] == keys
    assert (await daemon.issue(account, "z.example.test"))["status"] == "valid"
    await daemon.stop()
    raw = (daemon.state_dir / "store.db").read_bytes()
    assert not any(mark in raw for mark in marks_of(begun["rotation"]["from_kid"]))


def sealed_keys(daemon: Any) -> int:
    """How many values of the stopped daemon's store its key file opens; raises if one is not opened by it."""
    key = load_master_key(f"file:{daemon.folder / 'master.key'}", environment={}, credentials_directory=None)
    with closing(sqlite3.connect(daemon.state_dir / "store.db")) as connection:
        rows = dict(connection.execute("SELECT key, document FROM documents").fetchall())
    sealer = EnvelopeSealer.unlock(key, rows["meta/sealing"])
    opened = 0
    for name, document in rows.items():
        if name.startswith("key/"):
            sealed = msgspec.json.decode(document, type=SealedKey)
            assert sealer.open(sealed.sealed, name, "private_key")
            opened += 1
        elif name.startswith("secret/"):
            secret = msgspec.json.decode(document, type=StoredSecret)
            value = sealer.open(secret.sealed, SECRETS.key(digest(secret.path)), f"value.{secret.version}")
            assert value == f"value of {secret.path}".encode()
            opened += 1
    assert read_record(rows["meta/sealing"]).kid == sealer.kid
    return opened


@pytest.mark.timeout(600)
async def test_a_kill_at_every_commit_of_a_rotation_loses_nothing(
    new_daemon: Any, make_ca: Any, tmp_path: Path
) -> None:
    """Whatever was written last, the key file opens the store, and the rotation goes on by itself."""
    ca = await make_ca(free_port())
    prepared = with_key(new_daemon, ca, "prepared")
    prepared.folder.mkdir(parents=True)
    create_master_key_file(prepared.folder / "master.key")
    await prepared.start()
    order = await prepared.issue(await prepared.account(ca), "a.example.test")
    private = await prepared.ask("pki.certificates.key", id=order["certificate_id"])
    for number in range(3):
        path = f"infra/s{number}"
        assert (await prepared.ask("secrets.put", path=path, value=f"value of {path}"))["version"] == 1
    await prepared.stop()
    values = sealed_keys(prepared)
    assert values >= 5
    count_file = tmp_path / "commits"

    async def once(moment: str, nth: int) -> tuple[bool, int]:
        """One life with a rotation and its continuation; whether it was killed, and the commits before the rotation."""
        daemon = with_key(new_daemon, ca, f"{moment}-{nth}")
        shutil.copytree(prepared.folder, daemon.folder)
        daemon.arguments = [sys.executable, str(KILLING_DAEMON), moment, str(nth), str(count_file)]
        await daemon.start()
        before = int(count_file.read_text())
        killed = await rotate_even_if_killed(daemon)
        if killed:
            assert sealed_keys(daemon) == values
            daemon.arguments = [sys.executable, "-m", "scaivaultd", "serve"]
            await daemon.disconnect()
            await daemon.start()
            _, reply = await http(daemon, "GET", "/v1/sys/master-key")
            assert not reply["is_sealed"], reply
            if reply["rotation"] is None:
                await http(daemon, "POST", "/v1/sys/master-key/rotate", {})
            await rotated(daemon)
        assert await daemon.ask("pki.certificates.key", id=order["certificate_id"]) == private
        await daemon.stop()
        assert sealed_keys(daemon) == values
        assert not (daemon.folder / "master.key.next").exists()
        assert (daemon.folder / "master.key").read_bytes() != (prepared.folder / "master.key").read_bytes()
        shutil.rmtree(daemon.state_dir)
        return killed, before

    killed, before = await once("before", 0)
    assert not killed
    reached = 0
    for nth in range(before + 1, before + 20):
        outcomes = [(await once(moment, nth))[0] for moment in ("before", "after")]
        reached += sum(outcomes)
        if not any(outcomes):
            break
    assert reached >= 5


async def rotate_even_if_killed(daemon: Any) -> bool:
    """Ask for a rotation and wait for its end; whether the daemon was killed meanwhile."""
    try:
        await http(daemon, "POST", "/v1/sys/master-key/rotate", {})
        await rotated(daemon)
    except (aiohttp.ClientError, OSError):
        await daemon.process.wait(10)
        assert daemon.process.was_killed()
        return True
    return False
