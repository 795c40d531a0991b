"""How the development CA's answers, and its failures to answer, reach the connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from multidict import CIMultiDict

from scaivaultd.demo.ca_exchange import Answer, http_date

if TYPE_CHECKING:
    from scaivaultd.demo.ca_state import Ledger

_ENDLESS_OCTETS = 64 * 1024 * 1024
_ENDLESS_SECONDS = 120
_CHUNK = 64 * 1024
_LOOK_SECONDS = 0.05

_ORDER = ("notBefore", "notAfter", "error", "expires")
_OPTIONAL = {
    "directory": ("meta", "renewalInfo", "newAuthz"),
    "newAccount": ("contact", "termsOfServiceAgreed", "externalAccountBinding"),
    "account": ("contact", "termsOfServiceAgreed", "externalAccountBinding"),
    "newOrder": _ORDER,
    "order": _ORDER,
    "finalize": _ORDER,
    "authorization": ("expires", "wildcard"),
    "challenge": ("error", "validated"),
    "renewalInfo": ("explanationURL",),
}
"""Members a CA may leave out (RFC 8555 section 7.1), by resource."""


class Wire:
    """Sends answers; holds nothing of its own."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def send(self, request: web.BaseRequest, answer: Answer, nonce: str | None = None) -> web.StreamResponse:
        """Answer, with a Replay-Nonce if one is given."""
        headers = self._headers(answer, nonce)
        if answer.is_endless:
            return await _stream(request, answer, headers)
        return web.Response(status=answer.status, body=answer.encoded(), headers=headers)

    def reset(self, request: web.BaseRequest) -> web.StreamResponse:
        """Drop the connection with a TCP reset; the response returned is never sent."""
        transport = request.transport
        if transport is not None:
            # Lingering for zero seconds makes the kernel send RST instead of FIN.
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        return web.Response()

    async def hang(self, request: web.BaseRequest) -> web.StreamResponse:
        """Wait until the client goes, or the CA closes and cancels us."""
        while not _has_left(request):  # noqa: ASYNC110  # aiohttp has no event for a client that leaves
            await asyncio.sleep(_LOOK_SECONDS)
        return web.Response()

    def _headers(self, answer: Answer, nonce: str | None) -> CIMultiDict[str]:
        headers = CIMultiDict(answer.headers)
        headers.add("Link", f'<{self._ledger.url("directory")}>;rel="index"')
        headers["Cache-Control"] = "no-store"
        # Dates in Retry-After are by the clock we were given, and so must this one be.
        headers["Date"] = http_date(self._ledger.clock.now())
        if answer.document is not None or answer.body:
            headers["Content-Type"] = answer.content_type
        if nonce is not None:
            headers["Replay-Nonce"] = nonce
        return headers


def with_nulls(resource: str, answer: Answer) -> Answer:
    """The same document with all its optional members null."""
    document = answer.document
    if document is None or answer.status >= 400:
        return answer
    nulls = dict.fromkeys(_OPTIONAL.get(resource, ()))
    changed = {**document, **nulls}
    if "challenges" in document:
        absent = dict.fromkeys(_OPTIONAL["challenge"])
        changed["challenges"] = [{**challenge, **absent} for challenge in document["challenges"]]
    return msgspec.structs.replace(answer, document=changed)


def _has_left(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


async def _stream(request: web.BaseRequest, answer: Answer, headers: CIMultiDict[str]) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=headers)
    body = answer.encoded() or b"\n"
    chunk = body * max(1, _CHUNK // len(body))
    try:
        async with asyncio.timeout(_ENDLESS_SECONDS):
            await response.prepare(request)
            for _ in range(_ENDLESS_OCTETS // len(chunk)):
                await response.write(chunk)
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
    return response
