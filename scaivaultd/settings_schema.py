"""The configuration for other programs: its JSON Schema, and its values in plain types, without passwords."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from scaivaultd.settings import Settings
from scaivaultd.settings_check import Option, bounds_of, options_of
from scaivaultd.settings_values import SYNTAXES, NatsUrl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scaivaultd.settings_locator import Key

HIDDEN = "(hidden)"
_SECRET_WORDS = ("password", "passphrase", "secret", "token", "key")


def schema() -> dict[str, Any]:
    """The JSON Schema of the file and its drop-ins. What text a value may have, it tells in words only."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of scaivaultd",
        **_of_struct(Settings),
    }


def shown_values(settings: Settings) -> Iterator[tuple[Key, Any]]:
    """Every key with its value, as JSON has it; passwords are masked."""
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, msgspec.Struct):
            for key in value.__struct_fields__:
                yield (name, key), _shown(getattr(value, key))
        else:
            yield (name,), _shown(value)


def _shown(value: Any) -> Any:
    match value:
        case NatsUrl():
            return str(value)
        case msgspec.Struct():
            return {key: _shown(getattr(value, key)) for key in value.__struct_fields__}
        case tuple() | list():
            return [_shown(each) for each in value]
        case dict():
            # Of plugins: whoever wrote a secret in plain there must not find it in a ticket.
            return {key: _of_plugin(key, each) for key, each in value.items()}
        case bool() | int() | float() | None:
            return value
        case _:
            return str(value)


def _of_plugin(name: str, value: Any) -> Any:
    is_secret = isinstance(value, str) and any(word in name.lower() for word in _SECRET_WORDS)
    # A reference is no secret, and the first thing to look at when one is not found.
    if is_secret and not name.lower().endswith(("_path", "_file", "_ref")):
        return HIDDEN
    return _shown(value)


def _of_struct(struct: type[msgspec.Struct]) -> dict[str, Any]:
    options = options_of(struct)
    found: dict[str, Any] = {
        "type": "object",
        "properties": {each.name: _of_option(each) for each in options},
        "additionalProperties": False,
    }
    if required := [each.name for each in options if each.is_required]:
        found["required"] = required
    return found


def _of_option(option: Option) -> dict[str, Any]:
    described: dict[str, Any] = _of_kind(option.kind)
    if isinstance(option.kind, inspect.StructType):
        return {"description": (option.kind.cls.__doc__ or "").strip(), **described}
    if option.description:
        described = {"description": option.description, **described}
    if not option.is_required and option.default is not None:
        described["default"] = _shown(option.default)
    return described


def _of_kind(kind: inspect.Type) -> dict[str, Any]:
    match kind:
        case inspect.StructType():
            return _of_struct(kind.cls)
        case inspect.VarTupleType():
            return {"type": "array", "items": _of_kind(kind.item_type)}
        case inspect.DictType():
            return {"type": "object"}
        case inspect.CustomType():
            return {"type": "string", "title": SYNTAXES[kind.cls].form}
        case inspect.LiteralType():
            return {"enum": list(kind.values)}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType() | inspect.FloatType():
            lowest, highest = bounds_of(kind)
            name = "integer" if isinstance(kind, inspect.IntType) else "number"
            return {"type": name, "minimum": lowest, "maximum": highest}
        case _:
            raise TypeError(f"{kind} has no place in settings")
