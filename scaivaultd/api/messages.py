"""Requests and replies as they stand on the wire. Field texts reach the schemas and the reference.

Requests forbid unknown fields; replies may gain members, never lose or rename one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from scaivaultd.model.dns import CaaSet, NameServer, PropagationReport, ServerVerdict, Visibility
from scaivaultd.model.errors import FieldError, Problem
from scaivaultd.model.resources import (
    AccountStatus,
    CaDescription,
    CertificateStatus,
    ChallengeType,
    Environment,
    Evidence,
    IdentifierTrouble,
    KeyType,
    OrderCause,
    OrderStatus,
    PreflightVerdict,
    Provider,
    Queued,
    Revocation,
    RevocationReason,
    Trouble,
)

WaitSeconds = Annotated[
    float,
    Meta(ge=0, le=60, description="How long the reply may wait for the CA, in seconds; the work goes on after it."),
]
WaitEndSeconds = Annotated[
    float,
    Meta(
        ge=0,
        le=60,
        description="How long the reply may wait for the end of the order, in seconds, whatever `wait_seconds` says; "
        "the work goes on after it.",
    ),
]
OrderIdMember = Annotated[str, Meta(description="The order's id, `acme_order_...`.")]
Limit = Annotated[int, Meta(ge=1, le=500, description="At most so many items in one reply.")]
Cursor = Annotated[str, Meta(max_length=200, description="`next_cursor` of the page before.")]
Duration = (
    Annotated[float, Meta(gt=0, le=3_153_600_000, description="Seconds.")]
    | Annotated[str, Meta(pattern=r"^[0-9]{1,9}[smhd]$", description="A number and its unit: `90m`, `36h`, `30d`.")]
)
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?\Z",
        description="A name for people; unique. No control characters, no space at its ends.",
    ),
]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all requests: unknown members are refused."""


class EabRequest(Request, frozen=True):
    """External account binding (RFC 8555 section 7.3.4). Give exactly one of the two key members."""

    key_id: Annotated[str, Meta(min_length=1, max_length=500, description="The key identifier the CA issued.")]
    hmac_key_path: Annotated[
        str | None,
        Meta(
            description="Reference to the MAC key: a path of the built-in secret store, or `cred:NAME`, `file:PATH`, "
            "`env:NAME` where allowed."
        ),
    ] = None
    hmac_key: Annotated[
        str | None,
        Meta(description="The MAC key itself, base64url or base64; over a trusted channel only. Stored sealed."),
    ] = None

    def __repr__(self) -> str:
        return f"EabRequest(key_id={self.key_id!r})"


class CreateAccount(Request, frozen=True):
    """Register an ACME account. The same request again finds the same account."""

    name: Name
    provider: Annotated[Provider, Meta(description="Which CA; `custom` needs directory_url.")]
    environment: Annotated[Environment, Meta(description="The CA's production or staging directory.")] = "production"
    email: (
        Annotated[str, Meta(max_length=254, description="Contact for the CA; one plain address, or absent.")] | None
    ) = None
    directory_url: Annotated[str, Meta(max_length=2000, description="https URL of a custom CA.")] | None = None
    terms_of_service_agreed: Annotated[
        bool,
        Meta(description="Registering is your word that you agree to the CA's terms; false withholds it."),
    ] = True
    eab: Annotated[
        EabRequest | None,
        Meta(
            description="External account binding, where the CA demands one. For `zerossl` it may be absent: it is "
            "fetched there, by `zerossl_access_key_path` or else for `email`."
        ),
    ] = None
    zerossl_access_key_path: (
        Annotated[str, Meta(max_length=500, description="Reference to an access key of ZeroSSL's API.")] | None
    ) = None
    account_key_path: (
        Annotated[
            str,
            Meta(
                max_length=500,
                description="Reference to the private key (PEM) of an account that exists at the CA already: it is "
                "found by its key, and no account is made.",
            ),
        ]
        | None
    ) = None
    account_key_pem: (
        Annotated[
            str, Meta(max_length=20_000, description="That key itself; over a trusted channel only. Stored sealed.")
        ]
        | None
    ) = None
    ca_certificates_pem: (
        Annotated[
            str,
            Meta(max_length=100_000, description="Roots to trust for this CA's HTTPS, beside the system's; PEM."),
        ]
        | None
    ) = None
    wait_seconds: WaitSeconds = 4.0

    def __repr__(self) -> str:
        return f"CreateAccount(name={self.name!r}, provider={self.provider!r})"


class AccountById(Request, frozen=True):
    """Name one account."""

    id: Annotated[str, Meta(description="The account's id, `acme_...`.")]


