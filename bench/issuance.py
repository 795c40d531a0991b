"""Whole issuances against Pebble: the daemon over NATS, and lego's command line as the peer in the same run.

Prints seconds a certificate with one in flight, certificates a second with a crowd, requests a
certificate, and the daemon's memory. Bounded to well under a minute.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nats

from scaivaultd.demo.pebble import Pebble, is_installed
from scaivaultd.demo.process import Process, free_port, until

ALONE = 20
CROWD = 200


class Bench:
    """The daemon and a client."""

    def __init__(self, client: Any, account_id: str) -> None:
        self._client = client
        self._account_id = account_id

    async def ask(self, command: str, **body: Any) -> Any:
        message = await self._client.request(f"scaivault.v1.{command}", json.dumps(body).encode(), timeout=30)
        return json.loads(message.data)

    async def issue(self, name: str) -> None:
        """One certificate, noticed by its event as a subscriber would."""
        order = await self.ask(
            "pki.acme.issue", account_id=self._account_id, domains=[name], challenge_type="http-01", wait_seconds=0
        )
        while order["status"] in ("pending", "ready", "processing"):
            await asyncio.sleep(0.02)
            order = await self.ask("pki.acme.orders.get", order_id=order["order_id"])
        if order["status"] != "valid":
            raise RuntimeError(order["error"])


async def main() -> None:
    if not is_installed():
        sys.exit("Pebble is missing: apt-get install pebble")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        pebble = Pebble(folder / "pebble", port, {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"})
        await pebble.start()
        try:
            ours = await measure_daemon(folder, pebble)
            theirs = measure_lego(folder, pebble, port)
        finally:
            await pebble.stop()
    if theirs is not None:
        print(f"one in flight, lego / scaivaultd: {theirs / ours:.1f}")


async def measure_daemon(folder: Path, pebble: Pebble) -> float:
    daemon = await start_daemon(folder, pebble)
    try:
        login = json.loads((folder / "state/nats/client.json").read_text())
        client = await nats.connect(login["url"])
        account = json.loads(
            (
                await client.request(
                    "scaivault.v1.pki.acme.accounts.create",
                    json.dumps({"name": "b", "provider": "custom", "directory_url": pebble.directory_url}).encode(),
                    timeout=30,
                )
            ).data
        )
        bench = Bench(client, account["id"])
        await bench.issue("warm.example.test")
        started = time.perf_counter()
        for number in range(ALONE):
            await bench.issue(f"a{number}.example.test")
        alone = (time.perf_counter() - started) / ALONE
        before, started = pebble.requests, time.perf_counter()
        await asyncio.gather(*(bench.issue(f"c{number}.example.test") for number in range(CROWD)))
        crowd = CROWD / (time.perf_counter() - started)
        requests = (pebble.requests - before) / CROWD
        peak = peak_mib(daemon.pid)
        await client.close()
    finally:
        await daemon.stop()
    print(f"scaivaultd: {alone:.3f} s a certificate alone; {crowd:.0f} certificates/s of {CROWD} at once")
    print(f"scaivaultd: {requests:.1f} requests a certificate in the crowd; peak RSS {peak:.0f} MiB")
    return alone


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024


async def start_daemon(folder: Path, pebble: Pebble) -> Process:
    config = folder / "scaivaultd.toml"
    host = pebble.directory_url.split("/")[2]
    config.write_text(
        f'state_dir = "{folder / "state"}"\n[http01]\nlisten = ["127.0.0.1:{pebble.http01_port}"]\n'
        f'[acme]\ntrust_files = ["{pebble.trust_file}"]\nprivate_directories = ["{host}"]\n'
        '[log]\nformat = "json"\n'
    )
    daemon = Process([sys.executable, "-m", "scaivaultd", "serve", "--config", str(config)], folder / "daemon")
    daemon.start()

    async def is_ready() -> bool:
        return '"daemon.ready"' in daemon.log

    await until(is_ready, "the daemon is ready")
    return daemon


def measure_lego(folder: Path, pebble: Pebble, port: int) -> float | None:
    lego = shutil.which("lego")
    if lego is None:
        print("lego: not installed, no peer in this run (apt-get install lego)")
        return None
    count = 3
    started = time.perf_counter()
    for number in range(count):
        subprocess.run(
            [
                *(lego, "--server", pebble.directory_url, "--email", "b@example.test", "--accept-tos"),
                *("--http", "--http.port", f"127.0.0.1:{port}", "--path", str(folder / "lego")),
                *("--domains", f"l{number}.example.test", "run"),
            ],
            env={"LEGO_CA_CERTIFICATES": str(pebble.trust_file)},
            check=True,
            capture_output=True,
            timeout=60,
        )
    alone = (time.perf_counter() - started) / count
    print(f"lego: {alone:.3f} s a certificate alone (its account is made with the first)")
    return alone


if __name__ == "__main__":
    asyncio.run(main())
