"""The services behind API tokens over a real store, with real policies, and a clock that goes on when told to."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from publicsuffixlist import PublicSuffixList

from scaivaultd.api import access_messages as am
from scaivaultd.api.commands import RequestContext
from scaivaultd.model.access import AccessRequest, Policy, PolicyRule, Token
from scaivaultd.model.principals import Principal
from scaivaultd.services.policies import LOCAL_ADMINS, Policies
from scaivaultd.services.tokens import Tokens
from tests.fakes.scripted_ca import FakeClock, SeededRandomness, WatchedStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from structlog.typing import EventDict, FilteringBoundLogger

    from scaivaultd.store.sqlite import SqliteStore

DEADLINE = 20.0
ROOT = Principal(kind="unix", id="0", policies=(LOCAL_ADMINS,))
MAKER = Principal(kind="token", id="Maker000", name="maker", policies=("token-makers", "issuer"))
"""Somebody who may make tokens, but not write policies."""


class PacedClock(FakeClock):
    """Whoever sleeps wakes up when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self._asleep = asyncio.Event()
        self._go = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self._asleep.set()
        await self._go.wait()
        self._go.clear()
        self.advance(seconds)

    async def until_asleep(self) -> None:
        async with asyncio.timeout(DEADLINE):
            await self._asleep.wait()

    async def next_round(self) -> None:
        """Let the sleeper wake up, do its work and fall asleep again."""
        await self.until_asleep()
        self._asleep.clear()
        self._go.set()
        await self.until_asleep()


class Judged:
    """What a principal may do by the policies there are."""

    def __init__(self, policies: Policies, principal: Principal) -> None:
        self._policies = policies
        self._principal = principal

    def allows(self, action: str, **about: Any) -> bool:
        request = AccessRequest(principal=self._principal, action=action, tenant="default", **about)
        return self._policies.decide(request).allowed

    def require(self, action: str, **about: Any) -> None:
        raise AssertionError("handlers of tokens only ask")

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"handlers of tokens need no {name}")


@dataclass
class House:
    """One life of the services; `again` begins the next over the same store."""

    sqlite: SqliteStore
    log: FilteringBoundLogger
    logged: list[EventDict]
    clock: PacedClock = field(default_factory=PacedClock)
    from_file: list[Policy] = field(default_factory=list)
    has_nats: bool = True
    chance: SeededRandomness = field(default_factory=SeededRandomness)

    def __post_init__(self) -> None:
        self.store = WatchedStore(self.sqlite)
        self.policies = Policies(
            store=self.store,
            from_file=[policy("token-makers", "token.create", "token.rotate"), *self.from_file],
            own_uid=990,
            suffixes=PublicSuffixList(accept_unknown=False),
            clock=self.clock,
            log=self.log,
        )
        self.tokens = Tokens(
            store=self.store,
            policies=self.policies,
            nats_login=self._login,
            clock=self.clock,
            randomness=self.chance,
            log=self.log,
        )
        self.ended: list[str] = []
        self.tokens.ended.subscribe(self.ended.append)

    async def again(self) -> House:
        """Begin another life: nothing that was only in memory is left."""
        house = House(self.sqlite, self.log, self.logged, self.clock, self.from_file, self.has_nats, self.chance)
        await house.tokens.resume()
        return house

    def asks(self, principal: Principal = ROOT, key: str | None = None) -> RequestContext:
        return RequestContext(
            request_id="req_t", idempotency_key=key, principal=principal, permits=Judged(self.policies, principal)
        )

    async def create(
        self, name: str = "web-ci", by: Principal = ROOT, key: str | None = None, **members: Any
    ) -> am.TokenCreated:
        # As a gateway would decode it: patterns and bounds hold.
        request = msgspec.convert({"name": name, **members}, am.CreateToken)
        return await self.tokens.create(request, self.asks(by, key))

    async def rotate(self, token: str, by: Principal = ROOT, key: str | None = None, **members: Any) -> am.TokenCreated:
        request = msgspec.convert({"id": token, **members}, am.RotateToken)
        return await self.tokens.rotate(request, self.asks(by, key))

    async def revoke(self, token: str) -> am.TokenReply:
        return await self.tokens.revoke(am.TokenById(id=token), self.asks())

    async def get(self, token: str) -> am.TokenReply:
        return await self.tokens.get(am.TokenById(id=token), self.asks())

    async def page(self, **members: Any) -> am.TokenList:
        return await self.tokens.list(am.ListTokens(**members), self.asks())

    def kept(self, token_id: str) -> Token:
        token = self.tokens.find(token_id)
        assert token is not None
        return token

    async def events(self) -> list[tuple[str, Any]]:
        pending = await self.sqlite.pending_events(1000)
        return [(each.event.id, msgspec.json.decode(each.event.data)) for each in pending]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """`Tokens.run`, asleep after its first look."""
        task = asyncio.create_task(self.tokens.run())
        try:
            await self.clock.until_asleep()
            yield
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _login(self, token_id: str) -> am.NatsLogin | None:
        if not self.has_nats:
            return None
        return am.NatsLogin(subject_root=f"scaivault.v1.as.{token_id}", inbox_prefix=f"_INBOX_{token_id}")


def policy(name: str, *actions: str, principals: tuple[str, ...] = (), effect: Any = "allow") -> Policy:
    rule = PolicyRule(effect=effect, actions=actions, domains=("**",) if effect == "allow" else ())
    return Policy(name=name, principals=principals, tenant="*", rules=(rule,))
