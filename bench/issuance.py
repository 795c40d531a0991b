"""Whole issuances against Pebble: the daemon over NATS beside a bare client, lego and certbot in the same run.

    python bench/issuance.py [--quick]

The daemon's way is the whole one: NATS request in, http-01 by its own listener, durable store, event out to a
subscriber. Prints certificates a second, latency, CPU, memory and requests to the CA, then the ratios beside what they
should be, then where the time goes. Takes about three minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench import peers
from bench.rig import (
    Daemon,
    Load,
    Outcome,
    Progress,
    Stuck,
    acme_configuration,
    child_of,
    cpu_seconds,
    judged,
    many,
    resident_mib,
    thread_cpu_seconds,
)
from bench.steps import Steps, shares
from scaivaultd.demo.pebble import Pebble, is_installed
from scaivaultd.demo.process import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

PEBBLE = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
TRIES = 3
COUNTS = {1: 40, 8: 160, 32: 320, 64: 320}
PEER_COUNTS = {1: 2, 8: 8, 32: 32, 64: 64}
"""Certificates of a round for clients that are started once for each."""
CERTBOT_MOST = 32
MANY = 1000
NAMES = 50


class Stage:
    """A Pebble, and what stands in front of it; made anew when Pebble locks up."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lives = 0
        self.pebble = self._pebble()

    async def start(self) -> None:
        """Start a Pebble that has issued nothing yet."""
        await self.pebble.start()

    async def stop(self) -> None:
        """End it."""
        await self.pebble.stop()

    async def renew(self) -> None:
        """Everything anew, after a lock-up."""
        await self.stop()
        self._lives += 1
        self.pebble = self._pebble()
        await self.start()

    @property
    def folder(self) -> Path:
        """Where this life keeps its files."""
        return self._folder / f"life{self._lives}"

    def _pebble(self) -> Pebble:
        return Pebble(self.folder / "pebble", free_port(), PEBBLE)

    async def surely(self, work: Callable[[], Awaitable[T]]) -> T:
        """Repeat a round in which Pebble locks up."""
        for _ in range(TRIES):
            try:
                return await work()
            except Stuck as stuck:
                print(f"  Pebble has locked up ({stuck}): restarted, the round is repeated", flush=True)
                await self.renew()
        raise SystemExit(f"Pebble has locked up {TRIES} times in a row")


class OurStage(Stage):
    """A Pebble with a daemon, and a client of the daemon."""

    def __init__(self, folder: Path, arguments: Sequence[str] = ("-m", "scaivaultd", "serve"), level: str = "info"):
        super().__init__(folder)
        self._arguments = arguments
        self._level = level

    async def start(self) -> None:
        """Start all; one certificate is issued to warm up."""
        await super().start()
        configuration = acme_configuration(self.pebble.directory_url, self.pebble.trust_file)
        self.daemon = Daemon(
            self.folder / "ours",
            self.pebble.http01_port,
            configuration,
            log_level=self._level,
            arguments=self._arguments,
        )
        await self.daemon.start()
        self.load = await Load.connect(self.daemon.url)
        await self.load.register(self.pebble.directory_url)
        await self.load.issue("warm")

    async def stop(self) -> None:
        """End all."""
        await self.load.close()
        await self.daemon.stop()
        await super().stop()

    async def round(self, in_flight: int, count: int, names: int = 1) -> Outcome:
        """One round; raises Stuck."""
        requests, cpu = self.pebble.requests, cpu_seconds(self.daemon.pid)

        async def one(_: int) -> None:
            await self.load.issue(f"ours{in_flight}", names)

        outcome = await many(one, count, in_flight, Progress())
        outcome.cpu_seconds = cpu_seconds(self.daemon.pid) - cpu
        outcome.requests = self.pebble.requests - requests
        return outcome


