"""Budgets at CAs: who may go, who waits until when, and what is known after a restart."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.acme.directories import directory_url_for
from scaivaultd.acme.limit_rules import Rule
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import BackendRateLimited, InvalidRequest, NotFound, Problem
from scaivaultd.model.ids import AccountId, CertificateId, KeyId, OrderId
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.resources import Account, Order, Queued, RenewalWindow
from scaivaultd.services.budget_lines import FORESEEN_MAX
from scaivaultd.services.budgets import BUCKETS, CLOSURES, Budgets, Held
from scaivaultd.services.documents import ACCOUNTS, ORDERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.storage import Change
    from scaivaultd.store.sqlite import SqliteStore
    from tests.fakes.scripted_ca import FakeClock

LETSENCRYPT = directory_url_for("letsencrypt", "production", None)
PRIVATE = "https://ca.test/directory"
TOKEN = timedelta(seconds=12_096)
"""A fiftieth of a week: when the next certificate of a registered domain is there."""
SET_TOKEN = timedelta(seconds=120_960)
START = datetime(2026, 1, 1, tzinfo=UTC)
CONTEXT = RequestContext(request_id="req_test", idempotency_key=None)


def account(name: str = "acme_1", directory_url: str = LETSENCRYPT) -> Account:
    return Account(
        id=AccountId(name),
        name=name,
        provider="custom",
        environment="production",
        directory_url=directory_url,
        status="valid",
        key_id=KeyId("key_1"),
        key_thumbprint=name,
        created_at=START,
    )


@dataclass
class Desk:
    """One life of the budgets after another over the same store, and orders that keep what they are told."""

    store: SqliteStore
    clock: FakeClock
    log: FilteringBoundLogger
    rules: Mapping[str, Sequence[Rule]] = field(default_factory=dict)
    made: int = 0

    def __post_init__(self) -> None:
        self.budgets = Budgets(store=self.store, rules=self.rules, clock=self.clock, log=self.log)

    @property
    def now(self) -> datetime:
        return self.clock.now()

    async def restart(self) -> None:
        self.budgets = Budgets(store=self.store, rules=self.rules, clock=self.clock, log=self.log)
        await self.budgets.resume()

    async def registered(self, *accounts: Account) -> None:
        await self.store.commit([ACCOUNTS.put(each) for each in accounts])

    def order(self, *names: str, **members: Any) -> Order:
        """A new order, younger than all before."""
        self.made += 1
        return Order(
            **{
                "id": OrderId(f"order_{self.made:05}"),
                "account_id": AccountId("acme_1"),
                "identifiers": parse_identifiers(names or (f"h{self.made}.example.co.uk",), public_ca=False),
                "challenge_type": "http-01",
                "key_type": "ec-p256",
                "auto_renew": True,
                "status": "pending",
                "created_at": START + timedelta(seconds=self.made),
                "give_up_at": START + timedelta(days=3650),
                **members,
            }
        )

    def renewal(self, *names: str, **members: Any) -> Order:
        return self.order(*names, renews=CertificateId("cert_1"), cause="schedule", **members)

    async def commit(self, changes: Sequence[Change]) -> int:
        await self.store.commit(changes)
        return len(changes)

    async def spent(
        self,
        order: Order,
        by: Account | None = None,
        *,
        replaces: str | None = None,
        window: RenewalWindow | None = None,
    ) -> Order:
        """The order after it has gone; raises Held."""
        changes = self.budgets.spend(order, by or account(), replaces=replaces, window=window)
        await self.commit(changes)
        return msgspec.structs.replace(order, spent_at=self.now, replaces=replaces)

    def held(self, order: Order, by: Account | None = None, **members: Any) -> Held:
        """What the order is told, which must wait."""
        with pytest.raises(Held) as caught:
            self.budgets.spend(order, by or account(), **{"replaces": None, "window": None, **members})
        return caught.value

    def wait(self, order: Order, by: Account | None = None) -> Queued:
        return self.held(order, by).queued

    def advance_to(self, moment: datetime) -> None:
        self.clock.advance((moment - self.now).total_seconds())

    async def refuse(
        self, order: Order, detail: str, by: Account | None = None, retry_at: datetime | None = None
    ) -> None:
        problem = Problem(type="urn:ietf:params:acme:error:rateLimited", detail=detail)
        refusal = BackendRateLimited("slow down", problem, retry_at=retry_at)
        await self.commit(self.budgets.refused(order, by or account(), refusal))

    async def limits(self, **members: Any) -> m.LimitsReply:
        return await self.budgets.limits(m.ListLimits(**members), CONTEXT)

    async def documents(self) -> int:
        return len(await BUCKETS.all(self.store, self.log)) + len(await CLOSURES.all(self.store, self.log))

    def window(self) -> RenewalWindow:
        return RenewalWindow(start=self.now - timedelta(hours=1), end=self.now + timedelta(hours=1))


@pytest.fixture
def desk(sqlite: SqliteStore, clock: FakeClock, log: FilteringBoundLogger) -> Desk:
    return Desk(sqlite, clock, log)


async def test_sixty_five_orders_of_one_domain_go_one_by_one_in_order(desk: Desk) -> None:
    """50 go in a week; the others are told when, go exactly then, and a restart changes nothing."""
    orders = [desk.order() for _ in range(65)]
    for order in orders[:50]:
        await desk.spent(order)
    waiting: list[Order] = []
    for number, order in enumerate(orders[50:]):
        queued = desk.wait(order)
        assert queued == Queued(
            limit="certificates_per_registered_domain",
            subject="example.co.uk",
            until=desk.now + TOKEN * (number + 1),
            ahead=number,
        )
        waiting.append(msgspec.structs.replace(order, queued=queued))
    await desk.registered(account())
    await desk.store.commit([ORDERS.put(each) for each in waiting])
    for number, order in enumerate(waiting):
        if number == 7:
            await desk.restart()
        assert order.queued is not None
        desk.advance_to(order.queued.until)
        for later in reversed(waiting[number + 1 :]):
            assert desk.wait(later).until > desk.now, "it overtakes"
        await desk.spent(order)
    assert desk.now == START + TOKEN * 15


async def test_who_waits_keeps_his_turn_when_somebody_new_comes_after_a_restart(desk: Desk) -> None:
    """The orders that wait sleep until their turn; before they ask again the line must stand already."""
    for _ in range(50):
        await desk.spent(desk.order())
    first = desk.order()
    first = msgspec.structs.replace(first, queued=desk.wait(first))
    await desk.registered(account())
    await desk.store.commit([ORDERS.put(first)])
    await desk.restart()
    assert desk.wait(desk.order()) == Queued(
        limit="certificates_per_registered_domain", subject="example.co.uk", until=desk.now + 2 * TOKEN, ahead=1
    )


async def test_other_rules_hold_at_once_and_what_was_spent_stays_spent(desk: Desk) -> None:
    """After a reload: an agreement with the CA helps the orders that wait for it; a mistake there costs nothing."""
    for _ in range(50):
        await desk.spent(desk.order())
    assert desk.wait(desk.order()).until > desk.now
    desk.budgets.use_rules({LETSENCRYPT: ()})
    await desk.spent(desk.order())
    desk.budgets.use_rules({})
    assert desk.wait(desk.order()).until > desk.now


async def test_a_renewal_overtakes(desk: Desk) -> None:
    """A certificate that runs out is worse than one that comes a day later; the last tokens are its own."""
    names = [f"h{number}.example.org" for number in range(3)]
    for _ in range(4):
        await desk.spent(desk.order(*names))
    assert desk.wait(desk.order(*names)).until == desk.now + SET_TOKEN
    await desk.spent(desk.renewal(*names))
    new, renewal = desk.order(*names), desk.renewal(*names)
    assert desk.wait(new).until == desk.now + 3 * SET_TOKEN, "one is in front, and the reserve is empty"
    assert desk.wait(renewal) == Queued(
        limit="certificates_per_name_set",
        subject=desk.wait(renewal).subject,
        until=desk.now + SET_TOKEN,
        ahead=0,
    )
    assert desk.wait(new).ahead == 2
    desk.advance_to(desk.now + SET_TOKEN)
    desk.held(new)
    await desk.spent(renewal)


async def test_ari_is_exempt_within_its_window_only(desk: Desk) -> None:
    """The reason to do ARI at all; outside of the window the CA counts, and so do we."""
    names = ["a.example.org"]
    for _ in range(4):
        await desk.spent(desk.order(*names))
    await desk.spent(desk.renewal(*names))
    for _ in range(3):
        await desk.spent(desk.renewal(*names), replaces="ari", window=desk.window())
    late = RenewalWindow(start=START - timedelta(days=2), end=START - timedelta(days=1))
    assert desk.held(desk.renewal(*names), replaces="ari", window=late).queued.limit == "certificates_per_name_set"
    assert desk.held(desk.renewal(*names), replaces="ari").queued.limit == "certificates_per_name_set"
    await desk.spent(desk.renewal(*names), replaces="ari", window=desk.window())


async def test_an_update_brings_other_names_and_is_new(desk: Desk) -> None:
    """It renews a certificate, but not its set of names: the CA counts it as new."""
    for _ in range(50):
        await desk.spent(desk.order())
    assert desk.wait(desk.order(renews=CertificateId("cert_1"), cause="update")).until == desk.now + TOKEN
    await desk.spent(desk.renewal("b.example.co.uk"))


async def test_what_is_spent_outlives_a_restart(desk: Desk) -> None:
    """A daemon that forgets what it spent runs into the CA's refusal and locks its renewals out."""
    for _ in range(50):
        await desk.spent(desk.order())
    await desk.restart()
    assert desk.wait(desk.order()).until == desk.now + TOKEN


