"""Azure DNS: record sets are read, and replaced only if their etag is still the same.

Replacing takes everything with it, so what others wrote goes back as it came: each value as its list of strings,
the metadata, the TTL.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from scaivaultd.plugin import (
    Capabilities,
    DnsProvider,
    DnsProviderKind,
    Handle,
    LostAnswer,
    PermanentError,
    PluginContext,
    TransientError,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
    relative_name,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, open_api, quoted
from scaivaultd_contrib_dns import azure_texts
from scaivaultd_contrib_dns.access_tokens import TokenCache
from scaivaultd_contrib_dns.azure_errors import (
    MISPLACED_CODES,
    ZONE_GONE_CODES,
    Unassigned,
    azure_error,
    code_and_message,
)
from scaivaultd_contrib_dns.azure_settings import AzureSettings
from scaivaultd_contrib_dns.azure_tokens import open_source
from scaivaultd_contrib_dns.delegation import delegated_zone
from scaivaultd_contrib_dns.name_locks import NameLocks

SCAIVAULTD_PLUGIN_API = "1.1"

T = TypeVar("T")

API_VERSION = {"api-version": "2018-05-01"}
PAGES_MAX = 1000
STRING_MAX = 255
MIN_TTL = 1
ASSIGNMENT_TRIES = 4
ASSIGNMENT_PAUSE_SECONDS = 10.0


class TxtRecord(msgspec.Struct, frozen=True):
    """One value, in strings of at most 255 characters."""

    value: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The strings joined: what the value is."""
        return "".join(self.value)


class RecordSet(msgspec.Struct, frozen=True, kw_only=True):
    """What a TXT record set holds, and the etag that it has; no etag: there is no such set."""

    etag: str | None
    ttl: int
    records: tuple[TxtRecord, ...]
    metadata: Mapping[str, Any] | None = None

    def as_body(self) -> Mapping[str, Any]:
        """The set as it is put."""
        properties = {"TTL": self.ttl, "TXTRecords": self.records}
        return {"properties": properties if self.metadata is None else {**properties, "metadata": self.metadata}}


class _FoundRecord(msgspec.Struct, frozen=True):
    value: tuple[str, ...] | None = None


class _FoundProperties(msgspec.Struct, frozen=True):
    ttl: int | None = msgspec.field(default=None, name="TTL")
    records: tuple[_FoundRecord, ...] | None = msgspec.field(default=None, name="TXTRecords")
    metadata: dict[str, Any] | None = None


class _FoundSet(msgspec.Struct, frozen=True):
    etag: str | None = None
    properties: _FoundProperties | None = None


class _ZoneProperties(msgspec.Struct, frozen=True, rename="camel"):
    zone_type: str | None = None
    name_servers: tuple[str, ...] | None = None


class _FoundZone(msgspec.Struct, frozen=True):
    id: str
    name: str
    properties: _ZoneProperties | None = None

    @property
    def is_public(self) -> bool:
        kind = self.properties.zone_type if self.properties else None
        return (kind or "Public").lower() == "public"


class _ZonePage(msgspec.Struct, frozen=True, rename="camel"):
    value: tuple[_FoundZone, ...] | None = None
    next_link: str | None = None


