"""TXT values in DNS, from the journal to the clean-up: what stands behind the dns-01 solver.

Every value is written down before a provider is asked for it, with who needs it; when nobody needs it any more it
is taken away, by this process or the next. A value is keyed by provider, effective name and text, so that
orders which need the same value share it, and none takes away another's (RFC 8555 section 8.4).
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.model import metrics
from scaivaultd.model.dns import PropagationOverride, PropagationPolicy, PropagationReport, Route
from scaivaultd.model.errors import (
    DnsError,
    DnsPropagationTimeout,
    DnsProviderError,
    NotFound,
    RevisionConflict,
    ScaivaultError,
    StorageUnavailable,
)
from scaivaultd.model.resources import UNFINISHED, DnsProvider, TxtRecord
from scaivaultd.model.storage import ABSENT, Delete
from scaivaultd.plugin import Zone
from scaivaultd.services.documents import ORDERS, TXT_RECORDS, Versioned, digest, txt_record_id
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.propagation import Propagation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.dns import ServerVerdict
    from scaivaultd.plugin import ChallengeResponse
    from scaivaultd.services.dns_providers import DnsProviders
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.ports import NameServers, Store
    from scaivaultd.services.provider_pool import OpenProvider

PREFIX = "_acme-challenge."
PLACE_SECONDS = 60.0
"""How long what was found out for `claims` is good for `put`."""
PLACES_MAX = 1000
"""From so many on those are forgotten whose orders have not come for them in time."""
VALUES_AT_ONCE = 6
"""So many values of ours at a name at a time. Their answer fits 512 bytes: a validator that asks without EDNS and does
not turn to TCP (Pebble is one) finds no value at all among more. Services have limits, too (Azure 20 to a set)."""
LIVE_SECONDS = 180.0
REMOVAL_PAUSES_SECONDS = (5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
GONE_SECONDS = 5.0
"""So long an order that has ended keeps its share of a name for the first try to take its values away."""
REMOVAL_TRIES = 40
"""About a day and a half; whatever is still there then is logged and left to a person."""
_ROUTELESS = ("resolvers", "delay", "skip")
_TOLERABLE = ("unreachable", "no_zone", "lame_delegation")


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a value goes and how it is seen there. `route` is None where the policy needs none and there was none."""

    provider: OpenProvider
    zone: Zone
    record_name: str
    route: Route | None
    policy: PropagationPolicy
    warning: str | None = None


class _Batch:
    """Values of one name that wait for the lock of that name together."""

    def __init__(self) -> None:
        self.values: dict[str, None] = {}
        self.task: asyncio.Task[Any] | None = None


class _Removal:
    """A job that takes one value away."""

    def __init__(self) -> None:
        self.is_wanted = True
        self.tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(self) -> None:
        """Let go on who waits for the first try."""
        if not self.tried.done():
            self.tried.set_result(None)


