"""A certificate's files in a folder that is replaced as a whole: no reader sees a key beside another's certificate.

The folder is a symbolic link to a hidden one beside it, one for each version. Changing the link is the change.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAYOUTS = ("certbot", "plain", "haproxy")
_MANIFEST = ".scaivault.json"
_EXCHANGE = 2
_AT_FDCWD = -100


class Unsafe(Exception):
    """The folder is not one to write to; the text says why and what to do."""


class Parts(NamedTuple):
    """One version of a certificate, in PEM; the key is None where the daemon has none."""

    certificate_id: str
    version: int
    leaf: str
    chain: str
    key: str | None

    def __repr__(self) -> str:
        """Without the key."""
        return f"Parts({self.certificate_id}, {self.version})"


class Rights(NamedTuple):
    """Who may read what is written; an owner or group of -1 stays as it is."""

    owner: int = -1
    group: int = -1
    mode: int = 0o644
    key_mode: int = 0o600
    folder_mode: int = 0o755


def files_of(parts: Parts, layout: str) -> dict[str, tuple[bytes, bool]]:
    """The files of a layout: name -> content, and whether it is secret."""
    full = parts.leaf + parts.chain
    key = parts.key
    if layout == "haproxy":
        return {"combined.pem": ((full + (key or "")).encode(), key is not None)}
    if layout == "plain":
        found = {"certificate.pem": (full.encode(), False)}
        return found if key is None else {**found, "key.pem": (key.encode(), True)}
    found = {
        "cert.pem": (parts.leaf.encode(), False),
        "chain.pem": (parts.chain.encode(), False),
        "fullchain.pem": (full.encode(), False),
    }
    return found if key is None else {**found, "privkey.pem": (key.encode(), True)}


def installed_version(directory: Path, certificate_id: str) -> int | None:
    """The version of this certificate that is installed there; None if there is none."""
    try:
        told = json.loads((directory / _MANIFEST).read_bytes())
        return int(told["version"]) if told["id"] == certificate_id else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def looks_installed(directory: Path, parts: Parts, layout: str, rights: Rights) -> bool:
    """Whether the files of this version are there, whatever they hold."""
    if not directory.is_symlink() or installed_version(directory, parts.certificate_id) != parts.version:
        return False
    files = files_of(parts, layout)
    try:
        return {each.name for each in directory.iterdir()} == {*files, _MANIFEST} and all(
            _has(directory / name, rights, is_secret=is_secret) for name, (_, is_secret) in files.items()
        )
    except OSError:
        return False


def is_installed(directory: Path, parts: Parts, layout: str, rights: Rights) -> bool:
    """Whether exactly this is there already."""
    if not looks_installed(directory, parts, layout, rights):
        return False
    try:
        return all((directory / name).read_bytes() == content for name, (content, _) in files_of(parts, layout).items())
    except OSError:
        return False


def require_safe(directory: Path) -> None:
    """Return if the folder may be replaced.

    Raises:
        Unsafe: somebody else could have made it what it is, or it holds what is not ours.
        OSError: it cannot be looked at.
    """
    parent = directory.parent.stat()
    if parent.st_mode & stat.S_IWOTH and not parent.st_mode & stat.S_ISVTX:
        raise Unsafe(f"{directory.parent} may be written by everybody: another folder, or chmod o-w")
    if not os.path.lexists(directory):
        return
    there = directory.lstat()
    if there.st_uid not in (0, os.geteuid()):
        raise Unsafe(f"{directory} belongs to another user; remove it, or run this as that user")
    if stat.S_ISLNK(there.st_mode):
        if not _is_ours(directory, directory.readlink()):
            raise Unsafe(f"{directory} is a symbolic link that was not made by scaivaultctl; name where it leads to")
    elif not stat.S_ISDIR(there.st_mode):
        raise Unsafe(f"{directory} is no directory")
    else:
        known = {_MANIFEST, "README", *(name for layout in LAYOUTS for name in files_of(_NAMES, layout))}
        if others := sorted({each.name for each in directory.iterdir()} - known):
            raise Unsafe(f"{directory} holds {others[0]!r}, which is no file of a certificate; name another folder")


_NAMES = Parts("", 0, "", "", "")


def install(directory: Path, parts: Parts, layout: str, rights: Rights) -> None:
    """Replace the folder; the version before stays beside it until the next change.

    Raises:
        Unsafe: the folder is not one to write to.
        OSError: it fails; what was there is there still.
    """
    require_safe(directory)
    new = directory.parent / f".{directory.name}.v{parts.version}-{secrets.token_hex(4)}"
    link = directory.parent / f".{directory.name}.link-{secrets.token_hex(4)}"
    try:
        _fill(new, parts, layout, rights)
        link.symlink_to(new.name)
        before = _put(link, directory)
    except BaseException:
        link.unlink(missing_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(directory.parent)
    _sweep(directory, keep=[new.name, before])


def _fill(folder: Path, parts: Parts, layout: str, rights: Rights) -> None:
    folder.mkdir(mode=0o700)
    manifest = json.dumps({"id": parts.certificate_id, "version": parts.version, "layout": layout}).encode()
    for name, (content, is_secret) in {**files_of(parts, layout), _MANIFEST: (manifest, False)}.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchown(descriptor, rights.owner, rights.group)
            os.fchmod(descriptor, rights.key_mode if is_secret else rights.mode)
            os.fsync(descriptor)
    os.chown(folder, rights.owner, rights.group)
    folder.chmod(rights.folder_mode)
    _sync(folder)


def replace_file(file: Path, content: bytes, rights: Rights) -> None:
    """Replace one secret file in one step; raises OSError, and what was there is there still."""
    new = file.parent / f".{file.name}.{secrets.token_hex(4)}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fchown(descriptor, rights.owner, rights.group)
            os.fchmod(descriptor, rights.key_mode)
            os.fsync(descriptor)
        new.replace(file)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    _sync(file.parent)


def _put(link: Path, directory: Path) -> str:
    """Put the link in place; returns the name of what was there before, or nothing."""
    if directory.is_symlink() or not os.path.lexists(directory):
        before = directory.readlink().name if directory.is_symlink() else ""
        link.replace(directory)
        return before
    # A real folder cannot be replaced by a link in one step, but the two can change places.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(link), _AT_FDCWD, os.fsencode(directory), _EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(directory))
    aside = directory.parent / f".{directory.name}.v0-{secrets.token_hex(4)}"
    link.rename(aside)
    return aside.name


def _sweep(directory: Path, keep: Sequence[str]) -> None:
    for each in directory.parent.glob(f".{directory.name}.v*-*"):
        if each.name not in keep and _is_ours(directory, Path(each.name)) and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)


def _is_ours(directory: Path, target: Path) -> bool:
    if len(target.parts) != 1 or not target.name.startswith(f".{directory.name}.v"):
        return False
    there = directory.parent / target
    return not os.path.lexists(there) or there.lstat().st_uid in (0, os.geteuid(), directory.lstat().st_uid)


def _has(file: Path, rights: Rights, *, is_secret: bool) -> bool:
    there = file.lstat()
    return (
        stat.S_IMODE(there.st_mode) == (rights.key_mode if is_secret else rights.mode)
        and rights.owner in (-1, there.st_uid)
        and rights.group in (-1, there.st_gid)
    )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What a reload command gets: nothing of ours, and no credentials."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR")
    return {name: value for name, value in environment.items() if name in kept}
