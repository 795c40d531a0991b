"""When a TXT value counts as visible: judged from what the name servers say, round after round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.model.errors import DnsPropagationTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from scaivaultd.model.clock import Clock
    from scaivaultd.model.dns import PropagationPolicy, Route, ServerVerdict, Visibility
    from scaivaultd.services.ports import NameServers

CLEAN_ROUNDS = 2
SETTLE_SECONDS = 0.5
"""Between a clean round and the one that confirms it: an address may stand for several machines."""
FIRST_PAUSE_SECONDS = 0.25
GROWTH = 1.6
SHOWN = 6


def is_visible(verdicts: Sequence[ServerVerdict], visibility: Visibility) -> bool:
    """Whether one round is clean by the policy. What cannot be asked from here counts neither way."""
    asked = [each for each in verdicts if each.answer != "skipped"]
    complete = [each for each in asked if each.answer == "complete"]
    if visibility == "quorum":
        return 2 * len(complete) > len(asked)
    return bool(complete) and len(complete) == len(asked)


class Propagation:
    """Waits until values are visible."""

    def __init__(self, name_servers: NameServers, clock: Clock) -> None:
        self._name_servers = name_servers
        self._clock = clock

    async def wait(
        self,
        name: str,
        route: Route | None,
        policy: PropagationPolicy,
        wanted: Callable[[], Collection[str]],
        note: Callable[[Sequence[ServerVerdict]], None],
    ) -> None:
        """Return when `name` shows all of `wanted` by the policy; `note` hears every round.

        `route` says whom to ask, for the policies that ask authoritative servers.

        Raises:
            DnsPropagationTimeout: time ran out; with the last verdicts of the servers that disagree.
        """
        if policy.visibility == "skip":
            return
        if policy.visibility == "delay":
            await self._clock.sleep(policy.delay)
            return
        started = self._clock.monotonic()
        clean, pause = 0, FIRST_PAUSE_SECONDS
        while True:
            verdicts = await self._look(name, route, policy, wanted())
            note(verdicts)
            clean = clean + 1 if is_visible(verdicts, policy.visibility) else 0
            if clean >= CLEAN_ROUNDS:
                return
            spent = self._clock.monotonic() - started
            # A first clean round is confirmed whatever the time is.
            if not clean and spent >= policy.timeout:
                raise _timeout(name, verdicts, policy, spent)
            await self._clock.sleep(SETTLE_SECONDS if clean else min(pause, max(policy.timeout - spent, 0.0)))
            pause = min(pause * GROWTH, policy.interval)

    async def _look(
        self, name: str, route: Route | None, policy: PropagationPolicy, values: Collection[str]
    ) -> Sequence[ServerVerdict]:
        if policy.visibility == "resolvers" or route is None:
            return await self._name_servers.look_at_resolvers(policy.resolvers, name, values)
        return await self._name_servers.look(route.delegation, name, values)


def _timeout(
    name: str, verdicts: Sequence[ServerVerdict], policy: PropagationPolicy, spent: float
) -> DnsPropagationTimeout:
    asked = [each for each in verdicts if each.answer != "skipped"]
    bad = [each for each in asked if each.answer != "complete"]
    said = "; ".join(f"{each.server} ({each.address}): {each.detail or each.answer}" for each in bad[:SHOWN])
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    whom = "no name server could be asked from here" if not asked else f"{len(bad)} of {len(asked)} addresses disagree"
    return DnsPropagationTimeout(
        f"{name} does not show its TXT values after {spent:.0f} s (policy {policy.visibility}): {whom}"
        f"{f': {said}{more}' if said else ''}",
        bad,
    )
