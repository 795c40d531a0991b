"""The seal on private keys and other secrets: AES-256-GCM, a fresh data key for each value.

    master key (32 bytes, outside the store)
      `-- HKDF-SHA256, salt = store id --> key encryption key (KEK), named by its kid
            `-- wraps --> data key (DEK), used for exactly one ciphertext

A new master key then means rewrapping 60 bytes per value, and a nonce can never meet its like
under the same key. What a value is and where it lives is authenticated with it (AAD), so a
ciphertext copied to another record, field or store does not open. A record's version is not part
of that: records with keys are written once and replaced by new records.

While the master key is changed there are two KEKs: all that is sealed is sealed under the new one, and what the old
one has sealed opens too. The store's sealing record holds the old KEK under the new one, and the new master key under
the old KEK: either master key opens the store, whatever happens on the way.

Python cannot wipe memory: the KEK lives as long as the process, a plaintext until it is collected.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import TYPE_CHECKING

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from scaivaultd.model.errors import Internal
from scaivaultd.model.sealing import Fit, Rotation, SealingRecord
from scaivaultd.store.master_key import MASTER_KEY_BYTES, NoMasterKey

if TYPE_CHECKING:
    from datetime import datetime

_VERSION = 1
_ALGORITHM = "A256GCM"
_NONCE_BYTES = 12  # NIST SP 800-38D section 8.2
_KEK_INFO = b"scaivault/kek/v1"
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError)  # broken UTF-8 is none of msgspec's own errors


class EnvelopeSealer:
    """Seals and opens for one store, under its keyring. Its repr and its attributes hold no key bytes."""

    def __init__(self, master_key: bytes, store_id: str) -> None:
        if len(master_key) != MASTER_KEY_BYTES:
            raise ValueError(f"a master key has {MASTER_KEY_BYTES} bytes, not {len(master_key)}")
        self._store_id = _word(store_id)
        self._active = _Kek.derived(master_key, store_id)
        self._keys = {self._active.kid: self._active}

    @classmethod
    def unlock(cls, master_key: bytes, record: bytes) -> EnvelopeSealer:
        """The sealer of an existing store, judged by its record before any secret is touched.

        Raises:
            NoMasterKey: the master key is another store's, an earlier one, or the record is damaged.
        """
        check = read_record(record)
        sealer = cls(master_key, check.store_id)
        rotation = check.rotation
        is_old = rotation is not None and rotation.is_under_way and sealer._active.fits(rotation.old)
        if not is_old and not sealer._active.fits(check.fit):
            raise _mismatch(sealer.kid, check)
        sealer.adopt(check)
        return sealer

    @property
    def kid(self) -> str:
        """The public name of the key encryption key that values are sealed under."""
        return self._active.kid

    @property
    def master_key(self) -> bytes:
        """The master key that values are sealed under: for a backup, which locks it away at once."""
        return self._active.origin

    def check_record(self, created_at: datetime, salt: bytes | None = None) -> bytes:
        """What the store keeps so that `unlock` can tell the right master key from a wrong one. Not secret."""
        fit = self._active.fit
        return msgspec.msgpack.encode(
            SealingRecord(store_id=self._store_id, kid=fit.kid, kcv=fit.kcv, created_at=created_at, salt=salt)
        )

    def seal(self, plaintext: bytes, place: str, field: str) -> bytes:
        """Encrypt under a fresh data key. `place` and `field` hold no `|`."""
        aad = self._aad(place, field)
        # Drawn here and not handed in: whoever could choose a data key or nonce could break the seal.
        dek = AESGCM.generate_key(256)
        wrap_nonce, nonce = secrets.token_bytes(_NONCE_BYTES), secrets.token_bytes(_NONCE_BYTES)
        kek = self._active
        return msgspec.msgpack.encode(
            _Envelope(
                v=_VERSION,
                kid=kek.kid,
                alg=_ALGORITHM,
                wn=wrap_nonce,
                wdek=kek.cipher.encrypt(wrap_nonce, dek, _wrap_aad(aad, kek.kid)),
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
            return AESGCM(self._unwrapped(envelope, aad)).decrypt(envelope.n, envelope.ct, aad)
        except (InvalidTag, ValueError) as error:
            raise _moved_or_damaged(place, field) from error

    def rewrapped(self, sealed: bytes, place: str, field: str) -> bytes:
        """The same value under the key that is in use now; itself where it is under that already.

        Raises:
            Internal: as `open`; the data key is all that is looked at.
        """
        envelope = self._decode(sealed, place, field)
        if envelope.kid == self.kid:
            return sealed
        aad = self._aad(place, field)
        try:
            dek = self._unwrapped(envelope, aad)
        except (InvalidTag, ValueError) as error:
            raise _moved_or_damaged(place, field) from error
        kek, nonce = self._active, secrets.token_bytes(_NONCE_BYTES)
        wrapped = kek.cipher.encrypt(nonce, dek, _wrap_aad(aad, kek.kid))
        return msgspec.msgpack.encode(msgspec.structs.replace(envelope, kid=kek.kid, wn=nonce, wdek=wrapped))

    def rotation_to(
        self,
        new_key: bytes,
        record: SealingRecord,
        *,
        source: str,
        replaces_file: bool,
        salt: bytes | None,
        now: datetime,
    ) -> SealingRecord:
        """The record with which a rotation begins, once it is in the store; changes nothing here.

        Raises:
            ValueError: that is the key which is in use.
        """
        old, new = self._active, _Kek.derived(new_key, self._store_id)
        if new.kid in self._keys:
            raise ValueError("the new master key is one that is in use")
        aad = _key_aad(self._store_id, new.kid)
        rotation = Rotation(
            old=record.fit,
            source=source,
            replaces_file=replaces_file,
            started_at=now,
            new_key=old.seal(new_key, aad),
        )
        return SealingRecord(
            store_id=self._store_id,
            kid=new.kid,
            kcv=new.fit.kcv,
            salt=salt,
            created_at=now,
            rotation=rotation,
            kept={kid: new.seal(each.raw, aad) for kid, each in self._keys.items()},
        )

    def adopt(self, record: SealingRecord) -> None:
        """Seal under the record's key from now on, and open what is under those that it keeps; others are forgotten.

        Raises:
            NoMasterKey: the record is damaged.
        """
        aad = _key_aad(self._store_id, record.kid)
        try:
            new = self._active
            if new.kid != record.kid:
                new = _Kek.derived(self.new_key(record), self._store_id)
            kept = [_Kek(new.open(each, aad), self._store_id) for each in record.kept.values()]
        except (InvalidTag, ValueError) as error:
            raise _damaged() from error
        if new.kid != record.kid:
            raise _damaged()
        self._active, self._keys = new, {each.kid: each for each in (*kept, new)}

    def new_key(self, record: SealingRecord) -> bytes:
        """The new master key of a rotation that is under way.

        Raises:
            NoMasterKey: the record is damaged.
        """
        rotation = record.rotation
        if rotation is None or rotation.new_key is None or rotation.old.kid not in self._keys:
            raise _damaged()
        try:
            return self._keys[rotation.old.kid].open(rotation.new_key, _key_aad(self._store_id, record.kid))
        except (InvalidTag, ValueError) as error:
            raise _damaged() from error

    def __repr__(self) -> str:
        return f"EnvelopeSealer(store_id={self._store_id!r}, kid={self.kid!r})"

    def _decode(self, sealed: bytes, place: str, field: str) -> _Envelope:
        try:
            envelope = msgspec.msgpack.decode(sealed, type=_Envelope)
        except _UNDECODABLE as error:
            raise Internal(f"{field} at {place} is not a sealed value") from error
        if (envelope.v, envelope.alg) != (_VERSION, _ALGORITHM):
            raise Internal(f"{field} at {place} is sealed in a way this version does not know")
        if envelope.kid not in self._keys:
            raise Internal(f"{field} at {place} is sealed under master key {envelope.kid}, not {self.kid}")
        return envelope

    def _unwrapped(self, envelope: _Envelope, aad: bytes) -> bytes:
        return self._keys[envelope.kid].cipher.decrypt(envelope.wn, envelope.wdek, _wrap_aad(aad, envelope.kid))

    def _aad(self, place: str, field: str) -> bytes:
        return f"v{_VERSION}|{self._store_id}|{_word(place)}|{_word(field)}".encode()


class _Kek:
    """A key encryption key. Nothing prints it, and nothing pickles it: its cipher refuses."""

    __slots__ = ("cipher", "fit", "kid", "origin", "raw")

    def __init__(self, raw: bytes, store_id: str, origin: bytes = b"") -> None:
        """`origin` is the master key it was derived from; keys that are kept have none."""
        self.raw = raw
        self.origin = origin
        self.cipher = AESGCM(raw)
        self.kid = hmac.digest(raw, b"kid", "sha256")[:4].hex()
        self.fit = Fit(kid=self.kid, kcv=hmac.digest(raw, b"kcv" + store_id.encode(), "sha256")[:16])

    @classmethod
    def derived(cls, master_key: bytes, store_id: str) -> _Kek:
        kek = HKDF(SHA256(), MASTER_KEY_BYTES, salt=store_id.encode(), info=_KEK_INFO).derive(master_key)
        return cls(kek, store_id, master_key)

    def fits(self, wanted: Fit) -> bool:
        return hmac.compare_digest(self.fit.kcv, wanted.kcv)

    def seal(self, key: bytes, aad: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self.cipher.encrypt(nonce, key, aad)

    def open(self, sealed: bytes, aad: bytes) -> bytes:
        return self.cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], aad)


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sealed value as stored: `wdek` is the data key wrapped with nonce `wn`, `ct` the value with nonce `n`."""

    v: int
    kid: str
    alg: str
    wn: bytes
    wdek: bytes
    n: bytes
    ct: bytes


