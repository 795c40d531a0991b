"""Commands and events over NATS as an AsyncAPI 3.0 document.

Told from the daemon's side, as AsyncAPI wants it: it receives requests and sends events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaivaultd import __version__
from scaivaultd.api.commands import COMMANDS, EVERYWHERE
from scaivaultd.api.components import (
    IDEMPOTENCY_KEY,
    LICENSE,
    MEDIA_TYPE,
    PROBLEM_MEDIA_TYPE,
    REQUEST_ID,
    about,
    api_components,
    operation_id,
    reference_to,
    tag,
)
from scaivaultd.api.events import EVENTS
from scaivaultd.api.messages import ProblemReply
from scaivaultd.model.errors import WIRE_ERRORS

if TYPE_CHECKING:
    from scaivaultd.api.commands import Command
    from scaivaultd.api.events import Event

REPLIES = "replies"
PROBLEM = "problem"

_INTRODUCTION = (
    "The ACME client of an organisation, over NATS. Commands are requests with a JSON body (none stands for `{}`, "
    "unknown members are refused), events are CloudEvents 1.0 in binary mode, kept for replay in the JetStream stream "
    "`SCAIVAULT_EVENTS`; they are delivered at least once, and in order for each resource. Times are RFC 3339 in UTC. "
    "Every error is a problem document (RFC 9457) with a stable `code`. Replies and events may gain members. Who "
    "logs in with an API token asks below `ROOT.as.TOKEN_ID` in place of the root, and takes replies below "
    "`_INBOX_TOKEN_ID`; `auth.whoami` tells both."
)
# AsyncAPI has no expression for the reply subject, which is no header but a part of the protocol itself.
_REPLY_ADDRESS = {
    "location": "$message.header#/reply",
    "description": "The reply subject of the request as NATS carries it; it also tells which request is answered. "
    "`request` of any NATS client makes one and waits on it.",
}
# The queue group of the daemon's micro service: of several daemons on one subject, one answers.
_BINDINGS = {"nats": {"queue": "scaivaultd", "bindingVersion": "0.1.0"}}


def asyncapi(*, subject_root: str, events_root: str) -> dict[str, Any]:
    """The whole document for a daemon with these subjects; equal for equal tables."""
    channels: dict[str, Any] = {operation_id(command): _requests(command, subject_root) for command in COMMANDS}
    channels[REPLIES] = _replies()
    operations: dict[str, Any] = {operation_id(command): _answering(command) for command in COMMANDS}
    for event in EVENTS:
        channels[event.type] = _announcements(event, events_root)
        operations[event.type] = _announcing(event)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "scaivaultd",
            "version": __version__,
            "description": _INTRODUCTION,
            "license": {"name": LICENSE},
        },
        "defaultContentType": MEDIA_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": {
                **api_components(
                    [each.request for each in COMMANDS], [*(each.reply for each in COMMANDS), *EVENTS, ProblemReply]
                ),
                "CloudEventHeaders": _cloud_event_headers(),
            },
            "messages": {
                **{operation_id(command): _request(command) for command in COMMANDS},
                **{command.reply.__name__: _reply(command) for command in COMMANDS},
                PROBLEM: _problem(),
                **{event.type: _event(event) for event in EVENTS},
            },
        },
    }


def resource_id(event: type[Event]) -> str | None:
    """The member of an event's body that ends its subject; None: it is of the daemon, whose subject ends in a word."""
    name = f"{event.type.partition('.')[0]}_id"
    return name if name in event.__struct_fields__ else None


def _requests(command: Command[Any, Any], subject_root: str) -> dict[str, Any]:
    return {
        "address": command.subject(subject_root),
        "title": command.summary,
        "messages": {"request": _message(operation_id(command))},
    }


def _replies() -> dict[str, Any]:
    names = [*dict.fromkeys(command.reply.__name__ for command in COMMANDS), PROBLEM]
    return {
        "address": None,
        "title": "The reply subject of a request.",
        "messages": {name: _message(name) for name in names},
    }


