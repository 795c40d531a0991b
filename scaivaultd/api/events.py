"""Events: facts in the past tense, complete in themselves, never holding a secret.

On NATS each is a CloudEvents 1.0 message in binary mode at `<events_root>.<type>.<resource id>`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import msgspec

from scaivaultd.model import tracing
from scaivaultd.model.ids import EventId
from scaivaultd.model.resources import (
    Environment,
    FailureKind,
    Fault,
    KeyType,
    OrderCause,
    Provider,
    RevocationReason,
    Trouble,
)
from scaivaultd.model.storage import OutboxEvent

if TYPE_CHECKING:
    from scaivaultd.model.access import Anchor, Token
    from scaivaultd.model.resources import Account, Certificate, Deployment, Issued, Order, Renewal, Revocation

_ENCODER = msgspec.json.Encoder()


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all event bodies; `type` is the CloudEvents type and stands in the subject."""

    type: ClassVar[str]
    summary: ClassVar[str]


class CertificateIssued(Event, frozen=True):
    """A certificate was issued and can be fetched."""

    type: ClassVar[str] = "certificate.issued"
    summary: ClassVar[str] = "A certificate was issued and can be fetched, with its private key."

    certificate_id: str
    order_id: str
    account_id: str
    domains: list[str]
    version: int
    previous_version: int | None
    serial_number: str
    fingerprint_sha256: str
    issuer: str
    key_type: KeyType
    not_before: datetime
    not_after: datetime
    auto_renew: bool
    fallback_from: list[str] = []


class CertificateRenewed(Event, frozen=True):
    """A certificate has a new version."""

    type: ClassVar[str] = "certificate.renewed"
    summary: ClassVar[str] = (
        "A certificate has a new version and can be fetched. `fallback_from` are accounts whose CA failed before."
    )

    certificate_id: str
    order_id: str
    account_id: str
    domains: list[str]
    cause: OrderCause
    version: int
    previous_version: int
    serial_number: str
    previous_serial_number: str
    fingerprint_sha256: str
    issuer: str
    key_type: KeyType
    not_before: datetime
    not_after: datetime
    previous_not_after: datetime
    auto_renew: bool
    fallback_from: list[str] = []


class CertificateRenewalFailed(Event, frozen=True):
    """An attempt to renew a certificate failed."""

    type: ClassVar[str] = "certificate.renewal_failed"
    summary: ClassVar[str] = (
        "An attempt to renew a certificate failed. `error` is the cause, `kind` and `fault` weigh it, `remedy` says "
        "what a person can do, `next_try_at` when it goes on by itself, `next_account_id` with whom, if with another."
    )

    certificate_id: str
    order_id: str | None
    account_id: str
    domains: list[str]
    version: int
    not_after: datetime
    cause: OrderCause
    attempt: int
    kind: FailureKind
    fault: Fault
    error: Trouble
    remedy: str | None
    next_try_at: datetime | None
    next_account_id: str | None = None


class CertificateRenewalBlocked(Event, frozen=True):
    """A certificate will not be renewed until a person acts."""

    type: ClassVar[str] = "certificate.renewal_blocked"
    summary: ClassVar[str] = (
        "A certificate will not be renewed by itself any more until a person acts; `remedy` says how."
    )

    certificate_id: str
    account_id: str
    domains: list[str]
    version: int
    not_after: datetime
    error: Trouble
    remedy: str | None


class CertificateExpiring(Event, frozen=True):
    """A certificate comes close to its end and has not been renewed."""

    type: ClassVar[str] = "certificate.expiring"
    summary: ClassVar[str] = (
        "25, 15 or 5 percent of the current version's lifetime are left, and it has not been renewed; `error` is the "
        "last failure, if there was one."
    )

    certificate_id: str
    account_id: str
    domains: list[str]
    version: int
    serial_number: str
    not_after: datetime
    percent_left: int
    auto_renew: bool
    attempt: int
    next_try_at: datetime | None
    error: Trouble | None


