"""The real daemon, with a store that kills the whole process just before or just after its nth commit.

Run as a program: `killing_daemon.py MOMENT NTH COUNT_FILE --config FILE`. Whether it dies or not, the
number of commits so far stands in COUNT_FILE.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaivaultd import logs
from scaivaultd.daemon import Daemon
from scaivaultd.model.storage import Change, OutboxEvent
from scaivaultd.settings import load
from scaivaultd.store.sqlite import SqliteStore


class KillingStore:
    """A `Store` that does what its inner store does, until its time has come."""

    def __init__(self, inner: SqliteStore, moment: str, nth: int, count_file: Path) -> None:
        self._inner = inner
        self._moment = moment
        self._nth = nth
        self._count_file = count_file
        self._count = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, changes: Sequence[Change], events: Sequence[OutboxEvent] = ()) -> Mapping[str, int]:
        self._count += 1
        mine = self._count
        self._count_file.write_text(str(mine))
        if (self._moment, self._nth) == ("before", mine):
            os.kill(os.getpid(), signal.SIGKILL)
        revisions = await self._inner.commit(changes, events)
        if (self._moment, self._nth) == ("after", mine):
            os.kill(os.getpid(), signal.SIGKILL)
        return revisions


async def main() -> None:
    moment, nth, count_file, _, config = sys.argv[1:]
    daemon = Daemon(
        load(Path(config)),
        environment=os.environ,
        log=logs.configure("debug", "json"),
        wrap_store=lambda inner: KillingStore(inner, moment, int(nth), Path(count_file)),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.stop)
    await daemon.run()


if __name__ == "__main__":
    asyncio.run(main())
