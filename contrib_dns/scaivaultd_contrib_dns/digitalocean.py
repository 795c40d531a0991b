"""DNS at DigitalOcean: one record for each value, names relative to the domain.

The service takes identical records without a word, so what is there is looked at before anything is added, and again
when an answer was lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from msgspec import Meta

from scaivaultd.plugin import (
    Capabilities,
    DnsProvider,
    DnsProviderKind,
    Handle,
    PermanentError,
    PluginContext,
    ProviderError,
    ProviderSettings,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
    relative_name,
    unquoted,
)
from scaivaultd.plugin.http import HttpAnswer, bearer, open_api
from scaivaultd_contrib_dns.digitalocean_api import DigitalOceanApi, Record, error_from, is_txt_of

SCAIVAULTD_PLUGIN_API = "1.1"

MIN_TTL = 30


class DigitalOceanSettings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach one DigitalOcean account."""

    api_token_path: Annotated[
        str, Meta(min_length=1, description="Reference to the personal access token, with its four domain scopes.")
    ]
    domain: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=253,
                description="The one domain (zone) to use; without it the longest one that a name is in.",
            ),
        ]
        | None
    ) = None
    api_base: Annotated[
        str, Meta(min_length=1, description="Root of the API. Plain http is taken for loopback addresses only.")
    ] = "https://api.digitalocean.com/v2"


def _zone_candidates(name: str) -> Iterator[str]:
    return (each for each in candidates(name) if "." in each)


def _value(record: Record) -> str:
    return unquoted(record.data or "")


def _ttl_beside(records: Sequence[Record], wanted: int) -> int:
    """A set has one TTL (RFC 2181 section 5.2): that of the records which are there."""
    return next((each.ttl for each in records if each.ttl), max(wanted, MIN_TTL))


def _stored_ids(handle: Handle | None) -> dict[str, str]:
    ids = handle.get("ids") if handle else None
    return {str(value): str(each) for value, each in ids.items() if each} if isinstance(ids, Mapping) else {}


def _relative(name: str, zone: Zone) -> str:
    try:
        return relative_name(name, zone.name)
    except ValueError as error:
        raise PermanentError(str(error)) from None


