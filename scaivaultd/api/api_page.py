"""The descriptions of the API as one page for people: no script, nothing fetched from elsewhere, fit for paper."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from scaivaultd.api.components import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    Schema = Mapping[str, Any]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #57606a; --line: #d0d7de;
  --tint: #f3f5f7; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171a; --faint: #9aa4af; --line: #3a424b; --tint: #1e2328; --link: #79b8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
a { color: var(--link); }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; }
nav ul { columns: 22rem; padding: 0; list-style: none; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
h3 { margin-top: 2rem; }
code, pre { font: 0.9em ui-monospace, monospace; }
pre { padding: 0.7rem; background: var(--tint); white-space: pre-wrap; }
table { width: 100%; margin: 1rem 0; border-collapse: collapse; font-size: 0.9em; }
caption { text-align: left; font-weight: bold; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: normal; }
td:last-child, h3 { overflow-wrap: anywhere; }
thead th { color: var(--faint); }
@media print {
  :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #333; --line: #999; --tint: #fff; --link: #000; }
  body { max-width: 80ch; padding: 0; font-size: 10pt; }
  nav, .skip { display: none; }
  a { text-decoration: none; }
  h2, h3, caption, thead { break-after: avoid; }
  tr, pre { break-inside: avoid; } }
"""
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page needs of a browser, and no more; for the header of the same name."""

_CODE = re.compile(r"`([^`]+)`")


def api_page(rest: Mapping[str, Any], nats: Mapping[str, Any]) -> str:
    """The page of an OpenAPI and an AsyncAPI document that describe the same commands."""
    return "\n".join(_Page(rest, nats).lines()) + "\n"


class _Page:
    def __init__(self, rest: Mapping[str, Any], nats: Mapping[str, Any]) -> None:
        self._rest = rest
        self._nats = nats
        self._schemas: dict[str, Schema] = {**nats["components"]["schemas"], **rest["components"]["schemas"]}
        self._events = [name for name, each in nats["operations"].items() if each["action"] == "send"]

    def lines(self) -> Iterator[str]:
        about = self._rest["info"]
        yield '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">'
        yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
        yield f"<title>{_text(about['title'])} API</title>\n<style>{STYLE}</style>\n</head>\n<body>"
        yield '<a class="skip" href="#reference">Skip to the reference</a>'
        yield f"<header>\n<h1>{_text(about['title'])} API</h1>\n<p>Version {_text(about['version'])}. For programs: "
        yield '<a href="openapi.json">OpenAPI 3.1</a>, <a href="asyncapi.json">AsyncAPI 3.0</a>.</p>'
        yield f"<p>{_rich(about['description'])}</p>\n</header>"
        yield from self._contents()
        yield '<main id="reference">'
        for tag in self._tags():
            yield f'<h2 id="tag-{tag}">{_text(tag)}</h2>'
            for method, path, operation in self._operations(tag):
                yield from self._operation(method, path, operation)
        yield f'<h2 id="events">Events</h2>\n<p>{_rich(self._nats["info"]["description"])}</p>'
        for name in self._events:
            yield from self._event(name)
        yield '<h2 id="messages">Messages</h2>'
        for name in self._messages():
            yield f'<h3 id="message-{name}">{_text(name)}</h3>'
            yield from _described(self._schemas[name])
            yield from _table("Members", ("member", "type", "default", "meaning"), _rows(self._schemas[name]))
        yield '<h2 id="errors">Errors</h2>'
        yield from self._errors()
        yield "</main>\n</body>\n</html>"

    def _contents(self) -> Iterator[str]:
        yield '<nav aria-label="Contents">'
        for tag in self._tags():
            yield f'<h2><a href="#tag-{tag}">{_text(tag)}</a></h2>\n<ul>'
            for method, path, operation in self._operations(tag):
                yield f"<li>{_link(operation['operationId'], f'{method} {path}')}</li>"
            yield "</ul>"
        yield '<h2><a href="#events">Events</a></h2>\n<ul>'
        yield from (f"<li>{_link(f'event-{name}', name)}</li>" for name in self._events)
        yield '</ul>\n<h2><a href="#messages">Messages</a>, <a href="#errors">errors</a></h2>\n</nav>'

    def _tags(self) -> list[str]:
        return [tag["name"] for tag in self._rest["tags"]]

    def _operations(self, tag: str) -> Iterator[tuple[str, str, Schema]]:
        for path, methods in self._rest["paths"].items():
            for method, operation in methods.items():
                if tag in operation["tags"]:
                    yield method.upper(), path, operation

    def _operation(self, method: str, path: str, operation: Schema) -> Iterator[str]:
        name = operation["operationId"]
        yield f'<section aria-labelledby="{name}">\n<h3 id="{name}"><code>{_text(f"{method} {path}")}</code></h3>'
        yield f"<p>{_rich(operation['summary'])} {_rich(operation.get('description', ''))}</p>"
        if name in self._nats["channels"]:
            yield _subject(self._nats["channels"][name])
            yield f"<pre>{_text(_example(method, path, operation))}</pre>"
        parameters = [self._at(each) for each in operation.get("parameters", ())]
        rows = [*map(_parameter_row, parameters), *self._body_rows(operation)]
        yield from _table("Request", ("member", "where", "type", "default", "meaning"), rows)
        yield from self._answers(operation)
        yield "</section>"

    def _body_rows(self, operation: Schema) -> Iterator[Iterable[str]]:
        if "requestBody" in operation:
            for name, *rest in _rows(self._at(operation["requestBody"]["content"][MEDIA_TYPE]["schema"])):
                yield (name, "body", *rest)

    def _answers(self, operation: Schema) -> Iterator[str]:
        rows = []
        for status, answer in operation["responses"].items():
            if answer.get("$ref", "").rpartition("/")[2].startswith("http_"):
                continue  # the same with every operation, and of no use to anybody who reads
            described = self._at(answer)
            if "content" not in described:
                rows.append((status, "nothing", _rich(described["description"])))
                continue
            media_type, content = next(iter(described["content"].items()))
            codes = content.get("examples")
            kind = _type(content["schema"]) if media_type == MEDIA_TYPE and "schema" in content else _text(media_type)
            meaning = ", ".join(_link(f"error-{code}", code) for code in codes) if codes else kind
            rows.append((status, meaning, _rich(described["description"])))
        yield from _table("Answers", ("status", "what", "meaning"), rows)

    def _event(self, name: str) -> Iterator[str]:
        yield f'<h3 id="event-{name}"><code>{_text(name)}</code></h3>'
        yield f"<p>{_rich(self._nats['operations'][name]['summary'])}</p>"
        yield _subject(self._nats["channels"][name])
        payload = self._nats["components"]["messages"][name]["payload"]
        yield from _table("Body", ("member", "type", "default", "meaning"), _rows(self._at(payload)))

    def _errors(self) -> Iterator[str]:
        rows = []
        for code, example in self._rest["components"]["examples"].items():
            title = f'<code id="error-{code}">{_text(code)}</code>'
            rows.append(
                (title, str(example["value"]["status"]), _rich(f"{example['summary']}. {example['description']}"))
            )
        yield from _table("Codes of problem documents", ("code", "status", "what to do"), rows)

    def _at(self, node: Schema) -> Schema:
        """What a reference points to; anything else is that itself."""
        if "$ref" not in node:
            return node
        kind, name = node["$ref"].rsplit("/", 2)[1:]
        found: Schema = self._schemas[name] if kind == "schemas" else self._rest["components"][kind][name]
        return found

    def _messages(self) -> list[str]:
        """What replies, bodies and events hold, and is not told of where they are."""
        payloads = [self._nats["components"]["messages"][name]["payload"] for name in self._events]
        open_: list[Any] = [self._rest["paths"], self._rest["components"]["responses"], *map(self._at, payloads)]
        told = {each["$ref"] for each in self._bodies()}
        found: set[str] = set()
        while open_:
            for reference in _references(open_.pop()):
                name = reference.rpartition("/")[2]
                if "/schemas/" in reference and name not in found:
                    found.add(name)
                    open_.append(self._schemas[name])
        return sorted(name for name in found if f"#/components/schemas/{name}" not in told)

    def _bodies(self) -> Iterator[Schema]:
        for methods in self._rest["paths"].values():
            for operation in methods.values():
                if "requestBody" in operation:
                    yield operation["requestBody"]["content"][MEDIA_TYPE]["schema"]


def _references(node: Any) -> Iterator[str]:
    match node:
        case {"$ref": str(reference)}:
            yield reference
        case dict():
            for each in node.values():
                yield from _references(each)
        case list():
            for each in node:
                yield from _references(each)


def _example(method: str, path: str, operation: Schema) -> str:
    given = [each for each in operation.get("parameters", ()) if "example" in each]
    for each in given:
        path = path.replace(f"{{{each['name']}}}", quote(str(each["example"]), safe="*"))
    query = urlencode({each["name"]: _in_query(each["example"]) for each in given if each["in"] == "query"})
    line = f"{method} {path}?{query}" if query else f"{method} {path}"
    body = operation.get("requestBody", {}).get("content", {}).get(MEDIA_TYPE, {}).get("example")
    return line if body is None else f"{line}\n\n{json.dumps(body, indent=2)}"


def _in_query(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _parameter_row(parameter: Schema) -> Iterable[str]:
    default = "required" if parameter["required"] else _default(parameter["schema"])
    described = _rich(parameter["description"])
    return (f"<code>{parameter['name']}</code>", parameter["in"], _type(parameter["schema"]), default, described)


def _rows(schema: Schema) -> Iterator[Iterable[str]]:
    for name, member in schema["properties"].items():
        default = "required" if name in schema["required"] else _default(member)
        yield f"<code>{_text(name)}</code>", _type(member), default, _rich(_description(member))


def _default(schema: Schema) -> str:
    return f"<code>{_text(json.dumps(schema['default']))}</code>" if "default" in schema else "absent"


def _description(schema: Schema) -> str:
    if "description" in schema:
        return str(schema["description"])
    return next((each["description"] for each in schema.get("anyOf", ()) if "description" in each), "")


def _described(schema: Schema) -> Iterator[str]:
    if "description" in schema:
        yield f"<p>{_rich(' '.join(schema['description'].split()))}</p>"


def _subject(channel: Schema) -> str:
    return f"<p>NATS subject: <code>{_text(channel['address'])}</code></p>"


def _type(schema: Schema) -> str:
    match schema:
        case {"$ref": str(reference)}:
            name = reference.rpartition("/")[2]
            return _link(f"message-{name}", name)
        case {"anyOf": options}:
            return " or ".join(_type(each) for each in options)
        case {"enum": values}:
            return ", ".join(f"<code>{_text(json.dumps(each))}</code>" for each in values)
        case {"type": "array"}:
            return f"list of {_type(schema['items'])}" if "items" in schema else "list"
        case {"format": "date-time"}:
            return "time"
    return f"{schema.get('type', 'any')}{_bounds(schema)}"


def _bounds(schema: Schema) -> str:
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "maxLength": "at most {} characters",
    }
    said = [text.format(schema[key]) for key, text in words.items() if key in schema]
    return f" ({' '.join(said)})" if said else ""


def _table(caption: str, heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A table of cells that are HTML already; nothing where there are no rows."""
    body = [_row(row) for row in rows]
    if body:
        head = "".join(f'<th scope="col">{each}</th>' for each in heads)
        yield f"<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>"
        yield from body
        yield "</tbody>\n</table>"


def _row(cells: Iterable[str]) -> str:
    first, *others = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{each}</td>" for each in others)}</tr>'


def _link(target: str, text: str) -> str:
    return f'<a href="#{target}"><code>{_text(text)}</code></a>'


def _text(text: str) -> str:
    return html.escape(text)


def _rich(text: str) -> str:
    """Text with what stands in backticks as code."""
    return _CODE.sub(r"<code>\1</code>", _text(text))
