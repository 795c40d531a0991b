"""The real daemon as a service: told by datagrams, with passed sockets, and under a systemd that was booted for it."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.process import Process, free_port, until
from tests.system import booted as boot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

EX_CONFIG = 78
SECONDS = 60.0


class Manager:
    """A service manager's end of $NOTIFY_SOCKET."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)

    async def hear(self) -> str:
        """The next datagram; a pipe that comes with it is closed, which ends a barrier."""
        async with asyncio.timeout(SECONDS):
            readable = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(self._socket, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._socket)
        message, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 4)
        for each in descriptors:
            os.close(each)
        return message.decode()

    async def hear_until(self, beginning: str) -> list[str]:
        """All datagrams up to the first that begins so."""
        heard = [await self.hear()]
        while not heard[-1].startswith(beginning):
            heard.append(await self.hear())
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


def start_supervised(daemon: Any, manager: Manager, **environment: str) -> Process:
    daemon.folder.mkdir(parents=True, exist_ok=True)
    config = daemon.folder / "scaivaultd.toml"
    config.write_text(f'state_dir = "{daemon.state_dir}"\n{daemon.configuration}')
    environment = {"NOTIFY_SOCKET": str(manager.path), **environment}
    daemon.process = Process([*daemon.arguments, "--config", str(config)], daemon.folder, environment)
    daemon.process.start()
    process: Process = daemon.process
    return process


async def test_a_life_is_told_from_its_start_to_its_end(
    new_daemon: Callable[..., Any], hanging_ca: Any, manager: Manager
) -> None:
    """In the order that systemd wants: it believes nothing that comes too early or too late."""
    daemon = new_daemon(hanging_ca)
    process = start_supervised(daemon, manager, WATCHDOG_USEC="3000000")
    heard = await manager.hear_until("READY=1")
    assert heard[-1] == "READY=1\nSTATUS=Ready: 0 certificates, 0 orders under way"
    assert {line.split("=")[0] for each in heard[:-1] for line in each.split("\n")} <= {"EXTEND_TIMEOUT_USEC"}
    await daemon.connect()
    assert await manager.hear_until("WATCHDOG=1")
    os.kill(process.pid, signal.SIGHUP)
    heard = await manager.hear_until("READY=1")
    assert [each.split("\n")[0] for each in heard if not each.startswith("WATCHDOG")] == ["RELOADING=1", "READY=1"]
    begun = next(each for each in heard if each.startswith("RELOADING"))
    assert "\nMONOTONIC_USEC=" in begun
    ended = asyncio.create_task(daemon.stop())
    await manager.hear_until("STOPPING=1")
    heard = await manager.hear_until("BARRIER=1")
    assert heard[0] == "EXTEND_TIMEOUT_USEC=15000000"
    assert not [each for each in heard if each.startswith(("WATCHDOG", "READY"))]
    assert await ended == 0


async def test_a_reload_with_mistakes_says_so_until_one_goes_well(
    new_daemon: Callable[..., Any], hanging_ca: Any, manager: Manager
) -> None:
    """Whoever asked for it looks at `systemctl status` next, and what held before holds on."""
    daemon = new_daemon(hanging_ca)
    policies = daemon.folder / "policies.toml"
    daemon.folder.mkdir(parents=True)
    policies.write_text("")
    daemon.configuration += f'\n[access]\npolicy_files = ["{policies}"]\n'
    process = start_supervised(daemon, manager)
    await manager.hear_until("READY=1")
    for text, is_good in (("[nonsense]\n", False), ("", True)):
        policies.write_text(text)
        os.kill(process.pid, signal.SIGHUP)
        ready = (await manager.hear_until("READY=1"))[-1]
        assert ("reload failed, the configuration before holds on: " in ready) is not is_good, ready
        assert (str(policies) in ready) is not is_good, ready


async def test_its_children_cannot_speak_for_it(
    new_daemon: Callable[..., Any], hanging_ca: Any, manager: Manager
) -> None:
    """A nats-server that said READY, or held our sockets, would be believed."""
    daemon = new_daemon(hanging_ca)
    process = start_supervised(daemon, manager, WATCHDOG_USEC="60000000", LISTEN_FDS="0", LISTEN_PID="1")
    await manager.hear_until("READY=1")
    environments = environments_below(process.pid)
    assert environments
    for each in environments:
        assert not [name for name in ("NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_") if name in each]


