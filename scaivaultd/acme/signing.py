"""Signatures: the JWS of RFC 8555 section 6.2, external account binding, key authorizations.

`acme` and `josepy` sign and model. Their header decodes and re-encodes the nonce, which alters
nonces with unused low bits or of undecodable length, so ours keeps it as the opaque string it is.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
import re
from typing import Any, cast

import acme.jws
import josepy.jws
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from josepy.json_util import field
from josepy.jwa import ES256, ES384, HS256, RS256
from josepy.jwk import JWK, JWKEC, JWKRSA, JWKOct

from scaivaultd.model.errors import CaMisbehaved, FieldError, InvalidRequest

_TOKEN = re.compile(r"[A-Za-z0-9_-]{22,128}")


class _Header(acme.jws.Header):
    nonce: str | None = field("nonce", omitempty=True)  # type: ignore[assignment]  # verbatim, see above


class _Signature(acme.jws.Signature):
    __slots__ = josepy.jws.Signature._orig_slots
    header_cls = _Header
    header: _Header = field("header", omitempty=True, default=_Header(), decoder=_Header.from_json)


class _Jws(acme.jws.JWS):
    __slots__ = josepy.jws.JWS._orig_slots
    signature_cls = _Signature


class AccountKey:
    """The key that signs for one ACME account; prints as its thumbprint only.

    A certificate's own key signs its revocation in the same way, by `jwk` (RFC 8555 section 7.6).
    """

    def __init__(self, private_key_der: bytes) -> None:
        """Read an unencrypted PKCS #8 DER key: P-256, P-384 or RSA."""
        key = serialization.load_der_private_key(private_key_der, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            self._jwk: JWK = JWKEC(key=key)
            self._algorithm = ES384 if key.curve.key_size == 384 else ES256
        elif isinstance(key, rsa.RSAPrivateKey):
            self._jwk = JWKRSA(key=key)
            self._algorithm = RS256
        else:
            raise TypeError(f"{type(key).__name__} cannot sign for an ACME account")

    def __repr__(self) -> str:
        return f"AccountKey({self.thumbprint})"

    @property
    def algorithm(self) -> str:
        """The `alg` of its signatures."""
        return str(self._algorithm.name)

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
        signed = _Jws.sign(
            payload,
            key=self._jwk,
            alg=self._algorithm,
            nonce=cast("bytes", nonce),  # josepy's annotation; our header field is a string
            url=url,
            kid=kid,
        )
        body: str = signed.json_dumps()
        return body.encode()


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
