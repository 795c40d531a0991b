"""The catalogue of log events is whole, and none of its advice is about an event that is gone."""

from __future__ import annotations

from scaivaultd.reference_logs import ADVICE, logged, logs_page


def test_every_error_tells_what_to_do() -> None:
    """An error without a remedy is noise at 3 a.m."""
    errors = {event for event, (levels, _) in logged().items() if levels & {"error", "critical"}}
    assert errors - ADVICE.keys() == set()


def test_advice_is_about_events_that_are_logged() -> None:
    """Nobody looks for what is never written."""
    assert ADVICE.keys() - logged().keys() == set()


def test_events_have_their_levels_and_fields() -> None:
    """Found in the code, not written by hand."""
    levels, fields = logged()["order.failed"]
    assert levels == {"error"}
    assert {"detail", "error_code"} <= fields
    assert "`order.failed` | error |" in logs_page()
