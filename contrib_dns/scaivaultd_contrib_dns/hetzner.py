"""DNS at Hetzner, through the Cloud API: record sets, to which the service itself adds values and removes them.

The two actions used here race with nobody. What they refuse is looked at before it is believed: a value that is there
already and one that is not there come as errors whose codes are not settled, and the TTL must be that of the set.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from scaivaultd.plugin import (
    Capabilities,
    DnsProvider,
    DnsProviderKind,
    Handle,
    PermanentError,
    PluginContext,
    ProviderAuthError,
    ProviderSettings,
    TransientError,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
    relative_name,
    unquoted,
)
from scaivaultd.plugin.http import HttpRequest, open_api, token_from
from scaivaultd_contrib_dns.hetzner_api import (
    Action,
    Change,
    Doubtful,
    HetznerApi,
    RecordSet,
    ZoneEntry,
    error_from,
    error_of_action,
)

SCAIVAULTD_PLUGIN_API = "1.1"

MIN_TTL = 60
RECORDS_MAX = 50
OLD_TOKEN_LENGTH = 32
ROUNDS = 8
LAG_SECONDS = 1.0
LAGS_MAX = 3
ACTION_SECONDS = 120.0
ACTION_PAUSE_SECONDS = 0.5
ACTION_LONGEST_PAUSE_SECONDS = 5.0


class HetznerSettings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach one Hetzner Cloud project."""

    api_token_path: Annotated[
        str,
        Meta(min_length=1, description="Reference to the Cloud API token (Read & Write) of the project with the zone."),
    ]
    zone: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=253,
                description="The one zone to use; without it the longest one that a name is in.",
            ),
        ]
        | None
    ) = None
    api_base: Annotated[
        str, Meta(min_length=1, description="Root of the API. Plain http is taken for loopback addresses only.")
    ] = "https://api.hetzner.cloud/v1"


def _as_zone(entry: ZoneEntry, name: str) -> Zone:
    servers = entry.authoritative_nameservers
    assigned = servers.assigned if servers else None
    return Zone(
        name=name,
        id=str(entry.id or ""),
        name_servers=tuple(normal_name(each) for each in assigned or () if each),
    )


def _addition(found: RecordSet | None, values: Sequence[str], ttl: int) -> Change | None:
    """What must be added; None when all is there. A set keeps its TTL: another one would be refused."""
    there = {unquoted(each) for each in found.raw_values} if found else set()
    missing = tuple(f'"{each}"' for each in dict.fromkeys(values) if each not in there)
    if not missing:
        return None
    return Change("add_records", missing, max(ttl, MIN_TTL) if found is None else found.ttl)


def _removal(found: RecordSet | None, values: Sequence[str]) -> Change | None:
    """What must be removed, in the service's own spelling; None when nothing is there."""
    there = [each for each in found.raw_values if unquoted(each) in values] if found else []
    return Change("remove_records", tuple(dict.fromkeys(there))) if there else None


def _relative(name: str, zone: Zone) -> str:
    try:
        return relative_name(name, zone.name)
    except ValueError as error:
        raise PermanentError(str(error)) from None


