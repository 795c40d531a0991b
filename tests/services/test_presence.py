"""What an order has in place, and whole orders proven by DNS: from the request to the last value taken away."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import CaUnavailable, ChallengeFailed, DnsError, InvalidRequest, Timeout
from scaivaultd.plugin import (
    ChallengeResponse,
    PermanentError,
    ProviderAuthError,
    RateLimited,
    SolverError,
    SolverKind,
    TransientError,
)
from scaivaultd.services import presence as presence_module
from scaivaultd.services.presence import Presence
from scaivaultd.services.solvers import Claims, OpenSolver
from scaivaultd.services.txt_records import VALUES_AT_ONCE

CONTEXT = RequestContext(request_id="req_presence")
NAME = "_acme-challenge.example.test"
FOREIGN = "google-site-verification=x"


def never(_: Any) -> Any:
    raise AssertionError("it is open")


def response(token: str) -> ChallengeResponse:
    return ChallengeResponse(identifier=f"{token}.test", type="new-01", token=token, key_authorization=f"{token}.k")


class Solver:
    """In memory; `meets` holds errors or functions for the next presents and clean-ups, by token."""

    def __init__(self) -> None:
        self.in_place: set[str] = set()
        self.meets: dict[str, Any] = {}
        self.cleaned: list[str] = []

    async def present(self, response: ChallengeResponse) -> None:
        met = self.meets.pop(response.token, None)
        if isinstance(met, BaseException):
            raise met
        if met is not None:
            await met()
        self.in_place.add(response.token)

    async def clean_up(self, response: ChallengeResponse) -> None:
        self.cleaned.append(response.token)
        met = self.meets.pop(f"clean {response.token}", None)
        if isinstance(met, BaseException):
            raise met
        if met is not None:
            await met()
        self.in_place.discard(response.token)


class Claiming(Solver):
    """Holds two responses at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    async def present(self, response: ChallengeResponse) -> None:
        await super().present(response)
        self.most = max(self.most, len(self.in_place))

    async def claims(self, response: ChallengeResponse) -> Mapping[str, int]:
        return {"the place": 2}


@pytest.fixture
def solver() -> Solver:
    return Solver()


@pytest.fixture
def made(log: Any) -> Any:
    """Make the presence of an order with a solver."""
    claims = Claims()

    def make(solver: Any, **members: Any) -> Presence:
        kind = SolverKind(name="new-01", challenge_type="new-01", open=never, **members)
        return Presence(OpenSolver(kind=kind, solver=solver), claims, log)

    return make


def responses(*tokens: str) -> dict[str, ChallengeResponse]:
    return {f"https://ca.test/{token}": response(token) for token in tokens}


