"""Whose a certificate is: from the request over every version, and never anybody else's by mistake."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from scaivaultd.api import messages as m
from scaivaultd.model.principals import SYSTEM, Principal
from scaivaultd.model.resources import Certificate, Order
from scaivaultd.services.documents import BULK_RENEWALS, CERTIFICATES, ORDERS, owner_key
from tests.fakes.judging import SHOP, WEB, asked_by

if TYPE_CHECKING:
    from scaivaultd.api.commands import RequestContext

LOG = structlog.get_logger()
WAIT = 20.0


async def asked(world: Any, context: RequestContext, *names: str, **members: Any) -> m.OrderReply:
    request = m.Issue(
        account_id=await world.account(),
        domains=list(names or ["a.example.test"]),
        **{"challenge_type": "http-01", "wait_seconds": 0, **members},
    )
    reply: m.OrderReply = await world.issuing.issue(request, context)
    return reply


async def issued(world: Any, owner: Principal = WEB) -> str:
    order = await world.ended((await asked(world, asked_by(owner))).order_id)
    return str(order.certificate_id)


async def certificate(world: Any, certificate_id: str) -> Certificate:
    found: Certificate = (await world.read(CERTIFICATES, certificate_id)).value
    return found


async def orders_by_owner(world: Any, owner: Principal) -> list[Order]:
    return [each.value for each in await ORDERS.all(world.sqlite, LOG, requested_by=owner_key(owner))]


class TestAtIssue:
    async def test_whoever_asks_is_the_owner_of_what_comes_of_it(self, world: Any) -> None:
        """Each renewal is judged by it, for years."""
        reply = await asked(world, asked_by(WEB))
        assert reply.requested_by == "token:Web00000"
        order = await world.ended(reply.order_id)
        assert order.requested_by == WEB
        kept = await certificate(world, order.certificate_id)
        assert kept.requested_by == WEB
        shown = await world.certificate_service.get(m.CertificateById(id=kept.id), asked_by(SHOP))
        assert shown.requested_by == "token:Web00000"

    async def test_the_daemon_itself_owns_nothing(self, world: Any) -> None:
        """What it makes of its own accord is judged by nobody's rights."""
        order = await world.ended((await asked(world, asked_by(SYSTEM))).order_id)
        assert order.requested_by is None
        assert (await certificate(world, order.certificate_id)).requested_by is None
        assert (await world.issuing.get(m.OrderById(order_id=order.id), asked_by(SYSTEM))).requested_by is None

    async def test_an_owner_survives_a_stop(self, world: Any) -> None:
        """Between the request and the certificate."""
        reply = await asked(world, asked_by(WEB))
        await world.die()
        await world.issuing.resume()
        order = await world.ended(reply.order_id)
        assert (await certificate(world, order.certificate_id)).requested_by == WEB

    async def test_what_is_somebodys_own_is_found_without_reading_all(self, world: Any) -> None:
        """Quotas count it; renewals are not among it, and a later name of the token changes nothing."""
        certificate_id = await issued(world)
        await issued(world, SHOP)
        await world.renewing.renew(m.RenewCertificate(id=certificate_id, wait_seconds=0), asked_by(SHOP))
        await world.idle()
        renamed = Principal(kind="token", id=WEB.id, name="other")
        assert [each.cause for each in await orders_by_owner(world, renamed)] == ["issue"]
        mine = await CERTIFICATES.all(world.sqlite, LOG, requested_by=owner_key(WEB))
        assert [each.value.id for each in mine] == [certificate_id]


