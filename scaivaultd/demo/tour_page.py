"""What the guided run says: a label, then text beside it, in eighty columns."""

from __future__ import annotations

import textwrap

COLUMNS = 80
LABEL_COLUMNS = 11


def say(label: str, text: str) -> None:
    """A line, or more below each other when the text is long. What has no blanks stays whole, to be copied."""
    beside = " " * LABEL_COLUMNS
    lines = textwrap.wrap(
        text,
        COLUMNS,
        initial_indent=f"{label:<{LABEL_COLUMNS}}",
        subsequent_indent=beside,
        break_long_words=False,
        break_on_hyphens=False,
    )
    plain("\n".join(lines))


def heading(text: str) -> None:
    """The beginning of a chapter."""
    plain(f"\n{text}")


def plain(text: str) -> None:
    """Lines as they are, at once: who watches a pipe wants to see them come."""
    print(text, flush=True)
