"""Accounts of the development CA: RFC 8555 section 7.3, rule by rule."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from scaivaultd.demo.ca import CaSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client, FakeClock


async def test_a_known_key_finds_its_account_again(client: Client) -> None:
    """A client that lost the answer repeats newAccount and must not get a second account."""
    url = client.kid
    again = await client.register()
    assert (again.status, again.location) == (200, url)
    assert len(client.ca.accounts) == 1


async def test_only_return_existing_never_creates(stranger: Client) -> None:
    """Looking an account up must be free of side effects (section 7.3.1)."""
    reply = await stranger.register(onlyReturnExisting=True)
    assert (reply.status, reply.problem) == (400, "accountDoesNotExist")
    assert not stranger.ca.accounts


async def test_terms_must_be_agreed_to(stranger: Client) -> None:
    """Section 7.3.3: 403, and a link to what there is to read."""
    reply = await stranger.register(termsOfServiceAgreed=False)
    assert (reply.status, reply.problem) == (403, "userActionRequired")
    assert 'rel="terms-of-service"' in reply.headers.getall("Link")[0]


async def test_without_terms_nobody_need_agree(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Private CAs have none, and clients must cope with a directory that names none."""
    async with serve(settings=CaSettings(terms_of_service=False)) as stranger:
        assert (await stranger.register(termsOfServiceAgreed=False)).status == 201


@pytest.mark.parametrize(
    ("contact", "problem"),
    [
        (["tel:+123"], "unsupportedContact"),
        (["mailto:a@example.test,b@example.test"], "invalidContact"),
        (["mailto:a@example.test?subject=x"], "invalidContact"),
        (["mailto:nobody"], "invalidContact"),
        ("mailto:a@example.test", "malformed"),
        ([5], "malformed"),
    ],
    ids=str,
)
async def test_contacts_are_plain_mail_addresses(stranger: Client, contact: Any, problem: str) -> None:
    """Section 7.3: one address per mailto, no header fields."""
    assert (await stranger.register(contact=contact)).problem == problem
    assert not stranger.ca.accounts


async def test_contacts_are_replaced_and_cleared(client: Client) -> None:
    """An update carries the whole list; an empty one clears it (section 7.3.2)."""
    assert client.kid is not None
    reply = await client.post(client.kid, {"contact": ["mailto:a@example.test"]})
    assert reply.json["contact"] == ["mailto:a@example.test"]
    assert (await client.post(client.kid, {"contact": []})).json["contact"] == []


async def test_a_deactivated_account_is_turned_away(client: Client) -> None:
    """Deactivation is final: 401, also for newAccount with its key (section 7.3.6)."""
    assert client.kid is not None
    assert (await client.post(client.kid, {"status": "deactivated"})).json["status"] == "deactivated"
    reply = await client.order("a.example.test")
    assert (reply.status, reply.problem) == (401, "unauthorized")
    assert (await client.register()).status == 401


@pytest.mark.parametrize("by", ["url", "thumbprint"])
async def test_an_account_can_be_deactivated_from_outside(client: Client, by: str) -> None:
    """CAs do that, and clients find out in the middle of an order."""
    account = client.ca.accounts[client.kid or ""]
    client.ca.deactivate_account(account.url if by == "url" else account.thumbprint)
    assert (await client.order("a.example.test")).status == 401
    with pytest.raises(KeyError):
        client.ca.deactivate_account("nobody")


async def test_no_other_status_can_be_asked_for(client: Client) -> None:
    """An account cannot revive or revoke itself."""
    assert client.kid is not None
    assert (await client.post(client.kid, {"status": "valid"})).problem == "malformed"


async def test_accounts_and_their_orders_are_private(client: Client, neighbour: Client) -> None:
    """A kid opens its own resources and nobody else's."""
    assert client.kid is not None
    order = await client.order("a.example.test")
    await neighbour.register()
    for url in (client.kid, order.location, order.json["authorizations"][0], order.json["finalize"]):
        reply = await neighbour.post(url, {"csr": ""} if url == order.json["finalize"] else None)
        assert (reply.status, reply.problem) == (403, "unauthorized")


