"""Work on certificates, so much at once for each CA: one that hangs holds up its own certificates and no others."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from scaivaultd.model.ids import CertificateId

T = TypeVar("T")


class Lanes(Generic[T]):
    """A lane for each CA. Who waits goes by urgency, the smallest number first; each certificate stands in one once."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        name: str,
        work: Callable[[CertificateId], Awaitable[T]],
        worked: Callable[[CertificateId, T], None],
        *,
        at_once: int,
    ) -> None:
        """`work` must not fail; `worked` is called with what it returned, when the certificate stands in no lane any
        more. `name` begins the names of the tasks."""
        self._tasks = tasks
        self._name = name
        self._work = work
        self._worked = worked
        self._at_once = at_once
        self._waiting: dict[str, list[tuple[float, CertificateId]]] = {}
        self._running: dict[str, int] = {}
        self._held: set[CertificateId] = set()

    def add(self, directory_url: str, certificate_id: CertificateId, urgency: float) -> None:
        """Have it worked on in its turn; nothing changes if it is in a lane already."""
        if certificate_id in self._held:
            return
        self._held.add(certificate_id)
        heapq.heappush(self._waiting.setdefault(directory_url, []), (urgency, certificate_id))
        self._go_on(directory_url)

    def _go_on(self, directory_url: str) -> None:
        waiting = self._waiting.get(directory_url)
        while waiting and self._running.get(directory_url, 0) < self._at_once:
            _, certificate_id = heapq.heappop(waiting)
            self._running[directory_url] = self._running.get(directory_url, 0) + 1
            self._tasks.create_task(self._run(directory_url, certificate_id), name=f"{self._name} {certificate_id}")
        if not waiting:
            self._waiting.pop(directory_url, None)

    async def _run(self, directory_url: str, certificate_id: CertificateId) -> None:
        # Ended early by a cancellation only: then all lanes end, and nobody takes the place.
        outcome = await self._work(certificate_id)
        self._held.discard(certificate_id)
        self._running[directory_url] -= 1
        if not self._running[directory_url]:
            del self._running[directory_url]
        self._go_on(directory_url)
        self._worked(certificate_id, outcome)
