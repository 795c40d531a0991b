"""Identifiers of our resources: a prefix that names the kind, then 26 characters that sort by age.

The tail is a ULID (48 bits of milliseconds, 80 random bits, Crockford base32 in lower case),
so a listing in key order is a listing in order of creation and a cursor stays valid for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    from scaivaultd.model.clock import Clock, Randomness

AccountId = NewType("AccountId", str)
OrderId = NewType("OrderId", str)
CertificateId = NewType("CertificateId", str)
KeyId = NewType("KeyId", str)
EventId = NewType("EventId", str)
DnsProviderId = NewType("DnsProviderId", str)
NodeId = NewType("NodeId", str)
RequestId = NewType("RequestId", str)
BulkRenewalId = NewType("BulkRenewalId", str)
RevocationId = NewType("RevocationId", str)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PAIRS = [first + second for first in _ALPHABET for second in _ALPHABET]
_SHIFTS = range(120, -1, -10)
_BYTES_AT_HAND = 320


def ulid(milliseconds: int, randomness: bytes) -> str:
    """Encode a moment (Unix milliseconds) and ten random bytes as 26 sortable characters."""
    value = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(randomness[:10], "big")
    return "".join([_PAIRS[value >> shift & 1023] for shift in _SHIFTS])


class IdMaker:
    """Makes ids of every kind from the injected clock and randomness."""

    def __init__(self, clock: Clock, randomness: Randomness) -> None:
        self._clock = clock
        self._randomness = randomness
        self._at_hand = b""

    def account(self) -> AccountId:
        """`acme_...`: an ACME account."""
        return AccountId(f"acme_{self._tail()}")

    def order(self) -> OrderId:
        """`acme_order_...`: an order."""
        return OrderId(f"acme_order_{self._tail()}")

    def certificate(self) -> CertificateId:
        """`cert_...`: a managed certificate."""
        return CertificateId(f"cert_{self._tail()}")

    def key(self) -> KeyId:
        """`key_...`: a sealed private key."""
        return KeyId(f"key_{self._tail()}")

    def dns_provider(self) -> DnsProviderId:
        """`dnsp_...`: a configured DNS provider."""
        return DnsProviderId(f"dnsp_{self._tail()}")

    def node(self) -> NodeId:
        """`node_...`: one daemon's state directory."""
        return NodeId(f"node_{self._tail()}")

    def request(self) -> RequestId:
        """`req_...`: one request, for the log and the caller."""
        return RequestId(f"req_{self._tail()}")

    def bulk_renewal(self) -> BulkRenewalId:
        """`bulk_...`: many certificates renewed at once."""
        return BulkRenewalId(f"bulk_{self._tail()}")

    def revocation(self) -> RevocationId:
        """`revocation_...`: a revocation."""
        return RevocationId(f"revocation_{self._tail()}")

    def _tail(self) -> str:
        milliseconds = int(self._clock.now().timestamp() * 1000)
        if not self._at_hand:
            # Each request has an id, and asking the kernel for so few bytes at a time would be most of its cost.
            self._at_hand = self._randomness.token_bytes(_BYTES_AT_HAND)
        chosen, self._at_hand = self._at_hand[:10], self._at_hand[10:]
        return ulid(milliseconds, chosen)
