"""Orders and authorizations of the development CA: states, identifiers, and what a CSR must be."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from scaivaultd.demo.ca import CaSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client, FakeClock


SHA1_CSR = (
    "MIHmMIGOAgEAMAAwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR7q19UqL1r2VSe4PNCchMM4wntyXCKeXAhTkew-TTZL6kPI5JS"
    "I6xUBmk1ZQUshzUiFMmNBe6DneoEnCM5lHZboCwwKgYJKoZIhvcNAQkOMR0wGzAZBgNVHREEEjAQgg5hLmV4YW1wbGUudGVzdDAJ"
    "BgcqhkjOPQQBA0gAMEUCIB4dbK5QMqPAZ5hi0ykyWep44QYSELY5khudDNsApspjAiEA5uVA0WZfr-"
    "qK4Y0E7bEzZO5JrIAg_2ehzwHufdvZseA"
)
"""For a.example.test, made by openssl: the crypto library signs nothing with SHA-1 any more."""


async def test_an_order_walks_from_pending_to_valid(client: Client, clock: FakeClock) -> None:
    """The states of section 7.1.6 in their sequence, `processing` for as long as it was told to last."""
    client.ca.misbehaviour.processing_seconds = 5
    order = await client.order("a.example.test")
    assert (order.status, order.json["status"], order.headers["Retry-After"]) == (201, "pending", "1")
    await client.prove(order)
    assert (await client.post(order.location)).json["status"] == "ready"
    processing = await client.finalize(order)
    assert (processing.json["status"], processing.location) == ("processing", order.location)
    clock.advance(4)
    assert (await client.post(order.location)).json["status"] == "processing"
    clock.advance(1)
    assert (await client.post(order.location)).json["status"] == "valid"


async def test_each_identifier_has_its_authorization(client: Client) -> None:
    """A wildcard and its base are two, of one name, told apart by `wildcard` (section 7.1.4)."""
    order = await client.order("a.example.test", "*.a.example.test", "a.example.test")
    read = [(await client.post(url)).json for url in order.json["authorizations"]]
    assert [each["identifier"]["value"] for each in read] == ["a.example.test", "a.example.test"]
    assert [each.get("wildcard") for each in read] == [None, True]
    assert [sorted(challenge["type"] for challenge in each["challenges"]) for each in read] == [
        ["dns-01", "http-01", "tls-alpn-01"],
        ["dns-01"],
    ]


async def test_addresses_are_not_offered_dns(client: Client) -> None:
    """RFC 8738 section 7."""
    order = await client.order("192.0.2.1")
    offered = (await client.post(order.json["authorizations"][0])).json["challenges"]
    assert sorted(each["type"] for each in offered) == ["http-01", "tls-alpn-01"]


@pytest.mark.parametrize(
    ("identifier", "problem"),
    [
        ({"type": "dns", "value": "A.example.test"}, "rejectedIdentifier"),
        ({"type": "dns", "value": "a.example.test."}, "rejectedIdentifier"),
        ({"type": "dns", "value": "localhost"}, "rejectedIdentifier"),
        ({"type": "dns", "value": "a.*.example.test"}, "rejectedIdentifier"),
        ({"type": "dns", "value": "192.0.2.1"}, "rejectedIdentifier"),
        ({"type": "dns", "value": "b\u00fccher.example.test"}, "rejectedIdentifier"),
        ({"type": "ip", "value": "2001:DB8::1"}, "rejectedIdentifier"),
        ({"type": "ip", "value": "a.example.test"}, "rejectedIdentifier"),
        ({"type": "email", "value": "a@example.test"}, "unsupportedIdentifier"),
        ({"type": "dns"}, "malformed"),
        ("a.example.test", "malformed"),
    ],
    ids=str,
)
async def test_bent_identifiers_are_refused(client: Client, identifier: Any, problem: str) -> None:
    """Clients normalise before they ask; a CA that corrected them would hide it when they do not."""
    reply = await client.post("/new-order", {"identifiers": [identifier]})
    assert reply.problem == problem
    assert not client.ca.orders


async def test_a_rejected_identifier_is_named_in_a_subproblem(client: Client) -> None:
    """Clients point at the name, not at the order (section 6.7.1)."""
    reply = await client.order("a.example.test", "localhost")
    assert reply.json["subproblems"][0]["identifier"] == {"type": "dns", "value": "localhost"}


@pytest.mark.parametrize("member", ["notBefore", "notAfter"])
async def test_validity_is_not_negotiable(client: Client, member: str) -> None:
    """As at Let's Encrypt."""
    identifiers = [{"type": "dns", "value": "a.example.test"}]
    reply = await client.post("/new-order", {"identifiers": identifiers, member: "2026-02-01T00:00:00Z"})
    assert reply.problem == "malformed"


