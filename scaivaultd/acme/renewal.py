"""When a certificate is renewed, when a failed renewal is tried again, and when its end is announced.

Everything here follows from the certificate's own two dates, so sixty seconds and ten years go
the same way: every rule is a share of the actual lifetime. No clock and no chance but what is
handed in; `fraction` is a number in [0, 1), drawn once by the caller and stored with the result.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from scaivaultd.model.resources import FailureKind

SHORT_LIFETIME = timedelta(days=10)
"""Below this, half of the lifetime is kept in hand, not a third."""

_LEFT_LONG, _LEFT_SHORT = 3, 2
_LEFT_AT_LATEST = 6
_JITTER_SHARE = 20

_STEPS = (
    timedelta(minutes=1),
    timedelta(minutes=10),
    timedelta(minutes=60),
    timedelta(minutes=180),
    timedelta(hours=6),
)
_LEAST_PAUSE = timedelta(seconds=1)
_TRIES_IN_A_LIFETIME = 50
_LATE_SHARE = 4
_RETURN_JITTER = timedelta(minutes=1)

PercentLeft = Literal[25, 15, 5, 0]

_PERCENTS_LEFT: tuple[PercentLeft, ...] = (25, 15, 5, 0)


class ExpiryNotice(msgspec.Struct, frozen=True, kw_only=True):
    """One announcement of the end: `percent_left` of the lifetime at `at`; 0 means it has expired."""

    percent_left: PercentLeft
    at: datetime


def renewal_moment(
    not_before: datetime,
    not_after: datetime,
    *,
    window_point: datetime | None,
    renew_before: timedelta | None,
    fraction: float,
) -> datetime:
    """When to renew; a moment that has passed means now. Always within the certificate's life.

    With a `window_point` (ARI) at that point, but never with less than a sixth of the lifetime
    left. Without, when a third of the lifetime is left, or half of one below ten days, a little
    earlier by chance. `renew_before` replaces both rules; a window point before it still
    counts, because that is how a CA announces a revocation. A `renew_before` not shorter than the
    lifetime is passed over: obeyed, it would have the certificate renewed without end.
    """
    lifetime = not_after - not_before
    if renew_before is not None and renew_before < lifetime:
        own = _before(not_after, renew_before, fraction)
        moment = own if window_point is None else min(own, window_point)
    elif window_point is None:
        share = _LEFT_SHORT if lifetime < SHORT_LIFETIME else _LEFT_LONG
        moment = _before(not_after, lifetime / share, fraction)
    elif window_point <= not_after - lifetime / _LEFT_AT_LATEST:
        moment = window_point
    else:
        moment = _before(not_after, lifetime / _LEFT_AT_LATEST, fraction)
    return max(not_before, min(moment, not_after))


def _before(not_after: datetime, left: timedelta, fraction: float) -> datetime:
    # Earlier only: certificates issued in one minute must not come back in one.
    return not_after - left - left * fraction / _JITTER_SHARE


def next_attempt(
    failures: int,
    kind: FailureKind,
    *,
    retry_at: datetime | None,
    not_after: datetime,
    lifetime: timedelta,
    now: datetime,
    fraction: float,
) -> datetime:
    """When to try again after `failures` in a row, this one included; always after `now`.

    1, 10, 60, 180 minutes, then six hours, up to a fifth less by chance. A permanent cause goes to
    six hours at once and stays there, however short the lifetime: trying faster convinces nobody. A
    transient one waits no longer than a fiftieth of the lifetime, and in the last day no longer than a
    quarter of the time left, down to a minute. `retry_at` is the CA's word (Retry-After, a rate limit)
    and wins where it is later.
    """
    if kind == "permanent":
        pause = _STEPS[-1]
    else:
        pause = min(_STEPS[min(max(failures, 1), len(_STEPS)) - 1], _patience(lifetime, not_after - now))
    own = now + max(pause * (1 - fraction / 5), _LEAST_PAUSE)
    if retry_at is None or retry_at <= own:
        return own
    # Everybody was told the same time: come a little later, not all at once.
    return retry_at + min((retry_at - now) / 10, _RETURN_JITTER) * fraction


def _patience(lifetime: timedelta, left: timedelta) -> timedelta:
    pause = lifetime / _TRIES_IN_A_LIFETIME
    if left <= timedelta(0):
        # It has lapsed; hurry does not bring it back, and the name may be gone for good.
        return pause
    return min(pause, max(left / _LATE_SHARE, _STEPS[0]))


def expiry_notices(not_before: datetime, not_after: datetime) -> tuple[ExpiryNotice, ...]:
    """Every announcement of this certificate's end, the earliest first."""
    lifetime = not_after - not_before
    return tuple(ExpiryNotice(percent_left=each, at=not_after - lifetime * each / 100) for each in _PERCENTS_LEFT)


def notices_due(
    not_before: datetime, not_after: datetime, *, looked_at: datetime, now: datetime
) -> tuple[ExpiryNotice, ...]:
    """The announcements after `looked_at` and not after `now`.

    Each comes once and none is lost, whatever the clock does, as long as the caller keeps the latest
    `now` it ever looked at (`max(looked_at, now)`), and `not_before` for a certificate never
    looked at.
    """
    return tuple(each for each in expiry_notices(not_before, not_after) if looked_at < each.at <= now)


def next_notice(not_before: datetime, not_after: datetime, *, looked_at: datetime) -> ExpiryNotice | None:
    """The announcement to wait for; None when the last has been made."""
    return next((each for each in expiry_notices(not_before, not_after) if each.at > looked_at), None)
