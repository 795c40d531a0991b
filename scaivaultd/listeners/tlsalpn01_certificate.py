"""The certificate that answers a tls-alpn-01 challenge (RFC 8737 section 3), and the TLS that shows it."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import ssl
from datetime import timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from scaivaultd.listeners.tlsalpn01_hello import ACME_TLS_1

if TYPE_CHECKING:
    from datetime import datetime

_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING_OF_32 = b"\x04\x20"
# The issuer of a certificate has a name (RFC 5280 section 4.1.2.4), and a self-signed one's subject is its issuer.
# Java does not even parse a certificate without. It must not look like a host: the SAN is to be the only one.
_SUBJECT = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ACME challenge")])
# Validators do not look at it; wide enough for a host whose clock is wrong.
_BEFORE = timedelta(days=1)
_AFTER = timedelta(days=30)
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


def normal_identifier(identifier: str) -> str:
    """The one spelling of a name or address.

    Raises:
        ValueError: no TLS client can ask for such a name.
    """
    address = _address(identifier)
    if address is not None:
        return str(address)
    if not _DNS_NAME.fullmatch(identifier):
        raise ValueError(f"{identifier!r} is neither a host name in ASCII nor an IP address")
    return identifier.lower()


def server_name_for(identifier: str) -> str:
    """What a validator asks for: the name itself, or an address in its reverse form (RFC 8738 section 6).

    Takes what `normal_identifier` gives, and so do the other functions here.
    """
    address = _address(identifier)
    return identifier if address is None else address.reverse_pointer


def challenge_context(identifier: str, key_authorization: str, now: datetime) -> ssl.SSLContext:
    """TLS that shows the challenge certificate for a name or address, and nothing else; takes under a millisecond.

    Raises:
        OSError: no descriptor or memory is left.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nobody comes back to resume: tickets would only be bytes after the handshake.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    context.set_alpn_protocols([ACME_TLS_1.decode()])
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = challenge_certificate(identifier, key_authorization, key, now)
    _load(context, key, certificate)
    return context


def challenge_certificate(
    identifier: str, key_authorization: str, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.Certificate:
    """Self-signed, with one SAN and the digest of the key authorization in a critical acmeIdentifier."""
    digest = hashlib.sha256(key_authorization.encode()).digest()
    return (
        x509.CertificateBuilder()
        .subject_name(_SUBJECT)
        .issuer_name(_SUBJECT)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + _AFTER)
        # Critical, since the subject says nothing about whom the certificate is for (RFC 5280 section 4.2.1.6).
        .add_extension(x509.SubjectAlternativeName([_general_name(identifier)]), critical=True)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, _OCTET_STRING_OF_32 + digest), critical=True)
        .sign(key, hashes.SHA256())
    )


def _general_name(identifier: str) -> x509.GeneralName:
    address = _address(identifier)
    return x509.DNSName(identifier) if address is None else x509.IPAddress(address)


def _address(identifier: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(identifier)
    except ValueError:
        return None
    # An address with a zone is one of this host's links; it stays a name, and no valid one.
    return None if "%" in identifier else address


def _load(context: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    """OpenSSL reads files only; this one exists in memory, without a name anybody could open."""
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with os.fdopen(os.memfd_create("tlsalpn01", os.MFD_CLOEXEC), "wb", buffering=0) as file:
        file.write(key_pem + certificate.public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
