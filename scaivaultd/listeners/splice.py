"""Two TCP connections joined into one: a client's, and one to the server that stands behind us.

What holds here:

* Bytes pass unread and unchanged, first those that were read before it was clear whom they are for.
* Who stops sending is passed on as just that, and the other direction goes on.
* What one end does not take is not read from the other: little is held for anybody.
* Where nothing moves in either direction for long, both ends are closed.
* When the house is full, or a network has its share of it, the splice that has been quiet for longest goes and the
  new one comes in.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, cast

import msgspec

from scaivaultd.listeners.door import LINGER_BYTES
from scaivaultd.listeners.http01_admission import Admission, Sampler, network_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock

_CLOSE_SECONDS = 2.0
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class SpliceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much clients of the server behind us may use.

    `buffer_bytes` is what may be held in each direction of one connection, `idle_seconds` how long nothing may
    move. `per_network` counts as in `Http01Limits`.
    """

    # Read in smaller pieces than loopback's segments (65,483 bytes), the kernel delays acknowledgements: measured, a
    # local server's answers of 64 KiB then stall for 40 ms each.

    connections: int = 1024
    per_network: int = 256
    buffer_bytes: int = 64 * 1024
    connect_seconds: float = 5.0
    idle_seconds: float = 600.0

    @property
    def unfinished(self) -> int:
        """The time of each runs."""
        return self.connections

    @property
    def patience_seconds(self) -> float:
        """Until a quiet one has to go."""
        return self.idle_seconds


class SpliceCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What happened since the start; `connections` is how many there are now."""

    spliced: int
    unreachable: int
    evicted: int
    timed_out: int
    connections: int


class _End(asyncio.BufferedProtocol):
    """One of the two connections. What it reads, the other one writes."""

    def __init__(self, splice: _Splice, buffer: memoryview) -> None:
        self._splice = splice
        self._buffer = buffer
        self._thrown_away = 0
        self._is_taking_leave = False
        self._other: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.is_at_end = False
        """It will send no more."""

    def attach(self, transport: asyncio.Transport, other: _End) -> None:
        """From now on this is a connection, and `other` gets what it says."""
        self._other = other
        self.transport = transport
        # Whatever the kernel does not take at once stops the other end: no more than one buffer is held.
        transport.set_write_buffer_limits(high=0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._splice.join(cast("asyncio.Transport", transport))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self._other is not None:
            self._other.leave(politely=self.is_at_end)
        self._splice.lost()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_taking_leave:
            self._throw_away(nbytes)
            return
        self._splice.moved()
        if self._other is not None:
            # A copy: the transport may keep what it cannot send at once, and the buffer is everybody's.
            self._other.write(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        """Keep it open, since the other direction goes on; when both are at their end, close."""
        if self._other is None or self._is_taking_leave:
            return False
        # Asked again when reading is resumed.
        if not self.is_at_end:
            self.is_at_end = True
            self._other.write_eof()
            self._splice.moved()
            self._splice.close_at_end()
        return True

    def pause_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        self._splice.moved()
        if self._other is not None:
            self._other.resume_reading()

    def resume_reading(self) -> None:
        """Read again, if there can be anything."""
        if self.transport is not None and not self.is_at_end:
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send, unless the connection is on its way out."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def write_eof(self) -> None:
        """Let it know that nothing more comes, behind what is still to be sent."""
        if self.transport is None:
            return
        try:
            self.transport.write_eof()
        except OSError:
            self.transport.abort()  # reset meanwhile

    def leave(self, *, politely: bool) -> None:
        """Disconnect; politely means with what is still to be sent."""
        if self.transport is None:
            return
        if politely:
            self.transport.close()
            return
        # A plain abort looks like an orderly end to the other side: half an answer would pass for a whole one.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.abort()

    def take_leave(self, last_words: bytes) -> None:
        """Say the last words, then wait for the client to close."""
        self._is_taking_leave = True
        self.write(last_words)
        self.write_eof()
        self.resume_reading()

    def _throw_away(self, nbytes: int) -> None:
        self._thrown_away += nbytes
        if self._thrown_away > LINGER_BYTES and self.transport is not None:
            self.transport.pause_reading()


class _Splice:
    """A client's connection, and the one to the server as soon as there is one."""

    def __init__(self, splicer: Splicer, front: asyncio.Transport, said: bytes, buffer: memoryview) -> None:
        self._splicer = splicer
        self._said = said
        self.joining: asyncio.Task[None] | None = None
        self.front = _End(self, buffer)
        self.back = _End(self, buffer)
        self.front.attach(front, self.back)
        front.set_protocol(self.front)

    def join(self, back: asyncio.Transport) -> None:
        """There is a connection to the server: replay what the client said, and let it go on."""
        self.back.attach(back, self.front)
        if self.front.transport is None:
            back.abort()  # the client is gone already
            return
        self.back.write(self._said)
        self._said = b""
        self.front.resume_reading()

    def moved(self) -> None:
        self._splicer.moved(self)

    def close_at_end(self) -> None:
        """When neither end has more to say, both go, each with what it is still to be sent."""
        if self.front.is_at_end and self.back.is_at_end:
            self.front.leave(politely=True)
            self.back.leave(politely=True)

    def lost(self) -> None:
        if self.front.transport is None and self.back.transport is None:
            self._stop_joining()
            self._splicer.ended(self)

    def _stop_joining(self) -> None:
        # Else clients that come and go would each leave an attempt behind at a server that does not answer.
        if self.joining is not None:
            self.joining.cancel()

    def abort(self) -> None:
        self._stop_joining()
        self.front.leave(politely=False)
        self.back.leave(politely=False)


