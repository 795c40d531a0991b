"""Keys that must never be certified again, known by their public half."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509 as cryptography_x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from scaivaultd.acme import x509
from scaivaultd.model.resources import CompromisedKey
from scaivaultd.services.documents import COMPROMISED_KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from scaivaultd.model.ids import CertificateId
    from scaivaultd.model.storage import Put
    from scaivaultd.services.ports import Store


COMPROMISED = (
    "the key is compromised and must never be certified again; use a fresh key (`pki.certificates.update` with another "
    "csr, or with reuse_key false)"
)


async def is_compromised(store: Store, spki_sha256: str) -> bool:
    """Whether somebody has said that this key is in wrong hands.

    Args:
        store: Where it would be written down.
        spki_sha256: As `x509.spki_sha256` makes it.
    """
    return await COMPROMISED_KEYS.get(store, spki_sha256) is not None


def spki_sha256_in(chain_pem: str) -> str:
    """That digest for the leaf of a stored chain."""
    leaf = cryptography_x509.load_pem_x509_certificate(x509.split_chain(chain_pem)[0].encode())
    return x509.spki_sha256(leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


async def marks_for(store: Store, chain_pem: str, certificate_id: CertificateId, now: datetime) -> Sequence[Put]:
    """The change that marks the key of a stored chain; none if it is marked already."""
    spki_sha256 = spki_sha256_in(chain_pem)
    if await is_compromised(store, spki_sha256):
        return ()
    return (COMPROMISED_KEYS.put(CompromisedKey(spki_sha256=spki_sha256, certificate_id=certificate_id, at=now)),)
