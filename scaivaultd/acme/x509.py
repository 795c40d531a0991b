"""Keys, CSRs, and the judgement over what a CA sends back (RFC 8555 sections 7.4, 7.4.2, 9.1 and 11.4)."""

from __future__ import annotations

import hashlib
import ipaddress
import itertools
import re
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, ClassVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from scaivaultd.acme import wire
from scaivaultd.acme.ari import certificate_id_for_ari
from scaivaultd.model.errors import CaMisbehaved
from scaivaultd.model.names import Identifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.model.resources import KeyType

CLOCK_TOLERANCE = timedelta(minutes=5)
CHAIN_MAX = 10

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_BASE64_LINE = re.compile(r"[A-Za-z0-9+/]+={0,2}")

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class CertificateRefused(CaMisbehaved):
    """The CA's certificate is not what was asked for; `check` names the test that failed."""

    title: ClassVar[str] = "The CA's certificate was refused"

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"certificate refused, check {check}: {detail}")
        self.check = check


class DownloadedChain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain as the CA sent it, not judged yet, and the URLs of the other chains for the same leaf (section 7.4.2)."""

    body: bytes
    alternates: tuple[str, ...] = ()


class ChainChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which of the chains it is to be; `reason` says why it is the CA's default although another was preferred."""

    index: int
    reason: str | None = None


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A checked chain, leaf first. `serial_number` is upper-case hexadecimal octets joined by colons.

    `ari_id` is its name in the CA's renewal information (RFC 9773 section 4.1); None where it can have none.
    """

    pem: str
    serial_number: str
    fingerprint_sha256: str
    issuer: str
    not_before: datetime
    not_after: datetime
    has_authority_key_identifier: bool
    ari_id: str | None = None


def make_key(key_type: KeyType) -> bytes:
    """A fresh private key as PKCS #8 DER. RSA takes 50 to 2000 ms of CPU: call it in an executor."""
    key: PrivateKey
    match key_type:
        case "ec-p256":
            key = ec.generate_private_key(ec.SECP256R1())
        case "ec-p384":
            key = ec.generate_private_key(ec.SECP384R1())
        case "rsa-2048" | "rsa-3072" | "rsa-4096":
            key = rsa.generate_private_key(65537, int(key_type.removeprefix("rsa-")))
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def private_key_pem(private_key_der: bytes) -> str:
    """PKCS #8 DER as PEM, unencrypted."""
    return (
        _load(private_key_der)
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def csr_der(private_key_der: bytes, identifiers: Sequence[Identifier]) -> bytes:
    """A CSR for exactly these identifiers, empty subject: CAs take names from the SAN only."""
    names: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address(each.value)) if each.type == "ip" else x509.DNSName(each.value)
        for each in identifiers
    ]
    key = _load(private_key_der)
    digest = hashes.SHA384() if isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size == 384 else hashes.SHA256()
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(key, digest)
    )
    return request.public_bytes(serialization.Encoding.DER)