class CertificateExpired(Event, frozen=True):
    """A certificate has expired without a successor."""

    type: ClassVar[str] = "certificate.expired"
    summary: ClassVar[str] = (
        "The current version of a certificate has expired; attempts to renew it go on, if it is to be."
    )

    certificate_id: str
    account_id: str
    domains: list[str]
    version: int
    serial_number: str
    not_after: datetime
    auto_renew: bool
    attempt: int
    next_try_at: datetime | None
    error: Trouble | None


class CertificateRevoked(Event, frozen=True):
    """A version of a certificate was revoked."""

    type: ClassVar[str] = "certificate.revoked"
    summary: ClassVar[str] = (
        "A version was revoked. `origin`: by us through the CA (`acme`), in our store only (`store`), or by somebody "
        "else (`outside`): then the CA's renewal window says so, by lying in the past."
    )

    certificate_id: str
    order_id: str
    account_id: str
    domains: list[str]
    version: int
    is_current: bool
    serial_number: str
    fingerprint_sha256: str
    reason: RevocationReason | None
    origin: str
    revoked_at: datetime


class CertificateImported(Event, frozen=True):
    """A certificate of another ACME client was taken over."""

    type: ClassVar[str] = "certificate.imported"
    summary: ClassVar[str] = "A certificate that another ACME client obtained is renewed here from now on."

    certificate_id: str
    account_id: str
    domains: list[str]
    version: int
    serial_number: str
    fingerprint_sha256: str
    issuer: str
    not_before: datetime
    not_after: datetime
    auto_renew: bool
    source: str


class CertificateDeployed(Event, frozen=True):
    """A host uses a version of a certificate, as it says itself."""

    type: ClassVar[str] = "certificate.deployed"
    summary: ClassVar[str] = "A host has told which version of a certificate it uses; once for each version and host."

    certificate_id: str
    host: str
    version: int
    current_version: int
    where: str
    error: str | None


class CertificateDeployOverdue(Event, frozen=True):
    """A host has not followed a new version of a certificate in time."""

    type: ClassVar[str] = "certificate.deploy_overdue"
    summary: ClassVar[str] = (
        "A host that used a certificate has not confirmed its new version in time "
        "(`[deployments] overdue_seconds`); once for each version and host."
    )

    certificate_id: str
    domains: list[str]
    host: str
    version: int
    current_version: int
    issued_at: datetime | None
    confirmed_at: datetime
    not_after: datetime


class OrderCancelled(Event, frozen=True):
    """A caller has given an order up."""

    type: ClassVar[str] = "order.cancelled"
    summary: ClassVar[str] = "A caller has given an order up."

    order_id: str
    account_id: str
    domains: list[str]
    renews: str | None


class OrderFailed(Event, frozen=True):
    """An order ended without a certificate."""

    type: ClassVar[str] = "order.failed"
    summary: ClassVar[str] = "An order ended without a certificate; `error` says why, name by name."

    order_id: str
    account_id: str
    domains: list[str]
    error: Trouble | None


class AccountCreated(Event, frozen=True):
    """An ACME account was registered at its CA."""

    type: ClassVar[str] = "account.created"
    summary: ClassVar[str] = "An ACME account was registered at its CA."

    account_id: str
    name: str
    provider: Provider
    environment: Environment
    directory_url: str
    account_url: str | None


class AccountDeactivated(Event, frozen=True):
    """The CA does not accept an account any more."""

    type: ClassVar[str] = "account.deactivated"
    summary: ClassVar[str] = "The CA does not accept an account any more; its orders stop until somebody looks."

    account_id: str
    name: str
    provider: Provider
    environment: Environment
    directory_url: str
    account_url: str | None


class AccountUpdated(Event, frozen=True):
    """An account was changed at its CA."""

    type: ClassVar[str] = "account.updated"
    summary: ClassVar[str] = "An account's contact or agreement was changed at its CA."

    account_id: str
    name: str
    provider: Provider
    environment: Environment
    directory_url: str
    account_url: str | None


