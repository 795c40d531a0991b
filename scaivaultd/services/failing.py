"""What follows when an attempt does not bring a certificate: try again, try another account, or end.

An order for a new certificate has its own patience. One that renews has none: its certificate is tried again as long as
it lives and longer, at the pace of `acme/renewal.next_attempt`, by this order as long as the CA keeps it, else by
the next. Every failure is committed together with the certificate's `Renewal` and the event that tells it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.acme import causes, limit_rules, limits
from scaivaultd.acme.directories import ca_name
from scaivaultd.api import events
from scaivaultd.model import metrics
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaRefused,
    CaUnavailable,
    NotFound,
    PreflightFailed,
    RevisionConflict,
    ScaivaultError,
)
from scaivaultd.model.resources import Trouble
from scaivaultd.services import renewals, setbacks
from scaivaultd.services.documents import CERTIFICATES, RENEWALS
from scaivaultd.services.order_record import FORGOTTEN
from scaivaultd.services.setbacks import Memory

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.causes import Cause
    from scaivaultd.model.resources import Account, Certificate, Order, Renewal
    from scaivaultd.model.storage import Change, OutboxEvent
    from scaivaultd.services.budgets import Held
    from scaivaultd.services.documents import Versioned
    from scaivaultd.services.order_record import OrderRecord
    from scaivaultd.services.pursuit import Tools

PROCESSING_PATIENCE = timedelta(hours=24)
"""Some CAs process for hours; an order in that state is kept, never replaced by a new one (RFC 8555 section 7.4)."""


def patience_end(order: Order) -> datetime:
    """Until when an order is waited for."""
    # Only while the CA itself is at work: one that has finished and does not hand out the certificate is not.
    at_work = order.status == "processing" and order.certificate_url is None
    return order.created_at + PROCESSING_PATIENCE if at_work else order.give_up_at


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, and whether the same order may still bring the certificate."""

    trouble: Trouble
    cause: Cause
    may_go_on: bool
    retry_at: datetime | None = None
    failed_names: tuple[str, ...] = ()
    error: ScaivaultError | None = None
    fields: dict[str, Any] = {}


class _Step(msgspec.Struct, frozen=True, kw_only=True):
    """What a failed attempt means for the certificate: its order goes on, or with another account, or has ended."""

    trouble: Trouble
    next_try_at: datetime | None = None
    goes_on: bool = True
    next_account: str | None = None

    def applied_to(self, renewal: Renewal) -> Renewal:
        return renewals.set_back(renewal, self.trouble, self.next_try_at, goes_on=self.goes_on)


