"""Orders: accepted here, pursued by jobs, found again after any stop."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import messages as m
from scaivaultd.model.dns import PropagationOverride
from scaivaultd.model.errors import (
    CaRefused,
    CaUnavailable,
    Conflict,
    FieldError,
    Internal,
    InvalidRequest,
    NotFound,
    RateLimited,
    RevisionConflict,
    ScaivaultError,
    StorageUnavailable,
    UnsupportedChallenge,
)
from scaivaultd.model.ids import OrderId
from scaivaultd.model.names import parse_identifiers, require_provable
from scaivaultd.model.resources import UNFINISHED, IdempotentResult, Order
from scaivaultd.model.storage import ABSENT
from scaivaultd.services.dns_providers import require_resolvers
from scaivaultd.services.documents import ACCOUNTS, IDEMPOTENCY, IDEMPOTENCY_SECONDS, ORDERS, Versioned, digest
from scaivaultd.services.jobs import outcome_of
from scaivaultd.services.presence import Presence, journalled
from scaivaultd.services.pursuit import Parked, Place, Pursuit, Superseded, Tools
from scaivaultd.services.waiting import sleep_until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.ids import AccountId, BulkRenewalId, CertificateId
    from scaivaultd.model.resources import Account, OrderCause
    from scaivaultd.plugin import ChallengeResponse
    from scaivaultd.services.dns_providers import DnsProviders
    from scaivaultd.services.jobs import Jobs
    from scaivaultd.services.waiting import Waiting

BACKLOG_MAX = 20_000
_STORAGE_PAUSE_SECONDS = 5.0
_REGISTRATION_SECONDS = 60.0
_RESUME_SECONDS = 5.0
_ACCOUNT_TROUBLE = ("accountDoesNotExist", "unauthorized")


class Issuing:
    """Handlers of `pki.acme.issue` and `pki.acme.orders.*`, and the job behind every unfinished order."""

    def __init__(
        self,
        tools: Tools,
        jobs: Jobs,
        waiting: Waiting,
        *,
        providers: DnsProviders,
        orders_per_ca: int,
        patience_seconds: float,
    ) -> None:
        self._tools = tools
        self._store = tools.store
        self._clock = tools.clock
        self._jobs = jobs
        self._waiting = waiting
        self._providers = providers
        self._patience_seconds = patience_seconds
        self._resumed: list[Presence] = []
        self._reclaiming: list[Presence] = []
        self._places: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(orders_per_ca))

    async def issue(self, request: m.Issue, context: RequestContext) -> m.OrderReply:
        """Handle `pki.acme.issue`."""
        order_id = await self._accept(request, context)
        solver = self._tools.solvers.get(request.challenge_type, request.solver)
        self._start(order_id, Presence(solver, self._tools.solvers.claims, self._tools.log))
        order = await self._waiting.until(
            ORDERS,
            order_id,
            request.wait_seconds,
            lambda each: bool(each.challenges) or each.status != "pending",
        )
        return self._reply(order)

    async def get(self, request: m.OrderById, context: RequestContext) -> m.OrderReply:
        """Handle `pki.acme.orders.get`."""
        order = await ORDERS.get(self._store, request.order_id)
        if order is None:
            raise NotFound(f"there is no order {request.order_id[:100]!r}")
        return self._reply(order.value)

    async def list(self, request: m.ListOrders, context: RequestContext) -> m.OrderList:
        """Handle `pki.acme.orders.list`."""
        where = {"status": request.status, "account": request.account_id}
        page = await ORDERS.page(self._store, where=where, cursor=request.cursor, limit=request.limit)
        return m.OrderList(items=[self._reply(each.value) for each in page.items], next_cursor=page.next_cursor)

    async def cancel(self, request: m.CancelOrder, context: RequestContext) -> m.OrderReply:
        """Handle `pki.acme.orders.cancel`."""
        raise Internal("not built yet")

    async def renew(
        self, certificate_id: CertificateId, cause: OrderCause, *, bulk_id: BulkRenewalId | None = None
    ) -> Order:
        """The order that makes the next version of a certificate: the one under way, or a new one, started.

        Order and `Renewal` are committed together. An order under way is not hurried by this.

        Raises:
            NotFound: there is no such certificate.
            AccountUnusable: none of its accounts can order.
            Conflict: its key must not be certified again (a compromised key of a CSR, or with `reuse_key`).
            UnsupportedChallenge: no solver is installed any more, or no DNS provider.
        """
        raise Internal("not built yet")

    def hurry(self, order_id: OrderId) -> None:
        """End the pause an order makes after a setback, if it makes one."""

    async def rest(self, order_id: OrderId) -> None:
        """Wait until an order has ended, or pauses after a setback; returns at once for one without a job."""

    async def end_orders_of(self, account_id: AccountId, error: ScaivaultError) -> int:
        """End every unfinished order of an account as `deactivated`, with this error; returns how many."""
        return 0

    def reply(self, order: Order) -> m.OrderReply:
        """An order as callers see it."""
        return self._reply(order)

    async def resume(self) -> None:
        """Go on with every order that has not ended: by its state at the CA, not by our memory."""
        holders = await self._tools.records.holders()
        for status in UNFINISHED:
            for order in await ORDERS.all(self._store, self._tools.log, status=status):
                self._resume(order.value, is_in_place=order.value.id in holders)
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
        self._start(order.id, presence, journalled(order), is_in_place=is_in_place)

    async def _accept(self, request: m.Issue, context: RequestContext) -> OrderId:
        """Write order, step 1: the caller hears of an order only when it is written down."""
        key = context.idempotency_key
        asked = digest(msgspec.json.encode(msgspec.structs.replace(request, wait_seconds=0)))
        for _ in range(2):
            if key is not None and (made := await self._made_before(key, asked)):
                return made
            order = await self._order(request)
            changes = [ORDERS.put(order)]
            if key is not None:
                result = IdempotentResult(resource_id=order.id, request_digest=asked)
                changes.append(IDEMPOTENCY.put_at(_idempotency_id(key), result, ABSENT, IDEMPOTENCY_SECONDS))
            try:
                await self._store.commit(changes)
            except RevisionConflict:
                continue  # the same request came twice at once: the other one's order is the answer
            self._tools.log.info(
                "order.accepted",
                order_id=order.id,
                account_id=order.account_id,
                names=[str(each) for each in order.identifiers],
                request_id=context.request_id,
            )
            return order.id
        raise Conflict("the Idempotency-Key is in use by another request at this moment; ask again")

    async def _made_before(self, key: str, asked: str) -> OrderId | None:
        made = await IDEMPOTENCY.get(self._store, _idempotency_id(key))
        if made is None:
            return None
        if made.value.request_digest != asked:
            raise Conflict("this Idempotency-Key was used for another request within the last 24 hours")
        return OrderId(made.value.resource_id)

    async def _order(self, request: m.Issue) -> Order:
        account = (await self._tools.accounts.load(request.account_id)).value
        _require_usable(account)
        identifiers = parse_identifiers(request.domains, public_ca=account.provider != "custom")
        require_provable(request.domains, request.challenge_type)
        self._tools.solvers.get(request.challenge_type, request.solver)
        await self._check_dns(request)
        if len(self._jobs) >= BACKLOG_MAX:
            raise RateLimited(f"{len(self._jobs)} orders are under way already; ask again later", 60)
        now = self._clock.now()
        return Order(
            id=self._tools.ids.order(),
            account_id=account.id,
            identifiers=identifiers,
            challenge_type=request.challenge_type,
            key_type=request.key_type,
            auto_renew=request.auto_renew,
            status="pending",
            created_at=now,
            give_up_at=now + timedelta(seconds=self._patience_seconds),
            solver=request.solver,
            dns_provider=request.dns_provider,
            propagation=_override(request.propagation),
        )

    async def _check_dns(self, request: m.Issue) -> None:
        """What is certain to fail is refused at once; where names lead is found out by the job."""
        if request.challenge_type != "dns-01":
            for member in ("dns_provider", "propagation"):
                if getattr(request, member) is not None:
                    raise _invalid(f"/{member}", "not_for_this_challenge", f"{member} goes with dns-01 only")
            return
        wishes = request.propagation
        if wishes is not None and wishes.resolvers is not None:
            require_resolvers(wishes.resolvers, "/propagation/resolvers")
            if wishes.visibility == "resolvers" and not wishes.resolvers:
                raise _invalid("/propagation/resolvers", "empty", "visibility `resolvers` needs somebody to ask")
        if request.dns_provider is not None:
            try:
                await self._providers.find(request.dns_provider)
            except NotFound as error:
                raise _invalid("/dns_provider", "not_found", error.detail) from None
        elif request.solver in (None, "dns-01") and not await self._providers.all():
            detail = "no DNS provider is configured; create one with pki.dns_providers.create"
            field = FieldError(pointer="/challenge_type", code="no_dns_provider", detail=detail)
            raise UnsupportedChallenge(detail, [field])

    def _start(
        self,
        order_id: OrderId,
        presence: Presence,
        journal: Mapping[str, ChallengeResponse] | None = None,
        *,
        is_in_place: bool = False,
    ) -> None:
        self._jobs.start(
            f"order {order_id}", lambda: self._pursue(order_id, presence, journal or {}, is_in_place=is_in_place)
        )

    async def _reclaimed(self) -> None:
        """Wait until the orders with values in DNS have their shares again: what is there is there, and counts."""
        for presence in tuple(self._reclaiming):
            await presence.settled()
        self._reclaiming.clear()

    async def _pursue(
        self, order_id: OrderId, presence: Presence, journal: Mapping[str, ChallengeResponse], *, is_in_place: bool
    ) -> None:
        """The job: attempt after attempt, with the pauses that the order itself remembers."""
        try:
            await presence.restore(journal, is_in_place=is_in_place)
            if presence.may_wait:
                await self._reclaimed()
            while await self._is_unfinished(order_id):
                await self._attempt(order_id, presence)
        except Superseded:
            self._tools.log.info("order.superseded", order_id=order_id)
        except asyncio.CancelledError:
            # A stop: the order goes on in the next process, and the CA may look before that is up.
            raise
        # Write order, step 8: whatever the outcome, what we put in place goes away.
        await presence.clean_up()

    async def _is_unfinished(self, order_id: OrderId) -> bool:
        """Whether there is more to do; returns when it is due."""
        while True:
            try:
                order = (await self._load(order_id)).value
            except StorageUnavailable as error:
                await self._wait_for_store(order_id, error)
                continue
            if order.next_try_at is not None:
                await sleep_until(self._clock, order.next_try_at)
            return order.status in UNFINISHED

    async def _wait_for_store(self, order_id: OrderId, error: StorageUnavailable) -> None:
        self._tools.log.warning("order.store_unavailable", order_id=order_id, detail=error.detail)
        await self._clock.sleep(_STORAGE_PAUSE_SECONDS)

    async def _attempt(self, order_id: OrderId, presence: Presence) -> None:
        try:
            account = await self._account_of(order_id)
            if account.status == "pending":
                await self._waiting.until(ACCOUNTS, account.id, _REGISTRATION_SECONDS, _is_decided)
            async with Place(self._places[account.directory_url]) as place:
                await self._attempt_in_place(order_id, presence, place)
        except StorageUnavailable as error:
            await self._wait_for_store(order_id, error)

    async def _attempt_in_place(self, order_id: OrderId, presence: Presence, place: Place) -> None:
        # Another look after the wait for a place: the account may be registered by now, or gone.
        account = await self._account_of(order_id)
        pursuit = Pursuit(self._tools, await self._load(order_id), account, presence, place)
        log = self._tools.log.bind(order_id=order_id)
        try:
            error = await outcome_of(pursuit.run(), log, let_pass=(Parked, Superseded))
        except Parked as parked:
            await pursuit.park(parked.seconds)
            return
        if isinstance(error, StorageUnavailable):
            raise error
        if error is not None:
            await self._note(pursuit, account, error)

    async def _note(self, pursuit: Pursuit, account: Account, error: ScaivaultError) -> None:
        log = self._tools.log.bind(order_id=pursuit.order.id)
        if await self._is_healed(account, error):
            error = CaUnavailable(f"the CA has moved account {account.id}; its new URL is noted ({error.detail})")
        failed = await outcome_of(pursuit.set_back(error), log, let_pass=(Superseded,))
        if isinstance(failed, StorageUnavailable):
            raise failed
        if failed is not None:
            # What went wrong could not even be written down; that something did can be.
            await pursuit.set_back(failed)

    async def _account_of(self, order_id: OrderId) -> Account:
        order = await self._load(order_id)
        return (await self._tools.accounts.load(order.value.account_id)).value

    async def _is_healed(self, account: Account, error: ScaivaultError) -> bool:
        """Whether the CA refused the account for a reason that is gone now."""
        if not (isinstance(error, CaRefused) and error.problem and error.problem.name in _ACCOUNT_TROUBLE):
            return False
        try:
            return await self._tools.accounts.examine(account)
        except ScaivaultError as further:
            self._tools.log.warning("account.not_examined", account_id=account.id, detail=further.detail)
            return False

    def _reply(self, order: Order) -> m.OrderReply:
        # While it is under way this process knows more than the document.
        records = self._tools.records.reports(order.id) or order.dns_records
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
                    status=each.status,
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
            attempt=order.attempt,
            next_try_at=order.next_try_at,
            error=order.error,
        )

    async def _load(self, order_id: OrderId) -> Versioned[Order]:
        order = await ORDERS.get(self._store, order_id)
        if order is None:
            raise NotFound(f"order {order_id} is gone")
        return order


def _override(request: m.PropagationRequest | None) -> PropagationOverride | None:
    if request is None:
        return None
    return PropagationOverride(
        visibility=request.visibility,
        timeout=request.timeout,
        interval=request.interval,
        resolvers=None if request.resolvers is None else tuple(request.resolvers),
        delay=request.delay,
        on_failure=request.on_failure,
    )


def _invalid(pointer: str, code: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])


def _idempotency_id(key: str) -> str:
    return digest("pki.acme.issue", key)


def _require_usable(account: Account) -> None:
    if account.status in ("invalid", "deactivated"):
        raise Conflict(f"account {account.id} is {account.status}; no certificate can be ordered with it")


def _is_decided(account: Account) -> bool:
    return account.status != "pending"
