"""Writes the reference pages from the tables they describe: `python -m scaivaultd.reference docs/reference`.

The pages of the DNS providers land beside that folder, in `docs/providers`.

The pages are committed; a test compares them with what this module would write.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd import reference_ctl
from scaivaultd.api.asyncapi import asyncapi
from scaivaultd.api.commands import COMMANDS, EVERYWHERE
from scaivaultd.api.events import EVENTS
from scaivaultd.api.openapi import openapi
from scaivaultd.api.schema import schema_of
from scaivaultd.model.errors import WIRE_ERRORS
from scaivaultd.model.explanations import ACME_PROBLEMS, REASONS
from scaivaultd.reference_logs import logs_page
from scaivaultd.reference_metrics import metrics_page
from scaivaultd.reference_providers import provider_pages
from scaivaultd.reference_subjects import subjects_page
from scaivaultd.settings import NatsSettings
from scaivaultd.settings_reference import reference_markdown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scaivaultd.api.commands import Command
    from scaivaultd.api.events import Event
    from scaivaultd.model.errors import ScaivaultError


def pages() -> dict[str, str]:
    """Every generated page by its file name."""
    return {
        "commands.md": _commands(),
        "events.md": _events(),
        "errors.md": _errors(),
        "configuration.md": reference_markdown(),
        "plugin-api.md": _plugin_api(),
        "metrics.md": metrics_page(),
        "log-events.md": logs_page(),
        "scaivaultctl.md": reference_ctl.page(),
        "nats-subjects.md": subjects_page(),
        "openapi.json": _document(openapi()),
        "asyncapi.json": _document(_asyncapi()),
    }


def _asyncapi() -> dict[str, Any]:
    usual = NatsSettings()
    return asyncapi(subject_root=usual.subject_root, events_root=usual.events_root)


def _document(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"


def _commands() -> str:
    lines = [
        "# Commands",
        "",
        "Generated from `scaivaultd/api/commands.py`. Subjects are below the subject root (`scaivault.v1` unless",
        "configured otherwise); the body is JSON, no body stands for `{}`. Unknown members are refused. Any command",
        f"may also answer {', '.join(f'`{error.code}`' for error in EVERYWHERE)} (see [errors](errors.md)).",
        "",
    ]
    for command in COMMANDS:
        lines += _command(command)
    return "\n".join(lines).rstrip() + "\n"


def _command(command: Command[Any, Any]) -> Iterator[str]:
    yield f"## `{command.name}`"
    yield ""
    yield command.summary
    yield ""
    yield f"NATS subject `{command.subject('scaivault.v1')}`, permission `{command.permission}`."
    if command.errors:
        yield f"Errors: {', '.join(f'`{error.code}`' for error in command.errors)}."
    yield ""
    yield "Example request:"
    yield ""
    yield "```json"
    yield json.dumps(command.example, indent=2)
    yield "```"
    yield ""
    yield from _members("Request", command.request)
    yield from _members("Reply", command.reply)


def _events() -> str:
    lines = [
        "# Events",
        "",
        "Generated from `scaivaultd/api/events.py`. Each event is a CloudEvents 1.0 message in binary mode (headers",
        "`ce-id`, `ce-type`, `ce-source`, `ce-subject`, `ce-time`, `ce-specversion`, `ce-datacontenttype`, and",
        "`ce-traceparent`, the W3C trace of the request or job that it comes from) on subject",
        "`scaivault.events.<type>.<resource id>`. The JetStream stream `SCAIVAULT_EVENTS` keeps them for 90 days;",
        "subscribers without JetStream get the same message on the same subject. Delivery is at least once and in",
        "order for each resource; `ce-id` (also `Nats-Msg-Id`) tells repetitions.",
        "",
    ]
    for event in EVENTS:
        lines += _event(event)
    return "\n".join(lines).rstrip() + "\n"


def _event(event: type[Event]) -> Iterator[str]:
    yield f"## `{event.type}`"
    yield ""
    yield event.summary
    yield ""
    yield from _members("Body", event)


def _errors() -> str:
    lines = [
        "# Errors",
        "",
        "Generated from `scaivaultd/model/errors.py`. Every error is a problem document (RFC 9457) with a stable",
        "`code`; on NATS the headers `Nats-Service-Error` and `Nats-Service-Error-Code` say the same. A failed order",
        "or account keeps its error in `error`. `scaivaultctl explain CODE` shows this page's text.",
        "",
        "| code | status | asking again | title |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| [`{error.code}`](#{error.code}) | {error.status} | {_again(error)} | {error.title} |"
        for error in WIRE_ERRORS
    ]
    for error in WIRE_ERRORS:
        lines += ["", f"## {error.code}", "", f"{error.title}.", "", error.remedy, "", "Typical reasons:", ""]
        lines += [f"- {reason}" for reason in REASONS[error.code]]
    lines += ["", "# Problems of CAs", "", "What CAs mean by the types in `acme.type` (RFC 8555 section 6.7), and what"]
    lines += ["to do."]
    for problem in ACME_PROBLEMS:
        lines += ["", f"## {problem.name}", "", problem.meaning, "", problem.remedy]
    return "\n".join(lines) + "\n"


def _again(error: type[ScaivaultError]) -> str:
    return "may help" if error.retryable else "no"


def _members(title: str, message: type[msgspec.Struct]) -> Iterator[str]:
    schema = schema_of(message)
    definitions: Mapping[str, Any] = schema.get("$defs", {})
    members = definitions.get(message.__name__, schema)
    if not members.get("properties"):
        yield f"{title}: nothing."
        yield ""
        return
    required = set(members.get("required", ()))
    yield f"{title}:"
    yield ""
    yield "| member | type | default | meaning |"
    yield "|---|---|---|---|"
    for name, member in members["properties"].items():
        default = "required" if name in required else f"`{json.dumps(member.get('default'))}`"
        yield f"| `{name}` | {_type(member, definitions)} | {default} | {_description(member)} |"
    yield ""


def _description(member: Mapping[str, Any]) -> str:
    if "description" in member:
        return str(member["description"])
    return next((_description(each) for each in member.get("anyOf", ()) if _description(each)), "")


def _type(member: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in member:
        name = member["$ref"].rsplit("/", 1)[-1]
        inner = definitions[name].get("properties", {})
        return f"object ({', '.join(f'`{each}`' for each in inner)})"
    if "anyOf" in member:
        return " or ".join(_type(each, definitions) for each in member["anyOf"])
    if "enum" in member:
        return ", ".join(f"`{json.dumps(each)}`" for each in member["enum"])
    if member.get("type") == "array":
        return f"list of {_type(member['items'], definitions)}" if "items" in member else "list"
    if member.get("format") == "date-time":
        return "time (RFC 3339, UTC)"
    return str(member.get("type", "any"))


def _plugin_api() -> str:
    lines = [
        "# Plugin API",
        "",
        "Generated from the docstrings of `scaivaultd.plugin`; [Write a plugin](../how-to/write-a-plugin.md) tells how",
        "the parts play together. Everything here but `http` and `testing` is imported from `scaivaultd.plugin`.",
        "",
    ]
    # Read, not imported: `testing` needs pytest.
    folder = Path(__file__).with_name("plugin")
    for module in ("hookspecs", "dns", "challenge", "secrets", "context", "errors", "names", "http", "testing"):
        lines += _module(f"scaivaultd.plugin.{module}", ast.parse((folder / f"{module}.py").read_text()))
    return "\n".join(lines).rstrip() + "\n"


def _module(name: str, tree: ast.Module) -> Iterator[str]:
    yield f"## `{name}`"
    yield ""
    yield ast.get_docstring(tree) or ""
    yield ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign) and _is_public(node):
            _shorten(node)
            yield "```python"
            yield ast.unparse(node)
            yield "```"
            yield ""


def _is_public(node: ast.stmt) -> bool:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return not name.startswith("_")
        case ast.Assign(targets=[ast.Name(id=name)]):
            return not name.startswith("_")
        case ast.AnnAssign(target=ast.Name(id=name)):
            return not name.startswith("_")
        case ast.Expr(value=ast.Constant()):
            return True
        case _:
            return False


def _shorten(node: ast.stmt) -> None:
    """Leave of a class its public members, of a function what its docstring says."""
    if isinstance(node, ast.ClassDef):
        node.body = [each for each in node.body if _is_public(each)] or [ast.Pass()]
        for each in node.body:
            _shorten(each)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        told = node.body[:1] if ast.get_docstring(node) else []
        node.body = [*told, ast.Expr(ast.Constant(...))]


def write(folder: Path) -> None:
    """Write every page into `folder`, and those of the DNS providers into the folder `providers` beside it."""
    for name, text in pages().items():
        (folder / name).write_text(text)
    providers = folder.parent / "providers"
    providers.mkdir(exist_ok=True)
    for name, text in provider_pages().items():
        (providers / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
