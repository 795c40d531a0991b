"""One writer at a time for each record name, where a set is read, merged and replaced.

The daemon promises that, too. Other hosts may not, and writers of one process that race each other would only lose
rounds: with ten of them, some lose every one.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary


class NameLocks:
    """The locks of one provider; each is gone when nobody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    def of(self, zone_id: str, name: str) -> asyncio.Lock:
        """The lock of a name in a zone: two zones may have it, each with a set of its own."""
        lock = self._locks.get((zone_id, name))
        if lock is None:
            lock = self._locks[zone_id, name] = asyncio.Lock()
        return lock
