"""DNS providers: configured by callers or by the administrator's file, and chosen for a name."""

from __future__ import annotations

import asyncio
import difflib
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.api import messages as m
from scaivaultd.api.dispatch import field_error
from scaivaultd.model.errors import (
    Conflict,
    DnsProviderError,
    FieldError,
    Internal,
    InvalidRequest,
    NotFound,
    RevisionConflict,
    ScaivaultError,
)
from scaivaultd.model.names import parse_zone, require_resolver
from scaivaultd.model.resources import DnsProvider, DnsProviderName
from scaivaultd.model.storage import ABSENT, Delete
from scaivaultd.plugin import secret_references
from scaivaultd.services.documents import DNS_PROVIDER_NAMES, DNS_PROVIDERS, TXT_RECORDS, Versioned, digest
from scaivaultd.services.provider_pool import NoZone, OpenProvider

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.ids import IdMaker
    from scaivaultd.plugin import DnsProviderKind, ProviderSettings, Zone
    from scaivaultd.services.ports import Store
    from scaivaultd.services.provider_pool import ProviderPool
    from scaivaultd.services.secrets import Secrets


CHOICE_SECONDS = 30.0
"""How long each provider may take to say whether a name is its own: the orders of all others wait for it."""
RESOLVERS_MAX = 16


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A provider that could write a name; `zone` is the configured or found zone that makes it one."""

    record: DnsProvider
    zone: str


def _kept(known: Mapping[str, DnsProvider], record: DnsProvider) -> DnsProvider:
    """The record that is there already, if it says the same; else the new one, as old as that."""
    old = known.get(record.name)
    if old is None:
        return record
    same = msgspec.structs.replace(record, created_at=old.created_at, updated_at=old.updated_at)
    return old if same == old else msgspec.structs.replace(record, created_at=old.created_at)


class DnsProviders:
    """Handlers of `pki.dns_providers.*` that do not touch DNS, and the choice of a provider."""

    def __init__(
        self,
        *,
        store: Store,
        pool: ProviderPool,
        secrets: Secrets,
        from_file: Sequence[DnsProvider],
        types_by_request: Sequence[str] = (),
        ids: IdMaker,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`from_file` are those of the configuration file; their names are theirs, and callers cannot change them."""
        self._store = store
        self._pool = pool
        self._secrets = secrets
        self._from_file = {each.name: each for each in from_file}
        self._types_by_request = types_by_request
        self._ids = ids
        self._clock = clock
        self._log = log
        self._going: set[str] = set()

    def use_file(self, from_file: Sequence[DnsProvider], types_by_request: Sequence[str]) -> None:
        """Go by another configuration file from now on; providers that it has not changed stay open."""
        before, self._from_file = self._from_file, {each.name: _kept(self._from_file, each) for each in from_file}
        self._types_by_request = types_by_request
        for record in before.values():
            if self._from_file.get(record.name) is not record:
                self._pool.forget(record.id)
        self.report_unusable()

    def report_unusable(self) -> None:
        """Log what is wrong with the providers of the configuration file: nobody else will be told."""
        for record in self._from_file.values():
            if (reply := self._reply(record)).status == "unusable":
                self._log.error("dns_provider.unusable", dns_provider=record.name, detail=reply.detail)

    async def create(self, request: m.CreateDnsProvider, context: RequestContext) -> m.DnsProviderReply:
        """Handle `pki.dns_providers.create`."""
        now = self._clock.now()
        record = DnsProvider(
            id=self._ids.dns_provider(),
            name=request.name,
            type=request.type,
            zones=_zones(request.zones),
            config=request.config,
            created_at=now,
            updated_at=now,
        )
        self._require_free_of_file(request.name)
        self._check(record)
        self._require_secrets(record, context)
        if (same := await self._same(record)) is not None:
            return self._reply(same)
        await self._try(record)
        try:
            await self._store.commit([DNS_PROVIDERS.put(record), await self._name(record)])
        except RevisionConflict:
            raise Conflict(f"the name {request.name!r} was taken a moment ago; ask again") from None
        self._log.info("dns_provider.created", dns_provider=record.name, type=record.type, provider_id=record.id)
        return self._reply(record)

    async def get(self, request: m.DnsProviderById, context: RequestContext) -> m.DnsProviderReply:
        """Handle `pki.dns_providers.get`."""
        return self._reply(await self.find(request.id))

    async def list(self, request: m.ListDnsProviders, context: RequestContext) -> m.DnsProviderList:
        """Handle `pki.dns_providers.list`."""
        page = await DNS_PROVIDERS.page(self._store, where={}, cursor=request.cursor, limit=request.limit)
        stored = [each.value for each in page.items]
        first = [] if request.cursor else list(self._from_file.values())
        return m.DnsProviderList(items=[self._reply(each) for each in (*first, *stored)], next_cursor=page.next_cursor)

    async def update(self, request: m.UpdateDnsProvider, context: RequestContext) -> m.DnsProviderReply:
        """Handle `pki.dns_providers.update`."""
        current = await self._changeable(request.id)
        old = current.value
        record = msgspec.structs.replace(
            old,
            name=old.name if request.name is None else request.name,
            zones=old.zones if request.zones is None else _zones(request.zones),
            config=old.config if request.config is None else request.config,
            updated_at=self._clock.now(),
        )
        self._require_free_of_file(record.name)
        self._check(record)
        self._require_secrets(record, context)
        await self._try(record)
        changes: list[Any] = [DNS_PROVIDERS.put(record, current.revision)]
        if record.name != old.name:
            held = await DNS_PROVIDER_NAMES.get(self._store, digest(old.name))
            changes.append(await self._name(record))
            if held is not None:
                changes.append(Delete(key=DNS_PROVIDER_NAMES.key(digest(old.name)), expect_revision=held.revision))
        await self._commit_change(record, changes)
        self._log.info("dns_provider.updated", dns_provider=record.name, provider_id=record.id)
        return self._reply(record)

    async def delete(self, request: m.DnsProviderById, context: RequestContext) -> m.Deleted:
        """Handle `pki.dns_providers.delete`."""
        current = await self._changeable(request.id)
        record = current.value
        if record.id in self._going:
            raise Conflict(f"DNS provider {record.name} is being deleted by another request")
        self._going.add(record.id)
        try:
            await self._delete(current)
        finally:
            self._going.discard(record.id)
        self._pool.forget(record.id)
        self._log.info("dns_provider.deleted", dns_provider=record.name, provider_id=record.id)
        return m.Deleted(id=record.id)

    async def _delete(self, current: Versioned[DnsProvider]) -> None:
        record = current.value
        if left := await TXT_RECORDS.all(self._store, self._log, provider=record.id):
            names = ", ".join(sorted({each.value.record_name for each in left})[:3])
            raise Conflict(
                f"DNS provider {record.name} still has {len(left)} values in DNS that are ours to remove ({names}); "
                "they go when their orders end"
            )
        held = await DNS_PROVIDER_NAMES.get(self._store, digest(record.name))
        changes: list[Any] = [Delete(key=DNS_PROVIDERS.key(record.id), expect_revision=current.revision)]
        if held is not None and held.value.provider_id == record.id:
            changes.append(Delete(key=DNS_PROVIDER_NAMES.key(digest(record.name)), expect_revision=held.revision))
        await self._commit_change(record, changes)

    def require_staying(self, record: DnsProvider) -> None:
        """Raise DnsProviderError while the provider is being deleted: nothing of ours may come to it any more."""
        if record.id in self._going:
            raise DnsProviderError(f"DNS provider {record.name} is being deleted", retry_after=1.0)

    async def find(self, id_or_name: str) -> DnsProvider:
        """The provider of that id or name; raises NotFound."""
        for record in self._from_file.values():
            if id_or_name in (record.name, record.id):
                return record
        if (stored := await DNS_PROVIDERS.get(self._store, id_or_name)) is not None:
            return stored.value
        named = await DNS_PROVIDER_NAMES.get(self._store, digest(id_or_name))
        stored = await DNS_PROVIDERS.get(self._store, named.value.provider_id) if named else None
        if stored is None:
            known = [each.name for each in await self.all()]
            hint = difflib.get_close_matches(id_or_name, known, n=1)
            meant = f"; did you mean {hint[0]!r}?" if hint else ""
            raise NotFound(f"there is no DNS provider {id_or_name[:100]!r}{meant}")
        return stored.value

    async def all(self) -> Sequence[DnsProvider]:
        """Every provider: those of the file first."""
        stored = await DNS_PROVIDERS.all(self._store, self._log)
        return [*self._from_file.values(), *(each.value for each in stored)]

    async def use(self, record: DnsProvider) -> OpenProvider:
        """The provider, opened; raises DnsProviderError or SecretNotFound."""
        return await self._pool.use(record)

    async def candidates(self, name: str) -> tuple[Sequence[Candidate], Sequence[ScaivaultError]]:
        """Who could write `name`: by configured zones, else by what the providers say; and who could not be asked."""
        said = await asyncio.gather(*(self._candidate(record, name) for record in await self.all()))
        found = [each for each in said if isinstance(each, Candidate)]
        failed = [each for each in said if isinstance(each, ScaivaultError)]
        return found, failed

    async def _candidate(self, record: DnsProvider, name: str) -> Candidate | ScaivaultError | None:
        try:
            zone = await self._zone_for(record, name)
        except NoZone:
            return None
        except ScaivaultError as error:
            return error
        return None if zone is None else Candidate(record=record, zone=zone)

    async def choose(self, name: str) -> DnsProvider:
        """The provider whose zone encloses `name` most closely.

        Raises:
            DnsProviderError: none does, several do, or one that may could not be asked.
        """
        found, failed = await self.candidates(name)
        if not found and failed:
            raise failed[0]
        if not found:
            there = ", ".join(each.name for each in await self.all()) or "none is configured"
            raise DnsProviderError(
                f"no DNS provider serves a zone of {name} ({there}); create one, or name one with dns_provider",
                is_final=True,
            )
        longest = max(len(each.zone) for each in found)
        best = [each for each in found if len(each.zone) == longest]
        if len(best) > 1:
            names = ", ".join(sorted(each.record.name for each in best))
            raise DnsProviderError(
                f"several DNS providers serve {best[0].zone}: {names}; name one with dns_provider", is_final=True
            )
        return best[0].record

    async def referrers(self) -> Mapping[str, Sequence[str]]:
        """The names of the providers that refer to each secret."""
        users: dict[str, list[str]] = {}
        for record in await self.all():
            for reference in self._references(record):
                users.setdefault(reference, []).append(record.name)
        return users

    async def _zone_for(self, record: DnsProvider, name: str) -> str | None:
        if record.zones:
            enclosing = [zone for zone in record.zones if name == zone or name.endswith(f".{zone}")]
            return max(enclosing, key=len, default=None)
        if self._pool.kind_of(record).capabilities.any_zone:
            return None  # it would take any name, which says nothing
        zone: Zone = await (await self._pool.use(record)).find_zone(name, CHOICE_SECONDS)
        return zone.name

    def _check(self, record: DnsProvider) -> None:
        kind = self._kind(record)
        settings = self._settings(kind, record)
        for member, reference in secret_references(settings):
            self._secrets.check(reference, f"/config/{member}")

    def _require_secrets(self, record: DnsProvider, context: RequestContext) -> None:
        # The gate goes by the names of members, and a plugin is free to name one otherwise.
        for member, reference in secret_references(self._settings(self._kind(record), record)):
            context.permits.require("secret.use", secret=reference, pointer=f"/config/{member}")

    def _kind(self, record: DnsProvider) -> DnsProviderKind:
        kind = self._pool.kinds.get(record.type)
        if kind is None:
            near = difflib.get_close_matches(record.type, self._pool.kinds, n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            detail = f"no installed plugin brings the type {record.type!r}{meant}; there is {_listed(self._pool.kinds)}"
            raise _invalid("/type", "unknown_type", detail)
        by_request = record.origin != "file" and kind.name not in self._types_by_request
        if kind.configuration_file_only and by_request:
            detail = (
                f"a provider of the type {kind.name} runs programs or calls hosts of its own choice: it can only be "
                "configured in the daemon's configuration file, under [[dns_provider]], unless [dns] types_by_request "
                "lists it"
            )
            raise _invalid("/type", "configuration_file_only", detail)
        return kind

    def _settings(self, kind: DnsProviderKind, record: DnsProvider) -> ProviderSettings:
        try:
            settings = self._pool.settings_of(kind, record.config)
        except msgspec.ValidationError as error:
            field = field_error(str(error), kind.settings, "/config")
            raise InvalidRequest(field.detail, [field]) from None
        except ValueError as error:
            raise _invalid("/config", "invalid_value", str(error)) from None
        if settings.challenge_alias is not None:
            parse_zone(settings.challenge_alias, "/config/challenge_alias")
        require_resolvers(settings.propagation_resolvers, "/config/propagation_resolvers")
        is_asked = settings.propagation == "resolvers" and not settings.skip_propagation_check
        if is_asked and not settings.propagation_resolvers:
            detail = "propagation `resolvers` needs to be told whom to ask: give propagation_resolvers"
            raise _invalid("/config/propagation_resolvers", "missing", detail)
        return settings

    async def _try(self, record: DnsProvider) -> None:
        """Everything that can be known before the first use: secrets that are not there, half-given credentials."""
        for _, reference in secret_references(self._settings(self._kind(record), record)):
            await self._secrets.read(reference)
        try:
            opened = await self._pool.try_open(record)
        except DnsProviderError as error:
            raise _invalid("/config", "unusable", error.detail) from None
        await opened.close()

    async def _same(self, record: DnsProvider) -> DnsProvider | None:
        """The provider that has the name already, if it is the same; raises Conflict if it is another."""
        named = await DNS_PROVIDER_NAMES.get(self._store, digest(record.name))
        if named is None:
            return None
        stored = await DNS_PROVIDERS.get(self._store, named.value.provider_id)
        if stored is None:
            raise Internal(f"DNS provider {named.value.provider_id} has a name and no record")
        has = stored.value
        if (has.type, has.zones, has.config) == (record.type, record.zones, record.config):
            return has
        raise Conflict(
            f"the name {record.name!r} belongs to another DNS provider, {has.id}; update that, or choose another"
        )

    def _require_free_of_file(self, name: str) -> None:
        if name in self._from_file:
            raise Conflict(f"the name {name!r} belongs to a DNS provider of the configuration file")

    async def _name(self, record: DnsProvider) -> Any:
        held = await DNS_PROVIDER_NAMES.get(self._store, digest(record.name))
        if held is not None:
            raise Conflict(f"the name {record.name!r} belongs to another DNS provider")
        return DNS_PROVIDER_NAMES.put(DnsProviderName(name=record.name, provider_id=record.id), ABSENT)

    async def _changeable(self, id_or_name: str) -> Versioned[DnsProvider]:
        record = await self.find(id_or_name)
        if record.origin == "file":
            raise Conflict(f"DNS provider {record.name} stands in the configuration file; change it there")
        current = await DNS_PROVIDERS.get(self._store, record.id)
        if current is None:
            raise NotFound(f"there is no DNS provider {id_or_name[:100]!r}")
        return current

    async def _commit_change(self, record: DnsProvider, changes: Sequence[Any]) -> None:
        try:
            await self._store.commit(changes)
        except RevisionConflict:
            raise Conflict(f"DNS provider {record.name} is being changed by another request; ask again") from None

    def _references(self, record: DnsProvider) -> Sequence[str]:
        kind = self._pool.kinds.get(record.type)
        if kind is None:
            return ()
        try:
            return [reference for _, reference in secret_references(self._pool.settings_of(kind, record.config))]
        except (msgspec.ValidationError, ValueError):
            return ()

    def _reply(self, record: DnsProvider) -> m.DnsProviderReply:
        detail = ""
        try:
            self._check(record)
        except InvalidRequest as error:
            detail = error.detail
        return m.DnsProviderReply(
            id=record.id,
            name=record.name,
            type=record.type,
            zones=list(record.zones),
            # Nobody has judged what stands in the file: what does not fit may be a secret, and callers see this.
            config={} if detail and record.origin == "file" else record.config,
            origin=record.origin,
            status="unusable" if detail else "ready",
            detail=detail,
            created_at=record.created_at,
            updated_at=record.updated_at,
        )


def require_resolvers(texts: Sequence[str], pointer: str) -> None:
    """Refuse what cannot be asked, and more than anybody needs: they are all asked in every round."""
    if len(texts) > RESOLVERS_MAX:
        raise _invalid(pointer, "too_many", f"{len(texts)} resolvers; at most {RESOLVERS_MAX} are asked")
    for place, text in enumerate(texts):
        require_resolver(text if text.isprintable() else "", f"{pointer}/{place}")


def _zones(texts: Sequence[str]) -> tuple[str, ...]:
    zones = [parse_zone(text, f"/zones/{place}") for place, text in enumerate(texts)]
    return tuple(dict.fromkeys(zones))


def _listed(kinds: Mapping[str, Any]) -> str:
    return ", ".join(sorted(kinds)) or "none"


def _invalid(pointer: str, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])
