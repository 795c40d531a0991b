"""On which line of a TOML document each key stands; tomllib does not tell.

Works on documents that tomllib has accepted, so it only has to find its way, not to judge: what
looks like a key inside a string or a comment is stepped over whole.
"""

from __future__ import annotations

import json
import re
import tomllib
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

Key = tuple[str | int, ...]
"""The way to a value: names of tables and keys, and places in arrays."""

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# A multi-line string may end in up to two quotes of its own before the three that close it.
_STRING = re.compile(
    r"""
      \"{3} (?: \\. | [^\\] )*? \"{3,5}
    | '{3} .*? '{3,5}
    | \" (?: \\. | [^\"\\] )* \"
    | ' [^']* '
    """,
    re.DOTALL | re.VERBOSE,
)
# A date may hold a space, so a value goes on until something that no number, date or boolean holds.
_SCALAR = re.compile(r"[^\n,\]}#]+")


def lines_of(text: str) -> Mapping[Key, int]:
    """The line, counted from 1, of every table, key and array entry of a valid TOML document.

    A key stands where it is first named; an array entry where its value begins.

    Raises:
        RecursionError: arrays or inline tables nested as deeply as tomllib itself refuses.
    """
    return _Scanner(text.replace("\r\n", "\n")).scan()


def line_of(key: Key, lines: Mapping[Key, int]) -> int | None:
    """The line of `key`, else of the nearest table around it that is written down."""
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key)


def dotted(key: Key) -> str:
    """The key as people write it: `nats.servers[0]`, and quoted where TOML demands it."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            text += f".{name}" if text else name
    return text


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._line_ends = [place for place, character in enumerate(text) if character == "\n"]
        self._position = 0
        self._lines: dict[Key, int] = {}
        self._array_lengths: dict[Key, int] = {}

    def scan(self) -> Mapping[Key, int]:
        table: Key = ()
        self._skip_blank()
        while self._position < len(self._text):
            if self._next() == "[":
                table = self._header()
            else:
                self._assignment(table)
            self._skip_blank()
        return self._lines

    def _header(self) -> Key:
        is_array = self._text.startswith("[[", self._position)
        brackets = 2 if is_array else 1
        line = self._line()
        self._position += brackets
        names = self._names()
        self._position += brackets
        table: Key = ()
        for name in names[:-1]:
            table = self._latest((*table, name))
            self._lines.setdefault(table, line)
        table = (*table, names[-1])
        self._lines.setdefault(table, line)
        if is_array:
            self._array_lengths[table] = self._array_lengths.get(table, 0) + 1
            table = self._latest(table)
            self._lines[table] = line
        return table

    def _latest(self, table: Key) -> Key:
        """Under the name of an array of tables a header means the table that was begun last."""
        length = self._array_lengths.get(table)
        return table if length is None else (*table, length - 1)

    def _assignment(self, table: Key) -> None:
        line = self._line()
        for name in self._names():
            table = (*table, name)
            self._lines.setdefault(table, line)
        self._position += 1  # the equals sign
        self._skip_blank()
        self._value(table)

    def _value(self, key: Key) -> None:
        match self._next():
            case "[":
                self._array(key)
            case "{":
                self._inline_table(key)
            case '"' | "'":
                self._take(_STRING)
            case _:
                self._take(_SCALAR)

    def _array(self, key: Key) -> None:
        place = 0
        while not self._at_end_of("]"):
            self._lines[(*key, place)] = self._line()
            self._value((*key, place))
            place += 1

    def _inline_table(self, key: Key) -> None:
        while not self._at_end_of("}"):
            self._assignment(key)

    def _at_end_of(self, closing: str) -> bool:
        """Step over the opening bracket or a comma, and over the closing bracket when it comes."""
        self._skip_blank()
        if self._next() != closing:
            self._position += 1
            self._skip_blank()
        if self._next() == closing:
            self._position += 1
            return True
        return False

    def _names(self) -> list[str]:
        """A key with its dots, and the blanks around them."""
        names: list[str] = []
        while True:
            self._skip_blank()
            names.append(self._name())
            self._skip_blank()
            if self._next() != ".":
                return names
            self._position += 1

    def _name(self) -> str:
        if self._next() not in "\"'":
            return self._take(_BARE_KEY)
        quoted = self._take(_STRING)
        [name] = tomllib.loads(f"{quoted} = 0")
        return name

    def _skip_blank(self) -> None:
        self._take(_BLANK)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._position)
        assert found is not None  # the document is valid
        self._position = found.end()
        return found[0]

    def _next(self) -> str:
        return self._text[self._position : self._position + 1]

    def _line(self) -> int:
        return bisect_right(self._line_ends, self._position) + 1
