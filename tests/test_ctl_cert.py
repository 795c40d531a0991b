"""`scaivaultctl cert`: what is shown of certificates, by the names people call them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import ctl
from tests.fakes.ctl_certificates import CERT, ORDER, OTHER_CERT, certificate, page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "-----BEGIN PRIVATE KEY-----\ncanary-of-the-key\n-----END PRIVATE KEY-----\n"
REVOCATION: dict[str, Any] = {
    "id": "revocation_1",
    "status": "done",
    "certificate_id": CERT,
    "version": 3,
    "serial_number": "01:ab",
    "reason": "superseded",
    "use_acme": True,
    "replace": False,
    "created_at": "2026-11-01T00:00:00Z",
}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies |= {
            "pki.certificates.list": page(certificate()),
            "pki.certificates.get": certificate(),
            "pki.certificates.deployments": {"items": []},
            "pki.certificates.key": {"id": CERT, "version": 3, "key_type": "ec-p256", "private_key_pem": KEY},
            "pki.acme.accounts.get": "not_found",
            "pki.revoke": REVOCATION,
        }
        yield found


class TestFinding:
    def test_a_name_and_an_id_are_the_same_to_it(self, tool: ctl.Tool) -> None:
        """Nobody remembers ids."""
        by_name = tool("cert", "show", "WWW.example.org.")
        assert tool.api.asked[0][1]["domain"] == "www.example.org"
        assert by_name.out == tool("cert", "show", CERT).out

    def test_several_are_listed_and_none_is_taken(self, tool: ctl.Tool) -> None:
        """The wrong one could be revoked."""
        tool.api.replies["pki.certificates.list"] = page(certificate(), certificate(id=OTHER_CERT))
        ended = tool("cert", "revoke", "www.example.org", "--yes")
        assert (ended.code, ended.out) == (5, "")
        assert CERT in ended.err
        assert OTHER_CERT in ended.err

    def test_the_one_that_lives_is_meant(self, tool: ctl.Tool) -> None:
        """An expired one for the same name is not asked about."""
        tool.api.replies["pki.certificates.list"] = page(certificate(id=OTHER_CERT, status="expired"), certificate())
        assert tool("cert", "show", "www.example.org", "--json").json["id"] == CERT

    def test_a_mistyped_name_is_told_what_it_may_have_been(self, tool: ctl.Tool) -> None:
        """From the names that there are."""
        tool.api.replies["pki.certificates.list"] = [page(), page(certificate())]
        ended = tool("cert", "show", "ww.example.org")
        assert (ended.code, "did you mean www.example.org" in ended.err) == (3, True)


class TestListing:
    def test_what_ends_first_is_on_top(self, tool: ctl.Tool) -> None:
        """That is what one looks for."""
        soon = certificate(id=OTHER_CERT, domains=["soon.example.org"], not_after="2098-01-01T00:00:00Z")
        tool.api.replies["pki.certificates.list"] = page(certificate(), soon)
        ended = tool("cert", "ls")
        assert [line.split()[0] for line in ended.out.splitlines()] == ["NAMES", "soon.example.org", "www.example.org"]
        assert max(map(len, ended.out.splitlines())) <= 80

    def test_only_what_ends_within_a_time(self, tool: ctl.Tool) -> None:
        """What is revoked ends nothing."""
        past = certificate(id=OTHER_CERT, not_after="2026-01-01T00:00:00Z")
        revoked = certificate(status="revoked", not_after="2026-01-01T00:00:00Z")
        tool.api.replies["pki.certificates.list"] = page(certificate(), past, revoked)
        assert [each["id"] for each in tool("cert", "ls", "--expiring", "30d", "--json").json] == [OTHER_CERT]

    @pytest.mark.parametrize(
        ("changes", "state"),
        [
            ({}, "valid"),
            ({"auto_renew": False}, "unkept"),
            ({"status": "revoked"}, "revoked"),
            ({"renewal": {"moment": None, "is_stopped": True}}, "stopped"),
            ({"renewal": {"moment": None, "error": {"code": "ca_error", "detail": "no"}}}, "failing"),
            ({"renewal": {"moment": None, "order_id": ORDER}}, "renewing"),
        ],
    )
    def test_the_state_says_whether_it_is_kept(self, tool: ctl.Tool, changes: dict[str, Any], state: str) -> None:
        """`valid` alone does not tell of a renewal that fails."""
        tool.api.replies["pki.certificates.list"] = page(certificate(**changes))
        assert f" {state} " in tool("cert", "ls").out

    @pytest.mark.parametrize("typed", ["soon", "0d", "-1d", "1w", ""])
    def test_what_is_no_time_is_refused(self, tool: ctl.Tool, typed: str) -> None:
        """With how it is written."""
        ended = tool("cert", "ls", "--expiring", typed)
        assert (ended.code, tool.api.asked) == (2, [])
        assert "30d" in ended.err


def test_one_screen_tells_when_why_and_who_uses_it(tool: ctl.Tool) -> None:
    """In 80 columns."""
    tool.api.replies["pki.certificates.get"] = certificate(
        renewal={
            "moment": "2098-12-01T00:00:00Z",
            "window_start": "2098-11-30T00:00:00Z",
            "window_end": "2098-12-02T00:00:00Z",
            "attempt": 2,
            "next_try_at": "2026-11-30T12:00:00Z",
            "error": {"code": "ca_error", "detail": "the CA is ill", "remedy": "Wait."},
        }
    )
    host = {"id": CERT, "host": "web-1", "version": 2, "current_version": 3, "is_current": False, "is_overdue": True}
    times = {"first_seen_at": "2026-11-01T00:00:00Z", "confirmed_at": "2026-11-01T00:00:00Z", "confirmed_by": "unix:0"}
    tool.api.replies["pki.certificates.deployments"] = {"items": [{**host, **times}]}
    told = tool("cert", "show", CERT).out
    assert max(map(len, told.splitlines())) <= 80
    words = " ".join(told.split())
    for part in (
        "status failing",
        "the CA's window (ARI): 2098-11-30 to 2098-12-02",
        "last failure ca_error: the CA is ill",
        "remedy Wait.",
        "next try 2026-11-30 12:00",
        "web-1 2 of 3 overdue",
    ):
        assert part in words


class TestKey:
    def test_a_file_is_made_for_its_owner_alone(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """Nothing of it is printed."""
        ended = tool("cert", "key", CERT, "--to", str(tmp_path / "key"))
        assert (ended.code, ended.out) == (0, "")
        assert (tmp_path / "key").read_text() == KEY
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
        assert "canary" not in ended.err

    def test_a_file_that_is_there_stays(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """It may be the only copy of another key."""
        (tmp_path / "key").write_text("mine")
        assert tool("cert", "key", CERT, "--to", str(tmp_path / "key")).code == 2
        assert (tool.api.asked, (tmp_path / "key").read_text()) == ([], "mine")
        assert tool("cert", "key", CERT, "--to", str(tmp_path / "key"), "--force").code == 0
        assert (tmp_path / "key").read_text() == KEY

    def test_a_link_is_replaced_and_what_it_leads_to_stays(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """A key does not go where somebody else has pointed."""
        (tmp_path / "elsewhere").write_text("theirs")
        (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
        assert tool("cert", "key", CERT, "--to", str(tmp_path / "key"), "--force").code == 0
        assert (tmp_path / "elsewhere").read_text() == "theirs"

    def test_a_directory_that_is_not_there_is_told(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """Not by a traceback."""
        ended = tool("cert", "key", CERT, "--to", str(tmp_path / "none" / "key"))
        assert (ended.code, "cannot be written: No such file" in ended.err) == (1, True)

    def test_where_it_is_piped_it_is_printed(self, tool: ctl.Tool) -> None:
        """For scripts."""
        assert tool("cert", "key", CERT).out == KEY

    def test_a_terminal_is_asked_first(self, tool: ctl.Tool) -> None:
        """Somebody may look over the shoulder."""
        ended = ctl.on_terminal(
            "cert", "key", CERT, "--address", f"unix:{tool.socket}", answers=[("on this terminal?", "n\n")]
        )
        assert (ended.code != 0, "canary" in ended.out, tool.api.asked) == (True, False, [])


class TestRevoking:
    def test_without_a_terminal_and_without_yes_nothing_happens(self, tool: ctl.Tool) -> None:
        """It cannot be undone."""
        ended = tool("cert", "revoke", CERT)
        assert (ended.code, "--yes" in ended.err) == (2, True)
        assert [name for name, _ in tool.api.asked] == ["pki.certificates.get"]

    def test_a_reason_is_a_word(self, tool: ctl.Tool) -> None:
        """As the protocol calls it."""
        assert tool("cert", "revoke", CERT, "--reason", "key-compromise", "--replace", "--yes").code == 0
        asked = tool.last[1]
        assert (asked["reason"], asked["replace"], asked["use_acme"]) == ("key_compromise", True, True)

    def test_the_name_has_to_be_typed(self, tool: ctl.Tool) -> None:
        """A `y` is typed too easily."""
        for typed, code in (("y\n", 1), ("www.example.org\n", 0)):
            ended = ctl.on_terminal(
                "cert", "revoke", CERT, "--address", f"unix:{tool.socket}", answers=[("to go on", typed)]
            )
            assert ended.code == code, ended.out
        assert [name for name, _ in tool.api.asked].count("pki.revoke") == 1

    def test_a_dry_run_sends_nothing(self, tool: ctl.Tool) -> None:
        """It shows what would be sent."""
        ended = tool("cert", "revoke", CERT, "--no-acme", "--dry-run", "--json")
        assert ended.json["request"]["use_acme"] is False
        assert "pki.revoke" not in [name for name, _ in tool.api.asked]

    def test_one_that_fails_is_a_failure(self, tool: ctl.Tool) -> None:
        """With why."""
        error = {"code": "ca_error", "detail": "the CA does not want to"}
        tool.api.replies["pki.revoke"] = {**REVOCATION, "status": "failed", "error": error}
        ended = tool("cert", "revoke", CERT, "--yes")
        assert (ended.code, "the CA does not want to" in ended.out) == (1, True)
