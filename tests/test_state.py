"""The state directory: one process at a time, the right master key or none, and one name for ever."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd import state
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.errors import StartupError
from scaivaultd.model.ids import IdMaker
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


async def unlock(
    store: SqliteStore,
    folder: Path,
    log: FilteringBoundLogger,
    source: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> EnvelopeSealer:
    return await state.unlock(
        store,
        folder,
        source,
        environment=environment or {},
        credentials_directory=None,
        clock=StillClock(),
        log=log,
    )


class TestUnlocking:
    async def test_an_empty_store_makes_its_own_key_and_warns(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger, capture: LogCapture
    ) -> None:
        """It works at once, and the administrator hears what is wrong with it."""
        sealer = await unlock(store, tmp_path, log)
        assert stat.S_IMODE((tmp_path / "master.key").stat().st_mode) == 0o600
        assert [each["event"] for each in capture.entries] == ["secrets.master_key_beside_store", "store.initialised"]
        sealed = sealer.seal(b"x", "place", "field")
        again = await unlock(store, tmp_path, log)
        assert again.open(sealed, "place", "field") == b"x"

    async def test_a_configured_key_leaves_no_file_and_no_warning(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger, capture: LogCapture
    ) -> None:
        """Whoever copies the directory then has only ciphertext."""
        await unlock(store, tmp_path, log, "env:KEY", {"KEY": OTHER_KEY})
        assert not (tmp_path / "master.key").exists()
        assert [each["log_level"] for each in capture.entries] == ["info"]
        assert OTHER_KEY not in repr(capture.entries)

    async def test_a_wrong_key_is_recognised_and_nothing_is_written_over(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """A new key over an old store would lose every private key in it."""
        await unlock(store, tmp_path, log)
        before = (tmp_path / "master.key").read_bytes(), await store.get("meta/sealing")
        with pytest.raises(StartupError, match="does not fit this store"):
            await unlock(store, tmp_path, log, "env:KEY", {"KEY": OTHER_KEY})
        assert before == ((tmp_path / "master.key").read_bytes(), await store.get("meta/sealing"))

    async def test_a_missing_key_file_is_not_replaced_by_a_new_one(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """The store needs the old one."""
        await unlock(store, tmp_path, log)
        (tmp_path / "master.key").unlink()
        with pytest.raises(StartupError, match="put it back"):
            await unlock(store, tmp_path, log)
        assert not (tmp_path / "master.key").exists()

    async def test_a_key_that_cannot_be_read_stops_the_start(
        self, store: SqliteStore, tmp_path: Path, log: FilteringBoundLogger
    ) -> None:
        """Falling back to another key would split the store in two."""
        with pytest.raises(StartupError):
            await unlock(store, tmp_path, log, f"file:{tmp_path}/nowhere")
        assert await store.get("meta/sealing") is None
        assert not (tmp_path / "master.key").exists()


async def test_a_node_keeps_its_name(store: SqliteStore) -> None:
    """Events carry it as their source, orders as their owner."""
    ids = IdMaker(SystemClock(), SystemRandomness())
    first = await state.node_id(store, ids)
    assert first.startswith("node_")
    assert await state.node_id(store, ids) == first
