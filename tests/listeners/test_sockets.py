"""Listening sockets: the right kind, all or none, and errors an administrator can act on."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from scaivaultd.listeners.sockets import bind_all, parse_listen
from scaivaultd.model.errors import StartupError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::]:80", ("::", 80)),
        ("[2001:DB8:0::1]:65535", ("2001:db8::1", 65535)),
    ],
)
def test_entries_are_taken_apart(text: str, expected: tuple[str, int]) -> None:
    """What the manual shows must work."""
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        ":80",
        "0.0.0.0",
        "0.0.0.0:",
        "0.0.0.0:65536",
        "0.0.0.0:-1",
        "0.0.0.0:+1",
        "0.0.0.0: 80",
        "0.0.0.0:\uff18\uff10",
        "0.0.0.0:000080",
        "::1:80",
        "[::1]",
        "[::1:80",
        "[127.0.0.1]:80",
        "[fe80::1%lo]:80",
        "localhost:80",
        "127.1:80",
        "unix:/run/socket",
    ],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    """A half-understood address would listen where nobody meant it to."""
    with pytest.raises(ValueError, match=r"like 0\.0\.0\.0:80 or \[::\]:80"):
        parse_listen(text)


def test_sockets_listen_without_blocking_and_are_not_inherited() -> None:
    """A socket that leaks into a child keeps the port taken after we are gone."""
    bound = bind_all(["127.0.0.1:0", "127.0.0.1:0"])
    try:
        for each in bound.sockets:
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            assert each.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
            assert not each.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT)
            assert not each.getblocking()
            assert not os.get_inheritable(each.fileno())
        assert bound.skipped == ()
    finally:
        for each in bound.sockets:
            each.close()


def test_both_families_share_a_port() -> None:
    """`0.0.0.0:80` and `[::]:80` stand side by side in the sample configuration."""
    first = bind_all(["[::]:0"]).sockets[0]
    with first:
        assert first.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        second = bind_all([f"0.0.0.0:{first.getsockname()[1]}"]).sockets[0]
        second.close()


def test_a_port_that_is_taken_is_named_and_nothing_stays_open() -> None:
    """Half a set of sockets would look like a running listener."""
    taken = bind_all(["127.0.0.1:0"]).sockets[0]
    free = bind_all(["127.0.0.1:0"]).sockets[0]
    port = free.getsockname()[1]
    free.close()
    with taken:
        entry = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartupError, match=rf"cannot listen on {entry}: .*ss -ltnp") as raised:
            bind_all([f"127.0.0.1:{port}", entry])
        assert raised.value.exit_code == 78
    again = bind_all([f"127.0.0.1:{port}"]).sockets[0]
    again.close()


def test_an_address_of_another_host_is_named() -> None:
    """The usual cause is a configuration copied from the neighbour."""
    with pytest.raises(StartupError, match=r"192\.0\.2\.1:0.*ip address"):
        bind_all(["192.0.2.1:0"])


def test_a_malformed_entry_is_a_startup_error() -> None:
    """The administrator sees one kind of error, whatever is wrong with the entry."""
    with pytest.raises(StartupError, match="cannot listen on localhost:80"):
        bind_all(["localhost:80"])


class Unprivileged(socket.socket):
    """A kernel that keeps low ports for itself."""

    def bind(self, address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize(("port", "advice"), [(80, "CAP_NET_BIND_SERVICE"), (8080, "security policy")])
def test_a_forbidden_port_says_which_right_is_missing(monkeypatch: pytest.MonkeyPatch, port: int, advice: str) -> None:
    """It is the first thing that goes wrong on a new host."""
    monkeypatch.setattr(socket, "socket", Unprivileged)
    with pytest.raises(StartupError, match=rf"127\.0\.0\.1:{port}: Permission denied; .*{advice}"):
        bind_all([f"127.0.0.1:{port}"])


class OnlyIpv4(socket.socket):
    """A kernel started with ipv6.disable=1."""

    def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:  # noqa: A002 - the names of socket.socket
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        super().__init__(family, type, proto, fileno)


def test_without_ipv6_the_wildcard_is_left_out_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """One configuration serves hosts with and without IPv6."""
    monkeypatch.setattr(socket, "socket", OnlyIpv4)
    bound = bind_all(["127.0.0.1:0", "[::]:0"])
    for each in bound.sockets:
        each.close()
    assert len(bound.sockets) == 1
    assert [each.entry for each in bound.skipped] == ["[::]:0"]


@pytest.mark.parametrize("listen", [["[::]:0"], ["127.0.0.1:0", "[::1]:0"]])
def test_without_ipv6_no_address_that_was_meant_is_dropped(monkeypatch: pytest.MonkeyPatch, listen: list[str]) -> None:
    """A daemon that listens nowhere, or not where it was told to, must not start."""
    monkeypatch.setattr(socket, "socket", OnlyIpv4)
    with pytest.raises(StartupError, match="this host has no IPv6"):
        bind_all(listen)
