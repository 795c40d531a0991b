"""Latency of a read command over NATS, beside a bare nats-py responder on the same server that echoes as many bytes.

python bench/reads.py
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import nats

from bench.rig import Daemon, Progress, judged, many, percentile
from bench.stock import fill
from scaivaultd.demo.process import free_port

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

COMMAND = "scaivault.v1.pki.certificates.get"
ECHO = "bench.echo"
CERTIFICATES = 1000
ROUNDS = 5
COUNTS = {1: 500, 64: 4000}


async def echo(url: str, size: int) -> None:
    """Answer every request with so many bytes until stdin closes."""
    client = await nats.connect(url)
    body = bytes(size)

    async def answer(message: Msg) -> None:
        await message.respond(body)

    await client.subscribe(ECHO, cb=answer)
    await client.flush()
    print("ready", flush=True)
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, closed.set)
    await closed.wait()
    await client.close()


async def latencies(client: Client, subject: str, bodies: list[bytes], in_flight: int) -> list[float]:
    """One round: what each request took, in seconds."""

    async def one(number: int) -> None:
        message = await client.request(subject, bodies[number % len(bodies)], timeout=10)
        if (message.headers or {}).get("Nats-Service-Error-Code"):
            raise RuntimeError(message.data.decode())

    return (await many(one, COUNTS[in_flight], in_flight, Progress())).latencies


async def compare(client: Client, bodies: list[bytes]) -> None:
    """Rounds of both in turn, so that both meet the same weather."""
    print(f"{'':28}{'p50 ms':>9}{'p99 ms':>9}")
    for in_flight in COUNTS:
        took: dict[str, list[float]] = {COMMAND: [], ECHO: []}
        for _ in range(ROUNDS):
            for subject, found in took.items():
                found.extend(await latencies(client, subject, bodies, in_flight))
        for name, found in (("bare echo", took[ECHO]), ("pki.certificates.get", took[COMMAND])):
            p50, p99 = percentile(found, 0.5) * 1000, percentile(found, 0.99) * 1000
            print(f"{name:22}{in_flight:3} at once{p50:6.2f}{p99:9.2f}")
        ratio = percentile(took[COMMAND], 0.5) / percentile(took[ECHO], 0.5)
        judged(f"p50 at {in_flight} in flight, of the echo's", ratio, 1.5)


async def main() -> None:
    """Daemon, echo responder, and a client of both."""
    with tempfile.TemporaryDirectory() as name:
        daemon = Daemon(Path(name), free_port())
        await daemon.start()
        await daemon.stop()
        ids = await fill(daemon.state_dir / "store.db", CERTIFICATES)
        await daemon.start()
        client = await nats.connect(daemon.url)
        bodies = [json.dumps({"id": each}).encode() for each in ids]
        size = len((await client.request(COMMAND, bodies[0], timeout=10)).data)
        responder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.reads", daemon.url, str(size)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
        )
        assert responder.stdin is not None
        assert responder.stdout is not None
        await responder.stdout.readline()
        try:
            await compare(client, bodies)
        finally:
            responder.stdin.close()
            await responder.wait()
            await client.close()
        await daemon.stop()


if __name__ == "__main__":
    asyncio.run(echo(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main())
