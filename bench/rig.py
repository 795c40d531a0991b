"""What the benches share: rounds of work in flight, the daemon as a process, and what a process has cost."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats

from scaivaultd.demo.process import Process, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

STUCK_SECONDS = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Stuck(Exception):
    """Nothing has moved for long: Pebble locks up now and then from about 32 orders in flight."""


class Progress:
    """When something was finished last, and how long nothing may be."""

    def __init__(self, stuck_seconds: float = STUCK_SECONDS) -> None:
        self._latest = time.perf_counter()
        self.stuck_seconds = stuck_seconds

    def note(self) -> None:
        """Something is done."""
        self._latest = time.perf_counter()

    @property
    def is_stuck(self) -> bool:
        """Whether nothing has been done for long."""
        return time.perf_counter() - self._latest > self.stuck_seconds


@dataclass
class Outcome:
    """One round of one contestant; `cpu_seconds` and `requests` are for the whole round."""

    count: int
    in_flight: int
    seconds: float
    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float | None = None
    requests: int | None = None

    @property
    def rate(self) -> float:
        """Certificates a second."""
        return self.count / self.seconds

    def latency(self, share: float) -> float:
        """The latency that this share of all stays below, in seconds."""
        return percentile(self.latencies, share)

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of one certificate."""
        return math.nan if self.cpu_seconds is None else self.cpu_seconds / self.count * 1000

    @property
    def requests_each(self) -> float:
        """Requests to the CA of one certificate."""
        return math.nan if self.requests is None else self.requests / self.count

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


async def many(
    one: Callable[[int], Awaitable[None]], count: int, in_flight: int, progress: Progress | None = None
) -> Outcome:
    """Do `count` things, always `in_flight` of them at once; raises Stuck when nothing moves."""
    progress = progress or Progress()
    numbers = iter(range(count))
    latencies: list[float] = []

    async def worker() -> None:
        for number in numbers:
            began = time.perf_counter()
            await one(number)
            latencies.append(time.perf_counter() - began)
            progress.note()

    began = time.perf_counter()
    workers = [asyncio.ensure_future(worker()) for _ in range(min(in_flight, count))]
    try:
        await _watched(workers, progress)
    finally:
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return Outcome(count=count, in_flight=in_flight, seconds=time.perf_counter() - began, latencies=latencies)


async def _watched(workers: Sequence[asyncio.Future[None]], progress: Progress) -> None:
    running = set(workers)
    while running:
        done, running = await asyncio.wait(running, timeout=1, return_when=asyncio.FIRST_EXCEPTION)
        for each in done:
            each.result()
        if running and progress.is_stuck:
            raise Stuck(f"nothing has moved for {progress.stuck_seconds:.0f} s, {len(running)} in flight")


def judged(what: str, value: float, target: float, *, at_least: bool = False) -> None:
    """Print a figure beside what it should be."""
    is_met = value >= target if at_least else value <= target
    bound = "at least" if at_least else "at most"
    print(f"{what:44}{value:9.2f}   {bound} {target:<5g} {'met' if is_met else 'MISSED'}")


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, kernel included, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def thread_cpu_seconds(pid: int) -> dict[int, float]:
    """The same for each thread by its id; that of the main thread is the process's."""
    found = {}
    for entry in Path(f"/proc/{pid}/task").iterdir():
        fields = (entry / "stat").read_text().rpartition(")")[2].split()
        found[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def resident_mib(pid: int, name: str = "VmRSS") -> float:
    """Resident memory of a process; `VmHWM` is its highest."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith(f"{name}:"))
    return int(kib) / 1024


def child_of(pid: int, name: str) -> int | None:
    """The child of a process with that command name."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        command, fields = text[text.index("(") + 1 : text.rindex(")")], text.rpartition(")")[2].split()
        if command == name and int(fields[1]) == pid:
            return int(stat.parent.name)
    return None


