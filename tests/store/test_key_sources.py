"""The sources of master keys as the daemon uses them."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd.plugin import Secret
from scaivaultd.store.key_sources import KeySources
from scaivaultd.store.master_key import NoMasterKey, master_key_from_passphrase, staged_path

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

KEY = "ab" * 32


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(capture: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    return logger


async def test_a_variable_is_gone_once_it_was_read(log: FilteringBoundLogger, capture: LogCapture) -> None:
    """Programs that are started from here inherit the environment, and references to secrets can name it."""
    environment = {"MASTER": KEY, "PATH": "/bin"}
    assert (await KeySources(environment, None, log).read("env:MASTER")).hex() == KEY
    assert environment == {"PATH": "/bin"}
    (said,) = capture.entries
    assert (said["event"], said["log_level"]) == ("secrets.master_key_in_environment", "warning")
    assert KEY not in repr(said)


async def test_a_variable_that_holds_no_key_stays_unless_it_was_meant_to(
    log: FilteringBoundLogger, capture: LogCapture
) -> None:
    """A rotation to `env:PATH` is refused, and the daemon still finds its programs."""
    environment = {"MASTER": "no key at all", "PATH": "/bin"}
    sources = KeySources(environment, None, log)
    for name in ("PATH", "MASTER"):
        with pytest.raises(NoMasterKey):
            await sources.read(f"env:{name}")
    assert environment == {"MASTER": "no key at all", "PATH": "/bin"}
    for source in ("env:MASTER", "env:MASTER", "file:PATH", "passphrase"):
        sources.forget(source)
    assert environment == {"PATH": "/bin"}
    assert "no key at all" not in repr(capture.entries)


async def test_a_variable_that_is_not_there_is_no_warning(log: FilteringBoundLogger, capture: LogCapture) -> None:
    """There was nothing that others could have seen."""
    with pytest.raises(NoMasterKey):
        await KeySources({}, None, log).read("env:MASTER")
    assert capture.entries == []


async def test_a_staged_key_is_not_the_key_until_it_takes_its_place(tmp_path: Path, log: FilteringBoundLogger) -> None:
    """A rotation that never began leaves nothing behind."""
    sources, source = KeySources({}, None, log), f"file:{tmp_path / 'key'}"
    await sources.create(source)
    before = await sources.read(source)
    staged = await sources.stage(source)
    assert await sources.read(f"file:{staged_path(tmp_path / 'key')}") == staged
    await sources.unstage(source)
    await sources.unstage(source)
    assert os.listdir(tmp_path) == ["key"]  # noqa: PTH208 - of the two it is the one for async code
    assert await sources.read(source) == before != staged


async def test_a_passphrase_is_stretched_off_the_loop(log: FilteringBoundLogger) -> None:
    """A fifth of a second in which nobody would be answered."""
    key = await KeySources({}, None, log).derive(Secret("a passphrase"), bytes(16))
    assert key == master_key_from_passphrase("a passphrase", bytes(16))
