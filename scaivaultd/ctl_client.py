"""How `scaivaultctl` talks to a daemon: the rows of the table over HTTP, by its UNIX socket or by address.

The standard library only: whatever is imported here is waited for at every call.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_SOCKET = "unix:/run/scaivaultd/api.sock"
_TIMEOUT_SECONDS = 90.0
_PATH_MAX = 107  # sun_path of Linux, less its end


class Unreachable(Exception):
    """No daemon answers; the text says where it was looked for and what to do."""


class Refused(Exception):
    """The daemon's problem document (RFC 9457)."""

    def __init__(self, problem: Mapping[str, Any]) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or "refused"))
        self.problem = problem

    @property
    def code(self) -> str:
        """The stable code of the error."""
        return str(self.problem.get("code", "internal"))


def address_of(given: str | None, config: Path | None, environment: Mapping[str, str]) -> str:
    """Where the daemon is: what is given, that of a configuration file, $SCAIVAULT_ADDR, or the packaged unit's socket.

    Raises:
        Unreachable: the configuration file cannot be read.
    """
    if given:
        return f"unix:{given}" if given.startswith("/") else given
    if config is not None:
        return f"unix:{_socket_in(config)}"
    return environment.get("SCAIVAULT_ADDR") or DEFAULT_SOCKET


def _socket_in(config: Path) -> Path:
    try:
        settings = tomllib.loads(config.read_text())
        listen = settings.get("rest", {}).get("listen", [])
        paths = [str(each).removeprefix("unix:") for each in listen]
        named = next((Path(each) for each in paths if each.startswith("/")), None)
        return named or Path(settings["state_dir"]) / "api.sock"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise Unreachable(f"{config} cannot be used to find the daemon: {error}") from error


class Client:
    """One daemon, asked as often as need be."""

    def __init__(self, address: str, token: str | None) -> None:
        """`address` is `unix:/PATH`, `http://HOST:PORT` (loopback) or `https://HOST[:PORT]`."""
        self.address = address
        self._token = token

    def call(self, name: str, /, **members: Any) -> Any:
        """The reply to a command of the table, by its name; members that are None are left out.

        Raises:
            Refused: with the daemon's problem document.
            Unreachable: nobody answers, or somebody who is no scaivaultd.
        """
        from scaivaultd.api.commands import COMMANDS

        command = next(each for each in COMMANDS if each.name == name)
        body = {key: value for key, value in members.items() if value is not None}
        words = command.path.split("/")
        if missing := [word[1:-1] for word in words if word.startswith("{") and word[1:-1] not in body]:
            detail = f"{name} needs the member {missing[0]!r}"
            raise Refused({"code": "invalid_request", "detail": detail})
        path = "/".join(
            quote(str(body.pop(word[1:-1])), safe="/" if word == "{path}" else "") if word.startswith("{") else word
            for word in words
        )
        if command.method in ("GET", "DELETE") and body:
            path += "?" + urlencode({key: _texts(value) for key, value in body.items()}, doseq=True)
        content = json.dumps(body).encode() if command.method in ("POST", "PUT", "PATCH") else None
        return self._answer(command.method, path, content)

    def _answer(self, method: str, path: str, content: bytes | None) -> Any:
        headers = {"Accept": "application/json"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            with contextlib.closing(_connection(self.address)) as connection:
                connection.request(method, path, content, headers)
                response = connection.getresponse()
                reply = json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(self._advice(error)) from error
        if response.status >= 400 and isinstance(reply, dict) and "code" in reply:
            raise Refused(reply)
        return reply

    def _advice(self, error: Exception) -> str:
        match error:
            case FileNotFoundError():
                what = "there is no such socket; is the daemon running? Name another with --address or --config"
            case PermissionError():
                what = "this user may not use the socket; be root, or join the group in [access] admin_group"
            case ConnectionRefusedError():
                what = "nobody listens there; is the daemon running?"
            case ssl.SSLError():
                what = f"TLS fails: {getattr(error, 'reason', None) or 'the certificate is not trusted'}"
            case TimeoutError():
                what = f"no answer within {_TIMEOUT_SECONDS:.0f} s"
            case OSError():
                what = error.strerror or str(error)
            case _:
                what = "what answers there is no scaivaultd"
        return f"{self.address}: {what}"


def _texts(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return [_texts(each) for each in value] if isinstance(value, list) else value


def _connection(address: str) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    match parts.scheme:
        case "unix":
            return _UnixConnection(parts.path)
        case "https" if parts.hostname:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS, context=context)
        case "http" if parts.hostname in ("localhost", "127.0.0.1", "::1"):
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS)
        case "http":
            raise OSError("tokens go in the clear over http only on this host; use https")
        case _:
            raise OSError("an address is unix:/PATH, https://HOST[:PORT], or http://localhost:PORT")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(_TIMEOUT_SECONDS)
            with _short(self._path) as path:
                self.sock.connect(path)
        except BaseException:
            self.sock.close()
            raise


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """The path, or, where it is longer than the kernel takes, another one to the same socket."""
    if len(os.fsencode(path)) <= _PATH_MAX:
        yield path
        return
    directory = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{Path(path).name}"
    finally:
        os.close(directory)
