"""Orders that make the next version of a certificate: what they ask for, what they bring, and how they fail."""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography import x509

from scaivaultd.acme.x509 import csr_der, make_key
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.dns import CaaSet
from scaivaultd.model.errors import (
    AccountUnusable,
    BackendRateLimited,
    CaUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    Problem,
)
from scaivaultd.model.ids import CertificateId
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.resources import CompromisedKey, Renewal, RenewalPoint, RenewalWindow, terms_of
from scaivaultd.services.compromised_keys import spki_sha256_in
from scaivaultd.services.documents import (
    ACCOUNTS,
    CERTIFICATES,
    COMPROMISED_KEYS,
    KEYS,
    NAME_POINTERS,
    RENEWALS,
    VERSIONS,
    name_pointer_id,
    version_id,
)

CONTEXT = RequestContext(request_id="req_test")
HOUR = timedelta(hours=1)


async def _issued(world: Any, *domains: str, **members: Any) -> str:
    order = await world.ended(await world.order(*domains, **members))
    assert order.status == "valid", order.error
    return str(order.certificate_id)


async def _renewed(world: Any, certificate_id: str, cause: str = "request") -> Any:
    order = await world.issuing.renew(certificate_id, cause)
    return await world.ended(order.id)


async def _renewal(world: Any, certificate_id: str) -> Renewal:
    found: Renewal = (await world.read(RENEWALS, certificate_id)).value
    return found


async def _certificate(world: Any, certificate_id: str) -> Any:
    return (await world.read(CERTIFICATES, certificate_id)).value


def _with_ari(world: Any) -> None:
    world.ca.directory = msgspec.structs.replace(world.ca.directory, renewal_info="https://ca.test/renewal")


class TestVersions:
    async def test_a_renewal_makes_a_new_version_of_the_same_certificate(self, world: Any) -> None:
        """Whoever holds the id finds the newest, and the one before as it was."""
        certificate_id = await _issued(world, "a.example.test", "b.example.test")
        before = await _certificate(world, certificate_id)
        order = await _renewed(world, certificate_id)
        after = await _certificate(world, certificate_id)
        assert (order.status, order.certificate_id, order.version) == ("valid", certificate_id, 2)
        assert (after.version, after.created_at, after.order_id) == (2, before.created_at, order.id)
        assert after.key_id != before.key_id
        earlier = (await world.read(VERSIONS, version_id(certificate_id, 1))).value
        assert (earlier.chain_pem, earlier.key_id, earlier.order_id) == (
            before.chain_pem,
            before.key_id,
            before.order_id,
        )
        pointer = await NAME_POINTERS.get(world.sqlite, name_pointer_id(after.identifiers, after.key_type))
        assert pointer is not None and (pointer.value.certificate_id, pointer.value.version) == (certificate_id, 2)

    async def test_each_version_has_exactly_one_event(self, world: Any) -> None:
        """Subscribers count versions by events."""
        certificate_id = await _issued(world)
        for _ in range(3):
            await _renewed(world, certificate_id)
        told = [(kind, body["version"]) for kind, body in await world.events() if kind.startswith("certificate.")]
        assert told == [("certificate.issued", 1), *(("certificate.renewed", number) for number in (2, 3, 4))]
        body = dict(await world.events())["certificate.renewed"]
        assert (body["previous_version"], body["cause"]) == (3, "request")

    async def test_the_life_of_a_version_begins_with_it(self, world: Any) -> None:
        """Nothing of what was known about the version before holds any more."""
        certificate_id = await _issued(world)
        await _renewed(world, certificate_id)
        renewal = await _renewal(world, certificate_id)
        assert (renewal.version, renewal.order_id, renewal.attempt) == (2, None, 0)
        assert renewal.poll_at == world.clock.now() or renewal.poll_at is not None
        assert renewal.ari_id == (await _certificate(world, certificate_id)).ari_id

    async def test_one_order_at_a_time(self, world: Any) -> None:
        """Ten callers at once get one order, and the CA sees one."""
        certificate_id = await _issued(world)
        orders = await asyncio.gather(*(world.issuing.renew(certificate_id, "request") for _ in range(10)))
        assert len({each.id for each in orders}) == 1
        await world.idle()
        assert len(world.ca.orders) == 2

    async def test_what_is_not_there_cannot_be_renewed(self, world: Any) -> None:
        """Nothing is written for it."""
        with pytest.raises(NotFound):
            await world.issuing.renew("cert_none", "request")

    @pytest.mark.parametrize("number", range(1, 6))
    async def test_a_crash_before_any_commit_leaves_one_version_more_in_the_end(self, world: Any, number: int) -> None:
        """Whatever is torn: one certificate, two versions, two events, and no order left over."""
        certificate_id = await _issued(world)
        commits, reached = 0, asyncio.Event()

        async def crash(_: Any) -> None:
            nonlocal commits
            commits += 1
            if commits == number:
                reached.set()
                await asyncio.Event().wait()

        world.store.before_commit = crash
        begun = asyncio.ensure_future(world.issuing.renew(certificate_id, "schedule"))
        async with asyncio.timeout(10):
            await reached.wait()
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)
        await world.die()
        world.store.before_commit = None
        await world.issuing.resume()
        await world.idle()
        if number == 1:
            await _renewed(world, certificate_id)
        assert (await _certificate(world, certificate_id)).version == 2
        told = [kind for kind, _ in await world.events() if kind.startswith("certificate.")]
        assert told == ["certificate.issued", "certificate.renewed"]
        assert (await _renewal(world, certificate_id)).order_id is None


