"""Orders from the request to their end: accepted once, pursued in the write order, set back, parked, resumed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import msgspec
import pytest
import structlog

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaMisbehaved,
    CaUnavailable,
    CertificatePending,
    Conflict,
    InvalidRequest,
    NotFound,
    StorageUnavailable,
    UnsupportedChallenge,
)
from scaivaultd.model.ids import NodeId
from scaivaultd.model.names import parse_identifiers
from scaivaultd.services.documents import KEYS, NAME_POINTERS, ORDERS, name_pointer_id
from scaivaultd.services.pursuit import FIRST_PAUSE_SECONDS
from scaivaultd.services.waiting import LOOK_AT_THE_CLOCK_SECONDS


class TestFairWeather:
    async def test_an_order_brings_certificate_key_pointer_and_one_event(self, world: Any) -> None:
        """The whole way, once: everything a caller needs is there when the order says valid."""
        order = await world.issue("a.example.test", "b.example.test")
        assert order.status == "valid"
        (certificate,) = await world.certificates()
        assert order.certificate_id == certificate.id
        assert order.not_after == certificate.not_after
        assert {str(each) for each in certificate.identifiers} == {"a.example.test", "b.example.test"}
        sealed = (await world.read(KEYS, certificate.key_id)).value.sealed
        assert world.sealer.open(sealed, KEYS.key(certificate.key_id), "private_key")
        pointer = await world.read(NAME_POINTERS, name_pointer_id(order.identifiers, order.key_type))
        assert pointer.value.certificate_id == certificate.id
        assert await world.event_types() == ["account.created", "certificate.issued"]
        assert {each.status for each in order.challenges} == {"valid"}

    async def test_each_request_is_made_once(self, world: Any) -> None:
        """Two names cost two looks, two answers and no more: CAs count requests."""
        await world.issue("a.example.test", "b.example.test")
        asked = {
            method: len(world.ca.asked(method)) for method in ("new_order", "authorization", "respond", "finalize")
        }
        assert asked == {"new_order": 1, "authorization": 2, "respond": 2, "finalize": 1}
        assert len(world.ca.asked("certificate")) == 1

    async def test_everything_is_in_place_before_the_first_answer_and_gone_after_the_end(self, world: Any) -> None:
        """A CA may look in the same moment; a record left behind proves the name to anybody."""
        seen: list[int] = []
        world.ca.script["respond"].append(lambda: seen.append(len(world.solver.in_place)))
        await world.issue("a.example.test", "b.example.test", "c.example.test")
        assert seen == [3]
        assert world.solver.in_place == {}
        assert sorted(world.solver.cleaned) == sorted(world.solver.presented)

    async def test_key_and_journal_are_on_disk_before_the_ca_hears_of_them(self, world: Any) -> None:
        """The write order: what a crash leaves behind must be found and cleaned up by the next life."""
        at: dict[str, Any] = {}

        def remember(name: str) -> Any:
            async def look() -> None:
                (order,) = await ORDERS.all(world.sqlite, structlog.get_logger())
                at[name] = order.value

            return look

        for method in ("new_order", "respond", "finalize"):
            world.ca.script[method].append(remember(method))
        await world.issue()
        assert at["new_order"].key_id is not None
        assert await KEYS.get(world.sqlite, at["new_order"].key_id) is not None
        assert at["new_order"].url is None
        assert at["respond"].url is not None
        assert at["respond"].finalize_url is not None
        assert [each.token for each in at["respond"].challenges] == world.solver.presented
        assert at["finalize"].owner == world.node_id

    async def test_the_journal_is_on_disk_before_anything_is_put_in_place(self, world: Any) -> None:
        """A crash between the two would leave a proof behind that nobody knows of."""
        journals: list[list[str]] = []

        async def look() -> None:
            (order,) = await ORDERS.all(world.sqlite, structlog.get_logger())
            journals.append([each.token for each in order.value.challenges])

        world.solver.before_present = look
        await world.issue("a.example.test", "b.example.test")
        assert [sorted(each) for each in journals] == [sorted(world.solver.presented)] * 2

    async def test_a_caller_who_waits_is_shown_the_challenges(self, world: Any) -> None:
        """The reply to `issue` is the order with its challenges, as soon as the CA has named them."""
        account_id = await world.account()
        gate = asyncio.Event()
        world.ca.script["respond"].append(gate.wait)
        request = m.Issue(account_id=account_id, domains=["a.example.test"], challenge_type="http-01", wait_seconds=30)
        async with asyncio.timeout(10):
            reply = await world.issuing.issue(request, RequestContext(request_id="req_1"))
        gate.set()
        assert reply.status == "pending"
        (challenge,) = reply.challenges
        assert challenge.key_authorization.startswith(f"{challenge.token}.")
        assert challenge.domain == "a.example.test"
        await world.idle()

    async def test_a_caller_may_wait_for_the_end_instead(self, world: Any) -> None:
        """Who asks with `?wait=60` wants the certificate: its challenges alone are no answer."""
        account_id = await world.account()
        gate = asyncio.Event()
        world.ca.script["respond"].append(gate.wait)
        request = m.Issue(
            account_id=account_id, domains=["a.example.test"], challenge_type="http-01", wait_end_seconds=30
        )
        context = RequestContext(request_id="req_1")
        issuing = asyncio.create_task(world.issuing.issue(request, context))
        hurried = await world.issuing.issue(msgspec.structs.replace(request, wait_end_seconds=0), context)
        looking = asyncio.create_task(
            world.issuing.get(m.OrderById(order_id=hurried.order_id, wait_end_seconds=30), context)
        )
        assert hurried.status == "pending"
        for _ in range(200):
            await asyncio.sleep(0)
        assert not issuing.done()
        assert not looking.done()
        gate.set()
        async with asyncio.timeout(10):
            replies = [await issuing, await looking]
        assert {(each.order_id, each.status) for each in replies} == {(hurried.order_id, "valid")}
        assert all(each.certificate_id for each in replies)

    async def test_the_first_look_at_the_order_comes_after_a_pause(self, world: Any) -> None:
        """A look at once only finds it pending, and costs the CA a request for each certificate."""
        await world.issue("a.example.test")
        assert len(world.ca.asked("order")) == 1
        assert world.clock.slept[:1] == [FIRST_PAUSE_SECONDS]

    async def test_orders_of_one_ca_go_side_by_side_up_to_the_limit(self, make_world: Any) -> None:
        """A CA that locks up under a crowd gets no crowd, and one slow order does not hold up the rest."""
        world = make_world(orders_per_ca=2)
        account_id = await world.account()
        gate, inside = asyncio.Event(), []

        async def enter() -> None:
            inside.append(1)
            await gate.wait()

        world.ca.script["new_order"].extend([enter] * 5)
        orders = [await world.order(f"h{n}.example.test", account_id=account_id) for n in range(5)]
        async with asyncio.timeout(10):
            while len(inside) < 2:  # noqa: ASYNC110 - the jobs get there by themselves
                await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(inside) == 2
        gate.set()
        assert [(await world.ended(each)).status for each in orders] == ["valid"] * 5

    async def test_listing_filters_by_state_and_account(self, world: Any) -> None:
        """Operators look for what failed, not through everything."""
        account_id = await world.account()
        good = await world.order("good.example.test", account_id=account_id)
        world.clock.advance(1)  # ids sort by age
        bad = await world.order("other.example.test", account_id=account_id)
        await world.idle()
        await world.change(bad, status="invalid")
        expected: dict[Any, list[str]] = {"valid": [good], "invalid": [bad], "pending": [], None: [good, bad]}
        for status, ids in expected.items():
            listed = await world.issuing.list(m.ListOrders(status=status), RequestContext(request_id="r"))
            assert [each.order_id for each in listed.items] == ids
        listed = await world.issuing.list(m.ListOrders(account_id="acme_other"), RequestContext(request_id="r"))
        assert listed.items == []


class TestAccepting:
    async def test_the_same_key_and_request_find_the_same_order(self, world: Any) -> None:
        """A caller whose answer was lost asks again, and must not get two certificates."""
        account_id = await world.account()
        first = await world.order("a.example.test", account_id=account_id, key="k")
        await world.idle()
        assert await world.order("a.example.test", account_id=account_id, key="k") == first
        await world.idle()
        assert len(world.ca.orders) == 1

    async def test_two_at_once_with_the_same_key_make_one_order(self, world: Any) -> None:
        """Retries overlap with what they retry."""
        account_id = await world.account()
        orders = await asyncio.gather(
            *(world.order("a.example.test", account_id=account_id, key="k") for _ in range(5))
        )
        await world.idle()
        assert len(set(orders)) == 1
        assert len(world.ca.orders) == 1

    async def test_the_same_key_for_another_request_is_a_conflict(self, world: Any) -> None:
        """Silently giving out the other order would hand a service the wrong certificate."""
        account_id = await world.account()
        await world.order("a.example.test", account_id=account_id, key="k")
        with pytest.raises(Conflict):
            await world.order("b.example.test", account_id=account_id, key="k")
        await world.idle()

    async def test_the_same_request_while_one_is_under_way_is_the_same_order(self, world: Any) -> None:
        """A caller that asks again, or ten of them at once, get one certificate and spend one order at the CA."""
        account_id = await world.account()
        orders = await asyncio.gather(*(world.order(account_id=account_id, key=key) for key in (None, "a", "b", None)))
        other = await world.order(account_id=account_id, key_type="ec-p384")
        assert len(set(orders)) == 1
        assert other not in orders
        await world.idle()
        assert len(world.ca.orders) == 2
        assert await world.order(account_id=account_id, key="a") == orders[0]
        assert await world.order(account_id=account_id) not in orders
        await world.idle()

    @pytest.mark.parametrize(
        ("changes", "error"),
        [
            ({"account_id": "acme_none"}, NotFound),
            ({"account_id": "../key/x"}, NotFound),
            ({"domains": ["not a name"]}, InvalidRequest),
            ({"domains": ["*.example.test"]}, UnsupportedChallenge),
            ({"challenge_type": "tls-alpn-01"}, UnsupportedChallenge),
        ],
    )
    async def test_what_cannot_work_is_refused_before_anything_is_written(
        self, world: Any, changes: dict[str, Any], error: type[Exception]
    ) -> None:
        """A refused request leaves nothing behind, neither here nor at the CA."""
        body = {"account_id": await world.account(), "domains": ["a.example.test"], "challenge_type": "http-01"}
        with pytest.raises(error):
            await world.issuing.issue(m.Issue(**{**body, **changes}), RequestContext(request_id="r"))
        assert await ORDERS.all(world.sqlite, structlog.get_logger()) == []
        assert world.ca.asked("new_order") == []

    async def test_a_full_disk_is_said_and_nothing_is_accepted(self, world: Any) -> None:
        """An order the caller heard of must exist: so while nothing can be written, none is promised."""
        account_id = await world.account()
        await world.idle()

        async def full(_: Any) -> None:
            raise StorageUnavailable("full")

        world.store.before_commit = full
        with pytest.raises(StorageUnavailable):
            await world.order(account_id=account_id)
        assert world.tasks() == []


class TestRefusedByTheCa:
    async def test_the_cause_is_told_name_by_name_and_once_as_an_event(self, world: Any) -> None:
        """One of fifty names is wrong: which, and what did the CA see?"""
        world.ca.refuses["bad.example.test"] = "saw a parking page"
        order = await world.issue("good.example.test", "bad.example.test")
        assert order.status == "invalid"
        assert order.error.code == "challenge_failed"
        (cause,) = order.error.identifiers
        assert (cause.identifier, cause.detail) == ("bad.example.test", "saw a parking page")
        assert cause.type == "urn:ietf:params:acme:error:unauthorized"
        failed = [body for kind, body in await world.events() if kind == "order.failed"]
        assert [body["order_id"] for body in failed] == [order.id]
        assert failed[0]["error"]["identifiers"][0]["identifier"] == "bad.example.test"
        assert world.solver.in_place == {}
        assert await world.certificates() == []

    async def test_a_refused_order_ends_with_the_cas_words_at_once(self, world: Any, ca_refuses: Any) -> None:
        """`rejectedIdentifier` will not become better by asking again."""
        world.ca.script["new_order"].append(ca_refuses("rejectedIdentifier", 400, "policy forbids it"))
        order = await world.issue()
        assert (order.status, order.error.code) == ("invalid", "ca_error")
        assert order.error.acme.detail == "policy forbids it"
        assert len(world.ca.asked("new_order")) == 1
        assert await world.event_types() == ["account.created", "order.failed"]

    async def test_an_answer_to_a_decided_challenge_is_no_failure(self, world: Any, ca_refuses: Any) -> None:
        """The CA may have validated on its own between our look and our word."""

        async def validate_first() -> Exception:
            for authorization in world.ca.authorizations.values():
                world.ca.validate(authorization)
            error: Exception = ca_refuses("malformed", 400, "the challenge is not pending")
            return error

        world.ca.script["respond"].append(validate_first)
        assert (await world.issue()).status == "valid"

    async def test_an_answer_that_is_refused_while_nothing_was_decided_is_a_failure(
        self, world: Any, ca_refuses: Any
    ) -> None:
        """Otherwise the order would wait for a validation that never begins."""
        world.ca.script["respond"].append(ca_refuses("malformed", 400, "bad signature"))
        order = await world.issue()
        assert (order.status, order.error.acme.detail) == ("invalid", "bad signature")
        assert world.solver.in_place == {}

    async def test_an_account_deactivated_from_outside_is_found_out_and_marked(
        self, world: Any, ca_refuses: Any
    ) -> None:
        """Nobody should order in its name again, and somebody should hear of it."""
        account_id = await world.account()
        world.ca.script["new_order"].append(ca_refuses("unauthorized", 403, "account is deactivated"))
        world.ca.script["find_account"].append(ca_refuses("unauthorized", 403, "account is deactivated"))
        order = await world.ended(await world.order(account_id=account_id))
        assert order.status == "invalid"
        assert (await world.shown_account(account_id)).status == "deactivated"
        assert sorted(await world.event_types()) == ["account.created", "account.deactivated", "order.failed"]
        with pytest.raises(AccountUnusable):
            await world.order(account_id=account_id)

    async def test_a_denial_of_an_account_the_ca_has_is_weather(self, world: Any, ca_refuses: Any) -> None:
        """A node of the CA that lags must not cost a certificate hours, or send somebody to register again."""
        account_id = await world.account()
        world.ca.script["new_order"].append(ca_refuses("accountDoesNotExist", 400, "who?"))
        order = await world.ended(await world.order(account_id=account_id))
        assert (order.status, order.attempt) == ("valid", 1)
        assert len(world.ca.registrations) == 1


class TestSetbacks:
    @pytest.mark.parametrize("method", ["new_order", "authorization", "respond", "order", "finalize", "certificate"])
    async def test_a_ca_that_fails_at_any_step_for_a_while_only_costs_time(self, world: Any, method: str) -> None:
        """Weather at any point: the order goes on by itself, is finalized once, and leaves nothing behind."""
        world.ca.script[method].extend([CaUnavailable("down")] * 3)
        order = await world.issue("a.example.test", "b.example.test")
        assert (order.status, order.error) == ("valid", None)
        assert len(world.ca.certificates) == 1
        assert len(await world.certificates()) == 1
        assert (await world.event_types()).count("certificate.issued") == 1
        assert world.solver.in_place == {}

    @pytest.mark.parametrize("method", ["new_order", "authorization", "respond", "order", "finalize"])
    async def test_lost_answers_at_any_step_never_lead_to_two_certificates(
        self, world: Any, lost: Any, method: str
    ) -> None:
        """The CA did it and we do not know: look before asking again."""
        world.ca.script[method].extend([lost(CaUnavailable("reset"))] * 2)
        order = await world.issue()
        assert order.status == "valid"
        assert len(world.ca.certificates) == 1

    async def test_rubbish_is_forgiven_a_few_times_only(self, world: Any) -> None:
        """A CA that always breaks the protocol means it."""
        world.ca.script["new_order"].extend([CaMisbehaved("rubbish")] * 5)
        order = await world.issue()
        assert (order.status, order.error.code) == ("invalid", "ca_error")
        assert len(world.ca.asked("new_order")) == 5

    async def test_an_outage_longer_than_our_patience_ends_the_order_with_its_cause(self, world: Any) -> None:
        """For ever is no answer; `ca_unavailable` with the last words is."""
        world.ca.script["new_order"].extend([CaUnavailable("down for works")] * 1000)
        order = await world.issue()
        assert (order.status, order.error.code) == ("invalid", "ca_unavailable")
        assert "down for works" in order.error.detail
        assert world.clock.now() <= order.give_up_at + timedelta(minutes=7)

    async def test_a_rate_limit_is_waited_out_to_the_second_and_shown_meanwhile(self, world: Any) -> None:
        """Asking earlier prolongs some limits; the caller reads the code and the time in the order."""
        shown: list[Any] = []

        async def look() -> None:
            (order,) = await ORDERS.all(world.sqlite, structlog.get_logger())
            shown.append(order.value)

        limited = BackendRateLimited("slow down", retry_after=900)
        world.ca.script["new_order"].extend([limited, look])
        began = world.clock.now()
        order = await world.issue()
        assert order.status == "valid"
        assert world.clock.now() - began >= timedelta(seconds=900)
        # What was claimed anew shows no next try any more, but still what happened.
        assert (shown[0].error.code, shown[0].error.retry_after) == ("backend_rate_limited", 900)

    async def test_a_bug_in_the_middle_is_internal_to_the_caller_and_does_not_end_the_order(self, world: Any) -> None:
        """An exception nobody foresaw is tried again, and its text is in the log only."""
        world.ca.script["authorization"].append(ZeroDivisionError("hunter2"))
        shown: list[Any] = []

        async def look() -> None:
            (order,) = await ORDERS.all(world.sqlite, structlog.get_logger())
            shown.append(order.value.error)

        world.ca.script["authorization"].append(look)
        order = await world.issue()
        assert order.status == "valid"
        assert shown[0].code == "internal"
        assert "hunter2" not in shown[0].detail
        assert world.said("job.attempt_failed")

    async def test_setbacks_do_not_take_away_what_is_in_place(self, world: Any) -> None:
        """The CA may look while we pause: a CA that validates late must still find the answer."""
        present: list[int] = []

        def look() -> Exception:
            present.append(len(world.solver.in_place))
            return CaUnavailable("down")

        world.ca.slow_reads = 3
        world.ca.script["order"].extend([look] * 6)
        order = await world.issue()
        assert order.status == "valid"
        assert present == [1] * 6
        assert len(world.solver.presented) == 1


class TestParking:
    async def test_a_long_retry_after_parks_the_order_and_frees_its_place(self, make_world: Any) -> None:
        """One order the CA wants to think about for an hour must not keep sixteen others waiting."""
        world = make_world(orders_per_ca=1, patience_seconds=10_000.0)
        account_id = await world.account()
        world.ca.slow_reads = 2
        world.ca.retry_after = 1800.0
        other: list[Any] = []

        slept = world.clock.sleep

        async def sleep(seconds: float) -> None:
            if seconds >= LOOK_AT_THE_CLOCK_SECONDS and not other:
                # The place is free while it is parked: another order goes all its way.
                world.ca.retry_after = None
                other.append(None)
                other[0] = await world.order("b.example.test", account_id=account_id)
                async with asyncio.timeout(10):
                    while (await world.shown(other[0])).status != "valid":  # noqa: ASYNC110 - as a caller does
                        await asyncio.sleep(0)
            await slept(seconds)

        world.clock.sleep = sleep
        began = world.clock.now()
        first = await world.order("a.example.test", account_id=account_id)
        order = await world.ended(first)
        assert order.status == "valid"
        assert other
        assert world.clock.now() - began >= timedelta(seconds=1800)
        assert world.said("order.parked")
        assert order.attempt == 0

    async def test_the_cas_retry_after_is_never_undercut(self, world: Any) -> None:
        """Ask again earlier than told, and large CAs answer with a block."""
        world.ca.slow_reads = 3
        world.ca.retry_after = 20.0
        began = world.clock.now()
        order = await world.issue()
        assert order.status == "valid"
        assert world.clock.now() - began >= timedelta(seconds=60)

    async def test_an_order_the_ca_never_decides_ends_with_a_timeout(self, world: Any) -> None:
        """No order is stuck for ever."""
        world.ca.slow_reads = 10**9
        order = await world.issue()
        assert (order.status, order.error.code) == ("invalid", "timeout")
        assert world.clock.now() >= order.give_up_at
        assert world.solver.in_place == {}

    async def test_polling_slows_down_but_not_for_ever(self, world: Any) -> None:
        """Fast at first for fast CAs; then about every ten seconds, as CAs wish."""
        world.ca.slow_reads = 30
        await world.issue()
        pauses = [pause for pause in world.clock.slept if pause > 0]
        assert pauses[0] < 0.1
        assert max(pauses) == pytest.approx(10)
        assert pauses == sorted(pauses)

    async def test_a_ca_that_says_retry_after_zero_is_not_hammered(self, world: Any) -> None:
        """Zero is no invitation to ask a thousand times a second."""
        world.ca.slow_reads = 40
        world.ca.retry_after = 0.0
        began = world.clock.now()
        order = await world.issue()
        assert order.status == "valid"
        assert world.clock.now() - began >= timedelta(seconds=10)


class TestProcessing:
    async def test_an_order_in_process_outlives_the_patience_for_orders(self, world: Any) -> None:
        """Some CAs take hours for the last step; throwing the order away would only start the hours anew."""
        world.ca.processing_reads = 60
        world.ca.retry_after = 300.0
        order = await world.issue()
        assert order.status == "valid"
        assert world.clock.now() > order.give_up_at
        assert len(world.ca.orders) == 1

    async def test_one_outage_does_not_end_an_order_that_is_in_process_for_long(self, world: Any) -> None:
        """The same patience must hold when the CA is away for a moment (RFC 8555 section 7.4: never replaced)."""
        world.ca.processing_reads = 60
        world.ca.retry_after = 300.0

        def down_once_it_is_late() -> Exception | None:
            late = world.clock.now() > deadline
            world.ca.script["order"].append(None if late else down_once_it_is_late)
            return CaUnavailable("a moment") if late else None

        deadline = world.clock.now() + timedelta(hours=2)
        world.ca.script["order"].append(down_once_it_is_late)
        order = await world.issue()
        assert order.status == "valid"

    async def test_processing_for_a_whole_day_is_too_long(self, world: Any) -> None:
        """There is an end to every wait."""
        world.ca.processing_reads = 10**9
        world.ca.retry_after = 3600.0
        order = await world.issue()
        assert (order.status, order.error.code) == ("invalid", "timeout")
        assert world.clock.now() - order.created_at >= timedelta(hours=24)


class TestDoubtfulFinalize:
    async def test_after_a_lost_answer_the_order_is_read_and_decides(self, world: Any, lost: Any) -> None:
        """A second finalize of a valid order is refused by every CA and would fail a good order."""
        world.ca.script["finalize"].append(lost(CaUnavailable("reset")))
        order = await world.issue()
        assert (order.status, order.attempt) == ("valid", 0)
        assert len(world.ca.asked("finalize")) == 1
        place = world.ca.calls.index(("finalize", world.ca.asked("finalize")[0]))
        assert world.ca.calls[place + 1][0] == "order"

    async def test_an_order_in_process_is_not_finalized_again(self, world: Any, lost: Any) -> None:
        """The same when the CA has not finished yet."""
        world.ca.processing_reads = 3
        world.ca.script["finalize"].append(lost(CaMisbehaved("rubbish")))
        order = await world.issue()
        assert order.status == "valid"
        assert len(world.ca.asked("finalize")) == 1

    async def test_what_never_arrived_is_sent_again_after_a_look(self, world: Any) -> None:
        """Still ready means the CSR was lost on the way there."""
        world.ca.script["finalize"].append(CaUnavailable("reset"))
        order = await world.issue()
        assert order.status == "valid"
        assert [name for name, _ in world.ca.calls if name in ("finalize", "order")][-3:] == [
            "finalize",
            "order",
            "finalize",
        ]

    @pytest.mark.parametrize("seconds", [20.0, 600.0])
    async def test_a_finalize_that_was_put_off_is_not_sent_again_before_its_time(
        self, world: Any, seconds: float
    ) -> None:
        """`ready`, as the order is read after the doubt, does not mean that the CA takes CSRs again."""
        world.ca.script["finalize"].append(CaUnavailable("busy", retry_after=seconds))
        began = world.clock.now()
        order = await world.issue()
        assert (order.status, order.attempt) == ("valid", 0)
        assert world.clock.now() - began >= timedelta(seconds=seconds)
        assert len(world.ca.asked("finalize")) == 2

    async def test_order_not_ready_is_a_doubt_and_not_a_failure(self, world: Any, ca_refuses: Any) -> None:
        """A CA of many machines may know less on one than it told us on another."""
        world.ca.script["finalize"].append(ca_refuses("orderNotReady", 403))
        assert (await world.issue()).status == "valid"

    async def test_doubts_run_out(self, world: Any) -> None:
        """Then it is a setback with a real pause, not a loop of half-second tries."""
        world.ca.script["finalize"].extend([CaUnavailable("reset")] * 4)
        order = await world.issue()
        assert order.status == "valid"
        assert world.said("order.set_back")
        assert len(world.ca.asked("finalize")) == 5

    async def test_after_a_set_back_and_a_lost_answer_the_order_is_looked_at_first(self, world: Any, lost: Any) -> None:
        """Also when the look after the doubt failed: the next attempt begins with it."""
        world.ca.script["finalize"].append(lost(CaUnavailable("reset")))
        world.ca.script["order"].extend([None, CaUnavailable("down")])
        order = await world.issue()
        assert order.status == "valid"
        assert len(world.ca.asked("finalize")) == 1

    async def test_a_refused_csr_ends_the_order(self, world: Any, ca_refuses: Any) -> None:
        """`badCSR` is an answer, not a doubt."""
        world.ca.script["finalize"].append(ca_refuses("badCSR", 400))
        order = await world.issue()
        assert order.status == "invalid"
        assert len(world.ca.asked("finalize")) == 1


class TestTheCertificate:
    async def test_a_wrong_chain_is_never_stored_and_the_failing_check_is_named(self, world: Any) -> None:
        """A certificate for another key would take the service down at its next reload."""
        first = await world.issue("other.example.test")
        foreign = next(iter(world.ca.certificates.values()))
        world.ca.script["certificate"].extend([foreign] * 10)
        order = await world.issue("a.example.test")
        assert first.status == "valid"
        assert order.status == "invalid"
        assert "check key" in order.error.detail
        assert len(await world.certificates()) == 1
        assert len(world.ca.asked("finalize")) == 2

    async def test_a_wrong_chain_once_is_fetched_again(self, world: Any) -> None:
        """A passing fault of a CA's cache needs nobody's attention."""
        world.ca.script["certificate"].append(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        order = await world.issue()
        assert order.status == "valid"
        assert len(world.ca.asked("finalize")) == 1

    async def test_a_url_that_lags_behind_is_tried_within_the_attempt(self, world: Any) -> None:
        """CDN-backed CAs show the certificate a moment later than the order."""
        world.ca.script["certificate"].extend([CertificatePending("not yet")] * 4)
        order = await world.issue()
        assert (order.status, order.attempt) == ("valid", 0)

    @pytest.mark.parametrize(("seconds", "attempts"), [(3.0, 0), (30.0, 1)])
    async def test_a_lagging_url_is_not_asked_before_the_cas_retry_after(
        self, world: Any, seconds: float, attempts: int
    ) -> None:
        """A short one is waited for within the attempt, a long one between two."""
        world.ca.script["certificate"].append(CertificatePending("not yet", seconds))
        began = world.clock.now()
        order = await world.issue()
        assert (order.status, order.attempt) == ("valid", attempts)
        assert world.clock.now() - began >= timedelta(seconds=seconds)
        assert len(world.ca.asked("certificate")) == 2

    async def test_a_pointer_moved_by_another_order_moves_on_to_ours(self, world: Any) -> None:
        """Two orders for the same names end in the same moment: both are good, the later is current."""
        account_id = await world.account()
        await world.ended(await world.order("a.example.test", account_id=account_id))
        (first,) = await world.certificates()
        moved: list[int] = []

        async def move_pointer(changes: Any) -> None:
            for change in changes:
                if change.key.startswith("name/") and len(moved) < 3:
                    moved.append(1)
                    pointer_id = change.key.removeprefix("name/")
                    held = await world.read(NAME_POINTERS, pointer_id)
                    await world.sqlite.commit([NAME_POINTERS.put_at(pointer_id, held.value, held.revision)])

        world.store.before_commit = move_pointer
        order = await world.ended(await world.order("a.example.test", account_id=account_id))
        assert (order.status, order.attempt) == ("valid", 0)
        assert len(moved) == 3
        assert len(await world.certificates()) == 2
        assert (await world.event_types()).count("certificate.issued") == 2
        pointer = await world.read(NAME_POINTERS, name_pointer_id(order.identifiers, order.key_type))
        assert pointer.value.certificate_id == order.certificate_id != first.id


class TestOrphans:
    async def test_an_order_whose_answer_was_lost_is_found_and_taken_over(self, world: Any, lost: Any) -> None:
        """Orders count against limits, and fifty pending ones block an account at some CAs."""
        world.ca.script["new_order"].append(lost(CaUnavailable("reset")))
        order = await world.issue("a.example.test", "b.example.test")
        assert (order.status, order.url) == ("valid", "https://ca.test/order/1")
        assert len(world.ca.orders) == 1
        assert world.said("order.adopted")

    async def test_where_the_ca_lists_no_orders_a_new_one_is_made(self, world: Any, lost: Any, ca_refuses: Any) -> None:
        """The list is optional and absent at the largest CA: one order too many is better than none."""
        world.ca.script["new_order"].append(lost(CaUnavailable("reset")))
        world.ca.script["order_urls"].append(ca_refuses("malformed", 404))
        order = await world.issue()
        assert (order.status, order.url) == ("valid", "https://ca.test/order/2")

    async def test_the_list_is_not_asked_for_unless_an_answer_was_lost(self, world: Any) -> None:
        """Fair weather costs no request more."""
        await world.issue()
        assert world.ca.asked("order_urls") == []

    async def test_a_clear_no_leaves_nothing_to_look_for(self, world: Any) -> None:
        """A rate limit is an answer: there is no order behind it."""
        world.ca.script["new_order"].append(BackendRateLimited("slow down", retry_after=60))
        assert (await world.issue()).status == "valid"
        assert world.ca.asked("order_urls") == []

    @pytest.mark.parametrize("status", ["valid", "invalid", "processing", "deactivated"])
    async def test_an_orphan_that_has_gone_too_far_is_not_taken(self, world: Any, status: str) -> None:
        """Its certificate is for another key, or there will be none."""
        account_id = await world.account()
        world.ca.make_order(parse_identifiers(["a.example.test"], public_ca=False))
        world.ca.orders["https://ca.test/order/1"]["status"] = status
        world.ca.script["new_order"].append(CaUnavailable("reset"))
        order = await world.ended(await world.order("a.example.test", account_id=account_id))
        assert (order.status, order.url) == ("valid", "https://ca.test/order/2")

    async def test_an_order_for_other_names_is_not_taken(self, world: Any) -> None:
        """More names, fewer names: a certificate for them would be refused in the end."""
        account_id = await world.account()
        for names in (["a.example.test", "b.example.test"], ["b.example.test"]):
            world.ca.make_order(parse_identifiers(names, public_ca=False))
        world.ca.script["new_order"].append(CaUnavailable("reset"))
        order = await world.ended(await world.order("a.example.test", account_id=account_id))
        assert (order.status, order.url) == ("valid", "https://ca.test/order/3")

    async def test_an_order_that_another_request_has_is_not_taken_from_it(self, world: Any) -> None:
        """Two requests would share one order, and one of them would fail for its key."""
        account_id = await world.account()
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            reached.set()
            await go_on.wait()

        world.ca.script["respond"].append(wait)
        first = await world.order("a.example.test", account_id=account_id)
        async with asyncio.timeout(10):
            await reached.wait()
        world.ca.script["new_order"].append(CaUnavailable("reset"))
        second = await world.order("a.example.test", account_id=account_id, auto_renew=False)
        async with asyncio.timeout(10):
            while (await world.shown(second)).status != "valid":  # noqa: ASYNC110 - as a caller does
                await asyncio.sleep(0)
        go_on.set()
        assert (await world.ended(first)).status == "valid"
        assert len(world.ca.orders) == 2

    async def test_an_order_that_another_request_is_just_getting_is_not_taken_from_it(
        self, world: Any, lost: Any
    ) -> None:
        """Between the CA's answer and our commit it looks like an orphan, and two requests would share one order."""
        account_id = await world.account()
        made, go_on = asyncio.Event(), asyncio.Event()
        world.ca.script["new_order"].extend([CaUnavailable("down"), None])

        async def wait_before_the_second_url(changes: Any) -> None:
            for change in changes:
                if change.key == ORDERS.key(second) and change.index.get("url") and not made.is_set():
                    made.set()
                    await go_on.wait()

        first = await world.order("a.example.test", account_id=account_id)
        second = await world.order("a.example.test", account_id=account_id, auto_renew=False)
        world.store.before_commit = wait_before_the_second_url
        async with asyncio.timeout(10):
            await made.wait()
        for _ in range(500):
            await asyncio.sleep(0)
        # The first order looks for what its lost newOrder left behind only when the second has its URL.
        assert world.ca.asked("order_urls") == []
        go_on.set()
        orders = [await world.ended(first), await world.ended(second)]
        assert [each.status for each in orders] == ["valid", "valid"]
        assert orders[0].url != orders[1].url
        assert len(world.ca.asked("order_urls")) == 1


