"""A whole account's life at a CA that speaks real ACME: nothing in it may be a violation of the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from scaivaultd.demo.ca import DevelopmentCa
from scaivaultd.model.errors import CaRefused, Conflict
from scaivaultd.net.acme_http import CaPool, CaSettings
from scaivaultd.net.guard import AddressGuard
from scaivaultd.services.documents import KEYS
from tests.fakes.care import deactivate, failing, idle, kill, rotate, update


@pytest.fixture
async def ca() -> AsyncIterator[DevelopmentCa]:
    async with DevelopmentCa(http01_port=1) as ca:
        yield ca
        assert ca.violations == []


@pytest.fixture
async def world(make_world: Any, ca: DevelopmentCa) -> AsyncIterator[Any]:
    world = make_world()
    cas = CaPool(
        CaSettings(user_agent="scaivaultd/test"),
        guard=AddressGuard([urlsplit(ca.directory_url).netloc]),
        clock=world.clock,
        randomness=world.randomness,
        log=world.log,
    )
    world.cas = cas
    world.begin()
    yield world
    await idle()
    await cas.close()


async def registered(world: Any, ca: DevelopmentCa, **members: Any) -> Any:
    asked = {"directory_url": ca.directory_url, "ca_certificates_pem": ca.root_pem, **members}
    return await world.shown_account(await world.account(**asked))


async def test_a_contact_is_changed_and_taken_away(world: Any, ca: DevelopmentCa) -> None:
    """The CA shows what it believes."""
    account = await registered(world, ca, email="old@example.org")
    await update(world, account.id, email="new@example.org")
    assert list(ca.accounts[account.url].contact) == ["mailto:new@example.org"]
    await update(world, account.id, email=None)
    assert list(ca.accounts[account.url].contact) == []


async def test_new_terms_are_noticed_and_agreed_to(world: Any, ca: DevelopmentCa) -> None:
    """By the directory, before the first order meets them."""
    account = await registered(world, ca)
    ca.change_terms()
    world.clock.advance(86_400)
    await world.care.look()
    changed = await world.shown_account(account.id)
    assert changed.terms_changed_to not in (None, account.ca.terms_of_service)
    reply = await update(world, account.id, terms_of_service_agreed=True)
    assert reply.terms_changed_to is None
    world.clock.advance(86_400)
    await world.care.look()
    assert (await world.event_types()).count("account.terms_changed") == 1


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p384", "rsa-2048"])
async def test_a_key_is_changed_and_the_new_one_works(world: Any, ca: DevelopmentCa, key_type: str) -> None:
    """Each kind signs both ways: out of it, and into the next."""
    account = await registered(world, ca)
    await rotate(world, account.id, key_type=key_type)
    reply = await rotate(world, account.id)
    assert reply.account_url == account.url
    assert await (await world.accounts.client(await world.shown_account(account.id))).find_account() == account.url
    assert await (await world.accounts.client(account)).find_account() is None


@pytest.mark.parametrize("phase", ["received", "processed"])
async def test_a_kill_in_the_middle_of_a_key_change_is_settled_by_the_next_life(
    world: Any, ca: DevelopmentCa, phase: str
) -> None:
    """Before the CA has done it, and after."""
    account = await registered(world, ca)

    reached = asyncio.Event()

    async def cut(resource: str, at: str) -> None:
        if resource == "keyChange" and at == phase:
            ca.on_request = None
            reached.set()
            raise ConnectionResetError

    ca.on_request = cut
    await rotate(world, account.id, wait_seconds=0)
    async with asyncio.timeout(10):
        await reached.wait()
    await kill(world)
    await world.care.resume()
    await idle()
    settled = await world.shown_account(account.id)
    assert (settled.next_key_id, settled.key_id != account.key_id) == (None, True)
    assert await (await world.accounts.client(settled)).find_account() == account.url


async def test_an_account_ends_and_is_refused_everything(world: Any, ca: DevelopmentCa) -> None:
    """Also a second time, in the words that we take for done."""
    account = await registered(world, ca)
    assert (await deactivate(world, account.id)).status == "deactivated"
    assert ca.accounts[account.url].status == "deactivated"
    with pytest.raises(CaRefused) as caught:
        await (await world.accounts.client(account)).deactivate_account()
    assert caught.value.problem is not None
    assert caught.value.problem.name == "unauthorized"


async def test_an_account_is_recovered_by_its_key_after_a_loss(world: Any, ca: DevelopmentCa) -> None:
    """All that is left is the key, in somebody's safe."""
    account = await registered(world, ca)
    sealed = (await world.read(KEYS, account.key_id)).value.sealed
    der = world.sealer.open(sealed, KEYS.key(account.key_id), "private_key")
    pem = serialization.load_der_private_key(der, None).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    asked = {"directory_url": ca.directory_url, "ca_certificates_pem": ca.root_pem, "name": "again"}
    assert isinstance(await failing(world, **asked, account_key_pem=pem.decode()), Conflict)
    await world.accounts.change(account.id, lambda each: msgspec.structs.replace(each, status="invalid"))
    recovered = await registered(world, ca, name="again", account_key_pem=pem.decode())
    assert (recovered.url, recovered.id != account.id) == (account.url, True)
    assert len(ca.accounts) == 1
