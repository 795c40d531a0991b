"""Cloudflare's API v4: the calls that are needed, their documents, and what their errors mean.

The HTTP status of an error says little here (the same fault comes as 400 or 403); its code does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import idna
import msgspec

from scaivaultd.plugin import (
    Clock,
    LostAnswer,
    PermanentError,
    ProviderAuthError,
    ProviderError,
    RateLimited,
    TransientError,
    normal_name,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, decoded, error_by_status, quoted

ZONES_PER_PAGE = 50
RECORDS_PER_PAGE = 100
PAGES_MAX = 1000
LIST_LAG_SECONDS = 1.0
COMMENT = "ACME challenge, removed when validated"

DUPLICATE_CODES = frozenset({"81057", "81058"})
GONE_CODES = frozenset({"81044"})
NO_SUCH_ZONE_CODES = frozenset({"7003"})
OCCUPIED_CODES = frozenset({"81053", "81054"})
MALFORMED_TOKEN_CODES = frozenset({"6003", "6103", "6111"})
AUTH_CODES = MALFORMED_TOKEN_CODES | {"1000", "9103", "9106", "9109", "10000", "10001"}
THROTTLED_CODES = frozenset({"971"})


class Entry(Protocol):
    """What lists are made of."""

    @property
    def id(self) -> str | int | None:
        """The service's id; a text, by all documentation."""
        ...


SERVICE = "Cloudflare"
T = TypeVar("T")
E = TypeVar("E", bound=Entry)

# The API's documents. Every member may be missing or null: only what a decision needs is looked at.


class Fault(msgspec.Struct, frozen=True):
    """One entry of `errors`; the real reason is often in its chain."""

    code: int | str | None = None
    message: str | None = None
    error_chain: list[Fault | None] | None = None


class Paging(msgspec.Struct, frozen=True):
    """`result_info`; absent in some answers."""

    total_pages: float | None = None
    total_count: float | None = None

    def is_last(self, page: int, found: int) -> bool | None:
        """Whether `page` is the last one when `found` entries are; None when it does not say."""
        if self.total_pages is not None:
            return page >= self.total_pages
        return found >= self.total_count if self.total_count is not None else None


class ZoneEntry(msgspec.Struct, frozen=True):
    """A zone as listed. `type` internal is a private one, of a resolver and not of the world."""

    id: str | int | None = None
    name: str | None = None
    status: str | None = None
    type: str | None = None
    name_servers: list[str | None] | None = None


class RecordEntry(msgspec.Struct, frozen=True):
    """A record as listed; `content` is as its writer put it, with quotes or without. 1 as TTL means automatic."""

    id: str | int | None = None
    name: str | None = None
    type: str | None = None
    content: str | None = None
    ttl: float | None = None


class TokenEntry(msgspec.Struct, frozen=True):
    """What the service says of the token that asks."""

    status: str | None = None
    expires_on: str | None = None


class Envelope(msgspec.Struct, Generic[T], frozen=True):
    """What every answer is wrapped in."""

    success: bool | None = None
    errors: list[Fault | None] | None = None
    result: T | msgspec.UnsetType | None = msgspec.UNSET
    result_info: Paging | None = None

    def given(self) -> T | None:
        """What was asked for; None as well where the answer is silent about it."""
        return None if isinstance(self.result, msgspec.UnsetType) else self.result


