"""The way into the REST gateway: accepts connections, gives each its time, and ends those that take too much.

What aiohttp lacks is here: a deadline for the request head, a limit for all of it, a number of connections.

* Accepting is our own, so that a connection counts from accept on, its TLS handshake included, and so that a process
  without descriptors pauses instead of logging a traceback for each connection in the backlog.
* When the house is full the oldest connection that has nothing under way goes for the new one; where all have, the new
  one is refused.
* A refused head is counted, and answered in the gateway's words; it never becomes a traceback.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import Counter
from typing import TYPE_CHECKING, Literal, Protocol, cast

import msgspec
from aiohttp import web

from scaivaultd.gateways.rest_identity import ListenerKind, Source, peer_credentials

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.gateways.rest_tls import Tls
    from scaivaultd.model.clock import Clock

Stage = Literal["arriving", "serving", "answering", "idle"]
Reason = Literal["bad_head", "head_too_large", "timed_out", "evicted", "full", "no_certificate"]
"""Why a connection got no answer, or only that its head is none; a closed list, since it becomes a metric's label."""

_SWEEP_SECONDS = 0.1
_ACCEPT_BATCH = 16
_STARVED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_STARVED_SECONDS = 1.0
_TLS_SHUTDOWN_SECONDS = 2.0
_SAMPLE_SECONDS = 10.0
_NO_CERTIFICATE_SECONDS = 60.0
_CLOSE_SECONDS = 2.0
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nCache-Control: no-store\r\n"
    b"Connection: close\r\n\r\n"
)


class ConnectionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much one group of sockets may use.

    `head_seconds` runs from accept to the end of the first head, however busily it drips; `idle_seconds` from an
    answer to the end of the next head; `answer_seconds` is for reading an answer.
    """

    connections: int = 256
    head_seconds: float = 5.0
    idle_seconds: float = 15.0
    answer_seconds: float = 30.0
    head_bytes: int = 16 << 10
    head_line_bytes: int = 4096
    head_lines: int = 64
    linger_seconds: float = 2.0


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """A socket that listens, and what a connection on it begins with."""

    socket: socket.socket
    kind: ListenerKind
    tls: Tls | None = None


class Visit:
    """One connection, from accept until it is closed."""

    def __init__(self, accepted: socket.socket, source: Source, reception: Reception) -> None:
        self.accepted = accepted
        self.source = source
        self.stage: Stage = "arriving"
        self.deadline: float | None = None
        self.connecting: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        self._reception = reception

    @property
    def has_work(self) -> bool:
        """Whether a request of it is under way, its answer included."""
        return self.stage in ("serving", "answering")

    def enter(self, stage: Stage) -> None:
        """A new stage begins, and its time."""
        self._reception.entered(self, stage)

    def refused(self, reason: Reason) -> None:
        """What it sent is no request."""
        self._reception.reject(reason, self.source)

    def left(self) -> None:
        """The connection is closed."""
        self._reception.left(self)

    def abort(self) -> None:
        """Disconnect at once, even in the middle of a handshake."""
        if self.transport is not None:
            self.transport.abort()
        elif self.connecting is not None:
            self.connecting.cancel()


class Host(Protocol):
    """The gateway behind the connections."""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; its protocol is a `Conversation`."""
        ...

    def apology(self, status: int, detail: str) -> web.Response:
        """The answer to what is no request, or could not be answered."""
        ...


