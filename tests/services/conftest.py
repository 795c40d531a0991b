"""Shared by the services' tests: a world of real store and seal, a clock that jumps, and a CA in memory.

The CA stands behind our own `CaClient` Protocol: it is what the socket would show. It is honest until
a test scripts single answers; everything it is asked is written down in `calls`.

DNS likewise: a service with record sets in memory, a provider for it through the plugin contract, and name
servers behind our `NameServers` Protocol that show what the service holds unless a test says otherwise.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import inspect
import itertools
import json
import logging
from collections import defaultdict, deque
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from scaivaultd_plugins.dns01 import Dns01Solver, scaivaultd_challenge_solvers
from structlog.testing import LogCapture

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.dns import CaaSet, Delegation, NameServer, Route, ServerVerdict
from scaivaultd.model.errors import CaRefused, DnsError, InvalidRequest, SecretNotFound
from scaivaultd.model.ids import AccountId, IdMaker, NodeId, OrderId
from scaivaultd.plugin import (
    Capabilities,
    ChallengeResponse,
    DnsProviderKind,
    PermanentError,
    PluginContext,
    ProviderAuthError,
    ProviderSettings,
    SolverKind,
    Zone,
    ZoneNotFound,
    candidates,
)
from scaivaultd.services.account_care import AccountCare
from scaivaultd.services.accounts import Accounts
from scaivaultd.services.breakers import Breakers
from scaivaultd.services.budgets import Budgets
from scaivaultd.services.bulk_renewals import BulkRenewals
from scaivaultd.services.certificates import Certificates
from scaivaultd.services.dns_checks import DnsChecks
from scaivaultd.services.dns_providers import DnsProviders
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, ORDERS, TXT_RECORDS
from scaivaultd.services.evidence import Witness
from scaivaultd.services.issuing import Issuing
from scaivaultd.services.jobs import Jobs
from scaivaultd.services.preflight import Preflight, PreflightModes
from scaivaultd.services.provider_pool import ProviderPool
from scaivaultd.services.pursuit import Tools
from scaivaultd.services.quotas import Quotas
from scaivaultd.services.renewing import Renewing
from scaivaultd.services.revoking import Revoking
from scaivaultd.services.secrets import LentSecrets, Secrets
from scaivaultd.services.solvers import OpenSolver, Solvers
from scaivaultd.services.txt_records import TxtRecords
from scaivaultd.services.updating import Updating
from scaivaultd.services.waiting import Signal, Waiting
from scaivaultd.store.sealing import EnvelopeSealer
from scaivaultd.store.sqlite import SqliteStore
from tests.fakes.judging import ScriptedJudge
from tests.fakes.scripted_ca import (
    FakeClock,
    Issuer,
    LostAnswer,
    ScriptedCa,
    ScriptedCas,
    SeededRandomness,
    WatchedStore,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.acme.limit_rules import Rule
    from scaivaultd.model.dns import Answer
    from scaivaultd.model.names import Identifier
    from scaivaultd.model.resources import Account, Certificate, DnsProvider, Order, Sighting, TxtRecord
    from scaivaultd.plugin import DnsProvider as Provider
    from scaivaultd.plugin import Handle, SecretBackend
    from scaivaultd.services.documents import Shelf, Versioned
    from scaivaultd.services.ports import EabSource, NameServers, OwnAnswer, OwnSight

DIRECTORY = "https://ca.test/directory"
DEADLINE = 20.0
_NUMBERS = itertools.count(1)
UNFINISHED = ("pending", "ready", "processing")


class OutsideSecrets:
    """What `cred:` references point to."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def check(self, reference: str, pointer: str) -> None:
        if not reference.startswith("cred:"):
            raise InvalidRequest(f"{reference!r} is not allowed")

    async def read(self, reference: str) -> str:
        try:
            return self.values[reference]
        except KeyError:
            raise SecretNotFound(f"{reference}: not there") from None


