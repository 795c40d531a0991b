"""These tests belong to a distribution of their own: they run where it is the root, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.rootpath != Path(__file__).parent else None