class TestWhatIsAsked:
    async def test_replaces_names_the_predecessor_where_the_ca_has_ari(self, world: Any) -> None:
        """That is what makes the renewal free of limits (RFC 9773 section 5)."""
        _with_ari(world)
        certificate_id = await _issued(world)
        ari_id = (await _certificate(world, certificate_id)).ari_id
        await _renewed(world, certificate_id)
        assert [each["replaces"] for each in world.ca.asked_for] == [None, ari_id]

    async def test_nothing_is_replaced_where_the_ca_has_no_ari(self, world: Any) -> None:
        """The member may only be sent where it is offered."""
        certificate_id = await _issued(world)
        await _renewed(world, certificate_id)
        assert world.ca.asked_for[-1]["replaces"] is None

    async def test_already_replaced_is_asked_again_without(self, world: Any, ca_refuses: Any) -> None:
        """In the same attempt, once (RFC 9773 section 7.4)."""
        _with_ari(world)
        certificate_id = await _issued(world)
        world.ca.script["new_order"].append(ca_refuses("alreadyReplaced", 409, "has been replaced"))
        order = await _renewed(world, certificate_id)
        assert (order.status, order.attempt) == ("valid", 0)
        assert [each["replaces"] is None for each in world.ca.asked_for] == [True, False, True]

    async def test_another_account_replaces_nothing(self, world: Any) -> None:
        """The predecessor is not its own."""
        _with_ari(world)
        certificate_id = await _issued(world)
        other = await world.account(name="other")
        await _change_terms(world, certificate_id, account_id=other)
        await _renewed(world, certificate_id)
        assert world.ca.asked_for[-1]["replaces"] is None
        assert (await _certificate(world, certificate_id)).account_id == other

    async def test_a_profile_that_is_offered_is_asked_for(self, world: Any) -> None:
        """At every order."""
        world.ca.directory = msgspec.structs.replace(world.ca.directory, profiles={"short": "six days"})
        certificate_id = await _issued(world, profile="short")
        await _renewed(world, certificate_id)
        assert [each["profile"] for each in world.ca.asked_for] == ["short", "short"]

    async def test_a_required_profile_that_is_not_offered_ends_the_order(self, world: Any) -> None:
        """Before the CA is asked, and with those that there are."""
        order = await world.ended(await world.order(profile="short"))
        assert (order.status, world.ca.asked_for) == ("invalid", [])
        assert "it offers none at all" in order.error.detail
        assert order.error.remedy is not None and "profiles" in order.error.remedy

    async def test_a_preferred_profile_is_left_out_with_a_warning(self, world: Any, ca_refuses: Any) -> None:
        """Whether the directory or the CA's answer says so."""
        order = await world.ended(await world.order(profile="short", profile_policy="preferred"))
        assert order.status == "valid"
        assert "without a profile" in order.warnings[0]
        world.ca.directory = msgspec.structs.replace(world.ca.directory, profiles={"short": "six days"})
        world.ca.script["new_order"].append(ca_refuses("invalidProfile", 400, "not today"))
        order = await world.ended(await world.order("b.example.test", profile="short", profile_policy="preferred"))
        assert (order.status, [each["profile"] for each in world.ca.asked_for[-2:]]) == ("valid", ["short", None])

    async def test_not_after_is_asked_for_with_the_same_lifetime_each_time(self, world: Any) -> None:
        """A fixed day would make each certificate shorter than the one before."""
        wanted = world.clock.now() + timedelta(days=10)
        certificate_id = await _issued(world, not_after=wanted)
        assert abs(world.ca.asked_for[0]["not_after"] - wanted) < timedelta(seconds=5)
        world.clock.advance(86_400)
        await _renewed(world, certificate_id)
        assert abs(world.ca.asked_for[1]["not_after"] - wanted - timedelta(days=1)) < timedelta(seconds=60)

    async def test_a_key_is_kept_only_when_asked_to(self, world: Any) -> None:
        """`reuse_key` is for those who pin."""
        certificate_id = await _issued(world, reuse_key=True)
        before = await _certificate(world, certificate_id)
        await _renewed(world, certificate_id)
        assert (await _certificate(world, certificate_id)).key_id == before.key_id
        order = await _renewed(world, certificate_id, "revocation")
        assert order.key_id != before.key_id

    async def test_a_compromised_key_is_not_certified_again(self, world: Any) -> None:
        """Not even for who asked to keep it."""
        certificate_id = await _issued(world, reuse_key=True)
        spki = spki_sha256_in((await _certificate(world, certificate_id)).chain_pem)
        mark = CompromisedKey(spki_sha256=spki, certificate_id=CertificateId(certificate_id), at=world.clock.now())
        await world.sqlite.commit([COMPROMISED_KEYS.put(mark)])
        with pytest.raises(Conflict, match="compromised"):
            await world.issuing.renew(certificate_id, "request")

    async def test_a_csr_of_the_caller_is_sent_as_it_is_and_no_key_is_made(self, world: Any) -> None:
        """The private key never exists here."""
        der = csr_der(make_key("ec-p256"), parse_identifiers(["a.example.test"], public_ca=False))
        pem = "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n"
        certificate_id = await _issued(world, csr=pem.format(base64.encodebytes(der).decode().strip()))
        order = await _renewed(world, certificate_id)
        certificate = await _certificate(world, certificate_id)
        assert (certificate.key_id, order.key_id, certificate.version) == (None, None, 2)
        leaf = x509.load_pem_x509_certificate(certificate.chain_pem.encode())
        assert leaf.public_key() == x509.load_der_x509_csr(der).public_key()

    async def test_the_key_of_an_account_is_never_certified(self, world: Any) -> None:
        """Who holds the certificate's key could speak for the account (RFC 8555 section 11.1)."""
        account_id = await world.account()
        key_id = (await world.shown_account(account_id)).key_id
        sealed = (await world.read(KEYS, key_id)).value.sealed
        key = world.sealer.open(sealed, KEYS.key(key_id), "private_key")
        der = csr_der(key, parse_identifiers(["a.example.test"], public_ca=False))
        with pytest.raises(InvalidRequest) as refused:
            await world.order(account_id=account_id, csr=base64.b64encode(der).decode())
        assert [(each.pointer, each.code) for each in refused.value.fields] == [("/csr", "account_key")]


