"""What the roof tells of the daemon as it is: from the store as it changes, and from parts that may be away."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from scaivaultd.acme.limit_rules import NewOrder, Refusal, Rule
from scaivaultd.acme.limits import Ledger
from scaivaultd.demo.process import until
from scaivaultd.listeners.http01 import Http01Listener
from scaivaultd.listeners.tlsalpn01 import TlsAlpn01Listener
from scaivaultd.measuring import Measuring
from scaivaultd.measuring_fleet import Fleet
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.ids import AccountId, CertificateId, KeyId, OrderId
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import Account, Certificate, Order, Renewal
from scaivaultd.model.storage import Backlog, Delete
from scaivaultd.opening import Listeners
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, ORDERS, RENEWALS
from scaivaultd.store.sqlite import SqliteStore
from tests.fakes.renewals import SteppedClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

DAY = 86_400.0
PATIENCE_SECONDS = 20.0
LETSENCRYPT = "https://acme-v02.api.letsencrypt.org/directory"


class Bus:
    """A connection that may be away."""

    is_connected = True


class House:
    """A store that changes, and what is told of it."""

    def __init__(self, store: SqliteStore, clock: SteppedClock, path: Path) -> None:
        log: Any = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self.store = store
        self.clock = clock
        self.bus: Any = Bus()
        self.backlog = Backlog(count=0, oldest=None)
        self.ledgers: Mapping[str, Ledger] = {}
        self.is_store_down = False
        self.fleet = Fleet(store, clock, log)
        self.measuring = Measuring(
            Listeners(http01=Http01Listener([], clock=clock, log=log), tlsalpn01=_tlsalpn01(clock, log)),
            record=self._none,
            store_path=path,
            max_certificates=5,
            compat_x509=False,
            clock=clock,
            log=log,
        )

    async def _none(self) -> None:
        return None

    async def _backlog(self) -> Backlog:
        if self.is_store_down:
            raise StorageUnavailable("the disk is full")
        return self.backlog

    def unseal(self) -> None:
        self.measuring.unsealed(self.fleet, bus=self.bus, backlog=self._backlog, ledgers=lambda: self.ledgers)

    async def told(self) -> dict[str, dict[str, float]]:
        """Every metric: by its labels' values, what it is."""
        page = await self.measuring.render("")
        found: dict[str, dict[str, float]] = {}
        for family in text_string_to_metric_families(page.body.decode()):
            for sample in family.samples:
                found.setdefault(sample.name.removeprefix("scaivaultd_"), {})[" ".join(sample.labels.values())] = (
                    sample.value
                )
        return found

    async def until(self, name: str, labels: str, value: float) -> None:
        """What was committed is told a moment later."""

        async def is_told() -> bool:
            return (await self.told()).get(name, {}).get(labels) == value

        await until(is_told, f"{name} of {labels!r} is {value}", PATIENCE_SECONDS)

    async def add(self, number: int, *, days: float = 90, **changes: Any) -> Certificate:
        """A certificate that has begun now, with its renewal."""
        made = _certificate(number, self.clock, days, **changes)
        await self.store.commit([CERTIFICATES.put(made, None), RENEWALS.put(_renewal(made), None)])
        return made

    async def change(self, made: Certificate, **changes: Any) -> None:
        await self.store.commit([RENEWALS.put(msgspec.structs.replace(_renewal(made), **changes), None)])


def _tlsalpn01(clock: SteppedClock, log: Any) -> TlsAlpn01Listener:
    return TlsAlpn01Listener([], upstream=None, clock=clock, log=log)


def _certificate(number: int, clock: SteppedClock, days: float, **changes: Any) -> Certificate:
    now = clock.now()
    about: dict[str, Any] = {
        "id": CertificateId(f"cert_{number}"),
        "order_id": OrderId(f"order_{number}"),
        "account_id": AccountId("acct_1"),
        "identifiers": (Identifier("dns", f"{number}.example"), Identifier("dns", "canary.example")),
        "challenge_type": "http-01",
        "key_type": "ec-p256",
        "key_id": KeyId(f"key_{number}"),
        "version": 1,
        "status": "valid",
        "auto_renew": True,
        "serial_number": "04:AB",
        "fingerprint_sha256": "00",
        "issuer": 'Test "CA"',
        "not_before": now,
        "not_after": now + timedelta(days=days),
        "chain_pem": "",
        "created_at": now,
    }
    return Certificate(**{**about, **changes})


