"""Key changes: whatever happens in between, in the end the account has the key that its CA knows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scaivaultd.acme.exchange import CaConflict, NotOffered
from scaivaultd.acme.signing import AccountKey
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Conflict,
    NotFound,
    StorageUnavailable,
)
from scaivaultd.services.documents import KEYS
from tests.fakes.care import Stop, deactivate, idle, kill, rotate, until_stopped


async def account_in_order(world: Any, account_id: str) -> Any:
    """The account, whose key is the one that the CA knows, opens, and is the only one."""
    account = await world.shown_account(account_id)
    assert account.next_key_id is None
    assert world.ca.accounts == {account.key_thumbprint: account.url}
    sealed = (await world.read(KEYS, account.key_id)).value.sealed
    key = AccountKey(world.sealer.open(sealed, KEYS.key(account.key_id), "private_key"))
    assert key.thumbprint == account.key_thumbprint
    return account


def changed_at_ca(world: Any) -> Any:
    """Do what the CA does for a key change that is asked for right now."""

    def act() -> None:
        (old,) = world.ca.accounts
        world.ca.accounts = {world.ca.asked("key_change")[-1]: world.ca.accounts[old]}

    return act


class TestRotating:
    async def test_an_account_gets_another_key_with_its_event(self, world: Any) -> None:
        """Whoever has written the key's thumbprint down somewhere hears of it."""
        account_id = await world.account()
        before = await world.shown_account(account_id)
        reply = await rotate(world, account_id)
        after = await account_in_order(world, account_id)
        assert (reply.key_thumbprint, reply.key_change_pending) == (after.key_thumbprint, False)
        assert (after.key_id, after.url) != (before.key_id, before.url)
        assert dict(await world.events())["account.key_rotated"]["account_id"] == account_id
        assert world.ca.asked("find_account") == []

    @pytest.mark.parametrize(("key_type", "algorithm"), [("ec-p384", "ES384"), ("rsa-2048", "RS256")])
    async def test_the_new_key_is_of_the_kind_that_was_asked_for(
        self, world: Any, key_type: str, algorithm: str
    ) -> None:
        """Some rules want RSA, some want P-384."""
        account_id = await world.account()
        await rotate(world, account_id, key_type=key_type)
        account = await account_in_order(world, account_id)
        assert (await world.accounts.client(account)).key.algorithm == algorithm
        assert (await world.read(KEYS, account.key_id)).value.key_type == key_type

    async def test_the_new_key_is_on_disk_before_the_ca_hears_of_it(self, world: Any) -> None:
        """A key that only the CA has seen locks us out of the account."""
        account_id = await world.account()
        seen: list[Any] = []

        async def look() -> None:
            account = await world.shown_account(account_id)
            seen.append(await KEYS.get(world.sqlite, account.next_key_id))

        world.ca.script["key_change"].append(look)
        await rotate(world, account_id)
        assert seen[0] is not None

    async def test_two_requests_at_once_are_one_change(self, world: Any) -> None:
        """The second waits for the first; it does not start another."""
        account_id = await world.account()
        async with world.accounts.using(account_id):
            both = asyncio.gather(rotate(world, account_id), rotate(world, account_id))
            while (await world.shown_account(account_id)).next_key_id is None:  # noqa: ASYNC110 - the request gets there
                await asyncio.sleep(0)
            for _ in range(100):
                await asyncio.sleep(0)
        first, second = await both
        assert first.key_thumbprint == second.key_thumbprint
        assert len(world.ca.asked("key_change")) == 1

    async def test_one_change_after_the_other_makes_two(self, world: Any) -> None:
        """The second is not lost because the job of the first is just ending."""
        account_id = await world.account()
        keys = {(await rotate(world, account_id)).key_thumbprint for _ in range(3)}
        assert len(keys) == 3
        await account_in_order(world, account_id)

    async def test_orders_after_it_sign_with_the_new_key(self, world: Any) -> None:
        """The old one is dead."""
        account_id = await world.account()
        await rotate(world, account_id)
        order = await world.ended(await world.order(account_id=account_id))
        assert order.status == "valid"

    async def test_orders_before_it_end_their_attempts_first(self, world: Any) -> None:
        """An attempt that loses its key in the middle fails for nothing."""
        account_id = await world.account()
        async with world.accounts.using(account_id):
            task = asyncio.ensure_future(rotate(world, account_id))
            while (await world.shown_account(account_id)).next_key_id is None:  # noqa: ASYNC110 - the request gets there
                await asyncio.sleep(0)
            assert world.ca.asked("key_change") == []
        assert (await task).key_change_pending is False
        await account_in_order(world, account_id)

    async def test_orders_wait_while_it_is_open_and_are_woken_after_it(self, world: Any) -> None:
        """They might sign with the dead one of two keys."""
        account_id = await world.account()
        woken: list[str] = []
        world.accounts.resumed.subscribe(woken.append)
        held: list[Any] = []

        async def look() -> None:
            held.append(await world.accounts.held_until(await world.shown_account(account_id)))

        world.ca.script["key_change"].append(look)
        await rotate(world, account_id)
        assert held[0] > world.clock.now()
        await idle()
        assert woken == [account_id]
        assert await world.accounts.held_until(await world.shown_account(account_id)) is None

    async def test_a_caller_who_does_not_wait_is_told_that_it_goes_on(self, world: Any) -> None:
        """`key_change_pending` is what to poll."""
        account_id = await world.account()
        reply = await rotate(world, account_id, wait_seconds=0)
        assert reply.key_change_pending
        await idle()
        await account_in_order(world, account_id)


