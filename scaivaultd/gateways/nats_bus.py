"""The connection to NATS: made once, kept for ever, wherever the server may be at the moment."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.gateways.nats_identity import OWN_INBOX
from scaivaultd.gateways.nats_wire import ReadingClient
from scaivaultd.model import metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nats.aio.client import Client
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.gateways.nats_credentials import CredentialsFile
    from scaivaultd.model.clock import Clock

_LOG_EVERY_SECONDS = 60.0


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where NATS is and how we log in there; `user` and `password` are those of our own child."""

    servers: tuple[str, ...]
    user: str | None = None
    password: Callable[[], str] | None = None
    credentials: CredentialsFile | None = None
    tls_ca_file: Path | None = None

    def __repr__(self) -> str:
        return f"BusSettings({len(self.servers)} servers)"


class NatsBus:
    """One NATS connection for the whole daemon.

    Made with `pending_size=0`: while the server is away a publish fails at once instead of being
    buffered and applied later, when nobody waits for it any more.
    """

    def __init__(self, settings: BusSettings, *, clock: Clock, log: FilteringBoundLogger) -> None:
        self._settings = settings
        self._clock = clock
        self._log = log
        self._logged: dict[type[Exception], float] = {}
        self._connected = asyncio.Event()
        self._last_error = "not connected yet"
        self._closing = False
        self.client: Client = ReadingClient()

    @property
    def is_connected(self) -> bool:
        """Whether the server is there right now, as far as we know."""
        return bool(self.client.is_connected)

    @property
    def server_version(self) -> str:
        """By the server's own word; empty before the first connection."""
        return str(self.client._server_info.get("version", ""))

    @property
    def last_error(self) -> str:
        """Why it is not connected."""
        return self._last_error

    async def connect(self) -> None:
        """Connect; takes as long as the server is away. From then on reconnects happen by themselves."""
        await self.client.connect(
            servers=list(self._settings.servers),
            name="scaivaultd",
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            connect_timeout=5,
            ping_interval=15,
            max_outstanding_pings=2,
            pending_size=0,
            inbox_prefix=OWN_INBOX,
            **self._login(),
        )
        self._connected.set()
        self._log.info("nats.connected", server=self._server())

    async def connected(self) -> None:
        """Wait until the server is there."""
        await self._connected.wait()

    async def close(self, drain_seconds: float) -> None:
        """Send what is under way and close; an absent server is no reason to wait."""
        self._closing = True
        try:
            async with asyncio.timeout(drain_seconds):
                if self.is_connected:
                    await self.client.flush(timeout=max(1, int(drain_seconds)))
                await self.client.close()
        except Exception as error:  # noqa: BLE001 - we are leaving; whatever the client raises must not keep us
            self._log.debug("nats.close_failed", reason=type(error).__name__)

    def _login(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._settings.user is not None and self._settings.password is not None:
            options |= {"user": self._settings.user, "password": self._settings.password()}
        if self._settings.credentials is not None:
            options |= {
                "user_jwt_cb": self._settings.credentials.user_jwt,
                "signature_cb": self._settings.credentials.sign,
            }
        if self._settings.tls_ca_file is not None:
            options["tls"] = ssl.create_default_context(cafile=self._settings.tls_ca_file)
        return options

    # An exception in one of these would end reconnecting for ever (nats.py#204), so they do next to nothing.

    async def _on_error(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"
        # Senders of messages can bring some of them about as often as they like.
        now = self._clock.monotonic()
        if now - self._logged.get(type(error), float("-inf")) < _LOG_EVERY_SECONDS:
            return
        self._logged[type(error)] = now
        self._log.warning("nats.error", reason=self._last_error)

    async def _on_disconnected(self) -> None:
        self._connected.clear()
        if not self._closing:
            self._log.warning("nats.disconnected")

    async def _on_reconnected(self) -> None:
        self._connected.set()
        metrics.NATS_RECONNECTS.inc()
        self._log.info("nats.reconnected", server=self._server())

    def _server(self) -> str:
        url = self.client.connected_url
        # Never the whole URL: it may hold a password.
        return f"{url.hostname}:{url.port}" if url is not None else "?"
