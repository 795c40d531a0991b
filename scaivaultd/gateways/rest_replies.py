"""What goes back over HTTP: status, fields and body, from the dispatcher's answer or from a refusal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from scaivaultd.api.messages import ProblemReply

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.api.dispatch import Outgoing
    from scaivaultd.gateways.rest_errors import HttpRefused

JSON = "application/json"
PROBLEM = "application/problem+json"
NO_STORE = "no-store"
REVALIDATE = "private, no-cache"

_CORS_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_CORS_FIELDS = "Authorization, Content-Type, Idempotency-Key, If-Match, If-None-Match, X-Request-Id"
_CORS_EXPOSED = "ETag, Location, Retry-After, X-Request-Id"
_CORS_SECONDS = "600"


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """One answer before it is bytes; without a `request_id` it gets that of its request."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    cache_control: str = NO_STORE
    headers: Mapping[str, str] = {}
    request_id: str = ""
    closes: bool = False
    code: str = "ok"


def failed(outgoing: Outgoing, request_id: str) -> Reply:
    """The dispatcher's problem document, under the name that the caller has given its request."""
    problem = msgspec.json.decode(outgoing.body, type=ProblemReply)
    return _of_problem(msgspec.structs.replace(problem, request_id=request_id), {}, closes=False)


def refused(error: HttpRefused, request_id: str) -> Reply:
    """A refusal of our own."""
    return _of_problem(error.problem(request_id), error.headers, closes=error.closes)


def _of_problem(problem: ProblemReply, headers: Mapping[str, str], *, closes: bool) -> Reply:
    retry = {} if problem.retry_after is None else {"Retry-After": str(max(1, math.ceil(problem.retry_after)))}
    return Reply(
        status=problem.status,
        body=msgspec.json.encode(problem),
        content_type=PROBLEM,
        headers={**retry, **headers},
        request_id=problem.request_id,
        closes=closes,
        code=problem.code,
    )


def rendered(reply: Reply) -> web.Response:
    """As aiohttp sends it."""
    response = web.Response(
        status=reply.status,
        body=reply.body or None,
        headers={
            # aiohttp would name itself and its version.
            "Server": "scaivaultd",
            "X-Request-Id": reply.request_id,
            "Cache-Control": reply.cache_control,
            "X-Content-Type-Options": "nosniff",
            **({"Content-Type": reply.content_type} if reply.body else {}),
            **reply.headers,
        },
    )
    if reply.closes:
        response.force_close()
    return response


def challenge(*, with_token: bool) -> str:
    """The `WWW-Authenticate` field of every 401 (RFC 6750 section 3)."""
    return 'Bearer realm="scaivaultd"' + (', error="invalid_token"' if with_token else "")


def cors(origins: Sequence[str], origin: str | None, *, is_preflight: bool = False) -> Mapping[str, str]:
    """The fields that let a page of a listed origin read the answer; none for any other."""
    if not origins:
        return {}
    # Caches must not give one origin's answer to another, the missing permission included.
    vary = {"Vary": "Origin"}
    if origin not in origins:
        return vary
    allowed = {**vary, "Access-Control-Allow-Origin": str(origin), "Access-Control-Expose-Headers": _CORS_EXPOSED}
    if not is_preflight:
        return allowed
    return {
        **allowed,
        "Access-Control-Allow-Methods": _CORS_METHODS,
        "Access-Control-Allow-Headers": _CORS_FIELDS,
        "Access-Control-Max-Age": _CORS_SECONDS,
    }
