"""Documents as they were committed last, in memory: what is worked on is read again and again.

Only for a store with one process: everything that is written passes by here, in commit order, before anybody hears of
it. What a read has found is kept only if nothing was written while it ran, so that nothing old comes back.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from scaivaultd.model.storage import Changed, Stored

CAPACITY_BYTES = 8 << 20
_OVERHEAD_BYTES = 400
"""What a document costs beside its own bytes."""


class Recent:
    """The documents used last, up to a number of bytes. Documents that expire are not kept: nobody would notice."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._documents: OrderedDict[str, Stored] = OrderedDict()
        self.moment = 0
        """How many commits have been noted."""

    def get(self, key: str) -> Stored | None:
        """The document as last committed; None when it is not at hand, whether there is one or not."""
        stored = self._documents.get(key)
        if stored is not None:
            self._documents.move_to_end(key)
        return stored

    def note_commit(self, changed: Iterable[Changed], expiring: Collection[str]) -> None:
        """Keep what a commit has written, but for the keys in `expiring`, and drop what it has removed."""
        self.moment += 1
        for each in changed:
            self._drop(each.key)
            if each.stored is not None and each.key not in expiring:
                self._keep(each.stored)

    def note_read(self, stored: Stored, began: int) -> None:
        """Keep what a read has found that began at `moment`, unless something was written since."""
        if began == self.moment:
            self._drop(stored.key)
            self._keep(stored)

    def _keep(self, stored: Stored) -> None:
        self._documents[stored.key] = stored
        self._bytes += _size(stored)
        while self._bytes > self._capacity_bytes:
            self._bytes -= _size(self._documents.popitem(last=False)[1])

    def _drop(self, key: str) -> None:
        stored = self._documents.pop(key, None)
        if stored is not None:
            self._bytes -= _size(stored)


def _size(stored: Stored) -> int:
    return len(stored.document) + len(stored.key) + _OVERHEAD_BYTES
