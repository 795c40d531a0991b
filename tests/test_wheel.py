"""The wheel: what is in it, what is not, and that it runs where nothing else of ours is."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from scaivaultd import __version__

ROOT = Path(__file__).parent.parent


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed") / "site"
    run(
        "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check",
        "--target", str(target), str(wheel), cwd=target.parent,
    )  # fmt: skip
    return target


def info(wheel: Path, name: str) -> str:
    return zipfile.ZipFile(wheel).read(f"scaivaultd-{__version__}.dist-info/{name}").decode()


def test_it_holds_the_three_packages_whole(names: set[str]) -> None:
    """A module that is forgotten is missed only at the customer's."""
    for folder, package in (
        (ROOT, "scaivaultd"),
        (ROOT / "plugins", "scaivaultd_plugins"),
        (ROOT / "contrib_dns", "scaivaultd_contrib_dns"),
    ):
        sources = {str(path.relative_to(folder)) for path in (folder / package).rglob("*.py")}
        assert sources
        assert sources <= names


def test_it_holds_nothing_else(names: set[str]) -> None:
    """Top-level names in site-packages are shared with everybody."""
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        "scaivaultd",
        "scaivaultd_plugins",
        "scaivaultd_contrib_dns",
        f"scaivaultd-{__version__}.dist-info",
    }
    assert not [
        name for name in names if name.rpartition("/")[2].startswith("test_") or name.endswith((".pyc", ".key", ".db"))
    ]


@pytest.mark.parametrize("package", ["scaivaultd", "scaivaultd_plugins", "scaivaultd_contrib_dns"])
def test_it_says_that_it_is_typed(names: set[str], package: str) -> None:
    """Without the marker a plugin's author gets no help from the type checker (PEP 561)."""
    assert f"{package}/py.typed" in names


def test_it_carries_its_license_commands_and_plugins(wheel: Path) -> None:
    """What installers and the daemon read from it."""
    assert "Apache License" in info(wheel, "licenses/LICENSE")
    assert "License-Expression: Apache-2.0" in info(wheel, "METADATA")
    entry_points = configparser.ConfigParser()
    entry_points.read_string(info(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {
        "scaivaultd": "scaivaultd.__main__:main",
        "scaivaultctl": "scaivaultd.ctl:main",
    }
    folders = (ROOT / "plugins" / "scaivaultd_plugins", ROOT / "contrib_dns" / "scaivaultd_contrib_dns")
    hooked = {
        f"{folder.name}.{path.stem}"
        for folder in folders
        for path in folder.glob("*.py")
        if "@hookimpl" in path.read_text()
    }
    assert set(entry_points["scaivaultd"].values()) == hooked


def test_it_runs_where_it_is_installed_and_finds_its_plugins(installed: Path, tmp_path: Path) -> None:
    """From the wheel alone, not from the checkout that happens to be around."""
    told = run("-m", "scaivaultd", "--version", cwd=tmp_path, PYTHONPATH=str(installed))
    assert __version__ in told
    program = (
        "import logging, structlog, scaivaultd; from scaivaultd import plugin_manager; print(scaivaultd.__file__); "
        "log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL)); "
        "plugins = plugin_manager.load(log); import scaivaultd_plugins.http01 as h; "
        "print(h.__file__, *(name for _, name in plugins.solvers), len(plugins.dns_providers))"
    )
    where = run("-c", program, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert where[0].startswith(str(installed))
    assert where[1].startswith(str(installed))
    assert where[2:] == ["dns-01", "http-01", "tls-alpn-01", "11"]
    assert (installed / "bin" / "scaivaultd").exists()


def test_it_brings_the_units_and_the_configuration_that_the_tool_installs(installed: Path, tmp_path: Path) -> None:
    """`pip install` and two commands are the whole way to a service: there is no checkout on a server."""
    for name in ("config", "systemd"):
        sources = {str(path.relative_to(ROOT / name)) for path in (ROOT / name).rglob("*") if path.is_file()}
        packed = installed / "scaivaultd" / f"_{name}"
        assert {str(path.relative_to(packed)) for path in packed.rglob("*") if path.is_file()} == sources
    checked = run(
        "-m", "scaivaultd", "check-config", "--config", str(installed / "scaivaultd/_config/scaivaultd.toml"),
        cwd=tmp_path, PYTHONPATH=str(installed),
    )  # fmt: skip
    assert checked.endswith(": ok\n")
    printed = run("-m", "scaivaultd.ctl", "config", "example", cwd=tmp_path, PYTHONPATH=str(installed))
    assert printed.strip() == (ROOT / "config/scaivaultd.toml").read_text().strip()
    done = run(
        "-m", "scaivaultd.ctl", "setup", "systemd", "--dry-run", "--json", "--systemd-version", "252",
        "--prefix", "/opt/scaivaultd", "--root", str(tmp_path), cwd=tmp_path, PYTHONPATH=str(installed),
    )  # fmt: skip
    assert "scaivaultd.service" in json.dumps(json.loads(done))


def test_it_can_be_built_again_to_the_last_byte(tmp_path: Path) -> None:
    """Whoever doubts a published file builds it again from the sources, elsewhere and as another, and compares."""
    built = _built(ROOT, tmp_path / "first", 0o022)
    assert set(built) == {f"scaivaultd-{__version__}-py3-none-any.whl", f"scaivaultd-{__version__}.tar.gz"}
    with tarfile.open(tmp_path / "first" / f"scaivaultd-{__version__}.tar.gz") as sources:
        sources.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / f"scaivaultd-{__version__}"
    (unpacked / "PKG-INFO").unlink()  # hatchling added it to our sources, and would add it once more
    assert _built(unpacked, tmp_path / "second", 0o077) == built


def _built(sources: Path, folder: Path, mask: int) -> dict[str, str]:
    before = os.umask(mask)
    try:
        run("-m", "hatchling", "build", "-d", str(folder), cwd=sources, SOURCE_DATE_EPOCH="1600000000")
    finally:
        os.umask(before)
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}
