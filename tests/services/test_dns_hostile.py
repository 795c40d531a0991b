"""What a stranger's provider, a full disk or an absurd request must not be able to do to dns-01."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.dns import PropagationOverride
from scaivaultd.model.errors import ChallengeFailed, DnsProviderError, InvalidRequest, StorageUnavailable
from scaivaultd.plugin import ChallengeResponse, ProviderError, RateLimited, SolverKind, TransientError, Zone
from scaivaultd.services import dns_providers, jobs, provider_pool, txt_records
from scaivaultd.services.dns_providers import RESOLVERS_MAX
from scaivaultd.services.presence import Presence
from scaivaultd.services.provider_pool import FAILURES_MAX, HANDLE_MAX, TEXT_MAX
from scaivaultd.services.solvers import Claims, OpenSolver

CONTEXT = RequestContext(request_id="req_hostile")
NAME = "_acme-challenge.example.test"
PASTED = "c2VjcmV0LXRoYXQtd2FzLXBhc3RlZA=="


async def hang() -> None:
    await asyncio.Event().wait()


async def all_gone(world: Any) -> None:
    """Wait until the journal is empty."""
    async with asyncio.timeout(10):
        while await world.journal():
            pass


@pytest.fixture
async def world(dns_world: Any) -> Any:
    await dns_world.provider(token_path=None)
    return dns_world


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ABANDON_SECONDS", 0.02)
    monkeypatch.setattr(provider_pool, "OPEN_SECONDS", 0.02)
    monkeypatch.setattr(provider_pool, "CLOSE_SECONDS", 0.02)
    monkeypatch.setattr(dns_providers, "CHOICE_SECONDS", 0.02)


class WithoutInit(ProviderError):
    def __init__(self) -> None:
        """Forgets its base class."""


class TestStrangers:
    @pytest.mark.parametrize("method", ["open", "find_zone"])
    @pytest.mark.parametrize("raised", [SystemExit(PASTED), BaseException(PASTED), asyncio.CancelledError(PASTED)])
    async def test_what_no_except_exception_sees_is_a_failure_like_any_other(
        self, world: Any, method: str, raised: BaseException
    ) -> None:
        """In a task, SystemExit stops the whole daemon, and a cancellation nobody asked for leaves an order stuck."""
        world.service.always[method] = raised
        with pytest.raises(DnsProviderError, match="broke") as failed:
            await (await world.opened()).find_zone(NAME)
        assert not failed.value.is_final
        assert PASTED not in repr((world.logged, failed.value))

    async def test_a_plugin_that_yields_nothing_is_not_waited_for(self, world: Any) -> None:
        """Its calls would say for ever that the settings have just changed."""
        kind = world.pool.kinds["memory"]
        world.pool.kinds["memory"] = msgspec.structs.replace(kind, open=lambda *_: Nothing())
        with pytest.raises(DnsProviderError, match="opening it broke"):
            await world.opened()

    async def test_its_own_time_limit_is_not_ours(self, world: Any) -> None:
        """`did not end within 180 s` after five seconds would send somebody looking in the wrong place."""
        world.service.script["find_zone"].append(TimeoutError())
        with pytest.raises(DnsProviderError, match=r"find_zone broke \(TimeoutError\)"):
            await (await world.opened()).find_zone(NAME)

    @pytest.mark.parametrize("zone", [Zone(name=5), Zone(name="example.test", id=7), Zone(name=None)])  # type: ignore[arg-type]
    async def test_a_zone_with_wrong_members_is_refused(self, world: Any, instead: Any, zone: Zone) -> None:
        """Constructors do not check types; the journal would be the first to notice."""
        world.service.script["find_zone"].append(instead(zone))
        with pytest.raises(DnsProviderError, match="something else than a Zone"):
            await (await world.opened()).find_zone(NAME)

    @pytest.mark.parametrize("zone", ["other.test", "ample.test", f"x.{NAME}"])
    async def test_a_zone_that_does_not_hold_the_name_is_refused(self, world: Any, instead: Any, zone: str) -> None:
        """The value would be written where nobody looks, or removed from somebody else's zone."""
        world.service.script["find_zone"].append(instead(Zone(name=zone)))
        with pytest.raises(DnsProviderError, match="does not hold") as failed:
            await (await world.opened()).find_zone(NAME)
        assert failed.value.is_final

    async def test_a_zone_is_written_as_names_are(self, world: Any, instead: Any) -> None:
        """Many services answer with a dot at the end, and plugins pass it on."""
        world.service.script["find_zone"].append(instead(Zone(name="Example.TEST.", id="Z1")))
        assert await (await world.opened()).find_zone(NAME) == Zone(name="example.test", id="Z1")

    async def test_long_words_are_cut(self, world: Any) -> None:
        """They go into events, and a message holds a megabyte."""
        world.service.script["find_zone"].append(TransientError("x" * 3_000_000))
        with pytest.raises(DnsProviderError) as failed:
            await (await world.opened()).find_zone(NAME)
        assert len(failed.value.detail) < TEXT_MAX + 100

    @pytest.mark.parametrize("wanted", ["120", float("inf"), float("nan"), -1, 1e300])
    async def test_a_pause_nobody_can_keep_does_no_harm(self, world: Any, wanted: Any) -> None:
        """An order that adds it to the time of day would break."""
        for error in (TransientError("later", wanted), RateLimited("later", wanted)):
            world.service.script["find_zone"].append(error)
            with pytest.raises(DnsProviderError, match="later") as failed:
                await (await world.opened()).find_zone(NAME)
            assert failed.value.retry_after is None or 0 < failed.value.retry_after <= 86400

    async def test_an_error_class_of_its_own_making_is_translated(self, world: Any) -> None:
        """One without the members of its base."""
        world.service.script["find_zone"].append(WithoutInit())
        with pytest.raises(DnsProviderError, match="WithoutInit"):
            await (await world.opened()).find_zone(NAME)

    async def test_a_handle_is_no_place_for_a_database(self, world: Any, acts: Any) -> None:
        """It is written to the journal with every value."""
        world.service.script["add_txt"].append(acts({"x": "y" * HANDLE_MAX}))
        opened = await world.opened()
        with pytest.raises(DnsProviderError, match="handle of more than"):
            await opened.add_txt(await opened.find_zone(NAME), NAME, ["v"])