class Conversation(web.RequestHandler):
    """aiohttp's side of one connection, with the deadlines and limits it lacks."""

    __slots__ = ("_head_bytes", "_host", "_limits", "visit")

    def __init__(self, server: web.Server, visit: Visit, host: Host, limits: ConnectionLimits) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=limits.idle_seconds,
            max_line_size=limits.head_line_bytes,
            max_field_size=limits.head_line_bytes,
            max_headers=limits.head_lines,
            lingering_time=limits.linger_seconds,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # None switches it off, as AppRunner's documentation says
        )
        self.visit = visit
        self._host = host
        self._limits = limits
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.visit.transport = cast("asyncio.Transport", transport)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.visit.left()

    def data_received(self, data: bytes) -> None:
        heads = self._request_count
        super().data_received(data)
        if self._request_count != heads:
            # Now, not when it is handled: what comes until then is its body already.
            self.visit.enter("serving")
        if self.visit.has_work:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > self._limits.head_bytes:
            self.visit.refused("head_too_large")
            if self.transport is not None:
                self.transport.write(_TOO_LARGE)
            self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        self.visit.enter("answering")
        finished = await super().finish_response(request, resp, start_time)
        if request.content.is_eof():
            # Else what comes is the rest of its body still, which aiohttp throws away for a while.
            self.visit.enter("idle")
        return finished

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        if status == 400:
            # Not aiohttp's words: they quote the head, and that holds tokens.
            self.visit.refused("bad_head")
        return self._host.apology(status, "the head of the request is malformed or too large (RFC 9112)")