class TestPresence:
    async def test_what_is_in_place_is_not_put_there_again(self, made: Any, solver: Solver) -> None:
        """After a setback only what failed is tried again."""
        present = made(solver)
        solver.meets["b"] = SolverError("full", retryable=True)
        with pytest.raises(ChallengeFailed, match=r"b\.test: full") as failed:
            await present.present(responses("a", "b"))
        assert (failed.value.identifier, failed.value.may_pass) == ("b.test", True)
        solver.in_place.discard("a")
        await present.present(responses("a", "b"))
        assert solver.in_place == {"b"}

    async def test_another_key_authorization_takes_the_place_of_the_old_one(self, made: Any, solver: Solver) -> None:
        """After a key change the CA looks for the new one; the old one must not stand beside it for ever."""
        present = made(solver)
        await present.present(responses("a", "b"))
        changed = {url: msgspec.structs.replace(each, key_authorization="new") for url, each in responses("a").items()}
        await present.present(changed)
        assert (solver.cleaned, solver.in_place) == (["a"], {"a", "b"})
        await present.clean_up()
        assert (sorted(solver.cleaned), solver.in_place) == (["a", "a", "b"], set())

    async def test_a_solver_that_breaks_is_named_without_its_words(
        self, made: Any, solver: Solver, logged: Any
    ) -> None:
        """Its text may hold a secret; the log has the place."""
        solver.meets["a"] = ValueError("secret-xyz")
        with pytest.raises(ChallengeFailed, match=r"the solver new-01 broke \(ValueError\)") as failed:
            await made(solver).present(responses("a"))
        assert "secret-xyz" not in failed.value.detail
        assert [each["event"] for each in logged] == ["solver.broke"]

    async def test_presenting_has_a_deadline_and_leaves_what_was_begun_to_the_clean_up(
        self, made: Any, solver: Solver
    ) -> None:
        """A solver that hangs must not hold an order for ever, nor leave its half behind."""
        present = made(solver, present_seconds=0.02)
        solver.meets["a"] = asyncio.Event().wait
        with pytest.raises(Timeout):
            await present.present(responses("a", "b"))
        await present.clean_up()
        assert sorted(solver.cleaned) == ["a", "b"]

    async def test_one_clean_up_that_fails_or_hangs_does_not_keep_the_others_in_place(
        self, made: Any, solver: Solver, monkeypatch: pytest.MonkeyPatch, logged: Any
    ) -> None:
        """Each on its own, all within a limit."""
        monkeypatch.setattr(presence_module, "CLEAN_UP_SECONDS", 0.02)
        present = made(solver)
        await present.present(responses("a", "b", "c"))
        solver.meets["clean a"] = OSError("no")
        solver.meets["clean b"] = asyncio.Event().wait
        await present.clean_up()
        assert solver.in_place == {"a", "b"}
        assert any(each["event"].startswith("challenge.") for each in logged)
        await present.clean_up()
        assert solver.cleaned.count("c") == 1

    async def test_what_a_lasting_solver_had_in_place_is_remembered_only(self, made: Any, solver: Solver) -> None:
        """It is still there after a restart; presenting it before the order is looked at would be for nothing."""
        present = made(solver, is_lasting=True)
        await present.restore(responses("a"))
        assert solver.in_place == set()
        await present.clean_up()
        assert solver.cleaned == ["a"]

    async def test_what_another_solver_had_in_place_is_put_back_first(self, made: Any, solver: Solver) -> None:
        """The CA may be looking for it right now."""
        present = made(solver)
        await present.restore(responses("a"))
        await present.settled()
        assert solver.in_place == {"a"}

    async def test_a_solver_that_cancels_itself_has_failed(self, made: Any, solver: Solver) -> None:
        """An order whose job ends without a word is stuck until the next restart."""
        solver.meets["a"] = asyncio.CancelledError()
        presenting = asyncio.create_task(made(solver).present(responses("a")))
        await asyncio.wait({presenting})
        assert not presenting.cancelled()
        assert isinstance(presenting.exception(), ChallengeFailed)