class Nothing:
    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        return None


class TestWaiting:
    async def test_waiting_for_a_signal_keeps_no_write_back(self, dns_world: Any) -> None:
        """Some services take minutes to say that a change is everywhere; twenty orders must not queue up for that."""
        await dns_world.provider(kind="signalling", token_path=None)
        opened = await dns_world.opened()
        dns_world.service.always["wait_live"] = hang
        waiting = [asyncio.create_task(opened.wait_live({"change": n}, 60)) for n in range(20)]
        await dns_world.until(lambda: len(dns_world.service.asked("wait_live")) == 20)
        zone = await opened.find_zone(NAME)
        async with asyncio.timeout(5):
            await opened.add_txt(zone, NAME, ["v"])
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    @pytest.mark.usefixtures("hasty")
    async def test_a_signal_that_does_not_come_is_no_failure_of_the_provider(self, dns_world: Any) -> None:
        """Nobody else's order has to rest for it."""
        await dns_world.provider(kind="signalling", token_path=None)
        opened = await dns_world.opened()
        dns_world.service.always["wait_live"] = hang
        for _ in range(FAILURES_MAX + 1):
            assert not await opened.wait_live({"change": 1}, 0.01)
        assert (await opened.find_zone(NAME)).name == "example.test"

    @pytest.mark.usefixtures("hasty")
    async def test_who_waits_behind_a_provider_that_hangs_in_opening_is_told_at_once(self, world: Any) -> None:
        """Each would hang as long, one after the other."""
        world.service.always["open"] = hang
        with pytest.raises(DnsProviderError, match="did not open within"):
            await world.opened()
        with pytest.raises(DnsProviderError, match="left alone for") as told:
            await world.opened()
        assert (told.value.is_final, world.service.asked("open")) == (False, ["memory"] * 2)
        world.clock.advance(provider_pool.REST_SECONDS + 1)
        world.service.always.clear()
        await world.opened()

    @pytest.mark.usefixtures("hasty")
    async def test_one_that_hangs_does_not_keep_others_from_being_chosen(self, dns_world: Any) -> None:
        """Orders that name no provider ask all of them."""
        await dns_world.provider("hung", kind="memory", token_path=None)
        await dns_world.provider("main", kind="memory", zones=["example.test"], token_path=None)
        dns_world.service.always["find_zone"] = hang
        async with asyncio.timeout(5):
            assert (await dns_world.providers.choose(NAME)).name == "main"


