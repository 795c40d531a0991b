"""Reading JSON Web Signatures as strictly as RFC 8555 section 6.2 allows; apart from the daemon's own signing.

Everything here raises `Refused` and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from scaivaultd.demo.ca_problems import Refused, malformed

if TYPE_CHECKING:
    from collections.abc import Mapping

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_MEMBERS = {"protected", "payload", "signature"}
_CURVES: dict[str, tuple[ec.EllipticCurve, int, str]] = {
    "P-256": (ec.SECP256R1(), 32, "ES256"),
    "P-384": (ec.SECP384R1(), 48, "ES384"),
}
_ALGORITHMS = ("ES256", "ES384", "RS256")
_HASHES: dict[str, hashes.HashAlgorithm] = {"ES256": hashes.SHA256(), "ES384": hashes.SHA384()}

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""What an account or certificate may sign with here."""


class Jwk(msgspec.Struct, frozen=True):
    """A public key with the members that make its thumbprint (RFC 7638)."""

    members: dict[str, str]
    key: PublicKey
    alg: str

    @property
    def thumbprint(self) -> str:
        """SHA-256 thumbprint, base64url."""
        canonical = msgspec.json.encode(dict(sorted(self.members.items())))
        return b64url(hashlib.sha256(canonical).digest())


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The protected header; exactly one of `jwk` and `kid` is set."""

    alg: str
    url: str
    nonce: str | None
    jwk: dict[str, Any] | None
    kid: str | None


class Jws(msgspec.Struct, frozen=True, kw_only=True):
    """A flattened JWS, taken apart but not verified yet."""

    header: Header
    payload: bytes
    signing_input: bytes
    signature: bytes


def b64url(data: bytes) -> str:
    """Unpadded base64url."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(text: str, what: str) -> bytes:
    """Decode unpadded base64url in its only spelling."""
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise malformed(f"{what} is not unpadded base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if b64url(data) != text:
        raise malformed(f"{what} has bits set that belong to no byte")
    return data


def parse_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise malformed(f"{what} is not JSON") from error
    if not isinstance(value, dict):
        raise malformed(f"{what} is not a JSON object")
    return value


def parse(data: bytes) -> Jws:
    """Take a flattened JWS apart."""
    return parse_flattened(parse_object(data, "the JWS"))


def parse_flattened(members: Mapping[str, Any]) -> Jws:
    """Take a flattened JWS that is already JSON apart: no unprotected header, no other serialisation."""
    if set(members) != _MEMBERS or not all(isinstance(value, str) for value in members.values()):
        raise malformed("a JWS has the members protected, payload and signature, all strings, and no others")
    protected = parse_object(unb64url(members["protected"], "protected"), "the protected header")
    return Jws(
        header=_header(protected),
        payload=unb64url(members["payload"], "payload"),
        signing_input=f"{members['protected']}.{members['payload']}".encode(),
        signature=unb64url(members["signature"], "signature"),
    )


def _header(protected: dict[str, Any]) -> Header:
    for name in ("b64", "crit"):
        if name in protected:
            raise malformed(f"the protected header must not have {name}")
    if ("jwk" in protected) == ("kid" in protected):
        raise malformed("the protected header needs exactly one of jwk and kid")
    try:
        header = msgspec.convert({"nonce": None, "jwk": None, "kid": None, **protected}, Header)
    except msgspec.ValidationError as error:
        raise malformed(f"protected header: {error}") from error
    if "nonce" in protected and header.nonce is None:
        raise malformed("the nonce is not a string")
    return header


def parse_jwk(members: Mapping[str, Any]) -> Jwk:
    """A public key of a kind we take."""
    if "d" in members:
        raise Refused("badPublicKey", "that is a private key")
    match members.get("kty"):
        case "EC":
            return _ec_jwk(members)
        case "RSA":
            return _rsa_jwk(members)
        case other:
            raise Refused("badPublicKey", f"kty {other!r} is neither EC nor RSA")


def _ec_jwk(members: Mapping[str, Any]) -> Jwk:
    name = members.get("crv")
    if name not in _CURVES:
        raise Refused("badPublicKey", f"curve {name!r} is neither P-256 nor P-384")
    curve, size, alg = _CURVES[name]
    x, y = _octets(members, "x"), _octets(members, "y")
    if len(x) != size or len(y) != size:
        raise Refused("badPublicKey", f"x and y of {name} have {size} octets each")
    try:
        key = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()
    except ValueError as error:
        raise Refused("badPublicKey", "the point is not on the curve") from error
    return Jwk({"crv": name, "kty": "EC", "x": b64url(x), "y": b64url(y)}, key, alg)


def _rsa_jwk(members: Mapping[str, Any]) -> Jwk:
    n, e = _octets(members, "n"), _octets(members, "e")
    if n[:1] == b"\0" or e[:1] == b"\0":
        raise Refused("badPublicKey", "n and e have no leading zero octets (RFC 7518 section 6.3.1)")
    try:
        key = rsa.RSAPublicNumbers(int.from_bytes(e), int.from_bytes(n)).public_key()
    except ValueError as error:
        raise Refused("badPublicKey", "not an RSA key") from error
    if not 2048 <= key.key_size <= 4096:
        raise Refused("badPublicKey", f"RSA keys have 2048 to 4096 bits, not {key.key_size}")
    return Jwk({"e": b64url(e), "kty": "RSA", "n": b64url(n)}, key, "RS256")


def _octets(members: Mapping[str, Any], name: str) -> bytes:
    value = members.get(name)
    if not isinstance(value, str) or not value:
        raise Refused("badPublicKey", f"member {name} is missing")
    return unb64url(value, f"member {name} of the key")


def verify(jws: Jws, jwk: Jwk) -> None:
    """Check that the algorithm fits the key, then the signature."""
    if jws.header.alg != jwk.alg:
        raise Refused(
            "badSignatureAlgorithm",
            f"alg {jws.header.alg} does not fit the key",
            members={"algorithms": [jwk.alg] if jws.header.alg in _ALGORITHMS else list(_ALGORITHMS)},
        )
    try:
        _verify_signature(jws, jwk.key)
    except InvalidSignature as error:
        raise malformed("the signature is wrong") from error


def _verify_signature(jws: Jws, key: PublicKey) -> None:
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(jws.signature, jws.signing_input, padding.PKCS1v15(), hashes.SHA256())
        return
    size = (key.curve.key_size + 7) // 8
    if len(jws.signature) != 2 * size:
        raise InvalidSignature
    r, s = int.from_bytes(jws.signature[:size]), int.from_bytes(jws.signature[size:])
    key.verify(encode_dss_signature(r, s), jws.signing_input, ec.ECDSA(_HASHES[jws.header.alg]))


def verify_binding(binding: object, *, eab_keys: Mapping[str, bytes], jwk: Jwk, url: str) -> str:
    """Check an external account binding (RFC 8555 section 7.3.4) and return its key id."""
    if not isinstance(binding, dict):
        raise malformed("externalAccountBinding is not a JSON object")
    jws = parse_flattened(binding)
    if jws.header.alg != "HS256":
        raise Refused("badSignatureAlgorithm", "the binding is signed by HS256", members={"algorithms": ["HS256"]})
    if jws.header.kid is None or jws.header.nonce is not None or jws.header.url != url:
        raise malformed("the binding's header has kid, no nonce, and the url of the request")
    if parse_jwk(parse_object(jws.payload, "the binding's payload")).members != jwk.members:
        raise malformed("the binding is for another account key")
    key = eab_keys.get(jws.header.kid)
    if key is None or not hmac.compare_digest(hmac.digest(key, jws.signing_input, "sha256"), jws.signature):
        raise Refused("unauthorized", "the binding's key is not known here or its MAC is wrong", status=401)
    return jws.header.kid
