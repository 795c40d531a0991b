"""An outage is told at its beginning and at its end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from scaivaultd.services.outages import OUTAGES_MAX, Outages

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("0F 1F 2F 3A", "B..E"),
        ("0F 1A 2A", "BE."),
        ("0A", "."),
        ("0F 1a 2F 3A", "B..E"),
        ("0F 1440a", "BE"),
        ("0F 1439a", "B."),
        ("0F 1000F 1440a 2441a", "B..E"),
        ("0F 1A 2F 3A 59F 60F 61A", "BE...BE"),
        ("0F 1A 60F", "BEB"),
        ("0F 600F", "B."),
    ],
)
def test_what_is_told(steps: str, told: str) -> None:
    """Each step: its minute, then F: failed, A: answered to one that had failed, a: to another."""
    outages, heard = Outages(), ""
    for step in steps.split():
        at = BEGIN + timedelta(minutes=int(step[:-1]))
        if step.endswith("F"):
            heard += "B" if outages.failed("ca", at) else "."
        else:
            heard += "E" if outages.answered("ca", at, had_failed=step.endswith("A")) else "."
    assert heard == told


def test_each_ca_has_its_own() -> None:
    """One that is back says nothing of another."""
    outages = Outages()
    assert outages.failed("a", BEGIN)
    assert outages.failed("b", BEGIN)
    assert outages.answered("a", BEGIN, had_failed=True)
    assert not outages.failed("b", BEGIN)


def test_the_longest_silent_is_forgotten_when_there_are_too_many() -> None:
    """Accounts may name any directory: memory has a bound."""
    outages = Outages()
    outages.failed("old", BEGIN)
    outages.failed("kept", BEGIN)
    for number in range(OUTAGES_MAX - 2):
        outages.failed(f"ca-{number}", BEGIN)
    outages.failed("kept", BEGIN)
    outages.failed("one more", BEGIN)
    outages.failed("another", BEGIN)
    assert not outages.failed("kept", BEGIN)
    assert outages.failed("old", BEGIN)