async def _change_terms(world: Any, certificate_id: str, **changes: Any) -> None:
    held = await world.read(CERTIFICATES, certificate_id)
    terms = msgspec.structs.replace(terms_of(held.value), **changes)
    await world.sqlite.commit([CERTIFICATES.put(msgspec.structs.replace(held.value, terms=terms), held.revision)])


class TestFailing:
    async def test_a_setback_is_told_with_cause_attempt_and_next_try(self, world: Any) -> None:
        """The order stays; it goes on about a minute later, and the next failure waits longer."""
        certificate_id = await _issued(world)
        start = world.clock.now()
        world.ca.script["new_order"].extend([CaUnavailable("down")] * 3)
        order = await _renewed(world, certificate_id)
        told = [body for kind, body in await world.events() if kind == "certificate.renewal_failed"]
        assert [each["attempt"] for each in told] == [1, 2, 3]
        assert {(each["kind"], each["fault"], each["error"]["code"]) for each in told} == {
            ("transient", "ca", "ca_unavailable")
        }
        assert all(each["order_id"] == told[0]["order_id"] and each["next_try_at"] for each in told)
        # After the third the pause would outlast the order's patience: it ends, and the scheduler makes the next.
        assert order.status == "invalid"
        assert timedelta(minutes=8) < world.clock.now() - start < timedelta(minutes=13)
        renewal = await _renewal(world, certificate_id)
        assert (renewal.attempt, renewal.order_id) == (3, None)
        assert renewal.next_try_at is not None and renewal.error is not None and renewal.error.remedy
        assert timedelta(minutes=45) < renewal.next_try_at - world.clock.now() <= timedelta(minutes=60)

    async def test_an_invalid_order_is_a_failed_attempt_and_the_old_version_stays(self, world: Any) -> None:
        """What is in service is never touched by a failure."""
        certificate_id = await _issued(world)
        before = await _certificate(world, certificate_id)
        world.ca.refuses["a.example.test"] = "wrong answer"
        order = await _renewed(world, certificate_id)
        assert order.status == "invalid"
        assert await _certificate(world, certificate_id) == before
        kinds = [kind for kind, _ in await world.events()]
        assert kinds[-2:] == ["order.failed", "certificate.renewal_failed"]
        renewal = await _renewal(world, certificate_id)
        assert (renewal.attempt, renewal.order_id, renewal.error and renewal.error.fault) == (1, None, "domain")

    @pytest.mark.parametrize(
        ("name", "detail"),
        [
            ("rejectedIdentifier", "policy forbids"),
            ("rateLimited", "Your account is temporarily prevented from requesting certificates for a.example.test"),
            ("caa", "CAA record for a.example.test prevents issuance"),
        ],
    )
    async def test_a_permanent_cause_ends_the_hammering_at_once(
        self, world: Any, ca_refuses: Any, name: str, detail: str
    ) -> None:
        """One request, then six hours, and words for a person."""
        certificate_id = await _issued(world)
        error = ca_refuses(name, 403, detail)
        if name == "rateLimited":
            error = BackendRateLimited("slow down", error.problem)
        world.ca.script["new_order"].append(error)
        order = await _renewed(world, certificate_id)
        renewal = await _renewal(world, certificate_id)
        assert (order.status, len(world.ca.asked_for)) == ("invalid", 2)
        assert renewal.next_try_at is not None
        assert renewal.next_try_at - world.clock.now() > timedelta(hours=4)
        assert renewal.error is not None and (renewal.error.kind, bool(renewal.error.remedy)) == ("permanent", True)

    @pytest.mark.parametrize(
        ("detail", "pause"),
        [
            ("slow down", timedelta(minutes=1)),
            ("too many new orders recently, retry after 2026-01-01 00:20:00 UTC", timedelta(minutes=19)),
        ],
    )
    async def test_a_rate_limit_without_retry_after_names_the_time_that_is_kept(
        self, world: Any, issuer: Any, monkeypatch: pytest.MonkeyPatch, detail: str, pause: timedelta
    ) -> None:
        """An event that says "again in two seconds" is not true while the ledger holds the account back."""
        monkeypatch.setattr(issuer, "lifetime", timedelta(minutes=2))
        monkeypatch.setattr(issuer, "backdated", timedelta(0))
        certificate_id = await _issued(world)
        problem = Problem(type="urn:ietf:params:acme:error:rateLimited", detail=detail, status=429)
        world.ca.script["new_order"].append(BackendRateLimited("slow", problem))
        began = world.clock.now()
        await _renewed(world, certificate_id)
        (told,) = [event for kind, event in await world.events() if kind == "certificate.renewal_failed"]
        assert datetime.fromisoformat(told["next_try_at"]) - began >= pause

    async def test_the_time_a_ca_names_wins(self, world: Any) -> None:
        """Neither earlier nor by our own pace."""
        certificate_id = await _issued(world)
        until = world.clock.now() + timedelta(hours=30)
        problem = Problem(type="urn:ietf:params:acme:error:rateLimited", detail="too many certificates", status=429)
        world.ca.script["new_order"].append(BackendRateLimited("slow", problem, retry_after=108_000, retry_at=until))
        await _renewed(world, certificate_id)
        renewal = await _renewal(world, certificate_id)
        assert renewal.next_try_at is not None
        assert until <= renewal.next_try_at <= until + timedelta(minutes=2)

    async def test_an_account_that_is_gone_is_no_reason_to_ask_its_ca(self, world: Any) -> None:
        """It says so before anything is written."""
        certificate_id = await _issued(world)
        account = await world.read(ACCOUNTS, (await _certificate(world, certificate_id)).account_id)
        gone = msgspec.structs.replace(account.value, status="deactivated")
        await world.sqlite.commit([ACCOUNTS.put(gone, account.revision)])
        with pytest.raises(AccountUnusable, match="deactivated"):
            await world.issuing.renew(certificate_id, "schedule")
        assert len(world.ca.asked_for) == 1


