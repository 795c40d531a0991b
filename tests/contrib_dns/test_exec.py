"""exec with real programs: well-behaved, failing, hanging, flooding, leaving others behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import msgspec
import pytest
from scaivaultd_contrib_dns import exec as exec_provider

from scaivaultd.plugin import DnsProvider, PermanentError, TransientError, Zone
from scaivaultd.plugin.dns import Checkable
from scaivaultd.plugin.testing import ONE, TWO, FixedSecrets, make_context

NAME = "_acme-challenge.www.example.org"
ZONE = Zone(name="example.org")
END_SECONDS = 30.0
(KIND,) = exec_provider.scaivaultd_dns_providers()

Program = Callable[[str], AbstractAsyncContextManager[DnsProvider]]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Opens a provider that runs a Python script with the given text."""

    def written(text: str) -> AbstractAsyncContextManager[DnsProvider]:
        path = tmp_path / "hook"
        path.write_text(
            f"#!{sys.executable} -S\nimport os, pathlib, signal, sys, time\nhere = {str(tmp_path)!r}\n{text}\n"
        )
        path.chmod(0o755)
        return opened(str(path))

    return written


def opened(path: str, seconds: float = 10.0) -> AbstractAsyncContextManager[DnsProvider]:
    settings = exec_provider.ExecSettings(program=path, request_timeout=seconds)
    return exec_provider.open_exec(settings, make_context(FixedSecrets({})))


async def is_gone(pid: int) -> bool:
    """Whether a process ends soon; watched by the kernel's own handle, without polling."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, ended.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await ended.wait()
        return ended.is_set()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def open_files() -> int:
    """How many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def pid_in(fifo: Path) -> int:
    """A process id that a program writes into a FIFO once it is where the test wants it."""
    async with asyncio.timeout(END_SECONDS):
        return int(await asyncio.to_thread(fifo.read_text))