async def test_what_is_over_is_deleted_at_a_start(desk: Desk) -> None:
    """A fleet leaves a document for each set of names; those that say nothing any more must go."""
    for number in range(3):
        await desk.spent(desk.order(f"a.h{number}.org"))
    await desk.refuse(desk.order("a.h9.org"), "no", retry_at=desk.now + timedelta(minutes=5))
    assert await desk.documents() == 8
    desk.clock.advance(7 * 86_400)
    await desk.restart()
    assert await desk.documents() == 0


async def test_what_is_over_is_deleted_in_a_long_life(desk: Desk) -> None:
    """A daemon that is never restarted must not collect documents either."""
    for number in range(600):
        await desk.spent(desk.renewal(f"h{number}.example.org"))
    desk.clock.advance(30 * 86_400)
    for number in range(600, 1100):
        await desk.spent(desk.renewal(f"h{number}.example.org"))
    assert await desk.documents() == 500
    assert len((await desk.limits()).items) == 500


async def test_what_comes_up_again_is_not_deleted(desk: Desk) -> None:
    """Deleting goes on bit by bit, and meanwhile the same names are asked for again."""
    for number in range(1000):
        await desk.spent(desk.renewal(f"h{number}.example.org"))
    desk.clock.advance(30 * 86_400)
    for number in range(100):
        await desk.spent(desk.renewal(f"h{number}.example.org"))
    assert await desk.documents() == 100


