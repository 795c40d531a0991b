"""Finds plugins by their entry points and asks them what they bring. A plugin that does not fit is
refused with a reason; the daemon starts without it."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from scaivaultd.plugin import (
    ENTRY_POINT_GROUP,
    PLUGIN_API,
    DnsProviderKind,
    ProviderSettings,
    SecretBackendKind,
    SolverKind,
    hookspecs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from structlog.typing import FilteringBoundLogger

_TYPE_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_SCHEME = re.compile(r"[a-z][a-z0-9+-]*")
_RESERVED_SCHEMES = frozenset({"cred", "credential", "env", "file", "http", "https", "store"})


class Brought(msgspec.Struct, frozen=True, kw_only=True):
    """What one plugin, or all of them, bring."""

    solvers: tuple[SolverKind, ...] = ()
    dns_providers: tuple[DnsProviderKind, ...] = ()
    secret_backends: tuple[SecretBackendKind, ...] = ()

    @property
    def names(self) -> list[str]:
        """Everything by kind and name, for people."""
        return [
            *(f"solver {each.challenge_type}/{each.name}" for each in self.solvers),
            *(f"dns provider {each.name}" for each in self.dns_providers),
            *(f"secret backend {each.scheme}" for each in self.secret_backends),
        ]


class Plugin(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin as found: where it comes from, what it brings, and why it was refused if it was."""

    name: str
    distribution: str
    version: str
    api: str | None = None
    brought: Brought = Brought()
    refused: str | None = None


class Plugins(msgspec.Struct, frozen=True, kw_only=True):
    """What the installed plugins bring, by name, and the plugins themselves."""

    found: tuple[Plugin, ...]
    solvers: dict[tuple[str, str], SolverKind]
    dns_providers: dict[str, DnsProviderKind]
    secret_backends: dict[str, SecretBackendKind]


class Refused(Exception):
    """Why a plugin is not used."""


def load(log: FilteringBoundLogger) -> Plugins:
    """Import every plugin and collect its kinds; nothing a plugin does here keeps the daemon down."""
    plugins = Plugins(found=(), solvers={}, dns_providers={}, secret_backends={})
    found = []
    for entry_point in sorted(metadata.entry_points(group=ENTRY_POINT_GROUP), key=_ours_first):
        plugin = _take(entry_point, plugins)
        found.append(plugin)
        if plugin.refused:
            log.warning("plugin.refused", plugin=plugin.name, distribution=plugin.distribution, reason=plugin.refused)
    return msgspec.structs.replace(plugins, found=tuple(found))


def fits(wanted: object) -> bool:
    """Whether a plugin written for contract `wanted` ("1.0") works with ours: same major, minor not later."""
    try:
        major, minor = (int(part) for part in str(wanted).split("."))
    except ValueError:
        return False
    our_major, our_minor = (int(part) for part in PLUGIN_API.split("."))
    return major == our_major and minor <= our_minor


def _ours_first(entry_point: metadata.EntryPoint) -> tuple[bool, str]:
    # A stranger that takes one of our names is the one that is refused.
    return (entry_point.dist is None or entry_point.dist.name != "scaivaultd", entry_point.name)


def _take(entry_point: metadata.EntryPoint, plugins: Plugins) -> Plugin:
    """Load one plugin into `plugins`, unless there is a reason not to."""
    distribution = entry_point.dist
    plugin = Plugin(
        name=entry_point.name,
        distribution=distribution.name if distribution else "unknown",
        version=distribution.version if distribution else "unknown",
    )
    try:
        module = entry_point.load()
        api = str(getattr(module, "SCAIVAULTD_PLUGIN_API", PLUGIN_API))
        plugin = msgspec.structs.replace(plugin, api=api)
        if not fits(api):
            raise Refused(f"it is written for plugin API {api}; this daemon has {PLUGIN_API}")
        brought = brought_by(module, entry_point.name)
        _require_free(brought, plugins)
    except Refused as reason:
        return msgspec.structs.replace(plugin, refused=str(reason))
    # A stranger's import may raise anything, or try to leave; neither keeps us down.
    except (Exception, SystemExit) as error:  # noqa: BLE001 - see above
        return msgspec.structs.replace(plugin, refused=f"{type(error).__name__}: {error}")
    plugins.solvers.update(((kind.challenge_type, kind.name), kind) for kind in brought.solvers)
    plugins.dns_providers.update((kind.name, kind) for kind in brought.dns_providers)
    plugins.secret_backends.update((kind.scheme, kind) for kind in brought.secret_backends)
    return msgspec.structs.replace(plugin, brought=brought)


