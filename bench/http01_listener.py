"""How fast the http-01 listener answers, and what 1,024 slow clients cost, beside a minimal aiohttp application.

    .venv/bin/python bench/http01_listener.py

Each server runs in a process of its own on loopback; every request is a new connection. Rounds
alternate, so that all meet the same weather. The CPU time of a request is the steadier figure where
server and clients share cores. Our listener runs twice: silent like the application, and logging
every hit as in production, to /dev/null.
"""

from __future__ import annotations

import asyncio
import os
import resource
import select
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from scaivaultd.listeners.http01 import Http01Listener
from scaivaultd.listeners.sockets import bind_all
from scaivaultd.logs import configure
from scaivaultd.model.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf"
KEY_AUTHORIZATION = f"{TOKEN}.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
REQUEST = (
    f"GET /.well-known/acme-challenge/{TOKEN} HTTP/1.1\r\nHost: example.org\r\n"
    "User-Agent: bench\r\nAccept: */*\r\nConnection: close\r\n\r\n"
).encode()
ROUNDS = 3
ROUND_SECONDS = 1.2
IN_FLIGHT = 32
SLOW_CLIENTS = 1024
DEVNULL = Path(os.devnull).open("w")  # noqa: SIM115 - lives as long as the process


async def serve_silent(listening: socket.socket) -> None:
    """The listener with nothing to log."""
    await serve_ours(listening, "error")


async def serve_logging(listening: socket.socket) -> None:
    """The listener as the daemon runs it."""
    await serve_ours(listening, "info")


async def serve_ours(listening: socket.socket, level: Literal["info", "error"]) -> None:
    """Our listener, with one token."""
    log = configure(level, "json", DEVNULL)
    listener = Http01Listener([listening], clock=SystemClock(), log=log)
    listener.put(TOKEN, KEY_AUTHORIZATION)
    await listener.start()
    await until_stdin_closes()
    await listener.close()


async def serve_aiohttp(listening: socket.socket) -> None:
    """The least that answers a challenge with aiohttp."""
    answers = {TOKEN: KEY_AUTHORIZATION}

    async def answer(request: web.Request) -> web.Response:
        found = answers.get(request.match_info["token"])
        if found is None:
            raise web.HTTPNotFound
        return web.Response(body=found.encode(), content_type="application/octet-stream")

    application = web.Application()
    application.router.add_get("/.well-known/acme-challenge/{token}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listening).start()
    await until_stdin_closes()
    await runner.cleanup()


SERVERS = {"scaivaultd": serve_silent, "with hit log": serve_logging, "aiohttp": serve_aiohttp}


async def until_stdin_closes() -> None:
    """The server lives as long as the bench that started it."""
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, closed.set)
    await closed.wait()


@contextmanager
def running(name: str) -> Iterator[tuple[int, int]]:
    """A server's process id and port."""
    with subprocess.Popen(
        [sys.executable, __file__, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.stdin.close()


def knock(port: int) -> socket.socket:
    """A connection with its request sent; on loopback neither waits for the server."""
    opened = socket.create_connection(("127.0.0.1", port), timeout=5)
    opened.sendall(REQUEST)
    return opened


def requests_per_second(port: int) -> float:
    """Keep a number of requests in flight for a while; every answer is checked."""
    poll = select.epoll()
    waiting: dict[int, tuple[socket.socket, bytearray]] = {}

    def start() -> None:
        opened = knock(port)
        waiting[opened.fileno()] = opened, bytearray()
        poll.register(opened, select.EPOLLIN)

    for _ in range(IN_FLIGHT):
        start()
    began, answered = time.perf_counter(), 0
    while (now := time.perf_counter()) - began < ROUND_SECONDS:
        for descriptor, _ in poll.poll(1.0):
            opened, received = waiting[descriptor]
            if data := opened.recv(4096):
                received += data
                continue
            assert received.startswith(b"HTTP/1.1 200 ") and received.endswith(KEY_AUTHORIZATION.encode()), received
            answered += 1
            del waiting[descriptor]
            opened.close()
            start()
    for opened, _ in waiting.values():
        opened.close()
    poll.close()
    return answered / (now - began)


def resident_mib(pid: int) -> float:
    """RSS of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kib) / 1024


def resident_with_slow_clients(pid: int, port: int) -> float:
    """RSS while clients that never finish their head are connected."""
    slow = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(SLOW_CLIENTS)]
    for each in slow:
        each.sendall(REQUEST[:-2] + b"X: ")
    time.sleep(1.0)  # both have taken everybody in by then, and neither has put anybody out
    resident = resident_mib(pid)
    for each in slow:
        each.close()
    return resident


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, kernel included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Figures:
    """What was measured of one server."""

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port
        self.idle_mib = resident_mib(pid)
        self.slow_mib = 0.0
        self.rates: list[float] = []
        self.cpu_seconds = 0.0

    def measure_round(self) -> None:
        """One round of requests."""
        before = cpu_seconds(self.pid)
        self.rates.append(requests_per_second(self.port))
        self.cpu_seconds += cpu_seconds(self.pid) - before

    def measure_slow_clients(self) -> None:
        """Memory under a slow flood."""
        self.slow_mib = resident_with_slow_clients(self.pid, self.port)

    @property
    def rate(self) -> float:
        """Requests per second, median of the rounds."""
        return statistics.median(self.rates)

    @property
    def cpu_microseconds(self) -> float:
        """CPU time of one request."""
        return self.cpu_seconds / (sum(self.rates) * ROUND_SECONDS) * 1e6


def report() -> None:
    """Measure all and print."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as servers:
        figures = {name: Figures(*servers.enter_context(running(name))) for name in SERVERS}
        for _ in range(ROUNDS):
            for each in figures.values():
                each.measure_round()
        for each in figures.values():
            each.measure_slow_clients()
    print(f"{'':14}{'requests/s':>11}  {'(rounds)':22}{'CPU us/request':>15}{'RSS MiB idle':>14}{'1,024 slow':>12}")
    for name, each in figures.items():
        rounds = " ".join(f"{rate:,.0f}" for rate in each.rates)
        speed = f"{each.rate:11,.0f}  {rounds:22}{each.cpu_microseconds:15.0f}"
        print(f"{name:14}{speed}{each.idle_mib:14.1f}{each.slow_mib:12.1f}")
    ours, peer = figures["scaivaultd"], figures["aiohttp"]
    print(f"ratio to aiohttp: {ours.rate / peer.rate:.2f} requests/s, ", end="")
    print(f"{ours.cpu_microseconds / peer.cpu_microseconds:.2f} CPU time")


def serve(name: str) -> None:
    """The other end of `running`."""
    listening = bind_all(["127.0.0.1:0"]).sockets[0]
    print(listening.getsockname()[1], flush=True)
    asyncio.run(SERVERS[name](listening))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        report()
