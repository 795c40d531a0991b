"""What a CA sends, read with open eyes (RFC 8555 sections 7.1 and 6.7).

CAs add members, send null for optional ones, invent states and challenge types, and shuffle
lists. Only what we cannot work without is demanded; an optional member of the wrong kind counts
as absent, an unknown word stays a word. Text that people will read is cleaned of control
characters and cut. Nothing outside this module sees a camelCase name.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.model.errors import CaMisbehaved, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXT_LIMIT = 1_000
_PROBLEM_DEPTH = 2
_SUBPROBLEM_LIMIT = 100
_JSON = msgspec.json.Decoder()


class Directory(msgspec.Struct, frozen=True, kw_only=True):
    """The CA's index of URLs (RFC 8555 section 7.1.1); what is None this CA does not offer.

    `profiles` maps the name of each advertised profile to its description.
    """

    new_nonce: str
    new_account: str
    new_order: str
    revoke_cert: str | None = None
    key_change: str | None = None
    renewal_info: str | None = None
    terms_of_service: str | None = None
    website: str | None = None
    caa_identities: tuple[str, ...] = ()
    external_account_required: bool = False
    profiles: dict[str, str] = {}


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A registration as the CA shows it; `status` is any word the CA likes, `orders` where its list of orders is."""

    status: str
    orders: str | None = None


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """One way to prove an authorization; `token` is an opaque string, absent for types without one."""

    type: str
    url: str
    status: str
    token: str | None = None
    error: Problem | None = None


class Authorization(msgspec.Struct, frozen=True, kw_only=True):
    """The proof for one identifier. `url` is where we read it from, not part of the document."""

    url: str
    status: str
    identifier: str
    wildcard: bool = False
    challenges: tuple[Challenge, ...] = ()


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a certificate as the CA shows it; `identifiers` are pairs of type and value.

    `finalize` is absent in the polled orders of at least one CA: keep the one from newOrder. `profile` and `replaces`
    echo what was asked for, where the CA heeds it.
    """

    status: str
    identifiers: frozenset[tuple[str, str]] = frozenset()
    authorizations: tuple[str, ...] = ()
    finalize: str | None = None
    certificate: str | None = None
    expires: datetime | None = None
    profile: str | None = None
    replaces: str | None = None
    error: Problem | None = None


def directory_from(body: bytes) -> Directory:
    """Read a directory.

    Raises:
        CaMisbehaved: not JSON, or one of the three URLs without which nothing works is missing.
    """
    document = _document(body, "directory")
    meta = _object(document.get("meta"))
    return Directory(
        new_nonce=_required(document, "newNonce", "directory"),
        new_account=_required(document, "newAccount", "directory"),
        new_order=_required(document, "newOrder", "directory"),
        revoke_cert=_text(document, "revokeCert"),
        key_change=_text(document, "keyChange"),
        renewal_info=_text(document, "renewalInfo"),
        terms_of_service=_text(meta, "termsOfService"),
        website=_text(meta, "website"),
        caa_identities=_texts(meta, "caaIdentities"),
        external_account_required=meta.get("externalAccountRequired") is True,
        profiles={
            clean(name): clean(text) for name, text in _object(meta.get("profiles")).items() if isinstance(text, str)
        },
    )


def account_from(body: bytes) -> Account:
    """Read an account object; raises CaMisbehaved without a status."""
    document = _document(body, "account")
    return Account(status=_required(document, "status", "account"), orders=_text(document, "orders"))


def order_urls_from(body: bytes) -> tuple[str, ...]:
    """Read one page of an account's orders list (RFC 8555 section 7.1.2.1); one server sends a bare array."""
    try:
        document = _JSON.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return ()
    return _texts({"orders": document} if isinstance(document, list) else _object(document), "orders")


def order_from(body: bytes) -> Order:
    """Read an order; raises CaMisbehaved without a status."""
    document = _document(body, "order")
    return Order(
        status=_required(document, "status", "order"),
        identifiers=_identifiers(document.get("identifiers")),
        authorizations=_texts(document, "authorizations"),
        finalize=_text(document, "finalize"),
        certificate=_text(document, "certificate"),
        expires=_moment(document, "expires"),
        profile=clean(_text(document, "profile") or "") or None,
        replaces=clean(_text(document, "replaces") or "") or None,
        error=_problem(document.get("error")),
    )


