"""`scaivaultctl`: the administrator's tool. Imports none of NATS, aiohttp, acme and cryptography, to start at once."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path

import click

from scaivaultd import __version__, ctl_access, ctl_daemon, ctl_keys, ctl_policy
from scaivaultd.ctl_session import EX_USAGE


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scaivaultctl")
def main() -> None:
    """Look after scaivaultd: over its UNIX socket on this host, or over https with an API token."""


for _verb in (
    ctl_daemon.status,
    ctl_daemon.secret,
    ctl_daemon.call,
    ctl_access.token,
    ctl_policy.policy,
    ctl_access.auth,
    ctl_access.audit,
    ctl_keys.keys,
    ctl_keys.unseal,
):
    main.add_command(_verb)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL.

    Source it, or put it where the shell looks for such scripts.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "scaivaultctl", "_SCAIVAULTCTL_COMPLETE").source())


@main.command()
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error CODE; without one, list them all."""
    from scaivaultd.model.errors import WIRE_ERRORS

    known = {error.code: error for error in WIRE_ERRORS}
    if code is None:
        rows = [{"code": name, "status": error.status, "title": error.title} for name, error in known.items()]
        if as_json:
            click.echo(json.dumps(rows))
            return
        width = max(map(len, known))
        for row in rows:
            click.echo(f"{row['code']:<{width}}  {row['status']}  {row['title']}")
        return
    error = known.get(code)
    if error is None:
        near = difflib.get_close_matches(code, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; `scaivaultctl explain` lists them"
        click.echo(f"scaivaultctl: there is no error code {code!r}{hint}", err=True)
        sys.exit(EX_USAGE)
    fields = {
        "code": error.code,
        "status": error.status,
        "title": error.title,
        "retryable": error.retryable,
        "remedy": error.remedy,
    }
    if as_json:
        click.echo(json.dumps(fields))
        return
    click.echo(f"{error.code} ({error.status}): {error.title}.")
    click.echo(click.wrap_text(error.remedy, width=78, initial_indent="  ", subsequent_indent="  "))
    click.echo("  Asking again may help." if error.retryable else "  Asking again in the same way does not help.")


@main.command()
@click.option("--root", default="scaivault.v1", show_default=True, help="The subject root of the daemon.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output, with examples.")
def commands(root: str, as_json: bool) -> None:
    """List the commands that there are, with their NATS subjects."""
    from scaivaultd.api.commands import COMMANDS

    if as_json:
        rows = [
            {
                "name": command.name,
                "subject": command.subject(root),
                "summary": command.summary,
                "permission": command.permission,
                "example": command.example,
            }
            for command in COMMANDS
        ]
        click.echo(json.dumps(rows))
        return
    for command in COMMANDS:
        click.echo(command.subject(root))
        click.echo(f"  {command.summary}")


@main.group()
def plugin() -> None:
    """Write, list and check plugins."""


@plugin.command("new")
@click.argument("name")
@click.option("--dns/--solver", default=True, show_default=True, help="A DNS provider, or a challenge solver.")
def plugin_new(name: str, dns: bool) -> None:
    """Write a working plugin, a distribution called NAME, into ./NAME."""
    from scaivaultd.plugin_skeleton import write

    try:
        written = write(Path(name), name, "dns" if dns else "solver")
    except (ValueError, OSError) as error:
        click.echo(f"scaivaultctl: {error}", err=True)
        sys.exit(EX_USAGE)
    for path in written:
        click.echo(path)


@plugin.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def plugin_ls(as_json: bool) -> None:
    """List the installed plugins.

    With what they bring, or why they are refused.
    """
    from scaivaultd.plugin_check import findings

    found = findings()
    if as_json:
        click.echo(json.dumps([each.as_row() for each in found]))
        return
    for each in found:
        click.echo(f"{each.name}  {each.distribution} {each.version}, contract {each.contract or 'unknown'}")
        click.echo(f"  REFUSED: {each.refused}" if each.refused else f"  {each.summary()}")


@plugin.command("check")
@click.argument("name")
def plugin_check(name: str) -> None:
    """Load a plugin, and report everything that is wrong with it.

    NAME is the plugin's, or that of a distribution: all of its plugins then.
    """
    from scaivaultd.plugin_check import findings

    found = [each for each in findings() if name in (each.name, each.distribution)]
    if not found:
        click.echo(f"scaivaultctl: there is no plugin {name!r}; `scaivaultctl plugin ls` lists them", err=True)
        sys.exit(EX_USAGE)
    for each in found:
        faults = ([f"it is refused: {each.refused}"] if each.refused else []) + list(each.faults)
        click.echo(f"{each.name}: {each.summary()}" if not faults else f"{each.name}: {len(faults)} to put right")
        for fault in faults:
            click.echo(f"  {fault}")
    if any(each.refused or each.faults for each in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
