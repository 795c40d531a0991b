"""Signatures and key authorizations."""

from __future__ import annotations

import base64
import json
import re

import acme.jws
import josepy
import pytest
from cryptography.hazmat.primitives import serialization

from scaivaultd.acme import signing, x509
from scaivaultd.acme.signing import AccountKey
from scaivaultd.model.errors import CaMisbehaved, InvalidRequest
from scaivaultd.model.resources import KeyType


def decoded(text: str) -> dict[str, object]:
    result: dict[str, object] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return result


@pytest.mark.parametrize(("key_type", "algorithm"), [("ec-p256", "ES256"), ("ec-p384", "ES384"), ("rsa-2048", "RS256")])
def test_a_signature_verifies_and_names_the_algorithm_of_its_key(key_type: KeyType, algorithm: str) -> None:
    """RFC 8555 section 6.2: flattened, everything protected, `alg` fits the key."""
    der = x509.make_key(key_type)
    key = AccountKey(der)
    body = json.loads(key.sign(b'{"a":1}', url="https://ca/x?y=1", nonce="n0nce", kid=None))
    assert sorted(body) == ["payload", "protected", "signature"]
    header = decoded(body["protected"])
    assert header == {"alg": algorithm, "jwk": key.public_jwk, "nonce": "n0nce", "url": "https://ca/x?y=1"}
    public = josepy.jwk.JWK.from_json(key.public_jwk)
    assert isinstance(public, josepy.jwk.JWKEC | josepy.jwk.JWKRSA)
    signed = f"{body['protected']}.{body['payload']}".encode()
    algorithms = {"ES256": josepy.jwa.ES256, "ES384": josepy.jwa.ES384, "RS256": josepy.jwa.RS256}
    signature = base64.urlsafe_b64decode(body["signature"] + "==")
    assert algorithms[algorithm].verify(public.key, signed, signature)


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p384", "rsa-2048"])
@pytest.mark.parametrize("kid", [None, "https://CA.test/Acct/7?x"])
@pytest.mark.parametrize("payload", [b"", b'{"a": "\xc3\xa9"}'])
def test_a_request_is_what_acme_and_josepy_would_send(key_type: KeyType, kid: str | None, payload: bytes) -> None:
    """Signed here for speed; whatever CAs have got used to stays as it is, all but ECDSA's random numbers."""
    key = AccountKey(x509.make_key(key_type))
    algorithms = {"ES256": josepy.jwa.ES256, "ES384": josepy.jwa.ES384, "RS256": josepy.jwa.RS256}
    url, nonce = 'https://ca/\u00e9"\\?y=1', b"a nonce whose base64url has no unused bits"
    ours = key.sign(payload, url=url, nonce=signing.base64url(nonce), kid=kid)
    theirs = acme.jws.JWS.sign(
        payload, key=key._jwk, alg=algorithms[key.algorithm], nonce=nonce, url=url, kid=kid
    ).json_dumps()
    signature = re.compile(rb'"signature": "([\w-]+)"')
    assert signature.sub(b"", ours) == signature.sub(b"", theirs.encode())
    lengths = [len(match[1]) for text in (ours, theirs.encode()) if (match := signature.search(text))]
    assert lengths[0] == lengths[1]
    if key_type == "rsa-2048":
        assert ours == theirs.encode()


def test_a_signature_keeps_its_length_whatever_the_numbers_are() -> None:
    """RFC 7518 section 3.4: a small number is padded; one signature in a hundred has one."""
    key = AccountKey(x509.make_key("ec-p256"))
    signatures = [json.loads(key.sign(b"", url="u", nonce="n", kid="k"))["signature"] for _ in range(500)]
    assert {len(each) for each in signatures} == {86}


def test_kid_and_jwk_exclude_each_other_and_the_kid_is_verbatim() -> None:
    """The account URL is the `kid` byte for byte as received."""
    key = AccountKey(x509.make_key("ec-p256"))
    header = decoded(json.loads(key.sign(b"", url="u", nonce="n", kid="https://CA.test/Acct/7?x"))["protected"])
    assert header == {"alg": "ES256", "kid": "https://CA.test/Acct/7?x", "nonce": "n", "url": "u"}


def test_a_post_as_get_has_an_empty_payload() -> None:
    """RFC 8555 section 6.3: the empty string, not `{}`."""
    key = AccountKey(x509.make_key("ec-p256"))
    assert json.loads(key.sign(b"", url="u", nonce="n", kid="k"))["payload"] == ""


