"""A room that renews, with time that moves when a test says so, orders that cost nothing, and a CA with ARI."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import msgspec

from scaivaultd.acme.exchange import NotOffered
from scaivaultd.acme.wire import Directory
from scaivaultd.api import events
from scaivaultd.model.errors import RevisionConflict
from scaivaultd.model.ids import AccountId, CertificateId, OrderId
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import Certificate, Order, Renewal
from scaivaultd.services import renewals
from scaivaultd.services.documents import CERTIFICATES, ORDERS, RENEWALS
from scaivaultd.services.renewing import Renewing
from tests.fakes.scripted_ca import FakeClock, Fetched, ScriptedCas, ScriptedClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from scaivaultd.acme.signing import AccountKey
    from scaivaultd.model.resources import OrderCause
    from scaivaultd.services.documents import Versioned
    from scaivaultd.services.idempotency import Repeatable
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.ports import CaClient

DEADLINE = 10.0
TURNS = 5


class SteppedClock(FakeClock):
    """Sleepers sleep until the test moves time to where they wake."""

    def __init__(self) -> None:
        super().__init__()
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        sleeper = (self._monotonic + seconds, asyncio.get_running_loop().create_future())
        self._sleepers.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.remove(sleeper)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for until, sleeper in self._sleepers:
            # Sums of fractions are not exact, and a sleeper that is late by nothing would sleep for ever.
            if until <= self._monotonic + 0.00001 and not sleeper.done():
                sleeper.set_result(None)

    @property
    def sleeping(self) -> int:
        """How many sleep."""
        return len(self._sleepers)

    def set_to(self, moment: datetime) -> None:
        """Somebody sets the wall clock; nobody wakes."""
        self._now = moment


class Ari:
    """What a CA says about renewal: `window` at every moment, unless `instead` holds something else to happen."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.window: Callable[[str], tuple[datetime, datetime]] | None = None
        self.retry_after: float | None = 6 * 3600.0
        self.explanation_url: str | None = None
        self.instead: deque[Exception | Callable[[], Awaitable[None]] | None] = deque()
        self.asked: list[tuple[datetime, str]] = []
        self.looked = 0
        """How often somebody looked in the directory for it."""
        self.hangs: Callable[[str], bool] = lambda _: False
        self.waited_for: set[str] = set()
        """Certificates about which somebody waits for an answer."""

    async def answer(self, ari_id: str) -> Fetched:
        self.asked.append((self._clock.now(), ari_id))
        instead = self.instead.popleft() if self.instead else None
        if isinstance(instead, Exception):
            raise instead
        if instead is not None:
            await instead()
        await self._hang(ari_id)
        if self.window is None:
            raise NotOffered("the CA does not offer renewal information")
        start, end = self.window(ari_id)
        body: dict[str, Any] = {"suggestedWindow": {"start": start.isoformat(), "end": end.isoformat()}}
        if self.explanation_url is not None:
            body["explanationURL"] = self.explanation_url
        return Fetched(url="https://ca.test/renewal", body=json.dumps(body).encode(), retry_after=self.retry_after)

    async def _hang(self, ari_id: str) -> None:
        if not self.hangs(ari_id):
            return
        certificate_id = ari_id.partition(".")[0]
        self.waited_for.add(certificate_id)
        try:
            await asyncio.Event().wait()
        finally:
            self.waited_for.discard(certificate_id)


class AriClient(ScriptedClient):
    ari: Ari

    async def directory(self) -> Directory:
        self.ari.looked += 1
        is_offered = self.ari.window is not None or self.ari.instead
        url = "https://ca.test/renewal" if is_offered else None
        return msgspec.structs.replace(self._ca.directory, renewal_info=url)

    async def renewal_info(self, certificate_id: str) -> Fetched:
        return await self.ari.answer(certificate_id)


class AriCas(ScriptedCas):
    def __init__(self, ca: Any, ari: Ari) -> None:
        super().__init__(ca)
        self._ari = ari

    def client(self, directory_url: str, ca_certificates_pem: str | None, key: AccountKey, kid: str | None) -> CaClient:
        client = AriClient(self._ca, key, kid)
        client.ari = self._ari
        return client


