"""The sample plugin as its own wheel, installed beside the daemon and not into its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "sample_plugin"


def build_wheel(folder: Path, source: Path = SAMPLE) -> Path:
    """Build the distribution in `source`; its wheel lands in `folder`."""
    _run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=source)
    (built,) = folder.glob("*.whl")
    return built


def install(wheel: Path, target: Path) -> None:
    """Unpack a wheel into `target`, which then belongs on PYTHONPATH; nothing is fetched."""
    _run(
        "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--disable-pip-version-check",
        "--target", str(target), str(wheel), cwd=target.parent,
    )  # fmt: skip


def add_distribution(target: Path, name: str, source: str) -> None:
    """A distribution `NAME-dist` with one plugin NAME whose module is `source`, as if it were installed there."""
    (target / f"{name}_module.py").write_text(source)
    info = target / f"{name}_dist-1.2.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: 1.2.3\n")
    (info / "entry_points.txt").write_text(f"[scaivaultd]\n{name} = {name}_module\n")


def seeing(target: Path) -> Mapping[str, str]:
    """The environment of a process that finds what is installed in `target`."""
    inherited = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), *([inherited] if inherited else [])])}


def _run(*arguments: str, cwd: Path) -> None:
    ended = subprocess.run(
        [sys.executable, *arguments], check=False, capture_output=True, text=True, timeout=100, cwd=cwd
    )
    if ended.returncode:
        raise RuntimeError(ended.stdout + ended.stderr)
