"""What of a list its caller may see: asked for each item, since policies judge by names and accounts.

None stands for everything, so that whoever may see all pays nothing for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.api.gate import UNLIMITED
from scaivaultd.services.access_terms import (
    ANY_CERTIFICATE,
    account_ref,
    terms_of_certificate,
    terms_of_order,
    terms_of_version,
)

if TYPE_CHECKING:
    from scaivaultd.api.gate import Permits
    from scaivaultd.model.principals import Principal
    from scaivaultd.model.resources import Account, BulkRenewal, Certificate, CertificateVersion, Order
    from scaivaultd.services.documents import Sees
    from scaivaultd.services.ports import Store


def certificates(store: Store, permits: Permits, action: str = "cert.read") -> Sees[Certificate] | None:
    """Those that `action` may be done to."""
    if permits is UNLIMITED:
        return None

    async def sees(certificate: Certificate) -> bool:
        return permits.allows(action, certificate=await terms_of_certificate(store, certificate))

    return sees


def versions(store: Store, permits: Permits, certificate: Certificate) -> Sees[CertificateVersion] | None:
    """Those earlier ones of a certificate that may be read: they may have had other names."""
    if permits is UNLIMITED:
        return None

    async def sees(version: CertificateVersion) -> bool:
        return permits.allows("cert.read", certificate=await terms_of_version(store, certificate, version))

    return sees


def bulk_renewals(permits: Permits, caller: Principal) -> Sees[BulkRenewal] | None:
    """One's own; all of them for who may read every certificate, since they may be about any."""
    if permits is UNLIMITED or permits.allows("cert.read", certificate=ANY_CERTIFICATE):
        return None

    async def sees(bulk: BulkRenewal) -> bool:
        return bulk.requested_by is not None and str(bulk.requested_by) == str(caller)

    return sees


def orders(store: Store, permits: Permits) -> Sees[Order] | None:
    """Those that may be read."""
    if permits is UNLIMITED:
        return None

    async def sees(order: Order) -> bool:
        return permits.allows("order.read", certificate=await terms_of_order(store, order))

    return sees


def accounts(permits: Permits) -> Sees[Account] | None:
    """Those that may be read."""
    if permits is UNLIMITED:
        return None

    async def sees(account: Account) -> bool:
        return permits.allows("account.read", account=account_ref(account))

    return sees