class UpdateAccount(AccountById, frozen=True):
    """Change an account; absent members stay."""

    name: Name | UnsetType = UNSET
    email: Annotated[
        Annotated[str, Meta(max_length=254)] | UnsetType | None,
        Meta(description="The CA's only contact from now on; null takes it away."),
    ] = UNSET
    terms_of_service_agreed: Annotated[
        bool | UnsetType,
        Meta(
            description="true: you agree to the terms the CA has now (`terms_changed_to`), or have done what it asked."
        ),
    ] = UNSET
    wait_seconds: WaitSeconds = 10.0


class RotateAccountKey(AccountById, frozen=True):
    """Give an account another key at its CA (RFC 8555 section 7.3.5); orders wait meanwhile."""

    key_type: Annotated[KeyType, Meta(description="Kind of the new account key.")] = "ec-p256"
    wait_seconds: WaitSeconds = 10.0


class DeactivateAccount(AccountById, frozen=True):
    """End an account for good: the CA never serves it again, its orders end, its certificates are not renewed by it."""

    confirm: Annotated[str, Meta(max_length=100, description="The account's name, to show that you mean it.")]
    wait_seconds: WaitSeconds = 10.0


class ListAccounts(Request, frozen=True):
    """Page through accounts, oldest first."""

    status: Annotated[AccountStatus | None, Meta(description="Only accounts in this state.")] = None
    limit: Limit = 100
    cursor: Cursor | None = None


class AccountReply(msgspec.Struct, frozen=True, kw_only=True):
    """An ACME account."""

    id: Annotated[str, Meta(description="`acme_...`")]
    name: str
    provider: Provider
    environment: Environment
    email: str | None
    status: Annotated[AccountStatus, Meta(description="`pending` until the CA has registered it.")]
    created_at: datetime
    directory_url: str
    account_url: Annotated[str | None, Meta(description="The CA's URL of the account, for CAA `accounturi`.")]
    key_thumbprint: Annotated[str, Meta(description="RFC 7638 thumbprint of the account key.")]
    eab_key_id: str | None = None
    ca: Annotated[
        CaDescription | None, Meta(description="What the CA said of itself at registration: terms, CAA, profiles.")
    ] = None
    error: Annotated[Trouble | None, Meta(description="Why it is invalid, or not registered yet.")] = None
    action_required: Annotated[
        Trouble | None,
        Meta(
            description="The CA waits for a person: visit `acme.instance`. Orders wait; they go on by themselves "
            "afterwards, at once if you say so with `pki.acme.accounts.update` and terms_of_service_agreed."
        ),
    ] = None
    terms_changed_to: Annotated[
        str | None, Meta(description="The CA's terms of service, if they are not those that were agreed to.")
    ] = None
    key_change_pending: Annotated[bool, Meta(description="A key change is under way.")] = False
    deactivation_pending: Annotated[bool, Meta(description="The CA is still to be told that the account ends.")] = False


class AccountList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of accounts."""

    items: list[AccountReply]
    next_cursor: str | None


class PropagationRequest(Request, frozen=True):
    """When a TXT value counts as visible; absent members are as the provider's settings say."""

    visibility: Annotated[
        Visibility | None,
        Meta(
            description="On `all` authoritative servers, a `quorum` (more than half) of them, the given `resolvers`, "
            "after a fixed `delay`, or at once (`skip`)."
        ),
    ] = None
    timeout: Annotated[float, Meta(ge=1, le=86400, description="Seconds until the order fails.")] | None = None
    interval: Annotated[float, Meta(ge=0.1, le=600, description="The longest pause between looks.")] | None = None
    resolvers: Annotated[
        list[Annotated[str, Meta(max_length=100)]] | None,
        Meta(description="For `resolvers`: whom to ask, as address or address:port."),
    ] = None
    delay: Annotated[float, Meta(ge=0, le=86400, description="For `delay`: seconds.")] | None = None
    on_failure: Annotated[Literal["fail", "continue"] | None, Meta(description="What follows when time runs out.")] = (
        None
    )


