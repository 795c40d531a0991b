"""What happens to the `Renewal` document of a certificate: pure changes, committed by whoever causes them.

The order that brings a version, the scheduler, a revocation and an update all write it; each puts its
change into the same commit as what it reports. Invariants:

* it speaks of the current version only, and begins anew with each;
* `order_id` names at most one order, which is unfinished or was ended by the same commit that clears it;
* `next_try_at` stands only after a failure, and wins over the renewal moment.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme import renewal as rules
from scaivaultd.model.resources import Renewal

if TYPE_CHECKING:
    from datetime import datetime

    from scaivaultd.model.ids import BulkRenewalId, OrderId
    from scaivaultd.model.resources import Certificate, FailureKind, OrderCause, Trouble


def begun(certificate: Certificate, prior: Renewal | None, *, now: datetime, fraction: float) -> Renewal:
    """The document of a version that is there as of now; ARI is asked at once (RFC 9773 section 4.3)."""
    return Renewal(
        certificate_id=certificate.id,
        account_id=certificate.account_id,
        version=certificate.version,
        not_before=certificate.not_before,
        not_after=certificate.not_after,
        auto_renew=certificate.auto_renew,
        looked_at=certificate.not_before,
        fraction=fraction,
        renew_before_seconds=certificate.renew_before_seconds,
        ari_id=certificate.ari_id,
        poll_at=None if certificate.ari_id is None else now,
        hurried=_hurried(prior, now),
    )


def _hurried(prior: Renewal | None, now: datetime) -> int:
    if prior is None:
        return 0
    if prior.cause == "ari" and prior.point is not None and prior.point.window.end <= now:
        return prior.hurried + 1
    # Windows that were passed over leave no point: what was known of this CA's windows still holds.
    return prior.hurried if prior.ari_id is not None and prior.point is None else 0


def moment_of(renewal: Renewal) -> datetime | None:
    """When it is to be renewed by its dates; None when never by itself."""
    if not renewal.auto_renew or renewal.is_stopped:
        return None
    return rules.renewal_moment(
        renewal.not_before,
        renewal.not_after,
        window_point=renewal.point.moment if renewal.point else None,
        renew_before=_seconds(renewal.renew_before_seconds),
        fraction=renewal.fraction,
    )


def due_at(renewal: Renewal, now: datetime) -> datetime | None:
    """When its next order is to be made: after a failure the time for that, else its moment, or at once if it was
    asked for. None while an order is under way, or when never."""
    if renewal.order_id is not None or renewal.is_stopped:
        return None
    if renewal.next_try_at is not None:
        return renewal.next_try_at if renewal.auto_renew or renewal.is_due else None
    return now if renewal.is_due else moment_of(renewal)


def next_look_at(renewal: Renewal, now: datetime) -> datetime | None:
    """When somebody has to look at it next, for whatever reason; None when never again."""
    notice = rules.next_notice(renewal.not_before, renewal.not_after, looked_at=renewal.looked_at)
    moments = (due_at(renewal, now), renewal.poll_at, notice.at if notice else None)
    return min((each for each in moments if each is not None), default=None)


def asked_for(renewal: Renewal, cause: OrderCause, bulk_id: BulkRenewalId | None = None) -> Renewal:
    """To be renewed at once, and nothing remembered of earlier failures: somebody has asked for it."""
    return msgspec.structs.replace(
        renewal, is_due=True, is_stopped=False, cause=cause, bulk_id=bulk_id, attempt=0, next_try_at=None, error=None
    )


def under_way(renewal: Renewal, order_id: OrderId, cause: OrderCause) -> Renewal:
    """With an order that makes the next version."""
    return msgspec.structs.replace(renewal, order_id=order_id, cause=cause, next_try_at=None)


def next_try(
    renewal: Renewal, kind: FailureKind, *, retry_at: datetime | None, now: datetime, fraction: float
) -> datetime:
    """When it goes on after one more failure; `retry_at` is somebody else's word and wins where it is later."""
    return rules.next_attempt(
        renewal.attempt + 1,
        kind,
        retry_at=retry_at,
        not_after=renewal.not_after,
        lifetime=renewal.not_after - renewal.not_before,
        now=now,
        fraction=fraction,
    )


def set_back(renewal: Renewal, trouble: Trouble, next_try_at: datetime | None, *, goes_on: bool) -> Renewal:
    """After a failed attempt; `goes_on`: its order stays, and is tried again then."""
    return msgspec.structs.replace(
        renewal,
        attempt=renewal.attempt + 1,
        error=trouble,
        next_try_at=next_try_at,
        order_id=renewal.order_id if goes_on else None,
    )


def stopped(renewal: Renewal, trouble: Trouble | None) -> Renewal:
    """Never again by itself, until somebody asks for it."""
    return msgspec.structs.replace(
        renewal, is_stopped=True, is_due=False, order_id=None, next_try_at=None, error=trouble or renewal.error
    )


def _seconds(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
