"""Who is at fault, and whether it passes: what an error means for the next try and for the choice of the account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import (
    WIRE_ERRORS,
    AccountUnusable,
    CaMisbehaved,
    CaRefused,
    DnsProviderError,
    PreflightFailed,
)
from scaivaultd.model.resources import FailureKind, Fault

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.model.errors import Problem, ScaivaultError
    from scaivaultd.model.resources import Trouble


_ACME_ERROR = "urn:ietf:params:acme:error:"

_ACCOUNT_REFUSED = (
    "The CA does not serve the account: see its `status` (`pki.acme.accounts.get`). One that is deactivated never "
    "comes back: register another, and give it to the certificate with `pki.certificates.update`."
)

_REMEDIES = {
    "caa": (
        "A CAA record of the name forbids this CA, account or challenge type: change the record (it may also stand at "
        "a parent name), or order from a CA that it permits."
    ),
    "rejectedIdentifier": "This CA will not certify the name: take it out of the certificate, or use another CA.",
    "userActionRequired": (
        "The CA waits for a person: visit the page in `acme.instance`, then say `pki.acme.accounts.update` with "
        "terms_of_service_agreed true, or wait: it is tried again by itself."
    ),
    "externalAccountRequired": (
        "The CA takes new accounts only with an external account binding: get one from it, and say "
        "`pki.acme.accounts.create` with the same name and `eab`."
    ),
    "accountDoesNotExist": (
        "The CA does not know the account (any more): register another, and give it to the certificate with "
        "`pki.certificates.update`."
    ),
    "invalidProfile": (
        "The CA has no such profile (any more): see `ca.profiles` of the account, and choose another with "
        "`pki.certificates.update`, or let it be `preferred` only."
    ),
}


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
        case PreflightFailed(may_pass=may_pass):
            return Cause("transient" if may_pass else "permanent", "domain")
        case AccountUnusable():
            return Cause("permanent", "ca")
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


def judged(trouble: Trouble, cause: Cause) -> Trouble:
    """The trouble with what it means, and what a person can do about it."""
    return msgspec.structs.replace(trouble, kind=cause.kind, fault=cause.fault, remedy=remedy_for(trouble))


def remedy_for(trouble: Trouble) -> str | None:
    """What a person can do; the most particular advice there is."""
    problem = trouble.acme
    if problem is not None and is_paused(problem):
        return (
            "The CA has paused these names after many failures. Repair what made them fail, follow the link in the "
            "CA's words to unpause them, then say `pki.certificates.renew`, or order again."
        )
    if trouble.code == "ca_error" and problem is not None and problem.name == "unauthorized":
        return _ACCOUNT_REFUSED
    names = {each.type.removeprefix(_ACME_ERROR) for each in trouble.identifiers} | (
        {problem.name} if problem else set()
    )
    for name, remedy in _REMEDIES.items():
        if name in names:
            return remedy
    return next((each.remedy for each in WIRE_ERRORS if each.code == trouble.code), None)


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
        case "account_unusable":
            return Cause("permanent", "ca")
        case "preflight_failed":
            return Cause("permanent", "domain")
        case "cancelled" | "invalid_request" | "unsupported_challenge" | "not_found" | "conflict":
            return Cause("permanent", "here")
        case _:
            return Cause("transient", "here")
