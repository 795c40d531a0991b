"""Commands over NATS: one `nats.micro` endpoint for each row of the table, one task for each request.

The library awaits one handler at a time for each endpoint, so handlers here only start a task.
Errors are problem documents in the body, with the standard headers `Nats-Service-Error` and
`Nats-Service-Error-Code` so that any micro client sees them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.micro.request import ERROR_CODE_HEADER, ERROR_HEADER
from nats.micro.service import EndpointConfig, EndpointStats, Service, ServiceConfig

from scaivaultd.api.dispatch import Incoming, Outgoing
from scaivaultd.api.schema import endpoint_metadata
from scaivaultd.model.errors import InvalidRequest, RateLimited, Standby
from scaivaultd.model.principals import Principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nats.micro.request import Request
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.dispatch import Dispatcher
    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.gateways.nats_identity import Ingress, KnownTokens
    from scaivaultd.model.clock import Clock

START_PAUSE_SECONDS = 1.0
HEADERS_MAX = 1024
REQUESTS_MAX = 1024
"""Requests at once. Most of them wait for a CA; more than this is a flood."""


class NatsGateway:
    """Answers the commands below one subject root."""

    def __init__(
        self,
        bus: NatsBus,
        dispatcher: Dispatcher,
        *,
        ingress: Sequence[Ingress],
        tokens: KnownTokens,
        version: str,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._dispatcher = dispatcher
        self._root = ingress[0].root
        self._tokens = tokens
        self._version = version
        self._log = log
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: dict[str, dict[str, int]] = {}
        self._service: Service | None = None
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
        self._log.info("nats.serving", subject_root=self._root, commands=len(self._served))

    async def _subscribe(self) -> None:
        """Add what is not there yet: what was added before a failure is the library's to restore."""
        if self._service is None:
            self._service = Service(
                self._bus.client,
                ServiceConfig(
                    name="scaivaultd",
                    version=self._version,
                    description="Certificates by ACME",
                    queue_group="scaivaultd",
                    metadata={"subject_root": self._root},
                    stats_handler=self._stats,
                ),
            )
            await self._service.start()
        for command in self._dispatcher.commands:
            if command.name not in self._served:
                self._served.add(command.name)
                await self._service.add_endpoint(
                    EndpointConfig(
                        name=command.name.replace(".", "-"),
                        subject=command.subject(self._root),
                        handler=self._handler(command.name),
                        metadata=endpoint_metadata(command),
                    )
                )

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
        # Service.stop() would drop what is queued, so the subscriptions are drained first. They are
        # private to the library; there is no other way to reach them.
        if self._service is None or not self._bus.is_connected:
            return
        for endpoint in self._service._endpoints:
            if endpoint._subscription is not None:
                try:
                    await endpoint._subscription.drain()
                except (nats.errors.Error, TimeoutError) as error:
                    self._log.debug("nats.drain_failed", reason=type(error).__name__)

    def _handler(self, name: str) -> Callable[[Request], Awaitable[None]]:
        counts = self._counts.setdefault(f"{self._root}.{name}", {"answered": 0, "failed": 0})

        async def handle(request: Request) -> None:
            if self._closing:
                await self._respond(request, self._dispatcher.refusal(Standby("the daemon is stopping; ask again")))
            elif len(self._tasks) >= REQUESTS_MAX:
                error = RateLimited(f"{REQUESTS_MAX} requests are being handled already", 1)
                await self._respond(request, self._dispatcher.refusal(error))
            else:
                task = asyncio.create_task(self._answer(name, request, counts))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        return handle

    async def _answer(self, name: str, request: Request, counts: dict[str, int]) -> None:
        headers = request.headers or {}
        incoming = Incoming(
            body=request.data,
            principal=Principal(kind="nats", id="$G/local"),
            idempotency_key=_header(headers, "idempotency-key"),
            takes_keys=True,
        )
        outgoing = await self._dispatcher.answer(name, incoming)
        counts["answered" if outgoing.error_code is None else "failed"] += 1
        await self._respond(request, outgoing)

    async def _respond(self, request: Request, outgoing: Outgoing) -> None:
        if len(outgoing.body) > self._bus.client.max_payload - HEADERS_MAX:
            detail = (
                f"the answer has {len(outgoing.body)} bytes, more than this NATS server takes; ask for less at once"
            )
            outgoing = self._dispatcher.refusal(InvalidRequest(detail))
        headers = {"X-Request-Id": outgoing.request_id, "Content-Type": "application/json"}
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
