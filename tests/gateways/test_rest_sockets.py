"""The UNIX socket: only its group may use it, and nobody else's file is touched."""

from __future__ import annotations

import asyncio
import grp
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from scaivaultd.gateways.rest_identity import bearer_token, peer_credentials
from scaivaultd.gateways.rest_sockets import UnixSocket, bind_unix, require_loopback
from scaivaultd.model.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rest.sock"


def test_user_and_group_may_connect_and_nobody_else(path: Path) -> None:
    """Who may connect may try."""
    own = grp.getgrgid(os.getegid()).gr_name
    old = os.umask(0o077)
    try:
        bound = bind_unix(UnixSocket(path=path, group=own))
    finally:
        os.umask(old)
    with bound.socket:
        there = path.stat()
        assert stat.S_IMODE(there.st_mode) == 0o660
        assert there.st_gid == os.getegid()
        bound.remove()
    assert not path.exists()


def test_the_kernel_says_who_is_at_the_other_end(path: Path) -> None:
    """A client cannot claim to be another."""
    bound = bind_unix(UnixSocket(path=path))
    with bound.socket, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        accepted, _ = bound.socket.accept()
        with accepted:
            peer = peer_credentials(accepted)
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert peer.gids == {os.getgid(), *os.getgroups()}


GROUPED = """
import os, socket, sys
os.setgroups([int(each) for each in sys.argv[2].split(",") if each])
os.setgid(4004)
os.setuid(4294967294)
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.recv(1)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(("groups", "known"), [([4001, 4002], {4001, 4002, 4004}), (range(5000, 5300), {4004})])
async def test_every_group_of_the_other_end_is_known(tmp_path: Path, groups: Sequence[int], known: set[int]) -> None:
    """The administrators' group is seldom somebody's first; of more groups than the kernel tells us, none counts."""
    path = tmp_path / "rest.sock"
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    bound = bind_unix(UnixSocket(path=path))
    path.chmod(0o777)
    with bound.socket:
        command = [sys.executable, "-c", GROUPED, str(path), ",".join(map(str, groups))]
        client = await asyncio.create_subprocess_exec(*command)
        accepted, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(bound.socket), 20)
        with accepted:
            peer = peer_credentials(accepted)
        assert await client.wait() == 0
    assert (peer.uid, peer.gid, set(peer.gids)) == (4294967294, 4004, known)


def test_a_path_that_is_too_long_for_the_kernel_works(tmp_path: Path) -> None:
    """State directories below home directories are often longer than 107 bytes; a stale socket there goes too."""
    directory = tmp_path / ("d" * 60) / ("e" * 60)
    directory.mkdir(parents=True)
    path = directory / "rest.sock"
    bind_unix(UnixSocket(path=path)).socket.close()
    bound = bind_unix(UnixSocket(path=path))
    with bound.socket, socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(StartupError, match="second scaivaultd"):
            bind_unix(UnixSocket(path=path))
        client.connect(_short(path))
        bound.remove()
    assert not path.exists()


def _short(path: Path) -> str:
    link = path.parents[2] / "short"
    link.symlink_to(path.parent)
    return str(link / path.name)


def test_a_group_that_cannot_be_given_is_no_reason_not_to_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own user and root can still use it; a warning tells of the others."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chown", refuse)  # what the kernel says to whoever is not root, which tests may be
    bound = bind_unix(UnixSocket(path=path, group=grp.getgrgid(os.getegid()).gr_name))
    with bound.socket, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    assert bound.without_group
    assert stat.S_IMODE(path.stat().st_mode) == 0o660


def test_what_a_killed_daemon_left_behind_is_replaced(path: Path) -> None:
    """Else every crash would need a person."""
    bind_unix(UnixSocket(path=path)).socket.close()
    assert path.exists()
    bound = bind_unix(UnixSocket(path=path))
    with bound.socket, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_living_daemon_keeps_its_socket(path: Path) -> None:
    """The second one says what is wrong."""
    first = bind_unix(UnixSocket(path=path))
    with first.socket:
        with pytest.raises(StartupError, match="second scaivaultd"):
            bind_unix(UnixSocket(path=path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file somebody else's")
def test_a_socket_of_somebody_else_is_not_touched(path: Path) -> None:
    """It may be a trap in a directory that others write."""
    bind_unix(UnixSocket(path=path)).socket.close()
    os.chown(path, 65534, -1)
    with pytest.raises(StartupError, match="belongs to uid 65534"):
        bind_unix(UnixSocket(path=path))
    assert path.exists()


def test_a_file_that_is_no_socket_is_not_touched(path: Path) -> None:
    """A wrong path in the configuration must not cost anybody a file."""
    path.write_text("precious")
    with pytest.raises(StartupError, match="no socket"):
        bind_unix(UnixSocket(path=path))
    assert path.read_text() == "precious"


def test_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    """It may lead anywhere."""
    target = tmp_path / "target.sock"
    bind_unix(UnixSocket(path=target)).socket.close()
    path.symlink_to(target)
    with pytest.raises(StartupError, match="no socket"):
        bind_unix(UnixSocket(path=path))
    assert target.exists()


def test_only_the_own_file_is_removed(path: Path) -> None:
    """A daemon that stops late must not cut off the one that has taken over."""
    bound = bind_unix(UnixSocket(path=path))
    with bound.socket:
        path.unlink()
        path.write_text("the next one's")
        bound.remove()
    assert path.exists()


def test_removing_again_removes_nothing(path: Path, tmp_path: Path) -> None:
    """A file system gives the number of a file that is gone to the next one."""
    bound = bind_unix(UnixSocket(path=path))
    with bound.socket:
        next_one = tmp_path / "next"
        next_one.hardlink_to(path)
        bound.remove()
        next_one.rename(path)
        bound.remove()
    assert path.exists()


@pytest.mark.parametrize(
    ("name", "group", "match"),
    [
        ("missing/rest.sock", None, "directory does not exist"),
        ("x" * 120, None, "with a short name"),
        ("rest.sock", "no-such-group", "does not exist; create it"),
    ],
)
def test_a_place_that_cannot_be_is_explained(tmp_path: Path, name: str, group: str | None, match: str) -> None:
    """The text is all the administrator has."""
    with pytest.raises(StartupError, match=match):
        bind_unix(UnixSocket(path=tmp_path / name, group=group))


@pytest.mark.parametrize(("host", "allowed"), [("127.0.0.1", True), ("127.0.0.9", True), ("0.0.0.0", False)])
def test_without_tls_there_is_only_loopback(host: str, allowed: bool) -> None:
    """Tokens and keys in the clear are everybody's."""
    with socket.create_server((host, 0)) as opened:
        if allowed:
            require_loopback([opened])
        else:
            with pytest.raises(StartupError, match="without TLS"):
                require_loopback([opened])


@pytest.mark.parametrize(
    ("fields", "token"),
    [
        (["Bearer abc"], "abc"),
        (["bearer  abc=="], "abc=="),
        (["Bearer"], None),
        (["Bearer a b"], None),
        (["Bearer ä"], None),
        (["Basic abc"], None),
        (["Bearer a", "Bearer b"], None),
        ([], None),
    ],
)
def test_one_bearer_token_is_one(fields: list[str], token: str | None) -> None:
    """Two tokens are two callers."""
    found = bearer_token(fields)
    assert (found.reveal() if found else None) == token
