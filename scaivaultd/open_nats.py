"""Opens NATS for the roof: a server of our own or the way to another one, and the logins of tokens there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from scaivaultd.access import ingress_of
from scaivaultd.gateways.auth_callout import AuthCallout, read_issuer
from scaivaultd.gateways.nats_bus import BusSettings, NatsBus
from scaivaultd.gateways.nats_configuration import Callout
from scaivaultd.gateways.nats_credentials import CredentialsFile
from scaivaultd.gateways.nats_process import SYSTEM_PATH
from scaivaultd.gateways.nats_server import NatsServerChild, find_server
from scaivaultd.gateways.nkeys import SEED_BYTES, KeyPair
from scaivaultd.model.access import AccessRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.access import Access
    from scaivaultd.gateways.nats_configuration import Login
    from scaivaultd.gateways.nats_identity import Ingress
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.principals import Principal
    from scaivaultd.settings import Settings

BUS_CLOSE_SECONDS = 1.0
INSIST_SECONDS = 0.5


class Nats:
    """What is open: the bus of requests and events, maybe a server of our own, maybe what answers for tokens."""

    def __init__(self, bus: NatsBus, child: NatsServerChild | None, answering: asyncio.Task[None] | None) -> None:
        self.bus = bus
        self._child = child
        self._answering = answering

    def trouble(self) -> str | None:
        """What is wrong with a server of our own that is there all the same."""
        return None if self._child is None else self._child.trouble

    async def run(self) -> None:
        """Answer for tokens that log in; it began when this was opened, and ends by cancellation or with its error."""
        if self._answering is not None:
            # Whoever opened it ends it, and insists.
            await asyncio.shield(self._answering)


async def open_nats(
    settings: Settings,
    access: Access,
    stack: AsyncExitStack,
    *,
    environment: Mapping[str, str],
    clock: Clock,
    randomness: Randomness,
    log: FilteringBoundLogger,
) -> Nats:
    """Start the server if it is ours, and answer for tokens; the bus is connected by whoever uses it first.

    Raises:
        StartupError: the server cannot be started, or a file cannot be used.
    """
    opening = _Opening(settings, access, stack, clock, log)
    if settings.nats.servers:
        return opening.another()
    issuer = KeyPair("A", randomness.token_bytes(SEED_BYTES))
    ingress = opening.callout_ingress
    child = await stack.enter_async_context(
        NatsServerChild(
            settings.state_dir,
            find_server(settings.nats.server_path, environment.get("PATH", SYSTEM_PATH)),
            callout=None if ingress is None else Callout(issuer=issuer.public, root=ingress.root),
            clock=clock,
            randomness=randomness,
            log=log,
        )
    )
    return opening.own(child, issuer)


class _Opening:
    def __init__(
        self, settings: Settings, access: Access, stack: AsyncExitStack, clock: Clock, log: FilteringBoundLogger
    ) -> None:
        self._nats = settings.nats
        self._access = access
        self._stack = stack
        self._clock = clock
        self._log = log
        self.callout_ingress = next(
            (each for each in ingress_of(self._nats) if each.identity == "auth_callout"),
            None,
        )

    def another(self) -> Nats:
        """The way to servers that are not ours."""
        nats = self._nats
        bus = self._bus(
            BusSettings(
                servers=tuple(server.reveal() for server in nats.servers),
                credentials=CredentialsFile(nats.credentials_file) if nats.credentials_file else None,
                tls_ca_file=nats.tls_ca_file,
            )
        )
        if self.callout_ingress is None or nats.callout_seed_file is None:
            return Nats(bus, None, None)
        callout = self._callout(bus, read_issuer(nats.callout_seed_file), self.callout_ingress, is_system=False)
        return Nats(bus, None, self._begun(callout, None))

    def own(self, child: NatsServerChild, issuer: KeyPair) -> Nats:
        """The way to our own server, which is running."""
        bus = self._bus(_settings_of(child, child.own))
        if self.callout_ingress is None:
            return Nats(bus, child, None)
        # Our own server has no other account for its users.
        ingress = msgspec.structs.replace(self.callout_ingress, account="$G")
        login_bus = self._bus(_settings_of(child, child.answering))
        return Nats(bus, child, self._begun(self._callout(login_bus, issuer, ingress, is_system=True), login_bus))

    def _bus(self, settings: BusSettings) -> NatsBus:
        bus = NatsBus(settings, clock=self._clock, log=self._log)
        self._stack.push_async_callback(bus.close, BUS_CLOSE_SECONDS)
        return bus

    def _callout(self, bus: NatsBus, issuer: KeyPair, ingress: Ingress, *, is_system: bool) -> AuthCallout:
        callout = AuthCallout(
            bus,
            issuer,
            ingress=ingress,
            events_root=self._nats.events_root,
            tokens=self._access.identifying,
            find=self._access.tokens.find,
            reads_events=self._reads_events,
            is_system=is_system,
            clock=self._clock,
            log=self._log,
        )
        self._access.tokens.ended.subscribe(callout.ended)
        return callout

    def _reads_events(self, principal: Principal) -> bool:
        request = AccessRequest(principal=principal, action="event.read", tenant="default")
        return self._access.policies.decide(request).allowed

    def _begun(self, callout: AuthCallout, own_bus: NatsBus | None) -> asyncio.Task[None]:
        """Begin at once: until somebody answers, the server keeps clients with a token waiting, and refuses them."""
        task = asyncio.create_task(_answer(callout, own_bus), name="nats logins")

        async def end() -> None:
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=INSIST_SECONDS)

        self._stack.push_async_callback(end)
        return task


async def _answer(callout: AuthCallout, own_bus: NatsBus | None) -> None:
    if own_bus is not None:
        await own_bus.connect()
    await callout.run()


def _settings_of(child: NatsServerChild, login: Login) -> BusSettings:
    return BusSettings(servers=(child.url,), user=login.user, password=login.password.reveal)
