"""Errors as Google's APIs put them: a status, and a reason that says more.

The status alone misleads: 403 stands for a missing right as well as for asking too fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scaivaultd.plugin import PermanentError, ProviderError, RateLimited
from scaivaultd.plugin.http import HttpAnswer, error_by_status

THROTTLED = frozenset(
    {
        "rateLimitExceeded",
        "userRateLimitExceeded",
        "quotaExceeded",
        "dailyLimitExceeded",
        "RATE_LIMIT_EXCEEDED",
        "RESOURCE_EXHAUSTED",
    }
)
CNAME_IN_THE_WAY = "cnameResourceRecordSetConflict"


def google_error(answer: HttpAnswer) -> ProviderError:
    """What an answer that is not 2xx means."""
    reasons = list(_reasons(answer))
    detail = _message(answer)
    code = reasons[0] if reasons else None
    if answer.status in (403, 429) and THROTTLED.intersection(reasons):
        return RateLimited(f"Google asks to slow down (HTTP {answer.status} {code}: {detail})")
    if CNAME_IN_THE_WAY in reasons:
        return PermanentError(
            f"a CNAME stands at the name, so no TXT record can: set follow_cname to true, or remove it ({detail})",
            CNAME_IN_THE_WAY,
        )
    return error_by_status(answer, detail, code)


def _reasons(answer: HttpAnswer) -> Iterator[str]:
    """Every reason in the error, the most telling first."""
    error = _error(answer)
    if isinstance(error, str):
        yield error
    if not isinstance(error, dict):
        return
    for members in (error.get("errors"), error.get("details")):
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict) and isinstance(member.get("reason"), str):
                yield member["reason"]
    if isinstance(error.get("status"), str):
        yield error["status"]


def _message(answer: HttpAnswer) -> str:
    error = _error(answer)
    if not isinstance(error, dict):
        return ""
    text = error.get("message")
    errors = error.get("errors")
    first = next((each for each in errors if isinstance(each, dict)), {}) if isinstance(errors, list) else {}
    return " ".join(str(text or first.get("message") or "").split())[:400]


def _error(answer: HttpAnswer) -> Any:
    body = answer.json()
    return body.get("error", body) if isinstance(body, dict) else None