class Issue(Request, frozen=True):
    """Ask for a certificate. The reply is the order; poll it, or wait for `certificate.issued`."""

    account_id: Annotated[str, Meta(description="Which account orders it.")]
    challenge_type: Annotated[ChallengeType, Meta(description="How to prove the names.")]
    domains: Annotated[
        list[Annotated[str, Meta(max_length=1000)]],
        Meta(
            max_length=1000,
            description="Host names, wildcards (`*.name`, dns-01 only), addresses. May be absent with `csr`: then its "
            "names count.",
        ),
    ] = []
    account_ids: Annotated[
        list[Annotated[str, Meta(max_length=100)]],
        Meta(
            max_length=10,
            description="Further accounts, in order: the next is tried when the CA of the one before is at fault.",
        ),
    ] = []
    auto_renew: Annotated[bool, Meta(description="Keep it renewed.")] = True
    key_type: Annotated[KeyType, Meta(description="Kind of the certificate's private key.")] = "ec-p256"
    reuse_key: Annotated[bool, Meta(description="Keep the private key at renewals; a fresh one otherwise.")] = False
    csr: (
        Annotated[
            str,
            Meta(
                max_length=100_000,
                description="Your own CSR, in PEM or base64 of DER: then the private key never exists here. "
                "Renewals send the same CSR until `pki.certificates.update` brings another.",
            ),
        ]
        | None
    ) = None
    profile: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=100,
                description="One of the CA's profiles; the account shows which there are.",
            ),
        ]
        | None
    ) = None
    profile_policy: Annotated[
        Literal["required", "preferred"],
        Meta(description="Where the CA does not offer the profile: fail, or go without one and warn."),
    ] = "required"
    preferred_chain: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=200,
                description="Of several chains, the one whose top certificate was issued by this common name, or that "
                "leads to the root with this SHA-256 fingerprint, if the CA sends that root or the account's "
                "`ca_certificates_pem` has it. If none fits: the CA's default, and a warning.",
            ),
        ]
        | None
    ) = None
    not_after: (
        Annotated[
            datetime,
            Meta(
                tz=True,
                description="The end of the certificate's life, where the CA lets its callers choose; renewals ask for "
                "the same lifetime.",
            ),
        ]
        | None
    ) = None
    renew_before: Annotated[
        Duration | None,
        Meta(description="Renew when so much of the lifetime is left, in place of the CA's window and our own rule."),
    ] = None
    dns_provider: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=100,
                description="For dns-01: id or name of the DNS provider to use. Absent: the one whose zones contain "
                "the name.",
            ),
        ]
        | None
    ) = None
    propagation: Annotated[
        PropagationRequest | None,
        Meta(description="For dns-01: when a value counts as visible, in place of the provider's settings."),
    ] = None
    solver: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=100,
                description="Which installed solver of the challenge type. Absent: the daemon's own.",
            ),
        ]
        | None
    ) = None
    wait_seconds: WaitSeconds = 2.0
    wait_end_seconds: WaitEndSeconds | None = None


class OrderById(Request, frozen=True):
    """Name one order."""

    order_id: OrderIdMember
    wait_end_seconds: WaitEndSeconds | None = None


class CancelOrder(Request, frozen=True):
    """Give an order up: it ends as `deactivated`, and what was put in place for it goes."""

    order_id: OrderIdMember


class ListOrders(Request, frozen=True):
    """Page through orders, oldest first."""

    status: Annotated[OrderStatus | None, Meta(description="Only orders in this state.")] = None
    account_id: Annotated[str | None, Meta(description="Only orders of this account.")] = None
    limit: Limit = 100
    cursor: Cursor | None = None


class ChallengeReply(msgspec.Struct, frozen=True, kw_only=True):
    """One challenge the daemon answers."""

    domain: str
    type: str
    status: str
    token: str
    key_authorization: str


class OrderReply(msgspec.Struct, frozen=True, kw_only=True):
    """An order and how far it has come."""

    order_id: Annotated[str, Meta(description="`acme_order_...`")]
    account_id: str
    status: Annotated[
        OrderStatus, Meta(description="`valid` with certificate_id, or `invalid` with error, in the end.")
    ]
    domains: list[str]
    challenge_type: ChallengeType
    key_type: KeyType
    auto_renew: bool
    challenges: Annotated[list[ChallengeReply], Meta(description="Empty until the CA has named them.")]
    created_at: datetime
    certificate_id: str | None = None
    not_after: datetime | None = None
    expires_at: Annotated[
        datetime | None, Meta(description="Until when the CA keeps the order; not the certificate.")
    ] = None
    solver: str | None = None
    dns_provider: Annotated[str | None, Meta(description="The DNS provider that was asked for.")] = None
    dns_records: Annotated[
        tuple[PropagationReport, ...],
        Meta(description="For dns-01: each record name, how far its values have come, and each server's verdict."),
    ] = ()
    cause: Annotated[OrderCause, Meta(description="Why there is this order.")] = "issue"
    renews: Annotated[str | None, Meta(description="The certificate of which it makes the next version.")] = None
    version: Annotated[int | None, Meta(description="Which version of the certificate it brought.")] = None
    account_ids: Annotated[list[str], Meta(description="All accounts to try, in order.")] = []
    profile: str | None = None
    warnings: Annotated[
        tuple[str, ...], Meta(description="What was done otherwise than asked for: a profile left out, another chain.")
    ] = ()
    preflight: Annotated[
        tuple[PreflightVerdict, ...], Meta(description="What was checked before the CA was asked, name by name.")
    ] = ()
    queued: Annotated[
        Queued | None,
        Meta(
            description="Which of the CA's budgets is used up, and when the order's turn is expected; nothing is wrong."
        ),
    ] = None
    attempt: Annotated[int, Meta(description="How many setbacks it has had.")] = 0
    next_try_at: Annotated[datetime | None, Meta(description="When it goes on after a setback.")] = None
    error: Annotated[Trouble | None, Meta(description="The last setback, or why it is invalid.")] = None
    evidence: Annotated[
        tuple[Evidence, ...],
        Meta(
            description="What the daemon saw itself, at each address or name server, right after the CA had refused a "
            "challenge; `ok` null: it could not be seen from here."
        ),
    ] = ()
    requested_by: Annotated[
        str | None, Meta(description="Who asked for it; for a renewal, whose the certificate is: `token:...`.")
    ] = None


