"""exec: a program of the administrator's adds and removes values: `program present|cleanup FQDN. VALUE`.

No shell, nothing of our own environment, a group of its own that is killed when time is up: whatever the program does,
the daemon goes on.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Literal

from msgspec import Meta

from scaivaultd.plugin import (
    Capabilities,
    DnsProvider,
    DnsProviderKind,
    Handle,
    PermanentError,
    PluginContext,
    ProviderSettings,
    TransientError,
    Zone,
    hookimpl,
    normal_name,
)

SCAIVAULTD_PLUGIN_API = "1.1"

OUTPUT_BYTES = 2048
READ_BYTES = 65536
# What a program that floods can still get through after its end.
LAST_READS = 64
# Between SIGTERM and SIGKILL.
GRACE_SECONDS = 2.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# sysexits.h: the failure is temporary.
TRY_AGAIN = 75

Action = Literal["present", "cleanup"]


class ExecSettings(ProviderSettings, frozen=True, kw_only=True):
    """Which program."""

    program: Annotated[
        str,
        Meta(
            pattern="^/[^\\x00]*$",
            max_length=4096,
            description="Absolute path of the program; `request_timeout` says how long one run may take.",
        ),
    ]


class Exec:
    """The provider."""

    def __init__(self, settings: ExecSettings, context: PluginContext) -> None:
        """Use `open_exec`."""
        self._program = settings.program
        self._seconds = settings.request_timeout
        self._log = context.log

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`. The program is not asked: every name is a zone."""
        return Zone(name=normal_name(name))

    async def check(self) -> None:
        """Whether the program is there and may be run; it is not run."""
        if not await asyncio.to_thread(os.access, self._program, os.X_OK):
            raise PermanentError(f"{self._program} is not there or may not be run by the daemon's user")

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. One run for each value; the program chooses the TTL."""
        for value in values:
            await self._run("present", zone, name, value)
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""
        for value in values:
            await self._run("cleanup", zone, name, value)

    async def _run(self, action: Action, zone: Zone, name: str, value: str) -> None:
        fqdn = f"{normal_name(name)}."
        environment = {
            "PATH": PATH,
            "SCAIVAULTD_ACTION": action,
            "SCAIVAULTD_FQDN": fqdn,
            "SCAIVAULTD_VALUE": value,
            "SCAIVAULTD_ZONE": zone.name,
        }
        with _Output() as output:
            process = await self._started((action, fqdn, value), environment, output)
            status = await self._ended(process, action)
            output.finish()
        self._log.debug("exec.ended", action=action, name=name, status=status)
        if status == 0:
            return
        ending = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        text = f"{self._program} {action} {ending}{output.shown}"
        raise TransientError(text) if status == TRY_AGAIN else PermanentError(text, str(status))

    async def _started(
        self, arguments: Sequence[str], environment: Mapping[str, str], output: _Output
    ) -> asyncio.subprocess.Process:
        try:
            return await asyncio.create_subprocess_exec(
                self._program,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output.writer,
                stderr=output.writer,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError:
            raise PermanentError(f"{self._program} is not there, or the interpreter it names is not") from None
        except PermissionError:
            raise PermanentError(f"{self._program} may not be run by the daemon's user") from None
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.ETXTBSY):
                raise TransientError(f"{self._program} cannot be started now: {error.strerror}") from None
            raise PermanentError(f"{self._program} cannot be started: {error.strerror}") from None

    async def _ended(self, process: asyncio.subprocess.Process, action: Action) -> int:
        """The exit status. Nothing of the program is left afterwards, however this ends."""
        try:
            async with asyncio.timeout(self._seconds):
                return await process.wait()
        except TimeoutError:
            raise TransientError(f"{self._program} {action} took more than {self._seconds:g} seconds") from None
        finally:
            # Own deadlines: we are often here because the caller was cancelled, and the program must go all the same.
            await _to_the_end(_gone(process))


class _Output:
    """The end of what a program prints, through a pipe of our own.

    Not asyncio's: a grandchild that keeps the pipe open would keep us waiting for its end.
    """

    def __init__(self) -> None:
        self._last = bytearray()
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)

    def __enter__(self) -> _Output:
        asyncio.get_running_loop().add_reader(self._reader, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._reader)
        os.close(self._reader)
        os.close(self.writer)

    def finish(self) -> None:
        """Read what is still in the pipe."""
        for _ in range(LAST_READS):
            if not self._read():
                return

    @property
    def shown(self) -> str:
        """The output for an error's text, without control characters; empty when there was none."""
        text = bytes(self._last).decode("utf-8", "replace")
        text = "".join(each if each.isprintable() else " " for each in text).strip()
        return f": {text}" if text else ""

    def _read(self) -> bool:
        try:
            chunk = os.read(self._reader, READ_BYTES)
        except BlockingIOError:
            return False
        self._last = (self._last + chunk)[-OUTPUT_BYTES:]
        return bool(chunk)