def _renewal(made: Certificate) -> Renewal:
    return Renewal(
        certificate_id=made.id,
        account_id=made.account_id,
        version=made.version,
        not_before=made.not_before,
        not_after=made.not_after,
        auto_renew=made.auto_renew,
        looked_at=made.not_before,
        fraction=0.0,
    )


@asynccontextmanager
async def house_at(folder: Path) -> AsyncIterator[House]:
    clock = SteppedClock()
    log: Any = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    store = await SqliteStore.open(folder / "store.db", clock=clock, log=log)
    account = Account(
        id=AccountId("acct_1"),
        name="one",
        provider="letsencrypt",
        environment="production",
        directory_url=LETSENCRYPT,
        status="valid",
        key_id=KeyId("key_0"),
        key_thumbprint="x",
        created_at=clock.now(),
    )
    await store.commit([ACCOUNTS.put(account)])
    try:
        yield House(store, clock, folder / "store.db")
    finally:
        await store.close()


@pytest.fixture
async def sealed(tmp_path: Path) -> AsyncIterator[House]:
    async with house_at(tmp_path) as found:
        yield found


@pytest.fixture
async def house(sealed: House) -> AsyncIterator[House]:
    """One that works; what is in its store is known."""
    sealed.unseal()
    running = asyncio.create_task(sealed.measuring.run())
    await asyncio.wait_for(sealed.fleet.is_known.wait(), PATIENCE_SECONDS)
    yield sealed
    running.cancel()
    await asyncio.wait([running])


async def test_a_sealed_daemon_tells_that_and_little_else(sealed: House) -> None:
    """Somebody has to be called for it, so it has to be seen."""
    told = await sealed.told()
    assert told["sealed"] == {"": 1}
    assert told["leader"] == {"": 1}
    assert "certificates" not in told
    sealed.unseal()
    told = await sealed.told()
    assert told["sealed"] == {"": 0}
    assert "certificates" not in told, "a store that is not read yet would look like one that was lost"


