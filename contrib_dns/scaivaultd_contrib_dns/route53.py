"""AWS Route 53: record sets are read, merged and replaced, in one transaction that fails when somebody else wrote.

A batch that deletes the set as it was read and creates the new one is refused if the set changed in between: the
only precondition the service knows.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
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
    PermanentError,
    PluginContext,
    Zone,
    ZoneNotFound,
    candidates,
    hookimpl,
    normal_name,
    unquoted,
)
from scaivaultd.plugin.http import open_api
from scaivaultd_contrib_dns.aws_credentials import AwsSettings, key_ring
from scaivaultd_contrib_dns.aws_errors import AccessDenied
from scaivaultd_contrib_dns.aws_signing import Scope
from scaivaultd_contrib_dns.delegation import delegated_zone
from scaivaultd_contrib_dns.name_locks import NameLocks
from scaivaultd_contrib_dns.route53_api import REQUESTS_PER_SECOND, Pace, Route53Api, route53_error
from scaivaultd_contrib_dns.route53_xml import Action, Change, HostedZone, RecordSet

SCAIVAULTD_PLUGIN_API = "1.1"

ZONE_KNOWN_SECONDS = 600.0
ZONE_ABSENT_SECONDS = 60.0
ZONES_REMEMBERED = 1000
FIRST_POLL_SECONDS = 1.0
POLL_SECONDS = 4.0
OUR_IDENTIFIER = "scaivaultd-"


class Route53Settings(AwsSettings, frozen=True, kw_only=True):
    """Which zone, and where the service is."""

    hosted_zone_id: Annotated[
        Annotated[str, Meta(pattern="^(/hostedzone/)?[A-Z0-9]{1,32}$")] | None,
        Meta(
            description="The only zone to write. Saves the right to list zones, and is needed where two public zones "
            "have the same name.",
        ),
    ] = None
    wait_for_insync: Annotated[
        bool, Meta(description="Wait until Route 53 says that all of its servers have a change, before they are asked.")
    ] = True
    endpoint_url: Annotated[str | None, Meta(description="Another root URL for Route 53, such as a test server's.")] = (
        None
    )


class _Partition(msgspec.Struct, frozen=True):
    """Route 53 is one service for each partition, whatever region one works in."""

    endpoint: str
    signing_region: str


class _Poll(msgspec.Struct):
    """Who waits for a change, and whether it is everywhere."""

    lock: asyncio.Lock
    waiters: int = 0
    in_sync: bool = False


class Zones:
    """Which hosted zone a name is in, remembered for some minutes: the listing is rate limited."""

    def __init__(self, api: Route53Api, settings: Route53Settings, context: PluginContext) -> None:
        self._api = api
        self._id = (settings.hosted_zone_id or "").rpartition("/")[2]
        self._resolvers = settings.propagation_resolvers
        self._clock = context.clock
        self._known: dict[str, tuple[Zone | None, float]] = {}

    async def find(self, name: str) -> Zone:
        """The closest public zone around `name`, or the configured one if it holds the name."""
        if self._id:
            zone = await self._configured()
            if zone.name in candidates(name):
                return zone
            raise ZoneNotFound(f"{name} is not in {zone.name}, the zone of hosted_zone_id {self._id}")
        for candidate in candidates(name):
            found = await self._named(candidate)
            if found is not None:
                return found
        raise ZoneNotFound(f"the AWS account has no public hosted zone for {name} or any name above it")

    async def check(self) -> None:
        """Whether the keys may do what `find` does."""
        if self._id:
            await self._api.zone_by_id(self._id)
        else:
            await self._api.any_zone()

    def forget(self, zone: Zone) -> None:
        """A zone is not there any more."""
        self._known.pop(self._id or zone.name, None)

    async def _configured(self) -> Zone:
        zone, until = self._known.get(self._id, (None, 0.0))
        if zone is None or self._clock.monotonic() >= until:
            zone = await self._api.zone_by_id(self._id)
            self._remember(self._id, zone)
        return zone

    async def _named(self, name: str) -> Zone | None:
        if name in self._known:
            zone, until = self._known[name]
            if self._clock.monotonic() < until:
                return zone
        public = [each for each in await self._api.zones_named(name) if not each.is_private]
        if len(public) > 1:
            found: Zone | None = await self._delegated(name, public)
        else:
            found = Zone(name=name, id=public[0].id) if public else None
        self._remember(name, found)
        return found

    async def _delegated(self, name: str, public: Sequence[HostedZone]) -> Zone:
        """The one of several public zones of a name that the world asks."""
        try:
            zones = [Zone(name=name, id=each.id, name_servers=await self._api.name_servers(each.id)) for each in public]
        except AccessDenied as denied:
            ids = ", ".join(each.id for each in public)
            raise PermanentError(
                f"the AWS account has {len(public)} public hosted zones named {name} ({ids}): set hosted_zone_id to "
                f"the one that the domain is delegated to, or permit route53:GetHostedZone ({denied.detail})"
            ) from denied
        remedy = "set hosted_zone_id to the one that the domain is delegated to"
        return await delegated_zone(zones, self._resolvers, remedy)

    def _remember(self, key: str, zone: Zone | None) -> None:
        if len(self._known) >= ZONES_REMEMBERED:
            self._known.clear()
        lasting = ZONE_ABSENT_SECONDS if zone is None else ZONE_KNOWN_SECONDS
        self._known[key] = (zone, self._clock.monotonic() + lasting)


class Route53:
    """The provider."""

    def __init__(self, api: Route53Api, settings: Route53Settings, context: PluginContext) -> None:
        """Use `open_route53`."""
        self._api = api
        self._zones = Zones(api, settings, context)
        self._context = context
        self._waits = settings.wait_for_insync
        self._polls: dict[str, _Poll] = {}
        self._locks = NameLocks()
        # Zones whose policy permits UPSERT only; learnt from its first refusal.
        self._upserts: set[str] = set()

    async def find_zone(self, name: str) -> Zone:
        """See `DnsProvider`."""
        return await self._api.http.repeated(lambda: self._zones.find(normal_name(name)))

    async def check(self) -> None:
        """See `Checkable`."""
        await self._zones.check()

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """See `DnsProvider`. The handle holds the id of the change; it is empty when there was nothing to do."""
        name = normal_name(name)
        try:
            async with self._locks.of(zone.id, name):
                change_id = await self._api.http.repeated(self._adding(zone, name, values, ttl))
        except PermanentError as error:
            if error.code != "NoSuchHostedZone":
                raise
            self._zones.forget(zone)
            raise ZoneNotFound(error.detail) from error
        return {"change_id": change_id} if change_id else {}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """See `DnsProvider`."""
        name = normal_name(name)
        try:
            async with self._locks.of(zone.id, name):
                await self._api.http.repeated(lambda: self._remove(zone, name, values))
        except PermanentError as error:
            if error.code != "NoSuchHostedZone":
                raise

    async def wait_live(self, handle: Handle) -> None:
        """See `SignalsLive`. One caller polls for all who wait for the same change."""
        change_id = handle.get("change_id")
        if not self._waits or not isinstance(change_id, str):
            return
        poll = self._polls.setdefault(change_id, _Poll(lock=asyncio.Lock()))
        poll.waiters += 1
        try:
            async with poll.lock:
                await self._until_in_sync(change_id, poll)
        finally:
            poll.waiters -= 1
            if poll.waiters == 0:
                self._polls.pop(change_id, None)

    async def _until_in_sync(self, change_id: str, poll: _Poll) -> None:
        # Polls count against the rate limit, so they get rarer; the first few find the quick changes.
        pause = FIRST_POLL_SECONDS
        while not poll.in_sync:
            poll.in_sync = await self._api.is_in_sync(change_id)
            if not poll.in_sync:
                await self._context.clock.sleep(pause * (1 + self._context.fraction() / 4))
                pause = min(pause * 1.15, POLL_SECONDS)

    def _adding(
        self, zone: Zone, name: str, values: Sequence[str], ttl: int
    ) -> Callable[[], Coroutine[None, None, str | None]]:
        conflicts = 0

        async def step() -> str | None:
            nonlocal conflicts
            try:
                # moto refuses to create a set that it has created before, even if it was deleted since; any other
                # TTL does, and where the conflict was a real one, the set's own TTL is used anyway.
                return await self._add(zone, name, values, ttl + conflicts)
            except Conflict:
                conflicts += 1
                raise

        return step

    async def _add(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> str | None:
        found = await self._api.txt_sets(zone.id, name)
        present = {unquoted(value) for each in found for value in each.values}
        missing = [value for value in dict.fromkeys(values) if value not in present]
        if not missing:
            return None
        if any(each.set_identifier is not None for each in found):
            return await self._change(zone, [], _own_sets(name, missing, found))
        old = _simple(found)
        if old is None:
            new = RecordSet(name=f"{name}.", type="TXT", ttl=ttl, values=_quoted(missing))
            return await self._change(zone, [], [new])
        return await self._change(zone, [old], [msgspec.structs.replace(old, values=(*old.values, *_quoted(missing)))])

    async def _remove(self, zone: Zone, name: str, values: Sequence[str]) -> None:
        found = await self._api.txt_sets(zone.id, name)
        old: list[RecordSet] = []
        new: list[RecordSet] = []
        for each in found:
            rest = tuple(value for value in each.values if unquoted(value) not in values)
            if rest == each.values or not _is_ours_to_change(each):
                continue
            old.append(each)
            if rest:
                new.append(msgspec.structs.replace(each, values=rest))
        if old:
            await self._change(zone, old, new)

    async def _change(self, zone: Zone, old: Sequence[RecordSet], new: Sequence[RecordSet]) -> str:
        """Replace sets as they were read by new ones."""
        if zone.id in self._upserts and new:
            return await self._api.change(zone.id, _each("UPSERT", new))
        try:
            return await self._api.change(zone.id, [*_each("DELETE", old), *_each("CREATE", new)])
        except Conflict as conflict:
            if not old or not new or "already exists" not in conflict.detail:
                raise
            # Not after that DELETE, in one transaction: it is moto again. The DELETE is still the precondition.
            return await self._api.change(zone.id, [*_each("DELETE", old), *_each("UPSERT", new)])
        except AccessDenied as denied:
            if not new:
                raise
            return await self._upsert(zone, new, denied)

    async def _upsert(self, zone: Zone, new: Sequence[RecordSet], denied: AccessDenied) -> str:
        """What a policy with `ChangeResourceRecordSetsActions` = UPSERT leaves us: a lost race is not seen."""
        try:
            change_id = await self._api.change(zone.id, _each("UPSERT", new))
        except AccessDenied:
            raise denied from None
        if zone.id not in self._upserts:
            self._upserts.add(zone.id)
            self._context.log.warning("route53.only_upsert_permitted", zone=zone.name, detail=denied.detail)
        return change_id


def _each(action: Action, sets: Iterable[RecordSet]) -> list[Change]:
    return [Change(action=action, record_set=each) for each in sets]


def _quoted(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(f'"{value}"' for value in values)


def _simple(found: Sequence[RecordSet]) -> RecordSet | None:
    """The one set without an identifier, if there is one."""
    if not found:
        return None
    if found[0].ttl is None:
        raise PermanentError(f"{normal_name(found[0].name)} has an alias record of type TXT; values cannot be added")
    return found[0]


def _own_sets(name: str, values: Sequence[str], found: Sequence[RecordSet]) -> list[RecordSet]:
    """A multivalue set of our own for each value: beside sets with identifiers no other kind can stand."""
    if not all(each.is_multivalue for each in found):
        raise PermanentError(
            f"{name} has TXT record sets with a routing policy other than multivalue answer; values cannot be added"
        )
    ttl = next((each.ttl for each in found if each.ttl is not None), 60)
    return [
        RecordSet(
            name=f"{name}.",
            type="TXT",
            ttl=ttl,
            values=_quoted([value]),
            # Made of the value: after a lost answer we know our own set again.
            set_identifier=OUR_IDENTIFIER + hashlib.sha256(value.encode()).hexdigest()[:32],
            is_multivalue=True,
        )
        for value in values
    ]


def _is_ours_to_change(record_set: RecordSet) -> bool:
    return record_set.set_identifier is None or record_set.set_identifier.startswith(OUR_IDENTIFIER)


def _partition(region: str) -> _Partition:
    if region.startswith("cn-"):
        return _Partition("https://route53.amazonaws.com.cn", "cn-northwest-1")
    if region.startswith("us-gov-"):
        return _Partition("https://route53.us-gov.amazonaws.com", "us-gov-west-1")
    return _Partition("https://route53.amazonaws.com", "us-east-1")


@asynccontextmanager
async def open_route53(
    settings: Route53Settings, context: PluginContext, environment: Mapping[str, str] = os.environ
) -> AsyncIterator[DnsProvider]:
    """Open a provider; `environment` is where ambient credentials are looked for.

    Raises:
        PermanentError: there are no credentials, or a URL is not safe.
    """
    partition = _partition(settings.region)
    scope = Scope(service="route53", region=partition.signing_region)
    keys = key_ring(settings, context, environment)
    authorize = Pace(context.clock, REQUESTS_PER_SECOND).before(keys.signing(scope))
    root = settings.endpoint_url or partition.endpoint
    async with open_api(root, settings, context, authorize=authorize, error_from=route53_error) as api:
        yield Route53(Route53Api(api), settings, context)


RIGHTS = """\
`route53:ListHostedZonesByName` is not needed when `hosted_zone_id` is set; `route53:GetHostedZone` is needed only where
the account has two public zones of one name, to tell which of them is in use. Replace the zone's id and the names; the
names are in lower case, without a dot at the end, with a wildcard as `*` in the condition's pattern.

