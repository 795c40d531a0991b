"""Programs that the demo and the system tests start: output into a file, ended by pid, waited for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

START_SECONDS = 30.0
_BELOW_EPHEMERAL = range(20_000, 32_768)
_given: set[int] = set()


class Process:
    """A child with its output in `FOLDER/log`."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._arguments = list(arguments)
        self._folder = folder
        self._environment = environment or {}
        self._handle: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; raises FileNotFoundError when there is no such program."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "log").open("ab") as log:
            # A session of its own: Ctrl-C is for us, and we end our children in order.
            self._handle = subprocess.Popen(  # noqa: S603 - our own argument lists, no shell
                self._arguments,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self._folder / "log").read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        return self._started.pid

    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._handle is not None and self._handle.poll() is None

    def kill(self) -> None:
        """Send it SIGKILL; does not wait for its end."""
        self._started.kill()

    def was_killed(self) -> bool:
        """Whether it was ended by SIGKILL."""
        return self._started.poll() == -signal.SIGKILL

    async def wait(self, seconds: float) -> int:
        """Its exit code; raises TimeoutError."""
        handle = self._started
        try:
            return await asyncio.to_thread(handle.wait, seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"pid {handle.pid} still runs after {seconds} s") from error

    async def stop(self, number: int = signal.SIGTERM, seconds: float = 15) -> int:
        """Send it a signal and wait for its end."""
        if self.is_alive():
            self._started.send_signal(number)
        return await self.wait(seconds)

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._handle is None:
            raise RuntimeError("the process was never started")
        return self._handle


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = START_SECONDS) -> None:
    """Ask again and again whether a foreign program is up: it has no event to wait for.

    Raises:
        TimeoutError: it was not within `seconds`; `what` says so.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        await asyncio.sleep(0.02)


async def listens(port: int) -> bool:
    """Whether somebody accepts connections on that port of 127.0.0.1."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has at this moment, and that was not given before.

    Below those that the kernel gives to whoever does not choose: between now and its use, any connection could get one.
    """
    while True:
        port = secrets.choice(_BELOW_EPHEMERAL)
        if port in _given and len(_given) < len(_BELOW_EPHEMERAL) // 2:
            continue
        with socket.socket() as probe:
            # As servers do: a connection that has just ended is in nobody's way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