class OrderList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of orders."""

    items: list[OrderReply]
    next_cursor: str | None


class CertificateById(Request, frozen=True):
    """Name one certificate."""

    id: Annotated[str, Meta(description="The certificate's id, `cert_...`.")]


class ListCertificates(Request, frozen=True):
    """Page through certificates, oldest first."""

    domain: Annotated[str | None, Meta(description="Only certificates that hold exactly this name.")] = None
    status: Annotated[CertificateStatus | None, Meta(description="Only certificates in this state.")] = None
    account_id: Annotated[str | None, Meta(description="Only certificates whose current version it ordered.")] = None
    serial_number: (
        Annotated[str, Meta(max_length=200, description="Only the certificate whose current version has it.")] | None
    ) = None
    limit: Limit = 100
    cursor: Cursor | None = None


class RenewalReply(msgspec.Struct, frozen=True, kw_only=True):
    """When a certificate is renewed, and how that goes."""

    moment: Annotated[datetime | None, Meta(description="When it is renewed next, by itself; null: it is not.")]
    next_try_at: Annotated[datetime | None, Meta(description="After a failure: when it goes on.")] = None
    attempt: Annotated[int, Meta(description="Failures in a row.")] = 0
    error: Annotated[Trouble | None, Meta(description="The last failure; `remedy` says what to do.")] = None
    order_id: Annotated[str | None, Meta(description="The order that makes the next version.")] = None
    is_stopped: Annotated[
        bool,
        Meta(
            description="It is not tried again by itself until `pki.certificates.renew`, or an update that changes "
            "something."
        ),
    ] = False
    window_start: Annotated[datetime | None, Meta(description="The CA's renewal window (ARI, RFC 9773).")] = None
    window_end: datetime | None = None
    explanation_url: Annotated[str | None, Meta(description="The CA's page about the window.")] = None
    window_polled_at: Annotated[datetime | None, Meta(description="When the CA is asked about it next.")] = None


class CertificateReply(msgspec.Struct, frozen=True, kw_only=True):
    """A managed certificate at its current version."""

    id: Annotated[str, Meta(description="`cert_...`")]
    order_id: str
    account_id: str
    status: CertificateStatus
    domains: list[str]
    version: Annotated[int, Meta(description="1, and one more with each renewal.")]
    serial_number: Annotated[str, Meta(description="Hexadecimal octets joined by colons.")]
    fingerprint_sha256: str
    issuer: str
    key_type: KeyType
    challenge_type: ChallengeType
    auto_renew: bool
    not_before: datetime
    not_after: datetime
    created_at: datetime
    issued_at: datetime | None = None
    has_private_key: Annotated[bool, Meta(description="false: it was made from a caller's CSR.")] = True
    revocation: Revocation | None = None
    renewal: RenewalReply | None = None
    terms: Annotated[TermsReply | None, Meta(description="What its next order asks for.")] = None
    requested_by: Annotated[
        str | None, Meta(description="Whose it is: it is renewed as long as they may, `token:...`.")
    ] = None


class TermsReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the orders of a certificate ask for."""

    account_ids: list[str]
    domains: list[str]
    challenge_type: ChallengeType
    key_type: KeyType
    reuse_key: bool
    profile: str | None
    profile_policy: Literal["required", "preferred"]
    preferred_chain: str | None
    lifetime_seconds: float | None
    solver: str | None
    dns_provider: str | None
    has_csr: bool
    renew_before_seconds: float | None


class CertificateList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of certificates."""

    items: list[CertificateReply]
    next_cursor: str | None


class ListVersions(CertificateById, frozen=True):
    """Page through the versions of a certificate, oldest first; the current one comes last."""

    limit: Limit = 100
    cursor: Cursor | None = None


class VersionReply(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a certificate."""

    id: str
    version: int
    is_current: bool
    status: CertificateStatus
    order_id: str
    account_id: str
    domains: list[str]
    key_type: KeyType
    serial_number: str
    fingerprint_sha256: str
    issuer: str
    not_before: datetime
    not_after: datetime
    issued_at: datetime | None
    has_private_key: bool
    revocation: Revocation | None = None


