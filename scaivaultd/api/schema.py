"""JSON Schema (2020-12) of requests and replies, as endpoint metadata shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from scaivaultd.api.commands import Command


def schema_of(message: type[msgspec.Struct]) -> dict[str, Any]:
    """The schema of one message, its components below `$defs`."""
    return msgspec.json.schema(message)


def endpoint_metadata(command: Command[Any, Any]) -> dict[str, str]:
    """What `$SRV.INFO` shows of a command: summary, permission, error codes and both schemas as JSON."""
    return {
        "summary": command.summary,
        "permission": command.permission,
        "errors": ",".join(error.code for error in command.errors),
        "request_schema": msgspec.json.encode(schema_of(command.request)).decode(),
        "reply_schema": msgspec.json.encode(schema_of(command.reply)).decode(),
    }
