"""Which version of which certificate a revocation is about: found by what a caller says, read and changed there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.acme import x509
from scaivaultd.model.errors import Conflict, FieldError, InvalidRequest, NotFound
from scaivaultd.services.documents import CERTIFICATES, VERSIONS, Versioned, version_id

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api import messages as m
    from scaivaultd.model.ids import CertificateId
    from scaivaultd.model.resources import Certificate, CertificateVersion, Issued
    from scaivaultd.model.storage import Put
    from scaivaultd.services.ports import Store

SHOWN_MAX = 10
_SERIAL = re.compile(r"(?:0[xX])?([0-9a-fA-F]+)")


class Place(msgspec.Struct, frozen=True):
    """A version of a certificate, by name."""

    certificate_id: CertificateId
    version: int


class Target(msgspec.Struct, frozen=True):
    """A version as it is in the store; `earlier` is None for the current one."""

    certificate: Versioned[Certificate]
    earlier: Versioned[CertificateVersion] | None = None

    @property
    def version(self) -> Issued:
        """What the CA issued."""
        return self.certificate.value if self.earlier is None else self.earlier.value

    @property
    def is_current(self) -> bool:
        """Whether no later version has come."""
        return self.earlier is None

    def put(self, **changes: Any) -> Put:
        """The change to the document of this version, whichever of the two it is."""
        if self.earlier is None:
            current = self.certificate
            return CERTIFICATES.put(msgspec.structs.replace(current.value, **changes), current.revision)
        return VERSIONS.put(msgspec.structs.replace(self.earlier.value, **changes), self.earlier.revision)


async def place_of(store: Store, log: FilteringBoundLogger, request: m.RevokeCertificate) -> Place:
    """What a caller means.

    Raises:
        InvalidRequest: neither or both ways to name it, or a serial number that is none.
        NotFound: there is no such version.
        Conflict: several certificates have that serial number.
    """
    if (request.serial_number is None) == (request.certificate_id is None):
        raise invalid("/serial_number", "one_of", "give exactly one of serial_number and certificate_id")
    if request.serial_number is not None:
        if request.version is not None:
            raise invalid("/version", "not_with_serial_number", "a serial number names a version already")
        return await _by_serial(store, log, serial_of(request.serial_number))
    assert request.certificate_id is not None
    current = (await _current(store, request.certificate_id)).value
    return Place(current.id, current.version if request.version is None else request.version)


def serial_of(text: str) -> str:
    """A serial number as callers copy it from somewhere, the way we keep it; raises InvalidRequest."""
    match = _SERIAL.fullmatch(re.sub(r"[:\s]", "", text))
    if match is None:
        raise invalid(
            "/serial_number", "not_hexadecimal", "a serial number is hexadecimal, with or without colons: 1A:2B:3C"
        )
    return x509.serial_text(int(match[1], 16))


async def _by_serial(store: Store, log: FilteringBoundLogger, serial: str) -> Place:
    # Current ones first: what becomes an earlier version in between is then found twice, and never missed.
    current = await CERTIFICATES.all(store, log, serial=serial)
    earlier = await VERSIONS.all(store, log, serial=serial)
    found: dict[Place, Issued] = {Place(each.value.id, each.value.version): each.value for each in current}
    found |= {Place(each.value.certificate_id, each.value.version): each.value for each in earlier}
    if not found:
        raise NotFound(f"no version of any certificate here has the serial number {serial}")
    if len(found) > 1:
        # A serial number is unique at its CA only (RFC 5280 section 4.1.2.2).
        several = [
            f"{place.certificate_id} version {place.version} by {version.issuer!r}" for place, version in found.items()
        ]
        more = f" and {len(several) - SHOWN_MAX} more" if len(several) > SHOWN_MAX else ""
        raise Conflict(
            f"the serial number {serial} is ambiguous: {', '.join(several[:SHOWN_MAX])}{more} have it; "
            "name one by certificate_id and version"
        )
    return next(iter(found))


async def load(store: Store, place: Place) -> Target:
    """The version as it is now; raises NotFound."""
    # The certificate first: a version that is not its current one any more was moved by an earlier commit.
    certificate = await _current(store, place.certificate_id)
    if place.version == certificate.value.version:
        return Target(certificate)
    earlier = await VERSIONS.get(store, version_id(place.certificate_id, place.version))
    if earlier is None:
        raise NotFound(
            f"{place.certificate_id} has no version {place.version}; its current one is {certificate.value.version}"
        )
    return Target(certificate, earlier)


async def _current(store: Store, certificate_id: str) -> Versioned[Certificate]:
    certificate = await CERTIFICATES.get(store, certificate_id)
    if certificate is None:
        raise NotFound(f"there is no certificate {certificate_id[:100]!r}")
    return certificate


def invalid(pointer: str, code: str, detail: str) -> InvalidRequest:
    """The error about one member of a request."""
    return InvalidRequest(detail, [FieldError(pointer=pointer, code=code, detail=detail)])
