"""Real servers on loopback: Pebble, nats-server, and the daemon itself as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import nats.js.errors
import pytest
from nats.aio.client import Client

from scaivaultd.demo import pebble as pebble_program
from scaivaultd.demo.pebble import Pebble
from scaivaultd.demo.process import Process, free_port, until


@dataclass
class Daemon:
    """The real daemon as a process, spoken to over NATS."""

    folder: Path
    configuration: str
    arguments: list[str] = field(default_factory=lambda: [sys.executable, "-m", "scaivaultd", "serve"])
    url: str | None = None
    process: Process | None = None
    client: Client | None = None

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    async def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "scaivaultd.toml"
        config.write_text(f'state_dir = "{self.state_dir}"\n{self.configuration}')
        self.process = Process([*self.arguments, "--config", str(config)], self.folder)
        self.process.start()
        await self.connect()

    async def connect(self) -> None:
        """Connect a client and wait until the daemon answers."""
        await until(self._is_up, "the daemon answers")

    async def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.is_alive(), f"the daemon has ended:\n{self.process.log[-3000:]}"
        try:
            if self.client is None or not self.client.is_connected:
                await self.disconnect()
                self.client = await self._client()
            await self.client.request("scaivault.v1.sys.info", b"", timeout=1)
        except (nats.errors.Error, OSError, KeyError, ValueError):
            return False
        return True

    async def _client(self) -> Client:
        async def quiet(_: Exception) -> None:
            return None

        url = self.url or json.loads((self.state_dir / "nats/client.json").read_text())["url_with_credentials"]
        return await nats.connect(url, connect_timeout=1, allow_reconnect=False, error_cb=quiet)

    async def disconnect(self) -> None:
        if self.client is not None:
            await self.client.close()
            self.client = None

    async def ask(self, command: str, _timeout: float = 10, _headers: dict[str, str] | None = None, **body: Any) -> Any:
        assert self.client is not None
        message = await self.client.request(
            f"scaivault.v1.{command}", json.dumps(body).encode(), timeout=_timeout, headers=_headers
        )
        return json.loads(message.data)

    async def account(self, pebble: Any, **changes: Any) -> str:
        body = {"name": "test", "provider": "custom", "directory_url": pebble.directory_url, **changes}
        reply = await self.ask("pki.acme.accounts.create", **body)
        assert reply.get("status") == "valid", reply
        return str(reply["id"])

    async def finished(self, order_id: str, seconds: float = 60) -> dict[str, Any]:
        """Poll as a caller does until the order has ended."""
        async with asyncio.timeout(seconds):
            while True:
                order: dict[str, Any] = await self.ask("pki.acme.orders.get", order_id=order_id)
                if order.get("status") not in ("pending", "ready", "processing"):
                    return order
                await asyncio.sleep(0.05)

    async def issue(self, account_id: str, *domains: str, **changes: Any) -> dict[str, Any]:
        body = {"account_id": account_id, "domains": list(domains), "challenge_type": "http-01", **changes}
        order = await self.ask("pki.acme.issue", **body)
        assert "order_id" in order, order
        return await self.finished(order["order_id"])

    async def events(self) -> list[tuple[str, dict[str, str], Any]]:
        """All events in the stream: subject, headers, body."""
        assert self.client is not None
        jetstream = self.client.jetstream()
        found = []
        with contextlib.suppress(nats.js.errors.NotFoundError):
            info = await jetstream.stream_info("SCAIVAULT_EVENTS")
            for sequence in range(info.state.first_seq, info.state.last_seq + 1):
                message = await jetstream.get_msg("SCAIVAULT_EVENTS", sequence)
                found.append((message.subject or "", message.headers or {}, json.loads(message.data or b"")))
        return found

    async def stop(self, number: int = signal.SIGTERM) -> int:
        await self.disconnect()
        assert self.process is not None
        return await self.process.stop(number)


def configuration(pebble: Any, **sections: str) -> str:
    """A configuration for a CA on loopback; `sections` add lines to a section."""
    host = pebble.directory_url.split("/")[2]
    lines = {
        "nats": "",
        "http01": f'listen = ["127.0.0.1:{pebble.http01_port}"]',
        "tlsalpn01": "listen = []",
        "acme": f'trust_files = ["{pebble.trust_file}"]\nprivate_directories = ["{host}"]',
        "log": 'level = "debug"\nformat = "json"',
    }
    for section, more in sections.items():
        lines[section] = f"{lines[section]}\n{more}"
    return "\n".join(f"[{section}]\n{text}" for section, text in lines.items())


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as entered:
        yield entered


MakePebble = Callable[..., Awaitable[Pebble]]
MakeDaemon = Callable[..., Awaitable[Daemon]]


@pytest.fixture
def make_pebble(stack: AsyncExitStack, tmp_path: Path) -> MakePebble:
    """Start a Pebble; keyword arguments are its environment (PEBBLE_VA_NOSLEEP and so on)."""
    if not pebble_program.is_installed():
        pytest.fail("Debian's package pebble is missing: `make test` installs it, or: apt-get install pebble")

    async def make(**environment: str) -> Pebble:
        settings = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0", **environment}
        pebble = Pebble(tmp_path / "pebble", free_port(), settings)
        stack.push_async_callback(pebble.stop)
        await pebble.start()
        return pebble

    return make


@pytest.fixture
def make_daemon(stack: AsyncExitStack, tmp_path: Path) -> MakeDaemon:
    """Start a daemon for a CA."""

    async def make(pebble: Any, *, url: str | None = None, **sections: str) -> Daemon:
        daemon = Daemon(tmp_path / "daemon", configuration(pebble, **sections), url=url)

        async def end() -> None:
            await daemon.disconnect()
            if daemon.process is not None and daemon.process.is_alive():
                await daemon.process.stop(signal.SIGKILL)

        stack.push_async_callback(end)
        await daemon.start()
        return daemon

    return make
