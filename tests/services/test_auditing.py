"""The audit log: nothing that happened is left out, and nothing that was written changes unseen."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api import access_messages as am
from scaivaultd.api.audit import GENESIS, anchor_of, decode, encode, follow, verify, verify_kept
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.access import Anchor, AuditEntry, AuditRecord
from scaivaultd.model.errors import Conflict, InvalidRequest, StorageUnavailable
from scaivaultd.model.storage import Delete
from scaivaultd.services import audit_anchors, audit_reading, auditing
from scaivaultd.services.audit_anchors import AUDIT_ANCHORS, AnchorBook, SealedAnchors, load
from scaivaultd.services.audit_queue import QUEUE_RECORDS
from scaivaultd.services.auditing import Auditing
from scaivaultd.store.audit_file import AuditFiles
from scaivaultd.store.sealing import EnvelopeSealer
from scaivaultd.store.sqlite import SqliteStore
from tests.fakes.scripted_ca import FakeClock, WatchedStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.storage import Change

DEADLINE = 10.0
CONTEXT = RequestContext(request_id="req_test")


class PatientClock(FakeClock):
    """Whoever sleeps wakes when a test moves the time so far."""

    def __init__(self) -> None:
        super().__init__()
        self._moved = asyncio.Event()
        self._sleepers = 0

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        self._sleepers += 1
        try:
            while self.monotonic() < until:
                await self._moved.wait()
        finally:
            self._sleepers -= 1

    async def pass_by(self, seconds: float) -> None:
        """Move the time once everybody has come to rest."""
        await until(lambda: self._sleepers)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self._moved.set()
        self._moved = asyncio.Event()


class BadDisk:
    """Real files, on a disk that may fail or hang; `appended` are the lines of each batch it took."""

    def __init__(self, files: AuditFiles) -> None:
        self._files = files
        self.error: OSError | None = None
        self.let_go = threading.Event()
        self.let_go.set()
        self.attempts = 0
        self.appended: list[int] = []
        self.durable: list[bool] = []

        self.sync = files.sync
        self.read = files.read
        self.read_back: Callable[..., Iterator[tuple[str, bytes]]] = files.read_back

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    def append(self, lines: Sequence[bytes], *, sequence: int, durably: bool) -> None:
        self.attempts += 1
        self.let_go.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        self._files.append(lines, sequence=sequence, durably=durably)
        self.appended.append(len(lines))
        self.durable.append(durably)


class House:
    """One log over its lives: its directory, its store and its seal."""

    def __init__(
        self, path: Path, store: WatchedStore, sqlite: SqliteStore, log: FilteringBoundLogger, logged: list[EventDict]
    ) -> None:
        self.directory = path / "audit"
        self.store = store
        self.sqlite = sqlite
        self.sealer = EnvelopeSealer(bytes(32), "test")
        self.clock = PatientClock()
        self.log = log
        self.logged = logged
        self.file_bytes = 1 << 20
        self.keep = 0

    @asynccontextmanager
    async def life(self, *, sealed: bool = False) -> AsyncIterator[Auditing]:
        self.disk = BadDisk(AuditFiles(self.directory, file_bytes=self.file_bytes, keep=self.keep))
        auditing = Auditing(file=self.disk, store=self.store, clock=self.clock, log=self.log)
        await auditing.resume()
        if not sealed:
            auditing.unlock(self.sealer)
        try:
            yield auditing
        finally:
            self.disk.let_go.set()
            await auditing.close()

    async def lived(self, records: int) -> None:
        """A life in which so many records were made."""
        async with self.life() as audit:
            await recorded(audit, *range(records))

    def lines(self) -> list[bytes]:
        return list(AuditFiles(self.directory, file_bytes=0, keep=0).read())

    def records(self) -> list[AuditRecord]:
        return [decode(line) for line in self.lines()]

    def rewrite(self, lines: Sequence[bytes]) -> None:
        """What somebody does who can write the disk: all in one file."""
        shutil.rmtree(self.directory)
        self.directory.mkdir(mode=0o700)
        (self.directory / "audit-000000000001.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))

    def logs(self, event: str) -> list[EventDict]:
        return [each for each in self.logged if each["event"] == event]

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        pending = await self.sqlite.pending_events(100)
        return [(each.event.type, msgspec.json.decode(each.event.data)) for each in pending]

    async def anchors(self) -> Sequence[Anchor]:
        book = await load(self.store, self.sealer)
        return () if book is None else book.anchors


@pytest.fixture
async def house(tmp_path: Path, log: FilteringBoundLogger, logged: list[EventDict]) -> AsyncIterator[House]:
    sqlite = await SqliteStore.open(tmp_path / "store.db", clock=FakeClock(), log=log)
    house = House(tmp_path, WatchedStore(sqlite), sqlite, log, logged)
    await sqlite.commit([audit_anchors.put(AnchorBook(), house.sealer)])
    yield house
    await sqlite.close()


def entry(number: int | str, **changes: Any) -> AuditEntry:
    about = {
        "at": FakeClock().now(),
        "principal": "token:Ab3dEf9h",
        "tenant": "default",
        "action": "cert.issue",
        "object": f"acme_order_{number}",
        "decision": "allow",
        "policy": "web-team",
        "rule": 1,
        "result": "ok",
        "request_id": f"req_{number}",
    }
    return AuditEntry(**{**about, **changes})


async def recorded(audit: Auditing, *numbers: int | str) -> None:
    """Have these written, and wait until they are."""
    for number in numbers[:-1]:
        audit.record(entry(number))
    await audit.record_durably(entry(numbers[-1]))


async def until(reached: Callable[[], object]) -> None:
    """Wait for what other tasks and threads bring about."""
    async with asyncio.timeout(DEADLINE):
        while not reached():  # noqa: ASYNC110 - threads set no event of ours
            await asyncio.sleep(0)


async def listed(audit: Auditing, **members: Any) -> list[AuditRecord]:
    found: list[AuditRecord] = []
    cursor: str | None = None
    while True:
        reply = await audit.list(am.ListAudit(cursor=cursor, **members), CONTEXT)
        found += reply.items
        if (cursor := reply.next_cursor) is None:
            return found


async def verification(audit: Auditing) -> tuple[bool, int, str | None]:
    reply = await audit.verify(am.VerifyAudit(), CONTEXT)
    broken = reply.broken
    return reply.is_sound, reply.head_sequence, None if broken is None else f"{broken.sequence} {broken.kind}"


def trouble(audit: Auditing) -> str:
    return audit.trouble or ""


# Writing


async def test_records_are_one_chain_over_lives_in_the_order_they_were_made(house: House) -> None:
    """An auditor reads the files alone, years later."""
    await house.lived(3)
    await house.lived(2)
    records = house.records()
    assert [each.request_id for each in records] == ["req_0", "req_1", "req_2", "req_0", "req_1"]
    assert verify(records).broken is None
    async with house.life() as audit:
        assert await verification(audit) == (True, 5, None)
        assert not trouble(audit)


async def test_many_durable_records_share_a_write(house: House) -> None:
    """An fsync for each of a hundred keys that are fetched at once would take a second."""
    async with house.life() as audit:
        house.disk.let_go.clear()
        asked = [asyncio.create_task(audit.record_durably(entry(number))) for number in range(100)]
        await until(lambda: house.disk.attempts)
        house.disk.let_go.set()
        await asyncio.gather(*asked)
        assert len(house.disk.appended) <= 2
        assert sum(house.disk.appended) == 100
        assert house.disk.durable == [True] * len(house.disk.appended)


async def test_what_nobody_waits_for_is_not_synced(house: House) -> None:
    """Reads are recorded too, and must not cost a disk operation each."""
    async with house.life() as audit:
        audit.record(entry(1))
        await until(lambda: house.disk.appended)
        assert house.disk.durable == [False]


async def test_a_full_disk_refuses_what_must_be_written_and_keeps_the_rest(house: House) -> None:
    """No key leaves unrecorded; nothing that was attempted is missing once there is room again."""
    async with house.life() as audit:
        await recorded(audit, "before")
        house.disk.error = OSError(errno.ENOSPC, "No space left on device")
        audit.record(entry("issue"))
        with pytest.raises(StorageUnavailable, match="the audit log cannot be written: No space left on device"):
            await audit.record_durably(entry("key"))
        assert trouble(audit) == "records cannot be written: No space left on device; 2 wait"
        house.disk.error = None
        await recorded(audit, "after")
        assert not trouble(audit)
    records = house.records()
    assert [each.request_id for each in records] == ["req_before", "req_issue", "req_key", "req_after"]
    assert verify(records).broken is None


async def test_a_full_disk_is_tried_again_without_anybody_asking(house: House) -> None:
    """Renewals go on at night, when nobody fetches a key."""
    async with house.life() as audit:
        house.disk.error = OSError(errno.ENOSPC, "full")
        audit.record(entry("issue"))
        await until(lambda: trouble(audit))
        house.disk.error = None
        await house.clock.pass_by(auditing.RETRY_SECONDS)
        await until(lambda: not trouble(audit))
    assert [each.request_id for each in house.records()] == ["req_issue"]


async def test_an_alarm_is_given_once_for_each_time_it_begins(house: House) -> None:
    """A subscriber hears of it once; the log repeats it at most once a minute."""
    told: list[Sequence[Change]] = []

    async def commits(changes: Sequence[Change]) -> None:
        if not changes:
            told.append(changes)

    house.store.before_commit = commits
    async with house.life() as audit:
        for spell in range(2):
            house.disk.error = OSError(errno.EIO, "Input/output error")
            for number in range(5):
                with pytest.raises(StorageUnavailable):
                    await audit.record_durably(entry(number))
            await until(lambda: trouble(audit))
            assert len(house.logs("audit.write_failed")) == spell + 1
            house.disk.error = None
            await recorded(audit, "well")
            await house.clock.pass_by(auditing.ALARM_SECONDS)
        failures = [body for kind, body in await house.events() if kind == "audit.write_failed"]
    assert len(told) == 2
    assert [(each["reason"], each["lost"]) for each in failures] == [("Input/output error", 0)] * 2


async def test_an_alarm_waits_for_a_store_that_fails_too(house: House) -> None:
    """Both are on one disk, as a rule."""
    async with house.life() as audit:
        house.disk.error = OSError(errno.ENOSPC, "full")
        house.store.is_down = True
        with pytest.raises(StorageUnavailable):
            await audit.record_durably(entry("key"))
        house.store.is_down = False
        await house.clock.pass_by(auditing.RETRY_SECONDS)
        await until(lambda: house.disk.attempts >= 2)
        house.disk.error = None
        await recorded(audit, "after")
        assert [kind for kind, _ in await house.events()] == ["audit.write_failed"]


async def test_what_found_no_place_is_counted_in_the_chain(house: House) -> None:
    """The queue has a bound, and a gap that nobody could see would be a lie."""
    async with house.life() as audit:
        house.disk.error = OSError(errno.ENOSPC, "full")
        for number in range(QUEUE_RECORDS + 7):
            audit.record(entry(number))
        with pytest.raises(StorageUnavailable, match="takes no more records"):
            await audit.record_durably(entry("key"))
        assert len(house.logs("audit.record_lost")) == 1
        await until(lambda: "8 more are lost" in trouble(audit))
        house.disk.error = None
        await house.clock.pass_by(auditing.RETRY_SECONDS)
        await until(lambda: not trouble(audit))
    actions = [(each.action, each.object) for each in house.records() if each.action.startswith("audit.")]
    assert actions == [("audit.lost", "8 records found no place to wait")]
    assert len(house.records()) == QUEUE_RECORDS + 1


async def test_a_disk_that_hangs_is_a_failure_after_five_seconds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller must have its answer; health tells why."""
    monkeypatch.setattr(auditing, "DURABLY_SECONDS", 0.05)
    async with house.life() as audit:
        house.disk.let_go.clear()
        with pytest.raises(StorageUnavailable, match="does not answer"):
            await audit.record_durably(entry("key"))
        house.clock.advance(1)
        assert trouble(audit) == "records cannot be written: the disk does not answer; 1 wait"
        house.disk.let_go.set()
        await recorded(audit, "after")
        assert not trouble(audit)
    assert [each.request_id for each in house.records()] == ["req_key", "req_after"]


