"""A whole foreign distribution: built, installed, found, in use; and its broken relatives, refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sample_plugin import SAMPLE, add_distribution, build_wheel, install, seeing

SOLVERS = """
from scaivaultd.plugin import SolverKind, hookimpl

SCAIVAULTD_PLUGIN_API = "{contract}"

@hookimpl
def scaivaultd_challenge_solvers():
    {body}
"""


def solvers(body: str, contract: str = "1.1") -> str:
    return SOLVERS.format(body=body, contract=contract)


BROKEN = {
    "xmajor": (solvers("return []", contract="2.0"), "2.0"),
    "xminor": (solvers("return []", contract="1.99"), "1.99"),
    "ximport": ("import a_module_that_is_not_there", "ModuleNotFoundError"),
    "xraises": (solvers("raise RuntimeError('no luck')"), "no luck"),
    "xrubbish": (solvers("return ['http-01']"), "not SolverKind"),
    "xtaken": (solvers("return [SolverKind(name='http-01', challenge_type='http-01', open=print)]"), "http-01"),
}


def ctl(target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scaivaultd.ctl", "plugin", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=target,
        env=dict(seeing(target)),
    )


def listed(target: Path) -> dict[str, dict[str, Any]]:
    ended = ctl(target, "ls", "--json")
    assert ended.returncode == 0, ended.stderr
    return {row["name"]: row for row in json.loads(ended.stdout)}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample as it is installed, among broken ones."""
    target = tmp_path_factory.mktemp("foreign") / "site"
    install(wheel, target)
    for name, (source, _) in BROKEN.items():
        add_distribution(target, name, source)
    return target


@pytest.fixture(scope="module")
def found(site: Path) -> dict[str, dict[str, Any]]:
    return listed(site)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """It is what people copy: tests and stray files do not belong in site-packages."""
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"scaivaultd_dns_sample", "scaivaultd_dns_sample-1.0.0.dist-info"}


def test_the_sample_imports_the_plugin_contract_only() -> None:
    """What it needs beyond that, no stranger could have."""
    for path in (SAMPLE / "scaivaultd_dns_sample").glob("*.py"):
        ours = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("from scaivaultd")]
        assert set(ours) <= {"scaivaultd.plugin", "scaivaultd.plugin.http"}, path


@pytest.mark.parametrize(
    ("name", "brings"),
    [
        ("sample_dns", "DNS provider sample"),
        ("sample_secrets", "secret backend sample"),
        ("sample_upload", "solver upload for http-01"),
    ],
)
def test_what_it_brings_is_found_by_its_entry_points(found: dict[str, dict[str, Any]], name: str, brings: str) -> None:
    """Installed is in use: nothing has to be configured."""
    row = found[name]
    assert (row["distribution"], row["version"], row["contract"]) == ("scaivaultd-dns-sample", "1.0.0", "1.1")
    assert row["brings"] == [brings]
    assert row["faults"] == []
    assert row["refused"] is None


def test_nothing_is_wrong_with_it(site: Path) -> None:
    """An example with faults teaches them."""
    ended = ctl(site, "check", "scaivaultd-dns-sample")
    assert ended.returncode == 0, ended.stdout
    assert len(ended.stdout.splitlines()) == 3


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_one_is_refused_with_its_reason(found: dict[str, dict[str, Any]], name: str) -> None:
    """The administrator has to learn why, and all the others have to work."""
    assert BROKEN[name][1] in found[name]["refused"]
    assert found["http01"]["refused"] is None
    assert found["sample_dns"]["refused"] is None


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    """They run the conformance kit over real HTTP."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
        cwd=SAMPLE,
        env=dict(seeing(site)),
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout
