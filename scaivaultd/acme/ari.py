"""What a CA suggests about renewal, and when to ask it again (ARI, RFC 9773). Pure: time and chance are handed in.

An answer that is wrong in any way counts as none, and the local rule of `renewal.py` decides; a
CA that talks nonsense here can make us renew early once, and late never.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec
from cryptography import x509

from scaivaultd.acme.wire import clean
from scaivaultd.model.errors import BackendRateLimited, CaMisbehaved, CaUnavailable, Timeout
from scaivaultd.model.resources import RenewalPoint, RenewalWindow

if TYPE_CHECKING:
    from scaivaultd.model.errors import ScaivaultError

POLL_SOONEST = timedelta(minutes=1)
POLL_LATEST = timedelta(days=1)
POLL_AFTER_LASTING_ERROR = timedelta(hours=6)
"""What RFC 9773 section 4.3.3 asks for; a tenth of the lifetime where that is less."""

_TEMPORARY_PAUSES = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=15))
_SHARE_OF_LIFETIME = 10


class RenewalInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer; `explanation_url` is a page for people that says why the window is where it is."""

    window: RenewalWindow
    explanation_url: str | None = None


def certificate_id_for_ari(leaf: x509.Certificate) -> str | None:
    """The name of a certificate in `renewalInfo` and `replaces` (RFC 9773 section 4.1).

    None where the certificate has no authority key identifier, or one that cannot be read: there
    is no ARI for it.
    """
    try:
        authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None
    if not authority.key_identifier:
        return None
    serial = leaf.serial_number
    # The content of a DER INTEGER: one more octet, 00, where the top bit would read as a sign.
    content = serial.to_bytes(serial.bit_length() // 8 + 1, "big", signed=True)
    return f"{_base64url(authority.key_identifier)}.{_base64url(content)}"


def renewal_info_from(body: bytes) -> RenewalInfo:
    """Read a renewalInfo answer (RFC 9773 section 4.2).

    Raises:
        CaMisbehaved: not a JSON object, or no usable window: a member missing or not a string, a
            time without offset, an end that is not after the start.
    """
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise CaMisbehaved(f"the CA's renewal information is not JSON: {error}") from error
    window = document.get("suggestedWindow") if isinstance(document, dict) else None
    if not isinstance(window, dict):
        raise CaMisbehaved("the CA's renewal information has no suggestedWindow")
    start, end = _moment(window, "start"), _moment(window, "end")
    if end <= start:
        raise CaMisbehaved(f"the CA's renewal window ends at {end.isoformat()}, not after its start")
    explanation = document.get("explanationURL")
    return RenewalInfo(
        window=RenewalWindow(start=start, end=end),
        explanation_url=clean(explanation) or None if isinstance(explanation, str) else None,
    )


def choose_point(
    window: RenewalWindow, previous: RenewalPoint | None, *, now: datetime, fraction: float
) -> RenewalPoint:
    """The moment to renew in this window, drawn evenly with `fraction` in [0, 1); `now` where that has passed.

    While the window stays what it was, so does the moment (RFC 9773 section 4.2): drawing again
    at every poll would crowd renewals at the start of the window. `previous` must be of the same
    certificate.
    """
    if previous is not None and previous.window == window:
        return previous
    drawn = window.start + (window.end - window.start) * fraction
    return RenewalPoint(window=window, moment=max(drawn, now))


def pause_after_answer(retry_after_seconds: float | None, *, lifetime: timedelta, fraction: float) -> timedelta:
    """How long to leave the CA alone after a usable answer: its Retry-After, within a minute and a day.

    It is the soonest and the latest time at once (RFC 9773 section 4.3.2), so there is no jitter
    and a short `lifetime` does not shorten it. Without one the window still counts, but the next
    look waits as after a lasting error (section 4.3.3).
    """
    if retry_after_seconds is None:
        return _after_lasting_error(lifetime, fraction)
    return _within_clamps(retry_after_seconds)


def pause_after_failure(error: ScaivaultError, *, failures: int, lifetime: timedelta, fraction: float) -> timedelta:
    """How long to wait after no answer, or none of use (RFC 9773 section 4.3.3).

    `failures` counts those in a row, this one included. A few quick tries for what may pass at
    once, then the pace for lasting errors; never above a tenth of the `lifetime`, never below a
    minute. A Retry-After that asks for more time gets it.
    """
    kind = failure_kind(error)
    if kind == "temporary" and failures <= len(_TEMPORARY_PAUSES):
        pause = _TEMPORARY_PAUSES[max(failures, 1) - 1] * (1 + fraction / 4)
        pause = min(pause, _ceiling(lifetime))
    else:
        pause = _after_lasting_error(lifetime, fraction)
    asked = error.retry_after if isinstance(error, CaUnavailable | BackendRateLimited) else None
    return pause if asked is None else max(pause, _within_clamps(asked))


def failure_kind(error: ScaivaultError) -> Literal["temporary", "lasting"]:
    """Whether a failed look may succeed soon (time-outs, 5xx, too many requests) or not (4xx, nonsense).

    A refused connection counts as temporary: our errors do not tell it from a time-out, and the
    few quick tries it gets cost little.
    """
    return "temporary" if isinstance(error, CaUnavailable | BackendRateLimited | Timeout) else "lasting"


def _after_lasting_error(lifetime: timedelta, fraction: float) -> timedelta:
    return min(POLL_AFTER_LASTING_ERROR * (1 + fraction / 10), _ceiling(lifetime))


def _ceiling(lifetime: timedelta) -> timedelta:
    # Six hours are nothing in ninety days and a sixth of a certificate of a day and a half. A
    # certificate of some minutes is better renewed by the local rule than asked about all the time.
    return max(lifetime / _SHARE_OF_LIFETIME, POLL_SOONEST)


def _within_clamps(seconds: float) -> timedelta:
    return timedelta(seconds=min(max(seconds, POLL_SOONEST.total_seconds()), POLL_LATEST.total_seconds()))


def _moment(window: dict[str, object], name: str) -> datetime:
    value = window.get(name)
    try:
        moment = msgspec.convert(value, datetime)
        if moment.tzinfo is None:
            raise CaMisbehaved(f"the {name} of the CA's renewal window has no offset from UTC")
        return moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError) as error:
        raise CaMisbehaved(f"the {name} of the CA's renewal window is missing or no RFC 3339 time") from error


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()