async def test_a_commit_writes_only_what_changed(desk: Desk) -> None:
    """An order at a CA with ten thousand certificates must not write ten thousand documents."""
    for number in range(20):
        await desk.spent(desk.order(f"a.h{number}.org"))
    assert len(desk.budgets.spend(desk.order("a.h30.org"), account(), replaces=None, window=None)) == 3
    assert len(desk.budgets.spend(desk.renewal("a.h31.org"), account(), replaces=None, window=None)) == 1


async def test_a_ca_without_limits_costs_nothing(desk: Desk) -> None:
    """Most private CAs have none: no documents, no public suffix list."""
    private = account(directory_url=PRIVATE)
    order = desk.order()
    assert desk.budgets.spend(order, private, replaces=None, window=None) == ()
    spent = msgspec.structs.replace(order, spent_at=desk.now)
    assert not desk.budgets.failed(spent, private, ["a"])
    assert not desk.budgets.gave_nothing(spent, private)
    assert not desk.budgets.resumed(spent, private)
    assert desk.budgets.spend_account(PRIVATE) == ([], None)
    assert await desk.limits() == m.LimitsReply(cas=[m.CaLimits(directory_url=PRIVATE, rules=[])], items=[], waiting=[])
    assert desk.budgets._list is None


async def test_a_refusal_without_rules_closes_and_is_remembered(desk: Desk) -> None:
    """A CA that publishes nothing teaches us by refusing; a restart must not unlearn it."""
    private = account(directory_url=PRIVATE)
    until = desk.now + timedelta(hours=30)
    order = desk.order("www.example.co.uk", "www.example.org")
    await desk.refuse(order, 'too many certificates already issued for "example.co.uk"', private, until)
    limit = "certificates_per_registered_domain"
    for _ in range(2):
        queued = desk.wait(desk.order("other.example.co.uk"), private)
        assert queued == Queued(limit=limit, subject="example.co.uk", until=until)
        await desk.spent(desk.order("www.example.org"), private)
        await desk.restart()
    desk.advance_to(until)
    await desk.spent(desk.order("other.example.co.uk"), private)


