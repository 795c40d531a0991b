"""Hetzner's Cloud API: the calls that are needed, their documents, and what their errors mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from scaivaultd.plugin import (
    Conflict,
    PermanentError,
    ProviderAuthError,
    ProviderError,
    RateLimited,
    TransientError,
    ZoneNotFound,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, decoded, error_by_status, quoted, told

SERVICE = "Hetzner"
T = TypeVar("T")

COMMENT = "ACME challenge, removed when validated"
NO_ZONE_STATUS = frozenset({400, 404, 422})
FINAL_CODES = frozenset({"incorrect_zone_mode", "unsupported_error", "protected", "resource_limit_exceeded"})
PASSING_CODES = frozenset(
    {"maintenance", "resource_unavailable", "service_error", "server_error", "unavailable", "timeout", "bad_gateway"}
)
BUSY_CODES = frozenset({"conflict", "locked"})

# The API's documents. Every member may be missing or null: only what a decision needs is looked at.


class NameServers(msgspec.Struct, frozen=True):
    """Whom the service serves a zone by, and what it found in the parent zone."""

    assigned: list[str | None] | None = None
    delegation_status: str | None = None


class ZoneEntry(msgspec.Struct, frozen=True):
    """A zone. One whose `mode` is secondary is written elsewhere."""

    id: int | str | None = None
    name: str | None = None
    mode: str | None = None
    authoritative_nameservers: NameServers | None = None


class Record(msgspec.Struct, frozen=True):
    """One value, in quotes."""

    value: str | None = None


class RecordSet(msgspec.Struct, frozen=True):
    """All values of one name and type. Without a TTL of its own it has the zone's."""

    ttl: int | None = None
    records: list[Record | None] | None = None

    @property
    def raw_values(self) -> list[str]:
        """The values as the service has them."""
        return [each.value for each in self.records or () if each and each.value is not None]


class Fault(msgspec.Struct, frozen=True):
    """What went wrong."""

    code: str | int | None = None
    message: str | None = None
    details: Any = None


class Action(msgspec.Struct, frozen=True):
    """Work that the service does after it has answered."""

    id: int | str | None = None
    status: str | None = None
    error: Fault | None = None


class Pagination(msgspec.Struct, frozen=True):
    """Of a list."""

    total_entries: int | None = None


class ListMeta(msgspec.Struct, frozen=True):
    """Around a list."""

    pagination: Pagination | None = None


class Document(msgspec.Struct, frozen=True):
    """Any answer: each has one of these members."""

    zone: ZoneEntry | msgspec.UnsetType | None = msgspec.UNSET
    zones: list[ZoneEntry | None] | None = None
    rrset: RecordSet | msgspec.UnsetType | None = msgspec.UNSET
    action: Action | None = None
    error: Fault | None = None
    meta: ListMeta | None = None


class Doubtful(PermanentError):
    """A refusal that may only say that all is as wished already, or that somebody was faster."""


class Change(msgspec.Struct, frozen=True):
    """What is asked of a record set: `action` is `add_records` or `remove_records`, `values` are in quotes."""

    action: str
    values: tuple[str, ...]
    ttl: int | None = None