class Bench:
    """One run, and what it has found."""

    def __init__(self, ours: OurStage, theirs: Stage, *, quick: bool) -> None:
        self._ours = ours
        self._theirs = theirs
        self._quick = quick
        self._levels = (1, 32) if quick else (1, 8, 32, 64)
        self.found: dict[tuple[str, int], Outcome] = {}
        self.requests_of_fifty = math.nan
        self.resident_mib = math.nan

    async def run(self) -> None:
        """All rounds; contestants alternate, so that all meet the same weather."""
        print(
            f"{'':12}{'in flight':>9}{'certs/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'CPU ms each':>13}{'requests each':>15}"
        )
        for in_flight in self._levels:
            await self._bare(in_flight)
            await self._daemon(in_flight)
            await self._command_line(peers.Lego, in_flight)
            await self._command_line(peers.Certbot, in_flight)
        await self._many_names()
        await self._memory()

    async def _bare(self, in_flight: int) -> None:
        count = COUNTS[in_flight]
        label = f"bare{in_flight}"
        outcome = await self._theirs.surely(lambda: peers.bare(self._theirs.pebble, in_flight, count, label))
        self._note("bare client", in_flight, outcome)

    async def _daemon(self, in_flight: int) -> None:
        async def work() -> Outcome:
            server = child_of(self._ours.daemon.pid, "nats-server")
            assert server is not None
            before, threads = cpu_seconds(server), thread_cpu_seconds(self._ours.daemon.pid)
            outcome = await self._ours.round(in_flight, COUNTS[in_flight])
            self._server_ms = (cpu_seconds(server) - before) / outcome.count * 1000
            after = thread_cpu_seconds(self._ours.daemon.pid)
            main = self._ours.daemon.pid
            self._loop_ms = (after[main] - threads[main]) / outcome.count * 1000
            return outcome

        self._note("scaivaultd", in_flight, await self._ours.surely(work))
        print(
            f"{'':12}of its CPU: event loop {self._loop_ms:.1f} ms; its nats-server beside it {self._server_ms:.1f} ms"
        )

    async def _command_line(self, kind: type[peers.CommandLine], in_flight: int) -> None:
        if not kind.is_installed():
            if in_flight == 1:
                print(f"{kind.name}: NOT INSTALLED, no such peer in this run (apt-get install {kind.program})")
            return
        if (self._quick or kind is peers.Certbot) and in_flight not in (1, CERTBOT_MOST):
            return

        async def work() -> Outcome:
            contestant = kind(self._theirs.folder / f"{kind.name}{in_flight}", self._theirs.pebble)
            return await contestant.round(in_flight, PEER_COUNTS[in_flight])

        self._note(kind.name, in_flight, await self._theirs.surely(work))

    async def _many_names(self) -> None:
        bare = await self._theirs.surely(lambda: peers.bare(self._theirs.pebble, 1, 1, "fifty", NAMES))
        ours = await self._ours.surely(lambda: self._ours.round(1, 1, NAMES))
        self.requests_of_fifty = ours.requests_each
        for name, outcome in (("bare client", bare), ("scaivaultd", ours)):
            print(f"{name:12}one certificate of {NAMES} names: {outcome.requests} requests, {outcome.seconds:.2f} s")

    async def _memory(self) -> None:
        count = 100 if self._quick else MANY
        outcome = await self._ours.surely(lambda: self._ours.round(32, count))
        pid = self._ours.daemon.pid
        self.resident_mib = resident_mib(pid)
        print(
            f"{'scaivaultd':12}{count} at 32 in flight: {outcome.rate:.0f} certs/s, {outcome.cpu_ms:.1f} ms CPU each;"
            f" RSS {self.resident_mib:.0f} MiB, peak {resident_mib(pid, 'VmHWM'):.0f}"
        )
        self.found["scaivaultd", MANY] = outcome

    def _note(self, name: str, in_flight: int, outcome: Outcome) -> None:
        self.found[name, in_flight] = outcome
        p50, p95 = outcome.latency(0.5) * 1000, outcome.latency(0.95) * 1000
        figures = f"{outcome.rate:9.1f}{p50:9.0f}{p95:9.0f}{outcome.cpu_ms:13.1f}{outcome.requests_each:15.1f}"
        print(f"{name:12}{in_flight:9}{figures}", flush=True)

    def judge(self) -> None:
        """Print the ratios beside what they should be."""
        ours, bare = self.found["scaivaultd", 32], self.found["bare client", 32]
        judged("throughput at 32, of the bare client's", ours.rate / bare.rate, 0.5, at_least=True)
        if lego := self.found.get(("lego", 32)):
            judged("throughput at 32, of lego's", ours.rate / lego.rate, 8, at_least=True)
        if certbot := self.found.get(("certbot", 32)):
            print(f"{'throughput at 32, of certbot':44}{ours.rate / certbot.rate:9.2f}")
        judged("requests of a certificate of one name, at 1", self.found["scaivaultd", 1].requests_each, 7.5)
        judged("requests of a certificate of one name, at 32", ours.requests_each, 7.5)
        judged(f"requests of a certificate of {NAMES} names", self.requests_of_fifty, 125)
        judged("daemon CPU ms of a certificate, at 32", ours.cpu_ms, 12)
        judged("RSS MiB after all", self.resident_mib, 120)


async def where_the_time_goes(folder: Path) -> None:
    """Wall time by step, from a daemon's own debug log; CPU by part, from a daemon under a profiler."""
    ours = OurStage(folder / "steps", level="debug")
    await ours.start()
    try:
        await ours.surely(lambda: ours.round(1, 20))
        steps = Steps.of_log(ours.daemon.log)
    finally:
        await ours.stop()
    print(f"\nwall milliseconds of a certificate, one in flight, median of {steps.count}:")
    for name, milliseconds in steps.medians():
        print(f"  {name:44}{milliseconds:8.1f}")
    profile = folder / "profile"
    profiled = OurStage(folder / "profiled", arguments=("-m", "bench.profiled", str(profile)))
    await profiled.start()
    try:
        outcome = await profiled.surely(lambda: profiled.round(32, 160))
    finally:
        await profiled.stop()
    print(f"\nshares of the event loop's time at 32 in flight, under cProfile ({outcome.rate:.0f} certs/s there):")
    for name, share in shares(profile):
        print(f"  {name:44}{share:8.1%}")


async def main(quick: bool) -> None:
    """The whole run."""
    if not is_installed():
        sys.exit("Pebble is missing: apt-get install pebble")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            ours, theirs = OurStage(folder / "ours"), Stage(folder / "theirs")
            for stage in (ours, theirs):
                await stage.start()
                stack.push_async_callback(stage.stop)
            bench = Bench(ours, theirs, quick=quick)
            await bench.run()
        print()
        bench.judge()
        await where_the_time_goes(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 and 32 in flight only, and no thousand")
    asyncio.run(main(parser.parse_args().quick))
