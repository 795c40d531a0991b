"""The development CA's certificates: root, intermediate, leaves; and a root of its own for HTTPS.

All keys are P-256, drawn by the crypto library and thrown away with the object.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.demo.ca_identifiers import Identifier
    from scaivaultd.demo.ca_jws import PublicKey

_BACKDATED = timedelta(minutes=5)
"""Clients' clocks may be that slow."""


class Authority(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that issues, with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class LeafPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a leaf shall say."""

    public_key: PublicKey
    identifiers: Sequence[Identifier]
    not_before: datetime
    not_after: datetime
    is_ca: bool = False
    usage: ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH
    issuer_name: x509.Name | None = None
    """Another name than the issuer's, to look self-signed."""
    subject: x509.Name = x509.Name([])


class Hierarchy:
    """Root, alternate roots, and the one intermediate they all sign."""

    def __init__(self, now: datetime, alternates: int = 0) -> None:
        self._root = make_root("Development Root", now)
        self._alternates = [make_root(f"Development Alternate Root {n}", now) for n in range(1, alternates + 1)]
        key = ec.generate_private_key(ec.SECP256R1())
        self._intermediates = [make_intermediate(root, key, now) for root in (self._root, *self._alternates)]

    @property
    def root_pem(self) -> str:
        """The root of the default chain."""
        return pem(self._root.certificate)

    @property
    def alternate_root_pems(self) -> tuple[str, ...]:
        """The roots of the alternate chains, first alternate first."""
        return tuple(pem(root.certificate) for root in self._alternates)

    def issue(self, plan: LeafPlan) -> x509.Certificate:
        """A leaf under the intermediate."""
        return sign_leaf(plan, self._intermediates[0])

    def chain_pem(self, leaf: x509.Certificate, alternate: int = 0) -> str:
        """Leaf and intermediate; 0 is the default chain.

        Raises:
            IndexError: there is no such alternate.
        """
        return pem(leaf) + pem(self._intermediates[alternate].certificate)


def leaf_plan(public_key: PublicKey, identifiers: Sequence[Identifier], now: datetime, lifetime: timedelta) -> LeafPlan:
    """A proper leaf, valid from shortly before now."""
    not_before = now.replace(microsecond=0) - min(_BACKDATED, lifetime / 10)
    return LeafPlan(
        public_key=public_key, identifiers=identifiers, not_before=not_before, not_after=not_before + lifetime
    )


def https_material(host: str) -> tuple[str, bytes]:
    """A root certificate for HTTPS (PEM), and chain plus private key (PEM) for `host` and loopback under it.

    Valid for this century: TLS libraries judge by the machine's clock, which is not the clock given to the CA.
    """
    start, end = datetime(2000, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, tzinfo=UTC)
    root = _make_ca("Development HTTPS Root", None, ec.generate_private_key(ec.SECP256R1()), (start, end))
    key = ec.generate_private_key(ec.SECP256R1())
    names = _general_names(["localhost", "127.0.0.1", "::1", host])
    plan = LeafPlan(public_key=key.public_key(), identifiers=(), not_before=start, not_after=end)
    leaf = _sign(plan, root, names)
    return pem(root.certificate), pem(leaf).encode() + private_key_pem(key)


def make_root(name: str, now: datetime) -> Authority:
    """A self-signed root, valid from yesterday for twenty years."""
    validity = (now - timedelta(days=1), now + timedelta(days=20 * 365))
    return _make_ca(name, None, ec.generate_private_key(ec.SECP256R1()), validity)


def make_intermediate(root: Authority, key: ec.EllipticCurvePrivateKey, now: datetime) -> Authority:
    """An intermediate under `root` for `key`, the same name whatever the root."""
    validity = (now - timedelta(days=1), now + timedelta(days=10 * 365))
    return _make_ca("Development Intermediate", root, key, validity)


def pem(certificate: x509.Certificate) -> str:
    """PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8 PEM, not encrypted: throw-away keys only."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def sign_leaf(plan: LeafPlan, issuer: Authority) -> x509.Certificate:
    """A leaf as planned, signed by `issuer`."""
    return _sign(plan, issuer, _general_names([each.value for each in plan.identifiers]))


def _make_ca(
    name: str, issuer: Authority | None, key: ec.EllipticCurvePrivateKey, validity: tuple[datetime, datetime]
) -> Authority:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.BasicConstraints(ca=True, path_length=0 if issuer else None), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return Authority(certificate=builder.sign(issuer_key, hashes.SHA256()), key=key)


def _sign(plan: LeafPlan, issuer: Authority, names: Sequence[x509.GeneralName]) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(plan.subject)
        .issuer_name(plan.issuer_name or issuer.certificate.subject)
        .public_key(plan.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(plan.not_before)
        .not_valid_after(plan.not_after)
        # An empty subject makes the SAN critical (RFC 5280 section 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName(names), critical=not plan.subject.rdns)
        .add_extension(x509.BasicConstraints(ca=plan.is_ca, path_length=None), critical=True)
        .add_extension(_key_usage(is_ca=plan.is_ca), critical=True)
        .add_extension(x509.ExtendedKeyUsage([plan.usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(plan.public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(values: Sequence[str]) -> list[x509.GeneralName]:
    return [_general_name(value) for value in dict.fromkeys(values)]


def _general_name(value: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(value))
    except ValueError:
        return x509.DNSName(value)
