"""The audit chain: each record carries the hash of the one before it, so that no record changes unseen.

A record is one line of canonical JSON (sorted members, defaults left out, UTC), and its hash is the SHA-256 of that
line without its end: `sha256sum` can check it. Whoever rewrites a record and all that follow it is found by an anchor
only: the hash of a later record, kept elsewhere.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd.model.access import Anchor, AuditRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from scaivaultd.model.access import AuditEntry

GENESIS = Anchor(sequence=0, hash="0" * 64)
"""What the first record of all follows."""

BreakKind = Literal["unreadable", "edited", "removed", "reordered", "rewritten", "cut_off"]

_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(AuditRecord)


class ChainBreak(msgspec.Struct, frozen=True, kw_only=True):
    """The first place where a chain is not whole.

    `sequence` is the record at fault. `unreadable`: a line that is no record in canonical form; `edited`: not the
    record that its follower, or an anchor, saw; `removed`: missing; `reordered`: out of its place, or there twice;
    `rewritten`: the chain holds, but is not the one that was anchored; `cut_off`: the end is missing.
    """

    sequence: int
    kind: BreakKind
    detail: str


class ChainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `verify` found: the last record that is sound, how many are, and the first break."""

    head: Anchor
    sound: int
    broken: ChainBreak | None = None


def follow(head: Anchor, entry: AuditEntry) -> AuditRecord:
    """The record of an entry, after the one that `head` is the anchor of."""
    return AuditRecord(**msgspec.structs.asdict(entry), sequence=head.sequence + 1, previous=head.hash)


def link(head: Anchor, entries: Iterable[AuditEntry]) -> tuple[list[bytes], Anchor]:
    """The lines of entries, without their ends, after the one that `head` is the anchor of; and the new head."""
    lines = []
    for entry in entries:
        lines.append(encode(follow(head, entry)))
        head = Anchor(sequence=head.sequence + 1, hash=hashlib.sha256(lines[-1]).hexdigest())
    return lines, head


def encode(record: AuditRecord) -> bytes:
    """A record's line, without its end."""
    return _ENCODER.encode(record)


def decode(line: bytes) -> AuditRecord:
    """Read a line.

    Raises:
        ValueError: it is no record, or is not written as `encode` writes it.
    """
    bare = line.removesuffix(b"\n")
    record = _DECODER.decode(bare)
    if encode(record) != bare:
        raise ValueError("not in canonical form")
    return record


def anchor_of(record: AuditRecord) -> Anchor:
    """What says that the chain went as far as this record, and how."""
    return Anchor(sequence=record.sequence, hash=hashlib.sha256(encode(record)).hexdigest())


def verify(
    records: Iterable[AuditRecord | bytes], *, after: Anchor = GENESIS, anchors: Iterable[Anchor] = ()
) -> ChainReport:
    """Look for the first break, record by record or line by line; nothing is held in memory.

    `after` is what the first record follows: the last one of an older file. `anchors` were kept elsewhere; without
    any, an end that was cut off leaves no trace. Those from before the first record say nothing here.
    """
    known = {anchor.sequence: anchor.hash for anchor in anchors}
    stream = iter(records)
    head, before = after, after
    for given in stream:
        record = _read(given)
        broken = _break_at(head, record, stream, known, is_first=head is after)
        if broken is not None:
            sound = before if broken.kind == "edited" and broken.sequence == head.sequence else head
            return ChainReport(head=sound, sound=sound.sequence - after.sequence, broken=broken)
        assert record is not None
        before, head = head, anchor_of(record)
    return ChainReport(head=head, sound=head.sequence - after.sequence, broken=_cut_off(head, known))