class VersionList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of versions."""

    items: list[VersionReply]
    next_cursor: str | None


class RenewCertificate(CertificateById, frozen=True):
    """Renew a certificate now. While an order for it is under way, that one is hurried and answered with."""

    wait_seconds: WaitSeconds = 2.0
    wait_end_seconds: WaitEndSeconds | None = None


class UpdateCertificate(CertificateById, frozen=True):
    """Change what the next orders ask for; absent members stay, null takes away. Other names are ordered at once."""

    domains: Annotated[
        Annotated[list[Annotated[str, Meta(max_length=1000)]], Meta(min_length=1, max_length=1000)] | UnsetType,
        Meta(description="The new set of names: ordered at once, as the next version."),
    ] = UNSET
    account_id: Annotated[str | UnsetType, Meta(description="Which account orders from now on.")] = UNSET
    account_ids: Annotated[
        list[Annotated[str, Meta(max_length=100)]] | UnsetType, Meta(description="Further accounts, in order.")
    ] = UNSET
    challenge_type: Annotated[ChallengeType | UnsetType, Meta(description="How to prove the names from now on.")] = (
        UNSET
    )
    auto_renew: Annotated[bool | UnsetType, Meta(description="Keep it renewed.")] = UNSET
    key_type: Annotated[
        KeyType | UnsetType, Meta(description="Kind of the next version's private key; with a csr it is the CSR's.")
    ] = UNSET
    reuse_key: Annotated[bool | UnsetType, Meta(description="Keep the private key at renewals.")] = UNSET
    csr: Annotated[
        Annotated[str, Meta(max_length=100_000)] | UnsetType,
        Meta(description="Another CSR for the same names, or for those in `domains`: ordered at once."),
    ] = UNSET
    profile: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100)] | UnsetType | None,
        Meta(description="One of the CA's profiles."),
    ] = UNSET
    profile_policy: Annotated[
        Literal["required", "preferred"] | UnsetType, Meta(description="As in an issue request.")
    ] = UNSET
    preferred_chain: Annotated[
        Annotated[str, Meta(min_length=1, max_length=200)] | UnsetType | None,
        Meta(description="As in an issue request."),
    ] = UNSET
    renew_before: Annotated[Duration | UnsetType | None, Meta(description="As in an issue request.")] = UNSET
    dns_provider: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100)] | UnsetType | None,
        Meta(description="For dns-01: id or name of the DNS provider."),
    ] = UNSET
    propagation: Annotated[
        PropagationRequest | UnsetType | None, Meta(description="For dns-01: when a value counts as visible.")
    ] = UNSET
    solver: Annotated[
        Annotated[str, Meta(min_length=1, max_length=100)] | UnsetType | None,
        Meta(description="Which installed solver of the challenge type."),
    ] = UNSET
    wait_seconds: WaitSeconds = 0.0


class RevokeCertificate(Request, frozen=True):
    """Revoke one version of a certificate: by `serial_number`, or by `certificate_id`, at its current version or
    `version`.
    """

    serial_number: (
        Annotated[str, Meta(max_length=200, description="Hexadecimal, with or without colons. Must be unambiguous.")]
        | None
    ) = None
    certificate_id: Annotated[str | None, Meta(description="The certificate, if not by serial number.")] = None
    version: (
        Annotated[int, Meta(ge=1, description="With certificate_id: which version; absent: the current one.")] | None
    ) = None
    reason: Annotated[RevocationReason, Meta(description="Let's Encrypt takes all but `affiliation_changed`.")] = (
        "unspecified"
    )
    use_acme: Annotated[
        bool,
        Meta(description="Through the CA; false marks it as revoked in our store only, and no browser learns of it."),
    ] = True
    replace: Annotated[
        bool, Meta(description="First make a new version with a new key; revoke only when that is there.")
    ] = False
    wait_seconds: WaitSeconds = 10.0


class RevocationReply(msgspec.Struct, frozen=True, kw_only=True):
    """A revocation, done or under way."""

    id: Annotated[str, Meta(description="`revocation_...`")]
    status: Annotated[Literal["pending", "done", "failed"], Meta(description="`certificate.revoked` follows `done`.")]
    certificate_id: str
    version: int
    serial_number: str
    reason: RevocationReason
    use_acme: bool
    replace: bool
    created_at: datetime
    was_revoked_already: Annotated[
        bool,
        Meta(description="The CA said that it was revoked before, and may publish the reason given then."),
    ] = False
    order_id: Annotated[str | None, Meta(description="The order for the replacement.")] = None
    next_try_at: datetime | None = None
    error: Trouble | None = None


class RevocationById(Request, frozen=True):
    """Name one revocation."""

    id: Annotated[str, Meta(description="The revocation's id, `revocation_...`.")]


class CreateBulkRenewal(Request, frozen=True):
    """Renew many certificates ahead of their time, so many a minute. All filters together choose; at least one."""

    certificate_ids: Annotated[
        list[Annotated[str, Meta(max_length=100)]], Meta(max_length=5_000, description="Exactly these.")
    ] = []
    all: Annotated[
        bool,
        Meta(
            description="Every certificate that passes the other filters; those revoked here, or expired without "
            "auto_renew, only by id."
        ),
    ] = False
    account_id: Annotated[str | None, Meta(description="Those whose current version it ordered.")] = None
    issuer: Annotated[str, Meta(max_length=200, description="Those issued by exactly this common name.")] | None = None
    domain: Annotated[str, Meta(max_length=255, description="Those with this name or a name below it.")] | None = None
    issued_before: Annotated[datetime, Meta(tz=True, description="Those whose validity began earlier.")] | None = None
    per_minute: Annotated[float, Meta(gt=0, le=6000, description="How many are set going in a minute.")] = 60.0
    note: Annotated[str, Meta(max_length=500, description="Why, for those who read it later.")] = ""
    dry_run: Annotated[bool, Meta(description="Only count; nothing is started or kept.")] = False


class BulkRenewalById(Request, frozen=True):
    """Name one bulk renewal."""

    id: Annotated[str, Meta(description="Its id, `bulk_...`.")]


class ListBulkRenewals(Request, frozen=True):
    """Page through bulk renewals, oldest first."""

    status: Annotated[
        Literal["running", "finished", "cancelled"] | None, Meta(description="Only those in this state.")
    ] = None
    limit: Limit = 100
    cursor: Cursor | None = None


class BulkRenewalReply(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk renewal and how far it has come."""

    id: Annotated[str | None, Meta(description="`bulk_...`; null after a dry run.")]
    status: Literal["running", "finished", "cancelled"]
    created_at: datetime
    note: str
    per_minute: float
    total: Annotated[int, Meta(description="How many certificates were chosen.")]
    started: Annotated[int, Meta(description="Set going so far.")]
    skipped: Annotated[int, Meta(description="Not set going: gone, or renewed since by themselves.")]
    renewed: int
    failed: Annotated[int, Meta(description="Orders that ended without a certificate; they are tried again as usual.")]
    under_way: int
    finished_at: datetime | None = None
    estimated_end: Annotated[datetime | None, Meta(description="When the last is set going.")] = None


