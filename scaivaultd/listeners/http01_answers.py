"""What the http-01 listener says, made ahead as far as possible; opens no socket."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.listeners.http01_head import Reason


class Answer(msgspec.Struct, frozen=True):
    """A response, made ahead except for its Date."""

    status_line: bytes
    fields: bytes
    body: bytes

    def render(self, date: bytes, *, is_head: bool) -> bytes:
        """The bytes to send; the answer to HEAD has the same fields and no body (RFC 9110 section 9.3.2)."""
        return b"".join((self.status_line, b"Date: ", date, self.fields, b"" if is_head else self.body))


def key_authorization_answer(key_authorization: str) -> Answer:
    """The answer to a known token (RFC 8555 section 8.3)."""
    return _answer("200 OK", "application/octet-stream", key_authorization.encode())


def redirect_answer(location: bytes) -> Answer:
    """Go there and ask the same again. 308 keeps the method, so that a form is not lost."""
    return _apology("308 Permanent Redirect", f"Location: {location.decode('ascii')}")


def _answer(status: str, media_type: str, body: bytes, *more: str) -> Answer:
    fields = (
        "",  # ends the Date
        f"Content-Type: {media_type}",
        f"Content-Length: {len(body)}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
        *more,
        "Connection: close",
        "",
        "",
    )
    return Answer(f"HTTP/1.1 {status}\r\n".encode(), "\r\n".join(fields).encode(), body)


def _apology(status: str, *more: str) -> Answer:
    return _answer(status, "text/plain", f"{status[4:]}\n".encode(), *more)


NOT_FOUND = _apology("404 Not Found")
BAD_GATEWAY = _apology("502 Bad Gateway")
APOLOGIES: Mapping[Reason, Answer] = MappingProxyType(
    {
        "bad_request": _apology("400 Bad Request"),
        "method_not_allowed": _apology("405 Method Not Allowed", "Allow: GET, HEAD"),
        "head_too_large": _apology("431 Request Header Fields Too Large"),
        "version_not_supported": _apology("505 HTTP Version Not Supported"),
    }
)