async def test_a_refusal_that_names_nothing_holds_its_account(desk: Desk) -> None:
    """The other account may go on; all that wait go together when it is over."""
    private = account(directory_url=PRIVATE)
    first, second = desk.order(), desk.order()
    await desk.refuse(first, "slow down", private, desk.now + timedelta(minutes=5))
    for order in (first, second):
        assert desk.wait(order, private) == Queued(
            limit="unnamed", subject="acme_1", until=desk.now + timedelta(minutes=5)
        )
    assert [each.ahead for each in (await desk.limits()).waiting] == [0, 0]
    await desk.spent(desk.order(), account("acme_2", PRIVATE))
    desk.clock.advance(300)
    await desk.spent(second, private)
    await desk.spent(first, private)


async def test_a_refusal_is_logged_with_its_limit(desk: Desk, logged: list[EventDict]) -> None:
    """Whoever wonders why nothing is issued finds the CA's word."""
    await desk.refuse(desk.order(), "too many new orders", retry_at=desk.now + timedelta(hours=1))
    (entry,) = [each for each in logged if each["event"] == "budget.refused"]
    assert (entry["limit"], entry["until"]) == ("new_orders_per_account", "2026-01-01T01:00:00+00:00")


async def test_a_paused_name_waits_for_a_person(desk: Desk) -> None:
    """Time does not help; a certificate that came does."""
    order = desk.renewal("*.a.example.org")
    await desk.refuse(order, "account is temporarily prevented from requesting certificates for a.example.org")
    await desk.restart()
    held = desk.held(order)
    assert held.needs_human
    assert held.queued == Queued(limit="paused", subject="acme_1/a.example.org", until=desk.now + timedelta(days=1))
    assert (await desk.limits()).waiting == []
    await desk.commit(desk.budgets.resumed(order, account()))
    await desk.spent(order)
    await desk.restart()
    await desk.spent(desk.renewal("a.example.org"))


