"""Authorizations and challenges of the development CA (RFC 8555 sections 7.5 and 8)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from scaivaultd.demo.ca_accounts import require_own
from scaivaultd.demo.ca_exchange import Answer, Headers, Signed, retry_after, timestamp
from scaivaultd.demo.ca_problems import malformed
from scaivaultd.demo.ca_state import Account, Authorization, Challenge, Ledger

if TYPE_CHECKING:
    from scaivaultd.demo.ca_identifiers import Identifier
    from scaivaultd.demo.ca_limits import Limits
    from scaivaultd.demo.ca_problems import Finding
    from scaivaultd.demo.ca_validation import Validator

_TYPES = {"dns": ("http-01", "dns-01", "tls-alpn-01"), "ip": ("http-01", "tls-alpn-01")}


class Authorizations:
    """Makes and judges them; owns the validations under way until `close`."""

    def __init__(self, ledger: Ledger, limits: Limits, validator: Validator) -> None:
        self._ledger = ledger
        self._limits = limits
        self._validator = validator
        self._validations: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop all validations and wait for them."""
        for task in self._validations:
            task.cancel()
        await asyncio.gather(*self._validations, return_exceptions=True)

    def obtain(self, account: Account, identifier: Identifier) -> Authorization:
        """The authorization a new order gets: a valid one of the account, where reuse is on, else a new one."""
        if self._ledger.settings.reuse_authorizations:
            for url in self._ledger.authorizations:
                known = self.current(url)
                if (known.account_url, known.identifier, known.status) == (account.url, identifier, "valid"):
                    return known
        return self._put(self._fresh(account, identifier))

    def current(self, url: str) -> Authorization:
        """As it stands now: time may have ended it."""
        authorization = self._ledger.authorizations[url]
        is_over = authorization.expires_at <= self._ledger.clock.now()
        if not is_over or authorization.status not in {"pending", "valid"}:
            return authorization
        # RFC 8555 section 7.1.6: only a valid authorization expires; one never proven turns invalid.
        status = "expired" if authorization.status == "valid" else "invalid"
        return self._put(msgspec.structs.replace(authorization, status=status))

    def authorization(self, request: Signed) -> Answer:
        """Read, or deactivate (RFC 8555 section 7.5.2)."""
        authorization = self._find(request, request.url)
        if not request.is_read:
            authorization = self._deactivate(authorization, request.members())
        return Answer(document=self._document(authorization), headers=self._pace(authorization))

    def challenge(self, request: Signed) -> Answer:
        """Read, or start validating. Repeating the answer to a settled challenge changes nothing."""
        authorization_id, _, type_ = request.id.partition("/")
        authorization = self._find(request, self._ledger.url("authorization", authorization_id))
        found = next((each for each in authorization.challenges if each.url == request.url), None)
        if found is None:
            raise malformed(f"there is no challenge {type_}", status=404)
        if not request.is_read:
            if request.members():
                raise malformed("a challenge is answered with {}")
            found = self._start(authorization, found)
        up = ("Link", f'<{authorization.url}>;rel="up"')
        return Answer(document=_challenge_document(found), headers=(up, *self._pace(authorization)))

    def _find(self, request: Signed, url: str) -> Authorization:
        if url not in self._ledger.authorizations:
            raise malformed("there is no such authorization", status=404)
        authorization = self.current(url)
        require_own(request, authorization.account_url)
        return authorization

    def _deactivate(self, authorization: Authorization, members: dict[str, Any]) -> Authorization:
        if members.get("status") != "deactivated":
            raise malformed("the only change to an authorization is to deactivate it")
        if authorization.status not in {"pending", "valid"}:
            raise malformed(f"the authorization is {authorization.status}")
        return self._put(msgspec.structs.replace(authorization, status="deactivated"))

    def _start(self, authorization: Authorization, challenge: Challenge) -> Challenge:
        if authorization.status != "pending" or challenge.status != "pending":
            return challenge
        # A second try after `pending_with_error` forgets the first one's error.
        started = msgspec.structs.replace(challenge, status="processing", error=None)
        self._put(_with(authorization, started))
        task = asyncio.create_task(self._validate(authorization.url, started))
        self._validations.add(task)
        task.add_done_callback(self._validations.discard)
        return started

    async def _validate(self, url: str, challenge: Challenge) -> None:
        misbehaviour = self._ledger.misbehaviour
        if misbehaviour.validation_delay_seconds > 0:
            await self._ledger.clock.sleep(misbehaviour.validation_delay_seconds)
        finding = None if misbehaviour.always_valid else await self._look(url, challenge)
        self._settle(url, challenge, finding)

    async def _look(self, url: str, challenge: Challenge) -> Finding:
        authorization = self._ledger.authorizations[url]
        token = challenge.token or ""
        # The key of this moment, not of when the order was placed: it may have been changed since.
        thumbprint = self._ledger.accounts[authorization.account_url].thumbprint
        return await self._validator.validate(authorization.identifier, challenge.type, token, f"{token}.{thumbprint}")

    def _settle(self, url: str, challenge: Challenge, finding: Finding) -> None:
        authorization = self.current(url)
        if authorization.status != "pending":
            return
        now = self._ledger.clock.now()
        if finding is None:
            proven = msgspec.structs.replace(challenge, status="valid", validated_at=now)
            expires_at = now + self._ledger.settings.authorization_ttl
            authorization = msgspec.structs.replace(authorization, status="valid", expires_at=expires_at)
            self._put(_with(authorization, proven))
        elif self._ledger.misbehaviour.pending_with_error:
            self._put(_with(authorization, msgspec.structs.replace(challenge, status="pending", error=finding)))
        else:
            self._limits.failed(authorization.account_url, authorization.identifier)
            failed = msgspec.structs.replace(challenge, status="invalid", error=finding)
            self._put(_with(msgspec.structs.replace(authorization, status="invalid"), failed))

    def _fresh(self, account: Account, identifier: Identifier) -> Authorization:
        id_ = self._ledger.new_id()
        is_proven = self._ledger.misbehaviour.order_ready_at_once or self._ledger.misbehaviour.order_valid_at_once
        return Authorization(
            url=self._ledger.url("authorization", id_),
            account_url=account.url,
            identifier=identifier,
            status="valid" if is_proven else "pending",
            expires_at=self._ledger.clock.now() + self._ledger.settings.authorization_ttl,
            challenges=self._challenges(id_, identifier),
        )

    def _challenges(self, id_: str, identifier: Identifier) -> tuple[Challenge, ...]:
        types = ("dns-01",) if identifier.is_wildcard else _TYPES[identifier.type]
        offered = [self._challenge(id_, type_) for type_ in types]
        if self._ledger.misbehaviour.unknown_challenge_types:
            url = self._challenge_url(id_, "dns-persist-01")
            extra: dict[str, object] = {"issuer-domain-names": ["ca.example"], "odd": {"nested": [None, 1]}}
            offered.insert(0, Challenge(url=url, type="dns-persist-01", token=None, extra=extra))
        return self._ledger.shuffled(offered)

    def _challenge(self, id_: str, type_: str) -> Challenge:
        token = self._ledger.new_token(odd=self._ledger.misbehaviour.odd_tokens)
        return Challenge(url=self._challenge_url(id_, type_), type=type_, token=token)

    def _challenge_url(self, id_: str, type_: str) -> str:
        return self._ledger.url("challenge", f"{id_}/{type_}")

    def _put(self, authorization: Authorization) -> Authorization:
        self._ledger.authorizations[authorization.url] = authorization
        return authorization

    def _document(self, authorization: Authorization) -> dict[str, Any]:
        identifier = authorization.identifier
        document: dict[str, Any] = {
            "identifier": {"type": identifier.type, "value": identifier.base},
            "status": authorization.status,
            "expires": timestamp(authorization.expires_at),
            "challenges": [_challenge_document(each) for each in self._ledger.shuffled(authorization.challenges)],
        }
        return {**document, "wildcard": True} if identifier.is_wildcard else document

    def _pace(self, authorization: Authorization) -> Headers:
        if authorization.status != "pending" or any(each.error for each in authorization.challenges):
            return ()
        return retry_after(self._ledger.misbehaviour, self._ledger.clock.now())


def _with(authorization: Authorization, challenge: Challenge) -> Authorization:
    challenges = tuple(challenge if each.url == challenge.url else each for each in authorization.challenges)
    return msgspec.structs.replace(authorization, challenges=challenges)


def _challenge_document(challenge: Challenge) -> dict[str, Any]:
    document: dict[str, Any] = {"type": challenge.type, "url": challenge.url, "status": challenge.status}
    if challenge.token is not None:
        document["token"] = challenge.token
    if challenge.error is not None:
        document["error"] = challenge.error
    if challenge.validated_at is not None:
        document["validated"] = timestamp(challenge.validated_at)
    return {**document, **challenge.extra}
