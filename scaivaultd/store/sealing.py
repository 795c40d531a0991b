"""The seal on private keys and other secrets: AES-256-GCM, a fresh data key for each value.

    master key (32 bytes, outside the store)
      `-- HKDF-SHA256, salt = store id --> key encryption key (KEK), named by its kid
            `-- wraps --> data key (DEK), used for exactly one ciphertext

A new master key then means rewrapping 60 bytes per value, and a nonce can never meet its like
under the same key. What a value is and where it lives is authenticated with it (AAD), so a
ciphertext copied to another record, field or store does not open. A record's version is not part
of that: records with keys are written once and replaced by new records.

Python cannot wipe memory: the KEK lives as long as the process, a plaintext until it is collected.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import datetime

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from scaivaultd.model.errors import Internal, StartupError

MASTER_KEY_BYTES = 32
"""What every source of a master key yields."""

_VERSION = 1
_ALGORITHM = "A256GCM"
_NONCE_BYTES = 12  # NIST SP 800-38D section 8.2
_KEK_INFO = b"scaivault/kek/v1"
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError)  # broken UTF-8 is none of msgspec's own errors


class EnvelopeSealer:
    """Seals and opens under one master key, for one store. Its repr and its attributes hold no key bytes."""

    def __init__(self, master_key: bytes, store_id: str) -> None:
        if len(master_key) != MASTER_KEY_BYTES:
            raise ValueError(f"a master key has {MASTER_KEY_BYTES} bytes, not {len(master_key)}")
        self._store_id = _word(store_id)
        kek = HKDF(SHA256(), MASTER_KEY_BYTES, salt=store_id.encode(), info=_KEK_INFO).derive(master_key)
        self._kek = AESGCM(kek)
        self._kid = hmac.digest(kek, b"kid", "sha256")[:4].hex()
        self._kcv = hmac.digest(kek, b"kcv" + store_id.encode(), "sha256")[:16]

    @classmethod
    def unlock(cls, master_key: bytes, record: bytes) -> EnvelopeSealer:
        """The sealer of an existing store, judged by its check record before any secret is touched.

        Raises:
            StartupError: the master key is another store's, or the record is damaged.
        """
        try:
            check = msgspec.msgpack.decode(record, type=_CheckRecord)
        except _UNDECODABLE as error:
            raise StartupError("the store's key check record is damaged: restore a backup of the store") from error
        sealer = cls(master_key, check.store_id)
        if not hmac.compare_digest(sealer._kcv, check.kcv):
            raise StartupError(
                f"the master key does not fit this store (store wants kid {check.kid}, got {sealer._kid}). "
                "Give back the master key this store was made with; nothing was changed."
            )
        return sealer

    @property
    def kid(self) -> str:
        """The public name of the key encryption key."""
        return self._kid

    def check_record(self, created_at: datetime) -> bytes:
        """What the store keeps so that `unlock` can tell the right master key from a wrong one. Not secret."""
        return msgspec.msgpack.encode(
            _CheckRecord(store_id=self._store_id, kid=self._kid, kcv=self._kcv, created_at=created_at)
        )

    def seal(self, plaintext: bytes, place: str, field: str) -> bytes:
        """Encrypt under a fresh data key. `place` and `field` hold no `|`."""
        aad = self._aad(place, field)
        # Drawn here and not handed in: whoever could choose a data key or nonce could break the seal.
        dek = AESGCM.generate_key(256)
        wrap_nonce, nonce = secrets.token_bytes(_NONCE_BYTES), secrets.token_bytes(_NONCE_BYTES)
        return msgspec.msgpack.encode(
            _Envelope(
                v=_VERSION,
                kid=self._kid,
                alg=_ALGORITHM,
                wn=wrap_nonce,
                wdek=self._kek.encrypt(wrap_nonce, dek, self._wrap_aad(aad)),
                n=nonce,
                ct=AESGCM(dek).encrypt(nonce, plaintext, aad),
            )
        )

    def open(self, sealed: bytes, place: str, field: str) -> bytes:
        """Decrypt what `seal` made for the same place and field.

        Raises:
            Internal: wrong place, wrong master key, or damaged data.
        """
        envelope = self._decode(sealed, place, field)
        aad = self._aad(place, field)
        try:
            dek = self._kek.decrypt(envelope.wn, envelope.wdek, self._wrap_aad(aad))
            return AESGCM(dek).decrypt(envelope.n, envelope.ct, aad)
        except (InvalidTag, ValueError) as error:
            raise Internal(f"{field} at {place} is damaged or was sealed for another place") from error

    def __repr__(self) -> str:
        return f"EnvelopeSealer(store_id={self._store_id!r}, kid={self._kid!r})"

    def _decode(self, sealed: bytes, place: str, field: str) -> _Envelope:
        try:
            envelope = msgspec.msgpack.decode(sealed, type=_Envelope)
        except _UNDECODABLE as error:
            raise Internal(f"{field} at {place} is not a sealed value") from error
        if (envelope.v, envelope.alg) != (_VERSION, _ALGORITHM):
            raise Internal(f"{field} at {place} is sealed in a way this version does not know")
        if envelope.kid != self._kid:
            raise Internal(f"{field} at {place} is sealed under master key {envelope.kid}, not {self._kid}")
        return envelope

    def _aad(self, place: str, field: str) -> bytes:
        return f"v{_VERSION}|{self._store_id}|{_word(place)}|{_word(field)}".encode()

    def _wrap_aad(self, aad: bytes) -> bytes:
        return b"dek|" + aad + b"|" + self._kid.encode()


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sealed value as stored: `wdek` is the data key wrapped with nonce `wn`, `ct` the value with nonce `n`."""

    v: int
    kid: str
    alg: str
    wn: bytes
    wdek: bytes
    n: bytes
    ct: bytes


class _CheckRecord(msgspec.Struct, frozen=True, kw_only=True):
    store_id: str
    kid: str
    kcv: bytes
    created_at: datetime


def _word(text: str) -> str:
    # `a|b` + `c` and `a` + `b|c` must not bind alike.
    if "|" in text:
        raise ValueError(f"{text!r} holds the separator '|'")
    return text
