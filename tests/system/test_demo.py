"""The guided run as a person meets it: without privileges, told in eighty columns, and gone without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
import pytest

from scaivaultd.demo import pebble
from scaivaultd.demo.process import listens, until

if TYPE_CHECKING:
    from asyncio.subprocess import Process as Child
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.system

STORY = [
    "DNS ",
    "CA ",
    "Daemon ",
    "event      scaivault.events.account.created.acme_",
    "1. http-01:",
    "order      acme_order_",
    "for www.example.test by http-01",
    "valid",
    "for www.example.test, until",
    "2. tls-alpn-01:",
    "for mail.example.test by tls-alpn-01",
    "valid",
    "for mail.example.test, until",
    "3. dns-01:",
    "request    scaivault.v1.secrets.put",
    "request    scaivault.v1.pki.dns_providers.create",
    "trace      _acme-challenge.example.test is in zone example.test",
    "ns1.example.test (127.0.0.1) absent",
    "ns2.example.test (127.0.0.2) absent",
    "for *.example.test, example.test by dns-01",
    "ns2.example.test (127.0.0.2) absent",
    "ns2.example.test (127.0.0.2) complete: has 2 of 2 values",
    "visible ",
    "valid",
    "for *.example.test, example.test, until",
    "cleaned up no values left on ns1.example.test and ns2.example.test",
]


class Demo:
    """`scaivaultd demo` as a child, with its temporary files below a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.child: Child | None = None

    async def start(self, *arguments: str, path: str | None = None) -> None:
        self.child = await asyncio.create_subprocess_exec(
            *_without_privileges(),
            *(sys.executable, "-m", "scaivaultd", "demo", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(self.folder), "PATH": path or os.environ["PATH"]},
            start_new_session=True,
        )

    async def until_line(self, beginning: str) -> None:
        """Read until a line begins so."""
        async with asyncio.timeout(60):
            while line := await self._line():
                if line.startswith(beginning):
                    return
        pytest.fail(f"no line begins with {beginning!r}:\n{self.text}")

    async def end(self) -> int:
        """Read to the end; the exit code."""
        assert self.child is not None
        async with asyncio.timeout(60):
            while await self._line():
                pass
            return await self.child.wait()

    def send(self, number: signal.Signals) -> None:
        assert self.child is not None
        # Not by `send_signal`: that may wait for a child that has ended, and its exit code would be lost.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child.pid, number)

    async def has_ended_by(self, number: signal.Signals) -> bool:
        """Whether it has ended; if not, here comes the signal once more."""
        assert self.child is not None
        if self.child.returncode is None:
            self.send(number)
        return self.child.returncode is not None

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def processes(self) -> list[int]:
        """Who lives in the folder: the daemon, its nats-server, Pebble."""
        return [pid for pid in _pids() if self._is_ours(pid)]

    def ports(self) -> set[int]:
        """All ports that the text names."""
        return {
            int(port)
            for port in re.findall(r"(?:127\.0\.0\.1|localhost):(\d+)|port (\d+)", self.text)
            for port in port
            if port
        }

    def _is_ours(self, pid: int) -> bool:
        try:
            return str(self.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    async def _line(self) -> str:
        assert self.child is not None
        assert self.child.stdout is not None
        line = (await self.child.stdout.readline()).decode()
        self.lines.append(line)
        return line


def _pids() -> list[int]:
    return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]


def _without_privileges() -> list[str]:
    """Root without a single capability can bind no port below 1024, as everybody else."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "util-linux is missing"
    return [setpriv, "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    folder = tmp_path / "tmp"
    folder.mkdir()
    running = Demo(folder)
    yield running
    if running.child is not None and running.child.returncode is None:
        running.child.kill()
        await running.child.wait()
    for pid in running.processes():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def require_clean(demo: Demo) -> Callable[[], Awaitable[None]]:
    async def check() -> None:
        assert demo.processes() == []
        assert list(demo.folder.iterdir()) == []
        assert [port for port in demo.ports() if await listens(port)] == []

    return check


def require(ca: str) -> None:
    if ca == "pebble" and not pebble.is_installed():
        pytest.fail("Debian's package pebble is missing: `make test` installs it, or: apt-get install pebble")


def is_told_in_order(text: str, story: list[str]) -> bool:
    place = 0
    for each in story:
        place = text.find(each, place)
        assert place >= 0, f"{each!r} is missing, or comes too early:\n{text}"
        place += len(each)
    return True


@pytest.mark.parametrize("ca", ["pebble", "development"])
async def test_it_issues_by_all_challenges_and_leaves_nothing_behind(
    demo: Demo, require_clean: Callable[[], Awaitable[None]], ca: str
) -> None:
    """The first thing anybody does with this program, with a real CA or without one."""
    require(ca)
    await demo.start("--ca", ca)
    assert await demo.end() == 0, demo.text
    assert is_told_in_order(demo.text, STORY)
    assert "ns1.example.test (127.0.0.1) complete: has 2 of 2 values" in demo.text
    assert demo.text.count("scaivault.events.certificate.issued.cert_") == 3
    assert ("Pebble at" in demo.text) == (ca == "pebble")
    assert [line for line in demo.lines if len(line.rstrip("\n")) > 80] == []
    assert "problem" not in demo.text
    assert demo.lines[-2].startswith("Done: ")
    assert len(demo.ports()) >= 5
    assert [port for port in demo.ports() if port < 1024] == []
    await require_clean()


async def nats_url(text: str) -> str:
    """What the shell makes of the lines that the demo prints."""
    script = text[text.index("  LOGIN=") : text.index("  nats subscribe")] + '\nprintf %s "$NATS_URL"'
    child = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=asyncio.subprocess.PIPE)
    printed, _ = await child.communicate()
    return printed.decode()


async def over_http(text: str) -> Any:
    """What the demo's line with curl says."""
    script = "\n".join(line for line in text.splitlines() if line.startswith(("  API=", "  curl ")))
    child = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=asyncio.subprocess.PIPE)
    printed, _ = await child.communicate()
    return json.loads(printed)


