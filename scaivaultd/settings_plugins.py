"""Whether what the configuration says to plugins is what they understand: asked before a start, not while decoding.

The daemon itself starts all the same, without the provider, solver or backend that is wrong, and logs why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.settings_check import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from scaivaultd.plugin import DnsProviderKind, SecretBackendKind, SolverKind
    from scaivaultd.settings import Settings
    from scaivaultd.settings_layers import Layers, Mistake
    from scaivaultd.settings_locator import Key


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What the installed plugins bring, by the names that a configuration uses."""

    dns_providers: Mapping[str, DnsProviderKind]
    secret_backends: Mapping[str, SecretBackendKind]
    solvers: Mapping[str, SolverKind]


def check_plugins(settings: Settings, installed: Installed, layers: Layers) -> list[Mistake]:
    """What is wrong with the tables that are for plugins; mistakes carry the lines of `layers`."""
    return [layers.mistake(key, message) for key, message in _complaints(settings, installed)]


def _complaints(settings: Settings, installed: Installed) -> Iterator[tuple[Key, str]]:
    for place, entry in enumerate(settings.dns_provider):
        kind = installed.dns_providers.get(entry.type)
        if kind is None:
            yield ("dns_provider", place, "type"), _unknown("type of DNS provider", entry.type, installed.dns_providers)
        else:
            yield from _undecodable(("dns_provider", place, "config"), entry.config, kind.settings)
    for scheme, table in settings.secrets.backends.items():
        backend = installed.secret_backends.get(scheme)
        if backend is None:
            yield ("secrets", "backends", scheme), _unknown("secret backend", scheme, installed.secret_backends)
        else:
            yield from _undecodable(("secrets", "backends", scheme), table, backend.settings)
    for name, table in settings.solvers.items():
        solver = installed.solvers.get(name)
        if solver is None:
            yield ("solvers", name), _unknown("solver", name, installed.solvers)
        else:
            yield from _undecodable(("solvers", name), table, solver.settings)


def _unknown(what: str, name: str, known: Mapping[str, object]) -> str:
    close = nearest(name, known)
    meant = f" (did you mean {close!r}?)" if close else ""
    return f"no installed plugin brings the {what} {name!r}{meant}; there is {', '.join(sorted(known)) or 'none'}"


def _undecodable(key: Key, table: Mapping[str, object], struct: type[msgspec.Struct]) -> Iterator[tuple[Key, str]]:
    try:
        msgspec.convert(dict(table), struct)
    except msgspec.ValidationError as error:
        # It may repeat a value that is no member of an enumeration; whoever asks has the file before their eyes.
        yield key, str(error).replace("`$", "`").replace(" - at `.", " - at `")
