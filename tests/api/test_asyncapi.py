"""The AsyncAPI document: complete, whole, and the same that goes over the wire."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from scaivaultd.api.asyncapi import asyncapi, resource_id
from scaivaultd.api.commands import COMMANDS, EVERYWHERE
from scaivaultd.api.components import operation_id
from scaivaultd.api.events import EVENTS, cloud_event_headers
from scaivaultd.model.errors import WIRE_ERRORS
from scaivaultd.model.ids import EventId
from scaivaultd.model.storage import OutboxEvent
from tests.api.documents import dangling, references

DOCUMENT = asyncapi(subject_root="root.v1", events_root="root.events")
CHANNELS, OPERATIONS = DOCUMENT["channels"], DOCUMENT["operations"]
MESSAGES, SCHEMAS = DOCUMENT["components"]["messages"], DOCUMENT["components"]["schemas"]
EVERY = pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)
OF_THE_DAEMON = {"audit.anchored": "audit", "audit.write_failed": "audit"}
EVERY_EVENT = pytest.mark.parametrize("event", EVENTS, ids=lambda each: each.type)

# Section "AsyncAPI Object" and those below it of the specification 3.0.0: what each object may hold.
MEMBERS = {
    "document": {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"},
    "channel": {
        *("address", "messages", "title", "summary", "description", "servers", "parameters", "tags"),
        *("externalDocs", "bindings"),
    },
    "operation": {
        *("action", "channel", "title", "summary", "description", "security", "tags", "externalDocs", "bindings"),
        *("traits", "messages", "reply"),
    },
    "message": {
        *("headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "tags"),
        *("externalDocs", "bindings", "examples", "traits"),
    },
    "parameter": {"enum", "default", "description", "examples", "location"},
    "reply": {"address", "channel", "messages"},
    "address": {"location", "description"},
}


def message(channel: str, name: str) -> dict[str, Any]:
    """A message of a channel, its reference followed."""
    found: dict[str, Any] = MESSAGES[CHANNELS[channel]["messages"][name]["$ref"].removeprefix("#/components/messages/")]
    return found


def test_objects_hold_what_the_specification_knows_and_nothing_else() -> None:
    """Tools refuse a document with members that are not theirs."""
    assert set(DOCUMENT) <= MEMBERS["document"]
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(DOCUMENT["info"])
    for channel in CHANNELS.values():
        assert set(channel) <= MEMBERS["channel"]
        assert all(set(each) <= MEMBERS["parameter"] for each in channel.get("parameters", {}).values())
        # Section "Channel Object": an address names no parameter that is not declared, and the other way round.
        assert set(re.findall(r"{(\w+)}", channel["address"] or "")) == set(channel.get("parameters", ()))
    for operation in OPERATIONS.values():
        assert {"action", "channel"} <= set(operation) <= MEMBERS["operation"]
        assert set(operation.get("reply", ())) <= MEMBERS["reply"]
    assert all(set(each) <= MEMBERS["message"] for each in MESSAGES.values())
    assert all(re.fullmatch(r"[\w.-]+", name) for name in (*MESSAGES, *SCHEMAS))


def test_every_reference_leads_somewhere() -> None:
    """And every message and schema is there because something needs it."""
    assert dangling(DOCUMENT) == []
    needed = set(references(DOCUMENT))
    assert {f"#/components/messages/{name}" for name in MESSAGES} <= needed
    assert {f"#/components/schemas/{name}" for name in SCHEMAS} <= needed


def test_operations_take_messages_of_their_own_channel() -> None:
    """Section "Operation Object": they must be a subset of the channel's, by reference to it."""
    for operation in OPERATIONS.values():
        for each in (operation, operation.get("reply", {})):
            for taken in each.get("messages", ()):
                assert taken["$ref"].startswith(f"{each['channel']['$ref']}/messages/")


def test_every_row_and_every_event_has_its_operation_and_nothing_else_has() -> None:
    """What is not there is not found by anybody."""
    received = {name for name, each in OPERATIONS.items() if each["action"] == "receive"}
    sent = {name for name, each in OPERATIONS.items() if each["action"] == "send"}
    assert received == {operation_id(command) for command in COMMANDS}
    assert sent == {event.type for event in EVENTS}
    assert set(CHANNELS) == {*OPERATIONS, "replies"}


@EVERY
def test_a_request_goes_to_its_subject_and_is_that_of_the_row(command: Any) -> None:
    """Of several daemons behind one subject only one answers: they are one queue."""
    name = operation_id(command)
    assert CHANNELS[name]["address"] == f"root.v1.{command.name}"
    assert OPERATIONS[name]["bindings"]["nats"]["queue"] == "scaivaultd"
    asked = message(name, "request")
    assert asked["payload"]["$ref"].endswith(f"/{command.request.__name__}")
    assert asked["examples"] == [{"payload": command.example}]
    assert ("Idempotency-Key" in asked.get("headers", {}).get("properties", {})) == (command.method != "GET")
    schema = SCHEMAS[command.request.__name__]
    assert set(schema["properties"]) == set(command.request.__struct_fields__)
    assert schema["additionalProperties"] is False


