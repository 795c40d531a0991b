"""A CA that remembers what it was told to revoke, replacements that a test brings, and kills on the way."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog
from cryptography import x509 as cryptography_x509
from cryptography.hazmat.primitives.serialization import Encoding

from scaivaultd.acme import x509
from scaivaultd.acme.signing import AccountKey
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import ScaivaultError
from scaivaultd.model.resources import CertificateVersion, Issued, Order, Trouble, terms_of
from scaivaultd.services import renewals
from scaivaultd.services.documents import CERTIFICATES, KEYS, ORDERS, RENEWALS, VERSIONS
from scaivaultd.services.revoking import Revoking
from tests.fakes.scripted_ca import ScriptedCa, ScriptedCas, ScriptedClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.model.resources import Certificate
    from scaivaultd.services.ports import CaClient
    from tests.fakes.scripted_ca import Issuer

CONTEXT = RequestContext(request_id="req_1")
LOG = structlog.get_logger()
JOBS = ("order ", "register ", "revoke ")


class Heard(msgspec.Struct, frozen=True):
    """What the CA was told: the leaf, the reason, and whose key signed (None: the account's)."""

    der: bytes
    reason: int | None
    signer: str | None


class HearingCas(ScriptedCas):
    """The way to the scripted CA, with an ear for revocations."""

    def __init__(self, ca: ScriptedCa) -> None:
        super().__init__(ca)
        self.heard: list[Heard] = []

    def client(self, directory_url: str, ca_certificates_pem: str | None, key: AccountKey, kid: str | None) -> CaClient:
        return HearingClient(self._ca, key, kid, self.heard)


class HearingClient(ScriptedClient):
    def __init__(self, ca: ScriptedCa, key: AccountKey, kid: str | None, heard: list[Heard]) -> None:
        super().__init__(ca, key, kid)
        self._heard = heard

    async def revoke(
        self, certificate_der: bytes, reason: int | None = None, *, certificate_key: AccountKey | None = None
    ) -> bool:
        signer = None if certificate_key is None else certificate_key.thumbprint
        self._heard.append(Heard(certificate_der, reason, signer))
        return await super().revoke(certificate_der, reason, certificate_key=certificate_key)


class Replacements:
    """Stands where orders are made: a test says what becomes of each. It keeps the promises of `Issuing.renew`."""

    def __init__(self, world: Any, issuer: Issuer) -> None:
        self._world = world
        self._issuer = issuer
        self.asked: list[str] = []
        self.script: deque[Exception] = deque()

    async def renew(self, certificate_id: str, cause: str, *, bulk_id: str | None = None) -> Order:
        self.asked.append(cause)
        if self.script:
            raise self.script.popleft()
        renewal = await self._world.read(RENEWALS, certificate_id)
        if renewal.value.order_id is not None:
            return await self._order(renewal.value.order_id)
        return await self.begin(certificate_id, cause)

    async def begin(self, certificate_id: str, cause: Any) -> Order:
        """An order for the next version, as anybody may have asked for it."""
        certificate = (await self._world.read(CERTIFICATES, certificate_id)).value
        renewal = await self._world.read(RENEWALS, certificate_id)
        now = self._world.clock.now()
        order = Order(
            **{name: getattr(terms_of(certificate), name) for name in terms_of(certificate).__struct_fields__},
            id=self._world.ids.order(),
            auto_renew=True,
            status="pending",
            created_at=now,
            give_up_at=now + timedelta(hours=1),
            cause=cause,
            renews=certificate.id,
            renews_version=certificate.version,
        )
        under_way = renewals.under_way(renewal.value, order.id, cause)
        await self._world.store.commit([ORDERS.put(order), RENEWALS.put(under_way, renewal.revision)])
        return order

    async def bring(self, order_id: str, *, key_id: str | None = None) -> Certificate:
        """The order's end: the next version, by default with a key of its own."""
        order = await self._world.read(ORDERS, order_id)
        certificate = await self._world.read(CERTIFICATES, order.value.renews)
        renewal = await self._world.read(RENEWALS, order.value.renews)
        old: Certificate = certificate.value
        now = self._world.clock.now()
        key = x509.make_key("ec-p256") if key_id is None else await opened(self._world, key_id)
        pem = self._issuer.chain(x509.csr_der(key, old.identifiers), now).decode()
        leaf = leaf_of(pem)
        new = msgspec.structs.replace(
            old,
            version=old.version + 1,
            order_id=order.value.id,
            key_id=key_id,
            serial_number=x509.serial_text(leaf.serial_number),
            chain_pem=pem,
            status="valid",
            revocation=None,
        )
        members = {name: getattr(old, name) for name in Issued.__struct_fields__}
        valid = msgspec.structs.replace(order.value, status="valid", version=new.version, certificate_id=new.id)
        await self._world.store.commit(
            [
                CERTIFICATES.put(new, certificate.revision),
                VERSIONS.put(CertificateVersion(**members, certificate_id=old.id)),
                ORDERS.put(valid, order.revision),
                RENEWALS.put(renewals.begun(new, renewal.value, now=now, fraction=0.5), renewal.revision),
            ]
        )
        return new

    async def fail(self, order_id: str, detail: str = "no such name") -> None:
        """The order's other end."""
        trouble = Trouble(code="challenge_failed", detail=detail)
        order = await self._world.read(ORDERS, order_id)
        renewal = await self._world.read(RENEWALS, order.value.renews)
        later = self._world.clock.now() + timedelta(hours=1)
        await self._world.store.commit(
            [
                ORDERS.put(msgspec.structs.replace(order.value, status="invalid", error=trouble), order.revision),
                RENEWALS.put(renewals.set_back(renewal.value, trouble, later, goes_on=False), renewal.revision),
            ]
        )

    async def _order(self, order_id: str) -> Order:
        order: Order = (await self._world.read(ORDERS, order_id)).value
        return order


def leaf_of(pem: str) -> cryptography_x509.Certificate:
    return cryptography_x509.load_pem_x509_certificate(x509.split_chain(pem)[0].encode())


def fingerprint(certificate: Certificate) -> str:
    return hashlib.sha256(leaf_of(certificate.chain_pem).public_bytes(Encoding.DER)).hexdigest()


async def opened(world: Any, key_id: str) -> bytes:
    sealed = (await world.read(KEYS, key_id)).value.sealed
    key: bytes = world.sealer.open(sealed, KEYS.key(key_id), "private_key")
    return key


async def key_thumbprint(world: Any, certificate: Certificate) -> str:
    assert certificate.key_id is not None
    return AccountKey(await opened(world, certificate.key_id)).thumbprint


def plug_in(world: Any, replacements: Replacements) -> None:
    """Have replacements ordered there in this life of the daemon."""
    issuing: Any = replacements
    world.revoking = Revoking(
        world.tools,
        world.jobs,
        world.waiting,
        issuing=issuing,
        patience_seconds=world.patience_seconds,
    )


async def issued(world: Any, name: str = "a.example.test") -> Certificate:
    order = await world.issue(name)
    certificate: Certificate = (await world.read(CERTIFICATES, order.certificate_id)).value
    if await RENEWALS.get(world.sqlite, certificate.id) is None:
        renewal = renewals.begun(certificate, None, now=world.clock.now(), fraction=0.5)
        await world.sqlite.commit([RENEWALS.put(renewal)])
    await change(world, RENEWALS, certificate.id, poll_at=world.clock.now())
    return certificate


async def change(world: Any, shelf: Any, resource_id: str, **changes: Any) -> None:
    """Change a document as somebody else would."""
    current = await world.read(shelf, resource_id)
    changed = msgspec.structs.replace(current.value, **changes)
    await world.sqlite.commit([shelf.put(changed, current.revision)])


async def revoke(world: Any, **members: Any) -> m.RevocationReply:
    reply: m.RevocationReply = await world.revoking.revoke(m.RevokeCertificate(**members), CONTEXT)
    return reply


async def failing(world: Any, **members: Any) -> ScaivaultError:
    """The error a request ends with."""
    with pytest.raises(ScaivaultError) as caught:
        await revoke(world, **members)
    return caught.value


async def shown(world: Any, revocation_id: str) -> m.RevocationReply:
    reply: m.RevocationReply = await world.revoking.get(m.RevocationById(id=revocation_id), CONTEXT)
    return reply


async def ordered(world: Any, revocation_id: str, other_than: str | None = None) -> str:
    """The order for the replacement, once the revocation shows one."""
    found: list[str] = []

    async def look() -> bool:
        reply = await shown(world, revocation_id)
        if reply.order_id is None or reply.order_id == other_than:
            return False
        found.append(reply.order_id)
        return True

    await until(look)
    return found[0]


async def told(world: Any) -> list[dict[str, Any]]:
    """The bodies of all events about revoked versions."""
    return [body for kind, body in await world.events() if kind == "certificate.revoked"]


def jobs() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(JOBS)]


