"""Lanes: so much at once for each CA, by urgency, and nothing twice."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from scaivaultd.model.ids import CertificateId
from scaivaultd.services.renewal_lanes import Lanes, Pace
from tests.fakes.renewals import SteppedClock


class Workshop:
    """Work that goes on until the test ends it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.worked: list[tuple[str, str]] = []
        self._ends: dict[str, asyncio.Event] = {}

    async def work(self, certificate_id: CertificateId) -> str:
        self.begun.append(certificate_id)
        self._ends[certificate_id] = asyncio.Event()
        await self._ends[certificate_id].wait()
        return "done"

    def note(self, certificate_id: CertificateId, outcome: str) -> None:
        self.worked.append((certificate_id, outcome))

    async def end(self, certificate_id: str) -> None:
        self._ends[certificate_id].set()
        await turns()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_goes_by_urgency_and_each_certificate_once() -> None:
    """Two looks at the same moment may both find that it is due."""
    shop = Workshop()
    async with asyncio.TaskGroup() as tasks:
        lanes = Lanes(tasks, "work", shop.work, shop.note, at_once=1)
        for name, urgency in (("a", 5.0), ("c", 3.0), ("b", 2.0), ("a", 1.0), ("b", 9.0)):
            lanes.add("ca", CertificateId(name), urgency)
        await turns()
        assert shop.begun == ["a"]
        await shop.end("a")
        await shop.end("b")
        await shop.end("c")
    assert shop.begun == ["a", "b", "c"]
    assert shop.worked == [("a", "done"), ("b", "done"), ("c", "done")]


async def test_one_ca_does_not_wait_for_another() -> None:
    """That is what lanes are for."""
    shop = Workshop()
    async with asyncio.TaskGroup() as tasks:
        lanes = Lanes(tasks, "work", shop.work, shop.note, at_once=2)
        for name in ("a1", "a2", "a3", "b1"):
            lanes.add(name[0], CertificateId(name), 0.0)
        await turns()
        assert sorted(shop.begun) == ["a1", "a2", "b1"]
        for name in ("b1", "a1", "a2", "a3"):
            await shop.end(name)


async def test_what_has_ended_may_come_again() -> None:
    """Its place is free by the time anybody hears that it has ended."""
    shop = Workshop()
    async with asyncio.TaskGroup() as tasks:

        def worked(certificate_id: CertificateId, _: str) -> None:
            if len(shop.begun) < 3:
                lanes.add("ca", certificate_id, 0.0)

        lanes = Lanes(tasks, "work", shop.work, worked, at_once=1)
        lanes.add("ca", CertificateId("a"), 0.0)
        await turns()
        for _ in range(3):
            await shop.end("a")
    assert shop.begun == ["a", "a", "a"]


class TestThePace:
    async def test_of_what_ends_at_once_so_many_begin_in_any_second(self) -> None:
        """And one CA does not use up the pace of another."""
        clock, begun = SteppedClock(), []

        async def work(certificate_id: CertificateId) -> None:
            begun.append((clock.monotonic(), certificate_id))

        async with asyncio.TaskGroup() as tasks:
            lanes = Lanes(tasks, "work", work, lambda *_: None, at_once=2, pace=Pace(clock, 3))
            for number in range(10):
                lanes.add("a", CertificateId(f"a{number}"), number)
            lanes.add("b", CertificateId("b0"), 0.0)
            await turns()
            await turns()
            lanes.add("a", CertificateId("a10"), 10.0)
            assert clock.sleeping == 1
            while len(begun) < 12:
                await turns()
                await turns()
                clock.advance(0.5)
        of_a = [(at, name) for at, name in begun if name.startswith("a")]
        assert of_a == [(float(number // 3), f"a{number}") for number in range(11)]
        assert (0.0, "b0") in begun

    async def test_a_second_begins_with_each_of_them(self) -> None:
        """Twice the pace around the turn of a second is twice the pace."""
        clock = SteppedClock()
        pace = Pace(clock, 2)
        moments = []
        for _ in range(3):
            for pause in (0.9, 0.0, 0.0):
                clock.advance(pause)
                clock.advance(pace.seconds_left("ca"))
                pace.begin("ca")
                moments.append(clock.monotonic())
        assert all(later - earlier >= 0.999 for earlier, later in zip(moments, moments[2:], strict=False))
        assert any(later - earlier < 0.2 for earlier, later in pairwise(moments))

    async def test_what_is_over_is_forgotten(self) -> None:
        """CAs come and go with their accounts."""
        clock = SteppedClock()
        pace = Pace(clock, 1)
        for number in range(100):
            pace.begin(f"ca-{number}")
            clock.advance(1)
        assert pace.kept == 1
