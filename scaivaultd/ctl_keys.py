"""`scaivaultctl keys | unseal`: the master key."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_session import (
    EX_FAILED,
    Group,
    Verb,
    confirm,
    facts,
    moment,
    read_secret,
    say,
    show,
    with_daemon,
    with_output,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.ctl_session import Session

_LOOK_SECONDS = 1.0


@click.group(cls=Group)
def keys() -> None:
    """The master key, which seals all that is secret."""


@keys.command("status")
@with_daemon
def keys_status(session: Session) -> None:
    """Show which key is in use, or why the daemon is sealed."""
    reply = session.call("sys.master_key.get")
    session.show(reply, lambda: _status(reply))


@keys.command("init")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The key file to make; it is never overwritten.",
)
@with_output
def keys_init(path: Path, as_json: bool) -> None:
    """Make a master key in a new file, and print its recovery key.

    Name the file in [secrets] master_key before the daemon's first start. The recovery key is not shown again. It is
    the master key itself in another form: whoever has it and a copy of the store can read everything.
    """
    from scaivaultd.model.errors import StartupError
    from scaivaultd.store.master_key import create_master_key_file, load_master_key, recovery_key

    try:
        create_master_key_file(path.absolute())
        key = load_master_key(f"file:{path.absolute()}", environment={}, credentials_directory=None)
    except StartupError as error:
        say(f"scaivaultctl: {error}")
        sys.exit(EX_FAILED)
    recovery = recovery_key(key)
    show({"file": str(path), "recovery_key": recovery}, lambda: [recovery], as_json=as_json)
    say(f"{path} is the master key; above is its recovery key, which is not shown again. Write it down.")
    say(f"`scaivaultctl keys recover --file {path}` makes the file anew from it.")


@keys.command("recover")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The key file to make; it is never overwritten.",
)
@with_output
def keys_recover(path: Path, as_json: bool) -> None:
    """Make the key file anew from the recovery key.

    That is asked for, or read from standard input.
    """
    from scaivaultd.model.errors import StartupError
    from scaivaultd.store.master_key import create_master_key_file, from_recovery_key

    try:
        create_master_key_file(path.absolute(), from_recovery_key(read_secret("Recovery key")))
    except (StartupError, ValueError) as error:
        say(f"scaivaultctl: {error}")
        sys.exit(EX_FAILED)
    show({"file": str(path)}, lambda: [str(path)], as_json=as_json)
    say(f"{path} is there again; the daemon takes it on SIGHUP or at its next start")


@keys.command("rotate-master")
@click.option("--new-source", metavar="SOURCE", help="Where the new key is: file:PATH, credential:NAME or env:NAME.")
@click.option("--new-passphrase", is_flag=True, help="Ask for a new passphrase, where the key is made from one.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until everything is sealed anew.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def keys_rotate(session: Session, new_source: str | None, new_passphrase: bool, wait: bool, yes: bool) -> None:
    """Seal everything under a new master key while the daemon works.

    Without a new source the file that holds the key now gets the new one.
    """
    before = session.call("sys.master_key.get")
    confirm("rotate", f"Key {before['kid']} will open nothing any more", yes=yes)
    passphrase = read_secret("New passphrase", twice=True) if new_passphrase else None
    reply = session.call("sys.master_key.rotate", new_source=new_source, new_passphrase=passphrase)
    if wait:
        reply = _ended(session, reply)
    session.show(reply, lambda: _status(reply))
    if passphrase is None:
        say("What was written down of the earlier key opens only backups from before.")


def _ended(session: Session, reply: Any) -> Any:
    """The state once the rotation has ended; it takes as long as the store is large, and goes on without us."""
    is_seen = False
    while _is_going(reply):
        if sys.stderr.isatty():
            click.echo(f"\r{reply['rotation']['rewrapped']} sealed anew", err=True, nl=False)
            is_seen = True
        time.sleep(_LOOK_SECONDS)
        reply = session.call("sys.master_key.get")
    if is_seen:
        say("")
    return reply


@click.command(cls=Verb)
@with_daemon
def unseal(session: Session) -> None:
    """Give a sealed daemon the passphrase of its master key.

    It is asked for, or read from standard input.
    """
    before = session.call("sys.master_key.get")
    if not before["is_sealed"]:
        say("The daemon is not sealed.")
        return
    is_new = before.get("kid") is None
    if is_new:
        say("The store is new: this passphrase will be the only way to it. There is no way to get it back.")
    reply = session.call("sys.unseal", passphrase=read_secret("Passphrase", twice=is_new))
    session.show(reply, lambda: _status(reply))


def _is_going(reply: Mapping[str, Any]) -> bool:
    return bool(reply["rotation"] and reply["rotation"]["finished_at"] is None)


def _status(reply: Mapping[str, Any]) -> list[str]:
    rotation = reply["rotation"] or {}
    going = _is_going(reply)
    return facts(
        [
            ("sealed", reply["is_sealed"]),
            ("reason", reply["reason"]),
            ("detail", reply["detail"]),
            ("key", reply["kid"]),
            ("source", reply["source"]),
            ("since", moment(reply["created_at"])),
            (
                "rotation",
                (going or None) and f"{rotation['from_kid']} to {rotation['to_kid']}, {rotation['rewrapped']} done",
            ),
            ("rotated", None if going else moment(rotation.get("finished_at"))),
        ]
    )