class AccountKeyRotated(Event, frozen=True):
    """An account has another key."""

    type: ClassVar[str] = "account.key_rotated"
    summary: ClassVar[str] = "An account has another key at its CA; dns-persist-01 and CAA accounturi are not touched."

    account_id: str
    name: str
    provider: Provider
    environment: Environment
    directory_url: str
    account_url: str | None


class AccountTermsChanged(Event, frozen=True):
    """The CA has other terms of service than were agreed to."""

    type: ClassVar[str] = "account.terms_changed"
    summary: ClassVar[str] = (
        "The CA has other terms of service than were agreed to; read them, and agree with `pki.acme.accounts.update`."
    )

    account_id: str
    name: str
    directory_url: str
    terms_of_service_url: str
    previous_url: str | None


class AccountActionResolved(Event, frozen=True):
    """The CA serves an account again."""

    type: ClassVar[str] = "account.action_resolved"
    summary: ClassVar[str] = "The CA serves an account again after a person has acted; its orders go on."

    account_id: str
    name: str


class AccountActionRequired(Event, frozen=True):
    """The CA waits for a person before it serves an account."""

    type: ClassVar[str] = "account.action_required"
    summary: ClassVar[str] = (
        "The CA waits for a person (RFC 8555 section 7.3.3): visit `instance`. The order goes on by itself afterwards."
    )

    account_id: str
    order_id: str
    detail: str
    instance: str | None
    terms_of_service_url: str | None


class AuditAnchored(Event, frozen=True):
    """How far the audit log has come."""

    type: ClassVar[str] = "audit.anchored"
    summary: ClassVar[str] = (
        "How far the audit log has come: the sequence and the SHA-256 of its last record. Kept on another host, it "
        "shows later whether the log was rewritten or cut off."
    )

    sequence: int
    hash: str


class AuditWriteFailed(Event, frozen=True):
    """The audit log cannot be written."""

    type: ClassVar[str] = "audit.write_failed"
    summary: ClassVar[str] = (
        "The audit log cannot be written since `since`. `waiting` records wait for it, `lost` found no place to wait. "
        "Keys are not given out until it can."
    )

    since: datetime
    reason: str
    waiting: int
    lost: int


class TokenExpiring(Event, frozen=True):
    """An API token comes close to its end."""

    type: ClassVar[str] = "token.expiring"
    summary: ClassVar[str] = (
        "14, 3 or 1 days are left of an API token's lifetime. Rotate it if it is still needed; `last_used_at` helps to "
        "tell."
    )

    token_id: str
    name: str
    expires_at: datetime
    days_left: int
    last_used_at: datetime | None


EVENTS: tuple[type[Event], ...] = (
    CertificateIssued,
    CertificateRenewed,
    CertificateRenewalFailed,
    CertificateRenewalBlocked,
    CertificateExpiring,
    CertificateExpired,
    CertificateRevoked,
    CertificateImported,
    CertificateDeployed,
    CertificateDeployOverdue,
    OrderFailed,
    OrderCancelled,
    AccountCreated,
    AccountUpdated,
    AccountKeyRotated,
    AccountTermsChanged,
    AccountDeactivated,
    AccountActionRequired,
    AccountActionResolved,
    AuditAnchored,
    AuditWriteFailed,
    TokenExpiring,
)
"""Every event there is, for the reference."""


def certificate_issued(certificate: Certificate, order: Order, now: datetime) -> OutboxEvent:
    """The event of an order that brought its certificate; one for each order, for ever."""
    body = CertificateIssued(
        certificate_id=certificate.id,
        order_id=order.id,
        account_id=order.account_id,
        domains=[str(each) for each in certificate.identifiers],
        version=certificate.version,
        previous_version=None,
        serial_number=certificate.serial_number,
        fingerprint_sha256=certificate.fingerprint_sha256,
        issuer=certificate.issuer,
        key_type=certificate.key_type,
        not_before=certificate.not_before,
        not_after=certificate.not_after,
        auto_renew=certificate.auto_renew,
        fallback_from=list(order.accounts_tried),
    )
    return _queued(body, certificate.id, order.id, now)