class TestSuperseded:
    @pytest.mark.parametrize("method", ["new_order", "authorization", "respond", "finalize", "certificate"])
    async def test_an_order_that_somebody_else_took_up_is_left_to_them(self, world: Any, method: str) -> None:
        """Two owners would answer, finalize and store twice."""

        async def take_it_away() -> None:
            (order,) = await ORDERS.all(world.sqlite, structlog.get_logger())
            await world.change(order.value.id, owner=NodeId("node_other"), epoch=order.value.epoch + 1)

        world.ca.slow_reads = 1
        world.ca.script[method].append(take_it_away)
        order = await world.ended(await world.order())
        assert order.owner == "node_other"
        assert order.status in ("pending", "ready", "processing")
        assert await world.certificates() == []
        assert world.said("order.superseded")
        assert not world.said("job.failed")
        assert world.solver.in_place == {}

    async def test_a_setback_of_the_former_owner_is_not_written_into_it(self, world: Any) -> None:
        """Who lost the order has no say in it: their error would set the new owner back, or end the order."""

        async def take_it_away() -> Exception:
            (order,) = await ORDERS.all(world.sqlite, structlog.get_logger())
            await world.change(order.value.id, owner=NodeId("node_other"), epoch=order.value.epoch + 1)
            return CaMisbehaved("rubbish")

        world.ca.script["new_order"].append(take_it_away)
        order = await world.ended(await world.order())
        assert order.owner == "node_other"
        assert order.error is None
        assert len(world.ca.asked("new_order")) == 1


