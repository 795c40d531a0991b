"""kill -9 at every commit point and between them: nothing stuck, nothing doubled, nothing torn."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nats.errors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from scaivaultd.demo.ca import DevelopmentCa
from scaivaultd.demo.process import free_port

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

KILLING_DAEMON = Path(__file__).with_name("killing_daemon.py")
NAMES = ["a.example.test", "b.example.test"]


async def persistently(daemon: Any, command: str, key: str, **body: Any) -> Any:
    """Ask as a patient caller does: the same request with the same key, until there is an answer."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await daemon.ask(command, _timeout=1, _headers={"Idempotency-Key": key}, **body)
            except (nats.errors.Error, OSError, AssertionError):
                await revive(daemon)


async def revive(daemon: Any) -> None:
    """Start the daemon again, in its ordinary form, if it was killed; connect to it in any case."""
    while True:
        try:
            if daemon.process.is_alive():
                await daemon.connect()
            else:
                daemon.arguments = [sys.executable, "-m", "scaivaultd", "serve"]
                await daemon.disconnect()
                await daemon.start()
            return
        except AssertionError:
            # Killed between the look and the connection.
            assert daemon.process.was_killed()


async def run_to_the_end(daemon: Any, ca: Any) -> dict[str, Any]:
    body = {"name": "a", "provider": "custom", "directory_url": ca.directory_url, "wait_seconds": 0}
    account = await persistently(daemon, "pki.acme.accounts.create", "account", **body)
    request = {"account_id": account["id"], "domains": NAMES, "challenge_type": "http-01", "wait_seconds": 0}
    order = await persistently(daemon, "pki.acme.issue", "order", **request)
    while order["status"] in ("pending", "ready", "processing"):
        order = await persistently(daemon, "pki.acme.orders.get", "poll", order_id=order["order_id"])
    result: dict[str, Any] = order
    return result


async def check(daemon: Any, order: dict[str, Any]) -> None:
    assert order["status"] == "valid", order
    orders = await daemon.ask("pki.acme.orders.list")
    assert [each["order_id"] for each in orders["items"]] == [order["order_id"]]
    accounts = await daemon.ask("pki.acme.accounts.list")
    assert [each["status"] for each in accounts["items"]] == ["valid"]
    certificates = await daemon.ask("pki.certificates.list")
    assert [each["id"] for each in certificates["items"]] == [order["certificate_id"]]
    pem = await daemon.ask("pki.certificates.pem", id=order["certificate_id"], part="leaf")
    key = await daemon.ask("pki.certificates.key", id=order["certificate_id"])
    private = serialization.load_pem_private_key(key["private_key_pem"].encode(), None)
    assert x509.load_pem_x509_certificate(pem["pem"].encode()).public_key() == private.public_key()
    # Events are carried out after the commit: wait for them, then for a moment more of nothing.
    async with asyncio.timeout(15):
        while (found := await issued(daemon)) == []:  # noqa: ASYNC110 - another process, polled as a caller does
            await asyncio.sleep(0.05)
    assert found == [order["certificate_id"]]


async def issued(daemon: Any) -> list[str]:
    events = await daemon.events()
    return [body["certificate_id"] for _, headers, body in events if headers["ce-type"] == "certificate.issued"]


async def test_a_kill_at_every_commit_point_loses_and_doubles_nothing(
    make_pebble: Any, new_daemon: Any, tmp_path: Path
) -> None:
    """The write order is law: for each point the order ends, with one account, one key, one event."""
    pebble = await make_pebble(PEBBLE_WFE_NONCEREJECT="5")
    count_file = tmp_path / "commits"

    async def once(moment: str, nth: int) -> bool:
        """One life and its continuation; whether the daemon was killed at all."""
        daemon = new_daemon(pebble, f"{moment}-{nth}")
        daemon.arguments = [sys.executable, str(KILLING_DAEMON), moment, str(nth), str(count_file)]
        await start_even_if_killed(daemon)
        accounts = pebble.accounts
        await check(daemon, await run_to_the_end(daemon, pebble))
        assert pebble.accounts == accounts + 1
        killed: bool = daemon.lives[0].was_killed()
        # Before the stop: what is committed there is tests/system/test_audit.py's to lose.
        counted.append(int(count_file.read_text()))
        await daemon.stop()
        return killed

    counted: list[int] = []
    assert not await once("before", 0)
    [commits] = counted
    assert commits >= 8
    for nth in range(1, commits + 1):
        for moment in ("before", "after"):
            assert await once(moment, nth), f"never reached {moment} commit {nth}"