class AzureDns:
    """The resource manager's operations on DNS zones."""

    def __init__(self, api: HttpApi, subscription_id: str) -> None:
        self._api = api
        self._subscription = f"/subscriptions/{quoted(subscription_id)}"

    async def zones(self, resource_group: str | None, *, one_page: bool = False) -> list[_FoundZone]:
        """The zones of a resource group or of the subscription."""
        path = (
            f"{self._subscription}/providers/Microsoft.Network/dnszones"
            if resource_group is None
            else f"{self._subscription}/resourceGroups/{quoted(resource_group)}/providers/Microsoft.Network/dnsZones"
        )
        query: Mapping[str, str] | None = API_VERSION
        found: list[_FoundZone] = []
        for _ in range(PAGES_MAX):
            page = _decoded(await self._api.call("GET", path, query=query), _ZonePage)
            found += page.value or ()
            if not page.next_link or one_page:
                return found
            # As it came; `call` refuses one that leads to another host.
            path, query = page.next_link, None
        raise PermanentError(f"the service shows more than {PAGES_MAX} pages of zones; set `resource_group`")

    async def zone(self, resource_group: str, name: str) -> _FoundZone | None:
        """One zone; None when it is not there."""
        path = f"{self._subscription}/resourceGroups/{quoted(resource_group)}"
        answer = await self._api.call(
            "GET", f"{path}/providers/Microsoft.Network/dnsZones/{quoted(name)}", query=API_VERSION, accept={404}
        )
        if answer.status == 404:
            _require_zone(answer)
            return None
        return _decoded(answer, _FoundZone)

    async def txt_set(self, path: str, ttl: int) -> RecordSet:
        """The TXT record set at `path`; one without values, with this TTL, when there is none.

        Raises:
            ZoneNotFound: the zone itself is not there.
            PermanentError: the subscription is not there.
        """
        answer = await self._api.call("GET", path, query=API_VERSION, accept={404})
        if answer.status == 404:
            _require_zone(answer)
            return RecordSet(etag=None, ttl=ttl, records=())
        found = _decoded(answer, _FoundSet)
        etag = found.etag or answer.headers.get("etag")
        if not etag:
            raise TransientError("Azure shows a record set without an etag; it cannot be changed safely")
        properties = found.properties or _FoundProperties()
        return RecordSet(
            etag=etag,
            ttl=ttl if properties.ttl is None else properties.ttl,
            records=tuple(TxtRecord(each.value or ()) for each in properties.records or ()),
            metadata=properties.metadata,
        )

    async def put(self, path: str, wanted: RecordSet) -> None:
        """Replace the set with `wanted`, or create it.

        Raises:
            Conflict: its etag is another one by now.
            LostAnswer: nobody knows whether it was done.
            ZoneNotFound: the zone itself is not there.
        """
        unchanged = {"If-None-Match": "*"} if wanted.etag is None else {"If-Match": wanted.etag}
        answer = await self._write("PUT", path, unchanged, json=wanted.as_body())
        if answer.status == 404:
            _require_zone(answer)
            # A set need not be there to be put; whatever the code, it is something above it.
            raise ZoneNotFound(f"the zone is not there: {azure_error(answer).detail}")
        _decoded(answer, _FoundSet)

    async def delete(self, path: str, etag: str) -> None:
        """Delete the set; one that is gone is no error.

        Raises:
            Conflict: its etag is another one by now.
            LostAnswer: nobody knows whether it was done.
        """
        await self._write("DELETE", path, {"If-Match": etag})

    async def _write(self, method: str, path: str, unchanged: Mapping[str, str], json: Any = None) -> HttpAnswer:
        answer = await self._api.call(
            method,
            path,
            query=API_VERSION,
            json=json,
            headers=unchanged,
            repeatable=False,
            # Repeating the same request helps against none of these: the set has to be read again.
            accept={404, 409, 412},
        )
        if answer.status in (409, 412):
            raise azure_error(answer)
        return answer

    async def repeated(self, step: Callable[[], Awaitable[T]]) -> T:
        """See `HttpApi.repeated`."""
        return await self._api.repeated(step)


class AzureDnsProvider:
    """The provider."""

    def __init__(self, dns: AzureDns, settings: AzureSettings, context: PluginContext) -> None:
        self._dns = dns
        self._settings = settings
        self._context = context
        self._locks = NameLocks()

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`."""
        return await self._dns.repeated(lambda: self._zone_of(name))

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`; nothing has to be remembered."""
        path = _txt_path(zone, name)

        async def step() -> None:
            current = await self._dns.txt_set(path, ttl)
            present = {record.text for record in current.records}
            missing = [_record(value) for value in dict.fromkeys(values) if value not in present]
            if missing:
                await self._dns.put(path, msgspec.structs.replace(current, records=(*current.records, *missing)))

        async with self._locks.of(zone.id, name):
            await self._dns.repeated(step)
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""
        path = _txt_path(zone, name)

        async def step() -> None:
            current = await self._dns.txt_set(path, self._settings.ttl)
            kept = tuple(record for record in current.records if record.text not in values)
            if current.etag is None or kept == current.records:
                return
            if kept or self._settings.keep_record_set:
                await self._dns.put(path, msgspec.structs.replace(current, records=kept))
            else:
                await self._dns.delete(path, current.etag)

        try:
            async with self._locks.of(zone.id, name):
                await self._dns.repeated(step)
        except ZoneNotFound:
            self._context.log.debug("dns_provider.zone_gone", zone=zone.name)

    async def check(self) -> None:
        """See `Checkable`; waits a little for role assignments, which are often minutes old when this is asked."""
        for _ in range(ASSIGNMENT_TRIES - 1):
            try:
                await self._look()
            except Unassigned:
                await self._context.clock.sleep(ASSIGNMENT_PAUSE_SECONDS)
            else:
                return
        await self._look()

    async def _zone_of(self, name: str) -> Zone:
        zones = [_zone(each) for each in await self._zones() if each.is_public]
        for candidate in candidates(name):
            fitting = [zone for zone in zones if zone.name == candidate]
            if len(fitting) > 1:
                return await delegated_zone(
                    fitting, self._settings.propagation_resolvers, "set `resource_group` to that of the one to be used"
                )
            if fitting:
                return fitting[0]
        raise ZoneNotFound(f"no public zone {self._scope} holds {name}; it has {len(zones)}")

    async def _look(self) -> None:
        if self._settings.resource_group is not None and self._settings.zone_name is not None:
            if not await self._zones():
                raise ZoneNotFound(f"there is no zone {self._scope}")
        else:
            await self._dns.zones(self._settings.resource_group, one_page=True)

    async def _zones(self) -> list[_FoundZone]:
        """The zones that the settings permit."""
        group, only = self._settings.resource_group, self._settings.zone_name
        if only is None:
            return await self._dns.zones(group)
        if group is not None:
            zone = await self._dns.zone(group, normal_name(only))
            return [zone] if zone else []
        return [zone for zone in await self._dns.zones(None) if normal_name(zone.name) == normal_name(only)]

    @property
    def _scope(self) -> str:
        """The settings' choice, for texts."""
        group, only = self._settings.resource_group, self._settings.zone_name
        named = f"named {only} " if only else ""
        return (
            f"{named}in {f'resource group {group} of ' if group else ''}subscription {self._settings.subscription_id}"
        )


