"""What a CA sends back is judged before anything is stored, and the failing check is named."""

from __future__ import annotations

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509 as lib
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from scaivaultd.acme import x509
from scaivaultd.acme.ari import certificate_id_for_ari
from scaivaultd.acme.x509 import CertificateRefused
from scaivaultd.model.names import Identifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.model.resources import KeyType

NOW = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)
NAMES = (Identifier("dns", "a.test"), Identifier("dns", "*.b.test"), Identifier("ip", "2001:db8::1"))
KEY = x509.make_key("ec-p256")


class Issuer:
    """A throw-away CA whose leaves can be wrong in one way at a time."""

    def __init__(self, name: str = "Intermediate") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = lib.Name([lib.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self.sign(self.name, self.key.public_key(), ca=True)

    def sign(
        self,
        subject: lib.Name,
        public_key: ec.EllipticCurvePublicKey,
        *,
        ca: bool = False,
        names: tuple[Identifier, ...] = (),
        start: datetime = NOW - timedelta(hours=1),
        end: datetime = NOW + timedelta(days=90),
        usage: lib.ObjectIdentifier | None = ExtendedKeyUsageOID.SERVER_AUTH,
    ) -> lib.Certificate:
        builder = (
            lib.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(0x1A2B3C)
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(lib.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(lib.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        if names:
            general = [
                lib.IPAddress(ipaddress.ip_address(each.value)) if each.type == "ip" else lib.DNSName(each.value)
                for each in names
            ]
            builder = builder.add_extension(lib.SubjectAlternativeName(general), critical=True)
        if usage is not None and not ca:
            builder = builder.add_extension(lib.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self.key, hashes.SHA256())


ISSUER = Issuer()


def leaf(**changes: object) -> lib.Certificate:
    key = serialization.load_der_private_key(KEY, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    arguments: dict[str, object] = {"names": NAMES, **changes}
    public_key = arguments.pop("public_key", key.public_key())
    return ISSUER.sign(lib.Name([]), public_key, **arguments)  # type: ignore[arg-type]  # one wrong thing at a time


def pem(*certificates: lib.Certificate) -> bytes:
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)


def test_a_good_chain_is_taken_and_described() -> None:
    """The record callers see is read from the certificate itself."""
    chain = x509.check_chain(pem(leaf(), ISSUER.certificate), KEY, NAMES, NOW)
    assert chain.serial_number == "1A:2B:3C"
    assert chain.issuer == "Intermediate"
    assert chain.not_after == NOW + timedelta(days=90)
    assert chain.fingerprint_sha256 == leaf_fingerprint(chain.pem)
    assert chain.has_authority_key_identifier
    assert len(x509.split_chain(chain.pem)) == 2


def test_a_chain_is_judged_by_the_public_half_alone() -> None:
    """For a caller's CSR there is no private key here."""
    body = pem(leaf(), ISSUER.certificate)
    assert x509.check_chain_for(body, x509.spki_of_key(KEY), NAMES, NOW) == x509.check_chain(body, KEY, NAMES, NOW)
    csr = x509.csr_der(KEY, NAMES)
    assert x509.check_chain_for(body, x509.spki_of_csr(csr), NAMES, NOW).serial_number == "1A:2B:3C"
    with pytest.raises(CertificateRefused) as caught:
        x509.check_chain_for(body, x509.spki_of_key(x509.make_key("ec-p256")), NAMES, NOW)
    assert caught.value.check == "key"


def test_a_chain_knows_its_name_in_the_renewal_information() -> None:
    """It is written down with the certificate: to ask ARI later, nothing has to be parsed again."""
    chain = x509.check_chain(pem(leaf(), ISSUER.certificate), KEY, NAMES, NOW)
    assert chain.ari_id == certificate_id_for_ari(leaf())
    assert chain.ari_id is not None


def leaf_fingerprint(chain_pem: str) -> str:
    return lib.load_pem_x509_certificate(chain_pem.encode()).fingerprint(hashes.SHA256()).hex()


GOOD = pem(leaf(), ISSUER.certificate)


@pytest.mark.parametrize(
    "body", [GOOD.replace(b"\n", b"\r\n"), GOOD.rstrip(), GOOD.replace(b"E-----\n-", b"E-----\n\n-")]
)
def test_line_ends_do_not_matter(body: bytes) -> None:
    """CRLF, a missing last newline and an empty line between blocks are all out there."""
    assert x509.check_chain(body, KEY, NAMES, NOW).pem == GOOD.decode()


OTHER = Issuer("Other")
PRIVATE = x509.private_key_pem(KEY).encode()


@pytest.mark.parametrize(
    ("body", "check"),
    [
        (b"", "format"),
        (b"<html>", "format"),
        (b"\xff\xfe", "format"),
        (GOOD + b"trailing", "format"),
        (b"leading\n" + GOOD, "format"),
        (GOOD + PRIVATE, "format"),
        (GOOD[:-40], "format"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "format"),
        (pem(leaf(), *([ISSUER.certificate] * 10)), "format"),
        (pem(leaf()), "chain"),
        (pem(leaf(), OTHER.certificate), "chain"),
        (pem(leaf(), ISSUER.certificate, ISSUER.certificate), "chain"),
        (pem(leaf(public_key=OTHER.key.public_key()), ISSUER.certificate), "key"),
        (pem(leaf(names=NAMES[:2]), ISSUER.certificate), "names"),
        (pem(leaf(names=(*NAMES, Identifier("dns", "extra.test"))), ISSUER.certificate), "names"),
        (pem(leaf(names=()), ISSUER.certificate), "names"),
        (pem(leaf(ca=True), ISSUER.certificate), "is_ca"),
        (pem(leaf(end=NOW - timedelta(seconds=1)), ISSUER.certificate), "validity"),
        (pem(leaf(start=NOW + timedelta(minutes=6)), ISSUER.certificate), "validity"),
        (pem(leaf(usage=None), ISSUER.certificate), "usage"),
        (pem(leaf(usage=ExtendedKeyUsageOID.CLIENT_AUTH), ISSUER.certificate), "usage"),
    ],
)
def test_a_wrong_chain_is_refused_by_the_check_that_failed(body: bytes, check: str) -> None:
    """A certificate that is not what was asked for must never replace anything; the check says what to look at."""
    with pytest.raises(CertificateRefused) as caught:
        x509.check_chain(body, KEY, NAMES, NOW)
    assert caught.value.check == check


def test_a_clock_some_minutes_behind_is_tolerated() -> None:
    """CAs date from now on; five minutes of skew are common."""
    chain = x509.check_chain(pem(leaf(start=NOW + timedelta(minutes=4)), ISSUER.certificate), KEY, NAMES, NOW)
    assert chain.not_before == NOW + timedelta(minutes=4)


@pytest.mark.parametrize("key_type", ["ec-p256", "ec-p384", "rsa-2048"])
def test_a_csr_holds_exactly_the_names_and_an_empty_subject(key_type: KeyType) -> None:
    """RFC 8555 section 7.4: the SAN set equals the order's."""
    csr = lib.load_der_x509_csr(x509.csr_der(x509.make_key(key_type), NAMES))
    assert csr.is_signature_valid
    assert list(csr.subject) == []
    san = csr.extensions.get_extension_for_class(lib.SubjectAlternativeName).value
    assert san.get_values_for_type(lib.DNSName) == ["a.test", "*.b.test"]
    assert san.get_values_for_type(lib.IPAddress) == [ipaddress.ip_address("2001:db8::1")]


@pytest.mark.parametrize(("serial", "text"), [(0, "00"), (0x80, "80"), (0x0100, "01:00")])
def test_serials_are_octets_joined_by_colons(serial: int, text: str) -> None:
    """The form callers revoke by."""
    assert x509.serial_text(serial) == text


ROOT_A, ROOT_B = Issuer("Root A"), Issuer("Root B")
TO_A = pem(leaf(), ROOT_A.sign(ISSUER.name, ISSUER.key.public_key(), ca=True))
TO_B = pem(leaf(), ROOT_B.sign(ISSUER.name, ISSUER.key.public_key(), ca=True))
TO_B_WHOLE = TO_B + pem(ROOT_B.certificate)
UNREADABLE = TO_B.replace(b"MII", b"AAA")
IMPOSTOR = Issuer("Root B")
TO_IMPOSTOR = pem(leaf(), IMPOSTOR.sign(ISSUER.name, ISSUER.key.public_key(), ca=True))


def der(issuer: Issuer) -> bytes:
    return issuer.certificate.public_bytes(serialization.Encoding.DER)


def fingerprint(certificate: lib.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


def test_without_a_preference_the_cas_default_is_taken() -> None:
    """It is the first, whatever it is; to say why would be noise."""
    assert x509.choose_chain([b"", TO_B], None) == x509.ChainChoice(index=0)


@pytest.mark.parametrize("preferred", ["Root B", " root b "])
@pytest.mark.parametrize(
    ("bodies", "index"),
    [([TO_A, TO_B], 1), ([TO_B, TO_A], 0), ([TO_A, TO_B, TO_B_WHOLE], 1), ([TO_A, UNREADABLE, b"", TO_B], 3)],
)
def test_a_chain_is_preferred_by_the_issuer_of_its_topmost_certificate(
    bodies: list[bytes], index: int, preferred: str
) -> None:
    """The root itself is usually left out; a chain that cannot be read costs only itself."""
    assert x509.choose_chain(bodies, preferred) == x509.ChainChoice(index=index)


@pytest.mark.parametrize("name", ["Intermediate", "Root", ""])
def test_only_the_topmost_issuer_counts(name: str) -> None:
    """Every chain has the same intermediate; a part of a name is not the name."""
    choice = x509.choose_chain([TO_A, TO_B], name)
    assert choice.index == 0
    assert choice.reason is not None


def test_a_preference_that_nothing_meets_says_what_there_is() -> None:
    """The operator corrects the name by that list, or learns that the CA has dropped the root."""
    choice = x509.choose_chain([TO_A, UNREADABLE, TO_B], "Root C")
    assert choice.index == 0
    assert choice.reason == "no chain leads to 'Root C'; what is offered leads to 'Root A', 'Root B'"
    nothing = x509.choose_chain([b"<html>"], "Root C")
    assert nothing.index == 0
    assert "nothing that can be read" in str(nothing.reason)


@pytest.mark.parametrize(
    "write", [str.lower, str.upper, lambda text: ":".join(text[i : i + 2] for i in range(0, 64, 2))]
)
def test_a_root_is_preferred_by_its_fingerprint(write: Callable[[str], str]) -> None:
    """However it is written; names of roots are used twice, fingerprints are not."""
    preferred = write(fingerprint(ROOT_B.certificate))
    bodies = [TO_A, TO_IMPOSTOR, TO_B]
    assert x509.choose_chain(bodies, preferred, [der(ROOT_A), der(ROOT_B)]).index == 2
    assert x509.choose_chain([*bodies[:2], TO_B_WHOLE], preferred).index == 2


def test_a_fingerprint_of_a_root_that_is_not_at_hand_matches_nothing() -> None:
    """Without the root nobody can tell which chain leads to it: the default, and a reason."""
    preferred = fingerprint(ROOT_B.certificate)
    for roots in ([], [der(ROOT_A)], [b"no certificate"]):
        choice = x509.choose_chain([TO_A, TO_B], preferred, roots)
        assert choice.index == 0
        assert choice.reason is not None


def test_a_fingerprint_of_the_leaf_or_of_the_middle_is_no_root() -> None:
    """Every chain has that leaf."""
    assert x509.choose_chain([TO_A, TO_B_WHOLE], fingerprint(leaf())).reason is not None
    middle = lib.load_pem_x509_certificates(TO_B_WHOLE)[1]
    assert x509.choose_chain([TO_A, TO_B_WHOLE], fingerprint(middle)).reason is not None


def test_a_name_in_no_alphabet_is_refused_and_not_our_fault() -> None:
    """X.509 libraries read names only when asked for them, and then raise."""
    issuer = Issuer("Broken name")
    broken = pem_of_broken(issuer)
    with pytest.raises(CertificateRefused) as caught:
        x509.issuer_text(lib.load_pem_x509_certificate(broken))
    assert caught.value.check == "format"
    assert x509.choose_chain([broken, TO_B], "Root B").index == 1


def pem_of_broken(issuer: Issuer) -> bytes:
    """A certificate whose names say that they are UTF-8 and are none."""
    damaged = der(issuer).replace(b"Broken name", b"Broken \xff\xfe\xfd\xfc")
    text = base64.encodebytes(damaged).decode().replace("\n", "")
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n".encode()
