"""What both descriptions of the API share: the schemas of messages, and how a row of the table is called in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from scaivaultd.api.messages import Nothing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scaivaultd.api.commands import Command

REFERENCE = "#/components/schemas/{name}"
MEDIA_TYPE = "application/json"
PROBLEM_MEDIA_TYPE = "application/problem+json"
LICENSE = "Apache-2.0"
REQUEST_ID = {"type": "string", "description": "Names the request in the daemon's log.", "examples": ["req_..."]}
IDEMPOTENCY_KEY = {
    "type": "string",
    "pattern": "^[!-~]{1,255}$",
    "description": "For a day the same request with the same key is answered with what the first one made, if it "
    "issues, renews, changes or revokes certificates. Others take it without effect, but for new tokens: their text is "
    "shown once only, so asking again is a `conflict`.",
}


def components(messages: Iterable[type[msgspec.Struct]]) -> dict[str, dict[str, Any]]:
    """The schemas of messages and of all that they hold, by name and in order of names."""
    kinds = inspect.multi_type_info(list(dict.fromkeys(messages)))
    _, found = msgspec.json.schema_components([_cls(kind) for kind in kinds], ref_template=REFERENCE)
    structs: dict[str, inspect.StructType] = {}
    for kind in kinds:
        _collect(kind, structs)
    for name, struct in structs.items():
        for field in struct.fields:
            _mark_times(field.type, found[name]["properties"][field.encode_name])
    # Defaults stand in it as they are, empty tuples among them; what is returned is plain JSON.
    plain: dict[str, dict[str, Any]] = msgspec.json.decode(msgspec.json.encode(dict(sorted(found.items()))))
    return plain


def api_components(
    requests: Iterable[type[msgspec.Struct]], others: Iterable[type[msgspec.Struct]]
) -> dict[str, dict[str, Any]]:
    """The schemas of requests, which forbid unknown members, and of all else, which may gain some."""
    requests = list(requests)
    strict = components(requests)
    found = components([*requests, *others])
    for name, schema in found.items():
        if name not in strict:
            schema.pop("additionalProperties", None)
    return found


def reference_to(message: type[msgspec.Struct]) -> dict[str, str]:
    """What stands in place of the schema of a message that is among the components."""
    return {"$ref": REFERENCE.format(name=message.__name__)}


def operation_id(command: Command[Any, Any]) -> str:
    """The name of a command where generators of clients make a function of it."""
    return command.name.replace(".", "_")


def tag(command: Command[Any, Any]) -> str:
    """The part of the table that a command stands in: its name without the verb, at most two words of it."""
    return ".".join(command.name.split(".")[:-1][:2])


def about(command: Command[Any, Any], *more: str) -> str:
    """What there is to say of a command beyond its summary."""
    said = () if command.request is Nothing else (" ".join((command.request.__doc__ or "").split()),)
    return " ".join((*said, *more, f"Needs the permission `{command.permission}`."))


def _cls(kind: inspect.Type) -> type[msgspec.Struct]:
    assert isinstance(kind, inspect.StructType)
    return kind.cls


def _collect(kind: inspect.Type, structs: dict[str, inspect.StructType]) -> None:
    if isinstance(kind, inspect.StructType):
        if kind.cls.__name__ in structs:
            return
        structs[kind.cls.__name__] = kind
    for inner in _inside(kind):
        _collect(inner, structs)


def _inside(kind: inspect.Type) -> Iterator[inspect.Type]:
    match kind:
        case inspect.StructType(fields=fields):
            yield from (field.type for field in fields)
        case inspect.Metadata(type=inner):
            yield inner
        case inspect.UnionType(types=types):
            yield from types
        case inspect.CollectionType(item_type=inner):
            yield inner


def _mark_times(kind: inspect.Type, schema: dict[str, Any]) -> None:
    """Say of times that they are: msgspec does so only of those that must have a zone."""
    match kind:
        case inspect.DateTimeType():
            schema["format"] = "date-time"
        case inspect.Metadata(type=inner):
            _mark_times(inner, schema)
        case inspect.UnionType(types=types) if any(_is_time(each) for each in types):
            # msgspec takes no time beside a text, so that the text among the schemas is the time.
            for option in schema["anyOf"]:
                if option.get("type") == "string":
                    option["format"] = "date-time"


def _is_time(kind: inspect.Type) -> bool:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return isinstance(kind, inspect.DateTimeType)
