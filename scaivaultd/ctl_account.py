"""`scaivaultctl account | limits`: registrations at CAs, and what the CAs limit."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_output import moment, relative, span, wrapped
from scaivaultd.ctl_session import (
    EX_FAILED,
    EX_WAITED,
    NULL,
    Group,
    Verb,
    complain,
    confirm,
    facts,
    read_secret,
    refuse,
    say,
    table,
    with_daemon,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.ctl_session import Session

_PATIENCE_SECONDS = 30.0
_FIRST_SECONDS = 5.0
_LOOK_SECONDS = 2.0
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_KEY_TYPES = click.Choice(["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096"])


@click.group(cls=Group)
def account() -> None:
    """ACME accounts: the registrations at CAs.

    An account is named by its name or its id.
    """


@account.command("create")
@click.argument("name")
@click.option(
    "--ca",
    type=click.Choice(["letsencrypt", "zerossl", "google", "custom"]),
    help="Which CA; letsencrypt unless --directory is given.",
)
@click.option("--staging", is_flag=True, help="The CA's staging environment: certificates that nobody trusts.")
@click.option("--directory", metavar="URL", help="The directory of another CA.")
@click.option("--email", help="Where the CA may reach you.")
@click.option("--agree-tos", is_flag=True, help="You agree to the CA's terms of service.")
@click.option("--eab-key-id", metavar="ID", help="External account binding: the key id that the CA gave.")
@click.option(
    "--eab-key", metavar="REFERENCE", help="Its MAC key: a reference to a secret. Without: asked for, or from stdin."
)
@click.option("--eab-key-file", type=_FILE, metavar="FILE", help="Its MAC key: in a file.")
@click.option("--zerossl-access-key", metavar="REFERENCE", help="A reference to an access key of ZeroSSL's API.")
@click.option("--account-key-file", type=_FILE, metavar="FILE", help="The key (PEM) of an account that exists there.")
@click.option("--account-key", metavar="REFERENCE", help="The same as a reference to a secret.")
@click.option("--ca-roots", type=_FILE, metavar="FILE", help="Roots (PEM) to trust for this CA's https.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the CA has registered it.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@with_daemon
def account_create(
    session: Session,
    name: str,
    ca: str | None,
    staging: bool,
    directory: str | None,
    email: str | None,
    agree_tos: bool,
    wait: bool,
    dry_run: bool,
    **given: Any,
) -> None:
    """Register an account called NAME at a CA.

    A first one, for trials: `scaivaultctl account create try --staging --agree-tos`. The same once more finds the same
    account.
    """
    provider = ca or ("custom" if directory else "letsencrypt")
    environment = "staging" if staging else "production"
    roots = given["ca_roots"]
    if not dry_run and not agree_tos:
        _agree(provider, environment, directory, roots)
    members = {
        "name": name,
        "provider": provider,
        "environment": environment,
        "email": email,
        "directory_url": directory,
        "terms_of_service_agreed": True,
        "eab": _eab(given, dry_run=dry_run),
        "zerossl_access_key_path": given["zerossl_access_key"],
        "account_key_path": given["account_key"],
        "account_key_pem": _text(given["account_key_file"]),
        "ca_certificates_pem": _text(roots),
        "wait_seconds": _FIRST_SECONDS if wait else 0,
    }
    if dry_run:
        session.would_call("pki.acme.accounts.create", **members)
        return
    _end(session, session.call("pki.acme.accounts.create", **members), wait=wait)


def _end(session: Session, reply: Any, *, wait: bool) -> None:
    """Show a registration once it has ended; one that takes longer goes on without us."""
    given_up = time.monotonic() + _PATIENCE_SECONDS
    told = ""
    while wait and reply["status"] == "pending" and not reply.get("action_required") and time.monotonic() < given_up:
        trouble = (reply.get("error") or {}).get("detail", "")
        if trouble and trouble != told:
            told = trouble
            say(f"Not registered yet: {trouble}. It is tried again.")
        time.sleep(_LOOK_SECONDS)
        reply = session.call("pki.acme.accounts.get", id=reply["id"])
    session.show(reply, lambda: _account(reply))
    if reply["status"] == "pending" and wait:
        say(f"The CA has not registered it yet; this goes on. `scaivaultctl account show {reply['id']}` tells how far.")
        sys.exit(EX_WAITED)
    if reply["status"] not in ("valid", "pending"):
        sys.exit(EX_FAILED)


def _eab(given: Mapping[str, Any], *, dry_run: bool) -> dict[str, str] | None:
    if given["eab_key_id"] is None:
        if given["eab_key"] or given["eab_key_file"]:
            refuse("--eab-key and --eab-key-file go with --eab-key-id")
        return None
    if given["eab_key"] and given["eab_key_file"]:
        refuse("give one of --eab-key and --eab-key-file")
    if given["eab_key"] not in (None, "-"):
        return {"key_id": given["eab_key_id"], "hmac_key_path": given["eab_key"]}
    file = given["eab_key_file"]
    key = "(asked for)" if dry_run and not file else (_text(file) or read_secret("MAC key of the binding")).strip()
    return {"key_id": given["eab_key_id"], "hmac_key": key}


def _text(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text()
    except OSError as error:
        refuse(f"{file} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        refuse(f"{file} is no text; PEM is wanted")


def _agree(provider: str, environment: str, directory: str | None, roots: Path | None) -> None:
    """Have the person agree to the terms, which are looked for at the CA."""
    if not sys.stdin.isatty():
        refuse("registering means agreeing to the CA's terms of service: say --agree-tos")
    terms = _terms(provider, environment, directory, roots)
    if terms == "":
        return  # this CA has none
    where = f"They are at {terms}" if terms else "They could not be looked up from here."
    if not click.confirm(f"The CA has terms of service. {where}\nDo you agree to them?", err=True):
        complain("scaivaultctl: nothing was done")
        sys.exit(EX_FAILED)


def _terms(provider: str, environment: str, directory: str | None, roots: Path | None) -> str | None:
    """The address of the CA's terms, empty if it has none, None if it cannot be asked."""
    import json
    import ssl
    from http.client import HTTPException
    from urllib.request import urlopen

    from scaivaultd.acme.directories import directory_url_for
    from scaivaultd.model.errors import InvalidRequest

    try:
        url = directory_url_for(provider, environment, directory)  # type: ignore[arg-type]  # the daemon checks again
        context = ssl.create_default_context(cafile=roots)
        with urlopen(url, timeout=10, context=context) as answer:  # noqa: S310 - it is https, see above
            return str(json.loads(answer.read(100_000)).get("meta", {}).get("termsOfService", ""))
    except InvalidRequest as error:
        refuse(error.detail)
    except (OSError, HTTPException, ValueError, AttributeError):
        return None