class RecordingSolver:
    """Knows what is in place now and what ever was; `script` holds errors for its next presents and clean-ups."""

    def __init__(self) -> None:
        self.in_place: dict[str, str] = {}
        self.presented: list[str] = []
        self.cleaned: list[str] = []
        self.present_script: deque[Exception | None] = deque()
        self.clean_up_script: deque[Exception | None] = deque()
        self.before_present: Callable[[], Awaitable[None]] | None = None

    async def present(self, response: ChallengeResponse) -> None:
        if self.before_present is not None:
            await self.before_present()
        if self.present_script and (error := self.present_script.popleft()) is not None:
            raise error
        await asyncio.sleep(0)
        self.presented.append(response.token)
        self.in_place[response.token] = response.key_authorization

    async def clean_up(self, response: ChallengeResponse) -> None:
        if self.clean_up_script and (error := self.clean_up_script.popleft()) is not None:
            raise error
        await asyncio.sleep(0)
        self.cleaned.append(response.token)
        self.in_place.pop(response.token, None)


class NobodyLooks:
    """For worlds in which nobody looks at our own answers."""

    async def http01(self, host: str, token: str, expected: str) -> str | None:
        raise AssertionError(f"{host} was looked at")

    async def tlsalpn01(self, host: str, expected_digest: bytes) -> str | None:
        raise AssertionError(f"{host} was looked at")


class NothingSeen:
    """For worlds in which it does not matter what is seen of our own answers."""

    async def see_http01(self, host: str, token: str, expected: str) -> Sequence[Sighting]:
        return []

    async def see_tlsalpn01(self, host: str, expected_digest: bytes) -> Sequence[Sighting]:
        return []


class NobodyGivesEab:
    """For worlds in which nobody fetches external account bindings."""

    async def by_access_key(self, access_key: str) -> tuple[str, str]:
        raise AssertionError("an access key was used")

    async def by_email(self, email: str) -> tuple[str, str]:
        raise AssertionError(f"{email} was used")


