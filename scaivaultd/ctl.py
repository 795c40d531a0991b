"""`scaivaultctl`: the administrator's tool. Imports none of NATS, aiohttp, acme and cryptography, to start at once."""

from __future__ import annotations

import difflib
import json
import sys

import click

from scaivaultd import __version__
from scaivaultd.model.errors import WIRE_ERRORS

EX_USAGE = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scaivaultctl")
def main() -> None:
    """Look after scaivaultd."""


@main.command()
@click.argument("code", required=False)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def explain(code: str | None, as_json: bool) -> None:
    """Explain an error CODE; without one, list them all."""
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
    """List the commands the daemon answers, with their NATS subjects."""
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


if __name__ == "__main__":
    main()