class NoCaa:
    """Name servers that know no CAA record."""

    async def caa(self, name: str) -> CaaSet:
        return CaaSet(owner=None, records=())


class TestFallback:
    @pytest.fixture
    def world(self, make_world: Any) -> Any:
        return make_world(name_servers=NoCaa())

    async def test_a_ca_at_fault_is_left_for_the_next_account(self, world: Any) -> None:
        """At once, and the events say so."""
        first, second = await world.account(name="one"), await world.account(name="two")
        certificate_id = await _issued(world, account_id=first, account_ids=[second])
        world.ca.script["new_order"].append(CaUnavailable("down"))
        order = await _renewed(world, certificate_id)
        assert (order.status, order.account_id, order.accounts_tried) == ("valid", second, (first,))
        certificate = await _certificate(world, certificate_id)
        assert (certificate.account_id, terms_of(certificate).accounts) == (second, (first, second))
        events = await world.events()
        failed = [body for kind, body in events if kind == "certificate.renewal_failed"]
        renewed = [body for kind, body in events if kind == "certificate.renewed"]
        assert [each["next_account_id"] for each in failed] == [second]
        assert [each["fallback_from"] for each in renewed] == [[first]]

    async def test_what_is_pending_at_the_ca_that_was_left_is_deactivated(self, world: Any) -> None:
        """Else it counts against the limits of an account that gets nothing for it."""
        first, second = await world.account(name="one"), await world.account(name="two")
        world.ca.script["authorization"].append(CaUnavailable("down"))
        order = await world.ended(await world.order(account_id=first, account_ids=[second]))
        assert (order.status, order.account_id) == ("valid", second)
        await world.idle()
        assert sorted(each["status"] for each in world.ca.authorizations.values()) == ["deactivated", "valid"]

    async def test_a_domain_at_fault_is_no_reason_to_ask_another_ca(self, world: Any) -> None:
        """It would see the same."""
        first, second = await world.account(name="one"), await world.account(name="two")
        certificate_id = await _issued(world, account_id=first, account_ids=[second])
        world.ca.refuses["a.example.test"] = "wrong answer"
        order = await _renewed(world, certificate_id)
        assert (order.status, order.account_id) == ("invalid", first)

    async def test_an_account_that_failed_a_moment_ago_is_left_alone_by_the_next_order(self, world: Any) -> None:
        """A circuit breaker: a hundred orders do not each wait for the same outage."""
        first, second = await world.account(name="one"), await world.account(name="two")
        world.ca.script["new_order"].append(CaUnavailable("down"))
        await _issued(world, account_id=first, account_ids=[second])
        await _issued(world, "b.example.test", account_id=first, account_ids=[second])
        thumbprints = [(await world.shown_account(each)).key_thumbprint for each in (first, second)]
        assert [thumbprints.index(each["key"]) for each in world.ca.asked_for] == [0, 1, 1]
        world.clock.advance(120)
        await _issued(world, "c.example.test", account_id=first, account_ids=[second])
        assert thumbprints.index(world.ca.asked_for[-1]["key"]) == 0

    async def test_when_all_have_failed_it_begins_with_the_first_again(self, world: Any) -> None:
        """After the pause, by the usual pace."""
        first, second = await world.account(name="one"), await world.account(name="two")
        world.ca.script["new_order"].extend([CaUnavailable("down")] * 2)
        order = await world.ended(await world.order(account_id=first, account_ids=[second]))
        assert order.status == "valid"
        assert len(world.ca.asked_for) == 3


