"""The development CA's log of violations: it blames who breaks a rule, and nobody else."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from scaivaultd.demo.ca import CaSettings, LoseAnswer, Misbehaviour, Status
from scaivaultd.demo.ca_conduct import Asked, Conduct

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.demo.conftest import Client, FakeClock, Reply


def rules(client: Client) -> list[str]:
    return [each.partition(":")[0] for each in client.ca.violations]


def revocation(pem: bytes, **members: Any) -> dict[str, Any]:
    der = x509.load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)
    return {"certificate": base64.urlsafe_b64encode(der).rstrip(b"=").decode(), **members}


async def moved(client: Client) -> Reply:
    return await client.request("GET", client.ca.directory_url)


async def test_a_patient_client_leaves_no_trace(client: Client, clock: FakeClock) -> None:
    """The log is worth something only if it stays empty for a good client."""
    client.ca.misbehaviour.processing_seconds = 3
    client.ca.misbehaviour.always_valid = True
    await moved(client)
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    challenge = await client.challenge(url)
    await client.post(challenge["url"], {})
    for _ in range(2):
        clock.advance(1)
        await client.post(url)
    clock.advance(1)
    assert (await client.post(order.location)).json["status"] == "ready"
    done = await client.finalize(order)
    clock.advance(3)
    done = await client.post(done.location)
    await client.post(done.json["certificate"])
    assert client.ca.violations == []


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize(("waited", "expected"), [(4.5, ["retry-after"]), (5.0, [])])
async def test_reading_before_retry_after_is_a_violation(
    client: Client, clock: FakeClock, form: Any, waited: float, expected: list[str]
) -> None:
    """What newOrder asks for holds for reading the order; the other order is another matter."""
    client.ca.misbehaviour.retry_after_form = form
    client.ca.misbehaviour.retry_after_seconds = 5
    order, other = await client.order("a.example.test"), None
    clock.advance(waited)
    other = await client.order("b.example.test")
    await client.post(order.location)
    assert other.status == 201
    assert rules(client) == expected


@pytest.mark.parametrize("resource", ["authorization", "challenge", "finalize"])
async def test_each_unfinished_thing_has_its_own_pace(client: Client, clock: FakeClock, resource: str) -> None:
    """An answer that asks for patience is about what it shows, or about the order it leads to."""
    client.ca.misbehaviour.validation_delay_seconds = 60
    client.ca.misbehaviour.processing_seconds = 60
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    match resource:
        case "authorization":
            await client.post(url)
        case "challenge":
            url = (await client.challenge(url))["url"]
            await client.post(url, {})
        case _:
            client.ca.misbehaviour.order_ready_at_once = True
            order = await client.order("b.example.test")
            url = (await client.finalize(order)).location
    assert not client.ca.violations
    await client.post(url)
    assert rules(client) == ["retry-after"]
    clock.advance(1)
    await client.post(url)
    assert rules(client) == ["retry-after"]


async def test_a_refused_request_is_to_wait_not_the_others(client: Client, clock: FakeClock) -> None:
    """503 with Retry-After is about that order; one for other names may come at once."""
    client.ca.misbehaviour.script["newOrder"] = [Status(code=503, headers={"Retry-After": "30"})]
    await client.order("a.example.test")
    await client.order("b.example.test")
    assert not client.ca.violations
    await client.order("a.example.test")
    assert rules(client) == ["retry-after"]
    clock.advance(30)
    await client.order("a.example.test")
    assert rules(client) == ["retry-after"]


async def test_an_answer_that_was_lost_obliges_nobody(client: Client) -> None:
    """Its Retry-After never arrived."""
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    client.ca.misbehaviour.script["authorization"] = [LoseAnswer()]
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.post(url)
    await client.post(url)
    assert not client.ca.violations


async def test_a_moved_address_is_refused_and_blamed_after_a_while(client: Client, clock: FakeClock) -> None:
    """The first 404 tells; what was on its way then is forgiven, what comes later is not."""
    client.ca.move_endpoints()
    for _ in range(2):
        reply = await stale(client)
        assert (reply.status, reply.problem) == (404, "malformed")
    assert not client.ca.violations
    clock.advance(2)
    await stale(client)
    assert rules(client) == ["stale-directory"]


async def stale(client: Client) -> Reply:
    """A POST to where newOrder was."""
    return await client.send(client.url("/new-order"), {})


async def test_who_has_read_the_new_directory_needs_no_404(client: Client, clock: FakeClock) -> None:
    """A client with two copies of the directory forgets to renew one of them."""
    client.ca.move_endpoints()
    directory = (await moved(client)).json
    assert directory["newOrder"].endswith("/v1/new-order")
    clock.advance(2)
    await stale(client)
    assert rules(client) == ["stale-directory"]


async def test_everything_works_where_it_has_moved(client: Client, make_jws: Any) -> None:
    """Account and order URLs stay; what the directory names is found by the new one."""
    order = await client.order("a.example.test")
    client.ca.move_endpoints()
    directory = (await moved(client)).json
    nonce = (await client.request("HEAD", directory["newNonce"])).headers["Replay-Nonce"]
    protected = {"alg": "ES256", "nonce": nonce, "url": directory["newOrder"], "kid": client.kid}
    payload = b'{"identifiers": [{"type": "dns", "value": "b.example.test"}]}'
    made = await client.send(directory["newOrder"], make_jws(client.key, protected, payload))
    assert made.status == 201
    protected = {**protected, "nonce": made.headers["Replay-Nonce"], "url": order.location}
    assert (await client.send(order.location, make_jws(client.key, protected, b""))).status == 200
    assert (await client.request("HEAD", client.url("/new-nonce"))).status == 404


async def test_a_compromised_key_never_comes_back(client: Client, neighbour: Client, make_key: Any) -> None:
    """Neither for a certificate nor for an account; other reasons leave the key alone."""
    key, lost = make_key(), make_key()
    kept_pem = (await client.issue("b.example.test", key=key)).body
    lost_pem = (await client.issue("a.example.test", key=lost)).body
    await client.post("/revoke-cert", revocation(kept_pem, reason=4))
    await client.post("/revoke-cert", revocation(lost_pem, reason=1))
    client.ca.violations.clear()
    client.ca.misbehaviour.retry_after_form = "none"
    assert (await client.finalize(await client.ready_order("b.example.test"), key)).status == 200
    assert not client.ca.violations
    assert (await client.finalize(await client.ready_order("a.example.test"), lost)).problem == "badPublicKey"
    neighbour.key = lost
    assert (await neighbour.register()).problem == "badPublicKey"
    assert rules(client) == ["compromised-key", "compromised-key"]


async def test_a_certificates_key_makes_no_account(client: Client, neighbour: Client, make_key: Any) -> None:
    """RFC 8555 section 11.1, from the other side."""
    client.ca.misbehaviour.retry_after_form = "none"
    neighbour.key = make_key()
    await client.issue("a.example.test", key=neighbour.key)
    assert (await neighbour.register()).problem == "badPublicKey"
    assert rules(client) == ["shared-key"]


async def test_a_nonce_comes_once(client: Client) -> None:
    """A client that repeats a request as it was replays it."""
    body = await client.signed(client.kid or "", None)
    for _ in range(2):
        await client.send(client.kid or "", body)
    assert rules(client) == ["nonce-reuse"]
    await client.post(client.kid or "", header={"nonce": "never-ours"})
    assert rules(client) == ["nonce-reuse"]


async def test_finalize_before_ready_is_a_violation(client: Client) -> None:
    """Too early, and blindly again: an order is read before it is finalised."""
    client.ca.misbehaviour.retry_after_form = "none"
    order = await client.order("a.example.test")
    await client.finalize(order)
    await client.prove(order)
    assert (await client.finalize(order)).json["status"] == "valid"
    await client.finalize(order)
    assert rules(client) == ["not-ready", "not-ready"]


async def test_finalize_of_an_order_that_has_failed_is_bad_luck(client: Client) -> None:
    """It may have turned invalid since it was read."""
    order = await client.order("a.example.test")
    await client.post(order.json["authorizations"][0], {"status": "deactivated"})
    await client.finalize(order)
    assert not client.ca.violations


@pytest.mark.parametrize(("waited", "expected"), [(0, []), (60, ["hammering"]), (3600, [])])
async def test_a_deactivated_account_gives_up(
    client: Client, clock: FakeClock, waited: float, expected: list[str]
) -> None:
    """What was under way is forgiven, a look an hour later too; hammering is not."""
    client.ca.deactivate_account(client.kid or "", "revoked")
    assert (await client.order("a.example.test")).status == 401
    clock.advance(waited)
    await client.order("a.example.test")
    assert rules(client) == expected


@pytest.mark.parametrize("reason", ["content_type", "payload", "csr"])
async def test_requests_that_break_the_protocol_are_noted(client: Client, reason: str) -> None:
    """A client that is refused and then does better has still been wrong."""
    client.ca.misbehaviour.retry_after_form = "none"
    order = await client.ready_order("a.example.test")
    match reason:
        case "content_type":
            body = await client.signed(order.location, None)
            await client.send(order.location, body, **{"Content-Type": "application/json"})
        case "payload":
            await client.post(order.location, {})
        case _:
            await client.finalize(order, names=["b.example.test"])
    assert rules(client) == ["malformed"]


@pytest.mark.parametrize("wrong", ["badNonce", "rateLimited", "malformed"])
async def test_the_cas_own_faults_are_nobodys_violation(client: Client, wrong: str) -> None:
    """Scripted refusals, and what cannot be found any more."""
    client.ca.misbehaviour.script["newOrder"] = [Status(code=400, type=wrong)]
    await client.order("a.example.test")
    await client.post("/certificate/gone")
    assert not client.ca.violations


async def test_a_single_use_binding_makes_one_account(
    serve: Callable[..., AbstractAsyncContextManager[Client]],
) -> None:
    """As at Google: sending it again for another key is refused, and blamed."""
    settings = CaSettings(single_use_bindings=True)
    async with serve(eab_keys={"kid-1": b"k" * 32}, settings=settings) as client:
        assert (await client.register(externalAccountBinding=client.binding("kid-1", b"k" * 32))).status == 201
        other = type(client)(client.ca, client.session, client.responder)
        reply = await other.register(externalAccountBinding=other.binding("kid-1", b"k" * 32))
        assert (reply.status, reply.problem) == (401, "unauthorized")
        assert rules(client) == ["eab-reuse"]


def test_the_log_has_an_end(clock: FakeClock) -> None:
    """A client that loops must not fill the machine."""
    conduct = Conduct(clock)
    for _ in range(2000):
        conduct.violate("malformed", "again")
    assert len(conduct.violations) == 1000


@pytest.mark.parametrize("value", ["soon", "-5", "", "Thu, 32 Foo 2026 00:00:00 GMT"])
def test_an_unreadable_retry_after_obliges_nobody(clock: FakeClock, value: str) -> None:
    """Scripts send garbage on purpose."""
    conduct = Conduct(clock)
    asked = Asked(resource="order", url="https://ca.example/order/1")
    conduct.answered(asked, status=200, retry_after=value, location=None)
    conduct.asked(asked)
    assert not conduct.violations


async def test_an_outage_lasts_until_it_is_taken_out(client: Client) -> None:
    """A CA that is down for hours; one scripted fault still goes first."""
    misbehaviour: Misbehaviour = client.ca.misbehaviour
    misbehaviour.outages["*"] = Status(code=503)
    misbehaviour.outages["newOrder"] = Status(code=500)
    misbehaviour.script["directory"] = [Status(code=502)]
    assert [(await moved(client)).status for _ in range(3)] == [502, 503, 503]
    nonce = (await client.request("HEAD", client.url("/new-nonce"))).headers
    body = {"protected": "", "payload": "", "signature": ""}
    assert (await client.send(client.url("/new-order"), body)).status == 500
    assert "Replay-Nonce" in nonce
    misbehaviour.outages.clear()
    assert (await moved(client)).status == 200


@pytest.mark.parametrize(("fails", "status"), [(False, "valid"), (True, "invalid")])
async def test_processing_can_hang_and_end_either_way(
    client: Client, clock: FakeClock, fails: bool, status: str
) -> None:
    """For a day `processing`, and then valid or not."""
    client.ca.misbehaviour.processing_hangs = True
    order = await client.ready_order("a.example.test")
    assert (await client.finalize(order)).json["status"] == "processing"
    clock.advance(86_400)
    assert (await client.post(order.location)).json["status"] == "processing"
    client.ca.misbehaviour.invalid_order = fails
    client.ca.misbehaviour.processing_hangs = False
    assert (await client.post(order.location)).json["status"] == status
