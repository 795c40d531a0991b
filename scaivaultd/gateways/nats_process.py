"""Running a nats-server: a child that dies with us, whose output is read to the end."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from scaivaultd.model.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": SYSTEM_PATH, "GOMEMLIMIT": "256MiB"}
_ASK_SECONDS = 10.0  # for `-v` and `-t`
_STOP_SECONDS = 5.0
_REAP_SECONDS = 5.0
_LINE_MAX = 2000
_LINES_KEPT = 8

# `preexec_fn` is unsafe beside threads, so a fresh interpreter does what must happen between fork and
# exec. It looks at its parent after asking for the signal: a daemon that died before would send none.
LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
parent, *command = sys.argv[1:]
if ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0):
    sys.exit("the kernel refuses PR_SET_PDEATHSIG")
if os.getppid() != int(parent):
    sys.exit("the daemon ended before its nats-server began")
try:
    os.execv(command[0], command)
except OSError as error:
    sys.exit(f"{command[0]}: {error.strerror}")
"""


class ServerProcess:
    """One run of a program whose output is always drained, so that it never blocks on its pipe."""

    def __init__(self, process: asyncio.subprocess.Process, on_line: Callable[[str], None]) -> None:
        self._process = process
        self._on_line = on_line
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._life = asyncio.create_task(self._follow(), name=f"process-{process.pid}")

    @classmethod
    async def spawn(
        cls, command: Sequence[str], on_line: Callable[[str], None], *, inherited: Sequence[int] = ()
    ) -> Self:
        """Start a program with the descriptors `inherited`; cancelled, it leaves none behind."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=_ENVIRONMENT,
                pass_fds=inherited,
                # A Ctrl-C at the terminal is for the daemon, which stops its child in order.
                start_new_session=True,
            )
        except OSError as error:
            raise StartupError(f"{command[0]} cannot be executed: {error.strerror}") from error
        return cls(process, on_line)

    @property
    def pid(self) -> int:
        """Its process id, also after its end."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs or has output left; negative: the signal that ended it."""
        return self._life.result() if self._life.done() else None

    @property
    def last_words(self) -> str:
        """The last lines it said."""
        return "; ".join(self._lines)

    async def exited(self) -> int:
        """Wait for its end; the exit code. Cancelled, it leaves the program alone."""
        return await asyncio.shield(self._life)

    async def stop(self) -> None:
        """Ask it to end, wait 5 s, kill it. Cancelled, it kills at once."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await asyncio.wait([self._life], timeout=_STOP_SECONDS)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End it at once, if it has not ended, and reap it."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await asyncio.wait([self._life], timeout=_REAP_SECONDS)
        self._life.cancel()

    async def _follow(self) -> int:
        assert self._process.stdout is not None
        rest = b""
        while chunk := await self._process.stdout.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._hear(line)
            rest = rest[:_LINE_MAX]
        if rest:
            self._hear(rest)
        return await self._process.wait()

    def _hear(self, line: bytes) -> None:
        text = line[:_LINE_MAX].decode(errors="replace").rstrip()
        self._lines.append(text)
        self._on_line(text)


async def ask(binary: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and last words of a short run; raises StartupError when it does not end in time."""
    process = await ServerProcess.spawn([str(binary), *arguments], lambda _: None)
    try:
        async with asyncio.timeout(_ASK_SECONDS):
            code = await process.exited()
    except TimeoutError:
        raise StartupError(f"`{binary} {arguments[0]}` did not end within {_ASK_SECONDS:.0f} s") from None
    finally:
        await process.kill()
    return code, process.last_words
