"""What a member takes, for whoever gave it something else: msgspec names the wrong value and not the right ones."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VALUES_SHOWN = 20

_WRONG_ENUM = re.compile(r"Invalid enum value .*", re.DOTALL)
_WRONG_PATTERN = re.compile(r"Expected `str` matching regex .*", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[(?:\d+|\.\.\.)\]")


def explained(text: str, place: str, request: type[msgspec.Struct]) -> str:
    """A message of msgspec with what the member at `place` (`.a.b[0]`) takes; as it is where nothing says that."""
    if _WRONG_ENUM.fullmatch(text):
        values = list(dict.fromkeys(value for found, _ in _at(place, request) for value in _values(found)))
        return f"{text}; it takes {_listed(values)}" if values else text
    if _WRONG_PATTERN.fullmatch(text):
        forms = [said for found, said in _at(place, request) if isinstance(found, inspect.StrType)]
        return f"not of the form it takes: {forms[0]}" if forms and forms[0] else text
    return text


def _values(found: inspect.Type) -> list[Any]:
    match found:
        case inspect.LiteralType(values=values):
            return list(values)
        case inspect.EnumType(cls=kind):
            return [member.value for member in kind]
    return []


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(repr(value) for value in values[:VALUES_SHOWN])
    more = len(values) - VALUES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _at(place: str, request: type[msgspec.Struct]) -> list[tuple[inspect.Type, str]]:
    """What may stand at a place, each with the description nearest to it."""
    found = list(_plain(inspect.type_info(request), ""))
    for step in _STEP.finditer(place):
        found = [each for outer, said in found for each in _inside(outer, said, step[1])]
    return found


def _inside(outer: inspect.Type, said: str, name: str | None) -> Iterator[tuple[inspect.Type, str]]:
    """What may stand in a member, or, without a name, as an item or value."""
    match outer:
        case inspect.StructType(fields=fields) if name is not None:
            for field in fields:
                if field.encode_name == name:
                    yield from _plain(field.type, "")
        case inspect.CollectionType(item_type=inner) if name is None:
            yield from _plain(inner, said)
        case inspect.DictType(value_type=inner) if name is None:
            yield from _plain(inner, said)


def _plain(found: inspect.Type, said: str) -> Iterator[tuple[inspect.Type, str]]:
    """A type without what is wrapped around it; of a union each."""
    match found:
        case inspect.Metadata(type=inner, extra_json_schema=schema):
            yield from _plain(inner, (schema or {}).get("description", said))
        case inspect.UnionType(types=types):
            for each in types:
                yield from _plain(each, said)
        case _:
            yield found, said