class TestFleet:
    async def test_certificates_are_counted_by_what_they_are_now(self, house: House) -> None:
        """One expires without anybody writing that down."""
        await house.add(1, days=1)
        await house.add(2)
        await house.add(3, status="revoked")
        await house.until("certificates", "revoked", 1)
        assert (await house.told())["certificates"] == {"valid": 2, "expired": 0, "revoked": 1}
        house.clock.advance(DAY)
        assert (await house.told())["certificates"] == {"valid": 1, "expired": 1, "revoked": 1}

    async def test_each_has_its_series_until_there_are_too_many(self, house: House) -> None:
        """With its first name only, and the CA as its account has it."""
        began = house.clock.now().timestamp()
        for number in range(5):
            await house.add(number)
        await house.until("certificates", "valid", 5)
        told = await house.told()
        labels = "cert_3 3.example default letsencrypt/production"
        assert told["certificate_not_before_timestamp_seconds"][labels] == began
        assert told["certificate_not_after_timestamp_seconds"][labels] == began + 90 * DAY
        assert told["certificate_renewal_due_timestamp_seconds"][labels] == began + 60 * DAY
        assert told["certificate_renewal_failures"][labels] == 0
        assert len(told["certificate_not_after_timestamp_seconds"]) == 5
        await house.add(5)
        await house.until("certificates", "valid", 6)
        assert "certificate_not_after_timestamp_seconds" not in await house.told()

    async def test_a_revoked_one_is_nobodys_worry(self, house: House) -> None:
        """It will not be renewed, and an alarm about its end would never be over."""
        await house.add(1, status="revoked")
        await house.until("certificates", "revoked", 1)
        assert "certificate_not_after_timestamp_seconds" not in await house.told()

    async def test_one_that_is_never_renewed_is_never_due(self, house: House) -> None:
        """Its end is told all the same."""
        await house.add(1, auto_renew=False)
        await house.until("certificates", "valid", 1)
        told = await house.told()
        assert len(told["certificate_not_after_timestamp_seconds"]) == 1
        assert "certificate_renewal_due_timestamp_seconds" not in told
        house.clock.advance(80 * DAY)
        assert (await house.told())["renewal_queue_length"] == {"": 0}

    async def test_failures_do_not_move_when_it_was_due(self, house: House) -> None:
        """Else a renewal that is tried again and again is never overdue."""
        made = await house.add(1)
        labels = "cert_1 1.example default letsencrypt/production"
        due = made.not_before.timestamp() + 60 * DAY
        house.clock.advance(62 * DAY)
        await house.until("renewal_queue_length", "", 1)
        await house.change(made, attempt=3, next_try_at=house.clock.now() + timedelta(hours=6))
        await house.until("certificate_renewal_failures", labels, 3)
        assert (await house.told())["certificate_renewal_due_timestamp_seconds"] == {labels: due}

    async def test_one_that_was_asked_for_is_due_since_then(self, house: House) -> None:
        """Not since its last failure, nor only at its own time."""
        made = await house.add(1)
        labels = "cert_1 1.example default letsencrypt/production"
        house.clock.advance(DAY)
        asked = house.clock.now().timestamp()
        await house.change(made, is_due=True)
        await house.until("certificate_renewal_due_timestamp_seconds", labels, asked)
        house.clock.advance(DAY)
        await house.change(made, is_due=True, attempt=1)
        await house.until("certificate_renewal_failures", labels, 1)
        told = await house.told()
        assert told["certificate_renewal_due_timestamp_seconds"] == {labels: asked}
        assert told["renewal_queue_length"] == {"": 1}

    async def test_orders_are_counted_while_they_are_under_way(self, house: House) -> None:
        """All that there ever were would only grow."""
        order = Order(
            id=OrderId("order_1"),
            account_id=AccountId("acct_1"),
            identifiers=(Identifier("dns", "a.example"),),
            challenge_type="http-01",
            key_type="ec-p256",
            auto_renew=True,
            status="pending",
            created_at=house.clock.now(),
            give_up_at=house.clock.now(),
        )
        await house.store.commit([ORDERS.put(order)])
        await house.until("orders", "pending", 1)
        await house.store.commit([ORDERS.put(msgspec.structs.replace(order, status="processing"), None)])
        await house.until("orders", "processing", 1)
        await house.store.commit([ORDERS.put(msgspec.structs.replace(order, status="valid"), None)])
        await house.until("orders", "processing", 0)
        assert (await house.told())["orders"] == {"pending": 0, "ready": 0, "processing": 0}

    async def test_what_is_deleted_is_gone(self, house: House) -> None:
        """Its series must end, or its alert never does."""
        made = await house.add(1)
        await house.until("certificates", "valid", 1)
        await house.store.commit([Delete(key=CERTIFICATES.key(made.id)), Delete(key=RENEWALS.key(made.id))])
        await house.until("certificates", "valid", 0)
        assert "certificate_renewal_failures" not in await house.told()

    async def test_what_was_there_before_it_began_is_told(self, sealed: House) -> None:
        """A restart must not lose the fleet; more than a page of it is read."""
        sealed.measuring.max_certificates = 0
        for number in range(250):
            await sealed.add(number)
        sealed.unseal()
        running = asyncio.create_task(sealed.measuring.run())
        await asyncio.wait_for(sealed.fleet.is_known.wait(), PATIENCE_SECONDS)
        assert (await sealed.told())["certificates"]["valid"] == 250
        running.cancel()
        await asyncio.wait([running])

    async def test_the_words_of_another_exporter_are_spoken_if_wanted(self, house: House) -> None:
        """Dashboards that were written for it go on; what a CA calls itself may hold anything."""
        await house.add(1)
        await house.until("certificates", "valid", 1)
        assert "x509_cert_not_after" not in await house.told()
        house.measuring.compat_x509 = True
        told = await house.told()
        assert told["x509_cert_expired"] == {'1.example Test "CA" 04:AB cert_1': 0}
        house.clock.advance(91 * DAY)
        assert list((await house.told())["x509_cert_expired"].values()) == [1]


