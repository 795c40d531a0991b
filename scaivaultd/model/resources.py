"""What the store keeps: accounts, orders, certificates, keys. Shapes on the wire are in `api/messages.py`.

Documents are JSON; members may be added with a default, never renamed or removed without a
store migration.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from scaivaultd.model.dns import PropagationOverride, PropagationReport, ServerVerdict
from scaivaultd.model.errors import Problem
from scaivaultd.model.ids import (
    AccountId,
    BulkRenewalId,
    CertificateId,
    DnsProviderId,
    KeyId,
    NodeId,
    OrderId,
    RevocationId,
)
from scaivaultd.model.names import Identifier
from scaivaultd.model.principals import Principal

Provider = Literal["letsencrypt", "zerossl", "buypass", "google", "custom"]
Environment = Literal["production", "staging"]
ChallengeType = Literal["http-01", "dns-01", "tls-alpn-01"]
KeyType = Literal["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096"]

AccountStatus = Literal["pending", "valid", "invalid", "deactivated"]
OrderStatus = Literal["pending", "ready", "processing", "valid", "invalid", "deactivated", "revoked", "expired"]
CertificateStatus = Literal["valid", "revoked", "expired"]
RevocationReason = Literal[
    "unspecified", "key_compromise", "affiliation_changed", "superseded", "cessation_of_operation"
]
"""What subscribers may say to public CAs (RFC 5280 section 5.3.1 has more)."""

OrderCause = Literal["issue", "import", "schedule", "ari", "request", "update", "revocation", "bulk"]
"""Why an order was made: `issue` by a caller for a new certificate; `import` stands for the order that another client
made of a certificate that was taken over, and no CA was asked; the others make a new version of one: `schedule`
by its lifetime, `ari` by the CA's renewal window, `request` by a caller, `update` since its terms have changed,
`revocation` to replace a version that is revoked, `bulk` as one of many."""

FailureKind = Literal["transient", "permanent"]
Fault = Literal["ca", "domain", "here"]

UNFINISHED: tuple[OrderStatus, ...] = ("pending", "ready", "processing")
"""States in which an order still has a job."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why something does not go on, as kept and shown.

    `code` is one of ours (`model/errors.py`); `acme` the CA's problem; `identifiers` the cause per
    name. `retry_at` is when we try again by ourselves, or may try again; absent when never. `kind` and `fault` are
    what `acme/causes.py` makes of it; `remedy` says what a person can do.
    """

    code: str
    detail: str
    retryable: bool = False
    acme: Problem | None = None
    identifiers: tuple[IdentifierTrouble, ...] = ()
    limit: str | None = None
    retry_after: float | None = None
    retry_at: datetime | None = None
    kind: FailureKind | None = None
    fault: Fault | None = None
    remedy: str | None = None


class IdentifierTrouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands against one name: the CA's problem type and words, or our code and what we saw.

    `servers` are the name servers that disagree, with what they say.
    """

    identifier: str
    challenge_type: str | None = None
    type: str
    detail: str = ""
    subproblems: tuple[Problem, ...] = ()
    servers: tuple[ServerVerdict, ...] = ()


