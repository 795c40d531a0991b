"""`scaivaultctl import`: take over what certbot, lego or acme.sh has. A dry run unless `--apply` is given."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scaivaultd.ctl_client import Refused
from scaivaultd.ctl_output import is_quiet
from scaivaultd.ctl_session import EX_FAILED, Group, Session, refuse, say, with_daemon
from scaivaultd.import_acmesh import read_acmesh
from scaivaultd.import_certbot import read_certbot
from scaivaultd.import_lego import read_lego
from scaivaultd.import_store import ForeignCertificate, ForeignStore, Unreadable, host_of, read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from scaivaultd.import_accounts import AccountPlan
    from scaivaultd.import_plan import CertificatePlan, Here, Wishes
    from scaivaultd.import_timers import OldTimer

_FOLDER = click.Path(path_type=Path)
_CHALLENGES = click.Choice(["http-01", "dns-01", "tls-alpn-01"])
_ACCOUNT_SECONDS = 120
_SECRETS = "import/acme.sh"


@click.group(cls=Group)
def import_() -> None:
    """Take over what another ACME client has: accounts with their keys, certificates with theirs.

    Nothing is changed without --apply. Nothing is ever changed in the other client's folder.
    """


def _takes_wishes(verb: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(
        (
            click.option("--apply", is_flag=True, help="Do it. Without: show what would be done, and change nothing."),
            click.option("--dry-run", is_flag=True, help="Change nothing, which is so unless --apply is given."),
            click.option("--only", multiple=True, metavar="NAME", help="Only this certificate; may be repeated."),
            click.option("--limit", type=click.IntRange(min=0), metavar="N", help="At most so many new ones."),
            click.option("--account", metavar="ID_OR_NAME", help="Renew all by this account; none is taken over."),
            click.option("--challenge", "challenge_type", type=_CHALLENGES, help="Prove all names that way."),
            click.option(
                "--dns-provider",
                "dns_providers",
                multiple=True,
                metavar="[PLUGIN=]NAME",
                help="The DNS provider for dns-01; for one plugin's names: dns-cloudflare=cf.",
            ),
            click.option("--reuse-key", is_flag=True, help="Keep the keys at renewals, as for pinned ones."),
            click.option(
                "--ca-certificates",
                type=_FOLDER,
                metavar="FILE",
                help="Roots (PEM) to trust for the HTTPS of CAs that are not public.",
            ),
            click.option(
                "--allow-dup",
                is_flag=True,
                help="Although the other client still renews them, or the same names are managed here already.",
            ),
        )
    ):
        verb = option(verb)
    return verb


@import_.command("certbot")
@click.option("--dir", "folder", type=_FOLDER, default=Path("/etc/letsencrypt"), show_default=True)
@_takes_wishes
@with_daemon
def import_certbot(session: Session, folder: Path, **wishes: Any) -> None:
    """Take over what certbot has in its configuration folder."""
    with _told():
        store = read_certbot(folder.absolute())
    _run(session, store, wishes)


@import_.command("lego")
@click.option("--dir", "folder", type=_FOLDER, default=Path(".lego"), show_default=True, help="What lego calls --path.")
@click.option("--server", "servers", multiple=True, metavar="URL", help="Directory of a CA; may be repeated.")
@_takes_wishes
@with_daemon
def import_lego(session: Session, folder: Path, servers: tuple[str, ...], **wishes: Any) -> None:
    """Take over what lego has in its folder.

    lego does not keep how names were proven: http-01 is assumed, and dns-01 for wildcards, unless --challenge is given.
    """
    from scaivaultd.import_accounts import known_directories

    with _told():
        store = read_lego(folder.absolute(), {**known_directories(), **{host_of(each): each for each in servers}})
    _run(session, store, wishes)


@import_.command("acme.sh")
@click.option("--dir", "folder", type=_FOLDER, default=Path("~/.acme.sh"), show_default=True)
@click.option("--with-credentials", is_flag=True, help="Store what it keeps for its DNS plugins as secrets, too.")
@_takes_wishes
@with_daemon
def import_acmesh(session: Session, folder: Path, with_credentials: bool, **wishes: Any) -> None:
    """Take over what acme.sh has in its home."""
    with _told():
        store = read_acmesh(folder.expanduser().absolute())
    _run(session, store, wishes, with_credentials=with_credentials)


@import_.command("pem")
@click.option("--cert", "cert_file", type=_FOLDER, required=True, metavar="FILE", help="Certificate and chain (PEM).")
@click.option("--key", "key_file", type=_FOLDER, metavar="FILE", help="Its private key (PEM), without a passphrase.")
@click.option("--chain", "chain_file", type=_FOLDER, metavar="FILE", help="The chain, where --cert has only the leaf.")
@click.option("--account", required=True, metavar="ID_OR_NAME", help="The account that renews it.")
@click.option("--challenge", "challenge_type", type=_CHALLENGES, help="How its names are proven; http-01 unless given.")
@click.option("--dns-provider", "dns_provider", metavar="NAME", help="The DNS provider for dns-01.")
@click.option("--reuse-key", is_flag=True, help="Keep the key at renewals.")
@click.option("--allow-dup", is_flag=True, help="Although the same names are managed here already.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and change nothing.")
@with_daemon
def import_pem(
    session: Session,
    cert_file: Path,
    key_file: Path | None,
    chain_file: Path | None,
    dry_run: bool,
    dns_provider: str | None,
    **wishes: Any,
) -> None:
    """Take over one certificate from PEM files."""
    with _told():
        chain_pem = read_file(cert_file) + ("\n" + read_file(chain_file) if chain_file else "")
        key_pem = read_file(key_file) if key_file else _key_beside(chain_pem)
    found = ForeignCertificate(cert_file.name, cert_file.absolute(), chain_pem, key_pem)
    store = ForeignStore("pem", cert_file.absolute().parent, certificates=(found,))
    _run(session, store, {**wishes, "apply": not dry_run, "dns_providers": (dns_provider,) if dns_provider else ()})


def _key_beside(text: str) -> str | None:
    from scaivaultd.import_store import private_key_in

    return private_key_in(text) or None


@contextmanager
def _told() -> Iterator[None]:
    """Tell a person what cannot be read, and end."""
    try:
        yield
    except Unreadable as error:
        refuse(str(error))
    except PermissionError as error:
        refuse(f"{error.filename} cannot be read: {error.strerror}; such folders are root's")


def _run(session: Session, store: ForeignStore, given: Mapping[str, Any], *, with_credentials: bool = False) -> None:
    from scaivaultd.import_accounts import account_plans
    from scaivaultd.import_plan import certificate_plans
    from scaivaultd.import_report import Report
    from scaivaultd.import_timers import old_timers

    here = _here(session)
    wishes = _wishes(given, store, here)
    trusted = given.get("ca_certificates")
    with _told():
        ca_certificates_pem = read_file(trusted) if trusted else None
    accounts = [] if wishes.account_id else account_plans(store.accounts, here.accounts, ca_certificates_pem)
    plans = certificate_plans(store, accounts, here, wishes)
    used = {each.account for each in plans}
    accounts = [each for each in accounts if each.ref in used or each.problem]
    timers = old_timers(store.kind, store.folder)
    is_applied = bool(given.get("apply")) and not given.get("dry_run")
    if is_applied:
        _refuse_double(timers, plans, allow_dup=wishes.allow_dup)
        accounts, plans = _applied(session, accounts, plans, wishes)
    secrets, refusals = _credentials(session, store, is_applied=is_applied) if with_credentials else ([], [])
    report = Report(store, is_applied, accounts, plans, timers, secrets)
    session.show(report.as_json(), report.lines)
    if not session.as_json:
        for line in report.talk(with_credentials=with_credentials):
            say(line)
    for line in refusals:
        say(f"scaivaultctl: {line}")
    if report.is_partial or refusals:
        sys.exit(EX_FAILED)


def _here(session: Session) -> Here:
    from scaivaultd.import_plan import Here

    return Here(
        accounts=session.all("pki.acme.accounts.list"),
        certificates=session.all("pki.certificates.list"),
        dns_providers=session.all("pki.dns_providers.list"),
        versions=lambda certificate_id: session.all("pki.certificates.versions", id=certificate_id),
    )


def _wishes(given: Mapping[str, Any], store: ForeignStore, here: Here) -> Wishes:
    from scaivaultd.import_plan import Wishes

    only = given.get("only") or ()
    names = {each.name for each in store.certificates} | {each.name.removesuffix("_ecc") for each in store.certificates}
    if unknown := [each for each in only if each not in names]:
        refuse(f"there is no certificate {unknown[0]!r} in {store.folder}")
    providers = {}
    for each in given.get("dns_providers") or ():
        word, _, name = each.rpartition("=")
        providers[word] = name
    account = given.get("account")
    return Wishes(
        only=only,
        account_id=None if account is None else _account_id(account, here),
        limit=given.get("limit"),
        challenge_type=given.get("challenge_type"),
        dns_providers=providers,
        reuse_key=bool(given.get("reuse_key")),
        allow_dup=bool(given.get("allow_dup")),
    )


def _account_id(wanted: str, here: Here) -> str:
    fitting = [each for each in here.accounts if wanted in (each["id"], each["name"])]
    usable = [each for each in fitting if each["status"] in ("pending", "valid")]
    if not usable:
        state = f"; it is {fitting[-1]['status']}" if fitting else ""
        refuse(f"there is no account {wanted!r} that can renew{state}: `scaivaultctl account ls` lists them")
    return str(usable[-1]["id"])


def _refuse_double(timers: Sequence[OldTimer], plans: Sequence[CertificatePlan], *, allow_dup: bool) -> None:
    if not timers or allow_dup or not any(each.action == "import" for each in plans):
        return
    say("scaivaultctl: the other client still renews these certificates; nothing was done. End that first:")
    for timer in timers:
        say(f"  {timer.disable}    # {timer.what}")
    say("or say --allow-dup, and both renew them.")
    sys.exit(EX_FAILED)


def _applied(
    session: Session, accounts: Sequence[AccountPlan], plans: Sequence[CertificatePlan], wishes: Wishes
) -> tuple[list[AccountPlan], list[CertificatePlan]]:
    """What was planned, done: each with its id, or with what the daemon said against it."""
    accounts = [_made(session, each) for each in accounts]
    by_ref = {each.ref: each for each in accounts}
    done = []
    with _progress(plans) as steps:
        for plan in steps:
            account = by_ref.get(plan.account or "")
            done.append(_imported(session, plan, account, wishes) if plan.action == "import" else plan)
    return accounts, done


@contextmanager
def _progress(plans: Sequence[CertificatePlan]) -> Iterator[Sequence[CertificatePlan]]:
    if not sys.stderr.isatty() or is_quiet():
        yield plans
        return
    with click.progressbar(plans, label="Taking over", file=sys.stderr) as bar:
        yield bar  # type: ignore[misc]


def _made(session: Session, plan: AccountPlan) -> AccountPlan:
    """An account that is here, registered at its CA; it is found there by its key."""
    if plan.account_id is not None or plan.problem is not None:
        return plan
    try:
        reply = session.ask("pki.acme.accounts.create", **plan.members)
        if reply["status"] == "pending":
            reply = _decided(session, reply["id"])
    except Refused as refused:
        return replace(plan, problem=str(refused))
    if reply["status"] != "valid":
        trouble = reply.get("error") or {}
        return replace(plan, problem=f"the account is {reply['status']}: {trouble.get('detail') or 'no reason known'}")
    return replace(plan, account_id=reply["id"])


def _decided(session: Session, account_id: str) -> Any:
    """The account once its CA has answered, or has not for long enough."""
    import time

    until = time.monotonic() + _ACCOUNT_SECONDS
    while True:
        reply = session.ask("pki.acme.accounts.get", id=account_id)
        if reply["status"] != "pending" or time.monotonic() > until:
            return reply
        time.sleep(1)


def _imported(session: Session, plan: CertificatePlan, account: AccountPlan | None, wishes: Wishes) -> CertificatePlan:
    account_id = wishes.account_id or (account.account_id if account else None)
    if account_id is None:
        why = account.problem if account and account.problem else "its account is not here"
        return replace(plan, action="skip", why=f"its account cannot be taken over: {why}")
    allowed = {"allow_duplicate": True} if wishes.allow_dup else {}
    try:
        reply = session.ask("pki.certificates.import", account_id=account_id, **plan.members, **allowed)
    except Refused as refused:
        return replace(plan, action="failed", why=str(refused))
    return replace(plan, action="imported", why=reply["id"], certificate_id=reply["id"])


def _credentials(session: Session, store: ForeignStore, *, is_applied: bool) -> tuple[list[str], list[str]]:
    """The references of what the DNS plugins of acme.sh use, put into the secret store when applied; and refusals."""
    references, refusals = [], []
    for name, value in sorted(store.credentials.items()):
        path = f"{_SECRETS}/{name}"
        if is_applied:
            try:
                session.ask("secrets.put", path=path, value=value)
            except Refused as refused:
                refusals.append(f"{path} is not stored: {refused}")
                continue
        references.append(f"secret:{path}")
    return references, refusals