class FakeIssuing:
    """Stands in for `Issuing`: an order brings the next version as soon as nothing `holds` it.

    `refuses` holds errors of the next orders, `always` one of all orders of a certificate. `before_order` acts
    between the call and the order.
    """

    def __init__(self, world: Any) -> None:
        self._world = world
        self.lifetime: Callable[[Certificate], timedelta] = lambda each: each.not_after - each.not_before
        self.refuses: deque[Exception | None] = deque()
        self.always: dict[str, Exception] = {}
        self.before_order: Callable[[], Awaitable[None]] | None = None
        self.holds: Callable[[CertificateId], bool] = lambda _: False
        self.orders: list[tuple[datetime, CertificateId, OrderCause]] = []
        self.bulk_ids: list[str | None] = []
        self.hurried: list[OrderId] = []
        self.shown_for: list[float] = []
        self.resting: dict[OrderId, asyncio.Event] = {}
        self.waited_for: set[str] = set()
        """Certificates whose orders somebody waits for."""
        self.changed: Callable[[CertificateId], None] = lambda _: None

    def ordered(self) -> list[CertificateId]:
        """The certificates, in the order in which they were renewed."""
        return [certificate_id for _, certificate_id, _ in self.orders]

    def has_job(self, order_id: OrderId) -> bool:
        return order_id in self.resting

    async def renew(
        self,
        certificate_id: CertificateId,
        cause: OrderCause,
        *,
        bulk_id: str | None = None,
        repeatable: Repeatable | None = None,
    ) -> Order:
        if self.before_order is not None:
            await self.before_order()
        error = self.refuses.popleft() if self.refuses else self.always.get(certificate_id)
        if error is not None:
            raise error
        order, is_new = await self._ordered(certificate_id, cause, repeatable)
        if not is_new:
            return order
        self.orders.append((order.created_at, certificate_id, cause))
        self.bulk_ids.append(bulk_id)
        self.changed(certificate_id)
        if self.holds(certificate_id):
            self.resting[order.id] = asyncio.Event()
        else:
            await self.finish(order.id)
        return order

    async def _ordered(
        self, certificate_id: CertificateId, cause: OrderCause, repeatable: Repeatable | None
    ) -> tuple[Order, bool]:
        """The order, and whether it is new; others change the `Renewal` meanwhile, as they may."""
        while True:
            if repeatable is not None and (made := await repeatable.made_before(self._world.store)):
                return (await self._world.read(ORDERS, made)).value, False
            certificate: Versioned[Certificate] = await self._world.read(CERTIFICATES, certificate_id)
            renewal: Versioned[Renewal] = await self._world.read(RENEWALS, certificate_id)
            is_new = renewal.value.order_id is None
            if renewal.value.order_id is not None:
                order: Order = (await self._world.read(ORDERS, renewal.value.order_id)).value
                changes = []
            else:
                order = order_of(certificate.value, self._world.ids.order(), cause=cause, now=self._world.clock.now())
                under_way = renewals.under_way(renewal.value, order.id, cause)
                changes = [ORDERS.put(order), RENEWALS.put(under_way, renewal.revision)]
            if repeatable is not None:
                changes += repeatable.changes(order.id)
            with suppress(RevisionConflict):
                if changes:
                    await self._world.store.commit(changes)
                return order, is_new

    async def finish(self, order_id: OrderId) -> None:
        """Have an order bring its certificate."""
        fraction = self._world.randomness.fraction()
        while not await self._brought(order_id, fraction):
            pass
        certificate_id = (await self._world.read(ORDERS, order_id)).value.renews
        if (rest := self.resting.pop(order_id, None)) is not None:
            rest.set()
        self.changed(certificate_id)

    async def _brought(self, order_id: OrderId, fraction: float) -> bool:
        order: Versioned[Order] = await self._world.read(ORDERS, order_id)
        certificate_id = order.value.renews
        assert certificate_id is not None
        certificate: Versioned[Certificate] = await self._world.read(CERTIFICATES, certificate_id)
        renewal: Versioned[Renewal] = await self._world.read(RENEWALS, certificate_id)
        now = self._world.clock.now()
        made = next_version(certificate.value, order_id, now, self.lifetime(certificate.value))
        begun = renewals.begun(made, renewal.value, now=now, fraction=fraction)
        done = msgspec.structs.replace(order.value, status="valid", certificate_id=certificate_id)
        changes = [
            ORDERS.put(done, order.revision),
            CERTIFICATES.put(made, certificate.revision),
            RENEWALS.put(begun, renewal.revision),
        ]
        try:
            await self._world.store.commit(changes, [events.certificate_renewed(made, certificate.value, done, now)])
        except RevisionConflict:
            return False
        return True

    def hurry(self, order_id: OrderId) -> None:
        self.hurried.append(order_id)

    def hurry_all(self) -> None:
        self.hurried.extend(self.resting)

    async def rest(self, order_id: OrderId) -> None:
        if (rest := self.resting.get(order_id)) is None:
            return
        certificate_id = (await self._world.read(ORDERS, order_id)).value.renews
        self.waited_for.add(certificate_id)
        try:
            await rest.wait()
        finally:
            self.waited_for.discard(certificate_id)

    async def shown(self, order_id: OrderId, wait_seconds: float, wait_end_seconds: float | None = None) -> Any:
        self.shown_for.append(wait_seconds)
        return await self._world.issuing.shown(order_id, 0)


