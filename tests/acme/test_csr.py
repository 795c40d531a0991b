"""A caller's CSR is judged before anything is proven for it: what a CA would refuse at the end is refused here."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509 as lib
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaivaultd.acme import csr, x509
from scaivaultd.model.errors import InvalidRequest
from scaivaultd.model.names import Identifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.model.resources import KeyType

SHA256 = hashes.SHA256()
KEY = ec.generate_private_key(ec.SECP256R1())
NAMES = (Identifier("dns", "a.test"), Identifier("dns", "*.b.test"), Identifier("ip", "2001:db8::1"))
SAN = (lib.DNSName("a.test"), lib.DNSName("*.b.test"), lib.IPAddress(ipaddress.ip_address("2001:db8::1")))


def made(
    *names: lib.GeneralName,
    key: Any = KEY,
    common_names: tuple[str, ...] = (),
    extensions: tuple[lib.ExtensionType, ...] = (),
    digest: Any = SHA256,
) -> bytes:
    subject = lib.Name([lib.NameAttribute(NameOID.COMMON_NAME, each) for each in common_names])
    builder = lib.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(lib.SubjectAlternativeName(names), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, digest).public_bytes(serialization.Encoding.DER)


def pem(der: bytes, label: str = "CERTIFICATE REQUEST") -> str:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"


def code_of(text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        csr.read_csr(text)
    (field,) = caught.value.fields
    assert field.pointer == "/csr"
    assert len(text) < 60 or text[:60] not in caught.value.detail
    return field.code


GOOD = made(*SAN)


@pytest.mark.parametrize(
    "write",
    [
        pem,
        lambda der: pem(der, "NEW CERTIFICATE REQUEST"),
        lambda der: f"\r\n{pem(der)}".replace("\n", "\r\n"),
        lambda der: base64.b64encode(der).decode(),
        lambda der: base64.encodebytes(der).decode(),
        lambda der: base64.urlsafe_b64encode(der).rstrip(b"=").decode(),
    ],
)
def test_a_csr_is_taken_however_it_is_written(write: Callable[[bytes], str]) -> None:
    """Tools write PEM, programs base64, and ACME clients base64url: the octets that go to the CA are the same."""
    taken = csr.read_csr(write(GOOD))
    assert (taken.der, taken.identifiers, taken.key_type) == (GOOD, NAMES, "ec-p256")


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096"])
def test_the_key_type_is_that_of_the_key(key_type: KeyType) -> None:
    """Nobody has to say it, and so nobody can say it wrongly."""
    key = x509.make_key(key_type)
    taken = csr.read_csr(pem(x509.csr_der(key, NAMES)))
    assert taken.key_type == key_type
    assert taken.spki_sha256 == x509.spki_sha256(x509.spki_of_key(key))


def test_a_key_is_remembered_by_the_digest_of_its_public_half() -> None:
    """The same in a key, a CSR and a certificate, and the same as `openssl` prints it."""
    spki = KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert x509.spki_of_csr(GOOD) == spki
    assert csr.read_csr(pem(GOOD)).spki_sha256 == hashlib.sha256(spki).hexdigest()


def test_names_are_normalised_as_all_others_are() -> None:
    """Upper case is the CA's to ignore; twice is once."""
    names = (lib.DNSName("A.Test"), lib.DNSName("a.test"), lib.DNSName("*.B.test"))
    assert csr.read_csr(pem(made(*names))).identifiers == NAMES[:2]


@pytest.mark.parametrize("common_name", ["a.test", "A.Test", "*.b.test", "2001:db8:0::1"])
def test_a_common_name_may_be_one_of_the_names(common_name: str) -> None:
    """Most tools put one there."""
    assert csr.read_csr(pem(made(*SAN, common_names=(common_name,)))).identifiers == NAMES


