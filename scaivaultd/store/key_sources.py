"""The sources of master keys as the running daemon uses them: nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from scaivaultd.store.master_key import (
    create_master_key_file,
    load_master_key,
    master_key_from_passphrase,
    new_master_key,
    replace_master_key_file,
    stage_master_key_file,
    staged_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.plugin.secrets import Secret


class KeySources:
    """Reads keys where they are, makes them from passphrases, and replaces the file that holds one."""

    def __init__(
        self, environment: Mapping[str, str], credentials_directory: Path | None, log: FilteringBoundLogger
    ) -> None:
        self._environment = environment
        self._credentials_directory = credentials_directory
        self._log = log

    async def read(self, source: str) -> bytes:
        """The key in `file:PATH`, `credential:NAME` or `env:NAME`. A variable that holds one is gone afterwards.

        Raises:
            NoMasterKey: it is not there, or cannot be used.
            StartupError: there can be no such source.
        """
        key = await asyncio.to_thread(
            load_master_key,
            source,
            environment=self._environment,
            credentials_directory=self._credentials_directory,
        )
        # Not where it holds none: a request that names PATH must not cost the daemon its PATH.
        self.forget(source)
        return key

    def forget(self, source: str) -> None:
        """Take the variable of an `env:` source away, whatever it holds; no other source changes."""
        scheme, _, name = source.partition(":")
        if scheme != "env" or name not in self._environment:
            return
        # What is started from here, and whoever reads our references to secrets, shall not see it.
        if isinstance(self._environment, MutableMapping):
            del self._environment[name]
        self._log.warning(
            "secrets.master_key_in_environment",
            variable=name,
            advice="other processes of this user can read it in /proc; a file or a credential is safer",
        )

    async def derive(self, passphrase: Secret, salt: bytes) -> bytes:
        """The key that a passphrase stands for; takes a moment and 64 MiB."""
        return await asyncio.to_thread(master_key_from_passphrase, passphrase.reveal(), salt)

    async def create(self, source: str) -> None:
        """Make a new key in the file of a `file:` source.

        Raises:
            StartupError: there is one, or it cannot be made.
        """
        await asyncio.to_thread(create_master_key_file, _path(source))

    async def stage(self, source: str) -> bytes:
        """Draw a new key, and write it durably beside the file of a `file:` source.

        Raises:
            OSError: it cannot be written there.
        """
        key = new_master_key()
        await asyncio.to_thread(stage_master_key_file, _path(source), key)
        return key

    async def unstage(self, source: str) -> None:
        """Take it away again; that it cannot be is no error."""
        await asyncio.to_thread(_remove, staged_path(_path(source)))

    async def replace(self, source: str, key: bytes) -> None:
        """Put the staged key in the place of the one in that file.

        Raises:
            OSError: it cannot be; whichever key was there is whole.
        """
        await asyncio.to_thread(replace_master_key_file, _path(source), key)


def _path(source: str) -> Path:
    return Path(source.removeprefix("file:"))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