def _message(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/messages/{name}"}


def _answering(command: Command[Any, Any]) -> dict[str, Any]:
    codes = ", ".join(f"`{error.code}`" for error in (*command.errors, *EVERYWHERE))
    answers = (command.reply.__name__, PROBLEM)
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{operation_id(command)}"},
        "title": command.name,
        "summary": command.summary,
        "description": about(command, f"Errors: {codes}."),
        "tags": [{"name": tag(command)}],
        "messages": [{"$ref": f"#/channels/{operation_id(command)}/messages/request"}],
        "bindings": _BINDINGS,
        "reply": {
            "address": _REPLY_ADDRESS,
            "channel": {"$ref": f"#/channels/{REPLIES}"},
            "messages": [{"$ref": f"#/channels/{REPLIES}/messages/{name}"} for name in answers],
        },
    }


def _request(command: Command[Any, Any]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": command.request.__name__,
        "title": command.summary,
        "payload": reference_to(command.request),
        "examples": [{"payload": command.example}],
    }
    if command.method != "GET":
        message["headers"] = {"type": "object", "properties": {"Idempotency-Key": IDEMPOTENCY_KEY}}
    return message


def _reply(command: Command[Any, Any]) -> dict[str, Any]:
    return {
        "name": command.reply.__name__,
        "title": " ".join((command.reply.__doc__ or "").split()),
        "headers": _headers({"X-Request-Id": REQUEST_ID, "Content-Type": {"const": MEDIA_TYPE}}),
        "payload": reference_to(command.reply),
    }


def _problem() -> dict[str, Any]:
    return {
        "name": PROBLEM,
        "title": "An error in place of the reply.",
        "contentType": PROBLEM_MEDIA_TYPE,
        "headers": _headers(
            {
                "X-Request-Id": REQUEST_ID,
                "Content-Type": {"const": PROBLEM_MEDIA_TYPE},
                "Nats-Service-Error": {"type": "string", "description": "The error's title."},
                "Nats-Service-Error-Code": {"enum": [error.code for error in WIRE_ERRORS]},
            }
        ),
        "payload": reference_to(ProblemReply),
    }


def _headers(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _announcements(event: type[Event], events_root: str) -> dict[str, Any]:
    told = {"title": event.type, "description": event.summary, "messages": {"event": _message(event.type)}}
    name = resource_id(event)
    if name is None:
        return {"address": f"{events_root}.{event.type}.{event.type.partition('.')[0]}", **told}
    parameter = {"description": "The id of what the event is about.", "location": f"$message.payload#/{name}"}
    return {"address": f"{events_root}.{event.type}.{{{name}}}", **told, "parameters": {name: parameter}}


def _announcing(event: type[Event]) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{event.type}"},
        "title": event.type,
        "summary": event.summary,
        "tags": [{"name": "events"}],
        "messages": [{"$ref": f"#/channels/{event.type}/messages/event"}],
    }


def _event(event: type[Event]) -> dict[str, Any]:
    return {
        "name": event.type,
        "title": " ".join((event.__doc__ or "").split()),
        "headers": {
            "allOf": [
                {"$ref": "#/components/schemas/CloudEventHeaders"},
                {"type": "object", "properties": {"ce-type": {"const": event.type}}},
            ]
        },
        "payload": reference_to(event),
    }


def _cloud_event_headers() -> dict[str, Any]:
    text = {"type": "string"}
    headers = _headers(
        {
            "ce-specversion": {"const": "1.0"},
            "ce-id": {**text, "description": "The same for the same event, however often it is delivered."},
            "ce-source": {**text, "description": "The daemon, percent-encoded as all values are."},
            "ce-type": text,
            "ce-subject": {**text, "description": "The id of what the event is about."},
            "ce-time": {**text, "format": "date-time"},
            "ce-datacontenttype": {"const": MEDIA_TYPE},
            "Content-Type": {"const": MEDIA_TYPE},
            "Nats-Msg-Id": {**text, "description": "As `ce-id`, for JetStream to know repetitions by."},
        }
    )
    of_trace = {**text, "description": "The trace (W3C) of the request or job that it comes from, if there is one."}
    headers["properties"]["ce-traceparent"] = of_trace
    return headers
