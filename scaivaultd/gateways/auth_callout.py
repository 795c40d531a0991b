"""Lets API tokens log in to NATS: answers the server's question who may (auth callout, nats-server 2.10 and later).

Whoever logs in with a token may publish below ROOT.as.TOKEN_ID, and subscribe below _INBOX_TOKEN_ID: nobody can ask in
another's name or read another's replies. With `event.read` it may subscribe to the events, and no more of them than
that: not JetStream, whose consumers deliver, and whose API answers, to any subject that the request names, whether or
not its sender may publish there.

A login is good as long as what it was made with. The server ends it when that expires; where we have its system
account, we end those earlier whose token was revoked, whose secret was replaced, or whose events are no longer theirs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import nats.errors

from scaivaultd.api.dispatch import BODY_MAX
from scaivaultd.api.tokens import parse_token
from scaivaultd.gateways.nkeys import is_public, read_seed, verified_claims
from scaivaultd.model.access import principal_of
from scaivaultd.model.errors import RateLimited, StartupError
from scaivaultd.plugin import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from nats.aio.msg import Msg
    from structlog.typing import FilteringBoundLogger

    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.gateways.nats_identity import Ingress, KnownTokens
    from scaivaultd.gateways.nkeys import KeyPair
    from scaivaultd.model.access import Token
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.principals import Principal

SUBJECT = "$SYS.REQ.USER.AUTH"
LOOK_SECONDS = 30.0
"""How long a login outlives, at most, what it was made with, where nothing tells of its end."""
SUBSCRIPTIONS_MAX = 256
PAYLOAD_MAX = BODY_MAX + (64 << 10)
"""A request with its headers."""

_WAITING_MAX = 1024
"""Questions that wait for their turn. The server waits two seconds for an answer; in these, more are answered."""
_START_PAUSE_SECONDS = 1.0
_SYSTEM_SECONDS = 2.0
_ROUNDS_MAX = 10
_LOG_EVERY_SECONDS = 10.0

T = TypeVar("T")


class _Server(msgspec.Struct, frozen=True):
    id: str


class _ClientInfo(msgspec.Struct, frozen=True):
    host: str = ""


class _ConnectOptions(msgspec.Struct, frozen=True):
    auth_token: str = ""
    password: str = msgspec.field(default="", name="pass")


class _Request(msgspec.Struct, frozen=True):
    """What is asked about one client that knocks; only what is needed of it."""

    server_id: _Server
    user_nkey: str
    client_info: _ClientInfo
    connect_opts: _ConnectOptions


class _Connection(msgspec.Struct, frozen=True):
    cid: int


class _ConnectionsData(msgspec.Struct, frozen=True):
    connections: list[_Connection]


class _Connections(msgspec.Struct, frozen=True):
    """A server's answer which connections a user has."""

    data: _ConnectionsData


class _Login(msgspec.Struct, frozen=True, kw_only=True):
    """What clients have logged in with: everything in it must hold for them to stay."""

    token_id: str
    digest: bytes
    reads_events: bool


class _Refused(Exception):
    """Nobody may log in so; the reason is for the log, the client hears none."""


