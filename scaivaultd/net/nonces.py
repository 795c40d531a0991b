"""The pool of anti-replay nonces of one CA (RFC 8555 section 6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaivaultd.model.clock import Clock


class NoncePool:
    """Newest first, bounded, and forgetful: CAs let nonces die after minutes, the oldest soonest."""

    def __init__(self, clock: Clock, *, capacity: int = 100, idle_seconds: float = 240.0) -> None:
        self._clock = clock
        self._capacity = capacity
        self._idle_seconds = idle_seconds
        self._nonces: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._nonces)

    def put(self, nonce: str) -> None:
        """Keep a nonce from an answer; the oldest goes when there are too many."""
        self._nonces.append((self._clock.monotonic(), nonce))
        del self._nonces[: -self._capacity]

    def take(self) -> str | None:
        """The newest nonce, gone from the pool; None when a fresh one must be fetched."""
        if not self._nonces:
            return None
        received, nonce = self._nonces.pop()
        if self._clock.monotonic() - received <= self._idle_seconds:
            return nonce
        self._nonces.clear()
        return None

    def flush(self, before: float) -> None:
        """Forget what came before that moment (monotonic): after a fail-over of the CA all of it is stale."""
        self._nonces = [entry for entry in self._nonces if entry[0] > before]
