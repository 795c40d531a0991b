"""Tells all metrics: those that are counted where things happen, and those that follow from how the daemon is now.

A scrape looks at each part on the event loop, which takes moments, and is written out in a thread. A part that cannot
be looked at is left out, so that the others can still be seen: it is then that somebody wants to see them.
"""

from __future__ import annotations

import asyncio
import platform
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from scaivaultd import __version__
from scaivaultd.acme.directories import ca_name
from scaivaultd.gateways.metrics_page import Told
from scaivaultd.model import metrics
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.store.master_key import NoMasterKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from prometheus_client import Metric
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.limits import Budget, Ledger
    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.gateways.rest import RestGateway
    from scaivaultd.measuring_fleet import Fleet, View
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.sealing import SealingRecord
    from scaivaultd.model.storage import Backlog
    from scaivaultd.opening import Listeners

PATIENCE_SECONDS = 3.0
"""How long one part may take; scrapers wait for ten seconds."""
BEAT_SECONDS = 0.5
BEATS = 120


class Measuring:
    """Knows every part that has something to tell; the page that scrapers read."""

    def __init__(
        self,
        listeners: Listeners,
        *,
        record: Callable[[], Awaitable[SealingRecord | None]],
        store_path: Path,
        max_certificates: int,
        compat_x509: bool,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """Sealed, until `unsealed`. `record` tells of the master key."""
        self._listeners = listeners
        self._record = record
        self._store_path = store_path
        self.compat_x509 = compat_x509
        self._clock = clock
        self._log = log
        self._one_at_a_time = asyncio.Lock()
        self._lags: deque[float] = deque(maxlen=BEATS)
        self._fleet: Fleet | None = None
        self._sources: list[Callable[[], Awaitable[Callable[[], Iterable[Metric]]]]] = [
            self._process,
            self._master_key,
            self._doors,
        ]
        self.max_certificates = max_certificates
        self.rest: RestGateway | None = None
        """The gateway that serves now."""

    def unsealed(
        self,
        fleet: Fleet,
        *,
        bus: NatsBus,
        backlog: Callable[[], Awaitable[Backlog]],
        ledgers: Callable[[], Mapping[str, Ledger]],
    ) -> None:
        """There is something to do from now on."""
        self._fleet = fleet

        async def of_bus() -> Callable[[], Iterable[Metric]]:
            connected = metrics.NATS_CONNECTED.single(float(bus.is_connected))
            return lambda: [connected]

        async def of_events() -> Callable[[], Iterable[Metric]]:
            left, now = await backlog(), self._clock.now()
            return lambda: _of_backlog(left, now)

        async def of_budgets() -> Callable[[], Iterable[Metric]]:
            there, now = ledgers(), self._clock.now()
            return lambda: _of_ledgers(there, now)

        self._sources += [of_bus, of_events, of_budgets]

    def configured(self, *, ok: bool) -> None:
        """The configuration was read; `ok`: and is in use."""
        metrics.CONFIG_LAST_RELOAD_SUCCESSFUL.set(float(ok))
        if ok:
            metrics.CONFIG_LAST_RELOAD_SUCCESS.set(self._clock.now().timestamp())

    async def run(self) -> None:
        """Keep up to date what no scrape could find out by itself; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feel_the_loop())
            if self._fleet is not None:
                tasks.create_task(self._fleet.run())

    async def _feel_the_loop(self) -> None:
        while True:
            began = self._clock.monotonic()
            await self._clock.sleep(BEAT_SECONDS)
            self._lags.append(max(self._clock.monotonic() - began - BEAT_SECONDS, 0.0))

    async def render(self, accept: str) -> Told:
        """As `MetricsPage` says; one at a time."""
        async with self._one_at_a_time:
            looks = [look for each in self._sources if (look := await self._look(each)) is not None]
            if (view := self._view()) is not None:
                looks.append(view.of_all)
            return await asyncio.to_thread(self._written, looks, view, accept)

    def _view(self) -> View | None:
        return self._fleet.look() if self._fleet is not None and self._fleet.is_known.is_set() else None

    def _written(self, looks: Sequence[Callable[[], Iterable[Metric]]], view: View | None, accept: str) -> Told:
        encode, content_type = choose_encoder(accept)
        of_each: list[str] = []
        if view is not None and len(view.certificates) <= self.max_certificates:
            of_each += view.of_each()
            if self.compat_x509:
                of_each += view.of_each_as_x509()
        # In front: OpenMetrics ends with a mark.
        return Told(body="".join(of_each).encode() + encode(_Told(looks)), content_type=content_type)

    async def _look(
        self, source: Callable[[], Awaitable[Callable[[], Iterable[Metric]]]]
    ) -> Callable[[], Iterable[Metric]] | None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await source()
        except (StorageUnavailable, TimeoutError) as error:
            self._log.debug("metrics.part_left_out", reason=str(error) or "it does not answer")
            return None

    async def _process(self) -> Callable[[], Iterable[Metric]]:
        lag, is_sealed = max(self._lags, default=0.0), self._fleet is None
        return lambda: [
            metrics.BUILD_INFO.told([((__version__, platform.python_version()), 1.0)]),
            # Whoever runs has the lock of the state directory.
            metrics.LEADER.single(1.0),
            metrics.SEALED.single(float(is_sealed)),
            metrics.EVENT_LOOP_LAG.single(lag),
            metrics.STORE_SIZE.single(_size(self._store_path)),
        ]

    async def _master_key(self) -> Callable[[], Iterable[Metric]]:
        with suppress(NoMasterKey):
            if (record := await self._record()) is not None:
                age = (self._clock.now() - record.created_at).total_seconds()
                return lambda: [metrics.MASTER_KEY_AGE.single(max(age, 0.0))]
        return tuple

    async def _doors(self) -> Callable[[], Iterable[Metric]]:
        http01, tlsalpn01 = self._listeners.http01.counters, self._listeners.tlsalpn01.counters
        connections = {"http01": http01.connections, "tlsalpn01": tlsalpn01.connections}
        rejected: dict[str, Mapping[Any, int]] = {
            "http01": {**http01.rejected, "evicted": http01.evicted},
            "tlsalpn01": {**tlsalpn01.rejected, "evicted": tlsalpn01.evicted},
        }
        if self.rest is not None:
            connections["rest"] = self.rest.connections
            rejected["rest"] = dict(self.rest.rejected)
        counts = [((name, reason), count) for name, reasons in rejected.items() for reason, count in reasons.items()]
        return lambda: [
            metrics.LISTENER_CONNECTIONS.told([((name,), count) for name, count in connections.items()]),
            metrics.LISTENER_REJECTED.told(counts),
        ]


class _Told(Collector):
    """One scrape."""

    def __init__(self, looks: Sequence[Callable[[], Iterable[Metric]]]) -> None:
        self._looks = looks

    def collect(self) -> Iterable[Metric]:
        yield from metrics.REGISTRY.collect()
        for each in self._looks:
            yield from each()


def _of_backlog(backlog: Backlog, now: datetime) -> Iterable[Metric]:
    waiting = 0.0
    if backlog.oldest is not None:
        waiting = max((now - datetime.fromisoformat(backlog.oldest).astimezone(UTC)).total_seconds(), 0.0)
    return [metrics.EVENTS_PENDING.single(backlog.count), metrics.EVENTS_OLDEST_PENDING.single(waiting)]


def _of_ledgers(ledgers: Mapping[str, Ledger], now: datetime) -> Iterable[Metric]:
    left: dict[tuple[str, str], float] = {}
    for directory_url, ledger in ledgers.items():
        ca = ca_name(directory_url)
        left |= {(ca, rule.limit): 1.0 for rule in ledger.rules}
        for budget in ledger.budgets(now):
            key = (ca, budget.limit)
            left[key] = min(left.get(key, 1.0), _share_left(budget))
    return [metrics.BUDGET_REMAINING.told(left.items())]


def _share_left(budget: Budget) -> float:
    if budget.needs_human or not budget.amount or not budget.left:
        return 0.0
    # A refusal closes it, whatever we have counted; what is reserved for renewals is still there.
    is_closed = budget.new_at is not None and budget.left > budget.reserved
    return 0.0 if is_closed else budget.left / budget.amount


def _size(store: Path) -> int:
    size = 0
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            size += store.with_name(store.name + suffix).stat().st_size
    return size
