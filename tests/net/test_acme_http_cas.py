"""The life cycle's requests at two strict CAs: the development CA, and Debian's Pebble, which is somebody else's."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509 as lib
from cryptography.hazmat.primitives.serialization import Encoding

from scaivaultd.acme import wire, x509
from scaivaultd.acme.ari import certificate_id_for_ari
from scaivaultd.acme.exchange import CaConflict, NotOffered, is_about_replaces
from scaivaultd.acme.signing import AccountKey
from scaivaultd.demo import pebble
from scaivaultd.demo.ca import CaSettings as DevelopmentCaSettings
from scaivaultd.demo.ca import DevelopmentCa, LoseAnswer, Misbehaviour
from scaivaultd.demo.ca_settings import Profile
from scaivaultd.demo.process import free_port
from scaivaultd.model.errors import CaRefused, CaUnavailable
from scaivaultd.model.names import Identifier
from scaivaultd.net.acme_client import AcmeClient
from scaivaultd.net.acme_http import CaConnection, CaSettings
from scaivaultd.net.guard import AddressGuard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ALTERNATES = 2


@dataclass
class Issued:
    """What came out of one order."""

    leaf_der: bytes
    certificate_key: AccountKey
    bodies: list[bytes]
    order: wire.Order
    authorization_url: str


class AtCa:
    """Makes accounts and certificates at a CA that believes everything."""

    def __init__(self, connection: CaConnection, clock: Any) -> None:
        self.connection = connection
        self._clock = clock

    def client(self, key: AccountKey, kid: str | None = None) -> AcmeClient:
        return AcmeClient(self.connection, key, kid)

    async def account(self) -> AcmeClient:
        key = AccountKey(x509.make_key("ec-p256"))
        fetched = await self.client(key).register(contacts=[], terms_of_service_agreed=True)
        return self.client(key, fetched.url)

    async def issue(self, client: AcmeClient, name: str = "a.example.com", **wishes: Any) -> Issued:
        fetched = await client.new_order([Identifier("dns", name)], **wishes)
        (authorization_url,) = wire.order_from(fetched.body).authorizations
        authorization = wire.authorization_from((await client.authorization(authorization_url)).body, authorization_url)
        answered = await client.respond(next(each.url for each in authorization.challenges if each.type == "http-01"))
        order = await self._settled(client, fetched.url, answered.retry_after, "pending")
        private_key = x509.make_key("ec-p256")
        assert order.finalize is not None
        answered = await client.finalize(order.finalize, x509.csr_der(private_key, [Identifier("dns", name)]))
        order = await self._settled(client, fetched.url, answered.retry_after, "ready", "processing")
        assert order.certificate is not None
        bodies = list(await client.chains(order.certificate))
        leaf = lib.load_pem_x509_certificates(bodies[0])[0].public_bytes(Encoding.DER)
        return Issued(leaf, AccountKey(private_key), bodies, order, authorization_url)

    async def _settled(self, client: AcmeClient, url: str, pause: float | None, *unsettled: str) -> wire.Order:
        # The clock is a fake that jumps; each reading is a round trip, so this does not spin.
        async with asyncio.timeout(20):
            while True:
                await self._clock.sleep(pause or 1.0)
                fetched = await client.order(url)
                order = wire.order_from(fetched.body)
                if order.status not in unsettled:
                    return order
                pause = fetched.retry_after


@pytest.fixture(params=["development CA", "Pebble"])
async def at_ca(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Any, make_connection: Any
) -> AsyncIterator[AtCa]:
    """The CA's answers to challenges are not what is tested here: both believe everything."""
    async with AsyncExitStack() as stack:
        if request.param == "Pebble":
            directory_url, trust = await _pebble(stack, tmp_path)
        else:
            ca = await _development_ca(stack, clock, alternates=ALTERNATES)
            directory_url, trust = ca.directory_url, ca.root_pem
        yield AtCa(await _connection(stack, directory_url, trust, make_connection()), clock)


async def _pebble(stack: AsyncExitStack, folder: Path) -> tuple[str, str]:
    if not pebble.is_installed():
        pytest.fail("Debian's package pebble is missing: `make test` installs it, or: apt-get install pebble")
    switches = {"PEBBLE_VA_ALWAYS_VALID": "1", "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_ALTERNATE_ROOTS": str(ALTERNATES)}
    server = pebble.Pebble(folder / "pebble", free_port(), {**switches, "PEBBLE_AUTHZREUSE": "0"})
    stack.push_async_callback(server.stop)
    await server.start()
    return server.directory_url, server.trust_file.read_text()


async def _development_ca(stack: AsyncExitStack, clock: Any, **settings: Any) -> DevelopmentCa:
    ca = DevelopmentCa(
        http01_port=1,
        clock=clock,
        settings=DevelopmentCaSettings(**settings),
        misbehaviour=Misbehaviour(always_valid=True),
    )
    return await stack.enter_async_context(ca)


