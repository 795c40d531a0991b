"""`scaivaultctl token | policy | auth | audit`: who may do what, and what they did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_session import EX_FAILED, EX_USAGE, confirm, facts, say, table, with_daemon

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scaivaultd.ctl_session import Session


@click.group()
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
    """Make an API token called NAME and print it; it is never shown again.

    The first one is made on the daemon's host, as root or a member of the admin group.
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
        say(f"{reply['principal']} ({name}), until {reply['expires_at']}. Keep it: it is not shown again.")
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
                (each["id"], each["name"], each["status"], _day(each["expires_at"]), ", ".join(each["policies"]) or "-")
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
        say(f"{reply['principal']} ({reply['name']}), until {reply['expires_at']}.")
        say(f"The old secret is good until {reply['previous_until']}.")


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
            ("created", f"{reply['created_at']} by {reply['created_by']}"),
            ("expires", reply["expires_at"]),
            ("last used", reply.get("last_used_at")),
            ("revoked", reply.get("revoked_at")),
            ("old secret until", reply.get("previous_until")),
            ("NATS subjects", nats.get("subject_root") and f"{nats['subject_root']}.>"),
            ("NATS inbox", nats.get("inbox_prefix")),
        ]
    )


@click.group()
def policy() -> None:
    """Policies: who may do what."""


@policy.command("ls")
@with_daemon
def policy_ls(session: Session) -> None:
    """List policies."""
    found = session.all("policies.list")
    session.show(
        found,
        lambda: table(
            ("NAME", "ORIGIN", "RULES", "FOR"),
            [
                (each["name"], each["origin"], str(len(each["rules"])), ", ".join(each["principals"]) or "-")
                for each in found
            ],
        ),
    )


@policy.command("show")
@click.argument("name")
@with_daemon
def policy_show(session: Session, name: str) -> None:
    """Show one policy, as TOML that `policy apply` takes."""
    reply = session.call("policies.get", name=name)
    session.show(reply, lambda: _policy(reply))


@policy.command("apply")
@click.option("-f", "--file", "source", type=click.File("rb"), required=True, help="TOML with [[policy]], or JSON.")
@click.option("--dry-run", is_flag=True, help="Say what would change, and change nothing.")
@with_daemon
def policy_apply(session: Session, source: Any, dry_run: bool) -> None:
    """Write the policies of a file; others stay as they are."""
    wanted = _policies(source.read(), source.name)
    there = {each["name"]: each for each in session.all("policies.list")}
    done = []
    for each in wanted:
        before = there.get(each["name"])
        if before is not None and _same(before, each):
            change = "unchanged"
        else:
            change = "new" if before is None else "changed"
            if not dry_run:
                session.call("policies.put", **each)
        done.append({"name": each["name"], "change": change})
    session.show(done, lambda: [f"{each['name']}: {each['change']}{' (dry run)' if dry_run else ''}" for each in done])


@policy.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_daemon
def policy_rm(session: Session, name: str, yes: bool) -> None:
    """Delete a policy."""
    session.call("policies.get", name=name)
    confirm(name, f"Policy {name} ends; what it alone allowed is allowed no more", yes=yes)
    reply = session.call("policies.delete", name=name)
    session.show(reply, lambda: [f"{name}: deleted"])


def _policies(content: bytes, name: str) -> list[dict[str, Any]]:
    """The policies of a file in the shape of `policies.put`."""
    import tomllib

    try:
        text = content.decode()
        document = (
            json.loads(text) if text.lstrip().startswith(("{", "[")) and not _is_table(text) else tomllib.loads(text)
        )
        listed = document.get("policy", [document]) if isinstance(document, dict) else document
        return [
            {
                "name": each["name"],
                "principals": each.get("principals", []),
                "rules": each.get("rules", each.get("rule", [])),
            }
            for each in listed
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"scaivaultctl: {name} is neither TOML with [[policy]] tables, each with a name, nor JSON: {error}")
        sys.exit(EX_USAGE)


