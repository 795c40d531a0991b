"""Writes the reference page of `scaivaultctl` from its verbs; `walk` is there for whoever writes them otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from scaivaultd.ctl import main
from scaivaultd.ctl_session import EXIT_CODES, is_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = (
    ("SCAIVAULT_ADDR", "Where the daemon is, as `--address`."),
    ("SCAIVAULT_TOKEN", "An API token."),
    ("SCAIVAULT_CONTEXT", "The context to use."),
    ("SCAIVAULT_CA_FILE", "The CA of an https address, as `--ca-file`."),
    ("NO_COLOR", "If not empty: no colours."),
    ("PAGER", "What shows long answers on a terminal; `cat` for none."),
    ("XDG_CONFIG_HOME", "Where contexts are kept, in `scaivault/`; `~/.config` unless given."),
)
"""Variables that the tool heeds, and what for."""


class Option(NamedTuple):
    """One option: how it is written, and what it is for."""

    written: str
    meaning: str


class Entry(NamedTuple):
    """One verb or group: its words, its usage, its text in paragraphs, its own options."""

    words: tuple[str, ...]
    usage: str
    text: tuple[str, ...]
    options: tuple[Option, ...]
    is_group: bool
    asks_daemon: bool


def walk(command: click.Command = main, name: str = "scaivaultctl") -> Iterator[Entry]:
    """Every group and verb below a command, each after its group, in the order of `--help`."""
    yield from _walk(command, click.Context(command, info_name=name))


def _walk(command: click.Command, context: click.Context) -> Iterator[Entry]:
    words = tuple(context.command_path.split()[1:])
    own = [each for each in command.params if isinstance(each, click.Option) and not is_shared(each)]
    yield Entry(
        words=words,
        usage=" ".join([context.command_path, *command.collect_usage_pieces(context)]),
        text=tuple(" ".join(each.split()) for each in (command.help or "").strip().split("\n\n")),
        options=tuple(_option(each, context) for each in own if not each.hidden),
        is_group=isinstance(command, click.Group),
        asks_daemon=any(is_shared(each) and each.name == "at_address" for each in command.params),
    )
    if isinstance(command, click.Group):
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            if below is not None and not below.hidden:
                yield from _walk(below, click.Context(below, info_name=word, parent=context))


def shared_options() -> tuple[Option, ...]:
    """The options that every verb has."""
    context = click.Context(main, info_name="scaivaultctl")
    return tuple(_option(each, context) for each in main.params if isinstance(each, click.Option) and is_shared(each))


def _option(option: click.Option, context: click.Context) -> Option:
    record = option.get_help_record(context)
    assert record is not None, option.name
    return Option(record[0], record[1])


def page() -> str:
    """The page, as Markdown."""
    lines = [
        "# scaivaultctl",
        "",
        "Generated from the verbs. [Use scaivaultctl](../how-to/use-scaivaultctl.md) shows how they work together.",
        "",
        "## Options of every verb",
        "",
        "They may also stand before the verb. Those that say where the daemon is are for verbs that ask it.",
        "",
        *_table(("option", "meaning"), [(f"`{each.written}`", each.meaning) for each in shared_options()]),
        "## Exit codes",
        "",
        *_table(("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()]),
        "## Environment",
        "",
        *_table(("variable", "meaning"), [(f"`{name}`", meaning) for name, meaning in ENVIRONMENT]),
    ]
    for entry in walk():
        if entry.words:
            lines += _entry(entry)
    return "\n".join(lines).rstrip() + "\n"


def _entry(entry: Entry) -> Iterator[str]:
    level = "##" if len(entry.words) == 1 else "###"
    yield f"{level} {' '.join(entry.words)}"
    yield ""
    if not entry.is_group:
        yield from ("```", entry.usage, "```", "")
    for paragraph in entry.text:
        yield from (_escaped(paragraph), "")
    if entry.options:
        yield from _table(("option", "meaning"), [(f"`{each.written}`", each.meaning) for each in entry.options])


def _table(headings: tuple[str, str], rows: list[tuple[str, str]]) -> Iterator[str]:
    yield f"| {headings[0]} | {headings[1]} |"
    yield "|---|---|"
    for name, meaning in rows:
        # A bar ends a cell, even in code.
        yield f"| {name.replace('|', chr(92) + '|')} | {_escaped(meaning).replace('|', chr(92) + '|')} |"
    yield ""


def _escaped(text: str) -> str:
    """What Markdown would take for HTML or for emphasis is meant as it is; code stays code."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts)
