"""`scaivaultctl setup`: what is done once on a host, before there is a daemon to ask."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from scaivaultd import unit_files
from scaivaultd.ctl_session import EX_FAILED, EX_NOT_ALLOWED, Group, complain, refuse, say, table, with_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.unit_files import Host, Rendered

_COMMAND_SECONDS = 60.0
_THRESHOLD = 15  # tenths of a point of exposure
_SCORE = re.compile(r"Overall exposure level for \S+: ([0-9.]+) (\w+)")
# A command of systemd says so where there is no service manager to talk to, as in a container or a chroot.
_NOT_BOOTED = "System has not been booted with systemd"


@click.group(cls=Group)
def setup() -> None:
    """Set the daemon, or the agent, up as a service of this host."""


@setup.command()
@click.option(
    "--prefix",
    metavar="DIR",
    help="The installation to run: a virtual environment. [default: the one of this scaivaultctl, or /opt/scaivaultd]",
)
@click.option(
    "--config",
    metavar="FILE",
    help=f"What the service is to read. [default: {unit_files.DEFAULT_CONFIG}, or agent.toml there]",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    metavar="DIR",
    help="Install into a tree that is not running, such as an image.",
)
@click.option("--systemd-version", type=int, metavar="N", help="For which systemd. [default: the one of this host]")
@click.option("--external-nats", is_flag=True, help="NATS is run by you: the daemon needs no port for its own.")
@click.option("--no-sockets", is_flag=True, help="The daemon binds its ports itself, as its configuration says.")
@click.option(
    "--without-socket",
    "without",
    type=click.Choice(["http", "tls"]),
    multiple=True,
    help="No socket at port 80, or 443: another server has it. Repeat for both.",
)
@click.option("--deny-metadata", is_flag=True, help="Keep it from the metadata service of clouds (169.254.169.254).")
@click.option("--agent", is_flag=True, help="Only the agent, for a host that uses certificates.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing; with --json each file whole.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_output
def systemd(
    *,
    prefix: str | None,
    config: str | None,
    root: Path,
    systemd_version: int | None,
    external_nats: bool,
    no_sockets: bool,
    without: tuple[str, ...],
    deny_metadata: bool,
    agent: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Install the units, as this host needs them.

    They are made for its systemd and for the installation. Run it again after an upgrade, or with other options: what
    is right already stays as it is. Settings of your own go into drop-ins (`systemctl edit scaivaultd`), which are left
    alone.
    """
    if agent and (external_nats or no_sockets or without or deny_metadata):
        refuse("sockets, NATS and the metadata service are about the daemon; with --agent there is none")
    root = root.absolute()
    place = prefix or _own_prefix()
    host = unit_files.Host(
        systemd=systemd_version or _systemd_version(),
        prefix=place.rstrip("/"),
        config=config or (unit_files.AGENT_CONFIG if agent else unit_files.DEFAULT_CONFIG),
        interpreter=None if agent else _interpreter(root, place),
        sockets=() if no_sockets else tuple(each for each in unit_files.SOCKETS if _kind(each) not in without),
        has_external_nats=external_nats,
        denies_metadata=deny_metadata,
    )
    rendered = _rendered(host, is_agent=agent, is_real=not dry_run)
    plan = _plan(rendered, root, host.config)
    if dry_run:
        _show(plan, rendered, as_json=as_json)
        return
    _require_installation(root, host.prefix)
    if any(action != "unchanged" for _, action in plan):
        for line in _lines(plan):
            say(line)
        _ask(yes=yes)
    try:
        _write(plan, rendered, root)
        _activate(root, rendered, host.config)
    except OSError as error:
        code = EX_NOT_ALLOWED if isinstance(error, PermissionError) else EX_FAILED
        _end(f"{error.filename or root}: {error.strerror}", code)
    score = _judge(root, rendered)
    if as_json:
        click.echo(json.dumps({"files": [_row(*each) for each in plan], "systemd": host.systemd, "exposure": score}))
    _say_next(root, host, is_agent=agent, is_first=(host.config, "create") in plan)


