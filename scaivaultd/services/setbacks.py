"""What follows from an error: try again when, or give up. Pure; the memory stands in the order itself."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from scaivaultd.acme.causes import is_paused
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    ChallengeFailed,
    DnsError,
    DnsPropagationTimeout,
    DnsProviderError,
    Internal,
    PreflightFailed,
    ScaivaultError,
)
from scaivaultd.model.resources import IdentifierTrouble, Trouble

MISBEHAVED_MAX = 5
"""How often a CA may break the protocol in one order before we believe it means it."""

_PAUSES_SECONDS = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_RATE_LIMIT_PAUSE_SECONDS = 60.0
_RATE_LIMIT_FLOOR_SECONDS = 30.0
_JITTER_MAX_SECONDS = 30.0
_PERSON_PAUSE_SECONDS = 3600.0


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """How it went so far: setbacks in all, those that were the CA's misbehaviour, and the end of patience."""

    attempt: int
    misbehaved: int
    give_up_at: datetime


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: `next_try_at` None means it has failed for good."""

    trouble: Trouble
    attempt: int
    misbehaved: int
    next_try_at: datetime | None


def judge(error: ScaivaultError, memory: Memory, *, now: datetime, fraction: float) -> Verdict:
    """Weigh an error against what was before; `fraction` in [0, 1) is the jitter's chance."""
    attempt = memory.attempt + 1
    misbehaved = memory.misbehaved + isinstance(error, CaMisbehaved | Internal)
    next_try_at: datetime | None = None
    pause = _pause(error, attempt)
    if isinstance(error, CaRefused) and needs_person(error):
        # Nothing is wrong with what was asked: it goes on by itself when somebody has acted, however late.
        return Verdict(
            trouble=trouble_of(error, now + timedelta(seconds=pause)),
            attempt=attempt,
            misbehaved=misbehaved,
            next_try_at=now + timedelta(seconds=pause),
        )
    # A CA that names a time beyond our patience has said no; the jitter is ours and does not count.
    if may_go_on(error, misbehaved) and now + timedelta(seconds=pause) <= memory.give_up_at:
        next_try_at = now + timedelta(seconds=pause + fraction * min(pause / 4, _JITTER_MAX_SECONDS))
    return Verdict(
        trouble=trouble_of(error, next_try_at),
        attempt=attempt,
        misbehaved=misbehaved,
        next_try_at=next_try_at,
    )


def needs_person(error: CaRefused) -> bool:
    """Whether the CA waits for its customer to visit a page (RFC 8555 section 7.3.3)."""
    return error.problem is not None and error.problem.name == "userActionRequired"


def trouble_of(error: ScaivaultError, retry_at: datetime | None) -> Trouble:
    """The error as it is kept and shown."""
    problem = error.problem if isinstance(error, CaRefused | AccountUnusable) else None
    limited = isinstance(error, BackendRateLimited)
    return Trouble(
        code=error.code,
        detail=error.detail,
        retryable=retry_at is not None,
        acme=problem,
        limit=problem.detail if limited and problem is not None else None,
        identifiers=_identifiers(error),
        retry_after=getattr(error, "retry_after", None),
        retry_at=retry_at or (error.retry_at if isinstance(error, BackendRateLimited) else None),
    )


def _identifiers(error: ScaivaultError) -> tuple[IdentifierTrouble, ...]:
    if error.identifier is None:
        return ()
    servers = error.verdicts if isinstance(error, DnsPropagationTimeout) else ()
    return (IdentifierTrouble(identifier=error.identifier, type=error.code, detail=error.detail, servers=servers),)


def may_go_on(error: ScaivaultError, misbehaved: int) -> bool:
    """Whether the same order may still bring a certificate; `misbehaved` includes this error."""
    match error:
        case CaRefused(problem=problem) if problem is not None and is_paused(problem):
            return False
        case CaMisbehaved() | Internal():
            return misbehaved < MISBEHAVED_MAX
        case DnsError():
            return error.reason == "unreachable"
        case DnsProviderError():
            return not error.is_final
        case ChallengeFailed() | PreflightFailed():
            return error.may_pass
        case _:
            return error.retryable


def _pause(error: ScaivaultError, attempt: int) -> float:
    pause = _PAUSES_SECONDS[min(attempt, len(_PAUSES_SECONDS)) - 1]
    if isinstance(error, CaRefused) and needs_person(error):
        return _PERSON_PAUSE_SECONDS
    if isinstance(error, BackendRateLimited):
        if error.retry_after is None:
            return max(pause, _RATE_LIMIT_PAUSE_SECONDS)
        # Its word counts, but one that says "at once" again and again is not taken at it.
        return max(min(pause, _RATE_LIMIT_FLOOR_SECONDS), error.retry_after)
    if isinstance(error, CaUnavailable | DnsProviderError) and error.retry_after is not None:
        return max(pause, error.retry_after)
    return pause
