"""Logins by token, with a real nats-server: what it is told, and when it is told to end them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import nats
import nats.errors
import pytest
import structlog
from nats.aio.client import Client
from structlog.testing import LogCapture

from scaivaultd.api.tokens import RANDOMNESS, TokenText, judge_token, make_token, parse_token, rotated
from scaivaultd.gateways.auth_callout import SUBJECT, AuthCallout, read_issuer
from scaivaultd.gateways.nats_bus import BusSettings, NatsBus
from scaivaultd.gateways.nats_configuration import Callout
from scaivaultd.gateways.nats_identity import Ingress
from scaivaultd.gateways.nats_server import NatsServerChild, find_server
from scaivaultd.gateways.nkeys import KeyPair
from scaivaultd.model.access import Token, principal_of
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.errors import RateLimited, StartupError
from scaivaultd.model.principals import Principal
from scaivaultd.plugin import Secret
from tests.fakes.raw_nats import raw, refusal

DEADLINE = 10.0
ROOT = "scaivault.v1"
ISSUER = KeyPair("A", bytes([3]) * 32)
NOW = datetime.now(UTC)


class Tokens:
    """Tokens in memory, and who may read events."""

    def __init__(self) -> None:
        self.kept: dict[str, Token] = {}
        self.readers: set[str] = set()
        self.is_limited = False

    def make(self, fill: int, *, lifetime: timedelta = timedelta(days=1)) -> TokenText:
        text = make_token(bytes([fill]) * RANDOMNESS)
        self.kept[text.id] = Token(
            id=text.id,
            name=f"name-{fill}",
            secret_sha256=text.digest(),
            created_at=NOW,
            created_by="system",
            expires_at=datetime.now(UTC) + lifetime,
        )
        return text

    def change(self, token_id: str, **changes: Any) -> None:
        self.kept[token_id] = msgspec.structs.replace(self.kept[token_id], **changes)

    def find(self, token_id: str) -> Token | None:
        return self.kept.get(token_id)

    def by_token(self, token: Secret, address: str | None) -> Principal | None:
        assert address == "127.0.0.1"
        if self.is_limited:
            raise RateLimited("too many", 60)
        with contextlib.suppress(ValueError):
            presented = parse_token(token.reveal())
            kept = self.kept.get(presented.id)
            if kept is not None and judge_token(presented, kept, datetime.now(UTC), address) == "good":
                return principal_of(kept)
        return None

    def by_token_id(self, token_id: str) -> Principal | None:
        return None

    def reads_events(self, principal: Principal) -> bool:
        return principal.id in self.readers


@pytest.fixture
def capture() -> LogCapture:
    return LogCapture()


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


class Place:
    """A server with somebody who answers for tokens."""

    def __init__(self, child: NatsServerChild, callout: AuthCallout) -> None:
        self.child = child
        self.callout = callout

    @property
    def url(self) -> str:
        return self.child.url


@contextlib.asynccontextmanager
async def answering(
    folder: Path, tokens: Tokens, capture: LogCapture, *, is_asked: bool = True
) -> AsyncIterator[Place]:
    """`is_asked` False: the server does not ask, and lets its other user ask in its place."""
    log = structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG)
    )
    clock = SystemClock()
    child = NatsServerChild(
        folder,
        find_server(None),
        callout=Callout(issuer=ISSUER.public, root=ROOT) if is_asked else None,
        clock=clock,
        randomness=SystemRandomness(),
        log=log,
    )
    async with child:
        login = child.answering if is_asked else child.own
        settings = BusSettings(servers=(child.url,), user=login.user, password=login.password.reveal)
        bus = NatsBus(settings, clock=clock, log=log)
        callout = AuthCallout(
            bus,
            ISSUER,
            ingress=Ingress(root=ROOT, identity="auth_callout"),
            events_root="scaivault.events",
            tokens=tokens,
            find=tokens.find,
            reads_events=tokens.reads_events,
            is_system=is_asked,
            clock=clock,
            log=log,
        )
        await bus.connect()
        task = asyncio.create_task(callout.run())
        try:
            async with asyncio.timeout(DEADLINE):
                while not _logged(capture, "nats.answering_logins"):  # noqa: ASYNC110 - another task's log
                    await asyncio.sleep(0)
            yield Place(child, callout)
            assert not task.done(), task
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await bus.close(1)


@pytest.fixture
async def place(tmp_path: Path, tokens: Tokens, capture: LogCapture) -> AsyncIterator[Place]:
    async with answering(tmp_path, tokens, capture) as place:
        yield place


def _logged(capture: LogCapture, event: str) -> list[Any]:
    return [each for each in capture.entries if each["event"] == event]


@contextlib.asynccontextmanager
async def connected(place: Place, text: TokenText) -> AsyncIterator[tuple[Client, asyncio.Event]]:
    """A client, and an event that is set when it is disconnected."""
    out = asyncio.Event()

    async def gone() -> None:
        out.set()

    async def quiet(_: Exception) -> None:
        """Refusals are what these tests look at."""

    client = await nats.connect(
        place.url, token=text.reveal(), allow_reconnect=False, error_cb=quiet, closed_cb=gone, disconnected_cb=gone
    )
    try:
        yield client, out
    finally:
        await client.close()


async def test_a_login_ends_with_its_token(place: Place, tokens: Tokens) -> None:
    """An open connection must not outlive what it was opened with."""
    text = tokens.make(1, lifetime=timedelta(seconds=2))
    async with connected(place, text) as (_, out), asyncio.timeout(DEADLINE):
        await out.wait()
    assert await refusal(place.url, auth_token=text.reveal())


async def test_only_the_logins_of_what_has_ended_are_ended(place: Place, tokens: Tokens, capture: LogCapture) -> None:
    """All connections of that secret, whoever holds it, and nobody else's."""
    text, other = tokens.make(1), tokens.make(2)
    async with (
        connected(place, text) as (_, first),
        connected(place, text) as (_, second),
        connected(place, other) as (client, bystander),
    ):
        tokens.change(text.id, revoked_at=NOW)
        place.callout.ended(text.id)
        async with asyncio.timeout(DEADLINE):
            await first.wait()
            await second.wait()
            while not _logged(capture, "nats.logins_ended"):  # noqa: ASYNC110
                await asyncio.sleep(0)
        await client.flush()
        assert not bystander.is_set()
    (ended,) = _logged(capture, "nats.logins_ended")
    assert (ended["token_id"], ended["connections"]) == (text.id, 2)