class BulkRenewalList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of bulk renewals."""

    items: list[BulkRenewalReply]
    next_cursor: str | None


class ListLimits(Request, frozen=True):
    """Show the budgets at the CAs: what is spent, and when the next order may go."""

    account_id: Annotated[
        str | None, Meta(description="Only the CA of this account, and of its budgets only its own.")
    ] = None
    domain: (
        Annotated[str, Meta(max_length=255, description="Only budgets that an order for this name would touch.")] | None
    ) = None


class LimitReply(msgspec.Struct, frozen=True, kw_only=True):
    """One budget that is not full, or is closed."""

    directory_url: str
    limit: Annotated[str, Meta(description="What is counted per what: `certificates_per_registered_domain`.")]
    subject: Annotated[str, Meta(description="Whose budget it is.")]
    amount: Annotated[int | None, Meta(description="How many fit in; null: only a refusal told us of it.")] = None
    window_seconds: Annotated[int | None, Meta(description="In which time a spent budget refills, evenly.")] = None
    used: int | None = None
    left: Annotated[int | None, Meta(description="Including `reserved`, which only renewals may take.")] = None
    reserved: int = 0
    refills_at: Annotated[datetime | None, Meta(description="When the next one is there.")] = None
    full_at: datetime | None = None
    new_at: Annotated[datetime | None, Meta(description="When a new certificate may be ordered; null: now.")] = None
    renewal_at: Annotated[datetime | None, Meta(description="When a renewal without ARI may be; null: now.")] = None
    needs_human: Annotated[
        bool, Meta(description="The CA has paused it: visit the page it named, then renew or issue again.")
    ] = False


class CaLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one CA limits, as far as we know."""

    directory_url: str
    rules: Annotated[
        list[LimitRule], Meta(description="As published or configured; empty: the CA teaches us by refusing.")
    ]


class LimitRule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule."""

    limit: str
    amount: int
    window_seconds: int
    reserved: int
    exempt: list[str]


class WaitingOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An order that waits for a budget."""

    order_id: str
    directory_url: str
    limit: str
    subject: str
    until: datetime
    ahead: Annotated[int, Meta(description="How many wait for the same in front of it.")]


class LimitsReply(msgspec.Struct, frozen=True, kw_only=True):
    """Budgets, the scarcest first, and who waits for them."""

    cas: list[CaLimits]
    items: Annotated[list[LimitReply], Meta(description="At most 500; budgets that are full are not listed.")]
    waiting: Annotated[list[WaitingOrder], Meta(description="At most 500, the next first.")]


ProviderName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=100,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="A name of letters, digits, `.`, `_`, `-`; unique.",
    ),
]
ZoneNames = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=253)]],
    Meta(max_length=1000, description="Zones that this provider serves. Empty: the provider is asked which it has."),
]


