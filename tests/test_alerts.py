"""Alerts, dashboard and pages speak of metrics that there are, and of all that matter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scaivaultd.model.metrics import FAMILIES
from scaivaultd.reference_metrics import metrics_page

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "config/alerts.yml"
TESTS = ROOT / "config/alerts_test.yml"
DASHBOARD = ROOT / "config/grafana-scaivaultd.json"
PAGE = ROOT / "docs/how-to/monitor.md"

NAMES = {each.name for each in FAMILIES}
LABELS = {label for each in FAMILIES for label in each.labels} | {"job", "instance", "le", "alertname", "alertstate"}
ROWS = ["Fleet", "Renewals", "CA and DNS APIs", "Budgets", "Bus", "Listeners", "Process"]
ALERT_NAMES = re.findall(r"^ *- alert: (\w+)$", ALERTS.read_text(), flags=re.MULTILINE)


def promtool(*arguments: str) -> None:
    """Prometheus' own judge; what it says is in the failure."""
    if shutil.which("promtool") is None:
        pytest.fail("Debian's package prometheus is missing: `make test` installs it, or: apt-get install prometheus")
    ended = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def used_in(text: str) -> set[str]:
    """The metrics that a text speaks of."""
    found = re.findall(r"\b(?:scaivaultd|x509_cert)_[a-z0-9_]+\b", text)
    return {re.sub(r"_(?:bucket|sum|count)$", "", each) for each in found}


def expressions() -> list[str]:
    """What the dashboard asks."""
    return [target["expr"] for panel in _panels() for target in panel.get("targets", ())]


def _panels() -> list[dict[str, Any]]:
    panels: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return panels


def test_the_rules_are_rules() -> None:
    """Prometheus does not start with a broken file."""
    promtool("check", "rules", str(ALERTS))


def test_alerts_come_when_they_must_and_not_before() -> None:
    """A rule that never fires looks like peace."""
    promtool("test", "rules", str(TESTS))


@pytest.mark.parametrize("path", [ALERTS, TESTS, DASHBOARD, PAGE], ids=lambda each: each.name)
def test_every_metric_that_is_spoken_of_is_there(path: Path) -> None:
    """Prometheus does not tell a misspelt one from one without series."""
    assert used_in(path.read_text()) - NAMES == set()


def test_every_label_that_alerts_and_dashboard_ask_for_is_there() -> None:
    """A misspelt label groups all series into one."""
    asked = "\n".join([*expressions(), ALERTS.read_text()])
    grouped = {word for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", asked) for word in re.findall(r"\w+", group)}
    chosen = set(re.findall(r'[{,] ?(\w+)(?:=~|!=|=)"', asked))
    assert grouped | chosen <= LABELS


def test_every_metric_has_its_line_in_the_reference() -> None:
    """And says what it means."""
    page = metrics_page()
    assert [each.name for each in FAMILIES if f"| `{each.name}` | {each.kind} |" not in page] == []
    assert (ROOT / "docs/reference/metrics.md").read_text() == page


def test_the_dashboard_shows_all_that_is_ours() -> None:
    """What nobody looks at need not be measured."""
    shown = used_in("\n".join(expressions()))
    assert {each for each in NAMES if not each.startswith("x509_")} - shown == set()
    assert [each["title"] for each in _panels() if each["type"] == "row"] == ROWS


def test_the_dashboard_is_bound_to_nobodys_data_source() -> None:
    """An id of one Grafana means nothing in another."""
    sources = {json.dumps(panel["datasource"]) for panel in _panels() if panel["type"] != "row"}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    ids = [each["id"] for each in _panels()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("alert", ALERT_NAMES)
def test_every_alert_is_tried_and_says_what_to_do(alert: str) -> None:
    """Whoever is woken by it finds the way by its link."""
    assert f"\n### {alert}\n" in PAGE.read_text()
    assert f"runbook_url: docs/how-to/monitor.md#{alert.lower()}\n" in ALERTS.read_text()
    assert alert in TESTS.read_text()


def test_there_is_an_alert_for_each_thing_that_ends_in_an_outage() -> None:
    """One that was taken away by mistake would not be missed by anybody."""
    assert len(ALERT_NAMES) == len(set(ALERT_NAMES)) == 14
