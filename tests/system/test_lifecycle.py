"""Starting, stopping, and what goes away meanwhile: configuration, keys, disks, ports, NATS, the child."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats.js.errors
import pytest

from scaivaultd import __version__
from scaivaultd.demo.process import free_port, until

pytestmark = pytest.mark.system

EX_CONFIG = 78
STOP_SECONDS = 10.0
TRUSTED = '[[nats.ingress]]\nroot = "scaivault.v1"\nidentity = "trusted"'


async def scaivaultd(*arguments: str | Path, seconds: float = 20) -> subprocess.CompletedProcess[str]:
    """Run a command of the daemon that is expected to end by itself."""
    command = [sys.executable, "-m", "scaivaultd", *map(str, arguments)]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=seconds)


def entries(daemon: Any, event: str | None = None) -> list[dict[str, Any]]:
    """What the daemon has logged so far, over all its lives."""
    lines = [line for line in daemon.process.log.splitlines() if line.startswith("{") and line.endswith("}")]
    found = [json.loads(line) for line in lines]
    return [entry for entry in found if event in (None, entry["event"])]


async def until_logged(daemon: Any, event: str, count: int = 1, seconds: float = 20) -> dict[str, Any]:
    async def is_there() -> bool:
        assert daemon.process.is_alive() or event == "daemon.stopped", daemon.process.log[-3000:]
        return len(entries(daemon, event)) >= count

    await until(is_there, f"{event} in the log", seconds)
    return entries(daemon, event)[-1]


async def refused_start(daemon: Any, launch: Any) -> tuple[int, str]:
    """Exit code and words of a daemon that cannot start; it leaves nothing running."""
    before = len(daemon.process.log) if daemon.process is not None else 0
    process = launch(daemon)
    code = await process.wait(15)
    said = process.log[before:]
    assert "Traceback" not in said
    for line in said.splitlines():
        if '"nats_server.started"' in line:
            assert has_ended(json.loads(line)["server_pid"])
    return code, said


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def arguments_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def has_ended(pid: int) -> bool:
    """Whether a process is gone; a zombie is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return True


async def until_ended(pid: int) -> None:
    async def ended() -> bool:
        return has_ended(pid)

    await until(ended, f"the end of process {pid}", 10)


def order_body(account_id: str, *domains: str, **changes: Any) -> dict[str, Any]:
    body = {"account_id": account_id, "domains": list(domains), "challenge_type": "http-01", "wait_seconds": 0}
    return {**body, **changes}


def account_body(ca: Any, name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "provider": "custom", "directory_url": ca.directory_url, "wait_seconds": 0, **changes}


async def issued(daemon: Any) -> list[str]:
    try:
        events = await daemon.events()
    except nats.js.errors.BadRequestError:
        return []  # the stream was made this moment and has no first message yet
    return [body["certificate_id"] for _, headers, body in events if headers["ce-type"] == "certificate.issued"]


async def until_issued(daemon: Any, certificate_ids: list[str], seconds: float = 30) -> None:
    """Wait for the events of these certificates, and for the outbox to be empty: no repetition is still to come."""

    async def are_there() -> bool:
        return set(await issued(daemon)) >= set(certificate_ids)

    await until(are_there, "the events", seconds)
    await until(lambda: component_is(daemon, "events", "ok"), "the outbox is empty", seconds)
    assert await issued(daemon) == certificate_ids


async def health(daemon: Any) -> tuple[str, dict[str, dict[str, str]]]:
    reply = await daemon.ask("sys.health")
    return reply["status"], {component["name"]: component for component in reply["components"]}


async def component_is(daemon: Any, name: str, status: str) -> bool:
    return (await health(daemon))[1][name]["status"] == status


# Configuration and command line

MISTAKEN = """\
state_dir = "relative/path"
[nats]
severs = ["nats://127.0.0.1:4222"]
[http01]
listen = ["127.0.0.1"]
[acme]
orders_per_ca = "many"
"""
MISTAKES = {1: "state_dir", 3: "nats.severs", 5: "http01.listen[0]", 7: "acme.orders_per_ca"}


