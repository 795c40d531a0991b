"""Google Cloud DNS: record sets are read, and replaced by a change that takes effect only if nobody was faster.

A change deletes the set exactly as it was read and adds the new one, in one piece. If anybody changed the set
in between the deletion does not match, and all begins anew from what is there now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from scaivaultd.plugin import (
    Capabilities,
    Conflict,
    DnsProvider,
    DnsProviderKind,
    Handle,
    LostAnswer,
    PermanentError,
    PluginContext,
    ProviderAuthError,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
    unquoted,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, open_api, quoted
from scaivaultd_contrib_dns import google_texts
from scaivaultd_contrib_dns.access_tokens import TokenCache
from scaivaultd_contrib_dns.delegation import delegated_zone
from scaivaultd_contrib_dns.google_errors import CNAME_IN_THE_WAY, google_error
from scaivaultd_contrib_dns.google_settings import GoogleSettings
from scaivaultd_contrib_dns.google_tokens import Source, open_source
from scaivaultd_contrib_dns.name_locks import NameLocks

SCAIVAULTD_PLUGIN_API = "1.1"

T = TypeVar("T")

PAGES_MAX = 1000
STRING_MAX = 255
FIRST_PAUSE_SECONDS = 0.5


class ManagedZone(msgspec.Struct, frozen=True, rename="camel"):
    """A zone, as far as it is needed."""

    name: str
    dns_name: str
    visibility: str | None = None
    name_servers: list[str] | None = None

    @property
    def is_public(self) -> bool:
        """Whether the world sees it; zones from before there were private ones do not say."""
        return (self.visibility or "public").lower() == "public"


class RecordSet(msgspec.Struct, frozen=True, rename="camel"):
    """A TXT record set; deleting it takes exactly this, `rrdatas` in their order and quoting."""

    name: str
    type: str
    ttl: int
    rrdatas: list[str]


class FoundSet(msgspec.Struct, frozen=True, rename="camel"):
    """A record set as the service shows it: everything may be missing."""

    name: str
    type: str
    ttl: int | None = None
    rrdatas: list[str] | None = None
    routing_policy: dict[str, Any] | None = None


class _ZonePage(msgspec.Struct, frozen=True, rename="camel"):
    managed_zones: list[ManagedZone] | None = None
    next_page_token: str | None = None


class _SetPage(msgspec.Struct, frozen=True, rename="camel"):
    rrsets: list[FoundSet] | None = None
    next_page_token: str | None = None


class _Change(msgspec.Struct, frozen=True):
    id: str | None = None
    status: str | None = None


class CloudDns:
    """The API's operations, in the project of the settings or of the credentials."""

    def __init__(self, api: HttpApi, source: Source, settings: GoogleSettings) -> None:
        self._api = api
        self._source = source
        self._settings = settings
        self._project: str | None = settings.project

    async def project(self) -> str:
        """The project's id.

        Raises:
            PermanentError: nobody says which.
        """
        if self._project is None:
            self._project = await self._source.project()
        if not self._project:
            raise PermanentError("the credentials do not say which project the zones are in: set `project`")
        return self._project

    async def zones(self, dns_name: str | None = None, page_size: int | None = None) -> list[ManagedZone]:
        """Public and private zones with this name, or all; one page only when its size is given."""
        query: dict[str, str | int] = {"dnsName": f"{dns_name}."} if dns_name else {}
        if page_size is not None:
            query["maxResults"] = page_size
        found: list[ManagedZone] = []
        for _ in range(PAGES_MAX):
            page = _decoded(await self._api.call("GET", await self._path(), query=query), _ZonePage)
            found += page.managed_zones or ()
            if not page.next_page_token or page_size is not None:
                return found
            query["pageToken"] = page.next_page_token
        raise PermanentError(f"the service shows more than {PAGES_MAX} pages of zones; set `managed_zone`")

    async def zone(self, name: str) -> ManagedZone | None:
        """A zone by its name or id; None when the project has none such."""
        answer = await self._api.call("GET", await self._path(name), accept={404})
        return None if answer.status == 404 else _decoded(answer, ManagedZone)

    async def txt_set(self, zone: str, name: str) -> FoundSet | None:
        """The TXT record set of a name.

        Raises:
            ZoneNotFound: there is no such zone.
        """
        query: dict[str, str | int] = {"name": f"{name}.", "type": "TXT"}
        for _ in range(PAGES_MAX):
            answer = await self._api.call("GET", await self._path(zone, "rrsets"), query=query, accept={404})
            if answer.status == 404:
                raise ZoneNotFound(
                    f"project {await self.project()} has no managed zone {zone}: is it the right project?"
                )
            page = _decoded(answer, _SetPage)
            for each in page.rrsets or ():
                if normal_name(each.name) == name and each.type == "TXT":
                    return each
            if not page.next_page_token:
                return None
            query["pageToken"] = page.next_page_token
        raise PermanentError(f"the service shows more than {PAGES_MAX} pages of record sets for one name")

    async def change(self, zone: str, deletions: Sequence[RecordSet], additions: Sequence[RecordSet]) -> _Change:
        """Delete and add record sets in one piece.

        Raises:
            Conflict: a deletion does not match what is there, or an addition exists.
            LostAnswer: nobody knows whether it was done.
            PermanentError: a CNAME stands at the name.
        """
        parts = {"additions": additions, "deletions": deletions}
        answer = await self._api.call(
            "POST",
            await self._path(zone, "changes"),
            json={name: sets for name, sets in parts.items() if sets},
            repeatable=False,
            # 404 names a deletion that is gone, or the zone: reading again tells which.
            accept={404, 409, 412},
        )
        if not answer.ok:
            error = google_error(answer)
            if isinstance(error, PermanentError) and error.code == CNAME_IN_THE_WAY:
                raise error
            raise Conflict(f"another writer changed the record set meanwhile ({error.detail})")
        return _decoded(answer, _Change)

    async def change_status(self, zone: str, change: str) -> str | None:
        """`pending` or `done`; None when the service knows it no more."""
        answer = await self._api.call("GET", await self._path(zone, "changes", change), accept={404})
        return None if answer.status == 404 else _decoded(answer, _Change).status

    async def repeated(self, step: Callable[[], Awaitable[T]]) -> T:
        """See `HttpApi.repeated`."""
        return await self._api.repeated(step)

    async def _path(self, *below: str) -> str:
        return "/".join(
            ["/projects", quoted(await self.project()), "managedZones", *(quoted(segment) for segment in below)]
        )