```json
{
  "Version": "2012-10-17",
  "Statement": [
    {"Effect": "Allow", "Action": "route53:ListHostedZonesByName", "Resource": "*"},
    {"Effect": "Allow", "Action": "route53:GetChange", "Resource": "arn:aws:route53:::change/*"},
    {
      "Effect": "Allow",
      "Action": "route53:ListResourceRecordSets",
      "Resource": "arn:aws:route53:::hostedzone/Z0123456789ABCDEFGHIJ"
    },
    {
      "Effect": "Allow",
      "Action": "route53:ChangeResourceRecordSets",
      "Resource": "arn:aws:route53:::hostedzone/Z0123456789ABCDEFGHIJ",
      "Condition": {
        "ForAllValues:StringEquals": {
          "route53:ChangeResourceRecordSetsRecordTypes": ["TXT"],
          "route53:ChangeResourceRecordSetsActions": ["CREATE", "DELETE", "UPSERT"]
        },
        "ForAllValues:StringLike": {
          "route53:ChangeResourceRecordSetsNormalizedRecordNames": ["_acme-challenge.*"]
        }
      }
    }
  ]
}
```

With `assume_role_arn` the keys need `sts:AssumeRole` on that role, and the role needs the policy above."""

LIMITS = """\
- Requests are sent at four in a second for each provider, and changes of several names of a zone go together: Route 53
  throttles accounts, not programs.
