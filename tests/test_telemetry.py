"""Spans by OTLP over HTTP, to a collector at a socket."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from structlog.testing import LogCapture

from scaivaultd.model import tracing
from scaivaultd.model.clock import SystemClock
from scaivaultd.telemetry import open_telemetry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Collector:
    """Takes spans, or refuses them."""

    def __init__(self) -> None:
        self.status = 200
        self.spans: asyncio.Queue[tuple[dict[str, str], Any]] = asyncio.Queue()
        self.asked = asyncio.Event()
        self.endpoint = ""

    async def take(self, request: web.Request) -> web.Response:
        """One batch."""
        self.asked.set()
        content = ExportTraceServiceRequest.FromString(await request.read())
        if self.status == 200:
            for resource in content.resource_spans:
                about = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        await self.spans.put((about, span))
        return web.Response(status=self.status)


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """A collector."""
    there = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", there.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    there.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield there
    await runner.cleanup()


def logger() -> tuple[Any, LogCapture]:
    capture = LogCapture()
    return structlog.wrap_logger(None, processors=[capture]), capture


async def test_spans_reach_the_collector(collector: Collector) -> None:
    """With the caller's trace, our name and version, and what was found out on the way."""
    log, _ = logger()
    async with AsyncExitStack() as stack:
        open_telemetry(collector.endpoint, 1.0, "node-1", stack, clock=SystemClock(), log=log)
        caller = tracing.read_trace(f"00-{TRACE_ID}-b7ad6b7169203331-01", "a=b")
        with tracing.span("pki.certificates.issue", "server", caller=caller, request_id="req_1") as doing:
            doing.error = "conflict"
    about, span = await asyncio.wait_for(collector.spans.get(), 30)
    assert about["service.name"] == "scaivaultd"
    assert about["service.instance.id"] == "node-1"
    assert about["service.version"]
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == (
        "pki.certificates.issue",
        TRACE_ID,
        "b7ad6b7169203331",
    )
    assert {each.key: each.value.string_value for each in span.attributes} == {"request_id": "req_1"}
    assert (span.kind, span.status.code, span.status.message) == (2, 2, "conflict")
    assert span.trace_state == "a=b"


async def test_what_is_not_sampled_is_not_sent(collector: Collector) -> None:
    """A caller that does not keep its trace does not want ours."""
    log, _ = logger()
    async with AsyncExitStack() as stack:
        open_telemetry(collector.endpoint, 1.0, "n", stack, clock=SystemClock(), log=log)
        with tracing.span("x", caller=tracing.read_trace(f"00-{TRACE_ID}-b7ad6b7169203331-00")):
            pass
        with tracing.span("y"):
            pass
    _, span = await asyncio.wait_for(collector.spans.get(), 30)
    assert span.name == "y"
    assert collector.spans.empty()


async def test_a_refusing_collector_is_told_of_once(collector: Collector) -> None:
    """Not with every batch; and nothing else suffers."""
    collector.status = 400
    log, capture = logger()
    async with AsyncExitStack() as stack:
        open_telemetry(collector.endpoint, 1.0, "n", stack, clock=SystemClock(), log=log)
        for _ in range(1_200):  # more than two batches
            with tracing.span("x"):
                pass
    await asyncio.wait_for(collector.asked.wait(), 30)
    assert [entry["event"] for entry in capture.entries] == ["telemetry.not_sent"]


async def test_nothing_is_collected_after_the_end(collector: Collector) -> None:
    """What is closed is closed."""
    log, _ = logger()
    async with AsyncExitStack() as stack:
        open_telemetry(collector.endpoint, 1.0, "n", stack, clock=SystemClock(), log=log)
    with tracing.span("x") as doing:
        pass
    assert not doing.trace.is_sampled
