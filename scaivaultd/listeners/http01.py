"""Answers http-01 challenges (RFC 8555 section 8.3) on sockets anybody may reach.

What holds here:

* One request per connection, raw bytes, no percent-decoding, no file system, no body: there is one
  way to read a request, and it ends in a dict.
* Who asks for something else is told so, sent to https, or joined with the web server behind us. A connection
  that is joined stays so: later requests on it are not looked at. A CA opens one for each request.
* What depends on bytes alone is in `http01_head` and `http01_answers`, on numbers alone in `http01_admission`:
  they open no socket. Who comes in, and for how long, is the `door`'s.
"""

from __future__ import annotations

import re
from collections import Counter
from email.utils import format_datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd.listeners.door import Door, Guest
from scaivaultd.listeners.http01_admission import Http01Limits, Sampler
from scaivaultd.listeners.http01_answers import (
    APOLOGIES,
    BAD_GATEWAY,
    NOT_FOUND,
    Answer,
    key_authorization_answer,
    redirect_answer,
)
from scaivaultd.listeners.http01_head import TOKEN, Asked, HeadReader, Reason, Refused
from scaivaultd.listeners.splice import SpliceCounters, SpliceLimits, Splicer

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock

# Visible ASCII: it goes into a body byte for byte, and a longer one is no key authorization.
_KEY_AUTHORIZATION = re.compile(r"[\x21-\x7e]{1,512}")

FallbackKind = Literal["404", "redirect", "proxy"]