async def test_one_failed_name_fails_the_order(client: Client) -> None:
    """And the order says why, without an `identifier` at the top (section 6.7.1)."""
    order = await client.order("a.example.test", "b.example.test")
    await client.prove(order, "dns-01")
    read = (await client.post(order.location)).json
    assert (read["status"], read["error"]["type"]) == ("invalid", "urn:ietf:params:acme:error:compound")
    named = {each["identifier"]["value"] for each in read["error"]["subproblems"]}
    assert named == {"a.example.test", "b.example.test"}


async def test_a_single_failure_is_the_orders_own_error(client: Client) -> None:
    """No compound of one."""
    order = await client.order("a.example.test")
    await client.prove(order, "dns-01")
    error = (await client.post(order.location)).json["error"]
    assert (error["type"], "identifier" in error) == ("urn:ietf:params:acme:error:dns", False)


async def test_deactivating_an_authorization_ends_its_order(client: Client) -> None:
    """How clients give up (section 7.5.2)."""
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    assert (await client.post(url, {"status": "deactivated"})).json["status"] == "deactivated"
    assert (await client.post(order.location)).json["status"] == "invalid"
    assert (await client.post(url, {"status": "deactivated"})).problem == "malformed"
    assert (await client.post(url, {"status": "valid"})).problem == "malformed"


async def test_a_challenge_is_answered_by_an_empty_object(client: Client) -> None:
    """Old clients sent the key authorization along; that is long gone."""
    order = await client.order("a.example.test")
    challenge = await client.challenge(order.json["authorizations"][0])
    assert (await client.post(challenge["url"], {"keyAuthorization": "x"})).problem == "malformed"
    read = await client.post(challenge["url"])
    assert read.json["status"] == "pending"
    assert f'<{order.json["authorizations"][0]}>;rel="up"' in read.headers.getall("Link")


async def test_answering_a_settled_challenge_again_changes_nothing(client: Client) -> None:
    """A client that lost the answer repeats it."""
    order = await client.ready_order("a.example.test")
    challenge = await client.challenge(order.json["authorizations"][0])
    looks = len(client.responder.hosts)
    assert (await client.post(challenge["url"], {})).json["status"] == "valid"
    assert len(client.responder.hosts) == looks


async def test_answering_twice_makes_one_look(client: Client, clock: FakeClock) -> None:
    """The second answer comes while the first is still being judged."""
    client.ca.misbehaviour.validation_delay_seconds = 30
    order = await client.order("a.example.test")
    challenge = await client.challenge(order.json["authorizations"][0])
    for _ in range(2):
        assert (await client.post(challenge["url"], {})).json["status"] == "processing"
    clock.advance(30)
    await client.settled(order.json["authorizations"][0])
    assert client.responder.hosts == ["a.example.test"]


async def test_a_proven_authorization_takes_no_second_proof(client: Client) -> None:
    """Exactly one challenge of an authorization is validated (section 7.5.1)."""
    order = await client.ready_order("a.example.test")
    challenge = await client.challenge(order.json["authorizations"][0], "dns-01")
    assert (await client.post(challenge["url"], {})).json["status"] == "pending"


async def test_a_late_finding_does_not_revive_an_authorization(client: Client, clock: FakeClock) -> None:
    """The client gave up while the CA was looking."""
    client.ca.misbehaviour.validation_delay_seconds = 30
    client.ca.misbehaviour.always_valid = True
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    await client.post((await client.challenge(url))["url"], {})
    await client.post(url, {"status": "deactivated"})
    clock.advance(30)
    for _ in range(3):
        assert (await client.post(url)).json["status"] == "deactivated"


async def test_validation_waits_as_long_as_it_is_told(client: Client, clock: FakeClock) -> None:
    """Slow validation shows as `processing`, with a Retry-After."""
    client.ca.misbehaviour.validation_delay_seconds = 30
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    challenge = await client.challenge(url)
    reply = await client.post(challenge["url"], {})
    assert (reply.json["status"], reply.headers["Retry-After"]) == ("processing", "1")
    assert (await client.post(url)).json["status"] == "pending"
    clock.advance(30)
    assert (await client.settled(url))["status"] == "valid"


async def test_finalize_wants_a_ready_order(client: Client) -> None:
    """Too early and twice are both orderNotReady (section 7.4)."""
    order = await client.order("a.example.test")
    early = await client.finalize(order)
    assert (early.status, early.problem) == (403, "orderNotReady")
    await client.prove(order)
    assert (await client.finalize(order)).json["status"] == "valid"
    assert (await client.finalize(order)).problem == "orderNotReady"
    assert len(client.ca.issued) == 1


