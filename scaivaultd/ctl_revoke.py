"""`scaivaultctl cert revoke`: the end of a version before its time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from scaivaultd import ctl_find
from scaivaultd.ctl_cert import cert
from scaivaultd.ctl_output import complain, moment
from scaivaultd.ctl_session import EX_FAILED, EX_WAITED, confirm, facts, refuse, with_daemon

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.ctl_session import Session

_LOOK_SECONDS = 1.0
_REASONS = ("unspecified", "key-compromise", "affiliation-changed", "superseded", "cessation-of-operation")


@cert.command("revoke")
@click.argument("which", metavar="ID|NAME")
@click.option(
    "--reason",
    type=click.Choice(_REASONS),
    default="unspecified",
    metavar="WORD",
    help=f"Why, for all to see: {', '.join(_REASONS)}.  [default: unspecified]",
)
@click.option("--version", type=click.IntRange(min=1), help="An earlier version; the current one unless given.")
@click.option("--replace", is_flag=True, help="First make a new version with a new key; revoke when that is there.")
@click.option("--no-acme", is_flag=True, help="Only mark it here; the CA and browsers learn nothing.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is done.")
@click.option("--timeout", type=ctl_find.duration, default="10m", show_default=True, help="How long to wait.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def cert_revoke(
    session: Session,
    which: str,
    reason: str,
    version: int | None,
    replace: bool,
    no_acme: bool,
    wait: bool,
    timeout: float,
    dry_run: bool,
    yes: bool,
) -> None:
    """Revoke a version of a certificate, for good.

    Unless --replace is given, it is not renewed by itself any more. After `key-compromise` its key is never certified
    again.
    """
    if replace and version is not None:
        refuse("--replace makes a new version in place of the current one; leave out --version")
    found = ctl_find.certificate(session, which)
    asked: dict[str, Any] = {
        "certificate_id": found["id"],
        "version": version,
        "reason": reason.replace("-", "_"),
        "use_acme": not no_acme,
        "replace": replace,
    }
    if dry_run:
        session.would_call("pki.revoke", **asked)
        return
    name = found["domains"][0]
    what = f"Version {version or found['version']} of {found['id']} ({', '.join(found['domains'])}) is revoked for good"
    confirm(name, what, yes=yes)
    reply = session.call("pki.revoke", **asked)
    deadline = time.monotonic() + timeout
    while wait and reply["status"] == "pending" and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        reply = session.call("pki.revocations.get", id=reply["id"])
    session.show(reply, lambda: _revocation(reply))
    if reply["status"] == "failed":
        sys.exit(EX_FAILED)
    if reply["status"] == "pending" and wait:
        complain("scaivaultctl: waited long enough; the revocation goes on by itself")
        sys.exit(EX_WAITED)


def _revocation(reply: Mapping[str, Any]) -> list[str]:
    error = reply.get("error") or {}
    return facts(
        [
            ("revocation", reply["id"]),
            ("status", reply["status"]),
            ("certificate", reply["certificate_id"]),
            ("version", str(reply["version"])),
            ("serial", reply["serial_number"]),
            ("reason", reply["reason"].replace("_", " ")),
            ("where", "at the CA" if reply["use_acme"] else "here only"),
            ("note", "the CA had it revoked before" if reply.get("was_revoked_already") else None),
            ("order", reply.get("order_id")),
            ("error", error.get("detail")),
            ("remedy", error.get("remedy")),
            ("next try", moment(reply.get("next_try_at"))),
        ]
    )