class TestGone:
    @pytest.mark.parametrize("status", [404, 410])
    async def test_an_order_the_ca_has_forgotten_is_made_anew(self, world: Any, ca_refuses: Any, status: int) -> None:
        """A CA restored from a backup, or one that tidies up, must not cost the caller its certificate."""
        world.ca.script["finalize"].extend([CaUnavailable("down")] * 4)
        world.ca.script["order"].extend([None] + [None] * 3 + [ca_refuses("malformed", status)])
        order = await world.issue()
        assert order.status == "valid"
        assert len(world.ca.orders) == 2
        assert len(await world.certificates()) == 1
        assert {each.url for each in order.challenges} == {"https://ca.test/challenge/2-0"}
        assert world.solver.in_place == {}

    async def test_an_order_that_is_refused_otherwise_is_not_thrown_away(self, world: Any, ca_refuses: Any) -> None:
        """Only `not there` means not there."""
        world.ca.script["finalize"].extend([CaUnavailable("down")] * 4)
        world.ca.script["order"].extend([None] + [None] * 3 + [ca_refuses("serverInternal", 400)])
        order = await world.issue()
        assert order.status == "invalid"
        assert len(world.ca.orders) == 1


class TestRestart:
    async def stopped_at(self, world: Any, method: str) -> Any:
        """An order whose daemon died while the CA was being asked `method`."""
        reached = asyncio.Event()

        async def hang() -> None:
            reached.set()
            await asyncio.Event().wait()

        world.ca.script[method].append(hang)
        order_id = await world.order("a.example.test", "b.example.test")
        async with asyncio.timeout(10):
            await reached.wait()
        world.jobs._closing = True
        await world.die()
        return order_id

    @pytest.mark.parametrize("method", ["authorization", "respond", "order", "finalize", "certificate"])
    async def test_an_order_goes_on_from_what_the_ca_shows(self, world: Any, method: str) -> None:
        """No order is made twice and none is stuck, wherever the last life ended."""
        order_id = await self.stopped_at(world, method)
        await world.issuing.resume()
        order = await world.ended(order_id)
        assert order.status == "valid"
        assert len(world.ca.orders) == 1
        assert len(world.ca.certificates) == 1
        assert order.epoch == 2
        assert world.solver.in_place == {}

    async def test_what_was_in_place_is_there_again_before_the_ca_is_asked_anything(self, world: Any) -> None:
        """The CA may be looking right now, and it looks once."""
        order_id = await self.stopped_at(world, "finalize")
        presented: list[int] = []
        world.ca.script["order"].append(lambda: presented.append(len(world.solver.in_place)))
        await world.issuing.resume()
        assert len(world.solver.in_place) == 2
        await world.ended(order_id)
        assert presented == [2]

    async def test_a_validation_that_failed_while_we_were_away_is_forgiven_exactly_once(self, world: Any) -> None:
        """It says nothing about the names: the daemon was down. A second failure does."""
        order_id = await self.stopped_at(world, "order")
        for authorization in world.ca.authorizations.values():
            world.ca.validate(authorization)  # nothing is in place: the CA saw nobody there
        world.ca.refuses["a.example.test"] = "still wrong"
        await world.issuing.resume()
        order = await world.ended(order_id)
        assert len(world.ca.orders) == 2
        assert order.status == "invalid"
        assert [each.detail for each in order.error.identifiers] == ["still wrong"]
        assert (await world.event_types()).count("order.failed") == 1
        assert world.solver.in_place == {}

    async def test_forgiveness_does_not_return_with_a_further_setback(self, world: Any, lost: Any) -> None:
        """After the restart was forgiven we were there all the time: what fails now has failed."""
        order_id = await self.stopped_at(world, "order")
        for authorization in world.ca.authorizations.values():
            world.ca.validate(authorization)
        world.ca.refuses["a.example.test"] = "still wrong"
        # The answers of the second order are lost: the next attempt knows of none.
        world.ca.script["respond"].extend([lost(CaUnavailable("reset"))] * 2)
        await world.issuing.resume()
        order = await world.ended(order_id)
        assert (order.status, len(world.ca.orders)) == ("invalid", 2)

    async def test_and_when_the_second_look_succeeds_the_order_is_valid(self, world: Any) -> None:
        """The usual end of a restart in a bad moment."""
        order_id = await self.stopped_at(world, "order")
        for authorization in world.ca.authorizations.values():
            world.ca.validate(authorization)
        await world.issuing.resume()
        order = await world.ended(order_id)
        assert order.status == "valid"
        assert len(world.ca.orders) == 2

    async def test_an_order_that_never_was_away_is_not_begun_again(self, world: Any) -> None:
        """Trying twice by default would halve every rate limit for failed validations."""
        world.ca.refuses["a.example.test"] = "wrong"
        order = await world.issue("a.example.test")
        assert order.status == "invalid"
        assert len(world.ca.orders) == 1

    async def test_a_pause_is_kept_across_the_restart(self, world: Any) -> None:
        """A daemon that restarts in a loop must not knock at a CA that asked for an hour's peace."""
        limited = BackendRateLimited("slow down", retry_after=1800)
        reached = asyncio.Event()
        slept = world.clock.sleep

        async def hang(seconds: float) -> None:
            if seconds >= LOOK_AT_THE_CLOCK_SECONDS:
                reached.set()
                await asyncio.Event().wait()
            await slept(seconds)

        world.ca.script["new_order"].append(limited)
        world.clock.sleep = hang
        order_id = await world.order()
        async with asyncio.timeout(10):
            await reached.wait()
        world.clock.sleep = slept
        await world.die()
        began = world.clock.now()
        await world.issuing.resume()
        assert (await world.ended(order_id)).status == "valid"
        assert world.clock.now() - began >= timedelta(seconds=1790)

    async def test_finished_orders_are_left_in_peace(self, world: Any) -> None:
        """Resuming them would ask CAs about the past at every start."""
        await world.issue()
        await world.die()
        calls = len(world.ca.calls)
        await world.issuing.resume()
        await world.idle()
        assert len(world.ca.calls) == calls

    async def test_an_order_whose_solver_is_gone_is_named_and_hurts_nobody(self, world: Any) -> None:
        """A plugin was uninstalled: its orders wait, the others go on."""
        order_id = await self.stopped_at(world, "order")
        stuck = msgspec.structs.replace(await world.shown(order_id), id="acme_order_stuck", challenge_type="dns-01")
        await world.sqlite.commit([ORDERS.put(stuck)])
        await world.issuing.resume()
        assert (await world.ended(order_id)).status == "valid"
        assert (await world.shown("acme_order_stuck")).status == "pending"
        assert [each["order_id"] for each in world.said("order.no_solver")] == ["acme_order_stuck"]


