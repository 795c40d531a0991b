"""Which certificate is to be looked at next: a heap with one live entry for each. Pure.

An entry that is replaced stays in the heap and is passed over when it comes up; when more are dead than alive the
heap is made anew, so that it never holds much more than it has certificates.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaivaultd.model.ids import CertificateId

AT_ONCE = 0.0
"""A moment that has always passed."""

_DEAD_ALLOWED = 64


class DueHeap:
    """Certificates by the moment (Unix time) at which each is due."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, CertificateId]] = []
        self._live: dict[CertificateId, tuple[float, CertificateId]] = {}

    def __len__(self) -> int:
        return len(self._live)

    def put(self, certificate_id: CertificateId, at: float) -> None:
        """Make it due at this moment, whatever was said before."""
        entry = (at, certificate_id)
        self._live[certificate_id] = entry
        heapq.heappush(self._entries, entry)
        if len(self._entries) > 2 * len(self._live) + _DEAD_ALLOWED:
            self._entries = list(self._live.values())
            heapq.heapify(self._entries)

    def bring_forward(self, certificate_id: CertificateId, at: float) -> None:
        """Make it due at this moment at the latest."""
        entry = self._live.get(certificate_id)
        if entry is None or at < entry[0]:
            self.put(certificate_id, at)

    def discard(self, certificate_id: CertificateId) -> None:
        """Forget it; no error if it is not there."""
        self._live.pop(certificate_id, None)

    def next_at(self) -> float | None:
        """When the next one is due; None when there is none."""
        while self._entries and self._is_dead(self._entries[0]):
            heapq.heappop(self._entries)
        return self._entries[0][0] if self._entries else None

    def take_due(self, now: float) -> CertificateId | None:
        """Take out the one that has been due the longest; None when none is due yet."""
        at = self.next_at()
        if at is None or at > now:
            return None
        _, certificate_id = heapq.heappop(self._entries)
        del self._live[certificate_id]
        return certificate_id

    def _is_dead(self, entry: tuple[float, CertificateId]) -> bool:
        # By identity: the same moment said twice makes two entries, and only one of them counts.
        return self._live.get(entry[1]) is not entry
