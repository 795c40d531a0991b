"""`scaivaultctl bulk`: renewing many certificates ahead of their time."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_find import duration
from scaivaultd.ctl_output import complain, moment, relative, say
from scaivaultd.ctl_session import EX_FAILED, EX_WAITED, Group, confirm, facts, refuse, table, with_daemon

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from scaivaultd.ctl_session import Session

_LOOK_SECONDS = 2.0


@click.group(cls=Group)
def bulk() -> None:
    """Renew many certificates ahead of their time, so many a minute.

    When a CA has to revoke what it issued, for instance.
    """


@bulk.command("renew")
@click.argument("certificates", nargs=-1, metavar="[CERTIFICATE_ID]...")
@click.option("--all", "is_all", is_flag=True, help="All certificates that pass the other filters.")
@click.option("--account", metavar="NAME", help="Those that this account ordered, by name or id.")
@click.option("--issuer", metavar="NAME", help="Those issued by exactly this common name, such as R10.")
@click.option("--domain", metavar="NAME", help="Those with this name, or one below it.")
@click.option(
    "--issued-before", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"]), help="Those that began earlier (UTC)."
)
@click.option("--per-minute", type=click.FloatRange(0, 6000, min_open=True), default=60.0, show_default=True)
@click.option("--note", default="", help="Why, for those who read it later.")
@click.option("--dry-run", is_flag=True, help="Only count; nothing is started.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def bulk_renew(
    session: Session,
    certificates: tuple[str, ...],
    is_all: bool,
    account: str | None,
    issued_before: datetime | None,
    per_minute: float,
    note: str,
    dry_run: bool,
    yes: bool,
    **filters: str | None,
) -> None:
    """Renew the certificates that all filters choose; at least one filter is needed."""
    if not (certificates or is_all or account or issued_before or any(filters.values())):
        refuse("say which: by id, --issuer, --domain, --account, --issued-before, or --all")
    chosen = {
        **filters,
        "certificate_ids": list(certificates) or None,
        "all": is_all or None,
        "account_id": account and session.account_id(account),
        "issued_before": issued_before and f"{issued_before:%Y-%m-%dT%H:%M:%SZ}",
        "per_minute": per_minute,
        "note": note or None,
    }
    counted = session.call("pki.bulk_renewals.create", **chosen, dry_run=True)
    if dry_run:
        session.show(counted, lambda: [f"{_counted(counted['total'])} would be renewed, {per_minute:g} a minute"])
        return
    if not counted["total"]:
        complain("scaivaultctl: these filters choose no certificate")
        sys.exit(EX_FAILED)
    what = f"Renewed, {per_minute:g} a minute: {_counted(counted['total'])}"
    confirm(str(counted["total"]), what, yes=yes)
    reply = session.call("pki.bulk_renewals.create", **chosen)
    session.show(reply, lambda: _bulk(reply))
    if not session.as_json:
        say(f"To watch it: scaivaultctl bulk watch {reply['id']}")


@bulk.command("ls")
@click.option("--status", type=click.Choice(["running", "finished", "cancelled"]), help="Only those in this state.")
@with_daemon
def bulk_ls(session: Session, status: str | None) -> None:
    """List bulk renewals, the newest first."""
    found = session.all("pki.bulk_renewals.list", status=status)
    found.sort(key=lambda each: str(each["created_at"]), reverse=True)
    session.show(
        found,
        lambda: table(
            ("ID", "STATUS", "MADE", "DONE", "FAILED", "NOTE"),
            [
                (
                    each["id"],
                    each["status"],
                    relative(each["created_at"]),
                    f"{each['renewed']}/{each['total']}",
                    str(each["failed"]),
                    each["note"] or "-",
                )
                for each in found
            ],
        ),
    )


@bulk.command("show")
@click.argument("bulk_id", metavar="ID")
@with_daemon
def bulk_show(session: Session, bulk_id: str) -> None:
    """Show how far a bulk renewal has come."""
    reply = session.call("pki.bulk_renewals.get", id=bulk_id)
    session.show(reply, lambda: _bulk(reply))


@bulk.command("watch")
@click.argument("bulk_id", metavar="ID")
@click.option("--timeout", type=duration, help="Watch no longer than this, such as 2h; without: to the end.")
@with_daemon
def bulk_watch(session: Session, bulk_id: str, timeout: float | None) -> None:
    """Watch a bulk renewal until every certificate has been dealt with.

    The exit code is 1 if some have failed, 9 if --timeout is over.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    before = None
    while True:
        reply = session.call("pki.bulk_renewals.get", id=bulk_id)
        if (line := _line(reply)) != before:
            say(line)
            before = line
        if reply["status"] != "running" and not reply["under_way"]:
            break
        if deadline is not None and time.monotonic() >= deadline:
            complain("scaivaultctl: waited long enough; it goes on by itself")
            sys.exit(EX_WAITED)
        time.sleep(_LOOK_SECONDS)
    session.show(reply, lambda: _bulk(reply))
    if reply["failed"]:
        sys.exit(EX_FAILED)


@bulk.command("cancel")
@click.argument("bulk_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def bulk_cancel(session: Session, bulk_id: str, yes: bool) -> None:
    """Set no more certificates going; orders under way go on."""
    confirm(bulk_id, f"Bulk renewal {bulk_id} sets no more certificates going", yes=yes)
    reply = session.call("pki.bulk_renewals.cancel", id=bulk_id)
    session.show(reply, lambda: _bulk(reply))


def _counted(certificates: int) -> str:
    return f"{certificates} certificate{'s' * (certificates != 1)}"


def _line(reply: Mapping[str, Any]) -> str:
    done = f"{reply['renewed']} renewed, {reply['failed']} failed, {reply['skipped']} passed over"
    return (
        f"{reply['status']}: {reply['started']} of {reply['total']} set going, {done}, {reply['under_way']} under way"
    )


def _bulk(reply: Mapping[str, Any]) -> list[str]:
    return facts(
        [
            ("id", reply["id"]),
            ("status", reply["status"]),
            ("made", moment(reply["created_at"])),
            ("note", reply["note"]),
            ("chosen", str(reply["total"])),
            ("pace", f"{reply['per_minute']:g} a minute"),
            ("set going", str(reply["started"])),
            ("renewed", str(reply["renewed"])),
            ("failed", str(reply["failed"])),
            ("under way", str(reply["under_way"])),
            ("passed over", str(reply["skipped"])),
            ("all begun", moment(reply.get("estimated_end"))),
            ("finished", moment(reply.get("finished_at"))),
        ]
    )
