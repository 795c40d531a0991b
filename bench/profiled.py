"""The daemon under cProfile: `python -m bench.profiled STATISTICS --config FILE`; watched from ready to its end.

Only the event loop's thread is seen, and seeing it makes Python code look dearer than C: good for shares, not for
absolute figures. By the wall clock: a machine that is busy with other things charges whoever was interrupted.
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import signal
import sys
from pathlib import Path

from scaivaultd import logs, settings
from scaivaultd.daemon import Daemon


async def run(statistics: str, config_file: Path) -> None:
    """Run a daemon until SIGTERM, then write its profile."""
    loaded = settings.load(config_file)
    daemon = Daemon(loaded, environment=os.environ, log=logs.configure(loaded.log.level, loaded.log.format))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, daemon.stop)
    profile = cProfile.Profile()

    async def watch() -> None:
        await daemon.ready.wait()
        profile.enable()

    watching = asyncio.create_task(watch())
    try:
        await daemon.run()
    finally:
        profile.disable()
        watching.cancel()
        profile.dump_stats(statistics)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], Path(sys.argv[3])))
