"""What `packaging/` makes of the tree: the lock of what runs, its bill of materials, the .deb, the image, a release."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scaivaultd import __version__, unit_files

ROOT = Path(__file__).parent.parent
HERE = ROOT / "packaging"
LOCK = (ROOT / "requirements.lock").read_text()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports one of the scripts, as they import each other."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module


def checked(config: Path) -> dict[str, Any]:
    subprocess.run(
        [sys.executable, "-m", "scaivaultd", "check-config", "--config", str(config)],
        check=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    return tomllib.loads(config.read_text())


def started(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )


# The lock of what runs


def test_the_lock_has_what_runs_with_all_extras_and_no_tool_of_developers(script: Any) -> None:
    """A package that is missing stops the daemon at the customer's; one too many is one more to be patched."""
    lock = script("runtime_lock")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    wanted = {canonicalize_name(Requirement(each).name) for group in groups for each in group}
    names = {each.name for each in lock.needed(lock.read(LOCK), "3.11.2")}
    assert wanted <= names
    assert not names & ({canonicalize_name(each) for each in project["dependency-groups"]["dev"]} - wanted)
    assert len(names) == len(lock.needed(lock.read(LOCK), "3.11.2"))


def test_whatever_a_package_of_the_lock_requires_is_in_it_too(script: Any) -> None:
    """It is installed without asking the packages what they need."""
    lock = script("runtime_lock")
    names = {each.name for each in lock.needed(lock.read(LOCK), "3.11.2")}
    for name in names:
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for each in map(Requirement, requires):
            if each.marker is None or each.marker.evaluate({"extra": "", "python_full_version": "3.11.2"}):
                assert canonicalize_name(each.name) in names, f"{name} requires {each}"


@pytest.mark.parametrize(("python", "version"), [("3.11.2", "2."), ("3.13.5", "4.")])
def test_the_lock_is_for_the_python_that_it_is_installed_for(script: Any, python: str, version: str) -> None:
    """pip judges markers by the Python it runs on: Debian's is older than the one that builds."""
    lock = script("runtime_lock")
    (soupsieve,) = (each for each in lock.needed(lock.read(LOCK), python) if each.name == "soupsieve")
    assert soupsieve.version.startswith(version)


def test_the_published_lock_is_for_any_python(script: Any) -> None:
    """Whoever installs it does so with the Python it is for: pip chooses."""
    lock = script("runtime_lock")
    text = lock.written(lock.needed(lock.read(LOCK), None))
    assert re.findall(r"^soupsieve==\d.* ; (python_full_version [<>]=?) ", text, re.MULTILINE) == [
        "python_full_version <",
        "python_full_version >=",
    ]


def test_every_line_of_the_lock_has_its_hashes_and_no_condition(script: Any) -> None:
    """With --require-hashes pip takes nothing else than what was locked."""
    lock = script("runtime_lock")
    text = lock.written(lock.needed(lock.read(LOCK), "3.13.5"))
    assert ";" not in text
    for block in re.split(r"\n(?=\w)", text.strip()):
        head, *hashes = block.split(" \\\n")
        assert re.fullmatch(r"[a-z0-9-]+==\S+", head)
        assert hashes
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", each) for each in hashes)


@pytest.mark.parametrize(
    "line", ["aiohttp>=3", "aiohttp==3.1 \\\n    # via x", "aiohttp==3.1 \\\n    --hash=sha256:00"]
)
def test_a_lock_without_hashes_is_refused(script: Any, line: str) -> None:
    """Better no package than one that nobody has vouched for."""
    with pytest.raises(ValueError, match="aiohttp"):
        script("runtime_lock").read(line)


# The bill of materials


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bill")
    for name in ("one", "two"):
        done = started("sbom", "--to", str(folder / name), SOURCE_DATE_EPOCH="1600000000")
        assert done.returncode == 0, done.stderr
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    document: dict[str, Any] = json.loads((folder / "one").read_text())
    return document


