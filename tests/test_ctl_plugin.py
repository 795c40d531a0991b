"""`scaivaultctl plugin` as an author at a shell meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scaivaultd.plugin_skeleton import SkeletonKind, files, write
from tests.fakes.sample_plugin import add_distribution, build_wheel, install, seeing

FAULTY = """
from typing import Annotated
import msgspec
from scaivaultd.plugin import DnsProviderKind, ProviderSettings, SecretBackendKind, SolverKind, hookimpl

print("a plugin that talks")

class Loose(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=False):
    token_path: str
    zone: Annotated[str, msgspec.Meta(description="The zone.")] | None = None

class Foreign(msgspec.Struct):
    pass

TEXTS = dict(title="T", summary="s", rights="r", limits="l", troubleshooting="t", open=print)

@hookimpl
def scaivaultd_dns_providers():
    return [
        DnsProviderKind(name="Bad-Name", settings=Loose, example={"token_path": 5}, **{**TEXTS, "rights": ""}),
        DnsProviderKind(name="foreign", settings=Foreign, example={}, **TEXTS),
    ]

@hookimpl
def scaivaultd_secret_backends():
    return [SecretBackendKind(scheme="Not a word", summary="", settings=dict, open=None)]
"""
EXPECTED = (
    "does not say which contract",
    "DNS provider Bad-Name: the name is to be lower-case words",
    "the settings take unknown members",
    "the setting `token_path` has no description",
    "the example does not decode",
    "the text `rights` is missing",
    "DNS provider foreign: the settings do not derive from ProviderSettings",
    "the scheme is to be a lower-case word",
    "`open` cannot be called",
    "the settings are no msgspec.Struct",
)
RAISES = """
from scaivaultd.plugin import hookimpl
SCAIVAULTD_PLUGIN_API = "1.1"

@hookimpl
def scaivaultd_dns_providers():
    raise KeyError("config")

@hookimpl
def scaivaultd_secret_backends():
    return [5]
"""


def ctl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaivaultd.ctl", "plugin", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=dict(seeing(folder)),
    )


@pytest.mark.parametrize(("option", "kind"), [("--dns", "dns"), ("--solver", "solver")])
def test_a_new_plugin_is_installed_found_without_fault_and_passes_its_tests(
    tmp_path: Path, option: str, kind: str
) -> None:
    """Who begins with something that works finds out what broke it."""
    made = ctl(tmp_path, "new", option, "scaivaultd-dns-my.own")
    assert made.returncode == 0, made.stderr
    source = tmp_path / "scaivaultd-dns-my.own"
    assert f"{source.name}/tests/test_{kind}.py" in made.stdout
    site = tmp_path / "site"
    install(build_wheel(tmp_path / "wheel", source), site)
    brings = {"dns": "DNS provider my_own", "solver": "solver my_own for http-01"}
    assert ctl(site, "check", "my_own").stdout == f"my_own: {brings[kind]}\n"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        cwd=source,
        env=dict(seeing(site)),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("kind", ["dns", "solver"])
def test_no_mark_is_left_in_a_new_plugin(kind: SkeletonKind) -> None:
    """A mark that is not replaced is a syntax error at best."""
    for path, text in files("scaivaultd-dns-acme", kind).items():
        assert "@" not in path
        assert not [word for word in text.split() if word.strip("\"'`/.,_").startswith("@") and word.isupper()], path


@pytest.mark.parametrize(
    "name", ["", "-x", "x-", "../x", "a/b", "a b", "1st", "class", "scaivaultd", "scaivaultd.plugins"]
)
def test_a_name_that_cannot_be_a_distribution_is_refused(tmp_path: Path, name: str) -> None:
    """It becomes a folder and a package: neither may land elsewhere or shadow the daemon."""
    with pytest.raises(ValueError, match=r"."):
        write(tmp_path / "new", name, "dns")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    """Nobody's work is overwritten; an empty folder is fine."""
    (tmp_path / "mine").mkdir()
    assert ctl(tmp_path, "new", "mine").returncode == 0
    again = ctl(tmp_path, "new", "mine")
    assert again.returncode == 2
    assert "not an empty folder" in again.stderr


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    """One fault at a run is a long afternoon."""
    add_distribution(tmp_path, "faulty", FAULTY)
    ended = ctl(tmp_path, "check", "faulty")
    assert ended.returncode == 1
    assert [text for text in EXPECTED if text not in ended.stdout] == []
    assert "`zone`" not in ended.stdout


def test_a_hook_that_raises_does_not_hide_the_others(tmp_path: Path) -> None:
    """Each hook is asked on its own."""
    add_distribution(tmp_path, "raises", RAISES)
    ended = ctl(tmp_path, "check", "raises-dist")
    assert ended.returncode == 1
    assert "scaivaultd_dns_providers: KeyError: 'config'" in ended.stdout
    assert "scaivaultd_secret_backends returns int, not SecretBackendKind" in ended.stdout


def test_what_a_plugin_prints_stays_out_of_the_json(tmp_path: Path) -> None:
    """Programs read it."""
    add_distribution(tmp_path, "faulty", FAULTY)
    ended = ctl(tmp_path, "ls", "--json")
    rows = {row["name"]: row for row in json.loads(ended.stdout)}
    assert rows["faulty"]["distribution"] == "faulty-dist"
    assert rows["http01"]["brings"] == ["solver http-01 for http-01"]
    assert "a plugin that talks" in ended.stderr


def test_an_unknown_plugin_is_told(tmp_path: Path) -> None:
    """A typing error is no clean bill of health."""
    ended = ctl(tmp_path, "check", "nobody")
    assert ended.returncode == 2
    assert "no plugin 'nobody'" in ended.stderr
