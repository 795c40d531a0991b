"""The page that scrapers read, as gateways see it."""

from __future__ import annotations

from typing import Protocol

import msgspec

METRICS_PATH = "/metrics"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """All metrics at one moment, in a format that the scraper takes."""

    body: bytes
    content_type: str


class MetricsPage(Protocol):
    """Whoever knows all metrics."""

    async def render(self, accept: str) -> Told:
        """Tell them, as the `Accept` field of a request wants it; in plain text where it wants nothing that we have."""
        ...