def test_the_bill_is_a_cyclonedx_document(bill: dict[str, Any]) -> None:
    """The members that CycloneDX 1.5 demands: scanners refuse a document without them."""
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.5", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"])
    assert bill["metadata"]["timestamp"] == "2020-09-13T12:26:40Z"
    assert bill["metadata"]["component"]["version"] == __version__
    for each in [bill["metadata"]["component"], *bill["components"]]:
        assert each["type"] in {"application", "library"}
        assert each["name"]
        assert each["purl"] == each["bom-ref"] == f"pkg:pypi/{each['name']}@{each['version']}"
        for one in each.get("licenses", ()):
            assert set(one) == {"expression"} or set(one["license"]) in ({"id"}, {"name"})
        for one in each.get("hashes", ()):
            assert one["alg"] == "SHA-256"
            assert re.fullmatch(r"[0-9a-f]{64}", one["content"])


def test_the_bill_names_every_locked_package_with_its_hashes(bill: dict[str, Any], script: Any) -> None:
    """What is not on the bill is not looked for when a hole becomes known."""
    lock = script("runtime_lock")
    locked = {(each.name, each.version, frozenset(each.hashes)) for each in lock.needed(lock.read(LOCK), "3.13.5")}
    told = {
        (each["name"], each["version"], frozenset(one["content"] for one in each["hashes"]))
        for each in bill["components"]
    }
    assert told == locked
    without = {each["name"] for each in bill["components"] if "licenses" not in each}
    assert len(without) <= 2, without


def test_the_bill_tells_who_needs_whom(bill: dict[str, Any]) -> None:
    """Every reference leads to a component, and each is reached from ours."""
    refs = {each["bom-ref"] for each in [bill["metadata"]["component"], *bill["components"]]}
    needs = {each["ref"]: each["dependsOn"] for each in bill["dependencies"]}
    assert set(needs) == refs
    reached: set[str] = set()
    ahead = [bill["metadata"]["component"]["bom-ref"]]
    while ahead:
        ref = ahead.pop()
        if ref not in reached:
            reached.add(ref)
            ahead += needs[ref]
    assert reached == refs


# The Debian package


@pytest.fixture
def stage(tmp_path: Path, script: Any) -> Path:
    """All but the Python packages, which take a minute."""
    deb = script("build_deb")
    root = tmp_path / "root"
    release = deb.RELEASES["bookworm"]
    (tmp_path / "man").mkdir()
    (tmp_path / "man/scaivaultd.8").write_text(".TH scaivaultd 8\n")
    deb.put_host_files(root, release)
    deb.put_documents(root, release, tmp_path / "man", 1600000000)
    deb.put_control(root, release)
    deb.settle(root, 1600000000)
    return root


def units_of(stage: Path) -> set[str]:
    folder = stage / "usr/lib/systemd/system"
    return {each.name for each in folder.iterdir() if each.is_file()}


def units_in(script_name: str) -> list[str]:
    text = (HERE / "deb" / script_name).read_text()
    (found,) = re.findall(r'^UNITS="(.*)"$', text, re.MULTILINE)
    return str(found).split()


def test_the_package_has_the_units_and_nothing_where_only_administrators_write(stage: Path) -> None:
    """/etc/systemd belongs to the administrator: what a package puts there hides later versions of its own units."""
    assert units_of(stage) >= {unit_files.UNIT, *unit_files.SOCKETS, *unit_files.TIMED, unit_files.AGENT}
    assert [str(each.relative_to(stage)) for each in (stage / "etc").rglob("*") if each.is_file()] == [
        "etc/scaivaultd/scaivaultd.toml"
    ]
    assert (stage / "DEBIAN/conffiles").read_text() == "/etc/scaivaultd/scaivaultd.toml\n"
    assert (stage / "usr/lib/sysusers.d/scaivaultd.conf").exists()
    assert (stage / "usr/lib/tmpfiles.d/scaivaultd.conf").exists()
    assert (stage / "usr/share/man/man8/scaivaultd.8.gz").exists()


@pytest.mark.parametrize(("release", "has_drop_ins"), [("bookworm", False), ("trixie", True)])
def test_the_units_are_for_the_systemd_of_the_release(
    script: Any, tmp_path: Path, release: str, has_drop_ins: bool
) -> None:
    """Type=notify-reload on Debian 12 would be taken for `simple`: started before it is ready."""
    deb = script("build_deb")
    deb.put_host_files(tmp_path, deb.RELEASES[release])
    folder = tmp_path / "usr/lib/systemd/system/scaivaultd.service.d"
    assert {each.name for each in folder.glob("*.conf")} == (
        {"10-notify-reload.conf", "10-restart-steps.conf"} if has_drop_ins else set()
    )


