"""`scaivaultctl doctor`: seventeen checks of the host, the daemon, its CAs and DNS, each with evidence and remedy."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd import doctor_host, doctor_network
from scaivaultd.ctl_output import Line, coloured, wrapped
from scaivaultd.ctl_session import EX_PROBLEMS, Verb, refuse, say, show, with_daemon
from scaivaultd.doctor_checks import Check, Finding, Host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.ctl_session import Session

DEFAULT_CONFIG = Path("/etc/scaivaultd/scaivaultd.toml")
CHECK_SECONDS = 15.0
WRITE_SECONDS = 120.0
ANSWER_SECONDS = 10.0

CHECKS = (
    Check("D01", "configuration", doctor_host.configuration),
    Check("D02", "master key", doctor_host.master_key),
    Check("D03", "store and disk", doctor_host.store),
    Check("D04", "clock", doctor_network.clock),
    Check("D05", "CAs", doctor_network.directories),
    Check("D06", "NATS", doctor_network.nats),
    Check("D07", "ports", doctor_host.ports),
    Check("D08", "reachable by name", doctor_network.reachable),
    Check("D09", "DNS providers", doctor_network.providers),
    Check("D10", "names and delegation", doctor_network.delegation),
    Check("D11", "resolver", doctor_network.resolver),
    Check("D12", "systemd", doctor_host.systemd),
    Check("D13", "permissions of files", doctor_host.files),
    Check("D14", "rate limits", doctor_network.budgets),
    Check("D15", "certificates", doctor_network.certificates),
    Check("D16", "plugins", doctor_host.plugins),
    Check("D17", "other ACME clients", doctor_host.other_clients),
)


@click.command(cls=Verb)
@click.argument("checks", metavar="[CHECK]...", nargs=-1)
@click.option(
    "--name", "names", multiple=True, metavar="NAME", help="Look at this name in D08 and D10; again for more."
)
@click.option("--write", "may_write", is_flag=True, help="Let D09 write a TXT record at each DNS provider.")
@click.option("--only-problems", is_flag=True, help="Leave out what is well.")
@click.option(
    "--root", type=click.Path(path_type=Path), default=Path("/"), hidden=True, help="Where the host's files are."
)
@partial(with_daemon, is_needed=False)
def doctor(
    session: Session, checks: Sequence[str], names: Sequence[str], may_write: bool, only_problems: bool, root: Path
) -> None:
    """Look for what is wrong on this host, and say how to mend it.

    Without CHECKs, such as D05, all of them. Nothing is changed. It is of use while the daemon is away, too: what asks
    the daemon is skipped then.
    """
    wanted = _wanted(checks)
    config = _config()
    session.limit(WRITE_SECONDS if may_write else ANSWER_SECONDS)
    host = Host(
        session=session,
        config=config or DEFAULT_CONFIG,
        is_config_named=config is not None,
        root=root,
        environment=os.environ,
        names=names,
        may_write=may_write,
        away=session.nobody,
    )
    _look_around(host)
    if host.away:
        say(f"The daemon does not answer: {host.away}")
        say("`systemctl status scaivaultd` and `journalctl -u scaivaultd -n 50` tell why. This host is looked at.")
    found: list[tuple[Check, Finding]] = []
    for check, finding in _run(wanted, host, WRITE_SECONDS if may_write else CHECK_SECONDS):
        found.append((check, finding))
        if not session.as_json and not (only_problems and finding.verdict in ("ok", "skipped")):
            show(None, lambda: _lines(found[-1][0], found[-1][1]), as_json=False)
    count = {verdict: sum(each.verdict == verdict for _, each in found) for verdict in ("error", "warning", "skipped")}
    if session.as_json:
        rows = [
            {
                "id": check.id,
                "title": check.title,
                "verdict": each.verdict,
                "evidence": list(each.evidence),
                "remedy": each.remedy,
            }
            for check, each in found
        ]
        show({"away": host.away or None, "errors": count["error"], "warnings": count["warning"], "checks": rows})
    say(f"{len(found)} looked at: {count['error']} wrong, {count['warning']} doubtful, {count['skipped']} skipped")
    if count["error"] or host.away:
        sys.exit(EX_PROBLEMS)


def _wanted(given: Sequence[str]) -> list[Check]:
    known = {check.id: check for check in CHECKS}
    for each in given:
        if each.upper() not in known:
            refuse(f"there is no check {each!r}; they are {', '.join(known)}")
    return [known[each.upper()] for each in given] or list(CHECKS)


def _config() -> Path | None:
    """The shared option `--config`, which says both where the daemon is and how it is configured."""
    context = click.get_current_context()
    given: Path | None = context.params.get("at_config") or context.find_root().params.get("at_config")
    return given


def _look_around(host: Host) -> None:
    """What most checks need, found out once."""
    from scaivaultd.settings import layers_of, settings_of
    from scaivaultd.settings_files import check_files
    from scaivaultd.settings_layers import SettingsError

    if host.has_config:
        try:
            layers = layers_of(host.config, host.environment)
            host.settings = settings_of(layers)
            host.mistakes = [str(each) for each in check_files(host.settings, layers)]
        except SettingsError as error:
            host.mistakes = [str(each) for each in error.mistakes]
    for command in ("sys.health", "sys.info"):
        if (reply := host.ask(command)) is not None:
            host.answers[command] = reply


def _run(checks: Sequence[Check], host: Host, seconds: float) -> Iterator[tuple[Check, Finding]]:
    """All at once, each in a thread that nobody waits for beyond its time; in the order of the list."""
    findings: dict[str, Finding] = {}
    threads = {check.id: threading.Thread(target=_one, args=(check, host, findings), daemon=True) for check in checks}
    for thread in threads.values():
        thread.start()
    until = time.monotonic() + seconds
    for check in checks:
        threads[check.id].join(max(0.0, until - time.monotonic()))
        late = Finding("warning", [f"not finished within {seconds:.0f} s"], "Try it alone, or look at the network.")
        yield check, findings.get(check.id, late)


def _one(check: Check, host: Host, findings: dict[str, Finding]) -> None:
    try:
        findings[check.id] = check.run(host)
    except Exception as error:  # noqa: BLE001 - one check that breaks must not hide what the others found
        evidence = [f"the check itself broke: {type(error).__name__}: {error}"]
        findings[check.id] = Finding("warning", evidence, "Please report it.")


def _lines(check: Check, finding: Finding) -> list[Any]:
    verdict = coloured(f"{finding.verdict:<8}")
    lines: list[Any] = [Line(f"{check.id}  {verdict} {check.title}")]
    for each in finding.evidence:
        lines += wrapped(each, indent="     ")
    if finding.remedy:
        lines += wrapped(f"To do: {finding.remedy}", indent="     ")
    return lines