@pytest.mark.parametrize("members", [{}, {"renews": CertificateId("cert_1"), "cause": "request"}])
async def test_whoever_asks_for_a_paused_name_is_let_through_once(desk: Desk, members: dict[str, Any]) -> None:
    """He may have unpaused it; if not, the CA says so again, and the order does not insist."""
    order = desk.order("a.example.org", **members)
    paused = "account is temporarily prevented from requesting certificates for a.example.org"
    await desk.refuse(desk.order("a.example.org"), paused)
    order = await desk.spent(order)
    await desk.restart()
    assert "paused" not in [each.limit for each in (await desk.limits()).items]
    await desk.refuse(order, paused)
    assert desk.held(order).needs_human
    assert desk.held(desk.renewal("a.example.org")).needs_human


async def test_who_is_paused_while_he_waits_leaves_the_line(desk: Desk) -> None:
    """It is nobody's turn before a person has acted."""
    for _ in range(5):
        await desk.spent(desk.renewal("a.example.org"))
    order = desk.renewal("a.example.org")
    desk.wait(order)
    await desk.refuse(order, "account is temporarily prevented from requesting certificates for a.example.org")
    assert desk.held(order).needs_human
    assert (await desk.limits()).waiting == []


async def test_failures_hold_the_name(desk: Desk) -> None:
    """Five an hour; the rest of the fleet goes on."""
    order = desk.order("a.example.org")
    for _ in range(4):
        await desk.commit(desk.budgets.failed(order, account(), ["a.example.org"]))
    await desk.restart()
    assert desk.wait(order) == Queued(
        limit="failed_authorizations_per_name",
        subject="acme_1/a.example.org",
        until=desk.now + timedelta(minutes=12),
    )
    await desk.spent(desk.order("b.example.org"))


async def test_what_gave_nothing_is_given_back(desk: Desk) -> None:
    """A certificate that never came is not counted by the CA."""
    for _ in range(49):
        await desk.spent(desk.order())
    last = await desk.spent(desk.order())
    desk.wait(waiting := desk.order())
    await desk.commit(desk.budgets.gave_nothing(last, account()))
    await desk.restart()
    await desk.spent(waiting)


async def test_what_was_exempt_gives_nothing_back(desk: Desk) -> None:
    """Giving back what was never taken would make more of the budget than the CA has."""
    names = ["a.example.org"]
    for _ in range(5):
        await desk.spent(desk.renewal(*names))
    exempt = await desk.spent(desk.renewal(*names), replaces="ari", window=desk.window())
    without = msgspec.structs.replace(exempt, replaces=None, replaces_refused=True)
    for order in (exempt, without):
        assert not desk.budgets.gave_nothing(order, account())
        await desk.restart()
        assert not desk.budgets.gave_nothing(order, account())
    desk.held(desk.renewal(*names))


async def test_a_late_renewal_gives_back_what_it_took(desk: Desk) -> None:
    """It had `replaces`, but outside its window it was counted."""
    for _ in range(4):
        await desk.spent(desk.renewal("a.example.org"))
    late = await desk.spent(desk.renewal("a.example.org"), replaces="ari")
    await desk.commit(desk.budgets.gave_nothing(late, account()))
    await desk.spent(desk.renewal("a.example.org"))


async def test_asking_again_for_the_same_order_spends_once(desk: Desk) -> None:
    """A newOrder that the CA refuses ten times is one certificate in the end."""
    order = desk.order("a.example.org")
    for _ in range(10):
        order = await desk.spent(order)
    for _ in range(3):
        await desk.spent(desk.order("a.example.org"))
    desk.held(desk.order("a.example.org"))


async def test_what_is_refused_and_ends_is_given_back_once(desk: Desk) -> None:
    """A refusal and the end of its order go into one commit, which names each document once."""
    for _ in range(3):
        await desk.spent(desk.order("a.example.org"))
    order = await desk.spent(desk.order("a.example.org"))
    for detail in ("no", "too many certificates already issued for this exact set"):
        problem = Problem(type="urn:ietf:params:acme:error:rateLimited", detail=detail)
        refusal = BackendRateLimited("slow down", problem, retry_at=desk.now + timedelta(minutes=1))
        refused = desk.budgets.refused(order, account(), refusal)
        await desk.commit([*refused, *desk.budgets.gave_nothing(order, account())])
    desk.clock.advance(60)
    await desk.spent(desk.renewal("a.example.org"))
    desk.held(desk.renewal("a.example.org"))