def environments_below(pid: int) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{child}/environ").read_bytes().decode() for child in children]


async def test_a_configuration_with_mistakes_is_told_before_the_end(
    new_daemon: Callable[..., Any], hanging_ca: Any, manager: Manager
) -> None:
    """`systemctl status` then shows the line and the mistake, and not only a number."""
    daemon = new_daemon(hanging_ca)
    daemon.configuration += "\n[nonsense]\n"
    process = start_supervised(daemon, manager)
    heard = await manager.hear_until("BARRIER=1")
    assert heard[0].startswith("STATUS=Not started, mistakes in the configuration: ")
    assert "nonsense" in heard[0]
    assert await process.wait(SECONDS) == EX_CONFIG


async def test_a_port_that_is_taken_is_told_before_the_end(
    new_daemon: Callable[..., Any], hanging_ca: Any, manager: Manager
) -> None:
    """What only the start finds out is told as well."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        hanging_ca.http01_port = taken.getsockname()[1]
        process = start_supervised(new_daemon(hanging_ca), manager)
        heard = await manager.hear_until("BARRIER=1")
    assert any(each.startswith("STATUS=Not started: cannot listen on 127.0.0.1:") for each in heard)
    assert await process.wait(SECONDS) != 0


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
async def test_it_serves_at_the_sockets_that_are_passed(
    new_daemon: Callable[..., Any], make_ca: Any, tmp_path: Path
) -> None:
    """Both families and the API by their names; what the configuration says to listen at is not used then."""
    port, unused = free_port(), free_port()
    ca = await make_ca(port)
    daemon = new_daemon(ca)
    daemon.configuration = daemon.configuration.replace(f'"127.0.0.1:{port}"', f'"127.0.0.1:{unused}"')
    api = tmp_path / "api.sock"
    daemon.arguments = [
        "systemd-socket-activate",
        *("-l", f"127.0.0.1:{port}", "-l", f"[::1]:{port}", "-l", str(api)),
        "--fdname=http01:http01:api",
        *(f"--setenv={name}" for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ),
        *(sys.executable, "-m", "scaivaultd", "serve"),
    ]
    daemon.folder.mkdir(parents=True, exist_ok=True)
    process = start_passed(daemon)
    await until(functools.partial(is_bound, api), "the sockets are bound")
    # The first connection starts it, and is answered when it is up.
    assert "404" in await answer(await asyncio.open_connection("::1", port))
    await daemon.connect()
    order = await daemon.issue(await daemon.account(ca), "passed.example.test")
    assert order["status"] == "valid", order
    reply = await answer(await asyncio.open_unix_connection(str(api)), "/v1/auth/whoami")
    assert "admin" in reply, reply
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", unused)
    assert not (daemon.state_dir / "api.sock").exists()
    assert await daemon.stop() == 0
    assert api.exists(), "it is not ours to take away"
    assert f'"addresses": ["127.0.0.1:{port}", "[::1]:{port}"]' in process.log


async def is_bound(path: Path) -> bool:
    # Not by a connection: that would start it.
    return f" {path}\n" in Path("/proc/net/unix").read_text()  # noqa: ASYNC240 - no file on a disk


def start_passed(daemon: Any) -> Process:
    config = daemon.folder / "scaivaultd.toml"
    config.write_text(f'state_dir = "{daemon.state_dir}"\n{daemon.configuration}')
    daemon.process = Process([*daemon.arguments, "--config", str(config)], daemon.folder)
    daemon.process.start()
    process: Process = daemon.process
    return process


async def answer(opened: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str = "/") -> str:
    """What is answered to one request over a connection, whole."""
    reader, writer = opened
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        async with asyncio.timeout(SECONDS):
            return (await reader.read()).decode()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


# From here on under a systemd of its own, as PID 1, with the units as `scaivaultctl setup systemd` installs them.

CONFIG = """\
state_dir = "/var/lib/scaivaultd"
[acme]
trust_files = ["/run/ca/root.pem"]
private_directories = ["127.0.0.1:4000"]
[secrets]
master_key = "credential:scaivaultd.master-key"
"""
CREDENTIAL = "/etc/credstore.encrypted/scaivaultd.master-key"
# An administrator's own drop-in: a test does not wait as long as a host may.
OWN = "[Service]\nRestartSec=300ms\n"
# Asks until a file is there, at least once.
CLIENT = """\
import json, pathlib, socket, sys, time
stop, counts = pathlib.Path(sys.argv[1]), {"answered": 0, "lost": []}
while not stop.exists() or counts["answered"] < 1:
    for host in ("127.0.0.1", "::1"):
        try:
            with socket.create_connection((host, 80), timeout=60) as opened:
                opened.sendall(b"GET /.well-known/acme-challenge/nobody HTTP/1.0\\r\\nHost: a.test\\r\\n\\r\\n")
                told = opened.recv(100)
            if not told.startswith(b"HTTP/1."):
                raise OSError(f"not an answer: {told!r}")
            counts["answered"] += 1
        except OSError as error:
            counts["lost"].append(f"{host}: {error!r}")
    time.sleep(0.001)
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[boot.Booted]:
    """A booted systemd with the daemon installed, enabled and ready, and a CA that validates at port 80."""
    if (reason := boot.missing()) is not None:
        pytest.skip(f"NO SYSTEMD WAS BOOTED, its tests did not run: {reason}")
    made = boot.Booted(tmp_path_factory.mktemp("booted"))
    try:
        asyncio.run(_install(made))
        yield made
    finally:
        asyncio.run(made.stop())