class AuthCallout:
    """Answers for tokens, at a server of our own or another one."""

    def __init__(
        self,
        bus: NatsBus,
        issuer: KeyPair,
        *,
        ingress: Ingress,
        events_root: str,
        tokens: KnownTokens,
        find: Callable[[str], Token | None],
        reads_events: Callable[[Principal], bool],
        is_system: bool,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        """`find` knows a token by its id. `is_system`: the bus is in the server's system account, where logins end."""
        self._bus = bus
        self._issuer = issuer
        self._ingress = ingress
        self._events_root = events_root
        self._tokens = tokens
        self._find = find
        self._reads_events = reads_events
        self._is_system = is_system
        self._clock = clock
        self._log = log
        self._logins: dict[_Login, str] = {}
        self._numbers = 0
        self._server_id = ""
        self._look = asyncio.Event()
        self._noted: dict[str, tuple[float, int]] = {}

    async def run(self) -> None:
        """Answer for ever, and end what must not go on; whatever goes wrong with NATS is waited out."""
        await self._subscribe()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._remind())
            while True:
                _heed_cancellation()
                await self._look.wait()
                self._look.clear()
                await self._end_stale()

    def ended(self, token_id: str) -> None:
        """A token is no longer good: end its logins soon."""
        self._look.set()

    async def _subscribe(self) -> None:
        while True:
            await self._bus.connected()
            try:
                await self._bus.client.subscribe(SUBJECT, cb=self._asked, pending_msgs_limit=_WAITING_MAX)
                await self._bus.client.flush()
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._log.warning("nats.logins_not_answered_yet", reason=f"{type(error).__name__}: {error}")
                await self._clock.sleep(_START_PAUSE_SECONDS)
                continue
            self._log.info("nats.answering_logins", subject_root=self._ingress.root)
            return

    async def _remind(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            self._look.set()

    async def _asked(self, message: Msg) -> None:
        """Answer one question. One after the other: an answer takes less than a millisecond."""
        answer = self._answer(message.data)
        # A server asks from its own inbox; whatever else asks would have us publish where it likes.
        if answer is None or not message.reply.startswith("$SYS._INBOX."):
            # Mostly it is the issuer in the server's configuration that is not ours.
            self._note("nats.login_question_dropped", issuer=self._issuer.public, reply=message.reply[:200])
            return
        try:
            await message.respond(answer)
        except (nats.errors.Error, OSError) as error:
            # The client is refused after a while, and tries again.
            self._log.warning("nats.login_answer_lost", reason=type(error).__name__)

    def _answer(self, question: bytes) -> bytes | None:
        try:
            request = self._read(question)
        except (ValueError, msgspec.ValidationError):
            return None
        decision: dict[str, Any]
        try:
            decision = {"jwt": self._user_jwt(request)}
        except _Refused as refusal:
            self._note("nats.login_refused", reason=str(refusal), host=request.client_info.host)
            # The server's log has it, too, and nothing in it tells one failure from another.
            decision = {"error": "refused"}
        self._server_id = request.server_id.id
        return self._issuer.jwt(
            request.user_nkey,
            {
                "aud": request.server_id.id,
                "iat": self._now(),
                "nats": {"type": "authorization_response", "version": 2, **decision},
            },
        ).encode()

    def _read(self, question: bytes) -> _Request:
        """What a server asks.

        Raises:
            ValueError: no server has signed it, or it is asked of somebody else.
            msgspec.ValidationError: something is missing in it.
        """
        claims = verified_claims(question.decode(), "N")
        request = msgspec.convert(claims.get("nats"), _Request)
        if claims["iss"] != request.server_id.id or claims.get("sub") != self._issuer.public:
            raise ValueError("asked by, or of, somebody else")
        if not is_public(request.user_nkey, "U"):
            raise ValueError("about no user")
        return request

    def _user_jwt(self, request: _Request) -> str:
        options = request.connect_opts
        text = Secret(options.auth_token or options.password)
        principal = self._principal(text, request.client_info.host)
        token = self._find(principal.id)
        digest = parse_token(text.reveal()).digest()
        login = _Login(token_id=principal.id, digest=digest, reads_events=self._reads_events(principal))
        until = None if token is None else _good_until(token, login.digest)
        if until is None or until <= self._clock.now():
            raise _Refused("the token has just ended")
        self._log.info("nats.logged_in", principal=str(principal), token=principal.name, host=request.client_info.host)
        return self._issuer.jwt(
            request.user_nkey,
            {
                # Where its users are, in the server's configuration.
                "aud": self._ingress.account,
                "name": self._label(login),
                "iat": self._now(),
                "exp": int(until.timestamp()),
                "nats": {"type": "user", "version": 2, **self._permissions(login)},
            },
        )

    def _principal(self, text: Secret, host: str) -> Principal:
        if not text.reveal():
            raise _Refused("no token was shown, as token or as password")
        try:
            principal = self._tokens.by_token(text, host or None)
        except RateLimited:
            raise _Refused("too many wrong tokens came from this address") from None
        if principal is None or principal.kind != "token":
            raise _Refused("the token is not known here, or no longer good, or not from this address")
        return principal

    def _permissions(self, login: _Login) -> dict[str, Any]:
        subscribe = [f"_INBOX_{login.token_id}.>"]
        if login.reads_events:
            subscribe.append(f"{self._events_root}.>")
        return {
            "pub": {"allow": [f"{self._ingress.root}.as.{login.token_id}.>"]},
            "sub": {"allow": subscribe},
            "subs": SUBSCRIPTIONS_MAX,
            "data": -1,
            "payload": PAYLOAD_MAX,
            # A leaf node would speak for others.
            "allowed_connection_types": ["STANDARD", "WEBSOCKET"],
        }

    def _label(self, login: _Login) -> str:
        """The user's name at the server, by which its connections are found again."""
        if login not in self._logins:
            self._numbers += 1
            self._logins[login] = f"token:{login.token_id}/{self._numbers}"
        return self._logins[login]

    async def _end_stale(self) -> None:
        for login in [each for each in self._logins if not self._holds(each)]:
            label = self._logins.pop(login)
            if not self._is_system:
                continue
            try:
                ended = await self._disconnect(label)
            except nats.errors.NoRespondersError:
                # That server is gone, and took its connections with it.
                continue
            except (nats.errors.Error, OSError, TimeoutError, msgspec.DecodeError) as error:
                # Its requests are refused all the same.
                self._logins.setdefault(login, label)
                self._log.warning("nats.logins_not_ended", token_id=login.token_id, reason=type(error).__name__)
                continue
            if ended:
                self._log.info("nats.logins_ended", token_id=login.token_id, connections=ended)

    def _holds(self, login: _Login) -> bool:
        token = self._find(login.token_id)
        until = None if token is None else _good_until(token, login.digest)
        if token is None or until is None or until <= self._clock.now():
            return False
        return not login.reads_events or self._reads_events(principal_of(token))

    async def _disconnect(self, label: str) -> int:
        ended = 0
        for _ in range(_ROUNDS_MAX):
            found = await self._ask_system("CONNZ", {"auth": True, "user": label}, _Connections)
            connections = found.data.connections
            for each in connections:
                await self._ask_system("KICK", {"cid": each.cid}, msgspec.Raw)
            ended += len(connections)
            if not connections:
                break
        return ended

    async def _ask_system(self, what: str, body: dict[str, Any], reply: type[T]) -> T:
        message = await self._bus.client.request(
            f"$SYS.REQ.SERVER.{self._server_id}.{what}", msgspec.json.encode(body), timeout=_SYSTEM_SECONDS
        )
        return msgspec.json.decode(message.data, type=reply)

    def _note(self, event: str, **about: str) -> None:
        """Say what outsiders can bring about as often as they like; often enough to be seen, and no more."""
        logged_at, count = self._noted.get(event, (float("-inf"), 0))
        now = self._clock.monotonic()
        if now - logged_at >= _LOG_EVERY_SECONDS:
            logged_at = now
            self._log.warning(event, count=count + 1, **about)
        self._noted[event] = (logged_at, count + 1)

    def _now(self) -> int:
        return int(self._clock.now().timestamp())


def read_issuer(path: Path) -> KeyPair:
    """The account key that signs logins, from its seed in a file.

    Raises:
        StartupError: it cannot be read, others can read it, or it is no seed of an account.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise StartupError(f"nats.callout_seed_file {path} can be read by others: chmod 600 it")
        return read_seed(Secret(path.read_text("ascii").strip()), "A")
    except OSError as error:
        raise StartupError(f"nats.callout_seed_file {path}: {error.strerror}") from error
    except ValueError:
        # No cause: its text would hold parts of the file.
        raise StartupError(
            f"nats.callout_seed_file {path} is no seed of an account (SA..., as `nk -gen account` prints it)"
        ) from None


def _heed_cancellation() -> None:
    """End if somebody wants it: `asyncio.wait_for`, in nats-py, may swallow a cancellation before Python 3.12."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _good_until(token: Token, digest: bytes) -> datetime | None:
    """When a login by that secret ends; None: it must not be."""
    if token.revoked_at is not None:
        return None
    if digest == token.secret_sha256:
        return token.expires_at
    if digest == token.previous_sha256 and token.previous_until is not None:
        return min(token.expires_at, token.previous_until)
    return None