@pytest.mark.parametrize("command", ["serve", "check-config"])
async def test_every_mistake_in_the_configuration_is_told_at_once(tmp_path: Path, command: str) -> None:
    """One round of corrections, not four; 78 keeps systemd from trying again and again."""
    config = tmp_path / "scaivaultd.toml"
    config.write_text(MISTAKEN)
    ended = await scaivaultd(command, "--config", config)
    assert ended.returncode == EX_CONFIG
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == len(MISTAKES)
    for line, (number, key) in zip(lines, MISTAKES.items(), strict=True):
        assert line.startswith(f"{config}:{number}: {key}: ")
    assert "servers" in lines[1], "the nearest known key"
    assert not (tmp_path / "relative").exists()


@pytest.mark.parametrize("command", ["serve", "check-config"])
async def test_a_configuration_that_is_not_there_is_a_mistake_in_it(tmp_path: Path, command: str) -> None:
    """The same code and form as any other mistake, not a traceback."""
    ended = await scaivaultd(command, "--config", tmp_path / "none.toml")
    assert ended.returncode == EX_CONFIG
    assert ended.stderr.startswith(f"{tmp_path / 'none.toml'}: ")
    assert "Traceback" not in ended.stderr


async def test_a_good_configuration_is_said_to_be_good(tmp_path: Path) -> None:
    """A check before a restart; it must not make or change anything."""
    config = tmp_path / "scaivaultd.toml"
    config.write_text(f'state_dir = "{tmp_path}/state"\n')
    ended = await scaivaultd("check-config", "--config", config)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{config}: ok\n", "")
    assert names_in(tmp_path) == ["scaivaultd.toml"]


async def test_the_version_is_told() -> None:
    """The first question of every report."""
    ended = await scaivaultd("--version")
    assert (ended.returncode, ended.stdout) == (0, f"scaivaultd, version {__version__}\n")


# The state directory and its key


async def test_a_second_start_is_refused_by_the_pid_of_the_first(hanging_ca: Any, make_daemon: Any) -> None:
    """Two daemons on one store would tear it; the message says whom to stop."""
    daemon = await make_daemon(hanging_ca)
    started = time.monotonic()
    ended = await scaivaultd("serve", "--config", daemon.folder / "scaivaultd.toml")
    assert time.monotonic() - started < 5
    assert ended.returncode not in (0, EX_CONFIG), "waiting for the first to end may help"
    assert f"pid {daemon.process.pid})" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (await health(daemon))[0] == "ok"


def digests(state_dir: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in state_dir.glob("store.db*")}


async def test_a_state_directory_that_cannot_be_is_named(hanging_ca: Any, new_daemon: Any, launch: Any) -> None:
    """A file in the way: the message names the directory and the reason."""
    daemon = new_daemon(hanging_ca)
    daemon.folder.mkdir()
    daemon.state_dir.write_text("in the way")
    code, said = await refused_start(daemon, launch)
    assert code != 0
    assert f"state_dir {daemon.state_dir} cannot be used: File exists" in said


# Mounts, for root only


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


async def test_a_read_only_state_directory_is_named(hanging_ca: Any, new_daemon: Any, launch: Any) -> None:
    """What a wrong ReadWritePaths= in the unit looks like."""
    daemon = new_daemon(hanging_ca)
    with mounted(daemon.state_dir, "ro,size=1m"):
        code, said = await refused_start(daemon, launch)
    assert code != 0
    assert f"state_dir {daemon.state_dir} cannot be used: Read-only file system" in said


