"""Reading the audit log, in a thread: a page of it for a person, or all of it to see whether it is whole."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.api.audit import GENESIS, anchor_of, decode, verify_kept
from scaivaultd.services.documents import PAGE_BYTES

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.audit import ChainReport
    from scaivaultd.model.access import Anchor, AuditRecord
    from scaivaultd.services.ports import AuditFile

LINES_PER_PAGE = 50_000
"""So many lines are looked at for one page: a filter that fits nothing must not read the whole log in one request."""

_PROGRESS_LINES = 1_000_000
_LOOK_LINES = 1_000


class End(msgspec.Struct, frozen=True, kw_only=True):
    """Where a chain ends: its last record's anchor, and what was found behind that."""

    head: Anchor
    torn_bytes: int
    unreadable_lines: int


class Stopped(Exception):
    """A verification was given up."""


def find_end(file: AuditFile) -> End:
    """Make the files ready for more; raises OSError."""
    torn_bytes = file.resume()
    unreadable = 0
    for _, line in file.read_back():
        try:
            return End(head=anchor_of(decode(line)), torn_bytes=torn_bytes, unreadable_lines=unreadable)
        except ValueError:
            unreadable += 1
    return End(head=GENESIS, torn_bytes=torn_bytes, unreadable_lines=unreadable)


def fits(file: AuditFile, anchor: Anchor) -> bool:
    """Whether the newest record with the anchor's sequence is the one that was anchored; raises OSError."""
    for _, line in file.read_back():
        try:
            record = decode(line)
        except ValueError:
            continue
        if record.sequence <= anchor.sequence:
            return anchor_of(record) == anchor
    return False


def page(file: AuditFile, request: am.ListAudit) -> am.AuditList:
    """One page; raises OSError, and ValueError for a cursor that is none."""
    lines = file.read_back(request.cursor)
    given = (request.principal, request.action, request.object)
    # Text that is not in a line cannot be in its record: most lines need not be decoded.
    texts = [msgspec.json.encode(each)[1:-1] for each in given if each is not None]
    items: list[AuditRecord] = []
    size = 0
    cursor: str | None = None
    for position, line in islice(lines, LINES_PER_PAGE):
        cursor = position
        record = _wanted(line, request) if all(text in line for text in texts) else None
        if record is None:
            continue
        items.append(record)
        size += len(line)
        if len(items) == request.limit or size >= PAGE_BYTES:
            break
    is_end = next(lines, None) is None
    return am.AuditList(items=items, next_cursor=None if is_end else cursor)


def _wanted(line: bytes, request: am.ListAudit) -> AuditRecord | None:
    try:
        record = decode(line)
    except ValueError:
        return None
    is_wanted = (
        request.principal in (None, record.principal)
        and request.action in (None, record.action)
        and (request.object is None or request.object in (record.object, *record.object.split()))
    )
    return record if is_wanted else None


def verified(
    lines: Iterator[bytes],
    begin: Anchor | None,
    anchors: Sequence[Anchor],
    *,
    stop: threading.Event,
    log: FilteringBoundLogger,
) -> ChainReport:
    """Look at every line; raises OSError, and `Stopped` soon after `stop` was set."""
    return verify_kept(_watched(lines, stop, log), begin=begin, anchors=anchors)


def _watched(lines: Iterator[bytes], stop: threading.Event, log: FilteringBoundLogger) -> Iterator[bytes]:
    for number, line in enumerate(lines, 1):
        if number % _LOOK_LINES == 0 and stop.is_set():
            raise Stopped
        if number % _PROGRESS_LINES == 0:
            log.info("audit.verifying", records=number)
        yield line
