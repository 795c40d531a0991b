"""The state directory: one process at a time, the right master key or none, and one name for ever."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd import state
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.errors import StartupError
from scaivaultd.model.ids import IdMaker
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.model.storage import Put
from scaivaultd.plugin import Secret
from scaivaultd.services import audit_anchors
from scaivaultd.services.audit_anchors import AnchorBook
from scaivaultd.store.key_sources import KeySources
from scaivaultd.store.master_key import NoMasterKey, create_master_key_file, master_key_from_passphrase
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.store.sealing import EnvelopeSealer

OTHER_KEY = "ab" * 32


class StillClock:
    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(capture: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    return logger


@pytest.fixture
async def store(tmp_path: Path, log: FilteringBoundLogger) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db", clock=StillClock(), log=log)
    try:
        yield store
    finally:
        await store.close()


class TestLock:
    def test_the_directory_is_made_for_its_user_alone(self, tmp_path: Path) -> None:
        """Keys lie in it."""
        directory = state.StateDirectory(tmp_path / "a" / "b")
        directory.close()
        assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
        assert stat.S_IMODE((tmp_path / "a" / "b" / "lock").stat().st_mode) == 0o600

    def test_a_second_one_is_refused_and_told_who_has_it(self, tmp_path: Path) -> None:
        """Two daemons on one store would issue everything twice."""
        first = state.StateDirectory(tmp_path)
        with pytest.raises(StartupError, match=rf"in use by another scaivaultd \(pid {os.getpid()}\)") as caught:
            state.StateDirectory(tmp_path)
        assert caught.value.exit_code == 1
        first.close()
        state.StateDirectory(tmp_path).close()

    def test_the_lock_goes_with_its_process_however_it_ends(self, tmp_path: Path) -> None:
        """After a kill -9 nobody has to remove a file by hand."""
        program = (
            "import os, signal, sys; from pathlib import Path; from scaivaultd.state import StateDirectory; "
            "d = StateDirectory(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
        )
        ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=30)
        assert ended.returncode == -9
        assert (tmp_path / "lock").read_text().strip().isdigit()
        state.StateDirectory(tmp_path).close()

    def test_a_long_pid_of_the_past_leaves_nothing_behind(self, tmp_path: Path) -> None:
        """The file tells one pid, not the rests of two."""
        (tmp_path / "lock").write_text("9" * 20)
        directory = state.StateDirectory(tmp_path)
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
        directory.close()

    @pytest.mark.parametrize("name", ["file", "file/below"])
    def test_what_cannot_be_a_directory_is_said_so(self, tmp_path: Path, name: str) -> None:
        """The administrator reads one clear line."""
        (tmp_path / "file").touch()
        with pytest.raises(StartupError, match="cannot be used") as caught:
            state.StateDirectory(tmp_path / name)
        assert caught.value.exit_code == 78


def unlocking(
    store: SqliteStore,
    folder: Path,
    log: FilteringBoundLogger,
    source: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> state.Unlocking:
    sources = KeySources(environment or {}, None, log)
    return state.Unlocking(store, folder, source, sources=sources, clock=StillClock(), log=log)


async def unlock(
    store: SqliteStore,
    folder: Path,
    log: FilteringBoundLogger,
    source: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> EnvelopeSealer:
    return await unlocking(store, folder, log, source, environment).attempt()


class TestUnlocking:
    async def test_an_empty_store_makes_its_own_key_and_warns(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger, capture: LogCapture
    ) -> None:
        """It works at once, and the administrator hears what is wrong with it."""
        sealer = await unlock(store, tmp_path, log)
        assert stat.S_IMODE((tmp_path / "master.key").stat().st_mode) == 0o600
        assert [each["event"] for each in capture.entries] == ["store.initialised", "secrets.master_key_beside_store"]
        sealed = sealer.seal(b"x", "place", "field")
        again = await unlock(store, tmp_path, log)
        assert again.open(sealed, "place", "field") == b"x"

    async def test_a_configured_key_leaves_no_file_and_no_warning(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger, capture: LogCapture
    ) -> None:
        """Whoever copies the directory then has only ciphertext."""
        create_master_key_file(tmp_path / "elsewhere")
        await unlock(store, tmp_path, log, f"file:{tmp_path}/elsewhere")
        assert not (tmp_path / "master.key").exists()
        assert [each["log_level"] for each in capture.entries] == ["info"]

    async def test_a_wrong_key_is_recognised_and_nothing_is_written_over(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """A new key over an old store would lose every private key in it."""
        await unlock(store, tmp_path, log)
        before = (tmp_path / "master.key").read_bytes(), await store.get(SEALING_KEY)
        with pytest.raises(NoMasterKey, match="does not fit this store") as caught:
            await unlock(store, tmp_path, log, "env:KEY", {"KEY": OTHER_KEY})
        assert caught.value.reason == "key_mismatch"
        assert before == ((tmp_path / "master.key").read_bytes(), await store.get(SEALING_KEY))

    async def test_a_store_is_made_with_a_book_for_anchors(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """Only so is it known later that somebody took the book away."""
        sealer = await unlock(store, tmp_path, log)
        assert await audit_anchors.load(store, sealer) == AnchorBook()

    async def test_a_variable_with_a_mistaken_key_is_not_passed_on(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """It is nearly the key, and children inherit it."""
        environment = {"KEY": OTHER_KEY[:-1], "PATH": "/bin"}
        with pytest.raises(NoMasterKey, match="wrong form"):
            await unlock(store, tmp_path, log, "env:KEY", environment)
        assert environment == {"PATH": "/bin"}

    async def test_a_missing_key_file_is_not_replaced_by_a_new_one(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """The store needs the old one."""
        await unlock(store, tmp_path, log)
        (tmp_path / "master.key").unlink()
        with pytest.raises(NoMasterKey, match="put it back") as caught:
            await unlock(store, tmp_path, log)
        assert caught.value.reason == "key_missing"
        assert not (tmp_path / "master.key").exists()

    async def test_a_key_that_cannot_be_read_makes_no_other(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """Falling back to another key would split the store in two; what to do on a new store is said."""
        with pytest.raises(NoMasterKey, match=f"scaivaultctl keys init --file {tmp_path}/nowhere") as caught:
            await unlock(store, tmp_path, log, f"file:{tmp_path}/nowhere")
        assert caught.value.reason == "key_missing"
        assert await store.get(SEALING_KEY) is None
        assert not (tmp_path / "master.key").exists()

    async def test_a_disk_that_takes_no_key_file_is_a_missing_key(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """It may have room again in a while: no reason to be started again and again."""
        with pytest.raises(NoMasterKey, match="cannot be made") as caught:
            await unlock(store, tmp_path / "gone", log)
        assert caught.value.reason == "key_missing"

    @pytest.mark.parametrize("key", ["key/key_1", "account/acme_1", "secret/0", "audit_anchors/newest"])
    async def test_a_store_whose_record_is_gone_gets_no_new_key(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger, key: str
    ) -> None:
        """What is sealed in it would be lost for good, and nobody would have been told."""
        await store.commit([Put(key=key, document=b"{}")])
        with pytest.raises(NoMasterKey, match="restore a backup"):
            await unlock(store, tmp_path, log)
        assert not (tmp_path / "master.key").exists()

    async def test_what_holds_nothing_sealed_is_an_empty_store(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """A daemon that was sealed from its first start has written this and that."""
        await store.commit([Put(key="meta/heartbeat", document=b"{}"), Put(key="token/Ab3dEf9h", document=b"{}")])
        assert (await unlock(store, tmp_path, log)).kid

    async def test_a_damaged_record_is_no_crash(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """The daemon is to say so for as long as it takes."""
        await unlock(store, tmp_path, log)
        await store.commit([Put(key=SEALING_KEY, document=b"\x80")])
        with pytest.raises(NoMasterKey, match="check record is damaged: restore a backup"):
            await unlock(store, tmp_path, log)


PHRASE = Secret("correct horse battery staple")


class TestPassphrase:
    async def test_the_first_one_is_the_stores_and_only_that_opens_it(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger, capture: LogCapture
    ) -> None:
        """A typing error at a later start must not become a second key."""
        keys = unlocking(store, tmp_path, log, "passphrase")
        with pytest.raises(NoMasterKey) as caught:
            await keys.attempt()
        assert caught.value.reason == "passphrase_needed"
        sealed = (await keys.by_passphrase(PHRASE)).seal(b"x", "place", "field")
        with pytest.raises(NoMasterKey, match="not the passphrase of this store"):
            await keys.by_passphrase(Secret("correct horse battery stapler"))
        assert (await keys.by_passphrase(PHRASE)).open(sealed, "place", "field") == b"x"
        assert PHRASE.reveal() not in repr(capture.entries)

    async def test_while_it_is_changed_both_open_the_store(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """Whoever restarts the daemon then may know only one of them."""
        keys = unlocking(store, tmp_path, log, "passphrase")
        sealer = await keys.by_passphrase(PHRASE)
        sealed = sealer.seal(b"x", "place", "field")
        new, salt = Secret("another passphrase"), bytes(16)
        key, record = master_key_from_passphrase(new.reveal(), salt), await keys.record()
        assert record is not None
        begun = sealer.rotation_to(
            key, record, source="passphrase", replaces_file=False, salt=salt, now=StillClock().now()
        )
        await store.commit([Put(key=SEALING_KEY, document=msgspec.msgpack.encode(begun))])
        for phrase in (PHRASE, new):
            assert (await keys.by_passphrase(phrase)).open(sealed, "place", "field") == b"x"
        assert begun.rotation is not None
        ended = msgspec.structs.replace(begun, rotation=msgspec.structs.replace(begun.rotation, new_key=None))
        await store.commit([Put(key=SEALING_KEY, document=msgspec.msgpack.encode(ended))])
        assert (await keys.by_passphrase(new)).open(sealed, "place", "field") == b"x"
        with pytest.raises(NoMasterKey):
            await keys.by_passphrase(PHRASE)

    async def test_two_stores_of_one_passphrase_have_two_keys(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """Each has its salt: who has tried passphrases on one copy begins anew with the other."""
        first = (await unlocking(store, tmp_path, log, "passphrase").by_passphrase(PHRASE)).kid
        other = await SqliteStore.open(tmp_path / "other.db", clock=StillClock(), log=log)
        try:
            assert (await unlocking(other, tmp_path, log, "passphrase").by_passphrase(PHRASE)).kid != first
        finally:
            await other.close()

    async def test_a_store_of_another_source_is_told_before_anybody_types(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """No passphrase could open it."""
        await unlock(store, tmp_path, log)
        keys = unlocking(store, tmp_path, log, "passphrase")
        with pytest.raises(NoMasterKey, match="does not come from a passphrase") as caught:
            await keys.attempt()
        assert caught.value.reason == "key_mismatch"
        with pytest.raises(NoMasterKey, match="does not come from a passphrase"):
            await keys.by_passphrase(PHRASE)


async def test_a_node_keeps_its_name(store: SqliteStore) -> None:
    """Events carry it as their source, orders as their owner."""
    ids = IdMaker(SystemClock(), SystemRandomness())
    first = await state.node_id(store, ids)
    assert first.startswith("node_")
    assert await state.node_id(store, ids) == first
