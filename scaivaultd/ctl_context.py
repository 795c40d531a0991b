"""`scaivaultctl context | login`: the daemons that a person looks after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from scaivaultd import ctl_places
from scaivaultd.ctl_client import Client, Misplaced, address_of
from scaivaultd.ctl_session import (
    Group,
    Session,
    Verb,
    confirm,
    facts,
    read_secret,
    refuse,
    say,
    show,
    table,
    with_output,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group(cls=Group)
def context() -> None:
    """Daemons that you look after: where each is, and your token for it.

    They are files of yours alone, in ~/.config/scaivault/contexts. One is used if --context or $SCAIVAULT_CONTEXT names
    it, or `context use` has chosen it, and neither --address nor $SCAIVAULT_ADDR says otherwise.
    """


@context.command("add")
@click.argument("name")
@click.option("--address", required=True, metavar="ADDRESS", help="unix:/PATH, or https://HOST[:PORT].")
@click.option("--token-file", type=_FILE, metavar="FILE", help="Where the token is; read at each use.")
@click.option("--token", "ask", is_flag=True, help="Keep a token: it is asked for, or read from standard input.")
@click.option("--ca-file", type=_FILE, metavar="FILE", help="The CA of the address, if not public.")
@click.option("--use", is_flag=True, help="Use it from now on.")
@click.option("--force", is_flag=True, help="Replace one of that name.")
@with_output
def context_add(
    name: str,
    address: str,
    token_file: Path | None,
    ask: bool,
    ca_file: Path | None,
    use: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Keep a daemon's address under NAME; no daemon is asked."""
    if token_file and ask:
        refuse("give one of --token and --token-file")
    try:
        where = address_of(address, None, {})
        _require_free(name, force=force)
        token = _checked(read_secret("Token")) if ask else None
        kept = ctl_places.Context(where, token, _absolute(token_file), _absolute(ca_file))
        file = ctl_places.write(name, kept, os.environ)
        if use:
            ctl_places.choose(name, os.environ)
    except Misplaced as error:
        refuse(str(error))
    show({"name": name, "address": where, "file": str(file)}, lambda: [str(file)], as_json=as_json)


def _require_free(name: str, *, force: bool) -> None:
    if ctl_places.file_of(name, os.environ).exists() and not force:
        refuse(f"there is a context {name!r} already; --force replaces it")


def _absolute(path: Path | None) -> Path | None:
    return path and path.absolute()


def _checked(text: str) -> str:
    if (token := ctl_places.token_in(text, "what was given")) is None:
        refuse("the token is empty")
    return token


@context.command("ls")
@with_output
def context_ls(as_json: bool) -> None:
    """List contexts; the one in use has a star."""
    current = os.environ.get("SCAIVAULT_CONTEXT") or ctl_places.current(os.environ)
    rows = [_row(name, is_current=name == current) for name in ctl_places.names(os.environ)]
    show(
        rows,
        lambda: table(
            ("", "NAME", "ADDRESS", "TOKEN"),
            [("*" if row["is_current"] else " ", row["name"], row["address"], row["token"]) for row in rows],
        ),
        as_json=as_json,
    )


def _row(name: str, *, is_current: bool) -> dict[str, Any]:
    try:
        kept = ctl_places.read(name, os.environ)
    except Misplaced as error:
        return {"name": name, "is_current": is_current, "address": f"unusable: {error}", "token": "-", "ca_file": None}
    return {
        "name": name,
        "is_current": is_current,
        "address": kept.address,
        "token": "kept here" if kept.token else str(kept.token_file) if kept.token_file else "-",
        "ca_file": kept.ca_file and str(kept.ca_file),
    }


@context.command("show")
@click.argument("name", required=False)
@with_output
def context_show(name: str | None, as_json: bool) -> None:
    """Show a context, or the one in use; never its token."""
    chosen = name or os.environ.get("SCAIVAULT_CONTEXT") or ctl_places.current(os.environ)
    if chosen is None:
        refuse("no context is in use; `scaivaultctl context ls` lists them")
    try:
        ctl_places.read(chosen, os.environ)
        file = ctl_places.file_of(chosen, os.environ)
    except Misplaced as error:
        refuse(str(error))
    row = {**_row(chosen, is_current=chosen == ctl_places.current(os.environ)), "file": str(file)}
    show(row, lambda: _lines(row), as_json=as_json)


def _lines(row: Mapping[str, Any]) -> list[str]:
    return facts(
        [
            ("name", row["name"]),
            ("address", row["address"]),
            ("token", row["token"]),
            ("CA file", row["ca_file"]),
            ("in use", row["is_current"]),
            ("file", row["file"]),
        ]
    )


@context.command("use")
@click.argument("name", required=False)
@click.option("--none", "is_none", is_flag=True, help="Use none: the daemon of this host.")
@with_output
def context_use(name: str | None, is_none: bool, as_json: bool) -> None:
    """Use a context from now on."""
    if (name is None) is not is_none:
        refuse("give a NAME, or --none")
    try:
        if name is not None:
            ctl_places.read(name, os.environ)
        ctl_places.choose(name, os.environ)
    except Misplaced as error:
        refuse(str(error))
    show({"current": name}, lambda: [name or "none: the daemon of this host"], as_json=as_json)


@context.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_output
def context_rm(name: str, yes: bool, as_json: bool) -> None:
    """Delete a context, and the token in it; the daemon is not asked."""
    try:
        file = ctl_places.file_of(name, os.environ)
        if name not in ctl_places.names(os.environ):
            refuse(f"there is no context {name!r}; `scaivaultctl context ls` lists them")
        confirm(name, f"The context {name} will be gone, and the token in it", yes=yes)
        ctl_places.remove(name, os.environ)
    except Misplaced as error:
        refuse(str(error))
    show({"name": name, "deleted": True}, lambda: [f"{file}: deleted"], as_json=as_json)


@click.command(cls=Verb)
@click.argument("address")
@click.option("--name", help="The context's name; the host's unless given.")
@click.option("--ca-file", type=_FILE, metavar="FILE", help="The CA of the address, if not public.")
@click.option("--force", is_flag=True, help="Replace a context of that name.")
@with_output
def login(address: str, name: str | None, ca_file: Path | None, force: bool, as_json: bool) -> None:
    """Try a token at ADDRESS, and keep both as a context from now on.

    The token is asked for, or read from standard input.
    """
    try:
        where = address_of(address, None, {})
        name = name or str(urlsplit(where).hostname or "local")
        _require_free(name, force=force)
        token = _checked(read_secret("Token"))
        who = Session(Client(where, token, ca_file), as_json=as_json).call("auth.whoami")
        ctl_places.write(name, ctl_places.Context(where, token, None, _absolute(ca_file)), os.environ)
        ctl_places.choose(name, os.environ)
    except Misplaced as error:
        refuse(str(error))
    show(
        {"context": name, "address": where, "principal": who["principal"], "name": who["name"]},
        lambda: facts([("context", name), ("address", where), ("principal", who["principal"]), ("name", who["name"])]),
        as_json=as_json,
    )
    say(f"`scaivaultctl context rm {name}` forgets it; the token stays good until it is revoked.")
