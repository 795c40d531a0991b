"""The layers of the configuration, and where each value comes from: the file, its drop-ins, the environment.

A later layer wins: tables are laid over each other key by key, tables of an array are added to those before (an empty
list takes them away), every other value takes the place of the one before.
"""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import StartupError
from scaivaultd.settings_locator import Key, dotted, lines_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

DROP_INS = "conf.d"
PREFIX = "SCAIVAULT__"

_SYNTAX_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a value stands: a line of a file, or a variable of the environment."""

    file: Path | None = None
    line: int | None = None
    variable: str = ""

    def __str__(self) -> str:
        return self.variable or ":".join(str(part) for part in (self.file, self.line) if part is not None)


class Mistake(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to correct in the configuration; its text is `FILE:LINE: key: what is wrong`.

    `file` is None when it is not known, `line` for what stands nowhere; `key` is empty for what concerns the whole
    file. What the environment says has the name of its `variable` in place of both.
    """

    file: Path | None
    line: int | None
    key: str
    message: str
    variable: str = ""

    def __str__(self) -> str:
        place = str(Place(file=self.file, line=self.line, variable=self.variable))
        return ": ".join(part for part in (place, self.key, self.message) if part)


class SettingsError(StartupError):
    """The configuration cannot be used; the text has one line for each mistake."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)


class Layers:
    """All layers laid over each other in `table`, and the places of what stands in it."""

    def __init__(
        self, path: Path, environment: Mapping[str, str] | None = None, *, is_text: Callable[[Key], bool]
    ) -> None:
        """Read the file, the drop-ins beside it, and the variables of `environment`. Blocks.

        `is_text` says of a key whether its value is a text, which needs no quotes in the environment.

        Raises:
            SettingsError: a file cannot be read or is no TOML; with every such file.
        """
        self.path = path
        self.files = [path]
        self.table: dict[str, object] = {}
        self._places: dict[Key, Place] = {}
        mistakes: list[Mistake] = []
        try:
            self.files += _drop_ins(path.parent / DROP_INS)
        except SettingsError as error:
            mistakes += error.mistakes
        for file in self.files:
            try:
                table, lines = _read(file)
            except SettingsError as error:
                mistakes += error.mistakes
            else:
                places = {key: Place(file=file, line=line) for key, line in lines.items()}
                self._lay(self.table, table, (), (), places)
        if mistakes:
            raise SettingsError(mistakes)
        for name in sorted(environment or {}):
            if name.startswith(PREFIX):
                self._lay_variable(name, (environment or {})[name], is_text)

    def place_of(self, key: Key) -> Place | None:
        """Where the value of `key` comes from; None: from no layer."""
        while key and key not in self._places:
            key = key[:-1]
        return self._places.get(key)

    def mistake(self, key: Key, message: str) -> Mistake:
        """A mistake at `key`, with its place."""
        place = self.place_of(key) or Place(file=self.path)
        return Mistake(file=place.file, line=place.line, variable=place.variable, key=dotted(key), message=message)

    def in_order(self, mistakes: Sequence[Mistake]) -> list[Mistake]:
        """Mistakes in the order in which the layers are read, and of their lines."""
        order = {file: number for number, file in enumerate(self.files)}
        last = len(order)
        return sorted(mistakes, key=lambda each: (order.get(each.file, last) if each.file else last, each.line or 0))

    def _lay_variable(self, name: str, text: str, is_text: Callable[[Key], bool]) -> None:
        key: Key = tuple(part.lower() for part in name.removeprefix(PREFIX).split("__"))
        table: dict[str, object] = {str(key[-1]): _value(text, is_text=is_text(key))}
        for part in reversed(key[:-1]):
            table = {str(part): table}
        places = {key[:length]: Place(variable=name) for length in range(1, len(key) + 1)}
        self._lay(self.table, table, (), (), places)

    def _lay(
        self,
        below: dict[str, object],
        table: Mapping[str, object],
        here: Key,
        there: Key,
        places: Mapping[Key, Place],
    ) -> None:
        """Lay `table`, which stands at `there` in its own layer, over `below`, which stands at `here`."""
        for name, value in table.items():
            old, at, own = below.get(name), (*here, name), (*there, name)
            if isinstance(old, dict) and isinstance(value, dict):
                self._lay(old, value, at, own, places)
            elif (first := _tables(old)) and (added := _tables(value)):
                for number in range(len(added)):
                    self._mark((*at, len(first) + number), (*own, number), places)
                below[name] = [*first, *added]
            else:
                for key in [each for each in self._places if each[: len(at)] == at]:
                    del self._places[key]
                self._mark(at, own, places)
                below[name] = value

    def _mark(self, here: Key, there: Key, places: Mapping[Key, Place]) -> None:
        for key, place in places.items():
            if key[: len(there)] == there:
                self._places[(*here, *key[len(there) :])] = place


def _tables(value: object) -> list[object]:
    """What an array of tables holds; nothing if it is something else."""
    return value if isinstance(value, list) and all(isinstance(each, dict) for each in value) else []


def _value(text: str, *, is_text: bool) -> object:
    """What a variable says: TOML, and a text without quotes where a text is wanted or nothing else can be read."""
    if is_text and not text.startswith(('"', "'")):
        return text
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if table.keys() == {"value"} else text


def _drop_ins(folder: Path) -> list[Path]:
    try:
        if not folder.exists():
            return []
        return sorted(each for each in folder.iterdir() if each.suffix == ".toml" and not each.name.startswith("."))
    except OSError as error:
        raise _unusable(folder, f"cannot be read: {error.strerror}") from error


def _read(path: Path) -> tuple[dict[str, object], Mapping[Key, int]]:
    text = _text(path)
    try:
        return tomllib.loads(text), lines_of(text)
    except RecursionError:
        raise _unusable(path, "lists or tables are nested too deeply") from None
    except ValueError as error:
        raise _not_toml(path, error, text) from None


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unusable(path, "not UTF-8 text", line) from None


def _not_toml(path: Path, error: ValueError, text: str) -> SettingsError:
    reason = str(error)
    place = _SYNTAX_PLACE.search(reason)
    if place is None:
        return _unusable(path, f"not valid TOML: {reason}")
    if place["line"] is None:
        return _unusable(path, f"not valid TOML: {reason[: place.start()]}", text.rstrip().count("\n") + 1)
    return _unusable(path, f"not valid TOML: {reason[: place.start()]} (column {place['column']})", int(place["line"]))


def _unusable(path: Path, message: str, line: int | None = None) -> SettingsError:
    return SettingsError([Mistake(file=path, line=line, key="", message=message)])
