"""What there is to be told of all certificates and orders, kept up to date so that no scrape has to read the store.

It follows the store by watching it. Of each certificate only a few words stay in memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd.acme.directories import ca_name
from scaivaultd.model import metrics
from scaivaultd.model.errors import StorageUnavailable
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import UNFINISHED, Renewal
from scaivaultd.services import renewals
from scaivaultd.services.policies import TENANT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from prometheus_client import Metric
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.storage import Changed, Stored
    from scaivaultd.services.ports import Store

AGAIN_SECONDS = 10.0
_PAGE = 100


class _Account(msgspec.Struct, frozen=True):
    directory_url: str


class _Certificate(msgspec.Struct, frozen=True):
    """A certificate's document, as far as it is told."""

    id: str
    account_id: str
    identifiers: tuple[Identifier, ...]
    status: Literal["valid", "revoked", "expired"]
    serial_number: str
    issuer: str
    not_before: datetime
    not_after: datetime


class _Order(msgspec.Struct, frozen=True):
    id: str
    status: str


class _Kept(msgspec.Struct, frozen=True):
    """A certificate as it stays in memory; moments as Unix time."""

    id: str
    name: str
    account_id: str
    is_revoked: bool
    serial_number: str
    issuer: str
    not_before: float
    not_after: float


class _Due(msgspec.Struct, frozen=True):
    """When a certificate is to be renewed, and how that went: `since` stays while it is tried."""

    since: float | None
    is_due: bool
    is_under_way: bool
    failures: int


class Fleet:
    """All certificates and the orders under way, at this moment."""

    def __init__(self, store: Store, clock: Clock, log: FilteringBoundLogger) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._cas: dict[str, str] = {}
        self._certificates: dict[str, _Kept] = {}
        self._due: dict[str, _Due] = {}
        self._orders: dict[str, str] = {}
        self.is_known = asyncio.Event()
        """Set once everything has been read. Before, nothing is told: half of them would look like a loss."""

    async def run(self) -> None:
        """Follow the store until cancelled, or until it is closed."""
        while True:
            try:
                return await self._follow()
            except StorageUnavailable:
                self._log.debug("metrics.store_unavailable")
            await self._clock.sleep(AGAIN_SECONDS)

    async def _follow(self) -> None:
        kinds: Sequence[tuple[str, Callable[[str, Stored | None], None]]] = (
            ("account/", self._see_account),
            ("certificate/", self._see_certificate),
            ("renewal/", self._see_renewal),
            ("order/", self._see_order),
        )
        self._orders.clear()
        async with AsyncExitStack() as stack:
            watches = [(await stack.enter_async_context(self._store.watch(prefix)), see) for prefix, see in kinds]
            for prefix, see in kinds[:-1]:
                await self._read(prefix, see)
            for status in UNFINISHED:
                await self._read("order/", self._see_order, status=status)
            self.is_known.set()
            async with asyncio.TaskGroup() as tasks:
                for changes, see in watches:
                    tasks.create_task(self._hear(changes, see))

    async def _read(self, prefix: str, see: Callable[[str, Stored | None], None], **where: str) -> None:
        cursor: str | None = None
        while True:
            page = await self._store.scan(prefix, where=where, after=cursor, limit=_PAGE)
            for stored in page.items:
                self._understand(stored.key, stored, see)
            if (cursor := page.next_cursor) is None:
                return

    async def _hear(self, changes: AsyncIterator[Changed], see: Callable[[str, Stored | None], None]) -> None:
        async for changed in changes:
            self._understand(changed.key, changed.stored, see)

    def _understand(self, key: str, stored: Stored | None, see: Callable[[str, Stored | None], None]) -> None:
        with suppress(msgspec.DecodeError):  # whoever needs the document says so in the log
            see(key.partition("/")[2], stored)

    def _see_account(self, account_id: str, stored: Stored | None) -> None:
        if stored is not None:
            self._cas[account_id] = ca_name(_ACCOUNT.decode(stored.document).directory_url)

    def _see_certificate(self, certificate_id: str, stored: Stored | None) -> None:
        if stored is None:
            self._certificates.pop(certificate_id, None)
            return
        found = _CERTIFICATE.decode(stored.document)
        self._certificates[certificate_id] = _Kept(
            id=found.id,
            name=found.identifiers[0].value if found.identifiers else "",
            account_id=found.account_id,
            is_revoked=found.status == "revoked",
            serial_number=found.serial_number,
            issuer=found.issuer,
            not_before=found.not_before.timestamp(),
            not_after=found.not_after.timestamp(),
        )

    def _see_renewal(self, certificate_id: str, stored: Stored | None) -> None:
        if stored is None:
            self._due.pop(certificate_id, None)
            return
        renewal = _RENEWAL.decode(stored.document)
        moment = renewals.moment_of(renewal)
        since = None if moment is None else moment.timestamp()
        if renewal.is_due:
            # Since it was asked for; not since the last failure.
            now, before = self._clock.now().timestamp(), self._due.get(certificate_id)
            since = before.since if before is not None and before.is_due else min(since or now, now)
        self._due[certificate_id] = _Due(
            since=since,
            is_due=renewal.is_due,
            is_under_way=renewal.order_id is not None,
            failures=renewal.attempt,
        )

    def _see_order(self, order_id: str, stored: Stored | None) -> None:
        order = None if stored is None else _ORDER.decode(stored.document)
        if order is None or order.status not in UNFINISHED:
            self._orders.pop(order_id, None)
        else:
            self._orders[order_id] = order.status

    def look(self) -> View:
        """All of it as it is at this moment."""
        return View(
            now=self._clock.now().timestamp(),
            cas=dict(self._cas),
            certificates=tuple(self._certificates.values()),
            due=dict(self._due),
            orders=Counter(self._orders.values()),
        )


