"""Orders: accepted here, pursued by jobs, found again after any stop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec

from scaivaultd.acme import causes, x509
from scaivaultd.api import events
from scaivaultd.api import messages as m
from scaivaultd.api.commands import ISSUE
from scaivaultd.model.errors import (
    AccountUnusable,
    Cancelled,
    CaRefused,
    CaUnavailable,
    Conflict,
    NotFound,
    RateLimited,
    RevisionConflict,
    ScaivaultError,
    StorageUnavailable,
    UnsupportedChallenge,
)
from scaivaultd.model.ids import OrderId
from scaivaultd.model.resources import UNFINISHED, Order, Terms, terms_of
from scaivaultd.services import renewals, setbacks, visible
from scaivaultd.services.budgets import Held
from scaivaultd.services.compromised_keys import COMPROMISED, is_compromised, spki_sha256_in
from scaivaultd.services.documents import (
    ACCOUNTS,
    CERTIFICATES,
    ORDERS,
    RENEWALS,
    Versioned,
)
from scaivaultd.services.failing import require_registered
from scaivaultd.services.idempotency import Repeatable
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.leaving import deactivate_pending
from scaivaultd.services.order_record import Superseded
from scaivaultd.services.owners import owner_in, shown_owner
from scaivaultd.services.places import Place, Places
from scaivaultd.services.presence import Presence, journalled
from scaivaultd.services.pursuit import Parked, Pursuit, Tools
from scaivaultd.services.requests import Lookups, seconds_of, terms_from
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.ids import AccountId, BulkRenewalId, CertificateId
    from scaivaultd.model.resources import Account, Certificate, OrderCause, Renewal
    from scaivaultd.model.storage import Change
    from scaivaultd.plugin import ChallengeResponse
    from scaivaultd.services.dns_providers import DnsProviders
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.quotas import Quotas
    from scaivaultd.services.waiting import Waiting

BACKLOG_MAX = 20_000
_STORAGE_PAUSE_SECONDS = 5.0
_REGISTRATION_SECONDS = 60.0
_RESUME_SECONDS = 5.0
_LEAVING_SECONDS = (5.0, 30.0, 0.0)
_LEAVING_LATEST = timedelta(hours=1)
_ACCOUNT_TROUBLE = ("accountDoesNotExist", "unauthorized")


class UnderWay:
    """An order that has a job: whom it is for, and how its job can be reached from outside.

    As a context it is what the job works in: `stop` ends that work, and only that, as Superseded.
    """

    def __init__(self, order: Order) -> None:
        self.order_id = order.id
        self.account_id = order.account_id
        self.identifiers = order.identifiers
        self.flight = order.flight
        self.rests = asyncio.Event()
        self.hurry = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Somebody has ended the order: end what its job is doing for it."""
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()

    def __enter__(self) -> None:
        if self._is_stopped:
            raise Superseded
        self._task = asyncio.current_task()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        task, self._task = self._task, None
        if not self._is_stopped or kind is None or task is None:
            return
        # A second cancellation is the daemon's stop; what else comes out of a stopped attempt says nothing any more.
        if task.uncancel() == 0 or kind is not asyncio.CancelledError:
            raise Superseded from error


