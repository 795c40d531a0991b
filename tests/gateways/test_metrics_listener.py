"""The metrics on sockets of their own: to everybody on this host, and nothing else with them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from scaivaultd.gateways import metrics_listener
from scaivaultd.gateways.metrics_listener import MetricsListener
from scaivaultd.gateways.metrics_page import Told
from scaivaultd.model.clock import SystemClock
from scaivaultd.model.errors import StartupError
from tests.fakes.rest import Served, listening_socket, status_of
from tests.fakes.tcp import PATIENCE_SECONDS, connected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Page:
    """Tells what it was asked for."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def render(self, accept: str) -> Told:
        if self.error is not None:
            raise self.error
        return Told(body=f"accept {accept}\n".encode(), content_type="text/plain; version=0.0.4")


class Scraped(Served):
    """A listener that runs."""

    page: Page


@asynccontextmanager
async def scraped() -> AsyncIterator[Scraped]:
    here = Scraped()
    here.page = Page()
    opened = listening_socket()
    here.address = opened.getsockname()[:2]
    listener = MetricsListener([opened], here.page, clock=SystemClock(), log=here.log)
    listener.start()
    try:
        yield here
    finally:
        await asyncio.wait_for(listener.close(), PATIENCE_SECONDS)


@pytest.fixture
async def here() -> AsyncIterator[Scraped]:
    async with scraped() as found:
        yield found


async def test_it_serves_them_as_the_scraper_wants_them(here: Scraped) -> None:
    """Without a token: whoever is on this host may look."""
    async with aiohttp.ClientSession(here.url) as session:
        response = await session.get("/metrics", headers={"Accept": "application/openmetrics-text"})
        assert (response.status, await response.text()) == (200, "accept application/openmetrics-text\n")
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4"
        assert response.headers["Cache-Control"] == "no-store"
        looked = await session.head("/metrics")
        assert (looked.status, await looked.read()) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/v1/sys/info", 404), ("GET", "/metrics/", 404), ("POST", "/metrics", 405)],
)
async def test_there_is_nothing_else_to_be_had(here: Scraped, method: str, path: str, status: int) -> None:
    """What asks nobody for a token must not become a way to the API."""
    async with aiohttp.ClientSession(here.url) as session:
        response = await session.request(method, path)
        assert response.status == status


async def test_what_is_no_request_is_answered_shortly(here: Scraped) -> None:
    """And not in the library's words, which quote it."""
    async with connected(here.address) as peer:
        await peer.send(b"canary nonsense\r\n\r\n")
        answer = await peer.rest()
    assert status_of(answer) == 400
    assert b"canary" not in answer


async def test_a_page_that_breaks_is_an_answer_and_a_line_in_the_log(here: Scraped) -> None:
    """The scrape fails; the next one has its chance, and nobody reads a traceback over HTTP."""
    here.page.error = RuntimeError("canary")
    async with aiohttp.ClientSession(here.url) as session:
        response = await session.get("/metrics")
        assert response.status == 500
        assert "canary" not in await response.text()
    await here.until_logged("metrics.failed")


async def test_a_page_that_does_not_come_is_no_reason_to_wait_for_ever(here: Scraped) -> None:
    """A scraper that hangs keeps its place, and there are only so many."""
    here.page.error = TimeoutError()
    async with aiohttp.ClientSession(here.url) as session:
        response = await session.get("/metrics")
        assert response.status == 503


async def test_other_hosts_cannot_be_let_in() -> None:
    """The settings say so already; a mistake in the wiring must not open it either."""
    with listening_socket("0.0.0.0") as opened:
        listener = metrics_listener.MetricsListener([opened], Page(), clock=SystemClock(), log=Served().log)
        with pytest.raises(StartupError):
            listener.start()