class NoNameServers:
    """For worlds in which nobody asks DNS."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"DNS was asked: {name}")


def _kind(challenge_type: str) -> SolverKind:
    def never(_: Any) -> Any:
        raise AssertionError("the worlds hand their solvers in")

    return SolverKind(name=challenge_type, challenge_type=challenge_type, open=never)


@dataclass
class World:
    """One life of a daemon's services over a store; `die` ends it and begins the next."""

    sqlite: SqliteStore
    store: WatchedStore
    sealer: EnvelopeSealer
    clock: FakeClock
    ca: ScriptedCa
    cas: ScriptedCas
    secrets: OutsideSecrets
    log: FilteringBoundLogger
    logged: list[EventDict]
    patience_seconds: float = 3600.0
    orders_per_ca: int = 4
    solver: RecordingSolver = field(default_factory=RecordingSolver)
    secret_backends: dict[str, SecretBackend] = field(default_factory=dict)
    dns_kinds: Sequence[DnsProviderKind] = ()
    from_file: Sequence[DnsProvider] = ()
    name_servers: NameServers = field(default_factory=lambda: NoNameServers())
    rules: Mapping[str, Sequence[Rule]] = field(default_factory=dict)
    preflight_modes: PreflightModes = field(default_factory=lambda: PreflightModes(caa="off", delegation="off"))
    own_answer: OwnAnswer = field(default_factory=lambda: NobodyLooks())
    own_sight: OwnSight = field(default_factory=lambda: NothingSeen())
    eab_source: EabSource = field(default_factory=lambda: NobodyGivesEab())
    solver_makers: Sequence[Callable[[World], OpenSolver]] = ()
    judge: ScriptedJudge = field(default_factory=ScriptedJudge)

    def __post_init__(self) -> None:
        self.node_id = NodeId("node_one")
        self.ids = IdMaker(self.clock, SeededRandomness())
        self.begin()

    def begin(self) -> None:
        """Make the services of one life."""
        self.ca.sees = lambda token: self.solver.in_place.get(token)
        self.jobs = Jobs(self.log)
        self.waiting = Waiting(self.store)
        self.randomness = SeededRandomness()
        self.secret_store = Secrets(
            store=self.store,
            sealer=self.sealer,
            outside=self.secrets,
            backends=self.secret_backends,
            clock=self.clock,
            log=self.log,
        )
        context = PluginContext(
            secrets=LentSecrets(self.secret_store),
            clock=self.clock,
            fraction=self.randomness.fraction,
            log=self.log,
            user_agent="test",
        )
        self.pool = ProviderPool({kind.name: kind for kind in self.dns_kinds}, context, self.log)
        self.providers = DnsProviders(
            store=self.store,
            pool=self.pool,
            secrets=self.secret_store,
            from_file=self.from_file,
            ids=self.ids,
            clock=self.clock,
            log=self.log,
        )
        self.secret_store.referrers = self.providers.referrers
        self.removals = Jobs(self.log)
        self.records = TxtRecords(
            store=self.store,
            providers=self.providers,
            name_servers=self.name_servers,
            jobs=self.removals,
            clock=self.clock,
            log=self.log,
        )
        self.budgets = Budgets(store=self.store, rules=self.rules, clock=self.clock, log=self.log)
        self.preflight = Preflight(
            self.preflight_modes,
            name_servers=self.name_servers,
            own_answer=self.own_answer,
            clock=self.clock,
            log=self.log,
        )
        self.accounts = Accounts(
            store=self.store,
            sealer=self.sealer,
            cas=self.cas,
            secrets=self.secret_store,
            budgets=self.budgets,
            eab_source=self.eab_source,
            jobs=self.jobs,
            waiting=self.waiting,
            ids=self.ids,
            clock=self.clock,
            randomness=self.randomness,
            log=self.log,
            patience_seconds=self.patience_seconds,
        )
        self.tools = Tools(
            store=self.store,
            sealer=self.sealer,
            accounts=self.accounts,
            solvers=Solvers([OpenSolver(kind=_kind("http-01"), solver=self.solver), *self.more_solvers()]),
            records=self.records,
            ids=self.ids,
            clock=self.clock,
            randomness=self.randomness,
            log=self.log,
            node_id=self.node_id,
            budgets=self.budgets,
            preflight=self.preflight,
            renewals=Signal(),
            breakers=Breakers(self.clock),
            witness=Witness(own_sight=self.own_sight, name_servers=self.name_servers, log=self.log),
        )
        self.quotas = Quotas(store=self.store, clock=self.clock)
        self.issuing = Issuing(
            self.tools,
            self.jobs,
            self.waiting,
            providers=self.providers,
            quotas=self.quotas,
            orders_per_ca=self.orders_per_ca,
            patience_seconds=self.patience_seconds,
        )
        self.certificate_service = Certificates(store=self.store, sealer=self.sealer, clock=self.clock, log=self.log)
        self.renewing = Renewing(
            store=self.store,
            accounts=self.accounts,
            issuing=self.issuing,
            clock=self.clock,
            randomness=self.randomness,
            log=self.log,
            renewals_per_ca=self.orders_per_ca,
            judge=self.judge,
        )
        self.tools.renewals.subscribe(self.renewing.changed)
        self.updating = Updating(
            self.tools,
            issuing=self.issuing,
            certificates=self.certificate_service,
            providers=self.providers,
            quotas=self.quotas,
            waiting=self.waiting,
        )
        self.bulk_renewals = BulkRenewals(
            store=self.store, renewing=self.renewing, judge=self.judge, ids=self.ids, clock=self.clock, log=self.log
        )
        self.revoking = Revoking(
            self.tools,
            self.jobs,
            self.waiting,
            issuing=self.issuing,
            patience_seconds=self.patience_seconds,
        )
        self.care = AccountCare(
            store=self.store,
            sealer=self.sealer,
            accounts=self.accounts,
            issuing=self.issuing,
            renewing=self.renewing,
            jobs=self.jobs,
            waiting=self.waiting,
            ids=self.ids,
            clock=self.clock,
            randomness=self.randomness,
            log=self.log,
        )

    def more_solvers(self) -> list[OpenSolver]:
        return [make(self) for make in self.solver_makers]

    async def die(self) -> None:
        """End this life at once: tasks are torn, and nothing that was only in memory is left."""
        for task in self.tasks():
            task.cancel()
        await asyncio.gather(*self.tasks(), return_exceptions=True)
        self.solver = RecordingSolver()
        self.begin()

    async def account(self, **changes: Any) -> AccountId:
        request = m.CreateAccount(
            **{"name": "test", "provider": "custom", "directory_url": DIRECTORY, "wait_seconds": 10, **changes}
        )
        reply = await self.accounts.create(request, context())
        return AccountId(reply.id)

    async def order(
        self, *domains: str, account_id: str | None = None, key: str | None = None, **members: Any
    ) -> OrderId:
        """Have an order accepted; it is under way when this returns."""
        asked = {
            "account_id": account_id or await self.account(),
            "domains": list(domains or ["a.example.test"]),
            "challenge_type": "http-01",
            "wait_seconds": 0,
        }
        request = m.Issue(**{**asked, **members})
        reply = await self.issuing.issue(request, context(key))
        return OrderId(reply.order_id)

    async def issue(self, *domains: str) -> Order:
        """One order to its end."""
        return await self.ended(await self.order(*domains))

    async def ended(self, order_id: OrderId) -> Order:
        """The order when its job is over."""
        await self.idle()
        return await self.shown(order_id)

    async def idle(self) -> None:
        """Wait until no job is left."""
        async with asyncio.timeout(DEADLINE):
            while tasks := self.tasks():
                await asyncio.wait(tasks)

    def tasks(self) -> list[asyncio.Task[Any]]:
        """The jobs under way."""
        names = ("order ", "register ", "revoke ", "rotate ", "deactivate ")
        return [task for task in asyncio.all_tasks() if task.get_name().startswith(names)]

    async def shown(self, order_id: OrderId) -> Order:
        order: Order = (await self.read(ORDERS, order_id)).value
        return order

    async def shown_account(self, account_id: AccountId) -> Account:
        account: Account = (await self.read(ACCOUNTS, account_id)).value
        return account

    async def read(self, shelf: Shelf[Any], resource_id: str) -> Versioned[Any]:
        found = await shelf.get(self.sqlite, resource_id)
        assert found is not None
        return found

    async def certificates(self) -> list[Certificate]:
        return [each.value for each in await CERTIFICATES.all(self.sqlite, structlog.get_logger())]

    async def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Every event in the outbox: its type and body."""
        pending = await self.sqlite.pending_events(1000)
        return [(each.event.type, json.loads(each.event.data)) for each in pending]

    async def event_types(self) -> list[str]:
        return [kind for kind, _ in await self.events()]

    async def change(self, order_id: OrderId, **changes: Any) -> None:
        """Change the order as another process would."""
        current = await self.read(ORDERS, order_id)
        await self.sqlite.commit([ORDERS.put(msgspec.structs.replace(current.value, **changes), current.revision)])

    def said(self, event: str) -> list[EventDict]:
        """What was logged under that name."""
        return [entry for entry in self.logged if entry["event"] == event]


class Acts(msgspec.Struct, frozen=True):
    """Script entry: the DNS service acts, and then this follows instead of its answer: an error, or a handle."""

    then: Any


class Instead(msgspec.Struct, frozen=True):
    """Script entry: the provider answers this and does nothing."""

    answer: Any


class ServiceSettings(ProviderSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token_path: str | None = None
    account_paths: dict[str, str] = msgspec.field(default_factory=dict)
    user: str | None = None
    password_path: str | None = None
    region: str = "here"

    def __post_init__(self) -> None:
        if self.region == "nowhere":
            raise ValueError("there is no region nowhere")


class DnsService:
    """Record sets that are read and replaced as a whole, with other tasks running in between.

    `script[method]` holds what the next calls meet: an error, a function to call or await first, `Acts`,
    `Instead`; `always[method]` what every call meets. Calls are written down as method and name.
    """

    def __init__(self) -> None:
        self.zones: dict[str, str] = {"example.test": "Z1"}
        self.token = "service-token-0123456789"
        self.sets: dict[str, list[str]] = {}
        self.script: defaultdict[str, deque[Any]] = defaultdict(deque)
        self.always: dict[str, Any] = {}
        self.calls: list[tuple[str, str]] = []
        self.batches: list[tuple[str, list[str], dict[str, Any] | None]] = []
        self.ttls: list[int] = []
        self.writes: Callable[[str], str] = lambda value: value
        self.holds_at_most: int | None = None
        self.busy = 0
        self.busiest = 0
        self.opened = 0
        self.closed = 0

    def asked(self, method: str) -> list[str]:
        """The names that method was called for, in order."""
        return [name for called, name in self.calls if called == method]

    def values(self) -> dict[str, set[str]]:
        """Everything that is in DNS."""
        return {name: set(values) for name, values in self.sets.items() if values}

    async def act(self, method: str, name: str, honest: Callable[[], Awaitable[Any]]) -> Any:
        self.calls.append((method, name))
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            entry = self.script[method].popleft() if self.script[method] else self.always.get(method)
            while callable(entry):
                entry = entry()
                if inspect.isawaitable(entry):
                    entry = await entry
            await asyncio.sleep(0)
            match entry:
                case BaseException():
                    raise entry
                case Instead(answer):
                    return answer
                case Acts(then):
                    await honest()
                    if isinstance(then, BaseException):
                        raise then
                    return then
            return await honest()
        finally:
            self.busy -= 1

    async def replace(self, name: str, wanted: Callable[[list[str]], list[str]]) -> None:
        held = list(self.sets.get(name, ()))
        for _ in range(3):
            await asyncio.sleep(0)
        new = wanted(held)
        if self.holds_at_most is not None and len(new) > self.holds_at_most:
            raise PermanentError(f"the name is full: it would hold {len(new)} values")
        self.sets[name] = new


class ServiceProvider:
    """The provider contract over `DnsService`; what a call meets is the service's script."""

    def __init__(self, service: DnsService, settings: ServiceSettings, context: PluginContext) -> None:
        self._service = service
        self._settings = settings
        self._context = context

    async def find_zone(self, name: str) -> Zone:
        async def find() -> Zone:
            await self._log_in()
            for candidate in candidates(name):
                if candidate in self._service.zones:
                    return Zone(name=candidate, id=self._service.zones[candidate])
            raise ZoneNotFound(f"{name} is in none of {len(self._service.zones)} zones")

        zone: Zone = await self._service.act("find_zone", name, find)
        return zone

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        async def add() -> Handle:
            await self._log_in()
            if self._service.zones.get(zone.name) != zone.id:
                raise ZoneNotFound(f"there is no zone {zone.id}")
            new = [self._service.writes(each) for each in values]
            await self._service.replace(name, lambda held: list(dict.fromkeys((*held, *new))))
            self._service.ttls.append(ttl)
            return {"change": len(self._service.calls)}

        self._service.batches.append(("add", list(values), None))
        handle: Handle = await self._service.act("add_txt", name, add)
        return handle

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        async def remove() -> None:
            await self._log_in()
            gone = {self._service.writes(each) for each in values}
            await self._service.replace(name, lambda held: [each for each in held if each not in gone])

        self._service.batches.append(("remove", list(values), None if handle is None else dict(handle)))
        await self._service.act("remove_txt", name, remove)

    async def _log_in(self) -> None:
        if self._settings.token_path is None:
            return
        if (await self._context.secrets.read(self._settings.token_path)).reveal() != self._service.token:
            self._context.secrets.forget(self._settings.token_path)
            raise ProviderAuthError("the token is not known here [10000]")