class CloudflareApi:
    """The calls that are needed, their paging, and nothing decided."""

    def __init__(self, http: HttpApi, clock: Clock) -> None:
        self.http = http
        self._clock = clock

    async def zones(self, filters: Mapping[str, str]) -> list[ZoneEntry]:
        """All zones that the token sees and that fit the filters (`name`, `account.id`)."""
        return await self._all_pages("/zones", filters, ZONES_PER_PAGE, Envelope[list[ZoneEntry | None]]) or []

    async def zone_count(self, filters: Mapping[str, str]) -> int:
        """How many zones the token sees."""
        answer = await self.http.call("GET", "/zones", query={**filters, "page": 1, "per_page": ZONES_PER_PAGE})
        envelope = _decoded(answer, Envelope[list[ZoneEntry | None]])
        total = envelope.result_info.total_count if envelope.result_info else None
        return len(_present(envelope.given())) if total is None else int(total)

    async def zone(self, zone_id: str) -> ZoneEntry | None:
        """One zone; None when there is none of that id."""
        answer = await self.http.call("GET", f"/zones/{quoted(zone_id)}", accept={404})
        return None if answer.status == 404 else _decoded(answer, Envelope[ZoneEntry]).given()

    async def txt_records(self, zone_id: str, name: str) -> list[RecordEntry] | None:
        """All TXT records of exactly this name; None when the zone is not there."""
        found = await self._records(zone_id, {"type": "TXT", "name.exact": name})
        if found is None:
            # A zone that was just made may not be known everywhere yet.
            await self._clock.sleep(LIST_LAG_SECONDS)
            found = await self._records(zone_id, {"type": "TXT", "name.exact": name})
        if found is None:
            return None
        # A filter that an older gateway does not know would be ignored, not refused.
        return [each for each in found if is_txt_of(each, name)]

    async def some_records(self, zone_id: str, count: int) -> list[RecordEntry]:
        """The first few records of a zone, of any type."""
        answer = await self.http.call("GET", _records_path(zone_id), query={"page": 1, "per_page": count})
        return _present(_listed(_decoded(answer, Envelope[list[RecordEntry | None]])))

    async def create_txt(self, zone_id: str, name: str, value: str, ttl: int) -> RecordEntry:
        """Make one record; `ttl` in seconds.

        Raises:
            LostAnswer: it may be there now.
            PermanentError: with the service's code, those of duplicates too.
        """
        record = {"type": "TXT", "name": name, "content": f'"{value}"', "ttl": ttl, "comment": COMMENT}
        answer = await self.http.call("POST", _records_path(zone_id), json=record, repeatable=False)
        try:
            created = _decoded(answer, Envelope[RecordEntry]).given()
        except TransientError as error:
            raise LostAnswer(error.detail, error.retry_after) from None
        return created or RecordEntry()

    async def record(self, zone_id: str, record_id: str) -> RecordEntry | None:
        """One record; None when there is none of that id, or the service does not say."""
        try:
            answer = await self.http.call("GET", f"{_records_path(zone_id)}/{quoted(record_id)}")
        except PermanentError:
            return None
        return _decoded(answer, Envelope[RecordEntry]).given()

    async def delete(self, zone_id: str, record_id: str) -> None:
        """Delete one record; one that is gone is no error."""
        try:
            await self.http.call("DELETE", f"{_records_path(zone_id)}/{quoted(record_id)}", accept={404})
        except PermanentError as error:
            if error.code not in GONE_CODES:
                raise

    async def token(self) -> TokenEntry:
        """What the service says of the token."""
        answer = await self.http.call("GET", "/user/tokens/verify")
        return _decoded(answer, Envelope[TokenEntry]).given() or TokenEntry()

    async def _records(self, zone_id: str, filters: Mapping[str, str]) -> list[RecordEntry] | None:
        shape = Envelope[list[RecordEntry | None]]
        try:
            return await self._all_pages(_records_path(zone_id), filters, RECORDS_PER_PAGE, shape)
        except PermanentError as error:
            if error.code in NO_SUCH_ZONE_CODES:
                return None
            raise

    async def _all_pages(
        self, path: str, filters: Mapping[str, str], size: int, shape: type[Envelope[list[E | None]]]
    ) -> list[E] | None:
        """Every entry of every page; None for a 404. Without any total, until a page is short or brings nothing new."""
        found: dict[str, E] = {}
        longest = 0
        for page in range(1, PAGES_MAX + 1):
            query: dict[str, str | int] = {**filters, "page": page, "per_page": size}
            try:
                answer = await self.http.call("GET", path, query=query, accept={404})
            except PermanentError:
                if page == 1:
                    raise
                break  # behind the last page, asked for because nothing tells which that is
            if not answer.ok:
                return None if page == 1 else list(found.values())
            envelope = _decoded(answer, shape)
            entries, before = _listed(envelope) or [], len(found)
            found.update({str(each.id): each for each in _present(entries) if each.id})
            is_last = envelope.result_info.is_last(page, len(found)) if envelope.result_info else None
            if len(found) == before or is_last or (is_last is None and len(entries) < longest):
                break
            longest = max(longest, len(entries))
        return list(found.values())