class CreateDnsProvider(Request, frozen=True):
    """Configure a DNS provider. Secrets are named by reference, never given."""

    name: ProviderName
    type: Annotated[str, Meta(max_length=100, description="Kind of provider, such as `rfc2136` or `aws_route53`.")]
    zones: ZoneNames = []
    config: Annotated[
        dict[str, Any],
        Meta(description="Settings of its kind; see docs/providers. Members ending in `_path` name secrets."),
    ] = {}


class DnsProviderById(Request, frozen=True):
    """Name one DNS provider."""

    id: Annotated[str, Meta(max_length=100, description="The provider's id, `dnsp_...`, or its name.")]


class UpdateDnsProvider(DnsProviderById, frozen=True):
    """Change a DNS provider; absent members stay. `config` is replaced as a whole."""

    name: ProviderName | None = None
    zones: ZoneNames | None = None
    config: Annotated[dict[str, Any] | None, Meta(description="All settings of its kind.")] = None


class ListDnsProviders(Request, frozen=True):
    """Page through DNS providers, oldest first; those of the configuration file come first."""

    limit: Limit = 100
    cursor: Cursor | None = None


class DnsProviderReply(msgspec.Struct, frozen=True, kw_only=True):
    """A configured DNS provider."""

    id: Annotated[str, Meta(description="`dnsp_...`")]
    name: str
    type: str
    zones: list[str]
    config: Annotated[dict[str, Any], Meta(description="As it was given: references, no secrets.")]
    origin: Annotated[Literal["api", "file"], Meta(description="`file`: it stands in the configuration file.")]
    status: Annotated[
        Literal["ready", "unusable"],
        Meta(description="`unusable`: its kind is not installed or its config does not fit."),
    ]
    detail: Annotated[str, Meta(description="Why it is unusable, or what it last failed with.")] = ""
    created_at: datetime
    updated_at: datetime


class DnsProviderList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of DNS providers."""

    items: list[DnsProviderReply]
    next_cursor: str | None


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted."""

    id: str
    deleted: bool = True


class TestDnsProvider(DnsProviderById, frozen=True):
    """Write a random TXT value, watch it appear on all authoritative servers, remove it."""

    __test__: ClassVar[bool] = False  # its name is no test's

    domain: (
        Annotated[
            str,
            Meta(
                max_length=253,
                description="For which name: the value is written where its dns-01 challenge would be. Absent: the "
                "provider's first zone.",
            ),
        ]
        | None
    ) = None
    timeout_seconds: Annotated[float, Meta(ge=1, le=300, description="How long to wait for the value to appear.")] = (
        60.0
    )


StepStatus = Literal["ok", "failed", "skipped", "warning"]


class TestStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a test, and how long it took."""

    __test__: ClassVar[bool] = False

    name: Annotated[
        str, Meta(description="`open`, `check`, `route`, `zone`, `write`, `live`, `visible`, `remove`, `gone`.")
    ]
    status: StepStatus
    seconds: float
    detail: str
    verdicts: tuple[ServerVerdict, ...] = ()


class TestReply(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the provider does what dns-01 needs, step by step."""

    __test__: ClassVar[bool] = False

    id: str
    name: str
    ok: bool
    record_name: str | None
    value: str
    zone: str | None
    steps: list[TestStep]


class Trace(Request, frozen=True):
    """Show where a name's dns-01 challenge would go, without writing."""

    name: Annotated[str, Meta(min_length=1, max_length=255, description="A name to certify, wildcards included.")]
    dns_provider: Annotated[str, Meta(max_length=100, description="As in an issue request.")] | None = None


