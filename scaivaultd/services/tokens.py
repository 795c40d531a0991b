"""API tokens: made, listed, rotated, revoked; all of them in memory, so that nobody waits to be recognised.

None is ever deleted: a name is never given again, and what was asked for by a token goes on being judged by its
policies after its end. What is in memory has been committed before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.api import commands, events
from scaivaultd.api.tokens import RANDOMNESS, announcement_due, make_token, rotated
from scaivaultd.model.access import Token, TokenName, network_pattern, principal_of
from scaivaultd.model.errors import Conflict, FieldError, Internal, NotFound, RevisionConflict, ScaivaultError
from scaivaultd.services.documents import PAGE_BYTES, TOKEN_NAMES, TOKENS, Versioned, digest
from scaivaultd.services.idempotency import Repeatable
from scaivaultd.services.jobs import unbroken
from scaivaultd.services.token_requests import require_may_give, rotation_from, token_from
from scaivaultd.services.waiting import Signal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.model.storage import OutboxEvent, Put
    from scaivaultd.services.policies import Policies
    from scaivaultd.services.ports import Store

LOOK_SECONDS = 60.0
"""How often is looked whether a token is to be announced, or its last use written down."""
WRITTEN_TOGETHER = 100

_TRIES = 20
_WRITE_SECONDS = 5.0
_ID_OR_NAME = re.compile(r"[A-Z][0-9A-Za-z]{7}|[a-z][a-z0-9._-]{0,62}")
_ASK_AGAIN = "another request came in between; ask again"


class Tokens:
    """Handlers of `tokens.*`."""

    def __init__(
        self,
        *,
        store: Store,
        policies: Policies,
        nats_login: Callable[[str], am.NatsLogin | None],
        clock: Clock,
        randomness: Randomness,
        log: FilteringBoundLogger,
    ) -> None:
        """`nats_login` tells the place on NATS of the token with an id, where tokens log in there."""
        self._store = store
        self._policies = policies
        self._nats_login = nats_login
        self._clock = clock
        self._randomness = randomness
        self._log = log
        self._held: dict[str, Versioned[Token]] = {}
        self._ids: dict[str, str] = {}
        self._used: dict[str, datetime] = {}
        self._looked_at = clock.now()
        self.ended: Signal[str] = Signal()
        """Told the id of a token that was revoked, or of which a secret is good no more: whoever has logged in with it
        must log in again."""

    async def resume(self) -> None:
        """Read all tokens; to be done before anybody is recognised."""
        for found in await TOKENS.all(self._store, self._log):
            if _is_sound(found.value):
                self._keep(found)
            else:
                self._log.error("document.unreadable", key=TOKENS.key(found.value.id))

    async def run(self) -> None:
        """Announce what expires soon, and write down when tokens were used last; ends by cancellation."""
        while True:
            try:
                await self._look()
            except ScaivaultError as error:
                self._log.warning("tokens.not_written", reason=error.detail)
            await self._clock.sleep(LOOK_SECONDS)

    def find(self, token_id: str) -> Token | None:
        """The token with that id, whatever its state."""
        held = self._held.get(token_id)
        return None if held is None else held.value

    def used(self, token_id: str) -> None:
        """Somebody has just used it."""
        if token_id in self._held:
            self._used[token_id] = self._clock.now().replace(second=0, microsecond=0)

    async def create(self, request: am.CreateToken, context: RequestContext) -> am.TokenCreated:
        """Handle `tokens.create`."""
        repeatable = Repeatable(commands.CREATE_TOKEN, request, context)
        await self._require_new(repeatable)
        text = make_token(self._randomness.token_bytes(RANDOMNESS))
        token = token_from(request, text, self._policies, context, self._clock.now())
        await require_may_give(token, self._policies, context)
        # A caller that goes away must not leave behind a token that is in the store and known to nobody here.
        await unbroken(self._create(token, repeatable), _WRITE_SECONDS)
        self._tell("token.created", token, context, policies=list(token.policies), expires_at=_iso(token.expires_at))
        return am.TokenCreated(**self._members(token), token=text.reveal())

    async def list(self, request: am.ListTokens, context: RequestContext) -> am.TokenList:
        """Handle `tokens.list`."""
        names = sorted(name for name in self._ids if name > (request.cursor or ""))
        items: list[am.TokenReply] = []
        size = 0
        for name in names:
            reply = self._reply(self._known(name))
            if reply.status != "valid" and not request.include_ended:
                continue
            size += len(msgspec.json.encode(reply))
            if len(items) == request.limit or (items and size > PAGE_BYTES):
                return am.TokenList(items=items, next_cursor=items[-1].name)
            items.append(reply)
        return am.TokenList(items=items, next_cursor=None)

    async def get(self, request: am.TokenById, context: RequestContext) -> am.TokenReply:
        """Handle `tokens.get`."""
        return self._reply(self._known(request.id))

    async def rotate(self, request: am.RotateToken, context: RequestContext) -> am.TokenCreated:
        """Handle `tokens.rotate`."""
        token = self._known(request.id)
        repeatable = Repeatable(commands.ROTATE_TOKEN, request, context)
        await self._require_new(repeatable)
        terms = rotation_from(request)
        await require_may_give(token, self._policies, context, "/id")
        text = make_token(self._randomness.token_bytes(RANDOMNESS), token_id=token.id)

        def rotate(now_is: Token) -> Token:
            self._require_valid(now_is)
            if now_is.secret_sha256 != token.secret_sha256:
                # A second rotation ends the secret before the first: whoever asked knew nothing of that one.
                raise Conflict(f"token {token.id} was rotated by another request a moment ago")
            return rotated(now_is, text, self._clock.now(), lifetime=terms.lifetime, overlap=terms.overlap)

        now_is = await unbroken(self._rotate(token, rotate, repeatable), _WRITE_SECONDS)
        self._tell("token.rotated", now_is, context, expires_at=_iso(now_is.expires_at))
        return am.TokenCreated(**self._members(now_is), token=text.reveal())

    async def revoke(self, request: am.TokenById, context: RequestContext) -> am.TokenReply:
        """Handle `tokens.revoke`."""
        token = self._known(request.id)
        revoked = await unbroken(self._change(token.id, self._revoked), _WRITE_SECONDS)
        self._tell("token.revoked", revoked, context)
        return self._reply(revoked)

    def _revoked(self, token: Token) -> Token | None:
        return msgspec.structs.replace(token, revoked_at=self._clock.now()) if token.revoked_at is None else None

    async def _create(self, token: Token, repeatable: Repeatable) -> None:
        put = TOKENS.put(token)
        name = TOKEN_NAMES.put(TokenName(name=token.name, token_id=token.id))
        try:
            revisions = await self._store.commit([put, name, *repeatable.changes(token.id)])
        except RevisionConflict:
            await self._require_new(repeatable)
            raise await self._taken(token.name) from None
        self._keep(Versioned(token, revisions[put.key]))

    async def _taken(self, name: str) -> Conflict:
        held = await TOKEN_NAMES.get(self._store, digest(name))
        if held is None:
            return Conflict(_ASK_AGAIN)
        detail = (
            f"the name {name!r} belongs to token {held.value.token_id}, and is never given again, since policies speak "
            "of tokens by name: rotate that token, or choose another name"
        )
        return Conflict(detail, [FieldError(pointer="/name", code="taken", detail=detail)])

    async def _rotate(self, token: Token, rotate: Callable[[Token], Token], repeatable: Repeatable) -> Token:
        try:
            now_is = await self._change(token.id, rotate, more=repeatable.changes(token.id))
        except RevisionConflict:
            await self._require_new(repeatable)
            raise Conflict(_ASK_AGAIN) from None
        now = self._clock.now()
        if _is_overlapping(token, now) or not _is_overlapping(now_is, now):
            self.ended.tell(token.id)
        return now_is

    async def _require_new(self, repeatable: Repeatable) -> None:
        if (token_id := await repeatable.made_before(self._store)) is not None:
            raise Conflict(
                f"a request with this Idempotency-Key was carried out already, for token {token_id}; its text is shown "
                "only once: if it was lost on the way, rotate or revoke the token"
            )

    def _require_valid(self, token: Token) -> None:
        status = self._status(token)
        if status != "valid":
            raise Conflict(f"token {token.id} is {status}, for good; make a new one")

    async def _change(
        self,
        token_id: str,
        draft: Callable[[Token], Token | None],
        *,
        more: Sequence[Put] = (),
        telling: Sequence[OutboxEvent] = (),
    ) -> Token:
        """Commit what `draft` makes of a token, made again while others change it too; None: nothing is to be done."""
        for _ in range(_TRIES):
            held = self._held[token_id]
            made = draft(held.value)
            if made is None:
                return held.value
            put = TOKENS.put(made, held.revision)
            try:
                revisions = await self._store.commit([put, *more], telling)
            except RevisionConflict as error:
                if error.key != put.key:
                    raise
                await self._read_again(token_id)
                continue
            self._keep(Versioned(made, revisions[put.key]))
            return made
        raise Internal(f"token {token_id} is changed by others all the time")

    async def _read_again(self, token_id: str) -> None:
        if (found := await TOKENS.get(self._store, token_id)) is not None:
            self._keep(found)

    def _keep(self, found: Versioned[Token]) -> None:
        token = found.value
        held = self._held.get(token.id)
        if held is not None and held.revision >= found.revision:
            return
        self._held[token.id] = found
        self._ids[token.name] = token.id
        if held is not None and held.value.revoked_at is None and token.revoked_at is not None:
            self.ended.tell(token.id)

    async def _look(self) -> None:
        now = self._clock.now()
        for held in list(self._held.values()):
            until = held.value.previous_until
            if until is not None and self._looked_at < until <= now:
                self.ended.tell(held.value.id)
        self._looked_at = now
        for held in list(self._held.values()):
            if (days := announcement_due(held.value, now)) is not None:
                await self._announce(held.value, days, now)
        await self._write_uses()

    async def _announce(self, token: Token, days: int, now: datetime) -> None:
        def announced(now_is: Token) -> Token | None:
            is_due = announcement_due(now_is, now) == days
            return msgspec.structs.replace(now_is, announced=days) if is_due else None

        event = events.token_expiring(self._with_use(token), days, now)
        if (await self._change(token.id, announced, telling=[event])).announced == days:
            self._log.warning("token.expiring", principal=f"token:{token.id}", name=token.name, days_left=days)

    async def _write_uses(self) -> None:
        unwritten = [
            held
            for token_id, used_at in self._used.items()
            if (held := self._held[token_id]).value.last_used_at != used_at
        ]
        for start in range(0, len(unwritten), WRITTEN_TOGETHER):
            together = [
                Versioned(self._with_use(each.value), each.revision)
                for each in unwritten[start : start + WRITTEN_TOGETHER]
            ]
            try:
                revisions = await self._store.commit([TOKENS.put(each.value, each.revision) for each in together])
            except RevisionConflict as error:
                # Somebody changes one of them right now; all of these have time until the next look.
                await self._read_again(error.key.rpartition("/")[2])
                continue
            for each in together:
                self._keep(Versioned(each.value, revisions[TOKENS.key(each.value.id)]))

    def _with_use(self, token: Token) -> Token:
        used_at = self._used.get(token.id)
        return token if used_at is None else msgspec.structs.replace(token, last_used_at=used_at)

    def _known(self, id_or_name: str) -> Token:
        token = self.find(self._ids.get(id_or_name, id_or_name))
        if token is None:
            # Somebody may have given the token itself: of what is no id and no name, nothing is repeated.
            shown = f" {id_or_name!r}" if _ID_OR_NAME.fullmatch(id_or_name) else ""
            raise NotFound(f"there is no token{shown}; give its id (the eight characters after scvt_), or its name")
        return token

    def _status(self, token: Token) -> Literal["valid", "expired", "revoked"]:
        if token.revoked_at is not None:
            return "revoked"
        return "expired" if self._clock.now() >= token.expires_at else "valid"

    def _reply(self, token: Token) -> am.TokenReply:
        return am.TokenReply(**self._members(token))

    def _members(self, token: Token) -> dict[str, Any]:
        token = self._with_use(token)
        return {
            "id": token.id,
            "name": token.name,
            "principal": f"token:{token.id}",
            "status": self._status(token),
            "policies": [*token.policies],
            "scopes": [*token.scopes],
            "networks": [*token.networks],
            "created_at": token.created_at,
            "created_by": token.created_by,
            "expires_at": token.expires_at,
            "last_used_at": token.last_used_at,
            "revoked_at": token.revoked_at,
            "previous_until": token.previous_until if _is_overlapping(token, self._clock.now()) else None,
            "nats": self._nats_login(token.id),
        }

    def _tell(self, event: str, token: Token, context: RequestContext, **more: object) -> None:
        self._log.info(
            event,
            # Not `token_id`: what is called a token is struck out of the log.
            principal=f"token:{token.id}",
            name=token.name,
            by=str(context.principal),
            request_id=context.request_id,
            **more,
        )


def _is_overlapping(token: Token, now: datetime) -> bool:
    return token.previous_until is not None and now < token.previous_until


def _is_sound(token: Token) -> bool:
    """Whether nobody will stumble over what somebody has done to the store."""
    try:
        principal_of(token)
        for network in token.networks:
            network_pattern(network)
    except ValueError:
        return False
    return token.expires_at.tzinfo is not None and token.created_at.tzinfo is not None


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
