"""DigitalOcean's API v2: the calls that are needed, their documents, and what their errors mean."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TypeVar

import msgspec

from scaivaultd.plugin import (
    Clock,
    PermanentError,
    ProviderAuthError,
    ProviderError,
    RateLimited,
    normal_name,
    relative_name,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, decoded, error_by_status, quoted, told

SERVICE = "DigitalOcean"
T = TypeVar("T")

PER_PAGE = 200
PAGES_MAX = 1000
NO_DOMAIN_STATUS = frozenset({400, 404, 422})
NO_PAGE_STATUS = frozenset({400, 404, 422})

# The API's documents. Every member may be missing or null: only what a decision needs is looked at.


class Pages(msgspec.Struct, frozen=True):
    """Where the next page is; absent on the last one."""

    next: str | None = None


class Links(msgspec.Struct, frozen=True):
    """Around a list."""

    pages: Pages | None = None


class Total(msgspec.Struct, frozen=True):
    """How long a list is, all pages together."""

    total: int | None = None


class Domain(msgspec.Struct, frozen=True):
    """A zone."""

    name: str | None = None


class Record(msgspec.Struct, frozen=True):
    """A record; `name` is relative to the domain, `@` for its own; `data` is bare text."""

    id: int | str | None = None
    type: str | None = None
    name: str | None = None
    data: str | None = None
    ttl: int | None = None


class Found(msgspec.Struct, frozen=True):
    """One domain."""

    domain: Domain | msgspec.UnsetType | None = msgspec.UNSET


class Page(msgspec.Struct, frozen=True):
    """A list: it has one of the first two members."""

    domains: list[Domain | None] | msgspec.UnsetType | None = msgspec.UNSET
    domain_records: list[Record | None] | msgspec.UnsetType | None = msgspec.UNSET
    links: Links | None = None
    meta: Total | None = None


class Created(msgspec.Struct, frozen=True):
    """What follows a POST."""

    domain_record: Record | None = None


class Problem(msgspec.Struct, frozen=True):
    """The service's error document."""

    id: str | int | None = None
    message: str | None = None
    request_id: str | None = None


class DigitalOceanApi:
    """The calls that are needed, their paging, and nothing decided."""

    def __init__(self, http: HttpApi) -> None:
        self.http = http

    async def has_domain(self, name: str) -> bool:
        """Whether the account has a domain of exactly this name."""
        # What cannot be a domain's name may be refused as such.
        answer = await self.http.call("GET", f"/domains/{quoted(name)}", accept=NO_DOMAIN_STATUS)
        return answer.ok and told(answer, decoded(answer, Found, SERVICE).domain, SERVICE) is not None

    async def domains(self) -> list[str]:
        """The names of all domains."""
        found: list[str] = []
        async for page in self._pages("/domains", {}):
            found += [normal_name(each.name) for each in _present(page.domains) if each.name]
        return found

    async def domain_count(self) -> int:
        """How many domains there are, as far as one short answer tells."""
        answer = await self.http.call("GET", "/domains", query={"page": 1, "per_page": 1})
        page = decoded(answer, Page, SERVICE)
        total = page.meta.total if page.meta else None
        return len(_present(page.domains)) if total is None else total

    async def txt_records(self, domain: str, name: str) -> list[Record] | None:
        """All TXT records of a complete name; None when the domain is not there."""
        found: dict[str, Record] = {}
        try:
            async for page in self._pages(_records_path(domain), {"type": "TXT", "name": name}):
                found.update({str(each.id): each for each in _present(page.domain_records) if each.id})
        except PermanentError as error:
            if error.code != "not_found":
                raise
            return None
        return [each for each in found.values() if is_txt_of(each, name, domain)]

    async def create_txt(self, domain: str, relative: str, value: str, ttl: int) -> str:
        """Make one record, `ttl` in seconds, and return its id, empty if none was told.

        Raises:
            LostAnswer: it may be there now; sent again, it would be there twice.
        """
        record = {"type": "TXT", "name": relative, "data": value, "ttl": ttl}
        answer = await self.http.call("POST", _records_path(domain), json=record, repeatable=False)
        created = decoded(answer, Created, SERVICE).domain_record
        return str(created.id) if created and created.id else ""

    async def record(self, domain: str, record_id: str) -> Record | None:
        """One record; None when there is none of that id, or the service does not say."""
        try:
            answer = await self.http.call("GET", f"{_records_path(domain)}/{quoted(record_id)}")
        except PermanentError:
            return None
        return decoded(answer, Created, SERVICE).domain_record

    async def delete(self, domain: str, record_id: str) -> None:
        """Delete one record; one that is gone is no error."""
        await self.http.call("DELETE", f"{_records_path(domain)}/{quoted(record_id)}", accept={404})

    async def _pages(self, path: str, filters: Mapping[str, str]) -> AsyncIterator[Page]:
        """Every page, by number: where a link leads is the service's word, and the token goes to one host only."""
        seen: set[str] = set()
        for number in range(1, PAGES_MAX + 1):
            query: dict[str, str | int] = {**filters, "page": number, "per_page": PER_PAGE}
            # A page behind the last one, asked for because nothing tells which that is, may be refused.
            answer = await self.http.call("GET", path, query=query, accept=NO_PAGE_STATUS if number > 1 else set())
            if not answer.ok:
                return
            page = decoded(answer, Page, SERVICE)
            told(answer, page.domain_records if page.domains is msgspec.UNSET else page.domains, SERVICE)
            yield page
            before = len(seen)
            seen.update(_marks(page))
            if len(seen) == before or not _goes_on(page, len(seen)):
                return