def fill(folder: Path) -> Path:
    """Take every byte that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    return filler


async def test_a_full_disk_refuses_and_recovers(make_pebble: Any, new_daemon: Any, new_nats: Any, stack: Any) -> None:
    """Nothing is accepted that could not be written down; nobody has to restart anything afterwards."""
    server = new_nats()
    await server.start()
    pebble = await make_pebble(PEBBLE_VA_NOSLEEP="0", PEBBLE_VA_SLEEPTIME="2")
    daemon = new_daemon(pebble, url=server.url, nats=f'servers = ["{server.url}"]\n{TRUSTED}')
    with mounted(daemon.state_dir, "size=4m"):
        await daemon.start()
        account_id = await daemon.account(pebble)
        under_way = await daemon.ask("pki.acme.issue", **order_body(account_id, "a.example.test", wait_seconds=5))
        assert under_way["status"] == "pending"
        filler = fill(daemon.state_dir)
        for command, body in {
            "pki.acme.issue": order_body(account_id, "b.example.test"),
            "pki.acme.accounts.create": account_body(pebble, "other"),
        }.items():
            problem = await daemon.ask(command, **body)
            assert (problem["code"], problem["status"]) == ("storage_unavailable", 503)
            assert "full" in problem["detail"]
            assert str(daemon.state_dir) not in problem["detail"]
        status, components = await health(daemon)
        assert (status, components["store"]["status"]) == ("down", "down")
        assert "full" in components["store"]["detail"]
        assert (await daemon.ask("pki.acme.orders.get", order_id=under_way["order_id"]))["status"] == "pending"
        await until_logged(daemon, "order.store_unavailable")

        filler.unlink()
        assert (await health(daemon))[0] == "ok"
        orders = [await daemon.finished(under_way["order_id"]), await daemon.issue(account_id, "b.example.test")]
        assert [order["status"] for order in orders] == ["valid", "valid"]
        listed = await daemon.ask("pki.acme.orders.list")
        assert [order["order_id"] for order in listed["items"]] == [order["order_id"] for order in orders]
        assert len((await daemon.ask("pki.acme.accounts.list"))["items"]) == 1
        await until_issued(daemon, [order["certificate_id"] for order in orders])
        assert await daemon.stop() == 0


# Listening


async def test_a_port_that_is_taken_is_named(hanging_ca: Any, new_daemon: Any, launch: Any) -> None:
    """The usual first failure, a web server on port 80: the message names port and remedy."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        hanging_ca.http01_port = port
        daemon = new_daemon(hanging_ca)
        code, said = await refused_start(daemon, launch)
    assert code == EX_CONFIG
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in said
    assert f"sport = :{port}" in said
    await daemon.start()


# Stopping


