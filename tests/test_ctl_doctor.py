"""`scaivaultctl doctor`: each check sees what is wrong, and says what to do; one that breaks hides no other."""

from __future__ import annotations

import os
import socket
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.ctl_doctor import CHECKS
from scaivaultd.daemon import STORE_NAME
from scaivaultd.doctor_host import STORE_NAME as LOOKED_AT
from tests.fakes.ctl import Tool, at, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = "2026-11-01T00:00:00Z"
HEALTHY = {
    "status": "ok",
    "components": [
        {"name": "nats", "status": "ok", "detail": ""},
        {"name": "events", "status": "ok", "detail": ""},
        {"name": "master_key", "status": "ok", "detail": "1a2b3c4d"},
    ],
}
INFO: dict[str, Any] = {
    "version": "1.2.3",
    "node_id": "node_1",
    "started_at": NOW,
    "challenge_types": [],
    "solvers": [],
    "dns_provider_types": [],
    "plugins": [],
    "orders_under_way": 0,
}
EMPTY: dict[str, Any] = {"items": [], "next_cursor": None}
CERTIFICATE = {
    "id": "cert_1",
    "order_id": "acme_order_1",
    "account_id": "acme_1",
    "status": "valid",
    "domains": ["www.example.test"],
    "version": 1,
    "serial_number": "01",
    "fingerprint_sha256": "00",
    "issuer": "CA",
    "key_type": "ec-p256",
    "challenge_type": "dns-01",
    "auto_renew": True,
    "not_before": NOW,
    "not_after": "2099-01-01T00:00:00Z",
    "created_at": NOW,
}


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[Tool]:
    """A daemon that is well, and has nothing to do."""
    with at(tmp_path) as there:
        there.api.replies = {
            "sys.health": HEALTHY,
            "sys.info": INFO,
            "pki.acme.accounts.list": EMPTY,
            "pki.certificates.list": EMPTY,
            "pki.dns_providers.list": EMPTY,
            "pki.acme.limits": {"cas": [], "items": [], "waiting": []},
        }
        yield there


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration that listens nowhere."""
    (tmp_path / "state").mkdir(mode=0o700)
    file = tmp_path / "d.toml"
    file.write_text(
        f'state_dir = "{tmp_path}/state"\n[rest]\nlisten = ["{tmp_path}/api.sock"]\n'
        "[http01]\nlisten = []\n[tlsalpn01]\nlisten = []\n"
    )
    return file


def one(tool: Tool, check: str, *arguments: str, **environment: str) -> tuple[str, str, str, int]:
    """Verdict, evidence and remedy of one check, and the exit code."""
    ended = tool("doctor", check, "--json", *arguments, **environment)
    [found] = ended.json["checks"]
    assert found["id"] == check
    return found["verdict"], "\n".join(found["evidence"]), found["remedy"], ended.code


def test_there_are_seventeen_in_their_order() -> None:
    """Their ids are in other people's runbooks."""
    assert [each.id for each in CHECKS] == [f"D{number:02d}" for number in range(1, 18)]
    assert LOOKED_AT == STORE_NAME


def test_all_fit_on_a_terminal(tool: Tool, config: Path, tmp_path: Path) -> None:
    """Every check has a line, however narrow the screen; nothing is asked that changes anything."""
    ended = tool("doctor", "--config", str(config), "--root", str(tmp_path))
    lines = ended.out.splitlines()
    assert [line[:3] for line in lines if line.startswith("D")] == [each.id for each in CHECKS]
    assert "17 looked at: " in ended.err
    assert {name for name, _ in tool.api.asked} <= {*tool.api.replies}


def test_without_a_daemon_the_host_is_looked_at(tmp_path: Path, config: Path) -> None:
    """That is when one needs it most."""
    ended = run("doctor", "--json", "--config", str(config), "--root", str(tmp_path))
    found = {each["id"]: each for each in ended.json["checks"]}
    assert found["D01"]["verdict"] == found["D13"]["verdict"] == found["D17"]["verdict"] == "ok"
    asked = [found[check] for check in ("D04", "D05", "D06", "D09", "D14", "D15", "D16")]
    assert {each["verdict"] for each in asked} == {"skipped"}
    assert ended.code == 10
    assert ended.err.count("systemctl status scaivaultd") == 1
    assert "is the daemon running?" in ended.json["away"]