async def test_what_is_asked_again_after_a_refusal_is_given_back_again(desk: Desk) -> None:
    """Each newOrder is paid for anew."""
    order = await desk.spent(desk.order("a.example.org"))
    await desk.refuse(order, "no", retry_at=desk.now + timedelta(minutes=1))
    desk.clock.advance(60)
    order = await desk.spent(order)
    await desk.commit(desk.budgets.gave_nothing(order, account()))
    for _ in range(4):
        await desk.spent(desk.order("a.example.org"))


async def test_a_refusal_after_the_order_was_made_gives_nothing_back(desk: Desk) -> None:
    """The order is there, and its certificate may still come."""
    order = await desk.spent(desk.order("a.example.org"))
    order = msgspec.structs.replace(order, url="https://ca.test/order/1")
    await desk.refuse(order, "slow down", retry_at=desk.now)
    for _ in range(3):
        await desk.spent(desk.order("a.example.org"))
    desk.held(waiting := desk.order("a.example.org"))
    await desk.commit(desk.budgets.gave_nothing(order, account()))
    await desk.spent(waiting)


async def test_who_is_held_again_keeps_what_he_may_give_back(desk: Desk) -> None:
    """Asking in vain, however often, must not fill the budget."""
    order = await desk.spent(desk.order("a.example.org"))
    for _ in range(4):
        await desk.commit(desk.budgets.failed(order, account(), ["a.example.org"]))
    for _ in range(10):
        desk.held(order)
    desk.clock.advance(3600)
    for _ in range(3):
        await desk.spent(desk.order("a.example.org"))
    desk.held(desk.order("a.example.org"))


async def test_who_leaves_makes_room(desk: Desk) -> None:
    """A cancelled order in front must not hold up those behind."""
    for _ in range(50):
        await desk.spent(desk.order())
    first, second = desk.order(), desk.order()
    desk.wait(first)
    assert desk.wait(second).ahead == 1
    desk.budgets.left(first.id)
    desk.budgets.left(first.id)
    assert desk.wait(second) == Queued(
        limit="certificates_per_registered_domain", subject="example.co.uk", until=desk.now + TOKEN
    )


async def test_who_does_not_come_back_makes_room(desk: Desk) -> None:
    """Whatever keeps an order from asking, its turn goes to the next after a while."""
    for _ in range(50):
        await desk.spent(desk.order())
    first, second = desk.order(), desk.order()
    desk.wait(first)
    desk.wait(second)
    desk.clock.advance(TOKEN.total_seconds() + 600)
    desk.held(second)
    desk.clock.advance(1)
    await desk.spent(second)
    desk.held(first)


async def test_nobody_waits_for_those_in_front_if_there_is_enough(desk: Desk) -> None:
    """After a long stop there are tokens for all: in whatever order they ask, they go."""
    for _ in range(50):
        await desk.spent(desk.order())
    waiting = [desk.order() for _ in range(5)]
    kept = [msgspec.structs.replace(each, queued=desk.wait(each)) for each in waiting]
    await desk.registered(account())
    await desk.store.commit([ORDERS.put(each) for each in kept])
    desk.clock.advance(4 * TOKEN.total_seconds() + 300)
    await desk.restart()
    assert desk.wait(waiting[4]) == Queued(
        limit="certificates_per_registered_domain",
        subject="example.co.uk",
        until=desk.now + TOKEN - timedelta(seconds=300),
        ahead=4,
    )
    for number in (3, 2, 0, 1):
        await desk.spent(waiting[number])