async def test_kept_running_it_can_be_reached_as_it_says(
    demo: Demo, require_clean: Callable[[], Awaitable[None]]
) -> None:
    """Whoever keeps it wants to play with it."""
    await demo.start("--ca", "development", "--keep")
    await demo.until_line("Ctrl-C")
    client = await nats.connect(await nats_url(demo.text), connect_timeout=5)
    [account] = re.findall(r'"account_id": "(\w+)"', demo.text)
    body = {"account_id": account, "domains": ["*.apps.example.test"], "challenge_type": "dns-01"}
    reply = await client.request("scaivault.v1.pki.acme.issue", json.dumps(body).encode(), timeout=10)
    order_id = json.loads(reply.data)["order_id"]
    await demo.until_line("event      scaivault.events.certificate.issued.")

    async def is_valid() -> bool:
        request = json.dumps({"order_id": order_id}).encode()
        answer = await client.request("scaivault.v1.pki.acme.orders.get", request, timeout=10)
        return bool(json.loads(answer.data)["status"] == "valid")

    await until(is_valid, "the order is valid")
    await client.close()
    assert len((await over_http(demo.text))["items"]) >= 4
    demo.send(signal.SIGINT)
    assert await demo.end() == 0, demo.text
    await require_clean()


@pytest.mark.parametrize(
    ("moment", "number", "ca"),
    [
        ("DNS", signal.SIGINT, "pebble"),
        ("CA", signal.SIGINT, "pebble"),
        ("CA", signal.SIGTERM, "development"),
        ("Daemon", signal.SIGINT, "pebble"),
        ("order", signal.SIGINT, "development"),
        ("verdict", signal.SIGINT, "pebble"),
        ("trace", signal.SIGHUP, "development"),
    ],
)
async def test_an_interruption_leaves_nothing_behind(
    demo: Demo, require_clean: Callable[[], Awaitable[None]], moment: str, number: signal.Signals, ca: str
) -> None:
    """People press Ctrl-C in the middle, more than once; no CA, daemon or folder may survive that."""
    require(ca)
    await demo.start("--ca", ca)
    await demo.until_line(moment)
    pressing = asyncio.create_task(until(lambda: demo.has_ended_by(number), "the demo ends"))
    assert await demo.end() == 130, demo.text
    await pressing
    assert "Interrupted" in demo.text
    assert "Traceback" not in demo.text
    await require_clean()


async def test_without_pebble_it_falls_back_and_says_so(
    demo: Demo, require_clean: Callable[[], Awaitable[None]], tmp_path: Path
) -> None:
    """Not everybody has Debian and root."""
    await demo.start(path=str(tmp_path))
    await demo.until_line("CA")
    assert "the built-in development CA (Pebble is not installed)" in demo.text
    demo.send(signal.SIGINT)
    assert await demo.end() == 130, demo.text
    await require_clean()


async def test_pebble_is_missed_by_name_when_it_was_asked_for(
    demo: Demo, require_clean: Callable[[], Awaitable[None]], tmp_path: Path
) -> None:
    """It says what to install, and what to choose instead."""
    await demo.start("--ca", "pebble", path=str(tmp_path))
    assert await demo.end() == 1, demo.text
    assert "apt-get install pebble; or choose --ca development" in demo.text
    await require_clean()


@pytest.mark.parametrize(("moment", "options"), [("3. dns-01", []), ("Ctrl-C", ["--keep"])])
async def test_a_daemon_that_dies_is_a_failure_with_its_logs_kept(demo: Demo, moment: str, options: list[str]) -> None:
    """Nobody can mend what left no trace, or waits before something that is dead."""
    await demo.start("--ca", "development", *options)
    await demo.until_line(moment)
    [pid] = re.findall(r"Daemon +pid (\d+)", demo.text)
    os.kill(int(pid), signal.SIGKILL)
    assert await demo.end() == 1, demo.text
    [folder] = demo.folder.iterdir()
    assert f"Its logs are in {folder}" in demo.text
    assert "the daemon ended; its last words were:" in demo.text
    assert (folder / "daemon/log").stat().st_size > 0
    await until(lambda: _nobody(demo), "the daemon's nats-server has ended")


async def _nobody(demo: Demo) -> bool:
    return demo.processes() == []
