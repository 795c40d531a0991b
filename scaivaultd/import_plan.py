"""What becomes of each certificate of another client's store: decided from what is there and what is here already.

The dry run shows the very plan that `--apply` carries out. Certificates are judged by what the daemon judges them by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scaivaultd.import_store import private_key_in, without_private_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scaivaultd.acme.imported import Imported
    from scaivaultd.import_accounts import AccountPlan
    from scaivaultd.import_store import ForeignCertificate, ForeignStore

_KINDS = {
    "acmedns": "acme_dns",
    "acme-dns": "acme_dns",
    "aws": "route53",
    "azure": "azure_dns",
    "cf": "cloudflare",
    "dgon": "digitalocean",
    "gcloud": "google_cloud_dns",
    "google": "google_cloud_dns",
    "hetznercloud": "hetzner",
    "nsupdate": "rfc2136",
}
"""The type of a DNS provider here, by the word that certbot or acme.sh has for it; most have the same word."""


@dataclass(frozen=True)
class Here:
    """What the daemon has: lists as it replies them. `versions` are those of one certificate, by its id."""

    accounts: Sequence[Mapping[str, Any]]
    certificates: Sequence[Mapping[str, Any]]
    dns_providers: Sequence[Mapping[str, Any]]
    versions: Callable[[str], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Wishes:
    """What the person has said. `dns_providers` has a provider's name for a plugin's word, or for "" any."""

    only: Sequence[str] = ()
    account_id: str | None = None
    limit: int | None = None
    challenge_type: str | None = None
    dns_providers: Mapping[str, str] = field(default_factory=dict)
    reuse_key: bool = False
    allow_dup: bool = False


@dataclass(frozen=True)
class CertificatePlan:
    """`action` is import, here, later or skip; `why` says more. `members` are those of the import but the account."""

    name: str
    action: str
    why: str = ""
    domains: tuple[str, ...] = ()
    not_after: str | None = None
    challenge_type: str | None = None
    dns_provider: str | None = None
    account: str | None = None
    certificate_id: str | None = None
    notes: tuple[str, ...] = ()
    members: Mapping[str, Any] = field(default_factory=dict, repr=False)


class _Skip(Exception):
    pass


def certificate_plans(
    store: ForeignStore, accounts: Sequence[AccountPlan], here: Here, wishes: Wishes
) -> list[CertificatePlan]:
    """One plan for each certificate that was asked for, in the store's order."""
    planner = _Planner(store, {each.ref: each for each in accounts}, here, wishes)
    plans: list[CertificatePlan] = []
    left = len(store.certificates) if wishes.limit is None else wishes.limit
    for certificate in store.certificates:
        if wishes.only and not _is_meant(certificate, wishes.only):
            continue
        plan = planner.plan(certificate)
        if plan.action == "import":
            if left <= 0:
                plan = CertificatePlan(plan.name, "later", "beyond --limit", plan.domains, plan.not_after)
            left -= 1
        plans.append(plan)
    return plans


def _is_meant(certificate: ForeignCertificate, only: Sequence[str]) -> bool:
    # acme.sh has RSA and ECDSA certificates of one name in folders of different names.
    return certificate.name in only or certificate.name.removesuffix("_ecc") in only


