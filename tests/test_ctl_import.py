"""`scaivaultctl import`: nothing without `--apply`, nothing twice, and a report whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scaivaultd.api.commands import IMPORT_CERTIFICATE
from scaivaultd.ctl_session import EX_FAILED, EX_USAGE
from tests.fakes import ctl
from tests.fakes.ctl_certificates import certificate
from tests.test_ctl_account import ACCOUNT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def tool(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        found.api.replies["pki.acme.accounts.list"] = {"items": [], "next_cursor": None}
        found.api.replies["pki.certificates.list"] = {"items": [], "next_cursor": None}
        found.api.replies["pki.dns_providers.list"] = {"items": [], "next_cursor": None}
        yield found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An acme.sh home with a credential and nothing else."""
    folder = tmp_path / "acme.sh"
    folder.mkdir()
    (folder / "account.conf").write_text("SAVED_CF_Token='t0ken-value'\n")
    return folder


def test_credentials_are_only_named_in_a_dry_run(tool: ctl.Tool, home: Path) -> None:
    """A dry run changes nothing, and no value is ever printed."""
    ended = tool("import", "acme.sh", "--dir", str(home), "--with-credentials", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["applied"] is False
    assert len(ended.json["secrets"]) == 1
    assert "t0ken-value" not in ended.out + ended.err
    assert not [name for name, _ in tool.api.asked if not name.endswith(".list")]


def test_a_refused_credential_does_not_lose_the_report(tool: ctl.Tool, home: Path) -> None:
    """What was taken over before the refusal must be told."""
    tool.api.replies["secrets.put"] = "permission_denied"
    ended = tool("import", "acme.sh", "--dir", str(home), "--with-credentials", "--apply", "--json")
    assert (ended.code, ended.json["applied"], ended.json["secrets"]) == (EX_FAILED, True, [])
    assert "is not stored" in ended.err
    assert "t0ken-value" not in ended.out + ended.err


def test_an_unknown_name_is_a_mistake_of_the_caller(tool: ctl.Tool, home: Path) -> None:
    """A typing error must not look like a store without certificates."""
    ended = tool("import", "acme.sh", "--dir", str(home), "--only", "nobody.test")
    assert (ended.code, ended.out) == (EX_USAGE, "")
    assert "nobody.test" in ended.err


@pytest.fixture
def pem(tool: ctl.Tool, tmp_path: Path) -> list[str]:
    """A pair of files, and the account that is to renew it."""
    tool.api.replies["pki.acme.accounts.list"] = {"items": [ACCOUNT], "next_cursor": None}
    tool.api.replies["pki.certificates.import"] = certificate()
    (tmp_path / "cert.pem").write_text(IMPORT_CERTIFICATE.example["chain_pem"])
    files = ["--cert", str(tmp_path / "cert.pem")]
    return ["import", "pem", *files, "--account", ACCOUNT["id"]]


def test_a_pair_of_files_is_taken_at_once(tool: ctl.Tool, pem: list[str]) -> None:
    """Who names two files means them; a dry run is there all the same."""
    dry = tool(*pem, "--dry-run", "--json")
    assert (dry.code, dry.json["certificates"][0]["action"]) == (0, "import")
    assert "pki.certificates.import" not in {name for name, _ in tool.api.asked}
    done = tool(*pem, "--json")
    assert (done.code, done.json["certificates"][0]["action"]) == (0, "imported")
    assert tool.last[0] == "pki.certificates.import"
    assert "allow_duplicate" not in tool.last[1]
    assert "PRIVATE KEY" not in done.out + done.err


def test_the_same_names_again_are_left_out_unless_that_is_wished(tool: ctl.Tool, pem: list[str]) -> None:
    """The daemon must hear of the wish, too: it refuses the same by itself."""
    there = certificate(domains=["www.example.org"], version=1)
    tool.api.replies["pki.certificates.list"] = {"items": [there], "next_cursor": None}
    left_out = tool(*pem, "--json")
    assert (left_out.code, left_out.json["certificates"][0]["action"]) == (EX_FAILED, "skip")
    taken = tool(*pem, "--allow-dup", "--json")
    assert (taken.code, tool.last[1]["allow_duplicate"]) == (0, True)


def test_what_the_daemon_refuses_is_told_in_the_report(tool: ctl.Tool, pem: list[str]) -> None:
    """The others of the same run go on, and the exit code tells."""
    tool.api.replies["pki.certificates.import"] = "conflict"
    ended = tool(*pem, "--json")
    assert (ended.code, ended.json["certificates"][0]["action"]) == (EX_FAILED, "failed")
    assert "this is conflict" in ended.json["certificates"][0]["why"]
