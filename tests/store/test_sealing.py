"""The seal: what opens it, and all that must not."""

from __future__ import annotations

import base64
import pickle
from datetime import UTC, datetime

import msgspec
import pytest

from scaivaultd.model.errors import Internal
from scaivaultd.model.sealing import SealingRecord
from scaivaultd.services.ports import Sealer
from scaivaultd.store.master_key import NoMasterKey
from scaivaultd.store.sealing import EnvelopeSealer, marks_of, read_record

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = b"-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def sealer() -> Sealer:
    return EnvelopeSealer(KEY, "store_1")


@pytest.mark.parametrize("plaintext", [b"", SECRET, bytes(100_000)])
def test_what_was_sealed_opens_at_its_place(sealer: Sealer, plaintext: bytes) -> None:
    """Also for another sealer of the same key and store: the daemon restarts."""
    sealed = sealer.seal(plaintext, "key/key_1", "private_key")
    assert EnvelopeSealer(KEY, "store_1").open(sealed, "key/key_1", "private_key") == plaintext


def test_a_sealed_value_shows_nothing_and_never_repeats(sealer: Sealer) -> None:
    """Equal secrets must not look equal in the store."""
    first, second = (sealer.seal(SECRET, "key/key_1", "private_key") for _ in range(2))
    one, two = msgspec.msgpack.decode(first), msgspec.msgpack.decode(second)
    assert SECRET not in first
    assert list(one) == ["v", "kid", "alg", "wn", "wdek", "n", "ct"]
    assert all(one[part] != two[part] for part in ("wn", "wdek", "n", "ct"))


@pytest.mark.parametrize(
    ("opener", "place", "field"),
    [
        (EnvelopeSealer(KEY, "store_1"), "key/key_2", "private_key"),
        (EnvelopeSealer(KEY, "store_1"), "key/key_1", "other"),
        (EnvelopeSealer(KEY, "store_2"), "key/key_1", "private_key"),
        (EnvelopeSealer(OTHER_KEY, "store_1"), "key/key_1", "private_key"),
    ],
    ids=["record", "field", "store", "master key"],
)
def test_a_moved_value_does_not_open(sealer: Sealer, opener: Sealer, place: str, field: str) -> None:
    """Whoever can write the store must not get one record's key used for another."""
    with pytest.raises(Internal):
        opener.open(sealer.seal(SECRET, "key/key_1", "private_key"), place, field)


def test_a_value_relabelled_with_our_kid_does_not_open(sealer: Sealer) -> None:
    """The kid is a hint for people; only the tag decides."""
    foreign = msgspec.msgpack.decode(EnvelopeSealer(OTHER_KEY, "store_1").seal(SECRET, "key/key_1", "private_key"))
    ours = msgspec.msgpack.decode(sealer.seal(SECRET, "key/key_1", "private_key"))
    with pytest.raises(Internal):
        sealer.open(msgspec.msgpack.encode(foreign | {"kid": ours["kid"]}), "key/key_1", "private_key")


def test_no_changed_byte_goes_unnoticed(sealer: Sealer) -> None:
    """Damage is an error, never another plaintext; and the error does not show the plaintext."""
    sealed = sealer.seal(SECRET, "key/key_1", "private_key")
    for position in range(len(sealed)):
        for bit in range(8):
            damaged = bytearray(sealed)
            damaged[position] ^= 1 << bit
            with pytest.raises(Internal) as caught:
                sealer.open(bytes(damaged), "key/key_1", "private_key")
            assert SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize("damaged", [b"", b"\x80", b"not msgpack", msgspec.msgpack.encode({"v": 1})])
def test_what_is_no_sealed_value_does_not_open(sealer: Sealer, damaged: bytes) -> None:
    """Garbage is told as garbage."""
    with pytest.raises(Internal, match="not a sealed value"):
        sealer.open(damaged, "key/key_1", "private_key")


def test_a_truncated_value_does_not_open(sealer: Sealer) -> None:
    """A nonce or tag cut short must not reach the cipher as something valid."""
    envelope = msgspec.msgpack.decode(sealer.seal(SECRET, "key/key_1", "private_key"))
    for part in ("wn", "wdek", "n", "ct"):
        for left in (b"", envelope[part][:-1]):
            with pytest.raises(Internal):
                sealer.open(msgspec.msgpack.encode(envelope | {part: left}), "key/key_1", "private_key")


@pytest.mark.parametrize(("place", "field"), [("a|b", "c"), ("a", "b|c")])
def test_the_separator_is_no_part_of_a_place(sealer: Sealer, place: str, field: str) -> None:
    """Two different places must never be bound alike."""
    with pytest.raises(ValueError, match="separator"):
        sealer.seal(SECRET, place, field)


