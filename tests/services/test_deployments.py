"""Which host uses which version: as the hosts say, told once, and told of those that do not follow."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api import messages as m
from scaivaultd.api import operation_messages as om
from scaivaultd.model.errors import Conflict, NotFound
from scaivaultd.model.resources import Certificate
from scaivaultd.model.storage import LogScan, Put
from scaivaultd.services import deployments
from scaivaultd.services.deployments import Deployments
from scaivaultd.services.documents import CERTIFICATES, DEPLOYMENTS, deployment_id
from tests.fakes.judging import WEB, asked_by
from tests.fakes.renewals import SteppedClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OVERDUE_SECONDS = 3600.0
CONTEXT = asked_by(WEB)


@pytest.fixture
async def certificate(world: Any) -> Certificate:
    """At its first version; time stands still from then on, until a test moves it."""
    order = await world.issue("a.example.test")
    found: Certificate = (await world.read(CERTIFICATES, order.certificate_id)).value
    clock = SteppedClock()
    clock.advance((world.clock.now() - clock.now()).total_seconds())
    world.clock = clock
    return found


def made(world: Any) -> Deployments:
    return Deployments(store=world.store, overdue_seconds=OVERDUE_SECONDS, clock=world.clock, log=world.log)


@pytest.fixture
def service(world: Any, certificate: Certificate) -> Deployments:
    return made(world)


def saying(certificate: Certificate, host: str = "web-1", version: int = 1, **members: Any) -> om.ConfirmDeployment:
    return om.ConfirmDeployment(id=certificate.id, host=host, version=version, **members)


async def next_version(world: Any, certificate: Certificate, **changes: Any) -> Certificate:
    """The certificate at one version more, made now."""
    held = await CERTIFICATES.get(world.sqlite, certificate.id)
    assert held is not None
    made: Certificate = msgspec.structs.replace(
        held.value, version=held.value.version + 1, issued_at=world.clock.now(), **{"status": "valid", **changes}
    )
    await world.sqlite.commit([CERTIFICATES.put(made, held.revision)])
    return made


async def until_said(world: Any, event: str, count: int) -> None:
    async with asyncio.timeout(20):
        while len(world.said(event)) < count:  # noqa: ASYNC110 - the watch gets there by itself
            await asyncio.sleep(0)


async def told(world: Any, type_: str) -> list[dict[str, Any]]:
    page = await world.sqlite.logged_events(LogScan(after=0, limit=10_000, type=type_))
    return [json.loads(each.event.data) for each in page.items]


@asynccontextmanager
async def watched(service: Deployments) -> AsyncIterator[asyncio.Task[None]]:
    """The watch runs, and has to end without an error."""
    running = asyncio.create_task(service.run())
    try:
        yield running
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def overdue(world: Any, count: int, step_seconds: float = 0) -> list[dict[str, Any]]:
    """The events, once there are so many; time goes on by steps meanwhile."""
    async with asyncio.timeout(20):
        while len(found := await told(world, "certificate.deploy_overdue")) < count:
            world.clock.advance(step_seconds)
            await asyncio.sleep(0)
    return found


async def settled(world: Any) -> None:
    """Whatever would wrongly be done at this moment has had its time."""
    for _ in range(10):
        await world.store.scan("meta/")
        await world.sqlite.commit([Put(key="meta/settled", document=b"")])


class TestConfirm:
    async def test_who_uses_what_is_listed_by_host(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """With who said so, where, and since when."""
        await service.confirm(saying(certificate, "web-2", where="/etc/ssl/www"), CONTEXT)
        await service.confirm(saying(certificate, "web-1"), CONTEXT)
        found = (await service.list(m.CertificateById(id=certificate.id), CONTEXT)).items
        assert [(each.host, each.version, each.is_current, each.is_overdue) for each in found] == [
            ("web-1", 1, True, False),
            ("web-2", 1, True, False),
        ]
        assert (found[1].where, found[1].confirmed_by) == ("/etc/ssl/www", "token:Web00000")

    async def test_the_same_again_changes_nothing_but_the_time(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """A host that never got its answer asks again."""
        first = await service.confirm(saying(certificate), CONTEXT)
        world.clock.advance(60)
        again = await service.confirm(saying(certificate), CONTEXT)
        assert again == msgspec.structs.replace(first, confirmed_at=first.confirmed_at + timedelta(seconds=60))
        assert [each["host"] for each in await told(world, "certificate.deployed")] == ["web-1"]

    async def test_a_version_that_never_was_is_a_conflict(self, service: Deployments, certificate: Certificate) -> None:
        """A host that follows another daemon says so too."""
        with pytest.raises(Conflict, match="no version 2; its current one is 1"):
            await service.confirm(saying(certificate, version=2), CONTEXT)
        assert (await service.list(m.CertificateById(id=certificate.id), CONTEXT)).items == []

    async def test_an_earlier_one_is_taken(self, world: Any, service: Deployments, certificate: Certificate) -> None:
        """Somebody went back, and what is shown is what is used."""
        await next_version(world, certificate)
        for version in (2, 1, 2, 1):
            await service.confirm(saying(certificate, version=version), CONTEXT)
        (reply,) = (await service.list(m.CertificateById(id=certificate.id), CONTEXT)).items
        assert (reply.version, reply.current_version, reply.is_current) == (1, 2, False)
        assert [each["version"] for each in await told(world, "certificate.deployed")] == [2, 1]

    async def test_a_failure_is_told_once_and_so_is_its_end(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """A reload that fails every minute is one fact."""
        for error in ("exit status 1", "exit status 2", None, "exit status 1", None):
            await service.confirm(saying(certificate, error=error), CONTEXT)
        (reply,) = (await service.list(m.CertificateById(id=certificate.id), CONTEXT)).items
        assert [each["error"] for each in await told(world, "certificate.deployed")] == ["exit status 1", None]
        assert reply.error is None

    async def test_two_at_once_are_both_heard(self, service: Deployments, certificate: Certificate) -> None:
        """Of one host, and of many."""
        names = ["web-1", *(f"web-{each}" for each in range(10))]
        await asyncio.gather(*(service.confirm(saying(certificate, each), CONTEXT) for each in names))
        found = await service.list(m.CertificateById(id=certificate.id), CONTEXT)
        assert {each.host for each in found.items} == set(names)

    async def test_there_is_room_for_so_many_hosts(
        self, world: Any, service: Deployments, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Names cost nothing; those that are there go on, and forgetting one makes room."""
        monkeypatch.setattr(deployments, "HOSTS_MAX", 3)
        for each in range(3):
            await service.confirm(saying(certificate, f"web-{each}"), CONTEXT)
        for one in (service, made(world)):
            with pytest.raises(Conflict, match="3 hosts already"):
                await one.confirm(saying(certificate, "web-3"), CONTEXT)
        await service.confirm(saying(certificate, "web-1"), CONTEXT)
        await service.forget(om.DeploymentByHost(id=certificate.id, host="web-1"), CONTEXT)
        await service.confirm(saying(certificate, "web-3"), CONTEXT)

    async def test_a_host_is_forgotten_once(self, service: Deployments, certificate: Certificate) -> None:
        """And it is said if there is none of that name."""
        await service.confirm(saying(certificate), CONTEXT)
        gone = om.DeploymentByHost(id=certificate.id, host="web-1")
        assert (await service.forget(gone, CONTEXT)).host == "web-1"
        with pytest.raises(NotFound, match="not known to be used on web-1"):
            await service.forget(gone, CONTEXT)

    async def test_what_is_no_certificate_is_not_found(self, service: Deployments) -> None:
        """Whatever is asked of it."""
        for asked in (
            service.confirm(om.ConfirmDeployment(id="cert_none", host="a", version=1), CONTEXT),
            service.list(m.CertificateById(id="cert_none"), CONTEXT),
            service.forget(om.DeploymentByHost(id="cert_none", host="a"), CONTEXT),
        ):
            with pytest.raises(NotFound):
                await asked