@pytest.mark.parametrize("nonce", ["AAAAAAAAAAAAAAAAAAAAAB", "A", "-_-_-", "x" * 300])
def test_a_nonce_goes_back_as_it_came(nonce: str) -> None:
    """Decoding and re-encoding alters nonces with unused low bits set: an endless badNonce loop."""
    key = AccountKey(x509.make_key("ec-p256"))
    assert decoded(json.loads(key.sign(b"", url="u", nonce=nonce, kid="k"))["protected"])["nonce"] == nonce


def test_an_external_account_binding_has_no_nonce_and_signs_the_public_key() -> None:
    """RFC 8555 section 7.3.4."""
    key = AccountKey(x509.make_key("ec-p256"))
    binding = signing.external_account_binding(key, key_id="kid-1", hmac_key=b"k" * 32, url="https://ca/new-acct")
    assert decoded(binding["protected"]) == {"alg": "HS256", "kid": "kid-1", "url": "https://ca/new-acct"}
    assert decoded(binding["payload"]) == key.public_jwk
    signed = f"{binding['protected']}.{binding['payload']}".encode()
    assert josepy.jwa.HS256.verify(b"k" * 32, signed, base64.urlsafe_b64decode(binding["signature"] + "=="))


@pytest.mark.parametrize("text", ["_-8", "_-8=", "/+8", "/+8=", " _-\n8 "])
def test_a_mac_key_is_taken_in_every_dress(text: str) -> None:
    """CAs print base64url or base64, padded or not, and people paste line ends."""
    assert signing.parse_hmac_key(text) == b"\xff\xef"


@pytest.mark.parametrize("text", ["", "=", "a b!c", "söme"])
def test_a_mac_key_that_is_none_is_refused_without_being_repeated(text: str) -> None:
    """It is a secret even when it is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        signing.parse_hmac_key(text)
    assert not text.strip() or text not in str(caught.value)


@pytest.mark.parametrize("token", ["../../etc/passwd", "short", "a" * 21, "a" * 22 + "/", "a" * 22 + "\n", ""])
def test_a_dangerous_token_is_refused(token: str) -> None:
    """Tokens become paths; RFC 8555 section 8.1 demands base64url and 128 bits."""
    with pytest.raises(CaMisbehaved):
        signing.key_authorization_for(token, AccountKey(x509.make_key("ec-p256")))


def test_a_key_authorization_is_token_dot_thumbprint() -> None:
    """RFC 8555 section 8.1, with RFC 7638."""
    key = AccountKey(x509.make_key("ec-p256"))
    assert signing.key_authorization_for("t" * 22, key) == f"{'t' * 22}.{key.thumbprint}"


def test_an_account_key_does_not_show_itself() -> None:
    """A repr ends in logs and tracebacks."""
    der = x509.make_key("ec-p256")
    private = serialization.load_der_private_key(der, None)
    assert repr(AccountKey(der)) == f"AccountKey({AccountKey(der).thumbprint})"
    assert str(private.private_numbers().private_value) not in repr(AccountKey(der))  # type: ignore[union-attr]  # EC


@pytest.mark.parametrize(("old_type", "new_type"), [("ec-p256", "ec-p384"), ("rsa-2048", "ec-p256")])
def test_the_inner_signature_of_a_key_change_is_the_new_keys(old_type: KeyType, new_type: KeyType) -> None:
    """RFC 8555 section 7.3.5: `jwk` and `url` of the outer one, no nonce, account and old key as payload."""
    old, new = AccountKey(x509.make_key(old_type)), AccountKey(x509.make_key(new_type))
    inner = json.loads(signing.key_change(old, new, account_url="https://ca/Acct/7", url="https://ca/change"))
    assert sorted(inner) == ["payload", "protected", "signature"]
    assert decoded(inner["protected"]) == {"alg": new.algorithm, "jwk": new.public_jwk, "url": "https://ca/change"}
    assert decoded(inner["payload"]) == {"account": "https://ca/Acct/7", "oldKey": old.public_jwk}
    public = josepy.jwk.JWK.from_json(new.public_jwk)
    assert isinstance(public, josepy.jwk.JWKEC)
    signed = f"{inner['protected']}.{inner['payload']}".encode()
    algorithms = {"ES256": josepy.jwa.ES256, "ES384": josepy.jwa.ES384}
    signature = base64.urlsafe_b64decode(inner["signature"] + "==")
    assert algorithms[new.algorithm].verify(public.key, signed, signature)
