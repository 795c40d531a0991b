"""Holds what a TOML document says against Structs that describe what it may say, and finds every mistake.

msgspec stops at the first mistake and answers in its own words; people who edit a file want to
hear all of them at once, and what to write instead. A Struct for settings may hold Structs,
literals, bounded numbers, the values of `settings_values`, tuples of literals, of those values or of Structs,
free-form tables, and each of them or None.
"""

from __future__ import annotations

import datetime
import difflib
from typing import TYPE_CHECKING

import msgspec
from msgspec import inspect

from scaivaultd.settings_values import SYNTAXES, clip, read_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from scaivaultd.settings_locator import Key


class Finding(msgspec.Struct, frozen=True):
    """One mistake, and at which key."""

    key: Key
    message: str


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One key of a table as its Struct describes it; `default` is `msgspec.NODEFAULT` when it must be given."""

    name: str
    kind: inspect.Type
    description: str
    default: object

    @property
    def is_required(self) -> bool:
        """Whether a configuration without it is a mistake."""
        return self.default is msgspec.NODEFAULT


def options_of(struct: type[msgspec.Struct]) -> Sequence[Option]:
    """The keys that the table described by `struct` may have, in the order of its fields."""
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    return [_option(field) for field in described.fields]


def findings(struct: type[msgspec.Struct], table: Mapping[str, object]) -> Iterator[Finding]:
    """Every mistake in a decoded document; none means that `msgspec.convert` will take it."""
    elsewhere = [key for key, _ in _known_keys(struct, ())]
    return _table(struct, table, (), elsewhere)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was most likely meant to be, or None when none is close."""
    spelled = word.lower().replace("-", "_")
    return next(iter(difflib.get_close_matches(spelled, known, n=1)), None)


def _option(field: inspect.Field) -> Option:
    kind, description = field.type, ""
    if isinstance(kind, inspect.Metadata):
        description = (kind.extra_json_schema or {}).get("description", "")
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        [kind] = [each for each in kind.types if not isinstance(each, inspect.NoneType)]
    default = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    return Option(name=field.name, kind=kind, description=description, default=default)


def _known_keys(struct: type[msgspec.Struct], table: Key) -> Iterator[tuple[Key, Option]]:
    for option in options_of(struct):
        yield (*table, option.name), option
        if isinstance(option.kind, inspect.StructType):
            yield from _known_keys(option.kind.cls, (*table, option.name))


def _table(
    struct: type[msgspec.Struct], table: Mapping[str, object], key: Key, elsewhere: Sequence[Key]
) -> Iterator[Finding]:
    found = [*_entries(struct, table, key, elsewhere)]
    yield from found or _whole(struct, table, key)


def _entries(
    struct: type[msgspec.Struct], table: Mapping[str, object], key: Key, elsewhere: Sequence[Key]
) -> Iterator[Finding]:
    options = {option.name: option for option in options_of(struct)}
    for name, value in table.items():
        if name in options:
            yield from _value(options[name].kind, value, (*key, name), elsewhere)
        else:
            yield Finding((*key, name), f"unknown key{_meant(name, options, elsewhere)}")
    for option in options.values():
        if option.is_required and option.name not in table:
            yield Finding((*key, option.name), f"is missing: {option.description}")


def _whole(struct: type[msgspec.Struct], table: Mapping[str, object], key: Key) -> Iterator[Finding]:
    """What the Struct itself says of keys that are right one by one but not together."""
    if not hasattr(struct, "__post_init__"):
        return
    try:
        msgspec.convert(table, struct, dec_hook=read_value)
    except msgspec.ValidationError as error:
        yield Finding(key, str(error.__cause__ or error))


def _meant(name: str, here: Iterable[str], elsewhere: Iterable[Key]) -> str:
    """What an unknown key should perhaps have been: another name, or another place."""
    if close := nearest(name, here):
        return f" (did you mean {close!r}?)"
    for *table, known in elsewhere:
        if known == name:
            place = f"under [{'.'.join(map(str, table))}]" if table else "above the first [table]"
            return f" (did you mean {known!r} {place}?)"
    return ""