async def _install(booted: boot.Booted) -> None:
    await booted.start()
    (booted.shared / "client.py").write_text(CLIENT)
    await booted.run("mkdir", "-p", "/run/ca")
    ca = ["development-ca", "--http01-port", "80", "--listen", "127.0.0.1:4000", "--dir", "/run/ca"]
    await booted.run("systemd-run", "--unit=ca", f"{boot.PREFIX}/bin/{ca[0]}", *ca[1:])
    await write(booted, "/etc/scaivaultd/scaivaultd.toml", CONFIG)
    await write(booted, "/etc/systemd/system/scaivaultd.service.d/own.conf", OWN)
    await until(lambda: succeeds(booted, "test", "-s", "/run/ca/root.pem"), "the CA is up")
    await booted.run(f"{boot.PREFIX}/bin/scaivaultctl", "setup", "systemd", "--yes")
    await booted.run(f"{boot.PREFIX}/bin/scaivaultctl", "keys", "init", "--file", "/run/master.key")
    await booted.run("mkdir", "-p", "/etc/credstore.encrypted", "/var/lib/systemd")
    encrypt = ["systemd-creds", "encrypt", "--with-key=host", "--name=scaivaultd.master-key"]
    await booted.run(*encrypt, "/run/master.key", CREDENTIAL)
    await booted.run("systemctl", "enable", "--now", "scaivaultd", seconds=90)


async def write(booted: boot.Booted, path: str, text: str) -> None:
    scratch = booted.shared / "scratch"
    scratch.write_text(text)
    await booted.run("install", "-D", "-m", "644", "/run/shared/scratch", path)


async def succeeds(booted: boot.Booted, *command: str) -> bool:
    return (await booted.run(*command, check=False)).returncode == 0


async def ctl(booted: boot.Booted, *words: str) -> Any:
    done = await booted.run(f"{boot.PREFIX}/bin/scaivaultctl", *words, "--json", seconds=120)
    return json.loads(done.stdout)


async def became(booted: boot.Booted, name: str, *values: str) -> None:
    """Wait until a property of the service has one of these values."""

    async def has_become() -> bool:
        return await booted.show("scaivaultd", name) in values

    await until(has_become, f"{name} is {' or '.join(values)}", SECONDS)


async def restarted(booted: boot.Booted, pid: str) -> str:
    """Wait until another process than this one is ready."""

    async def is_another() -> bool:
        shown = await booted.show("scaivaultd", "MainPID")
        return shown not in ("0", pid) and await booted.show("scaivaultd", "SubState") == "running"

    await until(is_another, "the service runs again", SECONDS)
    return await booted.show("scaivaultd", "MainPID")


