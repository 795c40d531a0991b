"""DNS at Cloudflare: one record for each value, so nothing is ever overwritten.

What a list shows may be a few seconds old, so ids that were given out are trusted beside it.
"""

from __future__ import annotations

import re
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
    ProviderAuthError,
    ProviderSettings,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
    relative_name,
    unquoted,
)
from scaivaultd.plugin.http import HttpRequest, open_api, token_from
from scaivaultd_contrib_dns.cloudflare_api import (
    DUPLICATE_CODES,
    NO_SUCH_ZONE_CODES,
    RECORDS_PER_PAGE,
    CloudflareApi,
    RecordEntry,
    ZoneEntry,
    ascii_name,
    error_from,
    is_same_name,
    is_txt_of,
)

SCAIVAULTD_PLUGIN_API = "1.1"

MIN_TTL = 60


class CloudflareSettings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach one Cloudflare account."""

    api_token_path: Annotated[
        str, Meta(min_length=1, description="Reference to the API token that edits DNS records (Zone:DNS:Edit).")
    ]
    zone_api_token_path: (
        Annotated[
            str,
            Meta(
                min_length=1,
                description="Reference to a second API token that reads zones (Zone:Zone:Read), if the first may not.",
            ),
        ]
        | None
    ) = None
    zone_id: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=32,
                description="Id of the one zone to use, from its overview page: no zone is searched for then.",
            ),
        ]
        | None
    ) = None
    account_id: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=32,
                description="Look for zones in this account only, if the token sees several.",
            ),
        ]
        | None
    ) = None
    api_base: Annotated[
        str, Meta(min_length=1, description="Root of the API. Plain http is taken for loopback addresses only.")
    ] = "https://api.cloudflare.com/client/v4"


def _as_zone(entry: ZoneEntry) -> Zone:
    return Zone(
        name=ascii_name(entry.name or ""),
        id=str(entry.id or ""),
        name_servers=tuple(each for each in entry.name_servers or () if each),
    )


def _zone_candidates(name: str) -> Iterator[str]:
    """Where a zone may begin. The `name` filter knows operators (`contains:`), so nothing but names may reach it."""
    for candidate in candidates(name):
        if "." in candidate and re.fullmatch(r"[a-z0-9_.-]+", candidate):
            yield candidate


def _best(zones: Iterable[ZoneEntry], name: str) -> ZoneEntry | None:
    """The public zone of exactly this name; the active one, if accounts share it."""
    fitting = [each for each in zones if each.id and ascii_name(each.name or "") == name and each.type != "internal"]
    return next((each for each in fitting if _is_active(each)), fitting[0] if fitting else None)


def _is_active(zone: ZoneEntry) -> bool:
    return zone.status in (None, "active")


def _value(record: RecordEntry) -> str:
    return unquoted(record.content or "")


def _ttl_beside(records: Sequence[RecordEntry], wanted: int) -> int:
    """A set has one TTL (RFC 2181 section 5.2): that of the records which are there."""
    there = next((int(each.ttl) for each in records if each.ttl), None)
    return there if there is not None else max(wanted, MIN_TTL)


def _known_ids(handle: Handle | None) -> dict[str, str]:
    ids = handle.get("ids") if handle else None
    return {str(value): str(each) for value, each in ids.items() if each} if isinstance(ids, Mapping) else {}


class CloudflareProvider:
    """TXT records in the zones that one or two tokens see."""

    def __init__(self, api: CloudflareApi, settings: CloudflareSettings, context: PluginContext) -> None:
        self._api = api
        self._settings = settings
        self._log = context.log

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`. With `zone_id` no other zone is looked at, and Zone:Read is not needed.

        A zone that is not active does not answer in DNS, so an active one above it comes first.
        """
        return await self._api.http.repeated(partial(self._zone_of, normal_name(name)))

    async def _zone_of(self, name: str) -> Zone:
        if self._settings.zone_id is not None:
            return await self._configured_zone(self._settings.zone_id, name)
        return _as_zone(await self._enclosing(name))

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. The handle holds the id of each value's record."""
        name = normal_name(name)
        _require_inside(name, zone)
        ids: dict[str, str] = {}

        async def look_and_add() -> None:
            records = await self._api.txt_records(zone.id, name)
            if records is None:
                raise ZoneNotFound(f"Cloudflare has no zone of the id {zone.id} ({zone.name})")
            there = {_value(each): str(each.id) for each in records}
            ids.update({value: there[value] for value in values if value in there})
            for value in dict.fromkeys(values):
                if value not in there:
                    ids[value] = await self._create(zone, name, value, _ttl_beside(records, ttl))

        await self._api.http.repeated(look_and_add)
        return {"ids": {value: each for value, each in ids.items() if each}}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`. A record that somebody gave another content since is not deleted by its id."""
        name = normal_name(name)
        stored = _known_ids(handle)

        async def look_and_remove() -> None:
            records = await self._api.txt_records(zone.id, name)
            if records is None:
                return
            doomed = [str(each.id) for each in records if _value(each) in values]
            # The list may not show yet what was written a moment ago: delete that by the id it was given.
            listed = {str(each.id) for each in records}
            unlisted = {stored[value]: value for value in values if value in stored and stored[value] not in listed}
            doomed += [each for each, value in unlisted.items() if await self._is_still(zone, each, name, value)]
            for record_id in dict.fromkeys(doomed):
                await self._api.delete(zone.id, record_id)

        await self._api.http.repeated(look_and_remove)

    async def check(self) -> None:
        """See `Checkable`: the token is active, and a zone is visible."""
        is_verified = await self._verify_token()
        if self._settings.zone_id is not None:
            await self._api.some_records(self._settings.zone_id, 1)
            return
        zones = await self._api.zones(self._account_filter())
        if not zones:
            raise ProviderAuthError("the token sees no zone: give it Zone:Zone:Read for the zones, or set `zone_id`")
        if self._settings.zone_api_token_path is not None and not is_verified:
            # The zones were shown to the other token; this one has to prove itself by itself.
            await self._api.some_records(str(zones[0].id), 1)

    async def _is_still(self, zone: Zone, record_id: str, name: str, value: str) -> bool:
        """Whether nothing speaks against a record being what it was when its id was journalled."""
        record = await self._api.record(zone.id, record_id)
        return record is None or (is_txt_of(record, name) and _value(record) == value)

    async def _verify_token(self) -> bool:
        try:
            token = await self._api.token()
        except (ProviderAuthError, PermanentError):
            # Tokens that belong to an account and not to a person are unknown there: no verdict.
            return False
        if token.status not in (None, "active"):
            until = f", expiry {token.expires_on}" if token.expires_on else ""
            raise ProviderAuthError(f"the API token is {token.status}{until}")
        return True

    async def _create(self, zone: Zone, name: str, value: str, ttl: int) -> str:
        """The id of the new record; empty when somebody was faster."""
        try:
            created = await self._api.create_txt(zone.id, name, value, ttl)
        except PermanentError as error:
            if error.code in DUPLICATE_CODES:
                return ""
            raise
        if not is_same_name(created.name, name):
            # The service appends the zone to a name outside of it: such a record must not stay.
            if created.id:
                await self._api.delete(zone.id, str(created.id))
            raise PermanentError(f"{name} is not in the zone of the id {zone.id}: Cloudflare wrote {created.name}")
        return str(created.id or "")

    async def _enclosing(self, name: str) -> ZoneEntry:
        try:
            return await self._longest(name, None)
        except PermanentError as error:
            # The name filter was announced as going away: some gateways refuse it with a 400.
            self._log.debug("cloudflare.zones_listed", reason=error.detail)
            zones = await self._api.zones(self._account_filter())
        return await self._longest(name, zones)

    async def _longest(self, name: str, zones: Sequence[ZoneEntry] | None) -> ZoneEntry:
        """The longest active zone that holds `name`, else the longest: of those given, or asked for by name."""
        asleep: list[ZoneEntry] = []
        for candidate in _zone_candidates(name):
            called = await self._api.zones({"name": candidate, **self._account_filter()}) if zones is None else zones
            entry = _best(called, candidate)
            if entry is not None and _is_active(entry):
                return entry
            if entry is not None:
                self._warn_unless_active(entry)
                asleep.append(entry)
        if asleep:
            return asleep[0]
        raise _no_zone(name, len(zones) if zones is not None else await self._api.zone_count(self._account_filter()))

    async def _configured_zone(self, zone_id: str, name: str) -> Zone:
        try:
            entry = await self._api.zone(zone_id)
        except ProviderAuthError:
            return Zone(name=await self._name_by_records(zone_id, name), id=zone_id)
        except PermanentError as error:
            if error.code not in NO_SUCH_ZONE_CODES:
                raise
            entry = None
        if entry is None or not entry.name:
            raise ZoneNotFound(f"Cloudflare has no zone of the configured id {zone_id}")
        if ascii_name(entry.name) not in candidates(name):
            raise ZoneNotFound(f"{name} is not in {entry.name}, the zone of the configured id {zone_id}")
        self._warn_unless_active(entry)
        return Zone(name=ascii_name(entry.name), id=zone_id, name_servers=_as_zone(entry).name_servers)

    async def _name_by_records(self, zone_id: str, name: str) -> str:
        """What the zone must be called, without the right to read zones: the suffix that its records share."""
        records = await self._api.some_records(zone_id, RECORDS_PER_PAGE)
        owners = [ascii_name(each.name) for each in records if each.name]
        if not owners:
            # Nothing speaks against it; `_create` looks at what the service makes of the name.
            return name.partition(".")[2] or name
        for candidate in _zone_candidates(name):
            if all(candidate in candidates(owner) for owner in owners):
                return candidate
        raise ZoneNotFound(f"{name} is not in the zone of the configured id {zone_id}, to judge by its records")

    def _account_filter(self) -> dict[str, str]:
        return {"account.id": self._settings.account_id} if self._settings.account_id else {}

    def _warn_unless_active(self, entry: ZoneEntry) -> None:
        if not _is_active(entry):
            self._log.warning("cloudflare.zone_not_active", zone=entry.name, status=entry.status)


def _no_zone(name: str, count: int) -> ZoneNotFound:
    hint = "" if count else ": it needs Zone:Zone:Read, or set `zone_id`"
    return ZoneNotFound(f"no zone for {name} is visible to the token, which sees {count} zones{hint}")


def _require_inside(name: str, zone: Zone) -> None:
    try:
        relative_name(name, zone.name)
    except ValueError as error:
        raise PermanentError(str(error)) from None


class _Tokens:
    """Which token a request needs, read at the moment of use."""

    def __init__(self, settings: CloudflareSettings, context: PluginContext) -> None:
        self._settings = settings
        self._secrets = context.secrets

    async def authorize(self, request: HttpRequest, refused: bool) -> Mapping[str, str]:
        token = await token_from(self._secrets, self._reference(request), refused)
        return {"Authorization": f"Bearer {token}"}

    def _reference(self, request: HttpRequest) -> str:
        about_zones = request.url.removeprefix(self._settings.api_base.rstrip("/")).startswith("/zones")
        if self._settings.zone_api_token_path and about_zones and "/dns_records" not in request.url:
            return self._settings.zone_api_token_path
        return self._settings.api_token_path


@asynccontextmanager
async def open_cloudflare(settings: CloudflareSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """A provider with a session of its own."""
    tokens = _Tokens(settings, context)
    async with open_api(
        settings.api_base, settings, context, authorize=tokens.authorize, error_from=error_from
    ) as http:
        yield CloudflareProvider(CloudflareApi(http, context.clock), settings, context)


SUMMARY = """\
Writes one TXT record for each value into zones hosted at Cloudflare, through the API v4 with an **API token**. The
legacy global API key is not supported: it gives away the whole account.

The zone is found by asking for the name and every name above it. With `zone_id` nothing is searched for.
"""

RIGHTS = """\
Create an API token (My Profile, or Manage Account, then API Tokens, Create Custom Token) with:

```text
Permissions:     Zone - DNS  - Edit
                 Zone - Zone - Read
