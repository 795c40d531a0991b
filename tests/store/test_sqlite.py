"""What the SQLite store promises beyond the contract: it survives kill -9 and full disks, and refuses strange files."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scaivaultd.model.errors import StartupError, StorageUnavailable
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import OutboxEvent, Put
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.services.ports import Store
    from tests.store.conftest import FakeClock


def as_contract(store: SqliteStore) -> Store:
    """The type checker's part of the suite: a SqliteStore is a Store."""
    return store


async def all_keys(store: SqliteStore, prefix: str) -> set[str]:
    keys: set[str] = set()
    cursor: str | None = None
    while True:
        page = await store.scan(prefix, after=cursor, limit=1000)
        keys |= {stored.key.removeprefix(prefix) for stored in page.items}
        if page.next_cursor is None:
            return keys
        cursor = page.next_cursor


def acknowledged_before_kill(path: Path, acknowledgements: int) -> set[str]:
    """Let a child commit, kill it -9 when it has reported so many commits; all it ever reported."""
    child = Path(__file__).with_name("committing_child.py")
    with subprocess.Popen([sys.executable, str(child), str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        lines += process.stdout.readlines()
    return {line.strip() for line in lines if line.endswith("\n")}


class TestDurability:
    @pytest.mark.parametrize("acknowledgements", [1, 57, 400, 1500])
    async def test_kill_9_loses_no_acknowledged_commit_and_tears_none(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger, acknowledgements: int
    ) -> None:
        """The caller was told; whatever happens to the process then, it must be there, whole."""
        path = tmp_path / "store.db"
        acknowledged = await asyncio.to_thread(acknowledged_before_kill, path, acknowledgements)
        store = await SqliteStore.open(path, clock=clock, log=log)
        try:
            first, second, third = [await all_keys(store, prefix) for prefix in ("a/", "b/", "c/")]
            events = {pending.event.id for pending in await store.pending_events(1_000_000)}
        finally:
            await store.close()
        assert len(acknowledged) >= acknowledgements
        assert acknowledged <= first
        assert first == second == third == events

    async def test_a_closed_store_is_found_again(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """Documents, events, leases and the growth of revisions outlive a restart; the log is folded in."""
        path = tmp_path / "store.db"
        event = OutboxEvent(id=EventId("evt_1"), type="t", resource_id="r", time="", data=b"{}")
        store = await SqliteStore.open(path, clock=clock, log=log)
        before = await store.commit([Put(key="a", document=b"1", index={"n": "1"})], [event])
        await store.lease("node", "me", 15)
        assert await store.get("a") is not None  # both connections have the log open now
        await store.close()
        assert not path.with_name("store.db-wal").exists()
        store = await SqliteStore.open(path, clock=clock, log=log)
        assert [stored.key for stored in (await store.scan("", where={"n": "1"})).items] == ["a"]
        assert [pending.event for pending in await store.pending_events()] == [event]
        async with asyncio.timeout(10):
            await store.wait_for_events()
        assert await store.lease("node", "you", 15) is None
        assert (await store.commit([Put(key="a", document=b"2")]))["a"] > before["a"]
        await store.close()

    async def test_close_finishes_what_was_begun_and_refuses_the_rest(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """A stop in order loses nothing that was accepted, and may be asked for twice."""
        path = tmp_path / "store.db"
        store = await SqliteStore.open(path, clock=clock, log=log)
        commits = [asyncio.create_task(store.commit([Put(key=f"a/{number}", document=b"")])) for number in range(50)]
        await asyncio.sleep(0)  # now all are queued
        async with store.watch("a/") as changes:
            await asyncio.gather(store.close(), store.close())
            assert len([changed async for changed in changes]) == 50
        await asyncio.gather(*commits)
        await store.close()
        for refused in (store.commit([]), store.get("a/1")):
            with pytest.raises(StorageUnavailable, match="closed"):
                await refused
        store = await SqliteStore.open(path, clock=clock, log=log)
        assert len(await all_keys(store, "a/")) == 50
        await store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, to be filled."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], stderr=subprocess.DEVNULL
    )
    if not mounted:
        pytest.skip("NOT TESTED: a full disk. It takes a small file system, and mounting one takes root.")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)  # lazy: a failed test may still have files open


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


class TestFullDisk:
    async def test_a_full_disk_refuses_and_then_heals(
        self,
        small_disk: Path,
        clock: FakeClock,
        log: FilteringBoundLogger,
        logged: Sequence[EventDict],
    ) -> None:
        """Nothing is half written, reads go on, and nobody has to restart anything when space is back."""
        store = await SqliteStore.open(small_disk / "store.db", clock=clock, log=log)
        await store.commit([Put(key="before", document=b"kept")])
        fill(small_disk / "filler")
        results = await asyncio.gather(
            *(store.commit([Put(key=f"big/{number}", document=bytes(100_000))]) for number in range(3)),
            return_exceptions=True,
        )
        with pytest.raises(StorageUnavailable, match="its disk is full"):
            await store.commit([Put(key="big/again", document=bytes(100_000))])
        kept = await store.get("before")
        (small_disk / "filler").unlink()
        await store.commit([Put(key="after", document=b"")])
        assert all(isinstance(result, StorageUnavailable) for result in results)
        assert kept is not None
        assert kept.document == b"kept"
        assert await all_keys(store, "") == {"before", "after"}
        assert [entry["event"] for entry in logged] == ["store.unavailable", "store.recovered"]
        assert logged[0]["error"] == "SQLITE_FULL"
        await store.close()
        store = await SqliteStore.open(small_disk / "store.db", clock=clock, log=log)
        assert await all_keys(store, "") == {"before", "after"}
        await store.close()

    async def test_a_disk_full_at_the_start_is_worth_another_try(
        self, small_disk: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """Exit code 75 lets the service manager start us again; 78 would leave us down."""
        fill(small_disk / "filler")
        with pytest.raises(StartupError) as caught:
            await SqliteStore.open(small_disk / "store.db", clock=clock, log=log)
        assert caught.value.exit_code == 75


class TestFiles:
    async def test_a_file_that_is_taken_away_is_missed(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger, logged: Sequence[EventDict]
    ) -> None:
        """SQLite goes on in a file without a name, and all of it would be gone at the next start."""
        path = tmp_path / "store.db"
        store = await SqliteStore.open(path, clock=clock, log=log)
        await store.commit([Put(key="before", document=b"")])
        path.rename(tmp_path / "moved")
        with pytest.raises(StorageUnavailable, match="moved, removed or replaced"):
            await store.commit([Put(key="lost", document=b"")])
        path.write_bytes(b"another")
        with pytest.raises(StorageUnavailable, match="moved, removed or replaced"):
            await store.commit([Put(key="lost", document=b"")])
        (tmp_path / "moved").rename(path)
        await store.commit([Put(key="after", document=b"")])
        assert await all_keys(store, "") == {"before", "after"}
        assert [entry["event"] for entry in logged] == ["store.unavailable", "store.recovered"]
        assert logged[0]["error"] == "SQLITE_READONLY_DBMOVED"
        await store.close()

    async def test_files_are_ours_alone(self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger) -> None:
        """The inventory of an organisation is nobody else's to read, whatever the umask."""
        path = tmp_path / "deep" / "state" / "store.db"
        umask = os.umask(0)
        try:
            store = await SqliteStore.open(path, clock=clock, log=log)
            await store.commit([Put(key="a", document=b"")])
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            await store.close()
        finally:
            os.umask(umask)
        assert modes == dict.fromkeys(("store.db", "store.db-wal", "store.db-shm"), 0o600)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    async def test_a_file_that_was_open_to_others_is_closed_to_them(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """A backup restored by hand often comes back with the administrator's umask."""
        path = tmp_path / "store.db"
        path.touch(0o644)
        store = await SqliteStore.open(path, clock=clock, log=log)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await store.close()

    async def test_a_newer_store_is_refused_untouched(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """After a downgrade the administrator needs a word, not a guess."""
        path = tmp_path / "store.db"
        await (await SqliteStore.open(path, clock=clock, log=log)).close()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(StartupError, match=r"schema version 99.*newer scaivaultd.*nothing was changed"):
            await SqliteStore.open(path, clock=clock, log=log)
        assert path.read_bytes() == before

    async def test_what_is_no_database_is_refused_untouched(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """A wrong path must not cost somebody a file."""
        path = tmp_path / "store.db"
        path.write_bytes(b"all my photographs" * 1000)
        with pytest.raises(StartupError, match="not an SQLite database; nothing was changed"):
            await SqliteStore.open(path, clock=clock, log=log)
        assert path.read_bytes() == b"all my photographs" * 1000

    async def test_another_programs_database_is_refused(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """Two programs in one database end badly."""
        path = tmp_path / "store.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE photographs (id)")
        connection.close()
        with pytest.raises(StartupError, match="another program's"):
            await SqliteStore.open(path, clock=clock, log=log)

    async def test_a_damaged_store_is_refused(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """Better no start than certificates from a store that lost a page."""
        path = tmp_path / "store.db"
        store = await SqliteStore.open(path, clock=clock, log=log)
        await store.commit([Put(key=f"a/{number:03}", document=bytes(900)) for number in range(300)])
        await store.close()
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(b"\xff" * 8192)
        with pytest.raises(StartupError, match=r"damaged.*restore a backup"):
            await SqliteStore.open(path, clock=clock, log=log)

    async def test_a_path_that_cannot_be_is_named(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """The administrator sees which path and why."""
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StartupError, match=r"store\.db cannot be opened: .*"):
            await SqliteStore.open(tmp_path / "file" / "store.db", clock=clock, log=log)

    async def test_names_that_mean_something_in_a_url_are_just_names(
        self, tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger
    ) -> None:
        """The path goes to SQLite as a URI; a `?` or `#` in it must not cut it short."""
        path = tmp_path / "a?mode=memory#%41" / "store.db"
        store = await SqliteStore.open(path, clock=clock, log=log)
        await store.commit([Put(key="a", document=b"")])
        await store.close()
        assert path.stat().st_size > 0
