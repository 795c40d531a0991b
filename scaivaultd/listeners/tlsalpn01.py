"""Answers tls-alpn-01 challenges (RFC 8737, for addresses RFC 8738) on sockets anybody may reach.

What holds here:

* Nothing is signed for a client before its ClientHello was read by ourselves: it asks for `acme-tls/1` and
  nothing else, and for a name whose challenge is pending.
* Everybody else is joined with the server behind us, with the bytes as they came, or gets an alert and is closed.
* There is no default certificate, and no application data.
* Signing takes its turn: only so many handshakes are under way, and only a few begin in one turn of the loop. Turns go
  round by name: who knows the name of one pending challenge can crowd that one only.
* What depends on bytes alone is in `tlsalpn01_hello`, `tlsalpn01_certificate` and `tlsalpn01_handshake`, which open
  no socket. Who comes in, and for how long, is the `door`'s.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd.listeners.door import Door, Guest
from scaivaultd.listeners.http01_admission import Sampler
from scaivaultd.listeners.splice import SpliceCounters, SpliceLimits, Splicer
from scaivaultd.listeners.tlsalpn01_certificate import challenge_context, normal_identifier, server_name_for
from scaivaultd.listeners.tlsalpn01_handshake import Done, Failed, Going, Handshake
from scaivaultd.listeners.tlsalpn01_hello import ACME_TLS_1, Bad, Hello, HelloReader
from scaivaultd.listeners.tlsalpn01_turns import Crowds

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock

Reason = Literal[
    "not_tls",
    "malformed",
    "too_large",
    "other_protocol",
    "mixed_protocols",
    "unknown_name",
    "handshake_failed",
    "crowded_out",
    "timed_out",
]
"""Why a client got no certificate; a closed list, since it becomes a metric's label."""

# A handshake costs about half a millisecond: between two such handfuls everybody else has a turn.
_BEGUN_AT_ONCE = 8
# Who stalls longer than this has to go when somebody waits for the place: enough for an answer from the antipodes.
_FAIR_SECONDS = 0.5
_ESTABLISHED = 1  # include/net/tcp_states.h


def _alert(description: int) -> bytes:
    """A fatal alert in a record of its own (RFC 8446 sections 5.1 and 6)."""
    return bytes((21, 3, 3, 0, 2, 2, description))


_INTERNAL_ERROR = _alert(80)
_ALERTS: Mapping[Reason, bytes] = MappingProxyType(
    {
        "malformed": _alert(50),  # decode_error
        "too_large": _alert(50),
        "other_protocol": _alert(120),  # no_application_protocol (RFC 7301 section 3.2)
        "mixed_protocols": _alert(120),
        "unknown_name": _alert(112),  # unrecognized_name (RFC 6066 section 3)
    }
)


class TlsAlpn01Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much strangers may use.

    `per_network` counts as in `Http01Limits`. `unfinished` is how many may be inside whose hello is not complete,
    `handshakes` how many may be in their handshake, more than one network can have; `waiting` more wait for theirs,
    the wait is part of `handshake_seconds`.
    """

    connections: int = 1024
    per_network: int = 128
    unfinished: int = 256
    hello_bytes: int = 16 * 1024
    hello_seconds: float = 5.0
    handshakes: int = 640
    waiting: int = 96
    handshake_seconds: float = 5.0

    @property
    def patience_seconds(self) -> float:
        """Until the hello must be complete."""
        return self.hello_seconds


class TlsAlpn01Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What happened since the start; `connections` is how many are inside now, spliced ones not counted."""

    answers: int
    rejected: Mapping[Reason, int]
    evicted: int
    connections: int
    splices: SpliceCounters | None


class _Pending(msgspec.Struct, frozen=True):
    """A challenge that waits for its validators."""

    identifier: str
    context: ssl.SSLContext


class _Connection(Guest):
    """One client until it has seen the certificate, was refused, or given away."""

    def __init__(self, listener: TlsAlpn01Listener, source: str, hello_bytes: int, buffer: memoryview) -> None:
        super().__init__(source, buffer, listener.door.left)
        self._listener = listener
        self.hello = HelloReader(hello_bytes)
        self.handshake: Handshake | None = None
        self.pending: _Pending | None = None
        self.hello_at = 0.0
        self.begun_at = 0.0

    def received(self, data: memoryview) -> None:
        if self.handshake is not None:
            self._listener.went_on(self, self.handshake.feed(data))
        elif (verdict := self.hello.feed(data)) is not None:
            self._listener.judged(self, verdict)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._listener.gone(self)

    def refuse(self, alert: bytes) -> None:
        """Say why, and close: there is nothing more to read from it."""
        self.transport.write(alert)
        self.transport.close()


