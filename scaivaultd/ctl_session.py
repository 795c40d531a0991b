"""What the verbs of `scaivaultctl` share: where the daemon is, how answers are shown, how failures end."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd.ctl_client import Client, Refused, Unreachable, address_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EX_FAILED = 1
EX_USAGE = 2
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
_PAGE = 500


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
        if self.as_json:
            click.echo(json.dumps(reply, indent=2, ensure_ascii=False))
            return
        for line in lines():
            click.echo(line)


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
            token = token_file.read_text().strip() if token_file else os.environ.get("SCAIVAULT_TOKEN")
            where = address_of(address, config, os.environ)
        except OSError as error:
            say(f"scaivaultctl: {token_file} cannot be read: {error.strerror}")
            sys.exit(EX_USAGE)
        except Unreachable as error:
            say(f"scaivaultctl: {error}")
            sys.exit(EX_USAGE)
        verb(Session(Client(where, token or None), as_json=as_json), *args, **options)

    return run


def say(text: str) -> None:
    """Talk to the person: standard output is for data."""
    click.echo(text, err=True)


def fail(problem: Mapping[str, Any]) -> NoReturn:
    """End the process for a problem document: what is wrong, where, what to do, and the id that the log knows."""
    from scaivaultd.model.errors import WIRE_ERRORS

    code = str(problem.get("code", "internal"))
    say(f"scaivaultctl: {problem.get('detail') or problem.get('title')}")
    for each in problem.get("errors", ()):
        if each.get("detail") != problem.get("detail"):
            say(f"  {each.get('pointer') or '/'}: {each.get('detail')}")
    remedy = next((error.remedy for error in WIRE_ERRORS if error.code == code), None)
    if remedy:
        say(click.wrap_text(remedy, width=_width(), initial_indent="  ", subsequent_indent="  "))
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
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
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


def _width() -> int:
    import shutil

    return min(shutil.get_terminal_size().columns, 100)