async def stopped(daemon: Any, number: int = signal.SIGTERM) -> float:
    """Stop the daemon, which must end well, and tell how long it took."""
    started = time.monotonic()
    daemon.process._started.send_signal(number)
    assert await daemon.process.wait(STOP_SECONDS + 5) == 0
    return time.monotonic() - started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_answers_who_waits_and_parks_what_is_under_way(
    make_pebble: Any, make_daemon: Any, number: int
) -> None:
    """A restart is no outage: callers have their answer, and orders end as if nothing had been."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    frozen = pebble.pid
    os.kill(frozen, signal.SIGSTOP)
    try:
        waiting = [
            asyncio.create_task(
                daemon.ask(
                    "pki.acme.issue", _timeout=40, **order_body(account_id, f"h{n}.example.test", wait_seconds=30)
                )
            )
            for n in range(5)
        ]
        await until_logged(daemon, "order.accepted", 5)
        assert await stopped(daemon, number) < STOP_SECONDS
        orders = await asyncio.gather(*waiting)
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert {order["status"] for order in orders} == {"pending"}
    assert entries(daemon, "daemon.stopped")
    assert "Traceback" not in daemon.process.log
    await daemon.disconnect()
    await daemon.start()
    ended = [await daemon.finished(order["order_id"]) for order in orders]
    assert [order["status"] for order in ended] == ["valid"] * 5
    assert len((await daemon.ask("pki.certificates.list"))["items"]) == 5


async def test_a_stop_takes_no_longer_because_the_ca_hangs(hanging_ca: Any, make_daemon: Any) -> None:
    """Whatever a CA does, a stop ends before systemd loses patience."""
    daemon = await make_daemon(hanging_ca)
    accounts = [await daemon.ask("pki.acme.accounts.create", **account_body(hanging_ca, f"a{n}")) for n in range(20)]
    for account in accounts:
        await daemon.ask("pki.acme.issue", **order_body(account["id"], "a.example.test"))
    assert await stopped(daemon) < STOP_SECONDS
    assert entries(daemon, "daemon.stopped")
    assert "Traceback" not in daemon.process.log
    await daemon.disconnect()
    await daemon.start()
    assert len((await daemon.ask("pki.acme.orders.list", status="pending"))["items"]) == 20


async def test_a_second_signal_does_not_break_the_stop(hanging_ca: Any, make_daemon: Any) -> None:
    """An impatient Ctrl-C after the first must not leave the child or half an answer behind."""
    daemon = await make_daemon(hanging_ca)
    child = entries(daemon, "nats_server.started")[-1]["server_pid"]
    await daemon.ask("pki.acme.accounts.create", **account_body(hanging_ca, "a"))
    daemon.process._started.send_signal(signal.SIGINT)
    daemon.process._started.send_signal(signal.SIGTERM)
    assert await stopped(daemon, signal.SIGINT) < STOP_SECONDS
    assert entries(daemon, "daemon.stopped")
    assert has_ended(child)
    assert not (daemon.state_dir / "nats/client.json").exists()


# An external NATS


@pytest.fixture
def new_external(new_daemon: Callable[..., Any]) -> Callable[..., Any]:
    """A daemon that uses an external server, not started yet."""

    def make(ca: Any, server: Any, url: str | None = None) -> Any:
        return new_daemon(ca, url=server.url, nats=f'servers = ["{url or server.url}"]\n{TRUSTED}')

    return make


async def test_events_wait_for_a_server_that_is_away(
    make_pebble: Any, new_nats: Any, new_external: Any, launch: Any
) -> None:
    """Certificates are obtained without NATS, a restart without it is a start, and then all is told once."""
    server = new_nats()
    await server.start()
    pebble = await make_pebble(PEBBLE_VA_NOSLEEP="0", PEBBLE_VA_SLEEPTIME="2")
    daemon = new_external(pebble, server)
    await daemon.start()
    account_id = await daemon.account(pebble)
    order = await daemon.ask("pki.acme.issue", **order_body(account_id, "a.example.test"))
    await server.stop(signal.SIGKILL)
    await until_logged(daemon, "certificate.issued")
    await daemon.disconnect()
    assert await stopped(daemon) < STOP_SECONDS

    launch(daemon)
    assert (await until_logged(daemon, "daemon.ready", 2))["nats"] == "connecting"
    await until_logged(daemon, "nats.error")
    await server.start()
    await daemon.connect()
    order = await daemon.finished(order["order_id"])
    assert order["status"] == "valid"
    await until_issued(daemon, [order["certificate_id"]])
    assert await daemon.stop() == 0


async def test_a_server_that_never_comes_does_not_hinder_a_stop(
    hanging_ca: Any, new_nats: Any, new_external: Any, launch: Any
) -> None:
    """A host that is shut down before NATS is up must not wait for it."""
    daemon = new_external(hanging_ca, new_nats())
    launch(daemon)
    await until_logged(daemon, "daemon.ready")
    assert await stopped(daemon) < 5


async def test_a_server_killed_in_mid_order_costs_and_doubles_nothing(
    make_pebble: Any, new_nats: Any, new_external: Any
) -> None:
    """The order goes on without NATS; its event is told once, whichever acknowledgements were lost."""
    server = new_nats()
    await server.start()
    pebble = await make_pebble(PEBBLE_VA_NOSLEEP="0", PEBBLE_VA_SLEEPTIME="1")
    daemon = new_external(pebble, server)
    await daemon.start()
    account_id = await daemon.account(pebble)
    orders = [
        await daemon.ask("pki.acme.issue", **order_body(account_id, f"h{number}.example.test")) for number in range(5)
    ]
    for _ in range(3):
        await server.stop(signal.SIGKILL)
        await server.start()
        await daemon.connect()
    ended = [await daemon.finished(order["order_id"]) for order in orders]
    assert [order["status"] for order in ended] == ["valid"] * 5
    expected = {order["certificate_id"] for order in ended}

    async def all_told() -> bool:
        return set(await issued(daemon)) >= expected

    await until(all_told, "five events")
    assert sorted(await issued(daemon)) == sorted(expected)


async def test_without_jetstream_requests_are_answered_and_events_wait(
    make_pebble: Any, new_nats: Any, new_external: Any
) -> None:
    """A server without JetStream is a fault of the set-up: told by health, and mended by replacing the server."""
    plain = new_nats("plain", jetstream=False)
    await plain.start()
    pebble = await make_pebble()
    daemon = new_external(pebble, plain)
    await daemon.start()
    account_id = await daemon.account(pebble)
    order = await daemon.issue(account_id, "a.example.test")
    assert order["status"] == "valid"
    await until(lambda: component_is(daemon, "events", "degraded"), "health tells")
    status, components = await health(daemon)
    assert status == "degraded"
    assert components["events"]["detail"]
    await plain.stop()
    full = new_nats("full", port=plain.port)
    await full.start()
    await daemon.connect()
    await until_issued(daemon, [order["certificate_id"]])
    assert (await health(daemon))[0] == "ok"


async def test_health_says_that_jetstream_is_missing(hanging_ca: Any, new_nats: Any, new_external: Any) -> None:
    """Whoever reads the alarm must learn what to switch on."""
    plain = new_nats(jetstream=False)
    await plain.start()
    daemon = new_external(hanging_ca, plain)
    await daemon.start()
    await until(lambda: component_is(daemon, "events", "degraded"), "health tells")
    assert "JetStream" in (await health(daemon))[1]["events"]["detail"]


async def test_health_is_well_again_without_an_event_to_prove_it(
    hanging_ca: Any, new_nats: Any, new_external: Any
) -> None:
    """An alarm that goes on after the repair, until the next certificate in sixty days, is a false one."""
    plain = new_nats("plain", jetstream=False)
    await plain.start()
    daemon = new_external(hanging_ca, plain)
    await daemon.start()
    await until(lambda: component_is(daemon, "events", "degraded"), "health tells")
    await plain.stop()
    await new_nats("full", port=plain.port).start()
    await daemon.connect()
    await until(lambda: component_is(daemon, "events", "ok"), "health recovers", 15)


async def test_a_server_that_lost_its_stream_gets_it_again(make_pebble: Any, new_nats: Any, new_external: Any) -> None:
    """A subscriber on the plain subject takes the message, so no answer tells that the stream is gone."""
    first = new_nats("first")
    await first.start()
    pebble = await make_pebble()
    daemon = new_external(pebble, first)
    await daemon.start()
    account_id = await daemon.account(pebble)
    before = await daemon.issue(account_id, "a.example.test")
    await until_issued(daemon, [before["certificate_id"]])
    await first.stop()
    await new_nats("second", port=first.port).start()
    await daemon.connect()
    heard = await daemon.client.subscribe("scaivault.events.>")
    order = await daemon.issue(account_id, "b.example.test")
    assert order["status"] == "valid"
    assert (await heard.next_msg(10)).headers["ce-subject"] == order["certificate_id"]
    await until_issued(daemon, [order["certificate_id"]], 20)


async def test_wrong_credentials_are_told_without_the_password(
    hanging_ca: Any, new_nats: Any, new_external: Any, launch: Any
) -> None:
    """It runs on and says why nobody answers; when the server's password is set right, it is there."""
    server = new_nats(user="daemon", password="the-right-one-77")
    await server.start()
    daemon = new_external(hanging_ca, server, server.url.replace("the-right-one-77", "another-one-88"))
    launch(daemon)

    # The server closes right behind its words: a client that is just writing then meets a reset in their place, and
    # hears them at one of its next tries.
    async def is_told() -> bool:
        return any("Authorization" in each["reason"] for each in entries(daemon, "nats.error"))

    await until(is_told, "the server's reason in the log", 20)
    assert daemon.process.is_alive()
    await server.stop()
    server.password = "another-one-88"
    await server.start()
    daemon.url = server.url
    await daemon.connect()
    assert (await health(daemon))[1]["nats"]["status"] == "ok"
    assert await daemon.stop() == 0
    assert "another-one-88" not in daemon.process.log


async def test_a_password_changed_for_a_while_does_not_end_reconnecting(
    hanging_ca: Any, new_nats: Any, new_external: Any
) -> None:
    """An operator's slip on the server is mended there; the daemon's part is to keep trying."""
    server = new_nats(user="daemon", password="the-right-one-77")
    await server.start()
    daemon = new_external(hanging_ca, server)
    await daemon.start()
    await server.stop()
    server.password = "a-slip-99"
    await server.start()

    async def has_tried_twice() -> bool:
        return len([each for each in server.process.log.splitlines() if "uthentication error" in each]) >= 2

    await until(has_tried_twice, "two refused attempts")
    await server.stop()
    server.password = "the-right-one-77"
    await server.start()
    await daemon.connect()
    assert "the-right-one-77" not in daemon.process.log


async def test_plain_subscribers_get_the_very_message_of_the_stream(make_pebble: Any, make_daemon: Any) -> None:
    """Who cannot use JetStream loses nothing but the past."""
    pebble = await make_pebble()
    daemon = await make_daemon(pebble)
    heard = await daemon.client.subscribe("scaivault.events.>")
    account_id = await daemon.account(pebble)
    order = await daemon.issue(account_id, "a.example.test")
    live = [await heard.next_msg(10) for _ in range(2)]
    await until_issued(daemon, [order["certificate_id"]])
    stored = await daemon.events()
    assert [(each.subject, each.headers, json.loads(each.data)) for each in live] == stored
    assert [headers["ce-type"] for _, headers, _ in stored] == ["account.created", "certificate.issued"]
    for _, headers, _ in stored:
        assert headers["ce-id"] == headers["Nats-Msg-Id"]
        assert headers["ce-source"].startswith("/scaivault/node_")
        assert headers["ce-datacontenttype"] == headers["Content-Type"] == "application/json"


