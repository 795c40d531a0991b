"""The head of an http-01 request, from bytes to a verdict; opens no socket (RFC 9112, RFC 8555 section 8.3)."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.listeners.http01_admission import Http01Limits

Reason = Literal[
    "bad_request",
    "method_not_allowed",
    "head_too_large",
    "version_not_supported",
    "timed_out",
]
"""Why a client got no look at the tokens; a closed list, since it becomes a metric's label."""

_PREFIX = b"/.well-known/acme-challenge/"
TOKEN = re.compile(rb"[A-Za-z0-9_-]{16,128}")
# RFC 9110 section 5.6.2 (token), RFC 9112 section 3 (request line) and section 5 (field line).
_WORD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE = re.compile(rb"(" + _WORD + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD = re.compile(rb"(" + _WORD + rb"):([\t\x20-\x7e\x80-\xff]*)")
_ABSOLUTE_FORM = re.compile(rb"http://([^/?#]*)(.*)", re.IGNORECASE)
_REDIRECTABLE = re.compile(rb"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9A-Fa-f:.]+\]")
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{0,5}))?")


class Asked(msgspec.Struct, frozen=True):
    """A valid GET or HEAD; `token` is None when the path is not that of a challenge."""

    token: bytes | None
    is_head: bool


class Refused(msgspec.Struct, frozen=True):
    """A request that gets no look at the tokens; `is_head` forbids a body even so."""

    reason: Reason
    is_head: bool = False


class HeadReader:
    """Reads one request head (RFC 9112), fed in pieces of any size.

    The verdict does not depend on how the bytes were cut. No input makes it raise.
    """

    def __init__(self, limits: Http01Limits) -> None:
        self._limits = limits
        self._line_start = 0
        self._lines: list[bytes] = []
        self.raw = bytearray()
        """Everything fed so far, what came behind the head included."""

    def location(self) -> bytes | None:
        """Where a request with a valid head finds the same by https; None when it names no host to go to."""
        return _https_location(self._lines)

    def feed(self, data: bytes | memoryview) -> Asked | Refused | None:
        """Take more bytes; None while the head is not complete. Not to be called after a verdict."""
        searched = len(self.raw)
        self.raw += data
        while (line_end := self.raw.find(b"\n", searched, self._limits.head_bytes)) >= 0:
            searched = line_end + 1
            verdict = self._take_line(bytes(self.raw[self._line_start : searched]))
            if verdict is not None:
                return verdict
            self._line_start = searched
        return Refused("head_too_large") if len(self.raw) >= self._limits.head_bytes else None

    def _take_line(self, line: bytes) -> Asked | Refused | None:
        # Who takes a bare LF for a line's end reads other lines than the next recipient. A bare CR fits no pattern.
        if not line.endswith(b"\r\n"):
            return Refused("bad_request")
        if line == b"\r\n":
            # Some clients end a request with one line end too many; it stands before the next (RFC 9112 section 2.2).
            return None if self._line_start == 0 else _judge(self._lines)
        self._lines.append(line[:-2])
        return Refused("head_too_large") if len(self._lines) > self._limits.head_lines else None


def _judge(lines: Sequence[bytes]) -> Asked | Refused:
    request_line = _REQUEST_LINE.fullmatch(lines[0]) if lines else None
    if request_line is None:
        return Refused("bad_request")
    method, target, major, minor = request_line.groups()
    is_head = method == b"HEAD"
    if major != b"1":
        return Refused("version_not_supported", is_head)
    fields = _fields(lines[1:])
    if fields is None or not _has_valid_host(fields, required=minor != b"0") or not _has_valid_framing(fields):
        return Refused("bad_request", is_head)
    if method not in (b"GET", b"HEAD"):
        return Refused("method_not_allowed")
    path = _path_of(target)
    if path is None:
        return Refused("bad_request", is_head)
    return Asked(_token_in(path), is_head)


def _fields(lines: Sequence[bytes]) -> Mapping[bytes, list[bytes]] | None:
    """Values by lower-case name; None when a line is no field (a folded one is none either)."""
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name, value = field.groups()
        fields.setdefault(name.lower(), []).append(value.strip(b" \t"))
    return fields


def _has_valid_host(fields: Mapping[bytes, list[bytes]], *, required: bool) -> bool:
    """RFC 9112 section 3.2: a missing Host is forgiven to HTTP/1.0 only, a bad or second one to nobody."""
    hosts = fields.get(b"host", [])
    return (len(hosts) == 1 and _is_host(hosts[0])) or not (hosts or required)


def _has_valid_framing(fields: Mapping[bytes, list[bytes]]) -> bool:
    """At most one field that says where the body ends.

    We never read it, but a proxy before us that reads it otherwise than the client meant is being abused.
    """
    lengths = fields.get(b"content-length", [])
    return len(lengths) + len(fields.get(b"transfer-encoding", [])) <= 1 and all(each.isdigit() for each in lengths)


def _is_host(value: bytes) -> bool:
    found = _HOST.fullmatch(value)
    if found is None:
        return False
    ipv6, port = found.groups()
    return (ipv6 is None or _is_ipv6(ipv6)) and int(port or 0) <= 65535


def _https_location(lines: Sequence[bytes]) -> bytes | None:
    request_line = _REQUEST_LINE.fullmatch(lines[0])
    fields = _fields(lines[1:])
    if request_line is None or fields is None:
        return None
    target = request_line[2]
    authority, path = b"".join(fields.get(b"host", [])), target
    # The target's own authority beats Host (RFC 9112 section 3.2.2).
    if absolute := _ABSOLUTE_FORM.fullmatch(target):
        authority, path = absolute.groups()
        path = path if path.startswith(b"/") else b"/" + path
    found = _HOST.fullmatch(authority)
    if found is None or not path.startswith(b"/"):
        return None
    host = authority if found[2] is None else authority[: found.start(2) - 1]
    return b"https://" + host + path if _REDIRECTABLE.fullmatch(host) else None


def _is_ipv6(value: bytes) -> bool:
    try:
        ipaddress.IPv6Address(value.decode("ascii"))
    except ValueError:
        return False
    return True


def _path_of(target: bytes) -> bytes | None:
    """Path and query of origin-form or absolute-form, which a server must accept (RFC 9112 section 3.2.2)."""
    if target.startswith(b"/"):
        return target
    absolute = _ABSOLUTE_FORM.fullmatch(target)
    return absolute[2] if absolute and _is_host(absolute[1]) else None


def _token_in(path: bytes) -> bytes | None:
    token = path[len(_PREFIX) :]
    return token if path.startswith(_PREFIX) and TOKEN.fullmatch(token) else None
