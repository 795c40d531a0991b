"""The way into a listener: accepts strangers, keeps count of them, and shows out those whose time is up.

What holds here:

* A guest is inside until its connection is closed, served or not, and only so many are inside. When the house is
  full, or a network has its share of it, the oldest goes and the new one comes in, first of those that were served,
  then of those that are not ready: to refuse the new one would let idle clients keep a CA out.
* The time a guest has runs from accept on, however busily it drips.
* Connections are accepted by ourselves: on EMFILE, asyncio's own server logs one traceback and starts one timer per
  place in the backlog.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

from scaivaultd.listeners.http01_admission import Admission, AdmissionLimits, Sampler, network_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock

# After the last word we read on and throw away until the client closes: closing on unread bytes makes
# the kernel send RST, and that can overtake what was said (RFC 9112 section 9.6).
LINGER_BYTES = 64 * 1024
_SWEEP_SECONDS = 0.1
# Accepted in one turn of the loop. A new one is read three turns later: with larger batches a flood would put it
# out of a full house before that.
_ACCEPT_BATCH = 16
_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_STARVED_SECONDS = 1.0
_DRAIN_SECONDS = 1.0
_CLOSE_SECONDS = 2.0


class Guest(asyncio.BufferedProtocol, ABC):
    """One client. All share a buffer, since bytes are used up before the next one reads."""

    def __init__(self, source: str, buffer: memoryview, left: Callable[[Guest], None]) -> None:
        """`left` hears when the connection is closed or given away: `Door.left`."""
        self.source = source
        self._left = left
        self._buffer = buffer
        self._thrown_away = 0
        self._is_taking_leave = False
        self._is_aborted = False
        self._transport: asyncio.Transport | None = None

    @abstractmethod
    def received(self, data: memoryview) -> None:
        """Bytes came; they are gone when this returns."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._is_aborted:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._left(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._is_taking_leave:
            self._throw_away(nbytes)
        else:
            self.received(self._buffer[:nbytes])

    def eof_received(self) -> bool:
        """Close: nothing more can come, and everything that came has been read."""
        return False

    @property
    def transport(self) -> asyncio.Transport:
        """The connection; there is one as soon as anything was received."""
        assert self._transport is not None
        return self._transport

    def abort(self) -> None:
        """Disconnect at once, even before the transport is there."""
        self._is_aborted = True
        if self._transport is not None:
            self._transport.abort()

    def hand_over(self) -> asyncio.Transport:
        """Give the connection away: it does not read until the new owner lets it, and the door forgets it."""
        self.transport.pause_reading()
        self._left(self)
        return self.transport

    def take_leave(self, last_words: bytes) -> None:
        """Say the last words, then wait for the client to close. How long it may take, the door decides."""
        self._is_taking_leave = True
        self.transport.write(last_words)
        try:
            self.transport.write_eof()
        except OSError:
            self.transport.abort()  # reset by the client meanwhile

    def _throw_away(self, nbytes: int) -> None:
        self._thrown_away += nbytes
        if self._thrown_away > LINGER_BYTES:
            # It can still read what was said until its time ends; we will not work for it meanwhile.
            self.transport.pause_reading()


AnyGuest = TypeVar("AnyGuest", bound=Guest)


GuestOfHost = TypeVar("GuestOfHost", bound=Guest, covariant=True)


class Host(Protocol[GuestOfHost]):
    """The listener behind a door."""

    def welcome(self, source: str) -> GuestOfHost:
        """Somebody comes in."""
        ...

    def timed_out(self, source: str) -> None:
        """Somebody said too little in its time, and had to go."""
        ...

    def sweep(self, now: float) -> bool:
        """Look after who was inside and is the host's alone now; whether there is anybody left."""
        ...


