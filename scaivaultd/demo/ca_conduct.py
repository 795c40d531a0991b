"""What clients of the development CA did that a good one never does: its log of violations.

Each entry begins with a short word for its rule and a colon, so that a test can pick:

    retry-after        asked again before the last answer's Retry-After was over
    ari-retry-after    the same for renewalInfo; no answer obliges to wait for more than a day (RFC 9773 section 4.3.2)
    ari-ended          renewalInfo of a certificate that has expired, or that the client itself replaced or revoked
    second-order       `replaces` names a predecessor whose other order is alive, and the client knows that order
    replaces-missing   finalised without `replaces` though a predecessor for the same names and kind of key stands
    replaces-wrong     `replaces` is unreadable, unknown, another account's, has no name in common, or is not offered
    stale-directory    an address that has moved, used after the client was told
    compromised-key    a key that was revoked as compromised comes back
    shared-key         one key for an account and a certificate (RFC 8555 section 11.1)
    hammering          asked again within the hour after an answer that only a human can change
    nonce-reuse        a nonce came a second time
    not-ready          finalize of an order that is not ready
    profile            a profile that the directory does not name
    eab-reuse          a single-use binding came a second time
    malformed          a request that breaks the protocol in another way

The CA cannot tell its clients apart before they have signed: what an unsigned request does counts for all.
Time is monotonic here, so a wall clock that jumps accuses nobody.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Hashable
    from datetime import datetime

    from scaivaultd.demo.ca_problems import Refused
    from scaivaultd.model.clock import Clock

_MOST_VIOLATIONS = 1000
_MOST_REMEMBERED = 50_000
_LONGEST_RENEWAL_INFO_SECONDS = 86_400.0
_IN_FLIGHT_SECONDS = 1.0
"""Requests on their way when the client was told are no disobedience."""
_HUMAN_SECONDS = 3600.0
_TIMER_SECONDS = 0.01
"""Timers of event loops may fire that early."""
_VISITED = {"order", "authorization", "finalize"}
_BLAMED = {"malformed", "badCSR", "badSignatureAlgorithm", "badPublicKey"}


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What makes two requests the same one: resource and address, signer, and payload, not the nonce."""

    resource: str
    url: str
    kid: str = ""
    payload: bytes = b""


class Conduct:
    """Remembers what was said to clients, and writes down who does not heed it."""

    def __init__(self, clock: Clock) -> None:
        self.violations: list[str] = []
        self._clock = clock
        self._not_before: dict[Asked, float] = {}
        self._told: dict[Hashable, float] = {}
        self._visited: set[str] = set()

    def violate(self, rule: str, detail: str) -> None:
        """Write a violation down; there is an end to how many."""
        if len(self.violations) < _MOST_VIOLATIONS:
            self.violations.append(f"{rule}: {detail}")

    def asked(self, asked: Asked) -> None:
        """A request has come: is it too early?"""
        early = self._not_before.get(asked, 0.0) - self._clock.monotonic()
        if early > _TIMER_SECONDS:
            rule = "ari-retry-after" if asked.resource == "renewalInfo" else "retry-after"
            self.violate(rule, f"{asked.resource} {asked.url} asked {early:.2f} s too early")
        if asked.resource in _VISITED:
            self._visited.add(asked.url)

    def answered(self, asked: Asked, *, status: int, retry_after: str | None, location: str | None) -> None:
        """An answer goes out; its Retry-After is for reading what it is about, or for repeating what it refused."""
        if retry_after is None:
            return
        seconds = _seconds(retry_after, self._clock.now())
        if seconds is None:
            return
        if asked.resource == "renewalInfo":
            seconds = min(seconds, _LONGEST_RENEWAL_INFO_SECONDS)
        self._not_before[_again(asked, status, location)] = self._clock.monotonic() + seconds
        if len(self._not_before) > _MOST_REMEMBERED:
            del self._not_before[next(iter(self._not_before))]

    def refused(self, asked: Asked, refused: Refused) -> None:
        """A request was refused: is that the client's fault?"""
        # 404 is how things end and move; a client may come upon it.
        if refused.is_policy or refused.status == 404 or refused.name not in _BLAMED:
            return
        self.violate("malformed", f"{asked.resource}: {refused.name}: {refused}")

    def told(self, what: Hashable, detail: str) -> None:
        """The client hears again what only a human can change; is it within the hour?"""
        now = self._clock.monotonic()
        since = now - self._told.setdefault(what, now)
        if since >= _HUMAN_SECONDS:
            self._told[what] = now
        elif since > _IN_FLIGHT_SECONDS:
            self.violate("hammering", detail)

    def settled(self, what: Hashable) -> None:
        """The human has acted; whoever asks again may."""
        self._told.pop(what, None)

    def directory_served(self, generation: int) -> None:
        """Whoever has read this directory knows where everything is."""
        self._told.setdefault(("directory", generation), self._clock.monotonic())

    def stale(self, resource: str, generation: int) -> None:
        """An address was used that has moved: the answer says so, unless the client knew already."""
        now = self._clock.monotonic()
        if now - self._told.setdefault(("directory", generation), now) > _IN_FLIGHT_SECONDS:
            self.violate("stale-directory", f"{resource} has moved")

    def unvisited(self, *urls: str) -> None:
        """Forget that clients have been there: something new stands at these."""
        self._visited.difference_update(urls)

    def has_visited(self, *urls: str) -> bool:
        """Whether a client has been at one of these, and so has read the answer that named them."""
        return not self._visited.isdisjoint(urls)


def _again(asked: Asked, status: int, location: str | None) -> Asked:
    """The request that is to wait."""
    if status >= 300:
        return asked
    resource = "order" if location is not None else asked.resource
    return Asked(resource=resource, url=location or asked.url, kid=asked.kid)


def _seconds(retry_after: str, now: datetime) -> float | None:
    """From now, by either form; None where it is neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
