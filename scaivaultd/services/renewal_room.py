"""The scheduler: every certificate in one heap, by the moment at which somebody has to look at it.

A look reads the small `Renewal` of one certificate, announces what is due, and sets going what takes longer: a poll
of ARI, an order. Both stand in lanes, one for each CA. Nothing else is kept in memory; whoever commits a change to a
`Renewal` says so with `changed`, and the certificate is looked at anew.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from scaivaultd.acme import renewal as rules
from scaivaultd.model.errors import NotFound, StorageUnavailable
from scaivaultd.model.resources import terms_of
from scaivaultd.services.due_heap import AT_ONCE, DueHeap
from scaivaultd.services.renewal_changes import as_of, certificate_of
from scaivaultd.services.renewal_lanes import Lanes, Pace
from scaivaultd.services.renewal_notices import Notices
from scaivaultd.services.renewal_orders import RenewalOrders
from scaivaultd.services.renewal_polls import Polls
from scaivaultd.services.renewal_rights import RenewalRights
from scaivaultd.services.renewal_scan import complete, scan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.ids import AccountId, CertificateId
    from scaivaultd.model.resources import Account, Renewal
    from scaivaultd.services.accounts import Accounts
    from scaivaultd.services.issuing import Issuing
    from scaivaultd.services.ports import RenewalJudge, Store

LOOKS_AT_ONCE = 16
POLLS_PER_CA = 8
POLLS_PER_CA_AND_SECOND = 50

LOOK_AT_THE_CLOCK_SECONDS = 30.0
"""No sleep is longer: the wall clock may be set, and the machine may have slept too."""

_SET_BACK_SECONDS = 60.0
_AGAIN_SECONDS = 60.0
_STORAGE_PAUSE_SECONDS = 5.0
# One success says little: a full disk still reads. What failed is tried again at once after the pause.
_STORE_IS_BACK_SECONDS = 20.0
_WITHOUT_ACCOUNT = timedelta(days=1)


class RenewalRoom:
    """Looks after all certificates. One broken certificate costs itself a minute, and no other anything."""

    def __init__(
        self,
        *,
        store: Store,
        accounts: Accounts,
        issuing: Issuing,
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
        renewals_per_ca: int,
        judge: RenewalJudge,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._issuing = issuing
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._notices = Notices(store, clock, log)
        self._polls = Polls(store, accounts, clock, randomness, log)
        self._rights = RenewalRights(store, judge, clock, log)
        self._orders = RenewalOrders(store, issuing, self._rights, clock, randomness, log)
        self._tasks = asyncio.TaskGroup()
        self._polling = Lanes(
            self._tasks,
            "renewal poll",
            self._poll,
            self._worked,
            at_once=POLLS_PER_CA,
            pace=Pace(clock, POLLS_PER_CA_AND_SECOND),
        )
        self._ordering = Lanes(self._tasks, "renewal order", self._order, self._worked, at_once=renewals_per_ca)
        self._due = DueHeap()
        self._looking: set[CertificateId] = set()
        self._look_again: set[CertificateId] = set()
        self._woken = asyncio.Event()
        self._latest = clock.now()
        self._must_scan = False
        self._is_paused = False
        self._is_store_down = False
        self._store_failed_at: float | None = None
        self.turned_at = clock.monotonic()
        """When it last looked round (`Clock.monotonic`); more than a minute ago, and it hangs."""

    def __len__(self) -> int:
        """How many certificates it looks after."""
        return len(self._due) + len(self._looking)

    @property
    def next_look_at(self) -> float | None:
        """When a certificate is to be looked at next (Unix time); None when none ever is."""
        return self._due.next_at()

    def changed(self, certificate_id: CertificateId) -> None:
        """Look at a certificate's `Renewal` again. Never blocks."""
        self._look_at(certificate_id, AT_ONCE)

    def policies_changed(self) -> None:
        """Have everything judged anew that policies have stopped. Never blocks."""
        for certificate_id in self._rights.forget_judgements():
            self._look_at(certificate_id, AT_ONCE)

    def pause(self) -> None:
        """Only announce from now on: ask no CA anything. Before `run`."""
        self._is_paused = True

    def go_on(self) -> None:
        """Look at everything anew, and do what has become due. Never blocks."""
        self._is_paused = False
        self._must_scan = True
        self._woken.set()

    async def resume(self) -> None:
        """Put every certificate into the heap; makes the `Renewal` of certificates that have none yet."""
        await complete(self._store, self._clock, self._randomness, self._log)
        await scan(self._store, self._clock, self._log, self._look_at)
        self._log.info("renewal.resumed", certificates=len(self._due))

    async def run(self) -> None:
        """Look after all certificates until cancelled."""
        async with self._tasks:
            while True:
                self._woken.clear()
                self.turned_at = self._clock.monotonic()
                await self._mind_the_store()
                await self._mind_the_clock()
                self._start_looks()
                await self._rest()

    def _look_at(self, certificate_id: CertificateId, at: float) -> None:
        if certificate_id in self._looking:
            # It may have read the document before the change.
            self._look_again.add(certificate_id)
        else:
            self._due.bring_forward(certificate_id, at)
        self._woken.set()

    async def _mind_the_store(self) -> None:
        """All wait together for a store that cannot be used, instead of everybody asking it."""
        if self._is_store_down:
            self._is_store_down = False
            log = self._log.warning if self._store_failed_at is None else self._log.debug
            log("renewal.store_unavailable", pause_seconds=_STORAGE_PAUSE_SECONDS)
            await self._clock.sleep(_STORAGE_PAUSE_SECONDS)
            self._store_failed_at = self._clock.monotonic()
        elif self._store_failed_at is not None and self._seconds_since(self._store_failed_at) >= _STORE_IS_BACK_SECONDS:
            self._store_failed_at = None
            self._log.info("renewal.store_available")

    def _seconds_since(self, moment: float) -> float:
        return self._clock.monotonic() - moment

    async def _mind_the_clock(self) -> None:
        """A clock that was set back has left entries for times that are far away now: all are made anew."""
        now = self._clock.now()
        seconds = (self._latest - now).total_seconds()
        self._latest = now
        if seconds > _SET_BACK_SECONDS:
            self._log.warning("renewal.clock_set_back", seconds=seconds)
            self._issuing.hurry_all()
            self._must_scan = True
        if not self._must_scan:
            return
        try:
            await scan(self._store, self._clock, self._log, self._look_at)
        except StorageUnavailable:
            self._is_store_down = True
        else:
            self._must_scan = False

    def _start_looks(self) -> None:
        now = self._clock.now().timestamp()
        while len(self._looking) < LOOKS_AT_ONCE and (certificate_id := self._due.take_due(now)) is not None:
            self._looking.add(certificate_id)
            self._tasks.create_task(self._look(certificate_id), name=f"renewal look {certificate_id}")

    async def _rest(self) -> None:
        """Wait until the next entry is due, a look has ended, or something has changed."""
        if self._woken.is_set() or self._is_store_down:
            return
        timer = self._tasks.create_task(self._clock.sleep(self._seconds_left()), name="renewal timer")
        timer.add_done_callback(self._ring)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    def _ring(self, timer: asyncio.Task[None]) -> None:
        # One that was cancelled has nothing to say: somebody else has woken the room.
        if not timer.cancelled():
            self._woken.set()

    def _seconds_left(self) -> float:
        next_at = self._due.next_at()
        if next_at is None or len(self._looking) >= LOOKS_AT_ONCE:
            return LOOK_AT_THE_CLOCK_SECONDS
        return min(max(next_at - self._clock.now().timestamp(), 0.0), LOOK_AT_THE_CLOCK_SECONDS)

    async def _look(self, certificate_id: CertificateId) -> None:
        at = await self._safely(certificate_id, lambda: self._see(certificate_id))
        self._looking.discard(certificate_id)
        if certificate_id in self._look_again:
            self._look_again.discard(certificate_id)
            at = AT_ONCE
        if at is not None:
            self._due.put(certificate_id, at)
        self._woken.set()

    async def _poll(self, certificate_id: CertificateId) -> float | None:
        async def step() -> float:
            await self._polls.poll(certificate_id)
            return AT_ONCE

        return await self._safely(certificate_id, step)

    async def _order(self, certificate_id: CertificateId) -> float | None:
        async def step() -> float:
            await self._orders.renew(certificate_id)
            return AT_ONCE

        return await self._safely(certificate_id, step)

    def _worked(self, certificate_id: CertificateId, at: float | None) -> None:
        if at is not None:
            self._look_at(certificate_id, at)

    async def _safely(self, certificate_id: CertificateId, step: Callable[[], Awaitable[float | None]]) -> float | None:
        """When to look at a certificate next; never fails."""
        try:
            return await step()
        except StorageUnavailable:
            self._is_store_down = True
            return AT_ONCE
        except NotFound as error:
            self._log.warning("renewal.forgotten", certificate_id=certificate_id, detail=error.detail)
            return None
        except Exception:  # noqa: BLE001 - a job boundary: one broken certificate must not take the others down
            self._log.exception("job.failed", job=f"renewal of {certificate_id}")
            return self._clock.now().timestamp() + _AGAIN_SECONDS

    async def _see(self, certificate_id: CertificateId) -> float | None:
        """Do or set going what is due; returns when to look again."""
        renewal = await self._notices.announce(certificate_id)
        if renewal is None:
            return None
        notice = rules.next_notice(renewal.not_before, renewal.not_after, looked_at=renewal.looked_at)
        if self._is_paused:
            return notice.at.timestamp() if notice else None
        if await self._orders.mend(renewal):
            return AT_ONCE
        now = self._clock.now()
        renewal = as_of(renewal, now)
        moments = (
            notice.at if notice else None,
            await self._see_to_poll(renewal, now),
            await self._see_to_order(renewal, now),
        )
        return min((each.timestamp() for each in moments if each is not None), default=None)

    async def _see_to_poll(self, renewal: Renewal, now: datetime) -> datetime | None:
        """Have the CA asked if it is time; else when it will be."""
        at = renewal.poll_at
        if at is None or at > now:
            return at
        account = await self._account(renewal.account_id)
        if account is None:
            return now + _WITHOUT_ACCOUNT
        if (until := self._polls.quiet_until(account.directory_url, renewal)) is not None:
            return until
        self._polling.add(account.directory_url, renewal.certificate_id, at.timestamp())
        return None

    async def _see_to_order(self, renewal: Renewal, now: datetime) -> datetime | None:
        """Have it renewed if it is time; else when it will be."""
        at = self._rights.due_at(renewal, now)
        if at is None or at > now:
            return at
        certificate = (await certificate_of(self._store, renewal)).value
        account = await self._account(terms_of(certificate).accounts[0])
        directory_url = "" if account is None else account.directory_url
        self._ordering.add(directory_url, renewal.certificate_id, renewal.not_after.timestamp())
        return None

    async def _account(self, account_id: AccountId) -> Account | None:
        try:
            return (await self._accounts.load(account_id)).value
        except NotFound:
            return None
