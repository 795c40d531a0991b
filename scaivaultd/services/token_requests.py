"""From a request to the API token it asks for, and whether whoever asks may give that much.

Nobody makes a token that may do more than its maker, but whoever may write policies: what policies say of a token by
its name counts as given, and so does a denial that the maker is under and the token would not be.
"""

from __future__ import annotations

import difflib
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.api import tokens
from scaivaultd.api.policies import ACTIONS, KEY_READ
from scaivaultd.model.access import Token, network_pattern, principal_of
from scaivaultd.model.errors import FieldError, PermissionDenied
from scaivaultd.services.policies import TENANT
from scaivaultd.services.requests import invalid, seconds_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from datetime import datetime

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.api.tokens import TokenText
    from scaivaultd.services.policies import Policies

_BEYOND = "beyond_yours"


class Rotation(msgspec.Struct, frozen=True):
    """For how long: the token from now on (None: as long as before), and the secret it has."""

    lifetime: timedelta | None
    overlap: timedelta


def token_from(
    request: am.CreateToken, text: TokenText, policies: Policies, context: RequestContext, now: datetime
) -> Token:
    """The token that a request asks for.

    Raises:
        InvalidRequest: with a pointer to the member that cannot be meant.
    """
    for place, name in enumerate(request.policies):
        if not policies.exists(name):
            raise invalid(f"/policies/{place}", "not_found", f"there is no policy {name!r}; write it first")
    return Token(
        id=text.id,
        name=request.name,
        secret_sha256=text.digest(),
        created_at=now,
        created_by=str(context.principal),
        expires_at=now + _lifetime(request.lifetime),
        tenant=TENANT,
        policies=tuple(dict.fromkeys(request.policies)),
        scopes=tuple(dict.fromkeys(_scopes(request.scopes))),
        networks=tuple(dict.fromkeys(_networks(request.networks))),
    )


def rotation_from(request: am.RotateToken) -> Rotation:
    """The terms of a rotation; raises InvalidRequest with a pointer. `0s` ends the secret there is at once."""
    is_none_at_all = isinstance(request.overlap, str) and int(request.overlap[:-1]) == 0
    overlap = timedelta() if is_none_at_all else timedelta(seconds=seconds_of(request.overlap, "/overlap"))
    if overlap > tokens.LONGEST_OVERLAP:
        detail = f"{request.overlap!r}: two secrets are good side by side for {tokens.LONGEST_OVERLAP.days}d at most"
        raise invalid("/overlap", "out_of_range", detail)
    return Rotation(None if request.lifetime is None else _lifetime(request.lifetime), overlap)


async def require_may_give(token: Token, policies: Policies, context: RequestContext, pointer: str = "") -> None:
    """Refuse to put a token into the hands of somebody who may do less than it.

    Raises:
        PermissionDenied: with a pointer to each member that goes too far, or to `pointer` instead of them all.
    """
    beyond = list(_beyond_scopes(token, context))
    if not context.permits.allows("policy.write"):
        beyond += [each async for each in _beyond_policies(token, policies, context)]
    if not beyond:
        return
    if pointer:
        detail = f"this token may do more than you: {beyond[0].detail}"
        beyond = [FieldError(pointer=pointer, code=_BEYOND, detail=detail)]
    more = f" (and {len(beyond) - 1} more, see errors)" if len(beyond) > 1 else ""
    raise PermissionDenied(f"{beyond[0].detail}{more}", beyond)


def _beyond_scopes(token: Token, context: RequestContext) -> Iterator[FieldError]:
    own = context.principal.scopes
    if not own:
        return
    if not token.scopes:
        yield _too_much("/scopes", f"you are confined to {', '.join(own)}: give scopes within them")
    for place, scope in enumerate(token.scopes):
        if not any(_covers(each, scope) for each in own):
            yield _too_much(f"/scopes/{place}", f"{scope!r} is not within your own scopes: {', '.join(own)}")


async def _beyond_policies(token: Token, policies: Policies, context: RequestContext) -> AsyncIterator[FieldError]:
    own = policies.applying(context.principal)
    given = policies.applying(principal_of(token))
    for place, name in enumerate(token.policies):
        if name not in own:
            yield _too_much(
                f"/policies/{place}", f"policy {name} does not apply to you: only `policy.write` may give it"
            )
    for name in given:
        if name not in (*own, *token.policies) and "allow" in await _effects(name, policies, context):
            yield _too_much("/name", f"policy {name} is for tokens of that name, and does not apply to you")
    for name in own:
        if name not in given and "deny" in await _effects(name, policies, context):
            yield _too_much("/policies", f"policy {name} denies you something: give the token that policy too")


async def _effects(name: str, policies: Policies, context: RequestContext) -> set[str]:
    policy = await policies.get(am.PolicyByName(name), context)
    return {rule.effect for rule in policy.rules}


def _too_much(pointer: str, detail: str) -> FieldError:
    return FieldError(pointer=pointer, code=_BEYOND, detail=detail)


def _lifetime(given: float | str) -> timedelta:
    lifetime = timedelta(seconds=seconds_of(given, "/lifetime"))
    if lifetime > tokens.LONGEST_LIFETIME:
        detail = f"{given!r}: a token lives for {tokens.LONGEST_LIFETIME.days}d at most, and is rotated then"
        raise invalid("/lifetime", "out_of_range", detail)
    return lifetime


def _networks(given: Sequence[str]) -> Iterator[str]:
    for place, text in enumerate(given):
        try:
            yield network_pattern(text)
        except ValueError as error:
            raise invalid(f"/networks/{place}", "bad_network", str(error)) from None


def _scopes(given: Sequence[str]) -> Iterator[str]:
    for place, scope in enumerate(given):
        if not any(_covers(scope, action) for action in ACTIONS):
            raise invalid(f"/scopes/{place}", "unknown_action", f"there is no action {scope!r}{_meant(scope)}")
        yield scope


def _meant(scope: str) -> str:
    if scope.lower() == "key.*":
        return f": `key.*` means nothing (did you mean {KEY_READ!r}?)"
    families = {f"{action.partition('.')[0]}.*" for action in ACTIONS if action != KEY_READ}
    near = difflib.get_close_matches(scope.lower(), sorted(ACTIONS | families), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _covers(scope: str, action: str) -> bool:
    """Whether an action, or another scope, is within a scope; as in policies, only `key.read` means itself."""
    is_of_family = scope == "*" or (scope.endswith(".*") and action.startswith(scope[:-1]))
    return scope == action or (is_of_family and action != KEY_READ)