class TestRefusals:
    @pytest.mark.parametrize(
        "refusal",
        [
            NotOffered("no key changes here"),
            CaConflict("in use", location="https://ca.test/account/7"),
            BackendRateLimited("slowly"),
            CaRefused("badPublicKey"),
        ],
    )
    async def test_a_clear_no_reaches_the_caller_and_leaves_the_old_key(self, world: Any, refusal: Exception) -> None:
        """Nothing was changed, and orders go on at once."""
        account_id = await world.account()
        before = await world.shown_account(account_id)
        world.ca.script["key_change"].append(refusal)
        with pytest.raises(type(refusal)):
            await rotate(world, account_id)
        assert (await account_in_order(world, account_id)).key_id == before.key_id
        assert "account.key_rotated" not in await world.event_types()

    async def test_orders_that_do_not_end_are_a_conflict(self, world: Any) -> None:
        """Better than tearing them, and better than waiting for ever."""
        account_id = await world.account()
        async with world.accounts.using(account_id):
            with pytest.raises(Conflict, match="orders are under way"):
                await rotate(world, account_id, wait_seconds=2.2)
        await account_in_order(world, account_id)
        assert world.ca.asked("key_change") == []

    async def test_accounts_without_a_key_at_the_ca_have_none_to_change(self, world: Any, ca_refuses: Any) -> None:
        """Pending, invalid, ended and unknown ones each say why."""
        with pytest.raises(NotFound):
            await rotate(world, "acme_none")
        gate = asyncio.Event()
        world.ca.script["register"].append(gate.wait)
        pending = await world.account(wait_seconds=0)
        with pytest.raises(Conflict, match="not registered yet"):
            await rotate(world, pending)
        gate.set()
        await idle()
        await deactivate(world, pending)
        with pytest.raises(AccountUnusable, match="is deactivated"):
            await rotate(world, pending)


class TestDoubt:
    @pytest.mark.parametrize("error", [CaUnavailable("reset"), CaMisbehaved("rubbish")])
    async def test_a_change_whose_answer_was_lost_has_worked(self, world: Any, lost: Any, error: Exception) -> None:
        """The look-up by the new key tells."""
        account_id = await world.account()
        old = (await world.shown_account(account_id)).key_id
        world.ca.script["key_change"].append(lost(error))
        await rotate(world, account_id)
        assert (await account_in_order(world, account_id)).key_id != old
        assert len(world.ca.asked("key_change")) == 1

    async def test_a_change_that_never_arrived_is_asked_for_again(self, world: Any) -> None:
        """With the same new key."""
        account_id = await world.account()
        old = (await world.shown_account(account_id)).key_id
        world.ca.script["key_change"].extend([CaUnavailable("reset")] * 3)
        await rotate(world, account_id)
        assert (await account_in_order(world, account_id)).key_id != old
        assert len(set(world.ca.asked("key_change"))) == 1

    async def test_a_new_key_that_another_account_has_is_given_up(self, world: Any) -> None:
        """One CA says 500 in place of 409."""
        account_id = await world.account()
        old = (await world.shown_account(account_id)).key_id
        world.ca.script["key_change"].append(CaUnavailable("500"))
        world.ca.script["find_account"].append("https://ca.test/account/7")
        with pytest.raises(Conflict, match="another account"):
            await rotate(world, account_id)
        assert (await account_in_order(world, account_id)).key_id == old

    async def test_a_ca_that_stays_away_is_asked_until_it_answers(self, world: Any, lost: Any) -> None:
        """Giving up without an answer might leave us with the dead key."""
        account_id = await world.account()
        start = world.clock.now()
        world.ca.script["key_change"].append(lost(CaUnavailable("reset")))
        world.ca.script["find_account"].extend([CaUnavailable("down")] * 40)
        await rotate(world, account_id)
        await account_in_order(world, account_id)
        assert (world.clock.now() - start).total_seconds() > 3600
        assert len(world.ca.asked("key_change")) == 1

    async def test_patience_ends_when_the_ca_keeps_losing_it_but_knows_the_old_key(self, world: Any) -> None:
        """The account works as before; the caller may try another day."""
        account_id = await world.account()
        old = (await world.shown_account(account_id)).key_id
        world.ca.script["key_change"].extend([CaUnavailable("500")] * 1000)
        with pytest.raises(Conflict, match="did not come through"):
            await rotate(world, account_id, wait_seconds=20)
        assert (await account_in_order(world, account_id)).key_id == old

    async def test_a_look_up_that_is_refused_counts_as_not_found(self, world: Any, ca_refuses: Any) -> None:
        """Some CAs ask for an external binding before they look."""
        account_id = await world.account()
        world.ca.script["key_change"].append(CaUnavailable("reset"))
        world.ca.script["find_account"].append(ca_refuses("externalAccountRequired"))
        await rotate(world, account_id)
        await account_in_order(world, account_id)
        assert len(world.ca.asked("key_change")) == 2

    async def test_a_full_disk_after_the_change_only_costs_time(self, world: Any) -> None:
        """The CA has the new key; the commit that says so comes later."""
        account_id = await world.account()
        commits = 0

        async def full(_: Any) -> None:
            nonlocal commits
            commits += 1
            if commits in (2, 3):
                raise StorageUnavailable("full")

        world.store.before_commit = full
        await rotate(world, account_id)
        await account_in_order(world, account_id)