class GoogleCloudDns:
    """The provider."""

    def __init__(self, dns: CloudDns, settings: GoogleSettings, context: PluginContext) -> None:
        self._dns = dns
        self._settings = settings
        self._context = context
        self._locks = NameLocks()

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`."""
        return await self._dns.repeated(lambda: self._zone_of(name))

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`; the handle names the change."""

        def with_values(current: RecordSet) -> RecordSet:
            present = {unquoted(text) for text in current.rrdatas}
            missing = [value for value in dict.fromkeys(values) if value not in present]
            return msgspec.structs.replace(current, rrdatas=[*current.rrdatas, *map(in_quotes, missing)])

        change = await self._edit(zone, name, ttl, with_values)
        return {"zone": zone.id, "change": change} if change else {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""

        def without_values(current: RecordSet) -> RecordSet:
            kept = [text for text in current.rrdatas if unquoted(text) not in values]
            return msgspec.structs.replace(current, rrdatas=kept)

        try:
            await self._edit(zone, name, self._settings.ttl, without_values)
        except ZoneNotFound:
            self._context.log.debug("dns_provider.zone_gone", zone=zone.name)

    async def wait_live(self, handle: Handle) -> None:
        """See `SignalsLive`: a change is pending until all of Google's servers have it."""
        zone, change = handle.get("zone"), handle.get("change")
        if not zone or not change:
            return
        pause = FIRST_PAUSE_SECONDS
        while await self._dns.change_status(str(zone), str(change)) == "pending":
            await self._context.clock.sleep(pause)
            pause = min(pause * 1.5, self._settings.polling_interval)

    async def check(self) -> None:
        """See `Checkable`."""
        if self._settings.managed_zone is not None:
            await self._writable_zone(self._settings.managed_zone)
        else:
            await self._listed(None, page_size=1)

    async def _zone_of(self, name: str) -> Zone:
        if self._settings.managed_zone is not None:
            return await self._configured_zone(self._settings.managed_zone, name)
        for candidate in candidates(name):
            zones = [
                _zone(each)
                for each in await self._listed(candidate)
                if each.is_public and normal_name(each.dns_name) == candidate
            ]
            if len(zones) > 1:
                return await delegated_zone(
                    zones, self._settings.propagation_resolvers, "set `managed_zone` to the one to be used"
                )
            if zones:
                return zones[0]
        raise ZoneNotFound(f"project {await self._dns.project()} has no public managed zone that holds {name}")

    async def _edit(self, zone: Zone, name: str, ttl: int, edited: Callable[[RecordSet], RecordSet]) -> str | None:
        """Bring the set into the wished state; returns the id of the change, None when there was nothing to do."""

        async def step() -> str | None:
            found = await self._dns.txt_set(zone.id, name)
            current = _current(found, name, ttl)
            wanted = edited(current)
            if wanted.rrdatas == current.rrdatas:
                return None
            if found is not None and found.routing_policy:
                raise PermanentError(f"the TXT record set of {name} has a routing policy; values cannot be added to it")
            change = await self._dns.change(
                zone.id, [current] if current.rrdatas else [], [wanted] if wanted.rrdatas else []
            )
            return change.id

        async with self._locks.of(zone.id, name):
            return await self._dns.repeated(step)

    async def _configured_zone(self, managed_zone: str, name: str) -> Zone:
        zone = _zone(await self._writable_zone(managed_zone))
        if zone.name not in candidates(name):
            raise ZoneNotFound(f"{name} is not in {zone.name}, which is the managed zone {managed_zone}")
        return zone

    async def _writable_zone(self, managed_zone: str) -> ManagedZone:
        zone = await self._dns.zone(managed_zone)
        if zone is None:
            raise ZoneNotFound(
                f"project {await self._dns.project()} has no managed zone {managed_zone}: is it the right project?"
            )
        if not zone.is_public:
            raise ZoneNotFound(f"the managed zone {managed_zone} is private: no CA can see it")
        return zone

    async def _listed(self, dns_name: str | None, page_size: int | None = None) -> Iterable[ManagedZone]:
        try:
            return await self._dns.zones(dns_name, page_size)
        except ProviderAuthError as error:
            raise ProviderAuthError(
                f"{error.detail}; finding zones takes dns.managedZones.list in project {await self._dns.project()}, "
                "or set `managed_zone`"
            ) from error


