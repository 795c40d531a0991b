"""Without its key the daemon waits, says what it lacks, and takes a passphrase from those on its host."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, cast

import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd import sealed, state
from scaivaultd.api import access_messages as am
from scaivaultd.api import commands
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model import errors as e
from scaivaultd.model.principals import Principal
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.model.storage import Put
from scaivaultd.sealed import Unsealing
from scaivaultd.store.key_sources import KeySources
from scaivaultd.store.master_key import NoMasterKey, create_master_key_file
from scaivaultd.store.sqlite import SqliteStore
from tests.fakes.scripted_ca import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

PHRASE = "correct horse battery staple"
NOTHING = m.Nothing()
ON_HOST = RequestContext(request_id="req_1", principal=Principal(kind="unix", id="0"))


class HeldClock(FakeClock):
    """Sleeping waits until the test lets time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self.slept_off = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sleepers.append((seconds, future))
        self.slept_off.set()
        await future

    async def asleep(self) -> None:
        """Return when somebody sleeps."""
        while not self.sleepers:
            self.slept_off.clear()
            await asyncio.wait_for(self.slept_off.wait(), 20)

    async def next_sleep(self) -> float:
        """How long somebody sleeps next; time passes for it at once."""
        await self.asleep()
        seconds, future = self.sleepers.pop(0)
        self.advance(seconds)
        if not future.done():
            future.set_result(None)
        return seconds


