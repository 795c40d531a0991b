"""`scaivaultctl status`, `secret` and `call`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET: dict[str, Any] = {
    "path": "infra/aws",
    "version": 2,
    "created_at": "2026-11-01T00:00:00Z",
    "updated_at": "2026-11-02T00:00:00Z",
    "used_by": [],
}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        yield found


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("degraded", 0), ("down", 1), ("sealed", 1)])
def test_the_state_is_the_first_line_and_the_exit_code(tool: ctl.Tool, status: str, code: int) -> None:
    """For people and for monitoring."""
    part = {"name": "nats", "status": "degraded", "detail": "connecting"}
    tool.api.replies["sys.health"] = {"status": status, "components": [part]}
    ended = tool("status")
    assert (ended.code, ended.out) == (code, f"{status}\nPART  STATUS    DETAIL\nnats  degraded  connecting\n")


def test_whether_it_lives_is_asked_without_a_token(tool: ctl.Tool) -> None:
    """A container's health check has none, and a sealed daemon lives: to restart it would not help."""
    tool.api.raw = b'HTTP/1.0 200 OK\r\n\r\n{"status":"ok"}'
    ended = tool("status", "--live")
    assert (ended.code, ended.out, tool.api.asked) == (0, "live\n", [])
    assert "Authorization" not in tool.api.headers[0]
    assert tool("status", "--live", "--json").json == {"status": "live"}


def test_what_does_not_live_is_told_apart_from_what_is_not_well(tool: ctl.Tool) -> None:
    """The one is restarted, the other is not."""
    assert tool("status", "--live", SCAIVAULT_ADDR=f"unix:{tool.socket}.gone").code == 8


class TestSecret:
    def test_its_value_comes_by_standard_input(self, tool: ctl.Tool) -> None:
        """Many lines are one value; the end of the last one is the shell's."""
        tool.api.replies["secrets.put"] = SECRET
        ended = tool("secret", "put", "infra/aws", given="one\ntwo\n")
        assert ended.out == "infra/aws: version 2\n"
        assert tool.last == ("secrets.put", {"path": "infra/aws", "value": "one\ntwo"})

    @pytest.mark.parametrize("value", ["", "\n", b"\xff"])
    def test_nothing_is_no_value(self, tool: ctl.Tool, value: str | bytes) -> None:
        """A pipe whose left side failed must not overwrite a secret."""
        assert tool("secret", "put", "infra/aws", given=value).code == 2
        assert tool.api.asked == []

    def test_a_path_with_odd_letters_goes_as_it_is(self, tool: ctl.Tool) -> None:
        """The daemon says what is wrong with it, not another path."""
        tool.api.replies["secrets.put"] = SECRET
        tool("secret", "put", "infra/a b?c#d%2f", given="x")
        assert tool.last[1]["path"] == "infra/a b?c#d%2f"

    def test_they_are_listed_with_who_uses_them(self, tool: ctl.Tool) -> None:
        """Before one is changed or deleted."""
        tool.api.replies["secrets.list"] = {"items": [{**SECRET, "used_by": ["dns_1", "dns_2"]}], "next_cursor": None}
        assert tool("secret", "ls", "infra/").out.splitlines() == [
            "PATH       VERSION  CHANGED     USED BY",
            "infra/aws  2        2026-11-02  dns_1, dns_2",
        ]
        assert tool.last[1]["prefix"] == "infra/"

    def test_none_is_deleted_unasked(self, tool: ctl.Tool) -> None:
        """Nobody can read it back."""
        tool.api.replies["secrets.delete"] = {"path": "infra/aws", "used_by": ["dns_1"]}
        assert tool("secret", "rm", "infra/aws").code == 2
        assert tool.api.asked == []
        assert tool("secret", "rm", "infra/aws", "--yes").out == "infra/aws: deleted; still named by dns_1\n"


class TestCall:
    def test_any_command_is_called_by_its_name(self, tool: ctl.Tool) -> None:
        """The way out where there is no verb; the body may come by standard input, as secrets must."""
        tool.api.replies["auth.can_i"] = {
            "allowed": False,
            "principal": "unix:0",
            "action": "cert.issue",
            "policy": None,
            "rule": None,
            "reasons": [],
        }
        ended = tool("call", "auth.can_i", "-", given='{"action": "cert.issue", "domains": ["a.example"]}')
        assert (ended.code, ended.json["allowed"]) == (0, False)
        assert tool.last == ("auth.can_i", {"action": "cert.issue", "domains": ["a.example"]})

    def test_members_go_into_the_path_and_the_query(self, tool: ctl.Tool) -> None:
        """As the table says."""
        tool.api.replies["tokens.list"] = {"items": [], "next_cursor": None}
        tool("call", "tokens.list", '{"include_ended": true, "limit": 5}')
        assert tool.last[1] == {"include_ended": "true", "limit": "5"}

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["tokens.lst"], "did you mean 'tokens.list'?"),
            (["zzzzzz"], "scaivaultctl commands"),
            (["tokens.list", "{"], "not JSON"),
            (["tokens.list", "[]"], "JSON object"),
            (["tokens.get", "{}"], "'id'"),
            (["tokens.get"], "'id'"),
        ],
    )
    def test_what_cannot_be_called_is_a_usage_error(self, tool: ctl.Tool, arguments: list[str], told: str) -> None:
        """Before anything is sent."""
        ended = tool("call", *arguments)
        assert (ended.code, ended.out, tool.api.asked) == (2, "", [])
        assert told in ended.err
