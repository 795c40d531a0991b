"""Where the master key comes from: a file, a systemd credential, an environment variable, or a passphrase.

Exactly one source is configured, and there is no fall-through: a key that cannot be read must
never be replaced by another one. Errors name the source and the remedy, never the value.
The command line tool makes and recovers keys with this, so nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
import unicodedata
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaivaultd.model.errors import StartupError
from scaivaultd.store.durable import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MASTER_KEY_BYTES = 32
"""What every source of a master key yields."""

SALT_BYTES = 16

_CHECKSUM_BYTES = 3
_RECOVERY_LETTERS = (MASTER_KEY_BYTES + _CHECKSUM_BYTES) * 8 // 5
_GROUP = 4
# What is read from paper: digits that base32 does not have stand for the letters they look like.
_MISREAD = str.maketrans("018", "OIB", " -\t\r\n")
_LONGEST = 1024  # far more than any form of a key; the rest of a longer file does not matter
_FORMS = "32 random bytes, or base64 or hex of them (`openssl rand -base64 32`)"


class NoMasterKey(StartupError):
    """There is no master key that fits the store; `reason` is the word for it on the wire.

    A daemon goes on sealed: the key may be given later.
    """

    def __init__(self, reason: Literal["key_missing", "key_mismatch", "passphrase_needed"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


def load_master_key(
    source: str,
    *,
    environment: Mapping[str, str],
    credentials_directory: Path | None,
    also_of: int | None = None,
) -> bytes:
    """Read the 32 bytes from `file:PATH`, `credential:NAME` or `env:NAME`. Blocks.

    A file belongs to root or to us; or to the user `also_of`, for whom we read it.

    Raises:
        NoMasterKey: it is missing, open to others, or does not hold a key.
        StartupError: there can be no such source.
    """
    scheme, _, place = source.partition(":")
    match scheme:
        case "file" if place:
            key = _decode(_read_file(Path(place), source, also_of))
        case "credential" if place:
            key = _decode(_read_credential(_credential_path(place, source, credentials_directory), source))
        case "env" if place:
            key = _decode_text(_variable(place, source, environment))
        case _:
            raise StartupError("`secrets.master_key` must be file:PATH, credential:NAME or env:NAME")
    if key is None:
        raise _missing(f"the master key in {source} has the wrong form: it must be {_FORMS}")
    return key


def new_master_key() -> bytes:
    """Draw one."""
    # Drawn here and not handed in: whoever could choose it could open every seal.
    return secrets.token_bytes(MASTER_KEY_BYTES)


def master_key_from_passphrase(passphrase: str, salt: bytes) -> bytes:
    """The master key that a passphrase stands for: Argon2id with 64 MiB, which takes a fifth of a second. Blocks."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    # The same letters typed on another keyboard may be other code points.
    text = unicodedata.normalize("NFC", passphrase).encode()
    return Argon2id(salt=salt, length=MASTER_KEY_BYTES, iterations=3, lanes=4, memory_cost=64 << 10).derive(text)


def recovery_key(master_key: bytes) -> str:
    """The master key as a person writes it down: base32 in groups of four, with a checksum."""
    text = base64.b32encode(master_key + _checksum(master_key)).decode()
    return "-".join(text[start : start + _GROUP] for start in range(0, len(text), _GROUP))


def from_recovery_key(text: str) -> bytes:
    """The master key that was written down; spaces, hyphens and case do not matter.

    Raises:
        ValueError: it is no recovery key, or has a mistake somewhere; the text is not repeated.
    """
    letters = text.translate(_MISREAD).upper()
    if len(letters) != _RECOVERY_LETTERS:
        raise ValueError(f"a recovery key has {_RECOVERY_LETTERS} letters and digits; this one has {len(letters)}")
    try:
        raw = base64.b32decode(letters)
    except ValueError:
        raise ValueError("this is no recovery key: it is of the letters A to Z and the digits 2 to 7") from None
    key, checksum = raw[:MASTER_KEY_BYTES], raw[MASTER_KEY_BYTES:]
    if not secrets.compare_digest(checksum, _checksum(key)):
        raise ValueError(
            "there is a mistake in the recovery key: its checksum does not fit; compare it letter by letter"
        )
    return key