async def test_an_order_waits_at_one_ca_only(desk: Desk) -> None:
    """With a second account it turns to another CA, and stands in nobody's way at the first."""
    rules = {PRIVATE: [Rule(kind="new_orders", scope="account", amount=1, window_seconds=60)]}
    desk = Desk(desk.store, desk.clock, desk.log, rules)
    for _ in range(50):
        await desk.spent(desk.order())
    private = account("acme_2", PRIVATE)
    await desk.spent(desk.order(), private)
    order = desk.order()
    desk.wait(order)
    assert desk.wait(order, private).until == desk.now + timedelta(minutes=1)
    assert [each.directory_url for each in (await desk.limits()).waiting] == [PRIVATE]
    assert desk.wait(desk.order()).ahead == 0


async def test_an_order_is_never_told_to_come_back_at_once(desk: Desk) -> None:
    """A forecast of microseconds would make a loop of it."""
    rules = {PRIVATE: [Rule(kind="new_orders", scope="account", amount=1000, window_seconds=1, reserve_percent=0)]}
    desk = Desk(desk.store, desk.clock, desk.log, rules)
    for _ in range(1000):
        desk.budgets.spend(desk.order(), account(directory_url=PRIVATE), replaces=None, window=None)
    assert desk.wait(desk.order(), account(directory_url=PRIVATE)).until == desk.now + timedelta(seconds=1)


async def test_a_clock_set_back_makes_nobody_wait_for_longer(desk: Desk) -> None:
    """What was written with a clock a year ahead is a debt of hours, not of a year."""
    desk.clock.advance(366 * 86_400)
    for _ in range(50):
        await desk.spent(desk.order())
    order = desk.order()
    assert desk.wait(order).until == desk.now + TOKEN
    desk.clock.advance(-366 * 86_400)
    await desk.restart()
    until = desk.wait(order).until
    assert until == desk.now + TOKEN
    desk.advance_to(until)
    await desk.spent(order)


async def test_a_long_line_is_forecast_beyond_those_who_are_followed(desk: Desk) -> None:
    """Ten thousand orders at once must neither stop the daemon nor be told a wrong week."""
    for _ in range(50):
        await desk.spent(desk.order())
    number = FORESEEN_MAX + 500
    queued = [desk.wait(desk.order()) for _ in range(number)]
    assert queued[FORESEEN_MAX - 1].until == desk.now + TOKEN * FORESEEN_MAX
    assert queued[-1].ahead == number - 1
    assert abs(queued[-1].until - (desk.now + TOKEN * number)) < TOKEN


async def test_an_account_waits_for_its_turn_too(desk: Desk) -> None:
    """Ten registrations in three hours from one address; what they cost outlives a restart."""
    for _ in range(10):
        changes, until = desk.budgets.spend_account(LETSENCRYPT)
        assert until is None
        await desk.commit(changes)
    await desk.restart()
    assert desk.budgets.spend_account(LETSENCRYPT) == ((), desk.now + timedelta(minutes=18))
    desk.clock.advance(18 * 60)
    assert desk.budgets.spend_account(LETSENCRYPT)[1] is None


async def test_a_configured_ca_replaces_what_we_know(desk: Desk) -> None:
    """An agreed override, or none at all."""
    desk = Desk(desk.store, desk.clock, desk.log, {LETSENCRYPT: []})
    for _ in range(60):
        await desk.spent(desk.order())
    assert await desk.documents() == 0


async def test_limits_shows_budgets_and_who_waits(desk: Desk) -> None:
    """The answer to: why is it not there yet?"""
    await desk.registered(account(), account("acme_2", PRIVATE))
    for _ in range(50):
        await desk.spent(desk.order())
    first, second = desk.order(), desk.order()
    desk.wait(second)
    desk.wait(first)
    reply = await desk.limits()
    assert [each.directory_url for each in reply.cas] == [LETSENCRYPT, PRIVATE]
    assert [rule.limit for rule in reply.cas[0].rules][:2] == ["new_accounts_per_address", "new_orders_per_account"]
    assert reply.items[0] == m.LimitReply(
        directory_url=LETSENCRYPT,
        limit="certificates_per_registered_domain",
        subject="example.co.uk",
        amount=50,
        window_seconds=7 * 86_400,
        used=50,
        left=0,
        refills_at=desk.now + TOKEN,
        full_at=desk.now + 50 * TOKEN,
        new_at=desk.now + TOKEN,
    )
    assert [(each.order_id, each.until, each.ahead) for each in reply.waiting] == [
        (first.id, desk.now + TOKEN, 0),
        (second.id, desk.now + TOKEN, 1),
    ]


