"""Accounts whose CA waits for a person: told once, probed rarely and by one, and gone on with by itself."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.model.errors import Problem
from scaivaultd.model.resources import Trouble
from tests.fakes.care import CONTEXT, idle, update

HOUR = timedelta(hours=1)


def trouble(instance: str = "https://ca.test/terms") -> Trouble:
    problem = Problem(type="urn:ietf:params:acme:error:userActionRequired", detail="agree", instance=instance)
    return Trouble(code="ca_error", detail="the CA refused: agree", acme=problem)


async def held(world: Any) -> tuple[str, Any]:
    """An account with an order that the CA has refused until somebody acts."""
    order = await world.issue("a.example.test")
    await world.accounts.hold(await world.shown_account(order.account_id), trouble(), order)
    return order.account_id, order


async def until(world: Any, account_id: str) -> Any:
    return await world.accounts.held_until(await world.shown_account(account_id))


def told(types: list[str]) -> list[str]:
    return [each for each in types if each.startswith("account.action")]


async def test_an_account_without_trouble_holds_nobody(world: Any) -> None:
    """The common case costs nothing and writes nothing."""
    assert await until(world, await world.account()) is None


async def test_a_hold_is_told_with_its_page_and_holds_all_orders(world: Any) -> None:
    """One order's refusal is every order's."""
    account_id, _ = await held(world)
    assert dict(await world.events())["account.action_required"]["instance"] == "https://ca.test/terms"
    moment = await until(world, account_id)
    assert timedelta(minutes=59) < moment - world.clock.now() < HOUR + timedelta(minutes=7)
    reply = await world.accounts.get(m.AccountById(id=account_id), CONTEXT)
    assert reply.action_required.acme.instance == "https://ca.test/terms"


async def test_orders_that_wait_do_not_all_come_in_the_same_second(world: Any) -> None:
    """A thousand orders of one account are a burst."""
    account_id, _ = await held(world)
    assert len({await until(world, account_id) for _ in range(5)}) == 5


async def test_the_same_trouble_is_told_once_and_another_one_again(world: Any) -> None:
    """Each order of the account meets it; one message is enough, unless there is another page to visit."""
    account_id, order = await held(world)
    account = await world.shown_account(account_id)
    first = account.action_probe_at
    assert await world.accounts.hold(account, trouble(), order) == first
    assert told(await world.event_types()) == ["account.action_required"]
    other = msgspec.structs.replace(order, attempt=7)
    await world.accounts.hold(account, trouble("https://ca.test/other"), other)
    assert told(await world.event_types()) == ["account.action_required"] * 2
    assert (await world.shown_account(account_id)).action.acme.instance == "https://ca.test/other"


async def test_when_it_is_time_one_order_probes_and_the_others_wait_on(world: Any) -> None:
    """The CA has said that it will not serve us: one question an hour is polite."""
    account_id, order = await held(world)
    world.clock.advance(2 * 3600)
    account = await world.shown_account(account_id)
    moments = await asyncio.gather(*(world.accounts.held_until(account) for _ in range(5)))
    assert moments.count(None) == 1
    assert all(each > world.clock.now() + timedelta(minutes=59) for each in moments if each)
    await world.accounts.hold(account, trouble(), order)
    assert await until(world, account_id) is not None
    assert told(await world.event_types()) == ["account.action_required"]


async def test_an_order_that_is_served_ends_the_hold_and_wakes_the_others(world: Any) -> None:
    """Everything goes on by itself once the person has acted."""
    account_id, _ = await held(world)
    woken: list[str] = []
    world.accounts.resumed.subscribe(woken.append)
    await world.accounts.served(await world.shown_account(account_id))
    assert woken == [account_id]
    assert await until(world, account_id) is None
    assert (await world.shown_account(account_id)).action is None
    assert told(await world.event_types()) == ["account.action_required", "account.action_resolved"]


async def test_an_order_from_before_the_hold_does_not_end_it(world: Any) -> None:
    """It was taken before the CA changed its mind."""
    account_id = await world.account()
    before = await world.shown_account(account_id)
    await held(world)
    await world.accounts.served(before)
    assert (await world.shown_account(account_id)).action is not None


async def test_who_was_waiting_when_it_ended_goes_on_at_once(world: Any) -> None:
    """The account it has at hand is stale by then."""
    account_id, _ = await held(world)
    stale = await world.shown_account(account_id)
    await world.accounts.served(stale)
    assert await world.accounts.held_until(stale) is None
    assert (await world.shown_account(account_id)).action_probe_at is None


async def test_an_owner_who_has_acted_need_not_wait_for_the_next_probe(world: Any) -> None:
    """Agreeing by `update` tells the CA, and wakes the orders."""
    account_id, _ = await held(world)
    woken: list[str] = []
    world.accounts.resumed.subscribe(woken.append)
    reply = await update(world, account_id, terms_of_service_agreed=True)
    assert (reply.action_required, woken) == (None, [account_id])
    assert len(world.ca.asked("agree_to_terms")) == 1
    assert await until(world, account_id) is None
    assert told(await world.event_types()) == ["account.action_required", "account.action_resolved"]


@pytest.mark.parametrize("deaths", [0, 1])
async def test_an_order_waits_for_the_person_and_ends_well(world: Any, ca_refuses: Any, deaths: int) -> None:
    """The whole walk, through a restart too."""
    for _ in range(3):
        world.ca.script["new_order"].append(ca_refuses("userActionRequired", 403, "agree"))
    order_id = await world.order()
    if deaths:
        while not world.ca.asked("new_order"):  # noqa: ASYNC110 - the job gets there by itself
            await asyncio.sleep(0)
        await world.die()
        await world.care.resume()
        await world.issuing.resume()
    await idle()
    order = await world.shown(order_id)
    assert order.status == "valid"
    assert (await world.shown_account(order.account_id)).action is None
    assert sorted(set(told(await world.event_types()))) == ["account.action_required", "account.action_resolved"]