async def test_closing_writes_and_anchors_what_is_left(house: House) -> None:
    """The last requests before a stop are as good as any."""
    async with house.life() as audit:
        for number in range(2500):
            audit.record(entry(number))
    assert len(house.records()) == 2500
    assert (await house.anchors())[-1] == anchor_of(house.records()[-1])


async def test_closing_does_not_wait_for_a_disk_that_hangs(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop takes less than ten seconds in all."""
    monkeypatch.setattr(auditing, "CLOSE_SECONDS", 0.05)
    async with house.life() as audit:
        house.disk.let_go.clear()
        audit.record(entry(1))
        await until(lambda: house.disk.attempts)
        await audit.close()
        assert [each["records"] for each in house.logs("audit.lost_at_stop")] == [1]
        with pytest.raises(StorageUnavailable):
            await audit.record_durably(entry(2))


async def test_the_writer_stands_by_whoever_runs_it(house: House) -> None:
    """The daemon may be sealed, and nothing runs yet: records are written all the same, and after `run` has ended."""
    async with house.life(sealed=True) as audit:
        await recorded(audit, "sealed")
        running = asyncio.create_task(audit.run())
        await recorded(audit, "open")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await recorded(audit, "stopping")
    assert len(house.records()) == 3


async def test_a_record_is_short_and_holds_no_secret(house: House) -> None:
    """Callers put anything in the place of a name, and nothing is ever taken out of the log."""
    async with house.life() as audit:
        audit.record(entry(1, object="a" * 5000, source="b" * 5000))
        audit.record(entry(2, object="token scvt_Ab3dEf9h_secret, b.example", source="scvt_x"))
        await audit.record_durably(entry(3, object="-----BEGIN PRIVATE KEY-----\nMIIE\n"))
        await audit.record_durably(entry(4, object="https://user:secret@a.example"))
    long, token, key, url = house.records()
    assert (len(long.object), len(long.source or "")) == (1000, 1000)
    assert (token.object, token.source) == ("token ***, b.example", "***")
    assert key.object == "***"
    assert url.object == "https***a.example"


async def test_a_place_that_cannot_be_used_does_not_keep_the_daemon_down(house: House) -> None:
    """Certificates are renewed without a log, and loudly; as soon as there is a place, it is used."""
    house.directory.write_text("no directory")
    async with house.life() as audit:
        assert trouble(audit).startswith("records cannot be written: ")
        audit.record(entry("issue"))
        with pytest.raises(StorageUnavailable):
            await audit.record_durably(entry("key"))
        house.directory.unlink()
        await recorded(audit, "after")
        assert not trouble(audit)
    assert [each.request_id for each in house.records()] == ["req_issue", "req_key", "req_after"]


async def test_a_directory_that_vanishes_for_a_moment_is_well_again_by_itself(house: House) -> None:
    """Nobody records anything: health must recover without."""
    house.directory.write_text("no directory")
    async with house.life() as audit:
        assert trouble(audit)
        house.directory.unlink()
        await house.clock.pass_by(auditing.RETRY_SECONDS)
        await until(lambda: not trouble(audit))


# What is found at a start


async def test_a_torn_line_is_cut_off_and_told_in_the_chain(house: House) -> None:
    """kill -9 in the middle of a write is nobody's crime, and yet to be seen."""
    await house.lived(3)
    path = house.directory / "audit-000000000001.jsonl"
    path.write_bytes(path.read_bytes() + encode(house.records()[0])[:50])
    await house.lived(1)
    records = house.records()
    assert [each.action for each in records][3:] == ["audit.repaired", "cert.issue"]
    assert records[3].principal == "system"
    assert records[3].object == "50 bytes of a record without an end were cut off behind record 3"
    assert verify(records).broken is None
    assert house.logs("audit.repaired")
    assert not house.logs("audit.broken")


def cut(house: House, keep: int) -> None:
    house.rewrite(house.lines()[:keep])


def forge(house: House, at: int) -> None:
    """Change a record and make the chain whole again behind it."""
    records = house.records()
    records[at] = msgspec.structs.replace(records[at], principal="token:Somebody")
    for number in range(at + 1, len(records)):
        records[number] = msgspec.structs.replace(records[number], previous=anchor_of(records[number - 1]).hash)
    house.rewrite([encode(each) for each in records])


@pytest.mark.parametrize(
    ("attack", "seen", "found"),
    [
        (lambda house: cut(house, 8), "cut off", "9 removed"),
        (lambda house: cut(house, 1), "cut off", "2 removed"),
        (lambda house: shutil.rmtree(house.directory), "cut off", "1 removed"),
        (lambda house: forge(house, 2), "rewritten", "10 rewritten"),
        (lambda house: forge(house, 9), "rewritten", "10 rewritten"),
    ],
    ids=["end", "nearly all", "everything", "rewritten", "last record"],
)
async def test_what_was_done_while_it_was_stopped_is_found_at_the_start(
    house: House, attack: Callable[[House], None], seen: str, found: str
) -> None:
    """It is an alarm and a record, the log goes on, and `verify` says for ever where it is broken."""
    await house.lived(10)
    attack(house)
    async with house.life() as audit:
        await recorded(audit, "goes on")
        assert seen in trouble(audit)
        assert len(house.logs("audit.broken")) == 1
        assert [each.action for each in house.records()][-2:] == ["audit.broken", "cert.issue"]
        assert await verification(audit) == (False, int(found.split()[0]) - 1, found)
    async with house.life() as audit:
        await recorded(audit, *range(10))
        # Whoever has read the alarm may restart: the end is anchored as it is now.
        assert not trouble(audit)
        assert (await verification(audit))[2] == found
        assert found.split()[1] in trouble(audit)
    assert len(house.logs("audit.broken")) == 3


async def test_the_proof_of_a_rewritten_log_does_not_go_with_new_anchors(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be enough to wait until a hundred newer ones are there."""
    monkeypatch.setattr(audit_anchors, "KEPT", 2)
    await house.lived(10)
    forge(house, 2)
    for _ in range(4):
        await house.lived(3)
    assert len(await house.anchors()) == 2
    async with house.life() as audit:
        assert (await verification(audit))[2] == "10 rewritten"


async def test_the_gap_of_a_log_that_was_cut_off_can_be_filled_from_a_copy(house: House) -> None:
    """Numbers are never given twice, so what was shipped elsewhere fits in again."""
    await house.lived(10)
    copy = house.lines()
    cut(house, 4)
    await house.lived(2)
    house.rewrite([*copy, *house.lines()[4:]])
    async with house.life() as audit:
        assert await verification(audit) == (True, 13, None)


async def test_an_older_copy_in_place_of_the_files_is_found(house: House) -> None:
    """It is a whole chain, only not the newest."""
    await house.lived(5)
    shutil.copytree(house.directory, house.directory.with_name("copy"))
    await house.lived(5)
    shutil.rmtree(house.directory)
    house.directory.with_name("copy").rename(house.directory)
    async with house.life() as audit:
        await recorded(audit, "goes on")
        assert await verification(audit) == (False, 5, "6 removed")


@pytest.mark.parametrize("attack", ["deleted", "damaged", "other seal"])
async def test_anchors_cannot_be_made_to_say_nothing(house: House, attack: str) -> None:
    """Whoever rewrites the log would rewrite them, or take them away."""
    await house.lived(5)
    forge(house, 0)
    if attack == "deleted":
        await house.sqlite.commit([Delete(key=AUDIT_ANCHORS.key("newest"))])
    elif attack == "damaged":
        await house.sqlite.commit([AUDIT_ANCHORS.put(SealedAnchors(sealed=b"nothing"), None)])
    else:
        house.sealer = EnvelopeSealer(b"x" * 32, "test")
    async with house.life() as audit:
        await recorded(audit, "goes on")
        assert "anchor" in trouble(audit)
    assert [each.action for each in house.records()][5:] == ["audit.broken", "cert.issue"]


async def test_a_log_that_goes_with_its_anchors_is_missed(house: House) -> None:
    """Nothing would be left to compare, and it would look as if the daemon had just begun."""
    await house.lived(5)
    shutil.rmtree(house.directory)
    await house.sqlite.commit([Delete(key=AUDIT_ANCHORS.key("newest"))])
    async with house.life() as audit:
        await recorded(audit, "goes on")
        assert "anchors are gone" in trouble(audit)
    assert [each.action for each in house.records()] == ["audit.broken", "cert.issue"]


async def test_a_daemon_killed_in_its_first_minute_is_no_attack(house: House) -> None:
    """Until then there are records, and no anchor yet."""
    await house.lived(5)
    await house.sqlite.commit([audit_anchors.put(AnchorBook(), house.sealer)])
    async with house.life() as audit:
        await recorded(audit, "goes on")
        assert trouble(audit) == ""
    assert not house.logs("audit.broken")


async def test_lines_that_are_no_records_are_told_and_passed_over(house: House) -> None:
    """A damaged end must not end the log."""
    await house.lived(3)
    path = house.directory / "audit-000000000001.jsonl"
    path.write_bytes(path.read_bytes() + b"garbage\n{}\n")
    async with house.life() as audit:
        await recorded(audit, "goes on")
        assert await verification(audit) == (False, 3, "4 unreadable")
    assert [decode(line).sequence for line in house.lines() if line.startswith(b'{"action')] == [1, 2, 3, 4, 5, 6]


async def test_records_from_before_the_key_was_there_are_no_reason_for_an_alarm(house: House) -> None:
    """A new daemon that waits for its passphrase records already, and cannot anchor."""
    async with house.life(sealed=True) as audit:
        await recorded(audit, "sealed")
        audit.unlock(house.sealer)
        await recorded(audit, "open")
        assert not trouble(audit)
        assert await verification(audit) == (True, 2, None)
    assert len(await house.anchors()) == 1


async def test_a_sealed_daemon_that_goes_on_behind_a_cut_is_found_out_when_it_is_unsealed(house: House) -> None:
    """It cannot read the anchors before, and records what is asked meanwhile."""
    await house.lived(10)
    cut(house, 4)
    async with house.life(sealed=True) as audit:
        await recorded(audit, "sealed")
        assert not trouble(audit)
        audit.unlock(house.sealer)
        await recorded(audit, "open")
        assert await verification(audit) == (False, 5, "6 removed")


async def test_a_store_that_is_away_does_not_stop_the_log(house: House) -> None:
    """The comparison is made up for when the store is there."""
    await house.lived(5)
    cut(house, 3)
    house.store.is_down = True
    async with house.life() as audit:
        await recorded(audit, "goes on")
        assert not trouble(audit)
        house.store.is_down = False
        await recorded(audit, "compared")
        assert "cut off" in trouble(audit)


# While it runs


async def test_files_taken_away_while_it_runs_are_noticed(house: House) -> None:
    """The old descriptor would take records for ever that nobody ever sees."""
    async with house.life() as audit:
        await recorded(audit, 1, 2)
        shutil.rmtree(house.directory)
        await recorded(audit, 3)
        assert "audit-000000000001.jsonl was removed or renamed" in trouble(audit)
        assert [(each.sequence, each.action) for each in house.records()] == [(3, "audit.broken"), (4, "cert.issue")]
        assert await verification(audit) == (False, 0, "1 removed")


@pytest.mark.parametrize(
    ("attack", "found"),
    [
        (lambda lines: [lines[0], lines[1].replace(b'"ok"', b'"no"'), *lines[2:]], "2 edited"),
        (lambda lines: [*lines[:2], *lines[3:]], "3 removed"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "1 removed"),
        (lambda lines: [*lines[:3], lines[4], lines[3], *lines[5:]], "4 reordered"),
        (lambda lines: [b"[" + lines[0][1:], *lines[1:]], "1 unreadable"),
        (lambda lines: lines[:-1], "6 cut_off"),
    ],
    ids=["flip", "delete", "swap first", "swap", "byte", "end"],
)
async def test_what_is_changed_while_it_runs_is_found_by_verify(
    house: House, attack: Callable[[list[bytes]], list[bytes]], found: str
) -> None:
    """Alarm, record, and words of where; nothing is changed by it."""
    async with house.life() as audit:
        await recorded(audit, *range(6))
        path = house.directory / "audit-000000000001.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in attack(house.lines())))
        assert (await verification(audit))[2] == found
        assert found.split()[1] in trouble(audit)


async def test_a_chain_rewritten_while_it_runs_does_not_fit_what_we_remember(house: House) -> None:
    """No anchor is needed for what this very process has written."""
    async with house.life(sealed=True) as audit:
        await recorded(audit, *range(6))
        forge(house, 2)
        assert await verification(audit) == (False, 5, "6 edited")


async def test_verify_says_when_all_is_well_again(house: House) -> None:
    """Somebody has put the file back."""
    async with house.life() as audit:
        await recorded(audit, *range(6))
        path = house.directory / "audit-000000000001.jsonl"
        content = path.read_bytes()
        path.write_bytes(content.replace(b"req_1", b"req_9"))
        assert not (await verification(audit))[0]
        await recorded(audit, "more")
        path.write_bytes(content + path.read_bytes()[len(content) :])
        assert await verification(audit) == (True, 8, None)
        assert not trouble(audit)


async def test_only_one_verification_runs_at_a_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reads everything there is. One that nobody waits for any more ends."""
    monkeypatch.setattr(audit_reading, "_LOOK_LINES", 1)
    async with house.life() as audit:
        await recorded(audit, *range(6))
        begun, go_on = threading.Event(), threading.Event()
        taken: list[bytes] = []
        read = house.disk.read

        def slow(lines: Iterator[bytes]) -> Iterator[bytes]:
            for line in lines:
                taken.append(line)
                begun.set()
                go_on.wait(DEADLINE)
                yield line

        house.disk.read = lambda: slow(read())
        first = asyncio.create_task(audit.verify(am.VerifyAudit(), CONTEXT))
        await until(begun.is_set)
        with pytest.raises(Conflict):
            await verification(audit)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        go_on.set()
        house.disk.read = read
        assert (await verification(audit))[0]
        assert len(taken) == 1


# Anchors


async def test_the_head_is_anchored_once_a_minute_and_every_thousand_records(house: House) -> None:
    """A minute of records is what somebody could cut off unseen, or a thousand of them."""
    async with house.life() as audit:
        await recorded(audit, *range(10))
        assert await house.anchors() == ()
        await house.clock.pass_by(auditing.ANCHOR_SECONDS)
        await until(lambda: house.clock.monotonic() == audit._anchored_at)
        await recorded(audit, 1)
        assert [each.sequence for each in await house.anchors()] == [10]
        await recorded(audit, *range(1500))
        await recorded(audit, 1)
        assert (await house.anchors())[-1].sequence >= 1010


async def test_an_anchor_never_outlives_its_record(house: House) -> None:
    """After a power cut the log must not look as if somebody had cut it: first the file, then the anchor."""
    async with house.life() as audit:
        await recorded(audit, 1)
        seen: list[str] = []
        sync = house.disk.sync

        def synced() -> None:
            seen.append("sync")
            sync()

        house.disk.sync = synced

        async def commits(_: object) -> None:
            seen.append("commit")

        house.store.before_commit = commits
        await house.clock.pass_by(auditing.ANCHOR_SECONDS)
        await until(lambda: "commit" in seen)
        assert seen == ["sync", "commit"]


async def test_a_disk_that_does_not_sync_is_in_trouble_until_it_does(house: House) -> None:
    """Nothing is written meanwhile that could tell: it is asked again by itself."""
    async with house.life() as audit:
        await recorded(audit, 1)
        sync, asked = house.disk.sync, [0]

        def fails() -> None:
            asked[0] += 1
            raise OSError(errno.EIO, "Input/output error")

        house.disk.sync = fails
        await house.clock.pass_by(auditing.ANCHOR_SECONDS)
        await until(lambda: trouble(audit))
        await house.clock.pass_by(auditing.RETRY_SECONDS)
        await until(lambda: asked[0] == 2)
        await house.clock.pass_by(auditing.RETRY_SECONDS)
        await until(lambda: asked[0] == 3)
        assert "Input/output error" in trouble(audit)
        assert await house.anchors() == ()
        house.disk.sync = sync
        await house.clock.pass_by(auditing.RETRY_SECONDS)
        await until(lambda: not trouble(audit))


async def test_a_head_is_announced_at_a_start_and_once_a_day(house: House) -> None:
    """What leaves this host cannot be forged on it. A chain that begins has nothing to say."""
    async with house.life() as audit:
        await recorded(audit, 1, 2)
        assert await house.events() == []
        for hours in (23, 1, 23, 1):
            await house.clock.pass_by(hours * 3600)
            await recorded(audit, 1)
            told = await house.events()
        await until(lambda: len(house.logs("audit.anchored")) == 2)
    await house.lived(1)
    told = await house.events()
    records = {each.sequence: anchor_of(each).hash for each in house.records()}
    assert len(told) == 3
    assert all(kind == "audit.anchored" and records[body["sequence"]] == body["hash"] for kind, body in told)
    assert [(each["sequence"], each["hash"]) for each in house.logs("audit.anchored")] == [
        (body["sequence"], body["hash"]) for _, body in told
    ]


async def test_a_store_that_fails_is_asked_for_an_anchor_again_later(house: House) -> None:
    """Not with every record: it has enough to do."""
    await house.lived(1)
    attempts: list[str] = []

    async def fails(changes: Sequence[Change]) -> None:
        attempts.extend(each.key for each in changes)
        raise StorageUnavailable("full")

    house.store.before_commit = fails
    async with house.life() as audit:
        await recorded(audit, 1)
        await recorded(audit, 2)
        await recorded(audit, 3)
        assert attempts == [AUDIT_ANCHORS.key("newest")]
        assert len(house.logs("audit.not_anchored")) == 1
        house.store.before_commit = None
        await house.clock.pass_by(auditing.ANCHOR_SECONDS)
        await until(lambda: house.logs("audit.anchored"))


async def test_the_oldest_files_go_and_the_log_begins_with_the_first_kept(house: House) -> None:
    """And only there: who deletes more is found."""
    house.file_bytes, house.keep = 5000, 2
    for _ in range(30):
        await house.lived(5)
    async with house.life() as audit:
        assert await verification(audit) == (True, 150, None)
    assert len(list(house.directory.iterdir())) == 3
    assert house.records()[0].sequence > 1
    first = house.records()[0]
    min(house.directory.iterdir()).unlink()
    async with house.life() as audit:
        assert await verification(audit) == (False, first.sequence - 1, f"{first.sequence} removed")


async def test_without_the_anchors_a_log_is_verified_from_its_first_record(house: House) -> None:
    """An auditor has the files and a hash from another host, and no daemon."""
    house.file_bytes, house.keep = 5000, 2
    for _ in range(30):
        await house.lived(5)
    lines = house.lines()
    assert verify_kept(lines).broken is None
    assert verify_kept(lines, anchors=[anchor_of(decode(lines[-1]))]).broken is None
    report = verify_kept(lines, anchors=[Anchor(sequence=149, hash="ab" * 32)])
    assert report.broken is not None
    assert (report.broken.sequence, report.broken.kind) == (149, "rewritten")
    first = decode(lines[0])
    before = Anchor(sequence=first.sequence - 1, hash=first.previous)
    assert verify_kept(lines, begin=before).broken is None
    for begin, kind in ((msgspec.structs.replace(before, hash="ab" * 32), "edited"), (GENESIS, "removed")):
        broken = verify_kept(lines, begin=begin).broken
        assert broken is not None
        assert broken.kind == kind
    broken = verify_kept([b"garbage", *lines[1:]], begin=before).broken
    assert broken is not None
    assert (broken.sequence, broken.kind) == (first.sequence, "unreadable")
    forged = encode(follow(msgspec.structs.replace(GENESIS, hash="1" * 64), entry(1)))
    assert verify_kept([forged]).broken is not None
    assert verify_kept([]).broken is None


# Reading


async def test_the_newest_come_first_page_by_page(house: House) -> None:
    """And whoever asks sees what was done just before."""
    house.file_bytes = 2000
    async with house.life() as audit:
        for number in range(50):
            audit.record(entry(number))
        reply = await audit.list(am.ListAudit(limit=20), CONTEXT)
        assert [each.sequence for each in reply.items] == list(range(50, 30, -1))
        audit.record(entry("later"))
        assert [each.sequence for each in await listed(audit, limit=7)] == list(range(51, 0, -1))
        last = await audit.list(am.ListAudit(limit=51), CONTEXT)
        assert last.next_cursor is None


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({"principal": "unix:33"}, [3]),
        ({"action": "key.read"}, [2]),
        ({"object": "a.example"}, [4, 1]),
        ({"object": "b.example"}, [4]),
        ({"object": "a.example b.example"}, [4]),
        ({"object": "example"}, []),
        ({"object": 'q"\\\u00fc'}, [5]),
        ({"principal": "unix:33", "action": "key.read"}, []),
    ],
)
async def test_records_are_found_by_what_they_say(house: House, members: dict[str, str], found: list[int]) -> None:
    """Who fetched this key, and what else did they do."""
    async with house.life() as audit:
        audit.record(entry(1, object="a.example"))
        audit.record(entry(2, action="key.read"))
        audit.record(entry(3, principal="unix:33"))
        audit.record(entry(4, object="a.example b.example"))
        await audit.record_durably(entry(5, object='q"\\\u00fc'))
        assert [each.sequence for each in await listed(audit, **members)] == found


