"""The plugin contract as the type checker of a stranger sees it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

STRANGER = Path(__file__).with_name("stranger.py")

WRONG = """
from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from collections.abc import Sequence

from scaivaultd.plugin import (
    ChallengeResponse, ChallengeSolver, DnsProvider, Handle, Secret, SolverContext, SolverKind, Zone, hookimpl
)


class ForgetsToRemove:
    async def find_zone(self, name: str) -> Zone: raise NotImplementedError

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle: raise NotImplementedError


class TakesOneValue:
    async def find_zone(self, name: str) -> Zone: raise NotImplementedError

    async def add_txt(self, zone: Zone, name: str, value: int, ttl: int) -> Handle: raise NotImplementedError

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None: ...


fourth: DnsProvider = ForgetsToRemove()  # [assignment]
fifth: DnsProvider = TakesOneValue()  # [assignment]
header: str = Secret("x")  # [assignment]


class NotAsynchronous:
    def present(self, response: ChallengeResponse) -> None: ...

    async def clean_up(self, response: ChallengeResponse) -> None: ...


class NoCleanUp:
    async def present(self, response: ChallengeResponse) -> None: ...


class OtherArgument:
    async def present(self, response: str) -> None: ...

    async def clean_up(self, response: ChallengeResponse) -> None: ...


first: ChallengeSolver = NotAsynchronous()  # [assignment]
second: ChallengeSolver = NoCleanUp()  # [assignment]
third: ChallengeSolver = OtherArgument()  # [assignment]


async def opens_nothing(context: SolverContext) -> ChallengeSolver:
    context.http01.put("token")  # [call-arg]
    context.ftp01  # [attr-defined]
    raise NotImplementedError


SolverKind(name="x", challenge_type="x-01", open=opens_nothing)  # [arg-type]
SolverKind(name="x", open=opens_nothing)  # [arg-type, call-arg]
ChallengeResponse(identifier="a", type="x", token=1, key_authorization="k")  # [arg-type]


def misuse(response: ChallengeResponse) -> None:
    response.token = "other"  # [misc]
    response.key  # [attr-defined]
"""


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `mypy --strict` says of both files, as in a stranger's project: no configuration of ours."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "stranger.py").write_text(STRANGER.read_text())
    (folder / "wrong.py").write_text(WRONG)
    arguments = ["--strict", "--config-file=", "--no-error-summary", "--no-color-output", "--cache-dir=cache"]
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, "stranger.py", "wrong.py"],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stdout


def test_a_plugin_written_by_the_contract_alone_has_no_type_errors(checked: str) -> None:
    """Who obeys the types of `scaivaultd.plugin` obeys the contract; and it is typed for strangers at all."""
    assert [line for line in checked.splitlines() if not line.startswith("wrong.py:")] == []


def test_every_misuse_is_caught_where_it_stands_and_nothing_else_is(checked: str) -> None:
    """The types must say no as well: a contract of `Any` would accept everything."""
    expected = {
        (number, code)
        for number, line in enumerate(WRONG.splitlines(), 1)
        if (marked := re.search(r"# \[(.+)\]$", line))
        for code in marked[1].split(", ")
    }
    found = {
        (int(match[1]), match[2]) for match in re.finditer(r"^wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", checked, re.M)
    }
    assert found == expected
