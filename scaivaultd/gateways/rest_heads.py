"""What a request head must be beyond what aiohttp's parser demands (RFC 9110, RFC 9112)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import HttpVersion10, HttpVersion11

from scaivaultd.api.dispatch import BODY_MAX
from scaivaultd.gateways.rest_errors import HttpRefused

if TYPE_CHECKING:
    from aiohttp.web import BaseRequest

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_SINGLE = (
    "Authorization",
    "Content-Encoding",
    "Expect",
    "Idempotency-Key",
    "Transfer-Encoding",
    "X-Request-Id",
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
_JSON = re.compile(r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE)


def request_id_of(request: BaseRequest) -> str | None:
    """The caller's own name for the request, if it is one that may stand in logs and headers."""
    named = request.headers.get("X-Request-Id", "")
    return named if _REQUEST_ID.fullmatch(named) else None


def check_head(request: BaseRequest, head_bytes: int) -> None:
    """Refuse what could be read in two ways, and what we do not do.

    Raises:
        HttpRefused: with the status that says why. The connection ends where the framing is in doubt.
    """
    _check_size(request, head_bytes)
    _check_version(request)
    _check_fields(request)
    _check_framing(request)


def check_body_kind(request: BaseRequest, body: bytes) -> None:
    """A body says that it is JSON: what a foreign web page can send without asking is refused by that.

    Raises:
        HttpRefused: it says something else, or nothing.
    """
    if not body:
        return
    if request.method in ("GET", "HEAD"):
        raise HttpRefused(400, "a GET has no body; put the members into the query")
    if not _JSON.fullmatch(request.headers.get("Content-Type", "")):
        raise HttpRefused(415, "the body must be JSON in UTF-8: send `Content-Type: application/json`")


def _check_size(request: BaseRequest, head_bytes: int) -> None:
    # A head that comes in one piece is complete before anybody could count it.
    fields = sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
    if len(request.raw_path) + fields > head_bytes:
        raise HttpRefused(431, f"the head of the request has more than {head_bytes} bytes", closes=True)


def _check_version(request: BaseRequest) -> None:
    if request.version not in (HttpVersion10, HttpVersion11):
        raise HttpRefused(505, "HTTP/1.1 is spoken here", closes=True)


def _check_fields(request: BaseRequest) -> None:
    # That HTTP/1.1 has exactly one, the parser sees to.
    host = request.headers.get("Host")
    if host is not None and not _HOST.fullmatch(host):
        raise HttpRefused(400, "the Host field is no host (RFC 9112 section 3.2)", closes=True)
    for name in _SINGLE:
        if len(request.headers.getall(name, [])) > 1:
            raise HttpRefused(400, f"the field {name} is there more than once", closes=True)


def _check_framing(request: BaseRequest) -> None:
    headers = request.headers
    if "Transfer-Encoding" in headers:
        if request.version == HttpVersion10:
            raise HttpRefused(400, "HTTP/1.0 has no Transfer-Encoding (RFC 9112 section 6.1)", closes=True)
        if headers["Transfer-Encoding"].lower() != "chunked":
            raise HttpRefused(400, "the only transfer coding taken is `chunked`", closes=True)
    # Java's and curl's offer of HTTP/2 is passed over, as RFC 9110 section 7.8 allows. Behind anything else that the
    # parser takes for an upgrade it would look for no further request.
    if request._message.upgrade and headers.get("Upgrade", "").lower() != "h2c":
        raise HttpRefused(400, "there is nothing to upgrade to", closes=True)
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise HttpRefused(415, "the body must not be compressed", closes=True)
    if (request.content_length or 0) > BODY_MAX:
        raise HttpRefused(413, f"the body may have at most {BODY_MAX} bytes", closes=True)
    if headers.get("Expect", "100-continue").lower() != "100-continue":
        raise HttpRefused(417, "the only expectation met is `100-continue`", closes=True)
