"""Telling an outage once, however many notice it: at its beginning and at its end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from datetime import datetime

OUTAGES_MAX = 100
"""Of so many CAs it is kept in mind; with more, some are told again."""

TOLD_AGAIN_AFTER = timedelta(hours=1)
"""A CA that fails now and then would otherwise begin an outage with each failure."""

LAST_AFTER = timedelta(days=1)
"""After such a time without failures it is over, whoever failed then."""


class _Outage(msgspec.Struct, frozen=True):
    told_at: datetime
    failed_at: datetime
    is_over: bool = False


class Outages:
    """Which CAs do not answer as they should."""

    def __init__(self) -> None:
        self._known: dict[str, _Outage] = {}

    def failed(self, directory_url: str, now: datetime) -> bool:
        """Note a failure; whether it is to be told."""
        known = self._known.pop(directory_url, None)
        is_news = known is None or (known.is_over and now - known.told_at >= TOLD_AGAIN_AFTER)
        if known is None or is_news:
            known = _Outage(told_at=now, failed_at=now)
        if len(self._known) >= OUTAGES_MAX:
            del self._known[next(iter(self._known))]
        self._known[directory_url] = msgspec.structs.replace(known, failed_at=now)
        return is_news

    def answered(self, directory_url: str, now: datetime, *, had_failed: bool) -> bool:
        """Note an answer; whether the end of an outage is to be told.

        An answer to who `had_failed` ends it; others may never have been concerned.
        """
        known = self._known.get(directory_url)
        if known is None or known.is_over or not (had_failed or now - known.failed_at >= LAST_AFTER):
            return False
        self._known[directory_url] = msgspec.structs.replace(known, is_over=True)
        return True
