"""From one request to one reply.

The order is law: the head is judged, then who is asking is known, then path and body are read, then the dispatcher
decides. Only the probes, the descriptions of the API and OPTIONS are answered to strangers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec
from aiohttp import HttpVersion11, web

from scaivaultd.api import commands
from scaivaultd.api.dispatch import BODY_MAX, Incoming, Outgoing, decode
from scaivaultd.gateways.metrics_page import METRICS_PATH, MetricsPage
from scaivaultd.gateways.rest_conditions import Conditions, conditions_of, etag_of
from scaivaultd.gateways.rest_documents import Documents
from scaivaultd.gateways.rest_errors import HttpRefused
from scaivaultd.gateways.rest_heads import check_body_kind, check_head
from scaivaultd.gateways.rest_identity import Authenticator, Source, bearer_token
from scaivaultd.gateways.rest_pages import PAGE_PATHS, Pages
from scaivaultd.gateways.rest_replies import NO_STORE, REVALIDATE, Reply, failed
from scaivaultd.gateways.rest_routes import Resource, Routes, Target, read_target
from scaivaultd.model import errors as e
from scaivaultd.model import metrics
from scaivaultd.model.tracing import read_trace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Command
    from scaivaultd.api.dispatch import Dispatcher
    from scaivaultd.api.messages import HealthReply, Request
    from scaivaultd.model.principals import Principal

# What is asked for in vain so soon after a 202 only costs.
_POLL_SECONDS = "2"
_KEY_PERMISSION = "key.read"
_WAITS = ("wait_seconds", "wait_end_seconds", "timeout_seconds")
_PROBES = frozenset({"/livez", "/readyz"})
_BESIDE_THE_TABLE = _PROBES | PAGE_PATHS | {METRICS_PATH}
_OPEN_METHODS = "GET, HEAD, OPTIONS"


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much one request may take. It may take `handler_seconds` beyond what it asked to wait itself."""

    handler_seconds: float = 30.0
    body_seconds: float = 10.0
    probe_seconds: float = 5.0


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request, and what the gateway knows of it. `named` is its caller's own name for it; logs go by `request_id`,
    which nobody else can have given to another request.
    """

    request: web.BaseRequest
    source: Source
    request_id: str
    named: str | None
    is_closing: bool
    is_one_too_many: bool


class Answers:
    """Answers requests for every row that has a handler."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        authenticator: Authenticator,
        health: Callable[[], Awaitable[HealthReply]],
        pages: Pages,
        metrics_page: MetricsPage | None,
        limits: RequestLimits,
        head_bytes: int,
        log: FilteringBoundLogger,
    ) -> None:
        self._dispatcher = dispatcher
        self._authenticator = authenticator
        self._health = health
        self._pages = pages
        self._metrics_page = metrics_page
        self._limits = limits
        self._head_bytes = head_bytes
        self._log = log
        self._routes = Routes(dispatcher.commands)
        self._documents = {each.name: Documents(each) for each in dispatcher.commands}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def operation(self, request: web.BaseRequest) -> str:
        """Which command a request is for, or which page, to be counted by."""
        try:
            target = read_target(request.raw_path)
        except ValueError:
            return metrics.OTHER
        if target.path in _BESIDE_THE_TABLE:
            return target.path.removeprefix("/")
        resource = self._routes.find(target.segments)
        command = resource.command(request.method) if resource else None
        return metrics.OTHER if command is None else command.name

    async def answer(self, asked: Asked) -> Reply:
        """Answer one request.

        Raises:
            HttpRefused: the request is not one.
            ScaivaultError: it is refused for another reason.
        """
        request = asked.request
        check_head(request, self._head_bytes)
        try:
            target = read_target(request.raw_path)
        except ValueError as error:
            raise HttpRefused(400, str(error), closes=True) from error
        if request.method == "OPTIONS" and target.path in _BESIDE_THE_TABLE:
            return Reply(status=204, headers={"Allow": _OPEN_METHODS})
        if target.path in _PROBES:
            return await self._probed(target.path, asked)
        if asked.is_closing:
            raise e.Standby("the daemon is stopping; ask again")
        if asked.is_one_too_many:
            raise e.RateLimited("as many requests as may be are being handled already", 1)
        if target.path in PAGE_PATHS:
            return await self._described(target.path, request)
        if target.path == METRICS_PATH:
            return await self._measured(asked)
        resource = self._routes.find(target.segments)
        if resource.has_foreign_slash if resource else any("/" in each for each in target.segments):
            raise HttpRefused(400, "%2F does not belong into a path", closes=True)
        if request.method == "OPTIONS" and resource is not None:
            return Reply(status=204, headers={"Allow": resource.allow})
        principal = await self._identified(asked)
        resource, command = _row(resource, request.method)
        body = await self._body(request)
        document = self._documents[command.name].document(resource.members(command), target.query, body)
        self._log.debug("rest.request", request_id=asked.request_id, command=command.name, principal=str(principal))
        return await self._decided(asked, target, resource, command, document, principal)

    async def _described(self, path: str, request: web.BaseRequest) -> Reply:
        _require_get(path, request)
        page = await self._pages.get(path)
        headers = {**page.headers, "ETag": page.etag}
        if not _conditions(request).is_news(page.etag):
            return Reply(status=304, cache_control=REVALIDATE, headers=headers)
        return Reply(
            status=200, body=page.body, content_type=page.content_type, cache_control=REVALIDATE, headers=headers
        )

    async def _probed(self, path: str, asked: Asked) -> Reply:
        _require_get(path, asked.request)
        if path == "/livez":
            return Reply(status=200, body=b'{"status":"ok"}')
        if asked.is_closing:
            raise e.Standby("the daemon is stopping")
        try:
            async with asyncio.timeout(self._limits.probe_seconds):
                health = await self._health()
        except TimeoutError as error:
            raise e.Standby("the daemon does not say in time how it is") from error
        # Strangers learn no more than that; `sys.health` has the parts.
        return Reply(status=health.http_status, body=msgspec.json.encode({"status": health.status}))

    async def _measured(self, asked: Asked) -> Reply:
        _require_get(METRICS_PATH, asked.request)
        if self._metrics_page is None:
            raise e.NotFound("there are no metrics here")
        principal = await self._identified(asked)
        incoming = Incoming(body=b"", principal=principal, request_id=asked.request_id, source=str(asked.source))
        try:
            async with asyncio.timeout(self._limits.handler_seconds):
                # Scraped every few seconds: only a refusal is worth a record.
                await self._dispatcher.require(commands.INFO, incoming)
                told = await self._metrics_page.render(asked.request.headers.get("Accept", ""))
        except TimeoutError as error:
            raise e.Timeout("the metrics could not be told in time") from error
        return Reply(status=200, body=told.body, content_type=told.content_type)

    async def _identified(self, asked: Asked) -> Principal:
        fields = asked.request.headers.getall("Authorization", [])
        peer = asked.source.peer
        try:
            async with asyncio.timeout(self._limits.handler_seconds):
                principal = await self._authenticator.identify(
                    token=bearer_token(fields),
                    address=asked.source.address,
                    uid=peer.uid if peer else None,
                    gids=peer.gids if peer else (),
                )
        except TimeoutError as error:
            raise e.Timeout("it could not be told in time who is asking") from error
        if principal is None:
            raise e.Unauthenticated("the request needs a valid token: `Authorization: Bearer scvt_...`")
        return principal

    async def _body(self, request: web.BaseRequest) -> bytes:
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                body = await _read(request)
        except TimeoutError as error:
            detail = f"the body did not come within {self._limits.body_seconds:g} s"
            raise HttpRefused(408, detail, closes=True) from error
        except web.RequestPayloadError as error:
            raise HttpRefused(400, "the body is not framed as its head says", closes=True) from error
        except ConnectionError as error:
            # Callers hang up as they like: no fault of ours, and not worth a traceback each.
            raise HttpRefused(400, "the caller was gone before the end of the body", closes=True) from error
        check_body_kind(request, body)
        return body

    async def _decided(
        self,
        asked: Asked,
        target: Target,
        resource: Resource,
        command: Command[Any, Any],
        document: bytes,
        principal: Principal,
    ) -> Reply:
        wanted = decode(document, command.request)
        incoming = Incoming(
            body=document,
            principal=principal,
            idempotency_key=asked.request.headers.get("Idempotency-Key"),
            request_id=asked.request_id,
            source=str(asked.source),
            takes_keys=True,
            trace=read_trace(asked.request.headers.get("traceparent"), asked.request.headers.get("tracestate")),
        )
        conditions = _conditions(asked.request)
        seconds = self._limits.handler_seconds + _asked_to_wait(wanted)
        try:
            async with asyncio.timeout(seconds):
                if not conditions or command.method == "GET":
                    outgoing = await self._dispatcher.answer(command.name, incoming)
                else:
                    # Between the look and the change nobody else who set a condition may change it.
                    async with self._locks.setdefault(target.path, asyncio.Lock()):
                        untold = await self._require(conditions, resource, incoming)
                        outgoing = untold or await self._dispatcher.answer(command.name, incoming)
        except TimeoutError as error:
            raise e.Timeout(f"the answer took longer than {seconds:g} s; what was set going goes on") from error
        if outgoing.error_code is not None:
            reply = failed(outgoing, asked.named or asked.request_id)
        else:
            reply = self._succeeded(command, outgoing, conditions)
        if outgoing.traceparent is None:
            return reply
        return msgspec.structs.replace(reply, headers={**reply.headers, "traceparent": outgoing.traceparent})

    async def _require(self, conditions: Conditions, resource: Resource, wanted: Incoming) -> Outgoing | None:
        """Look whether what GET shows now is what the caller assumes; what is returned says why that cannot be told.

        Raises:
            PreconditionFailed: it is not.
        """
        if (getter := resource.command("GET")) is None:
            # Nor is it certain that nothing is there: `If-None-Match: *` would change what is.
            raise e.PreconditionFailed(
                "this path has no GET, so If-Match and If-None-Match cannot be judged; omit them"
            )
        document = msgspec.json.encode(resource.members(getter))
        look = msgspec.structs.replace(wanted, body=document, idempotency_key=None)
        shown = await self._dispatcher.answer(getter.name, look)
        if shown.error_code not in (None, e.NotFound.code):
            return shown
        etag = etag_of(shown.body) if shown.error_code is None else None
        if not conditions.matches(etag) or not conditions.is_news(etag):
            raise e.PreconditionFailed("the resource is not as If-Match or If-None-Match says; get it and look again")
        return None

    def _succeeded(self, command: Command[Any, Any], outgoing: Outgoing, conditions: Conditions) -> Reply:
        if command.permission == _KEY_PERMISSION:
            return Reply(status=outgoing.status, body=outgoing.body, cache_control=NO_STORE)
        headers: dict[str, str] = {}
        if command.method == "GET" and outgoing.status == 200:
            headers["ETag"] = etag = etag_of(outgoing.body)
            if not conditions.matches(etag):
                raise e.PreconditionFailed("the resource is not as If-Match says; its ETag is another one")
            if not conditions.is_news(etag):
                return Reply(status=304, cache_control=REVALIDATE, headers=headers)
        if location := self._routes.location(command, outgoing.body):
            headers["Location"] = location
        if outgoing.status == 202:
            headers["Retry-After"] = _POLL_SECONDS
        # What is made may hold a secret that is shown once only, such as a token's text.
        keeping = REVALIDATE if command.method == "GET" else NO_STORE
        return Reply(status=outgoing.status, body=outgoing.body, cache_control=keeping, headers=headers)


