"""Keys and JWTs of the NATS kind: what is forged, cut or of another kind is not taken."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from scaivaultd.gateways.nkeys import KeyPair, is_public, read_seed, verified_claims
from scaivaultd.plugin import Secret

SERVER = KeyPair("N", bytes([1]) * 32)
ACCOUNT = KeyPair("A", bytes([2]) * 32)
ACCOUNT_SEED = "SAAAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAUN5U"
# The pair that the documentation of NATS shows.
USER_SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
USER = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"


def forged(claims: dict[str, Any], header: Any = None, signature: bytes | None = None) -> str:
    parts = [header or {"typ": "JWT", "alg": "ed25519-nkey"}, claims]
    text = ".".join(base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts)
    signed = SERVER.sign(text.encode()) if signature is None else signature
    return f"{text}.{base64.urlsafe_b64encode(signed).decode().rstrip('=')}"


def test_a_seed_gives_its_key() -> None:
    """The operator has the public half in the server's configuration: it must be that one."""
    assert read_seed(Secret(ACCOUNT_SEED), "A").public == ACCOUNT.public
    assert read_seed(Secret(USER_SEED), "U").public == USER
    assert ACCOUNT_SEED[4:30] not in repr(ACCOUNT) + str(vars(ACCOUNT))


@pytest.mark.parametrize(
    "text", ["", "SA", ACCOUNT.public, ACCOUNT_SEED[:-1] + "B", ACCOUNT_SEED.lower(), "\u00e4" * 58]
)
def test_what_is_no_seed_is_refused_without_being_quoted(text: str) -> None:
    """A typing error must not end in the log."""
    with pytest.raises(ValueError) as caught:
        read_seed(Secret(text), "A")
    assert not text or text not in str(caught.value)


def test_a_seed_of_another_kind_is_refused() -> None:
    """A user's seed can sign no logins."""
    with pytest.raises(ValueError):
        read_seed(Secret(ACCOUNT_SEED), "U")


def test_signed_claims_come_back() -> None:
    """What one side signs the other one reads."""
    claims = verified_claims(SERVER.jwt("subject", {"aud": "x"}), "N")
    assert claims == {"aud": "x", "iss": SERVER.public, "sub": "subject"}


@pytest.mark.parametrize(
    "jwt",
    [
        "",
        "a.b",
        "a.b.c",
        "....",
        SERVER.jwt("s", {})[:-4],
        SERVER.jwt("s", {}) + "AA",
        ACCOUNT.jwt("s", {}),
        forged({"iss": SERVER.public}, signature=bytes(64)),
        forged({"iss": SERVER.public}, signature=b""),
        forged({"iss": SERVER.public}, {"typ": "JWT", "alg": "none"}),
        forged({"iss": SERVER.public}, ["alg"]),
        forged({"iss": KeyPair("N", bytes(32)).public}),
        forged({"iss": ACCOUNT.public}),
        forged({"iss": 7}),
        forged({}),
        forged([SERVER.public]),  # type: ignore[arg-type]
    ],
)
def test_what_no_server_has_signed_is_refused(jwt: str) -> None:
    """Whoever could forge a question would be told whether a token is good."""
    with pytest.raises(ValueError):
        verified_claims(jwt, "N")


def test_public_keys_are_known_by_kind_and_checksum() -> None:
    """A user's name that only looks like a key is a name."""
    assert is_public(SERVER.public, "N")
    assert not is_public(SERVER.public, "U")
    assert not is_public(SERVER.public[:-1] + "Z", "N")
    assert not is_public("web", "U")
    assert not is_public(None, "U")
