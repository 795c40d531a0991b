#!/usr/bin/env python3
"""Writes the bill of materials (CycloneDX 1.5, JSON) of what runs: scaivaultd and the packages of its lock.

The same lock and the same SOURCE_DATE_EPOCH make the same file. Licences are those that the installed packages declare.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import tomllib
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runtime_lock import OURSELVES, ROOT, Pin, needed, read

# The zip format knows no earlier time; hatchling takes the same when it is told none.
DEFAULT_EPOCH = 1580601600
NEWEST_PYTHON = "3.13.5"
_NAMESPACE = uuid.UUID("4f4f7a52-8f0e-5d0a-9f39-0d3c1f6f2c11")


def bill(pins: list[Pin], version: str, epoch: int) -> dict[str, Any]:
    """The document."""
    ours = f"pkg:pypi/scaivaultd@{version}"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": ours,
                "name": "scaivaultd",
                "version": version,
                "description": project["description"],
                "licenses": [{"license": {"id": project["license"]}}],
                "purl": ours,
            },
        },
        "components": [_component(each) for each in pins],
        "dependencies": [
            {"ref": ours, "dependsOn": sorted(_purl(each) for each in pins if OURSELVES in each.wanted_by)},
            *(
                {"ref": _purl(one), "dependsOn": sorted(_purl(each) for each in pins if one.name in each.wanted_by)}
                for one in pins
            ),
        ],
    }
    # Named by what it says, so that two builds say the same.
    serial = uuid.uuid5(_NAMESPACE, json.dumps(document, sort_keys=True))
    return {**document, "serialNumber": f"urn:uuid:{serial}"}


def _purl(pin: Pin) -> str:
    return f"pkg:pypi/{pin.name}@{pin.version}"


def _component(pin: Pin) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": _purl(pin),
        "name": pin.name,
        "version": pin.version,
        "scope": "required",
        # Those of every file that the lock admits: for each platform one, and the source.
        "hashes": [{"alg": "SHA-256", "content": each} for each in sorted(pin.hashes)],
        "purl": _purl(pin),
    }
    if licenses := _licenses(pin):
        component["licenses"] = licenses
    return component


def _licenses(pin: Pin) -> list[dict[str, Any]]:
    try:
        metadata = importlib.metadata.metadata(pin.name)
    except importlib.metadata.PackageNotFoundError:
        return []
    if metadata["Version"] != pin.version:
        return []
    if "License-Expression" in metadata:
        return [{"expression": metadata["License-Expression"]}]
    classified = [each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or () if "License ::" in each]
    # Some put the whole text there.
    named = metadata["License"].strip() if "License" in metadata else ""
    if named and "\n" not in named and len(named) < 80:
        return [{"license": {"name": named}}]
    return [{"license": {"name": each}} for each in sorted(set(classified))]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", default=NEWEST_PYTHON, metavar="X.Y.Z", help="default: %(default)s")
    parser.add_argument("--to", type=Path, required=True, metavar="FILE")
    given = parser.parse_args()
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH", DEFAULT_EPOCH))
    pins = needed(read((ROOT / "requirements.lock").read_text()), given.python)
    document = bill(pins, importlib.metadata.version("scaivaultd"), epoch)
    given.to.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
