"""The provider passes the conformance kit against a server that behaves like the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest
from aiohttp import web
from scaivaultd_dns_sample.dns import scaivaultd_dns_providers

from scaivaultd.plugin import DnsProviderKind
from scaivaultd.plugin.testing import DnsProviderContract, FaultKind, Rig

TOKEN = "the-right-token-of-the-sample"


class SampleServer:
    """The service, and the rig around it."""

    zone = "zone.example.test"
    secrets: Mapping[str, str] = {"dns/sample/token": TOKEN}
    wrong_secrets: Mapping[str, str] | None = {"dns/sample/token": "a-wrong-token-of-the-sample"}

    def __init__(self) -> None:
        self.sets: dict[str, dict[str, Any]] = {}
        self.faults: list[tuple[FaultKind, bool]] = []
        self.objections: list[str] = []
        self.root = ""

    @property
    def kind(self) -> DnsProviderKind:
        (kind,) = scaivaultd_dns_providers()
        return kind

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"api_base": self.root, "token_path": "dns/sample/token"}

    async def values(self, name: str) -> Sequence[str]:
        return tuple(self.sets.get(name, {}).get("values", ()))

    async def put_foreign(self, name: str, value: str) -> None:
        self._write(name, [*await self.values(name), value], 300)

    async def fail(self, fault: FaultKind, times: int) -> None:
        self.faults += [(fault, False)] * times

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self.faults += [(fault, True)] * times

    def complaints(self) -> Sequence[str]:
        return self.objections

    def _write(self, name: str, values: list[str], ttl: int) -> None:
        revision = self.sets.get(name, {}).get("revision", 0)
        self.sets[name] = {"values": values, "ttl": ttl, "revision": revision + 1}

    async def handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault(request.method == "PUT")
        if fault == "rate_limit":
            return web.Response(status=429, headers={"Retry-After": "1"})
        if fault == "server_error":
            return web.Response(status=503, text="<html>Service Unavailable</html>", content_type="text/html")
        answer = await self._answer(request) if fault != "drop_before" else web.Response()
        if fault == "hang":
            await asyncio.Event().wait()
        if fault in ("drop_before", "drop_after"):
            assert request.transport is not None
            request.transport.abort()
        return answer

    def _fault(self, writes: bool) -> FaultKind | None:
        for place, (fault, only_writes) in enumerate(self.faults):
            if writes or not only_writes:
                del self.faults[place]
                return fault
        return None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "unauthorized"}, status=401)
        zones = ["example.test", self.zone]
        if request.path == "/zones":
            return web.json_response({"zones": zones})
        _, _, zone, kind, name = request.path.split("/")
        if kind != "txt" or not name.endswith(zone):
            self.objections.append(f"{request.method} {request.path}")
        if zone not in zones:
            return web.json_response({"error": "no such zone"}, status=404)
        if request.method == "PUT":
            body = await request.json()
            if body["revision"] != self.sets.get(name, {}).get("revision", 0):
                return web.json_response({"error": "changed meanwhile"}, status=409)
            self._write(name, body["values"], body["ttl"])
        return web.json_response(self.sets[name]) if name in self.sets else web.json_response({}, status=404)


class TestSample(DnsProviderContract):
    """All of the kit, without an exemption."""

    @pytest.fixture
    async def rig(self) -> AsyncIterator[Rig]:
        server = SampleServer()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", server.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.root = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield server
        finally:
            await runner.cleanup()