class TestSharing:
    async def test_no_more_are_in_place_than_may_be(self, made: Any) -> None:
        """From before presenting until after the clean-up; whoever does not fit waits, and all end."""
        solver = Claiming()

        async def order(number: int) -> None:
            present = made(solver)
            await present.present(responses(*(f"{kind}{number}" for kind in "ab"[: 1 + number % 2])))
            await asyncio.sleep(0)
            await present.clean_up()

        async with asyncio.timeout(5):
            await asyncio.gather(*(order(number) for number in range(12)))
        assert (solver.most, solver.in_place) == (2, set())

    async def test_a_retry_keeps_the_share_of_what_is_in_place(self, made: Any) -> None:
        """One of two failed: the other still takes its room, and nobody may come between."""
        solver = Claiming()
        solver.meets["b1"] = SolverError("busy", retryable=True)
        first, second = made(solver), made(solver)
        with pytest.raises(ChallengeFailed):
            await first.present(responses("a1", "b1"))
        other = asyncio.create_task(second.present(responses("a2")))
        for _ in range(20):
            await asyncio.sleep(0)
        await first.present(responses("b1"))
        assert not other.done()
        assert solver.most == 2
        await first.clean_up()
        await other
        await second.clean_up()

    async def test_one_that_needs_more_later_counts_what_it_has_in_place(self, made: Any) -> None:
        """Its earlier response takes room until the clean-up, whatever it asks for now."""
        solver = Claiming()
        first, second = made(solver), made(solver)
        await first.present(responses("a1"))
        await second.present(responses("a2"))
        later = asyncio.create_task(first.present(responses("b1")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not later.done()
        await second.clean_up()
        await later
        assert solver.most == 2

    async def test_who_gets_one_of_two_things_does_not_keep_it_until_its_next_try(self, made: Any) -> None:
        """Minutes may pass until then."""

        class Several(Claiming):
            async def claims(self, response: ChallengeResponse) -> Mapping[str, int]:
                return dict.fromkeys(response.token.split("+"), 1)

        solver = Several()
        await made(solver).present(responses("y"))
        with pytest.raises(Timeout):
            await made(solver, present_seconds=0.02).present(responses("x+y"))
        async with asyncio.timeout(5):
            await made(solver).present(responses("x"))

    async def test_who_gives_up_waiting_leaves_the_way_free(self, made: Any) -> None:
        """Its deadline counts the wait, too."""
        solver = Claiming()
        first, hasty, patient = made(solver), made(solver, present_seconds=0.02), made(solver)
        await first.present(responses("a1", "b1"))
        with pytest.raises(Timeout):
            await hasty.present(responses("a2"))
        await hasty.clean_up()
        assert solver.cleaned == []
        await first.clean_up()
        async with asyncio.timeout(5):
            await patient.present(responses("a3", "b3"))


@pytest.fixture
async def world(dns_world: Any) -> Any:
    await dns_world.provider()
    return dns_world


async def reply_of(world: Any, order_id: str) -> Any:
    return await world.issuing.get(m.OrderById(order_id=order_id), CONTEXT)


async def nothing_is_left(world: Any) -> bool:
    await world.idle()
    return bool(world.service.values() == {} and await world.journal() == [])


class TestWholeOrders:
    async def test_wildcard_and_apex_are_proven_and_nothing_is_left(self, world: Any) -> None:
        """The whole way, once, with both values at one name."""
        seen: list[Any] = []

        async def look() -> None:
            seen.append(world.service.values()[NAME])

        world.ca.script["respond"].append(look)
        world.service.sets[NAME] = [FOREIGN]
        order_id = await world.dns_order("example.test", "*.example.test")
        order = await world.ended(order_id)
        assert order.status == "valid"
        assert len(seen[0] - {FOREIGN}) == 2
        assert world.service.sets == {NAME: [FOREIGN]}
        assert await world.journal() == []
        (record,) = (await reply_of(world, order_id)).dns_records
        assert (record.status, record.record_name, record.dns_provider) == ("visible", NAME, "main")
        assert [each.answer for each in record.verdicts] == ["complete", "complete"]
        assert "certificate.issued" in await world.event_types()

    async def test_every_value_is_visible_everywhere_before_the_ca_is_told(self, world: Any, name_servers: Any) -> None:
        """A CA that looks too early fails the order, and remembers."""
        name_servers.rounds.extend([{"192.0.2.2": "absent"}] * 6)
        left: list[int] = []
        world.ca.script["respond"].append(lambda: left.append(len(name_servers.rounds)))
        order = await world.ended(await world.dns_order("example.test", "a.example.test", "*.example.test"))
        assert order.status == "valid"
        assert left == [0]

    async def test_twenty_orders_at_once_for_the_same_wildcard_and_apex(self, world: Any) -> None:
        """All end well, none loses another's value, and no crowd of values is in DNS at a time."""
        most = 0

        def count() -> None:
            nonlocal most
            most = max(most, len(world.service.values().get(NAME, ())))

        world.service.always["add_txt"] = count
        world.service.always["remove_txt"] = count
        account_id = await world.account()
        orders = [await world.dns_order("example.test", "*.example.test", account_id=account_id) for _ in range(20)]
        statuses = [(await world.ended(each)).status for each in orders]
        assert statuses == ["valid"] * 20
        assert most <= VALUES_AT_ONCE
        assert await nothing_is_left(world)
        assert world.said("job.failed") == []

    async def test_ten_orders_for_one_account_of_two_values_queue_up_and_all_end(
        self, dns_world: Any, name_servers: Any
    ) -> None:
        """Unrelated names that are delegated to one acme-dns account; a third value is one too many."""
        await dns_world.provider(kind="few_values")
        dns_world.service.holds_at_most = 2
        account_id = await dns_world.account()
        orders = []
        for number in range(10):
            name = f"h{number}.other.test"
            name_servers.cnames[f"_acme-challenge.{name}"] = "account.example.test"
            orders.append(await dns_world.dns_order(name, f"*.{name}", account_id=account_id))
        ended = [await dns_world.ended(each) for each in orders]
        assert [(each.status, each.error) for each in ended] == [("valid", None)] * 10
        assert await nothing_is_left(dns_world)

    async def test_what_is_certain_to_fail_is_refused_at_once(self, dns_world: Any) -> None:
        """Without a provider, with one that is not there, or with wishes that mean nothing."""
        for members, pointer in (
            ({}, "/challenge_type"),
            ({"dns_provider": "man"}, "/dns_provider"),
            ({"propagation": m.PropagationRequest(resolvers=["not an address"])}, "/propagation/resolvers/0"),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await dns_world.dns_order(**members)
            assert refused.value.fields[0].pointer == pointer
        await dns_world.provider()
        account_id = await dns_world.account()
        with pytest.raises(InvalidRequest):
            await dns_world.issuing.issue(
                m.Issue(account_id=account_id, domains=["a.test"], challenge_type="http-01", dns_provider="main"),
                CONTEXT,
            )


class TestFailing:
    async def test_a_propagation_timeout_ends_the_order_and_names_the_servers(
        self, world: Any, name_servers: Any
    ) -> None:
        """In the error, in the event, in the reply: whoever runs that server must see it."""
        name_servers.shows["192.0.2.2"] = "absent"
        order_id = await world.dns_order("a.example.test", "example.test")
        order = await world.ended(order_id)
        assert (order.status, order.error.code) == ("invalid", "dns_propagation_timeout")
        assert order.error.retryable is False
        (trouble,) = order.error.identifiers
        assert trouble.identifier in ("a.example.test", "example.test")
        assert [(each.address, each.answer) for each in trouble.servers] == [("192.0.2.2", "absent")]
        assert "ns2.example.test (192.0.2.2): says absent" in trouble.detail
        (body,) = [body for kind, body in await world.events() if kind == "order.failed"]
        (in_event,) = body["error"]["identifiers"]
        assert in_event["identifier"] == trouble.identifier
        assert in_event["servers"][0]["address"] == "192.0.2.2"
        records = {each.identifier: each for each in (await reply_of(world, order_id)).dns_records}
        assert records[trouble.identifier].status == "failed"
        assert world.ca.asked("respond") == []
        assert await nothing_is_left(world)

    @pytest.mark.parametrize(
        ("method", "error", "says"),
        [
            ("find_zone", ProviderAuthError("[10000]"), "refuses the credentials: [10000]"),
            ("add_txt", ProviderAuthError("[10000]"), "refuses the credentials: [10000]"),
            ("add_txt", PermanentError("locked"), "locked"),
        ],
    )
    async def test_a_refusal_ends_it_at_once(self, world: Any, method: str, error: Exception, says: str) -> None:
        """Nobody gains by a day of tries with a wrong token."""
        world.service.always[method] = error
        order = await world.ended(await world.dns_order())
        assert (order.status, order.error.code) == ("invalid", "dns_provider_error")
        assert says in order.error.detail
        assert [each.identifier for each in order.error.identifiers] == ["example.test"]
        assert order.attempt == 1

    async def test_a_passing_fault_is_tried_again(self, world: Any) -> None:
        """A service may be away for a moment; the order goes on with what it has."""
        world.service.script["add_txt"].extend([TransientError("503"), ValueError("bug"), OSError("reset")])
        world.service.script["remove_txt"].append(TransientError("503"))
        order = await world.ended(await world.dns_order("example.test", "*.example.test"))
        assert order.status == "valid"
        assert len(world.ca.orders) == 1
        assert await nothing_is_left(world)

    async def test_a_rate_limit_is_waited_for(self, world: Any, clock: Any) -> None:
        """As long as the service says."""
        world.service.script["add_txt"].append(RateLimited("slow down", 700))
        before = clock.now()
        order = await world.ended(await world.dns_order())
        assert order.status == "valid"
        assert clock.now() - before >= timedelta(seconds=700)

    async def test_a_provider_that_stays_away_ends_it_when_patience_ends(self, world: Any) -> None:
        """With the last error, and nothing left behind once it is back."""
        world.service.script["find_zone"].append(None)
        world.service.always["add_txt"] = TransientError("503 from the service")
        order_id = await world.dns_order()
        order = await world.ended(order_id)
        assert (order.status, order.error.code) == ("invalid", "dns_provider_error")
        assert "503 from the service" in order.error.detail
        assert await nothing_is_left(world)

    @pytest.mark.parametrize(
        ("reason", "attempts"), [("cname_loop", 1), ("dnssec_bogus", 1), ("lame_delegation", 1), ("unreachable", 2)]
    )
    async def test_what_dns_says_is_named_as_what_it_is(
        self, world: Any, name_servers: Any, reason: Any, attempts: int
    ) -> None:
        """Only what may pass by itself is tried again."""
        name_servers.refuses[NAME] = DnsError(f"it is {reason}", reason)
        order = await world.ended(await world.dns_order())
        assert (order.status, order.error.code) == ("invalid", "dns_error")
        assert f"it is {reason}" in order.error.detail
        assert (order.attempt > 1) == (attempts > 1)

    async def test_a_name_the_ca_does_not_believe_leaves_no_value_behind(self, world: Any) -> None:
        """Its resolver may see another world."""
        world.ca.refuses["example.test"] = "no TXT record found"
        order = await world.ended(await world.dns_order())
        assert order.status == "invalid"
        assert await nothing_is_left(world)

    async def test_a_useless_handle_fails_the_order_and_leaves_no_value_behind(self, world: Any, acts: Any) -> None:
        """The value was written; it is taken away without what the plugin wanted to remember."""
        world.service.always["add_txt"] = acts({"client": object()})
        order = await world.ended(await world.dns_order())
        assert (order.status, order.error.code) == ("invalid", "dns_provider_error")
        assert "no JSON object" in order.error.detail
        assert await nothing_is_left(world)

    async def test_settings_that_change_under_way_do_not_disturb_it(self, world: Any, name_servers: Any) -> None:
        """New credentials while values are in DNS: the new provider takes away what the old one wrote."""
        gate = asyncio.Event()
        name_servers.before_look = gate.wait
        order_id = await world.dns_order("example.test", "*.example.test")
        await world.until(lambda: name_servers.looks)
        await world.put_secret("dns/new", "rotated-token")
        world.service.token = "rotated-token"
        change = m.UpdateDnsProvider(id="main", config={"token_path": "dns/new"})
        await world.providers.update(change, CONTEXT)
        gate.set()
        assert (await world.ended(order_id)).status == "valid"
        assert await nothing_is_left(world)

    async def test_no_secret_is_in_what_is_kept_or_said(self, world: Any) -> None:
        """Whatever the plugin throws about."""
        world.service.script["add_txt"].append(ValueError(world.service.token))
        order = await world.ended(await world.dns_order())
        assert order.status == "valid"
        shown = repr((world.logged, order, await world.events(), await reply_of(world, order.id)))
        assert world.service.token not in shown


class TestPlaceAtTheCa:
    async def test_it_is_given_up_while_dns_is_slow(self, make_dns_world: Any, name_servers: Any) -> None:
        """Minutes of propagation of one name must not hold up every other order of the CA."""
        world = make_dns_world(orders_per_ca=1)
        await world.provider()
        account_id = await world.account()
        gate = asyncio.Event()

        async def hold_the_slow_one() -> None:
            if "slow" in name_servers.looks[-1][0]:
                await gate.wait()

        name_servers.before_look = hold_the_slow_one
        slow = await world.dns_order("slow.example.test", account_id=account_id)
        await world.until(lambda: name_servers.looks)
        quick = await world.dns_order("quick.example.test", account_id=account_id)
        async with asyncio.timeout(10):
            while (await world.shown(quick)).status != "valid":  # noqa: ASYNC110 - the job gets there by itself
                await asyncio.sleep(0)
        assert (await world.shown(slow)).status == "pending"
        gate.set()
        assert (await world.ended(slow)).status == "valid"

    async def test_it_is_not_held_while_waiting_for_another_order_s_values(
        self, make_dns_world: Any, name_servers: Any
    ) -> None:
        """One place, and a queue for the record: who waits for the record must not keep its holder from the CA."""
        world = make_dns_world(orders_per_ca=1)
        await world.provider(kind="few_values")
        account_id = await world.account()
        orders = [await world.dns_order("example.test", "*.example.test", account_id=account_id) for _ in range(4)]
        assert [(await world.ended(each)).status for each in orders] == ["valid"] * 4


class TestRestart:
    """A process that is killed in every state, and the next one that resumes and sweeps."""

    async def resumed(self, world: Any, order_id: str) -> Any:
        await world.die()
        world.service.script.clear()
        world.ca.script.clear()
        world.name_servers.before_look = None
        await world.issuing.resume()
        await world.records.sweep()
        order = await world.ended(order_id)
        assert order.status == "valid"
        assert len(world.ca.orders) == 1
        assert await nothing_is_left(world)
        return order

    @pytest.mark.parametrize("method", ["find_zone", "add_txt"])
    async def test_while_the_provider_is_asked(self, world: Any, method: str) -> None:
        """Before and after the journal."""
        world.service.script[method].append(asyncio.Event().wait)
        order_id = await world.dns_order("example.test", "*.example.test")
        await world.until(lambda: world.service.asked(method))
        await self.resumed(world, order_id)

    async def test_while_the_name_servers_are_watched(self, world: Any, name_servers: Any) -> None:
        """The values are there; they are watched anew, not written twice."""
        name_servers.before_look = asyncio.Event().wait
        order_id = await world.dns_order("example.test", "*.example.test")
        await world.until(lambda: name_servers.looks)
        await self.resumed(world, order_id)

    @pytest.mark.parametrize("method", ["respond", "order", "finalize", "certificate"])
    async def test_while_the_ca_is_asked(self, world: Any, method: str) -> None:
        """What is in DNS outlives the process, and goes when the order has ended."""
        world.ca.script[method].append(asyncio.Event().wait)
        order_id = await world.dns_order("example.test", "*.example.test")
        await world.until(lambda: world.ca.asked(method))
        await self.resumed(world, order_id)

    async def test_while_it_is_cleaned_up(self, world: Any) -> None:
        """The order is valid already; only the sweep knows of its values."""
        world.service.script["remove_txt"].append(asyncio.Event().wait)
        order_id = await world.dns_order("example.test", "*.example.test")
        await world.until(lambda: world.service.asked("remove_txt"))
        await self.resumed(world, order_id)

    async def test_between_two_tries(self, world: Any) -> None:
        """One value written, the other not: both are known."""
        world.ca.script["respond"].extend([CaUnavailable("503"), asyncio.Event().wait])
        order_id = await world.dns_order("example.test", "*.example.test")
        await world.until(lambda: len(world.ca.asked("respond")) > 2)
        await self.resumed(world, order_id)

    async def test_the_cname_has_changed_meanwhile(self, world: Any, name_servers: Any) -> None:
        """The value of the first life goes from where it was written."""
        name_servers.cnames[NAME] = "old.example.test"
        name_servers.before_look = asyncio.Event().wait
        order_id = await world.dns_order()
        await world.until(lambda: name_servers.looks)
        name_servers.cnames[NAME] = "new.example.test"
        await self.resumed(world, order_id)
        assert {name for method, name in world.service.calls if method == "remove_txt"} == {
            "old.example.test",
            "new.example.test",
        }

    async def test_an_order_whose_plugin_is_gone_keeps_its_values_until_it_is_back(
        self, make_dns_world: Any, name_servers: Any
    ) -> None:
        """A refused plugin after an upgrade is a mishap, not the end of the order."""
        world = make_dns_world()
        await world.provider()
        name_servers.before_look = asyncio.Event().wait
        order_id = await world.dns_order()
        await world.until(lambda: name_servers.looks)
        await world.until(lambda: world.service.values())
        world.solver_makers = ()
        await world.die()
        await world.issuing.resume()
        await world.records.sweep()
        await world.idle()
        assert set(world.service.values()) == {NAME}
        assert world.said("order.no_solver")
        from_now_on = make_dns_world()
        world.solver_makers = from_now_on.solver_makers
        await self.resumed(world, order_id)