class TestCancel:
    async def _under_way(self, world: Any, method: str, **members: Any) -> tuple[Any, asyncio.Event]:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            reached.set()
            await go_on.wait()

        world.ca.script[method].append(wait)
        order_id = await world.order("a.example.test", "b.example.test", **members)
        async with asyncio.timeout(10):
            await reached.wait()
        return order_id, go_on

    @pytest.mark.parametrize("method", ["new_order", "authorization", "respond", "order", "finalize"])
    async def test_an_order_ends_at_once_and_leaves_nothing(self, world: Any, method: str) -> None:
        """At any step: what was in place goes, and pending authorizations are deactivated at the CA."""
        order_id, go_on = await self._under_way(world, method)
        reply = await world.issuing.cancel(m.CancelOrder(order_id=order_id), CONTEXT)
        go_on.set()
        assert (reply.status, reply.error.code) == ("deactivated", "cancelled")
        order = await world.ended(order_id)
        assert (order.status, order.has_open_authorizations, world.solver.in_place) == ("deactivated", False, {})
        states = {each["status"] for each in world.ca.authorizations.values()}
        assert "pending" not in states
        kinds = [kind for kind, _ in await world.events()]
        assert kinds.count("order.cancelled") == 1 and "order.failed" not in kinds
        assert await world.certificates() == []

    async def test_an_order_in_a_pause_is_cancelled_too(self, world: Any) -> None:
        """It does not sleep on until its time comes."""
        order_id, go_on = await self._under_way(world, "new_order")
        await world.die()
        go_on.set()
        await world.change(order_id, next_try_at=world.clock.now() + HOUR)
        reply = await world.issuing.cancel(m.CancelOrder(order_id=order_id), CONTEXT)
        assert reply.status == "deactivated"
        again = await world.issuing.cancel(m.CancelOrder(order_id=order_id), CONTEXT)
        assert again.status == "deactivated"

    async def test_what_has_ended_cannot_be_cancelled(self, world: Any) -> None:
        """The certificate is there; revoking is another matter."""
        order = await world.issue()
        with pytest.raises(Conflict, match="valid"):
            await world.issuing.cancel(m.CancelOrder(order_id=order.id), CONTEXT)
        with pytest.raises(NotFound):
            await world.issuing.cancel(m.CancelOrder(order_id="acme_order_none"), CONTEXT)

    async def test_authorizations_another_order_needs_are_left(self, world: Any) -> None:
        """CAs share pending ones between orders for the same names."""
        order_id, go_on = await self._under_way(world, "authorization")
        other, go_on_too = await self._under_way(world, "authorization", auto_renew=False)
        await world.issuing.cancel(m.CancelOrder(order_id=order_id), CONTEXT)
        go_on.set()
        for _ in range(300):
            await asyncio.sleep(0)
        assert world.ca.asked("deactivate_authorization") == []
        go_on_too.set()
        assert (await world.ended(other)).status == "valid"

    async def test_after_a_crash_the_ca_is_still_told(self, world: Any) -> None:
        """The intent stands in the order."""
        order_id, go_on = await self._under_way(world, "respond")
        world.ca.script["deactivate_authorization"].append(go_on.wait)
        await world.issuing.cancel(m.CancelOrder(order_id=order_id), CONTEXT)
        await world.die()
        go_on.set()
        await world.issuing.resume()
        order = await world.ended(order_id)
        assert order.has_open_authorizations is False
        assert world.ca.asked("deactivate_authorization")

    async def test_a_cancelled_renewal_waits_like_a_failed_one(self, world: Any) -> None:
        """The scheduler must not order it again the next moment."""
        certificate_id = await _issued(world)
        world.ca.script["new_order"].append(asyncio.Event().wait)
        order = await world.issuing.renew(certificate_id, "schedule")
        await world.issuing.cancel(m.CancelOrder(order_id=order.id), CONTEXT)
        renewal = await _renewal(world, certificate_id)
        assert renewal.order_id is None
        assert renewal.next_try_at is not None and renewal.next_try_at - world.clock.now() > timedelta(hours=4)
        await world.idle()


