"""Account keys: made here or brought along, kept sealed, and never in the clear anywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from scaivaultd.model.errors import FieldError, InvalidRequest
from scaivaultd.model.resources import SealedKey
from scaivaultd.services.documents import KEYS

if TYPE_CHECKING:
    from datetime import datetime

    from scaivaultd.model.ids import KeyId
    from scaivaultd.model.resources import KeyType
    from scaivaultd.services.ports import Sealer

RSA_BITS_MIN, RSA_BITS_MAX = 2048, 8192


def sealed_key(sealer: Sealer, key_id: KeyId, key_type: KeyType, private_key_der: bytes, now: datetime) -> SealedKey:
    """The document of a private key (PKCS #8 DER)."""
    sealed = sealer.seal(private_key_der, KEYS.key(key_id), "private_key")
    return SealedKey(id=key_id, key_type=key_type, sealed=sealed, created_at=now)


def read_account_key(pem: str, pointer: str) -> tuple[bytes, KeyType]:
    """An account key that somebody brings along, as PKCS #8 DER; RSA of odd sizes counts as the next smaller type.

    Raises:
        InvalidRequest: naming `pointer`; the text itself is not repeated.
    """
    try:
        key = serialization.load_pem_private_key(pem.strip().encode(), password=None)
    except TypeError:
        raise _refused(pointer, "give the account key without a passphrase; it is sealed here") from None
    except Exception:  # noqa: BLE001 - cryptography raises many kinds, and their texts may quote the key
        raise _refused(pointer, "this is no private key in PEM (PKCS #8, PKCS #1 or SEC 1)") from None
    match key:
        case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1()):
            key_type: KeyType = "ec-p256"
        case ec.EllipticCurvePrivateKey(curve=ec.SECP384R1()):
            key_type = "ec-p384"
        case rsa.RSAPrivateKey(key_size=bits) if RSA_BITS_MIN <= bits <= RSA_BITS_MAX:
            key_type = "rsa-2048" if bits < 3072 else "rsa-3072" if bits < 4096 else "rsa-4096"
        case _:
            raise _refused(pointer, f"an account key is P-256, P-384 or RSA of {RSA_BITS_MIN} to {RSA_BITS_MAX} bits")
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return der, key_type


def _refused(pointer: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code="bad_account_key", detail=detail)])
