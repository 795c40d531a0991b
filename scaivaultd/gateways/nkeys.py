"""Keys and tokens of the NATS kind: nkeys (Ed25519 with a checksum, in base32) and the JWTs that they sign."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from scaivaultd.plugin import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["A", "N", "U"]
"""Account, server (node), user: the letter that the public key begins with."""

SEED_BYTES = 32
_PREFIXES: Mapping[str, int] = {"A": 0, "N": 13 << 3, "U": 20 << 3}
_SEED_PREFIX = 18 << 3
_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_PART = re.compile(r"[0-9A-Za-z_-]+")


class KeyPair:
    """A key that signs. Prints as its public half."""

    def __init__(self, kind: Kind, raw: bytes) -> None:
        """`raw` are `SEED_BYTES` random bytes."""
        self._private = Ed25519PrivateKey.from_private_bytes(raw)
        self.public = _encoded(bytes([_PREFIXES[kind]]) + self._private.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"KeyPair({self.public!r})"

    def sign(self, content: bytes) -> bytes:
        """The Ed25519 signature."""
        return self._private.sign(content)

    def jwt(self, subject: str, claims: Mapping[str, Any]) -> str:
        """A JWT about `subject`; `claims` are all but who signs and about whom."""
        body = {**claims, "iss": self.public, "sub": subject}
        signed = ".".join(_base64url(json.dumps(each, separators=(",", ":")).encode()) for each in (_HEADER, body))
        return f"{signed}.{_base64url(self.sign(signed.encode()))}"


def read_seed(seed: Secret, kind: Kind) -> KeyPair:
    """The key pair of a seed as the tools of NATS write it (`SA...`, `SU...`).

    Raises:
        ValueError: it is none, or one of another kind; the seed is not in the text.
    """
    content = _decoded(seed.reveal())
    prefix = _PREFIXES[kind]
    if len(content) != 2 + SEED_BYTES or content[:2] != bytes([_SEED_PREFIX | prefix >> 5, (prefix & 31) << 3]):
        raise ValueError(f"no seed of an nkey of the kind S{kind}")
    return KeyPair(kind, content[2:])


def is_public(text: object, kind: Kind) -> bool:
    """Whether a text is a public key of that kind."""
    try:
        return isinstance(text, str) and _public_bytes(text, kind) is not None
    except ValueError:
        return False


def verified_claims(jwt: str, kind: Kind) -> Any:
    """What a JWT says, which a key of that kind has signed: that of its member `iss`.

    Raises:
        ValueError: it is no such JWT, or its signature is wrong.
    """
    parts = jwt.split(".")
    if len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
        raise ValueError("no JWT")
    header, claims = (json.loads(_from_base64url(part)) for part in parts[:2])
    if not isinstance(header, dict) or header.get("alg") != _HEADER["alg"] or not isinstance(claims, dict):
        raise ValueError("no JWT of the NATS kind")
    key = Ed25519PublicKey.from_public_bytes(_public_bytes(str(claims.get("iss")), kind))
    try:
        key.verify(_from_base64url(parts[2]), f"{parts[0]}.{parts[1]}".encode())
    except InvalidSignature:
        raise ValueError("the signature is wrong") from None
    return claims


def _public_bytes(text: str, kind: Kind) -> bytes:
    content = _decoded(text)
    if len(content) != 33 or content[0] != _PREFIXES[kind]:
        raise ValueError(f"no public nkey of the kind {kind}")
    return content[1:]


def _encoded(content: bytes) -> str:
    return base64.b32encode(content + _checksum(content)).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        # Not from it: nothing of a seed goes into a traceback.
        raise ValueError("no nkey") from None
    content, checksum = raw[:-2], raw[-2:]
    if _checksum(content) != checksum:
        raise ValueError("no nkey: its checksum is wrong")
    return content


def _checksum(content: bytes) -> bytes:
    return binascii.crc_hqx(content, 0).to_bytes(2, "little")


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _from_base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
