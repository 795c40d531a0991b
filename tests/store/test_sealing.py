"""The seal: what opens it, and all that must not."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime

import msgspec
import pytest

from scaivaultd.model.errors import Internal, StartupError
from scaivaultd.services.ports import Sealer
from scaivaultd.store.sealing import EnvelopeSealer

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
    with pytest.raises(StartupError) as caught:
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
    with pytest.raises(StartupError, match="check record is damaged"):
        EnvelopeSealer.unlock(KEY, b"\x80")


def test_a_key_of_another_length_is_refused() -> None:
    """HKDF would take anything; we do not."""
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        EnvelopeSealer(KEY[:16], "store_1")


def test_no_key_bytes_are_shown_or_carried_away() -> None:
    """Logs and tracebacks print objects; a pickle would carry the key elsewhere."""
    sealer = EnvelopeSealer(KEY, "store_1")
    shown = repr(sealer) + str(sealer) + repr(vars(sealer))
    assert repr(sealer) == f"EnvelopeSealer(store_id='store_1', kid='{sealer.kid}')"
    assert KEY.hex() not in shown
    assert repr(KEY)[2:-1] not in shown
    with pytest.raises(TypeError):
        pickle.dumps(sealer)
