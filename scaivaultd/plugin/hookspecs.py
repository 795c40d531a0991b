"""The hooks. Each is a plain function that returns descriptions; what they describe is asynchronous."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.plugin.challenge import SolverKind
    from scaivaultd.plugin.dns import DnsProviderKind
    from scaivaultd.plugin.secrets import SecretBackendKind

PLUGIN_API = "1.1"
"""Version of this contract: a plugin for another major version, or a later minor one, is refused.

1.0: challenge solvers. 1.1: DNS providers, secret backends, `solver` names, claims.
"""

ENTRY_POINT_GROUP = "scaivaultd"

hookspec = pluggy.HookspecMarker("scaivaultd")
hookimpl = pluggy.HookimplMarker("scaivaultd")


@hookspec
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """The challenge solvers of this plugin. A name that is taken for its challenge type refuses the plugin."""
    return ()


@hookspec
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """The kinds of DNS providers of this plugin. A name that is taken refuses the plugin."""
    return ()


@hookspec
def scaivaultd_secret_backends() -> Iterable[SecretBackendKind]:
    """The secret backends of this plugin. A scheme that is taken refuses the plugin."""
    return ()