def certificate_imported(certificate: Certificate, source: str, now: datetime) -> OutboxEvent:
    """The event of a certificate that was taken over; one for each, for ever."""
    body = CertificateImported(
        certificate_id=certificate.id,
        account_id=certificate.account_id,
        domains=[str(each) for each in certificate.identifiers],
        version=certificate.version,
        serial_number=certificate.serial_number,
        fingerprint_sha256=certificate.fingerprint_sha256,
        issuer=certificate.issuer,
        not_before=certificate.not_before,
        not_after=certificate.not_after,
        auto_renew=certificate.auto_renew,
        source=source,
    )
    return _queued(body, certificate.id, certificate.order_id, now)


def certificate_renewed(certificate: Certificate, previous: Certificate, order: Order, now: datetime) -> OutboxEvent:
    """The event of an order that brought a new version; one for each order, for ever."""
    body = CertificateRenewed(
        certificate_id=certificate.id,
        order_id=order.id,
        account_id=certificate.account_id,
        domains=[str(each) for each in certificate.identifiers],
        cause=order.cause,
        version=certificate.version,
        previous_version=previous.version,
        serial_number=certificate.serial_number,
        previous_serial_number=previous.serial_number,
        fingerprint_sha256=certificate.fingerprint_sha256,
        issuer=certificate.issuer,
        key_type=certificate.key_type,
        not_before=certificate.not_before,
        not_after=certificate.not_after,
        previous_not_after=previous.not_after,
        auto_renew=certificate.auto_renew,
        fallback_from=list(order.accounts_tried),
    )
    return _queued(body, certificate.id, order.id, now)


def certificate_renewal_failed(
    certificate: Certificate, renewal: Renewal, order: Order, trouble: Trouble, now: datetime, next_account: str | None
) -> OutboxEvent:
    """The event of one failed attempt; `renewal` as it is after it."""
    body = CertificateRenewalFailed(
        certificate_id=certificate.id,
        order_id=order.id,
        account_id=order.account_id,
        domains=[str(each) for each in order.identifiers],
        version=certificate.version,
        not_after=certificate.not_after,
        cause=order.cause,
        attempt=renewal.attempt,
        kind=trouble.kind or "transient",
        fault=trouble.fault or "here",
        error=trouble,
        remedy=trouble.remedy,
        next_try_at=renewal.next_try_at,
        next_account_id=next_account,
    )
    # What counts up with the order alone: somebody who renews by request begins the attempts anew.
    failure = f"{order.id}.{order.epoch}.{order.attempt}.{len(order.accounts_tried)}"
    return _queued(body, certificate.id, failure, now)


def certificate_renewal_blocked(certificate: Certificate, trouble: Trouble, now: datetime) -> OutboxEvent:
    """The event of a certificate that waits for a person; once for each moment it was found out."""
    body = CertificateRenewalBlocked(
        certificate_id=certificate.id,
        account_id=certificate.account_id,
        domains=[str(each) for each in certificate.identifiers],
        version=certificate.version,
        not_after=certificate.not_after,
        error=trouble,
        remedy=trouble.remedy,
    )
    return _queued(body, certificate.id, f"{certificate.id}.{certificate.version}.{int(now.timestamp())}", now)


def certificate_expiring(certificate: Certificate, renewal: Renewal, percent_left: int, now: datetime) -> OutboxEvent:
    """One announcement of the end of a version; 0 percent: it has come. Each comes once for each version."""
    said: dict[str, Any] = {
        "certificate_id": certificate.id,
        "account_id": certificate.account_id,
        "domains": [str(each) for each in certificate.identifiers],
        "version": certificate.version,
        "serial_number": certificate.serial_number,
        "not_after": certificate.not_after,
        "auto_renew": certificate.auto_renew,
        "attempt": renewal.attempt,
        "next_try_at": renewal.next_try_at,
        "error": renewal.error,
    }
    body = CertificateExpiring(**said, percent_left=percent_left) if percent_left else CertificateExpired(**said)
    return _queued(body, certificate.id, f"{certificate.id}.{certificate.version}.{percent_left}", now)


