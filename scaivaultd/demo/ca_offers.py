"""What a new order asks for beyond names: profile (draft-ietf-acme-profiles) and validity (RFC 8555 section 7.4)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.demo.ca_problems import Refused, malformed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.demo.ca_identifiers import Identifier
    from scaivaultd.demo.ca_state import Ledger

_BACKDATED = timedelta(minutes=5)


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for and found good; None where the CA chooses."""

    profile: str | None
    lifetime: timedelta
    not_before: datetime | None = None
    not_after: datetime | None = None


def choose(ledger: Ledger, members: dict[str, Any], identifiers: Sequence[Identifier]) -> Offer:
    """Judge `profile`, `notBefore` and `notAfter` of a newOrder payload.

    Raises:
        Refused: invalidProfile, rejectedIdentifier where the profile does not take it, or malformed.
    """
    settings = ledger.settings
    name = _profile(ledger, members)
    lifetime = settings.lifetime
    if name is not None:
        profile = settings.profiles[name]
        lifetime = profile.lifetime
        if len(identifiers) > profile.most_identifiers:
            raise _policy("malformed", f"profile {name} takes {profile.most_identifiers} identifiers")
        if not profile.takes_addresses and any(each.type == "ip" for each in identifiers):
            raise _policy("rejectedIdentifier", f"profile {name} takes no IP addresses")
    not_before, not_after = (_moment(ledger, members, each) for each in ("notBefore", "notAfter"))
    _check_validity(ledger.clock.now(), not_before, not_after, lifetime)
    return Offer(profile=name, lifetime=lifetime, not_before=not_before, not_after=not_after)


def _profile(ledger: Ledger, members: dict[str, Any]) -> str | None:
    if "profile" not in members:
        return ledger.settings.default_profile
    name = members["profile"]
    if not isinstance(name, str) or name not in ledger.settings.profiles:
        ledger.conduct.violate("profile", f"{name!r} is not on offer")
        raise Refused("invalidProfile", f"there is no profile {name!r}")
    return name


def _moment(ledger: Ledger, members: dict[str, Any], name: str) -> datetime | None:
    if name not in members:
        return None
    if not ledger.settings.honours_validity:
        raise _policy("malformed", f"this CA chooses {name} itself")
    try:
        moment = msgspec.convert(members[name], datetime)
    except msgspec.ValidationError as error:
        raise malformed(f"{name} is not an RFC 3339 time") from error
    if moment.tzinfo is None:
        raise malformed(f"{name} has no time zone")
    # Certificates tell whole seconds (RFC 5280 section 4.1.2.5).
    return moment.replace(microsecond=0)


def _check_validity(
    now: datetime, not_before: datetime | None, not_after: datetime | None, lifetime: timedelta
) -> None:
    start = not_before or now - min(_BACKDATED, lifetime / 10)
    if not_before is not None and not_before < now - _BACKDATED:
        raise _policy("malformed", "notBefore has passed")
    if not_after is not None and not_after <= max(start, now):
        raise _policy("malformed", "notAfter has passed, or comes before notBefore")
    if not_after is not None and not_after - start > lifetime:
        raise _policy("malformed", f"notAfter is more than {lifetime} after notBefore")


def _policy(name: str, detail: str) -> Refused:
    return Refused(name, detail, is_policy=True)
