"""What an order needs next (RFC 8555 sections 7.1.3, 7.1.6, 7.4, 7.5.1), judged from what the CA shows now.

`next_step` looks at a `View` and names one `Step`; whoever holds the sockets takes it, refreshes
the view, and asks again. What we remember (`responses`) is a hint that keeps us from answering
twice; a fresh process with an empty memory does the right thing too. Invariants:

* finalize is asked for only in state `ready`, and after any doubt the order is read first;
* of an authorization exactly one challenge is answered, after it is in place;
* a state we do not know means: look again later. Deadlines belong to the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.acme.wire import Authorization, Challenge, Order
from scaivaultd.model.errors import Problem
from scaivaultd.model.resources import IdentifierTrouble, Trouble

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESPONSES_MAX = 4
"""How often a challenge that stays pending with an error is answered again (smallstep CAs validate in the POST)."""

SUBPROBLEMS_SHOWN = 5
"""A hundred names with a hundred subproblems each would not fit into any message."""

_UNDECIDED = ("pending", "processing")


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What the CA shows of one order.

    `authorizations` are those read so far, `settled` whether they were read after the order had
    become invalid, `responses` how often each challenge (by URL) was answered by this process; 0 means presented only.
    """

    order: Order
    challenge_type: str
    authorizations: tuple[Authorization, ...] = ()
    settled: bool = False
    responses: dict[str, int] = {}


class Read(msgspec.Struct, frozen=True):
    """Fetch these authorizations, side by side."""

    urls: tuple[str, ...]


class Prove(msgspec.Struct, frozen=True):
    """Present all of these, wait for all, then answer all."""

    challenges: tuple[tuple[Authorization, Challenge], ...]


class AnswerAgain(msgspec.Struct, frozen=True):
    """Pause, then answer these once more: the CA looked, was not convinced, and waits for another word."""

    challenges: tuple[Challenge, ...]


class PollOrder(msgspec.Struct, frozen=True):
    """Read the order again, not before the CA's Retry-After."""


class Finalize(msgspec.Struct, frozen=True):
    """Send the CSR."""


class Download(msgspec.Struct, frozen=True):
    """Fetch the certificate."""

    url: str


class GiveUp(msgspec.Struct, frozen=True):
    """The order has failed for good, and this is why."""

    trouble: Trouble


Step = Read | Prove | AnswerAgain | PollOrder | Finalize | Download | GiveUp


def next_step(view: View) -> Step:
    """The one thing to do now."""
    match view.order.status:
        case "pending":
            return _prove(view)
        case "ready":
            return Finalize()
        case "valid" if view.order.certificate is not None:
            return Download(view.order.certificate)
        case "invalid":
            return _cause(view)
        case _:
            return PollOrder()


def _prove(view: View) -> Step:
    if unread := _unread(view):
        return Read(unread)
    pending = [each for each in view.authorizations if each.status == "pending"]
    failed = [each for each in view.authorizations if _has_failed(each, view)]
    if failed:
        return GiveUp(_trouble_of(failed, view))
    if missing := [each for each in pending if _challenge(each, view.challenge_type) is None]:
        return GiveUp(_not_offered(missing, view.challenge_type))
    chosen = [(each, challenge) for each in pending if (challenge := _challenge(each, view.challenge_type))]
    if again := tuple(challenge for _, challenge in chosen if _wants_another_word(challenge, view)):
        return AnswerAgain(again)
    unanswered = tuple(
        (each, challenge)
        for each, challenge in chosen
        if challenge.status in _UNDECIDED and challenge.url not in view.responses
    )
    return Prove(unanswered) if unanswered else PollOrder()


def _unread(view: View) -> tuple[str, ...]:
    read = {each.url for each in view.authorizations}
    return tuple(url for url in dict.fromkeys(view.order.authorizations) if url not in read)


def _challenge(authorization: Authorization, challenge_type: str) -> Challenge | None:
    return next((each for each in authorization.challenges if each.type == challenge_type and each.token), None)


def _wants_another_word(challenge: Challenge, view: View) -> bool:
    return challenge.status == "pending" and challenge.error is not None and view.responses.get(challenge.url, 0) > 0


def _has_failed(authorization: Authorization, view: View) -> bool:
    if authorization.status in ("invalid", "deactivated", "expired", "revoked"):
        return True
    challenge = _challenge(authorization, view.challenge_type)
    if challenge is None or authorization.status not in _UNDECIDED:
        return False
    exhausted = _wants_another_word(challenge, view) and view.responses[challenge.url] >= RESPONSES_MAX
    return challenge.status == "invalid" or exhausted


def _cause(view: View) -> Step:
    if not view.settled and view.order.authorizations:
        return Read(view.order.authorizations)
    failed = [each for each in view.authorizations if _has_failed(each, view)]
    return GiveUp(_trouble_of(failed, view))


def _not_offered(missing: Sequence[Authorization], wanted: str) -> Trouble:
    troubles = tuple(
        IdentifierTrouble(
            identifier=_shown(each),
            challenge_type=wanted,
            type="not_offered",
            detail=f"the CA offers no {wanted} here, only {', '.join(_types(each)) or 'nothing'}",
        )
        for each in missing
    )
    return Trouble(code="challenge_failed", detail=_summary(troubles), identifiers=troubles)


def _types(authorization: Authorization) -> Iterator[str]:
    return (challenge.type for challenge in authorization.challenges)


def _trouble_of(failed: Sequence[Authorization], view: View) -> Trouble:
    error = view.order.error
    troubles = tuple(_identifier_trouble(each, view.challenge_type) for each in failed) or _from_subproblems(error)
    if troubles:
        return Trouble(code="challenge_failed", detail=_summary(troubles), acme=error, identifiers=troubles)
    if error is None:
        return Trouble(code="ca_error", detail="the CA declared the order invalid and gives no reason")
    code = "backend_rate_limited" if error.name == "rateLimited" else "ca_error"
    return Trouble(code=code, detail=f"the CA declared the order invalid: {error.name}: {error.detail}", acme=error)


def _from_subproblems(error: Problem | None) -> tuple[IdentifierTrouble, ...]:
    """Smaller CAs name the culprits only in the order's own error (RFC 8555 section 6.7.1)."""
    return tuple(
        IdentifierTrouble(
            identifier=each.identifier,
            type=each.type,
            detail=each.detail,
            subproblems=each.subproblems[:SUBPROBLEMS_SHOWN],
        )
        for each in (error.subproblems if error else ())
        if each.identifier
    )


def _identifier_trouble(authorization: Authorization, wanted: str) -> IdentifierTrouble:
    chosen = _challenge(authorization, wanted)
    blamed = [each for each in (chosen, *authorization.challenges) if each is not None and each.error is not None]
    if not blamed or blamed[0].error is None:
        return IdentifierTrouble(
            identifier=_shown(authorization),
            type=f"authorization_{authorization.status}",
            detail=f"the CA shows the authorization as {authorization.status} and gives no reason",
        )
    problem = blamed[0].error
    return IdentifierTrouble(
        identifier=_shown(authorization),
        challenge_type=blamed[0].type,
        type=problem.type,
        detail=problem.detail,
        subproblems=problem.subproblems[:SUBPROBLEMS_SHOWN],
    )


def _shown(authorization: Authorization) -> str:
    return f"*.{authorization.identifier}" if authorization.wildcard else authorization.identifier


def _summary(troubles: Sequence[IdentifierTrouble]) -> str:
    first = troubles[0]
    more = f" (and {len(troubles) - 1} more names)" if len(troubles) > 1 else ""
    return f"{first.identifier}: {first.detail}{more}"