class TestStop:
    async def test_an_order_being_made_is_written_down_before_the_daemon_goes(self, world: Any) -> None:
        """A URL that is lost means an order at the CA that nobody will ever find again."""
        gate, reached = asyncio.Event(), asyncio.Event()

        async def slowly() -> None:
            reached.set()
            await gate.wait()

        world.ca.script["new_order"].append(slowly)
        order_id = await world.order()
        async with asyncio.timeout(10):
            await reached.wait()
        closing = asyncio.create_task(world.jobs.close(5))
        await asyncio.sleep(0)
        gate.set()
        await closing
        order = await world.shown(order_id)
        assert order.url == "https://ca.test/order/1"
        assert order.status == "pending"
        await world.die()
        await world.issuing.resume()
        assert (await world.ended(order_id)).status == "valid"
        assert len(world.ca.orders) == 1

    async def test_the_stop_leaves_the_order_unfinished_and_what_it_has_in_place(self, world: Any) -> None:
        """The CA may look before the next process is up; its journal knows what to take away in the end."""
        reached = asyncio.Event()

        async def hang() -> None:
            reached.set()
            await asyncio.Event().wait()

        world.ca.script["order"].append(hang)
        world.ca.slow_reads = 1
        order_id = await world.order()
        async with asyncio.timeout(10):
            await reached.wait()
        assert len(world.solver.in_place) == 1
        await world.jobs.close(5)
        assert len(world.solver.in_place) == 1
        shown = await world.shown(order_id)
        assert shown.status == "pending"
        assert {each.token for each in shown.challenges} == set(world.solver.in_place)
        assert await world.event_types() == ["account.created"]