def test_the_check_record_lets_the_right_key_in() -> None:
    """A restart opens what the first start sealed, knowing the master key and the record only."""
    first = EnvelopeSealer(KEY, "store_1")
    again = EnvelopeSealer.unlock(KEY, first.check_record(NOW))
    assert again.open(first.seal(SECRET, "key/key_1", "private_key"), "key/key_1", "private_key") == SECRET


def test_the_check_record_tells_a_wrong_key_before_anything_is_touched() -> None:
    """The administrator learns which key is wanted."""
    first, other = EnvelopeSealer(KEY, "store_1"), EnvelopeSealer(OTHER_KEY, "store_1")
    with pytest.raises(NoMasterKey) as caught:
        EnvelopeSealer.unlock(OTHER_KEY, first.check_record(NOW))
    text = str(caught.value)
    assert f"the master key does not fit this store (store wants kid {first.kid}, got {other.kid})" in text
    assert "nothing was changed" in text


def test_the_check_record_betrays_nothing() -> None:
    """It stands in the store in plain."""
    record = msgspec.msgpack.decode(EnvelopeSealer(KEY, "store_1").check_record(NOW))
    assert list(record) == ["store_id", "kid", "kcv", "created_at"]
    assert (len(record["kid"]), len(record["kcv"])) == (8, 16)


def test_a_damaged_check_record_is_told() -> None:
    """Not a traceback, not a wrong-key story."""
    with pytest.raises(NoMasterKey, match="check record is damaged"):
        EnvelopeSealer.unlock(KEY, b"\x80")


def test_a_key_of_another_length_is_refused() -> None:
    """HKDF would take anything; we do not."""
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        EnvelopeSealer(KEY[:16], "store_1")


def test_no_key_bytes_are_shown_or_carried_away() -> None:
    """Logs and tracebacks print objects; a pickle would carry the key elsewhere."""
    sealer, record = begun()
    sealer.adopt(record)
    shown = repr(sealer) + str(sealer) + repr(vars(sealer))
    assert repr(sealer) == f"EnvelopeSealer(store_id='store_1', kid='{sealer.kid}')"
    for key in (KEY, OTHER_KEY):
        assert key.hex() not in shown
        assert repr(key)[2:-1] not in shown
    with pytest.raises(TypeError):
        pickle.dumps(sealer)


def begun() -> tuple[EnvelopeSealer, SealingRecord]:
    """A sealer under KEY, and the record with which a rotation to OTHER_KEY begins."""
    sealer = EnvelopeSealer(KEY, "store_1")
    record = read_record(sealer.check_record(NOW))
    return sealer, sealer.rotation_to(
        OTHER_KEY, record, source="file:/new", replaces_file=False, salt=None, now=datetime(2026, 2, 3, tzinfo=UTC)
    )


def finished(record: SealingRecord) -> SealingRecord:
    assert record.rotation is not None
    ended = msgspec.structs.replace(record.rotation, new_key=None, finished_at=datetime(2026, 2, 4, tzinfo=UTC))
    return msgspec.structs.replace(record, rotation=ended)


def dropped(record: SealingRecord) -> SealingRecord:
    return msgspec.structs.replace(finished(record), kept={})


def unlocked(key: bytes, record: SealingRecord) -> EnvelopeSealer:
    return EnvelopeSealer.unlock(key, msgspec.msgpack.encode(record))


