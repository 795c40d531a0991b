"""How the development CA serves, fixed for its lifetime."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import msgspec


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of certificate on offer (draft-ietf-acme-profiles)."""

    description: str
    lifetime: timedelta
    """From notBefore to notAfter; from seconds to years, but within the ten years of the intermediate."""
    most_identifiers: int = 100
    takes_addresses: bool = True
    """Whether IP addresses are certified."""


class CaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The lawful choices of a CA; unlawful ones are in `Misbehaviour`."""

    lifetime: timedelta = timedelta(days=90)
    """From notBefore to notAfter of what is issued without a profile."""
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
    profiles: Mapping[str, Profile] = {}
    """What the directory offers by name; empty: `meta` has no `profiles`, and `profile` in newOrder is refused."""
    default_profile: str | None = None
    """What an order without `profile` gets, and shows; None: `lifetime`, and it shows none."""
    honours_validity: bool = False
    """Take notBefore and notAfter of newOrder within the profile's lifetime, instead of refusing them."""
    offers_key_change: bool = True
    """Without it the directory names no keyChange, and its address answers 404."""
    revocation_reasons: frozenset[int] = frozenset({0, 1, 3, 4, 5})
    """What public CAs take (RFC 5280 section 5.3.1); Let's Encrypt not even 3."""
    single_use_bindings: bool = False
    """An external account binding key makes one account only, as at Google."""
