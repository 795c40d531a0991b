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


Visibility = Literal["all", "quorum", "resolvers", "delay", "skip"]


class PropagationPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """When a value counts as visible; times in seconds."""

    visibility: Visibility = "all"
    timeout: float = 300.0
    interval: float = 5.0
    resolvers: tuple[str, ...] = ()
    delay: float = 120.0
    on_failure: Literal["fail", "continue"] = "fail"


class PropagationOverride(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request wants otherwise than the provider's settings; None leaves it as it is."""

    visibility: Visibility | None = None
    timeout: float | None = None
    interval: float | None = None
    resolvers: tuple[str, ...] | None = None
    delay: float | None = None
    on_failure: Literal["fail", "continue"] | None = None

    def applied_to(self, policy: PropagationPolicy) -> PropagationPolicy:
        """The policy with what is given here."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return msgspec.structs.replace(policy, **{name: value for name, value in given.items() if value is not None})


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


class PropagationReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far the values of one record name have come."""

    record_name: Annotated[str, Meta(description="The TXT name that is written: where the CNAMEs lead.")]
    identifier: str
    chain: Annotated[tuple[str, ...], Meta(description="CNAME targets on the way from the challenge name.")] = ()
    dns_provider: Annotated[str, Meta(description="Name of the provider.")]
    zone: Annotated[str, Meta(description="The zone at the provider.")]
    policy: Visibility
    status: Annotated[
        Literal["writing", "waiting", "visible", "failed"],
        Meta(description="`visible` ends well; `failed` says that time ran out."),
    ]
    seconds: Annotated[float, Meta(description="How long it has taken, or took, to become visible.")] = 0.0
    warning: Annotated[str | None, Meta(description="What looks wrong, though it may work.")] = None
    verdicts: Annotated[tuple[ServerVerdict, ...], Meta(description="The last answer of every server.")] = ()


class CaaRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One CAA record (RFC 8659)."""

    flags: int
    tag: str
    value: str


class CaaSet(msgspec.Struct, frozen=True, kw_only=True):
    """The relevant CAA record set of a name: where it stands, and its records; none at all permit every CA."""

    owner: str | None
    records: tuple[CaaRecord, ...]
