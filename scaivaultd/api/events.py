"""Events: facts in the past tense, complete in themselves, never holding a secret.

On NATS each is a CloudEvents 1.0 message in binary mode at `<events_root>.<type>.<resource id>`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

import msgspec

from scaivaultd.model.ids import EventId
from scaivaultd.model.resources import Environment, KeyType, Provider, Trouble
from scaivaultd.model.storage import OutboxEvent

if TYPE_CHECKING:
    from scaivaultd.model.resources import Account, Certificate, Order

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


EVENTS: tuple[type[Event], ...] = (
    CertificateIssued,
    OrderFailed,
    AccountCreated,
    AccountDeactivated,
    AccountActionRequired,
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
    )
    return _queued(body, certificate.id, order.id, now)


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
    )
