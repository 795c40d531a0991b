"""Shared by the services' tests: a world of real store and seal, a clock that jumps, and a CA in memory.

The CA stands behind our own `CaClient` Protocol: it is what the socket would show. It is honest until
a test scripts single answers; everything it is asked is written down in `calls`.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import random
from collections import defaultdict, deque
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from structlog.testing import LogCapture

from scaivaultd.acme.wire import Directory
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import CaRefused, InvalidRequest, Problem, SecretNotFound, StorageUnavailable
from scaivaultd.model.ids import AccountId, IdMaker, NodeId, OrderId
from scaivaultd.plugin import PluginContext, SolverKind
from scaivaultd.services.accounts import Accounts
from scaivaultd.services.dns_providers import DnsProviders
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, ORDERS
from scaivaultd.services.issuing import Issuing
from scaivaultd.services.jobs import Jobs
from scaivaultd.services.provider_pool import ProviderPool
from scaivaultd.services.pursuit import Tools
from scaivaultd.services.secrets import LentSecrets, Secrets
from scaivaultd.services.solvers import OpenSolver, Solvers
from scaivaultd.services.txt_records import TxtRecords
from scaivaultd.services.waiting import Waiting
from scaivaultd.store.sealing import EnvelopeSealer
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.acme.signing import AccountKey
    from scaivaultd.model.names import Identifier
    from scaivaultd.model.resources import Account, Certificate, DnsProvider, Order
    from scaivaultd.model.storage import Change, Changed, OutboxEvent, Page, Stored
    from scaivaultd.plugin import ChallengeResponse, DnsProviderKind, SecretBackend
    from scaivaultd.services.documents import Shelf, Versioned
    from scaivaultd.services.ports import CaClient, Lease, NameServers

DIRECTORY = "https://ca.test/directory"
DEADLINE = 20.0
UNFINISHED = ("pending", "ready", "processing")


class FakeClock:
    """Time moves only when somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


class SeededRandomness:
    def __init__(self) -> None:
        self._random = random.Random(7)

    def token_bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def fraction(self) -> float:
        return self._random.random()


