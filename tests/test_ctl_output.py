"""How `scaivaultctl` shows things: on a terminal of 80 columns, and in a pipe."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.ctl_output import moment, relative, span, table
from tests.fakes import ctl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[ctl.Tool]:
    with ctl.at(tmp_path) as found:
        yield found


def seen(daemon: ctl.Tool, *arguments: str, **options: Any) -> ctl.Ended:
    return ctl.on_terminal(*arguments, SCAIVAULT_ADDR=f"unix:{daemon.socket}", **options)


def secrets(count: int, **changes: Any) -> dict[str, Any]:
    of_one = {"version": 1, "created_at": "2026-11-01T00:00:00Z", "updated_at": "2026-11-01T00:00:00Z", "used_by": []}
    return {"items": [{"path": f"path/{number}", **of_one, **changes} for number in range(count)], "next_cursor": None}


def test_a_table_fits_on_the_terminal_by_what_its_widest_columns_give(daemon: ctl.Tool) -> None:
    """Wrapped lines are no table; in a pipe nothing is cut, for whoever reads by program."""
    path = "infra/" + "p" * 90
    daemon.api.replies["secrets.list"] = secrets(1, path=path, used_by=["d" * 30, "e" * 30])
    lines = seen(daemon, "secret", "ls").out.splitlines()
    assert [len(line) for line in lines if len(line) > 80] == []
    assert lines[0].split() == ["PATH", "VERSION", "CHANGED", "USED", "BY"]
    assert lines[1].count("…") == 2
    assert "2026-11-01" in lines[1]
    assert path in daemon("secret", "ls").out


def test_a_terminal_that_is_too_narrow_is_no_failure(daemon: ctl.Tool) -> None:
    """Some are split in four."""
    daemon.api.replies["secrets.list"] = secrets(1)
    assert seen(daemon, "secret", "ls", columns=10).code == 0


HEALTH = {
    "status": "degraded",
    "components": [
        {"name": "store", "status": "ok", "detail": "\x1b[31mred"},
        {"name": "nats", "status": "down", "detail": "away"},
    ],
}


def test_status_words_are_in_colour_on_a_terminal(daemon: ctl.Tool) -> None:
    """What is wrong is seen first; and only our own colours are."""
    daemon.api.replies["sys.health"] = HEALTH
    told = seen(daemon, "status").out
    assert "\x1b[32mok" in told
    assert "\x1b[31mdown" in told
    assert "\\x1b[31mred" in told


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"})],
)
def test_colours_can_be_turned_off(daemon: ctl.Tool, arguments: list[str], environment: dict[str, str | None]) -> None:
    """By those who do not see them, or keep what they see."""
    daemon.api.replies["sys.health"] = HEALTH
    assert "\x1b[" not in seen(daemon, "status", *arguments, **environment).out


def test_nothing_is_coloured_in_a_pipe(daemon: ctl.Tool) -> None:
    """`| grep -w ok`."""
    daemon.api.replies["sys.health"] = HEALTH
    assert "\x1b" not in daemon("status").out


def test_a_long_list_goes_through_the_pager_on_a_terminal_only(daemon: ctl.Tool) -> None:
    """The first lines are gone before anybody has read them otherwise."""
    daemon.api.replies["secrets.list"] = secrets(40)
    paged = seen(daemon, "secret", "ls", PAGER="sed s/^/paged:/").out.splitlines()
    assert paged[-1].startswith("paged:path/39") or paged[-2].startswith("paged:path/39")
    daemon.api.replies["secrets.list"] = secrets(4)
    assert "paged" not in seen(daemon, "secret", "ls", PAGER="sed s/^/paged:/").out
    daemon.api.replies["secrets.list"] = secrets(40)
    assert "paged" not in daemon("secret", "ls", PAGER="sed s/^/paged:/").out


def test_an_empty_table_is_nothing() -> None:
    """Headings over nothing look like an answer."""
    assert table(("A", "B"), []) == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 seconds"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "1 minute"),
        (3599, "59 minutes"),
        (86400, "1 day"),
        (86400 * 700, "700 days"),
        (86400 * 800, "2 years"),
    ],
)
def test_a_length_of_time_is_told_in_its_largest_unit(seconds: float, told: str) -> None:
    """As people say it."""
    assert span(seconds) == told


def test_times_are_told_from_now_and_as_they_are() -> None:
    """The one is what matters, the other is what goes into a ticket."""
    then = NOW + timedelta(days=12, hours=3)
    assert relative(then.isoformat(), NOW) == "in 12 days"
    assert relative((NOW - timedelta(hours=3)).isoformat(), NOW) == "3 hours ago"
    assert moment("2026-12-07T15:00:00+00:00", NOW) == "2026-12-07 15:00 UTC (in 12 days)"
    assert moment("2026-12-07T17:00:00+02:00", NOW) == "2026-12-07 15:00 UTC (in 12 days)"
    assert moment(None) is None
