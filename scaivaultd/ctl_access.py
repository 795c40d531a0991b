"""`scaivaultctl token | auth | audit`: who may do what, and what they did."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_output import day
from scaivaultd.ctl_session import (
    EX_FAILED,
    EX_NOT_ALLOWED,
    EX_USAGE,
    Group,
    confirm,
    facts,
    moment,
    say,
    table,
    with_daemon,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scaivaultd.ctl_session import Session


@click.group(cls=Group)
def token() -> None:
    """API tokens: make, list, rotate, revoke."""


@token.command("create")
@click.argument("name")
@click.option("--admin", is_flag=True, help="Let it do everything but read private keys; the same as --policy admin.")
@click.option("--policy", "policies", multiple=True, metavar="NAME", help="A policy for it; may be repeated.")
@click.option("--scope", "scopes", multiple=True, metavar="ACTION", help="The most it may ever do; may be repeated.")
@click.option("--network", "networks", multiple=True, metavar="CIDR", help="Where it may come from; may be repeated.")
@click.option("--lifetime", default="90d", show_default=True, help="How long it lives; at most 365d.")
@with_daemon
def token_create(
    session: Session,
    name: str,
    admin: bool,
    policies: tuple[str, ...],
    scopes: tuple[str, ...],
    networks: tuple[str, ...],
    lifetime: str,
) -> None:
    """Make an API token called NAME, and print it.

    It is never shown again. The first one is made on the daemon's host, as root or a member of the admin group.
    """
    given = [*policies, *(["admin"] if admin and "admin" not in policies else [])]
    reply = session.call(
        "tokens.create",
        name=name,
        policies=given,
        scopes=list(scopes),
        networks=list(networks),
        lifetime=lifetime,
    )
    session.show(reply, lambda: [reply["token"]])
    if not session.as_json:
        say(f"{reply['principal']} ({name}), until {moment(reply['expires_at'])}. Keep it: it is not shown again.")
        if not given:
            say("No policy was given: it may do only what policies allow that name it, such as token:" + name + ".")


@token.command("ls")
@click.option("--all", "include_ended", is_flag=True, help="Those that are revoked or expired too.")
@with_daemon
def token_ls(session: Session, include_ended: bool) -> None:
    """List API tokens."""
    found = session.all("tokens.list", include_ended=include_ended or None)
    session.show(
        found,
        lambda: table(
            ("ID", "NAME", "STATUS", "EXPIRES", "POLICIES"),
            [
                (each["id"], each["name"], each["status"], day(each["expires_at"]), ", ".join(each["policies"]) or "-")
                for each in found
            ],
        ),
    )


@token.command("show")
@click.argument("token_id", metavar="ID_OR_NAME")
@with_daemon
def token_show(session: Session, token_id: str) -> None:
    """Show one API token, without its secret."""
    reply = session.call("tokens.get", id=token_id)
    session.show(reply, lambda: _token(reply))


@token.command("rotate")
@click.argument("token_id", metavar="ID_OR_NAME")
@click.option("--overlap", default="24h", show_default=True, help="How long the old secret stays good; at most 7d.")
@click.option("--lifetime", help="How long it lives from now on; as long as before unless given.")
@with_daemon
def token_rotate(session: Session, token_id: str, overlap: str, lifetime: str | None) -> None:
    """Give an API token another secret, and print it."""
    reply = session.call("tokens.rotate", id=token_id, overlap=overlap, lifetime=lifetime)
    session.show(reply, lambda: [reply["token"]])
    if not session.as_json:
        say(f"{reply['principal']} ({reply['name']}), until {moment(reply['expires_at'])}.")
        say(f"The old secret is good until {moment(reply['previous_until'])}.")


@token.command("revoke")
@click.argument("token_id", metavar="ID_OR_NAME")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def token_revoke(session: Session, token_id: str, yes: bool) -> None:
    """End an API token at once and for good."""
    found = session.call("tokens.get", id=token_id)
    confirm(found["name"], f"Token {found['id']} ({found['name']}) ends at once and for good", yes=yes)
    reply = session.call("tokens.revoke", id=found["id"])
    session.show(reply, lambda: _token(reply))


def _token(reply: Mapping[str, Any]) -> list[str]:
    nats = reply.get("nats") or {}
    return facts(
        [
            ("id", reply["id"]),
            ("name", reply["name"]),
            ("principal", reply["principal"]),
            ("status", reply["status"]),
            ("policies", reply["policies"]),
            ("scopes", reply["scopes"]),
            ("networks", reply["networks"]),
            ("created", f"{moment(reply['created_at'])} by {reply['created_by']}"),
            ("expires", moment(reply["expires_at"])),
            ("last used", moment(reply.get("last_used_at"))),
            ("revoked", moment(reply.get("revoked_at"))),
            ("old secret until", moment(reply.get("previous_until"))),
            ("NATS subjects", nats.get("subject_root") and f"{nats['subject_root']}.>"),
            ("NATS inbox", nats.get("inbox_prefix")),
        ]
    )


@click.group(cls=Group)
def auth() -> None:
    """Who you are, and what you may do."""


@auth.command("whoami")
@with_daemon
def auth_whoami(session: Session) -> None:
    """Show who you are to the daemon."""
    reply = session.call("auth.whoami")
    nats = reply.get("nats") or {}
    session.show(
        reply,
        lambda: facts(
            [
                ("principal", reply["principal"]),
                ("name", reply["name"]),
                ("policies", reply["policies"] or "none: nothing is allowed"),
                ("scopes", reply["scopes"]),
                ("expires", moment(reply["expires_at"])),
                ("NATS subjects", nats.get("subject_root") and f"{nats['subject_root']}.>"),
                ("NATS inbox", nats.get("inbox_prefix")),
            ]
        ),
    )


def question(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the options that say what may be asked beside the action."""
    for option in reversed(
        (
            click.option("--domain", "domains", multiple=True, metavar="NAME", help="A name; may be repeated."),
            click.option("--as", "principal", metavar="PRINCIPAL", help="For whom, such as token:web-ci."),
            click.option("--account", "account_id", metavar="ID_OR_NAME", help="The ACME account."),
            click.option(
                "--challenge",
                "challenge_type",
                type=click.Choice(["http-01", "dns-01", "tls-alpn-01"]),
                help="How the names are proven.",
            ),
            click.option("--key-type", metavar="TYPE", help="Kind of the certificate's key, such as ec-p256."),
            click.option("--secret", metavar="REFERENCE", help="A secret reference, for secret.* actions."),
            click.option("--explain", is_flag=True, help="Every reason, also where it is allowed."),
        )
    ):
        verb = option(verb)
    return verb


