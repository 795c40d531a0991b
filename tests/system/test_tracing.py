"""One trace from a caller to the CA: in answers, in log lines and at a collector; ids in every line of an order."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from scaivaultd.demo.process import free_port, until
from tests.test_telemetry import TRACE_ID, Collector, collector

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.system
__all__ = ["collector"]

SPAN_ID = "b7ad6b7169203331"
OTHER_TRACE_ID = "1af7651916cd43dd8448eb211c80319d"


async def test_an_order_is_one_trace(new_daemon: Callable[..., Any], make_ca: Any, collector: Collector) -> None:
    """Who asked finds all that was done for it under the id it gave."""
    rest_port = free_port()
    ca = await make_ca(free_port())
    daemon = new_daemon(
        ca,
        rest=f'listen = ["127.0.0.1:{rest_port}"]',
        tracing=f'otlp_endpoint = "{collector.endpoint}"',
    )
    await daemon.start()
    account = await daemon.account(ca)
    answer = await daemon.ask(
        "pki.acme.issue",
        _headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "a=b"},
        account_id=account,
        domains=["traced.example.org"],
        challenge_type="http-01",
    )
    await daemon.finished(answer["order_id"])
    [(_, headers, _)] = await daemon.events_of("certificate.issued", 1)
    assert headers["ce-traceparent"].split("-")[1] == TRACE_ID
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session,
        session.get(
            f"http://127.0.0.1:{rest_port}/livez", headers={"traceparent": f"00-{OTHER_TRACE_ID}-{SPAN_ID}-01"}
        ) as response,
    ):
        assert response.status == 200

    spans: list[Any] = []
    async with asyncio.timeout(60):
        while not {"pki.acme.issue", "order"} <= {span.name for span in spans}:
            _, span = await collector.spans.get()
            if span.trace_id.hex() == TRACE_ID:
                spans.append(span)
    [request] = [span for span in spans if span.name == "pki.acme.issue"]
    assert request.parent_span_id.hex() == SPAN_ID
    asked_ca = [span for span in spans if span.name.startswith("acme ")]
    assert asked_ca, [span.name for span in spans]
    await daemon.stop()

    lines = [json.loads(line) for line in daemon.process.log.splitlines()]
    of_order = [line for line in lines if line.get("order_id") == answer["order_id"]]
    assert of_order
    assert {line.get("trace_id") for line in of_order} == {TRACE_ID}
    assert all(line.get("request_id") for line in of_order)


async def test_a_collector_that_is_away_costs_nothing(new_daemon: Callable[..., Any], make_ca: Any) -> None:
    """Certificates do not wait for traces, and neither does the end."""
    ca = await make_ca(free_port())
    daemon = new_daemon(ca, tracing=f'otlp_endpoint = "http://127.0.0.1:{free_port()}/v1/traces"')
    await daemon.start()
    account = await daemon.account(ca)
    issued = await daemon.issue(account, "untraced.example.org")
    assert issued["status"] == "valid"

    async def is_told() -> bool:
        return "telemetry.not_sent" in daemon.process.log

    await until(is_told, "the daemon tells of it")
    assert await daemon.stop() == 0
    assert daemon.process.log.count("telemetry.not_sent") == 1