async def _gone(process: asyncio.subprocess.Process) -> None:
    """End the whole group: politely while the program still runs, then for good."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        await _briefly(process)
    _signal(process, signal.SIGKILL)
    # A process in the middle of a system call may take its time even now.
    await _briefly(process)


async def _briefly(process: asyncio.subprocess.Process) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE_SECONDS):
            await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # The group carries the program's id, and outlives it while any other member does.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


async def _to_the_end(work: Coroutine[None, None, None]) -> None:
    """Await `work`, which has limits of its own, also when cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


@asynccontextmanager
async def open_exec(settings: ExecSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """Open a provider; the program is first run when a value is to be written."""
    yield Exec(settings, context)


RIGHTS = """\
The program runs as the daemon's user, with no more rights than that, in `/`, with `PATH`, `SCAIVAULTD_ACTION`
(`present` or `cleanup`), `SCAIVAULTD_FQDN`, `SCAIVAULTD_VALUE` and `SCAIVAULTD_ZONE` (the zone, as far as it is known)
as its whole environment. It reads its own credentials from where its administrator put them. Let only root write to
the file and the directories above it."""

LIMITS = """\
- One run at a time, one run for each value.
- `present` must add the value beside those already there: a name and its wildcard share one name. It may be run twice
  with the same value, and `cleanup` with a value that is gone.
- Exit status 0 means done, 75 (`EX_TEMPFAIL`) try again later, everything else failed.
- A run that takes longer than `request_timeout` is ended with SIGTERM, two seconds later with SIGKILL, together with
  everything it started; what it left in the background after its end is ended, too.
- **The last 2 KB of what it prints are shown in errors: it must not print secrets.**
- It may be configured only in the daemon's configuration file, since it makes the daemon run a program."""

TROUBLESHOOTING = """\
- *is not there, or the interpreter it names is not*: look at the path, and at the first line of a script.
- *may not be run by the daemon's user*: `chmod 755`, and every directory above must be passable; systemd's sandbox may
  hide home directories and mount others without the right to execute.
- acme.sh's `dns_*` scripts are shell functions: call them from a script that sources acme.sh, with the name without
  its last dot: `dns_x_add "${2%.}" "$3"` for `present`, `dns_x_rm` for `cleanup`.
- certbot's hooks want `CERTBOT_DOMAIN` and `CERTBOT_VALIDATION`: set them in a script, from `SCAIVAULTD_FQDN` without
  `_acme-challenge.` and from `SCAIVAULTD_VALUE`."""


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="exec",
            title="Program (exec)",
            settings=ExecSettings,
            open=open_exec,
            example={"program": "/usr/local/lib/scaivaultd/dns-hook", "request_timeout": 120},
            capabilities=Capabilities(any_zone=True, sequential=True),
            configuration_file_only=True,
            summary="Runs a program of yours, `program present|cleanup FQDN. VALUE`, in the form that lego's provider "
            "of the same name uses.",
            rights=RIGHTS,
            limits=LIMITS,
            troubleshooting=TROUBLESHOOTING,
        )
    ]