def _require_get(path: str, request: web.BaseRequest) -> None:
    if request.method not in ("GET", "HEAD"):
        raise HttpRefused(405, f"{path} takes GET", headers={"Allow": _OPEN_METHODS})


def _row(resource: Resource | None, method: str) -> tuple[Resource, Command[Any, Any]]:
    if resource is None:
        raise e.NotFound("there is no such path; docs/reference/commands.md lists them all")
    command = resource.command(method)
    if command is None:
        raise HttpRefused(405, f"this path takes {resource.allow}", headers={"Allow": resource.allow})
    return resource, command


async def _read(request: web.BaseRequest) -> bytes:
    if request.version == HttpVersion11 and "Expect" in request.headers:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > BODY_MAX:
            raise HttpRefused(413, f"the body may have at most {BODY_MAX} bytes", closes=True)
    return bytes(body)


def _conditions(request: web.BaseRequest) -> Conditions:
    headers = request.headers
    try:
        return conditions_of(headers.getall("If-Match", []), headers.getall("If-None-Match", []))
    except ValueError as error:
        raise HttpRefused(400, str(error)) from error


def _asked_to_wait(wanted: Request) -> float:
    """How long the caller lets its answer wait, its default included."""
    return float(max(getattr(wanted, name, None) or 0 for name in _WAITS))
