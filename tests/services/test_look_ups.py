"""Look-ups that are shared, remembered, and left out where nobody answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.model.dns import CaaSet
from scaivaultd.model.errors import DnsError
from scaivaultd.services.look_ups import REMEMBERED_MAX, REMEMBERED_SECONDS, Flights, LookUps, Remembered
from tests.fakes.scripted_ca import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.model.dns import Route

NOTHING = CaaSet(owner=None, records=())
UNREACHABLE = DnsError("127.0.0.1: connection refused", "unreachable")


class Dns:
    """Counts what it is asked; `errors[name]` is what it says instead, `gates[name]` what it waits for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.errors: dict[str, DnsError] = {}
        self.is_dead = False
        self.gates: dict[str, asyncio.Event] = {}
        self.is_asked = asyncio.Event()

    async def caa(self, name: str) -> CaaSet:
        await self._answer(name)
        return NOTHING

    async def route(self, name: str, *, follow_cname: bool = True) -> Route:
        await self._answer(f"route {name} {follow_cname}")
        raise DnsError(f"{name} is in no zone", "no_zone")

    async def _answer(self, name: str) -> None:
        self.asked.append(name)
        self.is_asked.set()
        await asyncio.sleep(0)
        if name in self.gates:
            await self.gates[name].wait()
        if self.is_dead:
            raise UNREACHABLE
        if name in self.errors:
            raise self.errors[name]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


@pytest.fixture
def dns() -> Dns:
    return Dns()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def look_ups(dns: Dns, clock: FakeClock, log: FilteringBoundLogger) -> LookUps:
    return LookUps(dns, probe_seconds=5, clock=clock, log=log)


async def test_a_name_is_asked_about_once_a_minute(look_ups: LookUps, dns: Dns, clock: FakeClock) -> None:
    """Many orders ask for the same names, and a renewal storm must not become one of look-ups."""
    for _ in range(3):
        assert await look_ups.caa("a.example.test") == NOTHING
    assert dns.asked == ["test", "a.example.test"]
    clock.advance(REMEMBERED_SECONDS)
    await look_ups.caa("a.example.test")
    assert dns.asked.count("a.example.test") == 2


async def test_errors_are_values_and_remembered(look_ups: LookUps, dns: Dns) -> None:
    """A broken zone costs its time limit once."""
    dns.errors["a.example.test"] = DnsError("SERVFAIL", "unreachable")
    found = [await look_ups.caa("a.example.test") for _ in range(2)]
    assert [each.detail for each in found if isinstance(each, DnsError)] == ["SERVFAIL"] * 2
    assert dns.asked.count("a.example.test") == 1


async def test_what_is_asked_about_a_name_is_told_apart(look_ups: LookUps, dns: Dns) -> None:
    """CAA records and routes of one name are different things."""
    await look_ups.caa("a.example.test")
    await look_ups.route("a.example.test", follow_cname=True)
    await look_ups.route("a.example.test", follow_cname=False)
    assert dns.asked[2:] == ["route a.example.test True", "route a.example.test False"]


async def test_those_who_ask_at_the_same_moment_share_one_look_up(look_ups: LookUps, dns: Dns) -> None:
    """A hundred orders accepted at once are one question."""
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(look_ups.caa("a.example.test"))
    assert dns.asked == ["test", "a.example.test"]


async def test_where_no_resolver_answers_nobody_asks_for_a_minute(
    look_ups: LookUps, dns: Dns, clock: FakeClock, logged: list[EventDict]
) -> None:
    """Ten thousand orders in a place without DNS must not wait for it ten thousand times."""
    dns.is_dead = True
    for number in range(100):
        found = await look_ups.caa(f"a{number}.example.test")
        assert isinstance(found, DnsError)
        assert (found.detail, found.reason) == (
            "no resolver answers; not looked again before 00:01:00 UTC",
            "unreachable",
        )
    assert dns.asked == ["test"]
    assert [each["event"] for each in logged] == ["preflight.no_resolver"]
    clock.advance(REMEMBERED_SECONDS)
    dns.is_dead = False
    assert await look_ups.caa("a1.example.test") == NOTHING


async def test_resolvers_that_stay_silent_are_not_waited_for_twice(
    dns: Dns, clock: FakeClock, log: FilteringBoundLogger
) -> None:
    """Where packets vanish nobody refuses a connection: silence has to be seen by time."""
    look_ups = LookUps(dns, probe_seconds=0.05, clock=clock, log=log)
    dns.gates["test"] = asyncio.Event()
    for name in ("a.example.test", "b.example.test"):
        found = await look_ups.caa(name)
        assert isinstance(found, DnsError)
        assert found.reason == "unreachable"
    assert dns.asked == ["test"]


