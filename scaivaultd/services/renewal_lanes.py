"""Work on certificates, so much at once for each CA: one that hangs holds up its own certificates and no others."""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import CertificateId

T = TypeVar("T")


class Pace:
    """At most so many begin in any second, for each CA: one that answers fast is not to be flooded."""

    def __init__(self, clock: Clock, per_second: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._begun: dict[str, deque[float]] = {}

    @property
    def kept(self) -> int:
        """Of how many CAs it is known when something began."""
        return len(self._begun)

    def seconds_left(self, directory_url: str) -> float:
        """Until when the next must wait; 0 if it may begin now."""
        begun = self._begun.get(directory_url)
        if begun is None or len(begun) < self._per_second:
            return 0.0
        return max(0.0, begun[0] + 1.0 - self._clock.monotonic())

    def begin(self, directory_url: str) -> None:
        """One begins."""
        now = self._clock.monotonic()
        if directory_url not in self._begun:
            # What is over says nothing any more: CAs come and go with their accounts.
            self._begun = {url: begun for url, begun in self._begun.items() if begun[-1] + 1.0 > now}
            self._begun[directory_url] = deque(maxlen=self._per_second)
        self._begun[directory_url].append(now)

    async def wait(self, directory_url: str) -> None:
        """Wait until the next may begin."""
        while (seconds := self.seconds_left(directory_url)) > 0:
            await self._clock.sleep(seconds)


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
        pace: Pace | None = None,
    ) -> None:
        """`work` must not fail; `worked` is called with what it returned, when the certificate stands in no lane any
        more. `name` begins the names of the tasks."""
        self._tasks = tasks
        self._name = name
        self._work = work
        self._worked = worked
        self._at_once = at_once
        self._pace = pace
        self._pausing: set[str] = set()
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
        while waiting and self._running.get(directory_url, 0) < self._at_once and self._may_begin(directory_url):
            _, certificate_id = heapq.heappop(waiting)
            if self._pace is not None:
                self._pace.begin(directory_url)
            self._running[directory_url] = self._running.get(directory_url, 0) + 1
            self._tasks.create_task(self._run(directory_url, certificate_id), name=f"{self._name} {certificate_id}")
        if not waiting:
            self._waiting.pop(directory_url, None)

    def _may_begin(self, directory_url: str) -> bool:
        """Whether the pace lets another begin; if not, the lane goes on when it does."""
        if self._pace is None:
            return True
        if directory_url in self._pausing:
            return False
        if self._pace.seconds_left(directory_url) > 0:
            self._pausing.add(directory_url)
            self._tasks.create_task(self._pause(self._pace, directory_url), name=f"pace of {self._name}")
            return False
        return True

    async def _pause(self, pace: Pace, directory_url: str) -> None:
        await pace.wait(directory_url)
        self._pausing.discard(directory_url)
        self._go_on(directory_url)

    async def _run(self, directory_url: str, certificate_id: CertificateId) -> None:
        # Ended early by a cancellation only: then all lanes end, and nobody takes the place.
        outcome = await self._work(certificate_id)
        self._held.discard(certificate_id)
        self._running[directory_url] -= 1
        if not self._running[directory_url]:
            del self._running[directory_url]
        self._go_on(directory_url)
        self._worked(certificate_id, outcome)