class TestStorage:
    @pytest.mark.parametrize("nth", range(1, 8))
    async def test_an_outage_of_the_store_at_any_commit_only_costs_time(self, world: Any, nth: int) -> None:
        """Disks fill up and are emptied again; no order may be lost or doubled by it."""
        account_id = await world.account()
        commits = 0

        async def full_for_a_while(_: Any) -> None:
            nonlocal commits
            commits += 1
            # The first commit accepts the order: that one the caller hears about.
            if commits > 1 and nth <= commits - 1 < nth + 3:
                raise StorageUnavailable("full")

        world.store.before_commit = full_for_a_while
        order = await world.ended(await world.order(account_id=account_id))
        assert order.status == "valid"
        assert len(await world.certificates()) == 1
        assert (await world.event_types()).count("certificate.issued") == 1
        assert not world.said("job.failed")
        assert world.solver.in_place == {}

    async def test_a_store_that_is_wholly_away_is_waited_for(self, world: Any) -> None:
        """Reads fail too when the disk hangs."""
        account_id = await world.account()
        slept = world.clock.sleep
        down_until = world.clock.now() + timedelta(minutes=10)

        async def sleep(seconds: float) -> None:
            await slept(seconds)
            world.store.is_down = world.clock.now() < down_until

        world.clock.sleep = sleep

        def break_it() -> Exception:
            world.store.is_down = True
            return CaUnavailable("down")

        world.ca.script["authorization"].append(break_it)
        order = await world.ended(await world.order(account_id=account_id))
        assert order.status == "valid"
        assert world.said("order.store_unavailable")
        assert not world.said("job.failed")