def certificate_revoked(
    certificate: Certificate, version: Issued, revocation: Revocation, now: datetime
) -> OutboxEvent:
    """The event of a revoked version; once for each."""
    body = CertificateRevoked(
        certificate_id=certificate.id,
        order_id=version.order_id,
        account_id=version.account_id,
        domains=[str(each) for each in version.identifiers],
        version=version.version,
        is_current=version.version == certificate.version,
        serial_number=version.serial_number,
        fingerprint_sha256=version.fingerprint_sha256,
        reason=revocation.reason,
        origin=revocation.origin,
        revoked_at=revocation.at,
    )
    return _queued(body, certificate.id, f"{certificate.id}.{version.version}", now)


def certificate_deployed(certificate: Certificate, deployment: Deployment, now: datetime) -> OutboxEvent:
    """The event of a host that uses a version, or could not take it in use; each comes once."""
    body = CertificateDeployed(
        certificate_id=certificate.id,
        host=deployment.host,
        version=deployment.version,
        current_version=certificate.version,
        where=deployment.where,
        error=deployment.error,
    )
    # What callers choose comes last: no host's name can make the id another's.
    outcome = "used" if deployment.error is None else "failed"
    cause_id = f"{certificate.id}.{deployment.version}.{outcome}.{deployment.host}"
    return _queued(body, certificate.id, cause_id, now)


def certificate_deploy_overdue(certificate: Certificate, deployment: Deployment, now: datetime) -> OutboxEvent:
    """The event of a host that is behind; once for each version and host."""
    body = CertificateDeployOverdue(
        certificate_id=certificate.id,
        domains=[str(each) for each in certificate.identifiers],
        host=deployment.host,
        version=deployment.version,
        current_version=certificate.version,
        issued_at=certificate.issued_at,
        confirmed_at=deployment.confirmed_at,
        not_after=certificate.not_after,
    )
    return _queued(body, certificate.id, f"{certificate.id}.{certificate.version}.{deployment.host}", now)


def order_cancelled(order: Order, now: datetime) -> OutboxEvent:
    """The event of an order that a caller gave up."""
    body = OrderCancelled(
        order_id=order.id,
        account_id=order.account_id,
        domains=[str(each) for each in order.identifiers],
        renews=order.renews,
    )
    return _queued(body, order.id, order.id, now)


def order_failed(order: Order, now: datetime) -> OutboxEvent:
    """The event of an order that failed for good."""
    body = OrderFailed(
        order_id=order.id,
        account_id=order.account_id,
        domains=[str(each) for each in order.identifiers],
        error=order.error,
    )
    return _queued(body, order.id, order.id, now)


def account_created(account: Account, now: datetime) -> OutboxEvent:
    """The event of a registration that succeeded."""
    return _queued(AccountCreated(**_account(account)), account.id, account.id, now)


def account_deactivated(account: Account, now: datetime) -> OutboxEvent:
    """The event of an account that the CA refuses from now on; that is final (RFC 8555 section 7.3.6)."""
    return _queued(AccountDeactivated(**_account(account)), account.id, account.id, now)


def account_updated(account: Account, now: datetime) -> OutboxEvent:
    """The event of a change at the CA."""
    return _queued(AccountUpdated(**_account(account)), account.id, f"{account.id}.{_milliseconds(now)}", now)


def account_key_rotated(account: Account, now: datetime) -> OutboxEvent:
    """The event of a key change; once for each key."""
    return _queued(AccountKeyRotated(**_account(account)), account.id, f"{account.id}.{_milliseconds(now)}", now)


