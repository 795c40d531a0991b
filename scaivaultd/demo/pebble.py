"""Pebble, the small CA for tests of Let's Encrypt, with its DNS server: every name resolves to 127.0.0.1."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

from scaivaultd.demo.ca_x509 import https_material
from scaivaultd.demo.process import Process, free_port, listens, until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def is_installed() -> bool:
    """Whether both programs of Debian's package `pebble` are there."""
    return shutil.which("pebble") is not None and shutil.which("pebble-challtestsrv") is not None


class Pebble:
    """A running Pebble. `trust_file` vouches for its HTTPS; what it issues hangs below another, new root."""

    def __init__(
        self,
        folder: Path,
        http01_port: int,
        environment: Mapping[str, str] | None = None,
        *,
        tlsalpn01_port: int | None = None,
        dns_server: str | None = None,
    ) -> None:
        """`environment` holds Pebble's switches (PEBBLE_VA_NOSLEEP and so on).

        `dns_server` (`address:port`) is whom it asks about names; without one, a server that sends every name to
        127.0.0.1.
        """
        self.http01_port = http01_port
        self.tlsalpn01_port = tlsalpn01_port or free_port()
        self._dns_server = dns_server
        self._folder = folder
        self._environment = environment or {}
        port, self.management_port, self._dns_port, self.dns_control_port = (free_port() for _ in range(4))
        self.directory_url = f"https://localhost:{port}/dir"
        self.trust_file = folder / "root.pem"
        self._port = port
        self._dns = Process(self._dns_arguments(), folder / "dns")
        self._pebble = Process(self._pebble_arguments(), folder / "pebble", self._environment)

    async def start(self) -> None:
        """Start both programs and wait until they listen."""
        self._folder.mkdir(parents=True, exist_ok=True)
        root_pem, https_pem = https_material("127.0.0.1")
        self.trust_file.write_text(root_pem)
        (self._folder / "https.pem").write_bytes(https_pem)
        self._write_configuration()
        if self._dns_server is None:
            self._dns.start()
            await until(lambda: listens(self.dns_control_port), "pebble-challtestsrv listens")
        self._pebble.start()
        await until(lambda: listens(self._port), "Pebble listens")

    async def stop(self) -> None:
        """End both programs."""
        await self._pebble.stop()
        if self._dns_server is None:
            await self._dns.stop()

    @property
    def pid(self) -> int:
        """Pebble's process id."""
        return self._pebble.pid

    @property
    def requests(self) -> int:
        """How many requests it has seen, by its own log."""
        return len(re.findall(r"^Pebble .* (?:GET|HEAD|POST) /", self._pebble.log, re.MULTILINE))

    @property
    def accounts(self) -> int:
        """How many accounts it has, by its own log."""
        counts = re.findall(r"There are now (\d+) accounts in memory", self._pebble.log)
        return int(counts[-1]) if counts else 0

    def _dns_arguments(self) -> list[str]:
        off = ["-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv6", ""]
        ports = ["-dns01", f"127.0.0.1:{self._dns_port}", "-management", f"127.0.0.1:{self.dns_control_port}"]
        return ["pebble-challtestsrv", *off, *ports]

    def _pebble_arguments(self) -> list[str]:
        dns_server = self._dns_server or f"127.0.0.1:{self._dns_port}"
        return ["pebble", "-config", str(self._folder / "config.json"), "-dnsserver", dns_server]

    def _write_configuration(self) -> None:
        settings = {
            "listenAddress": f"127.0.0.1:{self._port}",
            "managementListenAddress": f"127.0.0.1:{self.management_port}",
            "certificate": str(self._folder / "https.pem"),
            "privateKey": str(self._folder / "https.pem"),
            "httpPort": self.http01_port,
            "tlsPort": self.tlsalpn01_port,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": False,
        }
        (self._folder / "config.json").write_text(json.dumps({"pebble": settings}))
