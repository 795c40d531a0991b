"""Time and chance, handed in: everything that waits, dates or draws gets these through its constructor."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how to wait."""

    def now(self) -> datetime:
        """The wall clock: aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards; only differences mean something."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; zero or less still yields to other tasks once."""
        ...


class Randomness(Protocol):
    """Chance: bytes for ids, fractions for jitter. Private keys are drawn by the crypto library itself."""

    def token_bytes(self, length: int) -> bytes:
        """Unpredictable bytes."""
        ...

    def fraction(self) -> float:
        """A number in [0, 1)."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """The wall clock: aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """The event loop's kind of time."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(max(0.0, seconds))


class SystemRandomness:
    """The operating system's randomness."""

    def token_bytes(self, length: int) -> bytes:
        """Unpredictable bytes from the kernel."""
        return secrets.token_bytes(length)

    def fraction(self) -> float:
        """A number in [0, 1)."""
        return random.SystemRandom().random()
