"""A caller's own CSR: what is taken, and what it asks for (RFC 2986; RFC 8555 section 7.4).

It reaches a CA octet for octet, and again at each renewal. What a CA would refuse at `finalize`, after all names are
proven, is refused here.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import NameOID

from scaivaultd.acme.x509 import key_type_of, spki_of_csr, spki_sha256
from scaivaultd.model.errors import FieldError, InvalidRequest
from scaivaultd.model.names import Identifier, parse_identifiers

if TYPE_CHECKING:
    from scaivaultd.model.resources import KeyType

CSR_MAX = 40_000
"""Octets of DER: a hundred names of the greatest length and an RSA key fit in."""

_PEM = re.compile(
    r"-----BEGIN (?P<label>(?:NEW )?CERTIFICATE REQUEST)-----(?P<body>[^-]*)-----END (?P=label)-----", re.ASCII
)
_BASE64URL = str.maketrans("-_", "+/")
_WEAK_HASHES = ("md5", "sha1")
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class CsrRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A CSR that is taken: its octets, the names and the kind of key it is for, and what that key is remembered by."""

    der: bytes
    identifiers: tuple[Identifier, ...]
    key_type: KeyType
    spki_sha256: str


def read_csr(text: str) -> CsrRequest:
    """Read and judge a CSR in PEM, or DER in base64 or base64url.

    Raises:
        InvalidRequest: with one `FieldError` at /csr; nothing of the text is repeated.
    """
    der = _der(text)
    try:
        return _judged(x509.load_der_x509_csr(der), der)
    except _UNREADABLE as error:
        raise refused("unreadable", "this is no PKCS #10 certificate signing request that can be read") from error


def refused(code: str, detail: str) -> InvalidRequest:
    """The error that says what is wrong with a CSR."""
    return InvalidRequest(detail, [FieldError(pointer="/csr", code=code, detail=detail)])


def _der(text: str) -> bytes:
    if "PRIVATE KEY" in text:
        raise refused("private_key", "the text holds a private key: it is to stay where it was made; send the CSR only")
    body = text.strip()
    if "-----" in body:
        found = _PEM.fullmatch(body)
        if found is None:
            raise refused("not_one_csr", "give one CERTIFICATE REQUEST block of PEM, and nothing around it")
        body = found["body"]
    body = "".join(body.split()).translate(_BASE64URL).rstrip("=")
    try:
        der = base64.b64decode(body + "=" * (-len(body) % 4), validate=True)
    except (binascii.Error, ValueError):
        # No `from error`: whatever this is, it does not belong into a traceback.
        raise refused("not_base64", "neither PEM nor base64 of DER") from None
    if len(der) > CSR_MAX:
        raise refused("too_large", f"a CSR of {len(der)} octets; at most {CSR_MAX} are taken")
    return der


def _judged(csr: x509.CertificateSigningRequest, der: bytes) -> CsrRequest:
    key_type = _key_type(csr.public_key())
    # Before the signature is looked at: the crypto library verifies no weak ones.
    digest = csr.signature_hash_algorithm
    if digest is None or digest.name in _WEAK_HASHES:
        raise refused("weak_signature", "the CSR is signed with a weak or unknown hash; use SHA-256 or better")
    if not csr.is_signature_valid:
        raise refused("bad_signature", "the CSR is not signed by its own key, or was changed since")
    identifiers = _identifiers(csr)
    _check_subject(csr, identifiers)
    _check_not_for_a_ca(csr)
    return CsrRequest(der=der, identifiers=identifiers, key_type=key_type, spki_sha256=spki_sha256(spki_of_csr(der)))


def _key_type(key: object) -> KeyType:
    if (key_type := key_type_of(key)) is None:
        raise refused("bad_key", "keys are P-256, P-384, or RSA of 2048, 3072 or 4096 bits")
    return key_type


def _identifiers(csr: x509.CertificateSigningRequest) -> tuple[Identifier, ...]:
    try:
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise refused("no_names", "the CSR has no subject alternative names: that is where CAs look") from None
    texts = [_text(name) for name in names]
    if not texts:
        raise refused("no_names", "the subject alternative names of the CSR are empty")
    identifiers = _parsed(texts)
    if written_otherwise := {each.lower() for each in texts} - {str(each) for each in identifiers}:
        listed = ", ".join(repr(each) for each in sorted(written_otherwise)[:3])
        raise refused("not_normal", f"the CSR writes {listed} in a way no CA takes, such as with a dot at its end")
    return identifiers


def _text(name: x509.GeneralName) -> str:
    match name:
        case x509.DNSName():
            return name.value
        case x509.IPAddress():
            return str(name.value)
    raise refused("bad_name", f"the CSR asks for a {type(name).__name__}; only host names and addresses are certified")


def _parsed(texts: list[str]) -> tuple[Identifier, ...]:
    try:
        # Which names a public CA may certify depends on the account, which is not known here.
        return parse_identifiers(texts, public_ca=False)
    except InvalidRequest as error:
        raise at_csr(error) from None


def at_csr(error: InvalidRequest) -> InvalidRequest:
    """An error about names as one about the CSR they stand in: its names have no pointers of their own."""
    fields = [msgspec.structs.replace(each, pointer="/csr") for each in error.fields]
    return type(error)(f"in the CSR: {error.detail}", fields)


def _check_subject(csr: x509.CertificateSigningRequest, identifiers: tuple[Identifier, ...]) -> None:
    for attribute in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if _parsed([str(attribute.value)])[0] not in identifiers:
            raise refused("bad_subject", "the common name of the CSR is not among its subject alternative names")


def _check_not_for_a_ca(csr: x509.CertificateSigningRequest) -> None:
    for extension in csr.extensions:
        if isinstance(extension.value, x509.BasicConstraints) and extension.value.ca:
            raise refused("is_ca", "the CSR asks for a CA certificate")