def test_the_packaged_configuration_is_valid_and_not_for_everybody_to_read(stage: Path) -> None:
    """The service is started from it, unseen."""
    file = stage / "etc/scaivaultd/scaivaultd.toml"
    assert checked(file)["state_dir"] == "/var/lib/scaivaultd"
    assert file.stat().st_mode & 0o777 == 0o640


def test_the_control_file_is_whole_and_the_sums_are_those_of_every_file(stage: Path) -> None:
    """What dpkg decides by."""
    fields = dict(re.findall(r"^([A-Z][A-Za-z-]+): (.+)$", (stage / "DEBIAN/control").read_text(), re.MULTILINE))
    assert fields["Version"] == f"{__version__}-1~deb12"
    assert "@" not in (stage / "DEBIAN/control").read_text().replace("@example.org", "")
    assert "python3 (>= 3.11~), python3 (<< 3.12~)" in fields["Depends"]
    assert int(fields["Installed-Size"]) > 100
    summed = {line.split("  ")[1] for line in (stage / "DEBIAN/md5sums").read_text().splitlines()}
    assert summed == {
        str(each.relative_to(stage))
        for each in stage.rglob("*")
        if each.is_file() and not each.is_symlink() and each.parent.name != "DEBIAN"
    }


def test_modes_and_times_do_not_tell_of_the_machine_that_builds(stage: Path) -> None:
    """Else no two builds are the same, and a tight umask makes units that nobody can read."""
    for each in stage.rglob("*"):
        assert each.lstat().st_mtime == 1600000000
        if each.is_dir():
            assert each.stat().st_mode & 0o777 == 0o755
    for name in ("postinst", "prerm", "postrm"):
        assert (stage / "DEBIAN" / name).stat().st_mode & 0o777 == 0o755


def test_the_maintainer_scripts_know_every_unit(stage: Path) -> None:
    """One that is forgotten runs on without its files after removal, or is never enabled."""
    for name in ("postinst", "prerm", "postrm"):
        subprocess.run(["sh", "-n", str(stage / "DEBIAN" / name)], check=True, timeout=30)
        assert set(units_in(name)) <= units_of(stage)
    folder = stage / "usr/lib/systemd/system"
    enabled = {name for name in units_of(stage) if "[Install]" in (folder / name).read_text()}
    assert enabled == {*units_in("postinst"), "scaivaultd-backup.timer", unit_files.AGENT}
    assert set(units_in("postrm")) == set(units_in("prerm")) == enabled


def test_the_state_goes_only_when_the_package_is_purged(tmp_path: Path) -> None:
    """Accounts and keys cannot be had again."""
    text = (HERE / "deb/postrm").read_text()
    purge = text.index('if [ "$1" = purge ]')
    assert [found.start() > purge for found in re.finditer(r"\brm\b|\brmdir\b", text)] == [True] * 4
    assert "rm -rf /var/backups" not in text
    assert "rm -rf /var/lib" not in (HERE / "deb/prerm").read_text()


def test_its_commands_run_in_its_own_environment_only(script: Any, tmp_path: Path) -> None:
    """PYTHONPATH of a shell, and packages of a user, are none of its business."""
    deb = script("build_deb")
    for module in deb.SCRIPTS.values():
        text = deb.script(module)
        assert text.startswith("#!/opt/scaivaultd/bin/python3 -I\n")
        (tmp_path / "command").write_text(text)
        told = subprocess.run(
            [sys.executable, str(tmp_path / "command"), "--version"],
            check=True, capture_output=True, text=True, timeout=60, cwd=ROOT,
        ).stdout  # fmt: skip
        assert __version__ in told