@account.command("ls")
@click.option("--status", type=click.Choice(["pending", "valid", "invalid", "deactivated"]), help="Only these.")
@with_daemon
def account_ls(session: Session, status: str | None) -> None:
    """List accounts."""
    found = session.all("pki.acme.accounts.list", status=status)
    session.show(
        found,
        lambda: table(
            ("NAME", "STATUS", "CA", "EMAIL", "ID"),
            [(each["name"], _state(each), ca_of(each), each["email"] or "-", each["id"]) for each in found],
        ),
    )


def _state(reply: Mapping[str, Any]) -> str:
    if reply.get("deactivation_pending"):
        return "ending"
    return "waits for you" if reply.get("action_required") else str(reply["status"])


def ca_of(reply: Mapping[str, Any]) -> str:
    """What a person calls the CA of an account."""
    from scaivaultd.acme.directories import ca_name

    return ca_name(reply["directory_url"]).removesuffix("/production")


@account.command("show")
@click.argument("account_id", metavar="ACCOUNT")
@with_daemon
def account_show(session: Session, account_id: str) -> None:
    """Show one account."""
    reply = session.call("pki.acme.accounts.get", id=session.account_id(account_id))
    session.show(reply, lambda: _account(reply))


def _account(reply: Mapping[str, Any]) -> list[str]:
    ca = reply.get("ca") or {}
    lines = facts(
        [
            ("id", reply["id"]),
            ("name", reply["name"]),
            ("status", _state(reply)),
            ("CA", ca_of(reply)),
            ("directory", reply["directory_url"]),
            ("email", reply["email"]),
            ("created", moment(reply["created_at"])),
            ("account URL", reply.get("account_url")),
            ("key thumbprint", reply["key_thumbprint"]),
            ("key change", "under way" if reply.get("key_change_pending") else None),
            ("bound to", reply.get("eab_key_id")),
            ("terms", ca.get("terms_of_service")),
            ("CAA names", list(ca.get("caa_identities", ()))),
            ("profiles", ", ".join(ca.get("profiles", ()))),
            ("tells renewals", ca.get("renewal_info")),
        ]
    )
    if changed := reply.get("terms_changed_to"):
        lines.append(f"The CA has other terms now: {changed}")
        lines.append(f"  Agree to them: scaivaultctl account update {reply['id']} --agree-tos")
    for trouble in (reply.get("action_required"), reply.get("error")):
        if trouble:
            lines += trouble_lines(trouble)
    return lines


def trouble_lines(trouble: Mapping[str, Any]) -> list[str]:
    """What stands in the way: in our words, in the CA's, and what helps."""
    lines = [f"{trouble['code']}: {trouble['detail']}"]
    acme = trouble.get("acme") or {}
    if acme.get("detail") and acme["detail"] not in trouble["detail"]:
        lines += wrapped(f"The CA says: {acme['detail']}")
    if acme.get("instance"):
        lines.append(f"  Visit {acme['instance']}")
    if trouble.get("remedy"):
        lines += wrapped(trouble["remedy"])
    if trouble.get("retry_at"):
        lines.append(f"  Tried again {moment(trouble['retry_at'])}")
    return lines