async def test_a_filter_that_fits_nothing_does_not_read_everything_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten gigabytes take minutes: a page without a record, and a cursor, is an answer too."""
    monkeypatch.setattr(audit_reading, "LINES_PER_PAGE", 10)
    async with house.life() as audit:
        await recorded(audit, *range(25))
        reply = await audit.list(am.ListAudit(object="acme_order_0"), CONTEXT)
        assert reply.items == []
        assert reply.next_cursor is not None
        assert [each.sequence for each in await listed(audit, object="acme_order_0")] == [1]


async def test_a_page_fits_into_a_message(house: House) -> None:
    """500 records of a kilobyte each would not."""
    async with house.life() as audit:
        for number in range(1000):
            audit.record(entry(number, object="x" * 1000))
        reply = await audit.list(am.ListAudit(limit=500), CONTEXT)
        assert len(msgspec.json.encode(reply)) < 500_000
        assert len(await listed(audit, limit=500)) == 1000


async def test_damaged_lines_do_not_hide_the_others(house: House) -> None:
    """Who looks for an attacker needs what is left."""
    async with house.life() as audit:
        await recorded(audit, *range(3))
        path = house.directory / "audit-000000000001.jsonl"
        one, _, three, _ = path.read_bytes().split(b"\n")
        path.write_bytes(one + b"\n\xff\xfe{\n" + three + b"\n")
        assert [each.sequence for each in await listed(audit)] == [3, 1]


async def test_a_cursor_that_is_none_is_the_callers_mistake(house: House) -> None:
    """It points at the member."""
    async with house.life() as audit:
        with pytest.raises(InvalidRequest) as caught:
            await audit.list(am.ListAudit(cursor="../../etc"), CONTEXT)
    assert [each.pointer for each in caught.value.fields] == ["/cursor"]


async def test_a_disk_that_cannot_be_read_is_said_to_be(house: House) -> None:
    """And not that there is nothing."""

    def broken(*_: object) -> Iterator[Any]:
        raise OSError(errno.EIO, "Input/output error")

    async with house.life() as audit:
        await recorded(audit, 1)
        house.disk.read = house.disk.read_back = broken
        for ask in (audit.list(am.ListAudit(), CONTEXT), audit.verify(am.VerifyAudit(), CONTEXT)):
            with pytest.raises(StorageUnavailable, match="the audit log cannot be read: Input/output error"):
                await ask


async def test_fifty_thousand_records_take_a_moment(house: House) -> None:
    """Twenty thousand a second at least: the log must never be what a daemon waits for."""
    async with house.life() as audit:
        loop = asyncio.get_running_loop()
        started = loop.time()
        for start in range(0, 50_000, 5_000):
            for number in range(start, start + 4_999):
                audit.record(entry(number))
            await audit.record_durably(entry("last"))
        taken = loop.time() - started
        assert audit.head.sequence == 50_000
    # The bound is far above what it takes (below), for machines that do something else meanwhile.
    assert taken < 20
