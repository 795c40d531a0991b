"""What systemd hands to a service that it starts, and how the service answers: sd_listen_fds(3), sd_notify(3).

Everything comes by the environment, and is taken out of it: what is started from here is not the service, and must not
speak for it. Telling never fails: a service that cannot say how it is goes on all the same.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping, Sequence

    from scaivaultd.settings import Settings

_FIRST_FD = 3
_SEND_SECONDS = 1.0
_BARRIER_SECONDS = 5.0
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID", "WATCHDOG_USEC")

HTTP01 = "http01"
TLSALPN01 = "tls-alpn01"
API = "api"


class Notifier:
    """Tells the service manager; where there is none it does nothing."""

    def __init__(self, address: str | None) -> None:
        """`address` is a path, or `@` and a name in the abstract namespace; as $NOTIFY_SOCKET has it."""
        self._socket = _connected(address) if address else None

    @property
    def is_heard(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def send(self, *assignments: str, descriptors: Sequence[int] = ()) -> bool:
        """Send assignments such as `READY=1` in one datagram; whether it arrived, or there is nobody to hear it."""
        if self._socket is None:
            return True
        message = "\n".join(each.replace("\n", " ") for each in assignments).encode(errors="replace")
        try:
            socket.send_fds(self._socket, [message], list(descriptors))
        except OSError:
            return False
        return True

    def ready(self, status: str) -> bool:
        """The start, or a reload, is over."""
        return self.send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> bool:
        """One line for `systemctl status`."""
        return self.send(f"STATUS={status}")

    def reloading(self, monotonic_seconds: float) -> bool:
        """A reload begins; `ready` ends it. systemd wants to know when, for a reload that it has asked for."""
        return self.send("RELOADING=1", f"MONOTONIC_USEC={_microseconds(monotonic_seconds)}", "STATUS=Reloading")

    def stopping(self, status: str) -> bool:
        """The end begins."""
        return self.send("STOPPING=1", f"STATUS={status}")

    def extend(self, seconds: float) -> bool:
        """Have the timeout of a start or a stop end that much later than now."""
        return self.send(f"EXTEND_TIMEOUT_USEC={_microseconds(seconds)}")

    def alive(self) -> bool:
        """What the watchdog waits for."""
        return self.send("WATCHDOG=1")

    def barrier(self) -> None:
        """Wait until everything sent has been read: who wrote it is looked up only then, and may be gone. Blocks."""
        if self._socket is None:
            return
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                is_sent = self.send("BARRIER=1", descriptors=[writing])
            finally:
                os.close(writing)
            if is_sent:
                poll = select.poll()
                poll.register(reading, 0)  # the other end is closed by whoever has read the message
                poll.poll(_BARRIER_SECONDS * 1000)
        finally:
            os.close(reading)

    def close(self) -> None:
        """Tell nothing more."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class PassedSockets(msgspec.Struct, frozen=True, kw_only=True):
    """Sockets that systemd listens at for us, with the names it gives them. Their order means nothing."""

    named: tuple[tuple[str, socket.socket], ...] = ()

    def sorted_for(self, settings: Settings) -> SortedSockets:
        """Each to its listener: by its name, or, where that tells nothing, by the address it has."""
        found: dict[str, list[socket.socket]] = {HTTP01: [], TLSALPN01: [], API: []}
        unused: list[str] = []
        for name, each in self.named:
            is_local = each.family == socket.AF_UNIX
            place = name if name in found else _place_by_address(each, settings)
            if not _listens(each) or place is None or is_local != (place == API) or (is_local and found[API]):
                unused.append(f"{name}={address_of(each)}")
                each.close()
            else:
                found[place].append(each)
        return SortedSockets(
            http01=tuple(found[HTTP01]),
            tlsalpn01=tuple(found[TLSALPN01]),
            api=next(iter(found[API]), None),
            unused=tuple(unused),
        )


class SortedSockets(msgspec.Struct, frozen=True, kw_only=True):
    """The sockets of each listener; `unused` are those nobody here has a use for, closed already."""

    http01: tuple[socket.socket, ...] = ()
    tlsalpn01: tuple[socket.socket, ...] = ()
    api: socket.socket | None = None
    unused: tuple[str, ...] = ()


class Handed(msgspec.Struct, frozen=True, kw_only=True):
    """What a service is started with. `watchdog_seconds` is None where nobody waits for signs of life."""

    notifier: Notifier
    sockets: PassedSockets = PassedSockets()
    watchdog_seconds: float | None = None


def take(environment: MutableMapping[str, str], pid: int) -> Handed:
    """Take what systemd has handed to the process `pid`, and the variables that tell of it."""
    told = {name: environment.pop(name, "") for name in (*_VARIABLES, "NOTIFY_SOCKET")}
    return Handed(
        notifier=Notifier(told["NOTIFY_SOCKET"] or None),
        sockets=PassedSockets(named=tuple(_passed(told, pid))),
        watchdog_seconds=_watchdog_seconds(told, pid),
    )


def address_of(listening: socket.socket) -> str:
    """Where a socket listens, as an administrator writes it."""
    name = listening.getsockname()
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if listening.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
    return os.fsdecode(name)


def _passed(told: MutableMapping[str, str], pid: int) -> Iterator[tuple[str, socket.socket]]:
    # Another pid: they were meant for a process that has started us, and are not ours.
    if told["LISTEN_PID"] != str(pid) or not told["LISTEN_FDS"].isdecimal():
        return
    count = int(told["LISTEN_FDS"])
    names = told["LISTEN_FDNAMES"].split(":")
    names += [""] * (count - len(names))
    for descriptor, name in zip(range(_FIRST_FD, _FIRST_FD + count), names, strict=False):
        os.set_inheritable(descriptor, False)
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            passed = socket.socket(fileno=descriptor)
            passed.setblocking(False)
            yield name, passed
        else:
            os.close(descriptor)


def _watchdog_seconds(told: MutableMapping[str, str], pid: int) -> float | None:
    if told["WATCHDOG_PID"] not in ("", str(pid)) or not told["WATCHDOG_USEC"].isdecimal():
        return None
    return int(told["WATCHDOG_USEC"]) / 1_000_000 or None


def _place_by_address(listening: socket.socket, settings: Settings) -> str | None:
    address = address_of(listening)
    if listening.family == socket.AF_UNIX:
        return API
    if address in settings.http01.listen:
        return HTTP01
    return TLSALPN01 if address in settings.tlsalpn01.listen else None


def _listens(passed: socket.socket) -> bool:
    return passed.type == socket.SOCK_STREAM and bool(passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _connected(address: str) -> socket.socket | None:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # systemd may be busy for a moment; a service that waited for it for longer would look dead itself.
        opened.settimeout(_SEND_SECONDS)
        opened.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        opened.close()
        return None
    return opened


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
