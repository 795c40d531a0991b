"""What an update changes, what it orders at once, and what stands after a stop at any moment in between."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from scaivaultd.acme import x509
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.dns import PropagationOverride
from scaivaultd.model.errors import (
    AccountUnusable,
    CaUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    UnsupportedChallenge,
)
from scaivaultd.model.names import Identifier
from scaivaultd.model.resources import UNFINISHED, Order, Renewal, Trouble, terms_of
from scaivaultd.model.storage import Delete
from scaivaultd.services.documents import ACCOUNTS, CERTIFICATES, ORDERS, RENEWALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.model.ids import OrderId
    from scaivaultd.model.resources import Certificate, KeyType, Terms
    from scaivaultd.model.storage import Change

CONTEXT = RequestContext(request_id="req_1")
WAIT = 20.0


@pytest.fixture
async def certificate_id(world: Any) -> str:
    order = await world.issue("a.example.test", "b.example.test")
    return str(order.certificate_id)


async def update(world: Any, certificate_id: str, **members: Any) -> m.CertificateReply:
    request = m.UpdateCertificate(id=certificate_id, **members)
    reply: m.CertificateReply = await world.updating.update(request, CONTEXT)
    return reply


async def refusal(world: Any, certificate_id: str, **members: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        await update(world, certificate_id, **members)
    return caught.value


async def shown(world: Any, certificate_id: str) -> Certificate:
    certificate: Certificate = (await world.read(CERTIFICATES, certificate_id)).value
    return certificate


async def terms(world: Any, certificate_id: str) -> Terms:
    return terms_of(await shown(world, certificate_id))


async def renewal(world: Any, certificate_id: str) -> Renewal:
    found: Renewal = (await world.read(RENEWALS, certificate_id)).value
    return found


async def change_certificate(world: Any, certificate_id: str, **changes: Any) -> None:
    held = await world.read(CERTIFICATES, certificate_id)
    await world.sqlite.commit([CERTIFICATES.put(msgspec.structs.replace(held.value, **changes), held.revision)])


async def change_renewal(world: Any, certificate_id: str, **changes: Any) -> None:
    held = await world.read(RENEWALS, certificate_id)
    await world.sqlite.commit([RENEWALS.put(msgspec.structs.replace(held.value, **changes), held.revision)])


async def change_account(world: Any, account_id: str, **changes: Any) -> None:
    held = await world.read(ACCOUNTS, account_id)
    await world.sqlite.commit([ACCOUNTS.put(msgspec.structs.replace(held.value, **changes), held.revision)])


async def orders(world: Any) -> list[Order]:
    page = await ORDERS.page(world.sqlite, where={}, cursor=None, limit=100)
    return [each.value for each in page.items]


def csr_for(*texts: str, key_type: KeyType = "ec-p256") -> str:
    names = [Identifier("dns", each) for each in texts]
    return base64.b64encode(x509.csr_der(x509.make_key(key_type), names)).decode()


class Held:
    """The CA does not answer the next finalize until it is let go."""

    def __init__(self, world: Any, *before: Exception) -> None:
        self._world = world
        self._reached = asyncio.Event()
        self._may_go = asyncio.Event()
        world.ca.script["new_order"].extend(before)
        world.ca.script["finalize"].append(self._hold)

    async def _hold(self) -> None:
        self._reached.set()
        await self._may_go.wait()

    async def order(self, certificate_id: str) -> OrderId:
        """A renewal that is under way, and stays so."""
        order_id: OrderId = (await self._world.issuing.renew(certificate_id, "request")).id
        await asyncio.wait_for(self._reached.wait(), WAIT)
        return order_id

    def let_go(self) -> None:
        self._may_go.set()


class TestNames:
    async def test_other_names_make_the_next_version_at_once(self, world: Any, certificate_id: str) -> None:
        """The id stays, so that whoever fetches by it finds the new names; the old version stays listed."""
        reply = await update(world, certificate_id, domains=["A.example.test", "c.example.test"], wait_seconds=WAIT)
        assert (reply.id, reply.version) == (certificate_id, 2)
        assert reply.domains == ["a.example.test", "c.example.test"]
        assert reply.terms is not None and reply.terms.domains == reply.domains
        assert reply.renewal is not None and reply.renewal.order_id is None
        await world.idle()
        assert [each.cause for each in await orders(world)] == ["issue", "update"]
        assert (await world.event_types()).count("certificate.renewed") == 1
        assert not (await renewal(world, certificate_id)).is_due

    async def test_without_a_wait_the_reply_shows_the_order(self, world: Any, certificate_id: str) -> None:
        """The caller can follow it, and the current version is what it was."""
        reply = await update(world, certificate_id, domains=["c.example.test"])
        assert reply.version == 1
        assert reply.renewal is not None and reply.renewal.order_id is not None
        await world.idle()
        assert (await shown(world, certificate_id)).version == 2

    async def test_the_same_names_written_otherwise_are_no_change(self, world: Any, certificate_id: str) -> None:
        """Automation says the same every hour: no order, no commit, and failures keep their pauses."""
        await change_renewal(world, certificate_id, attempt=3)
        before = await world.read(RENEWALS, certificate_id)
        await update(world, certificate_id, domains=["B.example.test.", "a.example.test", "a.example.test"])
        assert len(await orders(world)) == 1
        assert await world.read(RENEWALS, certificate_id) == before
        assert world.said("certificate.updated") == []

    async def test_what_cannot_be_ordered_changes_nothing(self, world: Any, certificate_id: str) -> None:
        """Refused as `issue` refuses it, at the member that is wrong; an order under way is left alone."""
        held = Held(world)
        order_id = await held.order(certificate_id)
        before = await world.read(CERTIFICATES, certificate_id)
        error = await refusal(world, certificate_id, domains=["a.example.test", "*.example.test"])
        assert isinstance(error, UnsupportedChallenge)
        assert error.fields[0].pointer == "/domains/1"
        assert (await refusal(world, certificate_id, domains=["a..test"])).fields[0].pointer == "/domains/0"
        assert await world.read(CERTIFICATES, certificate_id) == before
        assert (await world.shown(order_id)).status in UNFINISHED
        held.let_go()
        await world.idle()

    async def test_an_order_for_the_old_names_is_ended_first(self, world: Any, certificate_id: str) -> None:
        """Else the old names could come last, and stay."""
        old = await Held(world).order(certificate_id)
        reply = await update(world, certificate_id, domains=["c.example.test"], wait_seconds=WAIT)
        assert (reply.version, reply.domains) == (2, ["c.example.test"])
        await world.idle()
        assert (await world.shown(old)).status == "deactivated"
        assert (await renewal(world, certificate_id)).error is None

    async def test_a_stop_right_after_the_change_leaves_the_certificate_due(
        self, world: Any, certificate_id: str
    ) -> None:
        """Whoever comes up next orders the new names; nobody has to say it twice."""

        async def die(changes: Sequence[Change]) -> None:
            if any(each.key.startswith("order/") for each in changes):
                raise asyncio.CancelledError

        world.store.before_commit = die
        with pytest.raises(asyncio.CancelledError):
            await update(world, certificate_id, domains=["c.example.test"])
        world.store.before_commit = None
        after = await renewal(world, certificate_id)
        assert (after.is_due, after.cause, after.order_id) == (True, "update", None)
        assert (await terms(world, certificate_id)).identifiers == (Identifier("dns", "c.example.test"),)

    async def test_a_stop_between_the_end_of_the_old_order_and_the_change_loses_nothing_but_that_order(
        self, world: Any, certificate_id: str
    ) -> None:
        """The caller had no answer and asks again."""
        old = await Held(world).order(certificate_id)

        async def die(changes: Sequence[Change]) -> None:
            if any(each.key.startswith("certificate/") for each in changes):
                raise asyncio.CancelledError

        world.store.before_commit = die
        with pytest.raises(asyncio.CancelledError):
            await update(world, certificate_id, domains=["c.example.test"])
        world.store.before_commit = None
        await world.die()
        assert (await world.shown(old)).status == "deactivated"
        reply = await update(world, certificate_id, domains=["c.example.test"], wait_seconds=WAIT)
        assert reply.domains == ["c.example.test"]
        await world.idle()

    async def test_what_cannot_be_ordered_now_is_changed_all_the_same(self, world: Any, certificate_id: str) -> None:
        """The change is made and due; why there is no order yet is in the log, and soon in the renewal."""
        await change_account(world, (await shown(world, certificate_id)).account_id, status="deactivated")
        reply = await update(world, certificate_id, domains=["c.example.test"])
        assert reply.terms is not None and reply.terms.domains == ["c.example.test"]
        assert (await renewal(world, certificate_id)).is_due
        assert [each["error_code"] for each in world.said("certificate.update_not_ordered")] == ["account_unusable"]


class TestCsr:
    async def test_another_csr_is_ordered_at_once_and_no_key_is_here(self, world: Any, certificate_id: str) -> None:
        """From now on the key is the caller's own; the key of the version before stays fetchable."""
        csr = csr_for("a.example.test", "b.example.test", key_type="ec-p384")
        reply = await update(world, certificate_id, csr=csr, wait_seconds=WAIT)
        assert (reply.version, reply.has_private_key, reply.key_type) == (2, False, "ec-p384")
        assert reply.terms is not None and reply.terms.has_csr
        await update(world, certificate_id, csr=csr)
        await world.idle()
        assert (await shown(world, certificate_id)).version == 2

    async def test_names_and_csr_change_together(self, world: Any, certificate_id: str) -> None:
        """A CA takes a CSR for all names of the order and no others."""
        csr = csr_for("c.example.test")
        error = await refusal(world, certificate_id, csr=csr)
        assert error.fields[0].pointer == "/csr"
        error = await refusal(world, certificate_id, csr=csr, domains=["d.example.test"])
        assert error.fields[0].pointer == "/domains"
        reply = await update(world, certificate_id, csr=csr, domains=["c.example.test"], wait_seconds=WAIT)
        assert (reply.domains, reply.has_private_key) == (["c.example.test"], False)
        error = await refusal(world, certificate_id, domains=["a.example.test"])
        assert [(each.pointer, each.code) for each in error.fields] == [("/csr", "missing_field")]
        await update(world, certificate_id, domains=["C.example.test"])
        await world.idle()

    async def test_the_key_type_is_that_of_the_csr(self, world: Any, certificate_id: str) -> None:
        """Nobody here can make another key for it."""
        csr = csr_for("a.example.test", "b.example.test")
        error = await refusal(world, certificate_id, csr=csr, key_type="rsa-2048")
        assert error.fields[0].pointer == "/key_type"
        await update(world, certificate_id, csr=csr, key_type="ec-p256", wait_seconds=WAIT)
        error = await refusal(world, certificate_id, key_type="rsa-2048")
        assert error.fields[0].pointer == "/key_type"
        await world.idle()