class DigitalOceanProvider:
    """TXT records in the domains of one account."""

    def __init__(self, api: DigitalOceanApi, settings: DigitalOceanSettings) -> None:
        self._api = api
        self._settings = settings

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`. Each name upwards is asked for; the list of all domains has the last word."""
        return await self._api.http.repeated(partial(self._zone_of, normal_name(name)))

    async def _zone_of(self, name: str) -> Zone:
        if self._settings.domain is not None:
            return await self._configured_domain(normal_name(self._settings.domain), name)
        for candidate in _zone_candidates(name):
            if await self._api.has_domain(candidate):
                return Zone(name=candidate)
        domains = await self._api.domains()
        for candidate in _zone_candidates(name):
            if candidate in domains:
                return Zone(name=candidate)
        raise ZoneNotFound(f"no domain of this DigitalOcean account holds {name}; it has {len(domains)} domains")

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. The handle holds the id of each value's record."""
        name = normal_name(name)
        relative = _relative(name, zone)
        ids: dict[str, str] = {}

        async def look_and_add() -> None:
            records = await self._records(zone, name)
            there = {_value(each): str(each.id) for each in records}
            ids.update({value: there[value] for value in values if value in there})
            for value in dict.fromkeys(values):
                if value not in there:
                    ids[value] = await self._api.create_txt(zone.name, relative, value, _ttl_beside(records, ttl))

        await self._api.http.repeated(look_and_add)
        return {"ids": {value: each for value, each in ids.items() if each}}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`. Every record of these values goes, also one that is there twice."""
        name = normal_name(name)
        _relative(name, zone)
        stored = _stored_ids(handle)

        async def look_and_remove() -> None:
            records = await self._api.txt_records(zone.name, name)
            if records is None:
                return
            doomed = [str(each.id) for each in records if _value(each) in values]
            # A list may lag; but an id that it shows with another text is somebody else's by now.
            listed = {str(each.id) for each in records}
            unlisted = {stored[value]: value for value in values if value in stored and stored[value] not in listed}
            doomed += [each for each, value in unlisted.items() if await self._is_still(zone, each, name, value)]
            for record_id in dict.fromkeys(doomed):
                await self._api.delete(zone.name, record_id)

        await self._api.http.repeated(look_and_remove)

    async def check(self) -> None:
        """See `Checkable`: the token is taken, and the domain, or at least one, is there."""
        if self._settings.domain is not None:
            domain = normal_name(self._settings.domain)
            await self._configured_domain(domain, domain)
        elif not await self._api.domain_count():
            raise ZoneNotFound("this DigitalOcean account has no domains; is the token one of another team?")

    async def _configured_domain(self, domain: str, name: str) -> Zone:
        if domain not in candidates(name):
            raise ZoneNotFound(f"{name} is not in the configured domain {domain}")
        if not await self._api.has_domain(domain):
            raise ZoneNotFound(f"the configured domain {domain} is not in this DigitalOcean account")
        return Zone(name=domain)

    async def _is_still(self, zone: Zone, record_id: str, name: str, value: str) -> bool:
        """Whether nothing speaks against a record being what it was when its id was journalled."""
        record = await self._api.record(zone.name, record_id)
        return record is None or (is_txt_of(record, name, zone.name) and _value(record) == value)

    async def _records(self, zone: Zone, name: str) -> list[Record]:
        records = await self._api.txt_records(zone.name, name)
        if records is None:
            raise ZoneNotFound(f"the domain {zone.name} is not in this DigitalOcean account")
        return records


@asynccontextmanager
async def open_digitalocean(settings: DigitalOceanSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """A provider with a session of its own."""

    authorize = bearer(context.secrets, settings.api_token_path)

    def error(answer: HttpAnswer) -> ProviderError | None:
        return error_from(answer, context.clock)

    async with open_api(settings.api_base, settings, context, authorize=authorize, error_from=error) as http:
        yield DigitalOceanProvider(DigitalOceanApi(http), settings)


SUMMARY = """\
Writes one TXT record for each value into domains hosted at DigitalOcean, through the API v2 with a personal access
token.

The domain is the longest one of the account that the name is in; `domain` names it instead.
"""

RIGHTS = """\
Create a personal access token with custom scopes, in the team that owns the domain:

```text
domain:read
domain:create
domain:update
domain:delete
```

Scopes cannot be limited to one domain, let alone to one record name: the token can change every domain of the team.
Where that is too much, delegate `_acme-challenge` by a CNAME to a domain in a team of its own. Give the token an
expiry that you can keep up with; it is read anew when the service refuses it, so rotating it needs no restart.
"""

LIMITS = """\
- 5000 requests in an hour and 250 in a minute for each token. Adding a value takes two requests, removing it two,
  finding the domain one for each label of the name.
- TTL: at least 30 seconds. Records that are at the name already give theirs to new ones.
- The service does not say when its name servers have a change: usually within a minute. Keep `propagation_timeout`
  at 120 seconds or more.
"""

TROUBLESHOOTING = """\
- **does not know the token, or it has expired** (401): make a new one and put it at the same reference.
- **the token lacks a scope** (403): see the four scopes above; read-only tokens cannot write records.
- **no domain of this DigitalOcean account holds**: the token belongs to another team, or the domain was never added
  under Networking, Domains. Delegating a domain's name servers does not add it.
- **refuses: HTTP 422**: the text is the service's own. A CNAME at the record name stands in the way of a TXT
  record: let the daemon follow it (`follow_cname`), or remove it.
- **asks to slow down** (429): another program uses the same token; give the daemon one of its own.
"""

KIND = DnsProviderKind(
    name="digitalocean",
    title="DigitalOcean",
    settings=DigitalOceanSettings,
    open=open_digitalocean,
    example={"api_token_path": "infra/digitalocean/api-token", "domain": "example.org"},
    capabilities=Capabilities(min_ttl=MIN_TTL),
    summary=SUMMARY,
    rights=RIGHTS,
    limits=LIMITS,
    troubleshooting=TROUBLESHOOTING,
)


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [KIND]