async def test_arguments_and_environment_are_these_and_no_others(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon's own environment may hold secrets."""
    monkeypatch.setenv("SOME_SECRET", "s3cret")
    text = "open(here + '/log', 'a').write(repr((sys.argv[1:], dict(os.environ), os.getcwd())) + '\\n')"
    async with program(text) as provider:
        await provider.add_txt(ZONE, NAME, [ONE, TWO], 60)
        await provider.remove_txt(ZONE, NAME, [ONE], None)
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 3
    for line, action, value in zip(lines, ["present", "present", "cleanup"], [ONE, TWO, ONE], strict=True):
        environment = {
            "PATH": exec_provider.PATH,
            "SCAIVAULTD_ACTION": action,
            "SCAIVAULTD_FQDN": f"{NAME}.",
            "SCAIVAULTD_VALUE": value,
            "SCAIVAULTD_ZONE": "example.org",
        }
        arguments, seen, directory = eval(line)
        assert arguments == [action, f"{NAME}.", value]
        assert {name: text for name, text in seen.items() if name != "LC_CTYPE"} == environment
        assert directory == "/"


async def test_a_value_is_never_read_by_a_shell(program: Program, tmp_path: Path) -> None:
    """Names come from outside."""
    text = "open(here + '/log', 'w').write(sys.argv[3])"
    async with program(text) as provider:
        await provider.add_txt(ZONE, NAME, ["-x; touch /tmp/$(id)"], 60)
    assert (tmp_path / "log").read_text() == "-x; touch /tmp/$(id)"


async def test_a_failure_shows_the_end_of_what_was_printed(program: Program) -> None:
    """The reason stands in the last lines; control characters would rewrite the reader's screen."""
    text = "print('first' + 'x' * 100000); print('\\x1b[2Jzone is locked', file=sys.stderr, flush=True); sys.exit(3)"
    async with program(text) as provider:
        with pytest.raises(PermanentError, match=r"exited with status 3.*zone is locked") as caught:
            await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert len(caught.value.detail) < exec_provider.OUTPUT_BYTES + 300
    assert "first" not in caught.value.detail
    assert "\x1b" not in caught.value.detail
    assert caught.value.code == "3"


async def test_a_program_may_ask_to_try_again(program: Program) -> None:
    """By the status that mail systems use for it; one that was killed failed for good."""
    async with program("sys.exit(75)") as provider:
        with pytest.raises(TransientError, match="status 75"):
            await provider.add_txt(ZONE, NAME, [ONE], 60)
    async with program("os.kill(os.getpid(), signal.SIGSEGV)") as provider:
        with pytest.raises(PermanentError, match=f"signal {int(signal.SIGSEGV)}"):
            await provider.add_txt(ZONE, NAME, [ONE], 60)


async def test_a_program_that_hangs_and_ignores_sigterm_is_ended_with_its_children(
    program: Program, tmp_path: Path
) -> None:
    """Nothing may be left that writes records later."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    text = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = os.fork()\n"
        "if child: open(here + '/pid', 'w').write(str(child))\n"
        "time.sleep(600)"
    )
    async with program(text):
        pass
    async with opened(str(tmp_path / "hook"), seconds=2) as provider:
        call = asyncio.create_task(provider.add_txt(ZONE, NAME, [ONE], 60))
        child = await pid_in(fifo)
        with pytest.raises(TransientError, match="took more than 2 seconds"):
            await call
    assert await is_gone(child)


async def test_a_call_that_is_broken_off_takes_the_program_with_it(program: Program, tmp_path: Path) -> None:
    """The daemon stops; its programs stop with it."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    async with program("open(here + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(600)") as provider:
        call = asyncio.create_task(provider.add_txt(ZONE, NAME, [ONE], 60))
        pid = await pid_in(fifo)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await is_gone(pid)


async def test_a_child_that_keeps_the_output_open_does_not_keep_us(program: Program, tmp_path: Path) -> None:
    """A daemon started by a hook holds the pipe for ever, in a session of its own even against our signals."""
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    text = (
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    open(here + '/pid', 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "sys.exit(0)"
    )
    async with program(text) as provider:
        call = asyncio.create_task(provider.add_txt(ZONE, NAME, [ONE], 60))
        pid = await pid_in(fifo)
        async with asyncio.timeout(END_SECONDS):
            assert await call == {}
    os.kill(pid, signal.SIGKILL)


async def test_a_flood_of_output_is_read_away_and_bounded(program: Program) -> None:
    """A full pipe would stop the program, a full memory us."""
    async with program("for _ in range(500): os.write(1, b'y' * 65536)\nsys.exit(1)") as provider:
        with pytest.raises(PermanentError) as caught:
            await provider.add_txt(ZONE, NAME, [ONE], 60)
    assert len(caught.value.detail) < exec_provider.OUTPUT_BYTES + 300


async def test_no_file_descriptor_is_left(program: Program) -> None:
    """The daemon runs programs for years."""
    async with program("print('x')") as provider:
        await provider.add_txt(ZONE, NAME, [ONE], 60)
        before = open_files()
        await provider.add_txt(ZONE, NAME, [ONE, TWO, ONE], 60)
        assert open_files() == before


@pytest.mark.parametrize("mode", [None, 0o644])
async def test_a_program_that_cannot_be_run_is_told(tmp_path: Path, mode: int | None) -> None:
    """When it is configured, and when it is used."""
    path = tmp_path / "hook"
    if mode is not None:
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
    async with opened(str(path)) as provider:
        assert isinstance(provider, Checkable)
        with pytest.raises(PermanentError, match="may not be run"):
            await provider.check()
        with pytest.raises(PermanentError, match="is not there" if mode is None else "may not be run"):
            await provider.add_txt(ZONE, NAME, [ONE], 60)


async def test_what_is_no_program_is_told(tmp_path: Path) -> None:
    """A script without its first line, or with one that leads nowhere."""
    path = tmp_path / "hook"
    for text, said in (("nothing", "cannot be started"), ("#!/no/such/interpreter\n", "interpreter")):
        path.write_text(text)
        path.chmod(0o755)
        async with opened(str(path)) as provider:
            with pytest.raises(PermanentError, match=said):
                await provider.add_txt(ZONE, NAME, [ONE], 60)


@pytest.mark.parametrize("path", ["hook", "./hook", "", "/a\x00b"])
def test_a_path_that_is_not_absolute_is_refused(path: str) -> None:
    """What it would be depends on where the daemon was started."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"program": path}, KIND.settings)


def test_only_the_configuration_file_may_name_a_program() -> None:
    """A request that could would run anything."""
    assert KIND.configuration_file_only
    assert KIND.capabilities.sequential
    assert KIND.capabilities.any_zone
    msgspec.convert(KIND.example, KIND.settings)
