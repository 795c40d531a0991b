"""Answers http-01 challenges (RFC 8555 section 8.3) on sockets anybody may reach.

What holds here:

* One request per connection, raw bytes, no percent-decoding, no file system, no body: there is one
  way to read a request, and it ends in a dict.
* The head must be complete within a time that runs from accept on, however busily a client drips.
* A client is inside until its connection is closed, answered or not, and only so many are inside.
  When the house is full the oldest unfinished one goes and the new one comes in: to refuse
  the new one would let idle clients keep a CA out.
* What depends on bytes alone is in `http01_head`, on numbers alone in `http01_admission`: neither opens a socket.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections import Counter
from email.utils import format_datetime
from typing import TYPE_CHECKING, Literal, cast

import msgspec

from scaivaultd.listeners.http01_admission import Admission, Http01Limits, Sampler, network_of
from scaivaultd.listeners.http01_head import TOKEN, Asked, HeadReader, Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock

# Visible ASCII: it goes into a body byte for byte, and a longer one is no key authorization.
_KEY_AUTHORIZATION = re.compile(r"[\x21-\x7e]{1,512}")
# After the answer we read on and throw away until the client closes: closing on unread bytes makes
# the kernel send RST, and that can overtake the answer (RFC 9112 section 9.6).
_LINGER_BYTES = 64 * 1024
_SWEEP_SECONDS = 0.1
# Accepted in one turn of the loop; those already inside must get their turn too.
_ACCEPT_BATCH = 64
_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_STARVED_SECONDS = 1.0
_CLOSE_SECONDS = 2.0


class Http01Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What happened since the start; `connections` is how many are inside now."""

    answers: int
    not_found: int
    rejected: Mapping[Reason, int]
    evicted: int
    connections: int


class Answer(msgspec.Struct, frozen=True):
    """A response, made ahead except for its Date."""

    status_line: bytes
    fields: bytes
    body: bytes

    def render(self, date: bytes, *, is_head: bool) -> bytes:
        """The bytes to send; the answer to HEAD has the same fields and no body (RFC 9110 section 9.3.2)."""
        return b"".join((self.status_line, b"Date: ", date, self.fields, b"" if is_head else self.body))


def _answer(status: str, media_type: str, body: bytes, *more: str) -> Answer:
    fields = (
        "",  # ends the Date
        f"Content-Type: {media_type}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
        *more,
        "Connection: close",
        "",
        "",
    )
    return Answer(f"HTTP/1.1 {status}\r\n".encode(), "\r\n".join(fields).encode(), body)


def _apology(status: str, *more: str) -> Answer:
    return _answer(status, "text/plain", f"{status[4:]}\n".encode(), *more)


_NOT_FOUND = _apology("404 Not Found")
_APOLOGIES: Mapping[Reason, Answer] = {
    "bad_request": _apology("400 Bad Request"),
    "method_not_allowed": _apology("405 Method Not Allowed", "Allow: GET, HEAD"),
    "head_too_large": _apology("431 Request Header Fields Too Large"),
    "version_not_supported": _apology("505 HTTP Version Not Supported"),
}


