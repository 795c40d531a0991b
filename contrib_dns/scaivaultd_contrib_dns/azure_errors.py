"""Errors as Azure's resource manager and its token service put them, and what helps against them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from scaivaultd.plugin import Conflict, PermanentError, ProviderAuthError, ProviderError, RateLimited
from scaivaultd.plugin.http import HttpAnswer, error_by_status
from scaivaultd_contrib_dns.access_tokens import error_and_description, refused_token

ZONE_GONE_CODES = frozenset({"ParentResourceNotFound", "ResourceGroupNotFound"})
MISPLACED_CODES = ZONE_GONE_CODES | {"SubscriptionNotFound"}
LOCK_CODES = frozenset({"ScopeLocked"})
UNASSIGNED_CODES = frozenset({"AuthorizationFailed", "LinkedAuthorizationFailed"})

# Longer codes first: 7000215 begins like 70021 does.
AADSTS: Mapping[str, str] = {
    "7000215": "the client secret is wrong; store the secret's value, not its id",
    "7000222": "the client secret has expired: make a new one and store it",
    "700016": "the tenant does not know this client_id: is it the right tenant_id?",
    "700024": "the assertion is not valid now: is this host's clock right, and the federated token fresh?",
    "700027": "the certificate is not registered with the application, or is another one than its key belongs to",
    "700213": "the application has no federated credential that matches issuer, subject and audience of the token",
    "500011": "the scope does not exist in this tenant: does `environment` fit?",
    "90002": "there is no such tenant: check tenant_id and environment",
    "900023": "this is no tenant id: check tenant_id",
    "70021": "the application has no federated credential that matches issuer, subject and audience of the token",
}


class Unassigned(ProviderAuthError):
    """The identity is known, but no role lets it do this, at least not yet."""


def azure_error(answer: HttpAnswer) -> ProviderError:
    """What an answer of the resource manager that is not 2xx means."""
    code, message = code_and_message(answer)
    request_id = answer.headers.get("x-ms-request-id") or answer.headers.get("x-ms-correlation-request-id")
    detail = f"{message} [request {request_id}]" if request_id else message
    text = f"HTTP {answer.status}{f' {code}' if code else ''}: {detail}"
    if code in LOCK_CODES:
        return PermanentError(
            f"a resource lock forbids it; where only deleting is locked, keep_record_set helps ({text})", code
        )
    if answer.status in (409, 412):
        return Conflict(f"another writer is at the record set ({text})")
    if answer.status == 403 and code in UNASSIGNED_CODES:
        return Unassigned(f"a role assignment is missing, or does not act yet, which takes some minutes ({text})")
    if code == "TooManyRequests":
        return RateLimited(f"the service asks to slow down ({text})")
    return error_by_status(answer, detail, code or None)


def code_and_message(answer: HttpAnswer) -> tuple[str, str]:
    """Of an error body, nested in `error` or flat; empty when it is none."""
    body = answer.json()
    error: Any = body.get("error", body) if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("code") or ""), " ".join(str(error.get("message") or "").split())[:400]


def token_refusal(answer: HttpAnswer) -> ProviderError:
    """What the token service says no with: its words, and what helps."""
    _, description = error_and_description(answer)
    return refused_token(answer, _hint(description))


def _hint(description: str) -> str:
    found = re.search(r"AADSTS(\d+)", description)
    return AADSTS.get(found[1], "") if found else ""
