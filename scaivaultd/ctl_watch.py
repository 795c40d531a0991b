"""An order as it goes on: drawn anew on a terminal, else one line for each change; and how it ends."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd import ctl_failure
from scaivaultd.ctl_client import Refused, Unreachable
from scaivaultd.ctl_find import UNFINISHED, names
from scaivaultd.ctl_output import complain, is_quiet, moment, say, shortened
from scaivaultd.ctl_session import EX_FAILED, EX_LIMITED, EX_UNREACHABLE, EX_VALIDATION, EX_WAITED, facts, fail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from scaivaultd.ctl_session import Session

_LOOK_SECONDS = 1.0
_PAUSE_SECONDS = 0.2
"""After an answer that came at once: a daemon that stops does not wait with its answers."""
_AWAY_SECONDS = 60.0
"""So long a daemon may be away, for its restart, until nobody waits for it any more."""
_OF_CODES = {
    "challenge_failed": EX_VALIDATION,
    "dns_error": EX_VALIDATION,
    "dns_provider_error": EX_VALIDATION,
    "dns_propagation_timeout": EX_VALIDATION,
    "preflight_failed": EX_VALIDATION,
    "rate_limited": EX_LIMITED,
    "backend_rate_limited": EX_LIMITED,
}
_OF_CHALLENGES = {"pending": "waits for the CA to look", "processing": "the CA looks", "invalid": "refused"}


def watch(session: Session, order: Any, patience_seconds: float | None) -> Any:
    """The order when it has ended; while it has not, what is told of it goes to standard error.

    Ends the process when patience is over, or the CA's limits make the order wait for longer than that.
    """
    try:
        return _watch(session, order, patience_seconds)
    except KeyboardInterrupt:
        _goes_on(order)
        raise


def _watch(session: Session, order: Any, patience_seconds: float | None) -> Any:
    screen = _screen()
    deadline = None if patience_seconds is None else time.monotonic() + patience_seconds
    look = _Look(session, order["order_id"])
    while True:
        screen(progress(order))
        if order["status"] not in UNFINISHED:
            return order
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and (left <= 0 or _waits_longer(order, left)):
            _give_up(order)
        order = look(_LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS))


class _Look:
    """Asks for the order again and again, also while the daemon is restarted."""

    def __init__(self, session: Session, order_id: str) -> None:
        self._session = session
        self._order_id = order_id

    def __call__(self, seconds: float) -> Any:
        begun = time.monotonic()
        away_since = None
        while True:
            try:
                order = self._session.attempt(
                    "pki.acme.orders.get", order_id=self._order_id, wait_end_seconds=round(max(seconds, 0.1), 1)
                )
            except Unreachable as error:
                if away_since is None:
                    away_since = time.monotonic()
                    complain(f"scaivaultctl: {error}; waiting for the daemon")
                if time.monotonic() - away_since >= _AWAY_SECONDS:
                    sys.exit(EX_UNREACHABLE)
                time.sleep(_PAUSE_SECONDS)
                continue
            except Refused as refused:
                if refused.code in ("standby", "sealed", "storage_unavailable"):
                    time.sleep(_PAUSE_SECONDS)
                    return self._session.call("pki.acme.orders.get", order_id=self._order_id)
                fail(refused.problem)
            if order["status"] in UNFINISHED and time.monotonic() - begun < seconds:
                time.sleep(_PAUSE_SECONDS)
            return order


def _waits_longer(order: Mapping[str, Any], left: float) -> bool:
    from datetime import UTC, datetime

    if not order.get("queued"):
        return False
    return (datetime.fromisoformat(order["queued"]["until"]) - datetime.now(UTC)).total_seconds() > left


def _give_up(order: Mapping[str, Any]) -> NoReturn:
    queued = order.get("queued")
    if queued:
        complain(f"scaivaultctl: a limit of the CA lets it go on at {moment(queued['until'])}")
    else:
        complain("scaivaultctl: waited long enough")
        for line in ctl_failure.lines(order):
            complain(line)
    _goes_on(order)
    sys.exit(EX_LIMITED if queued else EX_WAITED)


def _goes_on(order: Mapping[str, Any]) -> None:
    complain(f"The order goes on by itself. To watch it: scaivaultctl order watch {order['order_id']}")


def ended(session: Session, order: Any, *, is_asked_for: bool = False) -> None:
    """Tell how an order has ended, and end the process unless it is valid.

    `is_asked_for`: the order itself was asked for, so that a failure is no talk but the answer.
    """
    if session.as_json:
        session.show(order, list)
    elif order["status"] == "valid":
        session.show(order, lambda: certificate_lines(order))
        for warning in order.get("warnings") or ():
            say(f"Otherwise than asked for: {warning}")
    elif is_asked_for:
        session.show(order, lambda: ctl_failure.lines(order) or [f"The order has ended as {order['status']}."])
    else:
        for line in ctl_failure.lines(order) or [f"The order has ended as {order['status']}."]:
            complain(line)
    if order["status"] != "valid":
        sys.exit(exit_code(order))


def exit_code(order: Mapping[str, Any]) -> int:
    """The process's for an order that brought no certificate."""
    return _OF_CODES.get((order.get("error") or {}).get("code", ""), EX_FAILED)


