"""Certificates of other clients, taken over: once each, with everything that their renewal needs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.acme import x509
from scaivaultd.acme.signing import AccountKey
from scaivaultd.acme.wire import Directory
from scaivaultd.api import messages as m
from scaivaultd.api import operation_messages as om
from scaivaultd.api.commands import RequestContext
from scaivaultd.api.gate import Unlimited
from scaivaultd.model.errors import AccountUnusable, Conflict, InvalidRequest, NotFound, UnsupportedChallenge
from scaivaultd.model.names import parse_identifiers
from scaivaultd.services.documents import CERTIFICATES, KEYS, ORDERS, RENEWALS
from scaivaultd.services.importing import Importing

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.model.resources import KeyType
    from tests.fakes.scripted_ca import FakeClock, Issuer
    from tests.services.conftest import World

CONTEXT = RequestContext(request_id="req_test")


@dataclass(frozen=True)
class Pair:
    """What another client has."""

    chain_pem: str
    private_key_pem: str


@pytest.fixture
def make_pair(issuer: Issuer, clock: FakeClock) -> Callable[..., Pair]:
    def make(
        *names: str, age: timedelta = timedelta(0), key_type: KeyType = "ec-p256", key: bytes | None = None
    ) -> Pair:
        key = key or x509.make_key(key_type)
        csr = x509.csr_der(key, parse_identifiers(names or ["www.example.test"], public_ca=False))
        return Pair(issuer.chain(csr, clock.now() - age).decode(), x509.private_key_pem(key))

    return make


@dataclass(frozen=True)
class House:
    """A world with the service."""

    world: World
    service: Importing

    async def take(self, pair: Pair, account_id: str, **members: Any) -> m.CertificateReply:
        asked = {"chain_pem": pair.chain_pem, "private_key_pem": pair.private_key_pem, "source": "certbot:/etc/x"}
        request = om.ImportCertificate(**{**asked, "account_id": account_id, **members})
        return await self.service.import_certificate(request, CONTEXT)


@pytest.fixture
def house(world: World) -> House:
    return house_of(world)


def house_of(world: World) -> House:
    certificates = world.certificate_service
    service = Importing(world.tools, providers=world.providers, quotas=world.quotas, certificates=certificates)
    return House(world, service)


async def test_a_certificate_is_taken_with_all_that_belongs_to_it(house: House, make_pair: Callable[..., Pair]) -> None:
    """One commit: certificate, order, renewal, sealed key and event."""
    world, account_id = house.world, await house.world.account()
    pair = make_pair("www.example.test", "192.0.2.7")
    reply = await house.take(pair, account_id)
    assert (reply.version, reply.status, reply.has_private_key) == (1, "valid", True)
    assert reply.domains == ["www.example.test", "192.0.2.7"]
    order = (await world.read(ORDERS, reply.order_id)).value
    assert (order.status, order.cause, order.certificate_id, order.version) == ("valid", "import", reply.id, 1)
    renewal = (await world.read(RENEWALS, reply.id)).value
    assert renewal.ari_id is not None
    assert renewal.poll_at == world.clock.now(), "its window is asked for at once"
    reader = RequestContext(request_id="r", takes_keys=True)
    key = await world.certificate_service.key(m.CertificateKey(id=reply.id), reader)
    assert key.private_key_pem == pair.private_key_pem
    told = [body for kind, body in await world.events() if kind == "certificate.imported"]
    assert [(each["certificate_id"], each["source"]) for each in told] == [(reply.id, "certbot:/etc/x")]
    assert "PRIVATE KEY" not in repr(world.logged)


async def test_the_key_is_sealed(house: House, make_pair: Callable[..., Pair]) -> None:
    """What is in the store in the clear is in every backup of its file."""
    pair = make_pair()
    reply = await house.take(pair, await house.world.account())
    certificate = (await house.world.read(CERTIFICATES, reply.id)).value
    sealed = (await house.world.read(KEYS, certificate.key_id)).value.sealed
    assert pair.private_key_pem.split("\n")[1].encode() not in sealed


async def test_the_first_renewal_says_what_it_replaces(house: House, make_pair: Callable[..., Pair]) -> None:
    """CAs let such renewals pass their limits, and account, names and key type stay."""
    world, account_id = house.world, await house.world.account()
    world.ca.directory = Directory(
        new_nonce="https://ca.test/n",
        new_account="https://ca.test/a",
        new_order="https://ca.test/o",
        renewal_info="https://ca.test/ari",
    )
    pair = make_pair(key_type="ec-p384")
    reply = await house.take(pair, account_id)
    before = (await world.read(RENEWALS, reply.id)).value
    await world.renewing.renew(m.RenewCertificate(id=reply.id), CONTEXT)
    await world.idle()
    renewed = (await world.read(CERTIFICATES, reply.id)).value
    assert (renewed.version, renewed.key_type) == (2, "ec-p384")
    assert [each.get("replaces") for each in world.ca.asked_for] == [before.ari_id]
    assert len(world.ca.registrations) == 1
    again = await house.take(pair, account_id)
    assert (again.id, again.version) == (reply.id, 2), "the version that was taken is an earlier one now"


async def test_the_same_certificate_again_changes_nothing(house: House, make_pair: Callable[..., Pair]) -> None:
    """An import that was cut off is simply run again, also twice at once."""
    account_id, pair = await house.world.account(), make_pair()
    replies = await asyncio.gather(*(house.take(pair, account_id) for _ in range(3)))
    assert len({each.id for each in replies}) == 1
    assert len(await house.world.certificates()) == 1
    assert (await house.world.event_types()).count("certificate.imported") == 1


async def test_what_was_issued_here_is_found(house: House) -> None:
    """Exported to another client and back, it is still the same certificate."""
    order = await house.world.issue("a.example.test")
    (certificate,) = await house.world.certificates()
    reply = await house.take(Pair(certificate.chain_pem, ""), order.account_id, private_key_pem=None)
    assert reply.id == certificate.id


async def test_without_its_key_the_next_version_has_a_new_one(house: House, make_pair: Callable[..., Pair]) -> None:
    """The key may be where nobody gets at it."""
    world = house.world
    reply = await house.take(make_pair(), await world.account(), private_key_pem=None)
    assert not reply.has_private_key
    await world.renewing.renew(m.RenewCertificate(id=reply.id), CONTEXT)
    await world.idle()
    renewed = await world.certificate_service.get(m.CertificateById(id=reply.id), CONTEXT)
    assert (renewed.version, renewed.has_private_key) == (2, True)


async def test_a_key_is_used_again_where_that_is_wished(house: House, make_pair: Callable[..., Pair]) -> None:
    """Pinned keys must outlive the move."""
    world, pair = house.world, make_pair()
    reply = await house.take(pair, await world.account(), reuse_key=True)
    await world.renewing.renew(m.RenewCertificate(id=reply.id), CONTEXT)
    await world.idle()
    renewed = (await world.read(CERTIFICATES, reply.id)).value
    assert x509.spki_of_chain(renewed.chain_pem) == x509.spki_of_chain(pair.chain_pem)


async def test_one_that_has_expired_is_due_at_once(house: House, make_pair: Callable[..., Pair]) -> None:
    """That is why somebody moves."""
    world = house.world
    reply = await house.take(make_pair(age=timedelta(days=100)), await world.account())
    assert reply.renewal is not None
    assert reply.renewal.moment is not None
    assert reply.renewal.moment <= world.clock.now()


async def test_one_without_automatic_renewal_is_only_kept(house: House, make_pair: Callable[..., Pair]) -> None:
    """Whoever wants to look at it first may."""
    reply = await house.take(make_pair(), await house.world.account(), auto_renew=False)
    assert reply.renewal is not None
    assert reply.renewal.moment is None


async def test_the_same_names_twice_are_taken_only_on_demand(house: House, make_pair: Callable[..., Pair]) -> None:
    """Two certificates for the same names are renewed twice; who wants that, says so. Repeating stays harmless."""
    account_id = await house.world.account()
    first, second = make_pair(), make_pair()
    taken = await house.take(first, account_id)
    with pytest.raises(Conflict, match="same names"):
        await house.take(second, account_id)
    other = await house.take(second, account_id, allow_duplicate=True)
    assert other.id != taken.id
    assert (await house.take(first, account_id)).id == taken.id
    assert (await house.take(second, account_id)).id == other.id


@pytest.mark.parametrize(
    ("members", "error", "pointer"),
    [
        ({"account_id": "acme_nobody"}, NotFound, "/account_id"),
        ({"chain_pem": "nothing"}, InvalidRequest, "/chain_pem"),
        ({"private_key_pem": "nothing"}, InvalidRequest, "/private_key_pem"),
        ({"private_key_pem": None, "reuse_key": True}, InvalidRequest, "/reuse_key"),
        ({"dns_provider": "cf"}, InvalidRequest, "/dns_provider"),
        ({"challenge_type": "tls-alpn-01"}, UnsupportedChallenge, None),
        ({"challenge_type": "dns-01"}, UnsupportedChallenge, None),
    ],
)
async def test_what_could_never_be_renewed_is_refused(
    house: House, make_pair: Callable[..., Pair], members: dict[str, Any], error: type[Exception], pointer: str | None
) -> None:
    """Not in two months, when the certificate ends."""
    account_id = await house.world.account()
    with pytest.raises(error) as refused:
        await house.take(make_pair(), **{"account_id": account_id, **members})
    if pointer is not None:
        assert [each.pointer for each in getattr(refused.value, "fields", ())] == [pointer]
    assert await house.world.certificates() == []


async def test_a_wildcard_needs_dns_01(house: House, make_pair: Callable[..., Pair]) -> None:
    """No other challenge proves it (RFC 8555 section 7.1.3)."""
    account_id = await house.world.account()
    with pytest.raises((InvalidRequest, UnsupportedChallenge), match="wildcard") as refused:
        await house.take(make_pair("*.example.test"), account_id)
    assert {each.pointer for each in refused.value.fields} == {"/chain_pem"}


async def test_a_wildcard_is_taken_with_a_provider(dns_world: Any, make_pair: Callable[..., Pair]) -> None:
    """Its terms are what its renewal asks for."""
    house = house_of(dns_world)
    await dns_world.provider("main")
    pair, account_id, name = make_pair("*.example.test"), await dns_world.account(), "main"
    reply = await house.take(pair, account_id, challenge_type="dns-01", dns_provider=name)
    assert reply.terms is not None
    assert (reply.terms.challenge_type, reply.terms.dns_provider) == ("dns-01", name)
    with pytest.raises(InvalidRequest) as refused:
        await house.take(make_pair("*.b.test"), account_id, challenge_type="dns-01", dns_provider="nobody")
    assert [each.pointer for each in refused.value.fields] == ["/dns_provider"]


async def test_an_account_that_cannot_order_is_refused(house: House, make_pair: Callable[..., Pair]) -> None:
    """The certificate would end with nobody to renew it."""
    world = house.world
    account_id = await world.account()
    await world.care.deactivate(m.DeactivateAccount(id=account_id, confirm="test", wait_seconds=10), CONTEXT)
    await world.idle()
    with pytest.raises(AccountUnusable):
        await house.take(make_pair(), account_id)


async def test_a_compromised_key_is_not_taken(house: House, make_pair: Callable[..., Pair]) -> None:
    """It would be certified again, and again be worth nothing."""
    world, key = house.world, x509.make_key("ec-p256")
    reply = await house.take(make_pair(key=key), await world.account())
    await world.revoking.revoke(m.RevokeCertificate(certificate_id=reply.id, reason="key_compromise"), CONTEXT)
    await world.idle()
    with pytest.raises(Conflict, match="compromised"):
        await house.take(make_pair("b.example.test", key=key), reply.account_id)


async def test_the_key_of_an_account_is_not_taken(house: House, make_pair: Callable[..., Pair]) -> None:
    """A certificate needs its own key (RFC 8555 section 11.1)."""
    world, key = house.world, x509.make_key("ec-p256")
    account_id = await world.account()
    world.ca.accounts[AccountKey(key).thumbprint] = "https://ca.test/a/brought"
    await world.account(name="brought", account_key_pem=x509.private_key_pem(key))
    with pytest.raises(InvalidRequest, match="key of account"):
        await house.take(make_pair(key=key), account_id)


class NothingPermitted(Unlimited):
    """Somebody who may not read certificates."""

    def allows(self, action: str, **about: object) -> bool:
        """Nothing."""
        return False


async def test_who_may_not_see_it_is_not_told_of_it(house: House, make_pair: Callable[..., Pair]) -> None:
    """The reply has more than the certificate that was sent."""
    pair, account_id = make_pair(), await house.world.account()
    await house.take(pair, account_id)
    request = om.ImportCertificate(account_id=account_id, chain_pem=pair.chain_pem)
    stranger = RequestContext(request_id="r", permits=NothingPermitted())
    with pytest.raises(Conflict, match="not yours"):
        await house.service.import_certificate(request, stranger)
