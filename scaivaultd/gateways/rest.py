"""Commands over HTTP: every bound row of the table under its method and path, nothing written by hand."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from aiohttp import web

from scaivaultd.gateways.rest_answers import Answers, Asked, RequestLimits
from scaivaultd.gateways.rest_connections import ConnectionLimits, Conversation, Listening, Reception
from scaivaultd.gateways.rest_errors import HttpRefused
from scaivaultd.gateways.rest_heads import request_id_of
from scaivaultd.gateways.rest_identity import Authenticator, OwnUserOnly
from scaivaultd.gateways.rest_pages import Pages, Subjects
from scaivaultd.gateways.rest_replies import Reply, challenge, cors, failed, refused, rendered
from scaivaultd.gateways.rest_sockets import BoundUnix, UnixSocket, bind_unix, require_loopback
from scaivaultd.gateways.rest_tls import Tls, TlsFiles
from scaivaultd.model import errors as e
from scaivaultd.model import metrics

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.dispatch import Dispatcher
    from scaivaultd.api.messages import HealthReply
    from scaivaultd.gateways.metrics_page import MetricsPage
    from scaivaultd.gateways.rest_connections import Reason
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import IdMaker


class RestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much callers may use; `requests` at once, and more of them are told to come again."""

    requests: int = 256
    request: RequestLimits = RequestLimits()
    connections: ConnectionLimits = ConnectionLimits()


