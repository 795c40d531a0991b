"""`scaivaultctl order`: how far each order is, and why one failed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scaivaultd import ctl_failure, ctl_find, ctl_watch
from scaivaultd.ctl_output import moment
from scaivaultd.ctl_session import Group, confirm, facts, with_daemon

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.ctl_session import Session

_STATUSES = ["pending", "ready", "processing", "valid", "invalid", "deactivated"]


@click.group(cls=Group)
def order() -> None:
    """Orders: how far each is, and why one failed.

    An order is named by its id, or by a name it is for: then the one under way is meant, else the newest.
    """


@order.command("ls")
@click.option("--status", type=click.Choice(_STATUSES), help="Only those in this state.")
@click.option("--account", metavar="NAME", help="Only those of this account, by name or id.")
@click.option("--under-way", is_flag=True, help="Only those that have not ended.")
@with_daemon
def order_ls(session: Session, status: str | None, account: str | None, under_way: bool) -> None:
    """List orders, the newest first."""
    account_id = account and session.account_id(account)
    found = [
        each
        for one in (ctl_find.UNFINISHED if under_way else [status])
        for each in session.all("pki.acme.orders.list", status=one, account_id=account_id)
    ]
    found.sort(key=lambda each: str(each["created_at"]), reverse=True)
    session.show(found, lambda: ctl_find.orders(found))


@order.command("show")
@click.argument("which", metavar="ID|NAME")
@with_daemon
def order_show(session: Session, which: str) -> None:
    """Show one order.

    Of one that failed: the CA's words, what was seen from the daemon's host at that moment, and the most likely remedy.
    """
    found = ctl_find.order(session, which)
    session.show(found, lambda: _order(session, found))


@order.command("watch")
@click.argument("which", metavar="ID|NAME")
@click.option("--timeout", type=ctl_find.duration, help="Watch no longer than this, such as 10m; without: to the end.")
@with_daemon
def order_watch(session: Session, which: str, timeout: float | None) -> None:
    """Watch an order to its end.

    Each name with its state and, for dns-01, each name server with what it says. The exit code is 0 if it brings a
    certificate, 6 if a name could not be proven, 7 for a limit of the CA, 9 if --timeout is over.
    """
    found = ctl_watch.watch(session, ctl_find.order(session, which), timeout)
    ctl_watch.ended(session, found, is_asked_for=True)


@order.command("cancel")
@click.argument("which", metavar="ID|NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def order_cancel(session: Session, which: str, yes: bool) -> None:
    """Give up an order that has not ended."""
    found = ctl_find.order(session, which, must_be_under_way=True)
    confirm(found["domains"][0], f"Order {found['order_id']} for {', '.join(found['domains'])} is given up", yes=yes)
    reply = session.call("pki.acme.orders.cancel", order_id=found["order_id"])
    session.show(reply, lambda: [f"{reply['order_id']}: given up"])


def _order(session: Session, found: Mapping[str, Any]) -> list[str]:
    told = facts(
        [
            ("order", found["order_id"]),
            ("status", found["status"]),
            ("names", found["domains"]),
            ("account", ctl_find.account_name(session, found["account_id"])),
            ("challenge", found["challenge_type"]),
            ("provider", found.get("dns_provider")),
            ("made", moment(found["created_at"])),
            ("why", found.get("cause")),
            ("renews", found.get("renews")),
            ("by", found.get("requested_by")),
            ("certificate", found.get("certificate_id")),
            ("setbacks", found.get("attempt") or None),
        ]
    )
    if found["status"] in ctl_find.UNFINISHED:
        told += ["", *ctl_watch.progress(found).values()]
    if found["status"] != "valid" and (report := ctl_failure.lines(found)):
        told += ["", *report]
    return told
