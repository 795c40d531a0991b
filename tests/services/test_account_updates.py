"""Changes to an account: the CA hears first, then it is written down, in one commit with its event."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from scaivaultd.model.errors import (
    AccountUnusable,
    CaRefused,
    CaUnavailable,
    Conflict,
    InvalidRequest,
    ScaivaultError,
    Timeout,
)
from scaivaultd.services.documents import ACCOUNT_NAMES, ACCOUNTS, digest
from tests.fakes.care import Stop, deactivate, idle, kill, rotate, until_stopped, update
from tests.fakes.renewals import SteppedClock


async def change(world: Any, account_id: str, **fields: Any) -> None:
    current = await world.read(ACCOUNTS, account_id)
    await world.sqlite.commit([ACCOUNTS.put(msgspec.structs.replace(current.value, **fields), current.revision)])


class TestContact:
    async def test_a_new_address_is_the_cas_only_contact(self, world: Any) -> None:
        """The CA is told before we believe it."""
        account_id = await world.account(email="old@example.org")
        seen: list[Any] = []

        async def look() -> None:
            seen.append((await world.shown_account(account_id)).email)

        world.ca.script["update_contacts"].append(look)
        reply = await update(world, account_id, email="new@example.org")
        assert reply.email == "new@example.org"
        assert seen == ["old@example.org"]
        assert (await world.shown_account(account_id)).email == "new@example.org"
        assert (await world.event_types()).count("account.updated") == 1

    async def test_null_takes_it_away(self, world: Any) -> None:
        """At the CA by an empty list (RFC 8555 section 7.3.2)."""
        account_id = await world.account(email="old@example.org")
        assert (await update(world, account_id, email=None)).email is None
        assert len(world.ca.asked("update_contacts")) == 1

    async def test_what_stays_is_told_to_nobody(self, world: Any) -> None:
        """Deployment scripts run many times."""
        account_id = await world.account(email="old@example.org")
        await update(world, account_id)
        await update(world, account_id, email="old@example.org", name="test")
        assert world.ca.asked("update_contacts") == []
        assert "account.updated" not in await world.event_types()

    @pytest.mark.parametrize("refusal", ["invalidContact", "unauthorized"])
    async def test_a_refusal_changes_nothing_here(self, world: Any, ca_refuses: Any, refusal: str) -> None:
        """The name neither: it is all or nothing."""
        account_id = await world.account(email="old@example.org")
        world.ca.script["update_contacts"].append(ca_refuses(refusal, 400))
        before = await world.shown_account(account_id)
        with pytest.raises(CaRefused):
            await update(world, account_id, email="new@example.org", name="other")
        assert await world.shown_account(account_id) == before

    async def test_a_ca_that_hangs_ends_in_a_timeout_that_says_what_is(self, world: Any) -> None:
        """Nothing goes on behind the caller's back."""
        account_id = await world.account()
        world.ca.script["update_contacts"].append(asyncio.Event().wait)
        with pytest.raises(Timeout, match="nothing was changed here"):
            await update(world, account_id, email="new@example.org", wait_seconds=0)
        assert (await world.shown_account(account_id)).email is None

    async def test_a_kill_between_ca_and_commit_is_healed_by_asking_again(self, world: Any) -> None:
        """The CA is told once more, and that does no harm."""
        account_id = await world.account()
        stop = Stop()
        world.store.before_commit = stop.at_commit(1)
        await kill(world, await until_stopped(stop, update(world, account_id, email="new@example.org")))
        assert (await world.shown_account(account_id)).email is None
        await update(world, account_id, email="new@example.org")
        assert (await world.shown_account(account_id)).email == "new@example.org"
        assert len(world.ca.asked("update_contacts")) == 2

    async def test_a_pending_account_registers_with_what_it_has_then(self, world: Any) -> None:
        """There is nobody at the CA to tell yet; a wrong address can be put right before."""
        gate = asyncio.Event()
        world.ca.script["register"].append(gate.wait)
        account_id = await world.account(email="old@example.org", wait_seconds=0)
        await update(world, account_id, email="new@example.org", name="other")
        gate.set()
        await idle()
        account = await world.shown_account(account_id)
        assert (account.status, account.email, account.name) == ("valid", "new@example.org", "other")
        assert world.ca.registrations[-1]["contacts"] == ["mailto:new@example.org"]
        assert len(world.ca.accounts) == 1

    async def test_a_change_by_somebody_else_meanwhile_is_kept(self, world: Any) -> None:
        """A hold that begins while the CA is asked must not be written over."""
        account_id = await world.account()

        async def come_between() -> None:
            await change(world, account_id, misbehaved=7)

        world.ca.script["update_contacts"].append(come_between)
        await update(world, account_id, email="new@example.org")
        account = await world.shown_account(account_id)
        assert (account.email, account.misbehaved) == ("new@example.org", 7)

    async def test_it_waits_for_a_key_change(self, world: Any) -> None:
        """Else it might be signed by the dead one of two keys."""
        account_id = await world.account()
        gate = asyncio.Event()
        world.ca.script["key_change"].append(gate.wait)
        rotation = asyncio.ensure_future(rotate(world, account_id))
        while not world.ca.asked("key_change"):  # noqa: ASYNC110 - the job gets there by itself
            await asyncio.sleep(0)
        changing = asyncio.ensure_future(update(world, account_id, email="new@example.org"))
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.ca.asked("update_contacts") == []
        gate.set()
        await rotation
        assert (await changing).key_thumbprint == (await world.shown_account(account_id)).key_thumbprint

    async def test_while_a_key_change_is_in_doubt_it_is_refused(self, world: Any) -> None:
        """Nobody knows which key would have to sign."""
        account_id = await world.account()
        await change(world, account_id, next_key_id="key_other")
        with pytest.raises(Conflict, match="key"):
            await update(world, account_id, email="new@example.org")