async def idle() -> None:
    async with asyncio.timeout(20):
        while tasks := jobs():
            await asyncio.wait(tasks)


async def die(world: Any, replacements: Replacements | None = None) -> None:
    """A kill -9, and the next life up to where revocations go on."""
    for task in jobs():
        task.cancel()
    await asyncio.gather(*jobs(), return_exceptions=True)
    world.store.before_commit = None
    await world.die()
    if replacements is not None:
        plug_in(world, replacements)
    await world.revoking.resume()


async def until(reached: Callable[[], Any]) -> None:
    """Let the others run until something holds."""
    async with asyncio.timeout(20):
        while True:
            found = reached()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0)


def at_commit(world: Any, number: int) -> asyncio.Event:
    """Hang for ever before the commit of that number from now; the event says that it is there."""
    reached, seen = asyncio.Event(), [0]

    async def hang(_: Any) -> None:
        seen[0] += 1
        if seen[0] == number:
            reached.set()
            await asyncio.Event().wait()

    world.store.before_commit = hang
    return reached


def at_ca(world: Any, certificate: Certificate, *, acts: bool) -> asyncio.Event:
    """Hang for ever in the next request to the CA, before or after it has acted."""
    reached = asyncio.Event()

    async def hang() -> None:
        if acts:
            world.ca.revoked.add(fingerprint(certificate))
        reached.set()
        await asyncio.Event().wait()

    world.ca.script["revoke"].append(hang)
    return reached