class TlsAlpn01Listener:
    """Shows the challenge certificates put here, on all its sockets, to who asks for one of them."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        upstream: str | None = None,
        limits: TlsAlpn01Limits | None = None,
        splice_limits: SpliceLimits | None = None,
    ) -> None:
        """Takes the listening, non-blocking sockets over: they are closed with the listener.

        `upstream` is the `host:port` of the server that all other clients are joined with.
        """
        self._clock = clock
        self._log = log
        self._limits = limits or TlsAlpn01Limits()
        self._splicer = self._open_splicer(upstream, splice_limits) if upstream is not None else None
        self.door: Door[_Connection] = Door(
            sockets, self, self._limits, clock=clock, log=log, paused_event="tlsalpn01.accept_paused"
        )
        self._is_somewhere = bool(sockets)
        self._pending: dict[str, _Pending] = {}
        self._waiting: Crowds[_Connection] = Crowds()
        self._begun: Crowds[_Connection] = Crowds()
        self._is_beginning = False
        self._buffer = memoryview(bytearray(self._limits.hello_bytes))
        self._unanswered = Sampler(clock)
        self._answered = 0
        self._rejected: Counter[Reason] = Counter()

    def _open_splicer(self, upstream: str, limits: SpliceLimits | None) -> Splicer:
        return Splicer(
            upstream,
            farewell=lambda: _INTERNAL_ERROR,
            clock=self._clock,
            log=self._log,
            unreachable_event="tlsalpn01.upstream_unreachable",
            limits=limits,
        )

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it really listens, ports chosen by the kernel included; empty after `close`."""
        return self.door.addresses

    @property
    def counters(self) -> TlsAlpn01Counters:
        """A snapshot."""
        return TlsAlpn01Counters(
            answers=self._answered,
            rejected=dict(self._rejected),
            evicted=self.door.evicted,
            connections=len(self.door),
            splices=self._splicer.counters if self._splicer else None,
        )

    def put(self, identifier: str, key_authorization: str) -> None:
        """Show the challenge certificate for a name or address from now on, in place of any other for it.

        Makes key and certificate, which takes about a millisecond.

        Raises:
            ValueError: no TLS client can ask for such a name, or nobody can ask at all.
            OSError: the process has no descriptors or no memory left.
        """
        if not self._is_somewhere:
            raise ValueError(
                "the daemon listens nowhere for tls-alpn-01 ([tlsalpn01] listen): a CA has no port to ask at"
            )
        name = normal_identifier(identifier)
        context = challenge_context(name, key_authorization, self._clock.now())
        self._pending[server_name_for(name)] = _Pending(name, context)

    def remove(self, identifier: str) -> None:
        """Show it no more; an unknown identifier is no error."""
        try:
            name = normal_identifier(identifier)
        except ValueError:
            return
        pending = self._pending.get(server_name_for(name))
        # An address and its reverse name, which is an identifier too, are asked for in the same words.
        if pending is not None and pending.identifier == name:
            del self._pending[server_name_for(name)]

    async def start(self) -> None:
        """Accept connections from now on, until `close`."""
        self.door.open()

    async def drain(self) -> None:
        """Take no more connections, and have those that are there answered; see `Door.drain`."""
        await self.door.drain()

    async def close(self) -> None:
        """Close the sockets and disconnect everybody; returns when all are gone. May be repeated."""
        await self.door.close()
        if self._splicer is not None:
            await self._splicer.close()

    def welcome(self, source: str) -> _Connection:
        """Somebody comes in."""
        return _Connection(self, source, self._limits.hello_bytes, self._buffer)

    def timed_out(self, source: str) -> None:
        """Somebody said too little in its time."""
        self._reject("timed_out", source)

    def judged(self, connection: _Connection, verdict: Hello | Bad) -> None:
        """A client has said what it wants, or will never say it."""
        pending = self._pending_for(verdict)
        if pending is not None:
            self._queue(connection, pending)
        elif self._splicer is not None:
            self._give_away(connection, self._splicer)
        else:
            self._refuse(connection, verdict)

    def _pending_for(self, verdict: Hello | Bad) -> _Pending | None:
        if isinstance(verdict, Bad) or verdict.protocols != (ACME_TLS_1,) or verdict.server_name is None:
            return None
        return self._pending.get(verdict.server_name)

    def _give_away(self, connection: _Connection, splicer: Splicer) -> None:
        splicer.splice(connection.hand_over(), bytes(connection.hello.raw), connection.source)

    def _refuse(self, connection: _Connection, verdict: Hello | Bad) -> None:
        reason = _reason(verdict)
        if isinstance(verdict, Hello) and reason == "unknown_name":
            self._reject(reason, connection.source, server_name=verdict.server_name)
        else:
            self._reject(reason, connection.source)
        connection.refuse(_ALERTS.get(reason, b""))

    def _queue(self, connection: _Connection, pending: _Pending) -> None:
        # Until its turn comes, what it sends stays with the kernel.
        connection.transport.pause_reading()
        self.door.attend(connection)
        connection.pending = pending
        connection.hello_at = self._clock.monotonic()
        self._waiting.add(connection, pending.identifier)
        if len(self._waiting) > self._limits.waiting:
            self._put_out(self._waiting.oldest_of(self._waiting.largest()), "crowded_out")
        self._begin_soon()

    def _begin_soon(self) -> None:
        if self._is_a_turn() and not self._is_beginning:
            self._is_beginning = True
            asyncio.get_running_loop().call_soon(self._begin_some)

    def _begin_some(self) -> None:
        self._is_beginning = False
        left = _BEGUN_AT_ONCE
        while left and self._is_a_turn():
            left -= self._begin_next()
        self._begin_soon()

    def _is_a_turn(self) -> bool:
        """Whether somebody waits whose handshake may begin, if only for one that stalls or is of a larger crowd."""
        if not self._waiting or len(self._begun) < self._limits.handshakes:
            return bool(self._waiting)
        is_crowd_larger = self._begun.count(self._next_name()) + 1 < self._begun.count(self._begun.largest())
        return is_crowd_larger or self._is_stalling(next(iter(self._begun)))

    def _is_stalling(self, connection: _Connection) -> bool:
        return connection.begun_at + _FAIR_SECONDS <= self._clock.monotonic()

    def _next_name(self) -> str:
        return self._waiting.least(self._begun.count)

    def _begin_next(self) -> bool:
        """Begin the handshake whose turn it is; false when the client was gone, which costs nothing."""
        connection = self._waiting.oldest_of(self._next_name())
        if not _is_there(connection):
            self.gone(connection)
            connection.abort()
            return False
        if len(self._begun) >= self._limits.handshakes:
            self._make_room()
        self._begin(connection)
        return True

    def _make_room(self) -> None:
        oldest = next(iter(self._begun))
        if self._is_stalling(oldest):
            self._put_out(oldest, "timed_out")
        else:
            self._put_out(self._begun.oldest_of(self._begun.largest()), "crowded_out")

    def _begin(self, connection: _Connection) -> None:
        assert connection.pending is not None
        self._waiting.leave(connection)
        self._begun.add(connection, connection.pending.identifier)
        connection.begun_at = self._clock.monotonic()
        connection.handshake = Handshake(connection.pending.context)
        self.went_on(connection, connection.handshake.feed(connection.hello.raw))
        connection.transport.resume_reading()

    def went_on(self, connection: _Connection, step: Going | Done | Failed) -> None:
        """A handshake has moved, or has ended."""
        match step:
            case Going():
                connection.transport.write(step.output)
            case Done():
                self._answer(connection, step)
            case Failed():
                self._leave_queue(connection)
                self._reject("handshake_failed", connection.source, error=step.error)
                connection.refuse(step.output)

    def _answer(self, connection: _Connection, done: Done) -> None:
        assert connection.pending is not None
        self._leave_queue(connection)
        self._answered += 1
        self._log.info(
            "tlsalpn01.answered",
            source=connection.source,
            identifier=connection.pending.identifier,
            tls_version=done.version,
        )
        self.door.linger(connection)
        connection.take_leave(done.output)

    def gone(self, connection: _Connection) -> None:
        """The connection is closed, whoever closed it."""
        if self._leave_queue(connection):
            self._reject("handshake_failed", connection.source, error="CONNECTION_CLOSED")

    def _leave_queue(self, connection: _Connection) -> bool:
        """Give the place up; whether there was one."""
        had_place = self._waiting.leave(connection) or self._begun.leave(connection)
        self._begin_soon()
        return had_place

    def sweep(self, now: float) -> bool:
        """Look after handshakes and splices; whether there are any."""
        for place in (self._waiting, self._begun):
            while place and (oldest := next(iter(place))).hello_at + self._limits.handshake_seconds <= now:
                self._put_out(oldest, "timed_out")
        self._begin_soon()
        is_splicing = self._splicer is not None and self._splicer.sweep(now)
        return is_splicing or bool(self._waiting or self._begun)

    def _put_out(self, connection: _Connection, reason: Reason) -> None:
        self._leave_queue(connection)
        self._reject(reason, connection.source)
        connection.abort()

    def _reject(self, reason: Reason, source: str, **more: str | None) -> None:
        self._rejected[reason] += 1
        if (suppressed := self._unanswered.due()) is not None:
            self._log.info("tlsalpn01.rejected", source=source, reason=reason, suppressed=suppressed, **more)


def _is_there(connection: _Connection) -> bool:
    """Whether the client still listens and may still talk: it does not read while it waits, so nobody has told us."""
    of_kernel: socket.socket = connection.transport.get_extra_info("socket")
    try:
        return of_kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED
    except OSError:
        return False


def _reason(verdict: Hello | Bad) -> Reason:
    """Why a client whose hello is read gets no certificate, when it gets none."""
    if isinstance(verdict, Bad):
        return verdict.flaw
    if ACME_TLS_1 not in verdict.protocols:
        return "other_protocol"
    return "unknown_name" if verdict.protocols == (ACME_TLS_1,) else "mixed_protocols"
