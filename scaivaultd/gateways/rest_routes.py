"""Which row of the table a method and a path mean; opens no socket.

A path has one spelling. What a proxy in front of us, or a person who reads its log, could take for another path is
refused: empty and dot segments, encoded slashes, and letters, digits, dots or hyphens that are percent-encoded. The
one exception: clients that are generated from our OpenAPI document encode every slash of a value, so in the member
that may hold slashes `%2F` stands for one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scaivaultd.api.commands import Command

_PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})"
_TARGET = re.compile(rf"(/{_PCHAR}*)(?:\?((?:{_PCHAR}|\?)*))?")
# RFC 3986 section 2.3: encoded or not, these mean the same, so that encoding them only hides something.
_UNRESERVED = re.compile(rb"[A-Za-z0-9\-._~]")
_SEPARATOR_OR_CONTROL = re.compile(rb"[\\\x00-\x1f\x7f]")
_QUERY_MEMBERS_MAX = 64
# The member that may hold slashes: paths of secrets do.
_TAIL = "{path}"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A request target taken apart: decoded segments of the path, and the query in its order."""

    path: str
    segments: tuple[str, ...]
    query: tuple[tuple[str, str], ...]


def read_target(raw: str) -> Target:
    """Take an origin-form target (RFC 9112 section 3.2.1) apart.

    Raises:
        ValueError: it is another form, or has another spelling than the one path it stands for.
    """
    found = _TARGET.fullmatch(raw)
    if found is None:
        raise ValueError("the request target must be a path and a query, percent-encoded where RFC 3986 demands it")
    path, query = found.groups()
    segments = path.split("/")[1:] if path != "/" else ()
    return Target(path=path, segments=tuple(_decoded(each) for each in segments), query=_query(query))


def _decoded(segment: str) -> str:
    if segment in ("", ".", ".."):
        raise ValueError("the path has an empty segment, a dot segment, or a slash at its end")
    for encoded in re.findall("%(..)", segment):
        octet = bytes.fromhex(encoded)
        if _UNRESERVED.match(octet) or _SEPARATOR_OR_CONTROL.match(octet) or encoded == "2f":
            raise ValueError(f"%{encoded} does not belong into a path")
    try:
        decoded = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError as error:
        raise ValueError("the path is not UTF-8") from error
    if not {"", ".", ".."}.isdisjoint(decoded.split("/")):
        raise ValueError("the path has an empty segment or a dot segment behind an encoded slash")
    return decoded


def _query(query: str | None) -> tuple[tuple[str, str], ...]:
    if not query:
        return ()
    try:
        return tuple(
            parse_qsl(
                query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=_QUERY_MEMBERS_MAX
            )
        )
    except ValueError as error:  # UnicodeDecodeError is one
        raise ValueError(f"the query must be at most {_QUERY_MEMBERS_MAX} times name=value in UTF-8") from error


class _Row(msgspec.Struct, frozen=True):
    command: Command[Any, Any]
    template: tuple[str, ...]

    def members(self, segments: Sequence[str]) -> Mapping[str, str]:
        """What the path says of the request; its shape fits."""
        if self.template[-1] == _TAIL:
            head = len(self.template) - 1
            segments = [*segments[:head], "/".join(segments[head:])]
        pairs = zip(self.template, segments, strict=True)
        return {name[1:-1]: value for name, value in pairs if _is_member(name)}


class Resource(msgspec.Struct, frozen=True):
    """What one path stands for: a row for each of its methods."""

    rows: Mapping[str, _Row]
    segments: tuple[str, ...]

    @property
    def has_foreign_slash(self) -> bool:
        """Whether a slash is encoded where none may be: what a proxy takes for one word, others take for two."""
        template = next(iter(self.rows.values())).template
        words = self.segments[: len(template) - 1] if template[-1] == _TAIL else self.segments
        return any("/" in each for each in words)

    @property
    def allow(self) -> str:
        """The methods, as the `Allow` field lists them."""
        return ", ".join(sorted({*self.rows, "OPTIONS", *({"HEAD"} if "GET" in self.rows else ())}))

    def command(self, method: str) -> Command[Any, Any] | None:
        """The row for a method; HEAD is GET without a body."""
        row = self.rows.get("GET" if method == "HEAD" else method)
        return row.command if row else None

    def members(self, command: Command[Any, Any]) -> Mapping[str, str]:
        """The members of the request that stand in the path, for one of this resource's rows."""
        return self.rows[command.method].members(self.segments)


class Routes:
    """All paths of the rows."""

    def __init__(self, commands: Iterable[Command[Any, Any]]) -> None:
        """Raises ValueError when two rows have one method and path: a mistake of the table."""
        shapes: dict[tuple[str, ...], dict[str, _Row]] = {}
        self._getters: dict[type[msgspec.Struct], _Row] = {}
        for command in commands:
            row = _Row(command, tuple(command.path.split("/")[1:]))
            rows = shapes.setdefault(_shape(row.template), {})
            if command.method in rows:
                raise ValueError(f"{command.name} and {rows[command.method].command.name} have one path")
            rows[command.method] = row
            if command.method == "GET" and len([each for each in row.template if _is_member(each)]) <= 1:
                self._getters.setdefault(command.reply, row)
        # A word beats a member at the same place, whatever the order of the table.
        self._shapes = sorted(shapes.items(), key=lambda each: [word in ("{}", _TAIL) for word in each[0]])

    def find(self, segments: tuple[str, ...]) -> Resource | None:
        """What a path stands for."""
        for shape, rows in self._shapes:
            if _fits(shape, segments):
                return Resource(rows, segments)
        return None

    def location(self, command: Command[Any, Any], reply: bytes) -> str | None:
        """Where the thing that a row has made or set going is to be found, if one row shows just that."""
        # What is shown once only, such as a token's text, is a kind of what is shown later.
        getter = next((self._getters[kind] for kind in command.reply.__mro__ if kind in self._getters), None)
        if getter is None or command.status not in (201, 202):
            return None
        shown = msgspec.json.decode(reply)
        return "/" + "/".join(
            quote(str(shown[each[1:-1]]), safe="") if _is_member(each) else each for each in getter.template
        )


def _is_member(word: str) -> bool:
    return word.startswith("{")


def _shape(template: tuple[str, ...]) -> tuple[str, ...]:
    last = len(template) - 1
    return tuple(
        "{}" if _is_member(word) and (index != last or word != _TAIL) else word for index, word in enumerate(template)
    )


def _fits(shape: tuple[str, ...], segments: tuple[str, ...]) -> bool:
    if shape[-1] == _TAIL and len(segments) >= len(shape):
        shape, segments = shape[:-1], segments[: len(shape) - 1]
    return len(shape) == len(segments) and all(
        word in ("{}", segment) for word, segment in zip(shape, segments, strict=True)
    )