class Issuing:
    """Handlers of `pki.acme.issue` and `pki.acme.orders.*`, and the job behind every unfinished order."""

    def __init__(
        self,
        tools: Tools,
        jobs: Jobs,
        waiting: Waiting,
        *,
        providers: DnsProviders,
        quotas: Quotas,
        orders_per_ca: int,
        patience_seconds: float,
    ) -> None:
        self._tools = tools
        self._store = tools.store
        self._clock = tools.clock
        self._jobs = jobs
        self._waiting = waiting
        self._lookups = Lookups(store=tools.store, accounts=tools.accounts, solvers=tools.solvers, providers=providers)
        self._quotas = quotas
        self._patience_seconds = patience_seconds
        self._under_way: dict[OrderId, UnderWay] = {}
        tools.accounts.resumed.subscribe(self._hurry_orders_of)
        tools.budgets.first_in_line.subscribe(self.hurry)
        self._flights: dict[str, OrderId] = {}
        self._accepted: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._resumed: list[Presence] = []
        self._reclaiming: list[Presence] = []
        self._places: dict[str, Places] = defaultdict(lambda: Places(orders_per_ca))

    async def issue(self, request: m.Issue, context: RequestContext) -> m.OrderReply:
        """Handle `pki.acme.issue`."""
        return await self.shown(await self._accept(request, context), request.wait_seconds, request.wait_end_seconds)

    async def get(self, request: m.OrderById, context: RequestContext) -> m.OrderReply:
        """Handle `pki.acme.orders.get`."""
        order = (await self._found(request.order_id)).value
        return (
            await self.shown(order.id, 0, request.wait_end_seconds) if request.wait_end_seconds else self._reply(order)
        )

    async def _found(self, order_id: str) -> Versioned[Order]:
        order = await ORDERS.get(self._store, order_id)
        if order is None:
            raise NotFound(f"there is no order {order_id[:100]!r}")
        return order

    async def list(self, request: m.ListOrders, context: RequestContext) -> m.OrderList:
        """Handle `pki.acme.orders.list`."""
        where = {"status": request.status, "account": request.account_id}
        sees = visible.orders(self._store, context.permits)
        page = await ORDERS.page_seen(self._store, sees, where=where, cursor=request.cursor, limit=request.limit)
        return m.OrderList(items=[self._reply(each.value) for each in page.items], next_cursor=page.next_cursor)

    async def cancel(self, request: m.CancelOrder, context: RequestContext) -> m.OrderReply:
        """Handle `pki.acme.orders.cancel`."""
        error = Cancelled("cancelled by request")
        while True:
            held = await self._found(request.order_id)
            order = held.value
            if order.status == "deactivated":
                return self._reply(order)
            if order.status not in UNFINISHED:
                raise Conflict(f"order {order.id} has ended as {order.status}; there is nothing to cancel")
            if (ended := await self._end(held, error)) is not None:
                return self._reply(ended)

    async def renew(
        self,
        certificate_id: CertificateId,
        cause: OrderCause,
        *,
        bulk_id: BulkRenewalId | None = None,
        repeatable: Repeatable | None = None,
    ) -> Order:
        """The order that makes the next version of a certificate: the one under way, or a new one, started.

        Order and `Renewal` are committed together, and with them what `repeatable`, the request behind it, has made; if
        it was made before, its order is the answer. An order under way is not hurried by this.

        Raises:
            NotFound: there is no such certificate.
            AccountUnusable: none of its accounts can order.
            Conflict: its key must not be certified again (a compromised key of a CSR, or with `reuse_key`), or another
                request had the same Idempotency-Key.
            UnsupportedChallenge: no solver is installed any more, or no DNS provider.
        """
        while True:
            if repeatable is not None and (made := await repeatable.made_before(self._store)):
                return (await self._load(OrderId(made))).value
            certificate = await CERTIFICATES.get(self._store, certificate_id)
            renewal = await RENEWALS.get(self._store, certificate_id)
            if certificate is None or renewal is None:
                raise NotFound(f"there is no certificate {certificate_id[:100]!r}")
            order = under_way = await self._under_way_for(renewal.value)
            changes: list[Change] = []
            if order is None:
                order = await self._renewal_order(certificate.value, cause, bulk_id)
                begun = renewals.under_way(renewal.value, order.id, cause)
                changes += [ORDERS.put(order), RENEWALS.put(begun, renewal.revision)]
            if repeatable is not None:
                changes += repeatable.changes(order.id)
            try:
                if changes:
                    await self._store.commit(changes)
            except RevisionConflict:
                continue  # somebody else began, or changed it: look again
            if under_way is not None:
                return under_way
            self._tools.renewals.tell(certificate_id)
            self._log_accepted(order, certificate_id=certificate_id, cause=cause)
            self._begin(order)
            return order

    async def _under_way_for(self, renewal: Renewal) -> Order | None:
        order = None if renewal.order_id is None else await ORDERS.get(self._store, renewal.order_id)
        return order.value if order is not None and order.value.status in UNFINISHED else None

    async def shown(
        self, order_id: OrderId, wait_seconds: float, wait_end_seconds: float | None = None
    ) -> m.OrderReply:
        """An order as callers see it, once its challenges are there, it has ended, or `wait_seconds` are over.

        With `wait_end_seconds` the challenges alone are not waited for: it is the end that counts.
        """
        if wait_end_seconds is not None:
            ended = await self._waiting.until(
                ORDERS, order_id, wait_end_seconds, lambda each: each.status not in UNFINISHED
            )
            return self._reply(ended)
        order = await self._waiting.until(
            ORDERS, order_id, wait_seconds, lambda each: bool(each.challenges) or each.status != "pending"
        )
        return self._reply(order)

    def hurry(self, order_id: OrderId) -> None:
        """End the pause an order makes after a setback, if it makes one."""
        if (under_way := self._under_way.get(order_id)) is not None:
            under_way.hurry.set()

    def hurry_all(self) -> None:
        """End every pause: the clock was set back, so what it said of their ends may lie far ahead."""
        for under_way in self._under_way.values():
            if under_way.rests.is_set():
                under_way.hurry.set()

    def _hurry_orders_of(self, account_id: AccountId) -> None:
        for under_way in self._under_way.values():
            if under_way.account_id == account_id:
                under_way.hurry.set()

    def has_job(self, order_id: OrderId) -> bool:
        """Whether an order is being pursued by this process."""
        return order_id in self._under_way

    async def rest(self, order_id: OrderId) -> None:
        """Wait until an order has ended, or pauses after a setback; returns at once for one without a job."""
        if (under_way := self._under_way.get(order_id)) is not None:
            await under_way.rests.wait()

    async def end_orders_of(self, account_id: AccountId, error: ScaivaultError) -> int:
        """End every unfinished order of an account as `deactivated`, with this error; returns how many."""
        count = 0
        for status in UNFINISHED:
            for held in await ORDERS.all(self._store, self._tools.log, status=status, account=account_id):
                current: Versioned[Order] | None = held
                while current is not None and current.value.status in UNFINISHED:
                    if await self._end(current, error) is not None:
                        count += 1
                        break
                    current = await ORDERS.get(self._store, held.value.id)
        return count

    async def _end(self, held: Versioned[Order], error: ScaivaultError) -> Order | None:
        """End an order from outside its job; None when it was changed meanwhile."""
        order, now = held.value, self._clock.now()
        cause = causes.cause_of(error)
        trouble = causes.judged(setbacks.trouble_of(error, None), cause)
        ended = msgspec.structs.replace(
            order,
            status="deactivated",
            owner=None,
            queued=None,
            next_try_at=None,
            error=trouble,
            has_open_authorizations=order.url is not None,
        )
        changes: list[Change] = [ORDERS.put(ended, held.revision)]
        renewal = None if order.renews is None else await RENEWALS.get(self._store, order.renews)
        if renewal is not None and renewal.value.order_id == order.id:
            life = renewal.value
            fraction = self._tools.randomness.fraction()
            next_try_at = renewals.next_try(life, cause.kind, retry_at=None, now=now, fraction=fraction)
            changes.append(RENEWALS.put(renewals.set_back(life, trouble, next_try_at, goes_on=False), renewal.revision))
        try:
            await self._store.commit(changes, [events.order_cancelled(ended, now)])
        except RevisionConflict:
            return None
        self._tools.budgets.left(order.id)
        self._tools.log.info("order.cancelled", order_id=order.id, detail=error.detail)
        if order.renews is not None:
            self._tools.renewals.tell(order.renews)
        if (under_way := self._under_way.get(order.id)) is not None:
            under_way.stop()
        elif ended.has_open_authorizations:
            self._close_at_ca(order.id)
        return ended

    async def resume(self) -> None:
        """Go on with every order that has not ended: by its state at the CA, not by our memory."""
        holders = await self._tools.records.holders()
        for status in UNFINISHED:
            for order in await ORDERS.all(self._store, self._tools.log, status=status):
                self._resume(order.value, is_in_place=order.value.id in holders)
        for order in await ORDERS.all(self._store, self._tools.log, open="yes"):
            if order.value.status not in UNFINISHED:
                self._close_at_ca(order.value.id)
        # First of all, before the listener answers anybody: the CA may be looking for it right now.
        presenting = [presence.settled() for presence in self._resumed]
        self._resumed.clear()
        if presenting:
            await asyncio.wait([asyncio.ensure_future(each) for each in presenting], timeout=_RESUME_SECONDS)

    def _resume(self, order: Order, *, is_in_place: bool) -> None:
        log = self._tools.log.bind(order_id=order.id)
        try:
            solver = self._tools.solvers.get(order.challenge_type, order.solver)
        except UnsupportedChallenge as error:
            log.error("order.no_solver", challenge_type=order.challenge_type, detail=error.detail)  # noqa: TRY400 - said in full
            return
        # What a lasting solver has put in place is elsewhere and still there; nobody was away.
        was_away = order.url is not None and not solver.kind.is_lasting
        presence = Presence(solver, self._tools.solvers.claims, log, was_away=was_away)
        if not solver.kind.is_lasting:
            self._resumed.append(presence)
        elif is_in_place:
            self._reclaiming.append(presence)
        if order.flight is not None:
            self._flights[order.flight] = order.id
        self._start(order, presence, journalled(order), is_in_place=is_in_place)

    async def _accept(self, request: m.Issue, context: RequestContext) -> OrderId:
        """Write order, step 1: the caller hears of an order only when it is written down."""
        repeatable = Repeatable(ISSUE, request, context)
        asked = repeatable.digest
        async with self._accepting(asked):
            for _ in range(2):
                if made := await repeatable.made_before(self._store):
                    return OrderId(made)
                # The same request of the same caller while its order is under way is the same order.
                same = self._flights.get(asked)
                order = None if same is not None else await self._order(request, asked, context)
                order_id = same if order is None else order.id
                assert order_id is not None
                changes = [*([] if order is None else [ORDERS.put(order)]), *repeatable.changes(order_id)]
                try:
                    async with self._quotas.taking(order, context.permits.quota()):
                        if changes:
                            await self._store.commit(changes)
                except RevisionConflict:
                    continue  # the same key came twice at once: the other one's order is the answer
                if order is not None:
                    self._log_accepted(order, request_id=context.request_id)
                    self._flights[asked] = order.id
                    self._begin(order)
                return order_id
        raise Conflict("the Idempotency-Key is in use by another request at this moment; ask again")

    def _accepting(self, asked: str) -> asyncio.Lock:
        return self._accepted.setdefault(asked, asyncio.Lock())

    def _log_accepted(self, order: Order, **more: str) -> None:
        self._tools.log.info(
            "order.accepted",
            order_id=order.id,
            account_id=order.account_id,
            names=[str(each) for each in order.identifiers],
            **more,
        )

    async def _order(self, request: m.Issue, flight: str, context: RequestContext) -> Order:
        terms = await terms_from(request, self._lookups, self._clock.now())
        renew_before = None if request.renew_before is None else seconds_of(request.renew_before)
        if len(self._jobs) >= BACKLOG_MAX:
            raise RateLimited(f"{len(self._jobs)} orders are under way already; ask again later", 60)
        now = self._clock.now()
        return Order(
            **{name: getattr(terms, name) for name in Terms.__struct_fields__},
            id=self._tools.ids.order(),
            auto_renew=request.auto_renew,
            status="pending",
            created_at=now,
            give_up_at=now + timedelta(seconds=self._patience_seconds),
            requested_by=owner_in(context),
            renew_before_seconds=renew_before,
            flight=flight,
        )

    async def _renewal_order(self, certificate: Certificate, cause: OrderCause, bulk_id: BulkRenewalId | None) -> Order:
        terms, now = terms_of(certificate), self._clock.now()
        await self._require_an_account(terms)
        self._tools.solvers.get(terms.challenge_type, terms.solver)
        key_id = None
        if terms.csr_der is not None:
            await self._refuse_compromised(x509.spki_sha256(x509.spki_of_csr(terms.csr_der)))
        elif terms.reuse_key and cause != "revocation" and terms.key_type == certificate.key_type:
            key_id = certificate.key_id
            await self._refuse_compromised(spki_sha256_in(certificate.chain_pem))
        return Order(
            **{name: getattr(terms, name) for name in Terms.__struct_fields__},
            id=self._tools.ids.order(),
            auto_renew=certificate.auto_renew,
            status="pending",
            created_at=now,
            give_up_at=now + timedelta(seconds=self._patience_seconds),
            cause=cause,
            requested_by=certificate.requested_by,
            renews=certificate.id,
            renews_version=certificate.version,
            bulk_id=bulk_id,
            key_id=key_id,
        )

    async def _require_an_account(self, terms: Terms) -> None:
        """At least one account that may order, now or after a pause."""
        errors: list[ScaivaultError] = []
        for account_id in terms.accounts:
            try:
                require_registered((await self._tools.accounts.load(account_id)).value)
            except CaUnavailable:
                return
            except (AccountUnusable, NotFound) as error:
                errors.append(error)
                continue
            return
        raise AccountUnusable("; ".join(each.detail for each in errors))

    async def _refuse_compromised(self, spki_sha256: str) -> None:
        if await is_compromised(self._store, spki_sha256):
            raise Conflict(COMPROMISED)

    def _begin(self, order: Order) -> None:
        """Start the job of an order that has just been accepted."""
        solver = self._tools.solvers.get(order.challenge_type, order.solver)
        self._start(order, Presence(solver, self._tools.solvers.claims, self._tools.log))

    def _start(
        self,
        order: Order,
        presence: Presence,
        journal: Mapping[str, ChallengeResponse] | None = None,
        *,
        is_in_place: bool = False,
    ) -> None:
        under_way = UnderWay(order)
        self._under_way[order.id] = under_way
        self._jobs.start(
            f"order {order.id}", lambda: self._pursue(under_way, presence, journal or {}, is_in_place=is_in_place)
        )

    async def _reclaimed(self) -> None:
        """Wait until the orders with values in DNS have their shares again: what is there is there, and counts."""
        for presence in tuple(self._reclaiming):
            await presence.settled()
        self._reclaiming.clear()

    async def _pursue(
        self, under_way: UnderWay, presence: Presence, journal: Mapping[str, ChallengeResponse], *, is_in_place: bool
    ) -> None:
        """The job: attempt after attempt, with the pauses that the order itself remembers."""
        order_id = under_way.order_id
        try:
            with under_way:
                await presence.restore(journal, is_in_place=is_in_place)
                if presence.may_wait:
                    await self._reclaimed()
                while await self._is_unfinished(under_way):
                    await self._attempt(order_id, presence)
        except Superseded:
            self._tools.log.info("order.superseded", order_id=order_id)
        finally:
            # A stop leaves all in place: the order goes on in the next process, and the CA may look before that is up.
            under_way.rests.set()
            self._under_way.pop(order_id, None)
            if under_way.flight is not None and self._flights.get(under_way.flight) == order_id:
                del self._flights[under_way.flight]
        # Write order, step 8: whatever the outcome, what we put in place goes away.
        await presence.clean_up()
        await self._leave_ca(order_id)

    async def _is_unfinished(self, under_way: UnderWay) -> bool:
        """Whether there is more to do; returns when it is due."""
        while True:
            try:
                order = (await self._load(under_way.order_id)).value
            except StorageUnavailable as error:
                await self._wait_for_store(under_way.order_id, error)
                continue
            if order.next_try_at is not None and order.next_try_at > self._clock.now():
                under_way.rests.set()
                await sleep_until(self._clock, order.next_try_at, under_way.hurry)
                under_way.rests.clear()
            under_way.hurry.clear()
            return order.status in UNFINISHED

    def _close_at_ca(self, order_id: OrderId) -> None:
        self._jobs.start(f"order {order_id}", lambda: self._leave_ca(order_id))

    async def _leave_ca(self, order_id: OrderId) -> None:
        """Deactivate what is still pending at the CA for an order that has ended (RFC 8555 section 7.5.2)."""
        order = (await self._load(order_id)).value
        if not order.has_open_authorizations or order.status in UNFINISHED:
            return
        await self._be_polite(order)
        held = await self._load(order_id)
        order = held.value
        await self._deactivate_pending(order)
        closed = msgspec.structs.replace(order, has_open_authorizations=False)
        try:
            await self._store.commit([ORDERS.put(closed, held.revision)])
        except RevisionConflict:
            self._tools.log.debug("order.changed_meanwhile", order_id=order_id)

    async def _leave_behind(self, order: Order) -> None:
        """The same for an order that goes on at another CA; forgotten if this process ends first."""
        await self._be_polite(order)
        await self._deactivate_pending(order)

    async def _be_polite(self, order: Order) -> None:
        if order.poll_after is not None:
            await sleep_until(self._clock, min(order.poll_after, self._clock.now() + _LEAVING_LATEST))

    async def _deactivate_pending(self, order: Order) -> None:
        log = self._tools.log.bind(order_id=order.id)
        # Another order of ours may prove the same name by the same authorization: CAs share pending ones.
        shared = {
            each.value
            for other in self._under_way.values()
            if other.account_id == order.account_id and other.order_id != order.id
            for each in other.identifiers
        }
        for pause in _LEAVING_SECONDS:
            account = (await self._tools.accounts.load(order.account_id)).value
            error = await outcome_of(deactivate_pending(self._tools.accounts, account, order, shared), log)
            if error is None or not error.retryable:
                break
            log.debug("order.authorizations_open", detail=error.detail)
            await self._clock.sleep(pause)

    async def _wait_for_store(self, order_id: OrderId, error: StorageUnavailable) -> None:
        self._tools.log.warning("order.store_unavailable", order_id=order_id, detail=error.detail)
        await self._clock.sleep(_STORAGE_PAUSE_SECONDS)

    async def _attempt(self, order_id: OrderId, presence: Presence) -> None:
        try:
            account = await self._account_of(order_id)
            if (under_way := self._under_way.get(order_id)) is not None:
                under_way.account_id = account.id
            if account.status == "pending":
                await self._waiting.until(ACCOUNTS, account.id, _REGISTRATION_SECONDS, _is_decided)
            async with self._tools.accounts.using(account.id), Place(self._places[account.directory_url]) as place:
                await self._attempt_in_place(order_id, account.id, presence, place)
        except StorageUnavailable as error:
            await self._wait_for_store(order_id, error)

    async def _attempt_in_place(
        self, order_id: OrderId, account_id: AccountId, presence: Presence, place: Place
    ) -> None:
        # Another look after the wait for a place: the account may be registered by now, or gone.
        account = await self._account_of(order_id)
        if account.id != account_id:
            return  # another account's turn, and another CA's place
        pursuit = Pursuit(self._tools, await self._load(order_id), account, presence, place)
        try:
            await self._attempt_with(pursuit, account)
        finally:
            if (left := pursuit.left_behind) is not None:
                self._jobs.start(f"leaving {left.url}", lambda: self._leave_behind(left))

    async def _attempt_with(self, pursuit: Pursuit, account: Account) -> None:
        log = self._tools.log.bind(order_id=pursuit.order.id)
        if (until := await self._tools.accounts.held_until(account)) is not None:
            await pursuit.wait_until(until)
            return
        try:
            error = await outcome_of(pursuit.run(), log, let_pass=(Parked, Superseded, Held))
        except Parked as parked:
            await pursuit.park(parked.seconds)
            return
        except Held as held:
            await pursuit.hold(held)
            return
        if isinstance(error, StorageUnavailable):
            raise error
        if error is not None:
            await self._note(pursuit, account, error)

    async def _note(self, pursuit: Pursuit, account: Account, error: ScaivaultError) -> None:
        log = self._tools.log.bind(order_id=pursuit.order.id)
        if await self._is_healed(account, error):
            error = CaUnavailable(f"the CA refused account {account.id}, and knows it all the same ({error.detail})")
        failed = await outcome_of(pursuit.set_back(error), log, let_pass=(Superseded,))
        if isinstance(failed, StorageUnavailable):
            raise failed
        if failed is not None:
            # What went wrong could not even be written down; that something did can be.
            await pursuit.set_back(failed)

    async def _account_of(self, order_id: OrderId) -> Account:
        """The account to try now: the first that is not being left alone, unless a CA has the order already."""
        held = await self._load(order_id)
        order = held.value
        if len(order.accounts) > 1 and order.url is None and not order.asked:
            closed = [each for each in order.accounts if not self._tools.breakers.is_open(each)]
            chosen = closed[0] if closed else order.account_id
            before = order.accounts[: order.accounts.index(chosen)]
            if (chosen, before) != (order.account_id, order.accounts_tried):
                order = msgspec.structs.replace(order, account_id=chosen, accounts_tried=before)
                try:
                    await self._store.commit([ORDERS.put(order, held.revision)])
                except RevisionConflict as conflict:
                    raise Superseded from conflict
        return (await self._tools.accounts.load(order.account_id)).value

    async def _is_healed(self, account: Account, error: ScaivaultError) -> bool:
        """Whether the CA refused the account for a reason that is gone now."""
        if not (isinstance(error, CaRefused) and error.problem and error.problem.name in _ACCOUNT_TROUBLE):
            return False
        try:
            was_unknown = error.problem.name == "accountDoesNotExist"
            return await self._tools.accounts.examine(account, was_unknown=was_unknown)
        except ScaivaultError as further:
            self._tools.log.warning("account.not_examined", account_id=account.id, detail=further.detail)
            return False

    def _reply(self, order: Order) -> m.OrderReply:
        # While it is under way this process knows more than the document.
        records = self._tools.records.reports(order.id) or order.dns_records
        seen = self._tools.seen.get(order.id, {})
        return m.OrderReply(
            order_id=order.id,
            account_id=order.account_id,
            status=order.status,
            domains=[str(each) for each in order.identifiers],
            challenge_type=order.challenge_type,
            key_type=order.key_type,
            auto_renew=order.auto_renew,
            challenges=[
                m.ChallengeReply(
                    domain=each.identifier,
                    type=each.type,
                    status=seen.get(each.url, each.status),
                    token=each.token,
                    key_authorization=each.key_authorization,
                )
                for each in order.challenges
            ],
            created_at=order.created_at,
            certificate_id=order.certificate_id,
            not_after=order.not_after,
            expires_at=order.expires_at,
            solver=order.solver,
            dns_provider=order.dns_provider,
            dns_records=records,
            cause=order.cause,
            renews=order.renews,
            version=order.version,
            account_ids=list(order.accounts),
            profile=order.profile,
            warnings=order.warnings,
            preflight=order.preflight,
            queued=order.queued,
            attempt=order.attempt,
            next_try_at=order.next_try_at,
            error=order.error,
            evidence=order.evidence,
            requested_by=shown_owner(order.requested_by),
        )

    async def _load(self, order_id: OrderId) -> Versioned[Order]:
        order = await ORDERS.get(self._store, order_id)
        if order is None:
            raise NotFound(f"order {order_id} is gone")
        return order


def _is_decided(account: Account) -> bool:
    return account.status != "pending"
