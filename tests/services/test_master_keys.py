"""A new master key for all that is sealed: whatever is written, fails or is stopped meanwhile, nothing is lost."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec
import pytest

from scaivaultd.api import access_messages as am
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.access import Anchor
from scaivaultd.model.errors import Conflict, Internal, InvalidRequest, PermissionDenied, StorageUnavailable
from scaivaultd.model.ids import KeyId
from scaivaultd.model.principals import Principal
from scaivaultd.model.resources import SealedKey
from scaivaultd.model.sealing import SEALING_KEY
from scaivaultd.model.storage import Delete, Put
from scaivaultd.services import audit_anchors, documents
from scaivaultd.services.audit_anchors import AnchorBook
from scaivaultd.services.documents import ACCOUNTS, KEYS, SECRETS, Shelf, digest
from scaivaultd.services.master_keys import AGAIN_SECONDS, RETRY_SECONDS, SETTLE_SECONDS, MasterKeys
from scaivaultd.services.sealed_values import SEALED
from scaivaultd.store.key_sources import KeySources
from scaivaultd.store.master_key import NoMasterKey, create_master_key_file, load_master_key, master_key_from_passphrase
from scaivaultd.store.sealing import EnvelopeSealer, marks_of, read_record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from scaivaultd.model.storage import Change

CONTEXT = RequestContext(request_id="req_key", principal=Principal(kind="unix", id="0"))
NOTHING = m.Nothing()
EAB = m.EabRequest(key_id="kid-1", hmac_key="c2VjcmV0IGtleSBvZiB0aGUgZWFi")


class Keys:
    """The room of the master key over a world, with a real key file; `life` begins a new one."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.path = folder / "master.key"
        self.folds = 0
        self.room: MasterKeys
        self.task: asyncio.Task[None] | None = None

    @property
    def file_key(self) -> bytes:
        return load_master_key(f"file:{self.path}", environment={}, credentials_directory=None)

    async def found(self) -> None:
        """Give the world's store a record and a key of its own."""
        create_master_key_file(self.path)
        self.world.sealer = EnvelopeSealer(self.file_key, "store_1")
        await self.world.store.commit(
            [Put(key=SEALING_KEY, document=self.world.sealer.check_record(self.world.clock.now()))]
        )
        self.world.begin()
        self.make_room()

    def make_room(self) -> None:
        self.room = MasterKeys(
            store=self.world.store,
            keyring=self.world.sealer,
            source=f"file:{self.path}",
            sources=KeySources({"NEW": "cd" * 32}, None, self.world.log),
            forget=self.forget,
            marks_of=marks_of,
            clock=self.world.clock,
            randomness=self.world.randomness,
            log=self.world.log,
        )

    async def forget(self) -> bool:
        self.folds += 1
        return True

    async def start(self) -> None:
        await self.room.resume()
        self.task = asyncio.create_task(self.room.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            assert self.task.cancelled(), self.task.exception()
            self.task = None

    async def life(self, key: bytes | None = None) -> None:
        """Everything in memory is gone; the key, or the one in the file, opens what is there."""
        await self.stop()
        stored = await self.world.store.get(SEALING_KEY)
        self.world.sealer = EnvelopeSealer.unlock(key or self.file_key, stored.document)
        self.world.begin()
        self.make_room()

    async def rotate(self, **members: Any) -> am.MasterKeyReply:
        return await self.room.rotate(am.RotateMasterKey(**members), CONTEXT)

    async def reply(self) -> am.MasterKeyReply:
        return await self.room.get(NOTHING, CONTEXT)

    def hold(self, least_seconds: float) -> asyncio.Event:
        """Sleeps of so long end only when the event is set."""
        released, sleep = asyncio.Event(), self.world.clock.sleep

        async def held(seconds: float) -> None:
            await sleep(seconds)
            if seconds >= least_seconds:
                await released.wait()

        self.world.clock.sleep = held
        return released

    async def until(self, is_so: Callable[[am.MasterKeyReply], bool]) -> am.MasterKeyReply:
        """The state once something of it has been committed."""
        async with asyncio.timeout(20), self.world.sqlite.watch(SEALING_KEY) as changes:
            reply = await self.reply()
            while not is_so(reply):
                await anext(changes)
                reply = await self.reply()
            return reply

    async def done(self) -> am.MasterKeyReply:
        return await self.until(lambda reply: reply.rotation is not None and reply.rotation.finished_at is not None)

    async def kept(self) -> set[str]:
        stored = await self.world.store.get(SEALING_KEY)
        return set(read_record(stored.document).kept)

    async def dropped(self) -> None:
        async with asyncio.timeout(20), self.world.sqlite.watch(SEALING_KEY) as changes:
            while await self.kept():
                await anext(changes)

    async def under(self, kid: str) -> list[str]:
        """The documents that hold a value under a key."""
        page = await self.world.store.scan("", limit=1000)
        assert page.next_cursor is None
        return [each.key for each in page.items if any(mark in each.document for mark in marks_of(kid))]


@pytest.fixture
async def keys(dns_world: Any, tmp_path: Path) -> AsyncIterator[Keys]:
    keys = Keys(dns_world, tmp_path)
    await keys.found()
    yield keys
    await keys.stop()


async def fill(keys: Keys, number: int = 3) -> Callable[[], Awaitable[None]]:
    """One value of each kind that is sealed, and some keys; what is returned checks that all of them open."""
    world = keys.world
    await world.secret_store.put(m.PutSecret(path="infra/dns/token", value="first"), CONTEXT)
    await world.secret_store.put(m.PutSecret(path="infra/dns/token", value="hush"), CONTEXT)
    account_id = await world.account(eab=EAB)
    for each in range(number):
        sealed = world.sealer.seal(f"key {each}".encode(), KEYS.key(f"key_{each}"), "private_key")
        key = SealedKey(id=KeyId(f"key_{each}"), key_type="ec-p256", sealed=sealed, created_at=world.clock.now())
        await world.store.commit([KEYS.put(key)])
    book = AnchorBook(anchors=(Anchor(sequence=1, hash="ab"),))
    await world.store.commit([audit_anchors.put(book, world.sealer)])

    async def check() -> None:
        sealer = keys.world.sealer
        assert (await keys.world.secret_store.read("infra/dns/token")).reveal() == "hush"
        stored = await ACCOUNTS.get(keys.world.store, account_id)
        assert stored is not None
        assert stored.value.eab is not None
        assert stored.value.eab.sealed_hmac_key is not None
        assert sealer.open(stored.value.eab.sealed_hmac_key, ACCOUNTS.key(account_id), "eab_hmac_key")
        assert await keys.world.accounts.client(stored.value)
        for each in range(number):
            key = await KEYS.get(keys.world.store, f"key_{each}")
            assert key is not None
            opened = sealer.open(key.value.sealed, KEYS.key(f"key_{each}"), "private_key")
            assert opened == f"key {each}".encode()
        assert await audit_anchors.load(keys.world.store, sealer) == book

    return check


class TestRotation:
    async def test_everything_opens_under_the_new_key_and_the_old_one_opens_nothing(self, keys: Keys) -> None:
        """That is the whole point; the daemon works on meanwhile and afterwards."""
        check = await fill(keys)
        old_kid, old_key = keys.world.sealer.kid, keys.file_key
        assert len(await keys.under(old_kid)) >= 7
        await keys.start()
        begun = await keys.rotate()
        assert begun.rotation is not None
        assert (begun.kid, begun.rotation.from_kid, begun.rotation.finished_at) == (
            keys.world.sealer.kid,
            old_kid,
            None,
        )
        done = await keys.done()
        assert done.rotation is not None
        assert done.rotation.rewrapped >= 7
        assert await keys.under(old_kid) == []
        assert keys.folds >= 1
        await check()
        assert keys.file_key != old_key
        assert not keys.path.with_name("master.key.next").exists()
        await keys.dropped()
        await keys.life()
        await check()
        with pytest.raises(NoMasterKey, match="It was replaced at"):
            await keys.life(old_key)

    async def test_new_values_are_under_the_new_key_from_the_first_moment(self, keys: Keys) -> None:
        """Else there would be no end."""
        await keys.rotate()
        await keys.world.secret_store.put(m.PutSecret(path="infra/new", value="x"), CONTEXT)
        assert await keys.under(keys.world.sealer.kid) == [SECRETS.key(digest("infra/new"))]

    async def test_batches_go_on_to_the_last_document(self, keys: Keys) -> None:
        """More than one page, and more than one commit takes."""
        check = await fill(keys, 1203)
        old_kid = keys.world.sealer.kid
        await keys.start()
        await keys.rotate()
        done = await keys.done()
        assert done.rotation is not None
        assert done.rotation.rewrapped == 1203 + 4
        for prefix in ("key/", "account/", "secret/", "audit_anchors/"):
            for each in (await keys.world.store.scan(prefix, limit=1000)).items:
                assert not any(mark in each.document for mark in marks_of(old_kid))
        await check()

    async def test_what_a_document_is_found_by_stays(self, keys: Keys) -> None:
        """Rewriting a document must not take it out of the index."""
        await fill(keys)
        before = await ACCOUNTS.page(keys.world.store, where={"status": "valid"}, cursor=None, limit=10)
        await keys.start()
        await keys.rotate()
        await keys.done()
        after = await ACCOUNTS.page(keys.world.store, where={"status": "valid"}, cursor=None, limit=10)
        assert len(before.items) == len(after.items) == 1

    async def test_a_document_that_is_written_meanwhile_is_not_written_over(self, keys: Keys) -> None:
        """The service's own change wins, and its value is rewrapped in the next round."""
        check = await fill(keys)
        world, put = keys.world, False
        old_kid = world.sealer.kid
        stale = EnvelopeSealer(keys.file_key, "store_1")

        async def meanwhile(changes: Sequence[Change]) -> None:
            nonlocal put
            if not put and any(each.key.startswith("secret/") for each in changes):
                put = True
                current = await SECRETS.get(world.sqlite, digest("infra/dns/token"))
                assert current is not None
                place = SECRETS.key(digest("infra/dns/token"))
                # Sealed before the rotation began, and only now on its way: the worst that can happen.
                newer = msgspec.structs.replace(current.value, version=3, sealed=stale.seal(b"hush", place, "value.3"))
                await world.sqlite.commit([SECRETS.put(newer, current.revision)])

        world.store.before_commit = meanwhile
        await keys.start()
        await keys.rotate()
        await keys.done()
        assert put
        assert await keys.under(old_kid) == []
        await check()

    async def test_a_value_that_arrives_late_is_found_before_its_key_is_dropped(self, keys: Keys) -> None:
        """It was sealed before the rotation, and its commit came after the last look."""
        late = keys.world.sealer.seal(b"late", KEYS.key("key_late"), "private_key")
        old_kid = keys.world.sealer.kid
        settled = keys.hold(SETTLE_SECONDS)
        await keys.start()
        await keys.rotate()
        await keys.done()
        assert await keys.kept() == {old_kid}
        key = SealedKey(id=KeyId("key_late"), key_type="ec-p256", sealed=late, created_at=keys.world.clock.now())
        await keys.world.store.commit([KEYS.put(key)])
        assert keys.world.sealer.open(late, KEYS.key("key_late"), "private_key") == b"late"
        settled.set()
        await keys.dropped()
        assert SETTLE_SECONDS in keys.world.clock.slept
        assert await keys.under(old_kid) == []
        stored = await KEYS.get(keys.world.store, "key_late")
        assert stored is not None
        assert keys.world.sealer.open(stored.value.sealed, KEYS.key("key_late"), "private_key") == b"late"

    async def test_only_one_goes_on_at_a_time(self, keys: Keys) -> None:
        """Two new keys at once: one of them would be nowhere."""
        await keys.rotate()
        with pytest.raises(Conflict, match="under way"):
            await keys.rotate()

    async def test_the_next_one_need_not_wait_until_the_last_has_settled(self, keys: Keys) -> None:
        """Whoever fears for the new key too acts at once."""
        check = await fill(keys)
        keys.hold(SETTLE_SECONDS)
        await keys.start()
        await keys.rotate()
        await keys.done()
        first = await keys.reply()
        await keys.rotate()
        second = await keys.until(
            lambda reply: (
                reply.kid != first.kid and reply.rotation is not None and reply.rotation.finished_at is not None
            )
        )
        assert second.rotation is not None
        assert second.rotation.from_kid == first.kid
        await keys.life()
        await check()

    async def test_one_that_begins_while_the_last_is_looked_after_is_carried_out_whole(self, keys: Keys) -> None:
        """It must not be called finished by a look that was for another key."""
        check = await fill(keys)
        late = keys.world.sealer.seal(b"late", KEYS.key("key_late"), "private_key")
        second: am.MasterKeyReply | None = None
        at_the_end: list[list[str]] = []

        async def meanwhile(changes: Sequence[Change]) -> None:
            nonlocal second
            if second is None and any(each.key == "key/key_late" for each in changes):
                second = await keys.rotate()
            elif second is not None and second.rotation is not None:
                for each in changes:
                    if isinstance(each, Put) and each.key == SEALING_KEY:
                        rotation = read_record(each.document).rotation
                        if rotation is not None and rotation.finished_at is not None and not at_the_end:
                            at_the_end.append(await keys.under(second.rotation.from_kid))

        settled = keys.hold(SETTLE_SECONDS)
        await keys.start()
        await keys.rotate()
        await keys.done()
        key = SealedKey(id=KeyId("key_late"), key_type="ec-p256", sealed=late, created_at=keys.world.clock.now())
        await keys.world.store.commit([KEYS.put(key)])
        keys.world.store.before_commit = meanwhile
        async with asyncio.timeout(20), keys.world.sqlite.watch(SEALING_KEY) as changes:
            settled.set()
            while not at_the_end:
                await anext(changes)
        assert at_the_end == [[]]
        await keys.done()
        await keys.life()
        await check()


class TestStops:
    @pytest.mark.parametrize("moment", ["before", "after"])
    async def test_a_stop_at_any_commit_loses_nothing(self, keys: Keys, moment: str) -> None:
        """The record leads on from wherever it was; the key that is in the file opens the store at any time."""
        check = await fill(keys, 2)
        nth = 0
        was_stopped = True
        while was_stopped:
            nth += 1
            first = keys.world.sealer.kid
            was_stopped = await self._stopped_at(keys, nth, moment)
            await keys.life()
            await check()
            await keys.start()
            if nth > 1 or moment == "after":
                await keys.done()
                await keys.dropped()
                assert keys.world.sealer.kid != first
                assert await keys.under(first) == []
            await keys.life()
            await check()
        assert nth > 4

    @staticmethod
    async def _stopped_at(keys: Keys, nth: int, moment: str) -> bool:
        """Rotate until the nth commit, which is the last thing that happens; False when it came to its end before."""
        count, stopped = 0, asyncio.Event()

        async def stop(changes: Sequence[Change]) -> None:
            nonlocal count
            count += 1
            if count >= nth:
                if moment == "after" and count == nth:
                    await keys.world.sqlite.commit(changes)
                stopped.set()
                await asyncio.Event().wait()

        keys.world.store.before_commit = stop
        await keys.start()

        async def whole() -> None:
            await keys.rotate()
            await keys.done()
            await keys.dropped()

        ends = [asyncio.create_task(whole()), asyncio.create_task(stopped.wait())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=20)
        for task in ends:
            task.cancel()
        await asyncio.wait(ends)
        keys.world.store.before_commit = None
        await keys.stop()
        return stopped.is_set()

    async def test_a_caller_that_goes_away_does_not_hold_it_up(self, keys: Keys) -> None:
        """The commit may be done all the same: what the store says counts."""
        check = await fill(keys)
        committing = asyncio.Event()

        async def slowly(changes: Sequence[Change]) -> None:
            if any(each.key == SEALING_KEY for each in changes) and not committing.is_set():
                await keys.world.sqlite.commit(changes)
                committing.set()
                await asyncio.Event().wait()

        keys.world.store.before_commit = slowly
        await keys.start()
        asking = asyncio.create_task(keys.rotate())
        await asyncio.wait_for(committing.wait(), 20)
        asking.cancel()
        await asyncio.wait([asking])
        await keys.done()
        await check()
        assert load_master_key(f"file:{keys.path}", environment={}, credentials_directory=None)
        await keys.life()
        await check()


class TestTrouble:
    async def test_a_full_disk_is_waited_for(self, keys: Keys) -> None:
        """Nothing is lost, health says so, and it goes on by itself."""
        check = await fill(keys)
        failures = 0

        async def full(changes: Sequence[Change]) -> None:
            nonlocal failures
            if any(each.key.startswith("key/") for each in changes) and failures < 3:
                failures += 1
                assert keys.room.trouble is None or "no space" in keys.room.trouble
                raise StorageUnavailable("no space left")

        keys.world.store.before_commit = full
        await keys.start()
        await keys.rotate()
        await keys.dropped()
        assert failures == 3
        assert keys.world.clock.slept.count(RETRY_SECONDS) == 3
        assert keys.room.trouble is None
        await check()

    async def test_a_full_disk_at_the_beginning_begins_nothing(self, keys: Keys) -> None:
        """No new key is left in the folder, where somebody might take it for the one in use."""
        check = await fill(keys)
        before = keys.file_key, keys.world.sealer.kid

        async def full(changes: Sequence[Change]) -> None:
            raise StorageUnavailable("no space left")

        keys.world.store.before_commit = full
        with pytest.raises(StorageUnavailable):
            await keys.rotate()
        assert (keys.file_key, keys.world.sealer.kid) == before
        assert [each.name for each in keys.path.parent.glob("master.key*")] == ["master.key"]
        keys.world.store.before_commit = None
        await check()
        await keys.start()
        await keys.rotate()
        await keys.done()

    async def test_a_folder_that_cannot_be_written_is_told_before_anything_begins(self, keys: Keys) -> None:
        """/etc is read-only for a well-kept service."""
        keys.path.with_name("master.key.next").mkdir()
        with pytest.raises(Conflict, match="name it in `new_source`"):
            await keys.rotate()
        assert (await keys.reply()).rotation is None

    async def test_a_key_file_that_cannot_be_replaced_is_tried_again(self, keys: Keys) -> None:
        """Until it can, the old key opens the store too, and nothing is dropped."""
        check = await fill(keys)
        tries, sleep = 0, keys.world.clock.sleep
        staged = keys.path.with_name("master.key.next")

        async def mend(seconds: float) -> None:
            nonlocal tries
            if seconds == RETRY_SECONDS:
                tries += 1
                assert keys.room.trouble is not None
                assert "the rotation waits" in keys.room.trouble
                if tries == 2:
                    staged.rmdir()
            await sleep(seconds)

        keys.world.clock.sleep = mend
        await keys.rotate()
        staged.unlink()
        staged.mkdir()
        await keys.start()
        await keys.done()
        assert tries == 2
        await keys.life()
        await check()

    async def test_a_damaged_value_does_not_hold_up_the_others_and_keeps_its_key(self, keys: Keys) -> None:
        """Perhaps the daemon is wrong about it: nothing is thrown away, and the administrator is told."""
        check = await fill(keys)
        old_kid = keys.world.sealer.kid
        moved = keys.world.sealer.seal(b"x", "key/elsewhere", "private_key")
        key = SealedKey(id=KeyId("key_moved"), key_type="ec-p256", sealed=moved, created_at=keys.world.clock.now())
        await keys.world.store.commit([KEYS.put(key)])
        again = keys.hold(AGAIN_SECONDS)
        await keys.start()
        await keys.rotate()
        await keys.done()
        assert await keys.under(old_kid) == ["key/key_moved"]
        assert keys.room.trouble is not None
        assert "key/key_moved" in keys.room.trouble
        assert (await keys.reply()).detail == keys.room.trouble
        assert await keys.kept() == {old_kid}
        assert keys.world.sealer.open(moved, "key/elsewhere", "private_key") == b"x"
        assert any(each["event"] == "master_key.not_rewrapped" for each in keys.world.logged)
        await check()
        await keys.world.store.commit([Delete(key="key/key_moved")])
        again.set()
        await keys.dropped()
        assert AGAIN_SECONDS in keys.world.clock.slept
        assert keys.room.trouble is None

    async def test_a_value_in_a_place_that_nobody_has_told_of_keeps_its_key(self, keys: Keys) -> None:
        """A later version, or a slip of ours: found by looking, and still opened."""
        old_kid = keys.world.sealer.kid
        strange = keys.world.sealer.seal(b"x", "strange/1", "value")
        await keys.world.store.commit([Put(key="strange/1", document=msgspec.json.encode({"v": strange}))])
        await keys.world.store.commit([Put(key="strange/2", document=strange)])
        keys.hold(AGAIN_SECONDS)
        await keys.start()
        await keys.rotate()
        await keys.done()
        assert keys.room.trouble is not None
        assert "strange/1, strange/2" in keys.room.trouble
        assert await keys.kept() == {old_kid}
        await keys.life()
        assert keys.world.sealer.open(strange, "strange/1", "value") == b"x"

    async def test_an_unreadable_document_is_told(self, keys: Keys) -> None:
        """It may hold the only copy of a key."""
        sealed = keys.world.sealer.seal(b"x", "key/broken", "private_key")
        broken = msgspec.json.encode({"sealed": sealed})
        await keys.world.store.commit([Put(key="key/broken", document=broken), Put(key="key/empty", document=b"{")])
        keys.hold(AGAIN_SECONDS)
        await keys.start()
        await keys.rotate()
        await keys.done()
        assert keys.room.trouble is not None
        assert keys.room.trouble.endswith(": key/broken")

    async def test_a_record_that_is_gone_is_told(self, keys: Keys) -> None:
        """Nobody can say which key there is."""
        await keys.world.store.commit([Delete(key=SEALING_KEY)])
        with pytest.raises(Internal, match="sealing record is gone"):
            await keys.reply()


class TestSources:
    async def test_a_key_from_elsewhere_leaves_the_old_file_alone(self, keys: Keys) -> None:
        """It is the administrator's; what is to be configured now is said."""
        check = await fill(keys)
        new, old_key = keys.path.with_name("new.key"), keys.file_key
        create_master_key_file(new)
        await keys.start()
        reply = await keys.rotate(new_source=f"file:{new}")
        assert reply.source == f"file:{new}"
        await keys.done()
        assert keys.file_key == old_key
        with pytest.raises(NoMasterKey, match=f"the new key is in file:{new}"):
            await keys.life()
        await keys.life(load_master_key(f"file:{new}", environment={}, credentials_directory=None))
        await check()

    async def test_a_passphrase_brings_its_salt(self, keys: Keys) -> None:
        """Without it the same words would make another key at the next start."""
        check = await fill(keys)
        await keys.start()
        reply = await keys.rotate(new_passphrase="correct horse battery staple")
        assert reply.source == "passphrase"
        await keys.done()
        stored = await keys.world.store.get(SEALING_KEY)
        salt = read_record(stored.document).salt
        assert salt is not None
        await keys.life(master_key_from_passphrase("correct horse battery staple", salt))
        await check()

    async def test_a_passphrase_comes_over_the_unix_socket_only(self, keys: Keys) -> None:
        """Elsewhere it passes servers and logs of others."""
        context = RequestContext(request_id="req_key", principal=Principal(kind="nats", id="$G/local"))
        with pytest.raises(PermissionDenied):
            await keys.room.rotate(am.RotateMasterKey(new_passphrase="correct horse"), context)

    @pytest.mark.parametrize(
        ("members", "pointer"),
        [
            ({"new_source": "file:relative"}, "/new_source"),
            ({"new_source": "file:/with/\0/inside"}, "/new_source"),
            ({"new_source": "file:/nowhere/at/all"}, "/new_source"),
            ({"new_source": "passphrase"}, "/new_source"),
            ({"new_source": "vault:x"}, "/new_source"),
            ({"new_source": "env:NEW", "new_passphrase": "correct horse"}, "/new_passphrase"),
        ],
    )
    async def test_a_source_that_cannot_be_begins_nothing(
        self, keys: Keys, members: dict[str, str], pointer: str
    ) -> None:
        """The member that is wrong is pointed at."""
        with pytest.raises(InvalidRequest) as caught:
            await keys.rotate(**members)
        assert [each.pointer for each in caught.value.fields] == [pointer]
        assert (await keys.reply()).rotation is None

    async def test_the_same_key_again_is_no_rotation(self, keys: Keys) -> None:
        """The administrator has named the file that is in use."""
        with pytest.raises(Conflict, match="in use"):
            await keys.rotate(new_source=f"file:{keys.path}")
        assert keys.path.exists()

    async def test_a_source_the_daemon_cannot_write_needs_another(self, keys: Keys) -> None:
        """It cannot put a key into its own environment."""
        await keys.start()
        await keys.rotate(new_source="env:NEW")
        await keys.done()
        with pytest.raises(InvalidRequest, match="cannot write a key to env:NEW"):
            await keys.rotate()

    async def test_no_request_shows_its_passphrase(self) -> None:
        """It goes through logs of failures."""
        assert "correct horse" not in repr(am.RotateMasterKey(new_passphrase="correct horse"))


async def test_callers_are_kept_from_every_place_of_a_master_key(keys: Keys) -> None:
    """A secret reference that names the key itself would hand it to a DNS provider of the caller's own."""
    await keys.start()
    staged = f"file:{keys.path}.next"
    assert set(keys.room.places) == {f"file:{keys.path}", staged}
    await keys.room.rotate(am.RotateMasterKey(new_source="env:NEW"), CONTEXT)
    assert {f"file:{keys.path}", staged, "env:NEW"} <= set(keys.room.places)
    await keys.stop()
    keys.make_room()
    await keys.start()
    assert "env:NEW" in keys.room.places
    await keys.stop()


async def test_an_open_daemon_is_not_unsealed(keys: Keys) -> None:
    """Whoever types a passphrase there has taken one daemon for another."""
    with pytest.raises(Conflict, match="not sealed"):
        await keys.room.unseal(am.Unseal(passphrase="correct horse"), CONTEXT)


def test_every_sealed_member_of_every_document_is_rewrapped() -> None:
    """Whoever adds one must tell `sealed_values` of it, or its key would have to be kept for ever."""
    shelves = {
        name: each
        for module in (documents, audit_anchors)
        for name, each in vars(module).items()
        if isinstance(each, Shelf)
    }
    holding = {name for name, shelf in shelves.items() if sealed_members(shelf._decoder.type, set())}
    listed = {name for name, shelf in shelves.items() if any(each.shelf is shelf for each in SEALED)}
    assert holding == listed
    assert holding == {"KEYS", "ACCOUNTS", "SECRETS", "AUDIT_ANCHORS"}


def sealed_members(kind: Any, seen: set[Any]) -> set[str]:
    """The members of a Struct, and of the Structs in it, whose name says that they are sealed."""
    seen.add(kind)
    found: set[str] = set()
    for name, hint in get_type_hints(kind).items():
        if name.startswith("sealed"):
            found.add(name)
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct) and part not in seen:
                found |= sealed_members(part, seen)
    return found