class Failing:
    """The end of an attempt that failed. Every method raises Superseded when the order is somebody else's by now."""

    def __init__(self, tools: Tools, record: OrderRecord, account: Account, log: FilteringBoundLogger) -> None:
        self._tools = tools
        self._record = record
        self._account = account
        self._log = log
        self.left_behind: Order | None = None

    @property
    def _order(self) -> Order:
        return self._record.order

    async def set_back(self, error: ScaivaultError, **noted: Any) -> None:
        """Note an error of an attempt, and when it goes on or that it does not; `noted` goes into the order."""
        cause, now = causes.cause_of(error), self._tools.clock.now()
        if isinstance(error, CaRefused) and setbacks.needs_person(error):
            await self._wait_for_person(error, cause)
            return
        order = self._order
        memory = Memory(attempt=order.attempt, misbehaved=order.misbehaved, give_up_at=patience_end(order))
        verdict = setbacks.judge(error, memory, now=now, fraction=self._tools.randomness.fraction())
        fields: dict[str, Any] = {**noted, "attempt": verdict.attempt, "misbehaved": verdict.misbehaved}
        if isinstance(error, PreflightFailed):
            fields["preflight"] = error.verdicts
        await self._fail(
            Failure(
                trouble=causes.judged(verdict.trouble, cause),
                cause=cause,
                may_go_on=setbacks.may_go_on(error, verdict.misbehaved),
                retry_at=_retry_at(error, now),
                error=error,
                fields=fields,
            ),
            verdict.next_try_at,
        )

    async def give_up(self, trouble: Trouble, **fields: Any) -> None:
        """End the order that its CA has declared invalid, or that it will not serve in this way."""
        cause = causes.cause_of_trouble(trouble)
        names = tuple(each.identifier for each in trouble.identifiers) if trouble.code == "challenge_failed" else ()
        failure = Failure(
            trouble=causes.judged(trouble, cause), cause=cause, may_go_on=False, failed_names=names, fields=fields
        )
        await self._fail(failure, None)

    async def hold(self, held: Held) -> None:
        """Wait for a budget, with the forecast in the order; nothing is wrong."""
        if held.needs_human:
            detail = f"{held.queued.subject} is paused at the CA until a person unpauses it there"
            trouble = Trouble(code=BackendRateLimited.code, detail=detail, limit=held.queued.limit)
            cause = causes.Cause("permanent", "ca")
            await self._fail(Failure(trouble=causes.judged(trouble, cause), cause=cause, may_go_on=False), None)
            return
        if await self._turn_to_another(causes.Cause("transient", "ca")):
            return
        until, order = held.queued.until, self._order
        # Woken before its turn, it has been given the time until then already.
        granted = now = self._tools.clock.now()
        if order.queued is not None and order.next_try_at is not None:
            granted = max(now, order.next_try_at)
        await self._record.commit(
            queued=held.queued, next_try_at=until, give_up_at=order.give_up_at + (until - granted)
        )
        self._log.info(
            "order.queued",
            limit=held.queued.limit,
            subject=held.queued.subject,
            ahead=held.queued.ahead,
            until=until.isoformat(),
        )

    async def wait_until(self, moment: datetime) -> None:
        """Pause because the account is not to be used before; nothing that the order could help."""
        order = self._order
        pause = max(moment - self._tools.clock.now(), timedelta(0))
        why = self._account.action
        if why is not None:
            why = msgspec.structs.replace(why, retryable=True, retry_at=moment)
        await self._record.commit(next_try_at=moment, give_up_at=order.give_up_at + pause, error=why or order.error)

    async def _wait_for_person(self, error: CaRefused, cause: Cause) -> None:
        order, now = self._order, self._tools.clock.now()
        trouble = causes.judged(setbacks.trouble_of(error, None), cause)
        until = await self._tools.accounts.hold(self._account, trouble, order)
        trouble = msgspec.structs.replace(trouble, retryable=True, retry_at=until)
        if await self._turn_to_another(cause, trouble):
            return
        give_up_at = order.give_up_at + (until - now)
        fields: dict[str, Any] = {"error": trouble, "next_try_at": until, "give_up_at": give_up_at}
        first_time = order.error is None or order.error.acme != trouble.acme
        if order.renews is not None and first_time:
            await self._commit_renewal(_Step(trouble=trouble, next_try_at=until), fields)
        else:
            await self._record.commit(**fields)
        self._log.warning("order.waits_for_person", detail=error.detail, next_try_at=until.isoformat())

    async def _fail(self, failure: Failure, next_try_at: datetime | None) -> None:
        if failure.cause.fault == "ca" and await self._turn_to_another(failure.cause, failure.trouble, failure):
            return
        if self._order.renews is not None:
            await self._fail_renewal(failure)
        elif next_try_at is None or not failure.may_go_on:
            await self._end(failure, error=msgspec.structs.replace(failure.trouble, retryable=False), next_try_at=None)
        else:
            trouble = msgspec.structs.replace(failure.trouble, retryable=True, retry_at=next_try_at)
            changes = self._learnt(failure)
            await self._record.commit(changes, error=trouble, next_try_at=next_try_at, **failure.fields)
            self._log_set_back(failure.trouble, next_try_at)

    def _learnt(self, failure: Failure) -> list[Change]:
        """What the failure tells about the CA's limits."""
        budgets = self._tools.budgets
        changes: list[Change] = []
        if failure.failed_names:
            changes += budgets.failed(self._order, self._account, failure.failed_names)
        if isinstance(failure.error, BackendRateLimited):
            changes += budgets.refused(self._order, self._account, failure.error)
        return changes

    async def _fail_renewal(self, failure: Failure) -> None:
        order, now = self._order, self._tools.clock.now()
        found = await self._renewal()
        if found is None:
            await self._end(failure, error=failure.trouble, next_try_at=None)
            return
        _, renewal = found
        fraction = self._tools.randomness.fraction()
        next_try_at = renewals.next_try(
            renewal.value, failure.cause.kind, retry_at=failure.retry_at, now=now, fraction=fraction
        )
        trouble = msgspec.structs.replace(failure.trouble, retryable=True, retry_at=next_try_at)
        goes_on = failure.may_go_on and failure.cause.kind == "transient" and next_try_at <= patience_end(order)
        if goes_on:
            fields = {**failure.fields, "error": trouble, "next_try_at": next_try_at}
            step = _Step(trouble=trouble, next_try_at=next_try_at)
            await self._commit_renewal(step, fields, self._learnt(failure))
            self._log_set_back(trouble, next_try_at)
        else:
            await self._end(failure, error=trouble, next_try_at=None)

    async def _end(self, failure: Failure, **fields: Any) -> None:
        """The last commit of an order without a certificate, with its event, and with what it means for a renewal."""
        order, now = self._order, self._tools.clock.now()
        fields = {
            **failure.fields,
            "status": "invalid",
            "owner": None,
            "queued": None,
            "dns_records": self._tools.records.reports(order.id) or order.dns_records,
            "has_open_authorizations": order.url is not None,
            **fields,
        }
        failed = msgspec.structs.replace(order, **fields)
        changes = [*self._learnt(failure), *self._tools.budgets.gave_nothing(order, self._account)]
        queued = [events.order_failed(failed, now)]
        if order.renews is not None and failed.error is not None:
            step = _Step(trouble=failed.error, next_try_at=failed.error.retry_at, goes_on=False)
            await self._commit_renewal(step, fields, changes, queued)
        else:
            await self._record.commit(changes, queued, **fields)
        self._tools.budgets.left(order.id)
        metrics.ISSUANCES.labels(
            ca=ca_name(self._account.directory_url),
            challenge=order.challenge_type,
            kind="new" if order.renews is None else "renewal",
            result=failure.trouble.code,
        ).inc()
        self._log.error("order.failed", error_code=failure.trouble.code, detail=failure.trouble.detail)

    async def _commit_renewal(
        self,
        step: _Step,
        fields: dict[str, Any],
        changes: Sequence[Change] = (),
        queued: Sequence[OutboxEvent] = (),
    ) -> None:
        """Commit the order with its certificate's `Renewal` and the event that tells it, on top of other changes."""
        while True:
            found = await self._renewal()
            if found is None:
                await self._record.commit(changes, queued, **fields)
                return
            certificate, held = found
            renewal = step.applied_to(held.value)
            told = events.certificate_renewal_failed(
                certificate, renewal, self._order, step.trouble, self._tools.clock.now(), step.next_account
            )
            try:
                await self._record.commit([*changes, RENEWALS.put(renewal, held.revision)], [*queued, told], **fields)
            except RevisionConflict:
                continue
            self._tools.renewals.tell(certificate.id)
            return

    async def _renewal(self) -> tuple[Certificate, Versioned[Renewal]] | None:
        """The certificate this order renews, and its `Renewal` as long as that counts on this order."""
        assert self._order.renews is not None
        certificate = await CERTIFICATES.get(self._tools.store, self._order.renews)
        renewal = await RENEWALS.get(self._tools.store, self._order.renews)
        if certificate is None or renewal is None or renewal.value.order_id != self._order.id:
            return None
        return certificate.value, renewal

    async def _turn_to_another(
        self, cause: Cause, trouble: Trouble | None = None, failure: Failure | None = None
    ) -> bool:
        """Go on with the next of the order's accounts, if there is one that may help; the CA's order is left behind."""
        order = self._order
        if len(order.accounts) < 2:
            return False
        if trouble is not None:
            self._tools.breakers.failed(self._account.id)
        tried = (*order.accounts_tried, order.account_id)
        account = await self._next_account(tried)
        if account is None:
            return False
        fields = {
            **(failure.fields if failure else {}),
            **FORGOTTEN,
            "account_id": account.id,
            "accounts_tried": tried,
            "next_try_at": None,
            "queued": None,
            "error": trouble or order.error,
            "replaces_refused": False,
        }
        changes = [
            *(self._learnt(failure) if failure else ()),
            *self._tools.budgets.gave_nothing(order, self._account),
        ]
        if order.renews is not None and trouble is not None:
            await self._commit_renewal(_Step(trouble=trouble, next_account=account.id), fields, changes)
        else:
            await self._record.commit(changes, **fields)
        if order.url is not None:
            polite_from = (failure.fields if failure else {}).get("poll_after", order.poll_after)
            self.left_behind = msgspec.structs.replace(order, poll_after=polite_from)
        self._log.warning(
            "order.turns_to_another_account", account_id=order.account_id, next_account_id=account.id, kind=cause.kind
        )
        return True

    async def _next_account(self, tried: Sequence[str]) -> Account | None:
        for account_id in self._order.accounts:
            if account_id in tried or self._tools.breakers.is_open(account_id):
                continue
            try:
                account = (await self._tools.accounts.load(account_id)).value
            except NotFound:
                continue
            if account.status != "valid" or account.is_deactivating or account.action is not None:
                continue
            why = await self._tools.preflight.caa_forbids(self._order, account)
            if why is None:
                return account
            self._log.warning("order.account_forbidden", account_id=account_id, detail=why)
        return None

    def _log_set_back(self, trouble: Trouble, next_try_at: datetime) -> None:
        self._log.warning(
            "order.set_back", error_code=trouble.code, detail=trouble.detail, next_try_at=next_try_at.isoformat()
        )


def _retry_at(error: ScaivaultError, now: datetime) -> datetime | None:
    """The CA's or the provider's word on when to come back; for a rate limit what the ledger makes of it."""
    if isinstance(error, BackendRateLimited):
        return limit_rules.refusal_from(error.problem, error.retry_at).until or now + limits.UNTIMED
    seconds = getattr(error, "retry_after", None)
    return now + timedelta(seconds=seconds) if isinstance(seconds, int | float) else None


def require_registered(account: Account) -> None:
    """Refuse an account that nothing can be asked with.

    Raises:
        CaUnavailable: it is not registered yet.
        AccountUnusable: it never will be, or is no more.
    """
    if account.status == "pending":
        raise CaUnavailable(f"account {account.id} is not registered at its CA yet")
    if account.status != "valid" or account.is_deactivating:
        why = f": {account.error.detail}" if account.error else ""
        state = "being deactivated" if account.is_deactivating else account.status
        raise AccountUnusable(f"account {account.id} is {state}{why}", account.error.acme if account.error else None)