@auth.command("can-i")
@click.argument("action")
@question
@with_daemon
def auth_can_i(session: Session, explain: bool, **asked: Any) -> None:
    """Ask whether an ACTION would be allowed, such as cert.issue.

    The exit code is 4 if not.
    """
    reply = session.call("auth.can_i", **{name: value or None for name, value in asked.items()})
    session.show(reply, lambda: verdict(reply, explain=explain))
    if not reply["allowed"]:
        sys.exit(EX_NOT_ALLOWED)


def verdict(reply: Mapping[str, Any], *, explain: bool) -> list[str]:
    """The lines of a decision: yes or no, by which rule, and why."""
    by = f", by rule {reply['rule']} of policy {reply['policy']}" if reply["policy"] else ""
    lines = [f"{'yes' if reply['allowed'] else 'no'}{by}"]
    if explain or not reply["allowed"]:
        lines += [f"  {each['about']}: {each['detail']}" for each in reply["reasons"]]
    return lines


@click.group(cls=Group)
def audit() -> None:
    """The audit log: who did what."""


@audit.command("tail")
@click.option("-n", "count", type=click.IntRange(1, 500), default=20, show_default=True, help="How many records.")
@click.option("--principal", metavar="PRINCIPAL", help="Only what this one did.")
@click.option("--action", metavar="ACTION", help="Only this action.")
@click.option("--object", "about", metavar="ID", help="Only what was about this.")
@with_daemon
def audit_tail(session: Session, count: int, principal: str | None, action: str | None, about: str | None) -> None:
    """Show the newest records, the newest last."""
    found: list[Any] = []
    cursor = None
    while len(found) < count:
        page = session.call(
            "audit.list", limit=count - len(found), cursor=cursor, principal=principal, action=action, object=about
        )
        found += page["items"]
        if (cursor := page["next_cursor"]) is None:
            break
    found.reverse()
    session.show(
        found,
        lambda: table(
            ("TIME", "PRINCIPAL", "ACTION", "RESULT", "OBJECT"),
            [
                (each["at"][:19] + "Z", each["principal"], each["action"], each["result"], each["object"])
                for each in found
            ],
        ),
    )


@audit.command("verify")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The log's directory (or a copy): verify it here, without the daemon.",
)
@click.option("--anchor", "anchors", multiple=True, metavar="SEQ:HASH", help="With --dir: an anchor kept elsewhere.")
@with_daemon
def audit_verify(session: Session, directory: Path | None, anchors: tuple[str, ...]) -> None:
    """Recompute the log's hash chain; exit code 1 where it is broken."""
    if anchors and directory is None:
        say("scaivaultctl: --anchor goes with --dir; the daemon knows its own anchors")
        sys.exit(EX_USAGE)
    reply = session.call("audit.verify") if directory is None else _verified(directory, anchors)
    session.show(reply, lambda: _verification(reply))
    if not reply["is_sound"]:
        sys.exit(EX_FAILED)


def _verified(directory: Path, anchors: Sequence[str]) -> dict[str, Any]:
    from scaivaultd.api.audit import verify_kept
    from scaivaultd.model.access import Anchor
    from scaivaultd.store.audit_file import AuditFiles

    found = [re.fullmatch(r"([0-9]{1,18}):([0-9a-fA-F]{64})", each) for each in anchors]
    known = [Anchor(sequence=int(each[1]), hash=each[2].lower()) for each in found if each]
    if len(known) < len(found):
        say("scaivaultctl: an anchor is written SEQUENCE:HASH, the hash with 64 digits")
        sys.exit(EX_USAGE)
    try:
        report = verify_kept(AuditFiles(directory, file_bytes=0, keep=0).read(), anchors=known)
    except OSError as error:
        say(f"scaivaultctl: {directory} cannot be read: {error.strerror}")
        sys.exit(EX_FAILED)
    broken = report.broken
    if broken is None and report.sound == 0:
        say(f"scaivaultctl: {directory} holds no audit log")
        sys.exit(EX_FAILED)
    return {
        "is_sound": broken is None,
        "records": report.sound,
        "head_sequence": report.head.sequence,
        "head_hash": report.head.hash,
        "anchors": len(known),
        "broken": broken and {"sequence": broken.sequence, "kind": broken.kind, "detail": broken.detail},
    }


def _verification(reply: Mapping[str, Any]) -> list[str]:
    lines = facts(
        [
            ("sound", reply["is_sound"]),
            ("records", reply["records"]),
            ("head", f"{reply['head_sequence']}:{reply['head_hash']}"),
            ("anchors", reply["anchors"]),
        ]
    )
    if broken := reply.get("broken"):
        lines.append(f"broken at record {broken['sequence']}: {broken['kind']}: {broken['detail']}")
    return lines