class HetznerProvider:
    """TXT values in the zones of one project."""

    def __init__(self, api: HetznerApi, settings: HetznerSettings, context: PluginContext) -> None:
        self._api = api
        self._settings = settings
        self._clock = context.clock
        self._fraction = context.fraction
        self._log = context.log
        self._turns: dict[str, asyncio.Lock] = {}

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`. A secondary zone cannot be written, and is told as such."""
        return await self._api.http.repeated(partial(self._zone_of, normal_name(name)))

    async def _zone_of(self, name: str) -> Zone:
        if self._settings.zone is not None:
            return await self._configured_zone(normal_name(self._settings.zone), name)
        for candidate in candidates(name):
            entry = await self._api.zone(candidate) if "." in candidate else None
            if entry is not None:
                return self._writable(entry, candidate)
        raise ZoneNotFound(
            f"no zone of this Hetzner project holds {name}; it has {await self._api.zone_count()} zones, and a "
            "token sees those of one project only"
        )

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. Returns when the service's own primary has the values."""
        relative = _relative(normal_name(name), zone)
        for batch in _batches(values):
            await self._settle(zone, relative, partial(_addition, values=batch, ttl=ttl))
        return {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`. Values need no ids here, so there is nothing in the handle."""
        relative = _relative(normal_name(name), zone)
        try:
            for batch in _batches(values):
                await self._settle(zone, relative, partial(_removal, values=batch))
        except ZoneNotFound:
            return  # set or zone went meanwhile, and the values with them

    async def check(self) -> None:
        """See `Checkable`: the token is taken, and the zone, or at least one, is there."""
        if self._settings.zone is not None:
            zone = normal_name(self._settings.zone)
            await self._configured_zone(zone, zone)
        elif not await self._api.zone_count():
            raise ZoneNotFound("this Hetzner project has no zones; a token sees the zones of one project only")

    async def _configured_zone(self, zone: str, name: str) -> Zone:
        if zone not in candidates(name):
            raise ZoneNotFound(f"{name} is not in the configured zone {zone}")
        entry = await self._api.zone(zone)
        if entry is None:
            raise ZoneNotFound(f"the configured zone {zone} is not in this Hetzner project")
        return self._writable(entry, zone)

    def _writable(self, entry: ZoneEntry, name: str) -> Zone:
        if entry.mode == "secondary":
            raise ZoneNotFound(f"the zone {name} is a secondary one at Hetzner: it is written at its primary server")
        status = entry.authoritative_nameservers.delegation_status if entry.authoritative_nameservers else None
        if status in ("invalid", "lame", "unregistered"):
            self._log.warning("hetzner.zone_not_delegated", zone=name, delegation_status=status)
        return _as_zone(entry, name)

    async def _settle(self, zone: Zone, relative: str, wanted: Callable[[RecordSet | None], Change | None]) -> None:
        """Do what is wanted of a set, again if its answer is lost or the zone is locked, and wait until it is done."""
        # One change runs in a zone at a time; the service answers others with 423 until its action is done. Ours wait
        # in a queue for it instead of using up their tries against each other.
        async with self._turns.setdefault(_key(zone), asyncio.Lock()):
            await self._finished(await self._api.http.repeated(partial(self._look_and_change, zone, relative, wanted)))

    async def _look_and_change(
        self, zone: Zone, relative: str, wanted: Callable[[RecordSet | None], Change | None]
    ) -> Action | None:
        """Look, ask for what is missing, and look again when that is refused; None when there is nothing to do."""
        refusal = PermanentError("the record set changes faster than it can be written")
        tried: list[Change] = []
        lags = 0
        for _ in range(ROUNDS):
            found = await self._api.txt_set(_key(zone), relative)
            change = wanted(found)
            if change is not None and change in tried and found is not None:
                # The set shows a TTL that the service does not take back: leave it to the service.
                change = replace(change, ttl=None)
            if change is None:
                return None
            if change in tried:
                if lags == LAGS_MAX:
                    break
                # Somebody's action may be under way to what is wished: refused as being there, and not shown yet.
                lags += 1
                await self._clock.sleep(LAG_SECONDS)
                continue
            tried.append(change)
            try:
                return await self._api.change(_key(zone), relative, change)
            except Doubtful as error:
                refusal = error
        raise refusal

    async def _finished(self, action: Action | None) -> None:
        """Wait until the service has done what it accepted.

        Raises:
            TransientError: it failed, or is not done after two minutes.
        """
        deadline = self._clock.monotonic() + ACTION_SECONDS
        pause = ACTION_PAUSE_SECONDS
        while action is not None and action.id and action.status not in (None, "success", "error"):
            if self._clock.monotonic() > deadline:
                raise TransientError(f"Hetzner's action {action.id} is not done after {ACTION_SECONDS:.0f} s")
            await self._clock.sleep(pause * (0.75 + self._fraction() / 2))
            pause = min(pause * 2, ACTION_LONGEST_PAUSE_SECONDS)
            action = await self._api.http.repeated(partial(self._api.action, str(action.id)))
        if action is not None and action.status == "error":
            raise error_of_action(action.error)


def _key(zone: Zone) -> str:
    return zone.id or zone.name


def _batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(values), RECORDS_MAX):
        yield values[start : start + RECORDS_MAX]


class _Token:
    """The token, read at the moment of use."""

    def __init__(self, reference: str, context: PluginContext) -> None:
        self._reference = reference
        self._secrets = context.secrets

    async def authorize(self, request: HttpRequest, refused: bool) -> Mapping[str, str]:
        token = await token_from(self._secrets, self._reference, refused)
        if refused and len(token) == OLD_TOKEN_LENGTH:
            raise ProviderAuthError(
                f"the secret {self._reference} is refused, and with {OLD_TOKEN_LENGTH} characters it looks like a "
                "token of the old DNS Console API, which was shut down; make one for the Cloud API in the project "
                "with the zone"
            )
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def open_hetzner(settings: HetznerSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """A provider with a session of its own."""
    token = _Token(settings.api_token_path, context)
    async with open_api(settings.api_base, settings, context, authorize=token.authorize, error_from=error_from) as http:
        yield HetznerProvider(HetznerApi(http), settings, context)


SUMMARY = """\
Writes TXT values into zones hosted at Hetzner, through the **Cloud API** and its actions `add_records` and
`remove_records`, which change nothing but the values they name.

The old DNS Console API (32-character tokens) was shut down; its tokens are recognised and refused with an
explanation.
"""

RIGHTS = """\
In the Hetzner Console open the project that holds the zone, then Security, API tokens, Generate API token:

```text
Project:      a project that holds nothing but DNS zones
Permissions:  Read & Write
```

A token has the whole project, servers included, and cannot be limited to zones or names. So put the zones into a
project of their own, or delegate `_acme-challenge` by a CNAME to a zone in such a project.
"""

LIMITS = """\
- 3600 requests in an hour for each project, refilled at one a second. Adding a value takes two requests and those
  that wait for the service's action; removing it takes as many; finding the zone one for each label of the name.
- TTL: at least 60 seconds. A record set has one TTL: values added to a set that is there get that of the set.
- One change runs in a zone at a time; others are told that it is locked and wait.
- Zones are registrable domains (no zones for sub-domains). Secondary zones cannot be written.
- The service says when its primary has a change, not when its name servers have it: that is looked at in DNS.
"""

TROUBLESHOOTING = """\
- **looks like a token of the old DNS Console API**: make a token in the Hetzner Console project to which the zone
  was moved (64 characters).
- **does not know the token** (401): it was deleted, or belongs to nobody any more; make a new one at the same
  reference.
- **it must be one for Read & Write** (403): the token is for reading only.
- **no zone of this Hetzner project holds**: tokens see one project; make one in the project of the zone.
- **is a secondary one**: the zone is transferred from another server, and must be changed there.
- **locked** (423): another action is running in the zone, for longer than was waited; look for a program that
  changes it all the time.
- `hetzner.zone_not_delegated` in the log: the parent zone delegates to other name servers, so no value written here
  will be seen. Correct the name servers at the registrar.
"""

KIND = DnsProviderKind(
    name="hetzner",
    title="Hetzner",
    settings=HetznerSettings,
    open=open_hetzner,
    example={"api_token_path": "infra/hetzner/api-token"},
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
