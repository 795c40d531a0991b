"""What only HTTP can get wrong, as one exception; everything else is one of `model/errors.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.api.messages import ProblemReply

if TYPE_CHECKING:
    from collections.abc import Mapping

_TITLES = {
    400: "The request is not valid",
    401: "Who is asking is not known",
    405: "This path does not take that method",
    408: "The request came too slowly",
    412: "The resource is in another state",
    413: "The request is too large",
    415: "The body is of another kind",
    417: "The expectation cannot be met",
    431: "The head of the request is too large",
    505: "This version of HTTP is not spoken here",
}
_CODES = {401: "unauthenticated", 412: "precondition_failed"}


class HttpRefused(Exception):
    """A request that gets no handler; nothing was done."""

    def __init__(
        self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, closes: bool = False
    ) -> None:
        """`closes`: where the next request on this connection would begin is not certain, or not worth waiting for."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.closes = closes

    @property
    def code(self) -> str:
        """The stable code on the wire."""
        return _CODES.get(self.status, "invalid_request")

    def problem(self, request_id: str) -> ProblemReply:
        """As a problem document (RFC 9457)."""
        return ProblemReply(
            type=f"urn:scaivault:error:{self.code}",
            title=_TITLES[self.status],
            status=self.status,
            detail=self.detail,
            code=self.code,
            request_id=request_id,
        )
