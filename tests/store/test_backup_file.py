from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

import pytest

from scaivaultd.store import backup_file, backup_keys
from scaivaultd.store.backup_file import CHUNK_BYTES, BackupFile, Manifest, Part
from scaivaultd.store.backup_keys import CannotOpen, PassphraseLock
from scaivaultd.store.backup_sources import Source

FILE_KEY = bytes(range(32))
SEALED = CHUNK_BYTES + 16


class Sink(io.BytesIO):
    def close(self) -> None:
        self.content = self.getvalue()
        super().close()


def written(path: Path, *parts: bytes) -> Path:
    """A backup of parts, whose lock nobody opens."""
    sources = [Source.of_bytes(f"part{number}", each) for number, each in enumerate(parts)]
    manifest = Manifest(
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        version="1",
        schema_version=1,
        store_id="s",
        kid="k",
        node_id="n",
        documents=1,
        pending_events=0,
        audit_records=0,
        parts=[each.described(_nothing) for each in sources],
        lock=PassphraseLock(salt=b"", nonce=b"", wrapped=b""),
    )
    with path.open("wb") as file:
        backup_file.write(file, manifest, FILE_KEY, (block for each in sources for block in each.blocks(_nothing)))
    return path


def _nothing() -> None: ...


def unpacked(path: Path, key: bytes = FILE_KEY) -> list[bytes]:
    sinks: list[Sink] = []

    def into(part: Part) -> BinaryIO:
        sinks.append(Sink())
        return sinks[-1]

    with BackupFile(path) as backup:
        backup.unpack(key, into)
    return [sink.content for sink in sinks]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_what_went_in_comes_out(size: int, tmp_path: Path) -> None:
    """At every place where a chunk may end."""
    parts = [b"x" * size, b"small", b""]
    path = written(tmp_path / "b", *parts)
    assert unpacked(path) == parts
    with BackupFile(path) as backup:
        assert backup.has_all_bytes


def _head(data: bytes) -> int:
    return 12 + int.from_bytes(data[8:12], "big")


def _swapped(data: bytes) -> bytes:
    head = _head(data)
    return (
        data[:head] + data[head + SEALED : head + 2 * SEALED] + data[head : head + SEALED] + data[head + 2 * SEALED :]
    )


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut at a chunk": lambda data: data[: _head(data) + 2 * SEALED],
    "cut in a chunk": lambda data: data[:-3],
    "nothing but the header": lambda data: data[: _head(data)],
    "two chunks in another order": _swapped,
    "a chunk left out": lambda data: data[: _head(data)] + data[_head(data) + SEALED :],
    "a chunk twice": lambda data: data[: _head(data) + SEALED] + data[_head(data) :],
    "more behind it": lambda data: data + b"x",
    "a bit of the content": lambda data: _flipped(data, _head(data) + 100),
    "a number in the header": lambda data: data.replace(b'"documents":1', b'"documents":2', 1),
    "a later date": lambda data: data.replace(b"2026-01-01", b"2027-01-01", 1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_changed_backup_does_not_open(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Whoever restores must not get half of it, or an older half."""
    path = written(tmp_path / "b", b"y" * (3 * CHUNK_BYTES))
    before = path.read_bytes()
    path.write_bytes(damage(before))
    assert path.read_bytes() != before
    with pytest.raises(CannotOpen):
        unpacked(path)


@pytest.mark.parametrize(
    "content", [b"", b"SCVBKUP", b"SCVBKUP\x02\0\0\0\0", b"SCVBKUP\x01\xff\xff\xff\xff", bytes(99)]
)
def test_what_is_no_backup_is_told(content: bytes, tmp_path: Path) -> None:
    """The wrong file is the most likely mistake of all."""
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(CannotOpen):
        BackupFile(tmp_path / "b")


def test_a_part_that_is_not_as_described_is_refused(tmp_path: Path) -> None:
    """A file that changed between its two readings is noticed by whoever opens it."""
    path = tmp_path / "b"
    whole = Part(name="part", size=3, sha256=Source.of_bytes("part", b"abc").described(_nothing).sha256)
    with BackupFile(written(tmp_path / "other", b"")) as other:
        manifest = other.manifest
    lying = Manifest(**{**{name: getattr(manifest, name) for name in Manifest.__struct_fields__}, "parts": [whole]})
    with path.open("wb") as file:
        backup_file.write(file, lying, FILE_KEY, [b"abd"])
    with pytest.raises(CannotOpen, match="not what its header says"):
        unpacked(path)


def test_the_recipient_alone_opens() -> None:
    """And the passphrase of another backup does not."""
    identity, other = backup_keys.new_identity(), backup_keys.new_identity()
    lock = backup_keys.lock_for(FILE_KEY, backup_keys.recipient_of(identity))
    assert backup_keys.open_by_identity(lock, identity) == FILE_KEY
    with pytest.raises(CannotOpen, match="this identity is that of"):
        backup_keys.open_by_identity(lock, other)
    with pytest.raises(CannotOpen, match="--identity"):
        backup_keys.open_by_passphrase(lock, "x")


def test_the_passphrase_opens_however_it_is_typed() -> None:
    """Another keyboard may compose a letter of two code points."""
    lock = backup_keys.lock_by_passphrase(FILE_KEY, "gr\u00fcn und wei\u00df")
    assert backup_keys.open_by_passphrase(lock, "gru\u0308n und wei\u00df") == FILE_KEY
    with pytest.raises(CannotOpen, match="not the passphrase"):
        backup_keys.open_by_passphrase(lock, "something else")
    with pytest.raises(CannotOpen, match="locked by a passphrase"):
        backup_keys.open_by_identity(lock, backup_keys.new_identity())


def test_a_hostile_lock_asks_for_no_memory() -> None:
    """A file from elsewhere must not take the machine down before its key is even wrong."""
    lock = PassphraseLock(salt=b"s" * 16, nonce=b"n" * 12, wrapped=b"", memory_kib=1 << 30)
    with pytest.raises(CannotOpen, match="more work"):
        backup_keys.open_by_passphrase(lock, "x")


def _mistyped(text: str) -> str:
    return text[:-1] + ("a" if text[-1] != "a" else "b")


@pytest.mark.parametrize("change", [_mistyped, lambda text: text[:-4], lambda text: text[1:], lambda _: "scvr1"])
def test_a_mistyped_recipient_is_no_recipient(change: Callable[[str], str]) -> None:
    """A backup for a key that nobody has is none."""
    recipient = backup_keys.recipient_of(backup_keys.new_identity())
    with pytest.raises(CannotOpen):
        backup_keys.check_recipient(change(recipient))


def test_an_identity_in_place_of_a_recipient_is_named() -> None:
    """It would be in a shell's history, and must be replaced; the text itself is not repeated."""
    identity = backup_keys.new_identity()
    with pytest.raises(CannotOpen, match="kept secret") as raised:
        backup_keys.check_recipient(identity)
    assert identity not in str(raised.value)
