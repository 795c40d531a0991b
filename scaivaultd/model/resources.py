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
    CertificateId,
    DnsProviderId,
    KeyId,
    NodeId,
    OrderId,
)
from scaivaultd.model.names import Identifier

Provider = Literal["letsencrypt", "zerossl", "buypass", "google", "custom"]
Environment = Literal["production", "staging"]
ChallengeType = Literal["http-01", "dns-01", "tls-alpn-01"]
KeyType = Literal["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096"]

AccountStatus = Literal["pending", "valid", "invalid", "deactivated"]
OrderStatus = Literal["pending", "ready", "processing", "valid", "invalid", "deactivated", "revoked", "expired"]
UNFINISHED: tuple[OrderStatus, ...] = ("pending", "ready", "processing")
"""States in which an order still has a job."""


class Trouble(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why something does not go on, as kept and shown.

    `code` is one of ours (`model/errors.py`); `acme` the CA's problem; `identifiers` the cause per
    name. `retry_at` is when we try again by ourselves, or may try again; absent when never.
    """

    code: str
    detail: str
    retryable: bool = False
    acme: Problem | None = None
    identifiers: tuple[IdentifierTrouble, ...] = ()
    limit: str | None = None
    retry_after: float | None = None
    retry_at: datetime | None = None


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

    Exactly one of the two is set: a reference to a secret, or the key sealed by our own envelope.
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


class Account(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An ACME account: one registration at one CA, with the key that signs for it.

    Stored with its key before the CA is asked; `url` arrives with the CA's answer and is the `kid`
    byte for byte. `attempt`, `next_try_at` and
    `give_up_at` belong to a registration under way.
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


class Challenge(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A challenge we chose to answer: kept before the CA is told, so that it can be cleaned up after a crash."""

    identifier: str
    type: str
    url: str
    status: str
    token: str
    key_authorization: str


class Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request for a certificate and how far it has come.

    `epoch` grows each time a process takes the order up; with the document's revision it fences
    off whoever had it before. `asked` without `url`: newOrder may have been sent, and its answer was
    never written down. Everything the CA told us is a hint: on resume it is asked again.
    """

    id: OrderId
    account_id: AccountId
    identifiers: tuple[Identifier, ...]
    challenge_type: ChallengeType
    key_type: KeyType
    auto_renew: bool
    status: OrderStatus
    created_at: datetime
    give_up_at: datetime
    owner: NodeId | None = None
    epoch: int = 0
    attempt: int = 0
    misbehaved: int = 0
    next_try_at: datetime | None = None
    key_id: KeyId | None = None
    asked: bool = False
    url: str | None = None
    finalize_url: str | None = None
    certificate_url: str | None = None
    expires_at: datetime | None = None
    challenges: tuple[Challenge, ...] = ()
    error: Trouble | None = None
    certificate_id: CertificateId | None = None
    not_after: datetime | None = None
    solver: str | None = None
    dns_provider: str | None = None
    propagation: PropagationOverride | None = None
    dns_records: tuple[PropagationReport, ...] = ()


class Certificate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A managed certificate at its current version: chain in the open, private key sealed elsewhere."""

    id: CertificateId
    order_id: OrderId
    account_id: AccountId
    identifiers: tuple[Identifier, ...]
    challenge_type: ChallengeType
    key_type: KeyType
    key_id: KeyId
    version: int
    status: Literal["valid", "revoked", "expired"]
    auto_renew: bool
    serial_number: str
    fingerprint_sha256: str
    issuer: str
    not_before: datetime
    not_after: datetime
    chain_pem: str
    created_at: datetime


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
