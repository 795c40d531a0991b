"""Opens what the daemon serves with: listeners, the solvers and secret backends of plugins, providers of the file.

A stranger's part that does not open is logged and left out; the daemon runs on without it.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from scaivaultd.listeners.http01 import Http01Fallback, Http01Listener
from scaivaultd.listeners.sockets import bind_all
from scaivaultd.listeners.tlsalpn01 import TlsAlpn01Listener
from scaivaultd.model import metrics
from scaivaultd.model.errors import StartupError
from scaivaultd.model.ids import DnsProviderId
from scaivaultd.model.resources import DnsProvider
from scaivaultd.services.documents import digest
from scaivaultd.services.jobs import bounded
from scaivaultd.services.solvers import OpenSolver, Solvers
from scaivaultd.settings import TlsAlpn01Settings
from scaivaultd.systemd import address_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager, AsyncExitStack
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.clock import Clock
    from scaivaultd.plugin import PluginContext, SecretBackend, SecretBackendKind, SolverContext, SolverKind
    from scaivaultd.settings import DnsProviderSettings, Settings
    from scaivaultd.settings_values import ListenAddress
    from scaivaultd.systemd import SortedSockets

T = TypeVar("T")

OPEN_SECONDS = 30.0


class Listeners(msgspec.Struct, frozen=True, kw_only=True):
    """The listeners that answer CAs; bound, and not yet listening."""

    http01: Http01Listener
    tlsalpn01: TlsAlpn01Listener


def bind_listeners(
    settings: Settings, stack: AsyncExitStack, passed: SortedSockets, *, clock: Clock, log: FilteringBoundLogger
) -> Listeners:
    """Bind all addresses; raises StartupError when one cannot be had.

    A listener whose sockets are `passed` binds none itself, whatever its `listen` says.
    """
    http01 = Http01Listener(
        _taken_over("http01", passed.http01, log) or _bound("http01", settings.http01.listen, log),
        clock=clock,
        log=log,
        fallback=Http01Fallback(kind=settings.http01.fallback, upstream=settings.http01.upstream),
    )
    stack.push_async_callback(http01.close)
    stack.push_async_callback(http01.drain)
    tlsalpn01 = TlsAlpn01Listener(
        _taken_over("tlsalpn01", passed.tlsalpn01, log)
        or _bound("tlsalpn01", _to_be_had(settings.tlsalpn01.listen, log), log),
        upstream=settings.tlsalpn01.upstream,
        clock=clock,
        log=log,
    )
    stack.push_async_callback(tlsalpn01.close)
    stack.push_async_callback(tlsalpn01.drain)
    return Listeners(http01=http01, tlsalpn01=tlsalpn01)


def _taken_over(name: str, sockets: Sequence[socket.socket], log: FilteringBoundLogger) -> Sequence[socket.socket]:
    if sockets:
        log.info(f"{name}.sockets_passed", addresses=[address_of(each) for each in sockets])
    return sockets


def _to_be_had(listen: Sequence[ListenAddress], log: FilteringBoundLogger) -> Sequence[ListenAddress]:
    """Of the default, what this host lets us have; whoever names addresses means them.

    Port 443 is a web server's on most hosts, and http-01 and dns-01 do without it.
    """
    if listen != TlsAlpn01Settings().listen:
        return listen
    free = []
    for entry in listen:
        try:
            for each in bind_all([entry]).sockets:
                each.close()
        except StartupError as error:
            log.warning("tlsalpn01.address_skipped", listen=entry, reason=str(error))
        else:
            free.append(entry)
    return free


def _bound(name: str, listen: Sequence[Any], log: FilteringBoundLogger) -> Any:
    bound = bind_all(listen)
    for entry in bound.skipped:
        log.warning(f"{name}.address_skipped", listen=entry.entry, reason=entry.reason)
    return bound.sockets


async def open_solvers(
    kinds: Mapping[tuple[str, str], SolverKind],
    settings: Mapping[str, Mapping[str, Any]],
    context: SolverContext,
    stack: AsyncExitStack,
    log: FilteringBoundLogger,
) -> Solvers:
    """Open every solver with its table of the configuration."""
    for name in settings.keys() - {kind.name for kind in kinds.values()}:
        log.warning("solver.unknown", solver=name)
    opened = []
    for kind in kinds.values():
        try:
            own = msgspec.convert(dict(settings.get(kind.name, {})), kind.settings)
        except msgspec.ValidationError as error:
            # A solver that has to be told something first is no fault until somebody wants to use it.
            log.warning("solver.not_configured", solver=kind.name, detail=str(error))
            continue
        lent = msgspec.structs.replace(context, settings=own)
        what = f"solver {kind.challenge_type}/{kind.name}"
        solver = await _opened(what, lambda k=kind, c=lent: k.open(c), stack, log)
        if solver is not None:
            opened.append(OpenSolver(kind=kind, solver=solver))
    return Solvers(opened)


async def open_secret_backends(
    kinds: Mapping[str, SecretBackendKind],
    settings: Mapping[str, Mapping[str, Any]],
    context: PluginContext,
    stack: AsyncExitStack,
    log: FilteringBoundLogger,
) -> Mapping[str, SecretBackend]:
    """Open every backend with its table of the configuration."""
    for scheme in settings.keys() - kinds.keys():
        log.warning("secret.backend_unknown", scheme=scheme)
    opened: dict[str, SecretBackend] = {}
    for scheme, kind in kinds.items():
        try:
            own = msgspec.convert(dict(settings.get(scheme, {})), kind.settings)
        except msgspec.ValidationError as error:
            log.error("secret.backend_misconfigured", scheme=scheme, detail=str(error))  # noqa: TRY400 - said in full
            continue
        backend = await _opened(f"secret backend {scheme}", lambda k=kind, o=own: k.open(o, context), stack, log)
        if backend is not None:
            opened[scheme] = backend
    return opened


async def _opened(what: str, opening: Any, stack: AsyncExitStack, log: FilteringBoundLogger) -> Any:
    try:
        manager: AbstractAsyncContextManager[Any] = opening()
        opened = await bounded(_entered(manager), OPEN_SECONDS)
    except Exception as error:  # noqa: BLE001 - a stranger's code must not keep the daemon down
        # Its text may hold a secret; where it happened is enough for its author.
        frames = [
            f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        metrics.PLUGIN_ERRORS.labels(plugin=what.rpartition(" ")[2], hook="open").inc()
        log.error("plugin.not_opened", what=what, error_type=type(error).__name__, frames=frames[-6:])  # noqa: TRY400
        return None
    stack.push_async_callback(_left, manager, what, log)
    return opened


async def _entered(manager: AbstractAsyncContextManager[T]) -> T:
    return await manager.__aenter__()


async def _left(manager: AbstractAsyncContextManager[Any], what: str, log: FilteringBoundLogger) -> None:
    try:
        await bounded(_exited(manager), 2.0)
    except Exception as error:  # noqa: BLE001 - as above
        log.warning("plugin.not_closed", what=what, error_type=type(error).__name__)


async def _exited(manager: AbstractAsyncContextManager[Any]) -> None:
    await manager.__aexit__(None, None, None)


def providers_of(entries: Sequence[DnsProviderSettings], now: datetime) -> Sequence[DnsProvider]:
    """The DNS providers of the configuration file; their ids follow from their names."""
    return [
        DnsProvider(
            id=DnsProviderId(f"dnsp_file_{digest(entry.name)[:16]}"),
            name=str(entry.name),
            type=str(entry.type),
            zones=tuple(map(str, entry.zones)),
            config=entry.config,
            created_at=now,
            updated_at=now,
            origin="file",
        )
        for entry in entries
    ]
