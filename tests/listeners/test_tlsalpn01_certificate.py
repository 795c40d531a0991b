"""The challenge certificate, byte by byte where the RFC says so."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from scaivaultd.listeners.tlsalpn01_certificate import (
    challenge_certificate,
    challenge_context,
    normal_identifier,
    server_name_for,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY_AUTHORIZATION = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("a.test", x509.DNSName("a.test")),
        ("192.0.2.1", x509.IPAddress(ipaddress.ip_address("192.0.2.1"))),
        ("2001:db8::1", x509.IPAddress(ipaddress.ip_address("2001:db8::1"))),
    ],
)
def test_the_certificate_is_what_rfc_8737_section_3_wants(identifier: str, name: x509.GeneralName) -> None:
    """A validator compares exactly this, and refuses any other name beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = challenge_certificate(identifier, KEY_AUTHORIZATION, key, NOW)
    digest = hashlib.sha256(KEY_AUTHORIZATION.encode()).digest()
    assert list(certificate.extensions) == [
        x509.Extension(x509.OID_SUBJECT_ALTERNATIVE_NAME, True, x509.SubjectAlternativeName([name])),
        x509.Extension(ACME_IDENTIFIER, True, x509.UnrecognizedExtension(ACME_IDENTIFIER, b"\x04\x20" + digest)),
    ]
    assert certificate.issuer == certificate.subject
    assert [each.rfc4514_string() for each in certificate.subject] == ["CN=ACME challenge"]
    certificate.verify_directly_issued_by(certificate)
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("identifier", "normal", "server_name"),
    [
        ("A.Test", "a.test", "a.test"),
        ("_x.xn--bcher-kva.test", "_x.xn--bcher-kva.test", "_x.xn--bcher-kva.test"),
        ("1.2.3.4", "1.2.3.4", "4.3.2.1.in-addr.arpa"),
        (
            "2001:DB8:0::1",
            "2001:db8::1",
            "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
        ),
    ],
)
def test_addresses_are_asked_for_in_reverse(identifier: str, normal: str, server_name: str) -> None:
    """RFC 8738 section 6: a server name cannot be an address."""
    assert normal_identifier(identifier) == normal
    assert server_name_for(normal) == server_name


@pytest.mark.parametrize(
    "identifier", ["", "*.a.test", "b\u00fccher.test", "a..test", "a" * 64, "fe80::1%eth0", "a.test\n"]
)
def test_what_nobody_could_ask_for_is_refused(identifier: str) -> None:
    """Otherwise the order would wait for a validation that cannot succeed."""
    with pytest.raises(ValueError, match="neither a host name in ASCII nor an IP address"):
        normal_identifier(identifier)


def test_making_a_context_leaves_nothing_behind() -> None:
    """The key is in memory only, and the daemon makes thousands of these in a year."""
    before = sorted(os.listdir("/proc/self/fd")), sorted(Path.cwd().iterdir())  # noqa: PTH208 - names, not files
    context = challenge_context("a.test", KEY_AUTHORIZATION, NOW)
    assert (sorted(os.listdir("/proc/self/fd")), sorted(Path.cwd().iterdir())) == before  # noqa: PTH208
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 0