class RestPlaces(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen: TCP sockets that listen already and do not block, and a UNIX socket that does not yet.

    `tls` for the TCP sockets: the files, or `managed` for a certificate that comes by `use_certificate`.
    """

    tcp: Sequence[socket.socket] = ()
    tls: TlsFiles | Literal["managed"] | None = None
    unix: UnixSocket | None = None


class RestGateway:
    """Answers the commands over HTTP."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        places: RestPlaces,
        *,
        authenticator: Authenticator | None,
        health: Callable[[], Awaitable[HealthReply]],
        subjects: Subjects,
        ids: IdMaker,
        clock: Clock,
        log: FilteringBoundLogger,
        origins: Sequence[str] = (),
        metrics_page: MetricsPage | None = None,
        limits: RestLimits | None = None,
    ) -> None:
        """Takes the TCP sockets over: they are closed with the gateway.

        Without an authenticator only the daemon's own user is served, over the UNIX socket. `origins` are the web
        origins whose pages may read answers (CORS); none unless given.
        """
        self._dispatcher = dispatcher
        self._places = places
        self._has_authenticator = authenticator is not None
        self._ids = ids
        self._clock = clock
        self._log = log
        self._origins = tuple(origins)
        self._limits = limits or RestLimits()
        self._answers = Answers(
            dispatcher,
            authenticator=authenticator or OwnUserOnly(os.geteuid()),
            health=health,
            pages=Pages(subjects),
            metrics_page=metrics_page,
            limits=self._limits.request,
            head_bytes=self._limits.connections.head_bytes,
            log=log,
        )
        self._requests: set[asyncio.Task[Any]] = set()
        self._receptions: list[Reception] = []
        self._unix: BoundUnix | None = None
        self._tls: Tls | None = None
        self._closing = False

    async def start(self) -> None:
        """Listen everywhere, or nowhere.

        Raises:
            StartupError: a place cannot be used, or would let strangers in.
        """
        places = self._places
        if places.tcp and not self._has_authenticator:
            raise e.StartupError("REST over TCP needs somebody who judges who is asking; only the UNIX socket does not")
        if places.tls is not None:
            self._tls = Tls(None if places.tls == "managed" else places.tls)
        else:
            require_loopback(places.tcp)
        if places.unix is not None:
            self._unix = bind_unix(places.unix)
            if self._unix.without_group:
                self._log.warning(
                    "rest.socket_without_group",
                    group=places.unix.group,
                    advice="make the daemon's user a member of that group; until then its members cannot connect",
                )
        tls = self._tls
        # Two receptions: a flood over TCP must not keep the administrator out.
        self._receive([Listening(socket=each, kind="tls" if tls else "tcp", tls=tls) for each in places.tcp])
        self._receive([Listening(socket=self._unix.socket, kind="unix")] if self._unix else [])
        self._log.info(
            "rest.serving",
            addresses=[each.getsockname()[:2] for each in places.tcp],
            unix=str(places.unix.path) if places.unix else None,
            tls=tls is not None,
            commands=len(self._dispatcher.commands),
        )

    def _receive(self, listening: Sequence[Listening]) -> None:
        reception = Reception(listening, self, self._limits.connections, clock=self._clock, log=self._log)
        self._receptions.append(reception)
        reception.open()

    def reload(self) -> bool:
        """Read the TLS files again; whether they are in use now. Connections that are there keep what they have."""
        if self._tls is None:
            return False
        try:
            is_read = self._tls.reload()
        except e.StartupError as error:
            self._log.error("rest.tls_not_reloaded", reason=str(error))
            return False
        if is_read:
            self._log.info("rest.tls_reloaded")
        return is_read

    def use_origins(self, origins: Sequence[str]) -> None:
        """Let pages of these web origins read answers, and of no others, from now on."""
        self._origins = tuple(origins)

    def use_certificate(self, chain_pem: str, key_pem: str) -> None:
        """Serve that certificate from now on, where TLS is `managed`; connections that are there keep theirs.

        Raises:
            StartupError: it cannot be used; the one before stays.
        """
        if self._tls is not None:
            self._tls.use(chain_pem, key_pem)

    @property
    def rejected(self) -> Mapping[Reason, int]:
        """How many connections were not served since the start, by reason."""
        return sum((each.rejected for each in self._receptions), Counter())

    @property
    def connections(self) -> int:
        """How many there are now."""
        return sum(len(each) for each in self._receptions)

    async def close(self, grace_seconds: float) -> None:
        """Take no more connections, answer the requests already taken, then leave. May be repeated."""
        self._closing = True
        if self._unix is not None:
            self._unix.remove()
        for reception in self._receptions:
            reception.stop_accepting()
        if self._requests:
            await asyncio.wait(self._requests, timeout=grace_seconds)
        if self._requests:
            self._log.warning("rest.requests_abandoned", count=len(self._requests))
        for task in list(self._requests):
            task.cancel()
        for reception in self._receptions:
            await reception.close()
        for each in self._places.tcp:
            each.close()  # where `start` has failed nobody else does

    def apology(self, status: int, detail: str) -> web.Response:
        """The answer to what is no request, or could not be answered."""
        request_id = self._ids.request()
        if status == 400:
            return rendered(refused(HttpRefused(400, detail, closes=True), request_id))
        return rendered(msgspec.structs.replace(self._hidden(request_id), closes=True))

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        conversation = request.protocol
        assert isinstance(conversation, Conversation)
        conversation.visit.enter("serving")  # one of several heads that came at once may have waited until now
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        # Not before its answer is read: that is work too.
        task.add_done_callback(self._requests.discard)
        asked = Asked(
            request=request,
            source=conversation.visit.source,
            request_id=self._ids.request(),
            named=request_id_of(request),
            is_closing=self._closing,
            is_one_too_many=len(self._requests) > self._limits.requests,
        )
        if asked.named is not None:
            self._log.info("rest.named", request_id=asked.request_id, named=asked.named)
        started = self._clock.monotonic()
        reply = await self._reply_to(asked)
        self._count(asked, reply, self._clock.monotonic() - started)
        shared = cors(self._origins, request.headers.get("Origin"), is_preflight=request.method == "OPTIONS")
        if reply.status == 401:
            shared = {**shared, "WWW-Authenticate": challenge(with_token="Authorization" in request.headers)}
        return rendered(
            msgspec.structs.replace(
                reply,
                headers={**reply.headers, **shared},
                request_id=asked.named or asked.request_id,
                closes=reply.closes or self._closing,
            )
        )

    def _count(self, asked: Asked, reply: Reply, seconds: float) -> None:
        transport = "unix" if asked.source.listener == "unix" else "http"
        operation = self._answers.operation(asked.request)
        metrics.REQUESTS.labels(transport=transport, operation=operation, code=reply.code).inc()
        metrics.REQUEST_DURATION.labels(transport=transport, operation=operation).observe(seconds)

    async def _reply_to(self, asked: Asked) -> Reply:
        told = asked.named or asked.request_id
        try:
            return await self._answers.answer(asked)
        except HttpRefused as error:
            self._log.info("rest.refused", request_id=asked.request_id, status=error.status, detail=error.detail)
            return refused(error, told)
        except e.ScaivaultError as error:
            self._log.info("rest.refused", request_id=asked.request_id, status=error.status, detail=error.detail)
            return failed(self._dispatcher.refusal(error), told)
        except Exception:  # noqa: BLE001 - nothing of a request may end the gateway, and aiohttp would quote it
            self._log.exception("rest.failed", request_id=asked.request_id)
            return self._hidden(told)

    def _hidden(self, request_id: str) -> Reply:
        error = e.Internal("an unexpected error; the log tells more under this request_id")
        return failed(self._dispatcher.refusal(error), request_id)
