"""What the verbs of `scaivaultctl` share: where the daemon is, how answers are shown, how failures end."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd.ctl_client import Client, Misplaced, Refused, Unreachable, address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EX_FAILED = 1
EX_USAGE = 2
EX_NOT_ALLOWED = 4
EX_UNREACHABLE = 8
_EXIT_CODES = {
    "invalid_request": 2,
    "not_found": 3,
    "unauthenticated": 4,
    "permission_denied": 4,
    "conflict": 5,
    "precondition_failed": 5,
    "challenge_failed": 6,
    "dns_propagation_timeout": 6,
    "rate_limited": 7,
    "backend_rate_limited": 7,
    "timeout": 9,
}
# In place of those for programs, which read the documents.
_REMEDIES = {
    "invalid_request": "`--help` says what the verb takes; docs/reference/commands.md has every member.",
    "not_found": "List what there is, such as `scaivaultctl token ls --all`, `policy ls` or `secret ls`.",
    "unauthenticated": "Give a token in SCAIVAULT_TOKEN or by --token-file. It may be mistyped, expired, revoked, or "
    "bound to other networks; the daemon's log tells which.",
}
_PAGE = 500
_PADDING_MAX = 40


class Session:
    """One run of a verb."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client = client
        self.as_json = as_json

    def call(self, name: str, /, **members: Any) -> Any:
        """The reply to a command; a failure ends the process with its exit code, and says what to do."""
        try:
            return self._client.call(name, **members)
        except Refused as refused:
            fail(refused.problem)
        except Unreachable as unreachable:
            say(f"scaivaultctl: {unreachable}")
            sys.exit(EX_UNREACHABLE)

    def all(self, name: str, /, **members: Any) -> list[Any]:
        """Every item of a list, page after page."""
        found: list[Any] = []
        cursor = None
        while True:
            page = self.call(name, limit=_PAGE, cursor=cursor, **members)
            found += page["items"]
            if (cursor := page["next_cursor"]) is None:
                return found

    def show(self, reply: Any, lines: Callable[[], Sequence[str]]) -> None:
        """Print a reply as JSON if that was asked for, else its lines."""
        show(reply, lines, as_json=self.as_json)


def with_daemon(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb its session, and the options that say where the daemon is."""

    @click.option("--address", metavar="ADDRESS", help="unix:/PATH, or https://HOST (also $SCAIVAULT_ADDR).")
    @click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A daemon's configuration: use its UNIX socket.",
    )
    @click.option(
        "--token-file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="An API token (also $SCAIVAULT_TOKEN); the UNIX socket knows you without.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print the daemon's reply as it is.")
    @functools.wraps(verb)
    def run(
        *args: Any, address: str | None, config: Path | None, token_file: Path | None, as_json: bool, **options: Any
    ) -> None:
        try:
            where = address_of(address, config, os.environ)
            token = _token(token_file)
        except Misplaced as error:
            say(f"scaivaultctl: {error}")
            sys.exit(EX_USAGE)
        verb(Session(Client(where, token), as_json=as_json), *args, **options)

    return run


def _token(file: Path | None) -> str | None:
    try:
        given = file.read_bytes() if file else os.environb.get(b"SCAIVAULT_TOKEN", b"")
    except OSError as error:
        raise Misplaced(f"{file} cannot be read: {error.strerror}") from error
    token = given.strip()
    if not token and file is None:
        return None
    if not re.fullmatch(rb"[0-9A-Za-z_]+", token):
        raise Misplaced(f"what {file or '$SCAIVAULT_TOKEN'} holds is no token: one is scvt_, letters and digits")
    return token.decode()


def read_stdin() -> str:
    """All of standard input; bytes that are no text end the process."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        say("scaivaultctl: standard input is not UTF-8 text")
        sys.exit(EX_USAGE)


def show(reply: Any, lines: Callable[[], Sequence[str]] = tuple, *, as_json: bool = True) -> None:
    """Print something as JSON, or as its lines."""
    try:
        for line in [json.dumps(reply, indent=2)] if as_json else map(_plain, lines()):
            click.echo(line)
    except BrokenPipeError:
        raise  # whoever reads has read enough; click ends us quietly
    except OSError as error:
        say(f"scaivaultctl: the answer cannot be written: {error.strerror}; what was asked for is done")
        # The interpreter would try again as it ends, and fail with a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EX_FAILED)


def say(text: str) -> None:
    """Talk to the person: standard output is for data."""
    click.echo(_plain(text), err=True)


def _plain(text: str) -> str:
    """What strangers wrote may stand in a line: it must not move the cursor, nor look like another line."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def fail(problem: Mapping[str, Any]) -> NoReturn:
    """End the process for a problem document: what is wrong, where, what to do, and the id that the log knows."""
    from scaivaultd.model.errors import WIRE_ERRORS

    code = str(problem.get("code", "internal"))
    say(f"scaivaultctl: {problem.get('detail') or problem.get('title')}")
    for each in problem.get("errors", ()):
        if each.get("detail") != problem.get("detail"):
            say(f"  {each.get('pointer') or '/'}: {each.get('detail')}")
    remedy = _REMEDIES.get(code) or next((error.remedy for error in WIRE_ERRORS if error.code == code), None)
    if remedy:
        for line in _wrapped(remedy):
            say(line)
    request = f", request {problem['request_id']}" if "request_id" in problem else ""
    say(f"  [{code}{request}]")
    sys.exit(_EXIT_CODES.get(code, EX_FAILED))


def confirm(name: str, what: str, *, yes: bool) -> None:
    """Have the person type the name of what will be gone; without a terminal only `--yes` will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        say(f"scaivaultctl: {what}; say --yes if you mean it")
        sys.exit(EX_USAGE)
    typed = click.prompt(f"{what}. Type {name!r} to go on", default="", show_default=False, err=True)
    if typed != name:
        say("scaivaultctl: nothing was done")
        sys.exit(EX_FAILED)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns; the last one is as long as it is."""
    if not rows:
        return []
    # One cell of a thousand characters must not push all the others out of sight.
    widths = [min(max(map(len, column)), _PADDING_MAX) for column in zip(headings, *rows, strict=True)]
    lines = []
    for row in (headings, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines


def facts(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    """One line for each thing that there is to say of one resource; what is not there is left out."""
    told = [(name, _told(value)) for name, value in pairs if value not in (None, [], "")]
    width = max((len(name) for name, _ in told), default=0)
    return [f"{name:<{width}}  {value}" for name, value in told]


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _wrapped(text: str) -> list[str]:
    import shutil
    import textwrap

    width = max(20, min(shutil.get_terminal_size().columns, 100))
    # Paths and commands stay whole, to be copied.
    return textwrap.wrap(
        text, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )
