"""The daemon's UNIX socket, answered by the table: requests must fit it, and so must what is answered."""

from __future__ import annotations

import json
import re
import socket
import socketserver
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from scaivaultd.api.commands import COMMANDS
from scaivaultd.model.errors import WIRE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from scaivaultd.api.commands import Command


class FakeApi:
    """What was asked, by the commands' names, and what is answered."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[Mapping[str, str]] = []
        self.replies: dict[str, Any] = {}
        """For each command a reply, a list of them (one for each request), or a problem's code."""
        self.raw: bytes | None = None
        """Sent in place of everything, if given."""

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Any]:
        command, members = _asked(method, target, body)
        msgspec.convert(members, command.request, strict=False)
        self.asked.append((command.name, members))
        reply = self.replies[command.name]
        if isinstance(reply, list):
            reply = reply.pop(0)
        if isinstance(reply, str):
            error = next(each for each in WIRE_ERRORS if each.code == reply)
            return error.status, {
                "code": error.code,
                "status": error.status,
                "title": error.title,
                "detail": f"this is {error.code}",
                "errors": [{"pointer": "/name", "code": "bad", "detail": "another name, please"}],
                "request_id": "req_1",
            }
        typed = msgspec.convert(reply, command.reply)
        return getattr(typed, "http_status", 200), msgspec.to_builtins(typed)


def _asked(method: str, target: str, body: bytes) -> tuple[Command[Any, Any], dict[str, Any]]:
    path, query = urlsplit(target).path, parse_qsl(urlsplit(target).query, strict_parsing=bool(urlsplit(target).query))
    for command in COMMANDS:
        pattern = re.sub(r"\{(\w+)\}", lambda found: f"(?P<{found[1]}>{_of(found[1])})", command.path)
        if command.method == method and (found := re.fullmatch(pattern, path)):
            words = {name: unquote(value) for name, value in found.groupdict().items()}
            return command, {**words, **dict(query), **json.loads(body or b"{}")}
    raise AssertionError(f"{method} {target} is no row of the table")


def _of(word: str) -> str:
    return ".+" if word == "path" else "[^/]+"


def _handler(api: FakeApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            api.headers.append(dict(self.headers.items()))
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if api.raw is not None:
                self.wfile.write(api.raw)
                return
            status, reply = api.answer(self.command, self.path, body)
            content = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class calls it so
            pass

    return Handler


@contextmanager
def served(path: Path) -> Iterator[FakeApi]:
    """Answer at a UNIX socket."""
    api = FakeApi()
    with _serving(socketserver.UnixStreamServer(str(path), _handler(api))):
        yield api


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def served_over_tcp(tls: ssl.SSLContext | None = None) -> Iterator[tuple[FakeApi, str]]:
    """Answer at a port of loopback; its address too."""
    api = FakeApi()
    server = (_Server if tls is None else _tls_server(tls))(("127.0.0.1", 0), _handler(api))
    with _serving(server):
        yield api, f"{'http' if tls is None else 'https'}://localhost:{server.server_address[1]}"


class _Server(socketserver.TCPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever does not trust us breaks off, which is no news."""


def _tls_server(tls: ssl.SSLContext) -> type[_Server]:
    class Server(_Server):
        def get_request(self) -> tuple[socket.socket, Any]:
            taken, peer = super().get_request()
            return tls.wrap_socket(taken, server_side=True), peer

    return Server
