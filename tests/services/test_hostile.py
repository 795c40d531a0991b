"""What one odd answer of a CA must not be able to do."""

from __future__ import annotations

import asyncio
import gc
import warnings
from datetime import datetime, timedelta
from typing import Any

import msgspec

from scaivaultd.acme import wire
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import BackendRateLimited, CaRefused, Problem
from scaivaultd.model.storage import Put
from scaivaultd.services.documents import ORDERS

CONTEXT = RequestContext(request_id="req_1")


def limited(retry_after: float, **members: Any) -> BackendRateLimited:
    problem = Problem(type="urn:ietf:params:acme:error:rateLimited", detail="slow down", status=429, **members)
    return BackendRateLimited("the CA limits newOrder", problem, retry_after=retry_after)


async def test_orders_of_an_account_deactivated_from_outside_all_end(world: Any, ca_refuses: Any) -> None:
    """They find it out at the same moment, and none may be left without a job and without an end."""
    account_id = await world.account()
    go_on = asyncio.Event()

    async def held() -> Any:
        await go_on.wait()
        raise ca_refuses("unauthorized", 403, "account is deactivated")

    world.ca.script["new_order"].extend([held] * 4)
    world.ca.script["find_account"].extend([ca_refuses("unauthorized", 403, "account is deactivated")] * 4)
    ids = [await world.order(f"h{number}.example.test", account_id=account_id) for number in range(4)]
    async with asyncio.timeout(10):
        while len(world.ca.asked("new_order")) < 4:  # noqa: ASYNC110 - as a caller does
            await asyncio.sleep(0)
    go_on.set()
    assert [(await world.ended(each)).status for each in ids] == ["invalid"] * 4
    assert world.said("job.failed") == []
    assert (await world.event_types()).count("account.deactivated") == 1


async def test_a_rate_limit_that_says_at_once_is_no_licence_to_hammer(world: Any) -> None:
    """Retry-After: 0 on every newOrder: without a floor that is thousands of requests in a second."""
    account_id = await world.account()
    world.ca.script["new_order"].extend([limited(0.0)] * 3000)
    began = world.clock.now()
    order = await world.ended(await world.order(account_id=account_id))
    asked, took = len(world.ca.asked("new_order")), world.clock.now() - began
    assert order.status == "invalid"
    assert asked < took / timedelta(seconds=10)


async def test_an_order_the_ca_shares_between_two_requests_is_waited_for(world: Any) -> None:
    """Boulder gives a pending order again for the same names; two keys cannot finish one order."""
    account_id = await world.account()
    make_order = world.ca.make_order

    def make(identifiers: Any) -> Any:
        wanted = {(each.type, each.value) for each in identifiers}
        for url, order in world.ca.orders.items():
            names = {(each["type"], each["value"]) for each in order["identifiers"]}
            if order["status"] in ("pending", "ready") and names == wanted:
                return world.ca.shown(url, order)
        return make_order(identifiers)

    world.ca.make_order = make
    ids = []
    for key_type in ("ec-p256", "ec-p384"):
        request = m.Issue(
            account_id=account_id,
            domains=["a.example.test"],
            challenge_type="http-01",
            key_type=key_type,
            wait_seconds=0,
        )
        ids.append((await world.issuing.issue(request, CONTEXT)).order_id)
    orders = [await world.ended(each) for each in ids]
    assert [each.status for each in orders] == ["valid", "valid"]
    assert orders[0].url != orders[1].url


async def test_a_pause_of_a_century_ends_with_our_patience(world: Any) -> None:
    """One odd Retry-After must not keep an order pending for ever."""
    world.ca.slow_reads = 10**9
    world.ca.retry_after = 3.0e9
    order = await world.issue()
    assert order.status == "invalid"
    (failed,) = [each.event for each in await world.sqlite.pending_events(9) if each.event.type == "order.failed"]
    assert datetime.fromisoformat(failed.time) - order.give_up_at < timedelta(minutes=10)


async def test_a_setback_that_cannot_be_written_down_is_written_down_as_that(world: Any) -> None:
    """What a CA sends may not encode; the order still needs an end or a next try."""
    account_id = await world.account()
    world.ca.script["new_order"].append(limited(5.0, help_url="https://ca.test/h\udcff"))
    order = await world.ended(await world.order(account_id=account_id))
    assert order.status == "valid"
    assert world.said("job.failed") == []


def test_true_is_no_status() -> None:
    """A bool is an int in Python, and a document that holds one where an int belongs can never be read again."""
    problem = wire.problem_from(b'{"type":"x","status":true,"subproblems":[{"type":"y","status":true}]}')
    assert problem is not None
    assert (problem.status, problem.subproblems[0].status) == (None, None)
    assert msgspec.json.decode(msgspec.json.encode(problem), type=Problem) == problem


async def test_a_document_that_does_not_decode_hides_no_other(world: Any) -> None:
    """One poisoned order must neither empty the list nor keep the daemon from starting."""
    good = await world.issue()
    key = ORDERS.key("acme_order_00000000000000000000000000")
    await world.sqlite.commit([Put(key=key, document=b'{"id": 5}', index={"status": "pending"})])
    page = await world.issuing.list(m.ListOrders(), CONTEXT)
    assert [each.order_id for each in page.items] == [good.id]
    await world.issuing.resume()
    assert [entry["key"] for entry in world.said("document.unreadable")] == [key]


async def test_what_waits_when_another_request_fails_is_not_forgotten_half_made(world: Any, ca_refuses: Any) -> None:
    """Twenty authorizations, one refusal: those not begun are closed, not left for the garbage collector."""
    world.ca.script["authorization"].append(CaRefused("no", Problem(type="x")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        order = await world.issue(*[f"h{number}.example.test" for number in range(20)])
        gc.collect()
    assert order.status == "invalid"
    assert caught == []


async def test_an_order_goes_on_when_its_account_has_moved(world: Any, ca_refuses: Any) -> None:
    """The key finds the account's new URL; the order that found it out needs not fail for that."""
    account_id = await world.account()
    world.ca.script["new_order"].append(ca_refuses("accountDoesNotExist", 400, "no such account"))

    async def moved() -> str:
        return "https://ca.test/account/moved"

    world.ca.script["find_account"].append(moved)
    order = await world.ended(await world.order(account_id=account_id))
    assert order.status == "valid"
    assert (await world.shown_account(account_id)).url == "https://ca.test/account/moved"


async def test_a_ca_that_waits_for_a_person_is_told_once_and_waited_for(world: Any) -> None:
    """RFC 8555 section 7.3.3: surface the page to visit, pause, and go on when somebody has been there."""
    account_id = await world.account()
    problem = Problem(
        type="urn:ietf:params:acme:error:userActionRequired", detail="new terms", instance="https://ca.test/agree"
    )
    world.ca.script["new_order"].extend([CaRefused("the CA refused newOrder", problem)] * 5)
    began = world.clock.now()
    order = await world.ended(await world.order(account_id=account_id))
    assert order.status == "valid"
    assert world.clock.now() - began >= timedelta(hours=5)
    told = [body for kind, body in await world.events() if kind == "account.action_required"]
    assert [(each["order_id"], each["instance"]) for each in told] == [(order.id, "https://ca.test/agree")]
