"""`scaivaultctl` in this process, before a daemon that is faked at its UNIX socket."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from scaivaultd.ctl import main
from tests.fakes.api_socket import served

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.fakes.api_socket import FakeApi


# Nothing of whoever runs the tests.
_ALONE: dict[str, str | None] = {
    "SCAIVAULT_ADDR": None,
    "SCAIVAULT_TOKEN": None,
    "SCAIVAULT_CONTEXT": None,
    "SCAIVAULT_CA_FILE": None,
    "NO_COLOR": None,
    "XDG_CONFIG_HOME": "/nonexistent",
}


@dataclass(frozen=True)
class Ended:
    """How one run of a verb ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Tool:
    """`scaivaultctl` and the daemon that it finds."""

    api: FakeApi
    socket: Path

    def __call__(self, *arguments: str, given: str | bytes | None = None, **environment: str | None) -> Ended:
        return run(*arguments, given=given, **{"SCAIVAULT_ADDR": f"unix:{self.socket}", **environment})

    @property
    def last(self) -> tuple[str, dict[str, Any]]:
        return self.api.asked[-1]


def run(*arguments: str, given: str | bytes | None = None, **environment: str | None) -> Ended:
    """Run a verb; a traceback is a failed test."""
    alone = {**_ALONE, "COLUMNS": "80"}
    result = CliRunner().invoke(main, arguments, input=given, env={**alone, **environment})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


def on_terminal(
    *arguments: str, answers: Sequence[tuple[str, str]] = (), columns: int = 80, **environment: str | None
) -> Ended:
    """Run a verb as a process on a terminal of its own: what is seen there, talk and data alike.

    `answers` are what a person reads, and types then, in this order.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    given = {**os.environ, "TERM": "xterm", "COLUMNS": None, "LINES": None, "PAGER": "cat", **_ALONE, **environment}
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "scaivaultd.ctl", *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env={name: value for name, value in given.items() if value is not None},
    )
    os.close(its)
    seen, answered, left = b"", 0, list(answers)
    try:
        # The end of the process closes the terminal, which Linux tells as an error.
        with suppress(OSError):
            while part := os.read(ours, 65536):
                seen += part
                if left and left[0][0].encode() in seen[answered:]:
                    answered = len(seen)
                    os.write(ours, left.pop(0)[1].encode())
        return Ended(process.wait(60), seen.decode().replace("\r\n", "\n"), "")
    finally:
        os.close(ours)
        process.kill()
        process.wait()


@contextmanager
def at(directory: Path) -> Iterator[Tool]:
    """A tool before a daemon whose socket is in this directory."""
    with served(directory / "api.sock") as api:
        yield Tool(api, directory / "api.sock")