class TestTerms:
    async def test_what_the_next_order_asks_for_is_kept_and_nothing_is_ordered(
        self, world: Any, certificate_id: str
    ) -> None:
        """The current version is as good as it was."""
        other = await world.account(name="other")
        heard: list[str] = []
        world.tools.renewals.subscribe(heard.append)
        reply = await update(
            world,
            certificate_id,
            account_ids=[other],
            key_type="rsa-2048",
            reuse_key=True,
            profile="short",
            profile_policy="preferred",
            preferred_chain="Root",
            renew_before="30d",
            auto_renew=False,
            solver="http-01",
        )
        kept = await terms(world, certificate_id)
        assert kept.accounts == (reply.account_id, other)
        assert (kept.key_type, kept.reuse_key, kept.solver) == ("rsa-2048", True, "http-01")
        assert (kept.profile, kept.profile_is_required, kept.preferred_chain) == ("short", False, "Root")
        assert (reply.auto_renew, reply.key_type, reply.version) == (False, "ec-p256", 1)
        assert reply.terms is not None and reply.terms.renew_before_seconds == 30 * 86400
        after = await renewal(world, certificate_id)
        assert (after.auto_renew, after.renew_before_seconds) == (False, 30 * 86400)
        assert len(await orders(world)) == 1
        assert heard == [certificate_id]
        (said,) = world.said("certificate.updated")
        assert {"key_type", "auto_renew", "renew_before_seconds", "account_ids"} <= set(said["members"])
        assert "identifiers" not in said["members"]

    async def test_null_takes_away(self, world: Any, certificate_id: str) -> None:
        """And absent leaves as it is."""
        await update(world, certificate_id, profile="short", preferred_chain="Root", renew_before=60, solver="http-01")
        await update(world, certificate_id, profile=None, renew_before=None, solver=None)
        kept = await terms(world, certificate_id)
        assert (kept.profile, kept.preferred_chain, kept.solver) == (None, "Root", None)
        assert (await renewal(world, certificate_id)).renew_before_seconds is None

    async def test_the_first_account_and_the_further_ones_change_apart(self, world: Any, certificate_id: str) -> None:
        """Whoever replaces the first one does not want to repeat the others."""
        first = (await shown(world, certificate_id)).account_id
        second, third = await world.account(name="second"), await world.account(name="third")
        await update(world, certificate_id, account_ids=[second])
        await update(world, certificate_id, account_id=third)
        assert (await terms(world, certificate_id)).accounts == (third, second)
        await update(world, certificate_id, account_id=first, account_ids=[])
        kept = await terms(world, certificate_id)
        assert (kept.account_id, kept.account_ids) == (first, ())

    async def test_an_account_that_cannot_order_is_refused(self, world: Any, certificate_id: str) -> None:
        """That it cannot would be found out at the next renewal."""
        other = await world.account(name="other")
        await change_account(world, other, status="deactivated")
        with pytest.raises(AccountUnusable):
            await update(world, certificate_id, account_id=other)
        for members, pointer in (
            ({"account_id": "acme_none"}, "/account_id"),
            ({"account_ids": [other, "acme_none"]}, "/account_ids/1"),
        ):
            with pytest.raises(NotFound) as caught:
                await update(world, certificate_id, **members)
            assert [each.pointer for each in caught.value.fields] == [pointer]

    async def test_what_is_not_changed_is_not_judged_again(self, world: Any, certificate_id: str) -> None:
        """The account is gone meanwhile: that must not stand in the way of switching the renewal off."""
        await change_account(world, (await shown(world, certificate_id)).account_id, status="deactivated")
        assert not (await update(world, certificate_id, auto_renew=False)).auto_renew

    async def test_names_are_judged_again_for_another_ca_and_another_challenge(
        self, world: Any, certificate_id: str
    ) -> None:
        """A private CA certifies what no public one may."""
        await update(world, certificate_id, domains=["host.internal"], wait_seconds=WAIT)
        public = await world.account(name="public")
        await change_account(world, public, provider="letsencrypt")
        assert "special use" in (await refusal(world, certificate_id, account_id=public)).detail
        await update(world, certificate_id, domains=["192.0.2.1"], wait_seconds=WAIT)
        await world.idle()

    async def test_a_challenge_that_nobody_here_solves_is_refused(self, world: Any, certificate_id: str) -> None:
        """It would fail at the next renewal, when nobody looks."""
        assert (await refusal(world, certificate_id, challenge_type="tls-alpn-01")).fields[0].code == "no_solver"
        assert (await refusal(world, certificate_id, solver="other")).fields[0].pointer == "/solver"
        assert (await refusal(world, certificate_id, dns_provider="x")).fields[0].pointer == "/dns_provider"

    async def test_another_challenge_takes_nothing_over_from_the_one_before(
        self, dns_world: Any, certificate_id: str
    ) -> None:
        """A DNS provider says nothing for http-01, and one challenge's solver has no meaning for another."""
        world = dns_world
        await world.provider()
        wishes = m.PropagationRequest(visibility="skip")
        error = await refusal(world, certificate_id, challenge_type="dns-01", dns_provider="none")
        assert error.fields[0].pointer == "/dns_provider"
        await update(world, certificate_id, solver="http-01")
        await update(world, certificate_id, challenge_type="dns-01", dns_provider="main", propagation=wishes)
        kept = await terms(world, certificate_id)
        assert (kept.solver, kept.dns_provider) == (None, "main")
        assert kept.propagation == PropagationOverride(visibility="skip")
        await update(world, certificate_id, challenge_type="http-01")
        kept = await terms(world, certificate_id)
        assert (kept.challenge_type, kept.dns_provider, kept.propagation) == ("http-01", None, None)

    async def test_there_must_be_a_certificate(self, world: Any) -> None:
        """Whatever the id looks like."""
        with pytest.raises(NotFound):
            await update(world, "cert_none", auto_renew=False)


