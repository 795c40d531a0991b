"""Keys the development CA does not take: compromised ones, and those of a certificate for an account."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaivaultd.demo.ca_problems import Refused

if TYPE_CHECKING:
    from scaivaultd.demo.ca_jws import PublicKey
    from scaivaultd.demo.ca_state import Ledger


def encoded(key: PublicKey) -> bytes:
    """One spelling per key."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def judge_certificate_key(ledger: Ledger, key: PublicKey) -> None:
    """Refuse a key that was revoked as compromised, and remember it as certified."""
    _refuse_compromised(ledger, key)
    ledger.certified_keys.add(encoded(key))


def judge_account_key(ledger: Ledger, key: PublicKey) -> None:
    """Refuse a key that was revoked as compromised, or was ever in a certificate (RFC 8555 section 11.1)."""
    _refuse_compromised(ledger, key)
    if encoded(key) in ledger.certified_keys:
        ledger.conduct.violate("shared-key", "an account asks for a key that is in a certificate")
        raise Refused("badPublicKey", "that key is in a certificate", is_policy=True)


def _refuse_compromised(ledger: Ledger, key: PublicKey) -> None:
    if encoded(key) in ledger.compromised_keys:
        ledger.conduct.violate("compromised-key", "a key that was revoked as compromised comes back")
        raise Refused("badPublicKey", "that key was revoked as compromised", is_policy=True)