class SignallingProvider(ServiceProvider):
    """One whose service says when a change is everywhere, and whose credentials can be tried."""

    async def wait_live(self, handle: Handle) -> None:
        async def wait() -> None:
            return None

        await self._service.act("wait_live", str(handle["change"]), wait)

    async def check(self) -> None:
        await self._service.act("check", "", self._log_in)


def service_kinds(service: DnsService) -> list[DnsProviderKind]:
    """Kinds of providers for one service, that differ in what the host has to know."""

    def kind(name: str, provider: type[ServiceProvider] = ServiceProvider, **members: Any) -> DnsProviderKind:
        @asynccontextmanager
        async def opened(settings: ServiceSettings, context: PluginContext) -> AsyncIterator[Provider]:
            if (settings.user is None) != (settings.password_path is None):
                raise PermanentError("user and password_path go together: give both or none")

            async def nothing() -> None:
                return None

            await service.act("open", name, nothing)
            service.opened += 1
            try:
                yield provider(service, settings, context)
            finally:
                await service.act("close", name, nothing)
                service.closed += 1

        return DnsProviderKind(
            name=name, title=name, settings=ServiceSettings, open=opened, example={"token_path": "dns/token"}, **members
        )

    return [
        kind("memory"),
        kind("signalling", SignallingProvider),
        kind("sequential", capabilities=Capabilities(sequential=True)),
        kind("few_values", capabilities=Capabilities(max_values=2)),
        kind("takes_all", capabilities=Capabilities(any_zone=True)),
        kind("slow_ttl", capabilities=Capabilities(min_ttl=600)),
        kind("from_file", configuration_file_only=True),
    ]


