"""Trying a DNS provider for real, and showing where a challenge would go without writing."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from scaivaultd.api import messages as m
from scaivaultd.model.dns import PropagationOverride, Route
from scaivaultd.model.errors import DnsPropagationTimeout, FieldError, InvalidRequest, RateLimited, ScaivaultError
from scaivaultd.model.names import parse_identifiers
from scaivaultd.services.propagation import Propagation
from scaivaultd.services.txt_records import PREFIX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.dns import CaaSet, ServerVerdict
    from scaivaultd.model.resources import DnsProvider
    from scaivaultd.services.dns_providers import DnsProviders
    from scaivaultd.services.ports import NameServers
    from scaivaultd.services.provider_pool import OpenProvider
    from scaivaultd.services.txt_records import Place, TxtRecords

TESTS_AT_ONCE = 8
NOBODY_HAS_THIS = "scaivaultd-trace"
"""A value that is never written: asking for it shows what each server answers."""


class Stopped(Exception):
    """A step failed; what comes after it makes no sense."""


class DnsChecks:
    """Handlers of `pki.dns_providers.test` and `.trace`."""

    def __init__(
        self,
        *,
        providers: DnsProviders,
        records: TxtRecords,
        name_servers: NameServers,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        self._providers = providers
        self._records = records
        self._name_servers = name_servers
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._under_way = 0

    async def test(self, request: m.TestDnsProvider, context: RequestContext) -> m.TestReply:
        """Handle `pki.dns_providers.test`."""
        record = await self._providers.find(request.id)
        domain = _domain(request.domain or next(iter(record.zones), None))
        if self._under_way >= TESTS_AT_ONCE:
            raise RateLimited(f"{self._under_way} tests are running already", 10)
        self._under_way += 1
        try:
            value = base64.urlsafe_b64encode(self._randomness.token_bytes(32)).rstrip(b"=").decode()
            trial = Trial(self._providers, self._records, self._name_servers, self._clock, record, value)
            await trial.run(f"{PREFIX}{domain}", request.timeout_seconds)
        finally:
            self._under_way -= 1
        self._log.info("dns_provider.tested", dns_provider=record.name, ok=trial.ok, request_id=context.request_id)
        return trial.reply()

    async def trace(self, request: m.Trace, context: RequestContext) -> m.TraceReply:
        """Handle `pki.dns_providers.trace`."""
        [identifier] = parse_identifiers([request.name], public_ca=False, pointer="/name")
        if identifier.type != "dns":
            raise _invalid("/name", "address_has_no_dns_01", "an IP address cannot be proven by dns-01")
        named = await self._providers.find(request.dns_provider) if request.dns_provider else None
        return await Tracing(self._providers, self._name_servers).trace(identifier.value, identifier.base, named)


class Trial:
    """One test: step after step until one fails; what was written is removed in every outcome."""

    def __init__(
        self,
        providers: DnsProviders,
        records: TxtRecords,
        name_servers: NameServers,
        clock: Clock,
        record: DnsProvider,
        value: str,
    ) -> None:
        self._providers = providers
        self._records = records
        self._propagation = Propagation(name_servers, clock)
        self._clock = clock
        self._record = record
        self._value = value
        self._steps: list[m.TestStep] = []
        self._verdicts: Sequence[ServerVerdict] = ()
        self._place: Place | None = None

    @property
    def ok(self) -> bool:
        """Whether every step that was taken went well, and all were taken."""
        return bool(self._steps) and all(step.status != "failed" for step in self._steps)

    def reply(self) -> m.TestReply:
        """What was seen."""
        place = self._place
        return m.TestReply(
            id=self._record.id,
            name=self._record.name,
            ok=self.ok,
            record_name=place.record_name if place else None,
            value=self._value,
            zone=place.zone.name if place else None,
            steps=self._steps,
        )

    async def run(self, name: str, timeout_seconds: float) -> None:
        """Take all steps."""
        try:
            provider = await self._open()
            await self._check(provider)
            place = self._place = await self._find_place(name, timeout_seconds)
            await self._write_and_remove(place)
        except Stopped:
            return

    async def _open(self) -> OpenProvider:
        async with self._step("open") as say:
            provider = await self._providers.use(self._record)
            say(f"provider of the type {self._record.type}, its secrets are named by reference")
        return provider

    async def _check(self, provider: OpenProvider) -> None:
        async with self._step("check") as say:
            told = await provider.check()
            say("the service accepts the credentials" if told else "the service has no way to tell without writing")

    async def _find_place(self, name: str, timeout_seconds: float) -> Place:
        override = PropagationOverride(visibility="all", timeout=timeout_seconds, on_failure="fail")
        async with self._step("route") as say:
            place = await self._records.place(name, self._record.id, override)
            way = " -> ".join((name, *(place.route.chain if place.route else ())))
            say(f"{way}, zone {place.zone.name} at the provider" + (f"; {place.warning}" if place.warning else ""))
        return place

    async def _write_and_remove(self, place: Place) -> None:
        user = f"test:{self._value}"
        try:
            await self._write_and_see(place, user)
        except Stopped:
            await self._remove(user)
            raise
        except BaseException:
            # Cut off: nobody waits for the provider any more; a job takes the value away, or the next process.
            await self._records.release(user)
            raise
        await self._remove(user)

    async def _write_and_see(self, place: Place, user: str) -> None:
        async with self._step("write") as say:
            handle = await self._records.write(place, self._value, user)
            say(f"a random value is in the TXT set of {place.record_name}, by the provider's word")
        if place.provider.signals_live:
            async with self._step("live") as say:
                live = await place.provider.wait_live(handle, place.policy.timeout)
                say("the service says that it is everywhere" if live else "no word of the service in time")
        async with self._step("visible") as say:
            await self._propagation.wait(
                place.record_name, place.route, place.policy, lambda: [self._value], self._note
            )
            say(f"{len(self._verdicts)} addresses of the name servers show it")

    async def _remove(self, user: str) -> None:
        freed = await self._records.release(user, by_job=False)
        try:
            async with self._step("remove") as say:
                for record_id in freed:
                    await self._records.take_away(record_id)
                say("the value is gone, by the provider's word")
        except BaseException:
            self._records.remove_later(freed)
            raise

    def _note(self, verdicts: Sequence[ServerVerdict]) -> None:
        self._verdicts = verdicts

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[_Say]:
        say = _Say()
        started = self._clock.monotonic()
        try:
            yield say
        except ScaivaultError as error:
            verdicts = error.verdicts if isinstance(error, DnsPropagationTimeout) else ()
            self._done(name, "failed", started, error.detail, verdicts)
            raise Stopped from error
        self._done(name, "ok", started, say.text, self._verdicts if name == "visible" else ())

    def _done(
        self, name: str, status: m.StepStatus, started: float, detail: str, verdicts: Sequence[ServerVerdict]
    ) -> None:
        self._steps.append(
            m.TestStep(
                name=name,
                status=status,
                seconds=round(self._clock.monotonic() - started, 3),
                detail=detail,
                verdicts=tuple(verdicts),
            )
        )


class _Say:
    """The sentence of a step."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, text: str) -> None:
        self.text = text


