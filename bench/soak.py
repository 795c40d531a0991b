"""500 certificates that live for a minute, under random faults: does any expire that need not, is any event lost?

    python bench/soak.py [--minutes N] [--certificates N] [--seed N]

The development CA runs in this process and answers 5xx, drops connections and loses answers now and then; the NATS
server is restarted, the daemon killed (-9) and started again. At the end every version of every certificate is
compared with the events in the stream, one to one, and every certificate that expired with the time its CA could be
reached in the last third of its life, when it is to be renewed. Ends with code 1 if one expired although the CA was
there for half of that, or if events and versions differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats.errors
import nats.js.errors

from bench.rig import Daemon, Load, Progress, acme_configuration, ask, many, resident_mib
from scaivaultd.demo.ca import CaSettings, DevelopmentCa, Status
from scaivaultd.demo.process import Process, free_port, listens, until
from scaivaultd.gateways.nats_server import find_server
from scaivaultd.gateways.publisher import STREAM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from nats.aio.client import Client

LIFETIME = timedelta(seconds=60)
IN_FLIGHT = 16
CALM_SECONDS = (4.0, 9.0)
FAULT_SECONDS = (2.0, 6.0)
SETTLE_SECONDS = 30.0
ENOUGH = 0.5
"""The share of its last third that is time enough to renew a certificate."""


class Server:
    """A nats-server that can be restarted; its stream is on disk."""

    def __init__(self, folder: Path) -> None:
        self._port = free_port()
        self.url = f"nats://127.0.0.1:{self._port}"
        store = str(folder / "store")
        arguments = ["--addr", "127.0.0.1", "--port", str(self._port), "--jetstream", "--store_dir", store]
        self._process = Process([str(find_server(None)), *arguments], folder)

    async def start(self) -> None:
        """Start it and wait until it listens."""
        self._process.start()
        await until(lambda: listens(self._port), "nats-server listens")

    async def stop(self) -> None:
        """End it."""
        await self._process.stop()


class Outages:
    """When the CA could not be relied on, by the wall clock."""

    def __init__(self, spans: Sequence[tuple[float, float]] = ()) -> None:
        self._spans = list(spans)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While this lasts the CA counts as out of reach."""
        began = time.time()
        try:
            yield
        finally:
            self._spans.append((began, time.time()))

    def reachable_seconds(self, start: float, end: float) -> float:
        """How long the CA was there between two moments."""
        away = sum(max(0.0, min(end, until) - max(start, since)) for since, until in self._spans)
        return end - start - away


@dataclass(frozen=True)
class Version:
    """One version of one certificate, as the daemon lists it or an event tells."""

    certificate_id: str
    version: int
    serial_number: str