class ScriptedNameServers:
    """Name servers that show what the service holds.

    `shows[address]` is what a server answers instead, always; `rounds` the same for the next looks, one
    each. `refuses[name]` are errors of `route`, `bogus_zones` and `caa_sets` what validation and CAA say.
    """

    def __init__(self, service: DnsService) -> None:
        self._service = service
        self.zones: dict[str, tuple[str, ...]] = {"example.test": ("192.0.2.1", "192.0.2.2")}
        self.cnames: dict[str, str] = {}
        self.shows: dict[str, Answer] = {}
        self.rounds: deque[Mapping[str, Answer]] = deque()
        self.refuses: dict[str, DnsError] = {}
        self.bogus_zones: dict[str, str] = {}
        self.caa_sets: dict[str, CaaSet | DnsError] = {}
        self.routed: list[str] = []
        self.looks: list[tuple[str, tuple[str, ...], frozenset[str]]] = []
        self.before_look: Callable[[], Awaitable[None]] | None = None
        self.before_bogus: Callable[[], Awaitable[None]] | None = None

    def texts(self, name: str) -> Collection[str]:
        """The TXT values that somebody who asks for `name` gets."""
        while name in self.cnames:
            name = self.cnames[name]
        return self._service.sets.get(name, ())

    async def route(self, name: str, *, follow_cname: bool = True) -> Route:
        self.routed.append(name)
        await asyncio.sleep(0)
        if name in self.refuses:
            raise self.refuses[name]
        chain: list[str] = []
        target = name
        while follow_cname and target in self.cnames:
            target = self.cnames[target]
            chain.append(target)
        zone = next((each for each in candidates(target) if each in self.zones), None)
        if zone is None:
            raise DnsError(f"{target} is in no zone", "no_zone")
        servers = [
            NameServer(name=f"ns{place}.{zone}", addresses=(address,))
            for place, address in enumerate(self.zones[zone], 1)
        ]
        return Route(
            name=name, chain=tuple(chain), target=target, delegation=Delegation(zone=zone, servers=tuple(servers))
        )

    async def look(self, delegation: Delegation, name: str, values: Collection[str]) -> Sequence[ServerVerdict]:
        asked = [(server.name, address) for server in delegation.servers for address in server.addresses]
        return await self._answers(asked, name, values)

    async def look_at_resolvers(
        self, resolvers: Sequence[str], name: str, values: Collection[str]
    ) -> Sequence[ServerVerdict]:
        return await self._answers([(each, each) for each in resolvers], name, values)

    async def _answers(
        self, servers: Sequence[tuple[str, str]], name: str, values: Collection[str]
    ) -> Sequence[ServerVerdict]:
        self.looks.append((name, tuple(address for _, address in servers), frozenset(values)))
        if self.before_look is not None:
            await self.before_look()
        await asyncio.sleep(0)
        shows = {**self.shows, **(self.rounds.popleft() if self.rounds else {})}
        return [
            ServerVerdict(
                server=server,
                address=address,
                answer=(answer := shows.get(address) or self._honest(name, values)),
                detail="" if answer == "complete" else f"says {answer}",
            )
            for server, address in servers
        ]

    def _honest(self, name: str, values: Collection[str]) -> Answer:
        there = set(values) & set(self._service.sets.get(name, ()))
        return "complete" if len(there) == len(set(values)) else "partial" if there else "absent"

    async def caa(self, name: str) -> CaaSet:
        found = self.caa_sets.get(name, CaaSet(owner=None, records=()))
        if isinstance(found, DnsError):
            raise found
        return found

    async def bogus(self, zone: str) -> str | None:
        if self.before_bogus is not None:
            await self.before_bogus()
        return self.bogus_zones.get(zone)