class Tracing:
    """Follows a name without writing; what stands in the way becomes a sentence."""

    def __init__(self, providers: DnsProviders, name_servers: NameServers) -> None:
        self._providers = providers
        self._name_servers = name_servers
        self._problems: list[str] = []

    async def trace(self, name: str, base: str, named: DnsProvider | None) -> m.TraceReply:
        """The whole way of one name."""
        challenge_name = f"{PREFIX}{base}"
        route = await self._route(challenge_name)
        target = route.target if route else challenge_name
        answers: Sequence[ServerVerdict] = ()
        if route is not None:
            answers = await self._name_servers.look(route.delegation, target, [NOBODY_HAS_THIS])
            await self._judge(route, answers)
        candidates = await self._candidates(target)
        chosen = await self._chosen(target, named, candidates)
        if route is not None and chosen and chosen.zone and chosen.zone != route.delegation.zone:
            self._problems.append(
                f"{chosen.name} would write to its zone {chosen.zone}, but the world asks the servers of "
                f"{route.delegation.zone}"
            )
        return m.TraceReply(
            name=name,
            challenge_name=challenge_name,
            chain=list(route.chain) if route else [],
            target=route.target if route else None,
            zone=route.delegation.zone if route else None,
            name_servers=list(route.delegation.servers) if route else [],
            answers=list(answers),
            dns_provider=chosen,
            candidates=candidates,
            caa=await self._caa(base),
            problems=self._problems,
        )

    async def _route(self, name: str) -> Route | None:
        try:
            return await self._name_servers.route(name)
        except ScaivaultError as error:
            self._problems.append(error.detail)
            return None

    async def _judge(self, route: Route, answers: Sequence[ServerVerdict]) -> None:
        useless = ("refused", "not_authoritative", "failed", "unreachable")
        self._problems += [
            f"{each.server} ({each.address}): {each.detail or each.answer}"
            for each in answers
            if each.answer in useless
        ]
        if bogus := await self._name_servers.bogus(route.delegation.zone):
            self._problems.append(f"DNSSEC of {route.delegation.zone}: {bogus}")

    async def _candidates(self, target: str) -> list[m.TraceProvider]:
        found, failed = await self._providers.candidates(target)
        self._problems += [each.detail for each in failed]
        return [
            m.TraceProvider(id=each.record.id, name=each.record.name, type=each.record.type, zone=each.zone)
            for each in found
        ]

    async def _chosen(
        self, target: str, named: DnsProvider | None, candidates: Sequence[m.TraceProvider]
    ) -> m.TraceProvider | None:
        try:
            record = named or await self._providers.choose(target)
            zone = await (await self._providers.use(record)).find_zone(target)
        except ScaivaultError as error:
            self._problems.append(error.detail)
            if named is None:
                return None
            return m.TraceProvider(id=named.id, name=named.name, type=named.type, zone=None, detail=error.detail)
        return m.TraceProvider(id=record.id, name=record.name, type=record.type, zone=zone.name)

    async def _caa(self, base: str) -> CaaSet | None:
        try:
            return await self._name_servers.caa(base)
        except ScaivaultError as error:
            self._problems.append(error.detail)
            return None


def _domain(text: str | None) -> str:
    if text is None:
        raise _invalid("/domain", "missing", "this provider names no zones: give the domain to test with")
    [identifier] = parse_identifiers([text], public_ca=False, pointer="/domain")
    if identifier.type != "dns":
        raise _invalid("/domain", "address_has_no_dns_01", "an IP address cannot be proven by dns-01")
    return identifier.base


def _invalid(pointer: str, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])
