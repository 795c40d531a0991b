"""`scaivaultctl status | secret | call`: the daemon itself, its secrets, and any command of the table."""

from __future__ import annotations

import difflib
import json
import sys
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_session import (
    EX_FAILED,
    EX_USAGE,
    Group,
    Verb,
    confirm,
    facts,
    moment,
    read_stdin,
    say,
    show,
    table,
    with_daemon,
)

if TYPE_CHECKING:
    from scaivaultd.ctl_session import Session


@click.command(cls=Verb)
@click.option("--live", is_flag=True, help="Only whether it lives, sealed or not: for a container's health check.")
@with_daemon
def status(session: Session, live: bool) -> None:
    """Show how the daemon is.

    The exit code is 1 unless it is ok, or only degraded. With --live it is 0 as long as it answers; no token is needed.
    """
    if live:
        session.live()
        session.show({"status": "live"}, lambda: ["live"])
        return
    reply = session.call("sys.health")
    session.show(
        reply,
        lambda: [
            reply["status"],
            *table(
                ("PART", "STATUS", "DETAIL"),
                [(each["name"], each["status"], each.get("detail", "")) for each in reply["components"]],
            ),
        ],
    )
    if reply["status"] not in ("ok", "degraded"):
        sys.exit(EX_FAILED)


@click.command(cls=Verb)
@with_daemon
def info(session: Session) -> None:
    """Show what runs: version, plugins, orders under way."""
    reply = session.call("sys.info")
    session.show(
        reply,
        lambda: [
            *facts(
                [
                    ("version", reply["version"]),
                    ("node", reply["node_id"]),
                    ("started", moment(reply["started_at"])),
                    ("challenges", reply["challenge_types"]),
                    ("solvers", reply["solvers"]),
                    ("DNS providers", reply["dns_provider_types"]),
                    ("orders under way", str(reply["orders_under_way"])),
                ]
            ),
            *table(
                ("PLUGIN", "VERSION", "FROM", "REFUSED"),
                [
                    (each["name"], each["version"], each["distribution"], each["refused"] or "-")
                    for each in reply["plugins"]
                ],
            ),
        ],
    )


@click.group(cls=Group)
def secret() -> None:
    """Secrets that DNS providers and accounts use by reference.

    They can be written, and are never read back.
    """


@secret.command("put")
@click.argument("path")
@with_daemon
def secret_put(session: Session, path: str) -> None:
    """Store a secret under PATH.

    Its value is asked for, or read from standard input.
    """
    is_typed = sys.stdin.isatty()
    value = str(click.prompt("Value", hide_input=True, err=True)) if is_typed else read_stdin().rstrip("\r\n")
    if not value:
        say("scaivaultctl: the value is empty")
        sys.exit(EX_USAGE)
    reply = session.call("secrets.put", path=path, value=value)
    session.show(reply, lambda: [f"{reply['path']}: version {reply['version']}"])


@secret.command("ls")
@click.argument("prefix", required=False)
@with_daemon
def secret_ls(session: Session, prefix: str | None) -> None:
    """List secrets, never their values."""
    found = session.all("secrets.list", prefix=prefix)
    session.show(
        found,
        lambda: table(
            ("PATH", "VERSION", "CHANGED", "USED BY"),
            [
                (each["path"], str(each["version"]), each["updated_at"][:10], ", ".join(each["used_by"]) or "-")
                for each in found
            ],
        ),
    )


@secret.command("rm")
@click.argument("path")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def secret_rm(session: Session, path: str, yes: bool) -> None:
    """Delete a secret."""
    confirm(path, f"The secret {path} will be gone for good", yes=yes)
    reply = session.call("secrets.delete", path=path)
    users = ", ".join(reply["used_by"])
    session.show(reply, lambda: [f"{path}: deleted" + (f"; still named by {users}" if users else "")])


@click.command(cls=Verb)
@click.argument("command")
@click.argument("body", required=False)
@with_daemon
def call(session: Session, command: str, body: str | None) -> None:
    """Send any COMMAND, with a JSON BODY, and print the reply.

    `scaivaultctl commands` lists them. With - the body is read from standard input: do so where it holds a secret.
    """
    from scaivaultd.api.commands import COMMANDS

    known = [each.name for each in COMMANDS]
    if command not in known:
        near = difflib.get_close_matches(command, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `scaivaultctl commands` lists them"
        say(f"scaivaultctl: there is no command {command!r}{hint}")
        sys.exit(EX_USAGE)
    reply = session.call(command, **_members(read_stdin() if body == "-" else body or "{}"))
    show(reply)


def _members(text: str) -> dict[str, Any]:
    try:
        members = json.loads(text)
    except ValueError as error:
        say(f"scaivaultctl: the body is not JSON: {error}")
        sys.exit(EX_USAGE)
    if not isinstance(members, dict):
        say("scaivaultctl: the body must be a JSON object")
        sys.exit(EX_USAGE)
    return members
