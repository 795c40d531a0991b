"""Revocation: the right version, the right signer, written down before the CA is asked, and told once."""

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
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaivaultd.acme import x509
from scaivaultd.acme.exchange import NotOffered
from scaivaultd.acme.signing import AccountKey
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    RateLimited,
    ScaivaultError,
    Timeout,
)
from scaivaultd.model.ids import RevocationId
from scaivaultd.model.resources import CertificateVersion, Issued, Order, Revocation, Trouble, terms_of
from scaivaultd.model.storage import ABSENT
from scaivaultd.services import renewals, revoking
from scaivaultd.services.compromised_keys import is_compromised, spki_sha256_in
from scaivaultd.services.documents import (
    ACCOUNTS,
    CERTIFICATES,
    COMPROMISED_KEYS,
    KEYS,
    ORDERS,
    RENEWALS,
    REVOCATIONS,
    VERSIONS,
)
from scaivaultd.services.revocation_at_ca import AT_ONCE
from scaivaultd.services.revocation_targets import serial_of
from scaivaultd.services.revoking import Revoking
from tests.fakes.scripted_ca import ScriptedCa, ScriptedCas, ScriptedClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.model.resources import Certificate, RevocationReason
    from scaivaultd.services.ports import CaClient
    from tests.fakes.scripted_ca import FakeClock, Issuer

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


async def opened(world: Any, key_id: str) -> bytes:
    sealed = (await world.read(KEYS, key_id)).value.sealed
    key: bytes = world.sealer.open(sealed, KEYS.key(key_id), "private_key")
    return key


@pytest.fixture
def world(make_world: Any, clock: FakeClock, issuer: Issuer) -> Any:
    ca = ScriptedCa(clock, issuer)
    return make_world(ca=ca, cas=HearingCas(ca))


@pytest.fixture
async def certificate(world: Any) -> Certificate:
    """One certificate at its first version, with what looks after it."""
    return await issued(world)


@pytest.fixture
def replacements(world: Any, issuer: Issuer) -> Replacements:
    made = Replacements(world, issuer)
    plug_in(world, made)
    return made


