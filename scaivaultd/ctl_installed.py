"""What is installed on this host, for those who check a configuration while no daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaivaultd.settings_plugins import Installed


def installed() -> Installed:
    """What the plugins of this host bring to a configuration, found without a word in a log."""
    import logging

    import structlog

    from scaivaultd import plugin_manager
    from scaivaultd.settings_plugins import Installed

    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found = plugin_manager.load(silent)
    return Installed(
        dns_providers=found.dns_providers,
        secret_backends=found.secret_backends,
        solvers={name: kind for (_, name), kind in found.solvers.items()},
    )
