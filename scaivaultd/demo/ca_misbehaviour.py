"""What the development CA can be told to do wrong, while it runs.

Rates are drawn for every request; a script is consumed one fault per request of its resource,
before any rate is drawn. Faults "before processing" leave the state and the request's nonce
alone; those "after processing" spoil the answer to work that has been done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

WrongCertificate = Literal[
    "other_key",
    "other_names",
    "expired",
    "not_yet_valid",
    "is_ca",
    "broken_chain",
    "leaf_only",
    "self_signed",
    "no_server_auth",
    "with_private_key",
    "trailing_garbage",
    "not_pem",
    "endless",
]
"""What may be wrong with a download; `self_signed` only looks so, since nobody but the client has its key."""


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """Serve this one properly: a place holder that lets a script strike later."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Answer with a problem document; instead of processing, unless `processed`."""

    code: int
    type: str = "serverInternal"
    """An ACME error name, or a whole URI."""
    detail: str = "scripted"
    headers: Mapping[str, str] = {}
    members: Mapping[str, object] = {}
    """Further members of the problem: subproblems, algorithms, instance."""
    processed: bool = False


class Reset(msgspec.Struct, frozen=True, kw_only=True):
    """Reset the connection before processing."""


class LoseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Process, then reset the connection instead of answering."""


class Malformed(msgspec.Struct, frozen=True, kw_only=True):
    """Process, then answer with other bytes; status and headers stay."""

    body: bytes
    content_type: str = "application/json"


class Endless(msgspec.Struct, frozen=True, kw_only=True):
    """Process, then send until the client hangs up or 64 MiB have gone."""


class Hang(msgspec.Struct, frozen=True, kw_only=True):
    """Do not process and never answer; ends when the client leaves or the CA closes."""


class Redirect(msgspec.Struct, frozen=True, kw_only=True):
    """Do not process, answer 307 with this Location."""

    url: str


class Nulls(msgspec.Struct, frozen=True, kw_only=True):
    """Process, then send every optional member of the answer as null."""


class NoNonce(msgspec.Struct, frozen=True, kw_only=True):
    """Process, then answer without Replay-Nonce."""


Fault = Pass | Status | Reset | LoseAnswer | Malformed | Endless | Hang | Redirect | Nulls | NoNonce


# Not frozen, unlike all our data: tests flip these while the CA runs.
class Misbehaviour(msgspec.Struct, kw_only=True):
    """Switches of the development CA; all off by default."""

    nonce_reject_rate: float = 0.0
    """Share of good requests refused with badNonce."""
    error_500_rate: float = 0.0
    """Share of requests answered 500 before processing."""
    reset_rate: float = 0.0
    """Share of requests whose connection is reset before processing."""
    lose_answer_rate: float = 0.0
    """Share of requests processed but never answered: the connection is reset."""
    script: dict[str, list[Fault]] = msgspec.field(default_factory=dict)
    """Faults by resource name, consumed one per request."""
    outages: dict[str, Fault] = msgspec.field(default_factory=dict)
    """Faults by resource name, or `*` for all, that strike every request until taken out; a script goes first."""
    wrong_certificate: WrongCertificate | None = None
    """What is wrong with downloads; the issued certificate itself stays good."""
    certificate_404_times: int = 0
    """That many more downloads answer 404 first; counts down."""
    omit_finalize_when_polled: bool = False
    """Only the newOrder answer carries `finalize`."""
    unknown_challenge_types: bool = False
    """New authorizations also offer dns-persist-01, with members of its own and no token."""
    unknown_states: bool = False
    """Each order's first reading shows a status no RFC knows."""
    pending_with_error: bool = False
    """A failed challenge stays pending with an error, and no answer about it carries Retry-After."""
    always_valid: bool = False
    """Every validation succeeds without a look."""
    order_ready_at_once: bool = False
    """newOrder answers `ready`: its authorizations are valid from birth."""
    order_valid_at_once: bool = False
    """newOrder answers `valid`, with a certificate for a key drawn here."""
    invalid_order: bool = False
    """A finalised order turns invalid, at once or after `processing`: a compound error, one subproblem a name."""
    odd_nonces: bool = False
    """Nonces are legal characters that do not decode, or decode and encode to something else."""
    odd_tokens: bool = False
    """The same for challenge tokens."""
    validation_delay_seconds: float = 0.0
    """From the answered challenge to the CA's look."""
    processing_seconds: float = 0.0
    """How long a finalised order shows `processing`; zero answers `valid` to finalize itself."""
    processing_hangs: bool = False
    """A finalised order shows `processing` until this is off again, then ends as the other switches say."""
    retry_after_seconds: int = 1
    """What unfinished orders, authorizations and challenges ask for."""
    retry_after_form: Literal["seconds", "date", "none"] = "seconds"
    """Delta seconds, an HTTP-date by the CA's clock, or no Retry-After at all."""

    def next_fault(self, resource: str) -> Fault | None:
        """The next fault of the script, gone from it; without one, that of an outage; else None."""
        faults = self.script.get(resource)
        if faults:
            return faults.pop(0)
        return self.outages.get(resource) or self.outages.get("*")