# The embedded server


async def test_the_child_comes_back_at_the_same_place(make_pebble: Any, make_daemon: Any) -> None:
    """Local clients keep their URL and their events; the order under way does not notice."""
    pebble = await make_pebble(PEBBLE_VA_NOSLEEP="0", PEBBLE_VA_SLEEPTIME="1")
    daemon = await make_daemon(pebble)
    account_id = await daemon.account(pebble)
    where = (daemon.state_dir / "nats/client.json").read_text()
    order = await daemon.ask("pki.acme.issue", **order_body(account_id, "a.example.test"))
    os.kill(entries(daemon, "nats_server.started")[-1]["server_pid"], signal.SIGKILL)
    await until_logged(daemon, "nats_server.restarted")
    await daemon.connect()
    assert (daemon.state_dir / "nats/client.json").read_text() == where
    order = await daemon.finished(order["order_id"])
    assert order["status"] == "valid"
    await until_issued(daemon, [order["certificate_id"]])


async def test_the_child_stores_again_after_a_full_disk(make_ca: Any, new_daemon: Any) -> None:
    """nats-server itself would refuse every event until somebody restarts it; each must come, and once."""
    ca = await make_ca(free_port())
    daemon = new_daemon(ca)
    with mounted(daemon.state_dir / "nats/jetstream", "size=12m"):
        await daemon.start()
        account_id = await daemon.account(ca)
        orders = [await daemon.issue(account_id, "a.example.test")]
        await daemon.events_of("certificate.issued", 1)
        filler = fill(daemon.state_dir / "nats/jetstream")
        while not entries(daemon, "nats_server.store_gave_up"):
            orders.append(await daemon.issue(account_id, f"b{len(orders)}.example.test"))
        orders += [await daemon.issue(account_id, f"c{number}.example.test") for number in range(3)]
        _, components = await health(daemon)
        for name in ("nats", "events"):
            assert components[name]["status"] == "degraded"
            assert "no space left on device" in components[name]["detail"]
        filler.unlink()
        await until_logged(daemon, "nats_server.restarted")
        await daemon.connect()
        await daemon.events_of("certificate.issued", len(orders))
        told = [(headers["ce-type"], body.get("order_id")) for _, headers, body in await daemon.events()]
        issued = [("certificate.issued", order["order_id"]) for order in orders]
        assert told == [("account.created", None), *issued]
        assert (await health(daemon))[0] == "ok"
        assert len(entries(daemon, "nats_server.restarting")) == 1
        assert await daemon.stop() == 0


async def test_the_child_does_not_outlive_a_killed_daemon(hanging_ca: Any, make_daemon: Any) -> None:
    """A server left behind would hold the store of the next start."""
    daemon = await make_daemon(hanging_ca)
    child = entries(daemon, "nats_server.started")[-1]["server_pid"]
    assert not has_ended(child)
    await daemon.stop(signal.SIGKILL)
    await until_ended(child)
    await daemon.start()


async def test_local_clients_find_their_way_by_a_private_file(hanging_ca: Any, make_daemon: Any) -> None:
    """The file is the key to everything the daemon does: for its owner only, and gone when nothing listens."""
    daemon = await make_daemon(hanging_ca)
    path = daemon.state_dir / "nats/client.json"
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700
    client = json.loads(path.read_text())
    assert client["server"].startswith("nats://127.0.0.1:")
    assert client["url"] == client["server"].replace("//", f"//{client['user']}:{client['password']}@")
    assert mode_of(client["credentials_file"]) == 0o600
    child = entries(daemon, "nats_server.started")[-1]["server_pid"]
    for text in (daemon.process.log, arguments_of(daemon.process.pid), arguments_of(child)):
        assert text
        assert client["password"] not in text
    assert await daemon.stop() == 0
    assert not path.exists()


async def test_a_hangup_is_no_end(hanging_ca: Any, new_daemon: Any) -> None:
    """A terminal that closes, or an administrator who wants files read again: the daemon lives."""
    daemon = new_daemon(hanging_ca)
    await daemon.start()
    os.kill(daemon.process.pid, signal.SIGHUP)

    async def is_said() -> bool:
        return '"policies.loaded"' in daemon.process.log

    await until(is_said, "the log says that policies were read again")
    await daemon.ask("sys.info")
    assert await daemon.stop() == 0