def certificate_lines(order: Mapping[str, Any]) -> list[str]:
    """What an order has brought."""
    return facts(
        [
            ("status", order["status"]),
            ("certificate", order["certificate_id"]),
            ("names", order["domains"]),
            ("version", order.get("version")),
            ("until", moment(order.get("not_after"))),
            ("renewed", "by itself" if order["auto_renew"] else "not by itself"),
        ]
    )


def progress(order: Mapping[str, Any]) -> dict[str, str]:
    """What there is to say of an order now: lines by what they are about, so that changes can be told."""
    return dict([("order", f"{names(order['domains'])}: {_now(order)}"), *_parts(order)])


def _now(order: Mapping[str, Any]) -> str:
    if order["status"] == "processing":
        return "the CA makes the certificate"
    if order["status"] != "pending":
        return str(order["status"])
    if queued := order.get("queued"):
        ahead = f", {queued['ahead']} ahead" if queued["ahead"] else ""
        return f"waits for {queued['limit']} of {queued['subject']} until {moment(queued['until'])}{ahead}"
    if order.get("next_try_at"):
        return f"goes on at {moment(order['next_try_at'])}"
    return "its names are being proven" if order["challenges"] else "asks the CA"


def _parts(order: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for each in order.get("preflight") or ():
        if each["status"] in ("failed", "warning"):
            key = f"{each['check']} {each['identifier']}"
            yield key, f"  {each['identifier']}: {each['check']}: {each['status']}: {each['detail']}"
    is_over = order["status"] in ("valid", "invalid", "deactivated")
    for each in order["challenges"]:
        told = _OF_CHALLENGES.get(each["status"], each["status"])
        if each["status"] == "pending" and each["type"] == "dns-01" and not _is_visible(order, each["domain"]):
            told = "waits for DNS"
        yield each["token"], f"  {each['domain']}  {each['type']}  {told}"
    for record in order.get("dns_records") or ():
        waited = "" if record["status"] == "writing" else f" after {record['seconds']:.0f} s"
        name, provider = record["record_name"], record["dns_provider"]
        told = {"waiting": "waits for the name servers", "writing": f"{provider} writes"}.get(record["status"])
        yield name, f"  {name}  {told or record['status'] + waited}"
        for each in record["verdicts"]:
            server = f"{each['server']} ({each['address']})" if each["address"] else each["server"]
            yield (
                f"{name} {server}",
                f"    {server}  {each['answer']}{': ' * bool(each.get('detail'))}{each.get('detail', '')}",
            )
    if order.get("error") and not is_over:
        error = order["error"]
        yield "error", f"  setback {order['attempt']}: {error['code']}: {error['detail']}"


def _is_visible(order: Mapping[str, Any], name: str) -> bool:
    of_name = [each for each in order.get("dns_records") or () if each["identifier"] == name]
    return bool(of_name) and all(each["status"] == "visible" for each in of_name)


def _screen() -> Callable[[Mapping[str, str]], None]:
    import os

    if is_quiet():
        return lambda _: None
    return _Drawn() if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" else _Told()


class _Told:
    """One line for each change."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def __call__(self, lines: Mapping[str, str]) -> None:
        for key, line in lines.items():
            if self._before.get(key) != line:
                say(line)
        self._before = dict(lines)


class _Drawn:
    """The same lines, drawn over those before."""

    def __init__(self) -> None:
        self._height = 0

    def __call__(self, lines: Mapping[str, str]) -> None:
        size = shutil.get_terminal_size()
        told = [shortened(ctl_failure.clean_line(each), size.columns - 1) for each in lines.values()]
        if len(told) >= size.lines:
            told = [*told[: size.lines - 2], f"  and {len(told) - size.lines + 2} more lines"]
        # Back to the first line of before, and everything below it away.
        back = f"\x1b[{self._height}F\x1b[J" if self._height else ""
        click.echo(back + "\n".join(told), err=True, color=True)
        self._height = len(told)
