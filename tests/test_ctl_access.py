"""`scaivaultctl token`, `auth` and `audit`: what they ask of the daemon, and what they show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api.audit import GENESIS, link
from scaivaultd.model.access import AuditEntry
from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "scvt_Ab3dEf9h_" + "x" * 49
TOKEN: dict[str, Any] = {
    "id": "Ab3dEf9h",
    "name": "web-ci",
    "principal": "token:Ab3dEf9h",
    "status": "valid",
    "policies": ["issuer"],
    "scopes": [],
    "networks": ["10.0.0.0/8"],
    "created_at": "2026-11-01T00:00:00Z",
    "created_by": "unix:0",
    "expires_at": "2027-01-30T00:00:00Z",
    "nats": {"subject_root": "scaivault.v1.as.Ab3dEf9h", "inbox_prefix": "_INBOX_Ab3dEf9h"},
}
CREATED = {**TOKEN, "token": SECRET}
ASKED = {
    "name": "web-ci",
    "policies": [],
    "scopes": [],
    "networks": [],
    "lifetime": "90d",
}


def page(*items: Any, cursor: str | None = None) -> dict[str, Any]:
    return {"items": list(items), "next_cursor": cursor}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        yield found


class TestToken:
    def test_the_token_alone_is_on_standard_output(self, tool: ctl.Tool) -> None:
        """`SCAIVAULT_TOKEN=$(scaivaultctl token create ...)` is how it is used."""
        tool.api.replies["tokens.create"] = CREATED
        ended = tool("token", "create", "web-ci")
        assert (ended.code, ended.out) == (0, f"{SECRET}\n")
        assert "not shown again" in ended.err
        assert "token:web-ci" in ended.err, "without a policy it may do nothing: say so"
        assert SECRET not in ended.err
        assert tool.last == ("tokens.create", ASKED)

    def test_every_wish_reaches_the_daemon(self, tool: ctl.Tool) -> None:
        """--admin is another word for --policy admin."""
        tool.api.replies["tokens.create"] = CREATED
        wishes = ["--policy", "web", "--admin", "--scope", "cert.*", "--scope", "key.read", "--network", "10.0.0.0/8"]
        ended = tool("token", "create", "web-ci", *wishes, "--lifetime", "7d", "--json")
        assert tool.last[1] == {
            "name": "web-ci",
            "policies": ["web", "admin"],
            "scopes": ["cert.*", "key.read"],
            "networks": ["10.0.0.0/8"],
            "lifetime": "7d",
        }
        assert ended.json["token"] == SECRET
        assert ended.err == ""

    def test_admin_is_not_given_twice(self, tool: ctl.Tool) -> None:
        """The daemon would refuse it as a mistake."""
        tool.api.replies["tokens.create"] = CREATED
        tool("token", "create", "web-ci", "--admin", "--policy", "admin")
        assert tool.last[1]["policies"] == ["admin"]

    def test_the_list_has_every_page(self, tool: ctl.Tool) -> None:
        """A token that is not seen is not revoked."""
        other = {**TOKEN, "id": "Zz3dEf9h", "name": "a-much-longer-name", "policies": []}
        tool.api.replies["tokens.list"] = [page(TOKEN, cursor="more"), page(other)]
        assert tool("token", "ls").out.splitlines() == [
            "ID        NAME                STATUS  EXPIRES     POLICIES",
            "Ab3dEf9h  web-ci              valid   2027-01-30  issuer",
            "Zz3dEf9h  a-much-longer-name  valid   2027-01-30  -",
        ]
        assert [members for _, members in tool.api.asked] == [{"limit": "500"}, {"limit": "500", "cursor": "more"}]

    def test_ended_ones_are_listed_when_asked_for(self, tool: ctl.Tool) -> None:
        """Their names are taken for ever; an empty list is nothing on standard output."""
        tool.api.replies["tokens.list"] = page()
        assert tool("token", "ls", "--all").out == ""
        assert tool.last[1]["include_ended"] == "true"

    def test_one_is_shown_with_its_place_on_nats(self, tool: ctl.Tool) -> None:
        """Whoever writes a client looks here; lines that say nothing are left out."""
        tool.api.replies["tokens.get"] = TOKEN
        lines = tool("token", "show", "web-ci").out.splitlines()
        assert tool.last == ("tokens.get", {"id": "web-ci"})
        assert lines[-2:] == ["NATS subjects  scaivault.v1.as.Ab3dEf9h.>", "NATS inbox     _INBOX_Ab3dEf9h"]
        assert [line.split("  ")[0] for line in lines] == [
            "id",
            "name",
            "principal",
            "status",
            "policies",
            "networks",
            "created",
            "expires",
            "NATS subjects",
            "NATS inbox",
        ]

    def test_rotation_prints_the_new_secret_alone(self, tool: ctl.Tool) -> None:
        """And says until when the old one is good."""
        tool.api.replies["tokens.rotate"] = {**CREATED, "previous_until": "2026-11-02T00:00:00Z"}
        ended = tool("token", "rotate", "web-ci", "--overlap", "2h")
        assert ended.out == f"{SECRET}\n"
        assert "2026-11-02 00:00 UTC" in ended.err
        assert tool.last == ("tokens.rotate", {"id": "web-ci", "overlap": "2h"})

    def test_nothing_is_revoked_unasked(self, tool: ctl.Tool) -> None:
        """Without a terminal nobody can type the name: only --yes will do."""
        tool.api.replies["tokens.get"] = TOKEN
        tool.api.replies["tokens.revoke"] = {**TOKEN, "status": "revoked"}
        ended = tool("token", "revoke", "web-ci")
        assert (ended.code, ended.out) == (2, "")
        assert "--yes" in ended.err
        assert tool.last[0] == "tokens.get"
        assert "status         revoked" in tool("token", "revoke", "web-ci", "--yes").out
        assert tool.last == ("tokens.revoke", {"id": "Ab3dEf9h"})


WHO: dict[str, Any] = {
    "principal": "unix:33",
    "name": None,
    "policies": [],
    "scopes": [],
    "expires_at": None,
    "nats": None,
}


class TestAuth:
    def test_somebody_without_policies_is_told_what_that_means(self, tool: ctl.Tool) -> None:
        """The first question of everybody who is refused."""
        tool.api.replies["auth.whoami"] = WHO
        assert tool("auth", "whoami").out == "principal  unix:33\npolicies   none: nothing is allowed\n"

    def test_a_question_carries_all_that_was_said_and_nothing_else(self, tool: ctl.Tool) -> None:
        """The daemon's defaults are the daemon's."""
        tool.api.replies["auth.can_i"] = verdict(allowed=True)
        tool("auth", "can-i", "cert.issue")
        assert tool.last == ("auth.can_i", {"action": "cert.issue"})
        said = ["--domain", "a.example", "--domain", "b.example", "--as", "token:web-ci", "--account", "le"]
        tool("auth", "can-i", "cert.issue", *said, "--challenge", "dns-01", "--key-type", "rsa-2048", "--secret", "a/b")
        assert tool.last[1] == {
            "action": "cert.issue",
            "domains": ["a.example", "b.example"],
            "principal": "token:web-ci",
            "account_id": "le",
            "challenge_type": "dns-01",
            "key_type": "rsa-2048",
            "secret": "a/b",
        }

    def test_the_exit_code_is_the_answer(self, tool: ctl.Tool) -> None:
        """For scripts; why is told where it is no, or where it is asked for."""
        tool.api.replies["auth.can_i"] = verdict(allowed=True)
        assert tool("auth", "can-i", "cert.issue").out == "yes, by rule 2 of policy web\n"
        assert tool("auth", "can-i", "cert.issue", "--explain").out.splitlines()[1:] == ["  a.example: because"]
        tool.api.replies["auth.can_i"] = verdict(allowed=False, policy=None, rule=None)
        ended = tool("auth", "can-i", "cert.issue")
        assert (ended.code, ended.out) == (4, "no\n  a.example: because\n")
        ended = tool("auth", "can-i", "cert.issue", "--json")
        assert (ended.code, ended.json["allowed"]) == (4, False)


def verdict(**changes: Any) -> dict[str, Any]:
    reason = {"about": "a.example", "allowed": True, "detail": "because"}
    return {
        "principal": "unix:0",
        "action": "cert.issue",
        "policy": "web",
        "rule": 2,
        "reasons": [reason],
        **changes,
    }


def record(sequence: int, **changes: Any) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "at": f"2026-11-01T00:00:0{sequence}.123456Z",
        "principal": "unix:0",
        "action": "token.create",
        "object": "ops",
        "decision": "allow",
        "result": "ok",
        "request_id": "req_1",
        "source": "",
        "tenant": "default",
        "previous": "0" * 64,
        **changes,
    }


class TestAudit:
    def test_the_newest_records_come_last_and_over_pages(self, tool: ctl.Tool) -> None:
        """As `tail` does; a page of a filtered list may be empty and not the last one."""
        tool.api.replies["audit.list"] = [page(record(3), cursor="a"), page(cursor="b"), page(record(2), record(1))]
        told = tool("audit", "tail", "-n", "3", "--action", "token.create", "--principal", "unix:0", "--object", "ops")
        assert [line.split()[0] for line in told.out.splitlines()] == [
            "TIME",
            "2026-11-01T00:00:01Z",
            "2026-11-01T00:00:02Z",
            "2026-11-01T00:00:03Z",
        ]
        filters = {"action": "token.create", "principal": "unix:0", "object": "ops"}
        assert [members for _, members in tool.api.asked] == [
            {"limit": "3", **filters},
            {"limit": "2", "cursor": "a", **filters},
            {"limit": "2", "cursor": "b", **filters},
        ]

    def test_no_more_is_asked_for_than_is_shown(self, tool: ctl.Tool) -> None:
        """The log may have millions of records."""
        tool.api.replies["audit.list"] = [page(record(2), record(1), cursor="more")]
        assert len(tool("audit", "tail", "-n", "2").out.splitlines()) == 3

    def test_a_long_principal_does_not_push_the_rest_out_of_sight(self, tool: ctl.Tool) -> None:
        """Certificates name principals of a thousand characters."""
        tool.api.replies["audit.list"] = page(record(2, principal="mtls:" + "x" * 900), record(1))
        assert len(tool("audit", "tail").out.splitlines()[1]) < 110

    def test_a_broken_chain_is_a_failure(self, tool: ctl.Tool) -> None:
        """A timer runs it, and sees the code only."""
        sound: dict[str, Any] = {
            "is_sound": True,
            "records": 9,
            "head_sequence": 9,
            "head_hash": "f" * 64,
            "anchors": 2,
        }
        tool.api.replies["audit.verify"] = sound
        ended = tool("audit", "verify")
        assert (ended.code, ended.out) == (0, f"sound    yes\nrecords  9\nhead     9:{'f' * 64}\nanchors  2\n")
        assert all(len(line) <= 80 for line in ended.out.splitlines())
        broken = {"sequence": 4, "kind": "edited", "detail": "it is not what it was"}
        tool.api.replies["audit.verify"] = {**sound, "is_sound": False, "broken": broken}
        ended = tool("audit", "verify")
        assert ended.code == 1
        assert ended.out.splitlines()[-1] == "broken at record 4: edited: it is not what it was"


class TestAuditOffline:
    def test_a_copy_is_verified_without_a_daemon(self, tmp_path: Path) -> None:
        """The host may be gone, or not to be trusted."""
        (tmp_path / "audit").mkdir()
        members = {key: value for key, value in record(1).items() if key not in ("sequence", "previous")}
        lines, _ = link(GENESIS, [msgspec.convert(members, AuditEntry)])
        (tmp_path / "audit/audit-000000000001.jsonl").write_bytes(b"".join(line.rstrip() + b"\n" for line in lines))
        ended = ctl.run("audit", "verify", "--dir", str(tmp_path / "audit"), "--json")
        assert (ended.code, ended.json["is_sound"], ended.json["head_sequence"]) == (0, True, 1)
        anchor = f"1:{ended.json['head_hash']}"
        ended = ctl.run("audit", "verify", "--dir", str(tmp_path / "audit"), "--anchor", anchor)
        assert (ended.code, ended.out.splitlines()[-1]) == (0, "anchors  1")
        ended = ctl.run("audit", "verify", "--dir", str(tmp_path / "audit"), "--anchor", f"2:{'0' * 64}")
        assert ended.code == 1
        assert "cut_off" in ended.out

    def test_a_directory_without_a_log_is_not_sound(self, tmp_path: Path) -> None:
        """The wrong directory, or an empty backup, must not look well."""
        ended = ctl.run("audit", "verify", "--dir", str(tmp_path))
        assert (ended.code, ended.out) == (1, "")
        assert "no audit log" in ended.err

    @pytest.mark.parametrize("anchor", ["x", "x:00", "1", "1:", "-1:00", "1:zz"])
    def test_what_is_no_anchor_is_a_usage_error(self, tmp_path: Path, anchor: str) -> None:
        """A mistyped one must not look like a broken log."""
        ended = ctl.run("audit", "verify", "--dir", str(tmp_path), "--anchor", anchor)
        assert (ended.code, ended.out) == (2, "")

    def test_anchors_are_for_copies(self, tool: ctl.Tool) -> None:
        """The daemon has its own, and would not look at these."""
        assert tool("audit", "verify", "--anchor", f"1:{'0' * 64}").code == 2
        assert tool.api.asked == []
