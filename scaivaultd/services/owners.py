"""Whose an order and its certificate are: whoever asked for it. What nobody asked for is nobody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.principals import Principal
    from scaivaultd.model.resources import Certificate


def owner_in(context: RequestContext) -> Principal | None:
    """Whose that is to be what a request makes; None for the daemon itself."""
    return None if context.principal.kind == "system" else context.principal


def shown_owner(owner: Principal | None) -> str | None:
    """An owner as callers see it."""
    return None if owner is None else str(owner)


def owned_by(owner: Principal | None, certificate: Certificate) -> Certificate:
    """The certificate as if it were somebody else's, for judging what they may do with it."""
    return msgspec.structs.replace(certificate, requested_by=owner)
