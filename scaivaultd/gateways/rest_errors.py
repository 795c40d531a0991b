"""What only HTTP can get wrong, as one exception; everything else is one of `model/errors.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.api.messages import ProblemReply
from scaivaultd.api.openapi import HTTP_TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping

_CODE = "invalid_request"


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

    def problem(self, request_id: str) -> ProblemReply:
        """As a problem document (RFC 9457)."""
        return ProblemReply(
            type=f"urn:scaivault:error:{_CODE}",
            title=HTTP_TITLES[self.status],
            status=self.status,
            detail=self.detail,
            code=_CODE,
            request_id=request_id,
        )