def _is_table(text: str) -> bool:
    return text.lstrip().startswith("[[")


def _same(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    def rules(of: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [
            {
                key: value
                for key, value in rule.items()
                if value not in (None, [], False) and (key, value) != ("effect", "allow")
            }
            for rule in of["rules"]
        ]

    return before["principals"] == wanted["principals"] and rules(before) == rules(wanted)


def _policy(reply: Mapping[str, Any]) -> list[str]:
    lines = [f"# {reply['origin']}", "[[policy]]", f"name = {json.dumps(reply['name'])}"]
    lines.append(f"principals = {json.dumps(reply['principals'])}")
    for rule in reply["rules"]:
        lines += ["", "  [[policy.rule]]"]
        lines += [f"  {key} = {_toml(value)}" for key, value in rule.items() if value is not None]
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items() if each is not None) + " }"
    return json.dumps(value, ensure_ascii=False)


@click.group()
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
                ("expires", reply["expires_at"]),
                ("NATS subjects", nats.get("subject_root") and f"{nats['subject_root']}.>"),
                ("NATS inbox", nats.get("inbox_prefix")),
            ]
        ),
    )


@auth.command("can-i")
@click.argument("action")
@click.option("--domain", "domains", multiple=True, metavar="NAME", help="A name of the certificate; may be repeated.")
@click.option("--as", "principal", metavar="PRINCIPAL", help="For another one, such as token:web-ci.")
@click.option("--account", "account_id", metavar="ID_OR_NAME", help="The ACME account.")
@click.option("--challenge", type=click.Choice(["http-01", "dns-01", "tls-alpn-01"]), help="How names are proven.")
@click.option("--key-type", metavar="TYPE", help="Kind of the certificate's key.")
@click.option("--secret", metavar="REFERENCE", help="A secret reference, for secret.* actions.")
@click.option("--explain", is_flag=True, help="Every reason, also where it is allowed.")
@with_daemon
def auth_can_i(
    session: Session,
    action: str,
    domains: tuple[str, ...],
    principal: str | None,
    account_id: str | None,
    challenge: str | None,
    key_type: str | None,
    secret: str | None,
    explain: bool,
) -> None:
    """Ask whether ACTION (such as cert.issue) would be allowed; exit code 4 if not."""
    reply = session.call(
        "auth.can_i",
        action=action,
        domains=list(domains) or None,
        principal=principal,
        account_id=account_id,
        challenge_type=challenge,
        key_type=key_type,
        secret=secret,
    )
    session.show(reply, lambda: _verdict(reply, explain=explain))
    if not reply["allowed"]:
        sys.exit(4)


def _verdict(reply: Mapping[str, Any], *, explain: bool) -> list[str]:
    by = f", by rule {reply['rule']} of policy {reply['policy']}" if reply["policy"] else ""
    lines = [f"{'yes' if reply['allowed'] else 'no'}{by}"]
    if explain or not reply["allowed"]:
        lines += [f"  {each['about']}: {each['detail']}" for each in reply["reasons"]]
    return lines


@click.group()
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

    try:
        known = [Anchor(sequence=int(each.partition(":")[0]), hash=each.partition(":")[2]) for each in anchors]
    except ValueError:
        say("scaivaultctl: an anchor is written SEQUENCE:HASH")
        sys.exit(EX_USAGE)
    try:
        report = verify_kept(AuditFiles(directory, file_bytes=0, keep=0).read(), anchors=known)
    except OSError as error:
        say(f"scaivaultctl: {directory} cannot be read: {error.strerror}")
        sys.exit(EX_FAILED)
    broken = report.broken
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
            ("anchors compared", reply["anchors"]),
        ]
    )
    if broken := reply.get("broken"):
        lines.append(f"broken at record {broken['sequence']}: {broken['kind']}: {broken['detail']}")
    return lines


def _day(moment: str) -> str:
    return moment[:10]
