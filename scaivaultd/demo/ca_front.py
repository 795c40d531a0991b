"""The development CA's door: which resource, is the request lawful, which fault strikes it.

A request is judged in a fixed sequence (form, url, nonce, key, signature) so that each refusal
means one thing. A nonce is spent as soon as a well-formed request shows it for the right url.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd.demo import ca_misbehaviour as faults
from scaivaultd.demo.ca_accounts import require_valid
from scaivaultd.demo.ca_conduct import Asked
from scaivaultd.demo.ca_exchange import Answer, Signed
from scaivaultd.demo.ca_jws import Jwk, Jws, parse, parse_jwk, verify
from scaivaultd.demo.ca_problems import Refused, malformed
from scaivaultd.demo.ca_state import MOVABLE, PATHS, Account, Ledger
from scaivaultd.demo.ca_wire import Wire, with_nulls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp import web

    from scaivaultd.demo.ca_nonces import Nonces

_GENERATION = re.compile(r"/v([1-9][0-9]*)(/.*)")

KeyUse = Literal["jwk", "kid", "either"]
"""How a resource wants its signer named (RFC 8555 section 6.2)."""


class Row(msgspec.Struct, frozen=True):
    """A signed resource: who answers, and how its signer is named."""

    handler: Callable[[Signed], Answer]
    key_use: KeyUse = "kid"


class Target(msgspec.Struct, frozen=True):
    """What a path leads to; `generation` is that of the directory that named it."""

    resource: str
    id: str
    generation: int


class Front:
    """Serves every request, one at a time per connection."""

    def __init__(
        self,
        ledger: Ledger,
        nonces: Nonces,
        wire: Wire,
        rows: Mapping[str, Row],
        documents: Mapping[str, Callable[[str, str], Answer]],
        notify: Callable[[str, Literal["received", "processed"]], Awaitable[None]],
    ) -> None:
        self._ledger = ledger
        self._nonces = nonces
        self._wire = wire
        self._rows = rows
        self._documents = documents
        self._notify = notify

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request, or do to it what the script says."""
        body = await request.read()
        target = _route(request.path)
        if target is None:
            return await self._wire.send(request, _problem(malformed("there is nothing here", status=404)))
        await self._notify(target.resource, "received")
        asked = _asked(request, body, target)
        self._ledger.conduct.asked(asked)
        fault = self._strike(target.resource)
        match fault:
            case faults.Reset():
                return self._wire.reset(request)
            case faults.Hang():
                return await self._wire.hang(request)
            case faults.Redirect():
                return await self._wire.send(request, Answer(status=307, headers=(("Location", fault.url),)))
            case faults.Status(processed=False):
                return await self._reply(request, asked, _scripted(fault))
        answer = await self._process(request, body, target, asked)
        return await self._spoil(request, asked, answer, fault)

    async def _spoil(
        self, request: web.BaseRequest, asked: Asked, answer: Answer, fault: faults.Fault | None
    ) -> web.StreamResponse:
        match fault:
            case faults.LoseAnswer():
                return self._wire.reset(request)
            case faults.NoNonce():
                return await self._reply(request, asked, answer, with_nonce=False)
            case faults.Status():
                answer = _scripted(fault)
            case faults.Malformed():
                answer = msgspec.structs.replace(
                    answer, document=None, body=fault.body, content_type=fault.content_type
                )
            case faults.Endless():
                answer = msgspec.structs.replace(answer, is_endless=True)
            case faults.Nulls():
                answer = with_nulls(asked.resource, answer)
        return await self._reply(request, asked, answer)

    async def _reply(
        self, request: web.BaseRequest, asked: Asked, answer: Answer, *, with_nonce: bool = True
    ) -> web.StreamResponse:
        retry_after, location = answer.header("Retry-After"), answer.header("Location")
        self._ledger.conduct.answered(asked, status=answer.status, retry_after=retry_after, location=location)
        nonce = self._nonces.fresh() if with_nonce and _brings_nonce(request, asked.resource) else None
        return await self._wire.send(request, answer, nonce)

    def _strike(self, resource: str) -> faults.Fault | None:
        misbehaviour = self._ledger.misbehaviour
        scripted = misbehaviour.next_fault(resource)
        if scripted is not None:
            return scripted
        if self._ledger.chance(misbehaviour.reset_rate):
            return faults.Reset()
        if self._ledger.chance(misbehaviour.error_500_rate):
            return faults.Status(code=500, detail="drawn by chance")
        if self._ledger.chance(misbehaviour.lose_answer_rate):
            return faults.LoseAnswer()
        return None

    async def _process(self, request: web.BaseRequest, body: bytes, target: Target, asked: Asked) -> Answer:
        try:
            answer = self._answer(request, body, target)
        except Refused as refused:
            self._ledger.conduct.refused(asked, refused)
            return _problem(refused)
        await self._notify(target.resource, "processed")
        return answer

    def _answer(self, request: web.BaseRequest, body: bytes, target: Target) -> Answer:
        if not request.headers.get("User-Agent"):
            raise malformed("a User-Agent is required (RFC 8555 section 6.1)")
        self._require_present(target)
        if target.resource in self._documents:
            _require_method(request, "GET", "HEAD")
            return self._documents[target.resource](request.method, target.id)
        _require_method(request, "POST")
        row = self._rows[target.resource]
        return row.handler(self._verify(request, body, target, row.key_use))

    def _require_present(self, target: Target) -> None:
        """Refuse an address of the past, and what this CA does not offer."""
        now = self._ledger.generation
        if target.resource in MOVABLE and target.generation < now:
            self._ledger.conduct.stale(target.resource, now)
        expected = now if target.resource in MOVABLE else 0
        if target.generation != expected or target.resource not in {*self._rows, *self._documents}:
            raise malformed(f"{target.resource} is not here", status=404)

    def _verify(self, request: web.BaseRequest, body: bytes, target: Target, key_use: KeyUse) -> Signed:
        if request.headers.get("Content-Type") != "application/jose+json":
            raise malformed("the content type is application/jose+json and nothing else", status=415)
        url = f"{self._ledger.base_url}{request.raw_path}"
        jws = parse(body)
        if jws.header.url != url:
            raise Refused("unauthorized", f"the url in the header is not {url}")
        self._spend_nonce(jws)
        jwk, account = self._signer(jws, key_use)
        verify(jws, jwk)
        if account is not None:
            self._require_valid(account)
        cursor = request.query.get("cursor", "0")
        return Signed(
            id=target.id,
            url=url,
            cursor=int(cursor) if cursor.isdecimal() else 0,
            jwk=jwk,
            account=account,
            payload=jws.payload,
        )

    def _require_valid(self, account: Account) -> None:
        try:
            require_valid(account)
        except Refused:
            self._ledger.conduct.told(("account", account.url), f"{account.url} asks on though it is {account.status}")
            raise

    def _spend_nonce(self, jws: Jws) -> None:
        if jws.header.nonce is None:
            raise Refused("badNonce", "the header has no nonce")
        if not self._nonces.spend(jws.header.nonce):
            raise Refused("badNonce", "the nonce is not one of ours, or was used before")
        if self._ledger.chance(self._ledger.misbehaviour.nonce_reject_rate):
            raise Refused("badNonce", "the nonce was good, but chance is against it")

    def _signer(self, jws: Jws, key_use: KeyUse) -> tuple[Jwk, Account | None]:
        header = jws.header
        if header.jwk is not None:
            if key_use == "kid":
                raise malformed("this resource names its signer by kid")
            return parse_jwk(header.jwk), None
        if key_use == "jwk":
            raise malformed("this resource names its signer by jwk")
        account = self._ledger.accounts.get(header.kid or "")
        if account is None:
            raise Refused("accountDoesNotExist", "no account has this URL")
        return account.jwk, account


