"""AWS's errors as ours, by their codes: several say by 400 what other services say by 401, 403, 409 or 429."""

from __future__ import annotations

from scaivaultd.plugin import PermanentError, ProviderAuthError, ProviderError, RateLimited, TransientError
from scaivaultd.plugin.http import RETRY_STATUS, HttpAnswer
from scaivaultd_contrib_dns.route53_xml import AwsFault, fault

THROTTLED = frozenset(
    {
        "BandwidthLimitExceeded",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
# A second batch for a zone while one is still being taken; and STS that could not ask an identity provider.
PASSING = frozenset({"IDPCommunicationError", "PriorRequestNotComplete", "RequestTimeout", "RequestTimeoutException"})
# Their messages go on to show what was sent, or what should have been: the session token, the Authorization header.
TELLTALE = frozenset({"IncompleteSignature", "InvalidSignatureException", "SignatureDoesNotMatch"})
REFUSED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "InvalidIdentityToken",
        "InvalidSignatureException",
        "MissingAuthenticationToken",
        "NotAuthorized",
        "OptInRequired",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


class AccessDenied(ProviderAuthError):
    """The keys are good, but a right is missing."""


def aws_error(answer: HttpAnswer) -> ProviderError | None:
    """What an answer of Route 53 or STS means; None when it holds no error document."""
    found = fault(answer.body)
    return None if found is None else error_of(found, answer)


def error_of(found: AwsFault, answer: HttpAnswer) -> ProviderError:
    """What an error means that was read already."""
    text = described(found, answer)
    if found.code in THROTTLED or answer.status == 429:
        return RateLimited(f"AWS asks to slow down ({text})")
    if found.code in PASSING:
        return TransientError(text)
    if found.code in ("AccessDenied", "AccessDeniedException"):
        return AccessDenied(f"a right is missing ({text})")
    if found.code in REFUSED or answer.status in (401, 403):
        return ProviderAuthError(f"AWS refuses the credentials ({text})")
    if answer.status in RETRY_STATUS or answer.status >= 500:
        return TransientError(f"AWS failed ({text})")
    return PermanentError(text, found.code)


def described(found: AwsFault, answer: HttpAnswer) -> str:
    """Code, message and request id, as the service words them."""
    request_id = found.request_id or answer.headers.get("x-amzn-requestid", "")
    message = _safe(found)
    if "Signature expired" in message or "not yet current" in message or found.code == "RequestTimeTooSkewed":
        message += "; compare this machine's clock"
    return f"{found.code}: {message}{f' [request {request_id}]' if request_id else ''}"


def _safe(found: AwsFault) -> str:
    first = found.message.strip().partition("\n")[0]
    if found.code not in TELLTALE:
        return first
    return first.partition(". ")[0].partition("AWS4-HMAC")[0].partition("Authorization")[0].rstrip(" '\"=:")