class HetznerApi:
    """The calls that are needed, and nothing decided."""

    def __init__(self, http: HttpApi) -> None:
        self.http = http

    async def zone(self, name: str) -> ZoneEntry | None:
        """The zone of exactly this name; None when the project has none."""
        # What cannot be a zone's name may be refused as such.
        answer = await self.http.call("GET", f"/zones/{quoted(name)}", accept=NO_ZONE_STATUS)
        return told(answer, decoded(answer, Document, SERVICE).zone, SERVICE) if answer.ok else None

    async def zone_count(self) -> int:
        """How many zones the project has, as far as one short answer tells."""
        document = decoded(await self.http.call("GET", "/zones", query={"page": 1, "per_page": 1}), Document, SERVICE)
        pagination = document.meta.pagination if document.meta else None
        total = pagination.total_entries if pagination else None
        return len(document.zones or ()) if total is None else total

    async def txt_set(self, zone: str, relative: str) -> RecordSet | None:
        """The TXT record set of a relative name; None when it, or the zone, is not there."""
        answer = await self.http.call("GET", _set_path(zone, relative), accept={404})
        return told(answer, decoded(answer, Document, SERVICE).rrset, SERVICE) if answer.ok else None

    async def change(self, zone: str, relative: str, change: Change) -> Action | None:
        """Ask for a change, and return the action that carries it out.

        Raises:
            LostAnswer: the change may have been accepted.
            Doubtful: a value is there already, or is not there, or the TTL is not that of the set.
            Conflict: another change is under way.
            ZoneNotFound: the zone is gone, or the set to remove from.
        """
        records: list[dict[str, str]] = [{"value": each} for each in change.values]
        if change.action == "add_records":
            records = [{**each, "comment": COMMENT} for each in records]
        body = {"records": records} if change.ttl is None else {"ttl": change.ttl, "records": records}
        path = f"{_set_path(zone, relative)}/actions/{change.action}"
        answer = await self.http.call("POST", path, json=body, repeatable=False, accept={404})
        if answer.status == 404:
            raise ZoneNotFound(f"the zone {zone} or its record set {relative} is not in this Hetzner project")
        try:
            return decoded(answer, Document, SERVICE).action
        except TransientError:
            return None  # accepted, whatever the answer says: the name servers will tell

    async def action(self, action_id: str) -> Action | None:
        """How an action is getting on; None when it is forgotten already."""
        answer = await self.http.call("GET", f"/actions/{quoted(action_id)}", accept={404})
        return decoded(answer, Document, SERVICE).action if answer.ok else None


def error_from(answer: HttpAnswer) -> ProviderError | None:
    """An error answer by the service's code, else by its status; None when neither says more than to others."""
    fault = _fault(answer)
    code = str(fault.code or "")
    text = f"HTTP {answer.status} {_fault_text(fault)}{_request_id(answer)}"
    if answer.status == 429 or code == "rate_limit_exceeded":
        # `RateLimit-Reset` tells when the whole hour's budget is back; a request is earned each second.
        return RateLimited(f"Hetzner asks to slow down ({text})")
    if code in FINAL_CODES:
        return PermanentError(f"Hetzner refuses: {text}", code)
    if code in BUSY_CODES or answer.status == 423:
        return Conflict(f"Hetzner is busy with another change ({text})")
    if code in PASSING_CODES:
        return TransientError(f"Hetzner is busy or failed ({text})")
    if code == "unauthorized" or answer.status == 401:
        return ProviderAuthError(f"Hetzner does not know the token ({text})")
    if answer.status == 403:
        return ProviderAuthError(f"the token may not do this; it must be one for Read & Write ({text})")
    if answer.status in (409, 422):
        return Doubtful(f"Hetzner refuses: {text}", code or None)
    if not code:
        return None
    if 400 <= answer.status < 500 and answer.status != 408:
        return PermanentError(f"Hetzner refuses: {text}", code)
    return error_by_status(answer, text)


def _fault(answer: HttpAnswer) -> Fault:
    """The service's own words; none when the body is something else (a gateway's HTML)."""
    try:
        return decoded(answer, Document, SERVICE).error or Fault()
    except TransientError:
        return Fault()


def error_of_action(fault: Fault | None) -> ProviderError:
    """Why an action ended in an error. Only what names a fault of the request is final."""
    text = _fault_text(fault or Fault())
    if fault is not None and fault.code in FINAL_CODES | {"invalid_input"}:
        return PermanentError(f"Hetzner took the change and then refused it ({text})", str(fault.code))
    return TransientError(f"Hetzner took the change and then failed ({text})")


def _fault_text(fault: Fault) -> str:
    said = " ".join((fault.message or "").split())[:300]
    fields = "; ".join(_field_texts(fault.details))[:300]
    return f"{fault.code or 'without a code'}{f': {said}' if said else ''}{f' ({fields})' if fields else ''}"


def _field_texts(details: Any) -> Iterator[str]:
    fields = details.get("fields") if isinstance(details, dict) else None
    for each in fields if isinstance(fields, list) else ():
        if isinstance(each, dict):
            messages = each.get("messages")
            said = ", ".join(str(text) for text in messages) if isinstance(messages, list) else ""
            yield f"{each.get('name')}: {said}"


def _request_id(answer: HttpAnswer) -> str:
    request = answer.headers.get("x-correlation-id", "")
    return f", request {request[:64]}" if request else ""


def _set_path(zone: str, relative: str) -> str:
    return f"/zones/{quoted(zone)}/rrsets/{quoted(relative)}/TXT"
