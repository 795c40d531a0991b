"""Signed JSON Web Tokens (RFC 7519) for token endpoints; RSA only, since those take nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.padding import AsymmetricPadding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

Algorithm = Literal["RS256", "PS256"]


def signed_jwt(algorithm: Algorithm, header: Mapping[str, Any], claims: Mapping[str, Any], key: RSAPrivateKey) -> str:
    """The token in compact form (RFC 7515 section 7.1); `alg` and `typ` are added to the header."""
    protected = base64url(msgspec.json.encode({"alg": algorithm, "typ": "JWT", **header}))
    signed = f"{protected}.{base64url(msgspec.json.encode(claims))}"
    signature = key.sign(signed.encode(), _padding(algorithm), hashes.SHA256())
    return f"{signed}.{base64url(signature)}"


def rsa_key(pem: str) -> RSAPrivateKey:
    """The private key in a PEM text, which may hold certificates, too.

    Raises:
        ValueError: there is none, it is encrypted, or no RSA key. Nothing of the text stands in the error.
    """
    try:
        key = serialization.load_pem_private_key(_key_block(pem).encode(), password=None)
    except TypeError:
        raise ValueError("the private key is encrypted; store it without a passphrase") from None
    except Exception:  # noqa: BLE001 - whatever a broken key raises may quote it
        raise ValueError("there is no readable private key in PEM form") from None
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("the private key is no RSA key")  # noqa: TRY004 - the text is at fault, not the caller
    return key


def base64url(data: bytes) -> str:
    """Without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _padding(algorithm: Algorithm) -> AsymmetricPadding:
    if algorithm == "RS256":
        return padding.PKCS1v15()
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256().digest_size)


def _key_block(pem: str) -> str:
    """The key alone: files that combine certificate and key have them in any order."""
    lines = pem.splitlines()
    begin = next((place for place, line in enumerate(lines) if "PRIVATE KEY-----" in line), 0)
    end = next((place for place in range(begin + 1, len(lines)) if "PRIVATE KEY-----" in lines[place]), len(lines))
    return "\n".join([*lines[begin : end + 1], ""])