class TestFailures:
    async def test_a_change_forgets_earlier_failures(self, world: Any, certificate_id: str) -> None:
        """They were about what was asked for before."""
        await change_renewal(
            world,
            certificate_id,
            attempt=4,
            next_try_at=world.clock.now(),
            error=Trouble(code="ca_error", detail="no"),
            is_stopped=True,
        )
        await update(world, certificate_id, profile="short")
        after = await renewal(world, certificate_id)
        assert (after.attempt, after.next_try_at, after.error, after.is_stopped) == (0, None, None, False)
        assert not after.is_due

    @pytest.mark.parametrize("member", ["account_id", "solver"])
    async def test_an_order_that_does_not_get_on_begins_anew_by_what_may_help(
        self, world: Any, certificate_id: str, member: str
    ) -> None:
        """The person who changed it looks at what happens now."""
        value = await world.account(name="other") if member == "account_id" else "http-01"
        old = await Held(world, CaUnavailable("down")).order(certificate_id)
        reply = await update(world, certificate_id, wait_seconds=WAIT, **{member: value})
        assert reply.version == 2
        await world.idle()
        assert [each.status for each in await orders(world)] == ["valid", "deactivated", "valid"]
        assert (await world.shown(old)).status == "deactivated"
        if member == "account_id":
            assert reply.account_id == value

    async def test_an_order_that_gets_on_is_left_alone(self, world: Any, certificate_id: str) -> None:
        """It may be about to end, and the change is for the next."""
        held = Held(world)
        order_id = await held.order(certificate_id)
        await update(world, certificate_id, account_ids=[await world.account(name="other")])
        assert (await renewal(world, certificate_id)).order_id == order_id
        held.let_go()
        assert (await world.ended(order_id)).status == "valid"
        assert len(await orders(world)) == 2

    async def test_a_failing_order_is_left_alone_by_what_cannot_help(self, world: Any, certificate_id: str) -> None:
        """To begin anew costs an order at the CA."""
        held = Held(world, CaUnavailable("down"))
        order_id = await held.order(certificate_id)
        await update(world, certificate_id, key_type="rsa-2048", auto_renew=False, preferred_chain="Root")
        after = await renewal(world, certificate_id)
        assert (after.order_id, after.attempt) == (order_id, 0)
        held.let_go()
        assert (await world.ended(order_id)).status == "valid"