class TestLater:
    async def test_a_renewal_is_the_owners_whoever_asks_for_it(self, world: Any) -> None:
        """An operator who forces one does not take the certificate over."""
        certificate_id = await issued(world)
        request = m.RenewCertificate(id=certificate_id, wait_seconds=0)
        reply = await world.renewing.renew(request, asked_by(SHOP))
        assert reply.requested_by == "token:Web00000"
        await world.idle()
        renewed = await certificate(world, certificate_id)
        assert (renewed.version, renewed.requested_by) == (2, WEB)

    @pytest.mark.parametrize(
        ("members", "owner"),
        [
            ({"domains": ["b.example.test"]}, SHOP),
            ({"account_id": "another"}, SHOP),
            ({"account_ids": ["another"]}, SHOP),
            ({"domains": ["a.example.test"], "challenge_type": "http-01"}, WEB),
            ({"key_type": "ec-p384"}, WEB),
            ({"auto_renew": False}, WEB),
            ({"profile": "shortlived"}, WEB),
        ],
    )
    async def test_whoever_changes_what_it_is_becomes_the_owner(
        self, world: Any, members: dict[str, Any], owner: Principal
    ) -> None:
        """Names, account and challenge are what rights are about; the rest stays the owner's."""
        certificate_id = await issued(world)
        if "account_id" in members or "account_ids" in members:
            another = await world.account(name="another")
            members = {"account_id": another} if "account_id" in members else {"account_ids": [another]}
        reply = await world.updating.update(m.UpdateCertificate(id=certificate_id, **members), asked_by(SHOP))
        assert reply.requested_by == str(owner)
        assert (await certificate(world, certificate_id)).requested_by == owner

    async def test_so_does_whoever_changes_how_it_is_proven(self, dns_world: Any) -> None:
        """Somebody may be allowed the one challenge and not the other."""
        await dns_world.provider()
        order = await asked(dns_world, asked_by(WEB), "example.test", challenge_type="dns-01")
        certificate_id = str((await dns_world.ended(order.order_id)).certificate_id)
        request = m.UpdateCertificate(id=certificate_id, challenge_type="http-01")
        reply = await dns_world.updating.update(request, asked_by(SHOP))
        assert reply.requested_by == "token:Shop0000"

    async def test_a_new_owners_order_and_next_version_are_theirs(self, world: Any) -> None:
        """The order that the change makes at once is in the new owner's name already."""
        certificate_id = await issued(world)
        request = m.UpdateCertificate(id=certificate_id, domains=["b.example.test"], wait_seconds=WAIT)
        await world.updating.update(request, asked_by(SHOP))
        await world.idle()
        changed = await certificate(world, certificate_id)
        assert (changed.version, changed.requested_by) == (2, SHOP)
        assert (await world.shown(changed.order_id)).requested_by == SHOP

    async def test_a_bulk_renewal_is_kept_with_whoever_asked(self, world: Any) -> None:
        """Its certificates are judged by their rights, one by one, later."""
        reply = await world.bulk_renewals.create(m.CreateBulkRenewal(all=True), asked_by(WEB))
        assert (await world.read(BULK_RENEWALS, str(reply.id))).value.requested_by == WEB


class TestRepeated:
    async def test_the_same_request_of_another_is_another_order(self, world: Any) -> None:
        """Nobody is given a stranger's order, with its challenges and in the end its certificate."""
        mine, mine_again, theirs = [(await asked(world, asked_by(each))).order_id for each in (WEB, WEB, SHOP)]
        assert mine == mine_again != theirs
        await world.idle()
        assert {each.requested_by for each in await world.certificates()} == {WEB, SHOP}

    async def test_it_stays_another_after_a_stop(self, world: Any) -> None:
        """Orders under way are known again by what they were asked for with, and by whom."""
        first = await asked(world, asked_by(WEB))
        await world.die()
        await world.issuing.resume()
        again, other = [(await asked(world, asked_by(each))).order_id for each in (WEB, SHOP)]
        assert again == first.order_id != other
        await world.idle()

    async def test_the_same_key_of_another_is_another_key(self, world: Any) -> None:
        """People count from 1: keys meet by chance, and by guessing."""
        mine = await asked(world, asked_by(WEB, key="1"))
        theirs = await asked(world, asked_by(SHOP, key="1"))
        await world.idle()
        again = await asked(world, asked_by(WEB, key="1"))
        assert mine.order_id == again.order_id != theirs.order_id
        other = await asked(world, asked_by(SHOP, key="2"), "b.example.test")
        assert other.order_id not in (mine.order_id, theirs.order_id)

    async def test_both_at_once_are_two(self, world: Any) -> None:
        """Also at the same moment."""
        await world.account()
        replies = await asyncio.gather(*(asked(world, asked_by(each, key="1")) for each in (WEB, SHOP, WEB)))
        assert len({each.order_id for each in replies}) == 2
        await world.idle()
