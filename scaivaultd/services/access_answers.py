"""What principals may ask about themselves: who they are, and what they may do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from scaivaultd.api import access_messages as am
from scaivaultd.model.access import AccessRequest, AccountRef, CertificateTerms, principal_of
from scaivaultd.model.errors import FieldError, InvalidRequest, NotFound
from scaivaultd.model.names import parse_identifiers
from scaivaultd.model.principals import principal_from
from scaivaultd.services.access_terms import account_ref
from scaivaultd.services.documents import ACCOUNT_NAMES, ACCOUNTS, TOKEN_NAMES, digest
from scaivaultd.services.policies import TENANT

if TYPE_CHECKING:
    from collections.abc import Callable

    from scaivaultd.api import messages as m
    from scaivaultd.api.commands import RequestContext
    from scaivaultd.model.access import Decision
    from scaivaultd.model.principals import Principal
    from scaivaultd.services.gatekeeping import KnownTokens
    from scaivaultd.services.policies import Policies
    from scaivaultd.services.ports import Store

UNNAMED_ACCOUNT = AccountRef(None, "another account")
"""Stands for any that no rule names, where somebody asks without one."""


class AccessAnswers:
    """Handlers of `auth.*`."""

    def __init__(
        self,
        *,
        store: Store,
        policies: Policies,
        tokens: KnownTokens,
        nats_login: Callable[[str], am.NatsLogin | None],
    ) -> None:
        self._store = store
        self._policies = policies
        self._tokens = tokens
        self._nats_login = nats_login

    async def can_i(self, request: am.CanI, context: RequestContext) -> am.CanIReply:
        """Handle `auth.can_i`."""
        principal = context.principal
        if request.principal is not None and request.principal not in _names_of(principal):
            context.permits.require("policy.read", pointer="/principal")
            principal = await self._other(request.principal)
        account = None if request.account_id is None else await self._account(request.account_id)
        asked = AccessRequest(
            principal=principal,
            action=request.action,
            tenant=TENANT,
            certificate=_terms(request, account),
            account=account,
            secret=request.secret,
        )
        decision = self._policies.decide(asked)
        if (
            account is not None
            and account.id is not None
            and not context.permits.allows("account.read", account=account)
        ):
            decision = self._unnamed(asked, decision, AccountRef(account.id, request.account_id or ""))
        return am.CanIReply(
            allowed=decision.allowed,
            principal=str(principal),
            action=request.action,
            policy=decision.policy,
            rule=decision.rule,
            reasons=list(decision.reasons),
        )

    def _unnamed(self, asked: AccessRequest, decision: Decision, account: AccountRef) -> Decision:
        """The same answer in the words of whoever asks: by an id they may not look up, they get to know no name."""
        terms = asked.certificate
        if decision.allowed:
            return decision
        in_their_words = msgspec.structs.replace(
            asked,
            account=account,
            certificate=None if terms is None else msgspec.structs.replace(terms, accounts=(account,)),
        )
        shown = self._policies.decide(in_their_words)
        return decision if shown.allowed else shown

    async def who_am_i(self, request: m.Nothing, context: RequestContext) -> am.WhoAmIReply:
        """Handle `auth.whoami`."""
        principal = context.principal
        token = self._tokens.find(principal.id) if principal.kind == "token" else None
        return am.WhoAmIReply(
            principal=str(principal),
            name=principal.name,
            policies=list(self._policies.applying(principal)),
            scopes=list(principal.scopes),
            expires_at=None if token is None else token.expires_at,
            nats=None if token is None else self._nats_login(token.id),
        )

    async def _other(self, text: str) -> Principal:
        """Somebody else, by normal form, or, for a token, by its name."""
        kind, _, id_or_name = text.partition(":")
        if kind != "token":
            try:
                return principal_from(text)
            except ValueError as error:
                raise _wrong(str(error)) from None
        token = self._tokens.find(id_or_name)
        if token is None and (named := await TOKEN_NAMES.get(self._store, digest(id_or_name))) is not None:
            token = self._tokens.find(named.value.token_id)
        if token is None:
            detail = f"there is no token {id_or_name[:100]!r}"
            raise NotFound(detail, [FieldError(pointer="/principal", code=NotFound.code, detail=detail)])
        return principal_of(token)

    async def _account(self, id_or_name: str) -> AccountRef:
        """The account, or one of that name that is not there yet."""
        named = await ACCOUNT_NAMES.get(self._store, digest(id_or_name))
        account = await ACCOUNTS.get(self._store, id_or_name if named is None else named.value.account_id)
        return AccountRef(None, id_or_name) if account is None else account_ref(account.value)


def _terms(request: am.CanI, account: AccountRef | None) -> CertificateTerms | None:
    if not request.domains:
        return None
    return CertificateTerms(
        names=parse_identifiers(request.domains, public_ca=False),
        accounts=(UNNAMED_ACCOUNT if account is None else account,),
        challenge_type=request.challenge_type,
        key_type=request.key_type,
    )


def _names_of(principal: Principal) -> tuple[str, ...]:
    return (str(principal), f"{principal.kind}:{principal.name}") if principal.name else (str(principal),)


def _wrong(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, [FieldError(pointer="/principal", code="bad_principal", detail=detail)])
