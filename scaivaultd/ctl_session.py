"""What the verbs of `scaivaultctl` share: how they are found, where the daemon is, how failures end.

A group is made with `@click.group(cls=Group)`, its verbs with `@GROUP.command(...)`, a verb of its own with
`@click.command(cls=Verb)`. A verb that asks the daemon has `@with_daemon` next to the function, one that does not has
`@with_output`. Both bring options that every verb has; a verb's own option of the same name takes the place of it.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd.ctl_client import DEFAULT_SOCKET, NULL, TIMEOUT_SECONDS, Client, Misplaced, Refused, Unreachable
from scaivaultd.ctl_output import complain, facts, moment, relative, say, show, table, wrapped
from scaivaultd.ctl_places import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = [
    "EXIT_CODES",
    "EX_CONFIG",
    "EX_CONFLICT",
    "EX_FAILED",
    "EX_INTERRUPTED",
    "EX_LIMITED",
    "EX_NOT_ALLOWED",
    "EX_NOT_FOUND",
    "EX_PROBLEMS",
    "EX_UNREACHABLE",
    "EX_USAGE",
    "EX_VALIDATION",
    "EX_WAITED",
    "NULL",
    "Group",
    "Session",
    "Verb",
    "complain",
    "confirm",
    "facts",
    "fail",
    "moment",
    "read_secret",
    "read_stdin",
    "refuse",
    "relative",
    "say",
    "show",
    "table",
    "with_daemon",
    "with_output",
]

EX_FAILED = 1
EX_USAGE = 2
EX_NOT_FOUND = 3
EX_NOT_ALLOWED = 4
EX_CONFLICT = 5
EX_VALIDATION = 6
EX_LIMITED = 7
EX_UNREACHABLE = 8
EX_WAITED = 9
EX_PROBLEMS = 10
EX_CONFIG = 78
EX_INTERRUPTED = 130
EXIT_CODES = {
    0: "done",
    1: "it failed",
    2: "wrong usage, or a request that is not valid",
    3: "not found",
    4: "not allowed, or not known to the daemon",
    5: "conflict: it is there already, or is in use",
    6: "the CA's validation of a name failed",
    7: "a rate limit, ours or the CA's",
    8: "the daemon cannot be reached",
    9: "waited long enough; what was begun goes on",
    10: "doctor found errors",
    78: "the configuration is invalid",
    130: "interrupted by Ctrl-C",
}
_OF_CODES = {
    "invalid_request": 2,
    "not_found": 3,
    "unauthenticated": 4,
    "permission_denied": 4,
    "policy_violation": 4,
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
    "not_found": "The `ls` of the same word lists what there is, such as `scaivaultctl token ls --all`.",
    "unauthenticated": "Give a token in SCAIVAULT_TOKEN, by --token-file or in a context. It may be mistyped, expired, "
    "revoked, or bound to other networks; the daemon's log tells which.",
}
# What other tools call it.
_ALSO_CALLED = {
    "list": "ls",
    "get": "show",
    "describe": "show",
    "info": "show",
    "delete": "rm",
    "remove": "rm",
    "new": "create",
    "add": "create",
    "edit": "update",
    "set": "update",
    "certificate": "cert",
    "certs": "cert",
    "secrets": "secret",
    "health": "status",
    "logs": "audit",
    "whoami": "auth",
}
_PAGE = 500
_ACCOUNT_ID = re.compile(r"acme_[0-9a-z]{26}")
_HIDDEN = ("hmac_key", "account_key_pem", "private_key_pem", "value", "passphrase", "new_passphrase")


class _Shared(click.Option):
    """An option that every verb has."""


def is_shared(parameter: click.Parameter) -> bool:
    """Whether it is one of the options that every verb has."""
    return isinstance(parameter, _Shared)


class Verb(click.Command):
    """A verb; what every verb takes stands apart in its help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Its own options first."""
        _options(self, ctx, formatter, "Options", shared=False)
        _options(self, ctx, formatter, "Options of every verb", shared=True)


def _options(verb: click.Command, ctx: click.Context, formatter: click.HelpFormatter, title: str, shared: bool) -> None:
    options = [each for each in verb.get_params(ctx) if isinstance(each, click.Option)]
    of_kind = [each for each in options if is_shared(each) is shared]
    if records := [record for each in of_kind if (record := each.get_help_record(ctx))]:
        with formatter.section(title):
            formatter.write_dl(records)


class Group(click.Group):
    """Verbs below a word; whoever mistypes one is told which it may have been."""

    command_class = Verb
    group_class = type

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Take a verb in; its own options come before those that every verb has."""
        own = {opt for each in cmd.params if not isinstance(each, _Shared) for opt in each.opts}
        cmd.params = [each for each in cmd.params if not isinstance(each, _Shared) or not own & set(each.opts)]
        super().add_command(cmd, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that is meant.

        Raises:
            UsageError: there is none; with those that look like it.
        """
        word = args[0]
        if self.get_command(ctx, word) is None and not word.startswith("-") and not ctx.resilient_parsing:
            known = self.list_commands(ctx)
            also = _ALSO_CALLED.get(word)
            near = [also] if also in known else difflib.get_close_matches(word, known, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"There are {', '.join(known)}."
            raise click.UsageError(f"there is no {word!r} here; {hint}" if near else f"no {word!r} here. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options first, then the verbs."""
        _options(self, ctx, formatter, "Options", shared=False)
        _options(self, ctx, formatter, "Options of every verb", shared=True)
        self.format_commands(ctx, formatter)


class Session:
    """One run of a verb."""

    def __init__(self, client: Client, *, as_json: bool) -> None:
        self._client = client
        self.as_json = as_json
        self.nobody = ""

    def call(self, name: str, /, **members: Any) -> Any:
        """The reply to a command; a failure ends the process with its exit code, and says what to do."""
        try:
            return self.ask(name, **members)
        except Refused as refused:
            fail(refused.problem)

    def ask(self, name: str, /, **members: Any) -> Any:
        """The same for who goes on after a refusal; raises Refused."""
        try:
            return self._client.call(name, **members)
        except Unreachable as unreachable:
            complain(f"scaivaultctl: {unreachable}")
            sys.exit(EX_UNREACHABLE)

    def live(self) -> None:
        """Return if the daemon lives; if not, that ends the process."""
        try:
            self._client.live()
        except (Refused, Unreachable) as error:
            complain(f"scaivaultctl: {error}")
            sys.exit(EX_UNREACHABLE)

    def attempt(self, name: str, /, **members: Any) -> Any:
        """The same for verbs that can go on without it: raises Refused and Unreachable."""
        return self._client.call(name, **members)

    def all(self, name: str, /, **members: Any) -> list[Any]:
        """Every item of a list, page after page."""
        found: list[Any] = []
        cursor = None
        while True:
            page = self.call(name, limit=_PAGE, cursor=cursor, **members)
            found += page["items"]
            if (cursor := page["next_cursor"]) is None:
                return found

    def account_id(self, given: str) -> str:
        """The id of an account that is given by its id or its name; one that is not there ends the process."""
        if _ACCOUNT_ID.fullmatch(given):
            return given
        there = self.all("pki.acme.accounts.list")
        for each in there:
            if each["name"] == given:
                return str(each["id"])
        near = difflib.get_close_matches(given, [each["name"] for each in there], n=1)
        complain(
            f"scaivaultctl: there is no account {given!r}"
            + (f"; did you mean {near[0]!r}?" if near else "; `scaivaultctl account ls` lists them")
        )
        sys.exit(EX_NOT_FOUND)

    def expect(self, seconds: float) -> None:
        """The daemon may take that long over what is asked next: wait for it beyond the usual time."""
        self._client.timeout_seconds += seconds

    def limit(self, seconds: float) -> None:
        """Wait at most so long for each answer, unless the person said otherwise."""
        if self._client.timeout_seconds == TIMEOUT_SECONDS:
            self._client.timeout_seconds = seconds

    def would_call(self, name: str, /, **members: Any) -> None:
        """For `--dry-run`: show what `call` would send, without its secrets."""
        sent = {key: None if value is NULL else value for key, value in members.items() if value is not None}
        shown = _without_secrets(sent)
        self.show({"command": name, "request": shown}, lambda: [name, *json.dumps(shown, indent=2).splitlines()])
        say("Nothing was sent (dry run).")

    def show(self, reply: Any, lines: Callable[[], Sequence[str]]) -> None:
        """Print a reply as JSON if that was asked for, else its lines."""
        show(reply, lines, as_json=self.as_json)


def _without_secrets(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: "(hidden)" if key in _HIDDEN else _without_secrets(each) for key, each in value.items()}


def _shared(*names: str, **attributes: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(*names, cls=_Shared, **attributes)


_FILE = click.Path(path_type=Path)
_OF_OUTPUT = (
    _shared("--json", "at_json", is_flag=True, help="Machine-readable output."),
    _shared("--quiet", "-q", "at_quiet", is_flag=True, help="Say nothing but what went wrong."),
    _shared("--no-color", "at_no_color", is_flag=True, help="No colours (also $NO_COLOR)."),
)
_OF_CONNECTION = (
    _shared("--address", "at_address", metavar="ADDRESS", help="unix:/PATH, or https://HOST (also $SCAIVAULT_ADDR)."),
    _shared("--config", "at_config", type=_FILE, metavar="FILE", help="A daemon's configuration: use its UNIX socket."),
    _shared("--context", "at_context", metavar="NAME", help="A context, see `context` (also $SCAIVAULT_CONTEXT)."),
    _shared(
        "--token-file",
        "at_token_file",
        type=_FILE,
        metavar="FILE",
        help="An API token (also $SCAIVAULT_TOKEN); the UNIX socket knows you without.",
    ),
    _shared("--ca-file", "at_ca_file", type=_FILE, metavar="FILE", help="The CA of an https address, if not public."),
    _shared(
        "--timeout",
        "at_timeout",
        type=click.FloatRange(min=0, min_open=True, max=3600),
        metavar="SECONDS",
        help=f"How long to wait for an answer; {TIMEOUT_SECONDS:.0f} unless given.",
    ),
)


def with_shared(verb: Callable[..., None]) -> Callable[..., None]:
    """Give the options of every verb to the tool itself, for those who name them first."""
    for option in reversed((*_OF_CONNECTION, *_OF_OUTPUT)):
        verb = option(verb)
    return verb


def with_daemon(verb: Callable[..., None], *, is_needed: bool = True) -> Callable[..., None]:
    """Give a verb its session, and the options that say where the daemon is.

    Unless it `is_needed`, a place that cannot be made out leaves a session with nobody; `Session.nobody` says why.
    """

    @with_shared
    @functools.wraps(verb)
    def run(*args: Any, **given: Any) -> None:
        shared, own = _apart(given)
        try:
            place = place_of(shared, os.environ)
        except Misplaced as error:
            if not is_needed:
                session = Session(Client(DEFAULT_SOCKET, None), as_json=bool(shared.get("at_json")))
                session.nobody = str(error)
                verb(session, *args, **own)
                return
            complain(f"scaivaultctl: {error}")
            sys.exit(EX_USAGE)
        client = Client(place.address, place.token, place.ca_file, shared.get("at_timeout") or TIMEOUT_SECONDS)
        verb(Session(client, as_json=bool(shared.get("at_json"))), *args, **own)

    return run


def with_output(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb that does without a daemon `as_json`, and the options that say how its answer looks."""

    @functools.wraps(verb)
    def run(*args: Any, **given: Any) -> None:
        shared, own = _apart(given)
        verb(*args, as_json=bool(shared.get("at_json")), **own)

    for option in reversed(_OF_OUTPUT):
        run = option(run)
    return run


def _apart(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of every verb, and the verb's own. What stands behind the verb beats what stands before it."""
    context = click.get_current_context()
    shared = {name: value for name, value in context.find_root().params.items() if name.startswith("at_")}
    shared |= {name: value for name, value in given.items() if name.startswith("at_") and value not in (None, False)}
    context.meta["scaivaultctl.quiet"] = shared.get("at_quiet")
    if shared.get("at_no_color"):
        context.color = False
    return shared, {name: value for name, value in given.items() if not name.startswith("at_")}


def read_stdin() -> str:
    """All of standard input; bytes that are no text end the process."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        complain("scaivaultctl: standard input is not UTF-8 text")
        sys.exit(EX_USAGE)


def read_secret(what: str, *, twice: bool = False) -> str:
    """A secret from the terminal, without echo, or the first line of standard input; never from an argument."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True, confirmation_prompt=twice, err=True))
    text = read_stdin().partition("\n")[0].rstrip("\r")
    if not text:
        complain(f"scaivaultctl: standard input is empty; it must hold the {what[:1].lower()}{what[1:]}")
        sys.exit(EX_USAGE)
    return text


def fail(problem: Mapping[str, Any]) -> NoReturn:
    """End the process for a problem document: what is wrong, where, what to do, and the id that the log knows."""
    for line in _told(problem):
        complain(line)
    sys.exit(_OF_CODES.get(str(problem.get("code")), EX_FAILED))


def _told(problem: Mapping[str, Any]) -> Iterator[str]:
    from scaivaultd.model.errors import WIRE_ERRORS
    from scaivaultd.model.explanations import acme_problem

    code = str(problem.get("code", "internal"))
    yield f"scaivaultctl: {problem.get('detail') or problem.get('title')}"
    for each in problem.get("errors", ()):
        if each.get("detail") != problem.get("detail"):
            yield f"  {each.get('pointer') or '/'}: {each.get('detail')}"
    acme = problem.get("acme") or {}
    said = acme_problem(str(acme.get("type", "")))
    if said is not None and code == "ca_error":
        yield from wrapped(f"{said.meaning} {said.remedy}")
    elif remedy := _REMEDIES.get(code) or next((each.remedy for each in WIRE_ERRORS if each.code == code), None):
        yield from wrapped(remedy)
    request = f", request {problem['request_id']}" if "request_id" in problem else ""
    yield f"  [{code}{request}]"


def refuse(what: str) -> NoReturn:
    """End the process for wrong usage."""
    complain(f"scaivaultctl: {what}")
    sys.exit(EX_USAGE)


def confirm(name: str, what: str, *, yes: bool) -> None:
    """Have the person type the name of what will be gone; without a terminal only `--yes` will do."""
    if yes:
        return
    if not sys.stdin.isatty():
        refuse(f"{what}; say --yes if you mean it")
    typed = click.prompt(f"{what}. Type {name!r} to go on", default="", show_default=False, err=True)
    if typed != name:
        complain("scaivaultctl: nothing was done")
        sys.exit(EX_FAILED)
