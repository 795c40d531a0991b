"""Carries events from the outbox to NATS: at least once, in commit order, until the stream has acknowledged.

The stream drops what it has seen within its duplicate window, by event id. An event whose fate is
unknown (left over from another process, or its acknowledgement never came) may be older than that
window, so before it is sent again the stream is asked what it holds on that subject.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import nats.errors
import nats.js.errors
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from scaivaultd.api.events import cloud_event_headers
from scaivaultd.model import metrics
from scaivaultd.model.errors import StorageUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nats.js.client import JetStreamContext
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.storage import Pending

STREAM = "SCAIVAULT_EVENTS"
STREAM_MAX_AGE_SECONDS = 90 * 86_400.0
STREAM_MAX_BYTES = 256 << 20
DUPLICATE_WINDOW_SECONDS = 600.0
_BATCH = 100
_ACK_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 10.0
_LOG_EVERY_SECONDS = 60.0


class Outbox(Protocol):
    """The store as the publisher sees it."""

    async def pending_events(self, limit: int = 100) -> Sequence[Pending]:
        """The oldest events, in commit order."""
        ...

    async def forget_events(self, sequences: Sequence[int]) -> None:
        """Drop events that are acknowledged."""
        ...

    async def wait_for_events(self) -> None:
        """Return when there is one."""
        ...


class Publisher:
    """The one that empties the outbox."""

    def __init__(
        self,
        bus: NatsBus,
        outbox: Outbox,
        *,
        events_root: str,
        source: str,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._bus = bus
        self._outbox = outbox
        self._events_root = events_root
        self._source = source
        self._clock = clock
        self._log = log
        self._jetstream: JetStreamContext = bus.client.jetstream(timeout=_ACK_SECONDS)
        self._has_stream = False
        self._doubtful_until: int | None = None
        self._last_logged = float("-inf")
        self.blocked_by: str | None = None

    async def run(self) -> None:
        """Publish for ever; whatever goes wrong with NATS is waited out."""
        await self._doubt_what_is_there()
        pause = 0.1
        while True:
            try:
                await self._bus.connected()
                # Before the first event: subscribers can then bind to the stream from the start.
                if not self._has_stream:
                    await self._ensure_stream()
                # To have found the stream says nothing about what it takes; with nothing to send that is all there is.
                if self.blocked_by is not None and not await self._outbox.pending_events(1):
                    self.blocked_by = None
                await self._outbox.wait_for_events()
                await self._carry()
                self.blocked_by = None
                pause = 0.1
            except (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError, StorageUnavailable) as error:
                self._complain(error)
                # Whatever it was, the server may be another one next time, without our stream.
                self._has_stream = False
                await self._doubt_what_is_there()
                await self._clock.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _carry(self) -> None:
        acknowledged: dict[str, int] = {}
        for pending in await self._outbox.pending_events(_BATCH):
            subject = f"{self._events_root}.{pending.event.type}.{pending.event.resource_id}"
            if subject in acknowledged:
                # After a crash the stream is asked for the last event of a subject: it can speak for one only.
                await self._outbox.forget_events(list(acknowledged.values()))
                acknowledged.clear()
            await self._publish(pending, subject)
            acknowledged[subject] = pending.sequence
        await self._outbox.forget_events(list(acknowledged.values()))

    async def _publish(self, pending: Pending, subject: str) -> None:
        event = pending.event
        if self._is_doubtful(pending) and await self._last_event_id(subject) == event.id:
            return
        headers = {**cloud_event_headers(event, self._source), "Nats-Msg-Id": event.id}
        size = len(event.data) + sum(len(name) + len(value) + 4 for name, value in headers.items()) + 32
        if size > self._bus.client.max_payload:
            # The server would close the connection, and every later event would wait behind this one.
            self._log.error("event.too_large", event_id=event.id, subject=subject, bytes=size)
            return
        await self._jetstream.publish(subject, event.data, timeout=_ACK_SECONDS, headers=headers)
        metrics.EVENTS_PUBLISHED.labels(type=event.type).inc()
        self._log.debug("event.published", event_id=event.id, subject=subject)

    async def _ensure_stream(self) -> None:
        """Make the stream unless it is there; one that an administrator has made is left as it is."""
        try:
            await self._jetstream.stream_info(STREAM)
        except nats.js.errors.NotFoundError:
            await self._jetstream.add_stream(
                StreamConfig(
                    name=STREAM,
                    description="Certificate events of scaivaultd",
                    subjects=[f"{self._events_root}.>"],
                    retention=RetentionPolicy.LIMITS,
                    storage=StorageType.FILE,
                    discard=DiscardPolicy.OLD,
                    max_age=STREAM_MAX_AGE_SECONDS,
                    max_bytes=STREAM_MAX_BYTES,
                    duplicate_window=DUPLICATE_WINDOW_SECONDS,
                    num_replicas=1,
                )
            )
            self._log.info("events.stream_created", stream=STREAM)
        self._has_stream = True

    async def _last_event_id(self, subject: str) -> str | None:
        try:
            last = await self._jetstream.get_last_msg(STREAM, subject)
        except nats.js.errors.NotFoundError:
            return None
        return (last.headers or {}).get("Nats-Msg-Id")

    async def _doubt_what_is_there(self) -> None:
        """Everything queued up to now may have been sent already; what comes later has not."""
        try:
            pending = await self._outbox.pending_events(_BATCH)
        except StorageUnavailable:
            return
        if pending:
            self._doubtful_until = pending[-1].sequence

    def _is_doubtful(self, pending: Pending) -> bool:
        return self._doubtful_until is not None and pending.sequence <= self._doubtful_until

    def _complain(self, error: Exception) -> None:
        self.blocked_by = _reason(error)
        if self._clock.monotonic() - self._last_logged >= _LOG_EVERY_SECONDS:
            self._last_logged = self._clock.monotonic()
            self._log.warning("events.waiting", reason=self.blocked_by)


def _reason(error: Exception) -> str:
    if isinstance(error, nats.js.errors.ServiceUnavailableError | nats.errors.NoRespondersError):
        return "the NATS server does not answer for JetStream: switch it on there, or wait for its cluster"
    return f"{type(error).__name__}: {error}"