async def test_the_secret_before_is_good_for_its_overlap_and_no_longer(place: Place, tokens: Tokens) -> None:
    """A rotation is how one gets rid of a secret that others may have seen."""
    text = tokens.make(1)
    successor = make_token(bytes([9]) * RANDOMNESS, token_id=text.id)
    async with connected(place, text) as (_, old):
        kept = rotated(tokens.kept[text.id], successor, datetime.now(UTC))
        tokens.kept[text.id] = kept
        async with connected(place, successor) as (client, new):
            place.callout.ended(text.id)
            assert await refusal(place.url, auth_token=text.reveal()) == ""
            assert not old.is_set()
            tokens.change(text.id, previous_until=datetime.now(UTC))
            place.callout.ended(text.id)
            async with asyncio.timeout(DEADLINE):
                await old.wait()
            await client.flush()
            assert not new.is_set()


async def test_events_are_taken_away_with_the_right_to_them(place: Place, tokens: Tokens) -> None:
    """Permissions are given at the login: to take them back, it must end."""
    text = tokens.make(1)
    tokens.readers.add(text.id)
    async with connected(place, text) as (_, out):
        tokens.readers.clear()
        place.callout.ended("any")
        async with asyncio.timeout(DEADLINE):
            await out.wait()
    async with raw(place.url, auth_token=text.reveal()) as client:
        assert b"Permissions Violation" in await client.say(b"SUB scaivault.events.> 1\r\n")


