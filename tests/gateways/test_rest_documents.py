"""Path, query and body become the document that NATS callers send."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from scaivaultd.api import commands
from scaivaultd.api import messages as m
from scaivaultd.api.commands import Command
from scaivaultd.api.dispatch import BODY_MAX, decode
from scaivaultd.gateways.rest_documents import Documents
from scaivaultd.model.errors import InvalidRequest

Query = list[tuple[str, str]]
AnyCommand = Command[Any, Any]


def document(command: AnyCommand, members: dict[str, str], query: Query, body: bytes = b"") -> Any:
    return json.loads(Documents(command).document(members, query, body))


@pytest.mark.parametrize(
    ("command", "query", "expected"),
    [
        (commands.LIST_ORDERS, [("status", "invalid"), ("limit", "20")], {"status": "invalid", "limit": 20}),
        (commands.LIST_ORDERS, [("limit", "020")], {"limit": "020"}),
        (commands.LIST_ORDERS, [("limit", "1e9")], {"limit": "1e9"}),
        (commands.LIST_ORDERS, [("limit", "")], {"limit": ""}),
        (commands.LIST_ORDERS, [("limit", "9" * 400)], {"limit": "9" * 400}),
        (commands.LIST_ORDERS, [("cursor", "12")], {"cursor": "12"}),
        (commands.LIST_ORDERS, [("nonsense", "1")], {"nonsense": "1"}),
        (commands.GET_PEM, [("version", "2")], {"version": 2}),
        (commands.DEACTIVATE_ACCOUNT, [("confirm", "7"), ("wait", "2.5")], {"confirm": "7", "wait_seconds": 2.5}),
        (commands.ISSUE, [("wait", "5")], {"wait_end_seconds": 5}),
        (commands.GET_ORDER, [("wait", "5")], {"wait_end_seconds": 5}),
        (commands.ISSUE, [("wait_seconds", "5")], {"wait_seconds": 5}),
        (commands.LIST_ORDERS, [("wait", "5")], {"wait": "5"}),
    ],
)
def test_query_members_are_typed_by_the_request(command: AnyCommand, query: Query, expected: Any) -> None:
    """What does not fit stays text: the dispatcher refuses it in the words that NATS callers know."""
    assert document(command, {}, query) == expected


@pytest.mark.parametrize(
    ("members", "query", "body", "expected"),
    [
        ({"id": "c"}, [], b"", {"id": "c"}),
        ({"id": "c"}, [], b'{"auto_renew":true}', {"id": "c", "auto_renew": True}),
        ({"id": "c"}, [], b'{"id":"c"}', {"id": "c"}),
        ({"id": "c"}, [("wait", "1")], b'{"wait_seconds":1.0}', {"id": "c", "wait_seconds": 1}),
    ],
)
def test_all_three_are_one_document(members: Any, query: Query, body: bytes, expected: Any) -> None:
    """Saying a thing twice is no contradiction."""
    assert document(commands.UPDATE_CERTIFICATE, members, query, body) == expected


@pytest.mark.parametrize(
    ("members", "query", "body", "pointer"),
    [
        ({"id": "c"}, [], b'{"id":"d"}', "/id"),
        ({"id": "c"}, [], b'{"id":null}', "/id"),
        ({}, [("wait", "1")], b'{"wait_seconds":2}', "/wait_seconds"),
        ({}, [("wait", "1"), ("wait_seconds", "1")], b"", "/wait_seconds"),
        ({}, [("wait", "1"), ("wait", "2")], b"", "/wait_seconds"),
        ({}, [("wait", "60s")], b"", "/wait_seconds"),
        ({}, [("wait", "")], b"", "/wait_seconds"),
        ({}, [("auto_renew", "true")], b"", "/auto_renew"),
        ({}, [("a/b", "x")], b"", "/a~1b"),
    ],
)
def test_two_values_or_the_wrong_place_are_refused(members: Any, query: Query, body: bytes, pointer: str) -> None:
    """A proxy that guards the path, and a handler that obeys the body, must never mean two things."""
    with pytest.raises(InvalidRequest) as caught:
        document(commands.UPDATE_CERTIFICATE, members, query, body)
    assert [each.pointer for each in caught.value.fields] == [pointer]


def test_a_wait_that_is_no_number_is_explained_as_it_was_written() -> None:
    """People type `?wait=60s`; nobody types `wait_end_seconds`."""
    with pytest.raises(InvalidRequest, match=r"\?wait=60"):
        document(commands.ISSUE, {}, [("wait", "60s")])


def test_a_secret_does_not_go_into_a_url() -> None:
    """URLs are in every log on the way."""
    with pytest.raises(InvalidRequest, match="JSON body"):
        document(commands.PUT_SECRET, {"path": "a"}, [("value", "canary")])


def test_a_member_of_the_path_is_not_in_the_query_too() -> None:
    """`/certificates/c?id=d` would be two certificates."""
    with pytest.raises(InvalidRequest, match="two values"):
        document(commands.GET_CERTIFICATE, {"id": "c"}, [("id", "d")])


@pytest.mark.parametrize("body", [b"no json", b"[]", b"null", b'"x"', b'{"a":1}{', b"\xff", b"[" * 100_000, b"{" * 9])
def test_a_body_that_is_no_object_is_left_to_the_dispatcher(body: bytes) -> None:
    """One place says why, in one way."""
    result = Documents(commands.UPDATE_CERTIFICATE).document({"id": "c"}, [], body)
    assert result == body
    with pytest.raises(InvalidRequest):
        decode(result, commands.UPDATE_CERTIFICATE.request)


def test_too_large_a_body_is_not_even_opened() -> None:
    """The dispatcher refuses it unread."""
    body = b'{"id":"' + b"c" * BODY_MAX + b'"}'
    assert Documents(commands.UPDATE_CERTIFICATE).document({"id": "c"}, [], body) == body


def test_booleans_and_lists_are_read_where_the_request_has_them() -> None:
    """No row needs them in its query yet; the next one may."""

    class Wanted(m.Request, frozen=True):
        flag: bool | None = None
        numbers: list[int] | None = None
        names: list[str] | None = None

    row = msgspec.structs.replace(commands.LIST_ORDERS, request=Wanted)
    query = [("flag", "true"), ("numbers", "1"), ("numbers", "2"), ("names", "7")]
    assert document(row, {}, query) == {"flag": True, "numbers": [1, 2], "names": ["7"]}
    assert document(row, {}, [("flag", "yes")]) == {"flag": "yes"}
