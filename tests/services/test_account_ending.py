"""The end of an account: final, durable from the first word, and clear to all that hung on it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from scaivaultd.model.errors import AccountUnusable, CaUnavailable, Conflict, InvalidRequest, NotFound
from scaivaultd.model.resources import terms_of
from scaivaultd.model.storage import Delete, Put
from scaivaultd.services.account_ending import AccountEnding
from scaivaultd.services.accounts import require_usable
from scaivaultd.services.documents import CERTIFICATES, RENEWALS
from tests.fakes.care import Stop, deactivate, failing, idle, jobs, kill, until_stopped


class Heard:
    """Stands in for the scheduler."""

    def __init__(self) -> None:
        self.of: list[str] = []

    def changed(self, certificate_id: str) -> None:
        self.of.append(certificate_id)


async def certificate_of(world: Any, name: str = "a.example.test") -> Any:
    order = await world.issue(name)
    return (await world.read(CERTIFICATES, order.certificate_id)).value


async def with_accounts(world: Any, certificate: Any, *account_ids: str) -> None:
    """Have the certificate renewed by these accounts from now on."""
    current = await world.read(CERTIFICATES, certificate.id)
    terms = msgspec.structs.replace(terms_of(certificate), account_id=account_ids[0], account_ids=account_ids)
    changed = msgspec.structs.replace(current.value, terms=terms)
    await world.sqlite.commit([CERTIFICATES.put(changed, current.revision)])


async def renewal_of(world: Any, certificate: Any) -> Any:
    return (await world.read(RENEWALS, certificate.id)).value


async def ended(world: Any, account_id: str) -> Any:
    """The account when everything is over, told of once."""
    await idle()
    account = await world.shown_account(account_id)
    assert (account.status, account.is_deactivating) == ("deactivated", False)
    assert (await world.event_types()).count("account.deactivated") == 1
    return account


class TestAsking:
    async def test_an_account_ends_at_the_ca_too(self, world: Any) -> None:
        """A key that leaks later is worth nothing then."""
        account_id = await world.account()
        reply = await deactivate(world, account_id)
        assert (reply.status, reply.deactivation_pending) == ("deactivated", False)
        assert world.ca.asked("deactivate_account") == ["https://ca.test/account/1"]
        await ended(world, account_id)

    async def test_its_name_confirms_it(self, world: Any) -> None:
        """There is no way back; an id is mistyped easily."""
        account_id = await world.account()
        with pytest.raises(InvalidRequest) as caught:
            await deactivate(world, account_id, confirm="tset")
        assert [each.pointer for each in caught.value.fields] == ["/confirm"]
        assert (await world.shown_account(account_id)).is_deactivating is False
        with pytest.raises(NotFound):
            await deactivate(world, "acme_none")

    async def test_asking_again_is_answered_as_it_is(self, world: Any) -> None:
        """The CA is not asked again: it would refuse."""
        account_id = await world.account()
        await deactivate(world, account_id)
        assert (await deactivate(world, account_id)).status == "deactivated"
        await ended(world, account_id)
        assert len(world.ca.asked("deactivate_account")) == 1

    async def test_an_account_that_never_got_registered_ends_here_only(self, world: Any) -> None:
        """The CA knows no such account, and its registration stops."""
        world.ca.script["register"].extend([CaUnavailable("down")] * 3)
        gate = asyncio.Event()
        world.ca.script["register"].append(gate.wait)
        account_id = await world.account(wait_seconds=0)
        while len(world.ca.asked("register")) < 4:  # noqa: ASYNC110 - the job gets there by itself
            await asyncio.sleep(0)
        reply = await deactivate(world, account_id)
        assert reply.status == "deactivated"
        gate.set()
        await ended(world, account_id)
        assert world.ca.asked("deactivate_account") == []
        assert await world.account() != account_id

    async def test_a_registration_under_way_does_not_come_in_between(self, world: Any) -> None:
        """It would be valid at the CA, and nobody would end it there."""
        gate = asyncio.Event()
        world.ca.script["register"].append(gate.wait)
        account_id = await world.account(wait_seconds=0)
        while not world.ca.asked("register"):  # noqa: ASYNC110 - the job gets there by itself
            await asyncio.sleep(0)
        commits = 0

        async def let_in(_: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == 2:
                gate.set()
                while any(task.get_name().startswith("register ") for task in jobs()):  # noqa: ASYNC110 - it ends
                    await asyncio.sleep(0)

        world.store.before_commit = let_in
        await deactivate(world, account_id)
        await ended(world, account_id)
        assert len(world.ca.asked("register")) == 1

    async def test_its_name_is_free_when_it_has_ended_and_not_before(self, world: Any) -> None:
        """The request that made it must not find the one that ends."""
        account_id = await world.account()
        gate = asyncio.Event()
        world.ca.script["deactivate_account"].append(gate.wait)
        await deactivate(world, account_id, wait_seconds=0)
        assert isinstance(await failing(world), Conflict)
        gate.set()
        await ended(world, account_id)
        assert await world.account() != account_id

    async def test_from_the_first_word_nobody_orders_with_it(self, world: Any) -> None:
        """Also while the CA cannot be reached."""
        account_id = await world.account()
        gate = asyncio.Event()
        world.ca.script["deactivate_account"].append(gate.wait)
        reply = await deactivate(world, account_id, wait_seconds=0)
        assert reply.deactivation_pending
        with pytest.raises(AccountUnusable, match="is being deactivated"):
            require_usable(await world.shown_account(account_id))
        gate.set()
        await ended(world, account_id)

    async def test_its_orders_end_with_it(self, world: Any) -> None:
        """They could only fail, one retry after another."""
        gate = asyncio.Event()
        world.ca.script["new_order"].append(gate.wait)
        order_id = await world.order()
        account_id = (await world.shown(order_id)).account_id
        await deactivate(world, account_id)
        gate.set()
        await ended(world, account_id)
        order = await world.shown(order_id)
        assert (order.status, order.error.code) == ("deactivated", "account_unusable")


class TestDoubt:
    async def test_a_ca_that_is_down_is_asked_until_it_hears(self, world: Any) -> None:
        """The owner has given it up; we do not forget."""
        account_id = await world.account()
        world.ca.script["deactivate_account"].extend([CaUnavailable("down")] * 50)
        await deactivate(world, account_id)
        await ended(world, account_id)
        assert len(world.ca.asked("deactivate_account")) == 51

    @pytest.mark.parametrize("name", ["unauthorized", "accountDoesNotExist"])
    async def test_a_refusal_after_a_lost_answer_means_done(
        self, world: Any, lost: Any, ca_refuses: Any, name: str
    ) -> None:
        """An ended account is refused everything, its deactivation too."""
        account_id = await world.account()
        world.ca.script["deactivate_account"].extend([lost(CaUnavailable("reset")), ca_refuses(name)])
        assert (await deactivate(world, account_id)).status == "deactivated"
        await ended(world, account_id)

    async def test_another_refusal_is_not_taken_for_success_and_not_hammered(self, world: Any, ca_refuses: Any) -> None:
        """An hour between two tries of what was clearly refused."""
        account_id = await world.account()
        start = world.clock.now()
        world.ca.script["deactivate_account"].extend([ca_refuses("malformed")] * 2)
        await deactivate(world, account_id)
        await ended(world, account_id)
        assert (world.clock.now() - start).total_seconds() >= 7200


class TestKilled:
    @pytest.mark.parametrize("commit", [2, 3, 4])
    async def test_before_any_commit_the_next_life_goes_on(self, world: Any, ca_refuses: Any, commit: int) -> None:
        """2 marks it, 3 stops a renewal, 4 ends the work."""
        certificate = await certificate_of(world)
        account_id = certificate.account_id
        stop = Stop()
        world.store.before_commit = stop.at_commit(commit)
        await kill(world, await until_stopped(stop, deactivate(world, account_id)))
        world.ca.script["deactivate_account"].append(ca_refuses("unauthorized"))
        await world.care.resume()
        await ended(world, account_id)
        assert (await renewal_of(world, certificate)).is_stopped
        assert (await world.event_types()).count("certificate.renewal_blocked") == 1

    @pytest.mark.parametrize("has_acted", [False, True])
    async def test_while_the_ca_is_asked_the_next_life_asks_again(
        self, world: Any, ca_refuses: Any, has_acted: bool
    ) -> None:
        """Whether it was done or not."""
        account_id = await world.account()
        stop = Stop()
        world.ca.script["deactivate_account"].append(stop)
        await kill(world, await until_stopped(stop, deactivate(world, account_id)))
        assert (await world.shown_account(account_id)).status == "valid"
        if has_acted:
            world.ca.script["deactivate_account"].append(ca_refuses("unauthorized"))
        await world.care.resume()
        await ended(world, account_id)
        assert len(world.ca.asked("deactivate_account")) == 2


class TestCertificates:
    async def test_a_certificate_without_another_account_says_that_it_is_blocked(self, world: Any) -> None:
        """Its owner hears of it now, not when it expires."""
        certificate = await certificate_of(world)
        await deactivate(world, certificate.account_id)
        await ended(world, certificate.account_id)
        body = dict(await world.events())["certificate.renewal_blocked"]
        assert (body["certificate_id"], body["error"]["code"]) == (certificate.id, "account_unusable")
        assert "pki.certificates.update" in body["remedy"]
        renewal = await renewal_of(world, certificate)
        assert (renewal.is_stopped, renewal.error.kind, renewal.error.fault) == (True, "permanent", "ca")

    async def test_the_scheduler_is_told_of_it(self, world: Any) -> None:
        """It would renew by what it remembers."""
        certificate = await certificate_of(world)
        heard = Heard()
        ending = AccountEnding(
            store=world.store,
            accounts=world.accounts,
            issuing=world.issuing,
            renewing=heard,  # type: ignore[arg-type]
            jobs=world.jobs,
            clock=world.clock,
            randomness=world.randomness,
            log=world.log,
        )
        await ending.begin(certificate.account_id)
        await idle()
        assert heard.of == [certificate.id]

    async def test_one_with_another_account_goes_on(self, world: Any) -> None:
        """That is what fallback accounts are for; when the last one ends it is blocked, whoever issued it."""
        certificate = await certificate_of(world)
        other = await world.account(name="other")
        await with_accounts(world, certificate, certificate.account_id, other)
        await deactivate(world, certificate.account_id)
        await idle()
        assert not (await renewal_of(world, certificate)).is_stopped
        await deactivate(world, other, confirm="other")
        await idle()
        renewal = await renewal_of(world, certificate)
        assert renewal.is_stopped
        assert "1 other accounts" in renewal.error.detail

    async def test_one_that_has_left_the_account_is_not_its_business(self, world: Any) -> None:
        """Its current version came from there; the next will not."""
        certificate = await certificate_of(world)
        other = await world.account(name="other")
        await with_accounts(world, certificate, other)
        await deactivate(world, certificate.account_id)
        await idle()
        assert not (await renewal_of(world, certificate)).is_stopped

    async def test_one_that_is_stopped_already_is_not_told_of_again(self, world: Any) -> None:
        """Its owner knows, and its error says why."""
        certificate = await certificate_of(world)
        current = await world.read(RENEWALS, certificate.id)
        stopped = msgspec.structs.replace(current.value, is_stopped=True)
        await world.sqlite.commit([RENEWALS.put(stopped, current.revision)])
        await deactivate(world, certificate.account_id)
        await ended(world, certificate.account_id)
        assert await renewal_of(world, certificate) == stopped
        assert "certificate.renewal_blocked" not in await world.event_types()

    async def test_an_order_under_way_keeps_its_place_in_the_renewal(self, world: Any) -> None:
        """It ends by itself, and takes its own id out; another one must not begin beside it."""
        certificate = await certificate_of(world)
        current = await world.read(RENEWALS, certificate.id)
        ordered = msgspec.structs.replace(current.value, order_id="acme_order_1")
        await world.sqlite.commit([RENEWALS.put(ordered, current.revision)])
        await deactivate(world, certificate.account_id)
        await ended(world, certificate.account_id)
        assert (await renewal_of(world, certificate)).order_id == "acme_order_1"

    async def test_one_without_a_renewal_yet_gets_one_that_is_stopped(self, world: Any) -> None:
        """From before there were any; the scheduler has not been there."""
        certificate = await certificate_of(world)
        await world.sqlite.commit([Delete(key=RENEWALS.key(certificate.id))])
        await deactivate(world, certificate.account_id)
        await ended(world, certificate.account_id)
        assert (await renewal_of(world, certificate)).is_stopped

    async def test_one_that_is_not_renewed_anyway_is_left_alone(self, world: Any) -> None:
        """There is nothing to block."""
        certificate = await certificate_of(world)
        current = await world.read(CERTIFICATES, certificate.id)
        await world.sqlite.commit(
            [CERTIFICATES.put(msgspec.structs.replace(current.value, auto_renew=False), current.revision)]
        )
        await deactivate(world, certificate.account_id)
        await ended(world, certificate.account_id)
        assert "certificate.renewal_blocked" not in await world.event_types()

    async def test_one_that_is_changed_at_that_moment_is_looked_at_again(self, world: Any) -> None:
        """The scheduler writes the same document."""
        certificate = await certificate_of(world)
        is_first = True

        async def come_before(changes: Any) -> None:
            nonlocal is_first
            puts = [each for each in changes if isinstance(each, Put) and each.key == RENEWALS.key(certificate.id)]
            if puts and is_first:
                is_first = False
                current = await world.read(RENEWALS, certificate.id)
                touched = msgspec.structs.replace(current.value, polls_failed=7)
                await world.sqlite.commit([RENEWALS.put(touched, current.revision)])

        world.store.before_commit = come_before
        await deactivate(world, certificate.account_id)
        await ended(world, certificate.account_id)
        renewal = await renewal_of(world, certificate)
        assert (renewal.is_stopped, renewal.polls_failed) == (True, 7)

    @pytest.mark.parametrize("deaths", [0, 1])
    async def test_an_account_that_the_ca_ended_is_treated_alike(
        self, world: Any, ca_refuses: Any, deaths: int
    ) -> None:
        """From outside, so nobody has confirmed anything; the CA is not told what it knows."""
        certificate = await certificate_of(world)
        account = await world.shown_account(certificate.account_id)
        world.ca.script["find_account"].append(ca_refuses("unauthorized", 401))
        stop = Stop()
        if deaths:
            world.store.before_commit = stop.at_commit(2)
        assert await world.accounts.examine(account) is False
        if deaths:
            async with asyncio.timeout(10):
                await stop.reached.wait()
            await kill(world)
            await world.care.resume()
        await ended(world, account.id)
        assert (await renewal_of(world, certificate)).is_stopped
        assert world.ca.asked("deactivate_account") == []
