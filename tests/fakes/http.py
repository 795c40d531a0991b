"""What every fake HTTP API has: a real server on loopback, faults on demand, a record of what was asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

FaultKind = Literal["status", "drop_before", "drop_after", "hang"]


@dataclass(frozen=True)
class Seen:
    """A request as it came in; `path` is still encoded, header names are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose `METHOD path` matches `where`.

    `status`: answer so instead. `drop_before`, `drop_after`: close the connection without an answer, before or
    after carrying the request out. `hang`: carry it out, and never answer.
    """

    kind: FaultKind
    times: int = 1
    where: str = ""
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"<html><body>Bad Gateway</body></html>"
    content_type: str = "text/html"


class FakeApi:
    """Base of the fakes; `answer` is theirs. `violations` is what no client may ever do: tests want it empty."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.violations: list[str] = []
        self.faults: list[Fault] = []
        self.on_txt: Callable[[str, tuple[str, ...]], None] | None = None
        """Called with a name and its TXT values after every change: what feeds the DNS that a CA asks."""
        self.keeps_connections = True
        """Whether a connection carries a second request; if not, it is closed without a word after the answer."""
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def answer(self, seen: Seen) -> web.StreamResponse:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        application = web.Application(client_max_size=4 << 20)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def fail(self, kind: FaultKind, **details: Any) -> None:
        self.faults.append(Fault(kind, **details))

    def asked(self, where: str) -> list[Seen]:
        """Requests whose `METHOD path` matches."""
        return [each for each in self.seen if re.search(where, each.line)]

    def violation(self, text: str) -> None:
        self.violations.append(text)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(
            method=request.method,
            path=request.rel_url.raw_path,
            query=dict(request.rel_url.query),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.read(),
        )
        self.seen.append(seen)
        fault = self._fault_for(seen)
        if fault is None:
            answer = await self.answer(seen)
            if not self.keeps_connections:
                await answer.prepare(request)
                await answer.write_eof()
                assert request.transport is not None
                request.transport.close()
            return answer
        if fault.kind == "status":
            return web.Response(
                status=fault.status, headers=dict(fault.headers), body=fault.body, content_type=fault.content_type
            )
        if fault.kind in ("drop_after", "hang"):
            await self.answer(seen)
        if fault.kind == "hang":
            await asyncio.Event().wait()
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    def _fault_for(self, seen: Seen) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.where, seen.line):
                fault.times -= 1
                return fault
        return None


def problem(status: int, body: Any, **headers: str) -> web.Response:
    """A JSON answer."""
    return web.json_response(body, status=status, headers=headers)
