"""Lets requests in by the policies, and has each of them written down.

Whoever may not do such a thing at all is told so before anything is looked up. Whoever may, but not to this one, hears
that it is not there, unless they may see it: no answer tells strangers what there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from scaivaultd.api.commands import EVERYBODY
from scaivaultd.model import metrics
from scaivaultd.model.access import AccessRequest, AuditEntry, Decision, principal_of
from scaivaultd.model.errors import FieldError, PermissionDenied, ScaivaultError
from scaivaultd.model.resources import terms_of
from scaivaultd.services.access_targets import AccessTargets, Target, Touched, object_of
from scaivaultd.services.access_terms import terms_as_ordered, unnamed
from scaivaultd.services.policies import TENANT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.api.commands import Command
    from scaivaultd.api.gate import Admission, Permits
    from scaivaultd.model.access import AccountRef, CertificateTerms, Quota, Token
    from scaivaultd.model.clock import Clock
    from scaivaultd.model.principals import Principal
    from scaivaultd.model.resources import Certificate
    from scaivaultd.services.policies import Policies
    from scaivaultd.services.ports import Store

WRITTEN_FIRST = frozenset(
    {
        "key.read",
        "secret.write",
        "secret.delete",
        "token.create",
        "token.rotate",
        "token.revoke",
        "policy.write",
        "policy.delete",
        "master_key.rotate",
        "backup.create",
    }
)
"""What is not done before it is written down; anything else goes on while the audit log cannot be written."""
NOT_WRITTEN = frozenset({"sys.health"})
"""Asked every few seconds by whoever watches the daemon, and about nobody."""
BEGUN = "begun"

_REASONS_SHOWN = 5
_ALWAYS = Decision(allowed=True)


class AuditLog(Protocol):
    """Where requests are written down; `Auditing` is one."""

    def record(self, entry: AuditEntry) -> None:
        """Have it written soon; never raises."""
        ...

    async def record_durably(self, entry: AuditEntry) -> None:
        """Write it to stable storage; raises StorageUnavailable."""
        ...


class KnownTokens(Protocol):
    """The API tokens there are; `Tokens` has them."""

    def find(self, token_id: str) -> Token | None:
        """The token with that id, whatever its state."""
        ...


class Gatekeeper:
    """The gate of the daemon."""

    def __init__(
        self,
        *,
        store: Store,
        policies: Policies,
        tokens: KnownTokens,
        auditing: AuditLog,
        clock: Clock,
        log: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._policies = policies
        self._tokens = tokens
        self._auditing = auditing
        self._clock = clock
        self._targets = AccessTargets(store, log)

    async def admit(
        self, command: Command[Any, Any], request: Any, *, principal: Principal, request_id: str, source: str | None
    ) -> Admission:
        """As `api/gate.py` says."""
        entry = AuditEntry(
            at=self._clock.now(),
            principal=str(principal),
            tenant=TENANT,
            action=command.permission,
            object=object_of(request),
            decision="allow",
            result=BEGUN,
            request_id=request_id,
            source=source,
        )
        visit = _Visit(principal, entry, self._policies, self._auditing, self._clock)
        try:
            if command.permission != EVERYBODY:
                await self._judge(visit, command, request)
            if command.permission in WRITTEN_FIRST:
                await self._auditing.record_durably(visit.entry)
        except ScaivaultError as error:
            visit.write(error.code)
            raise
        return visit

    async def _judge(self, visit: _Visit, command: Command[Any, Any], request: Any) -> None:
        decision = self._policies.decide_action(visit.asking(command.permission))
        visit.judged(decision)
        if not decision.allowed:
            raise denied(visit.principal, command.permission, decision)
        target = await self._targets.of(command, request, visit.principal)
        if target.object is not None:
            visit.entry = msgspec.structs.replace(visit.entry, object=target.object)
        self._judge_each(visit, target)
        if target.error is not None:
            raise target.error

    def _judge_each(self, visit: _Visit, target: Target) -> None:
        for touched in target.touched:
            decision = self._policies.decide(visit.about(touched, touched.action))
            if not decision.allowed:
                visit.judged(decision)
                raise self._refusal(visit, touched, decision)
            if touched.action == visit.entry.action:
                visit.judged(decision)

    def _refusal(self, visit: _Visit, touched: Touched, decision: Decision) -> ScaivaultError:
        decision = self._unnamed(visit, touched, decision)
        if touched.missing is None:
            return denied(visit.principal, touched.action, decision, touched)
        is_known = touched.seen_by is not None and self._policies.allow(visit.about(touched, touched.seen_by))
        return denied(visit.principal, touched.action, decision, touched) if is_known else touched.missing

    def _unnamed(self, visit: _Visit, touched: Touched, decision: Decision) -> Decision:
        """The same refusal without the names of accounts that its principal may not see: it knows them by id."""
        terms = touched.certificate
        if terms is None or not _is_about_accounts(decision):
            return decision

        def judged(accounts: tuple[AccountRef, ...]) -> Decision:
            return self._policies.decide(
                visit.asking(touched.action, msgspec.structs.replace(terms, accounts=accounts), touched.account)
            )

        def is_named(account: AccountRef) -> bool:
            may_see = self._policies.allow(visit.asking("account.read", account=account))
            return may_see or not _is_about_accounts(judged((account,)))

        in_their_words = judged(tuple(each if is_named(each) else unnamed(each) for each in terms.accounts))
        return decision if in_their_words.allowed else in_their_words

    async def judge_renewal(self, certificate: Certificate) -> Decision:
        """Whether the owner of a certificate may still have it renewed, by what policies say now.

        That a token has expired or was revoked says nothing here: it asks for nothing any more, and its certificates
        are not to lapse with it. To end them, take the right away from its name.
        """
        owner = certificate.requested_by
        if owner is None or owner.kind == "system":
            return _ALWAYS
        if owner.kind == "token" and (token := self._tokens.find(owner.id)) is not None:
            owner = principal_of(token)
        terms = await terms_as_ordered(self._store, terms_of(certificate))
        return self._policies.decide(
            AccessRequest(principal=owner, action="cert.renew", tenant=TENANT, certificate=terms)
        )


class _Visit:
    """One request: what its principal may do, and the record that is made of it; `Permits` and `Admission` in one."""

    def __init__(
        self, principal: Principal, entry: AuditEntry, policies: Policies, auditing: AuditLog, clock: Clock
    ) -> None:
        self.principal = principal
        self.entry = entry
        self._policies = policies
        self._auditing = auditing
        self._clock = clock
        self._quota: Quota | None = None
        self._is_settled = False

    @property
    def permits(self) -> Permits:
        """What its principal may do."""
        return self

    def allows(
        self,
        action: str,
        *,
        certificate: CertificateTerms | None = None,
        account: AccountRef | None = None,
        secret: str | None = None,
    ) -> bool:
        """As `Permits` says."""
        return self._policies.allow(self.asking(action, certificate, account, secret))

    def require(
        self,
        action: str,
        *,
        certificate: CertificateTerms | None = None,
        account: AccountRef | None = None,
        secret: str | None = None,
        pointer: str = "",
    ) -> None:
        """As `Permits` says."""
        decision = self._policies.decide(self.asking(action, certificate, account, secret))
        if not decision.allowed:
            self.judged(decision)
            error = denied(self.principal, action, decision)
            field = FieldError(pointer=pointer, code=PermissionDenied.code, detail=error.detail)
            raise PermissionDenied(error.detail, [field] if pointer else ())

    def quota(self) -> Quota | None:
        """As `Permits` says."""
        return self._quota

    def asking(
        self,
        action: str,
        certificate: CertificateTerms | None = None,
        account: AccountRef | None = None,
        secret: str | None = None,
    ) -> AccessRequest:
        """That its principal wants to do something."""
        return AccessRequest(
            principal=self.principal,
            action=action,
            tenant=TENANT,
            certificate=certificate,
            account=account,
            secret=secret,
        )

    def about(self, touched: Touched, action: str) -> AccessRequest:
        """That its principal wants to do something to what it touches."""
        return self.asking(action, touched.certificate, touched.account, touched.secret)

    def judged(self, decision: Decision) -> None:
        """Its record says by which rule it was let in, or by which it was not."""
        self._quota = decision.quota
        self.entry = msgspec.structs.replace(
            self.entry,
            decision="allow" if decision.allowed else "deny",
            policy=decision.policy,
            rule=decision.rule,
        )

    async def settle(self, result: str) -> None:
        """As `Admission` says."""
        if self._is_settled:
            return
        if self.entry.action == "key.read" and result == "ok":
            self._is_settled = True
            await self._auditing.record_durably(self._ended(result))
        else:
            self.write(result)

    def write(self, result: str) -> None:
        """Write down how it ended; nobody waits for that."""
        self._is_settled = True
        if self.entry.action not in NOT_WRITTEN:
            self._auditing.record(self._ended(result))

    def _ended(self, result: str) -> AuditEntry:
        return msgspec.structs.replace(self.entry, at=self._clock.now(), result=result)


def denied(principal: Principal, action: str, decision: Decision, touched: Touched | None = None) -> PermissionDenied:
    """The error of a request that no policy allows: what came nearest to it, and which members stand in the way."""
    metrics.AUTHZ_DENIALS.labels(operation=action).inc()
    reasons = [each for each in decision.reasons if not each.allowed]
    shown = "; ".join(each.detail for each in reasons[:_REASONS_SHOWN])
    more = f" (and {len(reasons) - _REASONS_SHOWN} more reasons)" if len(reasons) > _REASONS_SHOWN else ""
    who = f"{principal} ({principal.name})" if principal.name else str(principal)
    fields = [] if touched is None else list(_fields(decision, touched))
    return PermissionDenied(f"{who} may not {action}: {shown}{more}", fields)


def _is_about_accounts(decision: Decision) -> bool:
    return any(each.about == "account" and not each.allowed for each in decision.reasons)


def _fields(decision: Decision, touched: Touched) -> Iterator[FieldError]:
    for reason in decision.reasons:
        if not reason.allowed:
            for pointer in touched.pointers.get(reason.about, ()):
                yield FieldError(pointer=pointer, code=PermissionDenied.code, detail=reason.detail)