def test_what_pip_notes_of_the_machine_that_builds_is_forgotten(script: Any, tmp_path: Path) -> None:
    """Paths below /tmp in a package help nobody, and differ from build to build."""
    info = tmp_path / "some-1.dist-info"
    info.mkdir()
    (info / "direct_url.json").write_text('{"url": "file:///tmp/x"}')
    (info / "RECORD").write_text(
        "some.py,,\n../../bin/some,sha256=1,2\nbin/some,,\nsome-1.dist-info/direct_url.json,,\n"
    )
    script("build_deb").forget_builder(tmp_path)
    assert not (info / "direct_url.json").exists()
    assert (info / "RECORD").read_text() == "some.py,,\n"


# The image


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (HERE / "container/Containerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def final_stage() -> list[tuple[str, str]]:
    every = instructions()
    start = max(index for index, (word, _) in enumerate(every) if word == "FROM")
    return every[start:]


def test_the_image_runs_without_root_and_without_a_shell() -> None:
    """Clusters refuse images that start as root; numbers, since `runAsNonRoot` cannot judge names."""
    words = dict(final_stage())
    assert words["USER"] == "65532:65532"
    assert "RUN" not in words
    for word in ("ENTRYPOINT", "CMD", "VOLUME"):
        assert isinstance(json.loads(words[word]), list)
    assert json.loads(words["HEALTHCHECK"].partition("CMD ")[2]) == ["scaivaultctl", "status", "--live"]


def test_the_image_opens_the_ports_of_its_configuration() -> None:
    """What is not exposed is not published by default, and high ports need no privilege."""
    settings = checked(HERE / "container/scaivaultd.toml")
    ports = {int(each.rpartition(":")[2]) for name in ("http01", "tlsalpn01") for each in settings[name]["listen"]}
    assert ports == {int(each) for each in dict(final_stage())["EXPOSE"].split()} == {8080, 8443}
    words = dict(final_stage())
    assert json.loads(words["VOLUME"]) == [settings["state_dir"]]
    assert f"SCAIVAULT_ADDR=unix:{settings['state_dir']}/api.sock" in words["ENV"]


def test_the_image_is_built_from_what_is_there() -> None:
    """A path that the ignore file keeps away fails the build, and only there."""
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in instructions():
        if word != "COPY" or "--from=" in rest:
            continue
        for source in rest.split()[:-1]:
            assert any(source == each or source.startswith(f"{each}/") for each in let_through), source
            assert source.startswith("dist/") or (ROOT / source).exists()


# The release


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    (root / "scaivaultd").mkdir(parents=True)
    for name in ("pyproject.toml", "requirements.lock"):
        (root / name).write_text((ROOT / name).read_text())
    (root / "scaivaultd/__init__.py").write_text('__version__ = "1.2.3"\n')
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## [1.2.3] - 2026-11-30\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "x")
    git(root, "tag", "v1.2.3")
    return root


def git(root: Path, *arguments: str) -> None:
    who = {f"GIT_{role}_{what}": "x@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "-C", str(root), *arguments], check=True, timeout=60, env={**os.environ, **who, **alone})


def test_a_clean_tagged_tree_with_its_changes_written_down_is_released(repository: Path) -> None:
    """The way it is meant to be."""
    assert started("release", "--check", "--root", str(repository)).returncode == 0


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("new.txt", "x", "not committed, such as ?? new.txt"),
        ("scaivaultd/__init__.py", '__version__ = "1.2.4"\n', "not tagged v1.2.4"),
        ("CHANGELOG.md", "# Changelog\n\n## [Unreleased]\n", "has no part '## [1.2.3]"),
    ],
)
def test_what_stands_in_the_way_of_a_release_is_said(repository: Path, file: str, text: str, complaint: str) -> None:
    """A release that does not match its tag can never be built again."""
    (repository / file).write_text(text)
    done = started("release", "--check", "--root", str(repository))
    assert done.returncode == 1
    assert complaint in done.stderr


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    """Who downloads checks with what every host has."""
    (tmp_path / "b.whl").write_bytes(b"b")
    (tmp_path / "a.deb").write_bytes(b"a")
    for _ in range(2):
        assert started("release", "--sums", str(tmp_path)).returncode == 0
    told = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], check=True, capture_output=True, text=True, timeout=30, cwd=tmp_path
    ).stdout
    assert told == "a.deb: OK\nb.whl: OK\n"