@pytest.mark.parametrize(
    "names",
    [["b.example.test"], ["a.example.test", "b.example.test"], ["*.a.example.test"], ["192.0.2.1"]],
    ids=str,
)
async def test_a_csr_names_exactly_what_was_ordered(client: Client, names: list[str]) -> None:
    """Neither other nor more; the order stays ready for a better one."""
    order = await client.ready_order("a.example.test")
    assert (await client.finalize(order, names=names)).problem == "badCSR"
    assert (await client.finalize(order)).json["status"] == "valid"


async def test_a_common_name_is_one_of_the_names(client: Client, make_csr: Callable[..., str], make_key: Any) -> None:
    """A stray name in the subject would be certified unproven."""
    order = await client.ready_order("a.example.test")
    for common_name, status in (("b.example.test", 400), ("a.example.test", 200)):
        request = make_csr(make_key(), ["a.example.test"], common_name=common_name)
        assert (await client.post(order.json["finalize"], {"csr": request})).status == status


async def test_a_weak_signature_is_refused(client: Client) -> None:
    """Nothing below SHA-256 is taken by public CAs."""
    order = await client.ready_order("a.example.test")
    reply = await client.post(order.json["finalize"], {"csr": SHA1_CSR})
    assert (reply.problem, "weak" in reply.json["detail"]) == ("badCSR", True)


async def test_an_account_key_is_never_certified(client: Client) -> None:
    """Section 11.1."""
    order = await client.ready_order("a.example.test")
    assert (await client.finalize(order, key=client.key)).problem == "badCSR"


async def test_a_key_nobody_takes_is_refused(client: Client) -> None:
    """P-521 fits no public CA."""
    order = await client.ready_order("a.example.test")
    reply = await client.finalize(order, key=ec.generate_private_key(ec.SECP521R1()))
    assert reply.problem == "badPublicKey"


async def test_a_forged_csr_is_refused(
    client: Client, make_csr: Callable[[Any, list[str]], str], make_key: Any
) -> None:
    """The signature proves that the client has the key."""
    order = await client.ready_order("a.example.test")
    good = make_csr(make_key(), ["a.example.test"])
    forged = good[:-8] + "AAAAAAAA"
    assert (await client.post(order.json["finalize"], {"csr": forged})).problem == "badCSR"
    assert (await client.post(order.json["finalize"], {"csr": "AAAA"})).problem == "badCSR"
    assert (await client.post(order.json["finalize"], {"csr": 5})).problem == "malformed"


async def test_an_order_does_not_live_for_ever(
    serve: Callable[..., AbstractAsyncContextManager[Client]], clock: FakeClock
) -> None:
    """A daemon that comes back after a week must start anew."""
    async with serve(settings=CaSettings(order_ttl=timedelta(hours=1))) as client:
        await client.register()
        order = await client.ready_order("a.example.test")
        clock.advance(3600)
        assert (await client.post(order.location)).json["status"] == "invalid"
        assert (await client.finalize(order)).problem == "orderNotReady"


@pytest.mark.parametrize(("proven", "status"), [(True, "expired"), (False, "invalid")])
async def test_an_authorization_does_not_live_for_ever(
    serve: Callable[..., AbstractAsyncContextManager[Client]], clock: FakeClock, proven: bool, status: str
) -> None:
    """Section 7.1.6: only a proven one expires."""
    async with serve(settings=CaSettings(authorization_ttl=timedelta(hours=1))) as client:
        await client.register()
        order = await client.order("a.example.test")
        if proven:
            await client.prove(order)
        clock.advance(3600)
        assert (await client.post(order.json["authorizations"][0])).json["status"] == status


async def test_proof_is_used_again_where_that_is_on(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """The second order is born ready, of the same authorization."""
    async with serve(settings=CaSettings(reuse_authorizations=True)) as client:
        await client.register()
        first = await client.ready_order("a.example.test")
        second = await client.order("a.example.test")
        assert second.json["status"] == "ready"
        assert second.json["authorizations"] == first.json["authorizations"]


async def test_proof_is_not_used_again_by_itself(client: Client) -> None:
    """Off is the default: tests of the whole walk need it."""
    await client.ready_order("a.example.test")
    assert (await client.order("a.example.test")).json["status"] == "pending"


async def test_nothing_has_a_fixed_place_when_shuffled(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """Clients match by value: with eight names, eight readings in one sequence are one chance in 10**32."""
    names = [f"{letter}.example.test" for letter in "abcdefgh"]
    async with serve(settings=CaSettings(shuffle=True)) as client:
        await client.register()
        order = await client.order(*names)
        readings = [(await client.post(order.location)).json for _ in range(8)]
        for member in ("identifiers", "authorizations"):
            assert len({str(each[member]) for each in readings}) > 1
            assert len({str(sorted(each[member], key=str)) for each in readings}) == 1
