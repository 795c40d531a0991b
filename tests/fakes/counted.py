"""What the process has counted so far; others may have counted before, so tests compare."""

from __future__ import annotations

from scaivaultd.model import metrics


def counted(name: str, **labels: str) -> float:
    """A series of `REGISTRY`, by its name without the prefix; 0 while there is none."""
    return metrics.REGISTRY.get_sample_value(metrics.PREFIX + name, labels) or 0.0