def _value(kind: inspect.Type, value: object, key: Key, elsewhere: Sequence[Key]) -> Iterator[Finding]:
    match kind:
        case inspect.StructType():
            if isinstance(value, dict):
                yield from _table(kind.cls, value, key, elsewhere)
            else:
                yield _wrong_type("a table", value, key)
        case inspect.VarTupleType():
            if isinstance(kind.item_type, inspect.StructType):
                yield from _tables(kind.item_type.cls, value, key, elsewhere)
            else:
                yield from _list(kind, value, key)
        case inspect.DictType():
            # Free-form: whoever it is for judges what stands in it.
            if not isinstance(value, dict):
                yield _wrong_type("a table", value, key)
            elif isinstance(kind.value_type, inspect.DictType):
                for name, inner in value.items():
                    yield from _value(kind.value_type, inner, (*key, name), elsewhere)
        case inspect.CustomType():
            yield from _text(kind.cls, value, key)
        case inspect.LiteralType():
            yield from _choice(kind, value, key)
        case inspect.BoolType():
            if not isinstance(value, bool):
                yield _wrong_type("true or false", value, key)
        case inspect.IntType() | inspect.FloatType():
            yield from _number(kind, value, key)
        case _:
            raise TypeError(f"{kind} has no place in settings")


def _tables(struct: type[msgspec.Struct], value: object, key: Key, elsewhere: Sequence[Key]) -> Iterator[Finding]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        header = ".".join(part for part in key if isinstance(part, str))
        yield _wrong_type(f"tables, each under [[{header}]]", value, key)
        return
    for place, table in enumerate(value):
        yield from _table(struct, table, (*key, place), elsewhere)


def _list(kind: inspect.VarTupleType, value: object, key: Key) -> Iterator[Finding]:
    if not isinstance(value, list):
        yield _wrong_type("a list", value, key)
        return
    seen: dict[object, int] = {}
    for place, item in enumerate(value):
        wrong = list(_value(kind.item_type, item, (*key, place), ()))
        yield from wrong
        if wrong:
            continue
        first = seen.setdefault(_as_read(kind.item_type, item), place)
        if first != place:
            yield Finding((*key, place), f"is listed twice, first as entry [{first}]")


def _as_read(kind: inspect.Type, item: object) -> object:
    """[::]:80 and [0::0]:80 are the same address."""
    return read_value(kind.cls, item) if isinstance(kind, inspect.CustomType) else item


def _text(cls: type, value: object, key: Key) -> Iterator[Finding]:
    if not isinstance(value, str):
        yield _wrong_type("a string", value, key)
        return
    try:
        SYNTAXES[cls].read(value)
    except ValueError as error:
        yield Finding(key, str(error))


def _choice(kind: inspect.LiteralType, value: object, key: Key) -> Iterator[Finding]:
    if not isinstance(value, str):
        yield _wrong_type("a string", value, key)
    elif value not in kind.values:
        close = nearest(value, map(str, kind.values))
        meant = f" (did you mean {close!r}?)" if close else ""
        yield Finding(key, f"{clip(value)} must be one of {', '.join(map(str, kind.values))}{meant}")


def _number(kind: inspect.IntType | inspect.FloatType, value: object, key: Key) -> Iterator[Finding]:
    whole = isinstance(kind, inspect.IntType)
    # True is an int to Python, and a whole number a fine float to us.
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        yield _wrong_type("an integer" if whole else "a number", value, key)
        return
    lowest, highest = bounds_of(kind)
    # Not `value < lowest or ...`: nan is neither.
    if not lowest <= value <= highest:
        yield Finding(key, f"{clip(str(value))} must be from {lowest} to {highest}")


def bounds_of(kind: inspect.IntType | inspect.FloatType) -> tuple[float, float]:
    """The lowest and the highest value; settings have no number without both."""
    assert kind.ge is not None
    assert kind.le is not None
    return kind.ge, kind.le


def _wrong_type(wanted: str, value: object, key: Key) -> Finding:
    return Finding(key, f"must be {wanted}, not {_type_name(value)}")


def _type_name(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a number with a fraction"
        case str():
            return "a string"
        case list():
            return "a list"
        case datetime.date() | datetime.time():
            return "a date or time"
        case _:
            return "a table"
