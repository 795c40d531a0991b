"""The UNIX socket at its path, and which TCP sockets may go without TLS."""

from __future__ import annotations

import errno
import grp
import ipaddress
import os
import socket
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.model.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_BACKLOG = 256
_MODE = 0o660
_PROBE_SECONDS = 1.0
_PATH_BYTES_MAX = 107  # sun_path of Linux, less its end


class UnixSocket(msgspec.Struct, frozen=True, kw_only=True):
    """Where the socket is; `group` may use it beside the daemon's own user.

    `passed` listens there already, and is somebody else's: its file, with its mode and group, stays as it is.
    """

    path: Path
    group: str | None = None
    passed: socket.socket | None = None


class BoundUnix:
    """A UNIX socket that listens; `without_group`: it could not be given to the group that was wanted."""

    def __init__(self, path: Path, listening: socket.socket, *, is_ours: bool = True) -> None:
        self.socket = listening
        self.without_group = False
        self._path = path
        self._identity = _identity(path) if is_ours else None

    def remove(self) -> None:
        """Take the file away, unless somebody else has put another one there. To be done before the socket is closed.

        From then on another file may get this one's number, so a repetition does nothing.
        """
        if self._identity is not None and _identity(self._path) == self._identity:
            self._path.unlink(missing_ok=True)
        self._identity = None


def bind_unix(wanted: UnixSocket) -> BoundUnix:
    """Listen at a path. A socket file that an earlier run of ours left behind is removed first.

    Raises:
        StartupError: the path cannot be used; the text says what to do about it.
    """
    if wanted.passed is not None:
        # A copy: whoever takes this gateway's place, such as after the daemon was unsealed, listens there too.
        return BoundUnix(wanted.path, wanted.passed.dup(), is_ours=False)
    gid = _gid(wanted.group)
    try:
        _remove_stale(wanted.path)
        return _bound(wanted.path, gid)
    except OSError as error:
        raise StartupError(_advice(wanted.path, error)) from error


def _bound(path: Path, gid: int) -> BoundUnix:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        with _address_of(path) as address:
            opened.bind(address)
        bound = BoundUnix(path, opened)
    except BaseException:
        opened.close()
        raise
    try:
        # Nobody can connect before `listen`, so nobody slips in while the file is still as the umask made it.
        bound.without_group = not _is_given(path, gid)
        path.chmod(_MODE)
        opened.listen(_BACKLOG)
    except BaseException:
        bound.remove()
        opened.close()
        raise
    return bound


def _is_given(path: Path, gid: int) -> bool:
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        return False
    return True


@contextmanager
def _address_of(path: Path) -> Iterator[str]:
    """A path as the kernel takes it: one that is too long is told from its directory on."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def require_loopback(sockets: Sequence[socket.socket]) -> None:
    """Tokens and keys go over loopback only, unless there is TLS.

    Raises:
        StartupError: one of the sockets can be reached from elsewhere.
    """
    for each in sockets:
        address = each.getsockname()[0]
        if not ipaddress.ip_address(address).is_loopback:
            raise StartupError(
                f"cannot serve REST on {address} without TLS: tokens and private keys would go in the clear. "
                "Name a certificate and its key, or listen on 127.0.0.1 or [::1]"
            )


def _gid(group: str | None) -> int:
    if group is None:
        return -1
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise StartupError(
            f"the group {group!r} of the REST socket does not exist; create it or name another"
        ) from error


def _remove_stale(path: Path) -> None:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(there.st_mode):
        raise StartupError(f"{path} is there and is no socket; move it away or choose another path")
    if there.st_uid != os.geteuid():
        raise StartupError(
            f"{path} belongs to uid {there.st_uid}, not to this daemon; remove it or choose another path"
        )
    if _is_answered(path):
        raise StartupError(f"something listens at {path} already, perhaps a second scaivaultd; stop it")
    path.unlink()


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            with _address_of(path) as address:
                probe.connect(address)
        except ConnectionRefusedError:
            return False
        except (TimeoutError, BlockingIOError):
            return True  # its backlog is full: somebody is there
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        there = path.lstat()
    except OSError:
        return None
    return there.st_dev, there.st_ino


def _advice(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            remedy = "its directory does not exist; create it (RuntimeDirectory= in the unit)"
        case errno.EACCES | errno.EROFS:
            remedy = "the daemon may not write there; give it the directory (RuntimeDirectory= in the unit)"
        case _:
            remedy = "choose an absolute path with a short name, in a directory of the daemon's own"
    return f"cannot listen at {path}: {error.strerror or error}; {remedy}"