class DnsCa(ScriptedCa):
    """A CA that offers dns-01 and asks DNS."""

    def __init__(self, clock: FakeClock, issuer: Issuer, texts: Callable[[str], Collection[str]]) -> None:
        super().__init__(clock, issuer)
        self._texts = texts

    def _make_authorization(self, number: str, identifier: Identifier) -> str:
        url = super()._make_authorization(number, identifier)
        authorization = self.authorizations[url]
        authorization["challenges"][0]["type"] = "dns-01"
        if identifier.value.startswith("*."):
            # RFC 8555 section 7.1.4: the name without the star, and a member that tells.
            authorization["identifier"]["value"] = identifier.value[2:]
            authorization["wildcard"] = True
        return url

    def validate(self, authorization: dict[str, Any]) -> None:
        (challenge,) = authorization["challenges"]
        name = authorization["identifier"]["value"]
        shown = set(self._texts(f"_acme-challenge.{name}"))
        proofs = {txt_value(f"{challenge['token']}.{thumbprint}") for thumbprint in self.accounts}
        # What RFC 8555 section 8.4 asks for: one of the values, whatever else is there.
        self.sees = lambda token: f"{token}." if shown & proofs else None
        super().validate(authorization)


def txt_value(key_authorization: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(key_authorization.encode()).digest()).rstrip(b"=").decode()


