"""What the guided run stands on: a DNS server and a CA on loopback, and the daemon that is pointed at both."""

from __future__ import annotations

import base64
import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.demo.ca import DevelopmentCa, Misbehaviour
from scaivaultd.demo.dns import DevelopmentDns
from scaivaultd.demo.pebble import Pebble, is_installed
from scaivaultd.demo.process import Process, free_port, until
from scaivaultd.demo.tour_page import say
from scaivaultd.model.clock import SystemRandomness

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from pathlib import Path

ZONE = "example.test"
# With the zone above it, so that a search for CAA records ends where it would in the world.
ZONES = (ZONE, "test")
NAME_SERVERS = ("127.0.0.1", "127.0.0.2")
LAG_SECONDS = 1.5
TSIG_KEY_NAME = "demo-key"
STOP_SECONDS = 10.0
LAST_LINES = 5
LINE_MAX = 400


class DemoFailed(Exception):
    """The demo cannot go on; the text says why and where to look."""


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is. Its repr holds the TSIG secret: do not print it."""

    folder: Path
    directory_url: str
    http01_port: int
    tlsalpn01_port: int
    dns_port: int
    tsig_secret: str

    @property
    def nats_login_file(self) -> Path:
        """Holds the URL of the daemon's nats-server, login included."""
        return self.folder / "state/nats/client.json"

    @property
    def rest_socket(self) -> Path:
        """Where the daemon takes the same commands over HTTP."""
        return self.folder / "state/api.sock"

    def nats_login(self) -> Any:
        """`url` with the login, `server` without."""
        return json.loads(self.nats_login_file.read_text())


class _Ca(msgspec.Struct, frozen=True, kw_only=True):
    directory_url: str
    trust_file: Path


class _Ports(msgspec.Struct, frozen=True, kw_only=True):
    http01: int
    tlsalpn01: int
    dns: int

    @property
    def dns_server(self) -> str:
        return f"{NAME_SERVERS[0]}:{self.dns}"


async def set_up(folder: Path, ca: str, stack: AsyncExitStack) -> tuple[Stage, Process]:
    """Start everything, the daemon last; `stack` ends it in the opposite order. `ca` is auto, pebble or development.

    Raises:
        DemoFailed: the CA is not installed, or the daemon ended.
        TimeoutError: something did not come up.
        OSError: no address, port, descriptor or disk space.
    """
    tsig_secret = base64.b64encode(SystemRandomness().token_bytes(32)).decode()
    dns_server = await _start_dns(tsig_secret, stack)
    ports = _Ports(http01=free_port(), tlsalpn01=free_port(), dns=dns_server.port)
    chosen = await _start_ca(folder, ports, ca, stack)
    stage = Stage(
        folder=folder,
        directory_url=chosen.directory_url,
        http01_port=ports.http01,
        tlsalpn01_port=ports.tlsalpn01,
        dns_port=ports.dns,
        tsig_secret=tsig_secret,
    )
    daemon = await _start_daemon(stage, chosen, stack)
    say("Daemon", f"pid {daemon.pid}, with a nats-server of its own at {stage.nats_login()['server']}")
    return stage, daemon


async def _start_dns(tsig_secret: str, stack: AsyncExitStack) -> DevelopmentDns:
    server = DevelopmentDns(
        ZONES, addresses=NAME_SERVERS, keys={TSIG_KEY_NAME: tsig_secret}, default_address="127.0.0.1"
    )
    await stack.enter_async_context(server)
    server.lag(NAME_SERVERS[1], LAG_SECONDS)
    where = " and ".join(NAME_SERVERS)
    say("DNS", f"zone {ZONE} on {where}, port {server.port}; the second shows every change {LAG_SECONDS:g} s late")
    return server


async def _start_ca(folder: Path, ports: _Ports, ca: str, stack: AsyncExitStack) -> _Ca:
    if ca == "pebble" and not is_installed():
        raise DemoFailed("Pebble is not installed: as root, apt-get install pebble; or choose --ca development")
    if ca != "development" and is_installed():
        return await _start_pebble(folder / "pebble", ports, stack)
    development = await stack.enter_async_context(
        DevelopmentCa(
            http01_port=ports.http01,
            tlsalpn01_port=ports.tlsalpn01,
            dns_server=ports.dns_server,
            # It has nobody else to serve: what is unfinished may be asked for again at once.
            misbehaviour=Misbehaviour(retry_after_seconds=0),
        )
    )
    trust_file = folder / "ca-root.pem"
    trust_file.write_text(development.root_pem)
    why = "" if ca == "development" else " (Pebble is not installed)"
    say("CA", f"the built-in development CA{why} at {development.directory_url}")
    return _Ca(directory_url=development.directory_url, trust_file=trust_file)


async def _start_pebble(folder: Path, ports: _Ports, stack: AsyncExitStack) -> _Ca:
    # Every name is to be proven here, and some nonces refused, as at any CA.
    switches = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "5", "PEBBLE_AUTHZREUSE": "0"}
    pebble = Pebble(folder, ports.http01, switches, tlsalpn01_port=ports.tlsalpn01, dns_server=ports.dns_server)
    stack.push_async_callback(pebble.stop)
    await pebble.start()
    say("CA", f"Pebble at {pebble.directory_url}")
    return _Ca(directory_url=pebble.directory_url, trust_file=pebble.trust_file)


async def _start_daemon(stage: Stage, ca: _Ca, stack: AsyncExitStack) -> Process:
    config = stage.folder / "scaivaultd.toml"
    config.write_text(_configuration(stage, ca))
    daemon = Process([sys.executable, "-m", "scaivaultd", "serve", "--config", str(config)], stage.folder / "daemon")
    stack.push_async_callback(_end, daemon)
    daemon.start()

    async def is_ready() -> bool:
        if not daemon.is_alive():
            raise ended(daemon)
        return '"daemon.ready"' in daemon.log

    await until(is_ready, "the daemon is ready")
    return daemon


def ended(daemon: Process) -> DemoFailed:
    last_words = "\n".join(line[:LINE_MAX] for line in daemon.log.splitlines()[-LAST_LINES:])
    return DemoFailed(f"the daemon ended; its last words were:\n{last_words}")


def _configuration(stage: Stage, ca: _Ca) -> str:
    host = ca.directory_url.split("/")[2]
    return "\n".join(
        (
            f"state_dir = {json.dumps(str(stage.folder / 'state'))}",
            "[rest]",
            f"listen = [{json.dumps(f'unix:{stage.rest_socket}')}]",
            "[http01]",
            f'listen = ["127.0.0.1:{stage.http01_port}"]',
            "[tlsalpn01]",
            f'listen = ["127.0.0.1:{stage.tlsalpn01_port}"]',
            "[acme]",
            f"trust_files = [{json.dumps(str(ca.trust_file))}]",
            f"private_directories = [{json.dumps(host)}]",
            "[dns]",
            f'resolvers = ["{NAME_SERVERS[0]}:{stage.dns_port}"]',
            f"authoritative_port = {stage.dns_port}",
            "[log]",
            'format = "json"\n',
        )
    )


async def _end(process: Process) -> None:
    if not process.is_alive():
        return
    try:
        await process.stop(seconds=STOP_SECONDS)
    except TimeoutError:
        await process.stop(signal.SIGKILL)
