"""Finds plugins by their entry points and asks them what they bring. A plugin that does not fit is
refused with a reason; the daemon starts without it."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import msgspec
import pluggy

from scaivaultd.plugin import ENTRY_POINT_GROUP, PLUGIN_API, SolverKind, hookspecs

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin as found: where it comes from, and why it was refused if it was."""

    name: str
    distribution: str
    version: str
    refused: str | None = None


class Plugins(msgspec.Struct, frozen=True, kw_only=True):
    """What the installed plugins bring: solvers by challenge type, and the plugins themselves."""

    found: tuple[Plugin, ...]
    solvers: dict[str, SolverKind]


def load(log: FilteringBoundLogger) -> Plugins:
    """Import every plugin and collect its kinds; nothing a plugin does here keeps the daemon down."""
    found: list[Plugin] = []
    solvers: dict[str, SolverKind] = {}
    for entry_point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda each: each.name):
        refused = _take(entry_point, solvers)
        distribution = entry_point.dist
        plugin = Plugin(
            name=entry_point.name,
            distribution=distribution.name if distribution else "unknown",
            version=distribution.version if distribution else "unknown",
            refused=refused,
        )
        found.append(plugin)
        if refused:
            log.warning("plugin.refused", plugin=plugin.name, distribution=plugin.distribution, reason=refused)
    return Plugins(found=tuple(found), solvers=solvers)


def fits(wanted: object) -> bool:
    """Whether a plugin written for contract `wanted` ("1.0") works with ours: same major, minor not later."""
    try:
        major, minor = (int(part) for part in str(wanted).split("."))
    except ValueError:
        return False
    our_major, our_minor = (int(part) for part in PLUGIN_API.split("."))
    return major == our_major and minor <= our_minor


def _take(entry_point: metadata.EntryPoint, solvers: dict[str, SolverKind]) -> str | None:
    """Load one plugin into `solvers`; returns why it was refused, or None."""
    try:
        module = entry_point.load()
        wanted = getattr(module, "SCAIVAULTD_PLUGIN_API", PLUGIN_API)
        if not fits(wanted):
            return f"it is written for plugin API {wanted}; this daemon has {PLUGIN_API}"
        kinds = _kinds(module, entry_point.name)
    # A stranger's import may raise anything, or try to leave; neither keeps us down.
    except (Exception, SystemExit) as error:  # noqa: BLE001 - see above
        return f"{type(error).__name__}: {error}"
    types = [kind.challenge_type for kind in kinds]
    if taken := next((each for place, each in enumerate(types) if each in solvers or each in types[:place]), None):
        return f"{taken} is solved already, by another plugin or twice by this one"
    solvers.update((kind.challenge_type, kind) for kind in kinds)
    return None


def _kinds(module: object, name: str) -> list[SolverKind]:
    # One manager a plugin: what one of them returns or raises is never mixed with another's.
    manager = pluggy.PluginManager("scaivaultd")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=name)
    manager.check_pending()
    kinds = [kind for kinds in manager.hook.scaivaultd_challenge_solvers() for kind in kinds]
    if strange := [kind for kind in kinds if not isinstance(kind, SolverKind)]:
        raise TypeError(f"scaivaultd_challenge_solvers returned {type(strange[0]).__name__}, not SolverKind")
    for kind in kinds:
        # msgspec checks types when it decodes, not when a constructor is called.
        if not (isinstance(kind.name, str) and isinstance(kind.challenge_type, str) and callable(kind.open)):
            raise TypeError("a SolverKind needs a text as name and as challenge_type, and a callable as open")
    return kinds