class TestRotation:
    @pytest.mark.parametrize("key", [KEY, OTHER_KEY], ids=["old", "new"])
    def test_either_key_opens_a_store_on_the_way(self, key: bytes) -> None:
        """A kill may come at any moment, with the old key in place or the new one."""
        old, record = begun()
        new = EnvelopeSealer(OTHER_KEY, "store_1")
        values = [each.seal(SECRET, "key/key_1", "private_key") for each in (old, new)]
        sealer = unlocked(key, record)
        assert sealer.kid == new.kid
        assert [sealer.open(each, "key/key_1", "private_key") for each in values] == [SECRET, SECRET]
        assert sealer.new_key(record) == OTHER_KEY
        assert new.open(sealer.seal(SECRET, "key/key_1", "private_key"), "key/key_1", "private_key") == SECRET

    def test_the_sealer_at_work_goes_along(self) -> None:
        """The daemon is not started anew for it."""
        sealer, record = begun()
        before = sealer.seal(SECRET, "key/key_1", "private_key")
        sealer.adopt(record)
        assert sealer.kid == EnvelopeSealer(OTHER_KEY, "store_1").kid
        assert sealer.open(before, "key/key_1", "private_key") == SECRET

    def test_a_rewrapped_value_opens_under_the_new_key_alone(self) -> None:
        """That is what it was done for; the ciphertext itself is the same."""
        sealer, record = begun()
        before = sealer.seal(SECRET, "key/key_1", "private_key")
        sealer.adopt(record)
        after = sealer.rewrapped(before, "key/key_1", "private_key")
        assert EnvelopeSealer(OTHER_KEY, "store_1").open(after, "key/key_1", "private_key") == SECRET
        with pytest.raises(Internal):
            EnvelopeSealer(KEY, "store_1").open(after, "key/key_1", "private_key")
        assert msgspec.msgpack.decode(after)["ct"] == msgspec.msgpack.decode(before)["ct"]
        assert msgspec.msgpack.decode(after)["wn"] != msgspec.msgpack.decode(before)["wn"]
        assert sealer.rewrapped(after, "key/key_1", "private_key") == after

    def test_what_lies_elsewhere_is_not_rewrapped(self) -> None:
        """A rotation must not turn a value that was moved there by hand into a good one."""
        sealer, record = begun()
        before = sealer.seal(SECRET, "key/key_1", "private_key")
        sealer.adopt(record)
        with pytest.raises(Internal):
            sealer.rewrapped(before, "key/key_2", "private_key")

    def test_the_old_key_is_told_where_the_new_one_is(self) -> None:
        """The administrator has forgotten to name it in the configuration."""
        _, record = begun()
        for ended in (finished(record), dropped(record)):
            with pytest.raises(NoMasterKey) as caught:
                unlocked(KEY, ended)
            assert "replaced at 2026-02-04T00:00:00Z: the new key is in file:/new" in str(caught.value)

    def test_a_kept_key_opens_until_it_is_dropped(self) -> None:
        """Values that were on their way into the store are not lost."""
        old, record = begun()
        value = old.seal(SECRET, "key/key_1", "private_key")
        sealer = unlocked(OTHER_KEY, finished(record))
        assert sealer.open(value, "key/key_1", "private_key") == SECRET
        sealer.adopt(dropped(record))
        for each in (sealer, unlocked(OTHER_KEY, dropped(record))):
            with pytest.raises(Internal, match=f"sealed under master key {old.kid}"):
                each.open(value, "key/key_1", "private_key")

    def test_another_rotation_keeps_what_the_last_one_has_kept(self) -> None:
        """Whoever fears for a key must not have to wait until the last change has settled."""
        first, record = begun()
        value = first.seal(SECRET, "key/key_1", "private_key")
        sealer = unlocked(OTHER_KEY, finished(record))
        third = bytes(range(2, 34))
        again = sealer.rotation_to(
            third, finished(record), source="file:/third", replaces_file=False, salt=None, now=NOW
        )
        for key in (OTHER_KEY, third):
            assert unlocked(key, again).open(value, "key/key_1", "private_key") == SECRET
        with pytest.raises(NoMasterKey):
            unlocked(KEY, again)

    @pytest.mark.parametrize("key", [KEY, bytes(range(5, 37))])
    def test_no_other_key_gets_in(self, key: bytes) -> None:
        """What the record holds while a rotation goes on is nothing without one of the two."""
        _, record = begun()
        with pytest.raises(NoMasterKey):
            unlocked(key, finished(record) if key == KEY else record)

    def test_a_key_in_use_is_no_new_one(self) -> None:
        """Nothing would change, and the record would name it as its own past."""
        sealer, record = begun()
        with pytest.raises(ValueError, match="in use"):
            sealer.rotation_to(KEY, record, source="file:/new", replaces_file=False, salt=None, now=NOW)
        sealer.adopt(record)
        with pytest.raises(ValueError, match="in use"):
            sealer.rotation_to(KEY, record, source="file:/new", replaces_file=False, salt=None, now=NOW)

    def test_a_record_that_was_tampered_with_is_damaged(self) -> None:
        """Every part is bound to the store and to the new key."""
        _, record = begun()
        rotation = record.rotation
        assert rotation is not None
        assert rotation.new_key is not None
        (old_kid,) = record.kept
        wrong = [
            msgspec.structs.replace(record, rotation=msgspec.structs.replace(rotation, new_key=bytes(60))),
            msgspec.structs.replace(record, rotation=msgspec.structs.replace(rotation, new_key=b"")),
            msgspec.structs.replace(record, kept={old_kid: bytes(60)}),
            msgspec.structs.replace(record, kept={old_kid: rotation.new_key}),
        ]
        for each in wrong:
            with pytest.raises(NoMasterKey):
                unlocked(KEY, each)


def test_a_document_under_a_key_shows_its_mark() -> None:
    """By it a rotation finds what nobody has told it of, in any document."""
    sealer = EnvelopeSealer(KEY, "store_1")
    raw, text = marks_of(sealer.kid)
    for plaintext in (b"", SECRET, bytes(70_000)):
        sealed = sealer.seal(plaintext, "key/key_1", "private_key")
        assert raw in sealed
        assert text in msgspec.json.encode({"x": 1, "sealed": sealed})
        other = EnvelopeSealer(OTHER_KEY, "store_1").seal(plaintext, "key/key_1", "private_key")
        assert raw not in other
        assert text not in base64.b64encode(other)
