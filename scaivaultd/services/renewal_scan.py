"""Reading every `Renewal`, page by page, and making those of certificates from before there were any."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509

from scaivaultd.acme.ari import certificate_id_for_ari
from scaivaultd.model.errors import RevisionConflict
from scaivaultd.model.ids import CertificateId
from scaivaultd.services import renewals
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, RENEWALS, Shelf
from scaivaultd.services.renewal_changes import as_of
from scaivaultd.services.renewal_rights import is_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.resources import Certificate, Renewal
    from scaivaultd.model.storage import Put
    from scaivaultd.services.ports import Store

_RENEWALS_PAGE = 500
_CERTIFICATES_PAGE = 100


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """Says that every certificate has its `Renewal`: from then on each gets one with its first version."""

    name: str
    at: datetime


COMPLETED: Shelf[Completed] = Shelf("completed", Completed, lambda each: each.name, lambda _: {})
_NAME = "renewals"


async def scan(
    store: Store, clock: Clock, log: FilteringBoundLogger, found: Callable[[CertificateId, float], None]
) -> None:
    """Call `found` with every certificate that has to be looked at, and when (Unix time).

    A document that does not decode is named as due now: looking at it will say what is wrong, again and again.
    """
    cursor: str | None = None
    while True:
        page = await RENEWALS.page(store, where={}, cursor=cursor, limit=_RENEWALS_PAGE)
        now = clock.now()
        for each in page.items:
            at = _look_at(as_of(each.value, now), now)
            if at is not None:
                found(each.value.certificate_id, at.timestamp())
        for key in page.unreadable:
            log.error("document.unreadable", key=key)
            found(CertificateId(key.removeprefix(RENEWALS.key(""))), now.timestamp())
        if (cursor := page.next_cursor) is None:
            return


def _look_at(renewal: Renewal, now: datetime) -> datetime | None:
    if renewal.order_id is not None:
        return now  # whether that order is still what it says
    if is_blocked(renewal):
        return now  # policies may have changed while nobody was there
    at = renewals.due_at(renewal, now)
    if renewal.poll_at is not None and (at is None or renewal.poll_at < at):
        at = renewal.poll_at
    if at is not None and at < renewal.not_after - (renewal.not_after - renewal.not_before) / 2:
        return at  # as for almost all: no announcement comes before that, and the start need not work them out
    return renewals.next_look_at(renewal, now)


async def complete(store: Store, clock: Clock, randomness: Randomness, log: FilteringBoundLogger) -> None:
    """Make the `Renewal` of every certificate that has none; once for a store, for it reads all certificates.

    Certificates and accounts of older stores are written anew, so that they are found by all they can be found by now.
    """
    if await COMPLETED.get(store, _NAME) is not None:
        return
    for account in await ACCOUNTS.all(store, log):
        await _write_anew(store, [ACCOUNTS.put(account.value, account.revision)])
    cursor: str | None = None
    while True:
        page = await CERTIFICATES.page(store, where={}, cursor=cursor, limit=_CERTIFICATES_PAGE)
        await _begin(store, [each.value for each in page.items], clock, randomness)
        await _write_anew(store, [CERTIFICATES.put(each.value, each.revision) for each in page.items])
        for key in page.unreadable:
            log.error("document.unreadable", key=key)
        if (cursor := page.next_cursor) is None:
            break
    await store.commit([COMPLETED.put(Completed(name=_NAME, at=clock.now()), None)])


async def _write_anew(store: Store, changes: Sequence[Put]) -> None:
    # Somebody who has written one of them meanwhile has done it for that one; the others of a page may stay unfound.
    if changes:
        with suppress(RevisionConflict):
            await store.commit(changes)


async def _begin(store: Store, certificates: Sequence[Certificate], clock: Clock, randomness: Randomness) -> None:
    while True:
        missing = [each for each in certificates if await store.get(RENEWALS.key(each.id)) is None]
        if not missing:
            return
        now = clock.now()
        begun = [renewals.begun(_with_ari_id(each), None, now=now, fraction=randomness.fraction()) for each in missing]
        try:
            await store.commit([RENEWALS.put(each) for each in begun])
        except RevisionConflict:
            continue  # an order brought one of them a version, and with it its Renewal
        return


def _with_ari_id(certificate: Certificate) -> Certificate:
    if certificate.ari_id is not None:
        return certificate
    try:
        leaf = x509.load_pem_x509_certificate(certificate.chain_pem.encode())
    except ValueError:
        return certificate
    return msgspec.structs.replace(certificate, ari_id=certificate_id_for_ari(leaf))