def account_terms_changed(account: Account, now: datetime) -> OutboxEvent:
    """The event of new terms; `account` as it is after they were noticed."""
    body = AccountTermsChanged(
        account_id=account.id,
        name=account.name,
        directory_url=account.directory_url,
        terms_of_service_url=account.terms_changed_to or "",
        previous_url=account.ca.terms_of_service if account.ca else None,
    )
    return _queued(body, account.id, f"{account.id}.{_milliseconds(now)}", now)


def account_action_resolved(account: Account, now: datetime) -> OutboxEvent:
    """The event of a CA that serves the account again."""
    body = AccountActionResolved(account_id=account.id, name=account.name)
    return _queued(body, account.id, f"{account.id}.{_milliseconds(now)}", now)


def _milliseconds(now: datetime) -> int:
    return int(now.timestamp() * 1000)


def account_action_required(account: Account, order: Order, trouble: Trouble, now: datetime) -> OutboxEvent:
    """The event of a CA that wants a person to act; once for each order and each thing it wants."""
    body = AccountActionRequired(
        account_id=account.id,
        order_id=order.id,
        detail=trouble.detail,
        instance=trouble.acme.instance if trouble.acme else None,
        terms_of_service_url=trouble.acme.terms_of_service_url if trouble.acme else None,
    )
    return _queued(body, account.id, f"{order.id}.{order.attempt}", now)


def audit_anchored(anchor: Anchor, now: datetime) -> OutboxEvent:
    """The event of an anchor; one for each moment it is told, since a repeated one says that nothing was added."""
    body = AuditAnchored(sequence=anchor.sequence, hash=anchor.hash)
    return _queued(body, "audit", f"audit.{anchor.sequence}.{_milliseconds(now)}", now)


def audit_write_failed(reason: str, since: datetime, waiting: int, lost: int, now: datetime) -> OutboxEvent:
    """The event of an audit log that cannot be written; once for each time it begins."""
    body = AuditWriteFailed(since=since, reason=reason, waiting=waiting, lost=lost)
    return _queued(body, "audit", f"audit.{_milliseconds(since)}", now)


def token_expiring(token: Token, days_left: int, now: datetime) -> OutboxEvent:
    """One announcement of the end of a token; each comes once for each secret."""
    body = TokenExpiring(
        token_id=token.id,
        name=token.name,
        expires_at=token.expires_at,
        days_left=days_left,
        last_used_at=token.last_used_at,
    )
    return _queued(body, token.id, f"{token.id}.{_milliseconds(token.expires_at)}.{days_left}", now)


def _account(account: Account) -> dict[str, Any]:
    return {
        "account_id": account.id,
        "name": account.name,
        "provider": account.provider,
        "environment": account.environment,
        "directory_url": account.directory_url,
        "account_url": account.url,
    }


def cloud_event_headers(event: OutboxEvent, source: str) -> dict[str, str]:
    """The headers of the message (CloudEvents NATS binding, binary mode): lower case, values percent-encoded."""
    attributes = {
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-source": source,
        "ce-type": event.type,
        "ce-subject": event.resource_id,
        "ce-time": event.time,
        "ce-datacontenttype": "application/json",
    }
    if event.traceparent is not None:
        # The extension "distributed tracing" of CloudEvents.
        attributes["ce-traceparent"] = event.traceparent
    encoded = {name: quote(value, safe="/:;,.+-_~@!$&'()*=") for name, value in attributes.items()}
    return {**encoded, "Content-Type": "application/json"}


def _queued(body: Event, resource_id: str, cause_id: str, now: datetime) -> OutboxEvent:
    # The id follows from what happened, so that telling it twice is seen to be the same event.
    return OutboxEvent(
        id=EventId(f"{cause_id}.{body.type}"),
        type=body.type,
        resource_id=resource_id,
        time=now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        data=_ENCODER.encode(body),
        traceparent=None if (trace := tracing.current()) is None else trace.traceparent,
    )
