"""Writes a page for each kind of DNS provider that the daemon brings, and their index, from what the kinds say."""

from __future__ import annotations

import importlib.util
import json
import shlex
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from scaivaultd.api.commands import COMMANDS
from scaivaultd.plugin import ENTRY_POINT_GROUP, ProviderSettings
from scaivaultd.plugin_manager import brought_by

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from scaivaultd.plugin import Capabilities, DnsProviderKind

TYPE_WORDS: dict[type[inspect.Type], str] = {
    inspect.StrType: "text",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.BoolType: "`true` or `false`",
    inspect.AnyType: "anything",
}


def kinds() -> list[DnsProviderKind]:
    """The kinds of our own distribution, by name; those of other installed plugins have their pages elsewhere."""
    found: list[DnsProviderKind] = []
    for entry_point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        # The installed list may be older or newer than the checkout; the wheel's test compares the two.
        if entry_point.dist and entry_point.dist.name == "scaivaultd" and importlib.util.find_spec(entry_point.module):
            found += brought_by(entry_point.load(), entry_point.name).dns_providers
    return sorted(found, key=lambda kind: kind.name)


def provider_pages() -> dict[str, str]:
    """Every page below `docs/providers` by its file name."""
    found = kinds()
    return {"README.md": _index(found), **{f"{kind.name}.md": page(kind) for kind in found}}


