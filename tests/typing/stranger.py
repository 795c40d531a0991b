"""A solver as a stranger writes one: it knows `scaivaultd.plugin` and nothing else of ours.

That this file has no type errors is the promise; `test_plugin_contract.py` checks it as a foreign project would.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from scaivaultd.plugin import (
    ENTRY_POINT_GROUP,
    PLUGIN_API,
    ChallengeResponse,
    ChallengeSolver,
    DnsProvider,
    DnsProviderKind,
    Handle,
    Http01Responses,
    PluginContext,
    ProviderSettings,
    SolverContext,
    SolverKind,
    Zone,
    ZoneNotFound,
    hookimpl,
)

SCAIVAULTD_PLUGIN_API: str = PLUGIN_API
GROUP: str = ENTRY_POINT_GROUP


class StrangersSolver:
    """Presents by way of the listener it is lent, and remembers for whom."""

    def __init__(self, responses: Http01Responses) -> None:
        self._responses = responses
        self._names: dict[str, str] = {}

    async def present(self, response: ChallengeResponse) -> None:
        """Put it in place."""
        name: str = response.identifier
        kind: str = response.type
        self._names[response.token] = f"{name} by {kind}"
        self._responses.put(response.token, response.key_authorization)

    async def clean_up(self, response: ChallengeResponse) -> None:
        """Take it away."""
        self._names.pop(response.token, None)
        self._responses.remove(response.token)


@asynccontextmanager
async def open_solver(context: SolverContext) -> AsyncIterator[ChallengeSolver]:
    """Open for as long as the daemon runs."""
    yield StrangersSolver(context.http01)


@hookimpl
def scaivaultd_challenge_solvers() -> Iterable[SolverKind]:
    """Tell the host what there is."""
    yield SolverKind(name="stranger", challenge_type="http-01", open=open_solver)


class StrangersSettings(ProviderSettings, frozen=True, kw_only=True):
    """One secret, by reference."""

    token_path: str


class StrangersProvider:
    """Writes to nowhere."""

    def __init__(self, settings: StrangersSettings, context: PluginContext) -> None:
        self._settings = settings
        self._context = context

    async def find_zone(self, name: str) -> Zone:
        """None."""
        token: str = (await self._context.secrets.read(self._settings.token_path)).reveal()
        raise ZoneNotFound(f"{name}: {len(token)}")

    async def add_txt(self, zone: Zone, name: str, values: Sequence[str], ttl: int) -> Handle:
        """Nothing."""
        return {"zone": zone.name, "ids": list(values)}

    async def remove_txt(self, zone: Zone, name: str, values: Sequence[str], handle: Handle | None) -> None:
        """Nothing."""


@asynccontextmanager
async def open_provider(settings: StrangersSettings, context: PluginContext) -> AsyncIterator[DnsProvider]:
    """Open until its settings change."""
    yield StrangersProvider(settings, context)


@hookimpl
def scaivaultd_dns_providers() -> Iterable[DnsProviderKind]:
    """Tell the host what there is."""
    yield DnsProviderKind(
        name="stranger",
        title="Strange",
        settings=StrangersSettings,
        open=open_provider,
        example={"token_path": "dns/token"},
    )