class _Planner:
    def __init__(self, store: ForeignStore, accounts: Mapping[str, AccountPlan], here: Here, wishes: Wishes) -> None:
        self._store = store
        self._accounts = accounts
        self._here = here
        self._wishes = wishes
        self._by_fingerprint = {each["fingerprint_sha256"]: each for each in here.certificates}
        self._by_names: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for each in here.certificates:
            if each["status"] != "revoked":
                self._by_names.setdefault(tuple(sorted(each["domains"])), []).append(each)

    def plan(self, certificate: ForeignCertificate) -> CertificatePlan:
        if certificate.problem is not None:
            return CertificatePlan(certificate.name, "skip", certificate.problem)
        try:
            imported = _judged(certificate)
        except _Skip as reason:
            return CertificatePlan(certificate.name, "skip", str(reason))
        domains = tuple(str(each) for each in imported.identifiers)
        not_after = imported.chain.not_after.isoformat().replace("+00:00", "Z")
        try:
            if (known := self._known(imported, domains)) is not None:
                return CertificatePlan(
                    certificate.name, "here", known["id"], domains, not_after, certificate_id=known["id"]
                )
            account = self._account(certificate)
            challenge_type = self._challenge(certificate, domains)
            dns_provider = self._dns_provider(certificate) if challenge_type == "dns-01" else None
        except _Skip as reason:
            return CertificatePlan(certificate.name, "skip", str(reason), domains, not_after, notes=certificate.notes)
        members = {
            "chain_pem": without_private_keys(certificate.chain_pem),
            "private_key_pem": certificate.key_pem and private_key_in(certificate.key_pem),
            "challenge_type": challenge_type,
            "dns_provider": dns_provider,
            "reuse_key": certificate.key_pem is not None and (certificate.reuse_key or self._wishes.reuse_key),
            "source": f"{self._store.kind}:{certificate.path}"[:500],
        }
        notes = certificate.notes
        if certificate.key_pem is None:
            notes = (*notes, "there is no private key beside it: it is served from here only once it is renewed")
        return CertificatePlan(
            certificate.name,
            "import",
            domains=domains,
            not_after=not_after,
            challenge_type=challenge_type,
            dns_provider=dns_provider,
            account=account,
            notes=notes,
            members=members,
        )

    def _known(self, imported: Imported, domains: Sequence[str]) -> Mapping[str, Any] | None:
        """The certificate here that this is, or was before it was renewed."""
        fingerprint = imported.chain.fingerprint_sha256
        if (known := self._by_fingerprint.get(fingerprint)) is not None:
            return known
        others = self._by_names.get(tuple(sorted(domains)), [])
        for other in others:
            if other["version"] > 1 and any(
                each["fingerprint_sha256"] == fingerprint for each in self._here.versions(other["id"])
            ):
                return other
        same = next((each for each in others if each["key_type"] == imported.key_type), None)
        if same is not None and not self._wishes.allow_dup:
            raise _Skip(f"{same['id']} here is for the same names already; --allow-dup takes it all the same")
        return None

    def _account(self, certificate: ForeignCertificate) -> str | None:
        """The account of the store that renews it; None for the one that the person has named."""
        if self._wishes.account_id is not None:
            return None
        if certificate.account is None or certificate.account not in self._accounts:
            reasons = "".join(f"; {each}" for each in self._store.warnings[:1])
            raise _Skip(f"it is not known which account it is of: name one with --account{reasons}")
        plan = self._accounts[certificate.account]
        if plan.problem is not None:
            raise _Skip(f"its account cannot be taken over: {plan.problem}")
        return plan.ref

    def _challenge(self, certificate: ForeignCertificate, domains: Sequence[str]) -> str:
        has_wildcard = any(each.startswith("*.") for each in domains)
        if (wished := self._wishes.challenge_type) is not None:
            if has_wildcard and wished != "dns-01":
                raise _Skip("a wildcard is proven by dns-01 only")
            return wished
        if has_wildcard:
            return "dns-01"
        return certificate.challenge_type or "http-01"

    def _dns_provider(self, certificate: ForeignCertificate) -> str | None:
        """The provider to use; None for whichever serves the zone."""
        word = certificate.dns or ""
        wished = self._wishes.dns_providers.get(word) or self._wishes.dns_providers.get("")
        there = self._here.dns_providers
        if wished is not None:
            if wished not in {each["name"] for each in there}:
                raise _Skip(f"there is no DNS provider {wished!r} here: `scaivaultctl dns provider ls` lists them")
            return wished
        kind = dns_kind(word)
        if kind is None:
            if not there:
                raise _Skip("it needs a DNS provider, and there is none here: `scaivaultctl dns provider add`")
            return None
        of_kind = [each["name"] for each in there if each["type"] == kind]
        if len(of_kind) == 1:
            return str(of_kind[0])
        if of_kind:
            raise _Skip(f"which DNS provider? Give --dns-provider {word}=NAME, with one of {', '.join(of_kind)}")
        raise _Skip(
            f"it was proven by {word}, and there is no DNS provider of the type {kind} here: add one "
            f"(`scaivaultctl dns provider add`), or give --dns-provider {word}=NAME"
        )


def dns_kind(word: str) -> str | None:
    """The type of a DNS provider for another client's word for it: `dns-cloudflare`, `dns_cf`."""
    name = word.removeprefix("dns-").removeprefix("dns_")
    return (_KINDS.get(name) or name) if name else None


def _judged(certificate: ForeignCertificate) -> Imported:
    from scaivaultd.acme.imported import read_imported, read_private_key
    from scaivaultd.model.errors import InvalidRequest

    try:
        imported = read_imported(without_private_keys(certificate.chain_pem))
        if certificate.key_pem is not None:
            read_private_key(certificate.key_pem, imported)
    except InvalidRequest as error:
        raise _Skip(error.detail) from None
    return imported
