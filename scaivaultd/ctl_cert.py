"""`scaivaultctl cert`: certificates as they are. What makes and ends them is in `ctl_issue` and `ctl_revoke`."""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd import agent_files, ctl_find
from scaivaultd.ctl_client import Refused
from scaivaultd.ctl_output import complain, day, moment, relative, say, span
from scaivaultd.ctl_session import EX_FAILED, Group, confirm, facts, refuse, table, with_daemon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.ctl_session import Session

_version = click.option(
    "--version", type=click.IntRange(min=1), help="An earlier version; the current one unless given."
)


@click.group(cls=Group)
def cert() -> None:
    """Certificates: issue, list, show, renew, revoke.

    A certificate is named by its id, or by a name that it alone is for.
    """


@cert.command("ls")
@click.option("--expiring", type=ctl_find.duration, metavar="TIME", help="Only those that end within it: 30d.")
@click.option("--status", type=click.Choice(["valid", "revoked", "expired"]), help="Only those in this state.")
@click.option("--domain", metavar="NAME", help="Only those that hold exactly this name.")
@click.option("--account", metavar="NAME", help="Only those that this account ordered, by name or id.")
@with_daemon
def cert_ls(
    session: Session, expiring: float | None, status: str | None, domain: str | None, account: str | None
) -> None:
    """List certificates, what ends first on top.

    The state is `failing` where the last renewal failed, `renewing` where one is under way, `unkept` where nobody
    renews it.
    """
    found = session.all(
        "pki.certificates.list", status=status, domain=domain, account_id=account and session.account_id(account)
    )
    if expiring is not None:
        latest = datetime.now(UTC) + timedelta(seconds=expiring)
        found = [
            each
            for each in found
            if each["status"] != "revoked" and datetime.fromisoformat(each["not_after"]) <= latest
        ]
    found.sort(key=lambda each: str(each["not_after"]))
    session.show(
        found,
        lambda: table(
            ("NAMES", "ENDS", "STATE", "ID"),
            [
                (ctl_find.names(each["domains"]), relative(each["not_after"]), _state(each), each["id"])
                for each in found
            ],
        ),
    )


@cert.command("show")
@click.argument("which", metavar="ID|NAME")
@with_daemon
def cert_show(session: Session, which: str) -> None:
    """Show one certificate: whose, until when, when and why it is renewed, which hosts use it."""
    found = ctl_find.certificate(session, which)
    hosts: list[Any] = []
    with contextlib.suppress(Refused):
        hosts = session.attempt("pki.certificates.deployments", id=found["id"])["items"]
    reply = {**found, "deployments": hosts}
    session.show(reply, lambda: _certificate(session, found, hosts))


@cert.command("pem")
@click.argument("which", metavar="ID|NAME")
@click.option("--part", type=click.Choice(["fullchain", "leaf", "chain"]), default="fullchain", show_default=True)
@_version
@with_daemon
def cert_pem(session: Session, which: str, part: str, version: int | None) -> None:
    """Print a certificate in PEM, the leaf first."""
    found = ctl_find.certificate(session, which)
    reply = session.call("pki.certificates.pem", id=found["id"], part=part, version=version)
    session.show(reply, lambda: reply["pem"].splitlines())


@cert.command("key")
@click.argument("which", metavar="ID|NAME")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="A new file, mode 0600.")
@click.option("--force", is_flag=True, help="Take the place of a file that is there.")
@_version
@click.option("--yes", is_flag=True, help="Print it on a terminal without asking.")
@with_daemon
def cert_key(session: Session, which: str, to: Path | None, force: bool, version: int | None, yes: bool) -> None:
    """Write a private key into a file, or print it where it is piped.

    On a terminal it is shown only to those who say that they want it there. The audit log remembers who read it.
    """
    if to is not None and os.path.lexists(to) and not force:
        refuse(f"{to} is there already; --force takes its place")
    if to is None and sys.stdout.isatty() and not yes:
        click.confirm("Show the private key on this terminal?", abort=True, err=True)
    found = ctl_find.certificate(session, which)
    reply = session.call("pki.certificates.key", id=found["id"], version=version)
    if to is None:
        session.show(reply, lambda: reply["private_key_pem"].splitlines())
        return
    try:
        agent_files.replace_file(to, reply["private_key_pem"].encode(), agent_files.Rights())
    except OSError as error:
        complain(f"scaivaultctl: {to} cannot be written: {error.strerror}")
        sys.exit(EX_FAILED)
    say(f"{to}: the private key of version {reply['version']}")


@cert.command("history")
@click.argument("which", metavar="ID|NAME")
@with_daemon
def cert_history(session: Session, which: str) -> None:
    """List the versions of a certificate, the newest first."""
    found = session.all("pki.certificates.versions", id=ctl_find.certificate(session, which)["id"])
    found.sort(key=lambda each: -int(each["version"]))
    session.show(
        found,
        lambda: table(
            ("VERSION", "STATUS", "FROM", "UNTIL", "ISSUER", "SERIAL"),
            [
                (
                    f"{each['version']}{' (current)' * each['is_current']}",
                    each["status"],
                    day(each["not_before"]),
                    day(each["not_after"]),
                    each["issuer"],
                    each["serial_number"].replace(":", ""),
                )
                for each in found
            ],
        ),
    )


