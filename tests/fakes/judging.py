"""What policies say, as a test wants it: of renewals, and of what one caller may do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaivaultd.api.commands import RequestContext
from scaivaultd.api.gate import UNLIMITED
from scaivaultd.model.access import Decision, Reason
from scaivaultd.model.errors import PermissionDenied
from scaivaultd.model.principals import Principal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scaivaultd.api.gate import Permits
    from scaivaultd.model.access import AccountRef, CertificateTerms, Quota
    from scaivaultd.model.resources import Certificate

WEB = Principal(kind="token", id="Web00000", name="web-ci")
SHOP = Principal(kind="token", id="Shop0000", name="shop-ci")


class ScriptedJudge:
    """Lets everybody renew but the principals in `refused`, and what `refuses` names; `asked` are whom it has judged.

    `before` acts while it judges.
    """

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.refuses: Callable[[Certificate], bool] = lambda _: False
        self.asked: list[str] = []
        self.detail = "no policy allows it by 'a.example.test'"
        self.policy: str | None = None
        self.before: Callable[[], Awaitable[None]] | None = None

    async def judge_renewal(self, certificate: Certificate) -> Decision:
        owner = str(certificate.requested_by)
        self.asked.append(owner)
        allowed = owner not in self.refused and not self.refuses(certificate)
        if self.before is not None:
            await self.before()
        names = [str(each) for each in certificate.identifiers]
        return Decision(
            allowed=allowed,
            policy=self.policy,
            rule=None if self.policy is None else 2,
            reasons=tuple(Reason(about=each, allowed=allowed, detail=self.detail) for each in names),
        )


class Permitted:
    """May do what it is told to actions on names below its suffixes, on accounts of those names, on such secrets."""

    def __init__(
        self,
        *suffixes: str,
        actions: tuple[str, ...] | None = None,
        accounts: tuple[str, ...] | None = None,
        secrets: tuple[str, ...] = (),
        quota: Quota | None = None,
    ) -> None:
        self.suffixes = suffixes
        self.actions = actions
        self.accounts = accounts
        self.secrets = secrets
        self.judged = 0
        self._quota = quota

    def allows(
        self,
        action: str,
        *,
        certificate: CertificateTerms | None = None,
        account: AccountRef | None = None,
        secret: str | None = None,
    ) -> bool:
        self.judged += 1
        if self.actions is not None and action not in self.actions:
            return False
        if certificate is not None and not all(each.value.endswith(self.suffixes) for each in certificate.names):
            return False
        if account is not None and self.accounts is not None and account.name not in self.accounts:
            return False
        return secret is None or secret.startswith(self.secrets)

    def require(self, action: str, *, pointer: str = "", **about: Any) -> None:
        if not self.allows(action, **about):
            raise PermissionDenied(f"may not {action}")

    def quota(self) -> Quota | None:
        return self._quota


def asked_by(principal: Principal, permits: Permits = UNLIMITED, key: str | None = None) -> RequestContext:
    """A request of a principal, who may do everything unless `permits` are given."""
    return RequestContext(request_id="req_test", principal=principal, permits=permits, idempotency_key=key)