class TestBooted:
    async def test_the_installed_service_is_ready_when_it_is_started(self, running: boot.Booted) -> None:
        """Without any capability: the sockets are systemd's, and stay when the service goes."""
        assert await running.show("scaivaultd", "StatusText") == "Ready: 0 certificates, 0 orders under way"
        assert (await ctl(running, "status"))["status"] == "ok"
        pid = await running.show("scaivaultd", "MainPID")
        told = (await running.run("cat", f"/proc/{pid}/status")).stdout
        capabilities = {line for line in told.splitlines() if line.startswith(("CapEff", "CapBnd"))}
        assert capabilities == {f"CapEff:\t{0:016x}", f"CapBnd:\t{0:016x}"}
        assert "NoNewPrivs:\t1" in told

    async def test_it_is_installed_once_and_can_be_looked_at_again(self, running: boot.Booted) -> None:
        """Configuration management runs it every half hour, and systemd's own judgement comes with it."""
        reply = await ctl(running, "setup", "systemd")
        assert {each["action"] for each in reply["files"]} == {"unchanged"}
        assert reply["exposure"] <= 1.5

    async def test_members_of_the_group_administer_it_and_others_do_not(self, running: boot.Booted) -> None:
        """The socket's mode and group are the unit's; the daemon sees who is there all the same."""
        await running.run("useradd", "--groups", "scaivault-admin", "alice")
        await running.run("useradd", "bob")
        ask = f"{boot.PREFIX}/bin/scaivaultctl auth whoami --json"
        alice = await running.run("runuser", "-u", "alice", "--", "sh", "-c", ask)
        uid = (await running.run("id", "-u", "alice")).stdout.strip()
        known = json.loads(alice.stdout)
        assert (known["principal"], known["policies"]) == (f"unix:{uid}", ["local-admins"])
        assert (await running.run("runuser", "-u", "bob", "--", "sh", "-c", ask, check=False)).returncode != 0

    async def test_a_reload_ends_and_leaves_the_process_alone(self, running: boot.Booted) -> None:
        """`systemctl reload` that hung would hang whatever deploys."""
        pid = await running.show("scaivaultd", "MainPID")
        await running.run("systemctl", "reload", "scaivaultd", seconds=60)
        await became(running, "SubState", "running")
        assert await running.show("scaivaultd", "MainPID") == pid
        assert (await running.show("scaivaultd", "StatusText")).startswith("Ready")

    async def test_a_reload_with_mistakes_changes_nothing_and_says_why(self, running: boot.Booted) -> None:
        """The mistake stands where an administrator looks, until the file is mended."""
        pid = await running.show("scaivaultd", "MainPID")
        for text, is_good in ((CONFIG + "[nonsense]\n", False), (CONFIG, True)):
            await write(running, "/etc/scaivaultd/scaivaultd.toml", text)
            await running.run("systemctl", "reload", "scaivaultd", seconds=60)
            await until(functools.partial(status_has, running, "nonsense", not is_good), "the status says so", SECONDS)
            await became(running, "SubState", "running")
        assert await running.show("scaivaultd", "MainPID") == pid

    async def test_a_restart_under_load_loses_no_answer(self, running: boot.Booted) -> None:
        """A CA that asks meanwhile waits for the moment it takes, and every order comes to its end."""
        await ctl(
            running,
            *("account", "create", "test", "--directory", "https://127.0.0.1:4000/directory"),
            *("--ca-roots", "/run/ca/root.pem", "--agree-tos"),
        )
        loads = [
            asyncio.create_task(running.run("python3", "/run/shared/client.py", "/run/shared/stop", seconds=200))
            for _ in range(3)
        ]
        orders = []
        for turn in range(2):
            pid = await running.show("scaivaultd", "MainPID")
            orders += [
                (await ctl(running, "cert", "issue", f"w{turn}{number}.example.test", "--no-wait"))["order_id"]
                for number in range(2)
            ]
            await running.run("systemctl", "restart", "scaivaultd", seconds=120)
            assert await running.show("scaivaultd", "MainPID") != pid
        for each in orders:
            await until(functools.partial(is_valid, running, each), f"{each} is valid", SECONDS)
        (running.shared / "stop").touch()
        for done in await asyncio.gather(*loads):
            counts = json.loads(done.stdout)
            assert counts["lost"] == []
            assert counts["answered"] > 10
        assert await running.show("scaivaultd", "NRestarts") == "0"

    async def test_after_a_crash_it_is_back_and_whoever_knocked_meanwhile_is_answered(
        self, running: boot.Booted
    ) -> None:
        """The kernel keeps the connection in the backlog of a socket that systemd holds open."""
        pid = await running.show("scaivaultd", "MainPID")
        await running.run("kill", "-9", pid)
        client = await running.run("python3", "/run/shared/client.py", "/", seconds=120)
        assert json.loads(client.stdout) == {"answered": 2, "lost": []}
        await restarted(running, pid)
        assert int(await running.show("scaivaultd", "NRestarts")) >= 1

    async def test_a_daemon_that_hangs_is_ended_and_started_again(self, running: boot.Booted) -> None:
        """It answers nobody, and without the watchdog it would do so until somebody looks."""
        await write(running, "/etc/systemd/system/scaivaultd.service.d/watchdog.conf", "[Service]\nWatchdogSec=3s\n")
        await running.run("systemctl", "daemon-reload")
        await running.run("systemctl", "restart", "scaivaultd", seconds=120)
        pid = await running.show("scaivaultd", "MainPID")
        await running.run("rm", "/etc/systemd/system/scaivaultd.service.d/watchdog.conf")
        await running.run("systemctl", "daemon-reload")
        await running.run("kill", "-STOP", pid)
        await restarted(running, pid)
        assert "Watchdog timeout" in await running.journal("-u", "scaivaultd")
        assert (await ctl(running, "status"))["status"] == "ok"

    async def test_without_its_credential_it_is_sealed_and_says_so(self, running: boot.Booted) -> None:
        """It is up all the same, and tells what is missing: a service that failed would only give a number."""
        await running.run("mv", CREDENTIAL, "/run/away")
        await running.run("systemctl", "restart", "scaivaultd", seconds=120)
        assert (await running.show("scaivaultd", "StatusText")).startswith("Sealed, nothing is renewed: key_missing")
        await running.run("mv", "/run/away", CREDENTIAL)
        await running.run("systemctl", "restart", "scaivaultd", seconds=120)
        assert (await running.show("scaivaultd", "StatusText")).startswith("Ready")

    async def test_the_timer_s_service_makes_a_backup(self, running: boot.Booted) -> None:
        """In its own sandbox it must reach the daemon, and the place where backups lie."""
        recipient = (await ctl(running, "backup", "keygen", "--to", "/root/backup.key"))["recipient"]
        await write(running, "/etc/scaivaultd/backup.env", f"SCAIVAULT_BACKUP_RECIPIENT={recipient}\n")
        await running.run("systemctl", "start", "scaivaultd-backup", seconds=120)
        assert await running.show("scaivaultd-backup", "Result") == "success"
        assert (await running.run("ls", "/var/backups/scaivaultd")).stdout.rstrip().endswith(".scvb")

    async def test_a_bad_configuration_waits_with_open_sockets_until_it_is_mended(self, running: boot.Booted) -> None:
        """A start limit would close port 80, and a mended file would not open it again."""
        await write(running, "/etc/scaivaultd/scaivaultd.toml", CONFIG + "[nonsense]\n")
        done = await running.run("systemctl", "restart", "scaivaultd", check=False, seconds=120)
        assert done.returncode != 0
        await became(running, "SubState", "auto-restart")
        assert await running.show("scaivaultd", "ExecMainStatus") == str(EX_CONFIG)
        status = (await running.run("systemctl", "status", "scaivaultd", check=False)).stdout
        assert "nonsense" in await running.journal("-u", "scaivaultd"), status
        client = asyncio.create_task(running.run("python3", "/run/shared/client.py", "/", seconds=120))
        await became(running, "SubState", "auto-restart")
        assert await running.show("scaivaultd-http.socket", "ActiveState") == "active"
        await write(running, "/etc/scaivaultd/scaivaultd.toml", CONFIG)
        assert json.loads((await client).stdout) == {"answered": 2, "lost": []}
        await became(running, "SubState", "running")

    async def test_it_stops_in_order_and_leaves_nothing_running(self, running: boot.Booted) -> None:
        """Its nats-server too; the sockets of systemd go when they are stopped."""
        sockets = [f"scaivaultd-{each}.socket" for each in ("http", "tls", "api")]
        await running.run("systemctl", "stop", *sockets, "scaivaultd")
        assert await running.show("scaivaultd", "Result") == "success"
        assert await running.show("scaivaultd", "ActiveState") == "inactive"
        assert not await succeeds(running, "pgrep", "-x", "nats-server")


async def status_has(booted: boot.Booted, word: str, is_wanted: bool) -> bool:
    return (word in await booted.show("scaivaultd", "StatusText")) is is_wanted


async def is_valid(booted: boot.Booted, order_id: str) -> bool:
    order = await ctl(booted, "order", "show", order_id)
    assert order["status"] in ("pending", "ready", "processing", "valid"), order
    return bool(order["status"] == "valid")
