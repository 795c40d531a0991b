"""The room with real orders behind it: from the moment to the next version, through our own ACME core."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.services.documents import RENEWALS

CONTEXT = RequestContext(request_id="req_1")


async def renewed(world: Any, certificate_id: str, version: int) -> None:
    """Wait until a certificate has that version."""
    async with asyncio.timeout(20), world.sqlite.watch(RENEWALS.key(certificate_id)) as changes:
        if (await world.read(RENEWALS, certificate_id)).value.version >= version:
            return
        async for _ in changes:
            if (await world.read(RENEWALS, certificate_id)).value.version >= version:
                return


async def test_a_request_brings_the_next_version(world: Any) -> None:
    """By the same line as an issue."""
    order = await world.issue("a.example.test")
    reply = await world.renewing.renew(m.RenewCertificate(id=order.certificate_id, wait_seconds=5), CONTEXT)
    assert reply.order_id != order.id
    await world.idle()
    renewal = (await world.read(RENEWALS, order.certificate_id)).value
    assert (renewal.version, renewal.is_due, renewal.order_id) == (2, False, None)


async def test_the_room_renews_what_was_issued_before_a_kill(world: Any) -> None:
    """Issue, kill, wait: the certificate is renewed with nobody asking for it."""
    order = await world.issue("a.example.test")
    issued_at = world.clock.now()
    await world.die()
    world.clock.advance(57 * 86400)
    jump = world.clock.sleep

    async def sleep(seconds: float) -> None:
        # The room's long naps must not carry the clock past the patience of an order that is at work.
        while seconds > 5 and world.tasks():  # noqa: ASYNC110 - the tasks get there by themselves
            await asyncio.sleep(0)
        await jump(seconds)

    world.clock.sleep = sleep
    await world.renewing.resume()
    room = asyncio.create_task(world.renewing.run())
    try:
        await renewed(world, order.certificate_id, 2)
    finally:
        room.cancel()
        await asyncio.gather(room, return_exceptions=True)
    await world.idle()
    assert world.clock.now() - issued_at > timedelta(days=57)
    assert (await world.event_types()).count("certificate.renewed") >= 1
    assert world.said("job.failed") == []