def test_what_cas_ignore_is_let_through() -> None:
    """Key usages and the like are the CA's to decide; tools write them by default."""
    extensions = (
        lib.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        lib.BasicConstraints(ca=False, path_length=None),
        lib.UnrecognizedExtension(lib.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    )
    assert csr.read_csr(pem(made(*SAN, extensions=extensions))).identifiers == NAMES


DAMAGED = GOOD[:-1] + bytes([GOOD[-1] ^ 1])
PRIVATE = x509.private_key_pem(x509.make_key("ec-p256"))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "unreadable"),
        ("hello there!", "not_base64"),
        ("aGVsbG8", "unreadable"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not_one_csr"),
        (pem(GOOD) + pem(GOOD), "not_one_csr"),
        ("a note\n" + pem(GOOD), "not_one_csr"),
        (pem(GOOD)[:-30], "not_one_csr"),
        (PRIVATE, "private_key"),
        (PRIVATE + pem(GOOD), "private_key"),
        (pem(GOOD + b"\0"), "unreadable"),
        (pem(GOOD[:-10]), "unreadable"),
        (pem(DAMAGED), "bad_signature"),
        (base64.b64encode(b"\0" * (csr.CSR_MAX + 1)).decode(), "too_large"),
        (pem(made()), "no_names"),
        (pem(made(common_names=("a.test",))), "no_names"),
        (pem(made(lib.DNSName("a.test"), lib.RFC822Name("me@a.test"))), "bad_name"),
        (pem(made(lib.DNSName("a.test"), lib.UniformResourceIdentifier("https://a.test"))), "bad_name"),
        (pem(made(lib.DNSName("a.test."))), "not_normal"),
        (pem(made(lib.DNSName("a b.test"))), "bad_character"),
        (pem(made(lib.DNSName("*"))), "bad_wildcard"),
        (pem(made(*(lib.DNSName(f"n{number}.test") for number in range(101)))), "too_many_names"),
        (pem(made(*SAN, common_names=("c.test",))), "bad_subject"),
        (pem(made(*SAN, common_names=("a.test", "c.test"))), "bad_subject"),
        (pem(made(*SAN, extensions=(lib.BasicConstraints(ca=True, path_length=None),))), "is_ca"),
        (pem(made(*SAN, key=ec.generate_private_key(ec.SECP521R1()))), "bad_key"),
        (pem(made(*SAN, key=rsa.generate_private_key(65537, 2056))), "bad_key"),
        (pem(made(*SAN, key=ed25519.Ed25519PrivateKey.generate(), digest=None)), "bad_key"),
    ],
)
def test_what_no_ca_takes_is_refused_with_its_reason(text: str, code: str) -> None:
    """A refusal at `finalize` comes when all names are proven, and is paid for with a rate limit."""
    assert code_of(text) == code


def test_a_private_key_that_was_sent_along_is_not_repeated() -> None:
    """The text of an error ends up in logs."""
    with pytest.raises(InvalidRequest) as caught:
        csr.read_csr(PRIVATE)
    assert PRIVATE.splitlines()[1] not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_weak_signature_is_told_apart_from_a_wrong_one() -> None:
    """Old tools sign with SHA-1 by default: the remedy is an option of the tool."""
    sha256_with_rsa, sha1_with_rsa = bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010105")
    signed = made(*SAN, key=rsa.generate_private_key(65537, 2048))
    assert code_of(pem(signed.replace(sha256_with_rsa, sha1_with_rsa))) == "weak_signature"


def test_damage_is_refused_and_never_something_else() -> None:
    """X.509 libraries raise in many ways, some of them only when a part is looked at."""
    for place in range(len(GOOD)):
        for bit in (1, 0x20, 0x80):
            damaged = GOOD[:place] + bytes([GOOD[place] ^ bit]) + GOOD[place + 1 :]
            try:
                taken = csr.read_csr(pem(damaged))
            except InvalidRequest:
                continue
            # The count of unused bits of the signature is read leniently, and signs nothing.
            assert (taken.identifiers, taken.spki_sha256) == (NAMES, csr.read_csr(pem(GOOD)).spki_sha256)
