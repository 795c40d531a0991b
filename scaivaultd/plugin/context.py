"""What the host lends a plugin: secrets by reference, a clock, a log, a name to go by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from scaivaultd.model.clock import Clock
from scaivaultd.plugin.secrets import SecretReader


class Log(Protocol):
    """A structured log: a dotted event name and fields, no prose, never a secret."""

    def debug(self, event: str, **fields: Any) -> Any:
        """For whoever looks for a fault in the plugin itself."""
        ...

    def info(self, event: str, **fields: Any) -> Any:
        """A step in the life of a certificate."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:
        """Something a person should look at."""
        ...


def anywhere(host: str, port: int, address: str) -> bool:
    """Nothing is out of reach."""
    return True


class PluginContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a DNS provider or a secret backend works with.

    `fraction` returns a random number from 0 up to 1, for jitter. `user_agent` is what HTTP requests
    should call themselves. `may_reach` judges an address under its name and port before it is connected to: callers
    who configure a provider do not get it to talk to the inner network. `scaivaultd.plugin.http` asks it by itself.
    Nothing here may be used after the plugin's context manager was left.
    """

    secrets: SecretReader
    clock: Clock
    fraction: Callable[[], float]
    log: Log
    user_agent: str
    may_reach: Callable[[str, int, str], bool] = anywhere
