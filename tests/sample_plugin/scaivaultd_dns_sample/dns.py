"""A DNS provider for a service whose record sets have revisions: a writer says which one it has read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec
from msgspec import Meta

from scaivaultd.plugin import (
    Capabilities,
    Conflict,
    DnsProvider,
    DnsProviderKind,
    Handle,
    PluginContext,
    ProviderError,
    ProviderSettings,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
)
from scaivaultd.plugin.http import HttpAnswer, HttpApi, bearer, open_api, quoted

SCAIVAULTD_PLUGIN_API = "1.1"


class SampleSettings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a configured provider needs besides the settings that all have."""

    api_base: Annotated[str, Meta(description="Root of the API.")]
    token_path: Annotated[str, Meta(description="The token.")]


class RecordSet(msgspec.Struct, frozen=True, kw_only=True):
    """A TXT record set as the service shows it; `revision` 0 is one that does not exist."""

    values: tuple[str, ...] = ()
    ttl: int = 0
    revision: int = 0


class ZoneList(msgspec.Struct, frozen=True, kw_only=True):
    """The zones that the token may write."""

    zones: tuple[str, ...]


class SampleProvider:
    """Reads a set, merges, and writes it back if nobody else was faster."""

    def __init__(self, api: HttpApi) -> None:
        self._api = api

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`."""
        answer = await self._api.call("GET", "/zones")
        zones = msgspec.json.decode(answer.body, type=ZoneList).zones
        for candidate in candidates(name):
            if candidate in zones:
                return Zone(name=candidate)
        raise ZoneNotFound(f"no zone of this token holds {name}; it has {len(zones)}")

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`."""
        await self._change(zone, name, lambda held: (*held, *(each for each in values if each not in held)), ttl)
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""
        await self._change(zone, name, lambda held: tuple(each for each in held if each not in values), 0)

    async def check(self) -> None:
        """See `Checkable`."""
        await self._api.call("GET", "/zones")

    async def _change(
        self, zone: Zone, name: str, wanted: Callable[[tuple[str, ...]], tuple[str, ...]], ttl: int
    ) -> None:
        path = f"/zones/{quoted(zone.name)}/txt/{quoted(name)}"

        async def step() -> None:
            # Begins by looking, so that it may be done again after a lost answer or a lost race.
            answer = await self._api.call("GET", path, accept={404})
            held = msgspec.json.decode(answer.body, type=RecordSet) if answer.ok else RecordSet()
            values = wanted(held.values)
            if values != held.values:
                # An existing set keeps its TTL.
                written = {"values": values, "ttl": held.ttl or ttl, "revision": held.revision}
                await self._api.call("PUT", path, json=written)

        await self._api.repeated(step)


def error_from(answer: HttpAnswer) -> ProviderError | None:
    """A 409 is a lost race; the status says the rest."""
    if answer.status == 409:
        return Conflict("another writer changed the record set")
    return None


@asynccontextmanager
async def open_sample(settings: SampleSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """One provider with a connection pool of its own."""

    authorize = bearer(context.secrets, settings.token_path)
    async with open_api(settings.api_base, settings, context, authorize=authorize, error_from=error_from) as api:
        yield SampleProvider(api)


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="sample",
            title="Sample DNS",
            settings=SampleSettings,
            open=open_sample,
            example={"api_base": "https://dns.example.net/v1", "token_path": "dns/sample/token"},
            capabilities=Capabilities(min_ttl=30),
            summary="A service that exists in tests only.",
            rights="A token that may write TXT records of the zone.",
            limits="None.",
            troubleshooting="`409`: other programs write the same name all the time.",
        )
    ]