def error_from(answer: HttpAnswer) -> ProviderError | None:
    """An error answer by its codes; None when it is not in the service's format (a gateway's HTML)."""
    try:
        envelope = msgspec.json.decode(answer.body, type=Envelope[Any], strict=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return _error_of(answer, envelope)


def _error_of(answer: HttpAnswer, envelope: Envelope[Any]) -> ProviderError:
    faults = list(_flat(envelope.errors))
    codes = [str(each.code) for each in faults if each.code is not None]
    text = _text(answer, faults)
    if answer.status == 429 or THROTTLED_CODES.intersection(codes):
        return RateLimited(f"Cloudflare asks to slow down ({text})", _seconds_until_allowed(answer))
    if AUTH_CODES.intersection(codes):
        return ProviderAuthError(_refused(codes, text))
    if OCCUPIED_CODES.intersection(codes):
        return PermanentError(_occupied(text), codes[0])
    # The codes of duplicates and of what is gone must be seen wherever they stand in the chain.
    known = [each for each in codes if each in DUPLICATE_CODES | GONE_CODES | NO_SUCH_ZONE_CODES]
    code = (known or codes or [str(answer.status)])[0]
    if not known and (answer.status in (401, 403, 408) or answer.status >= 500):
        return error_by_status(answer, text, code)
    return PermanentError(f"Cloudflare refuses: {text}", code)


def _refused(codes: Sequence[str], text: str) -> str:
    if MALFORMED_TOKEN_CODES.intersection(codes):
        return f"the secret is no API token, perhaps a global API key or cut off ({text})"
    if "9109" in codes:
        return f"Cloudflare does not know the token, or the zone is outside of its scope ({text})"
    return f"Cloudflare refuses the token, or it lacks Zone:DNS:Edit or Zone:Zone:Read ({text})"


def _occupied(text: str) -> str:
    return (
        "a CNAME or address record stands at this name, so no TXT record can be added; if it is the one of "
        f"Cloudflare's own certificates (DCV delegation), remove that delegation first ({text})"
    )


def _flat(faults: Iterable[Fault | None] | None, depth: int = 0) -> Iterator[Fault]:
    for fault in _present(faults):
        yield fault
        if depth < 5:
            yield from _flat(fault.error_chain, depth + 1)


def _text(answer: HttpAnswer, faults: Sequence[Fault]) -> str:
    said = "; ".join(f"{each.code}: {' '.join((each.message or '').split())[:200]}" for each in faults[:5])
    ray = answer.headers.get("cf-ray", "")
    return f"HTTP {answer.status}{f', {said}' if said else ''}{f', cf-ray {ray[:64]}' if ray else ''}"


def _seconds_until_allowed(answer: HttpAnswer) -> float | None:
    """From `Ratelimit: "default";r=0;t=30`, which is there when `Retry-After` is not."""
    if "retry-after" in answer.headers:
        return None
    match = re.search(r"\br=0\b.*\bt=(\d{1,6})\b", answer.headers.get("ratelimit", ""))
    return float(match[1]) if match else None


def _decoded(answer: HttpAnswer, shape: type[Envelope[T]]) -> Envelope[T]:
    """Read an answer that is 2xx.

    Raises:
        LostAnswer: it is something else than documented.
        ProviderError: it says `success: false` although its status is 2xx.
    """
    envelope = decoded(answer, shape, SERVICE)
    if envelope.success is False:
        raise _error_of(answer, envelope)
    return envelope


def _listed(envelope: Envelope[list[E | None]]) -> list[E | None] | None:
    """The entries of a list; an answer that is silent about them does not say that there are none.

    Raises:
        LostAnswer: it is silent.
    """
    if isinstance(envelope.result, msgspec.UnsetType):
        raise LostAnswer("Cloudflare answers something else than documented (no `result`)")
    return envelope.result


def _present(entries: Iterable[T | None] | None) -> list[T]:
    return [each for each in entries or () if each is not None]


def _records_path(zone_id: str) -> str:
    return f"/zones/{quoted(zone_id)}/dns_records"


def is_txt_of(record: RecordEntry, name: str) -> bool:
    """Whether it is a TXT record of this name."""
    return record.type in (None, "TXT") and is_same_name(record.name, name)


def is_same_name(found: str | None, name: str) -> bool:
    """Whether an entry is of this name; one that says none was asked for by name."""
    return found is None or ascii_name(found) == normal_name(name)


def ascii_name(found: str) -> str:
    """A name in A-labels: the service shows some in Unicode, although it was given them otherwise."""
    return ".".join(_ascii_label(each) for each in normal_name(found).split("."))


def _ascii_label(label: str) -> str:
    try:
        return label if label.isascii() else idna.encode(label, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        return label