class TestFailedOrders:
    async def test_what_is_pending_of_a_failed_order_is_deactivated(self, world: Any) -> None:
        """Pending authorizations count against limits at some CAs (RFC 8555 section 7.5.2)."""
        world.ca.refuses["a.example.test"] = "no"

        def keep_pending() -> None:
            for each in world.ca.authorizations.values():
                if each["identifier"]["value"] == "b.example.test":
                    world.ca.script["respond"].clear()

        world.ca.script["respond"].append(keep_pending)
        order = await world.ended(await world.order("a.example.test", "b.example.test"))
        assert (order.status, order.has_open_authorizations) == ("invalid", False)
        assert "pending" not in {each["status"] for each in world.ca.authorizations.values()}

    async def test_the_ca_is_not_asked_about_them_before_its_retry_after(self, world: Any) -> None:
        """The attempt has just read the authorizations; the clean-up keeps the pause that their answers asked for."""
        world.ca.refuses["a.example.test"] = "no"
        world.ca.retry_after = 30.0
        read_at: list[datetime] = []

        def note() -> None:
            read_at.append(world.clock.now())
            world.ca.script["authorization"].append(note)

        world.ca.script["authorization"].append(note)
        order = await world.ended(await world.order("a.example.test"))
        assert (order.status, order.has_open_authorizations) == ("invalid", False)
        assert len(read_at) == 2
        assert read_at[1] - read_at[0] >= timedelta(seconds=30)

    async def test_the_next_attempt_keeps_the_pause_too(self, world: Any) -> None:
        """What the CA asked of one attempt holds for the one after a setback."""
        read_at: list[datetime] = []

        def slowly() -> None:
            read_at.append(world.clock.now())
            world.ca.retry_after = 30.0
            world.ca.script["authorization"].append(lambda: read_at.append(world.clock.now()))

        def down() -> Exception:
            world.ca.retry_after = None
            return CaUnavailable("down")

        world.ca.script["authorization"].append(slowly)
        world.ca.script["respond"].append(down)
        order = await world.ended(await world.order("a.example.test"))
        assert (order.status, order.attempt) == ("valid", 1)
        assert read_at[1] - read_at[0] >= timedelta(seconds=30)


