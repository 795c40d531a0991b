"""`scaivaultctl`: the administrator's tool. Imports none of NATS, aiohttp, acme and cryptography, to start at once.

To add a group or a verb: write it in a module of its own (`ctl_session.py` tells how), and add a row to `_VERBS`. A
module is imported when its word is used, so that no other word waits for it or breaks with it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import click

from scaivaultd import __version__
from scaivaultd.ctl_output import complain
from scaivaultd.ctl_session import EX_FAILED, EX_INTERRUPTED, EXIT_CODES, Group, with_output, with_shared

if TYPE_CHECKING:
    from collections.abc import Sequence

# word -> (module:attribute, what it is for in one line); in the order of `--help`.
_VERBS = {
    "status": ("ctl_daemon:status", "Show how the daemon is."),
    "info": ("ctl_daemon:info", "Show what runs: version, plugins, orders under way."),
    "doctor": ("ctl_doctor:doctor", "Look for what is wrong on this host, and say how to mend it."),
    "setup": ("ctl_setup:setup", "Set the daemon up as a service of this host."),
    "config": ("ctl_config:config", "The configuration file: check, show, examples."),
    "reload": ("ctl_config:reload", "Have the daemon read its configuration again."),
    "explain": ("ctl_explain:explain", "Explain an error code, ours or the CA's."),
    "context": ("ctl_context:context", "Daemons that you look after: addresses and tokens."),
    "login": ("ctl_context:login", "Try a token, and keep it as a context."),
    "account": ("ctl_account:account", "ACME accounts: the registrations at CAs."),
    "limits": ("ctl_account:limits", "Show what the CAs limit, and what is left."),
    "cert": ("ctl_cert:cert", "Certificates: issue, list, show, renew, revoke."),
    "order": ("ctl_order:order", "Orders: how far each is, and why one failed."),
    "bulk": ("ctl_bulk:bulk", "Renew many certificates ahead of their time."),
    "import": ("ctl_import:import_", "Take over what another ACME client has."),
    "dns": ("ctl_dns:dns", "DNS providers, and where a name's challenge goes."),
    "secret": ("ctl_daemon:secret", "Secrets that are used by reference."),
    "policy": ("ctl_policy:policy", "Policies: who may do what."),
    "auth": ("ctl_access:auth", "Who you are, and what you may do."),
    "token": ("ctl_access:token", "API tokens: make, list, rotate, revoke."),
    "events": ("ctl_events:events", "What happened, and what happens now."),
    "agent": ("ctl_agent:agent", "Keep a host's certificate files up to date."),
    "audit": ("ctl_access:audit", "The audit log: who did what."),
    "keys": ("ctl_keys:keys", "The master key, which seals all that is secret."),
    "unseal": ("ctl_keys:unseal", "Give a sealed daemon its passphrase."),
    "backup": ("ctl_backup:backup", "Backups: make, verify, restore."),
    "resume": ("ctl_backup:resume", "Let a restored daemon go to work."),
    "plugin": ("ctl_plugin:plugin", "Write, list and check plugins."),
    "commands": ("ctl_explain:commands", "List the daemon's commands, with their subjects."),
    "call": ("ctl_daemon:call", "Send any command."),
}


class _Tool(Group):
    """The words of `_VERBS`, loaded when they are used; one whose module is not installed is left out."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every word, in the order of the table."""
        there = [word for word, (place, _) in _VERBS.items() if _is_there(place)]
        return [*there, *(word for word in self.commands if word not in _VERBS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb or group of a word; one that cannot be loaded ends the process in one line."""
        if cmd_name in self.commands or cmd_name not in _VERBS:
            return self.commands.get(cmd_name)
        place, _ = _VERBS[cmd_name]
        if not _is_there(place):
            return None
        module, _, attribute = place.partition(":")
        try:
            verb: click.Command = getattr(importlib.import_module(f"scaivaultd.{module}"), attribute)
        except Exception as error:  # noqa: BLE001 - whatever a module fails with, it must not be a traceback
            complain(f"scaivaultctl: {cmd_name!r} cannot be loaded from scaivaultd.{module}: {error!r}")
            sys.exit(EX_FAILED)
        self.add_command(verb, cmd_name)
        return verb

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table: nothing is loaded for `--help`."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (word, _VERBS[word][1] if word in _VERBS else self.commands[word].get_short_help_str(100))
                    for word in self.list_commands(ctx)
                ]
            )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The exit codes."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run; letters that the terminal cannot show do not end it."""
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Ctrl-C ends it without a word."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)  # the terminal has shown ^C
            ctx.exit(EX_INTERRUPTED)


def _is_there(place: str) -> bool:
    return importlib.util.find_spec(f"scaivaultd.{place.partition(':')[0]}") is not None


@click.group(cls=_Tool, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scaivaultctl")
@with_shared
def main(**shared: Any) -> None:
    """Look after scaivaultd: over its UNIX socket on this host, or over https with an API token."""


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@with_output
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script of a SHELL.

    Source it, or put it where the shell looks for such scripts.
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "scaivaultctl", "_SCAIVAULTCTL_COMPLETE").source())


def words() -> Sequence[str]:
    """Every word of the table, whether its module is installed or not."""
    return list(_VERBS)


if __name__ == "__main__":
    main()