class TraceProvider(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that could write the name."""

    id: str
    name: str
    type: str
    zone: str | None
    detail: str = ""


class TraceReply(msgspec.Struct, frozen=True, kw_only=True):
    """The way of a challenge: CNAMEs, zone, servers, CAA, and who would write it."""

    name: str
    challenge_name: str
    chain: list[str]
    target: str | None
    zone: str | None
    name_servers: Annotated[list[NameServer], Meta(description="Servers the zone is delegated to.")]
    answers: Annotated[list[ServerVerdict], Meta(description="What each of them says about the target now.")]
    dns_provider: Annotated[TraceProvider | None, Meta(description="The one that would be used.")]
    candidates: Annotated[list[TraceProvider], Meta(description="All whose zones contain the target.")]
    caa: Annotated[CaaSet | None, Meta(description="The CAA records a CA would heed.")]
    problems: Annotated[list[str], Meta(description="What stands in the way; empty when all is well.")]


class PutSecret(Request, frozen=True):
    """Store a secret, or a new version of it. It can be used by reference, never read back."""

    path: Annotated[str, Meta(max_length=255, description="Such as `infra/aws/route53/access-key-id`.")]
    value: Annotated[str, Meta(min_length=1, max_length=65536, description="The secret's text. Stored sealed.")]

    def __repr__(self) -> str:
        return f"PutSecret(path={self.path!r})"


class SecretByPath(Request, frozen=True):
    """Name one secret."""

    path: Annotated[str, Meta(max_length=255, description="Its path.")]


class ListSecrets(Request, frozen=True):
    """Page through secrets in order of their paths."""

    prefix: Annotated[str, Meta(max_length=255, description="Only paths that begin so.")] = ""
    limit: Limit = 100
    cursor: Annotated[str, Meta(max_length=255, description="`next_cursor` of the page before.")] | None = None


class SecretReply(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a secret; never its value."""

    path: str
    version: Annotated[int, Meta(description="1, and one more with each put.")]
    created_at: datetime
    updated_at: datetime
    used_by: Annotated[list[str], Meta(description="Names of DNS providers that refer to it.")]


class SecretList(msgspec.Struct, frozen=True, kw_only=True):
    """One page of secrets."""

    items: list[SecretReply]
    next_cursor: str | None


class SecretDeleted(msgspec.Struct, frozen=True, kw_only=True):
    """What was deleted, and who will miss it."""

    path: str
    deleted: bool = True
    used_by: Annotated[list[str], Meta(description="Names of DNS providers that still refer to it.")]


Part = Literal["fullchain", "leaf", "chain"]


class CertificatePem(CertificateById, frozen=True):
    """Which PEM of a certificate."""

    part: Annotated[Part, Meta(description="`leaf`, `chain` (what comes above it), or both.")] = "fullchain"
    version: Annotated[int, Meta(ge=1, description="An earlier version; absent: the current one.")] | None = None


class CertificateKey(CertificateById, frozen=True):
    """Which private key of a certificate."""

    version: Annotated[int, Meta(ge=1, description="An earlier version; absent: the current one.")] | None = None
    recipient_key: (
        Annotated[
            str,
            Meta(
                max_length=100,
                description="Your X25519 public key (32 bytes, base64 or base64url): the reply then holds `sealed_key` "
                "instead of the key, which nobody on the way can read. Without it a key is sent over NATS only to your "
                "own inbox prefix.",
            ),
        ]
        | None
    ) = None


class PemReply(msgspec.Struct, frozen=True, kw_only=True):
    """Certificates in PEM, leaf first."""

    id: str
    version: int
    part: Part
    pem: str


class KeyReply(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate's private key, plain or sealed to the `recipient_key`. Treat as a secret.

    `sealed_key` is HPKE in base mode (RFC 9180; X25519 with HKDF-SHA256, HKDF-SHA256, ChaCha20-Poly1305): the
    encapsulated key and the ciphertext of the PEM, base64. The info is
    `scaivault/key-delivery/v1|CERTIFICATE_ID|VERSION|PRINCIPAL`.
    """

    id: str
    version: int
    key_type: KeyType
    private_key_pem: Annotated[str | None, Meta(description="PKCS #8, PEM, not encrypted.")] = None
    sealed_key: Annotated[str | None, Meta(description="HPKE ciphertext, where `recipient_key` was given.")] = None
    sealed_for: Annotated[str | None, Meta(description="The info that opens `sealed_key`.")] = None

    def __repr__(self) -> str:
        return f"KeyReply(id={self.id!r})"


class Nothing(Request, frozen=True):
    """An empty request: `{}` or no body at all."""


class ComponentHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How one part of the daemon is."""

    name: str
    status: Literal["ok", "degraded", "down"]
    detail: str = ""


class HealthReply(msgspec.Struct, frozen=True, kw_only=True):
    """How the daemon is: the worst of its parts. `sealed`: its master key is missing or wrong, as `master_key` says."""

    status: Literal["ok", "degraded", "down", "sealed"]
    components: list[ComponentHealth]

    @property
    def http_status(self) -> int:
        """503 when it does no work: balancers and monitors go by the status alone."""
        return 503 if self.status in ("down", "sealed") else 200


class PluginReply(msgspec.Struct, frozen=True, kw_only=True):
    """One installed plugin; `refused` says why it is not in use."""

    name: str
    distribution: str
    version: str
    api: Annotated[str | None, Meta(description="The plugin contract it is written for.")] = None
    brings: Annotated[list[str], Meta(description="Solvers, DNS providers and secret backends.")] = []
    refused: str | None = None


class InfoReply(msgspec.Struct, frozen=True, kw_only=True):
    """What is running."""

    version: str
    node_id: str
    started_at: datetime
    challenge_types: list[str]
    solvers: Annotated[list[str], Meta(description="As `challenge type/name`.")]
    dns_provider_types: list[str]
    plugins: list[PluginReply]
    orders_under_way: int


class ProblemReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Any error (RFC 9457). `code` is stable; `acme` holds the CA's own words, `retry_at` when it may work."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: tuple[FieldError, ...] = ()
    identifiers: tuple[IdentifierTrouble, ...] = ()
    acme: Problem | None = None
    limit: str | None = None
    retry_after: float | None = None
    retry_at: datetime | None = None
