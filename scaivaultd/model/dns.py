"""What we learn from DNS: where a challenge name leads, who serves it, and what each server says.

Names are complete, in lower-case A-labels, without a trailing dot.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta


class NameServer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A name server of a zone; `error` says why it has no address."""

    name: str
    addresses: tuple[str, ...] = ()
    error: str | None = None


class Delegation(msgspec.Struct, frozen=True, kw_only=True):
    """A zone as the world sees it, and the servers it is delegated to."""

    zone: str
    servers: tuple[NameServer, ...]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Where a name leads: the CNAME targets in their order, the last of them (or the name), and its zone."""

    name: str
    chain: tuple[str, ...]
    target: str
    delegation: Delegation


Answer = Literal["complete", "partial", "absent", "refused", "not_authoritative", "failed", "unreachable", "skipped"]


class ServerVerdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one address of one name server said when it was asked for the values of a name."""

    server: Annotated[str, Meta(description="Name of the server.")]
    address: Annotated[str, Meta(description="The address that was asked, with its port where that is not 53.")]
    answer: Annotated[
        Answer,
        Meta(
            description="`complete`: it has all values; `partial`, `absent`: not all, none; `refused`, "
            "`not_authoritative`, `failed`: an answer of no use; `unreachable`: none; `skipped`: it cannot be asked "
            "from here."
        ),
    ]
    detail: Annotated[str, Meta(description="The answer in words: status, how many values, or the error.")] = ""
    serial: Annotated[int | None, Meta(description="Serial of the zone there, where it was asked for.")] = None
    age_seconds: Annotated[float, Meta(description="How long ago it was asked when this was written.")] = 0.0

    @property
    def is_clean(self) -> bool:
        """Whether it stands in nobody's way."""
        return self.answer in ("complete", "skipped")


class CaaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One CAA record (RFC 8659)."""

    flags: int
    tag: str
    value: str


class CaaSet(msgspec.Struct, frozen=True, kw_only=True):
    """The relevant CAA record set of a name: where it stands, and its records; none at all permit every CA."""

    owner: str | None
    records: tuple[CaaRecord, ...]
