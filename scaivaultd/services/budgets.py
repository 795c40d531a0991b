"""The ledgers of all CAs: what orders may go, who waits for his turn, and what refusals have taught us.

One `acme.limits.Ledger` stands for one directory. It is in memory, and the changes to it are handed to the caller
as documents for the commit of the order that they belong to.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from publicsuffixlist import PublicSuffixList

from scaivaultd.acme import limit_rules
from scaivaultd.acme.directories import ca_name
from scaivaultd.acme.limit_rules import NewAccount, PublicSuffixes
from scaivaultd.acme.limits import PAUSED, UNNAMED, Bucket, Closure, Ledger
from scaivaultd.api import messages as m
from scaivaultd.model import metrics
from scaivaultd.model.errors import NotFound
from scaivaultd.model.resources import Queued
from scaivaultd.model.storage import Delete
from scaivaultd.services import budget_report, visible
from scaivaultd.services.budget_lines import Lines, Waiting
from scaivaultd.services.budget_report import Wanted
from scaivaultd.services.documents import ACCOUNTS, ORDERS, Shelf, digest
from scaivaultd.services.requests import one_name
from scaivaultd.services.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.acme.limit_rules import Cause, NewOrder, Rule
    from scaivaultd.acme.limits import Wait
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.errors import BackendRateLimited
    from scaivaultd.model.ids import OrderId
    from scaivaultd.model.resources import Account, Order, RenewalWindow
    from scaivaultd.model.storage import Change
    from scaivaultd.services.budget_lines import Place
    from scaivaultd.services.ports import Store

_SWEEP_AT = 1000
_CHANGES_AT_ONCE = 500
_DELETED_AT_ONCE = 50
_AT_LEAST = timedelta(seconds=1)
_PAUSED_LOOK = timedelta(days=1)


class KeptBucket(msgspec.Struct, frozen=True, kw_only=True):
    """A bucket of one directory's ledger, as stored."""

    directory_url: str
    key: str
    entry: Bucket


class KeptClosure(msgspec.Struct, frozen=True, kw_only=True):
    """A closure of one directory's ledger, as stored."""

    directory_url: str
    key: str
    entry: Closure


BUCKETS: Shelf[KeptBucket] = Shelf(
    "bucket", KeptBucket, lambda each: digest(each.directory_url, each.key), lambda _: {}
)
CLOSURES: Shelf[KeptClosure] = Shelf(
    "closure", KeptClosure, lambda each: digest(each.directory_url, each.key), lambda _: {}
)


class Held(Exception):
    """An order has to wait for its turn; nothing was spent.

    `queued.until` is when to ask again. `needs_human`: time does not help, the CA has paused a name of it.
    """

    def __init__(self, queued: Queued, *, needs_human: bool = False) -> None:
        super().__init__(f"{queued.limit} of {queued.subject} until {queued.until.isoformat()}")
        self.queued = queued
        self.needs_human = needs_human


class _Ca:
    """One directory: its ledger, and who waits there."""

    def __init__(self, directory_url: str, rules: Sequence[Rule]) -> None:
        self.directory_url = directory_url
        self.ledger = Ledger(rules=tuple(rules))
        self.lines = Lines()
        self.sweep_at = _SWEEP_AT
        self._over: list[tuple[Shelf[Any], str]] = []

    @property
    def is_free(self) -> bool:
        """Nothing is limited and nothing was refused."""
        return not (self.ledger.rules or self.ledger.closures or self.lines)

    @property
    def counts_domains(self) -> bool:
        """Whether it matters which registered domain a name belongs to."""
        return any(rule.scope == "registered_domain" for rule in self.ledger.rules) or any(
            key.partition(":")[0].endswith("_per_registered_domain") for key in self.ledger.closures
        )

    def take(self, ledger: Ledger) -> list[Change]:
        """Go on with another ledger; returns what is different in the store."""
        before, self.ledger = self.ledger, ledger
        return [] if ledger is before else [*self._differences(before, ledger)]

    def _differences(self, before: Ledger, after: Ledger) -> Iterator[Change]:
        # No revisions: one process owns the store, and it writes what it knows. If the commit of these fails, memory is
        # ahead of the store, with too much spent rather than too little; the next write of the entry carries it all.
        url = self.directory_url
        for key, bucket in after.buckets.items():
            if before.buckets.get(key) is not bucket:
                yield BUCKETS.put(KeptBucket(directory_url=url, key=key, entry=bucket), None)
        for key, closure in after.closures.items():
            if before.closures.get(key) is not closure:
                yield CLOSURES.put(KeptClosure(directory_url=url, key=key, entry=closure), None)
        for key in before.closures.keys() - after.closures.keys():
            yield Delete(key=CLOSURES.key(digest(url, key)))

    def sweep(self, now: datetime) -> None:
        """Forget what is over, if there may be much of it; `deletions` brings it to the store bit by bit."""
        before = self.ledger
        if len(before.buckets) + len(before.closures) < self.sweep_at:
            return
        self.ledger = before.swept(now)
        self.sweep_at = max(_SWEEP_AT, 2 * (len(self.ledger.buckets) + len(self.ledger.closures)))
        self._over += [(BUCKETS, key) for key in before.buckets.keys() - self.ledger.buckets.keys()]
        self._over += [(CLOSURES, key) for key in before.closures.keys() - self.ledger.closures.keys()]

    def deletions(self, at_most: int = _DELETED_AT_ONCE) -> list[Change]:
        """Some of what was swept, and has not come up again."""
        over, self._over = self._over[:at_most], self._over[at_most:]
        return [
            Delete(key=shelf.key(digest(self.directory_url, key)))
            for shelf, key in over
            if key not in (self.ledger.buckets if shelf is BUCKETS else self.ledger.closures)
        ]


