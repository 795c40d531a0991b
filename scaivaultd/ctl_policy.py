"""`scaivaultctl policy`: who may do what, as files that can be compared, tried and applied."""

from __future__ import annotations

import difflib
import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from scaivaultd.ctl_access import question, verdict
from scaivaultd.ctl_session import EX_NOT_ALLOWED, EX_USAGE, Group, confirm, say, show, table, with_daemon, with_output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import IO

    from scaivaultd.ctl_session import Session
    from scaivaultd.model.access import Policy
    from scaivaultd.model.principals import Principal

_OF_THE_DAEMON = ("origin", "created_at", "updated_at")
_NOBODYS_ID = "A0000000"
# An empty list of accounts, challenges, key types or secrets is another thing than none: it allows nothing.
_UNSAID: Mapping[str, Any] = {
    "effect": "allow",
    "actions": [],
    "roles": [],
    "domains": [],
    "ips": [],
    "wildcards": False,
}


@click.group(cls=Group)
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
    session.show(reply, lambda: [f"# {reply['origin']}", *_lines(reply)])


@policy.command("apply")
@click.option("-f", "--file", "source", type=click.File("rb"), required=True, help="TOML with [[policy]], or JSON.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@with_daemon
def policy_apply(session: Session, source: IO[bytes], dry_run: bool) -> None:
    """Write the policies of a file; others stay as they are."""
    wanted, name_of_file = _policies(source)
    _checked(wanted, name_of_file)
    there = {each["name"]: each for each in session.all("policies.list")}
    done: list[dict[str, Any]] = []
    for each in wanted:
        name = each["name"]
        before, after = _lines(there[name]) if name in there else [], _lines(each)
        change = "unchanged" if before == after else "changed" if before else "new"
        if change != "unchanged" and not dry_run:
            _put(session, each, [earlier["name"] for earlier in done])
        difference = list(difflib.unified_diff(before, after, "now", "then", lineterm="")) if dry_run else []
        done.append({"name": name, "change": change, "difference": difference})
    session.show(
        [{"name": each["name"], "change": each["change"]} for each in done],
        lambda: [
            line
            for each in done
            for line in (f"{each['name']}: {each['change']}{' (dry run)' if dry_run else ''}", *each["difference"])
        ],
    )


def _put(session: Session, wanted: Mapping[str, Any], before: Sequence[str]) -> None:
    try:
        session.call("policies.put", **wanted)
    except SystemExit:
        say(f"  This was policy {wanted['name']}; before it, all is done: {', '.join(before) or 'nothing'}.")
        raise


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


@policy.command("test")
@click.argument("action", required=False)
@click.option("-f", "--file", "source", type=click.File("rb"), required=True, help="TOML with [[policy]], or JSON.")
@question
@with_output
def policy_test(action: str | None, source: IO[bytes], explain: bool, as_json: bool, **asked: Any) -> None:
    """Check the policies of a file, without a daemon.

    With an ACTION and --as PRINCIPAL: whether these policies alone would allow it; exit code 4 if not.
    """
    policies = _checked(*_policies(source))
    if action is None:
        found = [{"name": each.name, "rules": len(each.rules)} for each in policies]
        show(found, lambda: [_sound(each) for each in policies], as_json=as_json)
        return
    reply = _judged(policies, {"action": action, **{key: value for key, value in asked.items() if value}})
    show(reply, lambda: verdict(reply, explain=explain), as_json=as_json)
    if not reply["allowed"]:
        sys.exit(EX_NOT_ALLOWED)


def _sound(policy: Policy) -> str:
    return f"{policy.name}: {len(policy.rules)} rule{'' if len(policy.rules) == 1 else 's'}, ok"


def _checked(wanted: Sequence[Mapping[str, Any]], name: str) -> Sequence[Policy]:
    from publicsuffixlist import PublicSuffixList

    from scaivaultd.api.policies import policies_from
    from scaivaultd.model.errors import InvalidRequest

    tables = [
        {("rule" if key == "rules" else key): value for key, value in each.items() if value is not None}
        for each in wanted
    ]
    try:
        return policies_from({"policy": tables}, PublicSuffixList(accept_unknown=False))
    except InvalidRequest as error:
        for each in error.fields:
            say(f"scaivaultctl: {name}: {each.pointer}: {each.detail}")
        sys.exit(EX_USAGE)


def _judged(policies: Sequence[Policy], asked: Mapping[str, Any]) -> dict[str, Any]:
    import msgspec
    from publicsuffixlist import PublicSuffixList

    from scaivaultd.api.access_messages import CanI
    from scaivaultd.api.policies import decide
    from scaivaultd.model.access import AccessRequest, AccountRef, CertificateTerms
    from scaivaultd.model.errors import ScaivaultError
    from scaivaultd.model.names import parse_identifiers

    if "principal" not in asked:
        _wrong("whose question is it? Give --as PRINCIPAL, such as token:web-ci")
    try:
        request = msgspec.convert(asked, CanI)
        principal = _principal(str(request.principal))
        account = AccountRef(None, request.account_id or "another account")
        terms = request.domains and CertificateTerms(
            names=parse_identifiers(request.domains, public_ca=False),
            accounts=(account,),
            challenge_type=request.challenge_type,
            key_type=request.key_type,
        )
    except (ValueError, ScaivaultError) as error:
        _wrong(str(error))
    decision = decide(
        policies,
        AccessRequest(
            principal=principal,
            action=request.action,
            tenant="default",
            certificate=terms or None,
            account=account if request.account_id and not terms else None,
            secret=request.secret,
        ),
        PublicSuffixList(accept_unknown=False),
    )
    # The id was made up; whoever asked gave a name.
    text = msgspec.json.encode(decision).decode().replace(f"token:{_NOBODYS_ID}", str(request.principal))
    return {"policy": None, "rule": None, "reasons": [], **json.loads(text)}


def _principal(text: str) -> Principal:
    """As policies see it; of a token the name is enough, which is all that a file knows."""
    from scaivaultd.model.principals import Principal, principal_from

    kind, _, name = text.partition(":")
    if kind == "token" and name[:1].islower():
        return Principal(kind="token", id=_NOBODYS_ID, name=name)
    return principal_from(text)


def _wrong(what: str) -> NoReturn:
    say(f"scaivaultctl: {what}")
    sys.exit(EX_USAGE)


def _policies(source: IO[bytes]) -> tuple[list[dict[str, Any]], str]:
    """The policies of a file in the shape of `policies.put`, mistakes and all; and the file's name."""
    import tomllib

    name = str(getattr(source, "name", "standard input"))
    try:
        text = source.read().decode()
        is_json = text.lstrip().startswith(("{", "[")) and not text.lstrip().startswith("[[")
        document = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:
        _wrong(f"{name} is neither TOML nor JSON: {error}")
    listed = document if isinstance(document, list) else [document]
    if isinstance(document, dict) and "policy" in document:
        if others := document.keys() - {"policy"}:
            _wrong(f"{name}: {min(others)!r} is no [[policy]]")
        listed = document["policy"] if isinstance(document["policy"], list) else [document["policy"]]
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in listed):
        _wrong(f"{name} has no policies: write [[policy]] tables, each with a name")
    return [_wanted(each) for each in listed], name


def _wanted(given: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {key: value for key, value in given.items() if key not in _OF_THE_DAEMON}
    if "rules" not in wanted:
        wanted["rules"] = wanted.pop("rule", [])
    return {"principals": [], **wanted}


def _lines(given: Mapping[str, Any]) -> list[str]:
    """A policy as TOML; two that mean the same look the same."""
    lines = ["[[policy]]", f"name = {json.dumps(given['name'])}", f"principals = {_toml(given['principals'])}"]
    for rule in given["rules"]:
        lines += ["", "  [[policy.rule]]"]
        told = [key for key, value in rule.items() if value is not None and value != _UNSAID.get(key)]
        lines += [f"  {key} = {_toml(rule[key])}" for key in sorted(told, key=_place)]
    return lines


def _place(key: str) -> tuple[bool, str]:
    return key not in ("effect", "actions", "roles"), key


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        members = sorted((key, each) for key, each in value.items() if each is not None)
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in members) + " }"
    return json.dumps(value, ensure_ascii=False)