- Where the account has two public zones of one name, the one whose name servers are delegated to is used; if DNS does
  not tell, set `hosted_zone_id`.
- `hosted_zone_id` names one zone; configure a provider for each zone, or let it find zones by name.
- Private hosted zones are never written: no CA sees them.
- Where other programs keep multivalue record sets with identifiers at a name, a set of our own is put beside them.
  Beside weighted, latency or other sets nothing can be added.
- A policy that permits UPSERT alone works, with a warning: a value that another program writes in the same moment
  can then be lost, and the last value of a name cannot be removed."""

TROUBLESHOOTING = """\
- *a right is missing (AccessDenied ...)*: the message names the action and the resource; compare them with the policy.
- *SignatureDoesNotMatch*: the secret access key is not the one of the access key id, or was cut when it was pasted.
- *Signature expired* or *not yet current*: the clock is more than five minutes wrong.
- *2 public zones named ...*: set `hosted_zone_id`. `dig NS` of the domain and the name servers shown in the
  console tell which one is in use.
- *the instance metadata service ... hop limit*: in a container on EC2, set the hop limit of the metadata options to 2.
- *no AWS credentials*: nothing is given and the environment names nothing. On EC2, ask for
  `credentials_source = "imds"`; for profiles and SSO install botocore and ask for `credentials_source = "botocore"`.
- A change that stays pending for many minutes is rare and Route 53's own matter; `wait_for_insync = false` goes on to
  ask the name servers themselves."""


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The one kind of this plugin."""
    return [
        DnsProviderKind(
            name="aws_route53",
            title="AWS Route 53",
            settings=Route53Settings,
            open=open_route53,
            example={
                "access_key_id_path": "infra/aws/route53/access-key-id",
                "secret_access_key_path": "infra/aws/route53/secret-access-key",
                "hosted_zone_id": "Z0123456789ABCDEFGHIJ",
                "region": "us-east-1",
            },
            capabilities=Capabilities(),
            summary="Writes to public hosted zones of Amazon Route 53, with keys from the secret store, or those of "
            "the instance, container or service account the daemon runs in, and roles on top of them.",
            rights=RIGHTS,
            limits=LIMITS,
            troubleshooting=TROUBLESHOOTING,
        )
    ]
