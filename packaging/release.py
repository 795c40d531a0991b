#!/usr/bin/env python3
"""Looks whether a release may be made of this tree, and writes the checksums of one: see `make release`."""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMS = "SHA256SUMS"
_GIT_SECONDS = 60


def obstacles(root: Path) -> list[str]:
    """What stands in the way of a release."""
    version = version_of(root)
    found = []
    if changed := _git(root, "status", "--porcelain"):
        found.append(f"the tree has changes that are not committed, such as {changed.splitlines()[0].strip()}")
    if f"v{version}" not in _git(root, "tag", "--points-at", "HEAD").split():
        found.append(f"what is checked out is not tagged v{version}")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", (root / "CHANGELOG.md").read_text(), re.M):
        found.append(f"CHANGELOG.md has no part '## [{version}] - YYYY-MM-DD'")
    if not re.search(r"--hash=sha256:", (root / "requirements.lock").read_text()):
        found.append("requirements.lock has no hashes")
    return found


def version_of(root: Path) -> str:
    """The version, from where hatchling takes it.

    Raises:
        ValueError: there is none.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text())
    place = project["tool"]["hatch"]["version"]["path"]
    found = re.search(r'^__version__ = "([^"]+)"$', (root / place).read_text(), re.M)
    if found is None:
        raise ValueError(f"{place} has no version")
    return found[1]


def checksums(folder: Path) -> str:
    """One line for each file of a folder, as `sha256sum --check` takes them."""
    files = [each for each in sorted(folder.iterdir()) if each.is_file() and each.name != SUMS]
    return "".join(f"{hashlib.sha256(each.read_bytes()).hexdigest()}  {each.name}\n" for each in files)


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(  # noqa: S603 - our own arguments
            ["git", "-C", str(root), *arguments],  # noqa: S607 - whichever the developer uses
            check=True,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        ).stdout.rstrip()
    except (OSError, subprocess.SubprocessError) as error:
        sys.exit(f"release: {error}")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="end with 1 when something stands in the way")
    what.add_argument("--sums", type=Path, metavar="DIR", help=f"write {SUMS} of the files there")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sums is not None:
        (given.sums / SUMS).write_text(checksums(given.sums))
        return
    found = obstacles(given.root)
    for each in found:
        sys.stderr.write(f"release: {each}\n")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
