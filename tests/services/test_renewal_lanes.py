"""Lanes: so much at once for each CA, by urgency, and nothing twice."""

from __future__ import annotations

import asyncio

from scaivaultd.model.ids import CertificateId
from scaivaultd.services.renewal_lanes import Lanes


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
