"""How the development CA serves, fixed for its lifetime."""

from __future__ import annotations

from datetime import timedelta

import msgspec


class CaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The lawful choices of a CA; unlawful ones are in `Misbehaviour`."""

    lifetime: timedelta = timedelta(days=90)
    """From notBefore to notAfter of what is issued."""
    order_ttl: timedelta = timedelta(days=7)
    """An order not finalised by then turns invalid."""
    authorization_ttl: timedelta = timedelta(days=30)
    """An authorization, proven or not, expires then."""
    reuse_authorizations: bool = False
    """A name proven for one order needs no proof in the account's next."""
    shuffle: bool = False
    """Identifiers, authorizations and challenges come in another sequence each time."""
    alternates: int = 0
    """Further roots, each with its own chain behind `Link rel="alternate"`."""
    orders_per_page: int = 10
    """Length of a page of an account's orders list."""
    terms_of_service: bool = True
    """Whether the directory names terms, and newAccount demands agreement to them."""
    validation_seconds: float = 10.0
    """How long a look at a challenge may take, by the event loop's time."""