@EVERY
def test_a_reply_goes_to_the_subject_that_the_request_names(command: Any) -> None:
    """It is the row's reply or a problem document, and nothing else that others are answered."""
    reply = OPERATIONS[operation_id(command)]["reply"]
    assert reply["channel"] == {"$ref": "#/channels/replies"}
    assert CHANNELS["replies"]["address"] is None
    assert re.fullmatch(r"\$message\.header#(/[^/~]*)*", reply["address"]["location"])
    assert set(reply["address"]) <= MEMBERS["address"]
    names = [each["$ref"].rpartition("/")[2] for each in reply["messages"]]
    assert names == [command.reply.__name__, "problem"]
    assert message("replies", names[0])["payload"]["$ref"].endswith(f"/{command.reply.__name__}")
    assert "additionalProperties" not in SCHEMAS[command.reply.__name__]
    for error in (*command.errors, *EVERYWHERE):
        assert f"`{error.code}`" in OPERATIONS[operation_id(command)]["description"]


def test_a_problem_is_told_by_its_headers_too() -> None:
    """Any micro client sees an error by them without a look at the body."""
    told = message("replies", "problem")
    assert told["contentType"] == "application/problem+json"
    assert told["payload"]["$ref"].endswith("/ProblemReply")
    codes = told["headers"]["properties"]["Nats-Service-Error-Code"]["enum"]
    assert codes == [error.code for error in WIRE_ERRORS]
    assert {"Nats-Service-Error", "X-Request-Id"} <= set(told["headers"]["required"])


@EVERY_EVENT
def test_an_event_ends_its_subject_with_a_member_of_its_body(event: Any) -> None:
    """Whoever waits for one certificate subscribes to its id."""
    channel, name = CHANNELS[event.type], resource_id(event)
    if name is None:
        assert event.type in OF_THE_DAEMON
        assert channel["address"] == f"root.events.{event.type}.{OF_THE_DAEMON[event.type]}"
        assert "parameters" not in channel
    else:
        assert channel["address"] == f"root.events.{event.type}.{{{name}}}"
        assert channel["parameters"][name]["location"] == f"$message.payload#/{name}"
        assert name in event.__struct_fields__
    payload = message(event.type, "event")["payload"]
    assert payload["$ref"].endswith(f"/{event.__name__}")
    assert set(SCHEMAS[event.__name__]["properties"]) == set(event.__struct_fields__)


@EVERY_EVENT
def test_the_headers_of_an_event_are_those_of_its_message(event: Any) -> None:
    """A consumer that trusts the description finds what it says."""
    queued = OutboxEvent(
        id=EventId("e"),
        type=event.type,
        resource_id="r",
        time="2026-01-02T03:04:05Z",
        data=b"{}",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    sent = {**cloud_event_headers(queued, "scaivaultd"), "Nats-Msg-Id": "e"}
    common, own = message(event.type, "event")["headers"]["allOf"]
    assert common == {"$ref": "#/components/schemas/CloudEventHeaders"}
    properties = {**SCHEMAS["CloudEventHeaders"]["properties"], **own["properties"]}
    assert set(properties) == set(sent) == {*SCHEMAS["CloudEventHeaders"]["required"], "ce-traceparent"}
    fixed = {name: each["const"] for name, each in properties.items() if "const" in each}
    assert fixed == {name: sent[name] for name in fixed}
    assert {"ce-type", "ce-specversion"} <= set(fixed)
    assert datetime.fromisoformat(sent["ce-time"]).tzinfo == UTC


def test_schemas_keep_to_words_that_older_drafts_know() -> None:
    """AsyncAPI reads schemas as draft 07, msgspec writes 2020-12; beside a reference draft 07 sees nothing."""
    newer = {"$defs", "prefixItems", "unevaluatedProperties", "unevaluatedItems", "dependentRequired", "minContains"}

    def keys(node: Any) -> set[str]:
        if isinstance(node, dict):
            assert "$ref" not in node or len(node) == 1, node
            return set(node).union(*map(keys, node.values()))
        return set().union(*map(keys, node)) if isinstance(node, list) else set()

    assert keys(SCHEMAS).isdisjoint(newer)


def test_the_document_is_plain_json() -> None:
    """It is served as it is."""
    assert msgspec.json.decode(msgspec.json.encode(DOCUMENT)) == DOCUMENT
