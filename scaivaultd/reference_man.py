"""Writes the man pages from the verbs and the settings: `python -m scaivaultd.reference_man build/man`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from scaivaultd import __main__ as daemon
from scaivaultd import __version__, reference_ctl
from scaivaultd.ctl_session import EXIT_CODES
from scaivaultd.settings import Settings
from scaivaultd.settings_check import options_of
from scaivaultd.settings_reference import default_of, form_of, struct_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import msgspec

    from scaivaultd.reference_ctl import Entry
    from scaivaultd.settings_check import Option

_DROP_INS = f"{daemon.DEFAULT_CONFIG.parent}/conf.d/*.toml"
_DAEMON_EXIT_CODES = (
    ("0", "It was asked to stop, and has."),
    ("1", "It failed, or could not start; the log says why."),
    ("75", "The store cannot be used now, such as for a full disk."),
    (str(daemon.EX_CONFIG), "The configuration is wrong; each mistake stands on stderr with its line."),
)
_SIGNALS = (
    ("SIGTERM, SIGINT", "Stop: what is under way is written down, and goes on at the next start."),
    ("SIGHUP", "Read the configuration, policies and TLS certificates again; look for the master key, if sealed."),
)
_DAEMON_FILES = (
    (str(daemon.DEFAULT_CONFIG), "The configuration, see scaivaultd.toml(5)."),
    (_DROP_INS, "Drop-ins beside it."),
    ("/var/lib/scaivaultd", "The state of the packaged unit."),
    ("/run/scaivaultd/api.sock", "Where scaivaultctl finds the daemon of the packaged unit."),
)


def man_pages() -> dict[str, str]:
    """Every man page by its file name."""
    return {
        "scaivaultd.8": _page(_daemon()),
        "scaivaultctl.1": _page(_tool()),
        "scaivaultd.toml.5": _page(_settings()),
    }


def _page(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _daemon() -> Iterator[str]:
    entries = list(reference_ctl.walk(daemon.main, "scaivaultd"))
    yield from _head("scaivaultd", 8, "System Administration", "the ACME client of an organisation")
    yield from _synopsis(each.usage for each in entries if not each.is_group)
    yield ".SH DESCRIPTION"
    yield from prose(
        "Services ask the daemon for certificates over NATS or HTTP. It proves the names to the CA, renews in time, "
        "keeps private keys sealed, and tells by events what has happened. It runs in the foreground; "
        "`scaivaultctl setup systemd` makes it a service. scaivaultctl(1) looks after it."
    )
    yield ".SH COMMANDS"
    yield from _entries(entries)
    yield ".SH SIGNALS"
    yield from _tagged(_SIGNALS)
    yield ".SH EXIT STATUS"
    yield from _tagged(_DAEMON_EXIT_CODES)
    yield ".SH FILES"
    yield from _tagged(_DAEMON_FILES)
    yield from _see_also("scaivaultctl(1)", "scaivaultd.toml(5)", "systemctl(1)")


def _tool() -> Iterator[str]:
    entries = list(reference_ctl.walk())
    yield from _head("scaivaultctl", 1, "User Commands", "look after scaivaultd")
    yield from _synopsis([entries[0].usage])
    yield ".SH DESCRIPTION"
    for paragraph in entries[0].text:
        yield from prose(paragraph)
    yield from prose("Data goes to stdout, talk to stderr. `--help` after any word tells what is below it.")
    yield ".SH OPTIONS"
    yield from prose("Every verb has these. Those that say where the daemon is are for verbs that ask it.")
    yield from _tagged(reference_ctl.shared_options())
    yield ".SH COMMANDS"
    yield from _entries(entries)
    yield ".SH EXIT STATUS"
    yield from _tagged((str(code), meaning) for code, meaning in EXIT_CODES.items())
    yield ".SH ENVIRONMENT"
    yield from _tagged(reference_ctl.ENVIRONMENT)
    yield from _see_also("scaivaultd(8)", "scaivaultd.toml(5)")


def _settings() -> Iterator[str]:
    yield from _head("scaivaultd.toml", 5, "File Formats", "configuration of scaivaultd")
    yield from _synopsis([str(daemon.DEFAULT_CONFIG), _DROP_INS])
    yield ".SH DESCRIPTION"
    yield from prose(
        "A TOML file, and drop-ins that are laid over it. Only `state_dir` must be given. Paths are absolute. A key "
        "that is not listed here is a mistake, not ignored. `scaivaultd check-config` reports all mistakes at once, "
        "each with its line."
    )
    yield ".SH ABOVE THE FIRST TABLE"
    options = options_of(Settings)
    yield from _keys(each for each in options if struct_of(each) is None)
    for option in options:
        if (struct := struct_of(option)) is not None:
            yield from _tables(option.name, option, struct)
    yield from _see_also("scaivaultd(8)", "scaivaultctl(1)")


def _tables(name: str, option: Option, struct: type[msgspec.Struct]) -> Iterator[str]:
    yield f".SH {_quoted(f'[{name}]' if form_of(option.kind) == 'table' else f'[[{name}]]')}"
    yield from prose((struct.__doc__ or "").strip())
    yield from _keys(options_of(struct))
    for inner in options_of(struct):
        if (nested := struct_of(inner)) is not None:
            yield from _tables(f"{name}.{inner.name}", inner, nested)


def _keys(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        yield ".TP"
        yield f"\\fB{_escaped(option.name)}\\fR"
        yield from prose(option.description, paragraph=False)
        yield ".br"
        yield from prose(f"Form: {form_of(option.kind)}. Default: {default_of(option)}.", paragraph=False)


def _head(name: str, section: int, kind: str, purpose: str) -> Iterator[str]:
    yield f'.TH {_quoted(name.upper())} {section} "" {_quoted(f"scaivaultd {__version__}")} {_quoted(kind)}'
    # Words like `acme.accounts` are not to be hyphenated, lines not to be stretched.
    yield ".nh"
    yield ".ad l"
    yield ".SH NAME"
    yield f"{_escaped(name)} \\- {_escaped(purpose)}"


def _synopsis(lines: Iterable[str]) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    yield ".nf"
    yield from (_line(_escaped(line)) for line in lines)
    yield ".fi"


def _see_also(*pages: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    for page in pages:
        name, _, section = page.partition("(")
        yield f".BR {_escaped(name)} ({section}{'' if page == pages[-1] else ','}"


def _entries(entries: Iterable[Entry]) -> Iterator[str]:
    for entry in entries:
        if not entry.words:
            continue
        yield f".SS {_quoted(' '.join(entry.words))}"
        if not entry.is_group:
            yield from (".nf", _line(f"\\fB{_escaped(entry.usage)}\\fR"), ".fi")
        for paragraph in entry.text:
            yield from prose(paragraph)
        yield from _tagged(entry.options)


def _tagged(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, meaning in rows:
        yield ".TP"
        yield f"\\fB{_escaped(name)}\\fR"
        yield from prose(meaning, paragraph=False)


def prose(text: str, *, paragraph: bool = True) -> Iterator[str]:
    """Prose in which backticks mark what is typed; a sentence has its line, as roff wants it."""
    if paragraph:
        yield ".PP"
    parts = _escaped(" ".join(text.split())).split("`")
    parts[1::2] = [f"\\fB{part}\\fR" for part in parts[1::2]]
    for line in re.split(r"(?<=[.;?!]) (?=[A-Z])", "".join(parts)):
        yield _line(line)


def _line(line: str) -> str:
    """What begins a line of roff with a dot or an apostrophe would be a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _escaped(text: str) -> str:
    for plain, roff in (("\\", "\\e"), ("-", "\\-"), ("'", "\\(aq"), ("^", "\\(ha"), ("~", "\\(ti")):
        text = text.replace(plain, roff)
    return text


def _quoted(text: str) -> str:
    return '"' + _escaped(text).replace('"', '""') + '"'


def write(folder: Path) -> None:
    """Write every man page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in man_pages().items():
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