def test_mistakes_in_the_configuration_are_an_error(tool: Tool, config: Path) -> None:
    """With their lines, and the exit code of the issue's table."""
    with config.open("a") as file:
        file.write('[log]\nlevel = "loud"\n')
    verdict, evidence, remedy, code = one(tool, "D01", "--config", str(config), SCAIVAULT_ADDR="")
    assert (verdict, code) == ("error", 10)
    assert f"{config}:9: log.level" in evidence
    assert "config check" in remedy


def test_a_file_that_is_no_toml_is_a_finding_too(tmp_path: Path) -> None:
    """It also says where the daemon is; the doctor goes on without."""
    config = tmp_path / "d.toml"
    config.write_text("[rest")
    ended = run("doctor", "D01", "D06", "--json", "--config", str(config))
    first, second = ended.json["checks"]
    assert (ended.code, first["verdict"], second["verdict"]) == (10, "error", "skipped")
    assert "not valid TOML" in first["evidence"][0]


def test_an_unknown_check_is_wrong_usage(tool: Tool) -> None:
    """It says which there are."""
    ended = tool("doctor", "D18")
    assert ended.code == 2
    assert "D01, D02" in ended.err


def test_a_key_that_does_not_fit_is_told(tmp_path: Path, config: Path) -> None:
    """Before the daemon is started with it, and comes up sealed."""
    database = tmp_path / "state" / STORE_NAME
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE documents (key TEXT, document BLOB)")
        connection.execute("INSERT INTO documents VALUES ('meta/sealing', x'c0')")
    connection.close()
    key = tmp_path / "state/master.key"
    ended = run("doctor", "D02", "--json", "--config", str(config))
    [found] = ended.json["checks"]
    assert (found["verdict"], ended.code) == ("error", 10)
    assert str(key) in found["evidence"][0]
    assert "master-key.md" in found["remedy"]


def test_a_damaged_store_is_an_error(tmp_path: Path, config: Path) -> None:
    """And the way back is a backup."""
    (tmp_path / "state" / STORE_NAME).write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    ended = run("doctor", "D03", "--json", "--config", str(config))
    [found] = ended.json["checks"]
    assert found["verdict"] == "error"
    assert "back-up-and-restore" in found["remedy"]


def test_whoever_holds_a_port_is_named(tool: Tool, config: Path) -> None:
    """As `ss` would, for those who have none at hand."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        listening = f'[http01]\nlisten = ["127.0.0.1:{port}"]'
        config.write_text(config.read_text().replace("[http01]\nlisten = []", listening))
        verdict, evidence, _, _ = one(tool, "D07", "--config", str(config), SCAIVAULT_ADDR="")
        assert verdict == "error"  # a stranger's, though python's as the daemon is
        assert f"[http01] {port}: held by " in evidence
        assert f"(pid {os.getpid()})" in evidence
    verdict, evidence, _, code = one(tool, "D07", "--config", str(config), SCAIVAULT_ADDR="")
    assert (verdict, code) == ("error", 10)
    assert f"[http01] {port}: nobody listens" in evidence


def test_files_that_others_may_read_are_told_with_the_command(tool: Tool, config: Path, tmp_path: Path) -> None:
    """A key that everybody may read is no key."""
    key = tmp_path / "state/master.key"
    key.write_text("x")
    key.chmod(0o644)
    verdict, evidence, remedy, _ = one(tool, "D13", "--config", str(config), SCAIVAULT_ADDR="")
    assert verdict == "error"
    assert str(key) in evidence
    assert f"chmod 0600 {key}" in remedy


def test_nats_that_is_away_is_told_in_its_words(tool: Tool) -> None:
    """With what health knows."""
    tool.api.replies["sys.health"] = {
        "status": "degraded",
        "components": [{"name": "nats", "status": "degraded", "detail": "connection refused"}],
    }
    verdict, evidence, remedy, _ = one(tool, "D06")
    assert verdict == "error"
    assert "connection refused" in evidence
    assert "[nats] servers" in remedy


def test_an_unreachable_ca_is_an_error(tool: Tool) -> None:
    """By which family, and why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    account = {
        "id": "acme_1",
        "name": "a",
        "provider": "custom",
        "environment": "production",
        "email": None,
        "status": "valid",
        "created_at": NOW,
        "directory_url": f"https://127.0.0.1:{port}/dir",
        "account_url": None,
        "key_thumbprint": "x",
        "eab_key_id": None,
    }
    tool.api.replies["pki.acme.accounts.list"] = {"items": [account], "next_cursor": None}
    verdict, evidence, _, code = one(tool, "D05")
    assert (verdict, code) == ("error", 10)
    assert f"127.0.0.1:{port} by IPv4: 127.0.0.1: Connection refused" in evidence
    verdict, evidence, _, _ = one(tool, "D04")
    assert verdict == "skipped"
    assert "does not tell the time" in evidence