_ACCOUNT = msgspec.json.Decoder(_Account)
_CERTIFICATE = msgspec.json.Decoder(_Certificate)
_RENEWAL = msgspec.json.Decoder(Renewal)
_ORDER = msgspec.json.Decoder(_Order)


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet at one moment; what is told of it may be written in a thread."""

    now: float
    cas: Mapping[str, str]
    certificates: Sequence[_Kept]
    due: Mapping[str, _Due]
    orders: Mapping[str, int]

    def of_all(self) -> Iterator[Metric]:
        """What is told of all certificates and orders together."""
        statuses = Counter(self._status(each) for each in self.certificates)
        yield metrics.CERTIFICATES.told([((status,), statuses[status]) for status in ("valid", "expired", "revoked")])
        yield metrics.ORDERS.told([((status,), self.orders.get(status, 0)) for status in UNFINISHED])
        yield metrics.RENEWAL_QUEUE_LENGTH.single(sum(1 for each in self.due.values() if self._is_in_line(each)))

    def of_each(self) -> Iterator[str]:
        """What is told of each certificate."""
        label, shown = metrics.CERTIFICATE_NOT_AFTER.labelled, self._shown
        rows = [(label(each.id, each.name, TENANT, self._ca(each)), each, self.due.get(each.id)) for each in shown]
        yield metrics.CERTIFICATE_NOT_AFTER.text((labels, each.not_after) for labels, each, _ in rows)
        yield metrics.CERTIFICATE_NOT_BEFORE.text((labels, each.not_before) for labels, each, _ in rows)
        renewed = [(labels, due) for labels, _, due in rows if due is not None]
        yield metrics.CERTIFICATE_RENEWAL_DUE.text((labels, due.since) for labels, due in renewed if due.since)
        yield metrics.CERTIFICATE_RENEWAL_FAILURES.text((labels, due.failures) for labels, due in renewed)

    def of_each_as_x509(self) -> Iterator[str]:
        """The same in the words of x509-certificate-exporter."""
        label, shown = metrics.X509_NOT_AFTER.labelled, self._shown
        rows = [(label(each.name, each.issuer, each.serial_number, each.id), each) for each in shown]
        yield metrics.X509_NOT_AFTER.text((labels, each.not_after) for labels, each in rows)
        yield metrics.X509_NOT_BEFORE.text((labels, each.not_before) for labels, each in rows)
        yield metrics.X509_EXPIRED.text((labels, each.not_after <= self.now) for labels, each in rows)

    @property
    def _shown(self) -> Sequence[_Kept]:
        # Nobody has to renew what is revoked, and an alarm would come all the same.
        return [each for each in self.certificates if not each.is_revoked]

    def _ca(self, certificate: _Kept) -> str:
        return self.cas.get(certificate.account_id, metrics.OTHER)

    def _status(self, certificate: _Kept) -> str:
        if certificate.is_revoked:
            return "revoked"
        return "expired" if certificate.not_after <= self.now else "valid"

    def _is_in_line(self, due: _Due) -> bool:
        return due.is_under_way or (due.since is not None and due.since <= self.now)
