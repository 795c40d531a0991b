"""A secret backend over a JSON file that maps names to texts: `sample:NAME`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from scaivaultd.plugin import PluginContext, SecretBackend, SecretBackendKind, SecretMissing, hookimpl

SCAIVAULTD_PLUGIN_API = "1.1"


class SampleBackendSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[secrets.backends.sample]`."""

    file: Annotated[str, Meta(description="The JSON file.")]


class SampleBackend:
    """Reads the file anew each time, so that a rotated secret is seen."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def read(self, path: str) -> str:
        """See `SecretBackend`."""
        try:
            texts = msgspec.json.decode(await asyncio.to_thread(self._file.read_bytes), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            # What a decoder says of a file of secrets may quote it.
            raise SecretMissing(f"sample:{path}", f"{self._file} cannot be read as a JSON object of texts") from None
        if path not in texts:
            raise SecretMissing(f"sample:{path}", f"{self._file} has no such name")
        return texts[path]


@asynccontextmanager
async def open_backend(settings: SampleBackendSettings, context: PluginContext) -> AsyncIterator[SecretBackend]:
    """Nothing is kept open."""
    yield SampleBackend(Path(settings.file))


@hookimpl
def scaivaultd_secret_backends() -> Iterable[SecretBackendKind]:
    """The one backend of this plugin."""
    return [
        SecretBackendKind(
            scheme="sample",
            summary="Texts in a JSON file.",
            settings=SampleBackendSettings,
            open=open_backend,
        )
    ]