async def _connection(stack: AsyncExitStack, directory_url: str, trust: str, like: CaConnection) -> CaConnection:
    connection = CaConnection(
        directory_url,
        trust,
        CaSettings(user_agent="scaivaultd/test"),
        guard=AddressGuard([directory_url.split("/")[2]]),
        clock=like._clock,
        randomness=like._randomness,
        log=like._log,
    )
    stack.push_async_callback(connection.close)
    return connection


@pytest.fixture
async def modern_ca(clock: Any) -> AsyncIterator[DevelopmentCa]:
    """One with renewal information and profiles, which honours notAfter; Debian's Pebble knows none of these."""
    profile = Profile(description="six days", lifetime=timedelta(days=6))
    async with AsyncExitStack() as stack:
        yield await _development_ca(stack, clock, profiles={"short": profile}, honours_validity=True)


@pytest.fixture
async def at_modern_ca(modern_ca: DevelopmentCa, clock: Any, make_connection: Any) -> AsyncIterator[AtCa]:
    async with AsyncExitStack() as stack:
        connection = await _connection(stack, modern_ca.directory_url, modern_ca.root_pem, make_connection())
        yield AtCa(connection, clock)


def id_of(issued: Issued) -> str:
    certificate_id = certificate_id_for_ari(lib.load_der_x509_certificate(issued.leaf_der))
    assert certificate_id is not None
    return certificate_id


def name_of(refusal: CaRefused) -> str | None:
    return None if refusal.problem is None else refusal.problem.name


async def test_an_account_goes_on_with_its_new_key_only(at_ca: AtCa) -> None:
    """A signature that only we can verify would pass every test of our own."""
    client = await at_ca.account()
    account_url = await client.find_account()
    assert account_url is not None
    for key_type in ("ec-p384", "rsa-2048", "ec-p256"):
        new_key = AccountKey(x509.make_key(key_type))
        old_key = client.key
        await client.key_change(new_key)
        client = at_ca.client(new_key, account_url)
        assert await client.find_account() == account_url
        assert await at_ca.client(old_key).find_account() is None
        await client.update_contacts(["mailto:someone@example.com"])
        with pytest.raises(CaRefused):
            await at_ca.client(old_key, account_url).update_contacts([])


async def test_a_key_that_another_account_has_is_never_taken_over(at_ca: AtCa) -> None:
    """RFC 8555 section 7.3.5: 409 and Location. Debian's Pebble says 500, and there the look-ups tell."""
    client, other = await at_ca.account(), await at_ca.account()
    with pytest.raises((CaConflict, CaUnavailable)) as caught:
        await client.key_change(other.key)
    account_url, other_url = await client.find_account(), await other.find_account()
    assert None not in (account_url, other_url)
    assert account_url != other_url
    assert not isinstance(caught.value, CaConflict) or caught.value.location == other_url


async def test_a_certificate_is_revoked_by_its_owner_once(at_ca: AtCa) -> None:
    """The second time is no failure, and known to be the second."""
    client = await at_ca.account()
    issued = await at_ca.issue(client)
    with pytest.raises(CaRefused) as caught:
        await client.revoke(issued.leaf_der, 7)
    assert name_of(caught.value) == "badRevocationReason"
    assert await client.revoke(issued.leaf_der, 4) is True
    assert await client.revoke(issued.leaf_der, 4) is False


async def test_a_certificate_is_revoked_by_its_key_without_any_account(at_ca: AtCa) -> None:
    """That works when the account is lost, and no other key may do it."""
    issued = await at_ca.issue(await at_ca.account())
    stranger = at_ca.client(AccountKey(x509.make_key("ec-p256")))
    with pytest.raises(CaRefused) as caught:
        await stranger.revoke(issued.leaf_der, 1, certificate_key=stranger.key)
    assert name_of(caught.value) == "unauthorized"
    assert await stranger.revoke(issued.leaf_der, 1, certificate_key=issued.certificate_key) is True
    assert await stranger.revoke(issued.leaf_der, 1, certificate_key=issued.certificate_key) is False


async def test_an_account_ends_for_good(at_ca: AtCa) -> None:
    """Afterwards everything is refused as unauthorized, and only the certificates' keys still revoke."""
    client = await at_ca.account()
    issued = await at_ca.issue(client)
    assert wire.account_from((await client.deactivate_account()).body).status == "deactivated"
    with pytest.raises(CaRefused) as caught:
        await client.deactivate_account()
    assert name_of(caught.value) == "unauthorized"
    assert await client.revoke(issued.leaf_der, certificate_key=issued.certificate_key) is True


async def test_contacts_are_set_and_cleared(at_ca: AtCa) -> None:
    """Both CAs echo what they keep."""
    client = await at_ca.account()
    assert b"someone@example.com" in (await client.update_contacts(["mailto:someone@example.com"])).body
    assert b"someone@example.com" not in (await client.update_contacts([])).body