def authorization_from(body: bytes, url: str) -> Authorization:
    """Read an authorization; raises CaMisbehaved without status or identifier."""
    document = _document(body, "authorization")
    identifier = document.get("identifier")
    if not isinstance(identifier, dict):
        raise CaMisbehaved("the CA's authorization has no identifier")
    challenges = document.get("challenges")
    read = [_challenge(item) for item in challenges] if isinstance(challenges, list) else []
    return Authorization(
        url=url,
        status=_required(document, "status", "authorization"),
        identifier=_required(identifier, "value", "authorization"),
        wildcard=document.get("wildcard") is True,
        challenges=tuple(challenge for challenge in read if challenge is not None),
    )


def challenge_from(body: bytes) -> Challenge | None:
    """Read the answer to a challenge response; None when it is no challenge object (the order tells anyway)."""
    try:
        return _challenge(_JSON.decode(body))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def problem_from(body: bytes) -> Problem | None:
    """Read a problem document; None for HTML, empty, truncated or other bodies that are none."""
    try:
        return _problem(_JSON.decode(body))
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return None


def clean(text: str) -> str:
    """CA text made safe to print: control characters become spaces, length is bounded."""
    printable = "".join(character if character.isprintable() else " " for character in text[:_TEXT_LIMIT])
    return printable.strip()


def _document(body: bytes, what: str) -> Mapping[str, Any]:
    try:
        document = _JSON.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise CaMisbehaved(f"the CA's {what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CaMisbehaved(f"the CA's {what} is not a JSON object")
    return document


def _required(document: Mapping[str, Any], name: str, what: str) -> str:
    value = document.get(name)
    if not isinstance(value, str) or not value:
        raise CaMisbehaved(f"the CA's {what} has no {name}")
    return value


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    return value if isinstance(value, str) and value else None


def _texts(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = document.get(name)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _identifiers(items: object) -> frozenset[tuple[str, str]]:
    objects = [_object(item) for item in items] if isinstance(items, list) else []
    pairs = ((_text(each, "type"), _text(each, "value")) for each in objects)
    return frozenset((kind, value.lower()) for kind, value in pairs if kind and value)


def _moment(document: Mapping[str, Any], name: str) -> datetime | None:
    try:
        moment = msgspec.convert(document.get(name), datetime)
    except msgspec.ValidationError:
        return None
    return moment if moment.tzinfo is not None else None


def _challenge(document: object) -> Challenge | None:
    if not isinstance(document, dict):
        return None
    kind, url = _text(document, "type"), _text(document, "url")
    if kind is None or url is None:
        return None
    return Challenge(
        type=kind,
        url=url,
        # Some servers leave the state out of a fresh challenge: nothing has happened to it yet.
        status=_text(document, "status") or "pending",
        token=_text(document, "token"),
        error=_problem(document.get("error")),
    )


def _problem(document: object, depth: int = 0) -> Problem | None:
    if not isinstance(document, dict):
        return None
    identifier = document.get("identifier")
    return Problem(
        type=clean(_text(document, "type") or "about:blank"),
        detail=clean(_text(document, "detail") or _text(document, "title") or ""),
        status=_status(document.get("status")),
        identifier=clean(_text(identifier, "value") or "") or None if isinstance(identifier, dict) else None,
        instance=clean(_text(document, "instance") or "") or None,
        algorithms=tuple(map(clean, _texts(document, "algorithms"))),
        subproblems=_subproblems(document.get("subproblems"), depth),
    )


def _status(value: object) -> int | None:
    # `true` is an int in Python, and is sent by somebody somewhere.
    return value if isinstance(value, int) and not isinstance(value, bool) and 100 <= value <= 599 else None


def _subproblems(items: object, depth: int) -> tuple[Problem, ...]:
    if not isinstance(items, list) or depth >= _PROBLEM_DEPTH:
        return ()
    read = (_problem(item, depth + 1) for item in items[:_SUBPROBLEM_LIMIT])
    return tuple(problem for problem in read if problem is not None)