def _zone(found: _FoundZone) -> Zone:
    servers = (found.properties.name_servers if found.properties else None) or ()
    return Zone(name=normal_name(found.name), id=found.id, name_servers=tuple(map(normal_name, servers)))


def _txt_path(zone: Zone, name: str) -> str:
    """The path of a TXT record set; the case of ids differs from answer to answer, so it is made anew."""
    parts = re.fullmatch(
        r"/subscriptions/([^/]+)/resourceGroups/([^/]+)/providers/Microsoft\.Network/dnsZones/([^/]+)/?",
        zone.id,
        re.IGNORECASE,
    )
    if parts is None:
        raise PermanentError(f"{zone.id!r} is not the resource id of a DNS zone")
    subscription, group, zone_name = (quoted(part) for part in parts.groups())
    return (
        f"/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/dnsZones/{zone_name}"
        f"/TXT/{quoted(relative_name(name, zone.name))}"
    )


def _record(value: str) -> TxtRecord:
    return TxtRecord(tuple(value[place : place + STRING_MAX] for place in range(0, len(value), STRING_MAX)))


def _require_zone(answer: HttpAnswer) -> None:
    """404 stands for a set that is not there, which is no error, and for all above it."""
    code, message = code_and_message(answer)
    if code in ZONE_GONE_CODES:
        raise ZoneNotFound(f"the zone is not there: {message or code}")
    if code in MISPLACED_CODES:
        raise PermanentError(f"the subscription is not there; check subscription_id and tenant_id: {message}", code)


def _decoded(answer: HttpAnswer, form: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=form, strict=False)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        # What was done is as open as when there is no answer; a gateway's page can come with 200.
        raise LostAnswer(
            f"Azure answers with HTTP {answer.status} and a body that is not what its API describes"
        ) from None


@asynccontextmanager
async def _open(settings: AzureSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    async with open_source(settings, context) as fetch:
        authorize = TokenCache(fetch, context.clock).authorize
        async with open_api(
            settings.resource_manager, settings, context, authorize=authorize, error_from=azure_error
        ) as api:
            yield AzureDnsProvider(AzureDns(api, settings.subscription_id), settings, context)


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="azure_dns",
            title="Azure DNS",
            settings=AzureSettings,
            open=_open,
            capabilities=Capabilities(min_ttl=MIN_TTL),
            example={
                "tenant_id": "00000000-0000-0000-0000-00000000aaaa",
                "client_id": "00000000-0000-0000-0000-00000000bbbb",
                "client_secret_path": "infra/azure/dns-writer",
                "subscription_id": "00000000-0000-0000-0000-00000000cccc",
                "resource_group": "dns",
                "zone_name": "example.org",
            },
            summary=azure_texts.SUMMARY,
            rights=azure_texts.RIGHTS,
            limits=azure_texts.LIMITS,
            troubleshooting=azure_texts.TROUBLESHOOTING,
        )
    ]
