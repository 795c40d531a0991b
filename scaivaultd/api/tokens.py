"""API tokens as text: made, read, and held against what is kept of them.

    scvt_Ab3dEf9h_<43 characters of secret><6 of checksum>

An id to look up by, 256 bits of secret, and the CRC-32 of all that stands before it: a mistyped or cut off token is
known as one without a look into the store, and scanners for leaked secrets can tell one from chance (`PATTERN`). A
secret of 256 random bits needs no slow hash.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import ipaddress
import re
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NoReturn

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scaivaultd.model.access import Token

TokenKind = Literal["token", "session", "bootstrap"]
Verdict = Literal["good", "unknown", "wrong", "revoked", "expired", "elsewhere"]

RANDOMNESS = 40
"""How many random bytes a token is made of."""
LIFETIME = timedelta(days=90)
LONGEST_LIFETIME = timedelta(days=365)
OVERLAP = timedelta(hours=24)
"""How long the secret before the last rotation stays good."""
LONGEST_OVERLAP = timedelta(days=7)
ANNOUNCED_DAYS = (1, 3, 14)
"""So many days before its end a token is announced to expire."""
PATTERN = r"scvt_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}"
"""What scanners for leaked secrets look for."""

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CAPITALS = _DIGITS[10:36]
_PREFIXES: Mapping[TokenKind, str] = MappingProxyType({"token": "scvt", "session": "scvs", "bootstrap": "scvb"})
_KINDS: Mapping[str, TokenKind] = MappingProxyType({prefix: kind for kind, prefix in _PREFIXES.items()})
_FORM = re.compile(r"(scv[tsb])_([0-9A-Za-z]{8})_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")
_NOBODYS = bytes(32)


class MalformedToken(ValueError):
    """A text that is no token; it does not say which text."""


class TokenText:
    """A token with its secret. It prints without it, and cannot be encoded, copied or pickled."""

    __slots__ = ("_secret", "id", "kind")

    def __init__(self, kind: TokenKind, token_id: str, secret: str) -> None:
        self.kind = kind
        self.id = token_id
        self._secret = secret

    def reveal(self) -> str:
        """The text itself, to be shown once to whoever asked for the token."""
        body = f"{_PREFIXES[self.kind]}_{self.id}_{self._secret}"
        return body + _checksum(body)

    def digest(self) -> bytes:
        """What is kept of the secret: its SHA-256."""
        return hashlib.sha256(self._secret.encode("ascii")).digest()

    def __repr__(self) -> str:
        return f"TokenText({_PREFIXES[self.kind]}_{self.id}_...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a token cannot be pickled or copied")


def make_token(randomness: bytes, kind: TokenKind = "token", *, token_id: str | None = None) -> TokenText:
    """Make a token of `RANDOMNESS` random bytes; `token_id` gives one that exists another secret.

    Raises:
        ValueError: too few random bytes, or too many.
    """
    if len(randomness) != RANDOMNESS:
        raise ValueError(f"a token is made of {RANDOMNESS} random bytes, not {len(randomness)}")
    secret = _base62(int.from_bytes(randomness[:32], "big"), 43)
    return TokenText(kind, token_id or _id_of(int.from_bytes(randomness[32:], "big")), secret)


def parse_token(text: str) -> TokenText:
    """Read a token.

    Raises:
        MalformedToken: it is none, or was not copied whole.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise MalformedToken("this is no API token: one begins with scvt_ and has 63 characters")
    if _checksum(text[:-6]) != match[4]:
        raise MalformedToken("its checksum does not fit: a character of this API token is wrong")
    return TokenText(_KINDS[match[1]], match[2], match[3])


def judge_token(presented: TokenText, kept: Token | None, now: datetime, address: str | None) -> Verdict:
    """Whether a token is good; to the caller all but `good` is the same refusal.

    `kept` is what the store has under its id, `address` where it came from; None where there is none (a UNIX socket).
    A token that is unknown takes as long as one with a wrong secret.
    """
    digest = presented.digest()
    is_current = hmac.compare_digest(digest, kept.secret_sha256 if kept is not None else _NOBODYS)
    previous = kept.previous_sha256 if kept is not None else None
    is_previous = hmac.compare_digest(digest, previous or _NOBODYS)
    if kept is None or kept.id != presented.id:
        return "unknown"
    if not is_current and not is_previous:
        return "wrong"
    if kept.revoked_at is not None:
        return "revoked"
    is_overlapping = kept.previous_until is not None and now < kept.previous_until
    if now >= kept.expires_at or not (is_current or is_overlapping):
        return "expired"
    return "good" if _is_at_home(kept, address) else "elsewhere"


def rotated(
    token: Token,
    successor: TokenText,
    now: datetime,
    *,
    lifetime: timedelta | None = None,
    overlap: timedelta = OVERLAP,
) -> Token:
    """That token with another secret; the one it had stays good for `overlap`, but never longer than it would have.

    What was its previous secret before ends at once: there are never three. It lives for `lifetime` from now on; None:
    as long as before.
    """
    expires_at = now + (token.expires_at - _begun_at(token) if lifetime is None else lifetime)
    return msgspec.structs.replace(
        token,
        secret_sha256=successor.digest(),
        previous_sha256=token.secret_sha256,
        previous_until=min(now + overlap, token.expires_at, expires_at),
        rotated_at=now,
        expires_at=expires_at,
        announced=None,
    )


def announcement_due(token: Token, now: datetime) -> int | None:
    """How many days before its end is to be announced now, if anything is; what was missed meanwhile is passed over.

    A token that lives no longer than that is not announced: whoever made it knows.
    """
    if token.revoked_at is not None or now >= token.expires_at:
        return None
    for days in ANNOUNCED_DAYS:
        moment = token.expires_at - timedelta(days=days)
        if _begun_at(token) < moment <= now:
            return days if token.announced is None or days < token.announced else None
    return None


def _begun_at(token: Token) -> datetime:
    return token.rotated_at or token.created_at


def _is_at_home(token: Token, address: str | None) -> bool:
    if not token.networks:
        return True
    if address is None:
        return False
    try:
        at = ipaddress.ip_address(address)
    except ValueError:
        return False
    # A socket for both families shows IPv4 callers so.
    if isinstance(at, ipaddress.IPv6Address) and at.ipv4_mapped is not None:
        at = at.ipv4_mapped
    return any(at in ipaddress.ip_network(each) for each in token.networks)


def _checksum(text: str) -> str:
    return _base62(binascii.crc32(text.encode("ascii")), 6)


def _id_of(number: int) -> str:
    # A capital first: an id is then never a token's name (`model/access.py`), and policies may speak of both.
    number, first = divmod(number, len(_CAPITALS))
    return _CAPITALS[first] + _base62(number % 62**7, 7)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))
