"""A REST gateway on real sockets, before handlers that remember what they were asked."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
import msgspec
import structlog
from structlog.testing import LogCapture

from scaivaultd.api import messages as m
from scaivaultd.api.commands import COMMANDS
from scaivaultd.api.dispatch import Dispatcher
from scaivaultd.api.gate import OpenGate
from scaivaultd.gateways.rest import RestGateway, RestLimits, RestPlaces
from scaivaultd.gateways.rest_pages import Subjects
from scaivaultd.gateways.rest_tls import TlsFiles
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.ids import IdMaker
from scaivaultd.model.principals import Principal
from tests.fakes.tcp import PATIENCE_SECONDS, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from scaivaultd.api.commands import Command, RequestContext
    from scaivaultd.api.gate import Gate
    from scaivaultd.gateways.metrics_page import MetricsPage
    from scaivaultd.gateways.rest_sockets import UnixSocket
    from scaivaultd.plugin import Secret

TOKEN = "scvt_canary_0123456789"
SUBJECTS = Subjects(requests="test.requests", events="test.events")


class Done(msgspec.Struct):
    """What the handlers answer unless told otherwise: it has every member that a Location may need."""

    id: str = "a/b c"
    order_id: str = "acme_order_1"
    text: str = "as it is"


class TokenHolders:
    """Knows one token, and remembers what it was told of each request."""

    def __init__(self) -> None:
        self.facts: list[dict[str, Any]] = []
        self.error: Exception | None = None

    async def identify(
        self, *, token: Secret | None, address: str | None, uid: int | None, gids: Collection[int]
    ) -> Principal | None:
        self.facts.append({"token": token, "address": address, "uid": uid, "gids": gids})
        if self.error is not None:
            raise self.error
        if uid is not None:
            return Principal(kind="unix", id=str(uid))
        is_known = token is not None and token.reveal() == TOKEN
        return Principal(kind="token", id="Canary12", name="canary") if is_known else None


class Served:
    """A gateway that runs, with its handlers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, RequestContext]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        """What a command's handler does instead: it may return, raise, or be a coroutine function."""
        self.holders = TokenHolders()
        self.health: m.HealthReply | asyncio.Event = m.HealthReply(status="ok", components=[])
        self.capture = LogCapture()
        self.address = ("", 0)
        self.gateway: RestGateway

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.address[1]}"

    def dispatcher(self, gate: Gate | None = None) -> Dispatcher:
        return Dispatcher(
            [each.bind(self._handler(each)) for each in COMMANDS], gate=gate or OpenGate(), ids=self.ids, log=self.log
        )

    @property
    def ids(self) -> IdMaker:
        return IdMaker(SystemClock(), SystemRandomness())

    @property
    def log(self) -> Any:
        return structlog.wrap_logger(
            None, processors=[self.capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
        )

    def _handler(self, command: Command[Any, Any]) -> Any:
        async def handle(request: Any, context: RequestContext) -> Any:
            self.asked.append((command.name, request, context))
            answer = self.answers.get(command.name)
            if answer is None:
                return Done()
            result = answer(request)
            return await result if asyncio.iscoroutine(result) else result

        return handle

    async def probe(self) -> m.HealthReply:
        if isinstance(self.health, asyncio.Event):
            await self.health.wait()
        assert isinstance(self.health, m.HealthReply)
        return self.health

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the gateway closes."""
        async with connected(self.address) as peer:
            await peer.send(data)
            return await peer.rest()

    async def until_rejected(self, reason: str) -> None:
        """Returns when the gateway has ended a connection for that reason."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while reason not in self.gateway.rejected:
                await SystemClock().sleep(0.01)

    async def until_logged(self, event: str) -> None:
        """Returns when the log has such a line."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while event not in [each["event"] for each in self.capture.entries]:
                await SystemClock().sleep(0.01)

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
        headers = {"Authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
        timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
        async with aiohttp.ClientSession(self.url, headers=headers, timeout=timeout, **options) as session:
            yield session


def listening_socket(host: str = "127.0.0.1") -> socket.socket:
    """As the roof binds them."""
    opened = socket.create_server((host, 0))
    opened.setblocking(False)
    return opened


@asynccontextmanager
async def served(
    *,
    limits: RestLimits | None = None,
    unix: UnixSocket | None = None,
    tls: TlsFiles | Literal["managed"] | None = None,
    tcp: bool = True,
    identified: bool = True,
    origins: tuple[str, ...] = (),
    metrics_page: MetricsPage | None = None,
    gate: Gate | None = None,
) -> AsyncIterator[Served]:
    """A gateway for every command of the table."""
    here = Served()
    sockets = [listening_socket()] if tcp else []
    if sockets:
        here.address = sockets[0].getsockname()[:2]
    here.gateway = RestGateway(
        here.dispatcher(gate),
        RestPlaces(tcp=sockets, tls=tls, unix=unix),
        authenticator=here.holders if identified else None,
        health=here.probe,
        subjects=SUBJECTS,
        ids=here.ids,
        clock=SystemClock(),
        log=here.log,
        origins=origins,
        metrics_page=metrics_page,
        limits=limits,
    )
    await here.gateway.start()
    try:
        yield here
    finally:
        await asyncio.wait_for(here.gateway.close(1), PATIENCE_SECONDS)


def head(
    method: str = "GET", target: str = "/v1/sys/info", fields: Mapping[str, str] | None = None, *, close: bool = True
) -> bytes:
    """A good request head, but for what is given."""
    every = {"Host": "x", "Authorization": f"Bearer {TOKEN}", **(fields or {})}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in every.items())]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def status_of(answer: bytes) -> int:
    """The status of a raw answer."""
    return int(answer.split(b" ", 2)[1])


def self_signed(directory: Path, name: str) -> TlsFiles:
    """A throw-away certificate for localhost."""
    files = TlsFiles(certificate=directory / f"{name}.pem", key=directory / f"{name}.key")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(files.key), "-out", str(files.certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return files
