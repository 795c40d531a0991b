"""Which state of the zones each development name server shows: the newest, an older one, or one that is held."""

from __future__ import annotations

from collections.abc import Sequence

from scaivaultd.demo.dns_zones import World
from scaivaultd.model.clock import Clock

STATES_MAX = 10_000


class Views:
    """The zones now and, while a server lags, as they were."""

    def __init__(self, clock: Clock, servers: Sequence[str]) -> None:
        """All `servers` show the newest state at first, which is empty."""
        self._clock = clock
        self._states: list[tuple[float, World]] = [(clock.monotonic(), {})]
        self._lags = dict.fromkeys(servers, 0.0)
        self._held: dict[str, World] = {}

    @property
    def current(self) -> World:
        """The newest state."""
        return self._states[-1][1]

    def commit(self, world: World) -> None:
        """Make this the newest state."""
        self._states.append((self._clock.monotonic(), world))
        self._forget()

    def seen_by(self, server: str) -> World:
        """What the server shows now; KeyError if there is no such server."""
        if server in self._held:
            return self._held[server]
        return self._states[self._last_before(self._lags[server])][1]

    def lag(self, server: str, seconds: float) -> None:
        """Let the server show changes later from now on; KeyError if there is no such server."""
        if server not in self._lags:
            raise KeyError(server)
        self._lags[server] = seconds

    def hold(self, server: str) -> None:
        """Let the server go on showing what it shows."""
        self._held[server] = self.seen_by(server)

    def release(self, server: str) -> None:
        """Undo `hold`."""
        self._held.pop(server, None)

    def _last_before(self, seconds: float) -> int:
        if not seconds:
            return len(self._states) - 1
        moment = self._clock.monotonic() - seconds
        past = [place for place, (when, _) in enumerate(self._states) if when <= moment]
        return past[-1] if past else 0

    def _forget(self) -> None:
        """Keep what a lagging server may still show, and what comes after it."""
        oldest = self._last_before(max(self._lags.values()))
        del self._states[: max(oldest, len(self._states) - STATES_MAX)]