class Door(Generic[AnyGuest]):
    """Lets strangers in at all its sockets, until it is closed."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        host: Host[AnyGuest],
        limits: AdmissionLimits,
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        paused_event: str,
    ) -> None:
        """Takes the listening, non-blocking sockets over: they are closed with the door.

        `paused_event` is what the log calls it when the process has no descriptors left.
        """
        self._sockets = tuple(sockets)
        self._host = host
        self._clock = clock
        self._log = log
        self._paused_event = paused_event
        self._admission: Admission[AnyGuest] = Admission(limits)
        self._open: set[Guest] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._paused: dict[socket.socket, float] = {}
        self._is_busy = asyncio.Event()
        self._is_deserted = asyncio.Event()
        self._is_deserted.set()
        self._sweeper: asyncio.Task[None] | None = None
        self._starved = Sampler(clock)
        self.evicted = 0
        """How many had to go for others since the start."""

    def __len__(self) -> int:
        """How many are inside."""
        return len(self._admission)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it really is, ports chosen by the kernel included; empty after `close`."""
        names = [each.getsockname() for each in self._sockets if each.fileno() >= 0]
        return [(name[0], name[1]) for name in names]

    def open(self) -> None:
        """Accept connections from now on, until `close`."""
        self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="listener.sweep")
        for each in self._sockets:
            self._accept_from(each)

    async def close(self) -> None:
        """Close the sockets and disconnect everybody; returns when all are gone. May be repeated.

        What was already said still arrives: the kernel has it.
        """
        self._stop_accepting()
        for guest in tuple(self._open):
            guest.abort()
        tasks = {*self._connecting, *({self._sweeper} if self._sweeper else ())}
        if self._sweeper is not None:
            self._sweeper.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
        async with asyncio.timeout(_CLOSE_SECONDS):
            await self._is_deserted.wait()

    async def drain(self) -> None:
        """Let nobody more in, and give those inside a moment to be served and to go.

        Whoever has been accepted is ours to answer: where systemd holds the sockets, the next process answers all
        that come after. What is left is for `close`.
        """
        self._stop_accepting()
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self._is_deserted.wait()

    def attend(self, guest: AnyGuest) -> None:
        """The guest has said all it must; the host limits its time from now on."""
        self._admission.attend(guest)

    def linger(self, guest: AnyGuest) -> None:
        """The guest is told its last words now, and has a short time to read them."""
        self._admission.linger(guest, self._clock.monotonic())

    def left(self, guest: Guest) -> None:
        """The guest's connection is closed, or somebody else's from now on."""
        self._admission.leave(cast("AnyGuest", guest))
        self._open.discard(guest)
        if not self._open:
            self._is_deserted.set()

    def _stop_accepting(self) -> None:
        for each in self._sockets:
            if each.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(each)
                each.close()
        self._paused.clear()

    def _accept_from(self, listening: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listening, self._accept_batch, listening)

    def _accept_batch(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                accepted, peer = listening.accept()
            except OSError as error:
                # Anything else is about one client that is gone already, or there is no further one.
                if error.errno in _STARVED:
                    self._pause(listening, error)
                return
            self._admit(accepted, peer[0])

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """The socket stays readable while we cannot accept: asking again at once would be a busy loop."""
        asyncio.get_running_loop().remove_reader(listening)
        self._paused[listening] = self._clock.monotonic() + _STARVED_SECONDS
        self._is_busy.set()
        if (suppressed := self._starved.due()) is not None:
            self._log.warning(
                self._paused_event,
                error=errno.errorcode[error.errno or 0],
                retry_after_seconds=_STARVED_SECONDS,
                suppressed=suppressed,
            )

    def _admit(self, accepted: socket.socket, source: str) -> None:
        accepted.setblocking(False)
        guest = self._host.welcome(source)
        evicted = self._admission.enter(guest, network_of(source), self._clock.monotonic())
        if evicted is not None:
            evicted.abort()
            self.evicted += 1
        self._open.add(guest)
        self._is_deserted.clear()
        self._is_busy.set()
        task = asyncio.create_task(self._connect(accepted, guest))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket, guest: AnyGuest) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: guest, accepted)
        except OSError:
            accepted.close()
            self.left(guest)

    async def _sweep_for_ever(self) -> None:
        """One timer for all: cheaper than one for each connection, and at most `_SWEEP_SECONDS` late."""
        while True:
            await self._is_busy.wait()
            await self._clock.sleep(_SWEEP_SECONDS)
            now = self._clock.monotonic()
            self._disconnect_overdue(now)
            self._resume(now)
            is_host_busy = self._host.sweep(now)
            if not self._admission and not self._paused and not is_host_busy:
                self._is_busy.clear()

    def _disconnect_overdue(self, now: float) -> None:
        while (overdue := self._admission.next_overdue(now)) is not None:
            guest, is_unfinished = overdue
            self._admission.leave(guest)
            guest.abort()
            if is_unfinished:
                self._host.timed_out(guest.source)

    def _resume(self, now: float) -> None:
        for listening in [each for each, until in self._paused.items() if until <= now]:
            del self._paused[listening]
            self._accept_from(listening)
