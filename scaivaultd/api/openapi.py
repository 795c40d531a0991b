"""The table as an OpenAPI 3.1 document: what the commands are over HTTP.

Members of a request that stand in braces in the route travel in the path. Of the others, GET and DELETE take them
in the query, the rest as a JSON body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd import __version__
from scaivaultd.api.commands import COMMANDS, EVERYWHERE
from scaivaultd.api.components import (
    IDEMPOTENCY_KEY,
    LICENSE,
    MEDIA_TYPE,
    PROBLEM_MEDIA_TYPE,
    REQUEST_ID,
    about,
    components,
    operation_id,
    reference_to,
    tag,
)
from scaivaultd.api.messages import ProblemReply, WaitSeconds
from scaivaultd.model.errors import WIRE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.api.commands import Command
    from scaivaultd.model.errors import ScaivaultError

BODILESS = frozenset({"GET", "DELETE"})
OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json"})
"""Served to everybody; all else wants a token."""

_INTRODUCTION = (
    "The ACME client of an organisation, over HTTP; the same commands are answered over NATS (see `/asyncapi.json`), "
    "where the name of a command (`x-command`) ends the subject and all members stand in the body. Unknown members and "
    "parameters are refused. Values in a path are percent-encoded, slashes too. Times are RFC 3339 in UTC. Every error "
    "is a problem document (RFC 9457) with a stable `code`. Replies may gain members."
)
_TOKEN = {
    "type": "http",
    "scheme": "bearer",
    "bearerFormat": "scvt_...",
    "description": "An API token: `Authorization: Bearer scvt_...`.",
}
_STATUS = {
    MEDIA_TYPE: {
        "schema": {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]},
        "example": {"status": "ok"},
    }
}
_PAGES = (
    ("/livez", "Whether the daemon runs.", MEDIA_TYPE),
    ("/readyz", "Whether the daemon takes requests.", MEDIA_TYPE),
    ("/openapi.json", "This description.", MEDIA_TYPE),
    ("/asyncapi.json", "The description of commands and events over NATS (AsyncAPI 3.0).", MEDIA_TYPE),
    ("/docs", "This description for people.", "text/html"),
)
"""What is served beside the table, with its media type."""


def openapi() -> dict[str, Any]:
    """The whole document; equal for equal tables."""
    paths: dict[str, dict[str, Any]] = {}
    for command in COMMANDS:
        paths.setdefault(command.path, {})[command.method.lower()] = _operation(command)
    for path, summary, media_type in _PAGES:
        paths[path] = {"get": _page(path, summary, media_type)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "scaivaultd",
            "version": __version__,
            "description": _INTRODUCTION,
            "license": {"name": LICENSE, "identifier": LICENSE},
        },
        "servers": [{"url": "/", "description": "The daemon that served this document."}],
        "security": [{"token": []}],
        "tags": [{"name": name} for name in dict.fromkeys([*map(tag, COMMANDS), "service"])],
        "paths": paths,
        "components": _components(),
    }


def names_in_path(command: Command[Any, Any]) -> list[str]:
    """The members of a request that travel in the path."""
    return [part[1:-1] for part in command.path.split("/") if part.startswith("{")]


def names_in_body(command: Command[Any, Any]) -> list[str]:
    """The members of a request that travel in the body; none: it has no body."""
    if command.method in BODILESS:
        return []
    in_path = names_in_path(command)
    return [name for name in command.request.__struct_fields__ if name not in in_path]


def codes_by_status(command: Command[Any, Any]) -> dict[int, tuple[str, ...]]:
    """The codes that a command may answer, sorted, below their HTTP status."""
    found: dict[int, set[str]] = {}
    for error in (*command.errors, *EVERYWHERE):
        found.setdefault(error.status, set()).add(error.code)
    return {status: tuple(sorted(codes)) for status, codes in sorted(found.items())}


def _operation(command: Command[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [tag(command)],
        "operationId": operation_id(command),
        "summary": command.summary,
        "description": about(command),
        "x-command": command.name,
    }
    if parameters := _parameters(command):
        operation["parameters"] = parameters
    if names_in_body(command):
        operation["requestBody"] = _body(command)
    operation["responses"] = {
        str(command.status): _answer(command),
        **{
            str(status): {"$ref": f"#/components/responses/{_group(codes)}"}
            for status, codes in codes_by_status(command).items()
        },
    }
    return operation


def _parameters(command: Command[Any, Any]) -> list[dict[str, Any]]:
    schema = components([command.request])[command.request.__name__]
    in_path, in_body = names_in_path(command), names_in_body(command)
    found = [
        _parameter(name, schema, command.example, is_in_path=name in in_path)
        for name in (*in_path, *(each for each in schema["properties"] if each not in in_path))
        if name not in in_body
    ]
    if "wait_seconds" in schema["properties"]:
        found.append({"$ref": "#/components/parameters/wait"})
    if command.method not in BODILESS:
        found.append({"$ref": "#/components/parameters/idempotency_key"})
    return found


def _parameter(
    name: str, request: Mapping[str, Any], example: Mapping[str, Any], *, is_in_path: bool
) -> dict[str, Any]:
    schema = _without_null(request["properties"][name])
    parameter: dict[str, Any] = {
        "name": name,
        "in": "path" if is_in_path else "query",
        "required": is_in_path or name in request["required"],
        "description": schema.pop("description"),
        "schema": schema,
    }
    return {**parameter, "example": example[name]} if name in example else parameter


def _without_null(member: Mapping[str, Any]) -> dict[str, Any]:
    """A member as a query can say it: there or not, but never null."""
    schema = dict(member)
    options = [each for each in schema.pop("anyOf", ()) if each.get("type") != "null"]
    if len(options) == 1:
        schema = {**options[0], **schema}
    elif options:
        schema["anyOf"] = options
    if "default" in schema and schema["default"] is None:
        del schema["default"]
    return schema


def _body(command: Command[Any, Any]) -> dict[str, Any]:
    in_body = names_in_body(command)
    fields = msgspec.structs.fields(command.request)
    content: dict[str, Any] = {"schema": reference_to(command.request)}
    if example := {name: value for name, value in command.example.items() if name in in_body}:
        content["example"] = example
    is_required = any(field.required for field in fields if field.name in in_body)
    return {"required": is_required, "content": {MEDIA_TYPE: content}}


def _answer(command: Command[Any, Any]) -> dict[str, Any]:
    return {
        "description": " ".join((command.reply.__doc__ or "").split()),
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/request_id"}},
        "content": {MEDIA_TYPE: {"schema": reference_to(command.reply)}},
    }


def _page(path: str, summary: str, media_type: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": ["service"],
        "operationId": path.strip("/").replace(".", "_"),
        "summary": summary,
        "responses": {"200": {"description": summary, "content": {media_type: {}}}},
    }
    if path in ("/livez", "/readyz"):
        operation["responses"]["200"]["content"] = _STATUS
    if path == "/readyz":
        problem = {PROBLEM_MEDIA_TYPE: {"schema": reference_to(ProblemReply)}}
        operation["responses"]["503"] = {"description": "It takes none now.", "content": {**_STATUS, **problem}}
    return {**operation, "security": []} if path in OPEN_PATHS else operation


def _components() -> dict[str, Any]:
    with_body = [command for command in COMMANDS if names_in_body(command)]
    schemas = components(
        [*(each.request for each in with_body), *(each.reply for each in COMMANDS), ProblemReply],
    )
    for command in with_body:
        _leave_out(names_in_path(command), schemas[command.request.__name__])
    groups = {codes for command in COMMANDS for codes in codes_by_status(command).values()}
    return {
        "schemas": schemas,
        "parameters": {"idempotency_key": _idempotency_key(), "wait": _wait()},
        "headers": {"request_id": _request_id()},
        "responses": {_group(codes): _refusal(codes) for codes in sorted(groups)},
        "examples": {error.code: _example(error) for error in WIRE_ERRORS},
        "securitySchemes": {"token": _TOKEN},
    }


def _leave_out(names: Sequence[str], schema: dict[str, Any]) -> None:
    schema["properties"] = {name: each for name, each in schema["properties"].items() if name not in names}
    schema["required"] = [name for name in schema["required"] if name not in names]


def _group(codes: Sequence[str]) -> str:
    return ".".join(codes)


def _refusal(codes: Sequence[str]) -> dict[str, Any]:
    titles = [error.title for code in codes for error in WIRE_ERRORS if error.code == code]
    return {
        "description": "; ".join(titles),
        "headers": {"X-Request-Id": {"$ref": "#/components/headers/request_id"}},
        "content": {
            PROBLEM_MEDIA_TYPE: {
                "schema": {"allOf": [reference_to(ProblemReply), {"properties": {"code": {"enum": list(codes)}}}]},
                "examples": {code: {"$ref": f"#/components/examples/{code}"} for code in codes},
            }
        },
    }


def _example(error: type[ScaivaultError]) -> dict[str, Any]:
    return {
        "summary": error.title,
        "description": error.remedy,
        "value": {
            "type": f"urn:scaivault:error:{error.code}",
            "title": error.title,
            "status": error.status,
            "detail": "...",
            "code": error.code,
            "request_id": "req_01k2v7m0e8zq3c9x5w1r4t6y8b",
        },
    }


def _idempotency_key() -> dict[str, Any]:
    schema = dict(IDEMPOTENCY_KEY)
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": schema.pop("description"),
        "schema": schema,
    }


def _request_id() -> dict[str, Any]:
    schema = dict(REQUEST_ID)
    return {"required": True, "description": schema.pop("description"), "schema": schema}


def _wait() -> dict[str, Any]:
    schema = msgspec.json.schema(WaitSeconds)
    said = schema.pop("description")
    return {
        "name": "wait",
        "in": "query",
        "required": False,
        "description": f"The same as `wait_seconds`: give one of them. {said}",
        "schema": schema,
        "example": 30,
    }