async def test_refusals_are_told_apart_in_the_log_only(place: Place, tokens: Tokens, capture: LogCapture) -> None:
    """To the outside a token that is unknown, wrong or too often wrong is the same."""
    unknown = make_token(bytes([7]) * RANDOMNESS)
    tokens.is_limited = True
    said = {await refusal(place.url, auth_token=tokens.make(1).reveal())}
    tokens.is_limited = False
    said |= {await refusal(place.url, auth_token=each) for each in (unknown.reveal(), "x", "")}
    assert said == {"-ERR 'Authorization Violation'\r\n"}
    (logged,) = _logged(capture, "nats.login_refused")
    assert "too many" in logged["reason"]
    assert unknown.reveal() not in repr(capture.entries)


@contextlib.asynccontextmanager
async def asker(place: Place) -> AsyncIterator[Client]:
    """The other user of a server that lets it publish everywhere."""
    client = await nats.connect(place.url, user=place.child.user, password=place.child.password.reveal())
    try:
        yield client
    finally:
        await client.close()


async def test_only_servers_are_answered(tmp_path: Path, tokens: Tokens, capture: LogCapture) -> None:
    """Whoever else asks would learn whether a token is good, or have us publish where it likes."""
    text = tokens.make(1)
    server = KeyPair("N", bytes([4]) * 32)

    def question(signer: KeyPair = server, subject: str = ISSUER.public, **changes: Any) -> bytes:
        about = {
            "server_id": {"id": server.public},
            "user_nkey": KeyPair("U", bytes(32)).public,
            "client_info": {"host": "127.0.0.1"},
            "connect_opts": {"auth_token": text.reveal()},
            **changes,
        }
        return signer.jwt(subject, {"nats": about}).encode()

    refused = [
        b"",
        b"nonsense",
        b"\xff.\xff.\xff",
        question(KeyPair("N", bytes([5]) * 32)),
        question(KeyPair("A", bytes([5]) * 32)),
        question(subject=KeyPair("A", bytes(32)).public),
        question(user_nkey="UX"),
        question(user_nkey=None),
        question(server_id=None),
        question(connect_opts=[]),
    ]
    async with answering(tmp_path, tokens, capture, is_asked=False) as place, asker(place) as client:
        heard = await client.subscribe("$SYS._INBOX.me")
        others = await client.subscribe("elsewhere")
        for each in refused:
            await client.publish(SUBJECT, each, reply="$SYS._INBOX.me")
        await client.publish(SUBJECT, question(), reply="elsewhere")
        await client.publish(SUBJECT, question(), reply="$SYS._INBOX.me")
        answer = await heard.next_msg(DEADLINE)
        assert answer.data.count(b".") == 2
        await client.flush()
        assert (heard.pending_msgs, others.pending_msgs) == (0, 0)
    # Once: who can do it once can do it all day.
    (dropped,) = _logged(capture, "nats.login_question_dropped")
    assert dropped["issuer"] == ISSUER.public


def test_the_issuer_is_read_from_a_private_file(tmp_path: Path) -> None:
    """Whoever has that key can log in as anybody."""
    path = tmp_path / "callout.nk"
    with pytest.raises(StartupError, match="No such file"):
        read_issuer(path)
    path.write_text("SAAAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAQCAIBAEAUN5U\n")
    path.chmod(0o640)
    with pytest.raises(StartupError, match="chmod 600"):
        read_issuer(path)
    path.chmod(0o600)
    assert read_issuer(path).public == KeyPair("A", bytes([2]) * 32).public


@pytest.mark.parametrize("text", ["", "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY", "secret", "\u00e4"])
def test_what_is_no_issuer_stops_the_start_without_being_quoted(tmp_path: Path, text: str) -> None:
    """Found at the start, and in no message."""
    path = tmp_path / "callout.nk"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(StartupError) as caught:
        read_issuer(path)
    assert not text or text not in str(caught.value).replace("callout_seed_file", "")
    assert caught.value.__cause__ is None
