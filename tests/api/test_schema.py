"""The schemas that endpoints show: valid, complete, and the same that decoding obeys."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scaivaultd.api.commands import COMMANDS, EVERYWHERE
from scaivaultd.api.schema import endpoint_metadata, schema_of
from scaivaultd.model.errors import WIRE_ERRORS

EVERY = pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of the message itself, its reference followed."""
    name = schema["$ref"].removeprefix("#/$defs/")
    found: dict[str, Any] = schema["$defs"][name]
    return found


@EVERY
def test_request_schemas_forbid_what_decoding_forbids(command: Any) -> None:
    """A client generated from the schema must not send what is refused."""
    schema = resolved(schema_of(command.request))
    assert schema["additionalProperties"] is False
    fields = msgspec.structs.fields(command.request)
    assert set(schema["properties"]) == {each.name for each in fields}
    assert set(schema.get("required", [])) == {each.name for each in fields if each.required}


@EVERY
def test_every_member_of_a_request_is_described(command: Any) -> None:
    """The description is the only documentation there is of it."""
    for name, member in resolved(schema_of(command.request)).get("properties", {}).items():
        described = "description" in member or any("description" in each for each in member.get("anyOf", []))
        assert described, f"{command.name}: {name}"


@EVERY
def test_metadata_are_texts_with_both_schemas_and_known_errors(command: Any) -> None:
    """NATS metadata hold strings only; a tool reads them with `$SRV.INFO`."""
    metadata = endpoint_metadata(command)
    assert all(isinstance(value, str) for value in metadata.values())
    for name, message in (("request_schema", command.request), ("reply_schema", command.reply)):
        assert msgspec.json.decode(metadata[name]) == msgspec.json.decode(msgspec.json.encode(schema_of(message)))
    codes = {each.code for each in WIRE_ERRORS}
    assert set(filter(None, metadata["errors"].split(","))) <= codes
    assert metadata["summary"].endswith(".")


def test_each_command_has_its_own_subject_and_route() -> None:
    """Two rows for one subject would answer each other's requests."""
    assert len({each.subject("r") for each in COMMANDS}) == len(COMMANDS)
    assert len({(each.method, each.path) for each in COMMANDS}) == len(COMMANDS)
    assert set(EVERYWHERE) <= set(WIRE_ERRORS)


@EVERY
def test_what_stands_in_a_route_stands_in_the_request(command: Any) -> None:
    """On NATS it travels in the body under the same name."""
    in_route = {part[1:-1] for part in command.path.split("/") if part.startswith("{")}
    assert in_route <= {each.name for each in msgspec.structs.fields(command.request)}
