"""A daemon that was restored from a backup does nothing outside until it may, and then everything."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.api import commands as c
from scaivaultd.api import messages as m
from scaivaultd.api.commands import COMMANDS, Binding, RequestContext
from scaivaultd.model.backups import RESTORED_KEY, Restored
from scaivaultd.model.errors import Conflict
from scaivaultd.model.ids import CertificateId
from scaivaultd.model.storage import Put
from scaivaultd.services.safe_mode import REFUSED, SafeMode
from tests.fakes.renewals import RenewalRig, SteppedClock, rig_over

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

CONTEXT = RequestContext(request_id="req_1")
DAY = timedelta(days=1)


class Room:
    """Notes what happens, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def begin(self) -> None:
        self.done.append("begin")

    async def run(self) -> None:
        self.done.append("run")

    async def handle(self, request: Any, context: RequestContext) -> m.Nothing:
        self.done.append("handled")
        return m.Nothing()


@pytest.fixture
async def safe_mode(sqlite: Any, log: Any) -> SafeMode:
    """Of a store that was restored."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    document = msgspec.json.encode(Restored(backup="b.scvb", backup_created_at=now, restored_at=now))
    await sqlite.commit([Put(key=RESTORED_KEY, document=document)])
    found = SafeMode(sqlite, log)
    await found.load()
    return found


async def test_an_ordinary_store_is_in_no_safe_mode(sqlite: Any, log: Any) -> None:
    """And nothing is begun twice."""
    found, room = SafeMode(sqlite, log), Room()
    await found.load()
    await found.work(room.begin, then=lambda: None)
    await found.after(room.run)
    assert not found.is_on
    assert (await found.health()).status == "ok"
    assert room.done == ["run"]


async def test_it_is_told_at_the_start_and_in_health(safe_mode: SafeMode, logged: Any) -> None:
    """Who restored at night must not find out in a month that nothing was renewed."""
    health = await safe_mode.health()
    assert health.status == "degraded"
    assert "scaivaultctl resume" in health.detail
    assert [(each["log_level"], each["backup"]) for each in logged if each["event"] == "daemon.safe_mode"] == [
        ("warning", "b.scvb")
    ]


async def test_it_outlives_a_restart_and_its_end_does_too(sqlite: Any, log: Any, safe_mode: SafeMode) -> None:
    """A machine that boots by itself is not somebody who says that the old daemon is gone."""
    again = SafeMode(sqlite, log)
    await again.load()
    assert (await again.health()).status == "degraded"
    room = asyncio.create_task(again.work(Room().begin, then=lambda: None))
    await again.end()
    await room
    assert not again.is_on
    third = SafeMode(sqlite, log)
    await third.load()
    assert not third.is_on


async def test_what_was_left_is_begun_before_anybody_else_is_let_in(safe_mode: SafeMode) -> None:
    """A new order that comes between would get a second job when the old ones are gone on with."""
    room, begun, may_begin = Room(), asyncio.Event(), asyncio.Event()

    async def begin() -> None:
        begun.set()
        await may_begin.wait()
        await room.begin()

    (guarded,) = safe_mode.guarded(Binding(c.ISSUE, room.handle))
    tasks = [
        asyncio.create_task(safe_mode.after(room.run)),
        asyncio.create_task(safe_mode.work(begin, then=lambda: room.done.append("then"))),
        asyncio.create_task(safe_mode.end()),
    ]
    await asyncio.wait_for(begun.wait(), 30)
    with pytest.raises(Conflict, match="scaivaultctl resume"):
        await guarded.handler(m.Nothing(), CONTEXT)
    assert room.done == []
    may_begin.set()
    await asyncio.gather(*tasks)
    assert room.done[:2] == ["begin", "then"]
    assert room.done[2:] == ["run"]
    await guarded.handler(m.Nothing(), CONTEXT)
    assert room.done[-1] == "handled"


async def test_who_asks_for_the_end_at_once_twice_hears_it_once(safe_mode: SafeMode) -> None:
    """Two administrators, one daemon."""
    room = asyncio.create_task(safe_mode.work(Room().begin, then=lambda: None))
    first, second = await asyncio.gather(safe_mode.end(), safe_mode.end())
    await room
    assert first is not None
    assert second is not None
    assert await safe_mode.end() is None


LETS_THROUGH = {
    "pki.certificates.confirm",
    "pki.certificates.forget_deployment",
    "pki.bulk_renewals.cancel",
    "pki.dns_providers.create",
    "pki.dns_providers.update",
    "pki.dns_providers.delete",
    "pki.dns_providers.test",
    "secrets.put",
    "secrets.delete",
    "tokens.create",
    "tokens.rotate",
    "tokens.revoke",
    "policies.put",
    "policies.delete",
    "auth.can_i",
    "audit.verify",
    "sys.master_key.rotate",
    "sys.unseal",
    "sys.backup",
    "sys.resume",
    "sys.reload",
}
"""What changes this daemon's own store, or is done by the hand that asks for it."""


def test_every_command_that_changes_something_is_judged() -> None:
    """A new one is either refused in safe mode, or somebody has thought of it."""
    changing = {each.name for each in COMMANDS if each.method != "GET"}
    assert changing == REFUSED | LETS_THROUGH
    assert not REFUSED & LETS_THROUGH


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def rig(make_world: Callable[..., Any], clock: SteppedClock) -> AsyncIterator[RenewalRig]:
    async with rig_over(make_world, clock) as rig:
        yield rig


async def test_renewals_wait_the_end_is_announced_all_the_same(rig: RenewalRig) -> None:
    """The CA hears nothing, and whoever uses the certificate hears in time that it ends."""
    rig.renewing.pause()
    await rig.add(lifetime=90 * DAY)
    await rig.start()
    await rig.forward(89 * DAY)
    assert rig.issuing.orders == []
    assert set(await rig.world.event_types()) == {"certificate.expiring"}
    rig.renewing.go_on()
    await rig.settle()
    assert rig.issuing.ordered() == [CertificateId("cert_1")]
