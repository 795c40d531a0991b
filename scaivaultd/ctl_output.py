"""How `scaivaultctl` looks: tables that fit, words in colour, times for people, data apart from talk."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_PADDING_MAX = 40
_CELL_MIN = 8
_COLOURED = ("STATUS", "STATE", "RESULT", "VERDICT")
_COLOURS = {
    "green": ("ok", "valid", "ready", "present", "issued", "renewed", "finished", "current", "yes", "allow", "good"),
    "yellow": ("degraded", "pending", "processing", "warning", "waiting", "running", "expiring", "retiring", "absent"),
    "red": (
        "down",
        "error",
        "failed",
        "invalid",
        "sealed",
        "revoked",
        "expired",
        "unusable",
        "deactivated",
        "overdue",
        "deny",
    ),
}
_UNITS = ((86400 * 365, "year"), (86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


class Line(str):
    """A line whose cells are plain already, and may be in colour."""

    __slots__ = ()


def show(reply: Any, lines: Callable[[], Sequence[str]] = tuple, *, as_json: bool = True) -> None:
    """Print something as JSON, or as its lines; through a pager if they do not fit on the terminal."""
    try:
        told = [json.dumps(reply, indent=2)] if as_json else [_plain(line) for line in lines()]
        if not as_json and _is_long(told):
            _page(told)
            return
        for line in told:
            click.echo(line)
    except BrokenPipeError:
        raise  # whoever reads has read enough; click ends us quietly
    except OSError as error:
        say(f"scaivaultctl: the answer cannot be written: {error.strerror}; what was asked for is done")
        # The interpreter would try again as it ends, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _is_long(lines: Sequence[str]) -> bool:
    is_seen = sys.stdout.isatty() and sys.stdin.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    return is_seen and len(lines) >= shutil.get_terminal_size().lines


def _page(lines: Sequence[str]) -> None:
    # Leaves the screen as it is, and does nothing where all fits.
    os.environ.setdefault("LESS", "FRX")
    click.echo_via_pager("\n".join(lines), color=is_coloured() or None)


def say(text: str) -> None:
    """Talk to the person: standard output is for data.

    With `--quiet` only what went wrong is told: what begins with the tool's name.
    """
    if is_quiet() and not text.startswith("scaivaultctl:"):
        return
    complain(text)


def complain(text: str) -> None:
    """Say it even to those who want quiet."""
    click.echo(_plain(text), err=True)


def is_quiet() -> bool:
    """Whether `--quiet` was given."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get("scaivaultctl.quiet"))


def is_coloured() -> bool:
    """Whether standard output takes colours, and whoever sees it wants them."""
    context = click.get_current_context(silent=True)
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or (context and context.color is False):
        return False
    return sys.stdout.isatty()


def _plain(text: str) -> str:
    """What strangers wrote may stand in a line: it must not move the cursor, nor look like another line."""
    if isinstance(text, Line):
        return text
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def coloured(word: str) -> str:
    """A status word in its colour, where there are colours; any other as it is."""
    if is_coloured():
        for colour, words in _COLOURS.items():
            if word.strip().split(" ")[0].rstrip(",:;") in words:
                return click.style(word, fg=colour)
    return word


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns. On a terminal they fit into its width, else the last one is as long as it is."""
    rows = [[_plain(cell) for cell in row] for row in rows]
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    if sys.stdout.isatty():
        widths = _fitted(headings, widths, shutil.get_terminal_size().columns)
    else:
        # One cell of a thousand characters must not push all the others out of sight.
        widths = [*(min(width, _PADDING_MAX) for width in widths[:-1]), widths[-1]]
    return [
        _row(headings, headings, widths, is_heading=True),
        *(_row(headings, row, widths, is_heading=False) for row in rows),
    ]


def _row(headings: Sequence[str], row: Sequence[str], widths: Sequence[int], *, is_heading: bool) -> Line:
    is_seen = sys.stdout.isatty()
    cells: list[str] = []
    for heading, text, width in zip(headings, row, widths, strict=True):
        cell = shortened(text, width) if is_seen else text
        shown = coloured(cell) if heading in _COLOURED and not is_heading else cell
        cells.append(shown + " " * (width - len(cell)))
    return Line("  ".join(cells).rstrip())


def _fitted(headings: Sequence[str], widths: Sequence[int], columns: int) -> list[int]:
    """Widths that fit: the widest column gives first, ids only when nothing else is left to give."""
    fitted = list(widths)
    for may_give in ([heading != "ID" for heading in headings], [True] * len(fitted)):
        givers = [index for index, may in enumerate(may_give) if may]
        while givers and sum(fitted) + 2 * (len(fitted) - 1) > columns:
            widest = max(givers, key=lambda index: fitted[index])
            if fitted[widest] <= max(_CELL_MIN, len(headings[widest])):
                break
            fitted[widest] -= 1
    return fitted


def shortened(text: str, width: int) -> str:
    """The text, its end cut off where it is longer than that."""
    mark = "…" if "utf" in (sys.stdout.encoding or "").lower() else "~"
    return text if len(text) <= width else text[: max(width - 1, 0)] + mark


def facts(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    """One line for each thing that there is to say of one resource; what is not there is left out."""
    told = [(name, _plain(_told(value))) for name, value in pairs if value not in (None, [], "")]
    width = max((len(name) for name, _ in told), default=0)
    lines: list[str] = []
    for name, value in told:
        first, *rest = _folded(value, width + 2)
        lines.append(Line(f"{name:<{width}}  {coloured(first) if name.upper() in _COLOURED else first}"))
        lines += [Line(" " * (width + 2) + each) for each in rest]
    return lines


def _folded(text: str, indent: int) -> list[str]:
    """The lines of a value beside its name: one in a pipe, as many as it takes on a terminal."""
    if not sys.stdout.isatty():
        return [text]
    import textwrap

    width = max(20, shutil.get_terminal_size().columns - indent)
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False) or [""]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """A paragraph as lines; paths and commands stay whole, to be copied."""
    import textwrap

    width = max(20, min(shutil.get_terminal_size().columns, 100))
    return textwrap.wrap(
        _plain(text),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def relative(moment: str, now: datetime | None = None) -> str:
    """A time of the daemon's for a column: `in 12 days`, `3 hours ago`."""
    seconds = (datetime.fromisoformat(moment) - (now or datetime.now(UTC))).total_seconds()
    return f"in {span(seconds)}" if seconds >= 0 else f"{span(-seconds)} ago"


def span(seconds: float) -> str:
    """A length of time in its largest unit: `12 days`."""
    for size, unit in _UNITS:
        # Years only from two on: "in 1 year" would hide eleven months.
        if seconds >= size * (2 if unit == "year" else 1):
            count = int(seconds // size)
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return "0 seconds"


def moment(text: str | None, now: datetime | None = None) -> str | None:
    """A time of the daemon's for one line: `2026-11-28 10:00 UTC (in 3 days)`; None stays None."""
    if text is None:
        return None
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC ({relative(text, now)})"


def day(text: str | None) -> str:
    """The day of a time of the daemon's, for a column."""
    return text[:10] if text else "-"
