"""Certificates and keys that another ACME client brings: what is taken, and what they are.

Judged like what a CA sends (`x509.check_chain_for`), but for their age: one that has expired is renewed at once. The
order of the chain is mended, since other clients keep it in several files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from scaivaultd.acme.x509 import (
    CHAIN_MAX,
    CertificateRefused,
    Chain,
    check_chain_for,
    is_signed_by,
    key_type_of,
)
from scaivaultd.model.errors import FieldError, InvalidRequest
from scaivaultd.model.names import Identifier, parse_identifiers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.model.resources import KeyType

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----", re.ASCII)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?P<label>[A-Z ]*PRIVATE KEY)-----(?P<body>[A-Za-z0-9+/=\s:,-]*?)-----END (?P=label)-----", re.ASCII
)
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """A chain that is taken, leaf first, and what its leaf is; `spki` is its key as SubjectPublicKeyInfo DER."""

    chain: Chain
    identifiers: tuple[Identifier, ...]
    key_type: KeyType
    spki: bytes


def read_imported(chain_pem: str) -> Imported:
    """Read and judge a chain; text between the certificates is passed over.

    Raises:
        InvalidRequest: with one `FieldError` at /chain_pem that says what is wrong.
    """
    if "PRIVATE KEY" in chain_pem:
        raise _refused("private_key", "there is a private key beside the certificates; give it as private_key_pem")
    try:
        ordered = _ordered(_certificates(chain_pem))
        leaf = ordered[0]
        identifiers, key_type = _identifiers(leaf), key_type_of(leaf.public_key())
        spki = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except _UNREADABLE as error:
        raise _refused("unreadable", "one of the certificates cannot be read") from error
    if key_type is None:
        raise _refused(
            "bad_key",
            f"its key is {_kind_of(leaf.public_key())}; taken are P-256, P-384, and RSA of 2048, 3072 or 4096 bits. "
            "Issue a new certificate for its names instead",
        )
    body = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in ordered)
    try:
        # Its own first moment: only that it ends after that is asked, not whether it has ended since.
        chain = check_chain_for(body, spki, identifiers, leaf.not_valid_before_utc)
    except CertificateRefused as error:
        raise _refused(error.check, error.detail) from error
    return Imported(chain=chain, identifiers=identifiers, key_type=key_type, spki=spki)


def read_private_key(pem: str, imported: Imported) -> bytes:
    """The private key of a chain, as PKCS #8 DER.

    Raises:
        InvalidRequest: with one `FieldError` at /private_key_pem; nothing of the text is repeated.
    """
    found = _PRIVATE_KEY.search(pem)
    if found is None:
        raise _refused("not_a_key", "this is no private key in PEM", "/private_key_pem")
    if "ENCRYPTED" in found["label"] or "ENCRYPTED" in found["body"]:
        raise _refused("encrypted", "give the key without its passphrase; it is sealed here", "/private_key_pem")
    try:
        key = serialization.load_pem_private_key(found[0].encode(), password=None)
        spki = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except Exception:  # noqa: BLE001 - cryptography raises many kinds, and their texts may quote the key
        raise _refused("unreadable", "the private key cannot be read", "/private_key_pem") from None
    if spki != imported.spki:
        raise _refused("other_key", "this is not the private key of the certificate", "/private_key_pem")
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _refused(code: str, detail: str, pointer: str = "/chain_pem") -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])


def _certificates(pem: str) -> list[x509.Certificate]:
    """Each once."""
    blocks = _CERTIFICATE.findall(pem)
    if not blocks:
        raise _refused("no_certificate", "there is no certificate in it (PEM)")
    if len(blocks) > CHAIN_MAX:
        raise _refused("format", f"{len(blocks)} certificates; at most {CHAIN_MAX} are taken: give one chain")
    found = [x509.load_pem_x509_certificate(block.encode()) for block in blocks]
    return list({each.fingerprint(hashes.SHA256()): each for each in found}.values())


def _ordered(certificates: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    leaves = [each for each in certificates if not _is_ca(each)]
    if not leaves:
        raise _refused("is_ca", "there are only CA certificates in it, none of a server")
    if len(leaves) > 1:
        raise _refused("format", f"there are {len(leaves)} server certificates in it; give one with its chain")
    chain, left = list(leaves), [each for each in certificates if each is not leaves[0]]
    while (upper := next((each for each in left if is_signed_by(chain[-1], each)), None)) is not None:
        chain.append(upper)
        left.remove(upper)
    if left:
        names = ", ".join(repr(each.subject.rfc4514_string()) for each in left[:3])
        raise _refused("chain", f"not of the certificate's chain, or a link is missing before it: {names}")
    return chain


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _identifiers(leaf: x509.Certificate) -> tuple[Identifier, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise _refused("no_names", "it has no subject alternative names, so there is nothing to renew") from None
    try:
        # Which names a public CA may certify depends on the account, which is not known here.
        return parse_identifiers([_text(name) for name in names], public_ca=False)
    except InvalidRequest as error:
        raise _refused("bad_name", f"of its names: {error.detail}") from None


def _text(name: x509.GeneralName) -> str:
    match name:
        case x509.DNSName():
            return name.value
        case x509.IPAddress():
            return str(name.value)
    raise _refused("bad_name", f"it names a {type(name).__name__}; by ACME only host names and addresses are renewed")


def _kind_of(key: object) -> str:
    match key:
        case ec.EllipticCurvePublicKey():
            return f"on the curve {key.curve.name}"
        case rsa.RSAPublicKey():
            return f"RSA of {key.key_size} bits"
        case _:
            return f"of the kind {type(key).__name__.removesuffix('PublicKey')}"