def _brings_nonce(request: web.BaseRequest, resource: str) -> bool:
    return resource == "newNonce" or request.method == "POST"


def _asked(request: web.BaseRequest, body: bytes, target: Target) -> Asked:
    """What it says it is: nothing has been verified yet, and what cannot be read is taken as it came."""
    if request.method != "POST":
        return Asked(resource=target.resource, url=request.raw_path)
    try:
        jws = parse(body)
    except Refused:
        return Asked(resource=target.resource, url=request.raw_path, payload=body)
    return Asked(resource=target.resource, url=jws.header.url, kid=jws.header.kid or "", payload=jws.payload)


def _route(path: str) -> Target | None:
    generation = 0
    if moved := _GENERATION.fullmatch(path):
        generation, path = int(moved[1]), moved[2]
    for resource, prefix in PATHS.items():
        if path == prefix and not prefix.endswith("/"):
            return Target(resource, "", generation)
        if prefix.endswith("/") and path.startswith(prefix) and path != prefix:
            return Target(resource, path.removeprefix(prefix), generation)
    return None


def _require_method(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        allow = {"Allow": ", ".join(methods)}
        raise Refused("malformed", f"{request.method} is not allowed here", status=405, headers=allow)


def _problem(refused: Refused) -> Answer:
    return Answer(
        status=refused.status,
        document=refused.document,
        content_type="application/problem+json",
        headers=tuple(refused.headers.items()),
    )


def _scripted(fault: faults.Status) -> Answer:
    return _problem(Refused(fault.type, fault.detail, status=fault.code, members=fault.members, headers=fault.headers))
