"""Revocations under way: tried again, replaced first, overtaken by others, and killed between any two steps."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaMisbehaved,
    CaRefused,
    CaUnavailable,
    Conflict,
    InvalidRequest,
    RateLimited,
    ScaivaultError,
    Timeout,
)
from scaivaultd.model.resources import RevocationRequest, Trouble, terms_of
from scaivaultd.model.storage import Delete
from scaivaultd.services.documents import CERTIFICATES, COMPROMISED_KEYS, ORDERS, RENEWALS, REVOCATIONS, VERSIONS
from tests.fakes.revoking import (
    LOG,
    HearingCas,
    Replacements,
    at_ca,
    at_commit,
    change,
    die,
    failing,
    fingerprint,
    idle,
    issued,
    jobs,
    key_thumbprint,
    leaf_of,
    ordered,
    plug_in,
    revoke,
    shown,
    told,
    until,
)
from tests.fakes.scripted_ca import ScriptedCa

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.model.resources import Certificate
    from tests.fakes.revoking import (
        LOG,
        HearingCas,
        Replacements,
        at_ca,
        at_commit,
        change,
        die,
        failing,
        fingerprint,
        idle,
        issued,
        jobs,
        key_thumbprint,
        leaf_of,
        ordered,
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
        assert failed.value.next_try_at is None
        assert failed.value.error is not None
        assert failed.value.error.detail == error.detail
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
        await world.sqlite.commit([Delete(key=RENEWALS.key(certificate.id))])
        assert (await revoke(world, certificate_id=certificate.id)).status == "done"

    async def test_an_order_that_is_not_valid_keeps_its_state(self, world: Any, certificate: Certificate) -> None:
        """Only what brought the version can have it revoked."""
        await world.change(certificate.order_id, status="expired")
        await revoke(world, certificate_id=certificate.id)
        assert (await world.shown(certificate.order_id)).status == "expired"


class TestReplacing:
    async def test_the_new_version_comes_first(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """In between both are good: no outage for whoever serves the certificate."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        order_id = await ordered(world, pending.id)
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

    async def test_a_caller_who_waits_hears_of_the_end(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """One request, and it is done when the answer comes."""
        asked = asyncio.create_task(revoke(world, certificate_id=certificate.id, replace=True, reason="key_compromise"))
        await until(lambda: REVOCATIONS.all(world.sqlite, LOG))
        (request,) = await REVOCATIONS.all(world.sqlite, LOG)
        await replacements.bring(await ordered(world, request.value.id))
        async with asyncio.timeout(10):
            assert (await asked).status == "done"
        assert [each.signer for each in world.cas.heard] == [await key_thumbprint(world, certificate)]

    async def test_with_real_orders_it_is_one_request(self, world: Any, certificate: Certificate) -> None:
        """Order, new key, new version, revocation and both events, in this sequence."""
        async with asyncio.timeout(20):
            done = await revoke(world, certificate_id=certificate.id, replace=True, reason="key_compromise")
        await idle()
        assert done.status == "done"
        order = await world.shown(done.order_id)
        assert (order.status, order.cause, order.version) == ("valid", "revocation", 2)
        current = (await world.read(CERTIFICATES, certificate.id)).value
        assert (current.version, current.status) == (2, "valid")
        assert current.key_id != certificate.key_id
        assert (await world.event_types())[-2:] == ["certificate.renewed", "certificate.revoked"]
        assert (await world.read(RENEWALS, certificate.id)).value.is_stopped is False

    async def test_a_key_that_is_kept_for_renewals_is_not_kept_for_this_one(
        self, world: Any, certificate: Certificate
    ) -> None:
        """`reuse_key` is meant for pins, not for keys in wrong hands."""
        terms = msgspec.structs.replace(terms_of(certificate), reuse_key=True)
        await change(world, CERTIFICATES, certificate.id, terms=terms)
        async with asyncio.timeout(20):
            assert (await revoke(world, certificate_id=certificate.id, replace=True)).status == "done"
        await idle()
        assert (await world.read(CERTIFICATES, certificate.id)).value.key_id != certificate.key_id

    async def test_what_the_order_meets_on_its_way_is_shown(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """An order that renews is tried for as long as it takes; who looks here must see why it takes long."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        order_id = await ordered(world, pending.id)
        await world.change(order_id, error=Trouble(code="ca_unavailable", detail="the CA is down"))

        async def is_shown() -> bool:
            error = (await shown(world, pending.id)).error
            return error is not None and error.detail == "the CA is down"

        await until(is_shown)
        await replacements.bring(order_id)
        await idle()
        assert (await shown(world, pending.id)).error is None

    async def test_in_our_store_only_it_is_replaced_first_too(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """`use_acme` says who hears of the revocation, and nothing of what comes before."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, use_acme=False, wait_seconds=0)
        await replacements.bring(await ordered(world, pending.id))
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
        order_id = await ordered(world, pending.id)
        assert (await shown(world, pending.id)).error is None
        await replacements.bring(order_id)
        await idle()
        assert (await shown(world, pending.id)).status == "done"

    async def test_a_failed_order_is_shown_and_the_next_one_of_the_renewal_counts(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """The certificate's renewal tries again at its own pace; nothing is ordered beside it."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        first = await ordered(world, pending.id)
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
        first = await ordered(world, pending.id)
        await replacements.fail(first)
        second = await replacements.begin(certificate.id, "revocation")
        assert await ordered(world, pending.id, other_than=first) == second.id
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
        assert await ordered(world, pending.id) == scheduled.id
        await replacements.bring(scheduled.id, key_id=certificate.key_id)
        fresh = await ordered(world, pending.id, other_than=scheduled.id)
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
        await replacements.bring(await ordered(world, pending.id), key_id=certificate.key_id)
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
        await replacements.fail(await ordered(world, pending.id), "no such name")

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
        await replacements.fail(await ordered(world, pending.id))
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
        """A CA that asked for half an hour is not asked by the next life at once."""
        now = world.clock.now()
        pending = RevocationRequest(
            id=world.ids.revocation(),
            status="pending",
            certificate_id=certificate.id,
            version=1,
            serial_number=certificate.serial_number,
            reason="unspecified",
            use_acme=True,
            replace=False,
            created_at=now,
            give_up_at=now + timedelta(hours=1),
            attempt=3,
            next_try_at=now + timedelta(minutes=30),
        )
        await world.sqlite.commit([REVOCATIONS.put(pending)])
        asked_at: list[datetime] = []
        world.ca.script["revoke"].append(lambda: asked_at.append(world.clock.now()))
        await die(world)
        await idle()
        assert asked_at == [pending.next_try_at]
        assert (await shown(world, pending.id)).status == "done"

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
        order_id = await ordered(world, pending.id)
        assert len([each for each in await ORDERS.all(world.sqlite, LOG) if each.value.renews]) == 1
        await replacements.bring(order_id)
        await idle()
        assert (await shown(world, pending.id)).status == "done"

    async def test_a_replacement_that_came_while_we_were_down_is_seen(
        self, world: Any, certificate: Certificate, replacements: Replacements
    ) -> None:
        """Nobody tells of it a second time: the documents do."""
        pending = await revoke(world, certificate_id=certificate.id, replace=True, wait_seconds=0)
        order_id = await ordered(world, pending.id)
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
