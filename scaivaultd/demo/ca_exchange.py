"""What passes between the development CA's front and the rooms behind it: verified requests in, answers out."""

from __future__ import annotations

from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.demo.ca_jws import Jwk, parse_object
from scaivaultd.demo.ca_problems import malformed
from scaivaultd.demo.ca_state import Account

if TYPE_CHECKING:
    from datetime import datetime

    from scaivaultd.demo.ca_misbehaviour import Misbehaviour

Headers = tuple[tuple[str, str], ...]
"""Header fields in sequence; a name may come more than once."""


class Signed(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose signature, nonce and url have been found good.

    `account` is None when the request was signed with `jwk` in its header. `id` is what follows
    the resource's path, `cursor` the query parameter of that name.
    """

    id: str
    url: str
    cursor: int
    jwk: Jwk
    account: Account | None
    payload: bytes

    @property
    def signer(self) -> Account:
        """The account of a resource that takes `kid` only."""
        assert self.account is not None
        return self.account

    @property
    def is_read(self) -> bool:
        """Whether it is a POST-as-GET (RFC 8555 section 6.3)."""
        return not self.payload

    def members(self) -> dict[str, Any]:
        """The payload as a JSON object; raises `Refused`."""
        return parse_object(self.payload, "the payload")

    def require_read(self) -> None:
        """Refuse any payload but the empty one."""
        if not self.is_read:
            raise malformed("this resource is read by POST-as-GET: the payload is empty, not {}")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What goes back: a JSON document, or a body of another type."""

    status: int = 200
    document: dict[str, Any] | None = None
    body: bytes = b""
    content_type: str = "application/json"
    headers: Headers = ()
    is_endless: bool = False
    """Repeat the body until the client has had enough."""

    def header(self, name: str) -> str | None:
        """The first header field of that name, in that spelling."""
        return next((value for each, value in self.headers if each == name), None)

    def encoded(self) -> bytes:
        """The body's bytes."""
        return self.body if self.document is None else msgspec.json.encode(self.document)


def http_date(moment: datetime) -> str:
    """An IMF-fixdate."""
    return format_datetime(moment, usegmt=True)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with `Z`."""
    return moment.isoformat().replace("+00:00", "Z")


def retry_after(misbehaviour: Misbehaviour, now: datetime) -> Headers:
    """The Retry-After of something unfinished, in the form that is switched on."""
    seconds = misbehaviour.retry_after_seconds
    match misbehaviour.retry_after_form:
        case "none":
            return ()
        case "seconds":
            return (("Retry-After", str(seconds)),)
        case "date":
            return (("Retry-After", http_date(now + timedelta(seconds=seconds))),)
