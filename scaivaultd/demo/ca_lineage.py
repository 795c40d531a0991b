"""Which certificate came after which: CertIDs and `replaces` (RFC 9773 sections 4.1 and 5).

A predecessor is marked by the order that replaces it, and is free again when that order has turned invalid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from scaivaultd.demo.ca_jws import b64url, unb64url
from scaivaultd.demo.ca_problems import Refused, malformed

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.demo.ca_identifiers import Identifier
    from scaivaultd.demo.ca_jws import PublicKey
    from scaivaultd.demo.ca_state import Issued, Ledger, Order

Names = tuple[str, frozenset["Identifier"]]
"""An account's URL and a set of names."""


class Lineage:
    """Finds predecessors, judges `replaces`, and notices where it is missing."""

    def __init__(self, ledger: Ledger, current_order: Callable[[str], Order]) -> None:
        self._ledger = ledger
        self._current_order = current_order
        self._serials: dict[str, int] = {}
        self._by_names: dict[Names, list[int]] = {}
        self._names: set[frozenset[Identifier]] = set()
        self._excused: set[Names] = set()

    def add(self, issued: Issued) -> None:
        """A certificate was issued."""
        self._serials[cert_id(issued.certificate)] = issued.serial
        self._names.add(frozenset(issued.identifiers))
        self._by_names.setdefault((issued.account_url, frozenset(issued.identifiers)), []).append(issued.serial)

    def by_cert_id(self, text: str) -> Issued:
        """The certificate of a CertID in its only spelling.

        Raises:
            Refused: malformed; with 404 where it is well-formed but nobody's here.
        """
        serial = self._serials.get(text)
        if serial is not None:
            return self._ledger.issued[serial]
        _check_form(text)
        raise malformed("no certificate issued here has that CertID", status=404)

    def is_known(self, identifiers: tuple[Identifier, ...]) -> bool:
        """Whether exactly these names have been certified before, for whomever."""
        return frozenset(identifiers) in self._names

    def admit(self, value: object, account_url: str, identifiers: tuple[Identifier, ...]) -> Issued:
        """The predecessor that a new order may name.

        Raises:
            Refused: it may not; alreadyReplaced where another order does replace it.
        """
        # Whatever is wrong with `replaces`, the next order for these names may go without.
        self._excused.add((account_url, frozenset(identifiers)))
        try:
            issued = self._predecessor(value, account_url, identifiers)
        except Refused as refused:
            self._ledger.conduct.violate("replaces-wrong", str(refused))
            raise
        self._require_free(issued)
        self._excused.discard((account_url, frozenset(identifiers)))
        return issued

    def mark(self, issued: Issued, order: Order) -> None:
        """An order has been placed that replaces this certificate."""
        self._ledger.issued[issued.serial] = msgspec.structs.replace(issued, replaced_by=order.url)

    def note_key(self, order: Order, key: PublicKey) -> None:
        """An order without `replaces` is finalised: should it have had one?"""
        names = (order.account_url, frozenset(order.identifiers))
        if order.replaces is not None:
            return
        if names in self._excused:
            self._excused.discard(names)
            return
        known = [self._ledger.issued[serial] for serial in self._by_names.get(names, ())]
        left = [issued for issued in known if self._is_open(issued, order, key)]
        if left:
            self._ledger.conduct.violate("replaces-missing", f"order {order.url} follows {left[-1].serial:x}")

    def is_succeeded(self, issued: Issued) -> bool:
        """Whether the client has a certificate in its place."""
        successor = self._successor(issued)
        return successor is not None and any(
            each.url == successor.certificate_url and each.downloaded_at is not None
            for each in map(self._ledger.issued.__getitem__, self._by_names.get(_names(successor), ()))
        )

    def _predecessor(self, value: object, account_url: str, identifiers: tuple[Identifier, ...]) -> Issued:
        if not isinstance(value, str):
            raise malformed("replaces is not a string")
        issued = self.by_cert_id(value)
        if issued.account_url != account_url:
            raise Refused("unauthorized", "replaces names a certificate of another account")
        if not set(identifiers) & set(issued.identifiers):
            raise malformed("the certificate that replaces names has no identifier of this order")
        return issued

    def _require_free(self, issued: Issued) -> None:
        rival = self._successor(issued)
        if rival is None:
            return
        # A client that never came to the first order may have lost the answer that named it.
        if self._ledger.conduct.has_visited(rival.url, self._ledger.url("finalize", rival.id), *rival.authorizations):
            self._ledger.conduct.violate("second-order", f"{issued.serial:x} is being replaced by {rival.url}")
        raise Refused("alreadyReplaced", "another order replaces that certificate already")

    def _successor(self, issued: Issued) -> Order | None:
        """The order that replaces it, unless that has turned invalid."""
        if issued.replaced_by is None:
            return None
        order = self._current_order(issued.replaced_by)
        return None if order.status == "invalid" else order

    def _is_open(self, issued: Issued, order: Order, key: PublicKey) -> bool:
        """Whether the client has had it when it placed the order, and still could have named it."""
        return (
            issued.downloaded_at is not None
            and issued.downloaded_at <= order.number
            and issued.revoked_at is None
            and issued.certificate.not_valid_after_utc > order.placed_at
            and _kind(issued.certificate.public_key()) == _kind(key)
            and issued.profile == order.profile
            and self._successor(issued) is None
        )


def cert_id(certificate: x509.Certificate) -> str:
    """The CertID: authority key identifier, and serial number as the content of a DER INTEGER."""
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    serial = certificate.serial_number
    # One bit more than the number has: the sign, which makes room for the leading zero octet.
    octets = serial.to_bytes(serial.bit_length() // 8 + 1)
    return f"{b64url(authority.key_identifier or b'')}.{b64url(octets)}"


def _check_form(text: str) -> None:
    parts = text.split(".")
    if len(parts) != 2 or not all(parts):
        raise malformed("a CertID is two parts with a dot between")
    unb64url(parts[0], "the key identifier")
    serial = unb64url(parts[1], "the serial number")
    if serial[0] >= 0x80 or (len(serial) > 1 and serial[0] == 0 and serial[1] < 0x80):
        raise malformed("the serial number is not a positive DER INTEGER in its shortest form")


def _names(order: Order) -> Names:
    return order.account_url, frozenset(order.identifiers)


def _kind(key: object) -> tuple[str, int]:
    """RSA or EC, and how large: a certificate of each may stand for the same names."""
    return ("ec" if isinstance(key, ec.EllipticCurvePublicKey) else "rsa", getattr(key, "key_size", 0))
