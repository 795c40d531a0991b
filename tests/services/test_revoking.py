"""Revocation: the right version, the right signer, written down before the CA is asked, and told once."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaivaultd.acme import x509
from scaivaultd.acme.exchange import NotOffered
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
)
from scaivaultd.model.resources import CertificateVersion, Issued, Revocation
from scaivaultd.services import renewals, revoking
from scaivaultd.services.compromised_keys import is_compromised, spki_sha256_in
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, COMPROMISED_KEYS, RENEWALS, REVOCATIONS, VERSIONS
from scaivaultd.services.revocation_at_ca import AT_ONCE
from scaivaultd.services.revocation_targets import serial_of
from tests.fakes.revoking import (
    LOG,
    HearingCas,
    Replacements,
    change,
    failing,
    fingerprint,
    idle,
    issued,
    key_thumbprint,
    leaf_of,
    opened,
    plug_in,
    revoke,
    shown,
    told,
    until,
)
from tests.fakes.scripted_ca import ScriptedCa

if TYPE_CHECKING:
    from scaivaultd.model.resources import Certificate, RevocationReason
    from tests.fakes.revoking import (
        LOG,
        HearingCas,
        Replacements,
        change,
        failing,
        fingerprint,
        idle,
        issued,
        key_thumbprint,
        leaf_of,
        opened,
        plug_in,
        revoke,
        shown,
        told,
        until,
    )
from tests.fakes.scripted_ca import FakeClock, Issuer


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
        await idle()
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

    @pytest.mark.parametrize("weather", [CaMisbehaved("no JSON"), BackendRateLimited("slowly"), CaUnavailable("502")])
    async def test_weather_says_nothing_about_the_signer(
        self, world: Any, certificate: Certificate, weather: Exception
    ) -> None:
        """Only a clear no of the CA makes us ask in the account's name; after a pause the key signs again."""
        world.ca.script["revoke"].append(weather)
        assert (await revoke(world, certificate_id=certificate.id, reason="key_compromise")).status == "done"
        assert [each.signer for each in world.cas.heard] == [await key_thumbprint(world, certificate)] * 2

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
        """Its key could be certified again without the mark, and browsers heed that reason more than others."""
        first = await revoke(world, certificate_id=certificate.id, reason="superseded")
        later = await revoke(world, certificate_id=certificate.id, reason="key_compromise")
        assert await is_compromised(world.sqlite, spki_sha256_in(certificate.chain_pem))
        assert (later.status, later.reason, later.was_revoked_already) == ("done", "key_compromise", True)
        assert [each.reason for each in world.cas.heard] == [4, 1]
        assert world.cas.heard[1].signer == await key_thumbprint(world, certificate)
        again = await revoke(world, certificate_id=certificate.id, reason="key_compromise")
        assert (again.id, again.reason, again.was_revoked_already) == (later.id, "key_compromise", True)
        assert later.id != first.id
        assert len(world.cas.heard) == 2
        assert [each["reason"] for each in await told(world)] == ["superseded"]

    @pytest.mark.parametrize("takes_it", [True, False])
    @pytest.mark.parametrize("use_acme", [True, False])
    async def test_a_compromised_key_is_the_one_reason_that_follows_another(
        self, world: Any, certificate: Certificate, takes_it: bool, use_acme: bool
    ) -> None:
        """It was revoked when it was revoked, and some CAs publish the reason that came later."""
        await revoke(world, certificate_id=certificate.id, reason="superseded")
        first = (await world.read(CERTIFICATES, certificate.id)).value.revocation
        if takes_it:
            world.ca.revoked.clear()
        world.clock.advance(60)
        reply = await revoke(world, certificate_id=certificate.id, reason="key_compromise", use_acme=use_acme)
        assert (reply.status, reply.reason) == ("done", "key_compromise")
        assert reply.was_revoked_already is not (takes_it and use_acme)
        revocation = (await world.read(CERTIFICATES, certificate.id)).value.revocation
        assert revocation == Revocation(at=first.at, origin="acme", reason="key_compromise")
        assert len(world.cas.heard) == 1 + use_acme
        await revoke(world, certificate_id=certificate.id, reason="superseded")
        assert (await world.read(CERTIFICATES, certificate.id)).value.revocation == revocation
        assert len(await told(world)) == 1

    async def test_a_refusal_of_the_later_reason_leaves_the_mark(
        self, world: Any, certificate: Certificate, ca_refuses: Any
    ) -> None:
        """The caller hears of it and may ask again; the version stays revoked."""
        await revoke(world, certificate_id=certificate.id, reason="superseded")
        world.ca.script["revoke"].append(ca_refuses("badRevocationReason"))
        error = await failing(world, certificate_id=certificate.id, reason="key_compromise")
        assert isinstance(error, CaRefused)
        assert await is_compromised(world.sqlite, spki_sha256_in(certificate.chain_pem))
        held = (await world.read(CERTIFICATES, certificate.id)).value
        assert (held.status, held.revocation.reason) == ("revoked", "superseded")
        assert (await revoke(world, certificate_id=certificate.id, reason="key_compromise")).status == "done"

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
