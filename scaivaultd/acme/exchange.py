"""What an answer means beside its body: Retry-After, Link, and problem documents turned into our errors."""

from __future__ import annotations

import email.utils
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import urljoin

import msgspec

from scaivaultd.acme import wire
from scaivaultd.model.errors import (
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Problem,
    ScaivaultError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_A_CENTURY_SECONDS = 100 * 365 * 86_400
_NONCE = re.compile(r"[A-Za-z0-9_-]{1,1024}")
_LINK = re.compile(r"<([^<>]*)>\s*((?:;\s*[^\s=;,]+\s*(?:=\s*(?:\"[^\"]*\"|[^\s\",;]*)\s*)?)*)(?:,|$)")
_GENERAL_TYPES = frozenset({"malformed", "unauthorized", "conflict", "about:blank"})
_ABOUT_REPLACES = re.compile(r"\breplac|\bpredecessor|\bcert\s?id\b|\bARI\b", re.IGNORECASE)
_PARAMETER = re.compile(r";\s*([^\s=;,]+)\s*=\s*(?:\"([^\"]*)\"|([^\s\",;]*))")


class NotOffered(CaRefused):
    """The CA does not have that function at all: no URL in its directory, or 501. Asking again will not help."""

    title: ClassVar[str] = "The CA does not offer this"


class CaConflict(CaRefused):
    """409: what is asked for is there already, and `location` says where if the CA says.

    A key change meets it when the new key has an account (RFC 8555 section 7.3.5), a newOrder when the predecessor
    has a successor (RFC 9773 section 7.4); `problem` tells them apart.
    """

    title: ClassVar[str] = "The CA has it already"

    def __init__(self, detail: str, problem: Problem | None = None, *, location: str | None = None) -> None:
        super().__init__(detail, problem)
        self.location = location


class NotThereYet(CaRefused):
    """404 with a Retry-After: it may be there by then."""

    def __init__(self, detail: str, problem: Problem | None = None, *, retry_after: float) -> None:
        super().__init__(detail, problem)
        self.retry_after = retry_after


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP answer, read to its (bounded) end. Header names are lower case; a name may recur."""

    url: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header of that (lower-case) name."""
        return next((value for header, value in self.headers if header == name), None)

    @property
    def location(self) -> str | None:
        """A usable `Location`, byte for byte."""
        value = self.header("location")
        return value if value and value.isascii() else None

    @property
    def nonce(self) -> str | None:
        """A usable `Replay-Nonce`; a malformed one counts as absent (RFC 8555 section 6.5.1)."""
        value = self.header("replay-nonce")
        return value if value is not None and _NONCE.fullmatch(value) else None

    def links(self, relation: str) -> tuple[str, ...]:
        """Every target of `Link` headers with that relation, absolute (RFC 8288); what is no URL is left out."""
        targets = (
            _absolute(self.url, target)
            for name, value in self.headers
            if name == "link"
            for target, relations in _links(value)
            if relation in relations
        )
        return tuple(target for target in targets if target is not None)

    def retry_after(self, now: datetime) -> float | None:
        """Seconds until the CA wants to be asked again; None when it does not say or says nonsense.

        A date counts from the answer's own `Date`, so that a wrong clock here does no harm
        (RFC 9110 section 10.2.3). A date in the past is nonsense.
        """
        value = self.header("retry-after")
        if value is None:
            return None
        value = value.strip()
        if re.fullmatch(r"[0-9]{1,20}", value):
            return float(min(int(value), _A_CENTURY_SECONDS))
        moment = _http_date(value)
        if moment is None:
            return None
        seconds = (moment - (_http_date(self.header("date")) or now)).total_seconds()
        return min(seconds, _A_CENTURY_SECONDS) if seconds >= 0 else None


def _links(value: str) -> Iterator[tuple[str, frozenset[str]]]:
    for match in _LINK.finditer(value):
        for name, quoted, bare in _PARAMETER.findall(match[2]):
            if name.lower() == "rel":
                yield match[1], frozenset((quoted or bare).lower().split())
                break


def _absolute(base: str, target: str) -> str | None:
    try:
        return urljoin(base, target)
    except ValueError:
        return None


def _http_date(value: str | None) -> datetime | None:
    if not value:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    # asctime() dates carry no zone and mean UTC (RFC 9110 section 5.6.7).
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def is_bad_nonce(answer: Answer) -> bool:
    """Whether the CA only disliked the nonce (RFC 8555 section 6.5): weather, not a failure."""
    if answer.status < 400:
        return False
    problem = wire.problem_from(answer.body)
    return problem is not None and problem.name == "badNonce"


def error_from(answer: Answer, what: str, now: datetime) -> ScaivaultError:
    """The error that a refused request stands for; `what` names the request for the person who reads it."""
    if answer.status < 400:
        return CaMisbehaved(
            f"the CA answered {answer.status} to {what}; redirects cannot be followed, because the signature "
            "covers the URL (RFC 8555 section 6.4)"
            if 300 <= answer.status < 400
            else f"the CA answered {answer.status} to {what}"
        )
    problem = _problem_of(answer)
    said = f"{problem.name}: {problem.detail}" if problem.detail else problem.name
    retry_after = answer.retry_after(now)
    if answer.status == 429 or problem.name == "rateLimited":
        return BackendRateLimited(
            f"the CA limits {what}: {said}",
            problem,
            retry_after=retry_after,
            retry_at=None if retry_after is None else now + timedelta(seconds=min(retry_after, 10 * 365 * 86_400)),
        )
    if answer.status == 501:
        # Not weather: the CA will not learn it while we wait.
        return NotOffered(f"the CA does not offer {what}: {said}", problem)
    if answer.status >= 500 or answer.status in (408, 425):
        detail = f"the CA answered {answer.status} to {what}: {said}"
        return CaUnavailable(detail, retry_after, turned_away=answer.status == 503)
    if answer.status == 409:
        return CaConflict(f"the CA refused {what}: {said}", problem, location=answer.location)
    if answer.status == 404 and retry_after is not None:
        return NotThereYet(f"the CA refused {what}: {said}", problem, retry_after=retry_after)
    return CaRefused(f"the CA refused {what}: {said}", problem)


def is_about_replaces(refusal: CaRefused) -> bool:
    """Whether a newOrder was refused for its `replaces` only, so that the same order without it may be made.

    Besides alreadyReplaced (RFC 9773 section 7.4) CAs answer with general types and say in words that the predecessor
    is unknown, somebody else's, or shares no name. A rate limit is never about it.
    """
    problem = refusal.problem
    if problem is None or isinstance(refusal, BackendRateLimited | CaMisbehaved):
        return False
    if problem.name == "alreadyReplaced":
        return True
    return problem.name in _GENERAL_TYPES and _ABOUT_REPLACES.search(problem.detail) is not None


def _problem_of(answer: Answer) -> Problem:
    read = wire.problem_from(answer.body)
    if read is None:
        read = Problem(type="about:blank", detail=f"HTTP status {answer.status} without a problem document")
    return msgspec.structs.replace(
        read,
        status=answer.status,
        help_url=_link_of(answer, "help"),
        terms_of_service_url=_link_of(answer, "terms-of-service"),
    )


def _link_of(answer: Answer, relation: str) -> str | None:
    return next((wire.clean(target) for target in answer.links(relation) if target.isascii()), None)