class Daemon:
    """A real daemon as its own process, with its own nats-server unless `nats_url` names one."""

    def __init__(
        self,
        folder: Path,
        http01_port: int,
        configuration: str = "",
        *,
        log_level: str = "info",
        nats_url: str | None = None,
        arguments: Sequence[str] = ("-m", "scaivaultd", "serve"),
    ) -> None:
        self._folder = folder
        self.state_dir = folder / "state"
        self._nats_url = nats_url
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "scaivaultd.toml"
        trusted = '[[nats.ingress]]\nroot = "scaivault.v1"\nidentity = "trusted"\n'
        servers = f'[nats]\nservers = ["{nats_url}"]\n{trusted}' if nats_url else ""
        config.write_text(
            f'state_dir = "{self.state_dir}"\n{servers}[log]\nformat = "json"\nlevel = "{log_level}"\n'
            f'[http01]\nlisten = ["127.0.0.1:{http01_port}"]\n[tlsalpn01]\nlisten = []\n'
            # The names of a bench are in no DNS: asking for them would measure the resolver.
            f'[preflight]\ncaa = "off"\ndelegation = "off"\n{configuration}'
        )
        self._process = Process([sys.executable, *arguments, "--config", str(config)], folder / "daemon")
        self._lives = 0

    async def start(self) -> float:
        """Start it; how many seconds it took to be ready."""
        self._lives += 1
        began = time.perf_counter()
        self._process.start()
        await until(self._is_ready, "the daemon is ready")
        return time.perf_counter() - began

    async def _is_ready(self) -> bool:
        if not self._process.is_alive():
            raise RuntimeError(f"the daemon has ended: {self.log[-2000:]}")
        return self.log.count('"daemon.ready"') >= self._lives

    async def stop(self) -> None:
        """End it as a service manager would."""
        await self._process.stop()

    async def kill(self) -> None:
        """Kill -9, and wait for its end."""
        self._process.kill()
        await self._process.wait(10)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said in all its lives."""
        return self._process.log

    @property
    def url(self) -> str:
        """Where its NATS server is, with a login."""
        return self._nats_url or str(json.loads((self.state_dir / "nats/client.json").read_text())["url"])


def acme_configuration(directory_url: str, trust_file: Path) -> str:
    """What a daemon must be told of a CA on loopback."""
    host = directory_url.split("/")[2]
    return f'[acme]\ntrust_files = ["{trust_file}"]\nprivate_directories = ["{host}"]\n'


async def ask(client: Client, command: str, **body: Any) -> Any:
    """One command over NATS; raises RuntimeError with the problem where it is refused."""
    message = await client.request(f"scaivault.v1.{command}", json.dumps(body).encode(), timeout=30)
    answer = json.loads(message.data)
    if (message.headers or {}).get("Nats-Service-Error-Code"):
        raise RuntimeError(f"{command}: {answer['code']}: {answer['detail']}")
    return answer


class Load:
    """A client that asks for certificates and hears of them by their events; it never polls."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._awaited: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count()
        self._account_id = ""

    @classmethod
    async def connect(cls, url: str) -> Load:
        """Connect and subscribe."""
        load = cls(await nats.connect(url))
        for kind in ("certificate.issued", "order.failed"):
            await load._client.subscribe(f"scaivault.events.{kind}.>", cb=load._heard)
        await load._client.flush()
        return load

    async def close(self) -> None:
        """Leave."""
        await self._client.close()

    async def register(self, directory_url: str) -> str:
        """Make the account that orders from now on."""
        account = await ask(
            self._client, "pki.acme.accounts.create", name="bench", provider="custom", directory_url=directory_url
        )
        if account["status"] != "valid":
            raise RuntimeError(f"no account: {account}")
        self._account_id = account["id"]
        return self._account_id

    async def issue(self, label: str, names: int = 1) -> dict[str, Any]:
        """One certificate, from the request to its event; the event's body."""
        number = next(self._numbers)
        domains = [f"{label}-{number}-{place}.example.test" for place in range(names)]
        heard: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._awaited[domains[0]] = heard
        await ask(
            self._client,
            "pki.acme.issue",
            account_id=self._account_id,
            domains=domains,
            challenge_type="http-01",
            wait_seconds=0,
        )
        event = await heard
        if "certificate_id" not in event:
            raise RuntimeError(f"the order failed: {event['error']}")
        return event

    async def _heard(self, message: Msg) -> None:
        event = json.loads(message.data)
        for name in event["domains"]:
            if (heard := self._awaited.pop(name, None)) and not heard.done():
                heard.set_result(event)