@dataclass
class DnsWorld(World):
    """A world with a DNS service, a provider kind for it, and the daemon's dns-01 solver."""

    service: DnsService = field(default_factory=DnsService)

    def begin(self) -> None:
        super().begin()
        self.checks = DnsChecks(
            providers=self.providers,
            records=self.records,
            name_servers=self.name_servers,
            clock=self.clock,
            randomness=self.randomness,
            log=self.log,
        )

    async def put_secret(self, path: str, value: str) -> None:
        await self.secret_store.put(m.PutSecret(path=path, value=value), context())

    async def provider(
        self, name: str = "main", kind: str = "memory", zones: Sequence[str] = (), **config: Any
    ) -> m.DnsProviderReply:
        """Create a provider; its token is in the store unless a config says otherwise."""
        if "token_path" not in config:
            config["token_path"] = "dns/token"
            await self.put_secret("dns/token", self.service.token)
        request = m.CreateDnsProvider(name=name, type=kind, zones=list(zones), config=config)
        return await self.providers.create(request, context())

    async def opened(self, name: str = "main") -> Any:
        """The open provider of that name."""
        return await self.providers.use(await self.providers.find(name))

    async def dns_order(self, *domains: str, account_id: str | None = None, **members: Any) -> OrderId:
        """Have an order for dns-01 accepted, one of its own; it is under way when this returns."""
        request = m.Issue(
            account_id=account_id or await self.account(),
            domains=list(domains or ["example.test"]),
            challenge_type="dns-01",
            # The same request while one is under way would be the same order.
            **{"wait_seconds": 0, "renew_before": float(next(_NUMBERS)), **members},
        )
        return OrderId((await self.issuing.issue(request, context())).order_id)

    async def journal(self) -> list[TxtRecord]:
        """Every TXT value that is written down."""
        found = [each.value for each in await TXT_RECORDS.all(self.sqlite, structlog.get_logger())]
        return sorted(found, key=lambda record: (record.record_name, record.value))

    async def until(self, reached: Callable[[], Any]) -> None:
        """Let the others run until something holds."""
        async with asyncio.timeout(DEADLINE):
            while not reached():  # noqa: ASYNC110 - the tasks get there by themselves
                await asyncio.sleep(0)

    def tasks(self) -> list[asyncio.Task[Any]]:
        return [*super().tasks(), *_tasks_named("txt ")]

    async def die(self) -> None:
        for task in _tasks_named("dns provider "):
            task.cancel()
        await super().die()