Zone Resources:  Include - Specific zone - example.org
```

`Zone - Zone - Read` finds the zone. Without it either set `zone_id`, or put that right into a second token and name
it in `zone_api_token_path`. A token cannot be limited to one record name; where that matters, delegate
`_acme-challenge` by a CNAME to a zone that holds nothing else.
"""

LIMITS = """\
- 1200 requests in five minutes for each user or token, the dashboard included; after that Cloudflare blocks for
  five minutes. Adding a value takes two requests, removing it two, finding the zone one for each label of the name.
- TTL: at least 60 seconds. Records that are at the name already give theirs to new ones.
- Each plan allows a number of records in a zone; beyond it Cloudflare refuses new ones with a quota error.
- Zones whose status is not `active` do not answer in DNS: the daemon warns (`cloudflare.zone_not_active`), and takes
  an active one above, if there is one.
"""

TROUBLESHOOTING = """\
- **the secret is no API token** (6003, 6111): the secret is a global API key, or was cut off or wrapped when
  pasted.
- **does not know the token, or the zone is outside of its scope** (9109): the token was deleted, or its Zone
  Resources do not include this zone.
- **refuses the token, or it lacks** (10000): add Zone:DNS:Edit; a token limited by client IP address is refused in
  the same way from elsewhere.
- **which sees 0 zones**: the token lacks Zone:Zone:Read. Add it, or set `zone_id`.
- **a CNAME or address record stands at this name** (81053, 81054): nothing can stand beside a CNAME. Cloudflare's
  own certificates use `_acme-challenge` too (DCV delegation, a CNAME to `dcv.cloudflare.com`); remove it, or let
  the daemon follow it (`follow_cname`).
- **asks to slow down** (429, 971): another program uses up the same token's budget; give the daemon its own token.
"""

KIND = DnsProviderKind(
    name="cloudflare",
    title="Cloudflare",
    settings=CloudflareSettings,
    open=open_cloudflare,
    example={"api_token_path": "infra/cloudflare/api-token"},
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
