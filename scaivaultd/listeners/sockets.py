"""Listening sockets: opened all together or not at all, with errors that say what to do."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Several perspectives of a CA knock at once; the kernel cuts this down to net.core.somaxconn.
_BACKLOG = 1024
_FIRST_UNPRIVILEGED_PORT = 1024


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that was left out, and why; worth a warning."""

    entry: str
    reason: str


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """Sockets that listen, in the order of their entries, and the entries that were left out."""

    sockets: list[socket.socket]
    skipped: tuple[Skipped, ...] = ()


def bind_all(listen: Sequence[str]) -> Bound:
    """Listen at every `host:port` entry; port 0 lets the kernel choose. The caller closes the sockets.

    A `[::]` entry is left out, not refused, on a host without IPv6: one configuration then serves
    both kinds of host. IPv6 sockets take no IPv4 connections, so `0.0.0.0:80` and `[::]:80` go together.

    Raises:
        StartupError: an entry cannot be used or none is left; the text says what to do about it.
            Nothing stays open.
    """
    sockets: list[socket.socket] = []
    skipped: list[Skipped] = []
    with ExitStack() as opened:
        for entry in listen:
            host, port = _parsed(entry)
            try:
                sockets.append(opened.enter_context(_listening(host, port)))
            except OSError as error:
                if error.errno != errno.EAFNOSUPPORT or host != "::":
                    raise StartupError(_advice(entry, port, error)) from error
                skipped.append(Skipped(entry=entry, reason="this host has no IPv6"))
        if skipped and not sockets:
            raise StartupError(f"cannot listen on {skipped[0].entry}: this host has no IPv6; listen on 0.0.0.0 instead")
        opened.pop_all()
    return Bound(sockets=sockets, skipped=tuple(skipped))


def parse_listen(text: str) -> tuple[str, int]:
    """Take `192.0.2.1:80` or `[2001:db8::1]:80` apart: address without brackets, and port.

    Raises:
        ValueError: anything else, names included, since a name may be several addresses or none.
    """
    host, colon, port_text = text.rpartition(":")
    if not colon or not _is_port(port_text):
        raise ValueError(f"{text!r} must end in a colon and a port from 0 to 65535, like 0.0.0.0:80 or [::]:80")
    try:
        if host.startswith("[") and host.endswith("]"):
            return str(_without_zone(host[1:-1])), int(port_text)
        return str(ipaddress.IPv4Address(host)), int(port_text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} must begin with an IPv4 address or an IPv6 address in brackets, like 0.0.0.0:80 or [::]:80"
        ) from error


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535


def _without_zone(text: str) -> ipaddress.IPv6Address:
    address = ipaddress.IPv6Address(text)
    if address.scope_id is not None:
        raise ValueError("an address with a zone is reachable from its own link only")
    return address


def _parsed(entry: str) -> tuple[str, int]:
    try:
        return parse_listen(entry)
    except ValueError as error:
        raise StartupError(f"cannot listen on {entry}: {error}") from error


def _listening(host: str, port: int) -> socket.socket:
    """Python makes every socket close-on-exec."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # A restart must not wait for the connections of the process before it to leave TIME_WAIT.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setblocking(False)
        opened.bind((host, port))
        opened.listen(_BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


def _advice(entry: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EACCES if port < _FIRST_UNPRIVILEGED_PORT:
            remedy = (
                f"port {port} is privileged: grant CAP_NET_BIND_SERVICE (AmbientCapabilities= in the unit), let "
                f"systemd pass the socket, or choose a port from {_FIRST_UNPRIVILEGED_PORT} on and forward {port} to it"
            )
        case errno.EACCES:
            remedy = "a security policy (SELinux, AppArmor) or the unit's SocketBindDeny= forbids it; allow this port"
        case errno.EADDRINUSE:
            remedy = (
                "something else listens there, often a web server or a second scaivaultd, or the entry is there twice; "
                f"`ss -ltnp 'sport = :{port}'` names it. Stop it, or choose another address or port"
            )
        case errno.EADDRNOTAVAIL:
            remedy = (
                "no interface of this host has that address (yet); `ip address` lists those there are. "
                "Correct it, or listen on 0.0.0.0 or [::]"
            )
        case errno.EAFNOSUPPORT:
            remedy = "this host has no IPv6; remove the entry or switch IPv6 on"
        case _:
            remedy = "the kernel refuses this address or port; correct the entry"
    return f"cannot listen on {entry}: {error.strerror or error}; {remedy}"
