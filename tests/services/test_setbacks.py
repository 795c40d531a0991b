"""What follows from an error, as a table of error, memory and verdict."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scaivaultd.model.errors import (
    WIRE_ERRORS,
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Conflict,
    Internal,
    Problem,
    ScaivaultError,
    SecretNotFound,
    StorageUnavailable,
    Timeout,
)
from scaivaultd.services.setbacks import MISBEHAVED_MAX, Memory, judge, trouble_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = Problem(type="urn:ietf:params:acme:error:rateLimited", detail="too many certificates for example.org")

EXTRA: dict[str, tuple[Any, ...]] = {
    "rate_limited": (1,),
    "dns_error": ("no_zone",),
    "dns_propagation_timeout": ((),),
}


def memory(attempt: int = 0, misbehaved: int = 0, hours: float = 24) -> Memory:
    return Memory(attempt=attempt, misbehaved=misbehaved, give_up_at=NOW + timedelta(hours=hours))


def pause(error: ScaivaultError, before: Memory, fraction: float = 0.0) -> float | None:
    """Seconds until the next try, None when there is none."""
    verdict = judge(error, before, now=NOW, fraction=fraction)
    return None if verdict.next_try_at is None else (verdict.next_try_at - NOW).total_seconds()


@pytest.mark.parametrize(
    ("error", "before", "seconds"),
    [
        (CaUnavailable("down"), memory(), 1),
        (CaUnavailable("down"), memory(attempt=3), 15),
        (CaUnavailable("down"), memory(attempt=7), 300),
        (CaUnavailable("down"), memory(attempt=400), 300),
        (CaUnavailable("down", 0.5), memory(), 1),
        (CaUnavailable("down", 90), memory(), 90),
        (CaUnavailable("down", 90), memory(attempt=7), 300),
        (CaUnavailable("down", 86_400 * 2), memory(), None),
        (CaUnavailable("down"), memory(hours=0), None),
        (BackendRateLimited("slow down"), memory(), 60),
        (BackendRateLimited("slow down"), memory(attempt=7), 300),
        (BackendRateLimited("slow down", retry_after=3), memory(), 3),
        (BackendRateLimited("slow down", retry_after=0), memory(), 1),
        (BackendRateLimited("slow down", retry_after=0), memory(attempt=7), 30),
        (CaRefused("visit a page", Problem(type="urn:ietf:params:acme:error:userActionRequired")), memory(), 3600),
        (BackendRateLimited("slow down", retry_after=7200), memory(), 7200),
        (BackendRateLimited("slow down", retry_after=86_400 * 7), memory(), None),
        (CaRefused("no"), memory(), None),
        (Conflict("not now"), memory(), None),
        (SecretNotFound("not there"), memory(), None),
        (Timeout("not in place in time"), memory(), 1),
        (StorageUnavailable("full"), memory(), 1),
        (CaMisbehaved("rubbish"), memory(), 1),
        (CaMisbehaved("rubbish"), memory(attempt=4, misbehaved=MISBEHAVED_MAX - 2), 30),
        (CaMisbehaved("rubbish"), memory(misbehaved=MISBEHAVED_MAX - 1), None),
        (Internal("ours"), memory(misbehaved=MISBEHAVED_MAX - 2), 1),
        (Internal("ours"), memory(misbehaved=MISBEHAVED_MAX - 1), None),
        (CaUnavailable("down"), memory(misbehaved=MISBEHAVED_MAX), 1),
    ],
)
def test_when_an_error_is_tried_again(error: ScaivaultError, before: Memory, seconds: float | None) -> None:
    """Too eager annoys the CA, too timid leaves a service without its certificate."""
    assert pause(error, before) == seconds


@pytest.mark.parametrize("error", [CaMisbehaved("rubbish"), Internal("ours"), CaUnavailable("down"), CaRefused("no")])
def test_only_misbehaviour_and_our_own_faults_use_up_the_misbehaviours(error: ScaivaultError) -> None:
    """A CA that is down for an hour has not broken the protocol once."""
    verdict = judge(error, memory(attempt=2, misbehaved=1), now=NOW, fraction=0)
    assert verdict.attempt == 3
    assert verdict.misbehaved == (2 if isinstance(error, CaMisbehaved | Internal) else 1)


def test_jitter_only_ever_lengthens_a_pause() -> None:
    """A thousand orders set back together must not come back together, nor before the CA's Retry-After."""
    limited = BackendRateLimited("slow down", retry_after=100)
    assert pause(limited, memory(), fraction=0.0) == 100
    assert pause(limited, memory(), fraction=0.9) == pytest.approx(122.5)


def test_jitter_is_small_beside_a_long_pause_and_does_not_use_up_our_patience() -> None:
    """A limit of a day must not become a day and six hours, nor a refusal by an accident of chance."""
    limited = BackendRateLimited("slow down", retry_after=86_400)
    waited = pause(limited, memory(hours=24), fraction=0.99)
    assert waited is not None
    assert 86_400 < waited <= 86_400 + 60


def test_the_cas_own_words_limit_and_time_are_kept_for_the_caller() -> None:
    """`backend_rate_limited` without the limit and the moment leaves a person guessing when to come back."""
    verdict = judge(BackendRateLimited("slow down", LIMIT, retry_after=600), memory(), now=NOW, fraction=0)
    trouble = verdict.trouble
    assert (trouble.code, trouble.limit, trouble.retry_after) == ("backend_rate_limited", LIMIT.detail, 600)
    assert trouble.retry_at == verdict.next_try_at == NOW + timedelta(seconds=600)
    assert trouble.acme == LIMIT
    assert trouble.retryable


def test_a_limit_beyond_our_patience_still_says_when_the_ca_may_be_asked() -> None:
    """The order fails, but its owner wants to know when to order anew."""
    then = NOW + timedelta(days=7)
    error = BackendRateLimited("slow down", LIMIT, retry_after=604_800, retry_at=then)
    trouble = judge(error, memory(), now=NOW, fraction=0).trouble
    assert trouble.retry_at == then
    assert not trouble.retryable


@pytest.mark.parametrize("kind", WIRE_ERRORS, ids=lambda kind: kind.__name__)
def test_a_trouble_carries_the_code_its_error_has_on_the_wire(kind: type[ScaivaultError]) -> None:
    """Orders show the same codes as replies: one list to program against."""
    error = kind("why", *EXTRA.get(kind.code, ()))
    assert trouble_of(error, None).code == kind.code
