"""Who is at fault, and whether it passes: what an error means for the next try and for the choice of the account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import CaMisbehaved, CaRefused, DnsProviderError
from scaivaultd.model.resources import FailureKind, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.model.errors import Problem, ScaivaultError
    from scaivaultd.model.resources import Trouble


class Cause(msgspec.Struct, frozen=True):
    """What an error means for the next try.

    `kind` sets the pace: a permanent cause stays until a person acts. `fault` says who stands in
    the way: this CA or our account there, so that another account may get through; the domain (its DNS, its
    CAA records, what its hosts answer), where no CA would help; or this daemon and its request.
    """

    kind: FailureKind
    fault: Fault


def cause_of(error: ScaivaultError) -> Cause:
    """Weigh an error for the next try and for the choice of the account; unknown ones are transient."""
    match error:
        case CaMisbehaved():
            return Cause("transient", "ca")
        case CaRefused(problem=problem) if problem is not None:
            return _cause_of_refusal(problem)
        case DnsProviderError(is_final=True):
            return Cause("permanent", "domain")
        case _:
            return _cause_of_code(error.code)


def cause_of_trouble(trouble: Trouble) -> Cause:
    """The same for what an order that has failed keeps as its error."""
    if trouble.code == "challenge_failed" and trouble.identifiers:
        return _together(_cause_at_name(each.type) for each in trouble.identifiers)
    if trouble.code in ("ca_error", "backend_rate_limited") and trouble.acme is not None:
        return _cause_of_refusal(trouble.acme)
    return _cause_of_code(trouble.code)


def is_paused(problem: Problem) -> bool:
    """Whether the CA has locked names of an account until a person unlocks them on its page.

    Let's Encrypt has no problem type for it: it says `rateLimited`, without a time, and gives the link.
    """
    text = problem.detail.lower()
    return problem.name == "paused" or "/unpause" in text or "temporarily prevented from requesting" in text


def _cause_of_refusal(problem: Problem) -> Cause:
    if is_paused(problem):
        return Cause("permanent", "ca")
    if problem.name == "compound" and problem.subproblems:
        return _together(_cause_at_name(each.type) for each in problem.subproblems)
    match problem.name:
        case "rateLimited" | "badNonce" | "serverInternal" | "orderNotReady" | "alreadyReplaced":
            return Cause("transient", "ca")
        case "unauthorized" | "accountDoesNotExist" | "externalAccountRequired" | "userActionRequired":
            return Cause("permanent", "ca")
        case "badCSR" | "badPublicKey" | "badSignatureAlgorithm" | "invalidProfile" | "unsupportedIdentifier":
            return Cause("permanent", "ca")
        case "caa" | "rejectedIdentifier" | "dns" | "connection" | "tls" | "incorrectResponse":
            return _cause_at_name(problem.name)
        case _:
            return Cause("transient", "ca")


def _cause_at_name(problem_type: str) -> Cause:
    """`unauthorized` is another word here: the CA saw a wrong answer, not a wrong account."""
    match problem_type.removeprefix("urn:ietf:params:acme:error:"):
        case "caa":
            return Cause("permanent", "domain")
        case "rejectedIdentifier" | "unsupportedIdentifier" | "not_offered":
            # A refusal of this CA; another may have no objection.
            return Cause("permanent", "ca")
        case "rateLimited" | "serverInternal":
            return Cause("transient", "ca")
        case _:
            return Cause("transient", "domain")


def _together(causes: Iterable[Cause]) -> Cause:
    """An order fails with its worst name: one that stays stops it, one that no CA would prove stops it everywhere."""
    found = list(causes)
    return Cause(
        "permanent" if any(each.kind == "permanent" for each in found) else "transient",
        "domain" if any(each.fault == "domain" for each in found) else "ca",
    )


def _cause_of_code(code: str) -> Cause:
    match code:
        case "ca_error" | "ca_unavailable" | "backend_rate_limited" | "timeout":
            return Cause("transient", "ca")
        case "challenge_failed" | "dns_error" | "dns_provider_error" | "dns_propagation_timeout":
            return Cause("transient", "domain")
        case "invalid_request" | "unsupported_challenge" | "not_found" | "conflict":
            return Cause("permanent", "here")
        case _:
            return Cause("transient", "here")
