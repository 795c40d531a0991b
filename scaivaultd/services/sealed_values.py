"""Which documents hold sealed values, and where in them: a new master key rewraps all of these.

The key of what is not listed here is kept for ever, sealed under the new one, and the log says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from scaivaultd.services.audit_anchors import AUDIT_ANCHORS, SealedAnchors
from scaivaultd.services.documents import ACCOUNTS, KEYS, SECRETS, Shelf, digest

if TYPE_CHECKING:
    from scaivaultd.model.resources import Account, SealedKey, StoredSecret

T = TypeVar("T", bound=msgspec.Struct)

Rewrap = Callable[[bytes, str, str], bytes]
"""A sealed value, its place and its field, to the same value under the key in use."""


class SealedShelf(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """Documents of one kind that hold sealed values, and how each is rewrapped."""

    shelf: Shelf[T]
    rewrapped: Callable[[T, Rewrap], T]

    @property
    def prefix(self) -> str:
        """How the keys of these documents begin."""
        return self.shelf.key("")


def _key(key: SealedKey, rewrap: Rewrap) -> SealedKey:
    return msgspec.structs.replace(key, sealed=rewrap(key.sealed, KEYS.key(key.id), "private_key"))


def _account(account: Account, rewrap: Rewrap) -> Account:
    if account.eab is None or account.eab.sealed_hmac_key is None:
        return account
    sealed = rewrap(account.eab.sealed_hmac_key, ACCOUNTS.key(account.id), "eab_hmac_key")
    return msgspec.structs.replace(account, eab=msgspec.structs.replace(account.eab, sealed_hmac_key=sealed))


def _secret(secret: StoredSecret, rewrap: Rewrap) -> StoredSecret:
    sealed = rewrap(secret.sealed, SECRETS.key(digest(secret.path)), f"value.{secret.version}")
    return msgspec.structs.replace(secret, sealed=sealed)


def _anchors(anchors: SealedAnchors, rewrap: Rewrap) -> SealedAnchors:
    return SealedAnchors(sealed=rewrap(anchors.sealed, AUDIT_ANCHORS.key("newest"), "anchors"))


SEALED: tuple[SealedShelf[Any], ...] = (
    SealedShelf(shelf=KEYS, rewrapped=_key),
    SealedShelf(shelf=ACCOUNTS, rewrapped=_account),
    SealedShelf(shelf=SECRETS, rewrapped=_secret),
    SealedShelf(shelf=AUDIT_ANCHORS, rewrapped=_anchors),
)
