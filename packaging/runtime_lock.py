#!/usr/bin/env python3
"""Prints what scaivaultd needs to run, out of requirements.lock: without the tools of its developers.

All extras are in: an installation that a package brings cannot be added to afterwards. With --python only what that
Python needs on Linux, and without markers: pip would look at the Python it runs on, not at the one it installs for.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OURSELVES = "scaivaultd (pyproject.toml)"

_PIN = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?: ; (?P<marker>.+?))? \\")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class Pin(NamedTuple):
    """One package of the lock, and which packages want it."""

    name: str
    version: str
    marker: str | None
    hashes: tuple[str, ...]
    wanted_by: tuple[str, ...]


def read(text: str) -> list[Pin]:
    """Every package of a lock.

    Raises:
        ValueError: a line is none that a lock has, or a package comes without hashes or without who wants it.
    """
    pins = []
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        head, *rest = block.splitlines()
        found = _PIN.fullmatch(head)
        hashes = tuple(_HASH.findall(block))
        wanted_by = tuple(each.strip(" #").removeprefix("via ").strip() for each in rest if each.startswith("    #"))
        if found is None or not hashes or not any(wanted_by):
            raise ValueError(f"not a line of a lock with hashes: {head}")
        wanted = tuple(each for each in wanted_by if each not in ("", "via"))
        pins.append(Pin(found["name"], found["version"], found["marker"], hashes, wanted))
    return pins


def needed(pins: list[Pin], python: str | None) -> list[Pin]:
    """What is needed to run, in the order of the lock: on Linux with that Python, or anywhere."""
    here = pins
    if python is not None:
        here = [each._replace(marker=None) for each in pins if each.marker is None or _holds(each.marker, python)]
    wanted: set[str] = set()
    while True:
        more = {each.name for each in here if OURSELVES in each.wanted_by or wanted.intersection(each.wanted_by)}
        if more == wanted:
            return [each for each in here if each.name in wanted]
        wanted = more


def _holds(marker: str, python: str) -> bool:
    from packaging.markers import Marker

    return Marker(marker).evaluate(
        {
            "python_version": ".".join(python.split(".")[:2]),
            "python_full_version": python,
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "os_name": "posix",
            "sys_platform": "linux",
            "platform_system": "Linux",
        }
    )


def written(pins: list[Pin]) -> str:
    """The packages as pip takes them with --require-hashes."""
    return "".join(
        f"{each.name}=={each.version}{f' ; {each.marker}' if each.marker else ''} \\\n"
        + " \\\n".join(f"    --hash=sha256:{one}" for one in each.hashes)
        + "\n"
        for each in pins
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", metavar="X.Y.Z", help="default: any, with markers")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    given.to.write_text(written(needed(read((ROOT / "requirements.lock").read_text()), given.python)))


if __name__ == "__main__":
    main()