async def test_an_authorization_can_be_given_up(at_ca: AtCa) -> None:
    """Pending ones count against limits; proven ones would be reused."""
    client = await at_ca.account()
    proven = (await at_ca.issue(client)).authorization_url
    (pending,) = wire.order_from((await client.new_order([Identifier("dns", "b.example.com")])).body).authorizations
    for url in (proven, pending):
        fetched = await client.deactivate_authorization(url)
        assert wire.authorization_from(fetched.body, url).status == "deactivated"
        assert wire.authorization_from((await client.authorization(url)).body, url).status == "deactivated"


async def test_every_chain_is_had_and_the_preferred_one_is_found(at_ca: AtCa) -> None:
    """All for one leaf, each to another root."""
    issued = await at_ca.issue(await at_ca.account())
    assert len(issued.bodies) == 1 + ALTERNATES
    chains = [lib.load_pem_x509_certificates(body) for body in issued.bodies]
    assert {chain[0].public_bytes(Encoding.DER) for chain in chains} == {issued.leaf_der}
    roots = [x509.issuer_text(chain[-1]) for chain in chains]
    assert len(set(roots)) == 1 + ALTERNATES
    for index, root in enumerate(roots):
        assert x509.choose_chain(issued.bodies, root) == x509.ChainChoice(index=index)
    missing = x509.choose_chain(issued.bodies, "ISRG Root X1")
    assert missing.index == 0
    assert missing.reason is not None
    assert all(root in missing.reason for root in roots)


@pytest.mark.parametrize("trailing_slash", [False, True])
async def test_renewal_information_is_had_and_the_successor_names_its_predecessor(
    at_modern_ca: AtCa, modern_ca: DevelopmentCa, trailing_slash: bool
) -> None:
    """RFC 9773 from end to end: the window, `replaces` and its echo, and the second who wants to replace."""
    modern_ca.renewal.trailing_slash = trailing_slash
    client = await at_modern_ca.account()
    first = await at_modern_ca.issue(client)
    fetched = await client.renewal_info(id_of(first))
    assert b"suggestedWindow" in fetched.body
    assert fetched.retry_after == 21_600
    second = await at_modern_ca.issue(client, replaces=id_of(first))
    assert second.order.replaces == id_of(first)
    assert modern_ca.violations == []
    with pytest.raises(CaConflict) as caught:
        await client.new_order([Identifier("dns", "a.example.com")], replaces=id_of(first))
    assert is_about_replaces(caught.value)


async def test_a_predecessor_the_ca_does_not_take_is_told_from_an_order_it_does_not_take(
    at_modern_ca: AtCa,
) -> None:
    """Of another account, unknown, without a name in common: the same order without it is then made at once."""
    client, other = await at_modern_ca.account(), await at_modern_ca.account()
    theirs = await at_modern_ca.issue(other)
    with pytest.raises(CaRefused) as caught:
        await client.new_order([Identifier("dns", "a.example.com")], replaces=id_of(theirs))
    assert is_about_replaces(caught.value)
    with pytest.raises(CaRefused) as caught:
        await client.new_order([Identifier("dns", "b.example.com")], profile="unheard-of")
    assert name_of(caught.value) == "invalidProfile"
    assert not is_about_replaces(caught.value)


async def test_profile_and_end_are_the_ones_asked_for(at_modern_ca: AtCa, clock: Any) -> None:
    """The certificate itself says so, and the order echoes the profile."""
    client = await at_modern_ca.account()
    assert (await client.directory()).profiles == {"short": "six days"}
    not_after = (clock.now() + timedelta(days=2)).replace(microsecond=0)
    issued = await at_modern_ca.issue(client, profile="short", not_after=not_after)
    assert issued.order.profile == "short"
    assert lib.load_der_x509_certificate(issued.leaf_der).not_valid_after_utc == not_after


async def test_a_ca_without_the_modern_offers_is_told_apart(at_ca: AtCa) -> None:
    """Debian's Pebble has no renewal information; the development CA knows no such certificate."""
    client = await at_ca.account()
    with pytest.raises(CaRefused) as caught:
        await client.renewal_info("aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE")
    assert isinstance(caught.value, NotOffered) is ((await client.directory()).renewal_info is None)


async def test_a_key_change_whose_answer_is_lost_is_found_by_the_new_key(
    at_modern_ca: AtCa, modern_ca: DevelopmentCa
) -> None:
    """The account has the new key already; a second request by the old one would be refused."""
    client = await at_modern_ca.account()
    account_url = await client.find_account()
    new_key = AccountKey(x509.make_key("ec-p256"))
    modern_ca.misbehaviour.script["keyChange"] = [LoseAnswer()]
    with pytest.raises(CaUnavailable):
        await client.key_change(new_key)
    assert await at_modern_ca.client(new_key).find_account() == account_url
    assert modern_ca.requests["keyChange"] == 1