async def test_one_broken_zone_says_nothing_of_the_others(look_ups: LookUps, dns: Dns) -> None:
    """Else whoever breaks their zone would switch the checks of everybody off."""
    dns.errors["a.broken.test"] = DnsError("SERVFAIL", "unreachable")
    assert isinstance(await look_ups.caa("a.broken.test"), DnsError)
    assert await look_ups.caa("a.example.test") == NOTHING


async def test_dns_that_dies_is_noticed_at_once(look_ups: LookUps, dns: Dns) -> None:
    """A minute of orders that wait for nothing is long."""
    await look_ups.caa("a.example.test")
    dns.is_dead = True
    await look_ups.caa("b.example.test")
    found = await look_ups.caa("c.example.test")
    assert isinstance(found, DnsError)
    assert found.detail.startswith("no resolver answers")
    assert dns.asked == ["test", "a.example.test", "b.example.test", "test"]


async def test_an_answer_that_is_none_of_use_is_an_answer(look_ups: LookUps, dns: Dns) -> None:
    """A resolver that refuses the top-level name is there all the same."""
    dns.errors["test"] = DnsError("REFUSED", "lame_delegation")
    assert await look_ups.caa("a.example.test") == NOTHING


async def test_whether_dns_answers_is_asked_once_a_minute(look_ups: LookUps, dns: Dns, clock: FakeClock) -> None:
    """Any answer tells."""
    for number in range(10):
        await look_ups.caa(f"a{number}.example.test")
        clock.advance(REMEMBERED_SECONDS - 1)
    assert dns.asked.count("test") == 1


async def test_a_look_up_that_is_given_up_is_not_trusted(look_ups: LookUps, dns: Dns) -> None:
    """The next one first sees whether anybody is there; nothing is remembered of the one that did not end."""
    dns.gates["a.example.test"] = asyncio.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await look_ups.caa("a.example.test")
    dns.gates.clear()
    assert await look_ups.caa("a.example.test") == NOTHING
    assert dns.asked == ["test", "a.example.test", "test", "a.example.test"]


class TestFlights:
    async def test_the_work_goes_on_for_those_who_still_wait(self) -> None:
        """One order that is cancelled must not take the answer from the others."""
        gate, flights = asyncio.Event(), Flights[str]()
        first, second = (asyncio.create_task(flights.join("a", waits_for(gate))) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        gate.set()
        assert await second == "done"

    async def test_the_work_ends_with_the_last_who_waits(self) -> None:
        """No task without an owner; who comes then begins anew."""
        gate, ended, flights = asyncio.Event(), asyncio.Event(), Flights[str]()
        waiting = asyncio.create_task(flights.join("a", waits_for(gate, ended)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gate.set()
        again = await flights.join("a", waits_for(gate))
        await asyncio.wait_for(ended.wait(), 10)
        assert again == "done"

    async def test_an_error_reaches_all_who_wait(self) -> None:
        """A fault of ours is heard, not hung on."""

        async def fails() -> str:
            await asyncio.sleep(0)
            raise ValueError("x")

        flights = Flights[str]()
        ended = await asyncio.gather(*[flights.join("a", fails) for _ in range(2)], return_exceptions=True)
        assert [str(each) for each in ended] == ["x", "x"]

    async def test_what_is_done_is_begun_anew(self) -> None:
        """Remembering is somebody else's."""
        gate, flights = asyncio.Event(), Flights[str]()
        gate.set()
        begun: list[str] = []

        async def work() -> str:
            begun.append("x")
            return "done"

        await flights.join("a", work)
        await flights.join("a", work)
        assert len(begun) == 2


def waits_for(gate: asyncio.Event, ended: asyncio.Event | None = None) -> Callable[[], Any]:
    async def work() -> str:
        try:
            await gate.wait()
        finally:
            if ended is not None:
                ended.set()
        return "done"

    return work


class TestRemembered:
    def test_values_grow_old(self) -> None:
        """DNS changes, and who has mended a record wants to see it."""
        clock = FakeClock()
        held: Remembered[str] = Remembered(clock, 60, 10)
        held.put("a", "x")
        clock.advance(59.9)
        assert held.get("a") == "x"
        clock.advance(0.1)
        assert held.get("a") is None
        assert len(held) == 0

    def test_of_too_many_the_one_goes_that_nobody_wanted(self) -> None:
        """Callers choose the names: memory has a bound."""
        held: Remembered[int] = Remembered(FakeClock(), 60, 3)
        for number in range(3):
            held.put(str(number), number)
        held.get("0")
        held.put("3", 3)
        assert [held.get(str(each)) for each in range(4)] == [0, None, 2, 3]

    def test_the_bound_is_four_thousand(self) -> None:
        """About a megabyte."""
        held: Remembered[int] = Remembered(FakeClock(), 60, REMEMBERED_MAX)
        for number in range(REMEMBERED_MAX + 5):
            held.put(str(number), number)
        assert len(held) == 4096
