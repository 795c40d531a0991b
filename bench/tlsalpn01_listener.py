"""What the tls-alpn-01 listener takes: a flood of hellos, honest validations beside it, and the cost of a splice.

    .venv/bin/python bench/tlsalpn01_listener.py

Server and clients run in processes of their own on loopback and share the machine's cores; every hello is a new
connection. The latency of a validation during the flood is what a CA would notice.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
import ssl
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from scaivaultd.listeners.sockets import bind_all
from scaivaultd.listeners.tlsalpn01 import TlsAlpn01Listener
from scaivaultd.listeners.tlsalpn01_hello import HelloReader
from scaivaultd.logs import configure
from scaivaultd.model.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NAME = "example.org"
KEY_AUTHORIZATION = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDf.9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
FLOOD_SECONDS = 4.0
IN_FLIGHT = 32
VALIDATIONS = 300
PARSES = 20_000


def client_context(protocols: Sequence[str]) -> ssl.SSLContext:
    """A client that believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(list(protocols))
    return context


def hello(name: str) -> bytes:
    """What a validator of `name` says first."""
    out = ssl.MemoryBIO()
    tls = client_context(["acme-tls/1"]).wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return out.read()


async def serve(upstream: str | None) -> None:
    """The listener, with one pending challenge, until its input closes."""
    [listening] = bind_all(["127.0.0.1:0"]).sockets
    log = configure("error", "json", sys.stderr)
    listener = TlsAlpn01Listener([listening], clock=SystemClock(), log=log, upstream=upstream)
    listener.put(NAME, KEY_AUTHORIZATION)
    await listener.start()
    print(listener.addresses[0][1], flush=True)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, closed.set)
    await closed.wait()
    await listener.close()


@contextmanager
def running(*arguments: str) -> Iterator[int]:
    """A listener's port."""
    command = [sys.executable, __file__, "serve", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.stdin.close()


def validate(port: int, context: ssl.SSLContext) -> float:
    """One validation, in seconds."""
    began = time.perf_counter()
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    with context.wrap_socket(plain, server_hostname=NAME) as tls:
        assert tls.selected_alpn_protocol() == "acme-tls/1"
        assert tls.recv(1) == b""
    return time.perf_counter() - began


def flood(port: int, said: bytes, seconds: float) -> float:
    """Hellos per second, each answered with an alert or dropped."""
    open_ones = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(IN_FLIGHT)]
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        for place, each in enumerate(open_ones):
            each.sendall(said)
            each.recv(100)
            each.close()
            open_ones[place] = socket.create_connection(("127.0.0.1", port), timeout=10)
            count += 1
    for each in open_ones:
        each.close()
    return count / elapsed


def shown(name: str, seconds: Sequence[float]) -> None:
    """One line of latencies."""
    ordered = sorted(seconds)
    median, late = statistics.median(ordered) * 1000, ordered[int(len(ordered) * 0.99)] * 1000
    print(f"{name:34}{median:8.2f} ms median{late:9.2f} ms p99")


def measure_flood(port: int, name: str) -> None:
    """Honest validations while strangers say hello without pause."""
    context = client_context(["acme-tls/1"])
    with multiprocessing.get_context("fork").Pool(1) as pool:
        flooding = pool.apply_async(flood, (port, hello(name), FLOOD_SECONDS))
        latencies = []
        while not flooding.ready():
            latencies.append(validate(port, context))
            time.sleep(0.02)
        print(f"flood of hellos for {name:14}{flooding.get():8,.0f} hellos/s")
    shown("  validation meanwhile", latencies)


def echo(connection: socket.socket) -> None:
    """Say everything back."""
    # Like any web server; else Nagle and delayed acknowledgement are measured.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def echo_server(listening: socket.socket) -> None:
    """One connection after the other."""
    while True:
        echo(listening.accept()[0])


def round_trips(port: int) -> list[float]:
    """Connect, say something, hear it, in seconds; the first bytes are no hello, so they are passed on."""
    latencies = []
    for _ in range(VALIDATIONS):
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), timeout=10) as opened:
            opened.sendall(b"ping")
            assert opened.recv(4) == b"ping"
        latencies.append(time.perf_counter() - began)
    return latencies


def throughput(port: int) -> float:
    """MB/s through an echo, both directions counted once."""
    data, received = bytes(1 << 20), 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as opened:
        began = time.perf_counter()
        for _ in range(100):
            opened.sendall(data[: 1 << 16])
            while received < 1 << 16:
                received += len(opened.recv(1 << 16))
            received = 0
        return 100 * (1 << 16) / (time.perf_counter() - began) / 1e6


def measure_splice() -> None:
    """An echo server by itself, then behind the listener."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = multiprocessing.get_context("fork").Process(target=echo_server, args=(listening,), daemon=True)
        server.start()
        direct = listening.getsockname()[1]
        with running(f"127.0.0.1:{direct}") as port:
            for name, each in (("direct", direct), ("spliced", port)):
                shown(f"{name} connection and echo", round_trips(each))
                print(f"{name} throughput{throughput(each):>24.0f} MB/s")
        server.terminate()
        server.join()


def report() -> None:
    """Measure all and print."""
    said = hello(NAME)
    began = time.process_time()
    for _ in range(PARSES):
        assert HelloReader(16384).feed(said) is not None
    print(f"parse a hello of {len(said)} bytes{(time.process_time() - began) / PARSES * 1e6:>17.1f} us")
    with running() as port:
        context = client_context(["acme-tls/1"])
        shown("validation, idle", [validate(port, context) for _ in range(VALIDATIONS)])
        measure_flood(port, "unknown.example")
        measure_flood(port, NAME)
    measure_splice()


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(next(iter(sys.argv[2:]), None)))
    else:
        report()
