"""The audit chain: what was written stays as it was, or it shows."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaivaultd.api.audit import GENESIS, ChainReport, anchor_of, decode, encode, follow, verify
from scaivaultd.model.access import Anchor, AuditEntry, AuditRecord

NOW = datetime(2026, 11, 1, tzinfo=UTC)


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        at=NOW + timedelta(seconds=number),
        principal="token:Ab3dEf9h",
        tenant="web",
        action="cert.issue",
        object=f"acme_order_{number}",
        decision="allow",
        policy="web-team",
        rule=1,
        result="ok",
        request_id=f"req_{number}",
    )


def chain(length: int, after: Anchor = GENESIS) -> list[AuditRecord]:
    records: list[AuditRecord] = []
    for number in range(1, length + 1):
        after = anchor_of(records[-1]) if records else after
        records.append(follow(after, entry(number)))
    return records


def rewritten(records: list[AuditRecord], at: int) -> list[AuditRecord]:
    """What somebody makes who changes a record and all that follow it."""
    changed = [*records[:at], msgspec.structs.replace(records[at], result="permission_denied")]
    for record in records[at + 1 :]:
        changed.append(msgspec.structs.replace(record, previous=anchor_of(changed[-1]).hash))
    return changed


def found(report: ChainReport) -> tuple[int, str] | None:
    return (report.broken.sequence, report.broken.kind) if report.broken is not None else None


RECORDS = chain(6)
END = anchor_of(RECORDS[-1])
FORGED = msgspec.structs.replace(RECORDS[2], object="acme_order_9")


def test_a_whole_chain_is_whole_as_records_and_as_lines() -> None:
    """With and without what was anchored, and with nothing at all."""
    lines = [encode(record) + b"\n" for record in RECORDS]
    for report in (verify(RECORDS), verify(lines), verify(RECORDS, anchors=[anchor_of(RECORDS[2]), END])):
        assert report == ChainReport(head=END, sound=6)
    assert verify([]) == ChainReport(head=GENESIS, sound=0)


def test_a_record_is_one_canonical_line_and_its_hash_can_be_made_by_hand() -> None:
    """An auditor has sha256sum and no scaivaultd."""
    line = encode(RECORDS[0])
    assert line == (
        b'{"action":"cert.issue","at":"2026-11-01T00:00:01Z","decision":"allow","object":"acme_order_1",'
        b'"policy":"web-team","previous":"' + b"0" * 64 + b'","principal":"token:Ab3dEf9h","request_id":"req_1",'
        b'"result":"ok","rule":1,"sequence":1,"tenant":"web"}'
    )
    assert RECORDS[1].previous == hashlib.sha256(line).hexdigest()
    assert decode(line + b"\n") == RECORDS[0]


@pytest.mark.parametrize(
    "records",
    [
        [*RECORDS[:2], FORGED, *RECORDS[3:]],
        [*RECORDS[:2], msgspec.structs.replace(RECORDS[2], previous="f" * 64), *RECORDS[3:]],
        [*RECORDS[:2], msgspec.structs.replace(FORGED, previous="f" * 64), *RECORDS[3:]],
    ],
)
def test_an_edited_record_is_named(records: list[AuditRecord]) -> None:
    """Body or link: the one that was changed, not its neighbour."""
    report = verify(records)
    assert found(report) == (3, "edited")
    assert report.head == anchor_of(RECORDS[1])
    assert report.sound == 2


def test_an_edited_record_is_named_although_a_later_one_is_gone() -> None:
    """A record that does not follow vouches for nothing."""
    assert found(verify([*RECORDS[:2], FORGED, RECORDS[3], RECORDS[5]])) == (3, "edited")


def test_an_edited_first_record_is_named() -> None:
    """Nothing stands before it."""
    first = msgspec.structs.replace(RECORDS[0], result="not_found")
    assert found(verify([first, *RECORDS[1:]])) == (1, "edited")
    first = msgspec.structs.replace(RECORDS[0], previous="f" * 64)
    assert found(verify([first, *RECORDS[1:]])) == (1, "edited")
    assert found(verify([first])) == (1, "edited")


def test_where_nothing_vouches_for_the_last_record_the_one_before_is_named() -> None:
    """One of the two was changed; the words name both."""
    report = verify([*RECORDS[:4], msgspec.structs.replace(RECORDS[4], result="x"), RECORDS[5]])
    assert (found(report), report.sound) == ((5, "edited"), 4)
    assert report.broken is not None
    assert report.broken.detail == "record 6 does not follow record 5 as it is now"


def test_an_edited_last_record_needs_an_anchor() -> None:
    """Nothing follows that could tell; this is what anchors are for."""
    last = msgspec.structs.replace(RECORDS[-1], result="not_found")
    assert found(verify([*RECORDS[:-1], last])) is None
    assert found(verify([*RECORDS[:-1], last], anchors=[END])) == (6, "edited")
    unlinked = msgspec.structs.replace(RECORDS[-1], previous="f" * 64)
    assert found(verify([*RECORDS[:-1], unlinked], anchors=[END])) == (6, "edited")


def test_a_removed_record_is_named() -> None:
    """One, several, the first."""
    assert found(verify([*RECORDS[:2], *RECORDS[3:]])) == (3, "removed")
    assert found(verify([*RECORDS[:1], *RECORDS[4:]])) == (2, "removed")
    assert found(verify(RECORDS[1:])) == (1, "removed")


def test_renumbering_does_not_hide_a_removal() -> None:
    """The hashes still do not fit."""
    moved = [msgspec.structs.replace(each, sequence=each.sequence - 1) for each in RECORDS[3:]]
    assert verify([*RECORDS[:2], *moved]).broken is not None


def test_reordered_and_repeated_records_are_told() -> None:
    """A record that comes late, and one that comes twice."""
    one, two, three, four, *_ = RECORDS
    assert found(verify([one, three, two, four])) == (2, "reordered")
    report = verify([one, two, two, three])
    assert (found(report), report.sound) == ((2, "reordered"), 2)
    report = verify([one, two, three, one])
    assert (found(report), report.sound) == ((1, "reordered"), 3)


def test_an_end_cut_off_is_told_by_an_anchor_only() -> None:
    """A chain that is shorter is a whole chain."""
    assert found(verify(RECORDS[:4])) is None
    assert found(verify(RECORDS[:4], anchors=[END])) == (5, "cut_off")
    assert found(verify([], anchors=[END])) == (1, "cut_off")
    assert found(verify(RECORDS[:5], anchors=[anchor_of(RECORDS[4])])) is None


def test_a_rewritten_chain_is_told_by_an_anchor_only() -> None:
    """Whoever owns the disk can make every hash fit, but not the ones kept elsewhere."""
    forged = rewritten(RECORDS, 2)
    assert found(verify(forged)) is None
    assert found(verify(forged, anchors=[anchor_of(RECORDS[1])])) is None
    assert found(verify(forged, anchors=[anchor_of(RECORDS[3])])) == (4, "rewritten")
    assert found(verify(forged, anchors=[END])) == (6, "edited")


def test_a_later_file_follows_the_one_before() -> None:
    """Rotation keeps the chain; older anchors say nothing of a newer file."""
    older = anchor_of(RECORDS[2])
    report = verify(RECORDS[3:], after=older, anchors=[anchor_of(RECORDS[0]), END])
    assert report == ChainReport(head=END, sound=3)
    assert found(verify(RECORDS[3:], after=Anchor(sequence=3, hash="f" * 64))) == (4, "edited")
    assert found(verify(RECORDS[4:], after=older)) == (4, "removed")


LINE = encode(RECORDS[2])


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"\xff",
        LINE[:-10],
        LINE.replace(b'":"', b'": "', 1),
        LINE[:-1] + b',"note":"x"}',
        b'{"action":"cert.read",' + LINE[1:],
        LINE.replace(b"+00:00", b"Z").replace(b"03Z", b"03+00:00"),
        LINE + LINE,
        LINE.replace(b'"rule":1', b'"rule":null'),
    ],
)
def test_a_line_that_is_not_canonical_is_no_record(line: bytes) -> None:
    """What two readers could read in two ways, or what one of them leaves out, proves nothing."""
    lines = [encode(record) for record in RECORDS]
    lines[2] = line
    assert found(verify(lines)) in {(3, "unreadable"), (3, "edited")}
    if b"null" not in line:
        with pytest.raises(ValueError, match=r".+"):
            decode(line)


@given(st.integers(0, 5), st.data())
def test_every_change_of_a_byte_is_found(at: int, data: st.DataObject) -> None:
    """With the end anchored no byte is free."""
    lines = [encode(record) for record in RECORDS]
    place = data.draw(st.integers(0, len(lines[at]) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != lines[at][place]))
    lines[at] = lines[at][:place] + bytes([byte]) + lines[at][place + 1 :]
    assert verify(lines, anchors=[END]).broken is not None


@given(st.lists(st.sampled_from(RECORDS), max_size=8))
def test_no_other_sequence_of_the_records_is_whole(records: list[AuditRecord]) -> None:
    """Only the chain itself, or its beginning where no end is anchored."""
    assert (verify(records).broken is None) is (records == RECORDS[: len(records)])
    assert (verify(records, anchors=[END]).broken is None) is (records == RECORDS)
