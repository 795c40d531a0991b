"""`scaivaultctl cert issue | renew | update`, `order` and `bulk`: orders to their end, and the exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd import ctl_watch
from tests.fakes import ctl
from tests.fakes.ctl_certificates import (
    ACCOUNT,
    BULK,
    CERT,
    ORDER,
    OTHER_ORDER,
    bulk,
    certificate,
    failed_order,
    order,
    page,
    valid_order,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

QUEUED = {"limit": "orders", "subject": "the account", "until": "2099-01-01T00:00:00Z", "ahead": 3}


def account(**changes: Any) -> dict[str, Any]:
    return {
        "id": ACCOUNT,
        "name": "le",
        "provider": "letsencrypt",
        "environment": "staging",
        "directory_url": "https://ca.example/dir",
        "status": "valid",
        "email": None,
        "account_url": "https://ca.example/acct/1",
        "key_thumbprint": "x" * 43,
        "created_at": "2026-11-01T00:00:00Z",
        **changes,
    }


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies |= {
            "pki.acme.issue": order(),
            "pki.acme.orders.get": valid_order(),
            "pki.acme.orders.list": page(order()),
            "pki.acme.accounts.get": "not_found",
            "pki.certificates.get": certificate(),
            "pki.certificates.renew": order(),
        }
        yield found


def issue(tool: ctl.Tool, *arguments: str) -> ctl.Ended:
    return tool("cert", "issue", "www.example.org", "--account", ACCOUNT, *arguments)


class TestIssuing:
    def test_it_waits_and_tells_what_it_brought(self, tool: ctl.Tool) -> None:
        """Talk on one stream, the answer on the other."""
        ended = issue(tool)
        assert ended.code == 0
        assert CERT in ended.out
        assert "www.example.org: asks the CA" in ended.err
        assert f"scaivaultctl cert pem {CERT}" in ended.err

    @pytest.mark.parametrize(
        ("end", "code"),
        [
            (failed_order(), 6),
            (failed_order("dns_propagation_timeout"), 6),
            (failed_order("preflight_failed"), 6),
            (failed_order("rate_limited"), 7),
            (failed_order("ca_error"), 1),
            (order(status="deactivated"), 1),
        ],
    )
    def test_the_exit_code_says_how_it_ended(self, tool: ctl.Tool, end: dict[str, Any], code: int) -> None:
        """Scripts decide by it, with and without JSON."""
        tool.api.replies["pki.acme.orders.get"] = end
        assert issue(tool).code == code
        ended = issue(tool, "--json")
        assert (ended.code, ended.json["status"]) == (code, end["status"])

    def test_a_failure_is_told_on_the_stream_of_talk(self, tool: ctl.Tool) -> None:
        """What a script takes from the other one is no certificate."""
        tool.api.replies["pki.acme.orders.get"] = failed_order()
        ended = issue(tool)
        assert ended.out == ""
        assert max(map(len, ended.err.splitlines())) <= 80
        for part in ("192.0.2.7: Invalid response", "NO  192.0.2.7:80: status 404", "Most likely remedy"):
            assert part in ended.err

    def test_over_the_time_it_goes_on(self, tool: ctl.Tool) -> None:
        """And one is told how to watch it."""
        tool.api.replies["pki.acme.orders.get"] = order()
        ended = issue(tool, "--timeout", "1s")
        assert (ended.code, f"scaivaultctl order watch {ORDER}" in ended.err) == (9, True)

    def test_a_limit_beyond_the_time_is_not_waited_for(self, tool: ctl.Tool) -> None:
        """It is known from the beginning."""
        tool.api.replies["pki.acme.issue"] = order(queued=QUEUED)
        ended = issue(tool)
        assert (ended.code, "2099-01-01" in ended.err) == (7, True)
        assert [name for name, _ in tool.api.asked] == ["pki.acme.issue"]

    def test_without_waiting_the_id_is_the_answer(self, tool: ctl.Tool) -> None:
        """For the next command of a script."""
        assert issue(tool, "--no-wait").out == f"{ORDER}\n"

    def test_the_only_account_need_not_be_named(self, tool: ctl.Tool) -> None:
        """But of two none is guessed."""
        tool.api.replies["pki.acme.accounts.list"] = page(account())
        assert tool("cert", "issue", "www.example.org").code == 0
        assert tool.api.asked[1][1]["account_id"] == ACCOUNT
        tool.api.replies["pki.acme.accounts.list"] = page(account(), account(name="zero"))
        ended = tool("cert", "issue", "www.example.org")
        assert (ended.code, "zero" in ended.err) == (5, True)
        tool.api.replies["pki.acme.accounts.list"] = page()
        assert tool("cert", "issue", "www.example.org").code == 3

    @pytest.mark.parametrize(
        ("typed", "challenge"),
        [
            (["www.example.org"], "http-01"),
            (["*.example.org"], "dns-01"),
            (["www.example.org", "--dns-provider", "prod"], "dns-01"),
            (["www.example.org", "--challenge", "tls-alpn-01"], "tls-alpn-01"),
        ],
    )
    def test_the_challenge_follows_from_the_names(self, tool: ctl.Tool, typed: list[str], challenge: str) -> None:
        """A wildcard can be proven in one way only."""
        assert tool("cert", "issue", *typed, "--account", ACCOUNT, "--no-wait").code == 0
        assert tool.last[1]["challenge_type"] == challenge

    def test_a_csr_in_der_is_sent_as_text(self, tool: ctl.Tool, tmp_path: Path) -> None:
        """Both forms are about."""
        (tmp_path / "csr").write_bytes(b"\x30\x82\x01")
        assert tool("cert", "issue", "--csr", str(tmp_path / "csr"), "--account", ACCOUNT, "--no-wait").code == 0
        assert (tool.last[1]["csr"], "domains" in tool.last[1]) == ("MIIB", False)

    def test_nothing_asked_for_is_wrong_usage(self, tool: ctl.Tool) -> None:
        """Nothing is sent."""
        assert (tool("cert", "issue").code, tool.api.asked) == (2, [])

    def test_a_renewal_is_watched_likewise(self, tool: ctl.Tool) -> None:
        """With the same exit codes."""
        assert tool("cert", "renew", CERT).code == 0
        tool.api.replies["pki.acme.orders.get"] = failed_order()
        assert tool("cert", "renew", CERT).code == 6


class TestUpdating:
    def test_names_are_added_and_dropped(self, tool: ctl.Tool) -> None:
        """And the next version is waited for."""
        tool.api.replies["pki.certificates.update"] = certificate(renewal={"moment": None, "order_id": ORDER})
        ended = tool("cert", "update", CERT, "--add", "new.example.org", "--drop", "example.org")
        assert ended.code == 0
        sent = next(members for name, members in tool.api.asked if name == "pki.certificates.update")
        assert sent["domains"] == ["www.example.org", "new.example.org"]

    def test_a_dash_takes_a_setting_back(self, tool: ctl.Tool) -> None:
        """Null is not nothing."""
        tool.api.replies["pki.certificates.update"] = certificate()
        assert tool("cert", "update", CERT, "--profile", "-").code == 0
        assert tool.last[1]["profile"] is None

    @pytest.mark.parametrize(
        "typed", [[], ["--drop", "a.example.org"], ["--drop", "www.example.org", "--drop", "example.org"]]
    )
    def test_what_makes_no_sense_is_not_sent(self, tool: ctl.Tool, typed: list[str]) -> None:
        """Nothing to change, a name it has not, or no name left."""
        assert tool("cert", "update", CERT, *typed).code == 2
        assert tool.last[0] == "pki.certificates.get"


class TestOrders:
    def test_the_one_under_way_is_meant(self, tool: ctl.Tool) -> None:
        """Else the newest."""
        older = failed_order(order_id=OTHER_ORDER)
        tool.api.replies["pki.acme.orders.list"] = [page(order()), page(), page()]
        assert tool("order", "show", "www.example.org", "--json").json["order_id"] == ORDER
        tool.api.replies["pki.acme.orders.list"] = [page(), page(), page(), page(older)]
        assert tool("order", "show", "www.example.org", "--json").json["order_id"] == OTHER_ORDER

    def test_one_that_failed_is_shown_with_its_report(self, tool: ctl.Tool) -> None:
        """As data: it was asked for."""
        tool.api.replies["pki.acme.orders.get"] = failed_order()
        ended = tool("order", "show", ORDER)
        assert ended.code == 0
        assert "Most likely remedy" in ended.out
        watched = tool("order", "watch", ORDER)
        assert (watched.code, "Most likely remedy" in watched.out) == (6, True)

    def test_only_one_under_way_is_cancelled(self, tool: ctl.Tool) -> None:
        """One that has ended cannot be."""
        tool.api.replies["pki.acme.orders.list"] = page()
        assert tool("order", "cancel", "www.example.org", "--yes").code == 3

    def test_name_servers_are_shown_with_their_verdicts(self) -> None:
        """Which one lags is what one waits for."""
        verdicts = [{"server": "ns1", "address": "192.0.2.1", "answer": "absent", "detail": "no value"}]
        record = {"record_name": "_acme-challenge.example.org", "identifier": "example.org", "dns_provider": "prod"}
        told = ctl_watch.progress(
            order(dns_records=[{**record, "status": "waiting", "seconds": 1.0, "verdicts": verdicts}])
        )
        assert "    ns1 (192.0.2.1)  absent: no value" in told.values()

    def test_the_queue_is_told_with_its_forecast(self) -> None:
        """Waiting is no fault."""
        told = ctl_watch.progress(order(queued=QUEUED))["order"]
        assert told.startswith("www.example.org: waits for orders of the account until 2099-01-01")
        assert told.endswith(", 3 ahead")


class TestBulk:
    def test_some_filter_is_needed(self, tool: ctl.Tool) -> None:
        """Everything is renewed only by whoever says so."""
        assert (tool("bulk", "renew").code, tool.api.asked) == (2, [])

    def test_it_is_counted_before_it_is_started(self, tool: ctl.Tool) -> None:
        """The number is what has to be confirmed."""
        tool.api.replies["pki.bulk_renewals.create"] = bulk()
        assert tool("bulk", "renew", "--issuer", "R10").code == 2
        assert [each[1]["dry_run"] for each in tool.api.asked] == [True]
        assert tool("bulk", "renew", "--issuer", "R10", "--yes").code == 0
        assert not tool.last[1].get("dry_run")

    def test_watching_ends_with_the_last_order(self, tool: ctl.Tool) -> None:
        """A failure among them is a failure."""
        tool.api.replies["pki.bulk_renewals.get"] = bulk(status="finished", under_way=0, renewed=1, failed=1)
        ended = tool("bulk", "watch", BULK)
        assert (ended.code, "1 renewed, 1 failed" in ended.err) == (1, True)
