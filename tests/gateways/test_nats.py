"""The gateway between the bus and the dispatcher, at a real nats-server that keeps nobody from anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import nats
import pytest
import structlog
from nats.aio.client import Client
from structlog.testing import LogCapture

from scaivaultd.api import commands
from scaivaultd.api import messages as m
from scaivaultd.api.commands import RequestContext
from scaivaultd.api.dispatch import Dispatcher
from scaivaultd.api.gate import OpenGate
from scaivaultd.gateways.nats import REQUESTS_OF_ONE_MAX, NatsGateway
from scaivaultd.gateways.nats_bus import BusSettings, NatsBus
from scaivaultd.gateways.nats_identity import Ingress
from scaivaultd.gateways.nats_server import NatsServerChild, find_server
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.ids import IdMaker
from scaivaultd.model.principals import Principal
from scaivaultd.plugin import Secret

DEADLINE = 10.0


class Tokens:
    """Every token is good."""

    def by_token(self, token: Secret, address: str | None) -> Principal | None:
        return None

    def by_token_id(self, token_id: str) -> Principal | None:
        return Principal(kind="token", id=token_id)


class Desk:
    """A handler that says who asked, once it may."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.contexts: list[RequestContext] = []

    async def limits(self, _: m.ListLimits, context: RequestContext) -> m.LimitsReply:
        self.contexts.append(context)
        await self.open.wait()
        return m.LimitsReply(items=[], cas=[], waiting=[])


class Place:
    def __init__(self, client: Client, desk: Desk, capture: LogCapture) -> None:
        self.client = client
        self.desk = desk
        self.capture = capture

    async def ask(self, subject: str) -> Any:
        return json.loads((await self.client.request(subject, b"", timeout=DEADLINE)).data)


@contextlib.asynccontextmanager
async def serving(folder: Path, ingress: Sequence[Ingress], inbox: str = "_INBOX") -> AsyncIterator[Place]:
    capture, clock, desk = LogCapture(), SystemClock(), Desk()
    log = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    dispatcher = Dispatcher(
        [commands.LIMITS.bind(desk.limits)], gate=OpenGate(), ids=IdMaker(clock, SystemRandomness()), log=log
    )
    async with NatsServerChild(folder, find_server(None), clock=clock, randomness=SystemRandomness(), log=log) as child:
        bus = NatsBus(
            BusSettings(servers=(child.url,), user=child.own.user, password=child.own.password.reveal),
            clock=clock,
            log=log,
        )
        await bus.connect()
        gateway = NatsGateway(
            bus,
            dispatcher,
            ingress=ingress,
            events_root="scaivault.events",
            tokens=Tokens(),
            version="1.2.3",
            clock=clock,
            log=log,
        )
        await gateway.start()
        client = await nats.connect(
            child.url, user=child.user, password=child.password.reveal(), inbox_prefix=inbox.encode()
        )
        try:
            yield Place(client, desk, capture)
        finally:
            await client.close()
            desk.open.set()
            await gateway.close(DEADLINE)
            await bus.close(1)


async def test_each_root_knows_its_senders_in_its_own_way(tmp_path: Path) -> None:
    """One daemon serves several kinds of callers; none of them is taken for one of another kind."""
    ingress = [
        Ingress(root="one", identity="trusted"),
        Ingress(root="two", identity="subject_token", account="APP"),
        Ingress(root="three", identity="account_import", keys_to_any=True),
    ]
    async with serving(tmp_path, ingress, "_INBOX_web") as place:
        await place.ask("one.pki.acme.limits")
        await place.ask("two.as.web.pki.acme.limits")
        info = {"Nats-Request-Info": '{"acc":"APP","user":"app"}'}
        await place.client.request("three.pki.acme.limits", b"", timeout=DEADLINE, headers=info)
        found = [(str(each.principal), each.source, each.takes_keys) for each in place.desk.contexts]
        assert found == [
            ("nats:$G/trusted", "nats:one", False),
            ("nats:APP/web", "nats:two", True),
            ("nats:APP/app", "nats:three", True),
        ]
        for subject in ("two.pki.acme.limits", "three.pki.acme.limits"):
            assert (await place.ask(subject))["code"] == "unauthenticated"
        endpoints = (await place.ask("$SRV.INFO.scaivaultd"))["endpoints"]
        assert sorted(each["subject"] for each in endpoints) == [
            "one.pki.acme.limits",
            "three.pki.acme.limits",
            "two.as.*.pki.acme.limits",
        ]
        assert len({each["name"] for each in endpoints}) == 3


