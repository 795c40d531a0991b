"""What is found in the stores of other ACME clients, and how their files are read.

The readers (`import_certbot`, `import_lego`, `import_acmesh`) only look: they change nothing and run nothing of what
they read. What cannot be read is told beside what can.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Kind = Literal["certbot", "lego", "acme.sh", "pem"]
_PRIVATE_KEY = re.compile(r"-----BEGIN (?P<label>[A-Z ]*PRIVATE KEY)-----.*?-----END (?P=label)-----", re.DOTALL)
FILE_MAX = 1_000_000
"""Bytes; no file of such a store is larger."""


class Unreadable(Exception):
    """A file or a folder that cannot be used; the text says which, and why."""


@dataclass(frozen=True)
class ForeignAccount:
    """An account as another client keeps it; `ref` is what the store's certificates call it."""

    ref: str
    directory_url: str
    path: Path
    key: str = field(repr=False)
    email: str | None = None
    url: str | None = None


@dataclass(frozen=True)
class ForeignCertificate:
    """A certificate as another client keeps it: the current one only.

    `challenge_type` None: the store does not tell. `dns` is that client's word for its DNS plugin. `problem` says why
    it cannot be taken over; then the rest may be empty.
    """

    name: str
    path: Path
    chain_pem: str = ""
    key_pem: str | None = field(default=None, repr=False)
    account: str | None = None
    challenge_type: str | None = None
    dns: str | None = None
    reuse_key: bool = False
    problem: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForeignStore:
    """All that one client keeps. `credentials` are secrets of its DNS plugins, by name."""

    kind: Kind
    folder: Path
    accounts: tuple[ForeignAccount, ...] = ()
    certificates: tuple[ForeignCertificate, ...] = ()
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()


def read_file(path: Path) -> str:
    """A text file; raises Unreadable."""
    try:
        if path.stat().st_size > FILE_MAX:
            raise Unreadable(f"{path} is larger than {FILE_MAX} bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        broken = "points nowhere" if path.is_symlink() else "is missing"
        raise Unreadable(f"{path} {broken}") from None
    except UnicodeDecodeError:
        raise Unreadable(f"{path} is no text") from None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None


def folders_in(path: Path) -> list[Path]:
    """The folders in a folder, by name; none where there is no such folder. Raises Unreadable."""
    return [each for each in _entries(path) if each.is_dir()]


def files_in(path: Path, suffix: str) -> list[Path]:
    """The files in a folder whose names end so, by name; none where there is no such folder. Raises Unreadable."""
    return [each for each in _entries(path) if each.name.endswith(suffix) and not each.is_dir()]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None


def private_key_in(text: str) -> str:
    """The private key among what else stands in a PEM file, such as EC PARAMETERS; empty where there is none."""
    found = _PRIVATE_KEY.search(text)
    return "" if found is None else f"{found[0]}\n"


def without_private_keys(text: str) -> str:
    """A PEM file's other parts."""
    return _PRIVATE_KEY.sub("", text)


def host_of(url: str) -> str:
    """Host and port of a URL; empty where there is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""
