"""Documents as they stand in the store, for judging access to them, and an audit log that remembers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.principals import Principal
from scaivaultd.model.resources import (
    Account,
    AccountName,
    BulkRenewal,
    Certificate,
    CertificateVersion,
    Order,
    RevocationRequest,
)
from scaivaultd.services.documents import (
    ACCOUNT_NAMES,
    ACCOUNTS,
    BULK_RENEWALS,
    CERTIFICATES,
    ORDERS,
    REVOCATIONS,
    VERSIONS,
)

if TYPE_CHECKING:
    from scaivaultd.model.access import AuditEntry, Token
    from scaivaultd.services.ports import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WEB = Principal(kind="token", id="Ab3dEf9h", name="web-ci")
ROOT = Principal(kind="unix", id="0")
LE = "acme_01k2v7m0e8zq3c9x5w1r4t6y8b"
ZEROSSL = "acme_01k2v7m0e8zq3c9x5w1r4t6y8c"


class Records:
    """An audit log in memory; while `is_full` nothing can be written durably."""

    def __init__(self) -> None:
        self.soon: list[AuditEntry] = []
        self.durable: list[AuditEntry] = []
        self.is_full = False

    def record(self, entry: AuditEntry) -> None:
        self.soon.append(entry)

    async def record_durably(self, entry: AuditEntry) -> None:
        if self.is_full:
            raise StorageUnavailable("the audit log cannot be written: no space left")
        self.durable.append(entry)


class TokensAtHand(dict[str, "Token"]):
    """API tokens by id."""

    def find(self, token_id: str) -> Token | None:
        return self.get(token_id)


class Shelves:
    """Puts documents into a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def account(self, account_id: str = LE, name: str = "le") -> str:
        account = Account(
            id=account_id,  # type: ignore[arg-type]
            name=name,
            provider="custom",
            environment="production",
            directory_url="https://ca.test/directory",
            status="valid",
            key_id="key_1",  # type: ignore[arg-type]
            key_thumbprint="thumbprint",
            created_at=NOW,
        )
        named = AccountName(name=name, account_id=account.id)
        await self.store.commit([ACCOUNTS.put(account), ACCOUNT_NAMES.put(named)])
        return account_id

    async def certificate(self, certificate_id: str, *names: str, **changes: Any) -> Certificate:
        certificate = Certificate(
            **{
                **self._issued(*names),
                "id": certificate_id,
                "challenge_type": "dns-01",
                "auto_renew": True,
                "created_at": NOW,
                **changes,
            }
        )
        await self.store.commit([CERTIFICATES.put(certificate)])
        return certificate

    async def version(self, certificate_id: str, version: int, *names: str, **changes: Any) -> None:
        earlier = CertificateVersion(
            **{**self._issued(*names), "certificate_id": certificate_id, "version": version, **changes}
        )
        await self.store.commit([VERSIONS.put(earlier)])

    async def order(self, order_id: str, *names: str, **changes: Any) -> None:
        order = Order(
            **{
                "id": order_id,
                "account_id": LE,
                "identifiers": parse_identifiers(names, public_ca=False),
                "challenge_type": "dns-01",
                "key_type": "ec-p256",
                "auto_renew": True,
                "status": "pending",
                "created_at": NOW,
                "give_up_at": NOW,
                **changes,
            }
        )
        await self.store.commit([ORDERS.put(order)])

    async def revocation(self, revocation_id: str, certificate_id: str, version: int) -> None:
        revocation = RevocationRequest(
            id=revocation_id,  # type: ignore[arg-type]
            status="pending",
            certificate_id=certificate_id,  # type: ignore[arg-type]
            version=version,
            serial_number="1A",
            reason="unspecified",
            use_acme=True,
            replace=False,
            created_at=NOW,
            give_up_at=NOW,
        )
        await self.store.commit([REVOCATIONS.put(revocation)])

    async def bulk_renewal(self, bulk_id: str, requested_by: Principal | None) -> None:
        bulk = BulkRenewal(
            id=bulk_id,  # type: ignore[arg-type]
            status="running",
            created_at=NOW,
            per_minute=1,
            requested_by=requested_by,
        )
        await self.store.commit([BULK_RENEWALS.put(bulk)])

    @staticmethod
    def _issued(*names: str) -> dict[str, Any]:
        return {
            "order_id": "acme_order_1",
            "account_id": LE,
            "identifiers": parse_identifiers(names, public_ca=False),
            "key_type": "ec-p256",
            "key_id": "key_1",
            "version": 1,
            "status": "valid",
            "serial_number": "1A",
            "fingerprint_sha256": "00",
            "issuer": "CA",
            "not_before": NOW,
            "not_after": NOW + timedelta(days=90),
            "chain_pem": "",
        }