@cert.command("deployments")
@click.argument("which", metavar="ID|NAME")
@with_daemon
def cert_deployments(session: Session, which: str) -> None:
    """List the hosts that have confirmed a version, and which one."""
    found = ctl_find.certificate(session, which)
    reply = session.call("pki.certificates.deployments", id=found["id"])
    session.show(reply, lambda: _hosts(reply["items"]) or ["No host has confirmed a version."])


@cert.command("forget-host")
@click.argument("which", metavar="ID|NAME")
@click.argument("host")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def cert_forget_host(session: Session, which: str, host: str, yes: bool) -> None:
    """Expect a HOST no longer to follow a certificate."""
    found = ctl_find.certificate(session, which)
    confirm(host, f"{host} is not expected any more to follow {ctl_find.names(found['domains'])}", yes=yes)
    reply = session.call("pki.certificates.forget_deployment", id=found["id"], host=host)
    session.show(reply, lambda: [f"{host}: forgotten"])


def _state(found: Mapping[str, Any]) -> str:
    renewal = found.get("renewal") or {}
    if found["status"] != "valid":
        return str(found["status"])
    if renewal.get("is_stopped"):
        return "stopped"
    if renewal.get("error"):
        return "failing"
    if renewal.get("order_id"):
        return "renewing"
    return "valid" if found["auto_renew"] else "unkept"


def _certificate(session: Session, found: Mapping[str, Any], hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    terms = found.get("terms") or {}
    told = facts(
        [
            ("certificate", found["id"]),
            ("names", found["domains"]),
            ("next names", terms.get("domains") if terms.get("domains") != found["domains"] else None),
            ("status", _state(found)),
            ("version", str(found["version"])),
            ("from", moment(found["not_before"])),
            ("until", moment(found["not_after"])),
            ("revoked", _revocation(found.get("revocation"))),
            ("issuer", found["issuer"]),
            ("serial", found["serial_number"]),
            ("sha256", found["fingerprint_sha256"]),
            ("key", _key(found, terms)),
            ("account", ctl_find.account_name(session, found["account_id"])),
            ("profile", terms.get("profile")),
            ("challenge", found["challenge_type"]),
            ("provider", terms.get("dns_provider")),
            ("owner", found.get("requested_by")),
            *_renewal(found, terms),
        ]
    )
    return [*told, *(["", *_hosts(hosts)] if hosts else [])]


def _key(found: Mapping[str, Any], terms: Mapping[str, Any]) -> str:
    if not found["has_private_key"]:
        return f"{found['key_type']}, not here: it was asked for by a CSR"
    return f"{found['key_type']}{', kept at renewals' if terms.get('reuse_key') else ''}"


def _revocation(revocation: Mapping[str, Any] | None) -> str | None:
    if revocation is None:
        return None
    by = {"acme": "by us at the CA", "store": "here only", "outside": "by somebody else"}[revocation["origin"]]
    reason = f", {revocation['reason'].replace('_', ' ')}" if revocation.get("reason") else ""
    return f"{moment(revocation['at'])} {by}{reason}"


def _renewal(found: Mapping[str, Any], terms: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """When it is renewed and why then, and how that goes."""
    renewal = found.get("renewal") or {}
    error = renewal.get("error")
    order_id = renewal.get("order_id")
    return [
        ("renewal", _when(found, renewal)),
        ("because", _why(renewal, terms) if renewal.get("moment") else None),
        ("under way", order_id and f"{order_id} (scaivaultctl order watch {order_id})"),
        ("last failure", error and f"{error['code']}: {error['detail']}"),
        ("remedy", error and error.get("remedy")),
        ("failures", renewal.get("attempt") or None),
        ("next try", moment(renewal.get("next_try_at"))),
    ]


def _when(found: Mapping[str, Any], renewal: Mapping[str, Any]) -> str:
    if found["status"] == "revoked":
        return "no: it is revoked"
    if renewal.get("is_stopped"):
        return "stopped: not again by itself, until `scaivaultctl cert renew`"
    if not found["auto_renew"]:
        return "not by itself (`scaivaultctl cert update --auto-renew`)"
    return moment(renewal.get("moment")) or "as soon as possible"


def _why(renewal: Mapping[str, Any], terms: Mapping[str, Any]) -> str:
    if terms.get("renew_before_seconds"):
        return f"{span(terms['renew_before_seconds'])} before its end, as asked for"
    if renewal.get("window_start"):
        window = f"{day(renewal['window_start'])} to {day(renewal['window_end'])}"
        page = f", see {renewal['explanation_url']}" if renewal.get("explanation_url") else ""
        return f"the CA's window (ARI): {window}{page}"
    return "its lifetime"


def _hosts(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    return table(
        ("HOST", "VERSION", "STATE", "CONFIRMED", "WHERE"),
        [
            (
                each["host"],
                f"{each['version']} of {each['current_version']}",
                _host_state(each),
                relative(each["confirmed_at"]),
                each.get("error") or each.get("where") or "-",
            )
            for each in hosts
        ],
    )


def _host_state(host: Mapping[str, Any]) -> str:
    if host.get("error"):
        return "failed"
    if host["is_current"]:
        return "current"
    return "overdue" if host.get("is_overdue") else "behind"


def _with_the_others() -> None:
    """The verbs of other modules join the group as they are imported."""
    import importlib
    from importlib.util import find_spec

    for module in ("scaivaultd.ctl_issue", "scaivaultd.ctl_revoke", "scaivaultd.ctl_export"):
        if find_spec(module) is not None:
            importlib.import_module(module)


_with_the_others()