@account.command("update")
@click.argument("account_id", metavar="ACCOUNT")
@click.option("--name", help="Another name.")
@click.option("--email", help="The only contact from now on.")
@click.option("--no-email", is_flag=True, help="Take the contact away.")
@click.option("--agree-tos", is_flag=True, help="You agree to the CA's present terms, or have done what it asked.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@with_daemon
def account_update(
    session: Session,
    account_id: str,
    name: str | None,
    email: str | None,
    no_email: bool,
    agree_tos: bool,
    dry_run: bool,
) -> None:
    """Change an account's name or contact, or agree to new terms."""
    if email and no_email:
        refuse("give one of --email and --no-email")
    members = {
        "name": name,
        "email": NULL if no_email else email,
        "terms_of_service_agreed": agree_tos or None,
    }
    if all(value is None for value in members.values()):
        refuse("nothing to change; give --name, --email, --no-email or --agree-tos")
    members = {"id": session.account_id(account_id), **members}
    if dry_run:
        session.would_call("pki.acme.accounts.update", **members)
        return
    reply = session.call("pki.acme.accounts.update", **members, wait_seconds=_PATIENCE_SECONDS)
    session.show(reply, lambda: _account(reply))


@account.command("rotate-key")
@click.argument("account_id", metavar="ACCOUNT")
@click.option("--key-type", type=_KEY_TYPES, default="ec-p256", show_default=True, help="Kind of the new key.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@with_daemon
def account_rotate_key(session: Session, account_id: str, key_type: str, dry_run: bool) -> None:
    """Give an account another key at its CA.

    Certificates and their keys stay as they are.
    """
    found = session.account_id(account_id)
    if dry_run:
        session.would_call("pki.acme.accounts.rotate_key", id=found, key_type=key_type)
        return
    reply = session.call("pki.acme.accounts.rotate_key", id=found, key_type=key_type, wait_seconds=_PATIENCE_SECONDS)
    session.show(reply, lambda: _account(reply))
    if reply.get("key_change_pending"):
        say("The CA has not taken the new key yet; this goes on.")
        sys.exit(EX_WAITED)


@account.command("deactivate")
@click.argument("account_id", metavar="ACCOUNT")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@with_daemon
def account_deactivate(session: Session, account_id: str, yes: bool, dry_run: bool) -> None:
    """End an account for good, at the CA too.

    Its orders end, and its certificates are not renewed by it any more.
    """
    found = session.call("pki.acme.accounts.get", id=session.account_id(account_id))
    if dry_run:
        session.would_call("pki.acme.accounts.deactivate", id=found["id"], confirm=found["name"])
        return
    confirm(found["name"], f"Account {found['name']} ({ca_of(found)}) ends for good; its orders end with it", yes=yes)
    reply = session.call(
        "pki.acme.accounts.deactivate", id=found["id"], confirm=found["name"], wait_seconds=_PATIENCE_SECONDS
    )
    session.show(reply, lambda: _account(reply))
    if reply.get("deactivation_pending"):
        say("The CA has not been told yet; this goes on. Nobody uses the account any more.")


@click.command(cls=Verb)
@click.option("--account", "account_id", metavar="ACCOUNT", help="Only the CA of this account, and its own budgets.")
@click.option("--domain", metavar="NAME", help="Only what an order for this name would touch.")
@with_daemon
def limits(session: Session, account_id: str | None, domain: str | None) -> None:
    """Show what the CAs limit, what is left of it, and when the next order may go.

    Budgets that are full are not listed.
    """
    found = account_id and session.account_id(account_id)
    reply = session.call("pki.acme.limits", account_id=found, domain=domain)
    session.show(reply, lambda: _limits(reply))


def _limits(reply: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for ca in reply["cas"]:
        spent = [each for each in reply["items"] if each["directory_url"] == ca["directory_url"]]
        lines += ["", f"{ca_of(ca)}: {_rules(ca['rules'])}"]
        if not spent:
            lines.append("  All budgets are full.")
        lines += _indented(
            ("LEFT", "LIMIT", "OF", "NEW ORDER", "RENEWAL"),
            [
                (
                    f"{each['left']} of {each['amount']}" if each["amount"] is not None else "none",
                    each["limit"].replace("_", " "),
                    each["subject"],
                    "needs you" if each["needs_human"] else relative(each["new_at"]) if each["new_at"] else "now",
                    relative(each["renewal_at"]) if each["renewal_at"] else "now",
                )
                for each in spent
            ],
        )
    if reply["waiting"]:
        lines += ["", "Orders that wait:"]
        lines += _indented(
            ("ORDER", "UNTIL", "AHEAD", "OF"),
            [
                (each["order_id"], relative(each["until"]), str(each["ahead"]), each["subject"])
                for each in reply["waiting"]
            ],
        )
    return lines[1:]


def _rules(rules: Sequence[Mapping[str, Any]]) -> str:
    if not rules:
        return "its limits are not known before it refuses"
    return f"{len(rules)} limits are known, such as {_rule(rules[0])}"


def _rule(rule: Mapping[str, Any]) -> str:
    return f"{rule['amount']} {rule['limit'].replace('_', ' ')} in {span(rule['window_seconds'])}"


def _indented(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return table(("", *headings), [("", *row) for row in rows])