class TestOverdue:
    async def test_a_host_that_does_not_follow_is_told_once_for_each_version(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """Not before its time is over; a restart does not tell it again."""
        async with watched(service):
            await service.confirm(saying(certificate), CONTEXT)
            await service.confirm(saying(certificate, "web-2"), CONTEXT)
            await next_version(world, certificate)
            await service.confirm(saying(certificate, "web-2", 2), CONTEXT)
            world.clock.advance(OVERDUE_SECONDS - 1)
            await settled(world)
            assert await told(world, "certificate.deploy_overdue") == []
            world.clock.advance(2)
            (event,) = await overdue(world, 1)
        assert (event["host"], event["version"], event["current_version"]) == ("web-1", 1, 2)
        assert event["domains"] == ["a.example.test"]
        shown = (await service.list(m.CertificateById(id=certificate.id), CONTEXT)).items
        assert [each.is_overdue for each in shown] == [True, False]
        again = made(world)
        async with watched(again):
            world.clock.advance(10 * OVERDUE_SECONDS)
            await settled(world)
            assert len(await told(world, "certificate.deploy_overdue")) == 1
            await next_version(world, certificate)
            world.clock.advance(OVERDUE_SECONDS + 1)
            found = await overdue(world, 3)
        assert Counter(each["host"] for each in found) == {"web-1": 2, "web-2": 1}

    async def test_one_that_follows_late_is_overdue_no_more(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """What is shown is how it is."""
        await service.confirm(saying(certificate), CONTEXT)
        await next_version(world, certificate)
        world.clock.advance(OVERDUE_SECONDS + 1)
        async with watched(service):
            await overdue(world, 1)
        reply = await service.confirm(saying(certificate, version=2), CONTEXT)
        assert (reply.is_current, reply.is_overdue) == (True, False)
        assert len(await told(world, "certificate.deploy_overdue")) == 1

    async def test_another_time_holds_at_once(self, world: Any, service: Deployments, certificate: Certificate) -> None:
        """A shorter one reaches those that were not due by the longer one."""
        await service.confirm(saying(certificate), CONTEXT)
        await next_version(world, certificate)
        async with watched(service):
            world.clock.advance(OVERDUE_SECONDS / 2)
            service.use(OVERDUE_SECONDS / 4)
            await overdue(world, 1)

    async def test_one_whose_reload_fails_does_not_follow(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """The files are there, and the old certificate is still served."""
        await service.confirm(saying(certificate, error="exit status 1"), CONTEXT)
        async with watched(service):
            world.clock.advance(OVERDUE_SECONDS + 1)
            (event,) = await overdue(world, 1)
        assert (event["version"], event["current_version"]) == (1, 1)

    @pytest.mark.parametrize("how", ["revoked", "expired", "over"])
    async def test_nobody_is_to_follow_what_is_over(
        self, world: Any, service: Deployments, certificate: Certificate, how: str
    ) -> None:
        """Its successor is what they wait for."""
        await service.confirm(saying(certificate), CONTEXT)
        over = {"not_after": world.clock.now()} if how == "over" else {"status": how}
        await next_version(world, certificate, **over)
        async with watched(service):
            world.clock.advance(2 * OVERDUE_SECONDS)
            await settled(world)
            assert await told(world, "certificate.deploy_overdue") == []
            await next_version(world, certificate, not_after=certificate.not_after)
            world.clock.advance(OVERDUE_SECONDS + 1)
            assert len(await overdue(world, 1)) == 1

    async def test_many_are_told_in_few_commits(
        self, world: Any, service: Deployments, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A fleet whose network is away; one that confirms in between costs nobody the event."""
        monkeypatch.setattr(deployments, "TOLD_AT_ONCE", 10)
        for each in range(35):
            await service.confirm(saying(certificate, f"web-{each}"), CONTEXT)
        await next_version(world, certificate)
        world.clock.advance(OVERDUE_SECONDS + 1)
        interfered = False

        async def interfere(changes: Any) -> None:
            nonlocal interfered
            if len(changes) > 1 and not interfered:
                interfered = True
                await service.confirm(saying(certificate, "web-0", 2), CONTEXT)

        world.store.before_commit = interfere
        async with watched(service):
            found = Counter(each["host"] for each in await overdue(world, 34))
        assert found == {f"web-{each}": 1 for each in range(1, 35)}

    async def test_a_store_that_fails_is_waited_for(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """At the start, and later: the watch ends with the daemon only."""
        await service.confirm(saying(certificate), CONTEXT)
        world.store.is_down = True
        async with watched(service):
            await asyncio.sleep(0)
            await until_said(world, "deployments.store_unavailable", 1)
            world.store.is_down = False
            await next_version(world, certificate)
            assert len(await overdue(world, 1, step_seconds=600)) == 1
            world.store.is_down = True
            await next_version(world, certificate)
            world.clock.advance(OVERDUE_SECONDS + 1)
            await until_said(world, "deployments.store_unavailable", 2)
            world.store.is_down = False
            assert len(await overdue(world, 2, step_seconds=600)) == 2

    async def test_a_broken_document_costs_no_other_its_event(
        self, world: Any, service: Deployments, certificate: Certificate
    ) -> None:
        """Nor the daemon its life."""
        await service.confirm(saying(certificate), CONTEXT)
        await next_version(world, certificate)
        broken = msgspec.structs.replace(
            (await world.read(DEPLOYMENTS, deployment_id(certificate.id, "web-1"))).value, certificate_id="cert_0"
        )
        await world.sqlite.commit([Put(key=CERTIFICATES.key("cert_0"), document=b"{"), DEPLOYMENTS.put(broken)])
        world.clock.advance(OVERDUE_SECONDS + 1)
        async with watched(service):
            found = await overdue(world, 1)
            await until_said(world, "job.failed", 1)
        assert [each["certificate_id"] for each in found] == [certificate.id]