async def test_a_kill_at_every_request_to_the_ca_loses_and_doubles_nothing(new_daemon: Any, tmp_path: Path) -> None:
    """Between two commits stands a request: received by the CA or already processed, its answer never read."""
    http01_port = free_port()

    async def once(phase: str, nth: int) -> tuple[bool, int]:
        """One life and its continuation; whether the daemon was killed, and how many requests there were."""
        async with DevelopmentCa(http01_port=http01_port) as ca:
            daemon = new_daemon(asked_at(ca, http01_port, tmp_path), f"{phase}-{nth}")
            seen = 0

            async def kill(resource: str, at: str) -> None:
                nonlocal seen
                if resource == "renewalInfo":
                    return  # asked when all is done; `check` would be killed, not the order
                seen += at == phase
                if at == phase and seen == nth:
                    daemon.lives[0].kill()
                    await daemon.lives[0].wait(5)

            ca.on_request = kill
            await daemon.start()
            await check(daemon, await run_to_the_end(daemon, ca))
            assert len(ca.accounts) == 1
            # The order whose newOrder answer was lost is found again, not left behind; one that the CA
            # failed because the daemon was down when it came to look is replaced.
            assert [order.status for order in ca.orders.values() if order.status != "invalid"] == ["valid"]
            assert len(ca.orders) <= 2
            assert len(ca.issued) == 1
            killed: bool = daemon.lives[0].was_killed()
            await daemon.stop()
            return killed, seen

    killed, requests = await once("received", 0)
    assert not killed
    assert requests >= 9
    for nth in range(1, requests + 1):
        for phase in ("received", "processed"):
            killed, _ = await once(phase, nth)
            assert killed, f"never reached request {nth}"


def asked_at(ca: DevelopmentCa, http01_port: int, folder: Path) -> SimpleNamespace:
    """What a configuration wants to know of a CA."""
    trust_file = folder / f"{ca.directory_url.split(':')[2].split('/')[0]}.pem"
    trust_file.write_text(ca.root_pem)
    return SimpleNamespace(directory_url=ca.directory_url, http01_port=http01_port, trust_file=trust_file)


async def start_even_if_killed(daemon: Any) -> None:
    try:
        await daemon.start()
    except AssertionError:
        assert daemon.process.was_killed()
        await revive(daemon)


async def test_a_kill_of_everything_at_once_is_survived(make_pebble: Any, make_daemon: Any) -> None:
    """Many orders in every state, one SIGKILL: all end after the restart, each with one certificate."""
    pebble = await make_pebble(PEBBLE_VA_NOSLEEP="0", PEBBLE_VA_SLEEPTIME="1")
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    orders = [
        await daemon.ask(
            "pki.acme.issue",
            account_id=account_id,
            domains=[f"h{n}.example.test"],
            challenge_type="http-01",
            wait_seconds=0,
        )
        for n in range(40)
    ]
    await daemon.finished(orders[0]["order_id"])
    await daemon.stop(signal.SIGKILL)
    await daemon.start()
    ended = await asyncio.gather(*(daemon.finished(order["order_id"]) for order in orders))
    assert [order["status"] for order in ended] == ["valid"] * 40
    async with asyncio.timeout(15):
        while len(found := await issued(daemon)) < 40:  # noqa: ASYNC110 - another process, polled as a caller does
            await asyncio.sleep(0.1)
    assert sorted(found) == sorted(order["certificate_id"] for order in ended)
