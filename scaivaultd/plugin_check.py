"""What `scaivaultctl plugin` says of the installed plugins: what the daemon would say, and what else is wrong."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec

if TYPE_CHECKING:
    from scaivaultd import plugin_manager

CHALLENGE_TYPES = ("http-01", "dns-01", "tls-alpn-01")
PROVIDER_TEXTS = ("summary", "rights", "limits", "troubleshooting")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One plugin: where it comes from, its contract, what it brings, why it is refused, what else is wrong."""

    name: str
    distribution: str
    version: str
    contract: str | None
    kinds: tuple[Any, ...]
    refused: str | None
    faults: tuple[str, ...]

    def summary(self) -> str:
        """What it brings, in words."""
        return ", ".join(_words(kind) for kind in self.kinds) or "brings nothing"

    def as_row(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "contract": self.contract,
            "brings": [_words(kind) for kind in self.kinds],
            "refused": self.refused,
            "faults": list(self.faults),
        }


def findings() -> list[Finding]:
    """Load all plugins as the daemon does, and look at each.

    Whether one is refused is the word of the plugin manager; the faults go further, and include what the daemon
    would take but people would miss, such as texts for the documentation.
    """
    import logging

    import structlog

    from scaivaultd import plugin_manager
    from scaivaultd.plugin import ENTRY_POINT_GROUP

    silent = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    entry_points = {each.name: each for each in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    # A plugin that prints while it is imported must not get into what is read by programs.
    with contextlib.redirect_stdout(sys.stderr):
        return [_finding(each, entry_points[each.name]) for each in plugin_manager.load(silent).found]


def _finding(plugin: plugin_manager.Plugin, entry_point: metadata.EntryPoint) -> Finding:
    from scaivaultd.plugin import PLUGIN_API

    contract: str | None = None
    kinds: list[Any] = []
    faults: list[str] = []
    try:
        module = entry_point.load()
        declared = getattr(module, "SCAIVAULTD_PLUGIN_API", None)
        contract = str(declared or PLUGIN_API)
        if declared is None:
            faults.append("the module does not say which contract it is written for (SCAIVAULTD_PLUGIN_API)")
        kinds = list(_brought(module, entry_point.name, faults))
    # A stranger's module may raise anything, or try to leave; it is what we are here to report.
    except (Exception, SystemExit) as error:  # noqa: BLE001 - see above
        if plugin.refused is None:
            faults.append(_told(error))
    return Finding(
        name=plugin.name,
        distribution=plugin.distribution,
        version=plugin.version,
        contract=contract,
        kinds=tuple(kinds),
        refused=plugin.refused,
        faults=(*faults, *(fault for kind in kinds for fault in faults_of(kind))),
    )


def _brought(module: object, name: str, faults: list[str]) -> Iterator[Any]:
    """Ask every hook; what one of them raises or returns wrongly goes to `faults`, and the others are asked still."""
    import pluggy

    from scaivaultd.plugin import DnsProviderKind, SecretBackendKind, SolverKind, hookspecs

    hooks: dict[str, type] = {
        "scaivaultd_challenge_solvers": SolverKind,
        "scaivaultd_dns_providers": DnsProviderKind,
        "scaivaultd_secret_backends": SecretBackendKind,
    }
    manager = pluggy.PluginManager("scaivaultd")
    manager.add_hookspecs(hookspecs)
    manager.register(module, name=name)
    manager.check_pending()
    for hook, kind in hooks.items():
        try:
            brought = [each for several in getattr(manager.hook, hook)() for each in several]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a stranger's hook may raise anything
            faults.append(f"{hook}: {_told(error)}")
            continue
        for each in brought:
            if isinstance(each, kind):
                yield each
            else:
                faults.append(f"{hook} returns {type(each).__name__}, not {kind.__name__}")


# What a stranger put into a kind may be of any type: Structs do not check what they are made with, so `Any`.


def faults_of(kind: Any) -> Iterator[str]:
    """Everything that is wrong with a kind, each with its name in front."""
    from scaivaultd.plugin import DnsProviderKind, SecretBackendKind, SolverKind

    match kind:
        case DnsProviderKind():
            faults = _faults_of_provider(kind)
        case SolverKind():
            faults = _faults_of_solver(kind)
        case SecretBackendKind():
            faults = _faults_of_backend(kind)
        case _:
            raise TypeError(f"{type(kind).__name__} is no kind")
    label = _words(kind)
    yield from (f"{label}: {fault}" for fault in faults)


def _faults_of_provider(kind: Any) -> Iterator[str]:
    from scaivaultd.plugin import Capabilities, ProviderSettings

    if not _is_word(kind.name, r"[a-z][a-z0-9]*(_[a-z0-9]+)*"):
        yield "the name is to be lower-case words joined by `_`"
    if not _is_text(kind.title):
        yield "it has no title"
    if not callable(kind.open):
        yield "`open` cannot be called"
    if not isinstance(kind.capabilities, Capabilities):
        yield "`capabilities` are no Capabilities"
    if isinstance(kind.settings, type) and issubclass(kind.settings, ProviderSettings):
        yield from _faults_of_settings(kind.settings, known=ProviderSettings)
        yield from _faults_of_example(kind)
    else:
        yield "the settings do not derive from ProviderSettings"
    yield from (f"the text `{text}` is missing" for text in PROVIDER_TEXTS if not _is_text(getattr(kind, text)))


def _faults_of_example(kind: Any) -> Iterator[str]:
    try:
        msgspec.json.decode(msgspec.json.encode(kind.example), type=kind.settings)
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        yield f"the example does not decode: {error}"


def _faults_of_solver(kind: Any) -> Iterator[str]:
    if not _is_word(kind.name, r"[a-z0-9]+([-_][a-z0-9]+)*"):
        yield "the name is to be lower-case words joined by `-` or `_`"
    if kind.challenge_type not in CHALLENGE_TYPES:
        yield f"the challenge type is none of {', '.join(CHALLENGE_TYPES)}"
    if not callable(kind.open):
        yield "`open` cannot be called"
    if not (isinstance(kind.present_seconds, int | float) and kind.present_seconds > 0):
        yield "`present_seconds` is no time"


def _faults_of_backend(kind: Any) -> Iterator[str]:
    # Which schemes are the daemon's own is the plugin manager's to say: it refuses them.
    if not _is_word(kind.scheme, r"[a-z][a-z0-9+-]*"):
        yield "the scheme is to be a lower-case word"
    if not callable(kind.open):
        yield "`open` cannot be called"
    if not _is_text(kind.summary):
        yield "the text `summary` is missing"
    if isinstance(kind.settings, type) and issubclass(kind.settings, msgspec.Struct):
        yield from _faults_of_settings(kind.settings, known=msgspec.Struct)
    else:
        yield "the settings are no msgspec.Struct"


def _faults_of_settings(settings: type[msgspec.Struct], known: type[msgspec.Struct]) -> Iterator[str]:
    config = settings.__struct_config__
    if not config.frozen:
        yield "the settings are not frozen"
    if not config.forbid_unknown_fields:
        yield "the settings take unknown members: a misspelt one would be ignored"
    inherited: Iterable[str] = getattr(known, "__struct_fields__", ())
    hints = get_type_hints(settings, include_extras=True)
    for member in settings.__struct_fields__:
        if member not in inherited and not _described(hints[member]):
            yield f"the setting `{member}` has no description"


def _described(hint: Any) -> bool:
    """Whether a description stands beside the type, or beside a part of it: `Annotated[str, ...] | None`."""
    metadata_of = getattr(hint, "__metadata__", ())
    if any(isinstance(each, msgspec.Meta) and each.description for each in metadata_of):
        return True
    inner = (hint.__origin__,) if metadata_of else get_args(hint)
    return any(_described(each) for each in inner)


def _words(kind: Any) -> str:
    from scaivaultd.plugin import DnsProviderKind, SecretBackendKind, SolverKind

    match kind:
        case DnsProviderKind(name=name):
            return f"DNS provider {name}"
        case SolverKind(name=name, challenge_type=challenge_type):
            return f"solver {name} for {challenge_type}"
        case SecretBackendKind(scheme=scheme):
            return f"secret backend {scheme}"
        case _:
            return type(kind).__name__


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_word(value: object, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
