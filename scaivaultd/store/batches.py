"""What may be asked of a store: the grammar of keys and the size of a commit, the same for every backend.

The limits are those of the narrowest backend in sight (a NATS message, a JetStream batch), so that
a daemon that works on one works on all. Breaking them is a fault of the calling service, hence
ValueError: no caller of the daemon can bring it about.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from scaivaultd.model.storage import Put

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.model.storage import Change, OutboxEvent

MAX_ENTRIES = 500
"""Changes and events in one commit, together."""

MAX_DOCUMENT_BYTES = 1 << 20
"""A document, or the body of an event."""

MAX_KEY_LENGTH = 255
MAX_PAGE = 1000
"""Documents in one page, whatever the caller's `limit`."""

_KEY = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_PREFIX = re.compile(r"[A-Za-z0-9._/-]*")


def check_batch(changes: Sequence[Change], events: Sequence[OutboxEvent]) -> None:
    """Refuse a commit that not every backend could carry.

    Raises:
        ValueError: too much at once, a key that is none, or a key named twice (which of the two
            would be the new state?).
    """
    if len(changes) + len(events) > MAX_ENTRIES:
        raise ValueError(f"a commit holds at most {MAX_ENTRIES} changes and events, not {len(changes) + len(events)}")
    if len({change.key for change in changes}) != len(changes):
        raise ValueError("a commit names the same key twice")
    for change in changes:
        check_key(change.key)
        if isinstance(change, Put):
            _check_put(change)
    for event in events:
        _check_size(f"event {event.id}", event.data)


def check_key(key: str) -> None:
    """Refuse what is no key: `/`-separated words of `[A-Za-z0-9._-]`, 255 characters at most.

    Raises:
        ValueError: with the offending key.
    """
    if len(key) > MAX_KEY_LENGTH or not _KEY.fullmatch(key):
        raise ValueError(f"not a key: {key[:MAX_KEY_LENGTH]!r}")


def check_prefix(prefix: str) -> None:
    """Refuse a prefix no key can start with; the empty one means everything.

    Raises:
        ValueError: with the offending prefix.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"not the beginning of a key: {prefix[:MAX_KEY_LENGTH]!r}")


def end_of_prefix(prefix: str) -> str | None:
    """The first key behind all that start with `prefix`, None when nothing is behind.

    Keys sort by code point, so `a/` ends at `a0` (`0` follows `/`) and `a0` itself is outside.
    """
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else None


def check_ttl(ttl_seconds: float) -> None:
    """Refuse a time to live that is over before it begins.

    Raises:
        ValueError: zero, negative, infinite or not a number.
    """
    if not 0 < ttl_seconds < math.inf:
        raise ValueError(f"a time to live is a positive number of seconds, not {ttl_seconds}")


def _check_put(put: Put) -> None:
    _check_size(put.key, put.document)
    _check_index(put.index)
    if put.ttl_seconds is not None:
        check_ttl(put.ttl_seconds)


def _check_size(what: str, body: bytes) -> None:
    if len(body) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{what} has {len(body)} bytes; {MAX_DOCUMENT_BYTES} are the most")


def _check_index(index: Mapping[str, str]) -> None:
    if len(index) > MAX_ENTRIES:
        raise ValueError(f"a document is listed under at most {MAX_ENTRIES} pairs, not {len(index)}")
