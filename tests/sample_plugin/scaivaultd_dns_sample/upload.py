"""A solver that puts http-01 tokens where another web server serves them: a folder that is mounted or synchronised."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from scaivaultd.plugin import (
    ChallengeResponse,
    ChallengeSolver,
    SolverContext,
    SolverError,
    SolverKind,
    hookimpl,
)

SCAIVAULTD_PLUGIN_API = "1.1"


class UploadSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table `[solvers.upload]`."""

    webroot: Annotated[str, Meta(description="The folder that the web server serves.")]


class UploadSolver:
    """One file for each token below `.well-known/acme-challenge` (RFC 8555 section 8.3)."""

    def __init__(self, webroot: Path) -> None:
        self._folder = webroot / ".well-known" / "acme-challenge"

    async def present(self, response: ChallengeResponse) -> None:
        """Write the file; writing it again is no error."""
        try:
            await asyncio.to_thread(_write, self._file(response), response.key_authorization)
        except OSError as error:
            raise SolverError(f"the web root cannot be written: {error.strerror}", retryable=True) from error

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Remove the file; one that is gone is no error."""
        await asyncio.to_thread(self._file(response).unlink, missing_ok=True)

    def _file(self, response: ChallengeResponse) -> Path:
        # The token comes from the CA and becomes a file name here.
        if not re.fullmatch(r"[A-Za-z0-9_-]+", response.token):
            raise SolverError("the token is no file name")
        return self._folder / response.token


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.new")
    half.write_text(text)
    half.replace(file)


@asynccontextmanager
async def open_upload(context: SolverContext) -> AsyncIterator[ChallengeSolver]:
    """Nothing is kept open."""
    settings: UploadSettings = context.settings
    yield UploadSolver(Path(settings.webroot))


@hookimpl
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """Chosen by `solver` = `upload` in a request."""
    return [
        SolverKind(
            name="upload", challenge_type="http-01", open=open_upload, settings=UploadSettings, present_seconds=30
        )
    ]