class Reception:
    """Lets connections in at a group of sockets, until it is closed."""

    def __init__(
        self,
        listening: Sequence[Listening],
        host: Host,
        limits: ConnectionLimits,
        *,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """Takes the non-blocking sockets over: they are closed with the reception."""
        self._listening = tuple(listening)
        self._host = host
        self._limits = limits
        self._clock = clock
        self._log = log
        self._server = web.Server(host.handle)
        self._visits: dict[Visit, None] = {}
        self._paused: dict[Listening, float] = {}
        self._is_busy = asyncio.Event()
        self._sweeper: asyncio.Task[None] | None = None
        self._next_line = float("-inf")
        self._next_warning = float("-inf")
        self.rejected: Counter[Reason] = Counter()

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._visits)

    def open(self) -> None:
        """Accept from now on."""
        self._sweeper = asyncio.create_task(self._sweep_for_ever(), name="rest.sweep")
        for each in self._listening:
            self._accept_from(each)

    def stop_accepting(self) -> None:
        """Close the sockets, and the connections that have nothing under way. May be repeated."""
        for each in self._listening:
            if each.socket.fileno() >= 0:
                asyncio.get_running_loop().remove_reader(each.socket)
                each.socket.close()
        self._paused.clear()
        for visit in [each for each in self._visits if not each.has_work]:
            visit.abort()

    async def close(self) -> None:
        """Disconnect everybody who is left."""
        self.stop_accepting()
        tasks = [each.connecting for each in self._visits if each.connecting is not None]
        for visit in list(self._visits):
            visit.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            tasks.append(self._sweeper)
        if tasks:
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
        await self._server.shutdown(_CLOSE_SECONDS)

    def entered(self, visit: Visit, stage: Stage) -> None:
        """A visit goes on to another stage."""
        visit.stage = stage
        seconds = {
            "arriving": self._limits.head_seconds,
            "serving": None,  # whoever serves it limits its time
            "answering": self._limits.answer_seconds,
            "idle": None,  # aiohttp's keep-alive ends it, a head that is not complete by then included
        }[stage]
        visit.deadline = None if seconds is None else self._clock.monotonic() + seconds
        if stage == "idle" and visit in self._visits:
            # To the end of the line: the first without work is the one that has been so for longest.
            self._visits[visit] = self._visits.pop(visit)

    def left(self, visit: Visit) -> None:
        """A visit has ended."""
        self._visits.pop(visit, None)

    def reject(self, reason: Reason, source: Source) -> None:
        """Count what was not served; at most one line in ten seconds, however many there are."""
        self.rejected[reason] += 1
        if (now := self._clock.monotonic()) >= self._next_line:
            self._next_line = now + _SAMPLE_SECONDS
            self._log.info("rest.rejected", reason=reason, source=str(source), rejected=dict(self.rejected))

    def _accept_from(self, listening: Listening) -> None:
        asyncio.get_running_loop().add_reader(listening.socket, self._accept_batch, listening)

    def _accept_batch(self, listening: Listening) -> None:
        for _ in range(_ACCEPT_BATCH):
            try:
                accepted, peer = listening.socket.accept()
            except OSError as error:
                # Anything else is about one client that is gone already, or there is no further one.
                if error.errno in _STARVED:
                    self._pause(listening, error)
                return
            self._admit(listening, accepted, peer)

    def _pause(self, listening: Listening, error: OSError) -> None:
        """The socket stays readable while we cannot accept: asking again at once would be a busy loop."""
        asyncio.get_running_loop().remove_reader(listening.socket)
        self._paused[listening] = self._clock.monotonic() + _STARVED_SECONDS
        self._is_busy.set()
        self._log.warning(
            "rest.accept_paused", error=errno.errorcode[error.errno or 0], retry_after_seconds=_STARVED_SECONDS
        )

    def _admit(self, listening: Listening, accepted: socket.socket, peer: object) -> None:
        accepted.setblocking(False)
        source = _source(listening, accepted, peer)
        tls = listening.tls.context if listening.tls else None
        if listening.tls is not None and tls is None:
            self._turn_away(source)
            accepted.close()
            return
        if len(self._visits) >= self._limits.connections and not self._made_room():
            self.reject("full", source)
            accepted.close()
            return
        visit = Visit(accepted, source, self)
        self._visits[visit] = None
        self.entered(visit, "arriving")
        self._is_busy.set()
        visit.connecting = asyncio.create_task(self._connect(visit, tls), name="rest.connect")

    def _turn_away(self, source: Source) -> None:
        self.rejected["no_certificate"] += 1
        if (now := self._clock.monotonic()) >= self._next_warning:
            self._next_warning = now + _NO_CERTIFICATE_SECONDS
            self._log.warning(
                "rest.no_certificate",
                source=str(source),
                advice="issue a certificate for the name in [rest] tls_managed; the UNIX socket works meanwhile",
            )

    def _made_room(self) -> bool:
        oldest = next((each for each in self._visits if not each.has_work), None)
        if oldest is None:
            return False
        self._put_out(oldest, "evicted")
        return True

    def _put_out(self, visit: Visit, reason: Reason) -> None:
        self.reject(reason, visit.source)
        self.left(visit)
        visit.abort()

    async def _connect(self, visit: Visit, tls: ssl.SSLContext | None) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._opener(visit),
                visit.accepted,
                ssl=tls,
                ssl_handshake_timeout=self._limits.head_seconds if tls else None,
                ssl_shutdown_timeout=_TLS_SHUTDOWN_SECONDS if tls else None,
            )
        except (OSError, asyncio.CancelledError) as error:
            # Only `abort` cancels: a task of our own, about one client.
            visit.accepted.close()
            self.left(visit)
            if isinstance(error, asyncio.CancelledError):
                raise

    def _opener(self, visit: Visit) -> Callable[[], Conversation]:
        return lambda: Conversation(self._server, visit, self._host, self._limits)

    async def _sweep_for_ever(self) -> None:
        """One timer for all, at most `_SWEEP_SECONDS` late."""
        while True:
            await self._is_busy.wait()
            await self._clock.sleep(_SWEEP_SECONDS)
            now = self._clock.monotonic()
            for visit in [each for each in self._visits if each.deadline is not None and each.deadline <= now]:
                self._put_out(visit, "timed_out")
            for listening in [each for each, until in self._paused.items() if until <= now]:
                del self._paused[listening]
                self._accept_from(listening)
            if not self._visits and not self._paused:
                self._is_busy.clear()


def _source(listening: Listening, accepted: socket.socket, peer: object) -> Source:
    if listening.kind == "unix":
        return Source(listener="unix", peer=peer_credentials(accepted))
    return Source(listener=listening.kind, address=str(cast("tuple[str, int]", peer)[0]))
