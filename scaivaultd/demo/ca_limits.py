"""Rate limits of the development CA, counted for real or imposed on demand.

They bite at newOrder (`new_accounts` at newAccount) and read as Let's Encrypt's do, since clients learn the kind from
the text. An order that renews by `replaces` is exempt from all; one for names certified before, from the first two of
`new_orders` and `certificates_per_domain`. A registered domain is simply the last two labels of a name here.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd.demo.ca_exchange import http_date
from scaivaultd.demo.ca_problems import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scaivaultd.demo.ca_identifiers import Identifier
    from scaivaultd.demo.ca_state import Ledger

Kind = Literal["new_accounts", "new_orders", "certificates_per_domain", "certificates_per_set", "failed_authorizations"]
"""What is counted: in the whole, by account, by registered domain, by set of names, by account and name."""

_TEXTS: dict[Kind, str] = {
    "new_accounts": "too many new registrations ({allowed}) from this IP address",
    "new_orders": "too many new orders ({allowed}) from this account",
    "certificates_per_domain": 'too many certificates ({allowed}) already issued for "{key}"',
    "certificates_per_set": "too many certificates ({allowed}) already issued for this exact set of identifiers",
    "failed_authorizations": 'too many failed authorizations ({allowed}) for "{key}"',
}
_EXEMPTS_RENEWALS: tuple[Kind, ...] = ("new_orders", "certificates_per_domain")


class RateLimit(msgspec.Struct, frozen=True, kw_only=True):
    """So many in any stretch of that length; the next is refused until the oldest has fallen out."""

    allowed: int
    within: timedelta


class Limits:
    """What is spent, what is left, and who is paused. Set `rules`, `form` and `exempts_replaces` at any time."""

    def __init__(self, ledger: Ledger) -> None:
        self.rules: dict[Kind, RateLimit] = {}
        """None by default."""
        self.form: Literal["seconds", "date", "none"] = "seconds"
        """How Retry-After of a refusal is written; the text names the moment always."""
        self.exempts_replaces = True
        """Whether an order with `replaces` passes every limit."""
        self.paused: dict[str, str] = {}
        """Names for which nobody may order until a human has been at the address given."""
        self._ledger = ledger
        self._spent: dict[tuple[Kind, str], deque[datetime]] = {}
        self._imposed: dict[Kind, tuple[datetime, str | None]] = {}

    def impose(self, kind: Kind, seconds: float, *, key: str | None = None) -> None:
        """Refuse from now on for that long, whatever was spent.

        Args:
            kind: which limit to pretend.
            seconds: by the CA's clock.
            key: only this account URL, registered domain, or name. Default: everybody.
        """
        self._imposed[kind] = (self._ledger.clock.now() + timedelta(seconds=seconds), key)

    def lift(self, kind: Kind) -> None:
        """End what was imposed; no error if nothing was."""
        self._imposed.pop(kind, None)

    def new_account(self) -> None:
        """An account is about to be made."""
        self._require("new_accounts", "")
        self._spend("new_accounts", "")

    def new_order(self, account_url: str, identifiers: Sequence[Identifier], *, replaces: bool, known: bool) -> None:
        """An order is about to be placed: `known` when its very names have been certified before."""
        self._require_unpaused(identifiers)
        if replaces and self.exempts_replaces:
            return
        for kind, key in _order_keys(account_url, identifiers):
            if not (known and kind in _EXEMPTS_RENEWALS):
                self._require(kind, key)
        self._spend("new_orders", account_url)

    def issued(self, identifiers: Sequence[Identifier]) -> None:
        """A certificate was issued."""
        self._spend("certificates_per_set", _set_key(identifiers))
        for domain in _domains(identifiers):
            self._spend("certificates_per_domain", domain)

    def failed(self, account_url: str, identifier: Identifier) -> None:
        """An authorization has failed."""
        self._spend("failed_authorizations", f"{account_url} {identifier.base}")

    def _spend(self, kind: Kind, key: str) -> None:
        if kind in self.rules:
            self._spent.setdefault((kind, key), deque(maxlen=1000)).append(self._ledger.clock.now())

    def _require(self, kind: Kind, key: str) -> None:
        now = self._ledger.clock.now()
        until, only = self._imposed.get(kind, (now, None))
        shown = key.rpartition(" ")[2]
        if until > now and only in {None, key, shown}:
            raise self._refused(kind, shown, RateLimit(allowed=1, within=until - now), until)
        rule = self.rules.get(kind)
        if rule is None:
            return
        moments = self._spent.setdefault((kind, key), deque(maxlen=1000))
        while moments and moments[0] + rule.within <= now:
            moments.popleft()
        if len(moments) >= rule.allowed:
            raise self._refused(kind, shown, rule, (moments[0] if moments else now) + rule.within)

    def _refused(self, kind: Kind, key: str, rule: RateLimit, until: datetime) -> Refused:
        what = _TEXTS[kind].format(allowed=rule.allowed, key=key)
        page = f"{self._ledger.base_url}/limits#{kind}"
        detail = f"{what} in the last {_spelled(rule.within)}, retry after {until:%Y-%m-%d %H:%M:%S} UTC: see {page}"
        headers = {"Link": f'<{page}>;rel="help"', **self._retry_after(until)}
        return Refused("rateLimited", detail, headers=headers)

    def _retry_after(self, until: datetime) -> dict[str, str]:
        match self.form:
            case "none":
                return {}
            case "date":
                # A date has no fractions; rounding down would invite the client too early.
                return {"Retry-After": http_date(until + timedelta(seconds=bool(until.microsecond)))}
            case "seconds":
                return {"Retry-After": str(-(-(until - self._ledger.clock.now()) // timedelta(seconds=1)))}

    def _require_unpaused(self, identifiers: Sequence[Identifier]) -> None:
        for each in identifiers:
            if each.base in self.paused:
                self._ledger.conduct.told(("paused", each.base), f"{each.base} is paused")
                raise Refused(
                    "rateLimited",
                    f"Your account is temporarily prevented from requesting certificates for {each.base} "
                    f"and possibly others. Please visit: {self.paused[each.base]}",
                )
            self._ledger.conduct.settled(("paused", each.base))


def _order_keys(account_url: str, identifiers: Sequence[Identifier]) -> Iterator[tuple[Kind, str]]:
    yield "new_orders", account_url
    for each in identifiers:
        yield "failed_authorizations", f"{account_url} {each.base}"
    for domain in _domains(identifiers):
        yield "certificates_per_domain", domain
    yield "certificates_per_set", _set_key(identifiers)


def _domains(identifiers: Sequence[Identifier]) -> list[str]:
    return sorted({".".join(each.base.split(".")[-2:]) if each.type == "dns" else each.value for each in identifiers})


def _set_key(identifiers: Sequence[Identifier]) -> str:
    return ",".join(sorted(each.value for each in identifiers))


def _spelled(duration: timedelta) -> str:
    """As Go writes durations."""
    minutes, seconds = divmod(int(duration.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}s"
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
