"""The metrics at the addresses of REST: for whoever may know what runs here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import generate_latest

from scaivaultd.api.gate import OpenGate
from scaivaultd.gateways.metrics_page import Told
from scaivaultd.model import metrics
from scaivaultd.model.errors import PermissionDenied, Sealed
from tests.fakes.counted import counted
from tests.fakes.rest import Served, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from scaivaultd.api.commands import Command


class Page:
    """Tells what it was asked for."""

    async def render(self, accept: str) -> Told:
        return Told(body=f"accept {accept}\n".encode(), content_type="text/plain; version=0.0.4; charset=utf-8")


class ClosedGate(OpenGate):
    """Lets nobody in, and remembers for what."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.settled: list[str] = []
        self.is_open = False

    async def admit(self, command: Command[Any, Any], request: Any, **about: Any) -> OpenGate:
        self.asked.append(command.permission)
        if not self.is_open:
            raise PermissionDenied("canary may not sys.info")
        return self

    async def settle(self, result: str) -> None:
        self.settled.append(result)


@pytest.fixture
def gate() -> ClosedGate:
    return ClosedGate()


@pytest.fixture
async def here(gate: ClosedGate) -> AsyncIterator[Served]:
    async with served(metrics_page=Page(), gate=gate) as found:
        yield found


async def test_they_are_for_whoever_may_know_what_runs(here: Served, gate: ClosedGate) -> None:
    """Names of certificates are in there. A scrape that is let in leaves no record: one comes every few seconds."""
    gate.is_open = True
    async with here.client() as session:
        response = await session.get("/metrics", headers={"Accept": "text/plain"})
        assert (response.status, await response.text()) == (200, "accept text/plain\n")
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-store"
    assert (gate.asked, gate.settled) == (["sys.info"], [])


async def test_who_may_not_is_refused_as_everywhere(here: Served, gate: ClosedGate) -> None:
    """With a problem document that says what is missing."""
    async with here.client() as session:
        response = await session.get("/metrics")
        assert (response.status, (await response.json())["code"]) == (403, "permission_denied")
    assert gate.asked == ["sys.info"]


@pytest.mark.parametrize("fields", [{"Authorization": "none"}, {"Authorization": "Bearer scvt_wrong"}])
async def test_strangers_are_asked_for_a_token(here: Served, gate: ClosedGate, fields: Mapping[str, str]) -> None:
    """And the gate is not even asked."""
    async with here.client(headers=fields) as session:
        assert (await session.get("/metrics")).status == 401
    assert gate.asked == []


async def test_they_take_get_only(here: Served, gate: ClosedGate) -> None:
    """And say so."""
    gate.is_open = True
    async with here.client() as session:
        response = await session.post("/metrics")
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert (await session.options("/metrics")).status == 204


async def test_a_gateway_without_them_says_so() -> None:
    """Not a broken page."""
    async with served() as here, here.client() as session:
        assert (await session.get("/metrics")).status == 404


async def test_requests_are_counted_by_command_and_outcome(here: Served, gate: ClosedGate) -> None:
    """What is no command has one name in all, whatever strangers think of."""
    gate.is_open = True

    def sealed(_: Any) -> Any:
        raise Sealed("no key")

    here.answers["pki.certificates.list"] = sealed
    labels = [
        {"transport": "http", "operation": "sys.info", "code": "ok"},
        {"transport": "http", "operation": "pki.certificates.list", "code": "sealed"},
        {"transport": "http", "operation": "other", "code": "not_found"},
        {"transport": "http", "operation": "metrics", "code": "ok"},
    ]
    before = [counted("requests_total", **each) for each in labels]
    async with here.client() as session:
        for path in ("/v1/sys/info", "/v1/pki/certificates", "/canary/1", "/canary/2", "/metrics"):
            await session.get(path)
    after = [counted("requests_total", **each) for each in labels]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 2, 1]
    assert "canary" not in generate_latest(metrics.REGISTRY).decode()


async def test_asking_whether_somebody_might_does_nothing(here: Served, gate: ClosedGate) -> None:
    """The handler of the command whose permission it is must not run for it."""
    gate.is_open = True
    async with here.client() as session:
        await session.get("/metrics")
    assert here.asked == []
