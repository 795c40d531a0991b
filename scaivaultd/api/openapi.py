"""The table as an OpenAPI 3.1 document: what the commands are over HTTP.

Members of a request that stand in braces in the route travel in the path. Of the others, GET and DELETE take them
in the query, the rest as a JSON body. What any request may be answered with, whatever it asks for, is told with each:
clients are made of operations one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd import __version__
from scaivaultd.api.commands import COMMANDS, EVERYWHERE, INFO
from scaivaultd.api.components import (
    IDEMPOTENCY_KEY,
    LICENSE,
    MEDIA_TYPE,
    PROBLEM_MEDIA_TYPE,
    about,
    api_components,
    components,
    operation_id,
    reference_to,
    tag,
)
from scaivaultd.api.messages import ProblemReply, WaitEndSeconds, WaitSeconds
from scaivaultd.model.errors import WIRE_ERRORS, PreconditionFailed, Timeout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.api.commands import Command
    from scaivaultd.model.errors import ScaivaultError

BODILESS = frozenset({"GET", "DELETE"})
OPEN_PATHS = frozenset({"/livez", "/readyz", "/openapi.json", "/asyncapi.json", "/docs"})
"""Served to everybody; all else wants a token."""

HTTP_TITLES: Mapping[int, str] = {
    400: "The request is not valid",
    405: "This path does not take that method",
    408: "The request came too slowly",
    413: "The request is too large",
    415: "The body is of another kind",
    417: "The expectation cannot be met",
    431: "The head of the request is too large",
    505: "This version of HTTP is not spoken here",
}
"""What only HTTP can get wrong: problem documents with the code `invalid_request` under these statuses."""
OVER_HTTP: tuple[type[ScaivaultError], ...] = (*EVERYWHERE, PreconditionFailed, Timeout)
"""What any command may answer over HTTP."""

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
_OF_NO_OPERATION = (400, 405)  # the first has codes of its own, the second tells that there is no operation
_STATUS = {
    MEDIA_TYPE: {
        "schema": {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]},
        "example": {"status": "ok"},
    }
}
_OWN_REQUEST_ID = {
    "type": "string",
    "description": "Your own name for it: letters, digits, `.`, `_`, `:` and `-`, at most 64. The answer bears "
    "it, and the log ties it to the daemon's. What is no such name is passed over.",
}
_PATH_MEMBER = r"^(?!\.{1,2}$)[^\x00-\x1f\x7f/\\]+$"
_PATH_MEMBERS = r"^(?!\.{1,2}(/|$))[^\x00-\x1f\x7f/\\]+(/(?!\.{1,2}(/|$))[^\x00-\x1f\x7f/\\]+)*$"
_CONDITION = {
    "type": "string",
    "pattern": r'^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$',
    "description": 'Go on only if the resource is, or is not, what had this `ETag`: `"5f8a"`, a list of such, or `*`.',
}
_HEADERS: Mapping[str, Any] = {
    name: {"required": True, "description": description, "schema": {"type": kind}}
    for name, kind, description in (
        ("X-Request-Id", "string", "Your name for the request, or the one that it has in the daemon's log."),
        ("ETag", "string", "Stands for this state of the resource, for `If-Match` and `If-None-Match`."),
        ("Location", "string", "Where what was made, or set going, is to be found."),
        ("Retry-After", "integer", "Ask again after so many seconds."),
        ("WWW-Authenticate", "string", "How to say who you are (RFC 6750)."),
    )
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
    paths["/metrics"] = {"get": _metrics()}
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
    for error in (*command.errors, *OVER_HTTP):
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
    operation["parameters"] = _parameters(command)
    if names_in_body(command):
        operation["requestBody"] = _body(command)
    operation["responses"] = _responses(command)
    return operation


def _responses(command: Command[Any, Any]) -> dict[str, Any]:
    found: dict[int, Any] = {
        command.status: _answer(command),
        **{status: _response(_group(codes)) for status, codes in codes_by_status(command).items()},
        **{status: _response(f"http_{status}") for status in HTTP_TITLES if status not in _OF_NO_OPERATION},
    }
    if _has_etag(command):
        found[304] = _response("not_modified")
    if hasattr(command.reply, "http_status"):
        # How the daemon is: a reply that is a problem, and no problem document.
        refusal = _refusal(codes_by_status(command)[503])
        found[503] = {**refusal, "content": {**_answer(command)["content"], **refusal["content"]}}
    return {str(status): found[status] for status in sorted(found)}


def _response(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/responses/{name}"}


def _has_etag(command: Command[Any, Any]) -> bool:
    return command.method == "GET" and command.permission != "key.read"


def _parameters(command: Command[Any, Any]) -> list[dict[str, Any]]:
    schema = components([command.request])[command.request.__name__]
    in_path, in_body = names_in_path(command), names_in_body(command)
    found = [
        _parameter(name, schema, command.example, is_in_path=name in in_path)
        for name in (*in_path, *(each for each in schema["properties"] if each not in in_path))
        if name not in in_body
    ]
    names = ["request_id", "if_none_match" if _has_etag(command) else "if_match"]
    if "wait_end_seconds" in schema["properties"]:
        names.append("wait_end")
    elif "wait_seconds" in schema["properties"]:
        names.append("wait")
    if command.method not in BODILESS:
        names.append("idempotency_key")
    return [*found, *({"$ref": f"#/components/parameters/{name}"} for name in names)]


def _parameter(
    name: str, request: Mapping[str, Any], example: Mapping[str, Any], *, is_in_path: bool
) -> dict[str, Any]:
    schema = _without_null(request["properties"][name])
    if is_in_path and "pattern" not in schema:
        schema |= {"minLength": 1, "pattern": _PATH_MEMBERS if name == "path" else _PATH_MEMBER}
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
    names = ["X-Request-Id"]
    if _has_etag(command):
        names.append("ETag")
    if command.status in (201, 202):
        names.append("Location")
    if command.status == 202:
        names.append("Retry-After")
    return {
        "description": " ".join((command.reply.__doc__ or "").split()),
        "headers": _headers(*names),
        "content": {MEDIA_TYPE: {"schema": reference_to(command.reply)}},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _page(path: str, summary: str, media_type: str) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": summary, "headers": _headers("X-Request-Id")}}
    if path in ("/livez", "/readyz"):
        answers["200"]["content"] = _STATUS
    else:
        schema = {"type": "object"} if media_type == MEDIA_TYPE else {"type": "string"}
        answers["200"] |= {"headers": _headers("X-Request-Id", "ETag"), "content": {media_type: {"schema": schema}}}
        answers["304"] = _response("not_modified")
        answers["429"] = _response("rate_limited")
    if path != "/livez":
        problem = {PROBLEM_MEDIA_TYPE: {"schema": reference_to(ProblemReply)}}
        content = {**_STATUS, **problem} if path == "/readyz" else problem
        answers["503"] = {"description": "Not now.", "headers": _headers("X-Request-Id"), "content": content}
    return {
        "tags": ["service"],
        "operationId": path.strip("/").replace(".", "_"),
        "summary": summary,
        "responses": answers,
        "security": [],
    }


def _metrics() -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    answers: dict[str, Any] = {
        "200": {
            "description": "All metrics at this moment.",
            "headers": _headers("X-Request-Id"),
            "content": {"text/plain": text, "application/openmetrics-text": text},
        }
    }
    answers |= {str(status): _response(_group(codes)) for status, codes in codes_by_status(INFO).items()}
    return {
        "tags": ["service"],
        "operationId": "metrics",
        "summary": "What there is to be measured, for Prometheus.",
        "description": f"Permission: `{INFO.permission}`. OpenMetrics where `Accept` wants it. Sealed or not.",
        "responses": answers,
    }


def _components() -> dict[str, Any]:
    with_body = [command for command in COMMANDS if names_in_body(command)]
    schemas = api_components([each.request for each in with_body], [*(each.reply for each in COMMANDS), ProblemReply])
    for command in with_body:
        _leave_out(names_in_path(command), schemas[command.request.__name__])
    groups = {codes for command in COMMANDS for codes in codes_by_status(command).values()}
    return {
        "schemas": schemas,
        "parameters": {
            "idempotency_key": _in_header("Idempotency-Key", IDEMPOTENCY_KEY),
            "request_id": _in_header("X-Request-Id", _OWN_REQUEST_ID),
            "if_match": _in_header("If-Match", _CONDITION),
            "if_none_match": _in_header("If-None-Match", _CONDITION),
            "wait": _wait("wait_seconds", WaitSeconds),
            "wait_end": _wait("wait_end_seconds", WaitEndSeconds),
        },
        "headers": _HEADERS,
        "responses": {
            **{_group(codes): _refusal(codes) for codes in sorted(groups)},
            **{f"http_{status}": _http(status) for status in HTTP_TITLES if status not in _OF_NO_OPERATION},
            "not_modified": {
                "description": "It is as `If-None-Match` says: what you have is what there is.",
                "headers": _headers("X-Request-Id", "ETag"),
            },
        },
        "examples": {error.code: _example(error) for error in WIRE_ERRORS},
        "securitySchemes": {"token": _TOKEN},
    }


def _leave_out(names: Sequence[str], schema: dict[str, Any]) -> None:
    schema["properties"] = {name: each for name, each in schema["properties"].items() if name not in names}
    schema["required"] = [name for name in schema["required"] if name not in names]


def _group(codes: Sequence[str]) -> str:
    return ".".join(codes)


def _refusal(codes: Sequence[str]) -> dict[str, Any]:
    errors = [error for code in codes for error in WIRE_ERRORS if error.code == code]
    more = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}.get(errors[0].status, [])
    headers = _headers("X-Request-Id", *more)
    if errors[0].status == 503:
        headers["Retry-After"] = {**_HEADERS["Retry-After"], "required": False}
    return {
        "description": "; ".join(error.title for error in errors),
        "headers": headers,
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


def _http(status: int) -> dict[str, Any]:
    return {
        "description": HTTP_TITLES[status],
        "headers": _headers("X-Request-Id"),
        "content": {PROBLEM_MEDIA_TYPE: {"schema": reference_to(ProblemReply)}},
    }


def _in_header(name: str, described: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(described)
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": schema.pop("description"),
        "schema": schema,
    }


def _wait(name: str, kind: Any) -> dict[str, Any]:
    schema = msgspec.json.schema(kind)
    said = schema.pop("description")
    return {
        "name": "wait",
        "in": "query",
        "required": False,
        "description": f"The same as `{name}`: give one of them. {said}",
        "schema": schema,
        "example": 5,
    }