class Splicer:
    """Joins clients with one server, as many as the limits allow."""

    def __init__(
        self,
        upstream: str,
        *,
        farewell: Callable[[], bytes],
        clock: Clock,
        log: FilteringBoundLogger,
        unreachable_event: str,
        limits: SpliceLimits | None = None,
    ) -> None:
        """`upstream` is `host:port`, IPv6 in brackets.

        A client gets the `farewell` when the server cannot be reached, which the log calls `unreachable_event`.
        """
        host, _, port = upstream.rpartition(":")
        self._address = host.removeprefix("[").removesuffix("]"), int(port)
        self._upstream = upstream
        self._farewell = farewell
        self._clock = clock
        self._log = log
        self._unreachable_event = unreachable_event
        self._limits = limits or SpliceLimits()
        self._admission: Admission[_Splice] = Admission(self._limits)
        self._buffer = memoryview(bytearray(self._limits.buffer_bytes))
        self._open: set[_Splice] = set()
        self._joining: set[asyncio.Task[None]] = set()
        self._is_deserted = asyncio.Event()
        self._is_deserted.set()
        self._sampler = Sampler(clock)
        self._spliced = self._unreachable = self._evicted = self._timed_out = 0

    @property
    def counters(self) -> SpliceCounters:
        """A snapshot."""
        return SpliceCounters(
            spliced=self._spliced,
            unreachable=self._unreachable,
            evicted=self._evicted,
            timed_out=self._timed_out,
            connections=len(self._admission),
        )

    def splice(self, front: asyncio.Transport, said: bytes, source: str) -> None:
        """Take over a client that said `said` and does not read; returns before there is a connection to the server."""
        splice = _Splice(self, front, said, self._buffer)
        evicted = self._admission.enter(splice, network_of(source), self._clock.monotonic())
        if evicted is not None:
            self._evicted += 1
            evicted.abort()
        self._spliced += 1
        self._open.add(splice)
        self._is_deserted.clear()
        splice.joining = asyncio.create_task(self._connect(splice), name="listener.splice")
        self._joining.add(splice.joining)
        splice.joining.add_done_callback(self._joining.discard)

    def sweep(self, now: float) -> bool:
        """Disconnect who has been quiet for too long; whether anybody is left. To be called now and then."""
        while (overdue := self._admission.next_overdue(now)) is not None:
            splice, is_unfinished = overdue
            self._admission.leave(splice)
            splice.abort()
            self._timed_out += is_unfinished
        return bool(self._open)

    async def close(self) -> None:
        """Disconnect everybody; returns when all are gone. May be repeated."""
        for splice in tuple(self._open):
            splice.abort()
        for task in self._joining:
            task.cancel()
        if self._joining:
            await asyncio.wait(self._joining, timeout=_CLOSE_SECONDS)
        async with asyncio.timeout(_CLOSE_SECONDS):
            await self._is_deserted.wait()

    def moved(self, splice: _Splice) -> None:
        """Something passed."""
        self._admission.renew(splice, self._clock.monotonic())

    def ended(self, splice: _Splice) -> None:
        """Both its connections are closed."""
        self._admission.leave(splice)
        self._open.discard(splice)
        if not self._open:
            self._is_deserted.set()

    async def _connect(self, splice: _Splice) -> None:
        try:
            async with asyncio.timeout(self._limits.connect_seconds):
                await asyncio.get_running_loop().create_connection(lambda: splice.back, *self._address)
        except OSError as error:  # TimeoutError is one
            self._give_up(splice, error)

    def _give_up(self, splice: _Splice, error: OSError) -> None:
        self._unreachable += 1
        if (suppressed := self._sampler.due()) is not None:
            self._log.warning(
                self._unreachable_event,
                upstream=self._upstream,
                error=error.strerror or str(error) or type(error).__name__,
                suppressed=suppressed,
            )
        if splice.back.transport is not None:
            splice.abort()  # connected a moment too late
            return
        self._admission.linger(splice, self._clock.monotonic())
        splice.front.take_leave(self._farewell())