class _EveryName:
    """Stands in for the public suffix list where nothing is counted by registered domain."""

    def privatesuffix(self, domain: str, /) -> str | None:
        return domain


class Budgets:
    """Handler of `pki.acme.limits`, and the counting behind it.

    Changes are to be committed soon, in the order in which they were made: entries are written as a whole.
    """

    def __init__(
        self, *, store: Store, rules: Mapping[str, Sequence[Rule]], clock: Clock, log: FilteringBoundLogger
    ) -> None:
        """`rules` are those of the configuration, by directory URL; they replace what `limit_rules` knows."""
        self._store = store
        self._rules = rules
        self._clock = clock
        self._log = log
        self._cas: dict[str, _Ca] = {}
        self._waits_at: dict[OrderId, _Ca] = {}
        # Whether a renewal with `replaces` was exempt only the moment could tell at which it asked.
        self._spent_as: dict[OrderId, Cause] = {}
        self._given_back: set[OrderId] = set()
        self._list: PublicSuffixList | None = None
        self.first_in_line: Signal[OrderId] = Signal()
        """Those in front of the order have gone or left: what it was told of its turn may be too late by now."""

    def use_rules(self, rules: Mapping[str, Sequence[Rule]]) -> None:
        """Go by other rules of the configuration from now on; what was spent stays spent."""
        self._rules = rules
        for url, ca in self._cas.items():
            ledger = ca.ledger
            ca.ledger = Ledger(rules=self._rules_of(url), buckets=ledger.buckets, closures=ledger.closures)

    def _rules_of(self, directory_url: str) -> tuple[Rule, ...]:
        rules = self._rules.get(directory_url)
        return tuple(limit_rules.rules_for(directory_url) if rules is None else rules)

    async def resume(self) -> None:
        """Read what was spent and refused before, and who waited."""
        now = self._clock.now()
        buckets: dict[str, dict[str, Bucket]] = defaultdict(dict)
        closures: dict[str, dict[str, Closure]] = defaultdict(dict)
        for bucket in await BUCKETS.all(self._store, self._log):
            buckets[bucket.value.directory_url][bucket.value.key] = bucket.value.entry
        for closure in await CLOSURES.all(self._store, self._log):
            closures[closure.value.directory_url][closure.value.key] = closure.value.entry
        for url in buckets.keys() | closures.keys():
            ca = self._ca(url)
            ca.ledger = Ledger(rules=ca.ledger.rules, buckets=buckets[url], closures=closures[url])
            ca.sweep_at = 0
            ca.sweep(now)
            while over := ca.deletions(_CHANGES_AT_ONCE):
                await self._store.commit(over)
        await self._resume_waiting(now)

    async def _resume_waiting(self, now: datetime) -> None:
        """Line up again who waited: they sleep until their turn, and others must not take it meanwhile."""
        accounts = {each.value.id: each.value for each in await ACCOUNTS.all(self._store, self._log)}
        if all(self._ca(account.directory_url).is_free for account in accounts.values()):
            return
        for found in await ORDERS.all(self._store, self._log, status="pending"):
            order, account = found.value, accounts.get(found.value.account_id)
            if order.queued is not None and account is not None:
                request = self._request(self._ca(account.directory_url), order, account, _plain_cause(order))
                queued = msgspec.structs.replace(order.queued, until=max(order.queued.until, now))
                self._line_up(self._ca(account.directory_url), order, request, queued)

    def spend(
        self, order: Order, account: Account, *, replaces: str | None, window: RenewalWindow | None
    ) -> Sequence[Change]:
        """Take what a newOrder for `order` costs; the changes go into the commit that says it is asked.

        What it spent at an earlier `spent_at`, for a newOrder that came to nothing, is given back first. A caller's
        order is not held by a pause the first time: whoever asks has perhaps unpaused its names.

        Raises:
            Held: it is not its turn.
        """
        ca = self._ca(account.directory_url)
        if ca.is_free:
            return ()
        now = self._clock.now()
        cause = limit_rules.cause_of(
            now,
            renews_same_names=_plain_cause(order) == "renewal",
            replaces=replaces,
            window=None if window is None else (window.start, window.end),
        )
        ca.sweep(now)
        request = self._request(ca, order, account, cause)
        turn = ca.lines.turn_of(now, ca.ledger, request, _place_of(order, request))
        ledger = self._refunded(ca, now, order, account)
        if order.cause in ("issue", "request") and order.spent_at is None:
            # Somebody asks for paused names although they are: the CA may let them go by now. Each order tries once.
            ledger = ledger.resumed(account.id, request.names)
        spent = ledger.spend(now, request)
        if (wait := turn.wait or spent.wait) is not None:
            if spent.wait is not None:
                # For a clock that was set back. What is given back or resumed is so again when the order asks again.
                ca.take(ca.ledger.spend(now, request).ledger)
            raise self._held(ca, order, request, wait, turn.ahead)
        self.left(order.id)
        ca.lines.changed(ca.ledger, request)
        self._given_back.discard(order.id)
        if order.renews is not None:
            self._spent_as[order.id] = cause
        return [*ca.take(spent.ledger), *ca.deletions()]

    def _held(self, ca: _Ca, order: Order, request: NewOrder, wait: Wait, ahead: int) -> Held:
        now = self._clock.now()
        until = now + _PAUSED_LOOK if wait.until is None else max(wait.until, now + _AT_LEAST)
        queued = Queued(limit=wait.limit, subject=wait.subject, until=until, ahead=ahead)
        if wait.until is None:
            # No line: it is nobody's turn before a person has acted.
            self.left(order.id)
        else:
            self._line_up(ca, order, request, queued)
        metrics.ACME_RATE_LIMITED.labels(ca=ca_name(ca.directory_url), origin="local").inc()
        return Held(queued, needs_human=wait.until is None)

    def _line_up(self, ca: _Ca, order: Order, request: NewOrder, queued: Queued) -> None:
        if self._waits_at.get(order.id) is not ca:
            self.left(order.id)
        ca.lines.put(ca.ledger, Waiting(place=_place_of(order, request), request=request, queued=queued))
        self._waits_at[order.id] = ca

    def refused(self, order: Order, account: Account, refusal: BackendRateLimited) -> Sequence[Change]:
        """Learn from what the CA says no to."""
        ca, now = self._ca(account.directory_url), self._clock.now()
        metrics.ACME_RATE_LIMITED.labels(ca=ca_name(ca.directory_url), origin="ca").inc()
        read = limit_rules.refusal_from(refusal.problem, refusal.retry_at)
        by_domain = read.limit is not None and read.limit[1] == "registered_domain"
        request = self._request(ca, order, account, self._cause_spent(order), by_domain=by_domain)
        self._log.warning(
            "budget.refused",
            order_id=order.id,
            directory_url=ca.directory_url,
            limit=PAUSED if read.is_pause else UNNAMED if read.limit is None else limit_rules.limit_name(*read.limit),
            until=read.until.isoformat() if read.until else None,
        )
        ca.lines.changed(ca.ledger, request)
        # Refused at once, nothing was counted; and what the CA names, it has counted for us.
        ledger = self._refunded(ca, now, order, account) if order.url is None else ca.ledger
        if order.url is None or read.limit is not None:
            self._given_back.add(order.id)
        return ca.take(ledger.refused(now, request, read))

    def failed(self, order: Order, account: Account, names: Sequence[str]) -> Sequence[Change]:
        """Count failed authorizations, by identifier."""
        ca = self._ca(account.directory_url)
        return ca.take(ca.ledger.failed(self._clock.now(), account.id, names))

    def gave_nothing(self, order: Order, account: Account) -> Sequence[Change]:
        """An order spent for at `order.spent_at` ended without a certificate: give back what was not used."""
        ca = self._ca(account.directory_url)
        changes = ca.take(self._refunded(ca, self._clock.now(), order, account))
        self._forget(order.id)
        return changes

    def resumed(self, order: Order, account: Account) -> Sequence[Change]:
        """Its names may be asked for again: a certificate came, or a person has acted."""
        self._forget(order.id)
        ca = self._ca(account.directory_url)
        return ca.take(ca.ledger.resumed(account.id, [each.base for each in order.identifiers]))

    def _forget(self, order_id: OrderId) -> None:
        self._spent_as.pop(order_id, None)
        self._given_back.discard(order_id)

    def left(self, order_id: OrderId) -> None:
        """An order that may have waited does not wait any more, whatever became of it."""
        ca = self._waits_at.pop(order_id, None)
        if ca is not None and (first := ca.lines.remove(order_id)) is not None:
            self.first_in_line.tell(first)

    def spend_account(self, directory_url: str) -> tuple[Sequence[Change], datetime | None]:
        """Take what registering an account costs; with a moment it has to wait until then, and nothing is taken."""
        ca, now = self._ca(directory_url), self._clock.now()
        spent = ca.ledger.spend(now, NewAccount())
        changes = ca.take(spent.ledger)
        if spent.wait is None:
            return changes, None
        return (), max(spent.wait.until or now + _PAUSED_LOOK, now + _AT_LEAST)

    def ledgers(self) -> Mapping[str, Ledger]:
        """What is left at each CA, by directory URL."""
        return {url: ca.ledger for url, ca in self._cas.items()}

    def _ca(self, directory_url: str) -> _Ca:
        ca = self._cas.get(directory_url)
        if ca is None:
            ca = _Ca(directory_url, self._rules_of(directory_url))
            self._cas[directory_url] = ca
            # There from the first order on: of a series that begins with its first refusal no rule sees the rise.
            for origin in ("ca", "local"):
                metrics.ACME_RATE_LIMITED.labels(ca=ca_name(directory_url), origin=origin)
        return ca

    def _refunded(self, ca: _Ca, now: datetime, order: Order, account: Account) -> Ledger:
        if order.spent_at is None or order.id in self._given_back or not ca.ledger.buckets:
            return ca.ledger
        request = self._request(ca, order, account, self._cause_spent(order))
        ca.lines.changed(ca.ledger, request)
        return ca.ledger.refund(now, request, order.spent_at)

    def _cause_spent(self, order: Order) -> Cause:
        """What an order passed for when it spent.

        Not known after a restart, if it may have had `replaces`: then nothing is given back.
        """
        if (cause := self._spent_as.get(order.id)) is not None:
            return cause
        return "ari" if order.replaces is not None or order.replaces_refused else _plain_cause(order)

    def _request(self, ca: _Ca, order: Order, account: Account, cause: Cause, *, by_domain: bool = False) -> NewOrder:
        suffixes = self._suffixes() if by_domain or ca.counts_domains else _EveryName()
        return limit_rules.order_for(account.id, order.identifiers, cause, suffixes)

    def _suffixes(self) -> PublicSuffixes:
        # A tenth of a second and some megabytes: nobody who does not need it pays for it.
        if self._list is None:
            self._list = PublicSuffixList()
        return self._list

    async def limits(self, request: m.ListLimits, context: RequestContext) -> m.LimitsReply:
        """Handle `pki.acme.limits`."""
        there = [each.value for each in await ACCOUNTS.all(self._store, self._log)]
        sees = visible.accounts(context.permits)
        accounts = {str(each.id): each for each in there if sees is None or await sees(each)}
        directories = {account.directory_url for account in accounts.values()}
        if len(accounts) == len(there):
            directories |= self._rules.keys() | self._cas.keys()
        if request.account_id is not None:
            if request.account_id not in accounts:
                raise NotFound(f"there is no account {request.account_id[:100]!r}")
            directories = {accounts[request.account_id].directory_url}
        shown = [self._ca(url) for url in sorted(directories)]
        readable = None if len(accounts) == len(there) else frozenset(accounts)
        wanted = msgspec.structs.replace(self._wanted(request, shown), readable=readable)
        now = self._clock.now()
        return m.LimitsReply(
            cas=[budget_report.ca(each.directory_url, each.ledger.rules) for each in shown],
            items=budget_report.items({each.directory_url: each.ledger.budgets(now) for each in shown}, wanted),
            waiting=budget_report.waiting({each.directory_url: each.lines for each in shown}, wanted),
        )

    def _wanted(self, request: m.ListLimits, cas: Sequence[_Ca]) -> Wanted:
        if request.domain is None:
            return Wanted(account_id=request.account_id)
        identifier = one_name(request.domain)
        suffixes = self._suffixes() if any(ca.counts_domains for ca in cas) else _EveryName()
        domain = limit_rules.registered_domain(identifier, suffixes)
        return Wanted(account_id=request.account_id, name=identifier.base, domain=domain)


def _plain_cause(order: Order) -> Cause:
    """What an order passes for without ARI; another set of names is new, whatever it renews."""
    return "renewal" if order.renews is not None and order.cause != "update" else "new"


def _place_of(order: Order, request: NewOrder) -> Place:
    return request.cause == "new", order.created_at, order.id
