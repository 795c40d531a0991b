"""How long the daemon takes to be ready with a full store, and what it then holds in memory.

    python bench/start.py [--certificates N]

Writing the store takes most of the time: about half a minute for 100,000.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

from bench.rig import Daemon, cpu_seconds, judged, resident_mib
from bench.stock import fill
from scaivaultd.demo.process import free_port

CERTIFICATES = 100_000
SETTLE_SECONDS = 3


async def main(count: int) -> None:
    """Fill a store, start the daemon on it twice, and print."""
    with tempfile.TemporaryDirectory() as name:
        daemon = Daemon(Path(name), free_port())
        # Once empty: the store and its master key belong together.
        empty = await daemon.start()
        await daemon.stop()
        began = time.perf_counter()
        await fill(daemon.state_dir / "store.db", count)
        took, size = time.perf_counter() - began, (daemon.state_dir / "store.db").stat().st_size
        print(f"empty store: {empty:.2f} s to ready; {count} certificates: {size >> 20} MiB, written in {took:.0f} s")
        await measure(daemon, "just written")
        seconds, peak = await measure(daemon, "again")
        judged("seconds to ready", seconds, 5)
        judged("RSS MiB, highest", peak, 300)


async def measure(daemon: Daemon, what: str) -> tuple[float, float]:
    """Start and stop it: seconds to ready, and the most it held in memory."""
    seconds = await daemon.start()
    at_ready, cpu = resident_mib(daemon.pid), cpu_seconds(daemon.pid)
    # What is put off until after `ready` costs memory too.
    await asyncio.sleep(SETTLE_SECONDS)
    resident, peak = resident_mib(daemon.pid), resident_mib(daemon.pid, "VmHWM")
    later = cpu_seconds(daemon.pid) - cpu
    await daemon.stop()
    print(
        f"{what}: {seconds:.2f} s to ready, {cpu:.2f} s CPU, RSS {at_ready:.0f} MiB; {SETTLE_SECONDS} s later "
        f"{later:.2f} s CPU more, RSS {resident:.0f} MiB, peak {peak:.0f}"
    )
    return seconds, peak


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--certificates", type=int, default=CERTIFICATES)
    asyncio.run(main(parser.parse_args().certificates))
