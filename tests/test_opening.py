"""What the daemon opens at its start, and what does not keep it down."""

from __future__ import annotations

import contextlib
import socket
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import LogCapture

from scaivaultd import opening
from scaivaultd.model.clock import SystemClock
from scaivaultd.model.errors import StartupError
from scaivaultd.settings import Http01Settings, Settings, TlsAlpn01Settings
from scaivaultd.settings_values import ListenAddress
from scaivaultd.systemd import SortedSockets

if TYPE_CHECKING:
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def log(capture: LogCapture) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    return logger


async def test_a_web_server_on_port_443_does_not_keep_the_daemon_down(
    tmp_path: Path, capture: LogCapture, log: FilteringBoundLogger
) -> None:
    """Most hosts have one, and http-01 and dns-01 do without the port; nobody has asked for it by name."""
    settings = Settings(state_dir=tmp_path, http01=Http01Settings(listen=()))
    with ExitStack() as taken:
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            one = taken.enter_context(socket.socket(family, socket.SOCK_STREAM))
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # Without root nobody has the port, and neither has the daemon.
            with contextlib.suppress(OSError):
                one.bind((address, 443))
                one.listen()
        async with AsyncExitStack() as stack:
            listeners = opening.bind_listeners(settings, stack, SortedSockets(), clock=SystemClock(), log=log)
            assert list(listeners.tlsalpn01.addresses) == []
    assert {entry["listen"] for entry in capture.entries if entry["event"] == "tlsalpn01.address_skipped"} == {
        "0.0.0.0:443",
        "[::]:443",
    }


async def test_an_address_that_was_asked_for_must_be_had(tmp_path: Path, log: FilteringBoundLogger) -> None:
    """An administrator who names it wants challenges answered there, and must hear that they are not."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = ListenAddress(f"127.0.0.1:{taken.getsockname()[1]}")
        settings = Settings(
            state_dir=tmp_path, http01=Http01Settings(listen=()), tlsalpn01=TlsAlpn01Settings(listen=(address,))
        )
        async with AsyncExitStack() as stack:
            with pytest.raises(StartupError, match="something else listens there"):
                opening.bind_listeners(settings, stack, SortedSockets(), clock=SystemClock(), log=log)