class BrokenClaims:
    """A solver of somebody else's that breaks before it presents anything."""

    def __init__(self, raised: BaseException) -> None:
        self._raised = raised

    async def claims(self, response: ChallengeResponse) -> dict[str, int]:
        raise self._raised

    async def present(self, response: ChallengeResponse) -> None:
        raise AssertionError

    async def clean_up(self, response: ChallengeResponse) -> None:
        raise AssertionError


@pytest.mark.parametrize("raised", [ValueError("no"), asyncio.CancelledError(), SystemExit(1)])
async def test_a_solver_that_breaks_over_its_claims_fails_the_challenge(log: Any, raised: BaseException) -> None:
    """It used to be an unexpected error, or an order without a job."""
    kind = SolverKind(name="odd", challenge_type="http-01", open=lambda _: None)  # type: ignore[arg-type, return-value]
    presence = Presence(OpenSolver(kind=kind, solver=BrokenClaims(raised)), Claims(), log)
    response = ChallengeResponse(identifier="a.test", type="http-01", token="t", key_authorization="t.k")
    presenting = asyncio.create_task(presence.present({"u": response}))
    await asyncio.wait({presenting})
    assert not presenting.cancelled()
    assert isinstance(presenting.exception(), ChallengeFailed)


class TestFullDisk:
    async def test_a_value_whose_order_ended_on_a_full_disk_goes_as_soon_as_it_can(
        self, world: Any, respond_with: Any
    ) -> None:
        """Nobody comes again for it before the next start."""
        await world.records.put(respond_with(), "v1")
        world.store.is_down = True
        with pytest.raises(StorageUnavailable):
            await world.records.remove(respond_with(), "v1")
        assert world.service.values() == {NAME: {"v1"}}
        world.store.is_down = False
        await all_gone(world)
        assert world.service.values() == {}
        assert world.records.reports("order_1") == ()

    async def test_values_freed_before_the_disk_was_full_are_taken_away(self, world: Any, respond_with: Any) -> None:
        """The name led elsewhere the first time: two values of one challenge, and the second commit fails."""
        opened = await world.opened()
        place = await world.records.place(NAME, "main", None)
        for value in ("v1", "v2"):
            await world.records.write(place, value, "order_1:t")
        commits = 0

        async def fail_second(_: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == 2:
                raise StorageUnavailable("the disk is full")

        world.store.before_commit = fail_second
        with pytest.raises(StorageUnavailable):
            await world.records.release("order_1:t")
        world.store.before_commit = None
        await all_gone(world)
        assert world.service.values() == {}
        assert opened is await world.opened()

    async def test_a_start_on_a_full_disk_sweeps_later(self, world: Any, respond_with: Any) -> None:
        """The daemon has to come up: it is what tells that the disk is full."""
        await world.records.put(respond_with(), "v1")
        await world.die()
        world.store.is_down = True
        await world.records.sweep()
        world.store.is_down = False
        await all_gone(world)
        assert world.service.values() == {}


class TestMemory:
    async def test_nothing_is_kept_of_orders_that_have_ended(self, world: Any) -> None:
        """For years, and thousands of names."""
        account_id = await world.account()
        ids = [await world.dns_order(f"h{n}.example.test", account_id=account_id) for n in range(40)]
        assert {(await world.ended(each)).status for each in ids} == {"valid"}
        records, opened = world.records, await world.opened()
        left = [records._wanted, records._reports, records._places, records._batches, records._writing]
        assert [len(each) for each in (*left, records._removing, opened._locks)] == [0] * 7
        assert world.tools.solvers.claims._shares == {}

    async def test_places_nobody_came_for_are_forgotten(
        self, world: Any, respond_with: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Orders may end while they queue up for a name."""
        monkeypatch.setattr(txt_records, "PLACES_MAX", 3)
        for number in range(10):
            await world.records.claims(respond_with(order_id=f"order_{number}"))
            world.clock.advance(txt_records.PLACE_SECONDS)
        assert len(world.records._places) <= 3


class TestWishes:
    @pytest.mark.parametrize(
        ("wishes", "pointer"),
        [
            ({"visibility": "resolvers", "resolvers": []}, "/propagation/resolvers"),
            ({"resolvers": ["192.0.2.1"] * (RESOLVERS_MAX + 1)}, "/propagation/resolvers"),
            ({"resolvers": ["fe80::1%\0"]}, "/propagation/resolvers/0"),
        ],
    )
    async def test_resolvers_nobody_can_ask_are_refused(self, world: Any, wishes: Any, pointer: str) -> None:
        """At once, rather than by a time-out after five minutes."""
        with pytest.raises(InvalidRequest) as refused:
            await world.dns_order(propagation=m.PropagationRequest(**wishes))
        assert [each.pointer for each in refused.value.fields] == [pointer]

    async def test_a_policy_without_resolvers_is_named_before_anything_is_written(
        self, world: Any, respond_with: Any
    ) -> None:
        """Whether the provider has some is known only when it is chosen."""
        with pytest.raises(DnsProviderError, match="names no resolvers") as failed:
            await world.records.place(NAME, None, PropagationOverride(visibility="resolvers"))
        assert failed.value.is_final
        assert world.service.asked("add_txt") == []

    @pytest.mark.parametrize(
        "config",
        [
            {"propagation": "resolvers"},
            {"propagation_resolvers": ("dns.google",)},
            {"propagation_resolvers": ("192.0.2.1",) * (RESOLVERS_MAX + 1)},
        ],
    )
    async def test_a_provider_is_not_configured_with_resolvers_that_are_none(self, dns_world: Any, config: Any) -> None:
        """The first order would be the one to find out."""
        with pytest.raises(InvalidRequest, match=r"resolver|nameserver") as refused:
            await dns_world.provider(token_path=None, **config)
        assert refused.value.fields[0].pointer.startswith("/config/propagation_resolvers")

    async def test_a_secret_in_the_wrong_member_is_not_repeated(self, dns_world: Any) -> None:
        """Refusals are logged."""
        with pytest.raises(InvalidRequest) as refused:
            await dns_world.provider(token_path=None, propagation=PASTED)
        assert PASTED not in repr((refused.value, refused.value.fields))
        assert refused.value.fields[0].pointer == "/config/propagation"


async def test_nothing_is_written_to_a_provider_that_is_being_deleted(world: Any, respond_with: Any) -> None:
    """The deletion has looked into the journal already; the value would stay for ever."""
    deleting: list[asyncio.Task[Any]] = []

    async def delete_first(changes: Any) -> None:
        # The order's entry is about to be committed; the deletion looks before it is there.
        if deleting or not any(each.key.startswith("txt_record/") for each in changes):
            return
        world.store.before_commit = wait_for_journal
        deleting.append(asyncio.create_task(world.providers.delete(m.DnsProviderById(id="main"), CONTEXT)))
        await world.until(lambda: committing)

    committing: list[Any] = []
    go_on = asyncio.Event()

    async def wait_for_journal(changes: Any) -> None:
        if not any(each.key.startswith("txt_record/") for each in changes):
            committing.append(changes)
            await go_on.wait()

    world.store.before_commit = delete_first
    with pytest.raises(DnsProviderError, match="is being deleted"):
        await world.records.put(respond_with(), "v1")
    go_on.set()
    await deleting[0]
    assert world.service.asked("add_txt") == []
    await world.records.release("order_1:t")
    await world.idle()
    assert await world.journal() == []


async def test_a_secret_that_is_rotated_while_it_is_read_is_not_kept(world: Any) -> None:
    """The old one would be used for a minute after the reply said that the new one is there."""
    await world.put_secret("dns/token", "old")

    async def rotate(key: str) -> None:
        world.store.after_get = None
        await world.put_secret("dns/token", "new")

    world.store.after_get = rotate
    assert (await world.secret_store.read("dns/token")).reveal() == "old"
    assert (await world.secret_store.read("dns/token")).reveal() == "new"


async def test_orders_with_values_in_dns_have_their_shares_again_before_any_other(world: Any) -> None:
    """After a kill they may be slow to come back, and those that waited behind them must not be quicker."""
    account_id = await world.account()
    seen = asyncio.Event()
    world.name_servers.before_look = seen.wait
    for _ in range(6):
        await world.dns_order("example.test", "*.example.test", account_id=account_id)
    await world.until(lambda: len(world.service.sets.get(NAME, ())) == txt_records.VALUES_AT_ONCE)
    await world.die()
    await world.issuing.resume()
    shares = world.tools.solvers.claims._shares
    await world.until(lambda: any(len(each._waiting) == 3 for each in shares.values()))
    assert len(world.service.sets[NAME]) == txt_records.VALUES_AT_ONCE
    seen.set()
    await world.idle()
    assert len(await world.certificates()) == 6