class TxtRecords:
    """What the dns-01 solver writes through; see `Dns01Records` in the plugin contract."""

    def __init__(
        self,
        *,
        store: Store,
        providers: DnsProviders,
        name_servers: NameServers,
        jobs: Jobs,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`jobs` are for removals only."""
        self._store = store
        self._providers = providers
        self._name_servers = name_servers
        self._propagation = Propagation(name_servers, clock)
        self._jobs = jobs
        self._clock = clock
        self._log = log
        self._provider_types: dict[str, str] = {}
        self._batches: dict[tuple[str, ...], _Batch] = {}
        self._writing: set[asyncio.Task[Any]] = set()
        self._removing: dict[str, _Removal] = {}
        self._removals = 0
        self._places: dict[str, tuple[float, Place]] = {}
        self._wanted: dict[tuple[str, str], dict[str, None]] = {}
        self._reports: dict[str, dict[str, PropagationReport]] = {}

    async def put(self, response: ChallengeResponse, value: str) -> None:
        """See `Dns01Records`.

        Raises:
            DnsError, DnsProviderError, SecretNotFound, DnsPropagationTimeout: naming the identifier.
        """
        try:
            place = await self._place_of(response)
            await self.write_and_see(place, value, _user(response), response.order_id, response.identifier)
        except ScaivaultError as error:
            error.identifier = response.identifier
            raise

    async def remove(self, response: ChallengeResponse, value: str) -> None:
        """See `Dns01Records`: gives the value up and leaves its removal to a job.

        Returns when that has tried once, or after `GONE_SECONDS`: the next order for the name begins then, and the
        name holds only so many values.
        """
        self._places.pop(_user(response), None)
        self._unwant(response.order_id, value)
        freed = await self.release(_user(response))
        if under_way := [self._removing[each].tried for each in freed if each in self._removing]:
            await asyncio.wait(under_way, timeout=GONE_SECONDS)

    async def claims(self, response: ChallengeResponse) -> Mapping[str, int]:
        """See `Dns01Records`."""
        try:
            place = await self._place_of(response)
        except ScaivaultError:
            return {}  # `put` will meet and report it
        limit = min(VALUES_AT_ONCE, place.provider.kind.capabilities.max_values or VALUES_AT_ONCE)
        return {f"{place.provider.record.id} {place.record_name}": limit}

    async def _place_of(self, response: ChallengeResponse) -> Place:
        """Where the response's value goes, as found a moment ago or now."""
        now = self._clock.monotonic()
        key = _user(response)
        if (known := self._places.pop(key, None)) and known[0] > now:
            return known[1]
        named, override = await self._wishes(response)
        place = await self.place(f"{PREFIX}{response.identifier}", named, override)
        if len(self._places) >= PLACES_MAX:
            self._places = {user: known for user, known in self._places.items() if known[0] > now}
        self._places[key] = (now + PLACE_SECONDS, place)
        return place

    def reports(self, order_id: str) -> tuple[PropagationReport, ...]:
        """How far the values of an order have come, as far as this process knows."""
        return tuple(self._reports.get(order_id, {}).values())

    def provider_type(self, order_id: str) -> str | None:
        """What type the provider of an order's last value is of, as far as this process knows."""
        return self._provider_types.get(order_id)

    async def place(self, name: str, named: str | None, override: PropagationOverride | None) -> Place:
        """Where the TXT record of `name` belongs: after its CNAMEs, at the provider that serves the zone there."""
        record = await self._named(named) if named else None
        if record is None:
            route = await self._name_servers.route(name)
            provider = await self._providers.use(await self._providers.choose(route.target))
            # Chosen by where the CNAMEs lead; whoever has settings that say otherwise has to be named.
            return await self._place_at(provider, route.target, route, override)
        provider = await self._providers.use(record)
        policy = _policy(provider, override)
        alias = provider.settings.challenge_alias
        try:
            found = await self._name_servers.route(
                alias or name, follow_cname=provider.settings.follow_cname and alias is None
            )
        except DnsError as error:
            # Where nobody asks the authoritative servers, not being able to does not matter.
            if error.reason not in _TOLERABLE or policy.visibility not in _ROUTELESS:
                raise
            self._log.warning("dns.no_route", name=alias or name, detail=error.detail)
            return await self._place_at(provider, alias or name, None, override)
        return await self._place_at(provider, found.target, found, override)

    async def _named(self, named: str) -> DnsProvider:
        try:
            return await self._providers.find(named)
        except NotFound as error:
            raise DnsProviderError(error.detail, is_final=True) from None

    async def _place_at(
        self, provider: OpenProvider, target: str, route: Route | None, override: PropagationOverride | None
    ) -> Place:
        zone = await provider.find_zone(target)
        warning = None
        if route is not None and zone.name != route.delegation.zone:
            warning = (
                f"{provider.record.name} writes to its zone {zone.name}, but the world asks the servers of "
                f"{route.delegation.zone} about {target}"
            )
            self._log.warning("dns.zone_differs", name=target, zone=zone.name, served=route.delegation.zone)
        return Place(
            provider=provider,
            zone=zone,
            record_name=target,
            route=route,
            policy=_policy(provider, override),
            warning=warning,
        )

    async def write_and_see(self, place: Place, value: str, user: str, order_id: str, identifier: str) -> None:
        """Journal, write, and wait until the value is visible by the place's policy."""
        wanted = self._wanted.setdefault((order_id, place.record_name), {})
        wanted[value] = None
        started = self._clock.monotonic()
        note = self._noter(place, order_id, identifier, started)
        self._provider_types[order_id] = place.provider.kind.name
        note("writing", ())
        handle = await self.write(place, value, user)
        note("waiting", ())
        if place.provider.signals_live:
            await place.provider.wait_live(handle, min(LIVE_SECONDS, place.policy.timeout))
        try:
            await self._propagation.wait(
                place.record_name,
                place.route,
                place.policy,
                lambda: list(wanted),
                lambda verdicts: note("waiting", verdicts),
            )
        except DnsPropagationTimeout as error:
            note("failed", None)
            explained = await self._explained(place, error)
            if place.policy.on_failure == "fail":
                raise explained from None
            self._log.warning("dns.not_visible", name=place.record_name, detail=explained.detail)
            return
        note("visible", None)
        metrics.DNS_PROPAGATION_DURATION.labels(provider=place.provider.kind.name).observe(
            self._clock.monotonic() - started
        )

    async def _explained(self, place: Place, error: DnsPropagationTimeout) -> DnsPropagationTimeout:
        """The same error with what else is known to be wrong there."""
        reasons = [place.warning] if place.warning else []
        if place.route is not None and (bogus := await self._name_servers.bogus(place.route.delegation.zone)):
            reasons.append(f"DNSSEC: {bogus}")
        if not reasons:
            return error
        return DnsPropagationTimeout(f"{error.detail}. {'; '.join(reasons)}", error.verdicts)

    def _noter(
        self, place: Place, order_id: str, identifier: str, started: float
    ) -> Callable[[Any, Sequence[ServerVerdict] | None], None]:
        reports = self._reports.setdefault(order_id, {})

        def note(status: Any, verdicts: Sequence[ServerVerdict] | None) -> None:
            before = reports.get(place.record_name)
            if before and before.status == "failed" and status == "waiting":
                status = "failed"  # by another value of the name, whose order has not ended yet
            reports[place.record_name] = PropagationReport(
                record_name=place.record_name,
                identifier=identifier,
                chain=place.route.chain if place.route else (),
                dns_provider=place.provider.record.name,
                zone=place.zone.name,
                policy=place.policy.visibility,
                status=status,
                seconds=round(self._clock.monotonic() - started, 3),
                warning=place.warning,
                verdicts=tuple(verdicts) if verdicts else before.verdicts if before else (),
            )

        return note

    def _unwant(self, order_id: str, value: str) -> None:
        of_order = {key: values for key, values in self._wanted.items() if key[0] == order_id}
        for key, values in of_order.items():
            values.pop(value, None)
            if not values:
                del self._wanted[key]
        if not any(of_order.values()):
            # The order has ended, and its reports stand in its document.
            self._reports.pop(order_id, None)
            self._provider_types.pop(order_id, None)

    # The journal: intent first, then the provider, then the outcome.

    async def write(self, place: Place, value: str, user: str) -> Mapping[str, Any]:
        """Journal the value with its user, then make sure that it is there; returns the provider's handle."""
        provider = place.provider
        record_id = txt_record_id(provider.record.id, place.record_name, value)
        await self._change(record_id, lambda old: _with_user(old, place, value, user, self._clock))
        # A deletion that did not see the journal in time has begun by now; one that begins later will.
        self._providers.require_staying(provider.record)
        handle: dict[str, Any] = await self._batched(
            ("add", provider.record.id, place.zone.name, place.record_name),
            value,
            provider.lock(place.record_name),
            lambda values: provider.add_txt(place.zone, place.record_name, values),
        )
        await self._change(record_id, lambda old: old and msgspec.structs.replace(old, handle=handle))
        self._log.debug("dns.written", name=place.record_name, dns_provider=provider.record.name)
        return handle

    async def release(self, user: str, *, by_job: bool = True) -> Sequence[str]:
        """Take `user` off everything it needed; returns what nobody needs any more.

        A job takes that away, unless the caller says that it does so itself. When this fails or is cut off, a job
        goes on with it in any case: nobody would come again before the next start.
        """
        freed: list[str] = []
        try:
            for found in await TXT_RECORDS.all(self._store, self._log, **{f"user:{digest(user)}": "yes"}):
                record_id = _id(found.value)
                left = await self._leave(record_id, [user])
                if left is not None and not left.users:
                    freed.append(record_id)
        except BaseException:
            self.remove_later(freed)
            self._jobs.start(f"release {user}", partial(self._repeat, "dns.not_released", partial(self._release, user)))
            raise
        if by_job:
            self.remove_later(freed)
        return freed

    def remove_later(self, record_ids: Collection[str]) -> None:
        """Let jobs take away what nobody needs any more."""
        for record_id in record_ids:
            if removal := self._removing.get(record_id):
                # It may just have found the value in use, and must look again: the last user has left since.
                removal.is_wanted = True
                continue
            self._removing[record_id] = _Removal()
            self._removals += 1
            self._jobs.start(f"txt {record_id} {self._removals}", partial(self._removal, record_id))

    async def holders(self) -> frozenset[str]:
        """The ids of the orders that have values in DNS, or may have, by the journal."""
        found = await TXT_RECORDS.all(self._store, self._log)
        return frozenset(user.partition(":")[0] for each in found for user in each.value.users)

    async def sweep(self) -> None:
        """Find what earlier processes left: values whose orders have ended, or were never removed.

        When the store does not let it, a job tries again.
        """
        try:
            await self._sweep()
        except StorageUnavailable as error:
            self._log.warning("dns.not_swept", detail=error.detail)
            self._jobs.start("sweep", partial(self._repeat, "dns.not_swept", self._sweep))

    async def _sweep(self) -> None:
        for found in await TXT_RECORDS.all(self._store, self._log):
            record_id = _id(found.value)
            gone = [user for user in found.value.users if not await self._is_alive(user)]
            left = await self._leave(record_id, gone)
            if left is not None and not left.users:
                self._log.info("dns.left_behind", name=left.record_name, provider_id=left.provider_id)
                self.remove_later([record_id])

    async def _release(self, user: str) -> None:
        await self.release(user)

    async def _repeat(self, failure: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The job: do what the store has not let us do, when it does again."""
        for tries in range(REMOVAL_TRIES):
            await self._clock.sleep(REMOVAL_PAUSES_SECONDS[min(tries, len(REMOVAL_PAUSES_SECONDS) - 1)])
            if (error := await outcome_of(work(), self._log)) is None:
                return
            self._log.warning(failure, detail=error.detail)

    async def _leave(self, record_id: str, users: Sequence[str]) -> TxtRecord | None:
        return await self._change(record_id, lambda old: old and _without_users(old, users))

    async def _is_alive(self, user: str) -> bool:
        order_id, _, _ = user.partition(":")
        order = await ORDERS.get(self._store, order_id)
        return order is not None and order.value.status in UNFINISHED

    async def _removal(self, record_id: str) -> None:
        """The job: try until the value is gone, or somebody needs it again."""
        removal = self._removing[record_id]
        try:
            while removal.is_wanted:
                removal.is_wanted = False
                await self._try_to_remove(record_id, removal)
        finally:
            # Without a wait since the last look: whoever gives the value up from here on starts another job.
            del self._removing[record_id]
            removal.tell()

    async def _try_to_remove(self, record_id: str, removal: _Removal) -> None:
        for tries in range(REMOVAL_TRIES):
            error = await outcome_of(self.take_away(record_id), self._log)
            if error is None:
                return
            removal.tell()
            pause = REMOVAL_PAUSES_SECONDS[min(tries, len(REMOVAL_PAUSES_SECONDS) - 1)]
            self._log.warning("dns.not_removed", record_id=record_id, detail=error.detail, next_try_seconds=pause)
            await self._clock.sleep(pause)
        self._log.error("dns.abandoned", record_id=record_id)

    async def take_away(self, record_id: str) -> None:
        """Remove one value from DNS and from the journal, unless it has users (again).

        Raises:
            DnsProviderError, SecretNotFound: it is still there, and still in the journal.
        """
        found = await TXT_RECORDS.get(self._store, record_id)
        if found is None or found.value.users:
            return
        record = found.value
        try:
            provider = await self._providers.use(await self._providers.find(record.provider_id))
        except NotFound:
            self._log.error("dns.provider_gone", name=record.record_name, provider_id=record.provider_id)
            await self._delete(found)
            return
        zone = Zone(name=record.zone_name, id=record.zone_id)
        handle = json.dumps(record.handle, sort_keys=True)
        await self._batched(
            ("remove", record.provider_id, record.zone_name, record.record_name, handle),
            record.value,
            provider.lock(record.record_name),
            lambda values: self._remove_unneeded(provider, zone, record, values),
        )

    async def _remove_unneeded(
        self, provider: OpenProvider, zone: Zone, record: TxtRecord, values: Sequence[str]
    ) -> None:
        # Another look under the lock: whoever needs a value again has said so in the journal by now, and
        # writes it again once we are done.
        found = [
            await TXT_RECORDS.get(self._store, txt_record_id(record.provider_id, record.record_name, value))
            for value in values
        ]
        unneeded = [each for each in found if each is not None and not each.value.users]
        if not unneeded:
            return
        await provider.remove_txt(zone, record.record_name, [each.value.value for each in unneeded], record.handle)
        for each in unneeded:
            await self._delete(each)
        self._log.debug("dns.removed", name=record.record_name, values=len(unneeded))

    async def _delete(self, found: Versioned[TxtRecord]) -> None:
        try:
            await self._store.commit([Delete(key=TXT_RECORDS.key(_id(found.value)), expect_revision=found.revision)])
        except RevisionConflict:
            self._log.debug("dns.needed_again", name=found.value.record_name)

    async def _change(self, record_id: str, change: Callable[[TxtRecord | None], TxtRecord | None]) -> TxtRecord | None:
        """Change a journal entry that others change too; None leaves it as it is."""
        while True:
            found = await TXT_RECORDS.get(self._store, record_id)
            old = found.value if found else None
            new = change(old)
            if new is None or new == old:
                return new
            try:
                await self._store.commit([TXT_RECORDS.put(new, found.revision if found else ABSENT)])
            except RevisionConflict:
                continue
            return new

    async def _batched(
        self,
        key: tuple[str, ...],
        value: str,
        lock: asyncio.Lock,
        work: Callable[[Sequence[str]], Coroutine[Any, Any, Any]],
    ) -> Any:
        """Do `work` for this value together with all that wait for the same lock; not torn when one of them leaves."""
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = _Batch()
            batch.task = asyncio.create_task(self._run_batch(key, batch, lock, work), name=f"txt {key[0]} {key[-1]}")
            self._writing.add(batch.task)
            batch.task.add_done_callback(self._heard)
        batch.values[value] = None
        assert batch.task is not None
        try:
            return await asyncio.shield(batch.task)
        except ScaivaultError as error:
            raise _own_copy(error) from None

    async def _run_batch(
        self,
        key: tuple[str, ...],
        batch: _Batch,
        lock: asyncio.Lock,
        work: Callable[[Sequence[str]], Coroutine[Any, Any, Any]],
    ) -> Any:
        async with lock:
            # From here on it is closed: who comes now makes another one.
            del self._batches[key]
            return await work(list(batch.values))

    def _heard(self, task: asyncio.Task[Any]) -> None:
        self._writing.discard(task)
        # Everybody who waited may have gone; the outcome is in the journal or will be tried again.
        if not task.cancelled():
            task.exception()

    async def _wishes(self, response: ChallengeResponse) -> tuple[str | None, PropagationOverride | None]:
        order = await ORDERS.get(self._store, response.order_id)
        return (order.value.dns_provider, order.value.propagation) if order else (response.dns_provider, None)

    async def close(self, grace_seconds: float) -> None:
        """Let writes under way end, for so long."""
        if self._writing:
            _, pending = await asyncio.wait(self._writing, timeout=grace_seconds)
            for task in pending:
                task.cancel()


def _own_copy(error: ScaivaultError) -> ScaivaultError:
    """The same error for one of those who waited together: each notes its own identifier in it."""
    own = type(error).__new__(type(error), *error.args)
    own.__dict__.update(error.__dict__)
    return own


def _policy(provider: OpenProvider, override: PropagationOverride | None) -> PropagationPolicy:
    policy = override.applied_to(provider.policy) if override else provider.policy
    if policy.visibility == "resolvers" and not policy.resolvers:
        raise DnsProviderError(
            f"DNS provider {provider.record.name}: the policy `resolvers` names no resolvers; give them in the request "
            "(`propagation.resolvers`) or in the provider's settings (`propagation_resolvers`)",
            is_final=True,
        )
    return policy


def _user(response: ChallengeResponse) -> str:
    return f"{response.order_id}:{response.token}"


def _id(record: TxtRecord) -> str:
    return txt_record_id(record.provider_id, record.record_name, record.value)


def _with_user(old: TxtRecord | None, place: Place, value: str, user: str, clock: Clock) -> TxtRecord:
    if old is not None:
        return msgspec.structs.replace(
            old, users=_united(old.users, user), zone_name=place.zone.name, zone_id=place.zone.id
        )
    return TxtRecord(
        provider_id=place.provider.record.id,
        zone_name=place.zone.name,
        zone_id=place.zone.id,
        record_name=place.record_name,
        value=value,
        users=(user,),
        created_at=clock.now(),
    )


def _united(users: Iterable[str], user: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*users, user)))


def _without_users(old: TxtRecord, gone: Collection[str]) -> TxtRecord:
    return msgspec.structs.replace(old, users=tuple(each for each in old.users if each not in gone))
