"""`scaivaultctl events`: what happened, and what happens now."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from scaivaultd import ctl_find
from scaivaultd.ctl_client import Refused, Unreachable
from scaivaultd.ctl_output import complain, say
from scaivaultd.ctl_session import Group, fail, with_daemon

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.ctl_session import Session

_WAIT_SECONDS = 20.0
_PAUSE_SECONDS = 0.2
"""After an answer without events: a daemon that stops does not wait with its answers."""
_AWAY_SECONDS = 2.0
_PAGE = 200
_TRANSIENT = ("standby", "storage_unavailable", "sealed", "timeout", "internal", "rate_limited")

_type = click.option("--type", "kind", metavar="TYPE", help="Only this type, or a family: `certificate.*`.")
_resource = click.option("--resource", metavar="ID", help="Only what is about this resource.")


@click.group(cls=Group)
def events() -> None:
    """What happened, and what happens now."""


@events.command("tail")
@_type
@_resource
@click.option("--since", metavar="WHEN", help="Begin there: 1h, a time, or a sequence number; now unless given.")
@with_daemon
def events_tail(session: Session, kind: str | None, resource: str | None, since: str | None) -> None:
    """Follow events until Ctrl-C, over restarts of the daemon too.

    With --json, each is one JSON object on a line.
    """
    after, earliest = (None, None) if since is None else _begin(since)
    session.expect(_WAIT_SECONDS)
    is_away = False
    while True:
        try:
            page = session.attempt(
                "events.list", after=after, type=kind, resource_id=resource, limit=_PAGE, wait_seconds=_WAIT_SECONDS
            )
        except (Refused, Unreachable) as error:
            if isinstance(error, Refused) and error.problem.get("code") not in _TRANSIENT:
                fail(error.problem)
            if not is_away:
                complain(f"scaivaultctl: {error}; goes on when the daemon is back")
            is_away = True
            time.sleep(_AWAY_SECONDS)
            continue
        if is_away:
            say("The daemon is back.")
        is_away = False
        _tell_gap(after, page)
        for each in page["items"]:
            if earliest is None or datetime.fromisoformat(each["time"]) >= earliest:
                _print(session, each)
        after = page["next_after"]
        if not page["items"]:
            time.sleep(_PAUSE_SECONDS)


@events.command("replay")
@click.option("--from", "start", required=True, metavar="WHEN", help="Begin there: a sequence number, a time, or 1h.")
@click.option("--to", "end", metavar="WHEN", help="End there, with it; at what is newest unless given.")
@_type
@_resource
@with_daemon
def events_replay(session: Session, start: str, end: str | None, kind: str | None, resource: str | None) -> None:
    """Print the events of some time again, and end."""
    after, earliest = _begin(start)
    last, latest = (None, None) if end is None else _limit(end)
    while True:
        page = session.call("events.list", after=after, type=kind, resource_id=resource, limit=_PAGE)
        _tell_gap(after, page)
        for each in page["items"]:
            at = datetime.fromisoformat(each["time"])
            if (last is not None and each["sequence"] > last) or (latest is not None and at > latest):
                return
            if earliest is None or at >= earliest:
                _print(session, each)
        if page["next_after"] == after:
            return
        after = page["next_after"]


def _limit(text: str) -> tuple[int | None, datetime | None]:
    if text.isdecimal():
        return int(text), None
    if re.fullmatch(r"[0-9]+[smhd]", text):
        return None, datetime.now(UTC) - timedelta(seconds=ctl_find.duration(text))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no sequence number, no length of time such as 1h, and no time such as 2026-11-25T12:00Z"
        ) from None
    return None, at if at.tzinfo else at.astimezone()


def _begin(text: str) -> tuple[int, datetime | None]:
    """Behind which sequence to begin, and from which time on."""
    sequence, at = _limit(text)
    return (0 if sequence is None else max(0, sequence - 1)), at


def _tell_gap(after: int | None, page: Mapping[str, Any]) -> None:
    oldest = page.get("oldest")
    if after and oldest is not None and after + 1 < oldest:
        complain(f"scaivaultctl: events before {oldest} are not kept any more; some after {after} may be missing")


def _print(session: Session, event: Mapping[str, Any]) -> None:
    if session.as_json:
        click.echo(json.dumps(event))
        return
    names = event["data"].get("domains") or ()
    about = ctl_find.names(names) if names else event["resource_id"]
    host = event["data"].get("host")
    at = datetime.fromisoformat(event["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    line = f"{at}  {event['sequence']:>6}  {event['type']:<26}  {about}" + (f" on {host}" if host else "")
    click.echo("".join(each if each.isprintable() else "?" for each in line))
