"""The metrics on sockets of their own, for scrapers of this host: no token, and nothing else to be had."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from scaivaultd.gateways.metrics_page import METRICS_PATH
from scaivaultd.gateways.rest_connections import ConnectionLimits, Conversation, Listening, Reception
from scaivaultd.gateways.rest_replies import NO_STORE
from scaivaultd.gateways.rest_sockets import require_loopback

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.gateways.metrics_page import MetricsPage
    from scaivaultd.gateways.rest_connections import Reason
    from scaivaultd.model.clock import Clock

ANSWER_SECONDS = 20.0
_LIMITS = ConnectionLimits(connections=32)
_TEXT = "text/plain; charset=utf-8"


class MetricsListener:
    """Serves `/metrics` on loopback."""

    def __init__(
        self, sockets: Sequence[socket.socket], page: MetricsPage, *, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        """Takes the listening, non-blocking sockets over: they are closed with the listener."""
        self._sockets = tuple(sockets)
        self._page = page
        self._log = log
        self._reception = Reception(
            [Listening(socket=each, kind="tcp") for each in sockets], self, _LIMITS, clock=clock, log=log
        )

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._reception)

    @property
    def rejected(self) -> Mapping[Reason, int]:
        """How many were not served since the start, by reason."""
        return self._reception.rejected

    def start(self) -> None:
        """Listen.

        Raises:
            StartupError: a socket can be reached from other hosts.
        """
        require_loopback(self._sockets)
        self._reception.open()
        self._log.info("metrics.serving", addresses=[each.getsockname()[:2] for each in self._sockets])

    async def close(self) -> None:
        """Disconnect everybody. May be repeated."""
        await self._reception.close()

    def apology(self, status: int, detail: str) -> web.Response:
        """As `Host` says."""
        response = _answer(status, detail)
        response.force_close()
        return response

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """As `Host` says."""
        conversation = request.protocol
        assert isinstance(conversation, Conversation)
        conversation.visit.enter("serving")
        if request.path != METRICS_PATH:
            return _answer(404, f"there is nothing here but {METRICS_PATH}")
        if request.method not in ("GET", "HEAD"):
            return _answer(405, f"{METRICS_PATH} takes GET", Allow="GET, HEAD")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                told = await self._page.render(request.headers.get("Accept", ""))
        except TimeoutError:
            return _answer(503, "the metrics could not be told in time")
        except Exception:  # noqa: BLE001 - a gateway's boundary: a fault of ours must not end the connection unheard
            self._log.exception("metrics.failed")
            return _answer(500, "the metrics could not be told; the log says why")
        return _answer(200, told.body, **{"Content-Type": told.content_type})


def _answer(status: int, text: str | bytes, **headers: str) -> web.Response:
    return web.Response(
        status=status,
        body=text if isinstance(text, bytes) else f"{text}\n".encode(),
        headers={
            "Content-Type": _TEXT,
            "Server": "scaivaultd",
            "Cache-Control": NO_STORE,
            "X-Content-Type-Options": "nosniff",
            **headers,
        },
    )
