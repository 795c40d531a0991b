"""Refusals of the development CA (RFC 8555 section 6.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_STATUS = {
    "alreadyReplaced": 409,
    "alreadyRevoked": 400,
    "externalAccountRequired": 403,
    "orderNotReady": 403,
    "rateLimited": 429,
    "serverInternal": 500,
    "unauthorized": 403,
    "userActionRequired": 403,
}


Finding = dict[str, object] | None
"""What a look at a challenge comes to: None when it is met, else the problem."""


class Refused(Exception):
    """The request is answered with a problem document; `is_policy`: the CA's choice, not the client's fault."""

    def __init__(
        self,
        name: str,
        detail: str,
        *,
        status: int | None = None,
        members: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        is_policy: bool = False,
    ) -> None:
        super().__init__(detail)
        self.name = name
        self.is_policy = is_policy
        self.status = status if status is not None else _STATUS.get(name, 400)
        self.document = {**problem(name, detail), "status": self.status, **(members or {})}
        self.headers = dict(headers or {})


def problem(name: str, detail: str) -> dict[str, object]:
    """A problem document without a status, as challenges and orders carry it; whole URIs stay whole."""
    return {"type": name if ":" in name else f"urn:ietf:params:acme:error:{name}", "detail": detail}


def malformed(detail: str, status: int = 400) -> Refused:
    """The request breaks the protocol."""
    return Refused("malformed", detail, status=status)
