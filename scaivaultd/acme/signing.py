"""Signatures: the JWS of RFC 8555 section 6.2, external account binding, key authorizations.

`acme` and `josepy` model keys and bindings. Requests are signed here, byte for byte as they would be there but for
the nonce: theirs decode and re-encode it, which alters nonces with unused low bits or of undecodable length. Every
certificate takes seven signatures, and one costs a quarter of what it costs by way of their models.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from typing import Any, cast

import acme.jws
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from josepy.jwa import HS256
from josepy.jwk import JWK, JWKEC, JWKRSA, JWKOct

from scaivaultd.model.errors import CaMisbehaved, FieldError, InvalidRequest

_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,128}")


class AccountKey:
    """The key that signs for one ACME account; prints as its thumbprint only.

    A certificate's own key signs its revocation in the same way, by `jwk` (RFC 8555 section 7.6).
    """

    def __init__(self, private_key_der: bytes) -> None:
        """Read an unencrypted PKCS #8 DER key: P-256, P-384 or RSA."""
        key = serialization.load_der_private_key(private_key_der, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            self._jwk: JWK = JWKEC(key=key)
        elif isinstance(key, rsa.RSAPrivateKey):
            self._jwk = JWKRSA(key=key)
        else:
            raise TypeError(f"{type(key).__name__} cannot sign for an ACME account")
        self._key = key

    def __repr__(self) -> str:
        return f"AccountKey({self.thumbprint})"

    @property
    def algorithm(self) -> str:
        """The `alg` of its signatures."""
        match self._key:
            case rsa.RSAPrivateKey():
                return "RS256"
            case _:
                return "ES384" if self._key.curve.key_size == 384 else "ES256"

    @functools.cached_property
    def thumbprint(self) -> str:
        """The JWK thumbprint (RFC 7638), base64url."""
        return base64url(self._jwk.thumbprint())

    @functools.cached_property
    def public_jwk(self) -> dict[str, Any]:
        """The public key as JSON."""
        return cast("dict[str, Any]", self._jwk.public_key().to_json())

    def sign(self, payload: bytes, *, url: str, nonce: str | None, kid: str | None) -> bytes:
        """A flattened JWS as the body of a request; without `kid` the public key itself stands in the header.

        An empty `payload` makes a POST-as-GET (RFC 8555 section 6.3). Only a JWS inside another has no `nonce`.
        """
        header = {"alg": self.algorithm, "jwk": self.public_jwk} if kid is None else {"alg": self.algorithm, "kid": kid}
        if nonce is not None:
            header["nonce"] = nonce
        header["url"] = url
        protected, content = base64url(json.dumps(header).encode()), base64url(payload)
        signature = base64url(self._signature(f"{protected}.{content}".encode()))
        return f'{{"protected": "{protected}", "signature": "{signature}", "payload": "{content}"}}'.encode()

    def _signature(self, signed: bytes) -> bytes:
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        octets = self._key.curve.key_size // 8
        digest = hashes.SHA384() if octets == 48 else hashes.SHA256()
        # RFC 7518 section 3.4: the two numbers side by side, and no DER.
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(digest)))
        return r.to_bytes(octets, "big") + s.to_bytes(octets, "big")


def external_account_binding(key: AccountKey, *, key_id: str, hmac_key: bytes, url: str) -> dict[str, Any]:
    """The inner JWS that ties a new account to one at the CA (RFC 8555 section 7.3.4): HS256, no nonce."""
    binding = acme.jws.JWS.sign(
        json.dumps(key.public_jwk).encode(),
        key=JWKOct(key=hmac_key),
        alg=HS256,
        nonce=None,
        url=url,
        kid=key_id,
    )
    return cast("dict[str, Any]", json.loads(binding.json_dumps()))


def key_change(old_key: AccountKey, new_key: AccountKey, *, account_url: str, url: str) -> bytes:
    """The inner JWS of a key change (RFC 8555 section 7.3.5), made by the new key; the old one signs it as a payload.

    It shows that whoever rolls over holds both keys: the new one by signing, the old one by the outer signature.
    """
    payload = {"account": account_url, "oldKey": old_key.public_jwk}
    return new_key.sign(json.dumps(payload).encode(), url=url, nonce=None, kid=None)


def parse_hmac_key(text: str, pointer: str = "/eab/hmac_key") -> bytes:
    """Decode a MAC key as CAs print it: base64url or base64, padded or not, with stray white space.

    Raises:
        InvalidRequest: it is neither; the text itself is not repeated.
    """
    compact = "".join(text.split()).rstrip("=").translate(str.maketrans("+/", "-_"))
    try:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", compact):
            raise binascii.Error
        key = base64.urlsafe_b64decode(compact + "=" * (-len(compact) % 4))
    except (binascii.Error, ValueError):
        detail = "the EAB MAC key is not base64url or base64; copy it exactly as the CA shows it"
        raise InvalidRequest(detail, [FieldError(pointer=pointer, code="bad_hmac_key", detail=detail)]) from None
    return key


def thumbprint_in(csr_der: bytes) -> str:
    """The JWK thumbprint (RFC 7638) of the key in a CSR that `csr.read_csr` has taken."""
    key = x509.load_der_x509_csr(csr_der).public_key()
    jwk: JWK = JWKRSA(key=key) if isinstance(key, rsa.RSAPublicKey) else JWKEC(key=key)
    return base64url(jwk.thumbprint())


def key_authorization_for(token: str, key: AccountKey) -> str:
    """What answers a challenge: the token, a dot, the thumbprint (RFC 8555 section 8.1).

    Raises:
        CaMisbehaved: the token has characters outside base64url or too little entropy; it becomes
            a path and a DNS value, so it must not be trusted.
    """
    if not _TOKEN.fullmatch(token):
        raise CaMisbehaved("the CA sent a challenge token that RFC 8555 section 8.1 does not allow")
    return f"{token}.{key.thumbprint}"


def base64url(data: bytes) -> str:
    """Unpadded base64url (RFC 8555 section 6.1)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
