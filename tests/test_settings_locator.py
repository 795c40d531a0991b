"""The locator: on which line a key stands, whatever the document does to hide it."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaivaultd.settings_locator import Key, dotted, line_of, lines_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# a = 1\n", {}),
        ("a = 1\r\n\r\nb = 2\r\n", {("a",): 1, ("b",): 3}),
        ("a.b . c = 1\n", {("a",): 1, ("a", "b"): 1, ("a", "b", "c"): 1}),
        ('"a.b"."c\\u0064" = 1\n\'e"f\' = 2', {("a.b",): 1, ("a.b", "cd"): 1, ('e"f',): 2}),
        ("[t]\n# [no]\nk = 1\n[t.u]\nk = 2", {("t",): 1, ("t", "k"): 3, ("t", "u"): 4, ("t", "u", "k"): 5}),
        ("[ a . b ] # [c]\nk = 1", {("a",): 1, ("a", "b"): 1, ("a", "b", "k"): 2}),
        ('a = """\nno = 1\n[no]\n"""\nb = 1', {("a",): 1, ("b",): 5}),
        ("a = '''\nno = 1''' # '''\nb = 1", {("a",): 1, ("b",): 3}),
        ('a = """\\"""\nno = 1\n""""\nb = 1', {("a",): 1, ("b",): 4}),
        ('a = """"quoted"""""\nb = 1', {("a",): 1, ("b",): 2}),
        ("a = '''''quoted'''''\nb = ''\nc = \"\"\nd = 1", {("a",): 1, ("b",): 2, ("c",): 3, ("d",): 4}),
        ('a = "# \\" no = 1" # b = 2\nc = 3', {("a",): 1, ("c",): 2}),
        ("a = 'C:\\'\nb = 1", {("a",): 1, ("b",): 2}),
        ("a = 1979-05-27 07:32:00 # x\nb = 1", {("a",): 1, ("b",): 2}),
        ("a = []\nb = {}\nc = [ [ ], [\n] ]", {("a",): 1, ("b",): 2, ("c",): 3, ("c", 0): 3, ("c", 1): 3}),
        ("a = [ # ]\n1,\n# 2,\n[3,\n'],'], # end\n]", {("a",): 1, ("a", 0): 2, ("a", 1): 4, ("a", 1, 0): 4,
         ("a", 1, 1): 5}),
        ("a = { b = 1, c.d = [\n2 ] }", {("a",): 1, ("a", "b"): 1, ("a", "c"): 1, ("a", "c", "d"): 1,
         ("a", "c", "d", 0): 2}),
        ("a = [{ b = 1 },\n{ b = 2 }]", {("a",): 1, ("a", 0): 1, ("a", 0, "b"): 1, ("a", 1): 2, ("a", 1, "b"): 2}),
        ("[[a]]\nk = 1\n[[a]]\nk = 2\n[a.b]\nk = 3\n[[a.c]]\n[[a.c]]\nk = 4", {
            ("a",): 1, ("a", 0): 1, ("a", 0, "k"): 2, ("a", 1): 3, ("a", 1, "k"): 4, ("a", 1, "b"): 5,
            ("a", 1, "b", "k"): 6, ("a", 1, "c"): 7, ("a", 1, "c", 0): 7, ("a", 1, "c", 1): 8,
            ("a", 1, "c", 1, "k"): 9,
        }),
        ("[[a]]\n[[a.b]]\n[[a]]\n[[a.b]]", {("a",): 1, ("a", 0): 1, ("a", 0, "b"): 2, ("a", 0, "b", 0): 2,
         ("a", 1): 3, ("a", 1, "b"): 4, ("a", 1, "b", 0): 4}),
    ],
)  # fmt: skip
def test_every_way_to_write_a_key_is_found(text: str, expected: dict[Key, int]) -> None:
    """A mistake shown at the wrong line is worse than one shown at none."""
    assert paths_of(tomllib.loads(text)) == set(expected)
    assert lines_of(text) == expected


@pytest.mark.parametrize(
    ("key", "line"), [(("a", "b"), 2), (("a", "c", "d"), 1), (("a", "b", 3), 2), (("z",), None), ((), None)]
)
def test_a_key_that_is_not_there_has_the_line_of_its_table(key: Key, line: int | None) -> None:
    """What is missing is best shown where it belongs."""
    assert line_of(key, {("a",): 1, ("a", "b"): 2}) == line


@pytest.mark.parametrize(
    ("key", "text"),
    [((), ""), (("a", "b", 0, "c"), "a.b[0].c"), (("a b", "", 'q"\n'), '"a b".""."q\\"\\n"'), (("a", 1, 2), "a[1][2]")],
)
def test_a_key_is_shown_as_it_may_be_written(key: Key, text: str) -> None:
    """People search the file for what the message says; a control character must not reach the terminal."""
    assert dotted(key) == text


