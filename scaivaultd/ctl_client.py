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
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DEFAULT_PATH = "/run/scaivaultd/api.sock"
DEFAULT_SOCKET = f"unix:{_DEFAULT_PATH}"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NOBODY_OURS = "what answers there is no scaivaultd, or the answer broke off"
TIMEOUT_SECONDS = 90.0
NULL = object()
"""A member that is sent as null; one that is None is not sent."""
_PATH_MAX = 107  # sun_path of Linux, less its end


class Unreachable(Exception):
    """No daemon answers; the text says where it was looked for and what to do."""


class Misplaced(Exception):
    """What was given to find the daemon, or to be known to it, is no good."""


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
        Misplaced: it is no address, or the configuration file cannot be read.
    """
    if config is not None and not given:
        return f"unix:{_socket_in(config, environment)}"
    address = given or environment.get("SCAIVAULT_ADDR") or DEFAULT_SOCKET
    if address.removeprefix("unix:").startswith("/"):
        return f"unix:{address.removeprefix('unix:')}"
    if mistake := _mistake_in(address):
        raise Misplaced(f"{address}: {mistake}")
    return address


def _mistake_in(address: str) -> str | None:
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    match parts.scheme:
        case "https" | "http" if parts.path.strip("/") or parts.query or parts.fragment or parts.username:
            return "an address has a host and a port, and nothing else"
        case "https" if host:
            return None
        case "http" if host in _LOOPBACK:
            return None
        case "http":
            return "tokens go in the clear over http only on this host; use https"
        case _:
            return "an address is unix:/PATH, https://HOST[:PORT], or http://localhost:PORT"


def _socket_in(config: Path, environment: Mapping[str, str]) -> Path:
    from scaivaultd.settings import layers_of
    from scaivaultd.settings_layers import SettingsError

    try:
        settings: Any = layers_of(config, environment).table
        listen = settings.get("rest", {}).get("listen", [])
        paths = [str(each).removeprefix("unix:") for each in listen]
        named = next((Path(each) for each in paths if each.startswith("/")), None)
        own = Path(settings["state_dir"]) / "api.sock"
    except SettingsError as error:
        raise Misplaced(f"{error.mistakes[0]}; name the socket with --address") from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Misplaced(f"{config} is no configuration of a daemon; `scaivaultd check-config` says why") from error
    if named is None and not os.path.lexists(own) and os.path.lexists(_DEFAULT_PATH):
        return Path(_DEFAULT_PATH)  # under systemd the daemon's socket is in its runtime directory
    return named or own


class Client:
    """One daemon, asked as often as need be."""

    def __init__(
        self, address: str, token: str | None, ca_file: Path | None = None, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        """`address` is `unix:/PATH`, `http://HOST:PORT` (loopback) or `https://HOST[:PORT]`."""
        self.address = address
        self._token = token
        self._ca_file = ca_file
        self.timeout_seconds = timeout_seconds

    def call(self, name: str, /, **members: Any) -> Any:
        """The reply to a command of the table, by its name; members that are None are left out.

        Raises:
            Refused: with the daemon's problem document.
            Unreachable: nobody answers, or somebody who is no scaivaultd.
        """
        from scaivaultd.api.commands import COMMANDS

        command = next(each for each in COMMANDS if each.name == name)
        body = {key: None if value is NULL else value for key, value in members.items() if value is not None}
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

    def live(self) -> None:
        """Return if the daemon lives; whoever asks needs no token for that.

        Raises:
            Unreachable: it does not answer.
            Refused: something else than a daemon does, which knows problem documents.
        """
        self._answer("GET", "/livez", None)

    def _answer(self, method: str, path: str, content: bytes | None) -> Any:
        headers = {"Accept": "application/json"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            with contextlib.closing(self._connection()) as connection:
                connection.request(method, path, content, headers)
                response = connection.getresponse()
                reply = json.loads(response.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(self._advice(error)) from error
        # Health is told with 503 too, for monitors that go by the status alone.
        if isinstance(reply, dict) and (response.status // 100 == 2 or "components" in reply):
            return reply
        if isinstance(reply, dict) and "code" in reply:
            raise Refused(reply)
        raise Unreachable(f"{self.address}: {_NOBODY_OURS}")

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address.removeprefix("unix:"), self.timeout_seconds)
        parts = urlsplit(self.address)
        host = str(parts.hostname)
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, parts.port, timeout=self.timeout_seconds)
        try:
            context = ssl.create_default_context(cafile=self._ca_file)
        except OSError as error:
            reason = error.strerror or "it holds no certificates in PEM"
            raise Unreachable(f"the CA file {self._ca_file} cannot be used: {reason}") from error
        return http.client.HTTPSConnection(host, parts.port, timeout=self.timeout_seconds, context=context)

    def _advice(self, error: Exception) -> str:
        match error:
            case FileNotFoundError():
                what = "there is no such socket; is the daemon running? Name another with --address or --config"
            case PermissionError():
                what = (
                    "this user may not use the socket; be root, or join the group of [access] admin_group "
                    "(scaivault-admin unless configured), which needs the socket outside of state_dir"
                )
            case ConnectionRefusedError():
                what = "nobody listens there; is the daemon running?"
            case ssl.SSLCertVerificationError():
                what = f"its certificate is not trusted: {error.verify_message}; --ca-file names a CA of your own"
            case ssl.SSLError():
                what = f"TLS fails: {error.reason or 'broken off'}"
            case TimeoutError():
                what = f"no answer within {self.timeout_seconds:g} s; `systemctl status scaivaultd` tells how it is"
            case OSError():
                what = error.strerror or str(error)
            case _:
                what = _NOBODY_OURS
        return f"{self.address}: {what}"


def _texts(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return [_texts(each) for each in value] if isinstance(value, list) else value


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self._timeout_seconds)
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