async def test_the_orders_list_comes_in_pages(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Clients follow `Link rel="next"` to the end (section 7.1.2.1)."""
    async with serve(settings=CaSettings(orders_per_page=2)) as client:
        await client.register()
        placed = [(await client.order(f"{n}.example.test")).location for n in "abc"]
        first = await client.post((await client.post(client.kid or "")).json["orders"])
        assert first.json["orders"] == placed[:2]
        following = next(link for link in first.headers.getall("Link") if 'rel="next"' in link)
        second = await client.post(following.partition("<")[2].partition(">")[0])
        assert second.json["orders"] == placed[2:]
        assert not any("next" in link for link in second.headers.getall("Link"))


async def test_the_orders_list_leaves_out_what_failed(client: Client) -> None:
    """Section 7.1.2.1: pending and valid ones only."""
    order = await client.order("a.example.test")
    await client.post(order.json["authorizations"][0], {"status": "deactivated"})
    assert (await client.post(order.location)).json["status"] == "invalid"
    listed = await client.post((await client.post(client.kid or "")).json["orders"])
    assert listed.json["orders"] == []


async def test_a_binding_is_demanded_and_kept(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Commercial CAs know their customers by it (section 7.3.4)."""
    async with serve(eab_keys={"kid-1": b"k" * 32}, require_eab=True) as client:
        directory = await client.request("GET", client.ca.directory_url)
        assert directory.json["meta"]["externalAccountRequired"] is True
        assert (await client.register()).problem == "externalAccountRequired"
        assert (await client.register(externalAccountBinding=client.binding("kid-1", b"k" * 32))).status == 201
        assert [each.eab_key_id for each in client.ca.accounts.values()] == ["kid-1"]


@pytest.mark.parametrize(
    ("kid", "key", "header", "problem"),
    [
        ("kid-2", b"k" * 32, {}, "unauthorized"),
        ("kid-1", b"x" * 32, {}, "unauthorized"),
        ("kid-1", b"k" * 32, {"nonce": "AAAA"}, "malformed"),
        ("kid-1", b"k" * 32, {"url": "https://ca.example/"}, "malformed"),
        ("kid-1", b"k" * 32, {"alg": "ES256"}, "badSignatureAlgorithm"),
    ],
)
async def test_a_bent_binding_is_refused(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
    kid: str,
    key: bytes,
    header: dict[str, str],
    problem: str,
) -> None:
    """Unknown key, wrong MAC, a nonce, another url, another algorithm: five ways to get it wrong."""
    async with serve(eab_keys={"kid-1": b"k" * 32}) as client:
        reply = await client.register(externalAccountBinding=client.binding(kid, key, **header))
        assert reply.problem == problem
        assert not client.ca.accounts


async def test_a_binding_is_for_the_key_that_asks(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """A binding taken from somebody else must not work."""
    async with serve(eab_keys={"kid-1": b"k" * 32}) as client:
        taken = client.binding("kid-1", b"k" * 32)
        thief = type(client)(client.ca, client.session, client.responder)
        assert (await thief.register(externalAccountBinding=taken)).problem == "malformed"


class Roll:
    """A key change request, to be bent."""

    def __init__(self, client: Client, new: Any, make_jws: Any, jwk_of: Any) -> None:
        self.client = client
        self.make_jws = make_jws
        self.new = new
        self.header = {"alg": "ES256", "jwk": jwk_of(new), "url": client.url("/key-change")}
        self.payload = {"account": client.kid, "oldKey": jwk_of(client.key)}

    async def send(self) -> Any:
        inner = self.make_jws(self.new, self.header, json.dumps(self.payload).encode())
        return await self.client.post("/key-change", inner)


@pytest.fixture
def roll(client: Client, make_key: Any, make_jws: Any, jwk_of: Any) -> Roll:
    return Roll(client, make_key(), make_jws, jwk_of)


async def test_a_key_change_replaces_the_key(client: Client, roll: Roll) -> None:
    """After it the old key opens nothing and the new one everything (section 7.3.5)."""
    assert (await roll.send()).status == 200
    assert (await client.order("a.example.test")).problem == "malformed"
    client.key = roll.new
    assert (await client.order("a.example.test")).status == 201


async def test_pending_challenges_are_judged_by_the_new_key(client: Client, roll: Roll) -> None:
    """A key authorization made before the change no longer holds."""
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    await client.challenge(url)
    await roll.send()
    client.key = roll.new
    challenge = (await client.post(url)).json["challenges"]
    await client.post(next(each["url"] for each in challenge if each["type"] == "http-01"), {})
    assert (await client.settled(url))["status"] == "invalid"


async def test_a_key_with_an_account_cannot_be_taken(client: Client, neighbour: Client, roll: Roll) -> None:
    """409 with the Location of the account that has it."""
    neighbour.key = roll.new
    await neighbour.register()
    reply = await roll.send()
    assert (reply.status, reply.location) == (409, neighbour.kid)


async def test_a_certificates_key_cannot_be_taken(client: Client, roll: Roll) -> None:
    """Section 11.1 holds for the new key of an account as for its first."""
    await client.issue("a.example.test", key=roll.new)
    assert (await roll.send()).problem == "badPublicKey"
    assert (await client.order("a.example.test")).status == 201


@pytest.mark.parametrize("bend", ["nonce", "url", "account", "oldKey", "signature"])
async def test_a_bent_key_change_is_refused(client: Client, roll: Roll, bend: str, make_key: Any, jwk_of: Any) -> None:
    """Each member of the inner JWS guards against one attack (section 11)."""
    match bend:
        case "nonce":
            roll.header["nonce"] = "AAAA"
        case "url":
            roll.header["url"] = client.url("/new-account")
        case "account":
            roll.payload["account"] = client.url("/account/other")
        case "oldKey":
            roll.payload["oldKey"] = jwk_of(make_key())
        case _:
            roll.header["jwk"] = jwk_of(make_key())
    assert (await roll.send()).problem == "malformed"
    assert (await client.order("a.example.test")).status == 201


async def test_changed_terms_stop_orders_until_agreed_to(client: Client, neighbour: Client) -> None:
    """Section 7.3.3: 403 with a place for a human and the new terms; what was ordered before goes on."""
    order = await client.order("a.example.test")
    client.ca.change_terms()
    refused = await client.order("b.example.test")
    assert (refused.status, refused.problem) == (403, "userActionRequired")
    directory = await client.request("GET", client.ca.directory_url)
    assert f'<{directory.json["meta"]["termsOfService"]}>;rel="terms-of-service"' in refused.headers.getall("Link")
    assert refused.json["instance"].startswith("https://")
    assert (await client.post(order.json["authorizations"][0])).status == 200
    await neighbour.register()
    assert (await neighbour.order("b.example.test")).status == 201


@pytest.mark.parametrize("by", ["human", "update"])
async def test_new_terms_are_agreed_to_by_a_human_or_an_update(client: Client, by: str) -> None:
    """Clients probe and go on by themselves; some CAs take the agreement in the account."""
    client.ca.change_terms()
    if by == "human":
        client.ca.agree_to_terms(client.kid or "")
    else:
        assert (await client.post(client.kid or "", {"termsOfServiceAgreed": True})).status == 200
    assert (await client.order("a.example.test")).status == 201
    client.ca.change_terms()
    assert (await client.order("a.example.test")).problem == "userActionRequired"
    with pytest.raises(KeyError):
        client.ca.agree_to_terms("nobody")


@pytest.mark.parametrize("agreed", [True, False])
async def test_ordering_on_against_new_terms_is_a_violation(client: Client, clock: FakeClock, agreed: bool) -> None:
    """Only a human helps, so the client asks rarely; once it was agreed, the log is forgiving."""
    client.ca.change_terms()
    await client.order("a.example.test")
    clock.advance(60)
    if agreed:
        client.ca.agree_to_terms(client.kid or "")
        client.ca.change_terms()
    await client.order("b.example.test")
    assert [each.partition(":")[0] for each in client.ca.violations] == ([] if agreed else ["hammering"])


async def test_a_ca_need_not_offer_key_changes(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Not in the directory, 404 at the usual place, and nobody is blamed for looking."""
    async with serve(settings=CaSettings(offers_key_change=False)) as client:
        await client.register()
        assert "keyChange" not in (await client.request("GET", client.ca.directory_url)).json
        assert (await client.post("/key-change", {})).status == 404
        assert not client.ca.violations


async def test_an_account_the_ca_revoked_says_so(client: Client) -> None:
    """Section 7.1.6 has two ends for accounts."""
    client.ca.deactivate_account(client.kid or "", "revoked")
    refused = await client.order("a.example.test")
    assert (refused.status, refused.json["detail"]) == (401, "the account is revoked")
