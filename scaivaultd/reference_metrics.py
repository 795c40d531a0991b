"""The page `docs/reference/metrics.md`, from the declarations in `model/metrics.py`."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from scaivaultd.model.metrics import FAMILIES, VALUES_MAX

if TYPE_CHECKING:
    from scaivaultd.model.metrics import Family, Group

_TITLES: dict[Group, str] = {
    "certificates": "Certificates",
    "issuing": "Issuing and renewing",
    "acme": "CAs",
    "dns": "DNS providers",
    "bus": "NATS and events",
    "api": "Requests",
    "listeners": "Listeners",
    "security": "Security",
    "process": "The process",
    "x509": "For dashboards of x509-certificate-exporter",
}


def metrics_page() -> str:
    """The whole page."""
    lines = [
        "# Metrics",
        "",
        "Generated from `scaivaultd/model/metrics.py`. [Monitor the daemon](../how-to/monitor.md) tells where to",
        "scrape them and which alerts there are.",
        "",
        f"Each label of what is counted takes at most {VALUES_MAX} values; further ones are counted as `other`.",
        "",
        "Series of single certificates (those with `certificate_id`) are there while there are at most",
        "`[metrics] max_certificates`. `ca` is the provider and environment of a known CA, such as",
        "`letsencrypt/production`, else the host of its directory.",
    ]
    for group, families in groupby(FAMILIES, lambda each: each.group):
        lines += ["", f"## {_TITLES[group]}", "", "| metric | type | labels | meaning |", "|---|---|---|---|"]
        lines += [_row(each) for each in families]
    return "\n".join(lines) + "\n"


def _row(family: Family) -> str:
    labels = ", ".join(f"`{each}`" for each in family.labels)
    buckets = f" Buckets up to {family.buckets[-1]:g} s." if family.buckets else ""
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help}{buckets} |"
