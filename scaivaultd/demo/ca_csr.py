"""Judging certificate signing requests (RFC 8555 section 7.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from scaivaultd.demo.ca_identifiers import Identifier
from scaivaultd.demo.ca_problems import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scaivaultd.demo.ca_jws import PublicKey

_WEAK_HASHES = {"md5", "sha1"}


def judge_csr(der: bytes, identifiers: Sequence[Identifier], account_keys: Iterable[PublicKey]) -> PublicKey:
    """The key to certify.

    Raises:
        Refused: badCSR, badPublicKey or badSignatureAlgorithm, saying which rule is broken.
    """
    try:
        csr = x509.load_der_x509_csr(der)
        names = _names(csr)
        key = csr.public_key()
        hash_algorithm = csr.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refused("badCSR", "not a DER-encoded PKCS #10 request that this CA can read") from error
    # Before the signature is looked at: the crypto library verifies no weak ones.
    if hash_algorithm is None or hash_algorithm.name in _WEAK_HASHES:
        raise Refused("badCSR", "the CSR is signed by a weak or unknown algorithm")
    if not csr.is_signature_valid:
        raise Refused("badCSR", "the signature of the CSR is wrong")
    if names != set(identifiers):
        raise Refused("badCSR", "the names of the CSR are not exactly those of the order")
    public_key = _acceptable(key)
    if public_key in account_keys:
        raise Refused("badCSR", "an account key must not be certified (RFC 8555 section 11.1)")
    return public_key


def _names(csr: x509.CertificateSigningRequest) -> set[Identifier]:
    try:
        san = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise Refused("badCSR", "the CSR has no subjectAltName") from error
    names: set[Identifier] = set()
    for name in san:
        match name:
            case x509.DNSName():
                names.add(Identifier("dns", name.value))
            case x509.IPAddress():
                names.add(Identifier("ip", str(name.value)))
            case _:
                raise Refused("badCSR", f"a {type(name).__name__} cannot be certified")
    _check_common_name(csr, {name.value for name in names})
    return names


def _check_common_name(csr: x509.CertificateSigningRequest, values: set[str]) -> None:
    for attribute in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        if attribute.value not in values:
            raise Refused("badCSR", "the common name is not among the names")


def _acceptable(key: object) -> PublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096:
        return key
    raise Refused("badPublicKey", "keys are P-256, P-384, or RSA of 2048 to 4096 bits")