def brought_by(module: object, name: str) -> Brought:
    """What a plugin's hooks return, checked.

    Raises:
        TypeError, ValueError: it is not what the contract says. And whatever the hooks raise.
    """
    # One manager a plugin: what one of them returns or raises is never mixed with another's.
    manager = pluggy.PluginManager("scaivaultd")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=name)
    manager.check_pending()
    hook = manager.hook
    return Brought(
        solvers=tuple(_all_of(hook.scaivaultd_challenge_solvers(), SolverKind, _check_solver)),
        dns_providers=tuple(_all_of(hook.scaivaultd_dns_providers(), DnsProviderKind, _check_dns_provider)),
        secret_backends=tuple(_all_of(hook.scaivaultd_secret_backends(), SecretBackendKind, _check_backend)),
    )


def _all_of(returned: Iterable[Iterable[Any]], kind_type: type[Any], check: Callable[[Any], None]) -> Iterable[Any]:
    for kinds in returned:
        for kind in kinds:
            if not isinstance(kind, kind_type):
                raise TypeError(f"a hook returned {type(kind).__name__}, not {kind_type.__name__}")
            check(kind)
            yield kind


# msgspec checks types when it decodes, not when a constructor is called.
def _check_solver(kind: Any) -> None:
    if not (isinstance(kind.name, str) and isinstance(kind.challenge_type, str) and callable(kind.open)):
        raise TypeError("a SolverKind needs a text as name and as challenge_type, and a callable as open")
    if not (isinstance(kind.settings, type) and issubclass(kind.settings, msgspec.Struct)):
        raise TypeError(f"the settings of the solver {kind.name} must be a msgspec Struct")
    if not isinstance(kind.present_seconds, int | float) or not 0 < kind.present_seconds <= 86400:
        raise ValueError("present_seconds of a SolverKind must be more than 0 and at most 86400")


def _check_dns_provider(kind: Any) -> None:
    if not (isinstance(kind.name, str) and callable(kind.open)):
        raise TypeError("a DnsProviderKind needs a text as name and a callable as open")
    if not _TYPE_NAME.fullmatch(kind.name):
        raise ValueError(f"{kind.name!r} is no name for a DNS provider: lower-case words joined by '_'")
    if not (isinstance(kind.settings, type) and issubclass(kind.settings, ProviderSettings)):
        raise TypeError(f"the settings of {kind.name} must be a subclass of ProviderSettings")
    # Found out now rather than when somebody configures one: msgspec cannot decode every annotation.
    msgspec.convert(dict(kind.example), kind.settings)


def _check_backend(kind: Any) -> None:
    if not (isinstance(kind.scheme, str) and callable(kind.open)):
        raise TypeError("a SecretBackendKind needs a text as scheme and a callable as open")
    if not _SCHEME.fullmatch(kind.scheme) or kind.scheme in _RESERVED_SCHEMES:
        raise ValueError(f"{kind.scheme!r} cannot be the scheme of a secret backend")
    if not (isinstance(kind.settings, type) and issubclass(kind.settings, msgspec.Struct)):
        raise TypeError(f"the settings of the secret backend {kind.scheme} must be a msgspec Struct")


def _require_free(brought: Brought, plugins: Plugins) -> None:
    """Two plugins for one name: nobody could say which is meant."""
    _require_unique("solver", [(each.challenge_type, each.name) for each in brought.solvers], plugins.solvers)
    _require_unique("DNS provider", [each.name for each in brought.dns_providers], plugins.dns_providers)
    _require_unique("secret backend", [each.scheme for each in brought.secret_backends], plugins.secret_backends)


def _require_unique(what: str, names: list[Any], taken: dict[Any, Any]) -> None:
    for place, name in enumerate(names):
        if name in taken or name in names[:place]:
            shown = "/".join(name) if isinstance(name, tuple) else name
            raise Refused(f"the {what} {shown} is there already, from another plugin or twice in this one")
