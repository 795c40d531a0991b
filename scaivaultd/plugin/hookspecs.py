"""The hooks. Each is a plain function that returns descriptions; what they describe is asynchronous."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.plugin.challenge import SolverKind

PLUGIN_API = "1.0"
"""Version of this contract: a plugin for another major version, or a later minor one, is refused."""

ENTRY_POINT_GROUP = "scaivaultd"

hookspec = pluggy.HookspecMarker("scaivaultd")
hookimpl = pluggy.HookimplMarker("scaivaultd")


@hookspec
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """The challenge solvers of this plugin. Two solvers for one challenge type refuse the later plugin."""
    return ()
