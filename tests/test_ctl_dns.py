"""`scaivaultctl dns`: providers as people type them, and the way of a challenge in 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "dnsp_01k2v7m0e8zq3c9x5w1r4t6y8b"
PROVIDER: dict[str, Any] = {
    "id": ID,
    "name": "prod",
    "type": "rfc2136",
    "zones": ["example.org"],
    "config": {"server": "ns1.example.org", "ttl": 60},
    "origin": "api",
    "status": "ready",
    "created_at": "2026-11-01T00:00:00Z",
    "updated_at": "2026-11-01T00:00:00Z",
}
SECRET = {
    "path": "dns/prod/api_token",
    "version": 1,
    "created_at": "2026-11-01T00:00:00Z",
    "updated_at": "2026-11-01T00:00:00Z",
    "used_by": [],
}
CANARY = "canary-of-the-token"


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        for verb in ("create", "get", "update"):
            found.api.replies[f"pki.dns_providers.{verb}"] = PROVIDER
        found.api.replies["secrets.put"] = SECRET
        yield found


def add(tool: ctl.Tool, *arguments: str, kind: str = "rfc2136", given: str | None = None) -> ctl.Ended:
    return tool("dns", "provider", "add", "prod", "--type", kind, *arguments, given=given)


class TestSettings:
    @pytest.mark.parametrize(
        ("typed", "member", "value"),
        [
            ("ttl=5", "ttl", 5),
            ("polling_interval=0.5", "polling_interval", 0.5),
            ("follow_cname=false", "follow_cname", False),
            ("propagation=quorum", "propagation", "quorum"),
            ("propagation_resolvers=192.0.2.1, 192.0.2.2:53", "propagation_resolvers", ["192.0.2.1", "192.0.2.2:53"]),
            ('propagation_resolvers=["192.0.2.1"]', "propagation_resolvers", ["192.0.2.1"]),
            ("challenge_alias=a.example,b", "challenge_alias", "a.example,b"),
        ],
    )
    def test_a_value_becomes_what_the_kind_wants(self, tool: ctl.Tool, typed: str, member: str, value: Any) -> None:
        """Nobody writes JSON in a shell."""
        assert add(tool, "--set", "server=ns1.example.org", "--set", typed).code == 0
        assert tool.last[1]["config"][member] == value

    @pytest.mark.parametrize(
        ("typed", "told"),
        [
            (["--set", "ttl=soon"], "Expected `int`"),
            (["--set", "tll=5"], "did you mean 'ttl'?"),
            (["--set", "ttl"], "KEY=VALUE"),
            (["--set", "tsig_secret_path=a/b"], "--secret tsig_secret=REFERENCE"),
            (["--secret", "api_token=a/b"], "it has: tsig_secret, tsig_keyfile"),
            (["--set", "propagation=sometimes"], "--set propagation=sometimes"),
            ([], "--set server=VALUE"),
        ],
    )
    def test_what_the_kind_would_refuse_is_refused_before_anything_is_stored(
        self, tool: ctl.Tool, typed: list[str], told: str
    ) -> None:
        """With what it may have been."""
        ended = add(tool, *typed)
        assert (ended.code, ended.out, tool.api.asked) == (2, "", [])
        assert told in ended.err

    def test_maps_are_given_member_by_member(self, tool: ctl.Tool) -> None:
        """As the ninety services behind lexicon want them."""
        arguments = ("--set", "lexicon_provider=gandi", "--set", "options.api_protocol=rest")
        assert add(tool, *arguments, "--secret", "option.auth_token=a/b", kind="lexicon").code == 0
        config = tool.last[1]["config"]
        assert (config["options"], config["option_paths"]) == ({"api_protocol": "rest"}, {"auth_token": "a/b"})

    def test_of_a_kind_that_is_not_here_the_daemon_judges(self, tool: ctl.Tool) -> None:
        """A daemon elsewhere may have other plugins."""
        ended = add(tool, "--set", "size=5", "--set", "name=x", "--secret", "key=a/b", kind="rfc2137")
        assert ended.code == 0
        assert tool.last[1]["config"] == {"size": 5, "name": "x", "key_path": "a/b"}
        assert "did you mean rfc2136?" in ended.err


class TestSecrets:
    def test_a_reference_is_only_named(self, tool: ctl.Tool) -> None:
        """The secret is there already."""
        add(tool, "--secret", "api_token=infra/token", kind="hetzner")
        assert [name for name, _ in tool.api.asked] == ["pki.dns_providers.create"]
        assert tool.last[1]["config"] == {"api_token_path": "infra/token"}

    @pytest.mark.parametrize("source", ["stdin", "file"])
    def test_a_secret_that_is_given_goes_into_the_store_first(
        self, tool: ctl.Tool, tmp_path: Path, source: str
    ) -> None:
        """And into nothing else: not the arguments, not the answer."""
        (tmp_path / "token").write_text(f"{CANARY}\n")
        value = "-" if source == "stdin" else f"@{tmp_path / 'token'}"
        ended = add(tool, "--secret", f"api_token={value}", kind="hetzner", given=f"{CANARY}\n")
        assert tool.api.asked[0] == ("secrets.put", {"path": "dns/prod/api_token", "value": CANARY})
        assert tool.last[1]["config"] == {"api_token_path": "dns/prod/api_token"}
        assert CANARY not in ended.out + ended.err

    def test_several_come_a_line_each(self, tool: ctl.Tool) -> None:
        """From a password manager, by a pipe."""
        secrets = ("--secret", "access_key_id=-", "--secret", "secret_access_key")
        assert add(tool, *secrets, kind="aws_route53", given="one\ntwo\n").code == 0
        assert [members["value"] for name, members in tool.api.asked if name == "secrets.put"] == ["one", "two"]
        assert add(tool, *secrets, kind="aws_route53", given="one\n").code == 2

    def test_one_that_stays_behind_is_told(self, tool: ctl.Tool) -> None:
        """The provider was refused, the secret is stored."""
        tool.api.replies["pki.dns_providers.create"] = "conflict"
        ended = add(tool, "--secret", "api_token=-", kind="hetzner", given=CANARY)
        assert ended.code == 5
        assert "secret rm dns/prod/api_token" in ended.err

    def test_what_is_missing_is_asked_for_on_a_terminal(self, tool: ctl.Tool) -> None:
        """A first provider needs no manual; what is typed is not seen."""
        arguments = ("dns", "provider", "add", "prod", "--type", "hetzner")
        answers = [("api_token", f"{CANARY}\n")]
        ended = ctl.on_terminal(*arguments, answers=answers, SCAIVAULT_ADDR=f"unix:{tool.socket}")
        assert ended.code == 0
        assert tool.api.asked[0] == ("secrets.put", {"path": "dns/prod/api_token", "value": CANARY})
        assert CANARY not in ended.out

    def test_a_dry_run_stores_nothing_and_asks_nothing(self, tool: ctl.Tool) -> None:
        """Not even the secret."""
        ended = add(tool, "--secret", "api_token=-", "--dry-run", "--json", kind="hetzner", given=CANARY)
        assert (ended.code, tool.api.asked, CANARY in ended.out) == (0, [], False)
        assert ended.json["request"]["config"] == {"api_token_path": "dns/prod/api_token"}


class TestUpdate:
    def test_what_is_not_named_stays(self, tool: ctl.Tool) -> None:
        """The daemon replaces settings as a whole; the tool keeps them."""
        ended = tool("dns", "provider", "update", "prod", "--set", "port=5353", "--unset", "ttl")
        assert ended.code == 0
        assert tool.last == (
            "pki.dns_providers.update",
            {"id": ID, "config": {"server": "ns1.example.org", "port": 5353}},
        )

    def test_the_zones_alone_leave_the_settings_alone(self, tool: ctl.Tool) -> None:
        """Nothing that was not asked for is sent."""
        tool("dns", "provider", "update", "prod", "--zone", "example.net")
        assert tool.last[1] == {"id": ID, "zones": ["example.net"]}

    @pytest.mark.parametrize("arguments", [[], ["--unset", "port"]])
    def test_nothing_to_do_is_wrong_usage(self, tool: ctl.Tool, arguments: list[str]) -> None:
        """A setting that is not there may be a mistyped one."""
        assert tool("dns", "provider", "update", "prod", *arguments).code == 2
        assert [name for name, _ in tool.api.asked if name.endswith("update")] == []


def test_none_is_deleted_unasked(tool: ctl.Tool) -> None:
    """Orders would fail."""
    tool.api.replies["pki.dns_providers.delete"] = {"id": ID}
    assert tool("dns", "provider", "rm", "prod").code == 2
    assert tool("dns", "provider", "rm", "prod", "--yes").out == "prod: deleted\n"
    assert tool.last == ("pki.dns_providers.delete", {"id": ID})


VERDICT = {"server": "ns2.example.org", "address": "2001:db8::53", "answer": "absent", "detail": "NOERROR, no value"}


def report(ok: bool) -> dict[str, Any]:
    step = {"name": "visible", "status": "ok" if ok else "failed", "seconds": 60.0, "detail": "one server lags " * 12}
    return {
        "id": ID,
        "name": "prod",
        "ok": ok,
        "record_name": "_acme-challenge.example.org",
        "value": "x",
        "zone": "example.org",
        "steps": [{**step, "verdicts": [VERDICT]}],
    }


class TestTest:
    @pytest.mark.parametrize("ok", [True, False])
    def test_each_step_is_told_and_the_exit_code_is_the_verdict(self, tool: ctl.Tool, ok: bool) -> None:
        """With the servers that disagree, where it fails."""
        tool.api.replies["pki.dns_providers.test"] = report(ok)
        ended = tool("dns", "provider", "test", "prod", "--domain", "example.org", "--timeout", "90")
        assert ended.code == (0 if ok else 1)
        assert ("2001:db8::53" in ended.out) is not ok
        assert max(map(len, ended.out.splitlines())) <= 80
        assert tool.last[1] == {"id": "prod", "domain": "example.org", "timeout_seconds": 90.0}

    def test_a_new_one_is_tried_at_once_if_asked(self, tool: ctl.Tool) -> None:
        """One JSON document, both answers."""
        tool.api.replies["pki.dns_providers.test"] = report(False)
        ended = add(tool, "--set", "server=ns1.example.org", "--test", "example.org", "--json")
        assert ended.code == 1
        assert (ended.json["provider"]["name"], ended.json["test"]["ok"]) == ("prod", False)


class TestTypes:
    def test_all_kinds_are_listed(self) -> None:
        """No daemon is needed."""
        assert {"rfc2136", "cloudflare", "exec"} <= {
            row["type"] for row in ctl.run("dns", "provider", "types", "--json").json
        }

    def test_the_settings_of_one_are_told_as_they_are_typed(self) -> None:
        """What it needs comes first."""
        told = ctl.run("dns", "provider", "types", "cloudflare").out
        assert "\n--secret api_token (required): reference to a secret\n" in told
        assert "\n--set ttl: integer, 0 to 86400; 60 unless given\n" in told
        assert told.index("api_token") < told.index("ttl")
        assert "\\n" not in told
        assert max(map(len, told.splitlines())) <= 80

    def test_an_unknown_one_is_told_with_what_looks_like_it(self) -> None:
        """`route53`."""
        ended = ctl.run("dns", "provider", "types", "route53")
        assert ended.code == 2
        assert "aws_route53" in ended.err


TRACE: dict[str, Any] = {
    "name": "www.example.org",
    "challenge_name": "_acme-challenge.www.example.org",
    "chain": ["www.acme.example.net"],
    "target": "www.acme.example.net",
    "zone": "acme.example.net",
    "name_servers": [
        {"name": "ns1.example.net", "addresses": ["192.0.2.1"]},
        {"name": "ns9.example.net", "error": "NXDOMAIN"},
    ],
    "answers": [
        {"server": "ns1.example.net", "address": "192.0.2.1", "answer": "absent", "detail": "NXDOMAIN"},
        {"server": "ns2.example.net", "address": "192.0.2.2", "answer": "refused", "detail": "REFUSED"},
    ],
    "dns_provider": {"id": ID, "name": "prod", "type": "rfc2136", "zone": "acme.example.net"},
    "candidates": [
        {"id": ID, "name": "prod", "type": "rfc2136", "zone": "acme.example.net"},
        {"id": "dnsp_2", "name": "old", "type": "exec", "zone": "example.net"},
    ],
    "caa": {"owner": "example.org", "records": [{"flags": 0, "tag": "issue", "value": "letsencrypt.org"}]},
    "problems": [],
}


class TestTrace:
    def test_the_whole_way_is_told_in_80_columns(self, tool: ctl.Tool) -> None:
        """CNAMEs, zone, servers with their verdicts, CAA, who would write."""
        tool.api.replies["pki.dns_providers.trace"] = TRACE
        ended = tool("dns", "trace", "www.example.org", "--provider", "prod")
        assert ended.code == 0
        assert tool.last == ("pki.dns_providers.trace", {"name": "www.example.org", "dns_provider": "prod"})
        assert ended.out.splitlines() == [
            "name                www.example.org",
            "challenge           _acme-challenge.www.example.org",
            "leads to            www.acme.example.net",
            "written at          www.acme.example.net",
            "zone                acme.example.net",
            "provider            prod (rfc2136), zone acme.example.net",
            "or                  old (exec), zone example.net",
            'CAA of example.org  0 issue "letsencrypt.org"',
            "",
            "NAME SERVER      ADDRESS    VERDICT  DETAIL",
            "ns1.example.net  192.0.2.1  ok       NXDOMAIN",
            "ns2.example.net  192.0.2.2  refused  REFUSED",
            "ns9.example.net  none       failed   NXDOMAIN",
            "Nothing stands in the way.",
        ]

    def test_what_stands_in_the_way_is_the_exit_code(self, tool: ctl.Tool) -> None:
        """For a script that looks before it orders."""
        problems = ["the CAA record of example.org does not permit letsencrypt.org " * 2]
        gone: dict[str, Any] = {
            "target": None,
            "zone": None,
            "dns_provider": None,
            "candidates": [],
            "caa": None,
            "answers": [],
        }
        tool.api.replies["pki.dns_providers.trace"] = {**TRACE, **gone, "name_servers": [], "problems": problems}
        ended = tool("dns", "trace", "www.example.org")
        assert ended.code == 1
        assert "! the CAA record" in ended.out
        assert "zone       not found" in ended.out
        assert max(map(len, ended.out.splitlines())) <= 80
