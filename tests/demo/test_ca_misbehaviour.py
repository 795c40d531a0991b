"""Every switch of the development CA shows on the wire, and only while it is on."""

from __future__ import annotations

import asyncio
import base64
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from scaivaultd.demo.ca import (
    CaSettings,
    Endless,
    Hang,
    LoseAnswer,
    Malformed,
    Misbehaviour,
    NoNonce,
    Nulls,
    Pass,
    Redirect,
    Reset,
    Status,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from scaivaultd.demo.ca import Fault, WrongCertificate
    from tests.demo.conftest import Client, FakeClock


class Loaded:
    """Chance that always draws the same fraction; bytes stay distinct by the CA's own counter."""

    def __init__(self, drawn: float) -> None:
        self.drawn = drawn
        self.draws = 0

    def token_bytes(self, length: int) -> bytes:
        return bytes(length)

    def fraction(self) -> float:
        self.draws += 1
        return self.drawn


def suspended() -> list[str]:
    """Where the tasks of this loop wait, outermost first."""
    names = []
    for task in asyncio.all_tasks():
        inner: Any = task.get_coro()
        while inner is not None and hasattr(inner, "cr_await"):
            names.append(inner.__qualname__)
            inner = inner.cr_await
    return names


def script(client: Client, resource: str, *faults: Fault) -> None:
    client.ca.misbehaviour.script[resource] = list(faults)


async def test_a_script_strikes_once_per_request_of_its_resource(client: Client) -> None:
    """Tests count on the sequence: pass, fail, then well again."""
    script(client, "newOrder", Pass(), Status(code=503, type="rateLimited", headers={"Retry-After": "7"}))
    assert (await client.order("a.example.test")).status == 201
    assert client.kid is not None
    assert (await client.post(client.kid)).status == 200
    limited = await client.order("a.example.test")
    assert (limited.status, limited.problem, limited.headers["Retry-After"]) == (503, "rateLimited", "7")
    assert (await client.order("a.example.test")).status == 201
    assert len(client.ca.orders) == 2


async def test_a_scripted_problem_carries_further_members(client: Client) -> None:
    """Subproblems, instance and algorithms come from CAs this way."""
    script(client, "newOrder", Status(code=403, type="urn:x:y", members={"instance": "https://ca.example/x"}))
    reply = await client.order("a.example.test")
    assert (reply.problem, reply.json["instance"]) == ("urn:x:y", "https://ca.example/x")


@pytest.mark.parametrize(("processed", "orders"), [(False, 0), (True, 1)])
async def test_a_scripted_status_can_come_before_or_after_the_work(
    client: Client, processed: bool, orders: int
) -> None:
    """A 500 says nothing about what was done."""
    script(client, "newOrder", Status(code=500, processed=processed))
    assert (await client.order("a.example.test")).status == 500
    assert len(client.ca.orders) == orders


@pytest.mark.parametrize(("fault", "orders"), [(Reset(), 0), (LoseAnswer(), 1)])
async def test_a_reset_drops_the_request_or_the_answer(client: Client, fault: Fault, orders: int) -> None:
    """The client sees the same, the CA's state differs."""
    script(client, "newOrder", fault)
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.order("a.example.test")
    assert len(client.ca.orders) == orders
    assert client.ca.requests["newOrder"] == 1


@pytest.mark.parametrize(("switch", "orders"), [("reset_rate", 0), ("lose_answer_rate", 1)])
async def test_resets_can_be_drawn_by_chance(client: Client, switch: str, orders: int) -> None:
    """Soak tests want weather, not a script."""
    body = await client.signed(client.url("/new-order"), {"identifiers": [{"type": "dns", "value": "a.example.test"}]})
    setattr(client.ca.misbehaviour, switch, 1.0)
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.send(client.url("/new-order"), body)
    assert len(client.ca.orders) == orders


@pytest.mark.parametrize(("drawn", "status"), [(0.2, 500), (0.4, 200)])
async def test_a_rate_is_a_share(
    serve: Callable[..., AbstractAsyncContextManager[Client]], drawn: float, status: int
) -> None:
    """Drawn below the rate strikes, above does not."""
    async with serve(randomness=Loaded(drawn), misbehaviour=Misbehaviour(error_500_rate=0.3)) as client:
        assert (await client.request("GET", client.ca.directory_url)).status == status


async def test_good_nonces_are_refused_by_chance(client: Client) -> None:
    """badNonce is weather; the answer brings the next nonce."""
    client.ca.misbehaviour.nonce_reject_rate = 1.0
    reply = await client.order("a.example.test")
    assert reply.problem == "badNonce"
    client.ca.misbehaviour.nonce_reject_rate = 0.0
    nonce = reply.headers["Replay-Nonce"]
    assert (await client.post(client.kid or "", header={"nonce": nonce})).status == 200


async def test_a_malformed_answer_hides_work_that_was_done(client: Client) -> None:
    """A proxy's HTML in place of an order."""
    script(client, "newOrder", Malformed(body=b"<html>", content_type="text/html"))
    reply = await client.order("a.example.test")
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (201, b"<html>", "text/html")
    assert reply.location in client.ca.orders


async def test_an_endless_answer_ends_when_the_client_has_had_enough(client: Client) -> None:
    """Clients read with a limit; the CA must notice that they have gone."""
    script(client, "directory", Endless())
    async with client.session.get(client.ca.directory_url) as response:
        assert len(await response.content.readexactly(2 * 1024 * 1024)) == 2 * 1024 * 1024
    assert (await client.request("GET", client.ca.directory_url)).status == 200


async def test_an_endless_answer_is_bounded_all_the_same(client: Client) -> None:
    """A client without a limit must not fill the machine."""
    script(client, "directory", Endless())
    received = 0
    async with client.session.get(client.ca.directory_url) as response:
        async for chunk in response.content.iter_any():
            received += len(chunk)
    assert 60 * 1024 * 1024 < received <= 64 * 1024 * 1024


async def test_a_hanging_answer_ends_with_its_client(client: Client) -> None:
    """Nothing has been done, and nothing stays behind."""
    body = await client.signed(client.url("/new-order"), {})
    script(client, "newOrder", Hang())
    received = asyncio.Event()

    async def hook(_resource: str, _phase: str) -> None:
        received.set()

    client.ca.on_request = hook
    waiting = asyncio.create_task(client.send(client.url("/new-order"), body))
    async with asyncio.timeout(10):
        await received.wait()
        while "Wire.hang" not in suspended():
            await client.nonce()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(10):
        while "Wire.hang" in suspended():
            await client.nonce()
    assert not client.ca.orders


async def test_closing_frees_what_hangs(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """A test that ends while a client waits must not wait too."""
    async with serve() as client:
        script(client, "directory", Hang())
        received = asyncio.Event()

        async def hook(_resource: str, _phase: str) -> None:
            received.set()

        client.ca.on_request = hook
        waiting = asyncio.create_task(client.request("GET", client.ca.directory_url))
        async with asyncio.timeout(10):
            await received.wait()
            await client.ca.__aexit__(None, None, None)
            with pytest.raises(aiohttp.ClientConnectionError):
                await waiting


async def test_a_redirect_goes_where_it_is_told(client: Client) -> None:
    """A client that follows it with a signed request has failed (section 6.4)."""
    script(client, "newOrder", Redirect(url="https://ca.example/elsewhere"))
    reply = await client.order("a.example.test")
    assert (reply.status, reply.location) == (307, "https://ca.example/elsewhere")
    assert not client.ca.orders


@pytest.mark.parametrize(
    ("resource", "names"),
    [("newOrder", {"expires", "error", "notBefore", "notAfter"}), ("authorization", {"expires", "wildcard"})],
)
async def test_optional_members_can_be_null(client: Client, resource: str, names: set[str]) -> None:
    """JSON libraries of some CAs write null for what is absent."""
    script(client, resource, Nulls())
    reply = await client.order("a.example.test")
    if resource == "authorization":
        reply = await client.post(reply.json["authorizations"][0])
        assert all(each["error"] is None and each["token"] for each in reply.json["challenges"])
    assert {name for name, value in reply.json.items() if value is None} == names


async def test_an_answer_can_come_without_a_nonce(client: Client) -> None:
    """The work is done and must be kept."""
    script(client, "newOrder", NoNonce())
    reply = await client.order("a.example.test")
    assert reply.status == 201
    assert "Replay-Nonce" not in reply.headers


def chain_of(body: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(body)


async def download(client: Client, kind: WrongCertificate | None, key: Any) -> bytes:
    done = await client.finalize(await client.ready_order("a.example.test"), key)
    client.ca.misbehaviour.wrong_certificate = kind
    return (await client.post(done.json["certificate"])).body


@pytest.mark.parametrize("kind", ["other_key", "other_names", "expired", "not_yet_valid", "is_ca", "no_server_auth"])
async def test_a_wrong_leaf_has_one_fault_only(
    client: Client, clock: FakeClock, make_key: Any, kind: WrongCertificate
) -> None:
    """A client's check is tested alone when everything else is right."""
    key = make_key()
    leaf, intermediate = chain_of(await download(client, kind, key))
    leaf.verify_directly_issued_by(intermediate)
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    wrong = {
        "other_key": leaf.public_key() != key.public_key(),
        "other_names": san.get_values_for_type(x509.DNSName) != ["a.example.test"],
        "expired": leaf.not_valid_after_utc < clock.now(),
        "not_yet_valid": leaf.not_valid_before_utc > clock.now(),
        "is_ca": leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca,
        "no_server_auth": ExtendedKeyUsageOID.SERVER_AUTH not in usage,
    }
    assert [name for name, is_wrong in wrong.items() if is_wrong] == [kind]


async def test_a_broken_chain_breaks_by_its_signature_alone(client: Client, make_key: Any) -> None:
    """Comparing names is not enough."""
    leaf, intermediate = chain_of(await download(client, "broken_chain", make_key()))
    assert leaf.issuer == intermediate.subject
    with pytest.raises(InvalidSignature):
        leaf.verify_directly_issued_by(intermediate)


async def test_a_leaf_can_come_alone(client: Client, make_key: Any) -> None:
    """Servers that serve it so fail at half of their visitors."""
    assert len(chain_of(await download(client, "leaf_only", make_key()))) == 1


async def test_a_leaf_can_look_self_signed(client: Client, make_key: Any) -> None:
    """For our own key and names, but by nobody."""
    key = make_key()
    (leaf,) = chain_of(await download(client, "self_signed", key))
    assert leaf.issuer == leaf.subject
    assert leaf.public_key() == key.public_key()


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("with_private_key", b"-----END PRIVATE KEY-----\n"),
        ("trailing_garbage", b"and nothing else\n"),
        ("not_pem", b"</html>"),
    ],
)
async def test_a_body_can_hold_what_is_no_certificate(
    client: Client, make_key: Any, kind: WrongCertificate, ending: bytes
) -> None:
    """Section 9.1: only certificates may come."""
    assert (await download(client, kind, make_key())).endswith(ending)


async def test_a_chain_can_go_on_and_on(client: Client, make_key: Any) -> None:
    """Each block is well-formed, so only a limit helps."""
    body = await download(client, "endless", make_key())
    assert len(body) > 60 * 1024 * 1024
    assert body.startswith(b"-----BEGIN CERTIFICATE-----\n")


async def test_a_wrong_download_can_be_put_right(client: Client, make_key: Any) -> None:
    """What was issued is good: a client that tries again later must succeed."""
    key = make_key()
    await download(client, "other_key", key)
    client.ca.misbehaviour.wrong_certificate = None
    (issued,) = client.ca.issued.values()
    assert chain_of((await client.post(issued.url)).body)[0].public_key() == key.public_key()


async def test_a_certificate_can_be_late(client: Client) -> None:
    """`valid` and not there yet: some CAs replicate slowly."""
    client.ca.misbehaviour.certificate_404_times = 2
    done = await client.finalize(await client.ready_order("a.example.test"))
    assert [(await client.post(done.json["certificate"])).status for _ in range(3)] == [404, 404, 200]


async def test_finalize_can_be_left_out_when_polled(client: Client) -> None:
    """Clients keep it from the newOrder answer."""
    client.ca.misbehaviour.omit_finalize_when_polled = True
    order = await client.order("a.example.test")
    assert "finalize" in order.json
    assert "finalize" not in (await client.post(order.location)).json


async def test_unknown_challenge_types_come_with_odd_members(client: Client) -> None:
    """Closed enums broke clients when dns-persist-01 appeared."""
    client.ca.misbehaviour.unknown_challenge_types = True
    order = await client.order("a.example.test")
    offered = (await client.post(order.json["authorizations"][0])).json["challenges"]
    odd = next(each for each in offered if each["type"] == "dns-persist-01")
    assert "token" not in odd
    assert odd["issuer-domain-names"]
    await client.post(odd["url"], {})
    assert (await client.settled(order.json["authorizations"][0]))["status"] == "invalid"


async def test_an_unknown_status_shows_once_per_order(client: Client) -> None:
    """Clients keep polling."""
    client.ca.misbehaviour.unknown_states = True
    order = await client.order("a.example.test")
    assert (await client.post(order.location)).json["status"] == "contemplating"
    assert (await client.post(order.location)).json["status"] == "pending"


async def test_a_failed_challenge_can_stay_pending_with_its_error(client: Client) -> None:
    """As at smallstep: nothing says when to ask again, and a second answer may succeed."""
    client.ca.misbehaviour.pending_with_error = True
    client.responder.status = 500
    order = await client.order("a.example.test")
    url = order.json["authorizations"][0]
    challenge = await client.challenge(url)
    await client.post(challenge["url"], {})
    failed = await client.settled(challenge["url"], "processing")
    assert (failed["status"], "error" in failed) == ("pending", True)
    for each in (url, order.location, challenge["url"]):
        assert "Retry-After" not in (await client.post(each)).headers
    client.responder.status = 200
    await client.post(challenge["url"], {})
    assert (await client.settled(url))["status"] == "valid"


async def test_an_order_can_be_ready_at_once(client: Client) -> None:
    """Authorizations valid from birth: there is nothing to answer."""
    client.ca.misbehaviour.order_ready_at_once = True
    order = await client.order("a.example.test")
    assert order.json["status"] == "ready"
    assert (await client.finalize(order)).json["status"] == "valid"
    assert not client.responder.hosts


async def test_an_order_can_be_valid_at_once(client: Client) -> None:
    """Its certificate is for a key the client has never seen."""
    client.ca.misbehaviour.order_valid_at_once = True
    order = await client.order("a.example.test")
    assert order.json["status"] == "valid"
    assert (await client.post(order.json["certificate"])).status == 200
    assert (await client.finalize(order)).problem == "orderNotReady"


async def test_a_finalised_order_can_turn_invalid_name_by_name(client: Client) -> None:
    """Late refusals come as a compound with one subproblem per identifier."""
    client.ca.misbehaviour.invalid_order = True
    done = await client.finalize(await client.ready_order("a.example.test", "b.example.test"))
    assert (done.status, done.json["status"]) == (200, "invalid")
    assert done.json["error"]["type"].endswith(":compound")
    named = [each["identifier"]["value"] for each in done.json["error"]["subproblems"]]
    assert named == ["a.example.test", "b.example.test"]


def survives_decoding(text: str) -> bool:
    """Whether decoding and encoding gives the same text back."""
    if len(text) % 4 == 1:
        return False
    decoded = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    return base64.urlsafe_b64encode(decoded).rstrip(b"=").decode() == text


@pytest.mark.parametrize("odd", [False, True])
async def test_odd_nonces_are_good_as_they_are(client: Client, odd: bool) -> None:
    """Nonces are opaque: clients that decode them loop on badNonce."""
    client.ca.misbehaviour.odd_nonces = odd
    nonces = [await client.nonce() for _ in range(4)]
    assert [survives_decoding(nonce) for nonce in nonces] == [not odd] * 4
    for nonce in nonces:
        assert (await client.post(client.kid or "", header={"nonce": nonce})).status == 200


async def test_odd_tokens_are_good_as_they_are(client: Client) -> None:
    """Tokens are opaque too: the key authorization has them verbatim."""
    client.ca.misbehaviour.odd_tokens = True
    order = await client.order("a.example.test", "b.example.test")
    for url in order.json["authorizations"]:
        offered = (await client.post(url)).json["challenges"]
        assert not any(survives_decoding(each["token"]) for each in offered)
    await client.prove(order)
    assert (await client.post(order.location)).json["status"] == "ready"


async def test_retry_after_can_be_a_date_by_the_cas_clock(client: Client, clock: FakeClock) -> None:
    """Both forms are lawful; a date is to be held against the answer's own Date."""
    client.ca.misbehaviour.retry_after_form = "date"
    client.ca.misbehaviour.retry_after_seconds = 90
    headers = (await client.order("a.example.test")).headers
    moments = [parsedate_to_datetime(headers[name]) for name in ("Retry-After", "Date")]
    assert (moments[0] - moments[1]).total_seconds() == 90
    assert moments[1] == clock.now()


async def test_retry_after_can_be_missing(client: Client) -> None:
    """Older CAs never send it."""
    client.ca.misbehaviour.retry_after_form = "none"
    assert "Retry-After" not in (await client.order("a.example.test")).headers


async def test_nothing_is_wrong_by_default(serve: Callable[..., AbstractAsyncContextManager[Client]]) -> None:
    """Chance is not even asked unless a rate is set, so seeded tests stay as they are."""
    chance = Loaded(0.0)
    async with serve(randomness=chance, settings=CaSettings()) as client:
        await client.register()
        assert (await client.issue("a.example.test")).status == 200
    assert chance.draws == 0
