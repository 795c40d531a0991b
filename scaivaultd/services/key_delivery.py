"""Private keys on their way to a caller: sealed to its own public key where nobody on the way may read them.

HPKE in base mode (RFC 9180): X25519 with HKDF-SHA256, HKDF-SHA256, ChaCha20-Poly1305.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from scaivaultd.model.errors import FieldError, InvalidRequest, PermissionDenied

if TYPE_CHECKING:
    from scaivaultd.model.principals import Principal

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
_POINTER = "/recipient_key"
_STANDARD = str.maketrans("-_", "+/")


def info_for(certificate_id: str, version: int, principal: Principal) -> str:
    """What a sealed key is bound to: it opens as this key for this caller, and as no other."""
    return f"scaivault/key-delivery/v1|{certificate_id}|{version}|{principal}"


def recipient_from(text: str) -> X25519PublicKey:
    """Read a caller's public key: 32 bytes in base64 or base64url, with or without padding.

    Raises:
        InvalidRequest: it is none, or one of the few points that make every shared secret the same.
    """
    try:
        raw = base64.b64decode(_padded(text.translate(_STANDARD)), validate=True)
        key = X25519PublicKey.from_public_bytes(raw)
    except (binascii.Error, ValueError):
        raise _refused("recipient_key is no X25519 public key: 32 bytes in base64 or base64url are needed") from None
    try:
        X25519PrivateKey.generate().exchange(key)
    except ValueError:
        raise _refused("recipient_key is a point of low order, for which anybody could open the answer") from None
    return key


def sealed(secret: str, recipient: X25519PublicKey, info: str) -> str:
    """The encapsulated key and the ciphertext, base64."""
    return base64.b64encode(_SUITE.encrypt(secret.encode(), recipient, info=info.encode())).decode()


def require_way_back(*, takes_keys: bool) -> None:
    """Refuse to send a key in plain where others could read it.

    Raises:
        PermissionDenied: the caller chose such a way, and no `recipient_key`.
    """
    if takes_keys:
        return
    detail = (
        "a private key is not sent in plain to this reply subject, which others on the bus may read. Either "
        "take replies below your own inbox prefix (`auth.whoami` tells it), or give a recipient_key (X25519) and get "
        "it sealed, or keep the key to yourself: order with a csr of your own"
    )
    raise PermissionDenied(detail, [FieldError(pointer=_POINTER, code="missing_field", detail=detail)])


def _padded(text: str) -> str:
    text = text.rstrip("=")
    return text + "=" * (-len(text) % 4)


def _refused(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=_POINTER, code="invalid_value", detail=detail)])