def plug_in(world: Any, replacements: Replacements) -> None:
    """Have replacements ordered there in this life of the daemon."""
    issuing: Any = replacements
    world.revoking = Revoking(
        world.tools,
        world.jobs,
        world.waiting,
        issuing=issuing,
        renewing=world.renewing,
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


async def told(world: Any) -> list[dict[str, Any]]:
    """The bodies of all events about revoked versions."""
    return [body for kind, body in await world.events() if kind == "certificate.revoked"]


async def key_thumbprint(world: Any, certificate: Certificate) -> str:
    assert certificate.key_id is not None
    return AccountKey(await opened(world, certificate.key_id)).thumbprint


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


class TestSerialNumbers:
    @pytest.mark.parametrize(
        "text",
        ["1A:2B:3C", "1a:2b:3c", "1A2B3C", "1a 2b 3c", "0x1A2B3C", "0X1a2b3c", "00:1A:2B:3C", "  1a2b3c\n", "01A2B3C"],
    )
    def test_every_way_people_copy_it_means_the_same(self, text: str) -> None:
        """openssl, browsers and logs each have their own."""
        assert serial_of(text) == "1A:2B:3C"

    def test_leading_zeros_stay_where_an_octet_needs_one(self) -> None:
        """The form we keep has whole octets."""
        assert serial_of("a2b3c") == "0A:2B:3C"
        assert serial_of("0") == "00"

    @pytest.mark.parametrize("text", ["", " ", ":", "0x", "1G", "-1A", "1A-2B", "serial=1A", "١٢", "0x0x1A", "1.5"])
    async def test_what_is_no_serial_number_is_refused(self, world: Any, text: str) -> None:
        """A guess might revoke something else."""
        error = await failing(world, serial_number=text)
        assert isinstance(error, InvalidRequest)
        assert [each.pointer for each in error.fields] == ["/serial_number"]

    async def test_it_finds_the_current_version(self, world: Any, certificate: Certificate) -> None:
        """What an operator has in hand is often a certificate from a wire, not our id."""
        text = certificate.serial_number.lower().replace(":", "")
        reply = await revoke(world, serial_number=text)
        assert (reply.status, reply.certificate_id, reply.version) == ("done", certificate.id, 1)
        assert reply.serial_number == certificate.serial_number

    async def test_it_finds_an_earlier_version(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """That one is revoked and the current one is not touched."""
        current = await replacements.bring((await replacements.begin(certificate.id, "schedule")).id)
        reply = await revoke(world, serial_number=certificate.serial_number)
        assert (reply.status, reply.version) == ("done", 1)
        assert [each.der for each in world.cas.heard] == [leaf_of(certificate.chain_pem).public_bytes(Encoding.DER)]
        assert (await world.read(CERTIFICATES, certificate.id)).value == current
        version = (await world.read(VERSIONS, f"{certificate.id}.00000001")).value
        assert (version.status, version.revocation.reason) == ("revoked", "unspecified")
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped is False
        assert [each["is_current"] for each in await told(world)] == [False]

    async def test_an_ambiguous_one_is_an_error_that_tells_the_way_out(
        self, world: Any, certificate: Certificate
    ) -> None:
        """Two CAs may use one serial number; to revoke the wrong certificate is an outage."""
        other = await issued(world, "b.example.test")
        await change(world, CERTIFICATES, other.id, serial_number=certificate.serial_number, issuer="Another CA")
        error = await failing(world, serial_number=certificate.serial_number)
        assert isinstance(error, Conflict)
        for part in (certificate.id, other.id, "Another CA", "certificate_id and version"):
            assert part in error.detail
        assert world.cas.heard == []
        assert (await revoke(world, certificate_id=other.id)).status == "done"

    async def test_a_version_that_moves_while_it_is_searched_is_one_hit(
        self, world: Any, certificate: Certificate
    ) -> None:
        """A renewal between two looks shows it as the current one and as an earlier one."""
        members = {name: getattr(certificate, name) for name in Issued.__struct_fields__}
        await world.sqlite.commit([VERSIONS.put(CertificateVersion(**members, certificate_id=certificate.id))])
        assert (await revoke(world, serial_number=certificate.serial_number)).status == "done"


class TestNaming:
    @pytest.mark.parametrize(
        ("members", "pointer"),
        [
            ({}, "/serial_number"),
            ({"serial_number": "1A", "certificate_id": "cert_x"}, "/serial_number"),
            ({"serial_number": "1A", "version": 1}, "/version"),
        ],
    )
    async def test_one_way_to_name_it_at_a_time(self, world: Any, members: dict[str, Any], pointer: str) -> None:
        """Two that disagree would leave the choice to us."""
        error = await failing(world, **members)
        assert isinstance(error, InvalidRequest)
        assert [each.pointer for each in error.fields] == [pointer]

    async def test_what_is_not_there_is_not_found(self, world: Any, certificate: Certificate) -> None:
        """With a text that tells what is."""
        for members in (
            {"serial_number": "1A"},
            {"certificate_id": "cert_none"},
            {"certificate_id": certificate.id, "version": 2},
        ):
            assert isinstance(await failing(world, **members), NotFound)
        with pytest.raises(NotFound):
            await shown(world, "revocation_none")

    async def test_an_earlier_version_by_its_number(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """Without a number it is the current one."""
        current = await replacements.bring((await replacements.begin(certificate.id, "schedule")).id)
        assert (
            await revoke(world, certificate_id=certificate.id, version=1)
        ).serial_number == certificate.serial_number
        assert (await revoke(world, certificate_id=certificate.id)).serial_number == current.serial_number


class TestThroughTheCa:
    async def test_one_commit_tells_the_whole_end(self, world: Any, certificate: Certificate) -> None:
        """Certificate, order, renewal, revocation and event never disagree."""
        commits: list[list[str]] = []

        async def look(changes: Any) -> None:
            commits.append(sorted(each.key.split("/")[0] for each in changes))

        heard: list[str] = []
        world.tools.renewals.subscribe(heard.append)
        world.store.before_commit = look
        reply = await revoke(world, certificate_id=certificate.id, reason="superseded")
        assert (reply.status, reply.was_revoked_already, reply.error) == ("done", False, None)
        assert commits == [["revocation"], ["certificate", "order", "renewal", "revocation"]]
        revoked = (await world.read(CERTIFICATES, certificate.id)).value
        assert revoked.status == "revoked"
        assert revoked.revocation == Revocation(at=world.clock.now(), origin="acme", reason="superseded")
        assert (await world.shown(certificate.order_id)).status == "revoked"
        renewal = (await world.read(RENEWALS, certificate.id)).value
        assert (renewal.is_stopped, renewal.poll_at) == (True, None)
        assert renewals.next_look_at(renewal, world.clock.now()) != world.clock.now()
        assert heard == [certificate.id]
        (event,) = await told(world)
        assert event["serial_number"] == certificate.serial_number
        assert (event["reason"], event["origin"], event["is_current"]) == ("superseded", "acme", True)
        assert await shown(world, reply.id) == reply

    @pytest.mark.parametrize(
        ("reason", "number"),
        [
            ("unspecified", None),
            ("key_compromise", 1),
            ("affiliation_changed", 3),
            ("superseded", 4),
            ("cessation_of_operation", 5),
        ],
    )
    async def test_reasons_are_numbers_there_and_only_a_compromised_key_signs_itself(
        self, world: Any, certificate: Certificate, reason: RevocationReason, number: int | None
    ) -> None:
        """RFC 5280 section 5.3.1; and who proves to have the key is believed at once."""
        assert (await revoke(world, certificate_id=certificate.id, reason=reason)).status == "done"
        (heard,) = world.cas.heard
        assert heard.reason == number
        assert heard.der == leaf_of(certificate.chain_pem).public_bytes(Encoding.DER)
        assert heard.signer == (await key_thumbprint(world, certificate) if reason == "key_compromise" else None)

    async def test_the_intent_and_the_mark_are_on_disk_before_the_ca_is_asked(
        self, world: Any, certificate: Certificate
    ) -> None:
        """A crash in between must neither forget the revocation nor certify that key again."""
        spki = leaf_of(certificate.chain_pem).public_key()
        digest = hashlib.sha256(spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
        found: list[Any] = []

        async def look() -> None:
            (request,) = await REVOCATIONS.all(world.sqlite, LOG, status="pending")
            found.extend([request.value.reason, await is_compromised(world.sqlite, digest)])

        world.ca.script["revoke"].append(look)
        assert await is_compromised(world.sqlite, digest) is False
        await revoke(world, certificate_id=certificate.id, reason="key_compromise")
        assert found == ["key_compromise", True]
        mark = (await world.read(COMPROMISED_KEYS, digest)).value
        assert (mark.certificate_id, mark.spki_sha256) == (certificate.id, spki_sha256_in(certificate.chain_pem))

    async def test_other_reasons_leave_the_key_in_good_standing(self, world: Any, certificate: Certificate) -> None:
        """A certificate that is merely superseded says nothing against its key."""
        await revoke(world, certificate_id=certificate.id, reason="superseded")
        assert await COMPROMISED_KEYS.all(world.sqlite, LOG) == []

    @pytest.mark.parametrize("name", ["unauthorized", "malformed", "badPublicKey", "serverInternal"])
    async def test_a_ca_that_takes_no_certificate_keys_hears_the_account(
        self, world: Any, certificate: Certificate, ca_refuses: Any, name: str
    ) -> None:
        """With the same reason, and once."""
        world.ca.script["revoke"].append(ca_refuses(name))
        assert (await revoke(world, certificate_id=certificate.id, reason="key_compromise")).status == "done"
        assert [(each.reason, each.signer is None) for each in world.cas.heard] == [(1, False), (1, True)]

    @pytest.mark.parametrize("name", ["unauthorized", "accountDoesNotExist", "userActionRequired"])
    async def test_an_account_without_a_say_is_stood_in_for_by_the_key(
        self, world: Any, certificate: Certificate, ca_refuses: Any, name: str
    ) -> None:
        """The certificate outlives the account it was ordered with."""
        world.ca.script["revoke"].append(ca_refuses(name))
        assert (await revoke(world, certificate_id=certificate.id, reason="superseded")).status == "done"
        signers = [each.signer for each in world.cas.heard]
        assert signers == [None, await key_thumbprint(world, certificate)]
        assert [each.reason for each in world.cas.heard] == [4, 4]

    async def test_what_is_not_about_the_account_is_not_asked_twice(
        self, world: Any, certificate: Certificate, ca_refuses: Any
    ) -> None:
        """Another signature does not make a bad request good."""
        world.ca.script["revoke"].append(ca_refuses("malformed"))
        error = await failing(world, certificate_id=certificate.id)
        assert isinstance(error, CaRefused)
        assert error.problem is not None
        assert error.problem.name == "malformed"
        assert len(world.cas.heard) == 1

    async def test_a_deactivated_account_is_not_even_tried(self, world: Any, certificate: Certificate) -> None:
        """Its CA would only count the refusals."""
        await change(world, ACCOUNTS, certificate.account_id, status="deactivated")
        assert (await revoke(world, certificate_id=certificate.id)).status == "done"
        assert [each.signer for each in world.cas.heard] == [await key_thumbprint(world, certificate)]

    async def test_a_key_that_was_never_here_leaves_it_to_the_account(
        self, world: Any, certificate: Certificate, ca_refuses: Any
    ) -> None:
        """A caller's CSR; if the account is gone too, nobody here can ask, and the caller is told who can."""
        await change(world, CERTIFICATES, certificate.id, key_id=None)
        world.ca.script["revoke"].append(ca_refuses("unauthorized"))
        error = await failing(world, certificate_id=certificate.id, reason="key_compromise")
        assert isinstance(error, CaRefused)
        assert [each.signer for each in world.cas.heard] == [None]
        await change(world, ACCOUNTS, certificate.account_id, status="deactivated")
        error = await failing(world, certificate_id=certificate.id, reason="key_compromise")
        assert isinstance(error, AccountUnusable)
        assert "who has that key" in error.detail
        assert len(world.cas.heard) == 1

    async def test_a_refused_reason_fails_and_is_never_left_out_silently(
        self, world: Any, certificate: Certificate, ca_refuses: Any
    ) -> None:
        """Another reason is another statement: only the caller can make it."""
        world.ca.script["revoke"].append(ca_refuses("badRevocationReason", 400))
        error = await failing(world, certificate_id=certificate.id, reason="affiliation_changed")
        assert isinstance(error, CaRefused)
        assert "affiliation_changed" in error.detail
        assert "superseded" in error.detail
        assert len(world.cas.heard) == 1
        assert (await world.read(CERTIFICATES, certificate.id)).value.status == "valid"
        assert await told(world) == []
        assert (await revoke(world, certificate_id=certificate.id, reason="superseded")).status == "done"

    async def test_a_refused_reason_is_no_reason_to_try_another_signer(
        self, world: Any, certificate: Certificate, ca_refuses: Any
    ) -> None:
        """It would say the same again."""
        world.ca.script["revoke"].append(ca_refuses("badRevocationReason", 400))
        await failing(world, certificate_id=certificate.id, reason="key_compromise")
        assert len(world.cas.heard) == 1

    @pytest.mark.parametrize("reason", ["unspecified", "key_compromise"])
    async def test_a_ca_that_revokes_nothing_is_told_with_the_way_out(
        self, world: Any, certificate: Certificate, reason: str
    ) -> None:
        """Waiting would not help, nor would another key."""
        world.ca.script["revoke"].append(NotOffered("the CA does not offer revocation"))
        error = await failing(world, certificate_id=certificate.id, reason=reason)
        assert "use_acme: false" in error.detail
        assert len(world.cas.heard) == 1

    async def test_thousands_at_once_come_a_few_at_a_time(self, make_world: Any, world: Any) -> None:
        """A start after an incident must not lock the CA up."""
        certificates = [await issued(world, f"h{number}.example.test") for number in range(AT_ONCE + 2)]
        gate, inside = asyncio.Event(), []

        async def enter() -> None:
            inside.append(1)
            await gate.wait()

        world.ca.script["revoke"].extend([enter] * len(certificates))
        for each in certificates:
            await revoke(world, certificate_id=each.id, wait_seconds=0)
        await until(lambda: len(inside) == AT_ONCE)
        for _ in range(200):
            await asyncio.sleep(0)
        assert len(inside) == AT_ONCE
        gate.set()
        await idle()
        assert len(await told(world)) == len(certificates)

    async def test_more_than_fits_is_refused_before_anything_is_done(
        self, world: Any, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every queue has a bound."""
        monkeypatch.setattr(revoking, "BACKLOG_MAX", 0)
        assert isinstance(await failing(world, certificate_id=certificate.id, reason="key_compromise"), RateLimited)
        assert await REVOCATIONS.all(world.sqlite, LOG) == []
        assert await COMPROMISED_KEYS.all(world.sqlite, LOG) == []


class TestAgain:
    async def test_the_cas_already_revoked_is_success(self, world: Any, certificate: Certificate) -> None:
        """The event comes all the same: nobody was told before."""
        world.ca.script["revoke"].append(lambda: world.ca.revoked.add(fingerprint(certificate)))
        reply = await revoke(world, certificate_id=certificate.id)
        assert (reply.status, reply.was_revoked_already) == ("done", True)
        assert len(await told(world)) == 1

    async def test_a_second_request_finds_the_first(self, world: Any, certificate: Certificate) -> None:
        """Scripts run twice; the CA and the subscribers hear of it once."""
        first = await revoke(world, certificate_id=certificate.id)
        second = await revoke(world, serial_number=certificate.serial_number, reason="superseded")
        assert (second.id, second.status, second.was_revoked_already) == (first.id, "done", True)
        assert len(world.cas.heard) == len(await told(world)) == 1

    async def test_a_key_found_out_as_compromised_later_is_marked_still(
        self, world: Any, certificate: Certificate
    ) -> None:
        """The version is revoked already; its key could be certified again without the mark."""
        await revoke(world, certificate_id=certificate.id, reason="superseded")
        for _ in range(2):
            await revoke(world, certificate_id=certificate.id, reason="key_compromise")
            assert await is_compromised(world.sqlite, spki_sha256_in(certificate.chain_pem))

    async def test_one_under_way_is_the_answer_to_the_same_request(self, world: Any, certificate: Certificate) -> None:
        """Also when both come in the same moment."""
        gate = asyncio.Event()
        world.ca.script["revoke"].append(gate.wait)
        first, second = await asyncio.gather(
            *(revoke(world, certificate_id=certificate.id, wait_seconds=0) for _ in range(2))
        )
        assert (first.status, first.id) == ("pending", second.id)
        gate.set()
        await idle()
        assert (await shown(world, first.id)).status == "done"
        assert len(world.cas.heard) == 1

    @pytest.mark.parametrize("other", [{"reason": "superseded"}, {"use_acme": False}, {"replace": True}])
    async def test_one_under_way_is_not_changed_by_another_request(
        self, world: Any, certificate: Certificate, other: dict[str, Any]
    ) -> None:
        """Two callers who want different things hear of each other."""
        gate = asyncio.Event()
        world.ca.script["revoke"].append(gate.wait)
        pending = await revoke(world, certificate_id=certificate.id, wait_seconds=0)
        error = await failing(world, certificate_id=certificate.id, wait_seconds=0, **other)
        assert isinstance(error, Conflict)
        assert pending.id in error.detail
        gate.set()

    async def test_other_versions_have_revocations_of_their_own(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """One under way for version 1 says nothing about version 2."""
        await replacements.bring((await replacements.begin(certificate.id, "schedule")).id)
        first = await revoke(world, certificate_id=certificate.id, version=1)
        second = await revoke(world, certificate_id=certificate.id, version=2)
        assert first.id != second.id
        assert sorted(each["version"] for each in await told(world)) == [1, 2]


def fingerprint(certificate: Certificate) -> str:
    return hashlib.sha256(leaf_of(certificate.chain_pem).public_bytes(Encoding.DER)).hexdigest()


class TestInOurStoreOnly:
    async def test_it_is_done_at_once_and_no_ca_hears_of_it(self, world: Any, certificate: Certificate) -> None:
        """Even for a caller who does not wait: there is nobody to wait for."""
        reply = await revoke(world, certificate_id=certificate.id, use_acme=False, wait_seconds=0)
        assert (reply.status, reply.use_acme, reply.was_revoked_already) == ("done", False, False)
        assert world.cas.heard == []
        assert [each["origin"] for each in await told(world)] == ["store"]
        assert (await world.read(CERTIFICATES, certificate.id)).value.status == "revoked"
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped
        assert (await world.shown(certificate.order_id)).status == "revoked"

    async def test_the_ca_can_be_told_later(self, world: Any, certificate: Certificate) -> None:
        """Marked is not revoked; but the event was sent, and comes once for each version."""
        first = await revoke(world, certificate_id=certificate.id, use_acme=False)
        second = await revoke(world, certificate_id=certificate.id, reason="superseded")
        assert first.id != second.id
        assert len(world.cas.heard) == 1
        revocation = (await world.read(CERTIFICATES, certificate.id)).value.revocation
        assert (revocation.origin, revocation.reason) == ("acme", "superseded")
        assert len(await told(world)) == 1
        third = await revoke(world, certificate_id=certificate.id, use_acme=False)
        assert third.was_revoked_already
        assert (await world.read(CERTIFICATES, certificate.id)).value.revocation == revocation

    @pytest.mark.parametrize(("is_revoked_there", "origin"), [(True, "outside"), (False, "acme")])
    async def test_what_a_renewal_window_made_us_believe_is_asked_of_the_ca(
        self, world: Any, certificate: Certificate, is_revoked_there: bool, origin: str
    ) -> None:
        """A window in the past may also mean that the CA is about to; who asks for a revocation wants to be sure."""
        outside = Revocation(at=world.clock.now(), origin="outside")
        await change(world, CERTIFICATES, certificate.id, status="revoked", revocation=outside)
        if is_revoked_there:
            world.ca.revoked.add(fingerprint(certificate))
        reply = await revoke(world, certificate_id=certificate.id, reason="superseded")
        assert (reply.status, reply.was_revoked_already) == ("done", is_revoked_there)
        assert (await world.read(CERTIFICATES, certificate.id)).value.revocation.origin == origin
        assert await told(world) == []

    async def test_a_mark_upon_what_is_revoked_changes_nothing(self, world: Any, certificate: Certificate) -> None:
        """The origin that is known stays."""
        outside = Revocation(at=world.clock.now(), origin="outside")
        await change(world, CERTIFICATES, certificate.id, status="revoked", revocation=outside)
        reply = await revoke(world, certificate_id=certificate.id, use_acme=False)
        assert reply.was_revoked_already
        assert (await world.read(CERTIFICATES, certificate.id)).value.revocation == outside


class TestWeather:
    async def test_it_is_tried_again_until_it_works(self, world: Any, certificate: Certificate) -> None:
        """A broken CA delays a revocation and does not lose it."""
        world.ca.script["revoke"].extend([CaUnavailable("502"), CaMisbehaved("no JSON"), CaUnavailable("reset")])
        reply = await revoke(world, certificate_id=certificate.id)
        assert (reply.status, reply.error, reply.next_try_at) == ("done", None, None)
        assert len(world.cas.heard) == 4

    async def test_while_it_waits_the_reply_says_why_and_until_when(self, world: Any, certificate: Certificate) -> None:
        """The CA's Retry-After is kept to."""
        gate = asyncio.Event()
        world.ca.script["revoke"].extend([BackendRateLimited("slowly", retry_after=900.0), gate.wait])
        start = world.clock.now()
        pending = await revoke(world, certificate_id=certificate.id, wait_seconds=0)
        await until(lambda: len(world.cas.heard) == 2)
        assert world.clock.now() - start >= timedelta(seconds=900)
        waiting = await shown(world, pending.id)
        assert (waiting.status, waiting.error and waiting.error.code) == ("pending", "backend_rate_limited")
        assert waiting.next_try_at is not None
        gate.set()
        await idle()
        assert (await shown(world, pending.id)).status == "done"

    @pytest.mark.parametrize(
        ("weather", "kind"),
        [
            (CaUnavailable("502", 30.0), CaUnavailable),
            (BackendRateLimited("slowly", retry_after=60.0), BackendRateLimited),
            (CaMisbehaved("no JSON"), CaRefused),
        ],
    )
    async def test_patience_ends_with_the_error_the_caller_would_have_seen(
        self, world: Any, certificate: Certificate, weather: Exception, kind: type[ScaivaultError]
    ) -> None:
        """And with a resource that says so; asked again it is a new revocation."""
        world.ca.script["revoke"].extend([weather] * 200)
        error = await failing(world, certificate_id=certificate.id)
        assert type(error) is kind
        (failed,) = await REVOCATIONS.all(world.sqlite, LOG, status="failed")
        assert (failed.value.next_try_at, failed.value.error.detail) == (None, error.detail)
        assert world.clock.now() <= failed.value.give_up_at
        assert world.said("revocation.failed")[0]["revocation_id"] == failed.value.id
        world.ca.script["revoke"].clear()
        assert (await revoke(world, certificate_id=certificate.id)).status == "done"

    async def test_a_store_that_is_down_for_a_while_is_waited_for(self, world: Any, certificate: Certificate) -> None:
        """The CA has done it; that must be written down sooner or later."""

        def go_down() -> None:
            world.store.is_down = True

        world.ca.script["revoke"].append(go_down)
        pending = await revoke(world, certificate_id=certificate.id, wait_seconds=0)
        await until(lambda: world.said("revocation.store_unavailable"))
        world.store.is_down = False
        await idle()
        assert (await shown(world, pending.id)).status == "done"
        assert len(await told(world)) == 1

    async def test_an_error_nobody_foresaw_is_tried_again_and_hidden_from_the_caller(
        self, world: Any, certificate: Certificate
    ) -> None:
        """Its text is for the log."""
        world.ca.script["revoke"].append(ValueError("a secret thing"))
        pending = await revoke(world, certificate_id=certificate.id)
        assert pending.status == "done"
        assert world.said("job.attempt_failed")


class TestMeanwhile:
    async def test_a_version_that_becomes_an_earlier_one_is_marked_where_it_is_then(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """A renewal may come in while the CA is asked: the new version stays valid and looked after."""
        order = await replacements.begin(certificate.id, "schedule")

        async def bring() -> None:
            await replacements.bring(order.id)

        world.ca.script["revoke"].append(bring)
        assert (await revoke(world, certificate_id=certificate.id)).status == "done"
        current = (await world.read(CERTIFICATES, certificate.id)).value
        assert (current.version, current.status, current.revocation) == (2, "valid", None)
        assert (await world.read(VERSIONS, f"{certificate.id}.00000001")).value.status == "revoked"
        assert (await world.shown(order.id)).status == "valid"
        assert (await world.shown(certificate.order_id)).status == "revoked"
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped is False
        (event,) = await told(world)
        assert (event["version"], event["is_current"]) == (1, False)

    @pytest.mark.parametrize("shelf", [CERTIFICATES, ORDERS, RENEWALS, REVOCATIONS])
    async def test_documents_that_others_write_in_the_same_moment_are_read_again(
        self, world: Any, certificate: Certificate, shelf: Any
    ) -> None:
        """The end is one commit over documents of several owners."""
        pending: list[str] = []

        async def interfere(changes: Any) -> None:
            if len(changes) < 3:
                return
            world.store.before_commit = None
            (request,) = await REVOCATIONS.all(world.sqlite, LOG)
            pending.append(request.value.id)
            ids = {CERTIFICATES: certificate.id, ORDERS: certificate.order_id, RENEWALS: certificate.id}
            await change(world, shelf, ids.get(shelf, request.value.id))

        world.store.before_commit = interfere
        assert (await revoke(world, certificate_id=certificate.id)).status == "done"
        assert pending
        assert len(await told(world)) == 1
        assert (await world.shown(certificate.order_id)).status == "revoked"
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped
        assert len(world.cas.heard) == 1

    async def test_an_order_under_way_is_left_to_bring_its_version(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """It was asked for; only what would come by itself afterwards does not."""
        order = await replacements.begin(certificate.id, "request")
        await revoke(world, certificate_id=certificate.id)
        renewal = (await world.read(RENEWALS, certificate.id)).value
        assert (renewal.order_id, renewal.is_stopped, renewal.poll_at) == (order.id, True, None)
        assert (await world.shown(order.id)).status == "pending"
        assert replacements.asked == []
        await replacements.bring(order.id)
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped is False

    async def test_documents_from_before_there_were_renewals_do_not_stand_in_the_way(
        self, world: Any, certificate: Certificate
    ) -> None:
        """Old stores have neither a renewal nor, after pruning, the order."""
        await change(world, CERTIFICATES, certificate.id, order_id="acme_order_gone")
        await world.sqlite.commit([_gone(RENEWALS.key(certificate.id))])
        assert (await revoke(world, certificate_id=certificate.id)).status == "done"

    async def test_an_order_that_is_not_valid_keeps_its_state(self, world: Any, certificate: Certificate) -> None:
        """Only what brought the version can have it revoked."""
        await world.change(certificate.order_id, status="expired")
        await revoke(world, certificate_id=certificate.id)
        assert (await world.shown(certificate.order_id)).status == "expired"


def _gone(key: str) -> Any:
    from scaivaultd.model.storage import Delete

    return Delete(key=key)


class TestReplacing:
    async def test_the_new_version_comes_first(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """In between both are good: no outage for whoever serves the certificate."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        order_id = await self.ordered(world, pending.id)
        assert replacements.asked == ["revocation"]
        for _ in range(200):
            await asyncio.sleep(0)
        assert world.cas.heard == []
        await replacements.bring(order_id)
        await idle()
        done = await shown(world, pending.id)
        assert (done.status, done.version, done.order_id) == ("done", 1, order_id)
        current = (await world.read(CERTIFICATES, certificate.id)).value
        assert (current.version, current.status) == (2, "valid")
        assert [each.der for each in world.cas.heard] == [leaf_of(certificate.chain_pem).public_bytes(Encoding.DER)]
        assert (await world.read(VERSIONS, f"{certificate.id}.00000001")).value.status == "revoked"
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped is False
        assert (await world.shown(order_id)).status == "valid"
        assert (await world.shown(certificate.order_id)).status == "revoked"

    async def ordered(self, world: Any, revocation_id: str, other_than: str | None = None) -> str:
        found: list[str] = []

        async def look() -> bool:
            reply = await shown(world, revocation_id)
            if reply.order_id is None or reply.order_id == other_than:
                return False
            found.append(reply.order_id)
            return True

        await until(look)
        return found[0]

    async def test_a_caller_who_waits_hears_of_the_end(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """One request, and it is done when the answer comes."""
        asked = asyncio.create_task(revoke(world, certificate_id=certificate.id, replace=True, reason="key_compromise"))
        await until(lambda: REVOCATIONS.all(world.sqlite, LOG))
        (request,) = await REVOCATIONS.all(world.sqlite, LOG)
        await replacements.bring(await self.ordered(world, request.value.id))
        async with asyncio.timeout(10):
            assert (await asked).status == "done"
        assert [each.signer for each in world.cas.heard] == [await key_thumbprint(world, certificate)]

    async def test_in_our_store_only_it_is_replaced_first_too(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """`use_acme` says who hears of the revocation, and nothing of what comes before."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, use_acme=False, wait_seconds=0)
        await replacements.bring(await self.ordered(world, pending.id))
        await idle()
        assert [(each["origin"], each["version"]) for each in await told(world)] == [("store", 1)]
        assert world.cas.heard == []

    async def test_only_a_current_version_can_be_replaced(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """An earlier one has been."""
        await replacements.bring((await replacements.begin(certificate.id, "schedule")).id)
        error = await failing(world, certificate_id=certificate.id, version=1, replace=True)
        assert isinstance(error, InvalidRequest)
        assert [each.pointer for each in error.fields] == ["/replace"]
        assert await REVOCATIONS.all(world.sqlite, LOG) == []

    async def test_a_callers_csr_cannot_be_replaced_from_here(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """The same CSR has the same key: the caller has to bring another one."""
        terms = msgspec.structs.replace(terms_of(certificate), csr_der=b"csr")
        await change(world, CERTIFICATES, certificate.id, terms=terms)
        error = await failing(world, certificate_id=certificate.id, replace=True, reason="key_compromise")
        assert isinstance(error, Conflict)
        assert "pki.certificates.update" in error.detail
        assert replacements.asked == []
        assert await COMPROMISED_KEYS.all(world.sqlite, LOG) == []

    async def test_a_replacement_that_cannot_be_ordered_is_said_and_nothing_is_revoked(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """Revoking a version in service without one would be an outage."""
        replacements.script.append(AccountUnusable("no account can order"))
        error = await failing(world, certificate_id=certificate.id, replace=True)
        assert (type(error), error.detail) == (AccountUnusable, "no account can order")
        assert world.cas.heard == []

    async def test_weather_at_the_order_is_waited_out(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """A full backlog is no reason to fail."""
        replacements.script.append(RateLimited("full", 60))
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        order_id = await self.ordered(world, pending.id)
        assert (await shown(world, pending.id)).error is None
        await replacements.bring(order_id)
        await idle()
        assert (await shown(world, pending.id)).status == "done"

    async def test_a_failed_order_is_shown_and_the_next_one_of_the_renewal_counts(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """The certificate's renewal tries again at its own pace; nothing is ordered beside it."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        first = await self.ordered(world, pending.id)
        await replacements.fail(first, "no such name")

        async def is_shown() -> bool:
            error = (await shown(world, pending.id)).error
            return error is not None and error.detail == "no such name"

        await until(is_shown)
        assert (await shown(world, pending.id)).status == "pending"
        second = await replacements.begin(certificate.id, "revocation")
        await replacements.bring(second.id)
        await idle()
        assert (await shown(world, pending.id)).status == "done"
        assert replacements.asked == ["revocation"]

    async def test_the_next_order_of_the_renewal_is_followed(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """Who looks finds the order that is under way now."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        first = await self.ordered(world, pending.id)
        await replacements.fail(first)
        second = await replacements.begin(certificate.id, "revocation")
        assert await self.ordered(world, pending.id, other_than=first) == second.id
        await replacements.bring(second.id)
        await idle()
        assert (await shown(world, pending.id)).status == "done"

    async def test_an_order_under_way_that_brings_the_old_key_again_does_not_count(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """`reuse_key` made it so; a compromised key must not live on in the replacement."""
        scheduled = await replacements.begin(certificate.id, "schedule")
        pending = await revoke(
            world, certificate_id=certificate.id, replace=True, reason="key_compromise", wait_seconds=0
        )
        assert await self.ordered(world, pending.id) == scheduled.id
        await replacements.bring(scheduled.id, key_id=certificate.key_id)
        fresh = await self.ordered(world, pending.id, other_than=scheduled.id)
        assert world.cas.heard == []
        await replacements.bring(fresh)
        await idle()
        assert (await shown(world, pending.id)).status == "done"
        assert (await world.read(VERSIONS, f"{certificate.id}.00000001")).value.status == "revoked"
        assert replacements.asked == ["revocation", "revocation"]

    async def test_a_replacement_with_the_old_key_is_never_ordered_in_circles(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """Each order counts at the CA."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        await replacements.bring(await self.ordered(world, pending.id), key_id=certificate.key_id)
        await idle()
        failed = await shown(world, pending.id)
        assert (failed.status, failed.error and failed.error.code) == ("failed", "conflict")
        assert replacements.asked == ["revocation"]
        assert world.cas.heard == []

    async def test_without_a_replacement_in_time_nothing_is_revoked(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """A week, and then a person has to decide; the last cause is told."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        await replacements.fail(await self.ordered(world, pending.id), "no such name")

        async def is_shown() -> bool:
            return (await shown(world, pending.id)).error is not None

        await until(is_shown)
        world.clock.advance(timedelta(days=6, hours=23).total_seconds())
        world.waiting.end()
        slept = len(world.clock.slept)
        await idle()
        failed = await shown(world, pending.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert failed.error.code == Timeout.code
        assert "no such name" in failed.error.detail
        assert len(world.clock.slept) - slept >= 3600
        assert world.cas.heard == []
        assert (await world.read(CERTIFICATES, certificate.id)).value.status == "valid"

    async def test_who_cannot_wait_any_more_revokes_without_a_replacement(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """The replacement does not come, and the key is in wrong hands."""
        members = {"certificate_id": certificate.id, "reason": "key_compromise", "wait_seconds": 0}
        pending = await revoke(world, replace=True, **members)
        await replacements.fail(await self.ordered(world, pending.id))
        joined = await revoke(world, replace=True, **members)
        assert (joined.id, joined.replace) == (pending.id, True)
        joined = await revoke(world, **members)
        assert (joined.id, joined.replace) == (pending.id, False)
        world.waiting.end()
        await idle()
        assert (await shown(world, pending.id)).status == "done"
        assert (await world.read(CERTIFICATES, certificate.id)).value.status == "revoked"
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped


class TestKilled:
    async def test_between_any_two_steps_it_goes_on_and_is_told_once(
        self, world: Any, certificate: Certificate
    ) -> None:
        """Two commits and one request to the CA; the kill comes before or behind each."""
        steps: list[Callable[[], asyncio.Event]] = [
            lambda: at_commit(world, 2),
            lambda: at_ca(world, certificate, acts=False),
            lambda: at_ca(world, certificate, acts=True),
        ]
        for number, step in enumerate(steps):
            other = await issued(world, f"killed{number}.example.test")
            certificate = other
            reached = step()
            pending = await revoke(world, certificate_id=other.id, reason="key_compromise", wait_seconds=0)
            async with asyncio.timeout(10):
                await reached.wait()
            await die(world)
            await idle()
            done = await shown(world, pending.id)
            assert done.status == "done"
            assert [each["certificate_id"] for each in await told(world)].count(other.id) == 1
            assert (await world.read(CERTIFICATES, other.id)).value.status == "revoked"

    async def test_before_it_is_written_down_nothing_has_happened(self, world: Any, certificate: Certificate) -> None:
        """The caller had no answer and asks again."""
        reached = at_commit(world, 1)
        asked = asyncio.create_task(revoke(world, certificate_id=certificate.id, reason="key_compromise"))
        async with asyncio.timeout(10):
            await reached.wait()
        asked.cancel()
        await die(world)
        await idle()
        assert await REVOCATIONS.all(world.sqlite, LOG) == []
        assert world.cas.heard == []
        assert (await revoke(world, certificate_id=certificate.id, reason="key_compromise")).status == "done"

    async def test_a_lost_answer_is_already_revoked_the_next_time(self, world: Any, certificate: Certificate) -> None:
        """And the event is told once."""

        def lose() -> Exception:
            world.ca.revoked.add(fingerprint(certificate))
            return CaUnavailable("reset")

        world.ca.script["revoke"].append(lose)
        reply = await revoke(world, certificate_id=certificate.id)
        assert (reply.status, reply.was_revoked_already) == ("done", True)
        assert len(await told(world)) == 1

    async def test_a_pause_outlives_the_restart(self, world: Any, certificate: Certificate) -> None:
        """A CA that asked for an hour is not asked by the next life at once."""
        gate = asyncio.Event()
        world.ca.script["revoke"].append(BackendRateLimited("slowly", retry_after=1800.0))
        asleep = at_sleep(world, gate)
        pending = await revoke(world, certificate_id=certificate.id, wait_seconds=0)
        async with asyncio.timeout(10):
            await asleep.wait()
        start = world.clock.now()
        world.clock.sleep = type(world.clock).sleep.__get__(world.clock)
        await die(world)
        await idle()
        assert (await shown(world, pending.id)).status == "done"
        assert world.clock.now() - start >= timedelta(seconds=1800)
        assert (await REVOCATIONS.get(world.sqlite, pending.id)).value.attempt == 1

    @pytest.mark.parametrize("commit", [2, 3])
    async def test_the_order_for_the_replacement_is_made_once(
        self, world: Any, certificate: Certificate, replacements: Replacements, commit: int
    ) -> None:
        """Before it was made, or made and not written down in the revocation: one order in the end."""
        reached = at_commit(world, commit)
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        async with asyncio.timeout(10):
            await reached.wait()
        await die(world, replacements)
        order_id = await TestReplacing().ordered(world, pending.id)
        assert len([each for each in await ORDERS.all(world.sqlite, LOG) if each.value.renews]) == 1
        await replacements.bring(order_id)
        await idle()
        assert (await shown(world, pending.id)).status == "done"

    async def test_a_replacement_that_came_while_we_were_down_is_seen(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """Nobody tells of it a second time: the documents do."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        order_id = await TestReplacing().ordered(world, pending.id)
        for task in jobs():
            task.cancel()
        await asyncio.gather(*jobs(), return_exceptions=True)
        await replacements.bring(order_id)
        await die(world, replacements)
        await idle()
        assert (await shown(world, pending.id)).status == "done"
        assert replacements.asked == ["revocation"]

    async def test_what_has_ended_does_not_go_on(self, world: Any, certificate: Certificate, ca_refuses: Any) -> None:
        """A start asks no CA about the past."""
        world.ca.script["revoke"].append(ca_refuses("malformed"))
        await failing(world, certificate_id=certificate.id)
        await revoke(world, certificate_id=certificate.id)
        await die(world)
        await idle()
        assert len(world.cas.heard) == 2


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


def at_sleep(world: Any, gate: asyncio.Event) -> asyncio.Event:
    """Hang in the next sleep."""
    reached = asyncio.Event()

    async def hang(seconds: float) -> None:
        reached.set()
        await gate.wait()

    world.clock.sleep = hang
    return reached


async def test_what_the_job_logs_and_tells_holds_no_secret(
    world: Any, certificate: Certificate, ca_refuses: Any
) -> None:
    """The certificate's key passes through here."""
    world.ca.script["revoke"].append(ca_refuses("unauthorized"))
    reply = await revoke(world, certificate_id=certificate.id, reason="key_compromise")
    key = await opened(world, certificate.key_id or "")
    pem = x509.private_key_pem(key)
    for text in (repr(world.logged), repr(reply), repr(await world.events())):
        assert "PRIVATE KEY" not in text
        assert repr(key)[2:40] not in text
        assert pem.splitlines()[1] not in text
    assert RevocationId(reply.id).startswith("revocation_")
    assert ABSENT == 0