def verify_kept(lines: Iterable[bytes], *, begin: Anchor | None = None, anchors: Iterable[Anchor] = ()) -> ChainReport:
    """`verify` for a chain whose oldest records may have been deleted, with their files.

    `begin` is what the oldest record that must be there follows; None if nobody knows.
    """
    stream = iter(lines)
    first = next(stream, None)
    oldest = begin or GENESIS
    after = (None if first is None else _followed_by(first)) or oldest
    known = [*anchors, oldest]
    if begin is not None and after.sequence > begin.sequence:
        detail = f"the log begins with record {after.sequence + 1}; {after.sequence - begin.sequence} are gone"
        broken = ChainBreak(sequence=begin.sequence + 1, kind="removed", detail=detail)
        return ChainReport(head=begin, sound=0, broken=broken)
    if any(each.sequence == after.sequence and each.hash != after.hash for each in known):
        detail = "it is the first one, and does not follow the record that was anchored"
        broken = ChainBreak(sequence=after.sequence + 1, kind="edited", detail=detail)
        return ChainReport(head=after, sound=0, broken=broken)
    return verify(stream if first is None else chain([first], stream), after=after, anchors=known)


def _followed_by(first: bytes) -> Anchor | None:
    record = _read(first)
    return None if record is None else Anchor(sequence=record.sequence - 1, hash=record.previous)


def _read(given: AuditRecord | bytes) -> AuditRecord | None:
    if isinstance(given, AuditRecord):
        return given
    try:
        return decode(given)
    except ValueError:
        return None


def _break_at(
    head: Anchor,
    record: AuditRecord | None,
    rest: Iterator[AuditRecord | bytes],
    known: Mapping[int, str],
    *,
    is_first: bool,
) -> ChainBreak | None:
    expected = head.sequence + 1
    if record is None:
        return ChainBreak(sequence=expected, kind="unreadable", detail="no record in canonical form stands here")
    if record.sequence != expected:
        return _misplaced(expected, record, rest)
    anchor = anchor_of(record)
    if record.previous != head.hash:
        # The first one alone can be at fault: what it follows was kept elsewhere.
        changed = anchor.sequence if is_first else _changed(head, anchor, next(rest, None), known)
        detail = f"record {expected} does not follow record {head.sequence} as it is now"
        return ChainBreak(sequence=changed, kind="edited", detail=detail)
    if known.get(expected, anchor.hash) != anchor.hash:
        return _not_the_anchored(anchor, next(rest, None))
    return None


def _misplaced(expected: int, record: AuditRecord, rest: Iterator[AuditRecord | bytes]) -> ChainBreak:
    if record.sequence < expected:
        detail = f"record {record.sequence} stands where {expected} should, after later ones or a second time"
        return ChainBreak(sequence=record.sequence, kind="reordered", detail=detail)
    if any(later is not None and later.sequence == expected for later in map(_read, rest)):
        detail = f"it stands after record {record.sequence}"
        return ChainBreak(sequence=expected, kind="reordered", detail=detail)
    detail = f"record {record.sequence} stands where {expected} should; {record.sequence - expected} are missing"
    return ChainBreak(sequence=expected, kind="removed", detail=detail)


def _changed(head: Anchor, anchor: Anchor, following: AuditRecord | bytes | None, known: Mapping[int, str]) -> int:
    """Which of two records that do not fit together was changed: what comes after the second one vouches for it."""
    vouchers = [known[anchor.sequence]] if anchor.sequence in known else []
    follower = _read(following) if following is not None else None
    if follower is not None and follower.sequence == anchor.sequence + 1:
        vouchers.append(follower.previous)
    return anchor.sequence if vouchers and anchor.hash not in vouchers else head.sequence


def _not_the_anchored(anchor: Anchor, following: AuditRecord | bytes | None) -> ChainBreak:
    follower = _read(following) if following is not None else None
    if follower is not None and follower.previous == anchor.hash:
        detail = "the chain holds here and is not the one that was anchored: this record, or others before it, are new"
        return ChainBreak(sequence=anchor.sequence, kind="rewritten", detail=detail)
    return ChainBreak(sequence=anchor.sequence, kind="edited", detail="it is not the record that was anchored")


def _cut_off(head: Anchor, known: Mapping[int, str]) -> ChainBreak | None:
    last = max(known, default=0)
    if last <= head.sequence:
        return None
    detail = f"the chain ends with record {head.sequence}, and was anchored at record {last}"
    return ChainBreak(sequence=head.sequence + 1, kind="cut_off", detail=detail)