class Soak:
    """What runs, and the faults it can have."""

    def __init__(self, ca: DevelopmentCa, server: Server, daemon: Daemon, chance: random.Random) -> None:
        self._ca = ca
        self._server = server
        self._daemon = daemon
        self._chance = chance
        self.outages = Outages()
        self.faults: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """One fault after the other, with calm in between."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._unavailable,
            self._errors,
            self._resets,
            self._lost_answers,
            self._restart_nats,
            self._kill_daemon,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await asyncio.sleep(self._chance.uniform(*CALM_SECONDS))
            fault = self._chance.choice(kinds)
            self.faults[fault.__name__.strip("_")] += 1
            await fault()

    @contextmanager
    def closed(self) -> Iterator[None]:
        """The CA takes nothing: no version comes while things are compared."""
        self._ca.misbehaviour.outages["*"] = Status(code=503)
        with self.outages.noted():
            yield
        del self._ca.misbehaviour.outages["*"]

    async def _unavailable(self) -> None:
        with self.closed():
            await self._a_while()

    async def _errors(self) -> None:
        await self._rate("error_500_rate", 0.5)

    async def _resets(self) -> None:
        await self._rate("reset_rate", 0.3)

    async def _lost_answers(self) -> None:
        await self._rate("lose_answer_rate", 0.2)

    async def _rate(self, name: str, share: float) -> None:
        setattr(self._ca.misbehaviour, name, share)
        with self.outages.noted():
            await self._a_while()
        setattr(self._ca.misbehaviour, name, 0.0)

    async def _restart_nats(self) -> None:
        await self._server.stop()
        await self._a_while()
        await self._server.start()

    async def _kill_daemon(self) -> None:
        await self._daemon.kill()
        await self._daemon.start()

    async def _a_while(self) -> None:
        await asyncio.sleep(self._chance.uniform(*FAULT_SECONDS))


class Findings:
    """What the daemon and the stream say at the end."""

    def __init__(self, client: Client, outages: Outages) -> None:
        self._client = client
        self._outages = outages

    async def versions(self) -> dict[str, list[dict[str, Any]]]:
        """Every version of every certificate, oldest first, by certificate id."""
        found = {}
        for certificate in await self._pages("pki.certificates.list"):
            found[certificate["id"]] = await self._pages("pki.certificates.versions", id=certificate["id"])
        return found

    async def _pages(self, command: str, **body: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await ask(self._client, command, cursor=cursor, **body)
            items.extend(page["items"])
            if (cursor := page["next_cursor"]) is None:
                return items

    async def events(self) -> list[Version]:
        """What the stream tells of new versions, repetitions included."""
        jetstream = self._client.jetstream()
        info = await jetstream.stream_info(STREAM)
        found = []
        for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
            message = await jetstream.get_msg(STREAM, sequence)
            if (message.headers or {}).get("ce-type") in ("certificate.issued", "certificate.renewed"):
                body = json.loads(message.data or b"")
                found.append(Version(body["certificate_id"], body["version"], body["serial_number"]))
        return found

    async def compared(self) -> tuple[dict[str, list[dict[str, Any]]], Counter[Version], Counter[Version]]:
        """Versions, and how often each is listed and told of, once the two agree or nothing more comes."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            versions = await self.versions()
            listed = Counter(
                Version(certificate_id, each["version"], each["serial_number"])
                for certificate_id, found in versions.items()
                for each in found
            )
            told = Counter(await self.events())
            if listed == told or time.monotonic() > deadline:
                return versions, listed, told
            await asyncio.sleep(0.5)

    def expired(self, versions: Sequence[dict[str, Any]], now: float) -> Iterator[tuple[dict[str, Any], float]]:
        """Versions that ended before the next came, with the share of their last third in which the CA was there."""
        for place, version in enumerate(versions):
            start, end = _moment(version["not_before"]), _moment(version["not_after"])
            came = _moment(versions[place + 1]["issued_at"]) if place + 1 < len(versions) else now
            if came > end:
                third = (end - start) / 3
                yield version, self._outages.reachable_seconds(end - third, end) / third


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def judge(findings: Findings, certificates: int) -> bool:
    """Print what was found; whether all is well."""
    began = time.time()
    versions, listed, told = await findings.compared()
    expired = [each for found in versions.values() for each in findings.expired(found, began)]
    needlessly = [each for each in expired if each[1] >= ENOUGH]
    print(f"{len(versions)} certificates, {listed.total()} versions; {told.total()} events of new versions")
    print(f"expired before the next version came: {len(expired)}, of them needlessly: {len(needlessly)}")
    for version, share in sorted(expired, key=lambda each: -each[1])[:10]:
        there = f"the CA was there for {share:.0%} of the last third of its life"
        print(f"  {version['id']} version {version['version']} until {version['not_after']}: {there}")
    lost, extra = listed - told, told - listed
    print(f"versions without an event: {lost.total()}, events without a version or told twice: {extra.total()}")
    for each in [*lost, *extra][:10]:
        print(f"  {each}")
    return len(versions) == certificates and not needlessly and not lost and not extra


async def main(minutes: float, certificates: int, seed: int, folder: Path) -> bool:
    """The whole run; the daemon's state and log stay in `folder`."""
    print(f"seed {seed}")
    port = free_port()
    async with AsyncExitStack() as stack:
        ca = await stack.enter_async_context(DevelopmentCa(http01_port=port, settings=CaSettings(lifetime=LIFETIME)))
        (folder / "root.pem").write_text(ca.root_pem)
        server = Server(folder / "nats")
        await server.start()
        stack.push_async_callback(server.stop)
        configuration = acme_configuration(ca.directory_url, folder / "root.pem")
        daemon = Daemon(folder, port, configuration, nats_url=server.url)
        await daemon.start()
        stack.push_async_callback(daemon.stop)
        await (await _reachable(server.url)).close()
        await issue(server.url, ca.directory_url, certificates)
        soak = Soak(ca, server, daemon, random.Random(seed))
        await soak.run(minutes * 60)
        print(f"faults: {dict(soak.faults)}; RSS {resident_mib(daemon.pid):.0f} MiB; CA requests {dict(ca.requests)}")
        with soak.closed():
            client = await _reachable(server.url)
            stack.push_async_callback(client.close)
            is_well = await judge(Findings(client, soak.outages), certificates)
        rules = Counter(each.partition(":")[0] for each in ca.violations)
        print(f"what the CA has to complain of: {dict(rules) or 'nothing'}")
        for each in ca.violations[:5]:
            print(f"  {each}")
    print("well" if is_well else "NOT WELL")
    return is_well


async def issue(url: str, directory_url: str, count: int) -> None:
    """The first version of all, in calm weather."""
    load = await Load.connect(url)
    await load.register(directory_url)

    async def one(_: int) -> None:
        await load.issue("soak")

    issued = await many(one, count, IN_FLIGHT, Progress())
    await load.close()
    print(f"{count} certificates issued, {issued.rate:.0f} a second", flush=True)


async def _reachable(url: str) -> Client:
    """A new client, once the daemon answers: one or the other may have been started a moment ago."""
    client = await nats.connect(url)

    async def answers() -> bool:
        with suppress(nats.errors.Error, RuntimeError):
            await ask(client, "sys.info")
            return True
        return False

    await until(answers, "the daemon answers")
    return client


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--certificates", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of the faults")
    parser.add_argument("--keep", type=Path, help="a new folder for state and logs, which then stay")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        well = asyncio.run(main(arguments.minutes, arguments.certificates, arguments.seed, folder))
    sys.exit(0 if well else 1)
