"""A DNS service in memory and a provider for it that keeps the whole contract, or breaks one clause by request.

It is what the conformance kit is proved with: see `tests/plugin/test_testing.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import msgspec
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
    RateLimited,
    SecretMissing,
    TransientError,
    Zone,
    ZoneNotFound,
    candidates,
)
from scaivaultd.plugin.testing import FaultKind

T = TypeVar("T")

RIGHT = "right-token-with-/slash"
WRONG = "wrong-token-with-/slash"


class Unauthorized(Exception):
    """The token is not the right one."""


class Gone(Exception):
    """There is no such zone or name."""


class Raced(Exception):
    """The set is not at the revision that the writer has read."""


class Failed(Exception):
    """The service fails, the connection breaks, or it asks to slow down."""


class MemoryService:
    """Record sets with revisions; the requests are coroutines that others may run between."""

    def __init__(self) -> None:
        self.zones = ["parent.test", "zone.parent.test"]
        self.sets: dict[str, tuple[int, list[str]]] = {}
        self.faults: list[tuple[FaultKind, bool]] = []
        self.complaints: list[str] = []
        self.changes = 0

    async def ask(self, token: str, action: Callable[[], T], *, writes: bool = False) -> T:
        await asyncio.sleep(0)
        if token not in (RIGHT, WRONG):
            self.complaints.append("a token of another service")
        fault = self._fault(writes)
        if fault in ("rate_limit", "server_error", "drop_before"):
            raise Failed(fault)
        if token != RIGHT:
            raise Unauthorized
        answer = action()
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "drop_after":
            raise Failed(fault)
        await asyncio.sleep(0)
        return answer

    def read(self, name: str) -> tuple[int, list[str]]:
        if not any(name == zone or name.endswith(f".{zone}") for zone in self.zones):
            raise Gone
        revision, values = self.sets.get(name, (0, []))
        return revision, list(values)

    def write(self, name: str, values: Sequence[str], revision: int | None) -> int:
        current, _ = self.read(name)
        if revision not in (None, current):
            raise Raced
        self.changes += 1
        self.sets[name] = (current + 1, list(values))
        return self.changes

    def _fault(self, writes: bool) -> FaultKind | None:
        for place, (fault, only_writes) in enumerate(self.faults):
            if writes or not only_writes:
                del self.faults[place]
                return fault
        return None


class MemorySettings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token_path: Annotated[str, Meta(description="The token.")]


class MemoryProvider:
    """The whole contract over `MemoryService`."""

    def __init__(self, service: MemoryService, settings: MemorySettings, context: PluginContext) -> None:
        self.service = service
        self.settings = settings
        self.context = context

    async def find_zone(self, name: str) -> Zone:
        zones = await self.ask(lambda: list(self.service.zones))
        for candidate in candidates(name):
            if candidate in zones:
                return Zone(name=candidate)
        raise ZoneNotFound(f"{name} is in none of {len(zones)} zones")

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        change = await self.change(name, lambda held: [*held, *(each for each in values if each not in held)])
        return {"change": change}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        try:
            await self.change(name, lambda held: [each for each in held if each not in values])
        except Gone:
            return

    async def wait_live(self, handle: Handle) -> None:
        assert handle["change"] <= self.service.changes

    async def check(self) -> None:
        await self.ask(lambda: None)

    async def change(self, name: str, wanted: Callable[[list[str]], list[str]]) -> int:
        while True:
            revision, held = await self.ask(lambda: self.service.read(name))
            if wanted(held) == held:
                return self.service.changes
            try:
                return await self.write(name, wanted(held), revision)
            except Raced:
                continue

    async def write(self, name: str, values: list[str], revision: int | None) -> int:
        return await self.ask(lambda: self.service.write(name, values, revision), writes=True)

    async def ask(self, action: Callable[[], T], *, writes: bool = False) -> T:
        """One request, with retries."""
        refused = False
        failures = 0
        while True:
            token = (await self.context.secrets.read(self.settings.token_path)).reveal()
            try:
                async with asyncio.timeout(self.settings.request_timeout):
                    return await self.service.ask(token, action, writes=writes)
            except Unauthorized:
                if refused:
                    raise self.refusal(token) from None
                refused = True
                self.context.secrets.forget(self.settings.token_path)
            except (Failed, TimeoutError) as error:
                failures += 1
                await self.pause(error, failures)

    def refusal(self, token: str) -> Exception:
        return ProviderAuthError("the token is refused")

    async def pause(self, error: Exception, failures: int) -> None:
        if failures > self.settings.max_retries:
            raise (RateLimited if str(error) == "rate_limit" else TransientError)(f"it fails: {error}") from None
        await self.context.clock.sleep(1)


class MemoryRig:
    """A rig around a provider of the given class."""

    def __init__(self, provider: type[MemoryProvider] = MemoryProvider) -> None:
        self.service = MemoryService()
        self._provider = provider

    @property
    def kind(self) -> DnsProviderKind:
        @asynccontextmanager
        async def opened(settings: MemorySettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
            yield self._provider(self.service, settings, context)

        return DnsProviderKind(
            name="memory",
            title="Memory",
            settings=MemorySettings,
            open=opened,
            example={"token_path": "dns/memory/token"},
            capabilities=Capabilities(),
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"token_path": "dns/memory/token"}

    @property
    def secrets(self) -> Mapping[str, str]:
        return {"dns/memory/token": RIGHT}

    @property
    def wrong_secrets(self) -> Mapping[str, str] | None:
        return {"dns/memory/token": WRONG}

    @property
    def zone(self) -> str:
        return "zone.parent.test"

    async def values(self, name: str) -> Sequence[str]:
        return self.service.read(name)[1]

    async def put_foreign(self, name: str, value: str) -> None:
        revision, held = self.service.read(name)
        self.service.write(name, [*held, value], revision)

    async def fail(self, fault: FaultKind, times: int) -> None:
        self.service.faults += [(fault, False)] * times

    async def fail_writes(self, fault: FaultKind, times: int) -> None:
        self.service.faults += [(fault, True)] * times

    def complaints(self) -> Sequence[str]:
        return self.service.complaints


class Overwrites(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        return {"change": await self.change(name, lambda held: list(values))}


class AddsBlindly(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        return {"change": await self.change(name, lambda held: [*held, *values])}


class AddsTheFirstOnly(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        return await super().add_txt(zone, name, values[:1], ttl)


class StopsAtWhatIsThere(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        return {"change": await self.change(name, lambda held: held if values[0] in held else [*held, *values])}


class RemovesAll(MemoryProvider):
    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        await self.change(name, lambda held: [])


class MissesTheAbsent(MemoryProvider):
    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        _, held = await self.ask(lambda: self.service.read(name))
        if not set(values) & set(held):
            raise PermanentError("there is no such record")
        await super().remove_txt(zone, name, values, handle)


class NeedsTheHandle(MemoryProvider):
    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        if handle is not None:
            await super().remove_txt(zone, name, values, handle)


class RemembersInMemory(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        self.written = True
        return await super().add_txt(zone, name, values, ttl)

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        if getattr(self, "written", False):
            await super().remove_txt(zone, name, values, handle)


class TrustsTheHandle(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        await super().add_txt(zone, name, values, ttl)
        _, held = await self.ask(lambda: self.service.read(name))
        return {"change": 0, "place": held.index(values[0])}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        if handle is None or len(values) > 1:
            return await super().remove_txt(zone, name, values, handle)
        place = handle["place"]
        await self.change(name, lambda held: [*held[:place], *held[place + 1 :]])
        return None


class HandsOutObjects(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        await super().add_txt(zone, name, values, ttl)
        return {"provider": self}


class WritesWithoutRevision(MemoryProvider):
    async def write(self, name: str, values: list[str], revision: int | None) -> int:
        return await super().write(name, values, None)


class SwallowsCancellation(MemoryProvider):
    async def write(self, name: str, values: list[str], revision: int | None) -> int:
        try:
            return await super().write(name, values, revision)
        except asyncio.CancelledError:
            return 0


class EmptiesFirst(MemoryProvider):
    async def write(self, name: str, values: list[str], revision: int | None) -> int:
        await super().write(name, [], revision)
        return await super().write(name, values, None)


class DropsQuotes(MemoryProvider):
    async def write(self, name: str, values: list[str], revision: int | None) -> int:
        return await super().write(name, [each.replace('"', "") for each in values], revision)


class CutsLongTexts(MemoryProvider):
    async def write(self, name: str, values: list[str], revision: int | None) -> int:
        return await super().write(name, [each[:255] for each in values], revision)


class TakesTheShortestZone(MemoryProvider):
    async def find_zone(self, name: str) -> Zone:
        zone = await super().find_zone(name)
        return Zone(name=min((each for each in self.service.zones if zone.name.endswith(each)), key=len))


class ComparesTextsNotLabels(MemoryProvider):
    async def find_zone(self, name: str) -> Zone:
        zones = await self.ask(lambda: sorted(self.service.zones, key=len, reverse=True))
        for each in zones:
            if name.endswith(each):
                return Zone(name=each)
        raise ZoneNotFound(name)


class GuessesZones(MemoryProvider):
    async def find_zone(self, name: str) -> Zone:
        try:
            return await super().find_zone(name)
        except ZoneNotFound:
            return Zone(name=".".join(name.split(".")[-2:]))


class TakesFailureForAbsence(MemoryProvider):
    async def find_zone(self, name: str) -> Zone:
        try:
            self.settings = msgspec.structs.replace(self.settings, max_retries=0)
            return await super().find_zone(name)
        except TransientError:
            raise ZoneNotFound(name) from None


class TakesRefusalForWeather(MemoryProvider):
    def refusal(self, token: str) -> Exception:
        return TransientError("it does not work")


class LeaksInTheText(MemoryProvider):
    def refusal(self, token: str) -> Exception:
        return ProviderAuthError(f"Bearer {token} is refused")


class LeaksInTheCause(MemoryProvider):
    async def ask(self, action: Callable[[], T], *, writes: bool = False) -> T:
        try:
            return await super().ask(action, writes=writes)
        except ProviderAuthError:
            token = await self.context.secrets.read(self.settings.token_path)
            raise ProviderAuthError("refused") from ValueError({"Authorization": f"Bearer {token.reveal()}"})


class LeaksInAnAttribute(MemoryProvider):
    def refusal(self, token: str) -> Exception:
        error = ProviderAuthError("refused")
        error.detail = f"/update?token={token.replace('/', '%2F')}"
        error.args = ("refused",)
        return error


class LeaksInTheLog(MemoryProvider):
    async def write(self, name: str, values: list[str], revision: int | None) -> int:
        self.context.log.debug("memory.write", token=(await self.context.secrets.read("dns/memory/token")).reveal())
        return await super().write(name, values, revision)


class NeverForgets(MemoryProvider):
    async def ask(self, action: Callable[[], T], *, writes: bool = False) -> T:
        token = (await self.context.secrets.read(self.settings.token_path)).reveal()
        if token != RIGHT:
            raise self.refusal(token)
        return await super().ask(action, writes=writes)


class NeverRetries(MemoryProvider):
    async def pause(self, error: Exception, failures: int) -> None:
        raise TransientError("it fails")


class RetriesForEver(MemoryProvider):
    async def pause(self, error: Exception, failures: int) -> None:
        await self.context.clock.sleep(1)


class RetriesInRetries(MemoryProvider):
    async def ask(self, action: Callable[[], T], *, writes: bool = False) -> T:
        for _ in range(3):
            try:
                return await super().ask(action, writes=writes)
            except TransientError:
                continue
        return await super().ask(action, writes=writes)


class CallsAllFaultsPermanent(MemoryProvider):
    async def pause(self, error: Exception, failures: int) -> None:
        try:
            await super().pause(error, failures)
        except TransientError:
            raise PermanentError("it fails") from None


class AppendsAgainAfterALostAnswer(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        _, held = await self.ask(lambda: self.service.read(name))
        new = [each for each in values if each not in held]

        def append() -> int:
            return self.service.write(name, [*self.service.read(name)[1], *new], None)

        return {"change": await self.ask(append, writes=True)}


class FailsWhenItHasRemovedAlready(MemoryProvider):
    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        _, held = await self.ask(lambda: self.service.read(name))

        def take() -> None:
            now = self.service.read(name)[1]
            if not set(values) <= set(now):
                raise PermanentError("there is no such record")
            self.service.write(name, [each for each in now if each not in values], None)

        if set(values) & set(held):
            await self.ask(take, writes=True)


class FailsWhereTheZoneIsGone(MemoryProvider):
    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        if zone.name not in self.service.zones:
            raise ZoneNotFound(zone.name)
        await super().remove_txt(zone, name, values, handle)


class CannotWriteTheZonesName(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        if name == zone.name:
            name = f"@.{name}"
        return await super().add_txt(zone, name, values, ttl)


class RemovesFromNeighbours(MemoryProvider):
    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        for each in [held for held in self.service.sets if held.endswith(name)] or [name]:
            await super().remove_txt(zone, each, values, handle)


class ChecksNothing(MemoryProvider):
    async def check(self) -> None:
        return None


class KnowsItsOwnChangesOnly(MemoryProvider):
    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        self.own = await super().add_txt(zone, name, values, ttl)
        return self.own

    async def wait_live(self, handle: Handle) -> None:
        if getattr(self, "own", None) is None:
            raise PermanentError("no such change")


class TellsSecretsByNothing(MemoryProvider):
    async def ask(self, action: Callable[[], T], *, writes: bool = False) -> T:
        try:
            return await super().ask(action, writes=writes)
        except SecretMissing:
            raise PermanentError("a secret is missing") from None


class SendsRubbish(MemoryProvider):
    async def check(self) -> None:
        self.service.complaints.append("there is no such path")
        await super().check()
