"""What the store says of its own seal: which master key fits it, and how far a change of that key has come.

It stands in the store in plain and holds nothing that opens anything, except to whoever has a master key already.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

SEALING_KEY = "meta/sealing"
"""Where the record lives."""


class Fit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a master key is recognised: the public name of its key encryption key, and a check value.

    `salt` is there where the master key is made from a passphrase.
    """

    kid: str
    kcv: bytes
    salt: bytes | None = None


class Rotation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A change of the master key, from its beginning on; the last one stays as a memory.

    `source` is where the new key is; `replaces_file` says that it is the file of the old one, which gets the new key
    at the end. While it goes on, `new_key` is the new master key sealed under the old: either key opens the store.
    """

    old: Fit
    source: str
    replaces_file: bool = False
    started_at: datetime
    rewrapped: int = 0
    new_key: bytes | None = None
    finished_at: datetime | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether the old master key opens the store too."""
        return self.new_key is not None


class SealingRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which key new values are sealed under, since when, and the last rotation.

    `kept` are earlier key encryption keys by their kid, each sealed under the one in use. They stay as long as there is
    a value under them, or may be one on its way into the store.
    """

    store_id: str
    kid: str
    kcv: bytes
    created_at: datetime
    salt: bytes | None = None
    rotation: Rotation | None = None
    kept: dict[str, bytes] = {}

    @property
    def fit(self) -> Fit:
        """How the key is recognised that new values are sealed under."""
        return Fit(kid=self.kid, kcv=self.kcv, salt=self.salt)