class WatchedStore:
    """The real store; `before_commit` may look, act or fail at any commit, `is_down` fails all of it."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.before_commit: Callable[[Sequence[Change]], Awaitable[None]] | None = None
        self.is_down = False

    async def get(self, key: str) -> Stored | None:
        self._check()
        return await self._store.get(key)

    async def scan(
        self, prefix: str, *, where: Mapping[str, str] | None = None, after: str | None = None, limit: int = 100
    ) -> Page:
        self._check()
        return await self._store.scan(prefix, where=where, after=after, limit=limit)

    async def commit(self, changes: Sequence[Change], events: Sequence[OutboxEvent] = ()) -> Mapping[str, int]:
        self._check()
        if self.before_commit is not None:
            await self.before_commit(changes)
        return await self._store.commit(changes, events)

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Changed]]:
        return self._store.watch(prefix)

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> Lease | None:
        return await self._store.lease(name, holder, ttl_seconds)

    def _check(self) -> None:
        if self.is_down:
            raise StorageUnavailable("the disk is full")


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    body: bytes
    retry_after: float | None = None


class LostAnswer(msgspec.Struct, frozen=True):
    """The CA acts, but what comes back is this error."""

    error: Exception


Scripted = Exception | LostAnswer | bytes | Any | None


def refused(name: str, status: int = 403, detail: str = "no") -> CaRefused:
    problem = Problem(type=f"urn:ietf:params:acme:error:{name}", detail=detail, status=status)
    return CaRefused(f"the CA refused: {name}", problem)


@dataclass
class Issuer:
    """Root and intermediate in one: signs leaves for whatever a CSR asks."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def chain(self, csr_der: bytes, now: datetime) -> bytes:
        csr = x509.load_der_x509_csr(csr_der)
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=90))
            .add_extension(names.value, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        return leaf.public_bytes(pem) + self.certificate.public_bytes(pem)


class ScriptedCa:
    """An honest CA in memory. `script[method]` holds what its next answers are instead, None for honest ones."""

    def __init__(self, clock: FakeClock, issuer: Issuer) -> None:
        self._clock = clock
        self._issuer = issuer
        self.script: defaultdict[str, deque[Scripted]] = defaultdict(deque)
        self.calls: list[tuple[str, str]] = []
        self.accounts: dict[str, str] = {}
        self.registrations: list[dict[str, Any]] = []
        self.orders: dict[str, dict[str, Any]] = {}
        self.authorizations: dict[str, dict[str, Any]] = {}
        self.certificates: dict[str, bytes] = {}
        self.retry_after: float | None = None
        self.processing_reads = 0
        """How often an order is shown as processing after finalize."""
        self.slow_reads = 0
        """How often an order is shown as pending after all its names are proven."""
        self.refuses: dict[str, str] = {}
        """Names that are never proven, and what the CA says of them."""
        self.sees: Callable[[str], str | None] = lambda token: None

    def asked(self, method: str) -> list[str]:
        """The URLs that method was asked for, in order."""
        return [url for name, url in self.calls if name == method]

    async def act(self, method: str, url: str, honest: Callable[[], Any]) -> Any:
        self.calls.append((method, url))
        scripted = self.script[method].popleft() if self.script[method] else None
        while callable(scripted):
            scripted = scripted()
            if inspect.isawaitable(scripted):
                scripted = await scripted
        await asyncio.sleep(0)
        match scripted:
            case Exception():
                raise scripted
            case LostAnswer(error):
                honest()
                raise error
            case None:
                return honest()
            case _:
                return scripted

    def shown(self, url: str, document: Mapping[str, Any]) -> Fetched:
        return Fetched(url=url, body=json.dumps(document).encode(), retry_after=self.retry_after)

    def register(self, thumbprint: str, asked: dict[str, Any]) -> Fetched:
        self.registrations.append(asked)
        url = self.accounts.setdefault(thumbprint, f"https://ca.test/account/{len(self.accounts) + 1}")
        return self.shown(url, {"status": "valid"})

    def make_order(self, identifiers: Sequence[Identifier]) -> Fetched:
        number = len(self.orders) + 1
        urls = [self._make_authorization(f"{number}-{place}", each) for place, each in enumerate(identifiers)]
        url = f"https://ca.test/order/{number}"
        self.orders[url] = {
            "status": "pending",
            "identifiers": [{"type": each.type, "value": each.value} for each in identifiers],
            "authorizations": urls,
            "finalize": f"{url}/finalize",
        }
        return self.shown(url, self.orders[url])

    def _make_authorization(self, number: str, identifier: Identifier) -> str:
        url = f"https://ca.test/authorization/{number}"
        challenge = {
            "type": "http-01",
            "url": f"https://ca.test/challenge/{number}",
            "status": "pending",
            "token": f"token-{number}-".ljust(43, "x"),
        }
        self.authorizations[url] = {
            "status": "pending",
            "identifier": {"type": identifier.type, "value": identifier.value},
            "challenges": [challenge],
        }
        return url

    def order(self, url: str) -> Fetched:
        order = self.orders.get(url)
        if order is None:
            raise refused("malformed", 404, "no such order")
        if order["status"] == "pending":
            self._settle(order)
        elif order["status"] == "processing":
            order["reads"] = order.get("reads", 0) + 1
            if order["reads"] >= self.processing_reads:
                order["status"] = "valid"
        return self.shown(url, order)

    def _settle(self, order: dict[str, Any]) -> None:
        states = [self.authorizations[url]["status"] for url in order["authorizations"]]
        if "invalid" in states:
            order["status"] = "invalid"
        elif all(state == "valid" for state in states):
            order["reads"] = order.get("reads", 0) + 1
            if order["reads"] > self.slow_reads:
                order["status"], order["reads"] = "ready", 0

    def respond(self, url: str) -> Fetched:
        for authorization in self.authorizations.values():
            (challenge,) = authorization["challenges"]
            if challenge["url"] == url:
                self.validate(authorization)
                return self.shown(url, challenge)
        raise refused("malformed", 404, "no such challenge")

    def validate(self, authorization: dict[str, Any]) -> None:
        """Look, as a CA does, at what is in place right now."""
        (challenge,) = authorization["challenges"]
        name = authorization["identifier"]["value"]
        seen = self.sees(challenge["token"])
        if seen is not None and seen.startswith(f"{challenge['token']}.") and name not in self.refuses:
            authorization["status"] = challenge["status"] = "valid"
            return
        detail = self.refuses.get(name, "nothing there")
        authorization["status"] = challenge["status"] = "invalid"
        challenge["error"] = {"type": "urn:ietf:params:acme:error:unauthorized", "detail": detail}

    def finalize(self, url: str, csr_der: bytes) -> Fetched:
        order_url = url.removesuffix("/finalize")
        order = self.orders[order_url]
        if order["status"] != "ready":
            raise refused("orderNotReady", 403, f"the order is {order['status']}")
        certificate_url = f"{order_url}/certificate"
        self.certificates[certificate_url] = self._issuer.chain(csr_der, self._clock.now())
        order["certificate"] = certificate_url
        order["status"] = "processing" if self.processing_reads else "valid"
        return self.shown(order_url, order)


class ScriptedClient:
    """One account's view of the scripted CA."""

    def __init__(self, ca: ScriptedCa, key: AccountKey, kid: str | None) -> None:
        self._ca = ca
        self._kid = kid
        self.key = key

    async def register(
        self,
        *,
        contacts: Sequence[str],
        terms_of_service_agreed: bool,
        eab_key_id: str | None = None,
        eab_hmac_key: bytes | None = None,
    ) -> Fetched:
        asked = {
            "contacts": list(contacts),
            "agreed": terms_of_service_agreed,
            "eab_key_id": eab_key_id,
            "eab_hmac_key": eab_hmac_key,
        }
        thumbprint = self.key.thumbprint
        fetched: Fetched = await self._ca.act("register", thumbprint, lambda: self._ca.register(thumbprint, asked))
        return fetched

    async def directory(self) -> Directory:
        return Directory(new_nonce="https://ca.test/n", new_account="https://ca.test/a", new_order="https://ca.test/o")

    async def find_account(self) -> str | None:
        thumbprint = self.key.thumbprint
        url: str | None = await self._ca.act("find_account", thumbprint, lambda: self._ca.accounts.get(thumbprint))
        return url

    async def new_order(self, identifiers: Sequence[Identifier]) -> Fetched:
        names = ",".join(each.value for each in identifiers)
        fetched: Fetched = await self._ca.act("new_order", names, lambda: self._ca.make_order(identifiers))
        return fetched

    async def order_urls(self) -> Sequence[str]:
        urls: Sequence[str] = await self._ca.act("order_urls", self._kid or "", lambda: list(self._ca.orders))
        return urls

    async def order(self, url: str) -> Fetched:
        fetched: Fetched = await self._ca.act("order", url, lambda: self._ca.order(url))
        return fetched

    async def authorization(self, url: str) -> Fetched:
        shown: Fetched = await self._ca.act(
            "authorization", url, lambda: self._ca.shown(url, self._ca.authorizations[url])
        )
        return shown

    async def respond(self, challenge_url: str) -> Fetched:
        fetched: Fetched = await self._ca.act("respond", challenge_url, lambda: self._ca.respond(challenge_url))
        return fetched

    async def finalize(self, url: str, csr_der: bytes) -> Fetched:
        fetched: Fetched = await self._ca.act("finalize", url, lambda: self._ca.finalize(url, csr_der))
        return fetched

    async def certificate(self, url: str) -> bytes:
        body: bytes = await self._ca.act("certificate", url, lambda: self._ca.certificates[url])
        return body


class ScriptedCas:
    """The way to the scripted CA; addresses in `forbidden` are refused."""

    def __init__(self, ca: ScriptedCa) -> None:
        self._ca = ca
        self.forbidden: set[str] = set()

    def client(self, directory_url: str, ca_certificates_pem: str | None, key: AccountKey, kid: str | None) -> CaClient:
        return ScriptedClient(self._ca, key, kid)

    async def check_directory(self, url: str) -> None:
        if url in self.forbidden:
            raise InvalidRequest("a private address")


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
    solver_makers: Sequence[Callable[[World], OpenSolver]] = ()

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
        self.accounts = Accounts(
            store=self.store,
            sealer=self.sealer,
            cas=self.cas,
            secrets=self.secret_store,
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
        )
        self.issuing = Issuing(
            self.tools,
            self.jobs,
            self.waiting,
            providers=self.providers,
            orders_per_ca=self.orders_per_ca,
            patience_seconds=self.patience_seconds,
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

    async def order(self, *domains: str, account_id: str | None = None, key: str | None = None) -> OrderId:
        """Have an order accepted; it is under way when this returns."""
        account_id = account_id or await self.account()
        request = m.Issue(
            account_id=account_id, domains=list(domains or ["a.example.test"]), challenge_type="http-01", wait_seconds=0
        )
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
        names = ("order ", "register ")
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

        def make(**changes: Any) -> World:
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
            world = World(**{**parts, **changes})
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