class TestSize:
    async def test_a_failure_of_many_names_with_many_words_is_kept_with_its_cause(self, world: Any) -> None:
        """A CA may be verbose about each of a hundred names; the order must still end, and say why."""
        names = [f"h{number}.example.test" for number in range(100)]
        world.ca.refuses.update(dict.fromkeys(names, "word " * 200))
        order = await world.issue(*names)
        assert (order.status, order.error.code) == ("invalid", "challenge_failed")
        assert len(order.error.identifiers) == 100
        ((_, body),) = [each for each in await world.events() if each[0] == "order.failed"]
        assert len(body["error"]["identifiers"]) == 100


class TestSolvers:
    async def test_what_failed_to_be_put_in_place_is_put_there_at_the_next_attempt(self, world: Any) -> None:
        """Otherwise the CA is told to look where there is nothing, and a passing fault becomes a failed order."""
        world.solver.present_script.append(OSError("the provider is away"))
        order = await world.issue()
        assert order.status == "valid"
        assert len(world.solver.presented) == 1

    async def test_one_clean_up_that_fails_does_not_keep_the_others_from_going(self, world: Any) -> None:
        """Each proof left behind is one too many."""
        world.solver.clean_up_script.append(OSError("the provider is away"))
        order = await world.issue("a.example.test", "b.example.test", "c.example.test")
        assert order.status == "valid"
        assert len(world.solver.cleaned) == 2
        assert not world.said("job.failed")

    async def test_a_solver_that_breaks_at_the_start_does_not_keep_the_daemon_down(self, world: Any) -> None:
        """One broken plugin never takes the daemon down: the order is set back like any other."""
        order_id = await TestRestart().stopped_at(world, "order")
        world.solver.present_script.append(OSError("the provider is away"))
        await world.issuing.resume()
        assert (await world.ended(order_id)).status == "valid"