async def test_openmetrics_is_written_for_who_wants_it(house: House) -> None:
    """Its parser is stricter, and the series of single certificates are written by ourselves."""
    await house.add(1)
    await house.until("certificates", "valid", 1)
    page = await house.measuring.render("application/openmetrics-text; version=1.0.0,text/plain;q=0.5")
    assert page.content_type.startswith("application/openmetrics-text; version=1.0.0")
    families = openmetrics(page.body.decode())  # type: ignore[no-untyped-call]  # it has no annotations
    assert "scaivaultd_certificate_renewal_failures" in {each.name for each in families}


async def test_a_part_that_is_away_is_left_out(house: House) -> None:
    """It is when the disk is full that somebody wants to see the rest."""
    house.is_store_down, house.bus.is_connected = True, False
    told = await house.told()
    assert "events_pending" not in told
    assert told["nats_connected"] == {"": 0}
    house.is_store_down = False
    assert (await house.told())["events_pending"] == {"": 0}


async def test_events_that_wait_tell_how_many_and_since_when(house: House) -> None:
    """By the event's own time, which outlives a restart."""
    house.backlog = Backlog(count=7, oldest=house.clock.now().isoformat().replace("+00:00", "Z"))
    house.clock.advance(30)
    told = await house.told()
    assert (told["events_pending"], told["events_oldest_pending_seconds"]) == ({"": 7}, {"": 30})


async def test_a_budget_is_as_good_as_its_scarcest_part(house: House) -> None:
    """Nobody can watch every name; a full one is told too, so that a gap is no good news."""
    now = house.clock.now()
    failures = Rule(kind="failed_authorizations", scope="name", amount=10, window_seconds=1000)
    orders = Rule(kind="new_orders", scope="account", amount=10, window_seconds=1000, reserve_percent=20)
    ledger = Ledger(rules=(failures, orders))
    spent = ledger
    for name in ("a.example", "b.example", "b.example", "b.example"):
        spent = spent.failed(now, "acct_1", [name])
    house.ledgers = {LETSENCRYPT: spent}
    assert (await house.told())["rate_limit_budget_remaining_ratio"] == {
        f"letsencrypt/production {failures.limit}": 0.7,
        f"letsencrypt/production {orders.limit}": 1,
    }
    refusal = Refusal(limit=("new_orders", "account"), until=now + timedelta(hours=1))
    order = NewOrder(account="acct_1", names=("a.example",), domains=("a.example",), name_set="a", cause="new")
    house.ledgers = {LETSENCRYPT: ledger.refused(now, order, refusal)}
    told = (await house.told())["rate_limit_budget_remaining_ratio"]
    assert told[f"letsencrypt/production {orders.limit}"] == 0


async def test_a_new_configuration_that_was_not_taken_is_told(house: House) -> None:
    """The next start would fail; when the last good one came stays."""
    house.measuring.configured(ok=True)
    taken = house.clock.now().timestamp()
    house.clock.advance(60)
    house.measuring.configured(ok=False)
    told = await house.told()
    assert told["config_last_reload_successful"] == {"": 0}
    assert told["config_last_reload_success_timestamp_seconds"] == {"": taken}


async def test_the_longest_hold_up_of_the_last_minute_is_told(house: House) -> None:
    """Whatever it was, nothing was answered meanwhile."""

    async def is_beating() -> bool:
        return house.clock.sleeping > 0

    await until(is_beating, "the beat", PATIENCE_SECONDS)
    house.clock.advance(2.5)
    await house.until("event_loop_lag_seconds", "", 2.0)
