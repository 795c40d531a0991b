"""The development CA is strict: each broken rule of RFC 8555 section 6 is refused, with its own problem."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.demo.conftest import Client

ORDER = {"identifiers": [{"type": "dns", "value": "a.example.test"}]}
"""Nothing wrong with it: what is refused here is refused for its envelope."""


async def test_the_directory_names_everything_and_something_unknown(stranger: Client) -> None:
    """Clients begin here, and must bear members they do not know."""
    reply = await stranger.request("GET", stranger.ca.directory_url)
    known = {"newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "meta"}
    assert known < set(reply.json)
    assert reply.json["meta"]["termsOfService"]
    assert "Replay-Nonce" not in reply.headers


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204)])
async def test_new_nonce_answers_by_method(stranger: Client, method: str, status: int) -> None:
    """RFC 8555 section 7.2 gives the two methods different statuses."""
    reply = await stranger.request(method, stranger.url("/new-nonce"))
    assert (reply.status, reply.headers["Cache-Control"]) == (status, "no-store")
    assert reply.headers["Replay-Nonce"]
    assert reply.headers["Link"] == f'<{stranger.ca.directory_url}>;rel="index"'


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_user_agent_is_required(stranger: Client, method: str) -> None:
    """Current Pebble refuses without one, so must we."""
    url = stranger.ca.directory_url if method == "GET" else stranger.url("/new-account")
    reply = await stranger.request(method, url, skip_auto_headers=["User-Agent"])
    assert (reply.status, reply.problem) == (400, "malformed")


async def test_signed_resources_are_not_read_by_get(client: Client) -> None:
    """Everything but directory and newNonce is POST-as-GET (section 6.3)."""
    assert client.kid is not None
    reply = await client.request("GET", client.kid)
    assert (reply.status, reply.problem, reply.headers["Allow"]) == (405, "malformed", "POST")


async def test_an_empty_object_is_no_post_as_get(client: Client) -> None:
    """`{}` instead of the empty payload is the classic mistake."""
    order = await client.order("a.example.test")
    assert (await client.post(order.location, {})).problem == "malformed"


async def test_other_content_types_are_refused(client: Client) -> None:
    """Section 6.2 wants 415."""
    body = await client.signed(client.url("/new-order"), ORDER)
    reply = await client.send(client.url("/new-order"), body, **{"Content-Type": "application/json"})
    assert (reply.status, reply.problem) == (415, "malformed")


@pytest.mark.parametrize(
    "bend",
    [
        {"header": {"kid": "x"}},
        {"signatures": []},
        {"payload": None},
        {"protected": "e30="},
        {"protected": "e3+"},
        {"protected": "e30A0"},
        {"extra": "member"},
        {"protected": "bm8"},
    ],
    ids=str,
)
async def test_only_a_clean_flattened_jws_is_read(client: Client, bend: dict[str, Any]) -> None:
    """No unprotected header, no general serialisation, no detached payload, no sloppy base64url."""
    body = await client.signed(client.url("/new-order"), ORDER)
    reply = await client.send(client.url("/new-order"), {**body, **bend})
    assert (reply.status, reply.problem) == (400, "malformed")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff"])
async def test_what_is_no_json_object_is_refused(client: Client, body: bytes) -> None:
    """Garbage gets a problem, not a traceback."""
    headers = {"Content-Type": "application/jose+json"}
    reply = await client.request("POST", client.url("/new-order"), data=body, headers=headers)
    assert (reply.status, reply.problem) == (400, "malformed")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"b64": False}, "malformed"),
        ({"crit": ["b64"]}, "malformed"),
        ({"kid": None}, "malformed"),
        ({"jwk": {"kty": "EC"}}, "malformed"),
        ({"alg": "none"}, "badSignatureAlgorithm"),
        ({"alg": "HS256"}, "badSignatureAlgorithm"),
        ({"alg": "RS256"}, "badSignatureAlgorithm"),
        ({"alg": 5}, "malformed"),
        ({"nonce": None}, "badNonce"),
        ({"nonce": "AAAAAAAAAAAAAAAAAAAAAA"}, "badNonce"),
        ({"nonce": 5}, "malformed"),
        ({"url": None}, "malformed"),
        ({"url": "https://ca.example/new-order"}, "unauthorized"),
        ({"kid": "https://ca.example/account/1"}, "accountDoesNotExist"),
        ({"kid": ""}, "accountDoesNotExist"),
    ],
    ids=str,
)
async def test_a_bent_protected_header_is_refused(client: Client, header: dict[str, Any], problem: str) -> None:
    """Each member has one lawful form (section 6.2 to 6.5)."""
    reply = await client.post("/new-order", ORDER, header=header)
    assert reply.problem == problem
    assert reply.headers["Replay-Nonce"]


async def test_a_refused_algorithm_names_those_that_would_do(client: Client) -> None:
    """Section 6.2: `algorithms` tells the client how to go on."""
    reply = await client.post("/new-order", {}, header={"alg": "EdDSA"})
    assert reply.json["algorithms"] == ["ES256", "ES384", "RS256"]
    fitting = await client.post("/new-order", {}, header={"alg": "ES384"})
    assert fitting.json["algorithms"] == ["ES256"]


async def test_the_url_counts_with_its_query(client: Client) -> None:
    """Section 6.4: the whole URL is signed."""
    assert client.kid is not None
    orders = (await client.post(client.kid)).json["orders"]
    body = await client.signed(orders, None)
    assert (await client.send(f"{orders}?cursor=1", body)).problem == "unauthorized"


async def test_a_nonce_is_good_once_and_the_refusal_brings_another(client: Client) -> None:
    """Replays fail, and a client can go on at once (section 6.5)."""
    assert client.kid is not None
    body = await client.signed(client.kid, None)
    assert (await client.send(client.kid, body)).status == 200
    again = await client.send(client.kid, body)
    assert (again.status, again.problem) == (400, "badNonce")
    fresh = again.headers["Replay-Nonce"]
    assert (await client.post(client.kid, header={"nonce": fresh})).status == 200


async def test_an_account_is_not_named_by_its_key(client: Client, jwk_of: Callable[[Any], dict[str, Any]]) -> None:
    """Only newAccount and revokeCert take `jwk` (section 6.2)."""
    reply = await client.post("/new-order", ORDER, header={"kid": None, "jwk": jwk_of(client.key)})
    assert (reply.status, reply.problem) == (400, "malformed")


async def test_base64url_has_one_spelling(client: Client) -> None:
    """The same octets with unused bits set would verify, but no encoder writes them."""
    body = await client.signed(client.url("/new-order"), ORDER)
    last = body["signature"][-1]
    respelt = body["signature"][:-1] + {"A": "B", "Q": "R", "g": "h", "w": "x"}[last]
    reply = await client.send(client.url("/new-order"), {**body, "signature": respelt})
    assert (reply.status, reply.problem) == (400, "malformed")
    assert not client.ca.orders


async def test_a_jws_lacks_nothing(client: Client) -> None:
    """Each of the three members is required."""
    body = await client.signed(client.url("/new-order"), ORDER)
    for name in body:
        partial = {member: value for member, value in body.items() if member != name}
        assert (await client.send(client.url("/new-order"), partial)).problem == "malformed"


async def test_coordinates_have_their_full_length_and_no_more(
    stranger: Client, jwk_of: Callable[[Any], dict[str, Any]]
) -> None:
    """A leading zero octet makes another thumbprint of the same key (RFC 7518 section 6.2.1.2)."""
    members = jwk_of(stranger.key)
    padded = urlsafe_b64encode(b"\0" + urlsafe_b64decode(members["x"] + "=")).rstrip(b"=").decode()
    assert (await stranger.post("/new-account", {}, header={"jwk": {**members, "x": padded}})).problem == (
        "badPublicKey"
    )


async def test_a_wrong_signature_is_refused(client: Client, neighbour: Client) -> None:
    """Another key under our kid proves nothing."""
    reply = await client.post("/new-order", ORDER, key=neighbour.key)
    assert (reply.status, reply.problem) == (400, "malformed")


async def test_a_der_signature_is_refused(client: Client) -> None:
    """JWS wants r and s side by side (RFC 7518 section 3.4), not the DER most libraries make."""
    assert isinstance(client.key, ec.EllipticCurvePrivateKey)
    body = await client.signed(client.url("/new-order"), ORDER)
    der = client.key.sign(f"{body['protected']}.{body['payload']}".encode(), ec.ECDSA(SHA256()))
    signature = urlsafe_b64encode(der).rstrip(b"=").decode()
    assert (await client.send(client.url("/new-order"), {**body, "signature": signature})).problem == "malformed"


async def test_new_account_names_its_signer_by_jwk(client: Client) -> None:
    """An account URL cannot ask for an account."""
    assert (await client.post("/new-account", {})).problem == "malformed"


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=1024),
    ],
    ids=["P-521", "RSA-1024"],
)
async def test_keys_of_other_kinds_are_refused(
    stranger: Client, key: Any, jwk_of: Callable[[Any], dict[str, Any]]
) -> None:
    """badPublicKey is what public CAs say to them."""
    header = {"jwk": jwk_of(key)}
    assert (await stranger.post("/new-account", {}, header=header)).problem == "badPublicKey"


@pytest.mark.parametrize(
    "change",
    [
        {"d": "AA"},
        {"kty": "OKP"},
        {"x": "AAAA"},
        {"x": None},
        {"y": "A" * 43},
        {"crv": "P-384"},
    ],
    ids=str,
)
async def test_bent_keys_are_refused(
    stranger: Client, change: dict[str, Any], jwk_of: Callable[[Any], dict[str, Any]]
) -> None:
    """Private members, short coordinates and points off the curve never become accounts."""
    header = {"jwk": {**jwk_of(stranger.key), **change}}
    assert (await stranger.post("/new-account", {}, header=header)).problem == "badPublicKey"


@pytest.mark.parametrize("path", ["/order/none", "/authorization/none", "/certificate/none", "/challenge/a/b", "/none"])
async def test_what_is_not_there_is_404(client: Client, path: str) -> None:
    """Clients start anew on 404, and on nothing else."""
    reply = await client.post(path)
    assert (reply.status, reply.problem) == (404, "malformed")
