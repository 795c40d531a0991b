"""`scaivaultctl cert issue | renew | update`: what makes an order, and waits for its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd import ctl_find, ctl_watch
from scaivaultd.ctl_cert import cert
from scaivaultd.ctl_client import Refused
from scaivaultd.ctl_output import complain, moment, say
from scaivaultd.ctl_session import EX_FAILED, EX_NOT_ALLOWED, EX_USAGE, NULL, refuse, with_daemon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from scaivaultd.ctl_session import Session

_CHALLENGES = click.Choice(["http-01", "dns-01", "tls-alpn-01"])
_KEY_TYPES = click.Choice(["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096"])
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_TRACED_MAX = 5


def _waiting(verb: Callable[..., None]) -> Callable[..., None]:
    """The options of verbs that wait for an order."""
    for option in (
        click.option("--timeout", type=ctl_find.duration, default="10m", show_default=True, help="How long to wait."),
        click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the end of the order."),
    ):
        verb = option(verb)
    return verb


@cert.command("issue")
@click.argument("names", nargs=-1, metavar="NAME...")
@click.option(
    "--account",
    "accounts",
    multiple=True,
    metavar="NAME",
    help="Which account orders, by name or id; the only one there is unless given. Further ones are tried in order "
    "when the CA of the one before is at fault.",
)
@click.option("--challenge", type=_CHALLENGES, help="How to prove the names; dns-01 for wildcards, else http-01.")
@click.option("--dns-provider", metavar="NAME", help="For dns-01: the provider; the one with the zone unless given.")
@click.option("--key-type", type=_KEY_TYPES, help="Kind of the private key; ec-p256 unless given.")
@click.option("--profile", metavar="NAME", help="One of the CA's profiles; `account show` lists them.")
@click.option("--preferred-chain", metavar="NAME", help="Of several chains the one that this issuer's name ends.")
@click.option("--csr", type=_FILE, metavar="FILE", help="Your own CSR: the private key stays where it is.")
@click.option("--reuse-key", is_flag=True, help="Keep the private key at renewals.")
@click.option("--no-auto-renew", is_flag=True, help="Do not keep it renewed.")
@click.option("--renew-before", metavar="TIME", help="Renew when so much of its life is left, such as 30d.")
@_waiting
@click.option("--dry-run", is_flag=True, help="Show what would be sent and what stands in the way; send nothing.")
@with_daemon
def cert_issue(
    session: Session,
    names: tuple[str, ...],
    accounts: tuple[str, ...],
    challenge: str | None,
    dns_provider: str | None,
    csr: Path | None,
    reuse_key: bool,
    no_auto_renew: bool,
    wait: bool,
    timeout: float,
    dry_run: bool,
    **further: str | None,
) -> None:
    """Get a certificate for NAMEs, and wait for it.

    The exit code is 0 with a certificate, 6 if a name could not be proven, 7 if a limit of the CA is reached, 9 if
    --timeout is over: the order goes on then.
    """
    if not names and csr is None:
        refuse("name what the certificate is for: `scaivaultctl cert issue www.example.org`")
    ids = [ctl_find.the_account(session, each) for each in accounts or (None,)]
    asked: dict[str, Any] = {
        "account_id": ids[0],
        "account_ids": ids[1:] or None,
        "domains": list(names) or None,
        "challenge_type": challenge or _challenge_for(names, dns_provider),
        "dns_provider": dns_provider,
        "csr": csr and _text_of(csr),
        "reuse_key": reuse_key or None,
        "auto_renew": False if no_auto_renew else None,
        **further,
    }
    if dry_run:
        session.would_call("pki.acme.issue", **asked)
        _foretell(session, asked)
        return
    order = session.call("pki.acme.issue", **asked, wait_seconds=0)
    _follow(session, order, timeout if wait else None)


@cert.command("renew")
@click.argument("which", metavar="ID|NAME")
@_waiting
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@with_daemon
def cert_renew(session: Session, which: str, wait: bool, timeout: float, dry_run: bool) -> None:
    """Renew a certificate now; it is renewed by itself in time anyway.

    The exit codes are those of `cert issue`.
    """
    found = ctl_find.certificate(session, which)
    if dry_run:
        session.would_call("pki.certificates.renew", id=found["id"])
        return
    order = session.call("pki.certificates.renew", id=found["id"], wait_seconds=0)
    _follow(session, order, timeout if wait else None)


@cert.command("update")
@click.argument("which", metavar="ID|NAME")
@click.option("--add", multiple=True, metavar="NAME", help="One more name; may be repeated.")
@click.option("--drop", multiple=True, metavar="NAME", help="One name less; may be repeated.")
@click.option("--account", metavar="NAME", help="Which account orders from now on.")
@click.option("--challenge", type=_CHALLENGES, help="How to prove the names from now on.")
@click.option("--dns-provider", metavar="NAME", help="For dns-01; - for the one with the zone.")
@click.option("--key-type", type=_KEY_TYPES, help="Kind of the next private key.")
@click.option("--profile", metavar="NAME", help="One of the CA's profiles; - for none.")
@click.option("--preferred-chain", metavar="NAME", help="As for `cert issue`; - for the CA's default.")
@click.option("--csr", type=_FILE, metavar="FILE", help="Another CSR; ordered at once.")
@click.option("--reuse-key/--no-reuse-key", default=None, help="Keep the private key at renewals, or not.")
@click.option("--auto-renew/--no-auto-renew", default=None, help="Keep it renewed, or not.")
@click.option("--renew-before", metavar="TIME", help="Such as 30d; - for the CA's window or our own rule.")
@_waiting
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@with_daemon
def cert_update(
    session: Session,
    which: str,
    add: tuple[str, ...],
    drop: tuple[str, ...],
    account: str | None,
    challenge: str | None,
    csr: Path | None,
    wait: bool,
    timeout: float,
    dry_run: bool,
    **further: str | bool | None,
) -> None:
    """Change what a certificate's next orders ask for.

    Other names are ordered at once, as its next version; everything else counts from the next renewal on.
    """
    found = ctl_find.certificate(session, which)
    asked = {
        "domains": _changed(found, add, drop),
        "account_id": account and session.account_id(account),
        "challenge_type": challenge,
        "csr": csr and _text_of(csr),
        **{member: NULL if value == "-" else value for member, value in further.items()},
    }
    if all(value is None for value in asked.values()):
        refuse("say what is to be changed; `scaivaultctl cert update --help` lists what can be")
    if dry_run:
        session.would_call("pki.certificates.update", id=found["id"], **asked)
        return
    reply = session.call("pki.certificates.update", id=found["id"], **asked)
    order_id = (reply.get("renewal") or {}).get("order_id")
    is_ordered = order_id is not None and (asked["domains"] is not None or csr is not None)
    if not is_ordered or not wait:
        session.show(reply, lambda: [f"{reply['id']}: changed" + (f"; ordered as {order_id}" if is_ordered else "")])
        return
    say(f"{reply['id']}: changed; the next version is ordered")
    _follow(session, session.call("pki.acme.orders.get", order_id=order_id), timeout)


def _challenge_for(names: tuple[str, ...], dns_provider: str | None) -> str:
    return "dns-01" if dns_provider or any(each.startswith("*.") for each in names) else "http-01"


def _text_of(csr: Path) -> str:
    """A CSR as PEM, or as base64 of its DER."""
    content = csr.read_bytes()
    if content.lstrip().startswith(b"-----BEGIN"):
        return content.decode("ascii", "replace")
    import base64

    return base64.b64encode(content).decode()


def _changed(found: Mapping[str, Any], add: tuple[str, ...], drop: tuple[str, ...]) -> list[str] | None:
    if not add and not drop:
        return None
    before = (found.get("terms") or found)["domains"]
    if strange := [each for each in drop if each not in before]:
        complain(f"scaivaultctl: {strange[0]} is none of its names: {', '.join(before)}")
        sys.exit(EX_USAGE)
    after = [each for each in dict.fromkeys((*before, *add)) if each not in drop]
    if not after:
        refuse("a certificate needs a name; to end it, revoke it")
    return after


def _follow(session: Session, order: Any, patience_seconds: float | None) -> None:
    """Watch an order to its end; without patience only say which one it is."""
    if patience_seconds is None:
        session.show(order, lambda: [order["order_id"]])
        if not session.as_json:
            say(f"To watch it: scaivaultctl order watch {order['order_id']}")
        return
    order = ctl_watch.watch(session, order, patience_seconds)
    ctl_watch.ended(session, order)
    if not session.as_json:
        say(f"To print it: scaivaultctl cert pem {order['certificate_id']}")


def _foretell(session: Session, asked: Mapping[str, Any]) -> None:
    """What is known to stand in the way of an order, without a trace of it anywhere."""
    names = asked["domains"] or []
    may = None
    try:
        may = session.attempt(
            "auth.can_i",
            action="cert.issue",
            domains=names,
            account_id=asked["account_id"],
            challenge_type=asked["challenge_type"],
        )
    except Refused as refused:
        complain(f"scaivaultctl: it would be refused: {refused}")
        sys.exit(EX_USAGE if refused.code == "invalid_request" else EX_FAILED)
    for line in _forecast(session, asked, names):
        say(line)
    if not may["allowed"]:
        complain(f"scaivaultctl: {may['principal']} may not do this (`scaivaultctl auth can-i` tells why)")
        sys.exit(EX_NOT_ALLOWED)


def _forecast(session: Session, asked: Mapping[str, Any], names: list[str]) -> Iterator[str]:
    for name in names[:_TRACED_MAX]:
        for each in _tried(session, "pki.certificates.list", domain=name, status="valid").get("items", []):
            yield f"{name} is in {each['id']} already, until {moment(each['not_after'])}."
        limits = _tried(session, "pki.acme.limits", account_id=asked["account_id"], domain=name.removeprefix("*.")).get(
            "items", []
        )
        for each in limits:
            if each.get("new_at"):
                yield f"A limit of the CA ({each['limit']} of {each['subject']}) has it wait: {moment(each['new_at'])}."
        if asked["challenge_type"] == "dns-01":
            trace = _tried(session, "pki.dns_providers.trace", name=name, dns_provider=asked["dns_provider"])
            for problem in trace.get("problems", []):
                yield f"{name}: {problem}"
    if len(names) > _TRACED_MAX:
        yield f"Only the first {_TRACED_MAX} names were looked at."


def _tried(session: Session, command: str, **members: Any) -> dict[str, Any]:
    try:
        reply: dict[str, Any] = session.attempt(command, **members)
    except Refused:
        return {}
    return reply
