"""The development CA's look at tls-alpn-01 (RFC 8737 section 3; RFC 8738 section 6 for addresses)."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import ssl
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from scaivaultd.demo.ca_problems import Finding, problem

if TYPE_CHECKING:
    from scaivaultd.demo.ca_identifiers import Identifier

_PROTOCOL = "acme-tls/1"
_ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTET_STRING_OF_32 = b"\x04\x20"


class TlsAlpn01:
    """Connects to one port, for at most so many seconds."""

    def __init__(self, port: int, seconds: float) -> None:
        self._port = port
        self._seconds = seconds

    async def look(self, identifier: Identifier, address: str, key_authorization: str) -> Finding:
        """None if the server speaks `acme-tls/1` and shows the certificate that proves it."""
        place = f"{address}:{self._port}"
        try:
            async with asyncio.timeout(self._seconds):
                shown = await self._handshake(address, _server_name(identifier))
        except TimeoutError:
            return problem("connection", f"{place}: no TLS handshake within {self._seconds:g} s")
        except ssl.SSLError as error:
            return problem("tls", f"{place}: TLS handshake failed: {error.reason or type(error).__name__}")
        except OSError as error:
            return problem("connection", f"{place}: {error.strerror or type(error).__name__}")
        if shown.protocol != _PROTOCOL:
            return problem("unauthorized", f'Cannot negotiate ALPN protocol "{_PROTOCOL}" for tls-alpn-01 challenge')
        fault = _fault(shown.certificate_der, identifier, key_authorization)
        asked = f"Requested {identifier.value} from {place}"
        text = f"Incorrect validation certificate for tls-alpn-01 challenge. {asked}. {fault}"
        return problem("unauthorized", text) if fault else None

    async def _handshake(self, address: str, server_name: str) -> _Shown:
        _, writer = await asyncio.open_connection(address, self._port, ssl=_context(), server_hostname=server_name)
        try:
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            certificate_der = connection.getpeercert(binary_form=True)
            return _Shown(protocol=connection.selected_alpn_protocol(), certificate_der=certificate_der or b"")
        finally:
            # Aborted, not closed: a close may wait for a peer that has stopped reading.
            writer.transport.abort()


class _Shown(msgspec.Struct, frozen=True, kw_only=True):
    protocol: str | None
    certificate_der: bytes


def _context() -> ssl.SSLContext:
    """TLS 1.2 or later, the one protocol, and no question of trust: the certificate is self-signed by its nature."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([_PROTOCOL])
    return context


def _server_name(identifier: Identifier) -> str:
    """SNI holds no addresses, so their reverse names stand for them (RFC 8738 section 6)."""
    return identifier.value if identifier.type == "dns" else ipaddress.ip_address(identifier.value).reverse_pointer


def _fault(certificate_der: bytes, identifier: Identifier, key_authorization: str) -> str | None:
    """What is wrong with the certificate."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        marked = extensions.get_extension_for_oid(_ACME_IDENTIFIER)
    except x509.ExtensionNotFound as error:
        missing = "acmeIdentifier" if error.oid == _ACME_IDENTIFIER else "subjectAltName"
        return f"Received certificate without {missing} extension."
    except x509.DuplicateExtension:
        return "Received certificate with duplicate extensions."
    except (ValueError, x509.UnsupportedGeneralNameType):
        return "Received certificate that does not parse."
    if not _is_self_signed(certificate):
        return "Received certificate which is not self-signed."
    if [_normal(name) for name in names] != [_normal(_general_name(identifier))]:
        texts = ", ".join(str(name.value) for name in names)
        return f"Received certificate with unexpected identifiers: {texts}."
    return _fault_of_mark(marked, key_authorization)


def _fault_of_mark(marked: x509.Extension[x509.ExtensionType], key_authorization: str) -> str | None:
    if not marked.critical:
        return "Received certificate with acmeIdentifier extension that is not critical."
    assert isinstance(marked.value, x509.UnrecognizedExtension)
    wanted = hashlib.sha256(key_authorization.encode()).digest()
    value = marked.value.value
    if value == _OCTET_STRING_OF_32 + wanted:
        return None
    return f"Received certificate with acmeIdentifier extension value {value[:64].hex()}, expected {wanted.hex()}."


def _is_self_signed(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _general_name(identifier: Identifier) -> x509.GeneralName:
    if identifier.type == "dns":
        return x509.DNSName(identifier.value)
    return x509.IPAddress(ipaddress.ip_address(identifier.value))


def _normal(name: x509.GeneralName) -> x509.GeneralName:
    """Names are compared without regard to case (RFC 8737 section 3)."""
    return x509.DNSName(name.value.lower()) if isinstance(name, x509.DNSName) else name
