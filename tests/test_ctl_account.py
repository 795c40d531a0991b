"""`scaivaultctl account` and `limits`: what they ask of the daemon, and what they show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ID = "acme_01k2v7m0e8zq3c9x5w1r4t6y8b"
STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
ACCOUNT: dict[str, Any] = {
    "id": ID,
    "name": "le",
    "provider": "letsencrypt",
    "environment": "staging",
    "email": None,
    "status": "valid",
    "created_at": "2026-11-01T00:00:00Z",
    "directory_url": STAGING,
    "account_url": f"{STAGING}/acct/1",
    "key_thumbprint": "x" * 43,
    "ca": {"terms_of_service": "https://ca.example/terms", "caa_identities": ["letsencrypt.org"]},
}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies["pki.acme.accounts.list"] = {"items": [ACCOUNT], "next_cursor": None}
        found.api.replies["pki.acme.accounts.get"] = ACCOUNT
        yield found


class TestCreate:
    def test_one_for_trials_takes_one_short_line(self, tool: ctl.Tool) -> None:
        """The first thing that a newcomer does."""
        tool.api.replies["pki.acme.accounts.create"] = ACCOUNT
        ended = tool("account", "create", "try", "--staging", "--agree-tos")
        assert ended.code == 0
        assert tool.last == (
            "pki.acme.accounts.create",
            {
                "name": "try",
                "provider": "letsencrypt",
                "environment": "staging",
                "terms_of_service_agreed": True,
                "wait_seconds": 5.0,
            },
        )
        assert "letsencrypt/staging" in ended.out

    def test_terms_are_agreed_to_by_a_person_only(self, tool: ctl.Tool) -> None:
        """It is their word, not the script's default."""
        ended = tool("account", "create", "try", "--staging")
        assert (ended.code, tool.api.asked) == (2, [])
        assert "--agree-tos" in ended.err

    @pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
    def test_a_person_is_asked_even_where_the_terms_cannot_be_shown(
        self, tool: ctl.Tool, answer: str, code: int
    ) -> None:
        """The CA may be reached from the daemon's host alone."""
        tool.api.replies["pki.acme.accounts.create"] = ACCOUNT
        arguments = ("account", "create", "try", "--directory", "https://localhost:1/directory")
        ended = ctl.on_terminal(*arguments, answers=[("agree", answer)], SCAIVAULT_ADDR=f"unix:{tool.socket}")
        assert ended.code == code
        assert "could not be looked up" in ended.out
        assert len(tool.api.asked) == 1 - code

    def test_a_directory_that_the_daemon_would_refuse_is_refused_before_the_question(self, tool: ctl.Tool) -> None:
        """Nobody agrees to the terms of what does not exist."""
        arguments = ("account", "create", "try", "--directory", "http://ca.example/directory")
        ended = ctl.on_terminal(*arguments, SCAIVAULT_ADDR=f"unix:{tool.socket}")
        assert ended.code == 2
        assert "https only" in ended.out

    def test_a_binding_is_given_by_standard_input_a_file_or_a_reference(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """Arguments are seen by every user of the host."""
        tool.api.replies["pki.acme.accounts.create"] = ACCOUNT
        (tmp_path / "key").write_text("from-file\n")
        usual = ("account", "create", "z", "--ca", "zerossl", "--agree-tos", "--eab-key-id", "kid")
        tool(*usual, given="from-stdin\n")
        tool(*usual, "--eab-key-file", str(tmp_path / "key"))
        tool(*usual, "--eab-key", "infra/zerossl/hmac")
        assert [members["eab"] for _, members in tool.api.asked] == [
            {"key_id": "kid", "hmac_key": "from-stdin"},
            {"key_id": "kid", "hmac_key": "from-file"},
            {"key_id": "kid", "hmac_key_path": "infra/zerossl/hmac"},
        ]

    @pytest.mark.parametrize(
        "arguments",
        [["--eab-key", "a/b"], ["--eab-key-id", "k", "--eab-key", "a/b", "--eab-key-file", __file__]],
    )
    def test_half_a_binding_and_two_keys_are_wrong_usage(self, tool: ctl.Tool, arguments: list[str]) -> None:
        """Rather than going to the CA without."""
        assert tool("account", "create", "z", "--agree-tos", *arguments).code == 2
        assert tool.api.asked == []

    def test_a_dry_run_sends_nothing_and_shows_no_secret(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """It ends in tickets."""
        (tmp_path / "key").write_text("canary-of-the-key\n")
        usual = ("account", "create", "z", "--dry-run", "--eab-key-id", "kid", "--eab-key-file", str(tmp_path / "key"))
        for arguments in (usual, (*usual, "--json"), (*usual, "--account-key-file", str(tmp_path / "key"))):
            ended = tool(*arguments)
            assert (ended.code, "canary" in ended.out + ended.err, tool.api.asked) == (0, False, [])
        assert tool(*usual, "--json").json["request"]["eab"] == {"key_id": "kid", "hmac_key": "(hidden)"}

    def test_one_that_the_ca_refuses_is_told_in_its_words(self, tool: ctl.Tool) -> None:
        """And the exit code is that of a failure, although the account is there."""
        trouble = {"code": "ca_error", "detail": "no", "acme": {"type": "x", "detail": "CA \x1b says"}, "remedy": "do"}
        tool.api.replies["pki.acme.accounts.create"] = {**ACCOUNT, "status": "invalid", "error": trouble}
        ended = tool("account", "create", "try", "--staging", "--agree-tos")
        assert ended.code == 1
        assert "The CA says: CA \\x1b says" in ended.out
        assert "  do" in ended.out

    def test_one_that_is_not_waited_for_is_done(self, tool: ctl.Tool) -> None:
        """A script that does so looks later."""
        tool.api.replies["pki.acme.accounts.create"] = {**ACCOUNT, "status": "pending", "account_url": None}
        assert tool("account", "create", "try", "--agree-tos", "--no-wait").code == 0
        assert tool.last[1]["wait_seconds"] == 0


class TestNamed:
    @pytest.mark.parametrize("given", ["le", ID])
    def test_an_account_is_named_by_its_name_or_its_id(self, tool: ctl.Tool, given: str) -> None:
        """People know the name, programs the id."""
        assert tool("account", "show", given).code == 0
        assert tool.last == ("pki.acme.accounts.get", {"id": ID})

    def test_one_that_is_not_there_is_told_with_what_looks_like_it(self, tool: ctl.Tool) -> None:
        """Nothing is asked for by a wrong id."""
        tool.api.replies["pki.acme.accounts.list"] = {"items": [{**ACCOUNT, "name": "prod"}], "next_cursor": None}
        ended = tool("account", "show", "prd")
        assert (ended.code, ended.out) == (3, "")
        assert "did you mean 'prod'?" in ended.err


def test_they_are_listed_with_their_cas(tool: ctl.Tool) -> None:
    """Staging is seen at once; one that waits for a person too."""
    waiting = {**ACCOUNT, "name": "w", "action_required": {"code": "ca_error", "detail": "visit"}}
    tool.api.replies["pki.acme.accounts.list"] = {"items": [ACCOUNT, waiting], "next_cursor": None}
    assert tool("account", "ls").out.splitlines() == [
        "NAME  STATUS         CA                   EMAIL  ID",
        f"le    valid          letsencrypt/staging  -      {ID}",
        f"w     waits for you  letsencrypt/staging  -      {ID}",
    ]


def test_what_the_ca_waits_for_is_shown_with_where_to_go(tool: ctl.Tool) -> None:
    """Orders stand still until somebody has been there."""
    acme = {"type": "urn:x", "detail": "new terms", "instance": "https://ca.example/agree"}
    action = {"code": "ca_error", "detail": "the CA waits", "acme": acme, "retry_at": "2099-01-01T00:00:00Z"}
    changed = {"action_required": action, "terms_changed_to": "https://ca.example/new"}
    tool.api.replies["pki.acme.accounts.get"] = {**ACCOUNT, **changed}
    told = tool("account", "show", "le").out
    assert "Visit https://ca.example/agree" in told
    assert "https://ca.example/new" in told
    assert f"account update {ID} --agree-tos" in told


class TestChanges:
    def test_what_is_not_named_is_not_sent(self, tool: ctl.Tool) -> None:
        """An absent email would else take the contact away; null does."""
        tool.api.replies["pki.acme.accounts.update"] = ACCOUNT
        tool("account", "update", ID, "--name", "x")
        assert tool.last[1] == {"id": ID, "name": "x", "wait_seconds": 30.0}
        tool("account", "update", ID, "--no-email")
        assert tool.last[1] == {"id": ID, "email": None, "wait_seconds": 30.0}

    @pytest.mark.parametrize("arguments", [[], ["--email", "a@b.example", "--no-email"]])
    def test_nothing_and_both_are_wrong_usage(self, tool: ctl.Tool, arguments: list[str]) -> None:
        """Before anything is sent."""
        assert tool("account", "update", ID, *arguments).code == 2
        assert tool.api.asked == []

    def test_a_key_change_that_goes_on_is_another_exit_code(self, tool: ctl.Tool) -> None:
        """It is neither done nor failed."""
        tool.api.replies["pki.acme.accounts.rotate_key"] = {**ACCOUNT, "key_change_pending": True}
        assert tool("account", "rotate-key", ID, "--key-type", "rsa-3072").code == 9
        assert tool.last[1]["key_type"] == "rsa-3072"

    @pytest.mark.parametrize(
        "arguments",
        [["update", ID, "--email", "a@b.example"], ["rotate-key", ID], ["deactivate", ID]],
    )
    def test_a_dry_run_changes_nothing(self, tool: ctl.Tool, arguments: list[str]) -> None:
        """What it would send is shown."""
        ended = tool("account", *arguments, "--dry-run", "--json")
        assert ended.json["request"]["id"] == ID
        assert [name for name, _ in tool.api.asked if name != "pki.acme.accounts.get"] == []

    def test_nothing_ends_unasked(self, tool: ctl.Tool) -> None:
        """Deactivation is for good."""
        tool.api.replies["pki.acme.accounts.deactivate"] = {**ACCOUNT, "status": "deactivated"}
        assert tool("account", "deactivate", "le").code == 2
        arguments, address = ("account", "deactivate", "le"), f"unix:{tool.socket}"
        assert ctl.on_terminal(*arguments, answers=[("go on", "no\n")], SCAIVAULT_ADDR=address).code == 1
        assert [name for name, _ in tool.api.asked if name.endswith("deactivate")] == []
        assert ctl.on_terminal(*arguments, answers=[("go on", "le\n")], SCAIVAULT_ADDR=address).code == 0
        assert tool.last[1] == {"id": ID, "confirm": "le", "wait_seconds": "30.0"}


def test_limits_tell_what_is_left_and_when_the_next_may_go(tool: ctl.Tool) -> None:
    """For each CA; what is paused waits for a person."""
    budget = {"directory_url": STAGING, "limit": "certificates_per_registered_domain", "subject": "example.org"}
    tool.api.replies["pki.acme.limits"] = {
        "cas": [
            {"directory_url": STAGING, "rules": []},
            {
                "directory_url": "https://other.example/dir",
                "rules": [
                    {"limit": "orders_per_account", "amount": 300, "window_seconds": 10800, "reserved": 0, "exempt": []}
                ],
            },
        ],
        "items": [
            {**budget, "amount": 50, "left": 0, "new_at": "2099-01-01T00:00:00Z"},
            {**budget, "needs_human": True},
        ],
        "waiting": [
            {**budget, "order_id": "acme_order_1", "until": "2099-01-01T00:00:00Z", "ahead": 3},
        ],
    }
    told = tool("limits", "--account", "le", "--domain", "www.example.org").out
    assert tool.last == ("pki.acme.limits", {"account_id": ID, "domain": "www.example.org"})
    assert "letsencrypt/staging: its limits are not known before it refuses" in told
    assert "  0 of 50  certificates per registered domain  example.org  in 7" in told
    assert "needs you" in told
    assert "other.example: 1 limits are known, such as 300 orders per account in 3 hours" in told
    assert "acme_order_1" in told
