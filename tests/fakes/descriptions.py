"""Judges requests by the API descriptions in `descriptions/` (OpenAPI, trimmed): what is not there is objected to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from aiohttp import web

from scaivaultd.plugin import DnsProviderKind
from tests.fakes.http import FakeApi, Fault, Seen, problem

FOLDER = Path(__file__).parent / "descriptions"
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class Description:
    """One description; paths in it begin below `base`. `excused` are body members that it wants by mistake."""

    def __init__(self, name: str, *, base: str = "", excused: Collection[str] = ()) -> None:
        self._document = json.loads((FOLDER / f"{name}.json").read_text())
        self._base = base
        self._excused = frozenset(excused)
        self._routes = [
            (method, path, _pattern(path)) for path, methods in self._document["paths"].items() for method in methods
        ]

    def operation(self, seen: Seen) -> tuple[str, dict[str, str]] | None:
        """`METHOD template` and the path's parameters, decoded; literal paths win over templates."""
        path = seen.path.removeprefix(self._base)
        fitting = []
        for method, template, pattern in self._routes:
            match = pattern.fullmatch(path)
            if method.upper() == seen.method and match and seen.path.startswith(self._base):
                names = re.findall(r"\{([^}]+)\}", template)
                values = dict(zip(names, map(unquote, match.groups()), strict=True))
                fitting.append((f"{seen.method} {template}", values))
        return min(fitting, key=lambda each: len(each[1]), default=None)

    def objections(self, seen: Seen) -> list[str]:
        """What is not as described, each with the request it is about."""
        found = self.operation(seen)
        if found is None:
            return [f"{seen.line}: no such operation"]
        template = found[0].partition(" ")[2]
        operation = self._document["paths"][template][seen.method.lower()]
        return [
            f"{seen.line}: {each}"
            for part in (
                self._parameters(operation, seen, found[1]),
                self._body(operation, seen),
                _headers(seen),
            )
            for each in part
        ]

    def _parameters(self, operation: Any, seen: Seen, path: Mapping[str, str]) -> Iterator[str]:
        known = {(each["in"], each["name"]): each for each in operation.get("parameters", ())}
        for (place, name), each in known.items():
            given = (path if place == "path" else seen.query).get(name)
            if given is not None:
                yield from self._text(each["schema"], given, name)
            elif each.get("required"):
                yield f"{name} is missing"
        for name in seen.query:
            if ("query", name) not in known:
                yield f"unknown query parameter {name}"

    def _text(self, schema: Any, given: str, where: str) -> Iterator[str]:
        schema = self._resolved(schema)
        kind = schema.get("type")
        if kind == "array":
            yield from self._text(schema["items"], given, where)
        elif kind in ("integer", "number"):
            if re.fullmatch(r"[0-9]+", given):
                yield from self._value(schema, int(given), where)
            else:
                yield f"{where} is no number"
        elif kind == "boolean":
            if given not in ("true", "false"):
                yield f"{where} is neither true nor false"
        else:
            yield from self._value(schema, given, where)

    def _body(self, operation: Any, seen: Seen) -> Iterator[str]:
        described = operation.get("requestBody")
        if described is None:
            if seen.body:
                yield "a body where none is described"
            return
        if seen.headers.get("content-type", "").partition(";")[0] != "application/json":
            yield "the body is not declared as JSON"
        try:
            body = json.loads(seen.body)
        except ValueError:
            yield "the body is no JSON"
            return
        yield from self._value(described["content"]["application/json"]["schema"], body, "body")

    def _resolved(self, schema: Any) -> Any:
        """The schema without references, and with the parts of `allOf` made one."""
        while "$ref" in schema:
            target: Any = self._document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            schema = target
        if "allOf" not in schema:
            return schema
        parts = [self._resolved(each) for each in schema["allOf"]]
        merged: dict[str, Any] = {"type": "object", "properties": {}, "required": []}
        for part in parts:
            merged["properties"].update(part.get("properties", {}))
            merged["required"] += part.get("required", [])
        return merged

    def _value(self, schema: Any, value: Any, where: str) -> Iterator[str]:
        schema = self._resolved(schema)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                tries = [list(self._value(each, value, where)) for each in schema[word]]
                if all(tries):
                    yield tries[0][0]
                return
        if value is None:
            if not schema.get("nullable"):
                yield f"{where} is null"
            return
        kind = schema.get("type")
        if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
            yield f"{where} is no {kind}"
            return
        yield from _limits(schema, value, where)
        if isinstance(value, list):
            for number, each in enumerate(value):
                yield from self._value(schema.get("items", {}), each, f"{where}[{number}]")
        elif isinstance(value, dict):
            yield from self._members(schema, value, where)

    def _members(self, schema: Any, value: Mapping[str, Any], where: str) -> Iterator[str]:
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value and name not in self._excused:
                yield f"{where}.{name} is missing"
        for name, each in value.items():
            if name not in properties:
                if properties and "additionalProperties" not in schema:
                    yield f"unknown member {where}.{name}"
            elif properties[name].get("readOnly"):
                yield f"{where}.{name} is not for requests"
            else:
                yield from self._value(properties[name], each, f"{where}.{name}")


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"(\{[^}]+\})", template)
    return re.compile("".join("([^/]+)" if part.startswith("{") else re.escape(part) for part in parts))