class TestKilled:
    async def test_without_the_intent_on_disk_nothing_happens(self, world: Any) -> None:
        """No CA is asked."""
        account_id = await world.account()
        before = await world.shown_account(account_id)

        async def full(_: Any) -> None:
            raise StorageUnavailable("full")

        world.store.before_commit = full
        with pytest.raises(StorageUnavailable):
            await rotate(world, account_id)
        await kill(world)
        await world.care.resume()
        await idle()
        assert await account_in_order(world, account_id) == before
        assert world.ca.asked("key_change") == []

    @pytest.mark.parametrize("has_acted", [False, True])
    async def test_while_the_ca_is_asked_the_next_life_finds_out(self, world: Any, has_acted: bool) -> None:
        """Whether the CA had done it or not."""
        account_id = await world.account()
        old = (await world.shown_account(account_id)).key_id
        stop = Stop(changed_at_ca(world)) if has_acted else Stop()
        world.ca.script["key_change"].append(stop)
        request = await until_stopped(stop, rotate(world, account_id))
        await kill(world, request)
        await world.care.resume()
        await idle()
        assert (await account_in_order(world, account_id)).key_id != old
        assert len(world.ca.asked("key_change")) == (1 if has_acted else 2)
        assert (await world.event_types()).count("account.key_rotated") == 1

    async def test_before_the_last_commit_the_next_life_makes_it(self, world: Any) -> None:
        """The CA knows only the new key by then."""
        account_id = await world.account()
        stop = Stop()
        world.store.before_commit = stop.at_commit(2)
        request = await until_stopped(stop, rotate(world, account_id))
        await kill(world, request)
        await world.care.resume()
        await account_in_order(world, account_id)
        assert len(world.ca.asked("key_change")) == 1

    async def test_resuming_returns_with_the_keys_settled(self, world: Any) -> None:
        """Orders go on right after it, and each would have to wait."""
        account_id = await world.account()
        stop = Stop()
        world.ca.script["key_change"].append(stop)
        await kill(world, await until_stopped(stop, rotate(world, account_id)))
        await world.care.resume()
        await account_in_order(world, account_id)

    async def test_a_second_request_after_a_restart_waits_for_the_first_change(self, world: Any) -> None:
        """Also before anybody has resumed it."""
        account_id = await world.account()
        stop = Stop(changed_at_ca(world))
        world.ca.script["key_change"].append(stop)
        await kill(world, await until_stopped(stop, rotate(world, account_id)))
        reply = await rotate(world, account_id)
        assert reply.key_thumbprint == (await account_in_order(world, account_id)).key_thumbprint
        assert len(world.ca.asked("key_change")) == 1

    async def test_a_change_that_is_open_when_the_account_ends_is_not_asked_for_again(self, world: Any) -> None:
        """Only which key signs the deactivation has to be known."""
        account_id = await world.account()
        stop = Stop()
        world.ca.script["key_change"].append(stop)
        await kill(world, await until_stopped(stop, rotate(world, account_id)))
        reply = await deactivate(world, account_id, wait_seconds=0)
        assert reply.deactivation_pending
        await world.care.resume()
        await idle()
        assert len(world.ca.asked("key_change")) == 1
        assert (await world.shown_account(account_id)).status == "deactivated"