def spki_of_key(private_key_der: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a private key, as DER: what `check_chain_for` and `spki_sha256` take."""
    return _spki(_load(private_key_der).public_key())


def spki_of_chain(pem: str) -> bytes:
    """The same of the leaf of a chain that `check_chain` has taken."""
    return _spki(x509.load_pem_x509_certificate(pem.encode()).public_key())


def spki_of_csr(csr_der: bytes) -> bytes:
    """The same of a CSR that `csr.read_csr` has taken."""
    return _spki(x509.load_der_x509_csr(csr_der).public_key())


def spki_sha256(spki: bytes) -> str:
    """What a key is remembered by when it must never be certified again: hexadecimal, lower case."""
    return hashlib.sha256(spki).hexdigest()


def check_chain(body: bytes, private_key_der: bytes, identifiers: Sequence[Identifier], now: datetime) -> Chain:
    """`check_chain_for` the public half of a private key of ours."""
    return check_chain_for(body, spki_of_key(private_key_der), identifiers, now)


def check_chain_for(body: bytes, spki: bytes, identifiers: Sequence[Identifier], now: datetime) -> Chain:
    """Judge a downloaded chain; nothing that fails here may be stored.

    Args:
        spki: The key it must be for, as SubjectPublicKeyInfo DER.

    Raises:
        CertificateRefused: `check` is one of format, chain, key, names, is_ca, validity, usage.
    """
    certificates = _parse(body)
    leaf = certificates[0]
    _check_key(leaf, spki)
    _check_names(leaf, identifiers)
    _check_validity(leaf, now)
    _check_usage(leaf)
    _check_links(certificates)
    serial = leaf.serial_number
    return Chain(
        pem="".join(each.public_bytes(serialization.Encoding.PEM).decode() for each in certificates),
        serial_number=serial_text(serial),
        fingerprint_sha256=leaf.fingerprint(hashes.SHA256()).hex(),
        issuer=issuer_text(leaf),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        has_authority_key_identifier=_has_authority_key_identifier(leaf),
        ari_id=certificate_id_for_ari(leaf),
    )


def choose_chain(bodies: Sequence[bytes], preferred: str | None, roots: Sequence[bytes] = ()) -> ChainChoice:
    """The first chain that leads to the preferred root; without one the CA's default, which is the first of `bodies`.

    Args:
        bodies: PEM as downloaded, at least one; what cannot be read is never preferred. The chosen one is still to be
            judged by `check_chain`.
        preferred: The issuer's common name of the topmost certificate (upper and lower case alike), or the root's
            SHA-256 fingerprint (64 hexadecimal digits, colons allowed). None: whatever the CA's default is.
        roots: Known root certificates as DER. CAs leave the root out of the chain: a fingerprint can then be matched
            only by a root given here.
    """
    if preferred is None:
        return ChainChoice(index=0)
    tops = [(index, *top) for index, body in enumerate(bodies) if (top := _top(body)) is not None]
    fingerprint = preferred.replace(":", "").strip().lower()
    if _FINGERPRINT.fullmatch(fingerprint):
        root = _known_root(fingerprint, roots)
        fitting = (index for index, top, _ in tops if _leads_to(top, fingerprint, root))
    else:
        wanted = preferred.strip().casefold()
        fitting = (index for index, _, issuer in tops if issuer.casefold() == wanted)
    index = next(fitting, None)
    if index is not None:
        return ChainChoice(index=index)
    offered = ", ".join(f"'{wire.clean(issuer)}'" for _, _, issuer in tops) or "nothing that can be read"
    return ChainChoice(index=0, reason=f"no chain leads to {preferred!r}; what is offered leads to {offered}")


def _top(body: bytes) -> tuple[x509.Certificate, str] | None:
    """The topmost certificate of a chain and its issuer; None for what cannot be read."""
    try:
        top = _parse(body)[-1]
        return top, issuer_text(top)
    except CertificateRefused:
        return None


def _known_root(fingerprint: str, roots: Sequence[bytes]) -> x509.Certificate | None:
    found = next((each for each in roots if hashlib.sha256(each).hexdigest() == fingerprint), None)
    try:
        return None if found is None else x509.load_der_x509_certificate(found)
    except ValueError:
        return None


def _leads_to(top: x509.Certificate, fingerprint: str, root: x509.Certificate | None) -> bool:
    if top.fingerprint(hashes.SHA256()).hex() == fingerprint:
        return True
    return root is not None and is_signed_by(top, root)


def is_signed_by(lower: x509.Certificate, upper: x509.Certificate) -> bool:
    """Whether the key of `upper` has signed `lower`, and their names agree."""
    try:
        lower.verify_directly_issued_by(upper)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def serial_text(serial: int) -> str:
    """A serial number as callers write it: `1A:2B:...`."""
    octets = serial.to_bytes(max(1, (serial.bit_length() + 7) // 8), "big")
    return octets.hex(":").upper()


def issuer_text(certificate: x509.Certificate) -> str:
    """The issuer's common name, or the whole name where it has none; raises CertificateRefused if it is unreadable."""
    try:
        names = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(names[0].value) if names else certificate.issuer.rfc4514_string()
    except ValueError as error:
        raise CertificateRefused("format", "the issuer's name cannot be read") from error


def key_type_of(public_key: object) -> KeyType | None:
    """The kind of a public key; None for those that are not certified here."""
    match public_key:
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return "ec-p256"
        case ec.EllipticCurvePublicKey(curve=ec.SECP384R1()):
            return "ec-p384"
        case rsa.RSAPublicKey(key_size=2048):
            return "rsa-2048"
        case rsa.RSAPublicKey(key_size=3072):
            return "rsa-3072"
        case rsa.RSAPublicKey(key_size=4096):
            return "rsa-4096"
    return None


def split_chain(pem: str) -> list[str]:
    """The PEM blocks of a stored chain, leaf first."""
    return [f"{_BEGIN}{block}" for block in pem.split(_BEGIN)[1:]]


def _load(private_key_der: bytes) -> PrivateKey:
    key = serialization.load_der_private_key(private_key_der, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
    return key


def _parse(body: bytes) -> list[x509.Certificate]:
    blocks = _pem_blocks(body)
    if len(blocks) > CHAIN_MAX:
        raise CertificateRefused("format", f"{len(blocks)} certificates; at most {CHAIN_MAX} are taken")
    try:
        return [x509.load_pem_x509_certificate(block.encode()) for block in blocks]
    except ValueError as error:
        raise CertificateRefused("format", f"a block is no X.509 certificate ({error})") from error


def _pem_blocks(body: bytes) -> list[str]:
    """Only CERTIFICATE blocks with nothing around them but line ends (RFC 8555 section 9.1)."""
    try:
        lines = body.decode("ascii").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise CertificateRefused("format", "the body is not ASCII PEM") from error
    blocks: list[str] = []
    block: list[str] | None = None
    for line in lines:
        if block is None and line == _BEGIN:
            block = [line]
        elif block is not None and line == _END:
            blocks.append("\n".join([*block, line, ""]))
            block = None
        elif block is not None and _BASE64_LINE.fullmatch(line):
            block.append(line)
        elif block is not None or line.strip():
            kind = "a private key" if "PRIVATE KEY" in line else "something that is no certificate"
            raise CertificateRefused("format", f"the body holds {kind}")
    if block is not None or not blocks:
        raise CertificateRefused("format", "the body is cut off" if block else "the body holds no certificate")
    return blocks


def _check_key(leaf: x509.Certificate, expected: bytes) -> None:
    try:
        found = _spki(leaf.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateRefused("key", "the certificate's public key cannot be read") from error
    if found != expected:
        raise CertificateRefused("key", "the certificate is for another public key than the CSR's")


def _spki(key: object) -> bytes:
    public_bytes = getattr(key, "public_bytes", None)
    assert public_bytes is not None
    spki: bytes = public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return spki


def _check_names(leaf: x509.Certificate, identifiers: Sequence[Identifier]) -> None:
    wanted = set(identifiers)
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise CertificateRefused("names", "the certificate has no readable subject alternative names") from error
    found = {_identifier(name) for name in extension.value}
    if found != wanted:
        missing = ", ".join(sorted(map(str, wanted - found))) or "none"
        extra = ", ".join(sorted(map(str, found - wanted))) or "none"
        raise CertificateRefused("names", f"missing: {missing}; not asked for: {extra}")


def _identifier(name: x509.GeneralName) -> Identifier | str:
    match name:
        case x509.DNSName():
            return Identifier("dns", name.value.lower())
        case x509.IPAddress():
            return Identifier("ip", str(name.value))
        case _:
            return repr(name)


def _check_validity(leaf: x509.Certificate, now: datetime) -> None:
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if end <= start:
        raise CertificateRefused("validity", "it ends before it begins")
    if end <= now:
        raise CertificateRefused("validity", f"it expired at {end:%Y-%m-%dT%H:%M:%SZ}; it is {now:%Y-%m-%dT%H:%M:%SZ}")
    if start > now + CLOCK_TOLERANCE:
        raise CertificateRefused(
            "validity",
            f"it begins at {start:%Y-%m-%dT%H:%M:%SZ}; it is {now:%Y-%m-%dT%H:%M:%SZ} here: check this host's clock",
        )


def _check_usage(leaf: x509.Certificate) -> None:
    try:
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
        if constraints.ca:
            raise CertificateRefused("is_ca", "the leaf is a CA certificate")
    except x509.ExtensionNotFound:
        pass
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise CertificateRefused("usage", "it has no extended key usage, so it is not for TLS servers") from None
    if ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise CertificateRefused("usage", "its extended key usage lacks serverAuth")


def _check_links(certificates: Sequence[x509.Certificate]) -> None:
    if len({each.fingerprint(hashes.SHA256()) for each in certificates}) != len(certificates):
        raise CertificateRefused("chain", "a certificate stands in the chain twice")
    if len(certificates) < 2:
        raise CertificateRefused("chain", "the leaf comes alone, without an intermediate certificate")
    for place, (lower, upper) in enumerate(itertools.pairwise(certificates)):
        try:
            lower.verify_directly_issued_by(upper)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
            raise CertificateRefused(
                "chain", f"certificate {place} is not signed by certificate {place + 1}"
            ) from error


def _has_authority_key_identifier(leaf: x509.Certificate) -> bool:
    try:
        found = leaf.extensions.get_extension_for_oid(ExtensionOID.AUTHORITY_KEY_IDENTIFIER).value
    except x509.ExtensionNotFound:
        return False
    return isinstance(found, x509.AuthorityKeyIdentifier) and found.key_identifier is not None
