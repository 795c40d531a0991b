"""Entity tags and the conditions on them (RFC 9110 sections 8.8.3 and 13); opens no socket."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

_TAG = r'(?:W/)?"[\x21\x23-\x7e]*"'
_TAGS = re.compile(rf"{_TAG}(?:[ \t]*,[ \t]*{_TAG})*")


def etag_of(body: bytes) -> str:
    """A strong tag: the same bytes, and no others, have it."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What a request assumes of the resource; None: nothing."""

    if_match: frozenset[str] | None = None
    if_none_match: frozenset[str] | None = None

    def __bool__(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None

    def matches(self, etag: str | None) -> bool:
        """Whether `If-Match` holds, for the resource's tag or None where there is no such resource.

        The comparison is strong: a weak tag never matches.
        """
        return self.if_match is None or (etag is not None and ("*" in self.if_match or etag in self.if_match))

    def is_news(self, etag: str | None) -> bool:
        """Whether `If-None-Match` holds; the comparison is weak."""
        if self.if_none_match is None or etag is None:
            return True
        return "*" not in self.if_none_match and etag not in {each.removeprefix("W/") for each in self.if_none_match}


def conditions_of(if_match: Sequence[str], if_none_match: Sequence[str]) -> Conditions:
    """Read both fields.

    Raises:
        ValueError: one of them is neither `*` nor a list of tags in quotes.
    """
    return Conditions(if_match=_tags(if_match), if_none_match=_tags(if_none_match))


def _tags(fields: Sequence[str]) -> frozenset[str] | None:
    if not fields:
        return None
    text = ", ".join(fields)
    if text == "*":
        return frozenset(text)
    if not _TAGS.fullmatch(text):
        raise ValueError('If-Match and If-None-Match take `*` or entity tags in quotes, like "5f8a"')
    return frozenset(re.findall(_TAG, text))
