"""Events: complete in themselves, the same event for the same fact, and headers any client can read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import msgspec
import pytest

from scaivaultd.api import events
from scaivaultd.model.access import Anchor, Token
from scaivaultd.model.ids import AccountId, CertificateId, EventId, KeyId, OrderId
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.resources import (
    Account,
    Certificate,
    Deployment,
    ExternalAccount,
    Order,
    Renewal,
    Revocation,
    Trouble,
)
from scaivaultd.model.storage import OutboxEvent

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
NAMES = parse_identifiers(["a.test", "*.b.test"], public_ca=False)
ORDER = Order(
    id=OrderId("acme_order_1"),
    account_id=AccountId("acme_1"),
    identifiers=NAMES,
    challenge_type="dns-01",
    key_type="ec-p256",
    auto_renew=True,
    status="invalid",
    created_at=NOW,
    give_up_at=NOW,
    key_id=KeyId("key_1"),
    error=Trouble(code="ca_error", detail="no"),
)
CERTIFICATE = Certificate(
    id=CertificateId("cert_1"),
    order_id=ORDER.id,
    account_id=ORDER.account_id,
    identifiers=NAMES,
    challenge_type="dns-01",
    key_type="ec-p256",
    key_id=KeyId("key_1"),
    version=1,
    status="valid",
    auto_renew=True,
    serial_number="01:02",
    fingerprint_sha256="ab",
    issuer="Test",
    not_before=NOW,
    not_after=NOW + timedelta(days=90),
    chain_pem="PEM",
    created_at=NOW,
)
ACCOUNT = Account(
    id=AccountId("acme_1"),
    name="n",
    provider="custom",
    directory_url="https://ca.test/",
    environment="production",
    status="valid",
    key_id=KeyId("key_2"),
    key_thumbprint="t",
    created_at=NOW,
    url="https://ca.test/account/1",
    eab=ExternalAccount(key_id="k", sealed_hmac_key=b"sealed"),
)
RENEWAL = Renewal(
    certificate_id=CERTIFICATE.id,
    account_id=ORDER.account_id,
    version=1,
    not_before=NOW,
    not_after=NOW + timedelta(days=90),
    auto_renew=True,
    looked_at=NOW,
    fraction=0.5,
    attempt=2,
    error=Trouble(code="ca_unavailable", detail="away", kind="transient", fault="ca"),
)
NEXT = msgspec.structs.replace(CERTIFICATE, version=2, serial_number="03")
TROUBLE = Trouble(code="ca_error", detail="no", kind="permanent", fault="ca", remedy="do")
TOKEN = Token(
    id="Ab3dEf9h",
    name="web-ci",
    secret_sha256=b"digest",
    created_at=NOW,
    created_by="unix:0",
    expires_at=NOW + timedelta(days=14),
)
DEPLOYMENT = Deployment(
    certificate_id=CERTIFICATE.id,
    host="web-1",
    version=1,
    first_seen_at=NOW,
    confirmed_at=NOW,
    confirmed_by="token:Ab3dEf9h",
    where="/etc/ssl/www",
)
ALL = {
    "certificate.imported": (events.certificate_imported(CERTIFICATE, "certbot:/etc/letsencrypt", NOW), "cert_1"),
    "certificate.deployed": (events.certificate_deployed(CERTIFICATE, DEPLOYMENT, NOW), "cert_1"),
    "certificate.deploy_overdue": (events.certificate_deploy_overdue(NEXT, DEPLOYMENT, NOW), "cert_1"),
    "certificate.renewed": (events.certificate_renewed(NEXT, CERTIFICATE, ORDER, NOW), "cert_1"),
    "certificate.renewal_failed": (
        events.certificate_renewal_failed(CERTIFICATE, RENEWAL, ORDER, TROUBLE, NOW, None),
        "cert_1",
    ),
    "certificate.renewal_blocked": (events.certificate_renewal_blocked(CERTIFICATE, TROUBLE, NOW), "cert_1"),
    "certificate.expiring": (events.certificate_expiring(CERTIFICATE, RENEWAL, 25, NOW), "cert_1"),
    "certificate.expired": (events.certificate_expiring(CERTIFICATE, RENEWAL, 0, NOW), "cert_1"),
    "certificate.revoked": (
        events.certificate_revoked(CERTIFICATE, CERTIFICATE, Revocation(at=NOW, origin="acme"), NOW),
        "cert_1",
    ),
    "order.cancelled": (events.order_cancelled(ORDER, NOW), "acme_order_1"),
    "account.updated": (events.account_updated(ACCOUNT, NOW), "acme_1"),
    "account.key_rotated": (events.account_key_rotated(ACCOUNT, NOW), "acme_1"),
    "account.terms_changed": (events.account_terms_changed(ACCOUNT, NOW), "acme_1"),
    "account.action_resolved": (events.account_action_resolved(ACCOUNT, NOW), "acme_1"),
    "certificate.issued": (events.certificate_issued(CERTIFICATE, ORDER, NOW), "cert_1"),
    "order.failed": (events.order_failed(ORDER, NOW), "acme_order_1"),
    "account.created": (events.account_created(ACCOUNT, NOW), "acme_1"),
    "account.deactivated": (events.account_deactivated(ACCOUNT, NOW), "acme_1"),
    "account.action_required": (
        events.account_action_required(ACCOUNT, ORDER, Trouble(code="ca_error", detail="new terms"), NOW),
        "acme_1",
    ),
    "audit.anchored": (events.audit_anchored(Anchor(sequence=7, hash="ab" * 32), NOW), "audit"),
    "audit.write_failed": (events.audit_write_failed("full", NOW, 3, 0, NOW), "audit"),
    "token.expiring": (events.token_expiring(TOKEN, 14, NOW), "Ab3dEf9h"),
}


def test_every_event_there_is_is_tested_here() -> None:
    """A new event without a test would be published unseen."""
    assert set(ALL) == {each.type for each in events.EVENTS}
    assert all(each.summary for each in events.EVENTS)


@pytest.mark.parametrize("kind", sorted(ALL))
def test_an_event_names_its_resource_and_its_moment(kind: str) -> None:
    """The subject is made of both; the time is RFC 3339 in UTC with `Z`."""
    event, resource_id = ALL[kind]
    assert (event.type, event.resource_id) == (kind, resource_id)
    assert event.time == "2026-01-02T03:04:05.678Z"


@pytest.mark.parametrize("kind", sorted(ALL))
def test_no_event_holds_a_secret_or_leads_to_one(kind: str) -> None:
    """Events are read by everybody on the bus."""
    body = ALL[kind][0].data.decode()
    for secret in ("key_1", "key_2", "sealed", "PEM", "thumbprint", '"token"', "ZGlnZXN0"):
        assert secret not in body


def test_an_issued_certificate_is_told_completely() -> None:
    """A subscriber acts on it without asking back."""
    body = json.loads(ALL["certificate.issued"][0].data)
    assert body["domains"] == [str(each) for each in NAMES]
    assert (body["certificate_id"], body["order_id"], body["account_id"]) == ("cert_1", "acme_order_1", "acme_1")
    assert (body["version"], body["previous_version"]) == (1, None)
    assert (body["serial_number"], body["fingerprint_sha256"], body["issuer"]) == ("01:02", "ab", "Test")
    assert body["not_after"].endswith("Z")
    assert body["key_type"] == "ec-p256"


def test_the_same_fact_told_twice_is_the_same_event() -> None:
    """An attempt that is repeated after a crash must not be heard as a second certificate."""
    again = msgspec.structs.replace(CERTIFICATE, id=CertificateId("cert_2"))
    later = NOW + timedelta(hours=1)
    first = events.certificate_issued(CERTIFICATE, ORDER, NOW)
    assert events.certificate_issued(again, ORDER, later).id == first.id
    ids = {event.id for event, _ in ALL.values()}
    assert len(ids) == len(ALL)


def headers(**changes: str) -> dict[str, str]:
    fields = {
        "id": "id.1",
        "type": "order.failed",
        "resource_id": "acme_order_1",
        "time": "2026-01-02T03:04:05.678Z",
        **changes,
    }
    event = OutboxEvent(**{**fields, "id": EventId(fields["id"])}, data=b"{}")  # type: ignore[arg-type]
    return events.cloud_event_headers(event, "/scaivault/node_1")


def test_the_headers_are_those_of_cloudevents_in_binary_mode() -> None:
    """Any CloudEvents library reads them (CloudEvents 1.0, NATS binding)."""
    assert headers() == {
        "ce-specversion": "1.0",
        "ce-id": "id.1",
        "ce-source": "/scaivault/node_1",
        "ce-type": "order.failed",
        "ce-subject": "acme_order_1",
        "ce-time": "2026-01-02T03:04:05.678Z",
        "ce-datacontenttype": "application/json",
        "Content-Type": "application/json",
    }


@pytest.mark.parametrize(
    "value", ['a "quoted" b', "100%", "b\u00fccher", "a\r\nNats-Msg-Id: x", "\u20ac\U0001f600", "a\x7f"]
)
def test_values_are_encoded_so_that_no_header_can_break_out(value: str) -> None:
    """A line end in a value would be a header of its own."""
    encoded = headers(resource_id=value)["ce-subject"]
    assert unquote(encoded) == value
    assert encoded.isascii()
    assert encoded.isprintable()
    assert not set(encoded) & set(' "\r\n')


def test_what_a_host_says_is_told_once_for_each_version_and_outcome() -> None:
    """Confirmed again it is no news; that a reload failed, and that it worked later, are two events."""
    again = msgspec.structs.replace(DEPLOYMENT, confirmed_at=NOW + timedelta(hours=1))
    failed = msgspec.structs.replace(DEPLOYMENT, error="exit status 1")
    ids = [
        events.certificate_deployed(CERTIFICATE, each, NOW).id
        for each in (DEPLOYMENT, again, failed, msgspec.structs.replace(DEPLOYMENT, version=2))
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    overdue = [events.certificate_deploy_overdue(NEXT, each, NOW).id for each in (DEPLOYMENT, again)]
    assert overdue[0] == overdue[1]


@pytest.mark.parametrize("host", ["used.web", "failed.web", "1.used.web"])
def test_no_host_can_take_the_id_of_anothers_event(host: str) -> None:
    """A host names itself, and an event whose id was seen is dropped."""
    others = [
        events.certificate_deployed(CERTIFICATE, msgspec.structs.replace(DEPLOYMENT, host="web", error=error), NOW).id
        for error in (None, "no")
    ]
    mine = events.certificate_deployed(CERTIFICATE, msgspec.structs.replace(DEPLOYMENT, host=host), NOW).id
    assert mine not in others