class TestName:
    async def test_a_name_moves_in_one_commit(self, world: Any) -> None:
        """At no moment has the account two names or none; the old one is free."""
        account_id = await world.account()
        reply = await update(world, account_id, name="other")
        assert reply.name == "other"
        assert await ACCOUNT_NAMES.get(world.sqlite, digest("test")) is None
        assert (await world.read(ACCOUNT_NAMES, digest("other"))).value.account_id == account_id
        assert await world.account() != account_id
        assert world.ca.calls[-1][0] == "register"

    async def test_a_name_that_is_taken_is_refused_before_the_ca_is_told(self, world: Any) -> None:
        """By an account that is in use; an ended one has no use for it."""
        account_id = await world.account()
        other = await world.account(name="other")
        with pytest.raises(Conflict, match=other):
            await update(world, account_id, name="other", email="new@example.org")
        assert world.ca.asked("update_contacts") == []
        await deactivate(world, other, confirm="other")
        assert (await update(world, account_id, name="other")).name == "other"

    async def test_two_that_want_the_same_name_do_not_both_get_it(self, world: Any) -> None:
        """The commit decides."""
        first, second = await world.account(name="a"), await world.account(name="b")
        outcomes = await asyncio.gather(
            update(world, first, name="new"), update(world, second, name="new"), return_exceptions=True
        )
        assert [type(each) for each in outcomes].count(Conflict) == 1


class TestAgreement:
    async def test_the_new_terms_are_the_agreed_ones_afterwards(self, world: Any) -> None:
        """The CA is told, in its own words."""
        account_id = await world.account()
        await change(world, account_id, terms_changed_to="https://ca.test/terms/2")
        reply = await update(world, account_id, terms_of_service_agreed=True)
        assert reply.ca is not None
        assert (reply.terms_changed_to, reply.ca.terms_of_service) == (None, "https://ca.test/terms/2")
        assert world.ca.asked("agree_to_terms") == ["https://ca.test/account/1"]
        assert "account.updated" in await world.event_types()

    async def test_an_agreement_that_the_ca_refuses_is_none(self, world: Any, ca_refuses: Any) -> None:
        """Terms stay marked as changed."""
        account_id = await world.account()
        await change(world, account_id, terms_changed_to="https://ca.test/terms/2")
        world.ca.script["agree_to_terms"].append(ca_refuses("userActionRequired"))
        with pytest.raises(CaRefused):
            await update(world, account_id, terms_of_service_agreed=True)
        assert (await world.shown_account(account_id)).terms_changed_to is not None


class TestAgreementBeforeRegistration:
    @pytest.fixture
    def clock(self) -> SteppedClock:
        return SteppedClock()

    @pytest.mark.parametrize("command", ["update", "create"])
    async def test_it_goes_to_the_ca_at_once(
        self, world: Any, clock: SteppedClock, ca_refuses: Any, command: str
    ) -> None:
        """Nobody waits an hour for a CA that has been waiting for him."""
        world.ca.script["register"].append(ca_refuses("userActionRequired", 403))
        account_id = await world.account(terms_of_service_agreed=False, wait_seconds=0)
        while not clock.sleeping:  # noqa: ASYNC110 - the job gets there by itself
            await asyncio.sleep(0)
        if command == "update":
            await update(world, account_id, terms_of_service_agreed=True)
        else:
            assert await world.account(wait_seconds=0) == account_id
        await idle()
        assert (await world.shown_account(account_id)).status == "valid"
        assert world.ca.registrations[-1]["agreed"] is True

    async def test_what_else_is_changed_waits_for_its_time(self, world: Any, clock: SteppedClock) -> None:
        """A CA that has asked for a pause gets it."""
        world.ca.script["register"].append(CaUnavailable("down", retry_after=600))
        account_id = await world.account(wait_seconds=0)
        while not clock.sleeping:  # noqa: ASYNC110 - the job gets there by itself
            await asyncio.sleep(0)
        slept = len(clock.slept)
        await update(world, account_id, name="other", terms_of_service_agreed=True)
        while len(clock.slept) == slept:  # noqa: ASYNC110 - it looks, and sleeps on
            await asyncio.sleep(0)
        assert len(world.ca.asked("register")) == 1


@pytest.mark.parametrize(
    ("members", "pointer"),
    [({"email": "ops, dev"}, "/email"), ({"terms_of_service_agreed": False}, "/terms_of_service_agreed")],
)
async def test_a_wrong_request_points_at_its_mistake(world: Any, members: dict[str, Any], pointer: str) -> None:
    """Nothing is asked of the CA for it."""
    account_id = await world.account()
    with pytest.raises(InvalidRequest) as caught:
        await update(world, account_id, **members)
    assert [each.pointer for each in caught.value.fields] == [pointer]
    assert [method for method, _ in world.ca.calls] == ["register"]


async def test_an_ended_or_failed_account_is_not_changed_any_more(world: Any, ca_refuses: Any) -> None:
    """The CA would refuse; the answer says why."""
    account_id = await world.account()
    await deactivate(world, account_id)
    with pytest.raises(AccountUnusable, match="is deactivated"):
        await update(world, account_id, name="other")
    world.ca.script["register"].append(ca_refuses("invalidContact", 400))
    with pytest.raises(ScaivaultError):
        await world.account(name="failed")
    failed = (await world.read(ACCOUNT_NAMES, digest("failed"))).value.account_id
    with pytest.raises(AccountUnusable, match="could not be registered"):
        await update(world, failed, name="other")
