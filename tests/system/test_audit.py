"""The audit log of the real daemon: written for every request, and not to be changed unseen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api.audit import anchor_of, decode, encode, verify
from scaivaultd.demo.process import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scaivaultd.model.access import AuditRecord

pytestmark = pytest.mark.system


def files(daemon: Any) -> list[Path]:
    return sorted((daemon.state_dir / "audit").glob("audit-*.jsonl"))


def records(daemon: Any) -> list[AuditRecord]:
    return [decode(line) for path in files(daemon) for line in path.read_bytes().splitlines()]


def rewrite(daemon: Any, found: list[AuditRecord]) -> None:
    """What somebody does who can write the disk."""
    first, *others = files(daemon)
    first.write_bytes(b"".join(encode(each) + b"\n" for each in found))
    for path in others:
        path.unlink()


async def audit_health(daemon: Any) -> tuple[str, str]:
    reply = await daemon.ask("sys.health")
    found = next(each for each in reply["components"] if each["name"] == "audit")
    return found["status"], found.get("detail", "")


def log(daemon: Any, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in daemon.process.log.splitlines() if line.startswith("{")]
    return [each for each in lines if each["event"] == event]


@contextlib.contextmanager
def mounted(at: Path, options: str) -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    at.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no mounts here: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


async def test_requests_are_recorded_with_who_asked_and_how_it_ended(hanging_ca: Any, make_daemon: Any) -> None:
    """Those that fail too; questions about health would drown all others."""
    daemon = await make_daemon(hanging_ca)
    await daemon.ask("secrets.put", path="web/password", value="the-secret-value")
    await daemon.ask("pki.acme.orders.get", order_id="acme_order_none")
    await daemon.ask("sys.health")
    listed = (await daemon.ask("audit.list", limit=3))["items"]
    assert [(each["action"], each["object"], each["result"]) for each in listed] == [
        ("order.read", "acme_order_none", "not_found"),
        ("secret.write", "web/password", "ok"),
        ("secret.write", "web/password", "begun"),
    ]
    assert {each["principal"] for each in listed} == {"nats:$G/local"}
    only = await daemon.ask("audit.list", action="secret.write", object="web/password")
    assert len(only["items"]) == 2
    reply = await daemon.ask("audit.verify")
    assert reply["is_sound"]
    assert await daemon.stop() == 0
    found = records(daemon)
    assert verify(found).broken is None
    assert b"the-secret-value" not in b"".join(path.read_bytes() for path in files(daemon))
    assert files(daemon)[0].stat().st_mode & 0o777 == 0o600
    assert files(daemon)[0].parent.stat().st_mode & 0o777 == 0o700


async def test_a_kill_in_the_middle_of_a_thousand_requests_leaves_a_whole_chain(
    hanging_ca: Any, make_daemon: Any
) -> None:
    """What must be written first is there for every answer that was given; the end is mended, and not hidden."""
    daemon = await make_daemon(hanging_ca)
    answered: list[str] = []

    async def put(number: int) -> None:
        with contextlib.suppress(Exception):
            reply = await daemon.ask("secrets.put", path=f"kill/{number}", value="x")
            if reply.get("path"):
                answered.append(reply["path"])

    asking = [asyncio.create_task(put(number)) for number in range(1000)]

    async def is_busy() -> bool:
        return len(answered) > 50

    await until(is_busy, "fifty answers")
    daemon.process.kill()
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    await daemon.stop(signal.SIGKILL)
    await daemon.start()
    assert (await daemon.ask("audit.verify"))["is_sound"]
    assert (await audit_health(daemon))[0] == "ok"
    begun = {each.object for each in records(daemon) if each.result == "begun"}
    assert set(answered) <= begun


def cut_off(daemon: Any) -> None:
    rewrite(daemon, records(daemon)[:-3])


def rewritten(daemon: Any) -> None:
    found = records(daemon)
    found[1] = msgspec.structs.replace(found[1], principal="token:Somebody")
    for number in range(2, len(found)):
        found[number] = msgspec.structs.replace(found[number], previous=anchor_of(found[number - 1]).hash)
    rewrite(daemon, found)


def gone(daemon: Any) -> None:
    shutil.rmtree(daemon.state_dir / "audit")


@pytest.mark.parametrize(
    ("attack", "kind"),
    [(cut_off, "removed"), (rewritten, "rewritten"), (gone, "removed")],
    ids=["cut off", "rewritten", "gone"],
)
async def test_what_was_done_while_it_was_stopped_is_told(
    attack: Callable[[Any], None], kind: str, hanging_ca: Any, make_daemon: Any
) -> None:
    """In the log, in health, in the chain itself and by `verify`; the daemon goes on."""
    daemon = await make_daemon(hanging_ca)
    for number in range(5):
        await daemon.ask("secrets.put", path=f"a/{number}", value="x")
    assert await daemon.stop() == 0
    attack(daemon)
    await daemon.start()

    async def is_told() -> bool:
        return (await audit_health(daemon))[0] == "degraded"

    await until(is_told, "health tells")
    assert log(daemon, "audit.broken")
    reply = await daemon.ask("audit.verify")
    assert not reply["is_sound"]
    assert reply["broken"]["kind"] == kind
    assert (await daemon.ask("audit.list", action="audit.broken"))["items"]
    assert (await daemon.ask("secrets.put", path="a/after", value="x"))["path"] == "a/after"


async def test_a_log_that_is_deleted_while_it_is_written_is_noticed(hanging_ca: Any, make_daemon: Any) -> None:
    """Records must not go into a file that nobody can see."""
    daemon = await make_daemon(hanging_ca)
    await daemon.ask("secrets.put", path="a/1", value="x")
    gone(daemon)
    await daemon.ask("secrets.put", path="a/2", value="x")
    assert "was removed" in (await audit_health(daemon))[1]
    assert [each.action for each in records(daemon)][:2] == ["audit.broken", "secret.write"]


async def test_a_full_disk_stops_what_must_be_written_first_and_nothing_else(hanging_ca: Any, new_daemon: Any) -> None:
    """Renewals go on, loudly; when there is room, what was done meanwhile is in the chain."""
    daemon = new_daemon(hanging_ca)
    with mounted(daemon.state_dir / "audit", "size=128k"):
        await daemon.start()
        await daemon.ask("secrets.put", path="a/1", value="x")
        filler = daemon.state_dir / "audit/filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass

        async def is_full() -> bool:
            reply = await daemon.ask("secrets.put", path="a/2", value="x")
            return bool(reply.get("code") == "storage_unavailable" and "No space left" in reply["detail"])

        await until(is_full, "the file system is full")
        assert (await daemon.ask("pki.acme.orders.list"))["items"] == []
        status, detail = await audit_health(daemon)
        assert status == "degraded"
        assert "No space left" in detail
        assert len(await daemon.events_of("audit.write_failed", 1)) == 1
        filler.unlink()
        assert (await daemon.ask("secrets.put", path="a/3", value="x"))["path"] == "a/3"
        assert (await audit_health(daemon))[0] == "ok"
        assert (await daemon.ask("audit.verify"))["is_sound"]
        assert [each.action for each in records(daemon)].count("order.read") == 1
        assert await daemon.stop() == 0


async def test_a_read_only_place_does_not_keep_the_daemon_down(hanging_ca: Any, new_daemon: Any) -> None:
    """It starts, says why, and changes nothing that must be written down first."""
    daemon = new_daemon(hanging_ca)
    with mounted(daemon.state_dir / "audit", "ro,size=128k"):
        await daemon.start()
        assert "Read-only file system" in (await audit_health(daemon))[1]
        reply = await daemon.ask("secrets.put", path="a/1", value="x")
        assert reply["code"] == "storage_unavailable"
        assert "items" in await daemon.ask("pki.acme.orders.list")
        assert await daemon.stop() == 0


async def test_the_head_leaves_this_host_at_every_start(hanging_ca: Any, make_daemon: Any) -> None:
    """A subscriber elsewhere holds what shows a rewritten log for what it is."""
    daemon = await make_daemon(hanging_ca)
    await daemon.ask("secrets.put", path="a/1", value="x")
    assert await daemon.stop() == 0
    head = anchor_of(records(daemon)[-1])
    await daemon.start()
    _, headers, body = (await daemon.events_of("audit.anchored", 1))[0]
    assert headers["ce-subject"] == "audit"
    assert body["sequence"] >= head.sequence
    known = {anchor_of(each).sequence: anchor_of(each).hash for each in records(daemon)}
    assert known[body["sequence"]] == body["hash"]
    assert log(daemon, "audit.anchored")[0]["hash"] == body["hash"]
