"""The words services and stores share: what is put, what comes back, what changed.

They live here because a service and a store are neighbours that may not import each other.
The contract itself is `Store` in `services/ports.py`; `tests/store/test_conformance.py` is its
judge and runs against every backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.ids import EventId

if TYPE_CHECKING:
    from collections.abc import Mapping

ABSENT = 0
"""Expected revision of a key that must not exist yet. Real revisions start at 1 and only grow."""


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """Write one document.

    `expect_revision`: None writes over whatever is there, ABSENT demands a new key, a number
    demands exactly that revision. `index` are the pairs a scan may filter by; they replace the
    pairs of the previous revision. With `ttl_seconds` the document vanishes that long after this write.
    """

    key: str
    document: bytes
    expect_revision: int | None = None
    ttl_seconds: float | None = None
    index: Mapping[str, str] = {}


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Remove one document; removing what is absent is no error unless a revision is expected."""

    key: str
    expect_revision: int | None = None


Change = Put | Delete


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A document as it stands in the store. `revision` is unique in the store and grows with every write."""

    key: str
    revision: int
    document: bytes


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a scan in key order; `next_cursor` is None on the last page."""

    items: tuple[Stored, ...]
    next_cursor: str | None = None


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """What a watcher sees: a document's new state, or `stored` None after removal."""

    key: str
    stored: Stored | None


class OutboxEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event waiting to be carried out: written with the change that it reports, or not at all.

    `type` is ours (`certificate.issued`), `resource_id` the id that ends the subject, `time`
    RFC 3339, `data` the JSON body, `traceparent` what it was done for. `id` makes the event unique for ever.
    """

    id: EventId
    type: str
    resource_id: str
    time: str
    data: bytes
    traceparent: str | None = None


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """What waits in the outbox; `oldest` is when its oldest event happened, as the event says it."""

    count: int
    oldest: str | None


class LogBounds(msgspec.Struct, frozen=True, kw_only=True):
    """The sequence of the oldest event that is kept (None: there is none), and of the newest that there ever was."""

    oldest: int | None
    newest: int


class LogScan(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of the log are wanted: those behind `after`, of one type or of a `family.*`, about one resource."""

    after: int
    limit: int
    type: str | None = None
    resource_id: str | None = None


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """An event with its place in the outbox, or in the log; `sequence` grows in commit order."""

    sequence: int
    event: OutboxEvent


class LogPage(msgspec.Struct, frozen=True, kw_only=True):
    """Events of the log, and how far it was looked at for them: what lies behind `reached` is still to be seen."""

    items: tuple[Pending, ...]
    reached: int
