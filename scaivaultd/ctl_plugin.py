"""`scaivaultctl plugin`: write, list and check plugins; no daemon is asked."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from scaivaultd.ctl_session import EX_FAILED, Group, refuse, show, with_output


@click.group(cls=Group)
def plugin() -> None:
    """Write, list and check plugins."""


@plugin.command("new")
@click.argument("name")
@click.option("--dns/--solver", default=True, show_default=True, help="A DNS provider, or a challenge solver.")
@with_output
def plugin_new(name: str, dns: bool, as_json: bool) -> None:
    """Write a working plugin, a distribution called NAME, into ./NAME."""
    from scaivaultd.plugin_skeleton import write

    try:
        written = write(Path(name), name, "dns" if dns else "solver")
    except (ValueError, OSError) as error:
        refuse(str(error))
    paths = [str(path) for path in written]
    show(paths, lambda: paths, as_json=as_json)


@plugin.command("ls")
@with_output
def plugin_ls(as_json: bool) -> None:
    """List the installed plugins.

    With what they bring, or why they are refused.
    """
    from scaivaultd.plugin_check import findings

    found = findings()
    show(
        [each.as_row() for each in found],
        lambda: [
            line
            for each in found
            for line in (
                f"{each.name}  {each.distribution} {each.version}, contract {each.contract or 'unknown'}",
                f"  REFUSED: {each.refused}" if each.refused else f"  {each.summary()}",
            )
        ],
        as_json=as_json,
    )


@plugin.command("check")
@click.argument("name")
@with_output
def plugin_check(name: str, as_json: bool) -> None:
    """Load a plugin, and report everything that is wrong with it.

    NAME is the plugin's, or that of a distribution: all of its plugins then.
    """
    from scaivaultd.plugin_check import findings

    found = [each for each in findings() if name in (each.name, each.distribution)]
    if not found:
        refuse(f"there is no plugin {name!r}; `scaivaultctl plugin ls` lists them")
    told = [(each, ([f"it is refused: {each.refused}"] if each.refused else []) + list(each.faults)) for each in found]
    show(
        [{**each.as_row(), "faults": faults} for each, faults in told],
        lambda: [
            line
            for each, faults in told
            for line in (
                f"{each.name}: {len(faults)} to put right" if faults else f"{each.name}: {each.summary()}",
                *(f"  {fault}" for fault in faults),
            )
        ],
        as_json=as_json,
    )
    if any(faults for _, faults in told):
        sys.exit(EX_FAILED)