def _kind(socket: str) -> str:
    return socket.removeprefix("scaivaultd-").removesuffix(".socket")


def _rendered(host: Host, *, is_agent: bool, is_real: bool) -> Rendered:
    render = unit_files.render_agent if is_agent else unit_files.render
    try:
        try:
            return render(host, unit_files.source())
        except unit_files.Hidden as hidden:
            if is_real:
                raise
            # Whoever tries it from a checkout wants to see the files all the same.
            complain(f"scaivaultctl: as it is, this would be refused: {hidden}")
            return render(host, unit_files.source(), allow_hidden=True)
    except unit_files.Unsuitable as error:
        refuse(str(error))


def _own_prefix() -> str:
    own = Path(sys.prefix)
    is_own = (own / "bin/scaivaultd").exists() and sys.prefix != sys.base_prefix
    return str(own) if is_own else unit_files.DEFAULT_PREFIX


def _interpreter(root: Path, prefix: str) -> str | None:
    python = root / prefix.lstrip("/") / "bin/python3"
    if not os.path.lexists(python):
        return None
    found = str(python.resolve())
    return "/" + found.removeprefix(str(root.resolve())).lstrip("/")


def _systemd_version() -> int:
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=_COMMAND_SECONDS)  # noqa: S607
    except OSError:
        _end("there is no systemctl here; for another host give --root and --systemd-version", EX_FAILED)
    found = re.match(r"systemd (\d+)", said.stdout)
    if found is None:
        _end(f"systemctl --version says {said.stdout[:80]!r}; give --systemd-version", EX_FAILED)
    return int(found[1])


def _plan(rendered: Rendered, root: Path, config: str) -> list[tuple[str, str]]:
    """What becomes of each file: create, change, remove or unchanged."""
    plan = []
    for path, text in rendered.files.items():
        there = _text(root / path)
        plan.append((f"/{path}", "create" if there is None else "unchanged" if there == text else "change"))
    plan += [(f"/{path}", "remove") for path in rendered.unwanted if os.path.lexists(root / path)]
    if rendered.first_config is not None:
        # A configuration that is there is the administrator's.
        is_there = os.path.lexists(root / config.lstrip("/"))
        plan.append((config, "unchanged" if is_there else "create"))
    return plan


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        return ""


def _lines(plan: Sequence[tuple[str, str]]) -> Sequence[str]:
    return table(("ACTION", "FILE"), [(action, path) for path, action in plan])


def _show(plan: Sequence[tuple[str, str]], rendered: Rendered, *, as_json: bool) -> None:
    if not as_json:
        for line in _lines(plan):
            click.echo(line)
        say("Nothing was done (dry run).")
        return
    files = {f"/{path}": text for path, text in rendered.files.items()}
    rows = [
        {**_row(path, action), "content": files.get(path, rendered.first_config if action == "create" else None)}
        for path, action in plan
    ]
    click.echo(json.dumps({"files": rows}))


def _row(path: str, action: str) -> dict[str, str]:
    return {"path": path, "action": action}


def _require_installation(root: Path, prefix: str) -> None:
    if os.geteuid() != 0 and root == Path("/"):
        _end("only root can install units; say sudo, or --dry-run to see them", EX_NOT_ALLOWED)
    if not os.path.lexists(root / prefix.lstrip("/") / "bin/scaivaultd"):
        refuse(f"there is no {prefix}/bin/scaivaultd; install it there, or name another place by --prefix")


