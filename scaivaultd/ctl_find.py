"""Certificates, orders and bulk renewals by what people call them: an id, or a name that they are for."""

from __future__ import annotations

import difflib
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd.ctl_client import Refused
from scaivaultd.ctl_output import complain, day, relative, table
from scaivaultd.ctl_session import EX_CONFLICT, EX_NOT_FOUND

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.ctl_session import Session

UNFINISHED = ("pending", "ready", "processing")
_ID = re.compile(r"[a-z_]+_[0-9a-hjkmnp-tv-z]{26}")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str | float) -> float:
    """The type of options that are lengths of time: `90s`, `10m`, `36h` or `30d`, as seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(text))
    if found is None or not int(found[1]):
        raise click.BadParameter(f"{text!r} is no length of time; write it as 90s, 10m, 36h or 30d")
    return int(found[1]) * _UNITS[found[2] or "s"]


def certificate(session: Session, given: str) -> Any:
    """The certificate with this id, or the only one for this name; any other number of them ends the process."""
    if _ID.fullmatch(given):
        return session.call("pki.certificates.get", id=given)
    found = session.all("pki.certificates.list", domain=_name(given))
    # What is over does not stand in the way of the one that is meant.
    living = [each for each in found if each["status"] == "valid"]
    for alone in (living, found):
        if len(alone) == 1:
            return alone[0]
    if not found:
        _no_such(session, given, "certificate", "cert ls")
    return _several(
        f"{len(found)} certificates are for {given}; name one by its id",
        table(
            ("ID", "STATUS", "ENDS", "NAMES"),
            [(each["id"], each["status"], day(each["not_after"]), names(each["domains"])) for each in found],
        ),
    )


def order(session: Session, given: str, *, must_be_under_way: bool = False) -> Any:
    """The order with this id, or the newest for this name: one under way, else, unless it has to be, one that was."""
    if _ID.fullmatch(given):
        return session.call("pki.acme.orders.get", order_id=given)
    name = _name(given)
    found = [
        each
        for status in UNFINISHED
        for each in session.all("pki.acme.orders.list", status=status)
        if name in each["domains"]
    ]
    if must_be_under_way and len(found) > 1:
        _several(f"{len(found)} orders for {given} are under way; name one by its id", orders(found))
    if not found and not must_be_under_way:
        found = [each for each in session.all("pki.acme.orders.list") if name in each["domains"]]
    if not found:
        what = "order under way" if must_be_under_way else "order"
        complain(f"scaivaultctl: there is no {what} for {given!r}; `scaivaultctl order ls` lists orders")
        sys.exit(EX_NOT_FOUND)
    return max(found, key=lambda each: each["created_at"])


def orders(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Orders as a table."""
    return table(
        ("ID", "STATUS", "MADE", "NAMES"),
        [(each["order_id"], state_of(each), relative(each["created_at"]), names(each["domains"])) for each in found],
    )


def state_of(order: Mapping[str, Any]) -> str:
    """An order's status in one word, and whether it waits."""
    if order["status"] in UNFINISHED and order.get("queued"):
        return "queued"
    return "waiting" if order["status"] in UNFINISHED and order.get("next_try_at") else str(order["status"])


def names(domains: Sequence[str]) -> str:
    """The names of a certificate for a column."""
    return domains[0] if len(domains) == 1 else f"{domains[0]} +{len(domains) - 1}"


def account_name(session: Session, account_id: str) -> str:
    """What people call an account; its id where one may not see it, or it is gone."""
    try:
        return str(session.attempt("pki.acme.accounts.get", id=account_id)["name"])
    except Refused:
        return account_id


def the_account(session: Session, given: str | None) -> str:
    """The id of the account that is meant: that of a name, or the only one that can order."""
    if given is not None:
        return session.account_id(given)
    usable = session.all("pki.acme.accounts.list", status="valid")
    if len(usable) == 1:
        return str(usable[0]["id"])
    if not usable:
        complain("scaivaultctl: there is no account yet; `scaivaultctl account create` registers one")
        sys.exit(EX_NOT_FOUND)
    return _several(
        f"there are {len(usable)} accounts; say which one with --account",
        table(
            ("NAME", "CA", "ENVIRONMENT"), [(each["name"], each["provider"], each["environment"]) for each in usable]
        ),
    )


def _name(given: str) -> str:
    """As it stands in a certificate: `*.` in front stays, letters are small, and no dot ends it."""
    name = given.lower().rstrip(".")
    if name.isascii():
        return name
    from scaivaultd.model.errors import ScaivaultError
    from scaivaultd.model.names import parse_identifiers

    try:
        return str(parse_identifiers([name], public_ca=False)[0])
    except ScaivaultError:
        return name


def _no_such(session: Session, given: str, what: str, verb: str) -> NoReturn:
    known = {name for each in session.all("pki.certificates.list") for name in each["domains"]}
    near = difflib.get_close_matches(given, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"`scaivaultctl {verb}` lists what there is"
    complain(f"scaivaultctl: there is no {what} for {given!r}; {hint}")
    sys.exit(EX_NOT_FOUND)


def _several(what: str, lines: Sequence[str]) -> NoReturn:
    complain(f"scaivaultctl: {what}:")
    for line in lines:
        complain(line)
    sys.exit(EX_CONFLICT)
