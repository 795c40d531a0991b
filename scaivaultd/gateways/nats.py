"""Commands over NATS: one `nats.micro` endpoint for each row of the table, one task for each request.

The library awaits one handler at a time for each endpoint, so handlers here only find out who asks, and start a task.
Errors are problem documents in the body, with the standard headers `Nats-Service-Error` and
`Nats-Service-Error-Code` so that any micro client sees them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER, Request
from nats.micro.service import EndpointConfig, EndpointStats, Service, ServiceConfig

from scaivaultd.api.dispatch import Incoming, Outgoing
from scaivaultd.api.schema import endpoint_metadata
from scaivaultd.gateways.nats_identity import Asked, Callers, how_to_ask
from scaivaultd.model import metrics
from scaivaultd.model.errors import InvalidRequest, RateLimited, Standby, Unauthenticated
from scaivaultd.model.tracing import read_trace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Command
    from scaivaultd.api.dispatch import Dispatcher
    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.gateways.nats_identity import Caller, Ingress, KnownTokens
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.principals import Principal

START_PAUSE_SECONDS = 1.0
HEADERS_MAX = 1024
REQUESTS_MAX = 1024
"""Requests at once. Most of them wait for a CA; more than this is a flood."""
REQUESTS_OF_ONE_MAX = 256
"""Of them, those of one sender that is known by name: it shall not keep out all others."""
_QUEUE = "scaivaultd"
_LOG_EVERY_SECONDS = 10.0


class NatsGateway:
    """Answers the commands below each subject root, to whom the root's way of knowing senders vouches for."""

    def __init__(
        self,
        bus: NatsBus,
        dispatcher: Dispatcher,
        *,
        ingress: Sequence[Ingress],
        events_root: str,
        tokens: KnownTokens,
        version: str,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._dispatcher = dispatcher
        self._ingress = tuple(ingress)
        self._callers = Callers(tokens, closed=[*(each.root for each in ingress), events_root])
        self._version = version
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: Counter[Principal | None] = Counter()
        self._counts: dict[str, dict[str, int]] = {}
        self._dropped = 0
        self._drop_logged = float("-inf")
        self._service: Service | None = None
        self._subscriptions: list[Subscription] = []
        self._served: set[str] = set()
        self._closing = False

    async def start(self) -> None:
        """Subscribe; the subscriptions survive reconnects. A server that goes away meanwhile is waited for."""
        while True:
            try:
                await self._subscribe()
                await self._bus.client.flush()
                break
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._log.warning("nats.not_serving_yet", reason=f"{type(error).__name__}: {error}")
                await self._clock.sleep(START_PAUSE_SECONDS)
                await self._bus.connected()
        self._log.info(
            "nats.serving",
            roots={each.root: each.identity for each in self._ingress},
            commands=len(self._dispatcher.commands),
        )

    async def _subscribe(self) -> None:
        """Add what is not there yet: what was added before a failure is the library's to restore."""
        if self._service is None:
            self._service = Service(
                self._bus.client,
                ServiceConfig(
                    name="scaivaultd",
                    version=self._version,
                    description="Certificates by ACME",
                    queue_group=_QUEUE,
                    metadata={"subject_root": self._ingress[0].root},
                    stats_handler=self._stats,
                ),
            )
            await self._service.start()
        shown = self._shown()
        for ingress in self._ingress:
            for command in self._dispatcher.commands:
                subject = ingress.subject(command)
                if subject not in self._served:
                    self._served.add(subject)
                    await self._serve(ingress, command, subject, is_shown=ingress in shown)
        for ingress in self._nameless():
            firsts = {each.name.partition(".")[0] for each in self._dispatcher.commands}
            for subject in (f"{ingress.root}.{first}.>" for first in sorted(firsts)):
                if subject not in self._served:
                    self._served.add(subject)
                    await self._listen(subject, self._refusal(ingress))

    def _shown(self) -> Sequence[Ingress]:
        """Where `$SRV.INFO` sends people: at a server of our own only the login of `client.json` can ask it."""
        return [each for each in self._ingress if each.identity == "local"] or self._ingress

    def _nameless(self) -> Iterator[Ingress]:
        """Roots that name the sender, and whose plain subjects nobody else serves."""
        plain = {each.root for each in self._ingress if not each.names_sender}
        return (each for each in self._ingress if each.names_sender and each.root not in plain)

    async def _serve(self, ingress: Ingress, command: Command[Any, Any], subject: str, *, is_shown: bool) -> None:
        handler = self._handler(ingress, command.name, subject)
        if not is_shown:
            await self._listen(subject, handler)
            return
        assert self._service is not None
        place = self._ingress.index(ingress)
        await self._service.add_endpoint(
            EndpointConfig(
                name=command.name.replace(".", "-") + (f"-{place}" if place and len(self._shown()) > 1 else ""),
                subject=subject,
                handler=handler,
                metadata=endpoint_metadata(command),
            )
        )

    async def _listen(self, subject: str, handler: Callable[[Request], Awaitable[None]]) -> None:
        async def heard(message: Msg) -> None:
            await handler(Request(message))

        self._subscriptions.append(await self._bus.client.subscribe(subject, queue=_QUEUE, cb=heard))

    async def close(self, grace_seconds: float) -> None:
        """Take no more requests, answer those already taken, then leave.

        Requests that reached us but were not begun are told that the daemon is stopping.
        """
        self._closing = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._drain()
                if self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            self._log.warning("nats.requests_abandoned", count=len(self._tasks))
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _drain(self) -> None:
        # Service.stop() would drop what is queued, so the subscriptions are drained first. Those of endpoints are
        # private to the library; there is no other way to reach them.
        if self._service is None or not self._bus.is_connected:
            return
        endpoints = (each._subscription for each in self._service._endpoints)
        for subscription in [*(each for each in endpoints if each is not None), *self._subscriptions]:
            try:
                await subscription.drain()
            except (nats.errors.Error, TimeoutError) as error:
                self._log.debug("nats.drain_failed", reason=type(error).__name__)

    def _handler(self, ingress: Ingress, name: str, subject: str) -> Callable[[Request], Awaitable[None]]:
        counts = self._counts.setdefault(subject, {"answered": 0, "failed": 0, "dropped": 0})

        async def handle(request: Request) -> None:
            asked = self._asked(request)
            if not self._callers.may_answer(ingress, asked):
                counts["dropped"] += 1
                self._drop(ingress, asked)
                return
            caller = self._callers.caller(ingress, asked)
            refusal = self._too_much(caller)
            if refusal is not None:
                await self._respond(request, self._dispatcher.refusal(refusal))
                return
            self._begin(caller, self._answer(ingress, name, request, caller, counts))

        return handle

    def _begin(self, caller: Caller, answering: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(answering)
        self._tasks.add(task)
        self._under_way[caller.principal] += 1
        task.add_done_callback(lambda _: self._end(caller, task))

    def _end(self, caller: Caller, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._under_way[caller.principal] -= 1
        if not self._under_way[caller.principal]:
            del self._under_way[caller.principal]

    def _refusal(self, ingress: Ingress) -> Callable[[Request], Awaitable[None]]:
        refusal = Unauthenticated(f"nobody knows who is asking: {how_to_ask(ingress)}")

        async def handle(request: Request) -> None:
            asked = self._asked(request)
            if self._callers.may_refuse(asked):
                await self._respond(request, self._dispatcher.refusal(refusal))
            else:
                self._drop(ingress, asked)

        return handle

    def _asked(self, request: Request) -> Asked:
        return Asked(
            subject=request.subject,
            reply=request._msg.reply,
            headers=request.headers or {},
            server_version=self._bus.server_version,
        )

    def _drop(self, ingress: Ingress, asked: Asked) -> None:
        """Say that a request was not looked at; often enough to be seen, and no more."""
        self._dropped += 1
        now = self._clock.monotonic()
        if now - self._drop_logged >= _LOG_EVERY_SECONDS:
            self._drop_logged = now
            self._log.warning(
                "nats.request_dropped",
                subject=asked.subject[:200],
                reply=asked.reply[:200],
                identity=ingress.identity,
                dropped=self._dropped,
                reason="no answer may go to that reply subject" if asked.reply else "it has no reply subject",
            )

    def _too_much(self, caller: Caller) -> Standby | RateLimited | None:
        if self._closing:
            return Standby("the daemon is stopping; ask again")
        if len(self._tasks) >= REQUESTS_MAX:
            return RateLimited(f"{REQUESTS_MAX} requests are being handled already", 1)
        if caller.is_one and self._under_way[caller.principal] >= REQUESTS_OF_ONE_MAX:
            return RateLimited(f"{REQUESTS_OF_ONE_MAX} requests of {caller.principal} are being handled already", 1)
        return None

    async def _answer(
        self, ingress: Ingress, name: str, request: Request, caller: Caller, counts: dict[str, int]
    ) -> None:
        started = self._clock.monotonic()
        outgoing = await self._answered(ingress, name, request, caller)
        metrics.REQUESTS.labels(transport="nats", operation=name, code=outgoing.error_code or "ok").inc()
        metrics.REQUEST_DURATION.labels(transport="nats", operation=name).observe(self._clock.monotonic() - started)
        counts["answered" if outgoing.error_code is None else "failed"] += 1
        await self._respond(request, outgoing)

    async def _answered(self, ingress: Ingress, name: str, request: Request, caller: Caller) -> Outgoing:
        if caller.principal is None:
            metrics.AUTH_FAILURES.labels(transport="nats", reason="unknown_sender").inc()
            self._log.info("nats.sender_unknown", subject=request.subject[:200], reason=caller.refusal)
            return self._dispatcher.refusal(Unauthenticated(caller.refusal))
        headers = request.headers or {}
        incoming = Incoming(
            body=request.data,
            principal=caller.principal,
            idempotency_key=_header(headers, "idempotency-key"),
            source=f"nats:{ingress.root}",
            takes_keys=caller.takes_keys,
            trace=read_trace(_header(headers, "traceparent"), _header(headers, "tracestate")),
        )
        return await self._dispatcher.answer(name, incoming)

    async def _respond(self, request: Request, outgoing: Outgoing) -> None:
        if len(outgoing.body) > self._bus.client.max_payload - HEADERS_MAX:
            detail = (
                f"the answer has {len(outgoing.body)} bytes, more than this NATS server takes; ask for less at once"
            )
            outgoing = self._dispatcher.refusal(InvalidRequest(detail))
        headers = {"X-Request-Id": outgoing.request_id, "Content-Type": "application/json"}
        if outgoing.traceparent is not None:
            headers["traceparent"] = outgoing.traceparent
        if outgoing.error_code is not None:
            headers["Content-Type"] = "application/problem+json"
            headers[ERROR_HEADER] = outgoing.error_title or ""
            headers[ERROR_CODE_HEADER] = outgoing.error_code
        try:
            await request.respond(outgoing.body, headers)
        except ValueError:
            self._log.debug("nats.no_reply_subject", request_id=outgoing.request_id)
        except (nats.errors.Error, OSError) as error:
            # The caller asks again; what it asked for is stored all the same.
            self._log.warning("nats.reply_lost", request_id=outgoing.request_id, reason=type(error).__name__)

    def _stats(self, stats: EndpointStats) -> dict[str, Any]:
        return self._counts.get(stats.subject, {})


def _header(headers: dict[str, str], name: str) -> str | None:
    # nats-py keeps the spelling of the sender.
    return next((value for key, value in headers.items() if key.lower() == name), None)