def create_master_key_file(path: Path, key: bytes | None = None) -> None:
    """Put a master key, a new one unless given, as base64 text into a new file of mode 0600, durably. Blocks.

    Raises:
        StartupError: there is a file already (it is never overwritten), or the disk does not let us.
    """
    try:
        _write_new(path, _file_text(new_master_key() if key is None else key))
    except FileExistsError as error:
        raise StartupError(
            f"{path} exists already and is never overwritten: it may be the only key to a store"
        ) from error
    except OSError as error:
        raise StartupError(f"the master key file {path} cannot be made: {error.strerror}") from error


def stage_master_key_file(path: Path, key: bytes) -> None:
    """Put a master key beside the file of the one in use, as PATH.next, whatever is there. Blocks.

    Raises:
        OSError: it cannot be written there.
    """
    staged = staged_path(path)
    staged.unlink(missing_ok=True)
    _write_new(staged, _file_text(key))


def replace_master_key_file(path: Path, key: bytes) -> None:
    """Put a staged master key in the place of the one in use, whose file is gone then; may be repeated. Blocks.

    Raises:
        OSError: the old file, or the new one, is still whole there.
    """
    staged, target = staged_path(path), path.resolve()
    try:
        there = _decode(target.read_bytes())
    except FileNotFoundError:
        there = None
    if there != key:
        stage_master_key_file(path, key)  # again: what counts is the key, not what somebody did to the file meanwhile
        staged.replace(target)
    staged.unlink(missing_ok=True)
    sync_directory(target.parent)


def staged_path(path: Path) -> Path:
    """Where the next master key is while the one in a file is being replaced; beside the file behind a link."""
    target = path.resolve()
    return target.with_name(f"{target.name}.next")


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
        raise _missing(
            f"the master key in {source} cannot be read: {error.strerror}. Put the store's key back there, or "
            "correct `secrets.master_key`"
        ) from error


def _read_file(path: Path, source: str, also_of: int | None) -> bytes:
    """Read a key file, refusing one that others can read or could have planted."""
    with _opened(path, source) as descriptor:
        _check_file(os.fstat(descriptor), path, source, also_of)
        return os.read(descriptor, _LONGEST)


def _read_credential(path: Path, source: str) -> bytes:
    # Mode and owner of a credential are systemd's; that we can read it is all there is to say.
    with _opened(path, source) as descriptor:
        return os.read(descriptor, _LONGEST)


def _check_file(status: os.stat_result, path: Path, source: str, also_of: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise _missing(f"the master key in {source} must be in a regular file")
    if status.st_uid not in (0, os.geteuid(), also_of):
        raise _missing(
            f"the master key in {source} belongs to uid {status.st_uid}: it must belong to root or to the daemon's "
            f"own user; run `chown {os.geteuid()} {path}`, or make a new key if others could have put it there"
        )
    if status.st_mode & 0o077:
        raise _missing(
            f"the master key in {source} is open to others (mode {stat.S_IMODE(status.st_mode):04o}): "
            f"run `chmod 600 {path}`, and make a new key if others may have read it"
        )


def _credential_path(name: str, source: str, directory: Path | None) -> Path:
    if "/" in name or name in {".", ".."}:
        raise StartupError(f"the master key's source {source} must name a credential, not a path")
    if directory is None:
        raise _missing(
            f"the master key should come from {source}, but there are no credentials: start the daemon by its "
            f"systemd unit, with `LoadCredentialEncrypted={name}` (see systemd-creds)"
        )
    return directory / name


def _variable(name: str, source: str, environment: Mapping[str, str]) -> bytes:
    value = environment.get(name, "")
    if not value:
        raise _missing(f"the master key should come from {source}, but the variable is not set")
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


def _file_text(key: bytes) -> bytes:
    return base64.b64encode(key) + b"\n"


def _checksum(key: bytes) -> bytes:
    return hashlib.sha256(b"scaivault recovery key v1" + key).digest()[:_CHECKSUM_BYTES]


def _missing(message: str) -> NoMasterKey:
    return NoMasterKey("key_missing", message)


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
