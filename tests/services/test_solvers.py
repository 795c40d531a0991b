"""Which solver an order gets, and how orders share what only so many may have at a time."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from scaivaultd.model.errors import UnsupportedChallenge
from scaivaultd.plugin import SolverKind
from scaivaultd.services.solvers import Claims, OpenSolver, Share, Solvers


def solver(challenge_type: str, name: str | None = None) -> OpenSolver:
    def never(_: Any) -> Any:
        raise AssertionError("it is open")

    kind = SolverKind(name=name or challenge_type, challenge_type=challenge_type, open=never)
    return OpenSolver(kind=kind, solver=object())  # type: ignore[arg-type] # nobody calls it here


class TestChoosing:
    def test_without_a_name_it_is_the_daemon_s_own(self) -> None:
        """A plugin that is installed changes nothing until somebody names it."""
        solvers = Solvers([solver("http-01", "upload"), solver("http-01"), solver("dns-01")])
        assert solvers.get("http-01", None).kind.name == "http-01"
        assert solvers.get("http-01", "upload").kind.name == "upload"
        assert solvers.challenge_types == ["dns-01", "http-01"]
        assert solvers.names == ["dns-01/dns-01", "http-01/http-01", "http-01/upload"]

    def test_the_only_one_needs_no_name(self) -> None:
        """Where the daemon has none of its own."""
        assert Solvers([solver("new-01", "theirs")]).get("new-01", None).kind.name == "theirs"

    @pytest.mark.parametrize(
        ("challenge_type", "name", "pointer", "says"),
        [
            (
                "tls-alpn-01",
                None,
                "/challenge_type",
                "no installed plugin solves tls-alpn-01; there is http-01, new-01",
            ),
            ("http-01", "uplaod", "/solver", "no solver 'uplaod' for http-01; there is http-01, upload"),
            ("new-01", None, "/solver", "several solvers for new-01; name one of one, two"),
        ],
    )
    def test_what_is_not_there_is_refused_with_what_is(
        self, challenge_type: str, name: str | None, pointer: str, says: str
    ) -> None:
        """A typing error is seen in the reply."""
        solvers = Solvers(
            [solver("http-01"), solver("http-01", "upload"), solver("new-01", "one"), solver("new-01", "two")]
        )
        with pytest.raises(UnsupportedChallenge) as refused:
            solvers.get(challenge_type, name)
        (field,) = refused.value.fields
        assert (field.pointer, field.detail) == (pointer, says)


class TestClaims:
    async def take(self, claims: Claims, **wanted: tuple[int, int]) -> AsyncExitStack:
        holding = AsyncExitStack()
        await claims.take({key: Share(*share) for key, share in wanted.items()}, holding)
        return holding

    def begin(self, claims: Claims, **wanted: tuple[int, int]) -> asyncio.Task[AsyncExitStack]:
        return asyncio.create_task(self.take(claims, **wanted))

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def test_so_many_share_it_and_the_next_waits(self) -> None:
        """An acme-dns account holds two values: a third evicts the first."""
        claims = Claims()
        first, second = await self.take(claims, a=(1, 2)), await self.take(claims, a=(1, 2))
        third = self.begin(claims, a=(1, 2))
        await self.settle()
        assert not third.done()
        await first.aclose()
        await (await third).aclose()
        await second.aclose()

    async def test_first_come_first_served(self) -> None:
        """A small order does not overtake a large one for ever."""
        claims = Claims()
        held = await self.take(claims, a=(1, 2))
        large = self.begin(claims, a=(2, 2))
        await self.settle()
        small = self.begin(claims, a=(1, 2))
        await self.settle()
        assert not large.done()
        assert not small.done()
        await held.aclose()
        (holding,) = [each.result() for each in (await asyncio.wait({large, small}, return_when="FIRST_COMPLETED"))[0]]
        assert large.done()
        assert not small.done()
        await holding.aclose()
        await (await small).aclose()

    async def test_an_order_that_needs_more_than_there_is_has_it_alone(self) -> None:
        """Three names that lead to a record of two values: it is tried, not waited for until the end of days."""
        claims = Claims()
        holding = await self.take(claims, a=(3, 2))
        other = self.begin(claims, a=(1, 2))
        await self.settle()
        assert not other.done()
        await holding.aclose()
        await (await other).aclose()

    async def test_two_that_name_two_things_in_opposite_order_do_not_wait_in_a_circle(self) -> None:
        """Everybody takes them in the same order."""
        claims = Claims()

        async def use(*keys: str) -> None:
            for _ in range(20):
                async with await self.take(claims, **dict.fromkeys(keys, (1, 1))):
                    await asyncio.sleep(0)

        async with asyncio.timeout(5):
            await asyncio.gather(use("a", "b"), use("b", "a"), use("b", "c"), use("c", "a"))

    async def test_who_is_cancelled_while_waiting_gives_back_what_it_has(self) -> None:
        """A torn order must not block its names until the next restart."""
        claims = Claims()
        held = await self.take(claims, b=(1, 1))
        waiting = self.begin(claims, a=(1, 1), b=(1, 1))
        await self.settle()
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        # The stack of who was cancelled is its own to close; here nobody has it any more.
        async with asyncio.timeout(5):
            other = self.begin(claims, b=(1, 1))
            await held.aclose()
            await (await other).aclose()

    async def test_what_is_held_when_the_next_is_not_granted_goes_with_the_stack(self) -> None:
        """The caller closes its stack, whatever came of taking."""
        claims = Claims()
        held = await self.take(claims, b=(1, 1))
        holding = AsyncExitStack()
        waiting = asyncio.create_task(claims.take({"a": Share(1, 1), "b": Share(1, 1)}, holding))
        await self.settle()
        waiting.cancel()
        await asyncio.wait({waiting})
        await holding.aclose()
        async with asyncio.timeout(5):
            await (await self.take(claims, a=(1, 1))).aclose()
        await held.aclose()

    async def test_a_share_that_comes_free_in_the_moment_of_a_cancellation_is_not_lost(self) -> None:
        """Whoever was cancelled does not know it yet; the next in the queue must get it all the same."""
        for is_granted_first in (True, False):
            claims = Claims()
            held = await self.take(claims, a=(1, 1))
            torn, patient = self.begin(claims, a=(1, 1)), self.begin(claims, a=(1, 1))
            await self.settle()
            if is_granted_first:
                await held.aclose()
                torn.cancel()
            else:
                torn.cancel()
                await held.aclose()
            async with asyncio.timeout(5):
                await (await patient).aclose()
            assert torn.cancelled()
            async with asyncio.timeout(5):
                await (await self.take(claims, a=(1, 1))).aclose()

    async def test_one_that_stops_waiting_lets_those_behind_it_pass(self) -> None:
        """A large order at the head of the queue leaves, and the small ones fit."""
        claims = Claims()
        held = await self.take(claims, a=(1, 2))
        large = self.begin(claims, a=(2, 2))
        await self.settle()
        small = self.begin(claims, a=(1, 2))
        await self.settle()
        large.cancel()
        async with asyncio.timeout(5):
            await (await small).aclose()
        await held.aclose()

    async def test_nothing_is_kept_of_what_nobody_holds(self) -> None:
        """A daemon that runs for years sees many names."""
        claims = Claims()
        for number in range(10):
            await (await self.take(claims, **{f"k{number}": (1, 2)})).aclose()
        assert claims._shares == {}