def _limits(schema: Any, value: Any, where: str) -> Iterator[str]:
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is none of {schema['enum']}"
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where} is out of range"
    for least, most, sort in (("minLength", "maxLength", str), ("minItems", "maxItems", list)):
        if isinstance(value, sort) and not schema.get(least, 0) <= len(value) <= schema.get(most, len(value)):
            yield f"{where} has the wrong length"


def _headers(seen: Seen) -> Iterator[str]:
    if not re.fullmatch(r"Bearer [!-~]+", seen.headers.get("authorization", "")):
        yield "no bearer token"
    if not seen.headers.get("user-agent", "").startswith("scaivaultd"):
        yield "it does not say who asks"


class DescribedApi(FakeApi):
    """A fake whose every request is judged by a description before it is carried out.

    `tokens` are those it knows, with their rights; `page_size` is the longest page, whatever a request asks for.
    """

    description: Description
    throttled = Fault("status", status=429)

    def __init__(self, tokens: Mapping[str, Collection[str]]) -> None:
        super().__init__()
        self.tokens = {token: set(rights) for token, rights in tokens.items()}
        self.page_size = 1000

    async def answer(self, seen: Seen) -> web.StreamResponse:
        objections = self.description.objections(seen)
        for each in objections:
            self.violation(each)
        found = self.description.operation(seen)
        if found is None or (objections and seen.method != "GET"):
            return problem(400, {"violations": objections})
        rights = self.tokens.get(seen.headers.get("authorization", "").removeprefix("Bearer "))
        if rights is None:
            return self.unknown_token()
        body = json.loads(seen.body) if seen.body else {}
        return await self.carry_out(Asked(operation=found[0], path=found[1], query=seen.query, body=body), rights)

    def unknown_token(self) -> web.Response:
        raise NotImplementedError

    async def carry_out(self, asked: Asked, rights: Collection[str]) -> web.Response:
        raise NotImplementedError

    def txt_values(self, name: str) -> list[str]:
        """The bare values of a complete name, as DNS would show them."""
        raise NotImplementedError

    def put(self, name: str, text: str, ttl: int = 60) -> str:
        """Another program adds a TXT record, its text as the service stores it; returns its id."""
        raise NotImplementedError

    def page_of(self, asked: Asked, entries: Sequence[Any], default: int) -> tuple[list[Any], int, int]:
        """The page that is asked for, its number, and how many there are."""
        size = min(int(asked.query.get("per_page", default)), self.page_size)
        page = int(asked.query.get("page", 1))
        return list(entries[(page - 1) * size : page * size]), page, max(1, -(-len(entries) // size))

    def tell(self, name: str) -> None:
        """Let the DNS beside it know what a name has now."""
        if self.on_txt is not None:
            self.on_txt(name, tuple(self.txt_values(name)))


@dataclass(frozen=True)
class Asked:
    """A request that is understood: `METHOD template`, and what belongs into it."""

    operation: str
    path: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]


class ApiRig:
    """What the conformance kit needs of a provider and its `DescribedApi`.

    `as_stored` makes of a bare value what the service stores.
    """

    def __init__(
        self,
        kind: DnsProviderKind,
        server: DescribedApi,
        settings: Mapping[str, Any],
        secrets: Mapping[str, str],
        *,
        zone: str,
        as_stored: Callable[[str], str] = str,
    ) -> None:
        self.kind = kind
        self.server = server
        self.settings = settings
        self.secrets = secrets
        self.wrong_secrets = {reference: f"wrong{text[5:]}" for reference, text in secrets.items()}
        self.zone = zone
        self._as_stored = as_stored

    async def values(self, name: str) -> Sequence[str]:
        return self.server.txt_values(name)

    async def put_foreign(self, name: str, value: str) -> None:
        self.server.put(name, self._as_stored(value))

    async def fail(self, fault: str, times: int) -> None:
        self._fail(fault, times, "")

    async def fail_writes(self, fault: str, times: int) -> None:
        self._fail(fault, times, "^(POST|DELETE) ")

    def complaints(self) -> Sequence[str]:
        return self.server.violations

    def _fail(self, fault: str, times: int, where: str) -> None:
        statuses = {"rate_limit": self.server.throttled, "server_error": Fault("status", status=503)}
        # Only the three others are left, and they have the same names here.
        made = statuses.get(fault) or Fault(fault)  # type: ignore[arg-type]
        self.server.faults.append(replace(made, times=times, where=where))


def in_quotes(text: str) -> str:
    """The presentation form of a TXT record: strings of at most 255, quotes and backslashes escaped (RFC 1035 5.1)."""
    parts = [text[start : start + 255] for start in range(0, len(text), 255)] or [""]
    return " ".join('"' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in parts)
