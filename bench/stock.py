"""A store full of certificates, written through the real store in the real documents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from scaivaultd.demo.ca_x509 import https_material
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.ids import IdMaker
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.resources import Account, CaDescription, Certificate, NamePointer, Order, Renewal, SealedKey
from scaivaultd.model.storage import ABSENT
from scaivaultd.services.documents import (
    ACCOUNTS,
    CERTIFICATES,
    KEYS,
    NAME_POINTERS,
    ORDERS,
    RENEWALS,
    name_pointer_id,
)
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scaivaultd.model.ids import AccountId, CertificateId
    from scaivaultd.model.storage import Put

BATCH = 90
"""Certificates in one commit: five documents each, and a commit holds 500."""
LIFETIME = timedelta(days=90)
_RANDOM = SystemRandomness()


async def fill(path: Path, count: int) -> Sequence[CertificateId]:
    """Write so many certificates, their ages spread over the first half of their lives; none is due for renewal."""
    clock = SystemClock()
    store = await SqliteStore.open(path, clock=clock, log=structlog.get_logger())
    try:
        return await Stock(store, IdMaker(clock, _RANDOM), clock.now()).write(count)
    finally:
        await store.close()


class Stock:
    """One account and its certificates, in one store."""

    def __init__(self, store: SqliteStore, ids: IdMaker, now: datetime) -> None:
        self._store = store
        self._ids = ids
        self._now = now
        leaf, issuer = https_material("127.0.0.1")[0], https_material("127.0.0.1")[0]
        # Nobody reads it; what counts is its length.
        self._chain_pem = leaf + issuer + issuer

    async def write(self, count: int) -> Sequence[CertificateId]:
        """All of them, oldest first."""
        account = self._account()
        await self._store.commit([ACCOUNTS.put(account)])
        ids: list[CertificateId] = []
        for start in range(0, count, BATCH):
            changes: list[Put] = []
            for number in range(start, min(start + BATCH, count)):
                age = LIFETIME / 2 * (1 - number / count)
                certificate_id, documents = self._certificate(account.id, number, self._now - age)
                ids.append(certificate_id)
                changes.extend(documents)
            await self._store.commit(changes)
        return ids

    def _account(self) -> Account:
        # A CA without renewal information: nothing at its address is ever asked.
        return Account(
            id=self._ids.account(),
            name="stock",
            provider="custom",
            environment="production",
            directory_url="https://127.0.0.1:9/dir",
            status="valid",
            key_id=self._ids.key(),
            key_thumbprint="stock",
            created_at=self._now,
            url="https://127.0.0.1:9/account/1",
            ca=CaDescription(),
            terms_of_service_agreed=True,
        )

    def _certificate(
        self, account_id: AccountId, number: int, issued_at: datetime
    ) -> tuple[CertificateId, Sequence[Put]]:
        identifiers = parse_identifiers([f"www{number}.example.test"], public_ca=False)
        key = SealedKey(
            id=self._ids.key(), key_type="ec-p256", sealed=_RANDOM.token_bytes(10) * 26, created_at=issued_at
        )
        order = Order(
            id=self._ids.order(),
            account_id=account_id,
            identifiers=identifiers,
            challenge_type="http-01",
            key_type="ec-p256",
            auto_renew=True,
            status="valid",
            created_at=issued_at,
            give_up_at=issued_at + timedelta(hours=1),
        )
        certificate = Certificate(
            id=self._ids.certificate(),
            order_id=order.id,
            account_id=account_id,
            identifiers=identifiers,
            challenge_type="http-01",
            key_type="ec-p256",
            key_id=key.id,
            version=1,
            status="valid",
            auto_renew=True,
            serial_number=":".join(f"{byte:02X}" for byte in _RANDOM.token_bytes(10)),
            fingerprint_sha256=_RANDOM.token_bytes(10).hex() * 3,
            issuer="CN=Stock",
            not_before=issued_at,
            not_after=issued_at + LIFETIME,
            chain_pem=self._chain_pem,
            created_at=issued_at,
            issued_at=issued_at,
        )
        renewal = Renewal(
            certificate_id=certificate.id,
            account_id=account_id,
            version=1,
            not_before=certificate.not_before,
            not_after=certificate.not_after,
            auto_renew=True,
            looked_at=self._now.astimezone(UTC),
            fraction=_RANDOM.fraction(),
        )
        pointer = NamePointer(certificate_id=certificate.id, version=1)
        return certificate.id, (
            KEYS.put(key),
            ORDERS.put(order),
            CERTIFICATES.put(certificate),
            RENEWALS.put(renewal),
            NAME_POINTERS.put_at(name_pointer_id(identifiers, "ec-p256"), pointer, ABSENT),
        )