class ExternalAccount(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An external account binding (RFC 8555 section 7.3.4): where its MAC key is, never the key.

    A reference to a secret, or the key sealed by our own envelope. An empty `key_id` stands for a binding that is still
    to be fetched, at ZeroSSL: `hmac_key_path` is then the reference to the access key there, and stays.
    """

    key_id: str
    hmac_key_path: str | None = None
    sealed_hmac_key: bytes | None = None


class CaDescription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the CA said of itself when the account was registered (RFC 8555 section 9.7.6)."""

    terms_of_service: str | None = None
    website: str | None = None
    caa_identities: tuple[str, ...] = ()
    external_account_required: bool = False
    profiles: dict[str, str] = {}
    renewal_info: bool = False
    key_change: bool = False


class Account(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An ACME account: one registration at one CA, with the key that signs for it.

    Stored with its key before the CA is asked; `url` arrives with the CA's answer and is the `kid`
    byte for byte. `attempt`, `next_try_at` and
    `give_up_at` belong to a registration under way.

    `next_key_id`: a key change is under way, and the CA knows one of the two keys. `action`: the CA waits for a
    person, and nobody asks in this account's name before `action_probe_at`. `terms_changed_to`: the CA has other
    terms of service than were agreed to. `is_deactivating`: it has been given up, and the CA or its certificates are
    still to hear of it. `must_exist`: it is looked for by its key, never made.
    """

    id: AccountId
    name: str
    provider: Provider
    environment: Environment
    email: str | None = None
    directory_url: str
    status: AccountStatus
    key_id: KeyId
    key_thumbprint: str
    created_at: datetime
    url: str | None = None
    ca_certificates_pem: str | None = None
    eab: ExternalAccount | None = None
    ca: CaDescription | None = None
    terms_of_service_agreed: bool = False
    give_up_at: datetime | None = None
    error: Trouble | None = None
    attempt: int = 0
    misbehaved: int = 0
    next_try_at: datetime | None = None
    next_key_id: KeyId | None = None
    action: Trouble | None = None
    action_probe_at: datetime | None = None
    terms_changed_to: str | None = None
    is_deactivating: bool = False
    must_exist: bool = False


class Challenge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A challenge we chose to answer: kept before the CA is told, so that it can be cleaned up after a crash."""

    identifier: str
    type: str
    url: str
    status: str
    token: str
    key_authorization: str


class Terms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a certificate is asked for with: the same for its first order and for every renewal.

    `account_ids` are the accounts to try, in order; empty stands for `account_id` alone. `profile_is_required`: no
    certificate rather than one of another profile. `preferred_chain` is an issuer's common name or a root's SHA-256
    fingerprint. `csr_der` is a caller's own CSR: then there is no private key here. `lifetime_seconds` is wished for
    where the CA lets its callers choose.
    """

    account_id: AccountId
    identifiers: tuple[Identifier, ...]
    challenge_type: ChallengeType
    key_type: KeyType
    account_ids: tuple[AccountId, ...] = ()
    solver: str | None = None
    dns_provider: str | None = None
    propagation: PropagationOverride | None = None
    profile: str | None = None
    profile_is_required: bool = True
    preferred_chain: str | None = None
    lifetime_seconds: float | None = None
    reuse_key: bool = False
    csr_der: bytes | None = None

    @property
    def accounts(self) -> tuple[AccountId, ...]:
        """The accounts to try, the preferred one first."""
        return self.account_ids or (self.account_id,)


PreflightCheck = Literal["caa", "delegation", "reachability"]


class PreflightVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a check before the CA was asked found for one name."""

    check: PreflightCheck
    identifier: str
    status: Literal["ok", "warning", "failed", "skipped"]
    detail: str = ""


class Sighting(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What we saw at one place that a CA may have looked at; `ok` None: it could not be seen from here."""

    where: str
    saw: str
    ok: bool | None = None


EvidenceCheck = Literal["http-01", "tls-alpn-01", "dns-01", "dnssec", "caa"]


class Evidence(Sighting, frozen=True, kw_only=True, omit_defaults=True):
    """What we saw ourselves of one name when its CA had just refused it: an address, a name server, or a zone."""

    identifier: str
    check: EvidenceCheck


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """Why an order waits although nothing is wrong: a budget at its CA, and when its turn is expected."""

    limit: str
    subject: str
    until: datetime
    ahead: int = 0


class Order(Terms, frozen=True, kw_only=True, omit_defaults=True):
    """One request for a certificate and how far it has come.

    `epoch` grows each time a process takes the order up; with the document's revision it fences
    off whoever had it before. `asked` without `url`: newOrder may have been sent, and its answer was
    never written down. Everything the CA told us is a hint: on resume it is asked again.

    `account_id` is the account it is tried with now, `accounts_tried` those that failed by a fault of their CA.
    `renews`: it makes version `renews_version` + 1 of that certificate; `certificate_id` is what it brought at last.
    `replaces` is the ARI certificate id that was sent, `profile_sent` the profile. `poll_after`: the CA does not want
    to be asked about it before. `has_open_authorizations`: it has
    ended, and the CA is still to be told so. `requested_by` is whoever asked for the certificate; None: nobody was
    asked who they were then.
    """

    id: OrderId
    auto_renew: bool
    status: OrderStatus
    created_at: datetime
    give_up_at: datetime
    cause: OrderCause = "issue"
    requested_by: Principal | None = None
    renews: CertificateId | None = None
    renews_version: int | None = None
    renew_before_seconds: float | None = None
    bulk_id: BulkRenewalId | None = None
    flight: str | None = None
    owner: NodeId | None = None
    epoch: int = 0
    attempt: int = 0
    misbehaved: int = 0
    next_try_at: datetime | None = None
    queued: Queued | None = None
    key_id: KeyId | None = None
    asked: bool = False
    spent_at: datetime | None = None
    replaces: str | None = None
    replaces_refused: bool = False
    profile_sent: str | None = None
    accounts_tried: tuple[AccountId, ...] = ()
    url: str | None = None
    finalize_url: str | None = None
    certificate_url: str | None = None
    expires_at: datetime | None = None
    poll_after: datetime | None = None
    challenges: tuple[Challenge, ...] = ()
    has_open_authorizations: bool = False
    error: Trouble | None = None
    warnings: tuple[str, ...] = ()
    preflight: tuple[PreflightVerdict, ...] = ()
    certificate_id: CertificateId | None = None
    version: int | None = None
    not_after: datetime | None = None
    dns_records: tuple[PropagationReport, ...] = ()
    evidence: tuple[Evidence, ...] = ()


class Revocation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """That a version was revoked. `origin`: by us through the CA (`acme`), in our store only (`store`), or by somebody
    else, as the CA's renewal window tells (`outside`)."""

    at: datetime
    origin: Literal["acme", "store", "outside"]
    reason: RevocationReason | None = None


class Issued(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One version of a certificate as the CA made it. `key_id` None: its key was never here (a caller's CSR).

    `ari_id` is its name in the CA's renewal information (RFC 9773 section 4.1); None without an authority key
    identifier, or in documents from before there was one.
    """

    order_id: OrderId
    account_id: AccountId
    identifiers: tuple[Identifier, ...]
    key_type: KeyType
    key_id: KeyId | None
    version: int
    status: CertificateStatus
    serial_number: str
    fingerprint_sha256: str
    issuer: str
    not_before: datetime
    not_after: datetime
    chain_pem: str
    issued_at: datetime | None = None
    ari_id: str | None = None
    revocation: Revocation | None = None


class Certificate(Issued, frozen=True, kw_only=True, omit_defaults=True):
    """A managed certificate at its current version: chain in the open, private key sealed elsewhere.

    `terms` are for its next order and may differ from what the current version is; use `terms_of`. `requested_by` is
    its owner, in whose name it is renewed: whoever asked for it, or changed its names last; None: nobody was asked.
    """

    id: CertificateId
    challenge_type: ChallengeType
    auto_renew: bool
    created_at: datetime
    renew_before_seconds: float | None = None
    terms: Terms | None = None
    requested_by: Principal | None = None


class CertificateVersion(Issued, frozen=True, kw_only=True, omit_defaults=True):
    """An earlier version of a certificate, as it was when the next one came."""

    certificate_id: CertificateId


def terms_of(certificate: Certificate) -> Terms:
    """What the next order of a certificate asks for."""
    return certificate.terms or Terms(
        account_id=certificate.account_id,
        identifiers=certificate.identifiers,
        challenge_type=certificate.challenge_type,
        key_type=certificate.key_type,
    )


def terms_in(order: Order) -> Terms:
    """What an order was asked for, with the account it was to be tried with first."""
    terms = {name: getattr(order, name) for name in Terms.__struct_fields__}
    return Terms(**{**terms, "account_id": order.accounts[0]})


class RenewalWindow(msgspec.Struct, frozen=True, kw_only=True):
    """When the CA would like the certificate to be renewed (RFC 9773): UTC, `end` after `start`."""

    start: datetime
    end: datetime


class RenewalPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The moment drawn in a window, kept with it: only another window is a reason to draw again."""

    window: RenewalWindow
    moment: datetime


class Renewal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a certificate is looked after, and how it went: one small document beside each certificate.

    All of them are read at every start, so nothing large stands here. Everything is about `version`, the current one.

    `fraction` in [0, 1) was drawn once for this version. `order_id` is the order that makes the next version, at most
    one. `attempt` counts failures in a row, `next_try_at` says when it goes on after one; `error` what went wrong last.
    `is_due`: it is to be renewed now, whatever its dates say (`cause` says why). `is_stopped`: never by itself again,
    until a caller renews or updates it.

    `point` and `explanation_url` are what ARI said last; it is asked again at `poll_at` (None: not any more),
    `polls_failed` counts failures in a row. `hurried` counts versions in a row that the CA wanted renewed as soon as
    they were there. `looked_at` is the latest moment at which the announcements of its end were up to date.
    """

    certificate_id: CertificateId
    account_id: AccountId
    version: int
    not_before: datetime
    not_after: datetime
    auto_renew: bool
    looked_at: datetime
    fraction: float
    renew_before_seconds: float | None = None
    ari_id: str | None = None
    is_due: bool = False
    is_stopped: bool = False
    cause: OrderCause | None = None
    bulk_id: BulkRenewalId | None = None
    order_id: OrderId | None = None
    attempt: int = 0
    next_try_at: datetime | None = None
    error: Trouble | None = None
    point: RenewalPoint | None = None
    explanation_url: str | None = None
    poll_at: datetime | None = None
    polls_failed: int = 0
    hurried: int = 0


class Deployment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host that uses a certificate, as it said last. `told_version`: its being behind that version was told.

    `used` are the latest versions that it was told to use, `failed` those it could not take in use: each is an event
    once only.
    """

    certificate_id: CertificateId
    host: str
    version: int
    first_seen_at: datetime
    confirmed_at: datetime
    confirmed_by: str
    where: str = ""
    error: str | None = None
    told_version: int = 0
    used: tuple[int, ...] = ()
    failed: tuple[int, ...] = ()


class BulkRenewal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Many certificates renewed ahead of their time, `per_minute` of them. `cursor` is the last one that was set going.

    The filters are those of the request; None does not filter. `renewed` and `failed` are what its orders had brought
    when it finished; None before.
    """

    id: BulkRenewalId
    status: Literal["running", "finished", "cancelled"]
    created_at: datetime
    per_minute: float
    note: str = ""
    total: int = 0
    started: int = 0
    skipped: int = 0
    cursor: CertificateId | None = None
    certificate_ids: tuple[CertificateId, ...] = ()
    account_id: AccountId | None = None
    issuer: str | None = None
    domain: str | None = None
    issued_before: datetime | None = None
    finished_at: datetime | None = None
    renewed: int | None = None
    failed: int | None = None
    requested_by: Principal | None = None


class RevocationRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A revocation under way or ended. `order_id` is the order for the replacement that comes first."""

    id: RevocationId
    status: Literal["pending", "done", "failed"]
    certificate_id: CertificateId
    version: int
    serial_number: str
    reason: RevocationReason
    use_acme: bool
    replace: bool
    created_at: datetime
    give_up_at: datetime
    order_id: OrderId | None = None
    was_revoked_already: bool = False
    error: Trouble | None = None
    attempt: int = 0
    misbehaved: int = 0
    next_try_at: datetime | None = None


class CompromisedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that must never be certified again, by the SHA-256 of its SubjectPublicKeyInfo."""

    spki_sha256: str
    certificate_id: CertificateId
    at: datetime


class DnsProvider(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A configured DNS provider. `config` is as it was given, with references in place of secrets.

    `origin` "file": it stands in the configuration file and is not in the store.
    """

    id: DnsProviderId
    name: str
    type: str
    zones: tuple[str, ...] = ()
    config: dict[str, Any] = {}
    created_at: datetime
    updated_at: datetime
    origin: Literal["api", "file"] = "api"


class DnsProviderName(msgspec.Struct, frozen=True, kw_only=True):
    """Which DNS provider has a name; names are unique."""

    name: str
    provider_id: DnsProviderId


class TxtRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One TXT value that we wrote or are about to write: journalled before the provider is asked.

    Names are where it was written (`record_name` is the effective one, whatever a CNAME says later). `users` are
    orders and challenges (`ORDER:TOKEN`) that need it; without any it is taken away. `handle` is what the
    provider wants to remember; None while the outcome of the write is not known.
    """

    provider_id: DnsProviderId
    zone_name: str
    zone_id: str
    record_name: str
    value: str
    users: tuple[str, ...]
    created_at: datetime
    handle: dict[str, Any] | None = None


class StoredSecret(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A secret of the built-in store: its value inside the envelope, never anywhere else."""

    path: str
    sealed: bytes
    version: int
    created_at: datetime
    updated_at: datetime


class SealedKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A private key as the store sees it: PKCS #8 DER inside the envelope. Written once, never changed."""

    id: KeyId
    key_type: KeyType
    sealed: bytes
    created_at: datetime


class NamePointer(msgspec.Struct, frozen=True, kw_only=True):
    """Which certificate is current for a set of names and a key type."""

    certificate_id: CertificateId
    version: int


class IdempotentResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a request with an `Idempotency-Key` made, and a digest of the request to tell a reuse apart."""

    resource_id: str
    request_digest: str


class AccountName(msgspec.Struct, frozen=True, kw_only=True):
    """Which account has a name; names are unique."""

    name: str
    account_id: AccountId