def error_from(answer: HttpAnswer, clock: Clock) -> ProviderError | None:
    """An error answer by the service's document; None when it is none (a gateway's HTML)."""
    try:
        problem = msgspec.json.decode(answer.body, type=Problem, strict=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        problem = Problem()
    text, code = _text(answer, problem), str(problem.id) if problem.id else None
    if answer.status == 429:
        return RateLimited(f"DigitalOcean asks to slow down ({text})", _seconds_until_allowed(answer, clock))
    if answer.status == 401:
        return ProviderAuthError(f"DigitalOcean does not know the token, or it has expired ({text})")
    if answer.status == 403:
        return ProviderAuthError(
            f"the token lacks a scope; it needs domain:read, domain:create, domain:update and domain:delete ({text})"
        )
    if answer.status == 404:
        return PermanentError(f"DigitalOcean has no such thing ({text})", "not_found")
    if 400 <= answer.status < 500 and answer.status != 408:
        return PermanentError(f"DigitalOcean refuses: {text}", code)
    return error_by_status(answer, text)


def _text(answer: HttpAnswer, problem: Problem) -> str:
    said = [f"HTTP {answer.status}", str(problem.id or ""), " ".join((problem.message or "").split())[:300]]
    request = problem.request_id or answer.headers.get("x-request-id", "")
    return ", ".join([*filter(None, said), *([f"request {request[:64]}"] if request else [])])


def _seconds_until_allowed(answer: HttpAnswer, clock: Clock) -> float | None:
    """Of the hourly limit, which sends no `Retry-After`: when the oldest request is forgotten (UNIX time)."""
    reset = answer.headers.get("ratelimit-reset", "")
    if "retry-after" in answer.headers or answer.headers.get("ratelimit-remaining") != "0":
        return None
    if not re.fullmatch(r"[0-9]{1,12}", reset):
        return None
    return min(max(0.0, int(reset) - clock.now().timestamp()), 3600.0)


def _present(entries: list[T | None] | msgspec.UnsetType | None) -> list[T]:
    return [] if isinstance(entries, msgspec.UnsetType) else [each for each in entries or () if each is not None]


def _marks(page: Page) -> Iterator[str]:
    """What tells the entries of a page apart."""
    yield from (str(each.id) for each in _present(page.domain_records) if each.id)
    yield from (normal_name(each.name) for each in _present(page.domains) if each.name)


def _goes_on(page: Page, seen: int) -> bool:
    """Whether there is another page. A list that says nothing of its length ends where a page brings nothing new."""
    if page.links is not None and page.links.pages is not None:
        return bool(page.links.pages.next)
    total = page.meta.total if page.meta else None
    if total is not None:
        return seen < total
    return page.links is None


def _records_path(domain: str) -> str:
    return f"/domains/{quoted(domain)}/records"


def is_txt_of(record: Record, name: str, domain: str) -> bool:
    """Whether it is a TXT record of `name`, which is relative by the documentation, and complete in some answers."""
    names = (None, relative_name(name, domain), name)
    return record.type in (None, "TXT") and (record.name and normal_name(record.name)) in names