async def test_beside_the_login_of_the_daemons_own_server_tokens_are_served_and_not_shown(tmp_path: Path) -> None:
    """Nobody but that login can ask what there is, and it cannot use what is for tokens."""
    ingress = [Ingress(root="one", identity="auth_callout"), Ingress(root="one", identity="local")]
    async with serving(tmp_path, ingress, "_INBOX_Ab3dEf9h") as place:
        await place.ask("one.as.Ab3dEf9h.pki.acme.limits")
        await place.ask("one.pki.acme.limits")
        assert [str(each.principal) for each in place.desk.contexts] == ["token:Ab3dEf9h", "nats:$G/local"]
        endpoints = (await place.ask("$SRV.INFO.scaivaultd"))["endpoints"]
        assert [(each["name"], each["subject"]) for each in endpoints] == [("pki-acme-limits", "one.pki.acme.limits")]


async def test_a_dropped_request_is_counted_and_not_looked_at(tmp_path: Path) -> None:
    """It must not even be done: whoever sent it may be somebody else."""
    async with serving(tmp_path, [Ingress(root="one", identity="auth_callout")], "_INBOX_Ab3dEf9h") as place:
        for reply in ("", "scaivault.events.x", "_INBOX_Zb3dEf9h.x"):
            await place.client.publish("one.as.Ab3dEf9h.pki.acme.limits", b"", reply=reply)
        await place.client.publish("one.pki.acme.limits", b"", reply="scaivault.events.x")
        await place.ask("one.as.Ab3dEf9h.pki.acme.limits")
        assert len(place.desk.contexts) == 1
        (endpoint,) = (await place.ask("$SRV.STATS.scaivaultd"))["endpoints"]
        assert endpoint["data"] == {"answered": 1, "failed": 0, "dropped": 3}
        (logged,) = [each for each in place.capture.entries if each["event"] == "nats.request_dropped"]
        assert logged["identity"] == "auth_callout"


async def test_one_sender_does_not_keep_out_the_others(tmp_path: Path) -> None:
    """A token's holder may be broken or hostile: its requests wait for themselves."""
    async with serving(tmp_path, [Ingress(root="one", identity="subject_token")]) as place:
        place.desk.open.clear()
        flood = [asyncio.create_task(place.ask("one.as.web.pki.acme.limits")) for _ in range(REQUESTS_OF_ONE_MAX + 5)]
        done, _ = await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED, timeout=DEADLINE)
        assert {each.result()["code"] for each in done} == {"rate_limited"}
        other = asyncio.create_task(place.ask("one.as.app.pki.acme.limits"))
        async with asyncio.timeout(DEADLINE):
            while "nats:$G/app" not in {str(each.principal) for each in place.desk.contexts}:  # noqa: ASYNC110
                await asyncio.sleep(0)
        place.desk.open.set()
        answers = [await each for each in (*flood, other)]
        assert sum("code" in each for each in answers) == 5
        assert "code" not in await place.ask("one.as.web.pki.acme.limits")


@pytest.mark.parametrize("identity", ["subject_token", "auth_callout"])
async def test_whoever_asks_without_a_name_is_told_how(tmp_path: Path, identity: Any) -> None:
    """Every command and every typing error has an answer, so that nobody waits for a timeout."""
    async with serving(tmp_path, [Ingress(root="one", identity=identity)]) as place:
        for subject in ("one.pki.acme.limits", "one.pki.no.such.command"):
            reply = await place.ask(subject)
            assert (reply["code"], reply["status"]) == ("unauthenticated", 401)
            assert "one.as." in reply["detail"]
        assert place.desk.contexts == []
