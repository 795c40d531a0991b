"""From a method and a path to a row of the table, and no other way."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from scaivaultd.api import commands
from scaivaultd.api.commands import COMMANDS, Command
from scaivaultd.gateways.rest_routes import Routes, read_target

ROUTES = Routes(COMMANDS)


def found(method: str, path: str) -> tuple[str, dict[str, str]] | None:
    resource = ROUTES.find(read_target(path).segments)
    command = resource.command(method) if resource else None
    return (command.name, dict(resource.members(command))) if resource and command else None


@pytest.mark.parametrize(
    ("method", "path", "name", "members"),
    [
        ("GET", "/v1/pki/acme/orders/o", "pki.acme.orders.get", {"order_id": "o"}),
        ("HEAD", "/v1/pki/acme/orders/o", "pki.acme.orders.get", {"order_id": "o"}),
        ("POST", "/v1/pki/acme/orders/o/cancel", "pki.acme.orders.cancel", {"order_id": "o"}),
        ("DELETE", "/v1/secrets/a/b/c", "secrets.delete", {"path": "a/b/c"}),
        ("PUT", "/v1/secrets/a", "secrets.put", {"path": "a"}),
        ("GET", "/v1/secrets", "secrets.list", {}),
        ("GET", "/v1/pki/dns-trace/*.example.org", "pki.dns_providers.trace", {"name": "*.example.org"}),
        ("GET", "/v1/pki/dns-trace/%2A.example.org", "pki.dns_providers.trace", {"name": "*.example.org"}),
        ("GET", "/v1/pki/dns-providers/my%20dns%C3%A4+1", "pki.dns_providers.get", {"id": "my dnsä+1"}),
    ],
)
def test_members_of_the_path_are_decoded_once(method: str, path: str, name: str, members: dict[str, str]) -> None:
    """A provider is also found by its name, and names hold blanks and letters of all alphabets."""
    assert found(method, path) == (name, members)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/pki/acme/orders/o/cancel"),
        ("POST", "/v1/pki/acme/orders/o"),
        ("POST", "/v1/pki/acme/orders/o/p/cancel"),
        ("PUT", "/v1/secrets"),
        ("GET", "/V1/sys/info"),
        ("HEAD", "/v1/pki/revoke"),
    ],
)
def test_what_is_not_in_the_table_is_nowhere(method: str, path: str) -> None:
    """Nothing is guessed."""
    assert found(method, path) is None


@pytest.mark.parametrize("slash", ["%2f", "%5c", "%5C"])
def test_other_spellings_of_a_slash_are_none(slash: str) -> None:
    """Secrets have paths: what a proxy takes for another path could walk round its rules."""
    with pytest.raises(ValueError, match="does not belong"):
        read_target(f"/v1/secrets/a{slash}b")


def test_a_slash_may_be_encoded_in_the_member_that_holds_some() -> None:
    """Clients that are generated from the OpenAPI document cannot help it; nowhere else is it part of a path."""
    resource = ROUTES.find(read_target("/v1/secrets/infra%2Faws/key").segments)
    assert resource is not None
    assert not resource.has_foreign_slash
    assert resource.members(commands.PUT_SECRET) == {"path": "infra/aws/key"}
    foreign = ROUTES.find(read_target("/v1/pki/acme/orders/a%2Fb").segments)
    assert foreign is not None
    assert foreign.has_foreign_slash
    assert ROUTES.find(read_target("/v1/secrets%2Fa").segments) is None


@pytest.mark.parametrize("path", ["a%2F..%2Fb", "a%2F%2Fb", "%2Fa", "a%2F", ".%2Fa", "%2F"])
def test_behind_an_encoded_slash_the_rules_are_the_same(path: str) -> None:
    """`..` is refused before anybody could follow it."""
    with pytest.raises(ValueError, match="behind an encoded slash"):
        read_target(f"/v1/secrets/{path}")


@pytest.mark.parametrize("path", ["/%61", "/%2e", "/%2E%2E", "/%7e", "/%2d", "/%39", "/a%00", "/a%7f", "/a%0A"])
def test_what_need_not_be_encoded_must_not_be(path: str) -> None:
    """RFC 3986 calls both spellings one; a proxy that compares text does not."""
    with pytest.raises(ValueError, match="does not belong"):
        read_target(path)


def test_the_query_is_read_in_order() -> None:
    """Lists are made by repetition."""
    assert read_target("/a?x=1&y=a+b%26&x=%C3%A4&z=").query == (("x", "1"), ("y", "a b&"), ("x", "ä"), ("z", ""))


@pytest.mark.parametrize("query", ["x", "x=%ff", "=1&y", "&".join(["x=1"] * 65)])
def test_a_query_that_is_none_is_refused(query: str) -> None:
    """Half of it would be another question."""
    with pytest.raises(ValueError, match="query"):
        read_target(f"/a?{query}")


def test_a_word_beats_a_member() -> None:
    """Whatever the order of the table."""
    any_row, word_row = (
        msgspec.structs.replace(commands.GET_ORDER, name=name, path=path)
        for name, path in (("any", "/v1/x/{order_id}"), ("word", "/v1/x/all"))
    )
    for rows in ([any_row, word_row], [word_row, any_row]):
        resource = Routes(rows).find(("v1", "x", "all"))
        assert resource is not None
        row = resource.command("GET")
        assert row is not None
        assert row.name == "word"


def test_two_rows_with_one_path_are_a_mistake_of_the_table() -> None:
    """One of them would never be served."""
    other = msgspec.structs.replace(commands.GET_ORDER, name="other", path="/v1/pki/acme/orders/{id}")
    with pytest.raises(ValueError, match=r"other and pki\.acme\.orders\.get"):
        Routes([commands.GET_ORDER, other])


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if each.status in (201, 202)], ids=lambda each: each.name
)
def test_whatever_is_made_can_be_found(command: Command[Any, Any]) -> None:
    """Location is derived: a new row that makes something needs one that shows it."""
    location = ROUTES.location(command, b'{"id":"i","order_id":"o"}')
    assert location is not None
    assert found("GET", location) is not None


def test_what_is_only_shown_or_changed_has_no_location() -> None:
    """It is where the caller has found it."""
    assert ROUTES.location(commands.GET_ORDER, b'{"order_id":"o"}') is None
    assert ROUTES.location(commands.UPDATE_ACCOUNT, b'{"id":"o"}') is None