class _Connection(asyncio.BufferedProtocol):
    """One client. All share the listener's buffer, since bytes are used up before the next one reads."""

    def __init__(self, listener: Http01Listener, source: str, limits: Http01Limits, buffer: memoryview) -> None:
        self.source = source
        self._listener = listener
        self._buffer = buffer
        self._head: HeadReader | None = HeadReader(limits)
        self._thrown_away = 0
        self._transport: asyncio.Transport | None = None
        self._is_aborted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._is_aborted:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.left(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._head is None:
            self._throw_away(nbytes)
        elif (verdict := self._head.feed(self._buffer[:nbytes])) is not None:
            self._head = None
            self._reply(self._listener.answer(self, verdict))

    def eof_received(self) -> bool:
        """Close: nothing more can come, and everything that came has been read."""
        return False

    def abort(self) -> None:
        """Disconnect at once, even before the transport is there."""
        self._is_aborted = True
        if self._transport is not None:
            self._transport.abort()

    def _reply(self, answer: bytes) -> None:
        assert self._transport is not None
        self._transport.write(answer)
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # reset by the client meanwhile

    def _throw_away(self, nbytes: int) -> None:
        self._thrown_away += nbytes
        if self._thrown_away > _LINGER_BYTES and self._transport is not None:
            # It can still read its answer until the linger ends; we will not work for it meanwhile.
            self._transport.pause_reading()


class Http01Listener:
    """Answers for the tokens put here, on all its sockets, and tells everybody else little.

    Accepts by itself: on EMFILE, asyncio's own server logs one traceback and starts one
    timer per place in the backlog.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        limits: Http01Limits | None = None,
    ) -> None:
        """Takes the listening, non-blocking sockets over: they are closed with the listener."""
        self._sockets = tuple(sockets)
        self._clock = clock
        self._log = log
        self._limits = limits or Http01Limits()
        self._answers: dict[bytes, Answer] = {}
        self._admission: Admission[_Connection] = Admission(self._limits)
        self._buffer = memoryview(bytearray(self._limits.head_bytes))
        self._connecting: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        self._paused: dict[socket.socket, float] = {}
        self._is_busy = asyncio.Event()
        self._is_deserted = asyncio.Event()
        self._is_deserted.set()
        self._sweeper: asyncio.Task[None] | None = None
        self._unanswered = Sampler(clock)
        self._starved = Sampler(clock)
        self._counts: Counter[Literal["answers", "not_found", "evicted"]] = Counter()
        self._rejected: Counter[Reason] = Counter()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it really listens, ports chosen by the kernel included; empty after `close`."""
        names = [each.getsockname() for each in self._sockets if each.fileno() >= 0]
        return [(name[0], name[1]) for name in names]

    @property
    def counters(self) -> Http01Counters:
        """A snapshot."""
        return Http01Counters(
            answers=self._counts["answers"],
            not_found=self._counts["not_found"],
            rejected=dict(self._rejected),
            evicted=self._counts["evicted"],
            connections=len(self._admission),
        )

    def put(self, token: str, key_authorization: str) -> None:
        """Answer for `token` from now on; a token put twice has its last answer.

        Raises:
            ValueError: no request can ask for such a token, or such an answer is none.
        """
        raw_token = token.encode()
        if not TOKEN.fullmatch(raw_token) or not _KEY_AUTHORIZATION.fullmatch(key_authorization):
            raise ValueError("a token is 16 to 128 characters of base64url, its key authorization visible ASCII")
        self._answers[raw_token] = _answer("200 OK", "application/octet-stream", key_authorization.encode())

    def remove(self, token: str) -> None:
        """Answer no more for `token`; an unknown one is no error."""
        self._answers.pop(token.encode(), None)

    async def start(self) -> None:
        """Accept connections from now on, until `close`."""
        self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="http01.sweep")
        for each in self._sockets:
            self._accept_from(each)

    async def close(self) -> None:
        """Close the sockets and disconnect everybody; returns when all are gone. May be repeated.

        An answer already given still arrives: the kernel has it.
        """
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            if each.fileno() >= 0:
                loop.remove_reader(each)
                each.close()
        for connection in tuple(self._open):
            connection.abort()
        tasks = {*self._connecting, *({self._sweeper} if self._sweeper else ())}
        if self._sweeper is not None:
            self._sweeper.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
        async with asyncio.timeout(_CLOSE_SECONDS):
            await self._is_deserted.wait()

    def answer(self, connection: _Connection, verdict: Asked | Refused) -> bytes:
        """What to send to a client that has said all it may; it is counted and lingers from now on."""
        self._admission.linger(connection, self._clock.monotonic())
        answer = self._answer_to(verdict, connection.source)
        return answer.render(self._date(), is_head=verdict.is_head)

    def left(self, connection: _Connection) -> None:
        """The connection is closed."""
        self._admission.leave(connection)
        self._open.discard(connection)
        if not self._open:
            self._is_deserted.set()

    def _answer_to(self, verdict: Asked | Refused, source: str) -> Answer:
        if isinstance(verdict, Refused):
            self._reject(verdict.reason, source)
            return _APOLOGIES[verdict.reason]
        if verdict.token is not None and verdict.token in self._answers:
            return self._known(source, verdict.token)
        return self._unknown(source, verdict.token)

    def _known(self, source: str, token: bytes) -> Answer:
        self._counts["answers"] += 1
        self._log.info("http01.answered", source=source, found=True, challenge=_short(token))
        return self._answers[token]

    def _unknown(self, source: str, token: bytes | None) -> Answer:
        self._counts["not_found"] += 1
        if (suppressed := self._unanswered.due()) is not None and token is not None:
            self._log.info(
                "http01.answered", source=source, found=False, challenge=_short(token), suppressed=suppressed
            )
        elif suppressed is not None:
            self._log.info("http01.rejected", source=source, reason="not_found", suppressed=suppressed)
        return _NOT_FOUND

    def _reject(self, reason: Reason, source: str) -> None:
        self._rejected[reason] += 1
        if (suppressed := self._unanswered.due()) is not None:
            self._log.info("http01.rejected", source=source, reason=reason, suppressed=suppressed)

    def _date(self) -> bytes:
        return format_datetime(self._clock.now(), usegmt=True).encode()

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
                "http01.accept_paused",
                error=errno.errorcode[error.errno or 0],
                retry_after_seconds=_STARVED_SECONDS,
                suppressed=suppressed,
            )

    def _admit(self, accepted: socket.socket, source: str) -> None:
        network = network_of(source)
        if not self._admission.has_room_for(network):
            accepted.close()
            self._reject("too_many_from_network", source)
            return
        accepted.setblocking(False)
        connection = _Connection(self, source, self._limits, self._buffer)
        evicted = self._admission.enter(connection, network, self._clock.monotonic())
        if evicted is not None:
            evicted.abort()
            self._counts["evicted"] += 1
        self._open.add(connection)
        self._is_deserted.clear()
        self._is_busy.set()
        task = asyncio.create_task(self._connect(accepted, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket, connection: _Connection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            accepted.close()
            self.left(connection)

    async def _sweep_for_ever(self) -> None:
        """One timer for all: cheaper than one for each connection, and at most `_SWEEP_SECONDS` late."""
        while True:
            await self._is_busy.wait()
            await self._clock.sleep(_SWEEP_SECONDS)
            now = self._clock.monotonic()
            self._disconnect_overdue(now)
            self._resume(now)
            if not self._admission and not self._paused:
                self._is_busy.clear()

    def _disconnect_overdue(self, now: float) -> None:
        while (overdue := self._admission.next_overdue(now)) is not None:
            connection, is_unfinished = overdue
            self._admission.leave(connection)
            connection.abort()
            if is_unfinished:
                self._reject("timed_out", connection.source)

    def _resume(self, now: float) -> None:
        for listening in [each for each, until in self._paused.items() if until <= now]:
            del self._paused[listening]
            self._accept_from(listening)


def _short(token: bytes) -> str:
    """Enough to find it in the CA's words, too little to ask for it."""
    return token[:8].decode("ascii")