class Http01Fallback(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of requests for anything but a known token.

    "redirect" sends them to https on the same host, "proxy" joins them with `upstream` (`host:port`), which only that
    kind has.
    """

    kind: FallbackKind = "404"
    upstream: str | None = None
    limits: SpliceLimits = SpliceLimits()


class Http01Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What happened since the start; `connections` is how many are inside now, spliced ones not counted."""

    answers: int
    not_found: int
    redirected: int
    rejected: Mapping[Reason, int]
    evicted: int
    connections: int
    splices: SpliceCounters | None


class _Connection(Guest):
    """One client until it has been answered or given away."""

    def __init__(self, listener: Http01Listener, source: str, limits: Http01Limits, buffer: memoryview) -> None:
        super().__init__(source, buffer, listener.door.left)
        self._listener = listener
        self.head = HeadReader(limits)

    def received(self, data: memoryview) -> None:
        if (verdict := self.head.feed(data)) is not None:
            self._listener.judged(self, verdict)


class Http01Listener:
    """Answers for the tokens put here, on all its sockets, and tells everybody else little."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        clock: Clock,
        log: FilteringBoundLogger,
        limits: Http01Limits | None = None,
        fallback: Http01Fallback | None = None,
    ) -> None:
        """Takes the listening, non-blocking sockets over: they are closed with the listener."""
        self._clock = clock
        self._log = log
        self._limits = limits or Http01Limits()
        self._fallback = fallback or Http01Fallback()
        self._splicer = self._open_splicer()
        self.door: Door[_Connection] = Door(
            sockets, self, self._limits, clock=clock, log=log, paused_event="http01.accept_paused"
        )
        self._is_somewhere = bool(sockets)
        self._answers: dict[bytes, Answer] = {}
        self._buffer = memoryview(bytearray(self._limits.head_bytes))
        self._unanswered = Sampler(clock)
        self._counts: Counter[Literal["answers", "not_found", "redirected"]] = Counter()
        self._rejected: Counter[Reason] = Counter()

    def _open_splicer(self) -> Splicer | None:
        if self._fallback.kind != "proxy" or self._fallback.upstream is None:
            return None
        return Splicer(
            self._fallback.upstream,
            farewell=lambda: BAD_GATEWAY.render(self._date(), is_head=False),
            clock=self._clock,
            log=self._log,
            unreachable_event="http01.upstream_unreachable",
            limits=self._fallback.limits,
        )

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it really listens, ports chosen by the kernel included; empty after `close`."""
        return self.door.addresses

    @property
    def counters(self) -> Http01Counters:
        """A snapshot."""
        return Http01Counters(
            answers=self._counts["answers"],
            not_found=self._counts["not_found"],
            redirected=self._counts["redirected"],
            rejected=dict(self._rejected),
            evicted=self.door.evicted,
            connections=len(self.door),
            splices=self._splicer.counters if self._splicer else None,
        )

    def put(self, token: str, key_authorization: str) -> None:
        """Answer for `token` from now on; a token put twice has its last answer.

        Raises:
            ValueError: no request can ask for such a token, such an answer is none, or nobody can ask at all.
        """
        if not self._is_somewhere:
            raise ValueError("[http01] listen is empty: the daemon has no port at which a CA could ask")
        raw_token = token.encode()
        if not TOKEN.fullmatch(raw_token) or not _KEY_AUTHORIZATION.fullmatch(key_authorization):
            raise ValueError("a token is 16 to 128 characters of base64url, its key authorization visible ASCII")
        self._answers[raw_token] = key_authorization_answer(key_authorization)

    def remove(self, token: str) -> None:
        """Answer no more for `token`; an unknown one is no error."""
        self._answers.pop(token.encode(), None)

    async def start(self) -> None:
        """Accept connections from now on, until `close`."""
        self.door.open()

    async def drain(self) -> None:
        """Take no more connections, and have those that are there answered; see `Door.drain`."""
        await self.door.drain()

    async def close(self) -> None:
        """Close the sockets and disconnect everybody; returns when all are gone. May be repeated.

        An answer already given still arrives: the kernel has it.
        """
        await self.door.close()
        if self._splicer is not None:
            await self._splicer.close()

    def welcome(self, source: str) -> _Connection:
        """Somebody comes in."""
        return _Connection(self, source, self._limits, self._buffer)

    def timed_out(self, source: str) -> None:
        """Somebody said too little in its time."""
        self._reject("timed_out", source)

    def sweep(self, now: float) -> bool:
        """Look after the spliced ones; whether there are any."""
        return self._splicer is not None and self._splicer.sweep(now)

    def judged(self, connection: _Connection, verdict: Asked | Refused) -> None:
        """A client has said all it may: it is answered, or given to the server behind us."""
        # A method that we do not know is something to the web server; a head that is none is not passed on.
        is_request = isinstance(verdict, Asked) or verdict.reason == "method_not_allowed"
        if self._splicer is not None and is_request and not self._knows(verdict):
            self._give_away(connection, self._splicer)
            return
        self.door.linger(connection)
        answer = self._answer_to(connection, verdict)
        connection.take_leave(answer.render(self._date(), is_head=verdict.is_head))

    def _knows(self, verdict: Asked | Refused) -> bool:
        return isinstance(verdict, Asked) and verdict.token in self._answers

    def _give_away(self, connection: _Connection, splicer: Splicer) -> None:
        splicer.splice(connection.hand_over(), bytes(connection.head.raw), connection.source)

    def _answer_to(self, connection: _Connection, verdict: Asked | Refused) -> Answer:
        source = connection.source
        if isinstance(verdict, Asked) and verdict.token is not None and verdict.token in self._answers:
            return self._known(source, verdict.token)
        if isinstance(verdict, Refused) and verdict.reason != "method_not_allowed":
            return self._refuse(verdict.reason, source)
        if self._fallback.kind == "redirect" and (location := connection.head.location()) is not None:
            self._counts["redirected"] += 1
            return redirect_answer(location)
        return self._refuse(verdict.reason, source) if isinstance(verdict, Refused) else self._unknown(source, verdict)

    def _known(self, source: str, token: bytes) -> Answer:
        self._counts["answers"] += 1
        self._log.info("http01.answered", source=source, found=True, challenge=_short(token))
        return self._answers[token]

    def _unknown(self, source: str, asked: Asked) -> Answer:
        self._counts["not_found"] += 1
        if (suppressed := self._unanswered.due()) is not None and asked.token is not None:
            self._log.info(
                "http01.answered", source=source, found=False, challenge=_short(asked.token), suppressed=suppressed
            )
        elif suppressed is not None:
            self._log.info("http01.rejected", source=source, reason="not_found", suppressed=suppressed)
        return NOT_FOUND

    def _refuse(self, reason: Reason, source: str) -> Answer:
        self._reject(reason, source)
        return APOLOGIES[reason]

    def _reject(self, reason: Reason, source: str) -> None:
        self._rejected[reason] += 1
        if (suppressed := self._unanswered.due()) is not None:
            self._log.info("http01.rejected", source=source, reason=reason, suppressed=suppressed)

    def _date(self) -> bytes:
        return format_datetime(self._clock.now(), usegmt=True).encode()


def _short(token: bytes) -> str:
    """Enough to find it in the CA's words, too little to ask for it."""
    return token[:8].decode("ascii")