def order_of(
    certificate: Certificate, order_id: OrderId, *, cause: OrderCause, now: datetime, renews: bool = True
) -> Order:
    return Order(
        id=order_id,
        account_id=certificate.account_id,
        identifiers=certificate.identifiers,
        challenge_type=certificate.challenge_type,
        key_type=certificate.key_type,
        auto_renew=certificate.auto_renew,
        status="pending",
        created_at=now,
        give_up_at=now + timedelta(hours=1),
        cause=cause,
        renews=certificate.id if renews else None,
    )


def next_version(certificate: Certificate, order_id: OrderId, now: datetime, lifetime: timedelta) -> Certificate:
    version = certificate.version + 1
    return msgspec.structs.replace(
        certificate,
        order_id=order_id,
        version=version,
        status="valid",
        not_before=now,
        not_after=now + lifetime,
        issued_at=now,
        ari_id=None if certificate.ari_id is None else f"{certificate.id}.{version}",
        revocation=None,
        serial_number=f"{version:02X}",
    )


class RenewalRig:
    """A room over the store of a world, in one life; `die` ends it, and the next begins over the same store."""

    def __init__(self, world: Any, ari: Ari) -> None:
        self.world = world
        self.ari = ari
        self.clock: SteppedClock = world.clock
        self.issuing = FakeIssuing(world)
        self._running: asyncio.Task[None] | None = None
        self.begin()

    def begin(self) -> None:
        self.renewing = Renewing(
            store=self.world.store,
            accounts=self.world.accounts,
            issuing=cast("Issuing", self.issuing),
            clock=self.clock,
            randomness=self.world.randomness,
            log=self.world.log,
            renewals_per_ca=2,
            judge=self.world.judge,
        )
        self.issuing.changed = self.renewing.changed

    async def add(
        self,
        certificate_id: str = "cert_1",
        *,
        account_id: str = "acme_none",
        lifetime: timedelta = timedelta(days=90),
        has_ari: bool = False,
        with_renewal: bool = True,
        **changes: Any,
    ) -> Certificate:
        """Put a certificate issued now into the store, with its order and its `Renewal`."""
        now = self.clock.now()
        certificate = Certificate(
            **{
                "id": CertificateId(certificate_id),
                "order_id": OrderId(f"order_of_{certificate_id}"),
                "account_id": AccountId(account_id),
                "identifiers": (Identifier("dns", f"{certificate_id.replace('_', '-')}.example.test"),),
                "key_type": "ec-p256",
                "key_id": None,
                "version": 1,
                "status": "valid",
                "serial_number": "01",
                "fingerprint_sha256": "f" * 64,
                "issuer": "Test",
                "not_before": now,
                "not_after": now + lifetime,
                "issued_at": now,
                "chain_pem": "",
                "ari_id": f"{certificate_id}.1" if has_ari else None,
                "challenge_type": "http-01",
                "auto_renew": True,
                "created_at": now,
                **changes,
            }
        )
        order = order_of(certificate, certificate.order_id, cause="issue", now=now, renews=False)
        order = msgspec.structs.replace(order, status="valid", certificate_id=certificate.id)
        documents = [ORDERS.put(order), CERTIFICATES.put(certificate)]
        if with_renewal:
            documents.append(RENEWALS.put(renewals.begun(certificate, None, now=now, fraction=0.5)))
        await self.world.sqlite.commit(documents)
        return certificate

    async def start(self) -> None:
        await self.renewing.resume()
        self._running = asyncio.create_task(self.renewing.run())
        await self.settle()

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            self._running = None

    async def die(self) -> None:
        await self.stop()
        self.begin()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """What the room has under way."""
        names = ("renewal look ", "renewal poll ", "renewal order ")
        return [each for each in asyncio.all_tasks() if each.get_name().startswith(names)]

    def busy(self) -> list[asyncio.Task[Any]]:
        """The same without those that wait for an order or an answer that a test holds back."""
        hang = {f"renewal order {each}" for each in self.issuing.waited_for}
        hang |= {f"renewal poll {each}" for each in self.ari.waited_for}
        return [each for each in self.tasks() if each.get_name() not in hang]

    async def settle(self) -> None:
        """Wait until the room has nothing to do before time moves on but to wait for what hangs, and sleeps."""
        async with asyncio.timeout(DEADLINE):
            turns = 0
            # For some turns on end: who has just been woken has not taken its turn yet.
            while turns < TURNS:
                if self._running is not None and self._running.done():
                    await self._running
                if tasks := self.busy():
                    # Not longer: by then it may be one of those that hang.
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=0.002)
                await asyncio.sleep(0)
                turns = turns + 1 if self._is_settled() else 0

    def _is_settled(self) -> bool:
        next_at = self.renewing.next_look_at
        is_late = next_at is not None and next_at <= self.clock.now().timestamp()
        paces = sum(each.get_name().startswith("pace of ") for each in asyncio.all_tasks())
        return not self.busy() and not is_late and self.clock.sleeping == 1 + paces

    async def forward(self, duration: timedelta) -> None:
        """Let time pass, stopping wherever the room has something to do."""
        end = self.clock.now() + duration
        while True:
            await self.settle()
            left = (end - self.clock.now()).total_seconds()
            if left <= 0:
                return
            next_at = self.renewing.next_look_at
            due_in = left if next_at is None else next_at - self.clock.now().timestamp()
            self.clock.advance(min(left, max(due_in, 0.000001)))

    async def renewal(self, certificate_id: str = "cert_1") -> Renewal:
        renewal: Renewal = (await self.world.read(RENEWALS, certificate_id)).value
        return renewal

    async def certificate(self, certificate_id: str = "cert_1") -> Certificate:
        certificate: Certificate = (await self.world.read(CERTIFICATES, certificate_id)).value
        return certificate

    async def change(self, certificate_id: str = "cert_1", **changes: Any) -> None:
        """Change a `Renewal` as somebody else would, and say so."""
        current = await self.world.read(RENEWALS, certificate_id)
        changed = msgspec.structs.replace(current.value, **changes)
        await self.world.sqlite.commit([RENEWALS.put(changed, current.revision)])
        self.renewing.changed(CertificateId(certificate_id))


@asynccontextmanager
async def rig_over(make_world: Callable[..., Any], clock: FakeClock) -> AsyncIterator[RenewalRig]:
    """A rig whose room ends with the context."""
    ari = Ari(clock)
    world = make_world()
    world.cas = AriCas(world.ca, ari)
    world.begin()
    rig = RenewalRig(world, ari)
    try:
        yield rig
    finally:
        await rig.stop()