class Writer:
    """Writes a table as TOML in the styles it is told to use, and notes on which line it put what."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._text = ""
        self.lines: dict[Key, int] = {}

    def document(self, table: dict[str, Any]) -> str:
        """The whole document."""
        self._table((), table)
        return self._text

    def _table(self, key: Key, table: dict[str, Any]) -> None:
        below: list[str] = []
        for name, value in table.items():
            if self._fits_header(value) and self._draw(st.booleans()):
                below.append(name)
            else:
                self._distraction()
                self._pair(key, name, value)
                self._text += self._draw(st.sampled_from(["\n", " # x = 1\n", "\t#]\n\n"]))
        for name in below:
            self._below((*key, name), table[name])

    @staticmethod
    def _fits_header(value: object) -> bool:
        return isinstance(value, dict) or (
            isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)
        )

    def _below(self, key: Key, value: Any) -> None:
        self._distraction()
        if isinstance(value, dict):
            self._note(key)
            self._text += f"[{self._header(key)}]\n"
            self._table(key, value)
            return
        for place, each in enumerate(value):
            self._note(key)
            self._note((*key, place))
            self._text += f"[[{self._header(key)}]]\n"
            self._table((*key, place), each)

    def _header(self, key: Key) -> str:
        return self._dot().join(self._name(part) for part in key if isinstance(part, str))

    def _pair(self, key: Key, name: str, value: Any) -> None:
        key = (*key, name)
        self._note(key)
        self._text += self._name(name)
        while isinstance(value, dict) and len(value) == 1 and self._draw(st.booleans()):
            [(name, value)] = value.items()
            key = (*key, name)
            self._note(key)
            self._text += self._dot() + self._name(name)
        self._text += self._draw(st.sampled_from([" = ", "=", "\t=  "]))
        self._value(key, value)

    def _value(self, key: Key, value: Any) -> None:
        if isinstance(value, list):
            self._array(key, value)
        elif isinstance(value, dict):
            self._inline_table(key, value)
        elif isinstance(value, str):
            self._text += self._string(value)
        else:
            self._text += json.dumps(value)

    def _array(self, key: Key, values: list[Any]) -> None:
        self._text += "["
        for place, each in enumerate(values):
            self._text += self._draw(st.sampled_from(["", " ", "\n  ", " # ], [\n# a = 1\n"]))
            self._note((*key, place))
            self._value((*key, place), each)
            self._text += self._draw(st.sampled_from([",", " ,", "\n,"]))
        self._text += self._draw(st.sampled_from(["", "\n", "#\n"])) + "]"

    def _inline_table(self, key: Key, table: dict[str, Any]) -> None:
        self._text += "{ "
        for place, (name, value) in enumerate(table.items()):
            self._text += ", " if place else ""
            self._pair(key, name, value)
        self._text += " }"

    def _string(self, value: str) -> str:
        escaped = json.dumps(value)[1:-1].replace("\x7f", "\\u007f")
        forms = [f'"{escaped}"', f'"""{escaped}"""', f'"""\n{escaped}"""', f'"""\\\n  {escaped}"""']
        if value.isprintable() and "'" not in value:
            forms += [f"'{value}'", f"'''\n{value}'''"]
        # A line that looks like a key, inside the string.
        return self._draw(st.sampled_from([*forms, f'"""\na = 1\n[b]\n{escaped}"""']))

    def _name(self, name: str) -> str:
        quoted = json.dumps(name).replace("\x7f", "\\u007f")
        is_bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        return self._draw(st.sampled_from([name, quoted])) if is_bare else quoted

    def _dot(self) -> str:
        return self._draw(st.sampled_from([".", " . "]))

    def _distraction(self) -> None:
        self._text += self._draw(st.sampled_from(["", "\n", "# a = 1\n", "\t # [a]\n", "# '''\n"]))

    def _note(self, key: Key) -> None:
        self.lines.setdefault(key, self._text.count("\n") + 1)


NAMES = st.sampled_from(["a", "b", "listen", "a-b", "1", "", "a b", "a.b", 'q"', "é", "#", "=", "]", "\n"])
SCALARS = st.integers(-5, 5) | st.booleans() | st.text("ab #=[]{}\"'\\\n,é", max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Key, int]]:
    """A document, and where its writer put everything."""
    writer = Writer(draw)
    text = writer.document(draw(st.dictionaries(NAMES, VALUES, max_size=4)))
    return text, writer.lines


@settings(deadline=None)  # a busy machine is no mistake of ours
@given(documents())
def test_every_key_of_any_document_is_found_where_it_was_written(document: tuple[str, dict[Key, int]]) -> None:
    """The table above holds what we thought of; this holds the rest."""
    text, lines = document
    assert paths_of(tomllib.loads(text)) == set(lines)
    assert lines_of(text) == lines
    assert lines_of(text.replace("\n", "\r\n")) == lines


def paths_of(value: object, key: Key = ()) -> set[Key]:
    """Every way into a decoded document."""
    inner: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return {key for key in [key] if key}.union(*(paths_of(each, (*key, part)) for part, each in inner))
