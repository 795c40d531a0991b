"""Other ACME clients under the same load: the bare client, lego and certbot, each as its own process or processes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bare_client import respond
from bench.rig import Outcome, Progress, Stuck, many

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.demo.pebble import Pebble

STUCK_CODE = 3
STUCK_SECONDS = 40.0
"""32 certbots at once take more than ten seconds until the first of them is done."""


async def bare(pebble: Pebble, in_flight: int, count: int, label: str, names: int = 1) -> Outcome:
    """One round of the bare client in a process of its own; raises Stuck."""
    whole = {"http01-port": pebble.http01_port, "count": count, "in-flight": in_flight, "names": names}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.bare_client", "--directory", pebble.directory_url),
        *("--trust", str(pebble.trust_file), "--label", label),
        *(word for name, value in whole.items() for word in (f"--{name}", str(value))),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    said, _ = await process.communicate()
    if process.returncode == STUCK_CODE:
        raise Stuck("the bare client got no further")
    if process.returncode:
        raise RuntimeError(f"the bare client failed with code {process.returncode}")
    return Outcome(**json.loads(said))


class CommandLine:
    """A client that is started once for each certificate, with an account made beforehand.

    Each process has a copy of the account in a folder of its own, since these clients lock theirs; all write their
    answers to one folder, and a server here gives them to the CA, which looks at one port only.
    """

    name: str
    program: str

    def __init__(self, folder: Path, pebble: Pebble) -> None:
        self._folder = folder
        self._pebble = pebble
        self._webroot = folder / "webroot"
        self._challenges = self._webroot / ".well-known/acme-challenge"
        self._challenges.mkdir(parents=True, exist_ok=True)
        self._runs = 0

    @classmethod
    def is_installed(cls) -> bool:
        """Whether the program is there."""
        return shutil.which(cls.program) is not None

    def arguments(self, folder: Path, name: str) -> Sequence[str]:
        """The command line for one certificate."""
        raise NotImplementedError

    @property
    def environment(self) -> Mapping[str, str]:
        """What it needs beside that: whom to trust."""
        raise NotImplementedError

    async def round(self, in_flight: int, count: int) -> Outcome:
        """So many processes, so many of them at once; raises Stuck."""
        async with await respond(self._pebble.http01_port, self._answer_to):
            if not self._template.exists():
                await self._run(self._template, "account.example.test")
            copies = [self._copy() for _ in range(count)]
            progress = Progress(STUCK_SECONDS)
            requests, before = self._pebble.requests, _children_cpu_seconds()
            outcome = await many(lambda number: self._issue(copies[number]), count, in_flight, progress)
        outcome.cpu_seconds = _children_cpu_seconds() - before
        outcome.requests = self._pebble.requests - requests
        return outcome

    @property
    def _template(self) -> Path:
        return self._folder / "account"

    def _copy(self) -> Path:
        self._runs += 1
        copy = self._folder / f"run{self._runs}"
        shutil.copytree(self._template, copy, symlinks=True)
        return copy

    async def _issue(self, folder: Path) -> None:
        await self._run(folder, f"{self.name}-{folder.name}.example.test")

    async def _run(self, folder: Path, name: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *self.arguments(folder, name),
            env={**os.environ, **self.environment},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise RuntimeError(f"{self.name} failed: {said.decode(errors='replace')[-500:]}")

    def _answer_to(self, token: str) -> bytes | None:
        path = self._challenges / token
        return path.read_bytes() if path.is_file() else None


class Lego(CommandLine):
    """lego, as Debian has it."""

    name = program = "lego"

    def arguments(self, folder: Path, name: str) -> Sequence[str]:
        """`lego run` finds the account in its folder."""
        return (
            *("lego", "--server", self._pebble.directory_url, "--email", "bench@example.test", "--accept-tos"),
            *("--http", "--http.webroot", str(self._webroot), "--path", str(folder), "--domains", name, "run"),
        )

    @property
    def environment(self) -> Mapping[str, str]:
        """lego's own variable."""
        return {"LEGO_CA_CERTIFICATES": str(self._pebble.trust_file)}


class Certbot(CommandLine):
    """certbot, as Debian has it."""

    name = program = "certbot"

    def arguments(self, folder: Path, name: str) -> Sequence[str]:
        """`certbot certonly` with everything below one folder."""
        return (
            *("certbot", "certonly", "--non-interactive", "--agree-tos", "--register-unsafely-without-email"),
            *("--server", self._pebble.directory_url, "--webroot", "--webroot-path", str(self._webroot)),
            *("--config-dir", str(folder / "etc"), "--work-dir", str(folder / "lib")),
            *("--logs-dir", str(folder / "log"), "--domain", name),
        )

    @property
    def environment(self) -> Mapping[str, str]:
        """That of requests, its HTTP library."""
        return {"REQUESTS_CA_BUNDLE": str(self._pebble.trust_file)}


def _children_cpu_seconds() -> float:
    """Of the children that have ended; those that run on, such as Pebble, are not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