async def test_limits_shows_the_next_to_go_first(desk: Desk) -> None:
    """Whatever it waits for, and however old it is."""
    old = desk.order("a.example.org")
    for _ in range(4):
        await desk.spent(desk.order("a.example.org"))
    desk.wait(old)
    for _ in range(50):
        await desk.spent(desk.order())
    desk.wait(young := desk.order())
    assert [each.order_id for each in (await desk.limits()).waiting] == [young.id, old.id]


async def test_limits_shows_the_scarcest_of_all_cas_first(desk: Desk) -> None:
    """A name that waits for a person comes before what time heals."""
    await desk.spent(desk.order("a.example.org"))
    private = account("acme_2", PRIVATE)
    await desk.refuse(desk.order("b.example.org"), "no", private, desk.now + timedelta(minutes=1))
    await desk.refuse(desk.order("c.example.org"), "temporarily prevented from requesting certificates", private)
    assert [each.limit for each in (await desk.limits()).items] == [
        "paused",
        "unnamed",
        "certificates_per_name_set",
        "certificates_per_registered_domain",
        "new_orders_per_account",
    ]


async def test_limits_of_an_account_or_a_name(desk: Desk) -> None:
    """Of ten thousand budgets people want to see the few that concern them."""
    await desk.registered(account(), account("acme_2"), account("acme_3", PRIVATE))
    for by in (account(), account("acme_2")):
        await desk.spent(desk.order("www.example.co.uk"), by)
        await desk.commit(desk.budgets.failed(desk.order(), by, ["www.example.co.uk", "b.example.org"]))
    await desk.refuse(desk.order("x.test"), "no", account("acme_3", PRIVATE), desk.now + timedelta(minutes=1))

    async def subjects(**members: Any) -> list[str]:
        return sorted(each.subject for each in (await desk.limits(**members)).items)

    assert await subjects(account_id="acme_1") == ["acme_1", "acme_1/b.example.org", "acme_1/www.example.co.uk"]
    assert await subjects(domain="*.WWW.example.co.uk") == [
        "acme_1/www.example.co.uk",
        "acme_2/www.example.co.uk",
        "example.co.uk",
    ]
    assert await subjects(account_id="acme_2", domain="www.example.co.uk") == [
        "acme_2/www.example.co.uk",
        "example.co.uk",
    ]
    assert [each.directory_url for each in (await desk.limits(account_id="acme_3")).cas] == [PRIVATE]
    with pytest.raises(NotFound):
        await desk.limits(account_id="acme_9")
    with pytest.raises(InvalidRequest) as caught:
        await desk.limits(domain="not a name")
    assert [each.pointer for each in caught.value.fields] == ["/domain"]


async def test_limits_of_an_account_or_a_name_shows_their_orders(desk: Desk) -> None:
    """Who waits is filtered as budgets are."""
    await desk.registered(account(), account("acme_2"))
    for _ in range(50):
        await desk.spent(desk.order())
    one, other = desk.order("a.example.co.uk"), desk.order("b.example.co.uk")
    desk.wait(one)
    desk.wait(other, account("acme_2"))

    async def waiting(**members: Any) -> list[str]:
        return [each.order_id for each in (await desk.limits(**members)).waiting]

    assert await waiting(account_id="acme_2") == [other.id]
    assert await waiting(domain="a.example.co.uk") == [one.id, other.id], "they wait for the same"
    assert await waiting(domain="a.example.org") == []
