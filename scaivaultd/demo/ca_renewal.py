"""Renewal information of the development CA (RFC 9773 section 4): windows by rule or certificate, and odd answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from scaivaultd.demo.ca_exchange import Answer, Headers, http_date, timestamp
from scaivaultd.demo.ca_lineage import Lineage
from scaivaultd.demo.ca_problems import malformed
from scaivaultd.demo.ca_state import Issued

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.demo.ca_state import Ledger

OddWindow = Literal[
    "end_before_start",
    "empty",
    "naive",
    "no_end",
    "not_strings",
    "null",
    "absent",
    "not_a_date",
    "offset",
    "fraction",
    "extra_members",
]
"""How an answer may be odd; the last three are lawful, all others are to be taken for no answer."""

_LONGEST_RETRY_SECONDS = 21_600


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """When a certificate should be renewed, and where the reason may be read."""

    start: datetime
    end: datetime
    explanation_url: str | None = None


def last_third(issued: Issued) -> Window:
    """From a third of the lifetime before the end; a revoked certificate's window is the hour before its revocation."""
    if issued.revoked_at is not None:
        return Window(start=issued.revoked_at - timedelta(hours=1), end=issued.revoked_at)
    ends_at = issued.certificate.not_valid_after_utc
    lifetime = ends_at - issued.certificate.not_valid_before_utc
    return Window(start=ends_at - lifetime / 3, end=ends_at - lifetime / 3 + lifetime / 45)


# Not frozen, as `Misbehaviour`: tests move windows while the CA runs.
class RenewalPolicy(msgspec.Struct, kw_only=True):
    """What renewalInfo says. Errors, delays and garbage come by `Misbehaviour.script["renewalInfo"]`."""

    is_offered: bool = True
    """Whether the directory names renewalInfo; else it answers 404 and `replaces` is ignored, as by older CAs."""
    rule: Callable[[Issued], Window] = last_third
    """The window of a certificate that has none of its own."""
    windows: dict[int, Window] = msgspec.field(default_factory=dict)
    """Windows by serial number; they win over the rule, and over a revocation."""
    retry_after_seconds: int | None = None
    """None: a tenth of the lifetime, between a second and six hours."""
    retry_after_form: Literal["seconds", "date", "none", "garbage"] = "seconds"
    """`none` and `garbage` are long-term errors (RFC 9773 section 4.3.3)."""
    odd: OddWindow | None = None
    """How all answers are odd."""
    trailing_slash: bool = False
    """The directory's address ends in a slash, which a client must not double."""


class RenewalInfos:
    """Answers GET for one certificate; unsigned, as RFC 9773 section 4.1 has it."""

    def __init__(self, ledger: Ledger, lineage: Lineage, policy: RenewalPolicy) -> None:
        self._ledger = ledger
        self._lineage = lineage
        self._policy = policy

    def document(self, _method: str, cert_id: str) -> Answer:
        """The suggested window of the certificate with this CertID."""
        if not self._policy.is_offered:
            raise malformed("renewalInfo is not here", status=404)
        issued = self._lineage.by_cert_id(cert_id)
        self._judge(issued)
        window = self._policy.windows.get(issued.serial) or self._policy.rule(issued)
        return Answer(document=_document(window, self._policy.odd), headers=self._pace(issued))

    def _judge(self, issued: Issued) -> None:
        """Clients must stop asking at some point (RFC 9773 section 4.3)."""
        conduct = self._ledger.conduct
        if issued.certificate.not_valid_after_utc < self._ledger.clock.now():
            conduct.violate("ari-ended", f"{issued.serial:x} has expired")
        elif issued.is_client_revoked:
            conduct.violate("ari-ended", f"{issued.serial:x} was revoked by a client")
        elif self._lineage.is_succeeded(issued):
            conduct.violate("ari-ended", f"{issued.serial:x} has been replaced")

    def _pace(self, issued: Issued) -> Headers:
        seconds = self._policy.retry_after_seconds
        if seconds is None:
            lifetime = issued.certificate.not_valid_after_utc - issued.certificate.not_valid_before_utc
            seconds = max(1, min(_LONGEST_RETRY_SECONDS, int(lifetime.total_seconds() / 10)))
        match self._policy.retry_after_form:
            case "none":
                return ()
            case "garbage":
                return (("Retry-After", "in a while"),)
            case "date":
                return (("Retry-After", http_date(self._ledger.clock.now() + timedelta(seconds=seconds))),)
            case "seconds":
                return (("Retry-After", str(seconds)),)


def _document(window: Window, odd: OddWindow | None) -> dict[str, Any]:
    document: dict[str, Any] = {"suggestedWindow": _bent(window, odd)}
    if odd == "absent":
        document = {}
    if odd == "extra_members":
        document["comment"] = {"nested": [None, 1]}
    if window.explanation_url is not None:
        document["explanationURL"] = window.explanation_url
    return document


def _bent(window: Window, odd: OddWindow | None) -> Any:
    start, end = timestamp(window.start), timestamp(window.end)
    match odd:
        case "null":
            return None
        case "no_end":
            return {"start": start}
        case "not_a_date":
            return {"start": start, "end": "tomorrow"}
        case "end_before_start":
            return {"start": end, "end": start}
        case "empty":
            return {"start": start, "end": start}
        case "naive":
            return {"start": start.removesuffix("Z"), "end": end.removesuffix("Z")}
        case "not_strings":
            return {"start": int(window.start.timestamp()), "end": int(window.end.timestamp())}
        case "offset":
            return {"start": _elsewhere(window.start), "end": _elsewhere(window.end)}
        case "fraction":
            return {"start": _fraction(window.start), "end": _fraction(window.end)}
        case _:
            return {"start": start, "end": end}


def _elsewhere(moment: datetime) -> str:
    """The same moment, told by a clock five and a half hours ahead."""
    return (moment + timedelta(hours=5, minutes=30)).isoformat().replace("+00:00", "+05:30")


def _fraction(moment: datetime) -> str:
    """Nanoseconds, as Go's servers write them."""
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06}789Z"
