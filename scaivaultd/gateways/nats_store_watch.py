"""Brings back a nats-server whose store has given up.

After a write that failed, most often on a full disk, nats-server takes nothing more into that stream until it is
restarted, also when there is room again, and clients only see that nobody answers. Its log says so.
"""

from __future__ import annotations

import asyncio
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock

ROOM_BYTES = 4 << 20
"""So much must be free before a restart is worth it."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0
HEALTHY_SECONDS = 60.0
_LOOK_SECONDS = 1.0

# One stream gave up, or JetStream as a whole.
_GAVE_UP = re.compile(r"(?i:critical write error: )|no space left on device|JetStream out of .*will be DISABLED")


class StoreWatch:
    """Notices that the store gave up, waits until there is room, and has the server restarted."""

    def __init__(
        self,
        directory: Path,
        restart: Callable[[], Awaitable[None]],
        *,
        room: Callable[[Path], int],
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`restart` ends the server and returns when it has said its last word; `room` tells the bytes left."""
        self._directory = directory
        self._restart = restart
        self._room = room
        self._clock = clock
        self._log = log
        self._gave_up = asyncio.Event()
        self._reason = ""

    @property
    def trouble(self) -> str | None:
        """Why nothing is stored, and what is being done about it; None while all is well."""
        if not self._gave_up.is_set():
            return None
        return (
            f"nats-server has stopped storing events ({self._reason}); it is restarted once {ROOM_BYTES >> 20} MiB are "
            f"free in {self._directory}, and no event is lost"
        )

    def hear(self, text: str) -> bool:
        """Take note of a warning or error in the server's log; whether it only says again what is known."""
        if _GAVE_UP.search(text) is None:
            return False
        if self._gave_up.is_set():
            return True
        self._reason = text
        self._gave_up.set()
        return False

    def forget(self) -> None:
        """Another server begins; what the one before said is over."""
        self._gave_up.clear()

    async def run(self) -> None:
        """Watch until cancelled."""
        pause, restarted_at = FIRST_PAUSE_SECONDS, float("-inf")
        while True:
            await self._gave_up.wait()
            if self._clock.monotonic() - restarted_at >= HEALTHY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._log.warning("nats_server.store_gave_up", reason=self._reason, needs_bytes=ROOM_BYTES)
            await self._until_there_is_room(pause)
            # It may have died meanwhile: then another runs already, or is about to.
            if self._gave_up.is_set():
                self._log.warning("nats_server.restarting", reason="there is room again; its store needs a restart")
                await self._restart()
                self.forget()
            pause, restarted_at = min(2 * pause, LONGEST_PAUSE_SECONDS), self._clock.monotonic()

    async def _until_there_is_room(self, pause: float) -> None:
        await self._clock.sleep(pause)
        while self._gave_up.is_set() and self._room(self._directory) < ROOM_BYTES:
            await self._clock.sleep(_LOOK_SECONDS)


def room(directory: Path) -> int:
    """The bytes that may still be written in a directory; 0 when nothing is known of it."""
    try:
        return bytes_left(os.statvfs(directory))
    except OSError:
        return 0


def bytes_left(found: os.statvfs_result) -> int:
    """What a file system takes; 0 when it takes no more files. Some count no files at all."""
    if found.f_files and not found.f_favail:
        return 0
    return found.f_bavail * found.f_frsize