class TestPauses:
    async def test_hurry_ends_a_pause_and_rest_tells_of_it(self, world: Any) -> None:
        """A caller's `renew` does not wait for the backoff."""
        certificate_id = await _issued(world)
        real = world.clock.sleep
        paused = asyncio.Event()

        async def sleep(seconds: float) -> None:
            if seconds > 20:
                paused.set()
                await asyncio.Event().wait()
            await real(seconds)

        world.clock.sleep = sleep
        world.ca.script["new_order"].append(CaUnavailable("down"))
        order = await world.issuing.renew(certificate_id, "schedule")
        async with asyncio.timeout(10):
            await world.issuing.rest(order.id)
            await paused.wait()
        start = world.clock.now()
        world.issuing.hurry(order.id)
        assert (await world.ended(order.id)).status == "valid"
        assert world.clock.now() - start < timedelta(seconds=10)
        await world.issuing.rest(order.id)

    async def test_a_clock_set_back_ends_every_pause(self, world: Any) -> None:
        """What was noted by a clock two days ahead, in the order too, would have it wait for two days."""
        certificate_id = await _issued(world)
        world.ca.retry_after = 30.0
        world.ca.script["respond"].append(CaUnavailable("down"))
        paused = asyncio.Event()
        real = world.clock.sleep

        async def sleep(seconds: float) -> None:
            if world.said("order.set_back") and not paused.is_set():
                paused.set()
                await asyncio.Event().wait()
            await real(seconds)

        world.clock.sleep = sleep
        order = await world.issuing.renew(certificate_id, "schedule")
        async with asyncio.timeout(10):
            await paused.wait()
        began = world.clock.now()
        far_ahead = began + timedelta(days=2)
        await world.change(order.id, next_try_at=far_ahead, poll_after=far_ahead)
        world.issuing.hurry_all()
        assert (await world.ended(order.id)).status == "valid"
        assert world.clock.now() - began < HOUR

    async def test_a_window_of_the_ca_goes_to_the_ledger(self, world: Any) -> None:
        """An ARI renewal within its window is exempt from limits."""
        _with_ari(world)
        certificate_id = await _issued(world)
        held = await world.read(RENEWALS, certificate_id)
        window = RenewalWindow(start=world.clock.now() - HOUR, end=world.clock.now() + HOUR)
        point = RenewalPoint(window=window, moment=world.clock.now())
        await world.sqlite.commit([RENEWALS.put(msgspec.structs.replace(held.value, point=point), held.revision)])
        seen: list[Any] = []
        spend = world.budgets.spend

        def watched(order: Any, account: Any, **said: Any) -> Any:
            seen.append(said)
            return spend(order, account, **said)

        world.budgets.spend = watched
        await _renewed(world, certificate_id, "ari")
        order = await world.shown((await _certificate(world, certificate_id)).order_id)
        assert seen == [{"replaces": order.replaces, "window": window}]
