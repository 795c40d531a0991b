"""`scaivaultd`: the daemon's own commands. Imports the daemon only where it is about to run."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from scaivaultd import __version__
from scaivaultd.model.errors import StartupError, StorageUnavailable
from scaivaultd.systemd import take

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.daemon import Daemon
    from scaivaultd.settings import Settings
    from scaivaultd.settings_layers import Mistake
    from scaivaultd.systemd import Handed, Notifier

EX_CONFIG = 78
FILES_MAX = 65_536
HELD_UP_SECONDS = 2.0
DEFAULT_CONFIG = Path("/etc/scaivaultd/scaivaultd.toml")

_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=DEFAULT_CONFIG,
    show_default=True,
    metavar="FILE",
    help="The configuration file (TOML).",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="scaivaultd")
def main() -> None:
    """The ACME client of an organisation: certificates over NATS, renewed for years."""


@main.command()
@_config_option
def serve(config_file: Path) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT."""
    handed = take(os.environ, os.getpid())
    settings = _settings(config_file, handed.notifier)
    _raise_file_limit()
    # A crash must not leave the keys in use in a file; what is started from here inherits that.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = asyncio.run(_serve(settings, handed, lambda: _read(config_file)))
    handed.notifier.barrier()
    handed.notifier.close()
    sys.exit(code)


@main.command("check-config")
@_config_option
def check_config(config_file: Path) -> None:
    """Check the configuration, and the files and plugins it names; exit code 78 when something is wrong."""
    from scaivaultd.ctl_installed import installed
    from scaivaultd.settings import layers_of
    from scaivaultd.settings_plugins import check_plugins

    settings = _settings(config_file)
    if mistakes := check_plugins(settings, installed(), layers_of(config_file, os.environ)):
        _end_with(mistakes)
    click.echo(f"{config_file}: ok")


@main.command()
@click.option("--keep", is_flag=True, help="Leave the daemon running at the end, until Ctrl-C.")
@click.option(
    "--ca",
    type=click.Choice(["auto", "pebble", "development"]),
    default="auto",
    show_default=True,
    help="Which CA to use: Pebble from PATH, or the one built in.",
)
def demo(keep: bool, ca: str) -> None:
    """Show it all on this machine: a CA, a DNS server, the daemon, a certificate by each challenge, the events."""
    from scaivaultd.demo.tour import run

    sys.exit(run(keep=keep, ca=ca))


def _settings(config_file: Path, notifier: Notifier | None = None) -> Settings:
    """The settings, or the end of the process with every mistake on stderr."""
    from scaivaultd.settings_layers import SettingsError

    try:
        return _read(config_file)
    except SettingsError as error:
        _end_with(error.mistakes, notifier)


def _read(config_file: Path) -> Settings:
    """The settings as all layers say now, and the files that they name; raises SettingsError."""
    from scaivaultd.settings import layers_of, settings_of
    from scaivaultd.settings_files import check_files
    from scaivaultd.settings_layers import SettingsError

    layers = layers_of(config_file, os.environ)
    settings = settings_of(layers)
    if mistakes := check_files(settings, layers):
        raise SettingsError(layers.in_order(mistakes))
    return settings


def _end_with(mistakes: Sequence[Mistake], notifier: Notifier | None = None) -> NoReturn:
    for mistake in mistakes:
        click.echo(str(mistake), err=True)
    if notifier is not None:
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        notifier.status(f"Not started, mistakes in the configuration: {mistakes[0]}{more}")
        notifier.barrier()
    sys.exit(EX_CONFIG)


def _raise_file_limit() -> None:
    """Take as many open files as we may: the usual 1024 would be gone with the listener's clients alone."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(settings: Settings, handed: Handed, read_again: Callable[[], Settings]) -> int:
    from scaivaultd import logs
    from scaivaultd.daemon import Daemon
    from scaivaultd.model.clock import SystemClock
    from scaivaultd.supervision import Supervision

    log = logs.configure(settings.log.level, settings.log.format)
    daemon = Daemon(settings, environment=os.environ, log=log, passed=handed.sockets, read_again=read_again)
    supervision = Supervision(
        handed.notifier, daemon, watchdog_seconds=handed.watchdog_seconds, clock=SystemClock(), log=log
    )

    def stop() -> None:
        supervision.stopping()
        daemon.stop()

    def told(telling: asyncio.Task[None]) -> None:
        if not telling.cancelled() and telling.exception() is not None:
            log.error("supervision.failed", exc_info=telling.exception())
            stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # Its default would end us without a word when a terminal closes.
    loop.add_signal_handler(signal.SIGHUP, daemon.reload)
    daemon.reloading.begun.subscribe(lambda _: supervision.reloading())
    daemon.reloading.ended.subscribe(lambda reply: supervision.reloaded("; ".join(reply.mistakes)))
    telling = asyncio.create_task(supervision.run(), name="supervision")
    telling.add_done_callback(told)
    code = 1
    try:
        code = await _exit_code_of(daemon, handed.notifier)
        if telling.done() and not telling.cancelled() and telling.exception() is not None:
            code = code or 1  # else nobody would start it again
    finally:
        telling.cancel()
        if await _is_held_up(log):
            # All that is ours is closed. Python would wait for the rest, and the service manager with it.
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stdout.flush()
            handed.notifier.barrier()
            os._exit(code)
    return code


async def _exit_code_of(daemon: Daemon, notifier: Notifier) -> int:
    code = 0
    try:
        await daemon.run()
    except* StartupError as errors:
        error = errors.exceptions[0]
        assert isinstance(error, StartupError)
        click.echo(f"scaivaultd: {error}", err=True)
        notifier.status(f"Not started: {error}")
        code = error.exit_code
    except* StorageUnavailable as errors:
        click.echo(f"scaivaultd: {errors.exceptions[0]}", err=True)
        notifier.status(f"The store cannot be used: {errors.exceptions[0]}")
        code = os.EX_TEMPFAIL
    return code


async def _is_held_up(log: FilteringBoundLogger) -> bool:
    """Whether a plugin's task goes on though it is cancelled, or a thread is stuck in a call without an end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    threads = asyncio.create_task(asyncio.get_running_loop().shutdown_default_executor(), name="threads")
    _, pending = await asyncio.wait({*tasks, threads}, timeout=HELD_UP_SECONDS)
    if pending:
        log.warning("daemon.held_up", tasks=sorted(task.get_name() for task in pending))
    return bool(pending)


if __name__ == "__main__":
    main()
