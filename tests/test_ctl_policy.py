"""`scaivaultctl policy`: files that are shown, compared, tried and applied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator

WEB = """
[[policy]]
name = "web-team"
principals = ["token:web-ci", "unix:33"]

  [[policy.rule]]
  actions = ["cert.issue", "cert.read"]
  domains = ["www.example.net", "*.web.example.net"]
  accounts = ["le"]
  quota = { issue_per_day = 50 }

  [[policy.rule]]
  effect = "deny"
  roles = ["issuer"]
  domains = ["admin.web.example.net"]
"""
OTHER = '[[policy]]\nname = "other"\nprincipals = ["unix:34"]\n'
REPLY: dict[str, Any] = {
    "name": "web-team",
    "origin": "api",
    "principals": ["token:web-ci", "unix:33"],
    "rules": [
        {
            "actions": ["cert.issue", "cert.read"],
            "domains": ["www.example.net", "*.web.example.net"],
            "accounts": ["le"],
            "quota": {"issue_per_day": 50},
        },
        {"effect": "deny", "roles": ["issuer"], "domains": ["admin.web.example.net"]},
    ],
    "created_at": "2026-11-01T00:00:00Z",
}


EXAMPLE = Path(__file__).parent.parent / "config/examples/policies.toml"


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies["policies.list"] = {"items": [REPLY], "next_cursor": None}
        found.api.replies["policies.get"] = REPLY
        found.api.replies["policies.put"] = REPLY
        yield found


def puts(tool: ctl.Tool) -> list[str]:
    return [members["name"] for name, members in tool.api.asked if name == "policies.put"]


def test_policies_are_listed_with_whom_they_are_for(tool: ctl.Tool) -> None:
    """And where they come from: those of files are changed there."""
    assert tool("policy", "ls").out.splitlines() == [
        "NAME      ORIGIN  RULES  FOR",
        "web-team  api     2      token:web-ci, unix:33",
    ]


class TestApply:
    def test_a_policy_is_written_as_the_file_has_it(self, tool: ctl.Tool) -> None:
        """Nothing added, nothing lost."""
        tool.api.replies["policies.list"] = {"items": [], "next_cursor": None}
        ended = tool("policy", "apply", "-f", "-", given=WEB)
        assert (ended.code, ended.out) == (0, "web-team: new\n")
        assert tool.last == ("policies.put", {key: REPLY[key] for key in ("name", "principals", "rules")})

    def test_what_is_there_already_is_not_written_again(self, tool: ctl.Tool) -> None:
        """Configuration management applies the same file every half hour."""
        assert tool("policy", "apply", "-f", "-", given=WEB).out == "web-team: unchanged\n"
        assert puts(tool) == []

    def test_what_goes_without_saying_may_be_said(self, tool: ctl.Tool) -> None:
        """The daemon leaves defaults out of what it answers."""
        said = 'effect = "allow"\n  wildcards = false\n  ips = []\n  quota'
        assert tool("policy", "apply", "-f", "-", given=WEB.replace("quota", said)).out == "web-team: unchanged\n"

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_what_is_shown_can_be_applied_and_means_the_same(self, tool: ctl.Tool, options: list[str]) -> None:
        """Policies are copied from one daemon to another."""
        shown = tool("policy", "show", "web-team", *options).out
        assert tool("policy", "apply", "-f", "-", given=shown).out == "web-team: unchanged\n"

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("50", "60"),
            ('["le"]', '["le", "le2"]'),
            ("  accounts", "#"),
            ('"unix:33"', '"unix:34"'),
            ('"deny"', '"allow"'),
            ("quota", "wildcards = true\n  quota"),
            ('roles = ["issuer"]', 'roles = ["viewer"]'),
        ],
    )
    def test_every_difference_is_seen_shown_and_written(self, tool: ctl.Tool, before: str, after: str) -> None:
        """A rule that is thought to be there and is not is a hole."""
        changed = WEB.replace(before, after)
        tried = tool("policy", "apply", "-f", "-", "--dry-run", given=changed)
        assert tried.out.startswith("web-team: changed (dry run)\n--- now\n+++ then\n")
        assert puts(tool) == []
        assert tool("policy", "apply", "-f", "-", given=changed).out == "web-team: changed\n"
        assert puts(tool) == ["web-team"]

    def test_json_tells_the_same(self, tool: ctl.Tool) -> None:
        """A list may hold several policies, as `policy ls --json` prints them."""
        given = json.dumps([REPLY, {"name": "other", "principals": ["unix:34"], "rules": []}])
        assert tool("policy", "apply", "-f", "-", "--json", given=given).json == [
            {"name": "web-team", "change": "unchanged"},
            {"name": "other", "change": "new"},
        ]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (WEB + '[[policy]]\nname = "x"\nprincipal = ["unix:1"]\n', "/policy/1/principal"),
            (WEB.replace("domains", "domain"), "/policy/0/rule/0/domain"),
            (WEB.replace("cert.issue", "cert.isue"), "did you mean 'cert.issue'"),
            (WEB + WEB, "two policies"),
            (WEB + '[[polcy]]\nname = "x"\n', "polcy"),
            ("", "has no policies"),
            ('state_dir = "/x"', "has no policies"),
            ("[[policy]]\nprincipals = []", "has no policies"),
            ("[1]", "has no policies"),
            ('["web"]', "has no policies"),
            ("{", "neither TOML nor JSON"),
            ('[[policy]]\nname = "x"\nrule = 1', "/policy/0/rule"),
            ('[[policy]]\nname = "x"\nrules = [2026-01-01]', "/policy/0/rule/0"),
            (b"\xff", "neither TOML nor JSON"),
        ],
    )
    def test_nothing_is_written_of_a_file_with_a_mistake(self, tool: ctl.Tool, text: str | bytes, told: str) -> None:
        """Half of a set of policies may allow what the other half denies."""
        tool.api.replies["policies.list"] = {"items": [], "next_cursor": None}
        for verb in (["apply"], ["apply", "--dry-run"], ["test"]):
            ended = tool("policy", *verb, "-f", "-", given=text)
            assert (ended.code, ended.out, puts(tool)) == (2, "", [])
            assert told in ended.err

    def test_where_the_daemon_refuses_it_is_told_how_far_it_came(self, tool: ctl.Tool) -> None:
        """Those before are in force already."""
        tool.api.replies["policies.list"] = {"items": [], "next_cursor": None}
        tool.api.replies["policies.put"] = [REPLY, "conflict"]
        ended = tool("policy", "apply", "-f", "-", given=WEB + OTHER)
        assert (ended.code, ended.out) == (5, "")
        assert ended.err.splitlines()[-1] == "  This was policy other; before it, all is done: web-team."


class TestDeletion:
    def test_it_is_not_done_unasked(self, tool: ctl.Tool) -> None:
        """A policy may be all that denies something."""
        tool.api.replies["policies.delete"] = {"name": "web-team"}
        assert tool("policy", "rm", "web-team").code == 2
        assert tool.last[0] == "policies.get"
        assert tool("policy", "rm", "web-team", "--yes").out == "web-team: deleted\n"
        assert tool.last == ("policies.delete", {"name": "web-team"})

    def test_what_is_not_there_is_told_before_anything_is_asked(self, tool: ctl.Tool) -> None:
        """Nobody types a name in vain."""
        tool.api.replies["policies.get"] = "not_found"
        assert tool("policy", "rm", "web-tam").code == 3


class TestTest:
    """`policy test`, which needs no daemon."""

    def asked(self, *question: str) -> ctl.Ended:
        return ctl.run("policy", "test", "-f", "-", *question, given=WEB, SCAIVAULT_ADDR="/nowhere/api.sock")

    def test_a_sound_file_is_ok(self) -> None:
        """In the pipeline of whoever keeps policies under version control."""
        ended = self.asked()
        assert (ended.code, ended.out) == (0, "web-team: 2 rules, ok\n")

    @pytest.mark.parametrize(
        ("question", "allowed"),
        [
            ("--as token:web-ci --domain www.example.net --account le", True),
            ("--as token:web-ci --domain a.web.example.net --domain www.example.net --account le", True),
            ("--as unix:33 --domain www.example.net --account le", True),
            ("--as unix:34 --domain www.example.net --account le", False),
            ("--as token:other --domain www.example.net --account le", False),
            ("--as token:web-ci --domain www.example.net --account other", False),
            ("--as token:web-ci --domain www.example.net", False),
            ("--as token:web-ci --domain admin.web.example.net --account le", False),
            ("--as token:web-ci --domain a.web.example.net --domain bank.example.net --account le", False),
            ("--as token:web-ci", False),
        ],
    )
    def test_a_question_is_answered_by_the_file_alone(self, question: str, allowed: bool) -> None:
        """Before it is applied; the exit code is the answer."""
        ended = self.asked("cert.issue", *question.split())
        assert ended.out.splitlines()[0].startswith("yes" if allowed else "no")
        assert ended.code == (0 if allowed else 4)
        assert self.asked("cert.issue", *question.split(), "--json").json["allowed"] is allowed

    def test_the_rule_is_named(self) -> None:
        """Why not is most of what people ask."""
        told = self.asked("cert.issue", "--as", "token:web-ci", "--domain", "admin.web.example.net").out
        assert told.startswith("no, by rule 2 of policy web-team\n  admin.web.example.net: ")

    @pytest.mark.parametrize(
        "question", ["", "--as foo", "--as unix:x", "--as unix:1 --key-type x", "--as unix:1 --domain a..b"]
    )
    def test_a_question_that_cannot_be_asked_is_a_usage_error(self, question: str) -> None:
        """It is not a no."""
        ended = self.asked("cert.issue", *question.split())
        assert (ended.code, ended.out) == (2, "")


@pytest.mark.parametrize(
    ("question", "allowed"),
    [
        ("cert.issue --as token:web-ci --domain *.web.example.net --account letsencrypt --challenge dns-01", True),
        ("cert.issue --as unix:33 --domain a.b.shop.example.net --account letsencrypt", True),
        ("key.read --as token:web-ci --domain web.example.net", True),
        ("cert.issue --as token:web-ci --domain web.example.net --account letsencrypt --key-type rsa-4096", False),
        ("cert.issue --as nats:DB/issuer --domain 10.20.1.1 --account inner-ca", True),
        ("cert.issue --as token:db-ci --domain a.db.example.net --account letsencrypt", False),
        ("key.read --as token:db-ci --domain a.db.example.net", False),
        ("secret.use --as token:db-ci --secret db/tsig", True),
        ("secret.write --as token:network --secret dns/route53", True),
        ("secret.write --as token:network --secret db/tsig", False),
        ("cert.read --as token:monitoring --domain a.db.example.net", True),
        ("key.read --as token:monitoring --domain a.db.example.net", False),
        ("secret.list --as token:monitoring", False),
        ("cert.issue --as unix:0 --domain www.bank.example.net", False),
    ],
)
def test_the_example_does_what_its_comments_say(question: str, allowed: bool) -> None:
    """It is where most policies begin."""
    ended = ctl.run("policy", "test", "-f", str(EXAMPLE), *question.split())
    assert ended.code == (0 if allowed else 4), ended.out + ended.err
    assert "A0000000" not in ended.out