def _tasks_named(prefix: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(prefix)]


def dns01_solver(world: World) -> OpenSolver:
    """The daemon's own solver, as it comes with the plugin."""
    (kind,) = scaivaultd_challenge_solvers()
    return OpenSolver(kind=kind, solver=Dns01Solver(world.records))


def context(key: str | None = None) -> RequestContext:
    return RequestContext(request_id="req_test", idempotency_key=key)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def logged(capture: LogCapture) -> list[EventDict]:
    return capture.entries


@pytest.fixture
def log(capture: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    return logger


@pytest.fixture(scope="session")
def issuer() -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test Intermediate")])
    start = datetime(2020, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Issuer(key, certificate)


@pytest.fixture
async def sqlite(tmp_path: Path, clock: FakeClock, log: FilteringBoundLogger) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(tmp_path / "store.db", clock=clock, log=log)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def make_world(
    sqlite: SqliteStore, clock: FakeClock, log: FilteringBoundLogger, logged: list[EventDict], issuer: Issuer
) -> AsyncIterator[Callable[..., World]]:
    """Make a world over the store of this test; another one stands for another process on the same store."""
    ca = ScriptedCa(clock, issuer)
    sealer = EnvelopeSealer(b"k" * 32, "store")
    async with AsyncExitStack() as stack:

        async def end(world: World) -> None:
            await world.jobs.close(5)
            await world.removals.close(5)
            await world.records.close(5)
            await world.pool.close()

        def make(world_class: type[World] = World, **changes: Any) -> World:
            parts: dict[str, Any] = {
                "sqlite": sqlite,
                "store": WatchedStore(sqlite),
                "sealer": sealer,
                "clock": clock,
                "ca": ca,
                "cas": ScriptedCas(ca),
                "secrets": OutsideSecrets(),
                "log": log,
                "logged": logged,
            }
            world = world_class(**{**parts, **changes})
            stack.push_async_callback(end, world)
            return world

        yield make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture
def lost() -> Callable[[Exception], LostAnswer]:
    """Script entry: the CA acts, but its answer is lost and this error is seen instead."""
    return LostAnswer


@pytest.fixture
def ca_refuses() -> Callable[..., CaRefused]:
    """An error with a CA's problem document, by the problem's name."""
    return refused


@pytest.fixture
def service() -> DnsService:
    return DnsService()


@pytest.fixture
def name_servers(service: DnsService) -> ScriptedNameServers:
    return ScriptedNameServers(service)


@pytest.fixture
def make_dns_world(
    make_world: Callable[..., World],
    service: DnsService,
    name_servers: ScriptedNameServers,
    clock: FakeClock,
    issuer: Issuer,
) -> Callable[..., World]:
    """Make a world with DNS; all of a test share the service, the name servers, the CA and the store."""
    ca = DnsCa(clock, issuer, name_servers.texts)

    def make(**changes: Any) -> World:
        parts: dict[str, Any] = {
            "ca": ca,
            "cas": ScriptedCas(ca),
            "service": service,
            "dns_kinds": service_kinds(service),
            "name_servers": name_servers,
            "solver_makers": [dns01_solver],
        }
        return make_world(DnsWorld, **{**parts, **changes})

    return make


@pytest.fixture
def dns_world(make_dns_world: Callable[..., World]) -> World:
    return make_dns_world()


@pytest.fixture
def respond_with() -> Callable[..., ChallengeResponse]:
    """Make the response of an order to a challenge, by its token."""

    def make(identifier: str = "example.test", order_id: str = "order_1", token: str = "t", **members: Any) -> Any:
        return ChallengeResponse(
            identifier=identifier,
            type="dns-01",
            token=token,
            key_authorization=f"{token}.thumbprint",
            order_id=order_id,
            **members,
        )

    return make


@pytest.fixture
def acts() -> Callable[[Any], Acts]:
    """Script entry: the DNS service acts, and then this follows instead of its answer."""
    return Acts


@pytest.fixture
def instead() -> Callable[[Any], Instead]:
    """Script entry: the provider answers this and does nothing."""
    return Instead
