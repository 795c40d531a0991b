"""What is taken of certificates that another client brings, and what is said of what is not."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaivaultd.acme.imported import read_imported, read_private_key
from scaivaultd.acme.x509 import spki_of_key
from scaivaultd.model.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

START = datetime(2026, 1, 1, tzinfo=UTC)
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
PKCS8 = serialization.PrivateFormat.PKCS8
TRADITIONAL = serialization.PrivateFormat.TraditionalOpenSSL
PLAIN = serialization.NoEncryption()


@dataclass(frozen=True)
class Ca:
    """One CA certificate and its key."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(PEM).decode()


def make_ca(name: str, above: Ca | None = None) -> Ca:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(above.certificate.subject if above else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(above.key if above else key, hashes.SHA256())
    )
    return Ca(name, key, certificate)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def leaf_pem(
    ca: Ca, key: Any, names: Sequence[x509.GeneralName] | None = None, *, usage: Any = ExtendedKeyUsageOID.SERVER_AUTH
) -> str:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name("leaf"))
        .issuer_name(ca.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=90))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key()), critical=False)
    )
    if names is None:
        names = [x509.DNSName("www.example.org")]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(PEM).decode()


ROOT = make_ca("root")
LOWER = make_ca("lower", ROOT)
KEY = ec.generate_private_key(ec.SECP256R1())
LEAF = leaf_pem(LOWER, KEY)
OTHER = make_ca("somebody else")


def test_a_chain_is_read_with_its_name_at_the_ca() -> None:
    """The first renewal says by it which certificate it replaces."""
    names = [x509.DNSName("*.Example.org"), x509.DNSName("example.org"), x509.IPAddress(ipaddress.ip_address("::1"))]
    imported = read_imported(leaf_pem(LOWER, KEY, names) + LOWER.pem)
    assert [str(each) for each in imported.identifiers] == ["*.example.org", "example.org", "::1"]
    assert imported.key_type == "ec-p256"
    assert imported.chain.ari_id is not None
    assert imported.chain.not_after == START + timedelta(days=90), "expired, and taken all the same"


@pytest.mark.parametrize(
    "text",
    [
        LEAF + LOWER.pem + ROOT.pem,
        ROOT.pem + LOWER.pem + LEAF,
        LOWER.pem + LEAF + ROOT.pem,
        LEAF + LOWER.pem + LOWER.pem + ROOT.pem,
        f"subject=CN = leaf\n{LEAF}\nissuer: lower\r\n{LOWER.pem}{ROOT.pem}".replace("\n", "\r\n"),
    ],
)
def test_the_order_of_a_chain_is_mended(text: str) -> None:
    """Other clients keep leaf and chain in files of their own, and people put them together as they like."""
    assert read_imported(text).chain.pem == LEAF + LOWER.pem + ROOT.pem


@pytest.mark.parametrize(
    ("key", "key_type"),
    [
        (ec.generate_private_key(ec.SECP384R1()), "ec-p384"),
        (rsa.generate_private_key(65537, 2048), "rsa-2048"),
        (rsa.generate_private_key(65537, 3072), "rsa-3072"),
    ],
)
@pytest.mark.parametrize("shape", [PKCS8, TRADITIONAL])
def test_every_key_that_is_made_here_is_taken(key: Any, key_type: str, shape: serialization.PrivateFormat) -> None:
    """certbot writes PKCS #8, lego and acme.sh the older shapes."""
    imported = read_imported(leaf_pem(LOWER, key) + LOWER.pem)
    assert imported.key_type == key_type
    der = read_private_key(key.private_bytes(PEM, shape, PLAIN).decode(), imported)
    assert spki_of_key(der) == imported.spki


def test_parameters_before_a_key_are_passed_over() -> None:
    """`openssl ecparam -genkey`, as acme.sh calls it, writes them first."""
    parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    key = KEY.private_bytes(PEM, TRADITIONAL, PLAIN).decode()
    assert read_private_key(parameters + key, read_imported(LEAF + LOWER.pem))


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", "no_certificate", "no certificate"),
        (LOWER.pem, "is_ca", "only CA certificates"),
        (LEAF, "chain", "without an intermediate"),
        (LEAF + ROOT.pem, "chain", "a link is missing"),
        (LEAF + OTHER.pem, "chain", "somebody else"),
        (LEAF + leaf_pem(LOWER, KEY) + LOWER.pem, "format", "2 server certificates"),
        (LEAF * 11, "format", "at most 10"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "unreadable", "cannot be read"),
        (LEAF + KEY.private_bytes(PEM, PKCS8, PLAIN).decode(), "private_key", "private_key_pem"),
        (leaf_pem(LOWER, ed25519.Ed25519PrivateKey.generate()) + LOWER.pem, "bad_key", "Ed25519"),
        (leaf_pem(LOWER, ec.generate_private_key(ec.SECP521R1())) + LOWER.pem, "bad_key", "secp521r1"),
        (leaf_pem(LOWER, rsa.generate_private_key(65537, 2056)) + LOWER.pem, "bad_key", "RSA of 2056 bits"),
        (leaf_pem(LOWER, KEY, []) + LOWER.pem, "no_names", "no subject alternative names"),
        (leaf_pem(LOWER, KEY, [x509.RFC822Name("a@b.c")]) + LOWER.pem, "bad_name", "RFC822Name"),
        (leaf_pem(LOWER, KEY, [x509.DNSName("a b")]) + LOWER.pem, "bad_name", "a b"),
        (leaf_pem(LOWER, KEY, usage=ExtendedKeyUsageOID.CLIENT_AUTH) + LOWER.pem, "usage", "serverAuth"),
    ],
)
def test_what_cannot_be_taken_is_said(text: str, code: str, words: str) -> None:
    """A person has to tell what to do about it from these words alone."""
    with pytest.raises(InvalidRequest, match=words) as refused:
        read_imported(text)
    assert [(each.pointer, each.code) for each in refused.value.fields] == [("/chain_pem", code)]


def _encrypted(shape: serialization.PrivateFormat) -> str:
    return KEY.private_bytes(PEM, shape, serialization.BestAvailableEncryption(b"secret")).decode()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "not_a_key"),
        (LEAF, "not_a_key"),
        (_encrypted(PKCS8), "encrypted"),
        (_encrypted(TRADITIONAL), "encrypted"),
        ("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", "unreadable"),
        (ec.generate_private_key(ec.SECP256R1()).private_bytes(PEM, PKCS8, PLAIN).decode(), "other_key"),
    ],
)
def test_a_key_that_cannot_be_taken_is_not_repeated(text: str, code: str) -> None:
    """Errors go into logs and audit records."""
    with pytest.raises(InvalidRequest) as refused:
        read_private_key(text, read_imported(LEAF + LOWER.pem))
    assert [(each.pointer, each.code) for each in refused.value.fields] == [("/private_key_pem", code)]
    assert "c2VjcmV0" not in str(refused.value)
    assert refused.value.__cause__ is None
