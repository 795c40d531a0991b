"""Where the anchors of the audit log are kept: in the store, sealed, so that whoever can write the disk forges none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api.audit import GENESIS
from scaivaultd.model.access import Anchor
from scaivaultd.model.errors import Internal
from scaivaultd.services.documents import Shelf

if TYPE_CHECKING:
    from scaivaultd.model.storage import Put
    from scaivaultd.services.ports import Sealer, Store

KEPT = 100
"""So many of the newest anchors are kept: more would only tell more exactly where a chain was rewritten."""

_MISFITS_KEPT = 20
_ID = "newest"
_FIELD = "anchors"


class SealedAnchors(msgspec.Struct, frozen=True, kw_only=True):
    """The book as the store sees it."""

    sealed: bytes


AUDIT_ANCHORS: Shelf[SealedAnchors] = Shelf("audit_anchors", SealedAnchors, lambda _: _ID, lambda _: {})


class AnchorBook(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of the chain apart from its files.

    `begin` is what the oldest record follows that is to be there. `misfits` are anchors that the chain did not fit when
    the daemon started: kept for longer than others, because the proof must not go while new anchors come.
    """

    begin: Anchor = GENESIS
    anchors: tuple[Anchor, ...] = ()
    misfits: tuple[Anchor, ...] = ()

    @property
    def newest(self) -> Anchor:
        """The last anchor."""
        return self.anchors[-1] if self.anchors else self.begin

    @property
    def all(self) -> tuple[Anchor, ...]:
        """Every anchor a chain is to be compared with."""
        return (*self.anchors, *self.misfits)

    def with_anchor(self, anchor: Anchor) -> AnchorBook:
        """The book after one more."""
        return msgspec.structs.replace(self, anchors=(*self.anchors, anchor)[-KEPT:])

    def with_misfit(self, anchor: Anchor) -> AnchorBook:
        """The book after the chain was found to be another one."""
        return msgspec.structs.replace(self, misfits=(*self.misfits, anchor)[-_MISFITS_KEPT:])

    def beginning_after(self, begin: Anchor) -> AnchorBook:
        """The book once older records are deleted: anchors from before say nothing any more."""
        return AnchorBook(
            begin=begin,
            anchors=tuple(each for each in self.anchors if each.sequence > begin.sequence),
            misfits=tuple(each for each in self.misfits if each.sequence > begin.sequence),
        )


async def load(store: Store, sealer: Sealer) -> AnchorBook | None:
    """The book, or None where none was written yet.

    Raises:
        Internal: it is damaged, or was not sealed by this daemon.
        StorageUnavailable: it cannot be read.
    """
    found = await AUDIT_ANCHORS.get(store, _ID)
    if found is None:
        return None
    opened = sealer.open(found.value.sealed, AUDIT_ANCHORS.key(_ID), _FIELD)
    try:
        return msgspec.json.decode(opened, type=AnchorBook)
    except msgspec.DecodeError as error:
        raise Internal("the anchors of the audit log do not decode") from error


def put(book: AnchorBook, sealer: Sealer) -> Put:
    """The change that writes it over what is there: one daemon writes anchors, and holds them all."""
    sealed = sealer.seal(msgspec.json.encode(book), AUDIT_ANCHORS.key(_ID), _FIELD)
    return AUDIT_ANCHORS.put(SealedAnchors(sealed=sealed), None)