@pytest.mark.parametrize(
    ("changes", "verdict", "said"),
    [
        ({}, "ok", "1 certificates"),
        ({"not_after": "2026-01-01T00:00:00Z"}, "error", "www.example.test has expired"),
        ({"renewal": {"moment": None, "attempt": 2}}, "warning", "www.example.test fails to renew"),
        ({"renewal": {"moment": "2026-01-01T00:00:00Z"}}, "warning", "www.example.test is overdue"),
    ],
)
def test_certificates_in_trouble_are_named(tool: Tool, changes: dict[str, Any], verdict: str, said: str) -> None:
    """Those that expire are errors, the others may yet come right."""
    tool.api.replies["pki.certificates.list"] = {"items": [{**CERTIFICATE, **changes}], "next_cursor": None}
    found, evidence, _, _ = one(tool, "D15")
    assert found == verdict
    assert said in evidence


def test_refused_plugins_are_told(tool: Tool) -> None:
    """With the reason that the daemon had."""
    plugin = {"name": "p", "distribution": "p", "version": "1", "refused": "written for API 9"}
    tool.api.replies["sys.info"] = {**INFO, "plugins": [plugin]}
    verdict, evidence, _, _ = one(tool, "D16")
    assert verdict == "warning"
    assert "written for API 9" in evidence


def test_a_spent_budget_is_told(tool: Tool) -> None:
    """Before the next order waits a week for it."""
    item = {"directory_url": "https://ca.test/d", "limit": "l", "subject": "example.test", "amount": 50, "left": 3}
    tool.api.replies["pki.acme.limits"] = {"cas": [], "items": [item], "waiting": []}
    verdict, evidence, _, _ = one(tool, "D14")
    assert verdict == "warning"
    assert "l of example.test: 3 of 50 left" in evidence


def test_another_clients_cron_job_is_told_with_the_command(tool: Tool, tmp_path: Path) -> None:
    """Two that renew the same spend the same limits."""
    cron = tmp_path / "etc/cron.d"
    cron.mkdir(parents=True)
    (cron / "certbot").write_text("0 3 * * * root certbot renew\n")
    verdict, evidence, remedy, _ = one(tool, "D17", "--root", str(tmp_path))
    assert verdict == "warning"
    assert "certbot" in evidence
    assert "move-in.md" in remedy


def test_a_provider_is_written_to_only_when_asked_for(tool: Tool) -> None:
    """A check that writes is none."""
    provider = {
        "id": "dnsp_1",
        "name": "dns",
        "type": "rfc2136",
        "zones": [],
        "config": {},
        "created_at": NOW,
        "updated_at": NOW,
        "origin": "api",
        "status": "ready",
    }
    tool.api.replies["pki.dns_providers.list"] = {"items": [provider], "next_cursor": None}
    verdict, _, remedy, _ = one(tool, "D09")
    assert verdict == "skipped"
    assert "--write" in remedy
    tool.api.replies["pki.dns_providers.test"] = {
        "id": "dnsp_1",
        "name": "dns",
        "ok": False,
        "record_name": None,
        "value": "x",
        "zone": None,
        "steps": [{"name": "write", "status": "failed", "detail": "no rights", "seconds": 0.1}],
    }
    verdict, evidence, _, code = one(tool, "D09", "--write")
    assert (verdict, code) == ("error", 10)
    assert "no rights" in evidence


def test_only_problems_leaves_out_what_is_well(tool: Tool, tmp_path: Path) -> None:
    """For a timer that mails what it prints."""
    ended = tool("doctor", "D14", "D16", "D06", "--only-problems", "--root", str(tmp_path))
    assert (ended.code, ended.out) == (0, "")