def in_quotes(value: str) -> str:
    """A TXT value in presentation form (RFC 1035 section 5.1), in strings of at most 255 octets."""
    data = value.encode()
    strings = [data[place : place + STRING_MAX] for place in range(0, len(data), STRING_MAX)] or [b""]
    return " ".join(f'"{"".join(map(_escaped, string))}"' for string in strings)


def _escaped(octet: int) -> str:
    if octet in b'"\\':
        return f"\\{chr(octet)}"
    return chr(octet) if 32 <= octet < 127 else f"\\{octet:03d}"


def _current(found: FoundSet | None, name: str, ttl: int) -> RecordSet:
    """The set as it has to be deleted; without values when there is none."""
    if found is None:
        return RecordSet(f"{name}.", "TXT", ttl, [])
    return RecordSet(found.name, found.type, ttl if found.ttl is None else found.ttl, found.rrdatas or [])


def _zone(zone: ManagedZone) -> Zone:
    return Zone(
        name=normal_name(zone.dns_name), id=zone.name, name_servers=tuple(map(normal_name, zone.name_servers or ()))
    )


def _decoded(answer: HttpAnswer, form: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=form, strict=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # What was done is as open as when there is no answer; a gateway's page can come with 200.
        raise LostAnswer(
            f"Google answers with HTTP {answer.status} and a body that is not what its API describes"
        ) from None


@asynccontextmanager
async def _open(settings: GoogleSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    async with open_source(settings, context) as source:
        authorize = TokenCache(source.fetch, context.clock).authorize
        async with open_api(settings.api_base, settings, context, authorize=authorize, error_from=google_error) as api:
            yield GoogleCloudDns(CloudDns(api, source, settings), settings, context)


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="google_cloud_dns",
            title="Google Cloud DNS",
            settings=GoogleSettings,
            open=_open,
            capabilities=Capabilities(),
            example={
                "service_account_json_path": "infra/google/dns-writer",
                "project": "example-dns",
                "managed_zone": "example-org",
            },
            summary=google_texts.SUMMARY,
            rights=google_texts.RIGHTS,
            limits=google_texts.LIMITS,
            troubleshooting=google_texts.TROUBLESHOOTING,
        )
    ]