class TestOthersAtTheSameTime:
    async def test_a_change_by_somebody_else_in_between_is_not_lost(self, world: Any, certificate_id: str) -> None:
        """Two people change two members: both changes stand."""

        async def interfere(changes: Sequence[Change]) -> None:
            world.store.before_commit = None
            await change_certificate(world, certificate_id, renew_before_seconds=99.0)

        world.store.before_commit = interfere
        await update(world, certificate_id, auto_renew=False)
        certificate = await shown(world, certificate_id)
        assert (certificate.auto_renew, certificate.renew_before_seconds) == (False, 99.0)
        assert (await renewal(world, certificate_id)).renew_before_seconds == 99.0

    async def test_a_change_of_the_renewal_in_between_is_not_lost(self, world: Any, certificate_id: str) -> None:
        """The scheduler writes it whenever it likes."""

        async def interfere(changes: Sequence[Change]) -> None:
            world.store.before_commit = None
            await change_renewal(world, certificate_id, polls_failed=7)

        world.store.before_commit = interfere
        await update(world, certificate_id, auto_renew=False)
        after = await renewal(world, certificate_id)
        assert (after.auto_renew, after.polls_failed) == (False, 7)

    async def test_an_order_that_ends_just_before_it_would_be_ended_is_fine(
        self, world: Any, certificate_id: str
    ) -> None:
        """Its version comes, and then the one with the new names."""
        held = Held(world)
        old = await held.order(certificate_id)

        async def let_it_end(key: str) -> None:
            if key == ORDERS.key(old):
                world.store.after_get = None
                held.let_go()
                await world.idle()

        world.store.after_get = let_it_end
        reply = await update(world, certificate_id, domains=["c.example.test"], wait_seconds=WAIT)
        assert (reply.version, reply.domains) == (3, ["c.example.test"])
        await world.idle()
        assert [each.status for each in await orders(world)] == ["valid", "valid", "valid"]

    async def test_an_update_that_is_always_too_late_says_so(self, world: Any, certificate_id: str) -> None:
        """No request goes round for ever."""
        turns = iter(range(1000))

        async def interfere(changes: Sequence[Change]) -> None:
            await change_certificate(world, certificate_id, renew_before_seconds=float(next(turns)))

        world.store.before_commit = interfere
        with pytest.raises(Conflict):
            await update(world, certificate_id, auto_renew=False)

    async def test_a_certificate_of_an_older_store_gets_its_renewal(self, world: Any, certificate_id: str) -> None:
        """The document beside it may not be there yet."""
        await world.sqlite.commit([Delete(key=RENEWALS.key(certificate_id))])
        await update(world, certificate_id, auto_renew=False)
        after = await renewal(world, certificate_id)
        assert (after.auto_renew, after.version) == (False, 1)
