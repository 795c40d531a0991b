"""What policies judge of certificates and orders: their names, and how they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.access import AccountRef, CertificateTerms
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import terms_in, terms_of
from scaivaultd.services.documents import ACCOUNTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.model.resources import Account, Certificate, Issued, Order, Terms
    from scaivaultd.services.ports import Store

ANY_NAME = Identifier("dns", "any-name-there-is.invalid")
"""Nobody has it: only who may have every name may have this one."""
ANY_CERTIFICATE = CertificateTerms(
    names=(ANY_NAME,), accounts=(AccountRef(None, ""),), challenge_type="dns-01", key_type="ec-p256"
)
"""Only who may do something to every certificate may do it to this one."""


def account_ref(account: Account) -> AccountRef:
    """An account that is there."""
    return AccountRef(account.id, account.name)


def unnamed(account: AccountRef) -> AccountRef:
    """The same for somebody who knows it by id only, and is told no name."""
    return AccountRef(account.id, account.id or account.name)


async def account_refs(store: Store, account_ids: Iterable[str]) -> tuple[AccountRef, ...]:
    """Accounts by their ids. One that is gone has no name that a policy could mean."""
    found = []
    for each in account_ids:
        account = await ACCOUNTS.get(store, each)
        found.append(AccountRef(each, each) if account is None else account_ref(account.value))
    return tuple(found)


async def terms_as_ordered(store: Store, terms: Terms) -> CertificateTerms:
    """The terms of an order that has yet to be made."""
    return CertificateTerms(
        names=terms.identifiers,
        accounts=await account_refs(store, terms.accounts),
        challenge_type=terms.challenge_type,
        key_type=terms.key_type,
    )


async def terms_of_order(store: Store, order: Order) -> CertificateTerms:
    """An order, whichever account it is tried with now."""
    return await terms_as_ordered(store, terms_in(order))


async def terms_of_certificate(store: Store, certificate: Certificate) -> CertificateTerms:
    """A certificate with all names that are shown of it: those it has, and those that its next version will have."""
    terms = await terms_as_ordered(store, terms_of(certificate))
    return msgspec.structs.replace(terms, names=tuple(dict.fromkeys((*certificate.identifiers, *terms.names))))


async def terms_of_version(store: Store, certificate: Certificate, version: Issued) -> CertificateTerms:
    """One version of a certificate, which may have other names than the current one."""
    return CertificateTerms(
        names=version.identifiers,
        accounts=await account_refs(store, [version.account_id]),
        challenge_type=terms_of(certificate).challenge_type,
        key_type=version.key_type,
    )
