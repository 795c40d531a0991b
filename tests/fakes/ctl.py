"""`scaivaultctl` in this process, before a daemon that is faked at its UNIX socket."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from click.testing import CliRunner

from scaivaultd.ctl import main
from tests.fakes.api_socket import served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes.api_socket import FakeApi


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
    alone = {"SCAIVAULT_ADDR": None, "SCAIVAULT_TOKEN": None, "COLUMNS": "80"}
    result = CliRunner().invoke(main, arguments, input=given, env={**alone, **environment})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ended(result.exit_code, result.stdout, result.stderr)


@contextmanager
def at(directory: Path) -> Iterator[Tool]:
    """A tool before a daemon whose socket is in this directory."""
    with served(directory / "api.sock") as api:
        yield Tool(api, directory / "api.sock")