class Sealed:
    """A sealed daemon's waiting room over a real store."""

    def __init__(self, store: SqliteStore, folder: Path, source: str, clock: FakeClock) -> None:
        self.capture = LogCapture()
        log: FilteringBoundLogger = structlog.wrap_logger(
            None, processors=[self.capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
        )
        self.store, self.clock = store, clock
        self.environment: dict[str, str] = {}
        sources = KeySources(self.environment, None, log)
        self.unlocking = state.Unlocking(store, folder, source, sources=sources, clock=clock, log=log)
        self.log = log
        self.room: Unsealing

    async def shut(self) -> Unsealing:
        with pytest.raises(NoMasterKey) as caught:
            await self.unlocking.attempt()
        self.room = Unsealing(self.unlocking, caught.value, clock=self.clock, log=self.log)
        return self.room

    def said(self, event: str) -> list[Any]:
        return [each for each in self.capture.entries if each["event"] == event]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    store = await SqliteStore.open(tmp_path / "store.db", clock=FakeClock(), log=log)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def by_file(store: SqliteStore, tmp_path: Path) -> Sealed:
    return Sealed(store, tmp_path, f"file:{tmp_path / 'key'}", HeldClock())


@pytest.fixture
def by_phrase(store: SqliteStore, tmp_path: Path) -> Sealed:
    return Sealed(store, tmp_path, "passphrase", HeldClock())


class TestWaiting:
    async def test_a_key_that_appears_is_found_by_itself(self, by_file: Sealed, tmp_path: Path) -> None:
        """A volume that was mounted late; nobody has to start anything anew."""
        room = await by_file.shut()
        running = asyncio.create_task(room.run())
        clock = cast("HeldClock", by_file.clock)
        assert await clock.next_sleep() == sealed.RETRY_SECONDS
        await clock.asleep()
        create_master_key_file(tmp_path / "key")
        await clock.next_sleep()
        await asyncio.wait_for(running, 20)
        assert room.sealer is not None
        assert by_file.said("secrets.unsealed")[0]["key_id"] == room.sealer.kid

    async def test_a_signal_looks_at_once(self, by_file: Sealed, tmp_path: Path) -> None:
        """The administrator has put it there and sends SIGHUP."""
        room = await by_file.shut()
        running = asyncio.create_task(room.run())
        create_master_key_file(tmp_path / "key")
        room.retry()
        await asyncio.wait_for(running, 20)
        assert room.sealer is not None

    async def test_the_same_is_said_again_only_now_and_then(self, by_file: Sealed, tmp_path: Path) -> None:
        """A log of two lines a minute hides everything else; another reason is news."""
        room = await by_file.shut()
        running = asyncio.create_task(room.run())
        clock = cast("HeldClock", by_file.clock)
        for _ in range(19):
            await clock.next_sleep()
        await clock.asleep()
        assert len(by_file.said("secrets.sealed")) == 1
        for _ in range(4):
            await clock.next_sleep()
        await clock.asleep()
        assert len(by_file.said("secrets.sealed")) == 2
        (tmp_path / "key").write_text("no key")
        (tmp_path / "key").chmod(0o600)
        for _ in range(3):
            await clock.next_sleep()
        await clock.asleep()
        said = by_file.said("secrets.sealed")
        assert len(said) == 3
        assert "wrong form" in said[-1]["detail"]
        assert {each["log_level"] for each in said} == {"error"}
        running.cancel()
        await asyncio.wait([running])

    async def test_a_variable_is_not_looked_for_twice(self, store: SqliteStore, tmp_path: Path) -> None:
        """It was taken away when it was read, and that it is missing now would be the wrong thing to say."""
        both = Sealed(store, tmp_path, "env:KEY", HeldClock())
        create_master_key_file(tmp_path / "key")
        await Sealed(store, tmp_path, f"file:{tmp_path / 'key'}", FakeClock()).unlocking.attempt()
        both.environment["KEY"] = "ab" * 32
        room = await both.shut()
        running = asyncio.create_task(room.run())
        clock = cast("HeldClock", both.clock)
        for _ in range(3):
            await clock.next_sleep()
        await clock.asleep()
        reply = await room.get(NOTHING, ON_HOST)
        assert reply.reason == "key_mismatch"
        running.cancel()
        await asyncio.wait([running])

    async def test_a_store_that_fails_meanwhile_is_tried_again(self, by_file: Sealed, tmp_path: Path) -> None:
        """A full disk at the moment when the key has come."""
        room = await by_file.shut()
        running = asyncio.create_task(room.run())
        clock = cast("HeldClock", by_file.clock)
        await clock.asleep()
        create_master_key_file(tmp_path / "key")
        by_file.unlocking._store = FailingOnce(by_file.store)
        await clock.next_sleep()
        await clock.next_sleep()
        await asyncio.wait_for(running, 20)
        assert by_file.said("store.unavailable")


class FailingOnce:
    """A store whose first commit fails."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._has_failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def commit(self, *arguments: Any) -> Any:
        if not self._has_failed:
            self._has_failed = True
            raise e.StorageUnavailable("its disk is full")
        return await self._store.commit(*arguments)


class TestAnswers:
    async def test_health_says_which_key_is_wanted(self, by_file: Sealed, tmp_path: Path) -> None:
        """Whoever is called at night reads one line."""
        create_master_key_file(tmp_path / "key")
        first = await by_file.unlocking.attempt()
        (tmp_path / "key").unlink()
        create_master_key_file(tmp_path / "key")
        room = await by_file.shut()
        report = await room.health(NOTHING, ON_HOST)
        (component,) = report.components
        assert (report.status, component.name, component.status) == ("sealed", "master_key", "down")
        assert component.detail.startswith("key_mismatch: ")
        assert f"store wants kid {first.kid}, got " in component.detail
        reply = await room.get(NOTHING, ON_HOST)
        assert (reply.is_sealed, reply.reason, reply.kid) == (True, "key_mismatch", first.kid)
        assert reply.source == f"file:{tmp_path / 'key'}"

    async def test_a_damaged_record_is_no_reason_to_be_silent(self, by_file: Sealed) -> None:
        """The key cannot be named then, and all else can."""
        await by_file.store.commit([Put(key=SEALING_KEY, document=b"\x80")])
        room = await by_file.shut()
        reply = await room.get(NOTHING, ON_HOST)
        assert (reply.is_sealed, reply.kid) == (True, None)
        assert "restore a backup" in reply.detail

    async def test_every_other_command_says_that_it_is_sealed(self, by_file: Sealed) -> None:
        """A caller learns that it may come again, and why."""
        room = await by_file.shut()
        access = cast("Any", type("Access", (), {"answers": Answers()})())
        bindings = {each.command.name: each for each in room.bindings(access)}
        assert bindings.keys() == {each.name for each in commands.COMMANDS}
        answered = {"sys.health", "sys.master_key.get", "sys.unseal", "auth.whoami"}
        for name, binding in bindings.items():
            if name not in answered:
                with pytest.raises(e.Sealed, match="cannot be read"):
                    await binding.handler(cast("Any", None), ON_HOST)


class Answers:
    """What is asked about oneself."""

    async def who_am_i(self, request: m.Nothing, context: RequestContext) -> am.WhoAmIReply:
        raise NotImplementedError


class TestPassphrase:
    async def test_the_right_one_opens(self, by_phrase: Sealed) -> None:
        """The first of a new store, and the same one later."""
        room = await by_phrase.shut()
        before = await room.get(NOTHING, ON_HOST)
        assert (before.reason, before.kid, before.source) == ("passphrase_needed", None, "passphrase")
        running = asyncio.create_task(room.run())
        reply = await room.unseal(am.Unseal(passphrase=PHRASE), ON_HOST)
        await asyncio.wait_for(running, 20)
        assert room.sealer is not None
        assert (reply.is_sealed, reply.reason, reply.kid) == (False, None, room.sealer.kid)
        again = await by_phrase.shut()
        assert (await again.get(NOTHING, ON_HOST)).kid == reply.kid
        assert not (await again.unseal(am.Unseal(passphrase=PHRASE), ON_HOST)).is_sealed
        assert PHRASE not in repr(by_phrase.capture.entries)

    @pytest.mark.parametrize(
        "principal",
        [Principal(kind="nats", id="$G/local"), Principal(kind="token", id="Ab3dEf9h"), Principal(kind="system")],
    )
    async def test_it_is_taken_on_the_daemons_host_only(self, by_phrase: Sealed, principal: Principal) -> None:
        """On a bus it would pass servers and their logs; a token would be a second way in."""
        room = await by_phrase.shut()
        with pytest.raises(e.PermissionDenied, match="UNIX socket only"):
            await room.unseal(am.Unseal(passphrase=PHRASE), RequestContext(request_id="r", principal=principal))
        assert await by_phrase.store.get(SEALING_KEY) is None

    async def test_a_store_by_file_takes_none(self, by_file: Sealed) -> None:
        """What it lacks is said instead."""
        room = await by_file.shut()
        with pytest.raises(e.Conflict, match="looked for in file:"):
            await room.unseal(am.Unseal(passphrase=PHRASE), ON_HOST)
        assert await by_file.store.get(SEALING_KEY) is None

    async def test_guessing_is_slow(self, by_phrase: Sealed) -> None:
        """Five in a minute; then even the right one must wait."""
        await (await by_phrase.shut()).unseal(am.Unseal(passphrase=PHRASE), ON_HOST)
        room = await by_phrase.shut()
        for number in range(sealed.WRONG_MAX):
            with pytest.raises(e.PermissionDenied, match="not the passphrase"):
                await room.unseal(am.Unseal(passphrase=f"guess number {number}"), ON_HOST)
        with pytest.raises(e.RateLimited) as caught:
            await room.unseal(am.Unseal(passphrase=PHRASE), ON_HOST)
        assert caught.value.retry_after == sealed.WRONG_SECONDS
        assert room.sealer is None
        by_phrase.clock.advance(sealed.WRONG_SECONDS)
        assert not (await room.unseal(am.Unseal(passphrase=PHRASE), ON_HOST)).is_sealed
        said = by_phrase.said("secrets.unseal_refused")
        assert [each["principal"] for each in said] == ["unix:0"] * sealed.WRONG_MAX
        assert "guess number" not in repr(by_phrase.capture.entries)

    async def test_one_is_tried_at_a_time(self, by_phrase: Sealed) -> None:
        """Each takes 64 MiB: many at once would bring the host down."""
        room = await by_phrase.shut()
        results = await asyncio.gather(
            *(room.unseal(am.Unseal(passphrase=PHRASE), ON_HOST) for _ in range(5)), return_exceptions=True
        )
        assert [type(each) for each in results] == [am.MasterKeyReply, *[e.RateLimited] * 4]

    async def test_a_request_does_not_show_it(self) -> None:
        """Failures log what they had in hand."""
        assert PHRASE not in repr(am.Unseal(passphrase=PHRASE))