def _ask(*, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        refuse("say --yes if you mean it")
    if not click.confirm("Do that", default=True, err=True):
        _end("nothing was done", EX_FAILED)


def _write(plan: Sequence[tuple[str, str]], rendered: Rendered, root: Path) -> None:
    sockets = {Path(path).name for path, action in plan if action == "remove" and path.endswith(".socket")}
    if sockets and root == Path("/"):
        # Those of a running daemon stay open in it until it is restarted; then it binds them itself.
        _run(["systemctl", "stop", *sorted(sockets)])
    for path, action in plan:
        target = root / path.lstrip("/")
        if action == "remove":
            target.unlink()
        elif action in ("create", "change"):
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(target, rendered.files.get(path.lstrip("/"), rendered.first_config or ""))


def _replace(target: Path, text: str) -> None:
    scratch = target.with_name(f".{target.name}.new")
    scratch.write_text(text)
    scratch.chmod(0o644)
    scratch.replace(target)


def _activate(root: Path, rendered: Rendered, config: str) -> None:
    """Make users and folders, and have systemd read the units; an image does that when it starts."""
    if root != Path("/"):
        return
    made = [f"/{path}" for path in rendered.files]
    for command in (
        ["systemd-sysusers", *(path for path in made if "/sysusers.d/" in path)],
        ["systemd-tmpfiles", "--create", *(path for path in made if "/tmpfiles.d/" in path)],  # noqa: S108 - no file for a while
    ):
        # Without a file they would look after the whole host.
        if command[-1].startswith("/") and (said := _run(command)):
            say(f"scaivaultctl: {command[0]}: {said}")
    if (said := _run(["systemctl", "daemon-reload"])) and _NOT_BOOTED not in said:
        say(f"scaivaultctl: systemctl daemon-reload: {said}")
    if rendered.first_config is not None and _text(Path(config)) == rendered.first_config:
        # It may come to hold a password, such as in the URL of a NATS server.
        _keep_for_the_service(Path(config))


def _keep_for_the_service(config: Path) -> None:
    try:
        shutil.chown(config, group="scaivaultd")
    except LookupError:
        return  # systemd-sysusers has said why
    config.chmod(0o640)


def _judge(root: Path, rendered: Rendered) -> float | None:
    """Have systemd look at the units; its score of how exposed the daemon is."""
    at_root = [] if root == Path("/") else [f"--root={root}"]
    names = [Path(path).name for path in rendered.files if path.endswith((".service", ".socket", ".timer"))]
    if said := _run(["systemd-analyze", "verify", *at_root, *names]):
        say(f"scaivaultctl: systemd-analyze verify:\n{said}")
    if f"{unit_files.UNITS}/{unit_files.UNIT}" not in rendered.files:
        return None
    unit = root / unit_files.UNITS / unit_files.UNIT
    judged = _run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={_THRESHOLD}", str(unit)], quiet=False
    )
    found = _SCORE.search(judged)
    if found is None:
        say(f"scaivaultctl: systemd-analyze security: {judged[-200:]}")
        return None
    say(f"Exposure by systemd-analyze security: {found[1]} of 10 ({found[2]}); lower is better.")
    return float(found[1])


def _run(command: Sequence[str], *, quiet: bool = True) -> str:
    """What a command of systemd says; with `quiet` only when something is wrong."""
    try:
        done = subprocess.run(  # noqa: S603 - our own commands
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_COMMAND_SECONDS
        )
    except FileNotFoundError:
        return "is not installed"
    except subprocess.TimeoutExpired:
        return f"did not end within {_COMMAND_SECONDS:.0f} s"
    return done.stdout.strip() if not quiet or done.returncode or command[1] == "verify" else ""


def _say_next(root: Path, host: Host, *, is_agent: bool, is_first: bool) -> None:
    unit = "scaivaultd-agent" if is_agent else "scaivaultd"
    if root != Path("/"):
        say(f"Installed below {root}. In the image: systemctl enable {unit}")
        return
    say("Next:")
    if is_agent:
        say(f"  write {host.config}, and try it: scaivaultctl agent --once --config {host.config}")
    elif is_first:
        say(f"  look at {host.config}, then: scaivaultd check-config --config {host.config}")
    say(f"  systemctl enable --now {unit}")
    say(f"  systemctl restart {unit}      (after an upgrade)")
    say(f"  systemctl status {unit}       (its line `Status:` says how it is)")
    if not is_agent:
        say("  usermod -aG scaivault-admin YOU     (may use scaivaultctl here without a token)")


def _end(text: str, code: int) -> NoReturn:
    complain(f"scaivaultctl: {text}")
    sys.exit(code)
