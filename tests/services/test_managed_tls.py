"""The listener's own certificate: the newest that fits, as soon as it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import Sealed, StartupError
from scaivaultd.services.documents import CERTIFICATES
from scaivaultd.services.managed_tls import ManagedTls

CONTEXT = RequestContext(request_id="req_1")


class Listener:
    """Takes certificates as the gateway does, and tells what it has."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.error: StartupError | None = None

    def use(self, chain_pem: str, key_pem: str) -> None:
        if self.error is not None:
            raise self.error
        self.taken.put_nowait((chain_pem, key_pem))

    async def names(self) -> set[str]:
        """What the next certificate is for; its key is the one that fits."""
        chain, key = await asyncio.wait_for(self.taken.get(), 10)
        leaf = x509.load_pem_x509_certificate(chain.encode())
        private = serialization.load_pem_private_key(key.encode(), None)
        assert private.public_key() == leaf.public_key()
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return set(found.value.get_values_for_type(x509.DNSName))


@pytest.fixture
def listener() -> Listener:
    return Listener()


def managed(world: Any, listener: Listener, name: str = "api.example.test", **changes: Any) -> ManagedTls:
    parts = {"store": world.store, "sealer": world.sealer, "clock": world.clock, "log": world.log, **changes}
    return ManagedTls(name, use=listener.use, **parts)


@asynccontextmanager
async def running(service: ManagedTls) -> AsyncIterator[None]:
    task = asyncio.create_task(service.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def renew(world: Any, certificate_id: str) -> None:
    reply = await world.renewing.renew(m.RenewCertificate(id=certificate_id, wait_seconds=0), CONTEXT)
    assert (await world.ended(reply.order_id)).status == "valid"


async def test_a_certificate_is_handed_over_when_it_comes_and_at_each_renewal(world: Any, listener: Listener) -> None:
    """Nobody restarts a daemon every forty days."""
    async with running(managed(world, listener)):
        order = await world.issue("api.example.test", "other.example.test")
        assert await listener.names() == {"api.example.test", "other.example.test"}
        await world.issue("elsewhere.example.test")
        world.clock.advance(3600)
        await renew(world, order.certificate_id)
        assert await listener.names() == {"api.example.test", "other.example.test"}
        assert listener.taken.empty()
    versions = [each["version"] for each in world.said("rest.certificate_in_use")]
    assert versions == [1, 2]


@pytest.mark.parametrize(
    ("name", "domain", "fits"),
    [
        ("api.example.test", "*.example.test", True),
        ("a.api.example.test", "*.example.test", False),
        ("example.test", "*.example.test", False),
        ("api.example.test", "xapi.example.test", False),
    ],
)
async def test_a_wildcard_covers_one_label(
    make_world: Any, listener: Listener, name: str, domain: str, fits: bool
) -> None:
    """Clients would refuse it anywhere else."""
    world = make_world()
    order = await world.issue("x.example.test")
    held = await world.read(CERTIFICATES, order.certificate_id)
    identifiers = (msgspec.structs.replace(held.value.identifiers[0], value=domain),)
    renamed = msgspec.structs.replace(held.value, identifiers=identifiers)
    await world.sqlite.commit([CERTIFICATES.put(renamed, held.revision)])
    await managed(world, listener, name).look()
    assert listener.taken.empty() != fits


@pytest.mark.parametrize("change", [{"status": "revoked"}, {"key_id": None}, {"not_after": -1}])
async def test_what_cannot_serve_is_passed_over(world: Any, listener: Listener, change: dict[str, Any]) -> None:
    """Revoked, at an end, or with a key that only somebody else has."""
    order = await world.issue("api.example.test")
    held = await world.read(CERTIFICATES, order.certificate_id)
    if "not_after" in change:
        change = {"not_after": world.clock.now() - timedelta(seconds=1)}
    await world.sqlite.commit([CERTIFICATES.put(msgspec.structs.replace(held.value, **change), held.revision)])
    await managed(world, listener).look()
    assert listener.taken.empty()


async def test_of_several_the_newest_is_taken(world: Any, listener: Listener) -> None:
    """Two sets of names may hold the one."""
    await world.issue("api.example.test", "older.example.test")
    world.clock.advance(7200)
    await world.issue("api.example.test", "newer.example.test")
    await managed(world, listener).look()
    assert await listener.names() == {"api.example.test", "newer.example.test"}


async def test_a_sealed_daemon_looks_again_until_it_is_unsealed(world: Any, listener: Listener) -> None:
    """Unsealing changes no certificate, so that nothing else would tell."""

    class Sealer:
        is_sealed = True

        def open(self, sealed: bytes, place: str, field: str) -> bytes:
            if self.is_sealed:
                raise Sealed("the master key is missing")
            return bytes(world.sealer.open(sealed, place, field))

    await world.issue("api.example.test")
    sealer = Sealer()
    async with running(managed(world, listener, sealer=sealer)):
        async with asyncio.timeout(10):
            while len(world.clock.slept) < 5:  # noqa: ASYNC110 - its own retries are what is waited for
                await asyncio.sleep(0)
        assert listener.taken.empty()
        sealer.is_sealed = False
        assert await listener.names() == {"api.example.test"}
    assert len(world.said("rest.certificate_unusable")) == 1


async def test_what_the_listener_refuses_ends_nothing(world: Any, listener: Listener) -> None:
    """The daemon lives on with what it had, and says what is wrong."""
    await world.issue("api.example.test")
    listener.error = StartupError("no such curve")
    async with running(managed(world, listener)):
        async with asyncio.timeout(10):
            while not world.said("rest.certificate_unusable"):  # noqa: ASYNC110 - a log line tells nobody
                await asyncio.sleep(0)
        listener.error = None
        assert await listener.names() == {"api.example.test"}
