"""The lock on a backup: a passphrase, or the public key of whoever is to open it.

What is locked is the backup's file key alone, so opening takes the same time for every size. A passphrase goes through
Argon2id, whose cost stands in the lock. A recipient is an X25519 key, sealed to by HPKE in base mode (RFC 9180) with
HKDF-SHA256 and ChaCha20-Poly1305; its private half, the identity, never comes near the daemon.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import unicodedata

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

FILE_KEY_BYTES = 32

_INFO = b"scaivault/backup/v1"
_RECIPIENT, _IDENTITY = "scvr1", "scvi1"
_KEY_BYTES = 32
_CHECKSUM_BYTES = 4
_SALT_BYTES, _NONCE_BYTES = 16, 12
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
# What a stranger's file may ask of this machine.
_MEMORY_KIB_MAX, _ITERATIONS_MAX, _LANES_MAX = 1 << 20, 16, 16


class CannotOpen(Exception):
    """A backup, or a key to it, is not what it should be; the text says what to do and holds no secret."""


class PassphraseLock(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="passphrase"):
    """The file key under AES-256-GCM, by a key that Argon2id makes of the passphrase."""

    salt: bytes
    memory_kib: int = 64 << 10
    iterations: int = 3
    lanes: int = 4
    nonce: bytes
    wrapped: bytes


class RecipientLock(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="recipient"):
    """The file key sealed to a public key, with the encapsulated key in front."""

    recipient: str
    wrapped: bytes


Lock = PassphraseLock | RecipientLock


def new_identity() -> str:
    """Draw the private half of a recipient's key, as text."""
    return _text(_IDENTITY, X25519PrivateKey.generate().private_bytes_raw())


def recipient_of(identity: str) -> str:
    """The public half, as text; raises CannotOpen where `identity` is none."""
    return _text(_RECIPIENT, _private(identity).public_key().public_bytes_raw())


def check_recipient(text: str) -> None:
    """Raise CannotOpen unless a backup can be locked for this."""
    _public(text)


def lock_by_passphrase(file_key: bytes, passphrase: str) -> Lock:
    """Takes a moment and 64 MiB."""
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    lock = PassphraseLock(salt=salt, nonce=nonce, wrapped=b"")
    wrapped = AESGCM(_derived(lock, passphrase)).encrypt(nonce, file_key, _INFO)
    return msgspec.structs.replace(lock, wrapped=wrapped)


def lock_for(file_key: bytes, recipient: str) -> Lock:
    """Raises CannotOpen where `recipient` is none."""
    return RecipientLock(recipient=recipient, wrapped=_SUITE.encrypt(file_key, _public(recipient), info=_INFO))


def open_by_passphrase(lock: Lock, passphrase: str) -> bytes:
    """The file key.

    Raises:
        CannotOpen: it is another passphrase, or none is asked for.
    """
    if isinstance(lock, RecipientLock):
        raise CannotOpen(f"the backup is for {lock.recipient}: its identity file opens it (--identity), no passphrase")
    try:
        return AESGCM(_derived(lock, passphrase)).decrypt(lock.nonce, lock.wrapped, _INFO)
    except (InvalidTag, ValueError):
        raise CannotOpen("that is not the passphrase of this backup, or its header is damaged") from None


def open_by_identity(lock: Lock, identity: str) -> bytes:
    """The file key.

    Raises:
        CannotOpen: it is another identity, or none is asked for.
    """
    private = _private(identity)
    if isinstance(lock, PassphraseLock):
        raise CannotOpen("the backup is locked by a passphrase (--passphrase-file, or at the prompt), not by a key")
    try:
        return _SUITE.decrypt(lock.wrapped, private, info=_INFO)
    except (InvalidTag, ValueError):
        own = recipient_of(identity)
        detail = "its header is damaged" if own == lock.recipient else f"this identity is that of {own}"
        raise CannotOpen(f"the backup is for {lock.recipient}: {detail}") from None


def _derived(lock: PassphraseLock, passphrase: str) -> bytes:
    if lock.memory_kib > _MEMORY_KIB_MAX or lock.iterations > _ITERATIONS_MAX or lock.lanes > _LANES_MAX:
        raise CannotOpen("the backup asks for more work to open it than any of ours does: it is damaged, or not ours")
    # The same letters typed on another keyboard may be other code points.
    text = unicodedata.normalize("NFC", passphrase).encode()
    kdf = Argon2id(
        salt=lock.salt,
        length=_KEY_BYTES,
        iterations=lock.iterations,
        lanes=lock.lanes,
        memory_cost=lock.memory_kib,
    )
    return kdf.derive(text)


def _private(identity: str) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(_raw(_IDENTITY, identity, "identity (scvi1...)"))


def _public(recipient: str) -> X25519PublicKey:
    key = X25519PublicKey.from_public_bytes(_raw(_RECIPIENT, recipient, "recipient (scvr1...)"))
    try:
        X25519PrivateKey.generate().exchange(key)
    except ValueError:
        raise CannotOpen("that recipient is a point of low order, for which anybody could open the backup") from None
    return key


def _text(prefix: str, raw: bytes) -> str:
    text = base64.b32encode(raw + _checksum(prefix, raw)).decode().rstrip("=")
    return prefix + text.lower()


def _raw(prefix: str, text: str, what: str) -> bytes:
    letters = text.strip().lower()
    if not letters.startswith(prefix):
        hint = "; that is an identity, which is kept secret" if letters.startswith(_IDENTITY) else ""
        raise CannotOpen(f"this is no {what}, as `scaivaultctl backup keygen` makes it{hint}")
    body = letters.removeprefix(prefix).upper()
    try:
        raw = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError:
        raw = b""
    key, checksum = raw[:_KEY_BYTES], raw[_KEY_BYTES:]
    if len(key) != _KEY_BYTES or not secrets.compare_digest(checksum, _checksum(prefix, key)):
        raise CannotOpen(f"there is a mistake in the {what}: its checksum does not fit")
    return key


def _checksum(prefix: str, raw: bytes) -> bytes:
    return hashlib.sha256(f"scaivault backup {prefix}".encode() + raw).digest()[:_CHECKSUM_BYTES]