def read_record(record: bytes) -> SealingRecord:
    """The sealing record of a store.

    Raises:
        NoMasterKey: it is damaged.
    """
    try:
        return msgspec.msgpack.decode(record, type=SealingRecord)
    except _UNDECODABLE as error:
        raise _damaged() from error


def marks_of(kid: str) -> tuple[bytes, bytes]:
    """What every document holds in which a value is sealed under that key, as bytes or as base64 in JSON."""
    # An envelope begins with its version and kid, whatever follows; whole groups of three are whole in base64.
    head = msgspec.msgpack.encode({"v": _VERSION, "kid": kid})[1:]
    start = bytes([0x80 | len(_Envelope.__struct_fields__)]) + head
    return head, base64.b64encode(start[: len(start) // 3 * 3])


def _mismatch(kid: str, record: SealingRecord) -> NoMasterKey:
    text = f"the master key does not fit this store (store wants kid {record.kid}, got {kid}). "
    rotation = record.rotation
    if rotation is not None and kid == rotation.old.kid:
        ended = rotation.finished_at or rotation.started_at
        text += (
            f"It was replaced at {ended:%Y-%m-%dT%H:%M:%SZ}: the new key is in {rotation.source}. "
            "Name that in [secrets] master_key; nothing was changed."
        )
    else:
        text += "Give back the master key this store was made with; nothing was changed."
    return NoMasterKey("key_mismatch", text)


def _damaged() -> NoMasterKey:
    return NoMasterKey("key_mismatch", "the store's key check record is damaged: restore a backup of the store")


def _moved_or_damaged(place: str, field: str) -> Internal:
    return Internal(f"{field} at {place} is damaged or was sealed for another place")


def _wrap_aad(aad: bytes, kid: str) -> bytes:
    return b"dek|" + aad + b"|" + kid.encode()


def _key_aad(store_id: str, new_kid: str) -> bytes:
    return f"key|v{_VERSION}|{store_id}|{new_kid}".encode()


def _word(text: str) -> str:
    # `a|b` + `c` and `a` + `b|c` must not bind alike.
    if "|" in text:
        raise ValueError(f"{text!r} holds the separator '|'")
    return text
