"""The real daemon over HTTP, for system tests: by its UNIX socket as its own user, or by address with a token."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import ssl
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TIMEOUT_SECONDS = 70.0
NAME = "api.example.test"
"""What a daemon is called whose own certificate is looked at."""


class Answer(msgspec.Struct, frozen=True):
    """What came back; `body` is the decoded JSON, or None."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text) if self.text else None


class OverHttp:
    """One place where the daemon answers."""

    def __init__(
        self, *, unix: Path | None = None, port: int = 0, token: str | None = None, ca: str | None = None
    ) -> None:
        """`ca`: the root that vouches for its certificate, and so HTTPS, under `NAME`."""
        self._unix = unix
        self._port = port
        self._ca = ca
        self.token = token

    async def ask(
        self, method: str, target: str, body: Any = None, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own."""
        return await asyncio.to_thread(self._asked, method, target, body, headers or {})

    def _asked(self, method: str, target: str, body: Any, headers: Mapping[str, str]) -> Answer:
        connection = self._connection()
        try:
            every = dict(headers)
            if self.token is not None:
                every.setdefault("Authorization", f"Bearer {self.token}")
            content = None
            if body is not None:
                content = json.dumps(body).encode()
                every.setdefault("Content-Type", "application/json")
            connection.request(method, target, content, every)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read().decode())
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if self._unix is not None:
            return _UnixConnection(self._unix)
        if self._ca is not None:
            return _TlsConnection(self._port, self._ca)
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)


class _TlsConnection(http.client.HTTPConnection):
    def __init__(self, port: int, ca: str) -> None:
        super().__init__("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        self._context = ssl.create_default_context(cadata=ca)

    def connect(self) -> None:
        super().connect()
        self.sock = self._context.wrap_socket(self.sock, server_hostname=NAME)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


async def token_for(state_dir: Path, name: str, *policies: str) -> str:
    """A new API token's text, asked for as the daemon's own user."""
    answer = await OverHttp(unix=state_dir / "api.sock").ask(
        "POST", "/v1/tokens", {"name": name, "policies": list(policies)}
    )
    assert answer.status == 201, answer
    return str(answer.body["token"])
