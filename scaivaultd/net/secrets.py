"""Secrets by reference: `cred:NAME`, `file:PATH`, `env:NAME`, each only below the configured allow list.

One reference, one place: a missing secret is an error, never a look elsewhere. Values are read at
the moment of use and named nowhere.
"""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from scaivaultd.model.errors import FieldError, InvalidRequest, SecretNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

SECRET_MAX = 64 << 10
_SCHEMES = ("cred:", "file:", "env:")


class ReferencedSecrets:
    """Reads what references point to."""

    def __init__(
        self,
        allow: Sequence[str],
        *,
        master_keys: Callable[[], Collection[str]],
        environment: Mapping[str, str],
        credentials_directory: Path | None,
    ) -> None:
        """`master_keys` tells where master keys are at the moment: no caller may name those, whatever is allowed."""
        self._master_keys = master_keys
        self._allow = tuple(allow)
        self._environment = environment
        self._credentials_directory = credentials_directory

    def check(self, reference: str, pointer: str) -> None:
        """Refuse a reference of unknown form, or outside the allow list.

        Raises:
            InvalidRequest: with what is allowed.
        """
        if not reference.startswith(_SCHEMES) or reference in _SCHEMES:
            # Not repeated: it may be the secret itself, pasted into the wrong member.
            raise _refused(pointer, "this is no secret reference; write cred:NAME, file:/PATH or env:NAME")
        if reference.startswith("file:") and not _is_plain(reference.removeprefix("file:")):
            raise _refused(pointer, f"{reference!r}: give an absolute, printable path without '..'")
        is_allowed = any(self._covers(prefix, reference) for prefix in self._allow)
        if not is_allowed or _normal(reference) in map(_as_reference, self._master_keys()):
            raise _refused(
                pointer,
                f"{reference!r} is not among the references callers may use; an administrator can add it to "
                "[secrets] allow",
            )

    async def read(self, reference: str) -> str:
        """The secret's text without surrounding white space.

        Raises:
            SecretNotFound: nothing there, not readable, too large, or not text; only the reference is named.
        """
        scheme, _, rest = reference.partition(":")
        if scheme == "env":
            value = self._environment.get(rest)
            if value is None:
                raise SecretNotFound(f"{reference}: there is no such environment variable")
            return value.strip()
        return await asyncio.to_thread(_read_file, self._path(scheme, rest, reference), reference)

    @staticmethod
    def _covers(prefix: str, reference: str) -> bool:
        # A directory covers what is below it, not what begins with the same letters.
        if prefix.startswith("file:") and not prefix.endswith("/"):
            return reference == prefix or reference.startswith(f"{prefix}/")
        return reference.startswith(prefix)

    def _path(self, scheme: str, rest: str, reference: str) -> Path:
        if scheme == "file":
            return Path(rest)
        if self._credentials_directory is None:
            raise SecretNotFound(f"{reference}: systemd passed no credentials to this process")
        if "/" in rest or rest in (".", ".."):
            raise SecretNotFound(f"{reference}: a credential's name has no '/'")
        return self._credentials_directory / rest


def _as_reference(source: str) -> str:
    return _normal(source.replace("credential:", "cred:", 1))


def _is_plain(path: str) -> bool:
    pure = PurePosixPath(path)
    return pure.is_absolute() and ".." not in pure.parts and path.isprintable()


def _normal(reference: str) -> str:
    scheme, colon, rest = reference.partition(":")
    # Two slashes at the start are one here, which normpath leaves as they are.
    return f"{scheme}{colon}/{os.path.normpath(rest).lstrip('/')}" if scheme == "file" else reference


def _read_file(path: Path, reference: str) -> str:
    try:
        # O_NOFOLLOW: whoever may write the directory must not point us elsewhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SecretNotFound(f"{reference}: not a regular file")
            content = file.read(SECRET_MAX + 1)
    except OSError as error:
        raise SecretNotFound(f"{reference}: {error.strerror}") from error
    if len(content) > SECRET_MAX:
        raise SecretNotFound(f"{reference}: larger than {SECRET_MAX >> 10} KiB")
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise SecretNotFound(f"{reference}: not text") from None


def _refused(pointer: str, detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer=pointer, code="bad_reference", detail=detail)])
