"""The declarations of all metrics, and what keeps their number bounded."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from scaivaultd.model import metrics


@pytest.mark.parametrize("family", metrics.FAMILIES, ids=lambda each: each.name)
def test_names_are_as_prometheus_wants_them(family: metrics.Family) -> None:
    """Counters end in _total and nothing else does; a unit is named; and everything says what it is."""
    assert re.fullmatch(r"(scaivaultd|x509_cert)_[a-z0-9_]+", family.name)
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert (family.kind == "histogram") == bool(family.buckets)
    assert family.kind != "histogram" or family.name.endswith("_seconds")
    assert family.help.endswith(".")
    assert "\n" not in family.help


def test_there_is_no_name_twice() -> None:
    """One would hide the other in the page."""
    names = [each.name for each in metrics.FAMILIES]
    assert len(names) == len(set(names))


def test_a_label_takes_so_many_values_and_no_more() -> None:
    """Callers choose some of them, such as the hosts of their CAs: they must not fill the memory of Prometheus."""
    family = metrics.Family(
        name="scaivaultd_bounded_total", kind="counter", help="A test.", group="api", labels=("ca", "kind")
    )
    registry = CollectorRegistry()
    count = metrics.Count(family, registry)
    for number in range(metrics.VALUES_MAX + 50):
        count.labels(ca=f"host{number}", kind="new").inc()
    count.labels(ca="host1", kind="new").inc()
    [collected] = registry.collect()
    seen = {each.labels["ca"]: each.value for each in collected.samples}
    assert len(seen) == metrics.VALUES_MAX + 1
    assert (seen["other"], seen["host1"], "host249" in seen) == (50, 2, False)


def test_what_is_written_at_once_reads_like_what_the_library_writes() -> None:
    """There are two ways to write a gauge, and a scraper must not be able to tell them apart."""
    family = metrics.CERTIFICATE_NOT_AFTER
    odd = ("cert_1", 'a"b\\c\nd', "default", "ca")

    class One(Collector):
        def collect(self) -> list[Metric]:
            return [family.told([(odd, 1.5)])]

    ours = family.text([(family.labelled(*odd), 1.5)])
    theirs = generate_latest(One()).decode()
    assert list(text_string_to_metric_families(ours)) == list(text_string_to_metric_families(theirs))


def test_no_series_tells_when_its_counter_began() -> None:
    """They would double what is scraped."""
    assert b"_created" not in generate_latest(metrics.REGISTRY)


def test_the_command_line_tool_does_without() -> None:
    """It counts nothing, and whoever types waits for every import."""
    code = "import sys, scaivaultd.ctl, scaivaultd.ctl_daemon; print('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