def _index(found: Iterable[DnsProviderKind]) -> str:
    lines = [
        "# DNS providers",
        "",
        "Generated from the kinds that the plugins register. Every provider is configured in the same way; its page",
        "tells its settings, the least rights that its credentials need, its limits, and what to do when it fails.",
        "How to add one: [Write a plugin](../how-to/write-a-plugin.md).",
        "",
        "| type | service | secrets |",
        "|---|---|---|",
        *(f"| [`{kind.name}`]({kind.name}.md) | {kind.title} | {_secrets(kind)} |" for kind in found),
        "",
        "## Secrets",
        "",
        "Settings whose name ends in `_path` are references to secrets, those ending in `_paths` maps of such",
        "references; a secret itself never stands in a request. A reference is the path of a secret put by",
        "`secrets.put`, or begins with the scheme of another place (`cred:`, `file:`, `env:`, or that of a plugin).",
        "",
        "## Settings that every provider has",
        "",
        *_table(inspect_fields(ProviderSettings)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def page(kind: DnsProviderKind) -> str:
    """The page of one kind."""
    lines = [f"# {kind.title} (`{kind.name}`)", "", *_paragraph(kind.summary), *_facts(kind)]
    lines += ["## Example", "", *(_file_example(kind) if kind.configuration_file_only else _request_example(kind))]
    lines += ["## Settings", "", *_settings(kind)]
    for title, text in (
        ("Rights", kind.rights),
        ("Limits", kind.limits),
        ("Troubleshooting", kind.troubleshooting),
    ):
        if text.strip():
            lines += [f"## {title}", "", *_paragraph(text)]
    return "\n".join(lines).rstrip() + "\n"


def _paragraph(text: str) -> list[str]:
    return [text.strip(), ""] if text.strip() else []


def _facts(kind: DnsProviderKind) -> Iterator[str]:
    facts = list(_capabilities(kind.capabilities))
    if kind.configuration_file_only:
        facts.append("Can be configured in the daemon's configuration file only, not by request.")
    yield from (f"- {fact}" for fact in facts)
    if facts:
        yield ""


def _capabilities(capabilities: Capabilities) -> Iterator[str]:
    if capabilities.min_ttl > 1:
        yield f"Lowest TTL: {capabilities.min_ttl} seconds; a lower `ttl` is raised to it."
    if capabilities.max_values is not None:
        yield f"A name holds at most {capabilities.max_values} values at once; orders for it queue up."
    if capabilities.sequential:
        yield "Takes one call at a time."
    if capabilities.any_zone:
        yield "Cannot tell which zones it has: name it in `dns_provider`, or give it `zones`."


def _request(kind: DnsProviderKind) -> dict[str, Any]:
    return {"name": "dns-prod", "type": kind.name, "zones": ["example.org"], "config": dict(kind.example)}


def _request_example(kind: DnsProviderKind) -> Iterator[str]:
    create = next(each for each in COMMANDS if each.name == "pki.dns_providers.create")
    put = next(each for each in COMMANDS if each.name == "secrets.put")
    root = "scaivault.v1"
    body = _quoted(json.dumps(_request(kind), indent=2))
    yield "```sh"
    for reference in _references(kind):
        yield f"nats req {put.subject(root)} {_quoted(json.dumps({'path': reference, 'value': '...'}))}"
    yield f"nats req {create.subject(root)} {body}"
    yield "```"
    yield ""
    yield f"The same as HTTP, from the release on that has the REST gateway (`{create.method} {create.path}`):"
    yield ""
    yield "```sh"
    yield f"curl -X {create.method} https://scaivault.example.org{create.path} \\"
    yield f"  -H 'Authorization: Bearer ...' -H 'Content-Type: application/json' -d {body}"
    yield "```"
    yield ""


def _file_example(kind: DnsProviderKind) -> Iterator[str]:
    request = _request(kind)
    yield "```toml"
    yield "[[dns_provider]]"
    yield from (f"{member} = {json.dumps(request[member])}" for member in ("name", "type", "zones"))
    yield ""
    yield "[dns_provider.config]"
    yield from (f"{member} = {_toml(value)}" for member, value in kind.example.items())
    yield "```"
    yield ""


def _toml(value: Any) -> str:
    # JSON's texts, numbers, booleans and lists are TOML's as well; objects are written another way.
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(inner) for inner in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _references(kind: DnsProviderKind) -> Iterator[str]:
    """Secrets of the example that are to be put into the daemon's own store: those without a scheme."""
    for member, value in kind.example.items():
        values = value.values() if member.endswith("_paths") and isinstance(value, dict) else [value]
        if member.endswith(("_path", "_paths")):
            yield from (each for each in values if isinstance(each, str) and ":" not in each)


def inspect_fields(settings: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    """The members of a Struct, as msgspec sees them."""
    told = inspect.type_info(settings)
    assert isinstance(told, inspect.StructType)
    return told.fields


def _settings(kind: DnsProviderKind) -> Iterator[str]:
    common = {field.name: field for field in inspect_fields(ProviderSettings)}
    # A common setting is shown again where this kind has another default for it, or other words.
    own = [field for field in inspect_fields(kind.settings) if common.get(field.name) != field]
    if own:
        yield from _table(own)
    yield "And those that [every provider has](README.md#settings-that-every-provider-has)."
    yield ""


def _table(fields: Iterable[inspect.Field]) -> Iterator[str]:
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in fields:
        words = type_words(field)
        yield f"| `{field.name}` | {words} | {default_of(field)} | {_cell(description_of(field.type))} |"
    yield ""


def type_words(field: inspect.Field) -> str:
    """What kind of value a setting takes, in words."""
    if field.name.endswith("_path"):
        return "reference to a secret"
    if field.name.endswith("_paths"):
        return "map of references to secrets"
    return _cell(_words(field.type))


def _words(told: inspect.Type) -> str:
    match told:
        case inspect.Metadata(type=inner):
            return _words(inner)
        case inspect.UnionType(types=types):
            return " or ".join(_words(each) for each in types if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in sorted(values, key=str))
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return f"list of {_words(item)}"
        case inspect.DictType(value_type=value):
            return f"map of {_words(value)}"
        case _:
            return TYPE_WORDS.get(type(told), "object") + _range(told)


def _range(told: inspect.Type) -> str:
    low, high = getattr(told, "ge", None), getattr(told, "le", None)
    return f", {low} to {high}" if low is not None and high is not None else ""


def default_of(field: inspect.Field) -> str:
    """What a setting is unless it is given, in words; empty if nothing."""
    if field.required:
        return "required"
    default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if default is None or default in ((), [], {}, ""):
        return ""
    return f"`{json.dumps(default)}`"


def description_of(told: inspect.Type) -> str:
    """What a setting is for."""
    match told:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description", "")) or description_of(inner)
        case inspect.UnionType(types=types):
            return next((text for each in types if (text := description_of(each))), "")
        case _:
            return ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _secrets(kind: DnsProviderKind) -> str:
    fields: Mapping[str, inspect.Field] = {field.name: field for field in inspect_fields(kind.settings)}
    return ", ".join(f"`{name}`" for name in fields if name.endswith(("_path", "_paths")))
