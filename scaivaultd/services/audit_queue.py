"""Audit records that wait to be written: in order, so many and no more, none of them longer than a record may be."""

from __future__ import annotations

import re
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.access import AuditEntry
from scaivaultd.model.principals import SYSTEM

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Sequence
    from datetime import datetime

QUEUE_RECORDS = 10_000
BATCH_RECORDS = 1_000

TEXT_CHARACTERS = 1_000
"""Longer texts in a record are cut: names and references come from callers."""

# What must never be written where nothing can be taken away again, should a caller put it in place of a name.
_SECRET = re.compile(
    r"scv[a-z]_[0-9A-Za-z_-]+|-----BEGIN .*|://[^/\s:@]+:[^/\s@]+@|\bS[UAOCNX][A-Z2-7]{56}\b", re.DOTALL
)


class Queued:
    """A record that waits; `written` is told once: None, or why it could not be written."""

    __slots__ = ("durably", "entry", "written")

    def __init__(self, entry: AuditEntry, written: asyncio.Future[str | None] | None = None, *, durably: bool = False):
        self.entry = _bounded(entry)
        self.durably = durably
        self.written = written

    def tell(self, failure: str | None) -> None:
        """Let whoever waits for it go on."""
        if self.written is not None and not self.written.done():
            self.written.set_result(failure)
        self.written = None


class AuditQueue:
    """The queue; `lost` counts what found no place in it."""

    def __init__(self) -> None:
        self._waiting: deque[Queued] = deque()
        self.lost = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Queued]:
        return iter(self._waiting)

    @property
    def newest(self) -> Queued | None:
        """What came last."""
        return self._waiting[-1] if self._waiting else None

    def add(self, queued: Queued) -> bool:
        """Queue it; False where there is no place."""
        if len(self._waiting) >= QUEUE_RECORDS:
            self.lost += 1
            return False
        self._waiting.append(queued)
        return True

    def add_first(self, entry: AuditEntry) -> None:
        """Queue what has to be in the chain before everything that waits."""
        self._waiting.appendleft(Queued(entry))

    def batch(self) -> Sequence[Queued]:
        """What is to be written next; it stays here until it is."""
        return list(islice(self._waiting, BATCH_RECORDS))

    def written(self, batch: Sequence[Queued]) -> None:
        """Let go of a batch, nothing having been added before it."""
        for each in batch:
            self._waiting.popleft()
            each.tell(None)


def own_entry(action: str, about: str, now: datetime) -> AuditEntry:
    """What the log says of itself."""
    return AuditEntry(
        at=now,
        principal=str(SYSTEM),
        tenant="default",
        action=action,
        object=about,
        decision="allow",
        result="ok",
        request_id="",
    )


def _bounded(entry: AuditEntry) -> AuditEntry:
    about, source = _clean(entry.object), None if entry.source is None else _clean(entry.source)
    if (about, source) == (entry.object, entry.source):
        return entry
    return msgspec.structs.replace(entry, object=about, source=source)


def _clean(text: str) -> str:
    text = _SECRET.sub("***", text)
    return text if len(text) <= TEXT_CHARACTERS else f"{text[: TEXT_CHARACTERS - 3]}..."
