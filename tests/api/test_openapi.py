"""The OpenAPI document: valid, complete, and the same that decoding obeys."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from scaivaultd.api.commands import COMMANDS
from scaivaultd.api.dispatch import decode, problem
from scaivaultd.api.messages import Request
from scaivaultd.api.openapi import HTTP_TITLES, OPEN_PATHS, OVER_HTTP, openapi
from scaivaultd.model.errors import WIRE_ERRORS, NotFound
from tests.api.documents import dangling, references

DOCUMENT = openapi()
EVERY = pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.name)


def operation(command: Any) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][command.path][command.method.lower()]
    return found


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        kind, name = node["$ref"].rsplit("/", 2)[1:]
        node = DOCUMENT["components"][kind][name]
    return node


def parameters(command: Any, place: str) -> dict[str, Any]:
    found = [resolved(each) for each in operation(command).get("parameters", ())]
    return {each["name"]: each for each in found if each["in"] == place}


def members_of_query(command: Any) -> dict[str, Any]:
    return {name: each for name, each in parameters(command, "query").items() if name != "wait"}


def body(command: Any) -> dict[str, Any]:
    """What the body holds, as its schema has it; empty where there is none."""
    if "requestBody" not in operation(command):
        return {}
    return resolved(operation(command)["requestBody"]["content"]["application/json"]["schema"])


def all_operations() -> list[tuple[str, dict[str, Any]]]:
    return [(path, each) for path, methods in DOCUMENT["paths"].items() for each in methods.values()]


def test_the_document_is_valid_by_the_rules_of_openapi() -> None:
    """Tools refuse one that is not, and say nothing of use."""
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []


def test_every_reference_leads_somewhere() -> None:
    """And every schema and response is there because something needs it."""
    assert dangling(DOCUMENT) == []
    needed = set(references(DOCUMENT))
    for kind in ("schemas", "responses", "parameters", "headers"):
        for name in DOCUMENT["components"][kind]:
            assert f"#/components/{kind}/{name}" in needed


@EVERY
def test_each_member_of_a_request_travels_in_exactly_one_place(command: Any) -> None:
    """One that stands in none cannot be said; one that stands in two can be said in contradiction."""
    places = [*parameters(command, "path"), *members_of_query(command), *body(command).get("properties", ())]
    assert sorted(places) == sorted(command.request.__struct_fields__)
    assert set(parameters(command, "path")) == set(re.findall(r"{(\w+)}", command.path))
    if command.method in {"GET", "DELETE"}:
        assert body(command) == {}
    else:
        assert members_of_query(command) == {}


@EVERY
def test_what_is_required_is_what_decoding_requires(command: Any) -> None:
    """An absent member that stays as it is must not have to be sent."""
    required = {name for name in parameters(command, "path") if parameters(command, "path")[name]["required"]}
    required |= {name for name, each in members_of_query(command).items() if each["required"]}
    required |= set(body(command).get("required", ()))
    assert required == {each.name for each in msgspec.structs.fields(command.request) if each.required}
    if "requestBody" in operation(command):
        assert operation(command)["requestBody"]["required"] == bool(body(command)["required"])


@EVERY
def test_parameters_are_described_and_never_null(command: Any) -> None:
    """A query has no word for null: absent says the same."""
    for each in (*parameters(command, "path").values(), *parameters(command, "query").values()):
        assert each["description"]
        assert each["schema"].get("type") or each["schema"].get("enum"), each
        assert "null" not in str(each["schema"]), each
        assert "None" not in str(each["schema"]), each


@EVERY
def test_the_example_put_together_again_is_that_of_the_row(command: Any) -> None:
    """Examples are copied; they have to work."""
    found = {name: each["example"] for name, each in parameters(command, "path").items()}
    found |= {name: each["example"] for name, each in members_of_query(command).items() if "example" in each}
    found |= operation(command).get("requestBody", {}).get("content", {}).get("application/json", {}).get("example", {})
    assert found == command.example
    decode(msgspec.json.encode(found), command.request)


def test_requests_forbid_other_members_and_replies_do_not() -> None:
    """Replies may gain members, and a strict client would break on them."""

    def below(kind: type[Request]) -> set[str]:
        return {kind.__name__}.union(*(below(each) for each in kind.__subclasses__()))

    schemas = DOCUMENT["components"]["schemas"]
    strict = {name for name, each in schemas.items() if each.get("additionalProperties") is False}
    # A policy is shown as it was written, and is written under the same name.
    assert strict == (below(Request) & set(schemas)) | {"PolicyRule", "Quota"}


@EVERY
def test_the_reply_comes_with_its_status_and_request_id(command: Any) -> None:
    """What the daemon logs is found by it."""
    answer = operation(command)["responses"][str(command.status)]
    assert answer["content"]["application/json"]["schema"]["$ref"].endswith(f"/{command.reply.__name__}")
    assert all("X-Request-Id" in resolved(each)["headers"] for each in operation(command)["responses"].values())


@EVERY
def test_every_error_of_the_row_is_a_problem_document_with_its_code(command: Any) -> None:
    """A client decides by the code, so that it has to know which there are."""
    told: dict[str, int] = {}
    for status, each in operation(command)["responses"].items():
        if status not in {str(command.status), "304", *map(str, HTTP_TITLES)} - {"400"}:
            _, codes = resolved(each)["content"]["application/problem+json"]["schema"]["allOf"]
            told |= dict.fromkeys(codes["properties"]["code"]["enum"], int(status))
    assert told == {error.code: error.status for error in (*command.errors, *OVER_HTTP)}


def test_every_code_has_an_example_that_is_a_problem_document() -> None:
    """Its description is the advice that `scaivaultctl explain` gives."""
    examples = DOCUMENT["components"]["examples"]
    assert set(examples) == {error.code for error in WIRE_ERRORS}
    real = msgspec.to_builtins(problem(NotFound("..."), examples["not_found"]["value"]["request_id"]))
    assert examples["not_found"]["value"] == real
    assert examples["not_found"]["description"] == NotFound.remedy


@EVERY
def test_what_changes_something_takes_an_idempotency_key(command: Any) -> None:
    """And what only reads, or can be repeated as it is, does not."""
    assert ("Idempotency-Key" in parameters(command, "header")) == (command.method in {"POST", "PATCH", "PUT"})


@EVERY
def test_what_can_wait_is_told_so_in_the_query_too(command: Any) -> None:
    """`?wait=` is there for those who send no body."""
    waits = bool({"wait_seconds", "wait_end_seconds"} & set(command.request.__struct_fields__))
    assert ("wait" in parameters(command, "query")) == waits
    if waits:
        wait = parameters(command, "query")["wait"]
        assert (wait["schema"]["minimum"], wait["schema"]["maximum"]) == (0, 60)
        is_for_the_end = "wait_end_seconds" in command.request.__struct_fields__
        assert ("`wait_end_seconds`" in wait["description"]) == is_for_the_end


@EVERY
def test_fields_of_the_head_are_told_where_they_are(command: Any) -> None:
    """Generated clients offer no others, and hand no others on."""
    asked = set(parameters(command, "header")) - {"Idempotency-Key"}
    answers = {
        status: set(resolved(each).get("headers", ())) for status, each in operation(command)["responses"].items()
    }
    reads = command.method == "GET" and command.permission != "key.read"
    assert asked == {"X-Request-Id", "If-None-Match" if reads else "If-Match"}
    assert ("304" in answers) == ("ETag" in answers[str(command.status)]) == reads
    assert ("Location" in answers[str(command.status)]) == (command.status in (201, 202))
    assert ("Retry-After" in answers[str(command.status)]) == (command.status == 202)
    assert "WWW-Authenticate" in answers["401"]
    assert "Retry-After" in answers["429"] & answers["503"]


def test_what_only_http_gets_wrong_is_told_with_every_command() -> None:
    """Clients are made of operations one by one."""
    for command in COMMANDS:
        answers = operation(command)["responses"]
        assert {"408", "413", "415", "417", "431", "505"} <= set(answers)
        assert "application/problem+json" in resolved(answers["413"])["content"]


def test_how_the_daemon_is_may_be_told_under_503() -> None:
    """The reply is whole: it says what is wrong."""
    content = DOCUMENT["paths"]["/v1/sys/health"]["get"]["responses"]["503"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith("/HealthReply")
    assert "application/problem+json" in content


def test_everything_but_the_open_pages_wants_a_token() -> None:
    """What a probe or a generator of clients needs first is there without one."""
    assert DOCUMENT["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert DOCUMENT["security"] == [{"token": []}]
    without = {path for path, each in all_operations() if each.get("security", DOCUMENT["security"]) == []}
    assert without == OPEN_PATHS == {"/livez", "/readyz", "/openapi.json", "/asyncapi.json", "/docs"}
    assert all("security" not in each for path, each in all_operations() if path not in OPEN_PATHS)


def test_probes_answer_with_a_status_and_say_when_they_do_not() -> None:
    """What watches the daemon reads the code alone, but people read the body."""
    assert set(DOCUMENT["paths"]["/livez"]["get"]["responses"]) == {"200"}
    answers = DOCUMENT["paths"]["/readyz"]["get"]["responses"]
    assert set(answers) == {"200", "503"}
    assert all(each["content"]["application/json"]["example"] == {"status": "ok"} for each in answers.values())
    assert "application/problem+json" in answers["503"]["content"]


def test_names_of_operations_are_unique_and_their_tags_are_declared() -> None:
    """Generators of clients make functions of the one and files of the other."""
    names = [each["operationId"] for _, each in all_operations()]
    assert len(set(names)) == len(names)
    assert {tag for _, each in all_operations() for tag in each["tags"]} == {each["name"] for each in DOCUMENT["tags"]}


def test_the_document_is_plain_json() -> None:
    """It is served as it is."""
    assert msgspec.json.decode(msgspec.json.encode(DOCUMENT)) == DOCUMENT
