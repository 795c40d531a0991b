"""Where the master key comes from: a file, a systemd credential, or an environment variable.

Exactly one source is configured, and there is no fall-through: a key that cannot be read must
never be replaced by another one. Errors name the source and the remedy, never the value.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scaivaultd.model.errors import StartupError
from scaivaultd.store.durable import sync_directory
from scaivaultd.store.sealing import MASTER_KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_LONGEST = 1024  # far more than any form of a key; the rest of a longer file does not matter
_FORMS = "32 random bytes, or base64 or hex of them (`openssl rand -base64 32`)"


def load_master_key(source: str, *, environment: Mapping[str, str], credentials_directory: Path | None) -> bytes:
    """Read the 32 bytes from `file:PATH`, `credential:NAME` or `env:NAME`. Blocks.

    Raises:
        StartupError: the source is unknown, missing, open to others, or does not hold a key.
    """
    scheme, _, place = source.partition(":")
    match scheme:
        case "file" if place:
            key = _decode(_read_file(Path(place), source))
        case "credential" if place:
            key = _decode(_read_credential(_credential_path(place, source, credentials_directory), source))
        case "env" if place:
            key = _decode_text(_variable(place, source, environment))
        case _:
            raise StartupError("`secrets.master_key` must be file:PATH, credential:NAME or env:NAME")
    if key is None:
        raise StartupError(f"the master key in {source} has the wrong form: it must be {_FORMS}")
    return key


def create_master_key_file(path: Path) -> None:
    """Make a new master key as base64 text in a file of mode 0600, on stable storage. Blocks.

    Raises:
        StartupError: there is a file already (it is never overwritten), or the disk does not let us.
    """
    # Drawn here and not handed in: whoever could choose it could open every seal.
    text = base64.b64encode(secrets.token_bytes(MASTER_KEY_BYTES)) + b"\n"
    try:
        _write_new(path, text)
    except FileExistsError as error:
        raise StartupError(
            f"{path} exists already and is never overwritten: it may be the only key to a store"
        ) from error
    except OSError as error:
        raise StartupError(f"the master key file {path} cannot be made: {error.strerror}") from error


@contextmanager
def _opened(path: Path, source: str) -> Iterator[int]:
    try:
        # Without O_NONBLOCK a FIFO of that name would stop the start for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StartupError(
            f"the master key in {source} cannot be read: {error.strerror}. Put the store's key back there, or "
            "correct `secrets.master_key`"
        ) from error


def _read_file(path: Path, source: str) -> bytes:
    """Read a key file, refusing one that others can read or could have planted."""
    with _opened(path, source) as descriptor:
        _check_file(os.fstat(descriptor), path, source)
        return os.read(descriptor, _LONGEST)


def _read_credential(path: Path, source: str) -> bytes:
    # Mode and owner of a credential are systemd's; that we can read it is all there is to say.
    with _opened(path, source) as descriptor:
        return os.read(descriptor, _LONGEST)


def _check_file(status: os.stat_result, path: Path, source: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StartupError(f"the master key in {source} must be in a regular file")
    if status.st_uid not in (0, os.geteuid()):
        raise StartupError(
            f"the master key in {source} belongs to uid {status.st_uid}: it must belong to root or to the daemon's "
            f"own user; run `chown {os.geteuid()} {path}`, or make a new key if others could have put it there"
        )
    if status.st_mode & 0o077:
        raise StartupError(
            f"the master key in {source} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"run `chmod 600 {path}`, and make a new key if others may have read it"
        )


def _credential_path(name: str, source: str, directory: Path | None) -> Path:
    if "/" in name or name in {".", ".."}:
        raise StartupError(f"the master key's source {source} must name a credential, not a path")
    if directory is None:
        raise StartupError(
            f"the master key should come from {source}, but there are no credentials: start the daemon by its "
            f"systemd unit, with `LoadCredentialEncrypted={name}` (see systemd-creds)"
        )
    return directory / name


def _variable(name: str, source: str, environment: Mapping[str, str]) -> bytes:
    value = environment.get(name, "")
    if not value:
        raise StartupError(f"the master key should come from {source}, but the variable is not set")
    return value.encode(errors="replace")


def _decode(raw: bytes) -> bytes | None:
    """The key in a file: raw, or as text; a line end behind it is an editor's."""
    for ending in (b"", b"\n", b"\r\n"):
        key = raw.removesuffix(ending)
        if len(key) == MASTER_KEY_BYTES and not _is_text(key):
            return key
    return _decode_text(raw)


def _is_text(key: bytes) -> bool:
    # 32 printable characters are a password, or hex of half a key: never 32 random bytes.
    return all(0x20 <= byte < 0x7F for byte in key)


def _decode_text(raw: bytes) -> bytes | None:
    text = raw.strip()
    decoded = _from_hex(text) if len(text) == 2 * MASTER_KEY_BYTES else _from_base64(text)
    return decoded if decoded is not None and len(decoded) == MASTER_KEY_BYTES else None


def _from_hex(text: bytes) -> bytes | None:
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


def _from_base64(text: bytes) -> bytes | None:
    """Base64 of both alphabets (RFC 4648 sections 4 and 5), padded or not."""
    standard = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
    try:
        return base64.b64decode(standard + b"=" * (-len(standard) % 4), validate=True)
    except ValueError:
        return None


def _write_new(path: Path, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        sync_directory(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)  # half a key is worse than none
        raise
