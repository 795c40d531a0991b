"""One tree of errors: what went wrong, with data, and what it is called on the wire.

    ScaivaultError
    +-- InvalidRequest          the request itself is wrong; `fields` says where
    |   `-- UnsupportedChallenge    this name cannot be proven that way
    +-- NotFound                no such thing
    +-- Conflict                the thing is in another state than the request assumes
    +-- RateLimited             we are asked too much at once
    +-- Standby                 the daemon is stopping, or not yet up
    +-- StorageUnavailable      the store cannot be written (disk full, I/O error)
    +-- SecretNotFound          a referenced secret is not there
    +-- DnsError                DNS itself stands in the way: `reason` says how
    +-- DnsProviderError        a DNS provider refused or failed
    +-- DnsPropagationTimeout   a value did not reach all name servers; `verdicts` says which
    +-- ChallengeFailed         the CA looked and was not convinced
    +-- CaRefused               the CA said no (a problem document)
    |   |-- CaMisbehaved            it broke the protocol
    |   `-- BackendRateLimited      it asks us to slow down
    +-- CaUnavailable           the CA could not be reached or is broken for now
    |   `-- CertificatePending      only the certificate is not there yet
    +-- Timeout                 a deadline passed
    `-- Internal                a fault of ours; its text stays in the log

Class attributes carry the wire code, the HTTP status, whether trying again may help, and the
advice shown by `scaivaultctl explain`. `api/dispatch.py` alone turns them into problem documents.
InvalidRequest, NotFound, Conflict and SecretNotFound may point at members of a request: they are `AtFields`.
`RevisionConflict` and `StartupError` stand outside: the first never leaves a service, the second
never leaves the process.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scaivaultd.model.dns import ServerVerdict
    from scaivaultd.model.resources import PreflightVerdict


class FieldError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing wrong with one member of a request; `pointer` is a JSON Pointer (RFC 6901)."""

    pointer: str
    code: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A CA's problem document (RFC 8555 section 6.7) as we keep and show it: cleaned, never raw."""

    type: str
    detail: str = ""
    status: int | None = None
    identifier: str | None = None
    instance: str | None = None
    help_url: str | None = None
    terms_of_service_url: str | None = None
    algorithms: tuple[str, ...] = ()
    subproblems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """`rateLimited` for `urn:ietf:params:acme:error:rateLimited`; other types stay whole."""
        return self.type.removeprefix("urn:ietf:params:acme:error:")


class ScaivaultError(Exception):
    """Something the caller can be told."""

    code: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]
    retryable: ClassVar[bool] = False
    remedy: ClassVar[str]

    identifier: str | None = None
    """Which name of an order it is about, where it is about one."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class AtFields(ScaivaultError):
    """One that may be the fault of members of the request; `fields` says of which."""

    def __init__(self, detail: str, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.fields = tuple(fields)


class InvalidRequest(AtFields):
    """The request itself is wrong; nothing was done."""

    code: ClassVar[str] = "invalid_request"
    status: ClassVar[int] = 400
    title: ClassVar[str] = "The request is not valid"
    remedy: ClassVar[str] = (
        "Read `errors`: each entry points at a member of the request and says what is wrong with it. "
        "The schema of every command is in docs/reference/commands.md and in the endpoint's metadata."
    )


class UnsupportedChallenge(InvalidRequest):
    """This identifier cannot be proven by this challenge type."""

    code: ClassVar[str] = "unsupported_challenge"
    status: ClassVar[int] = 422
    title: ClassVar[str] = "The challenge type does not fit"
    remedy: ClassVar[str] = (
        "Wildcards are proven by dns-01 only; IP addresses by http-01 or tls-alpn-01 only; dns-01 needs a DNS provider "
        "(`pki.dns_providers.create`). Choose another `challenge_type`, or split the request."
    )


class NotFound(AtFields):
    """There is no such thing."""

    code: ClassVar[str] = "not_found"
    status: ClassVar[int] = 404
    title: ClassVar[str] = "Not found"
    remedy: ClassVar[str] = "Check the id: list the accounts, orders or certificates to see what there is."


class Conflict(AtFields):
    """The thing is in a state that does not allow this."""

    code: ClassVar[str] = "conflict"
    status: ClassVar[int] = 409
    title: ClassVar[str] = "The state does not allow this"
    remedy: ClassVar[str] = "Get the resource and look at its `status`; then decide what to ask for."


class AccountUnusable(ScaivaultError):
    """The account is deactivated, invalid or unknown to its CA: nothing can be asked in its name."""

    code: ClassVar[str] = "account_unusable"
    status: ClassVar[int] = 409
    title: ClassVar[str] = "The account cannot be used"
    remedy: ClassVar[str] = (
        "Register another account (`pki.acme.accounts.create`) and give it to the certificate "
        "(`pki.certificates.update` with `account_id`); a deactivated account never comes back."
    )

    def __init__(self, detail: str, problem: Problem | None = None) -> None:
        """`problem` is what the CA said when it refused the account."""
        super().__init__(detail)
        self.problem = problem


class PreflightFailed(ScaivaultError):
    """A check before the CA was asked shows that it would refuse, and the configuration says to stop then."""

    code: ClassVar[str] = "preflight_failed"
    status: ClassVar[int] = 422
    title: ClassVar[str] = "A check before asking the CA failed"
    remedy: ClassVar[str] = (
        "Read `preflight` in the order: each verdict names the record or the answer that stands in the way. "
        "`[preflight]` in the configuration says which checks stop an order and which only warn."
    )

    def __init__(self, detail: str, verdicts: Sequence[PreflightVerdict] = (), *, may_pass: bool = False) -> None:
        super().__init__(detail)
        self.verdicts = tuple(verdicts)
        self.may_pass = may_pass


class Cancelled(ScaivaultError):
    """A caller has cancelled the order."""

    code: ClassVar[str] = "cancelled"
    status: ClassVar[int] = 409
    title: ClassVar[str] = "The order was cancelled"
    remedy: ClassVar[str] = "Nothing is wrong: somebody asked for it with `pki.acme.orders.cancel`."


class RateLimited(ScaivaultError):
    """The daemon has more work than it accepts."""

    code: ClassVar[str] = "rate_limited"
    status: ClassVar[int] = 429
    title: ClassVar[str] = "Too many requests"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = "Wait `retry_after` seconds and ask again; nothing was done."

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Standby(ScaivaultError):
    """The daemon is stopping or not yet ready."""

    code: ClassVar[str] = "standby"
    status: ClassVar[int] = 503
    title: ClassVar[str] = "The daemon takes no requests now"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = "Ask again in a few seconds; orders already accepted go on after the restart."


class StorageUnavailable(ScaivaultError):
    """The store cannot be written or read."""

    code: ClassVar[str] = "storage_unavailable"
    status: ClassVar[int] = 503
    title: ClassVar[str] = "The store cannot be used"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "Look at free space and errors on the file system of `state_dir`. Nothing was accepted; "
        "the daemon recovers by itself as soon as writes succeed again."
    )


class Unauthenticated(ScaivaultError):
    """Nobody knows who is asking."""

    code: ClassVar[str] = "unauthenticated"
    status: ClassVar[int] = 401
    title: ClassVar[str] = "Who is asking is not known"
    remedy: ClassVar[str] = (
        "Over HTTP send `Authorization: Bearer scvt_...`; on NATS log in as docs/how-to/give-access.md says. A token "
        "may be mistyped, expired, revoked, or bound to other networks; the daemon's log tells which."
    )


class PermissionDenied(AtFields):
    """Whoever asks may not do that; `fields` point at the members that are in the way."""

    code: ClassVar[str] = "permission_denied"
    status: ClassVar[int] = 403
    title: ClassVar[str] = "Not allowed"
    remedy: ClassVar[str] = (
        "`scaivaultctl auth can-i` (`auth.can_i`) shows which rule is missing or denies it. Whoever may write policies "
        "can allow it; reading private keys (`key.read`) is allowed by no role."
    )


class PreconditionFailed(ScaivaultError):
    """The resource is not in the state that the caller's condition names."""

    code: ClassVar[str] = "precondition_failed"
    status: ClassVar[int] = 412
    title: ClassVar[str] = "The resource is in another state"
    remedy: ClassVar[str] = (
        "Get the resource again, look at what has changed, and repeat the request with its new ETag."
    )


class Sealed(ScaivaultError):
    """The store's master key is not there, or is another one: nothing that is sealed can be used."""

    code: ClassVar[str] = "sealed"
    status: ClassVar[int] = 503
    title: ClassVar[str] = "The daemon is sealed"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "`scaivaultctl keys status` says which key is wanted. Put it back where `[secrets] master_key` says and send "
        "SIGHUP, or, for a passphrase, run `scaivaultctl unseal` on the daemon's host."
    )


class SecretNotFound(AtFields):
    """A referenced secret is missing or unusable; only its reference is named."""

    code: ClassVar[str] = "secret_not_found"
    status: ClassVar[int] = 422
    title: ClassVar[str] = "A referenced secret is not there"
    remedy: ClassVar[str] = "Check the reference named in `detail` and where it points; then repeat the request."


class ChallengeFailed(ScaivaultError):
    """The CA validated and was not convinced, or the challenge could not be put in place."""

    code: ClassVar[str] = "challenge_failed"
    status: ClassVar[int] = 422
    title: ClassVar[str] = "The CA could not validate a name"
    remedy: ClassVar[str] = (
        "Read `identifiers`: for each name the CA says what it saw. For http-01 the name must resolve to this "
        "daemon's listener on port 80, over IPv6 too where there is an AAAA record."
    )

    def __init__(self, detail: str, *, may_pass: bool = False) -> None:
        super().__init__(detail)
        self.may_pass = may_pass


DnsReason = Literal["cname_loop", "cname_too_long", "no_zone", "lame_delegation", "dnssec_bogus", "unreachable"]


class DnsError(ScaivaultError):
    """What DNS says about a name makes the challenge impossible; `reason` names it.

    Only `unreachable` may pass by itself.
    """

    code: ClassVar[str] = "dns_error"
    status: ClassVar[int] = 502
    title: ClassVar[str] = "DNS stands in the way"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "Read `detail`: it names the zone and what is wrong with it (no zone, a delegation to servers that do not "
        "serve it, DNSSEC that does not validate, a CNAME loop). `pki.dns_providers.trace` shows the whole way."
    )

    def __init__(self, detail: str, reason: DnsReason) -> None:
        super().__init__(detail)
        self.reason = reason


class DnsProviderError(ScaivaultError):
    """A DNS provider refused or failed, or none serves the zone."""

    code: ClassVar[str] = "dns_provider_error"
    status: ClassVar[int] = 502
    title: ClassVar[str] = "The DNS provider refused or failed"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "Read `detail`: it holds the provider's own words. Credentials and rights are checked by "
        "`pki.dns_providers.test`; the provider's page in docs/providers names the least rights it needs."
    )

    def __init__(self, detail: str, *, is_final: bool = False, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.is_final = is_final
        self.retry_after = retry_after


class DnsPropagationTimeout(ScaivaultError):
    """A TXT value was not visible everywhere in time; `verdicts` says where, and what those servers answer."""

    code: ClassVar[str] = "dns_propagation_timeout"
    status: ClassVar[int] = 504
    title: ClassVar[str] = "A DNS value did not reach all name servers"
    remedy: ClassVar[str] = (
        "Look at `identifiers`: each name server that disagrees is listed with its answer. A secondary that lags needs "
        "NOTIFY or time (`propagation_timeout`); one that can never be asked from here needs another `propagation`."
    )

    def __init__(self, detail: str, verdicts: Sequence[ServerVerdict]) -> None:
        super().__init__(detail)
        self.verdicts = tuple(verdicts)


class CaRefused(ScaivaultError):
    """The CA refused with a problem document, or answered something no CA may answer."""

    code: ClassVar[str] = "ca_error"
    status: ClassVar[int] = 502
    title: ClassVar[str] = "The CA refused or misbehaved"
    remedy: ClassVar[str] = "Read `acme.type` and `acme.detail`: they are the CA's own words."

    def __init__(self, detail: str, problem: Problem | None = None) -> None:
        super().__init__(detail)
        self.problem = problem


class CaMisbehaved(CaRefused):
    """The CA broke the protocol (malformed, endless or wrong answers): it may be a passing fault.

    On the wire it is `ca_error` too; a job tries a few times before it gives up.
    """

    retryable: ClassVar[bool] = True


class CaUnavailable(ScaivaultError):
    """The CA cannot be reached, answers 5xx, or hangs."""

    code: ClassVar[str] = "ca_unavailable"
    status: ClassVar[int] = 503
    title: ClassVar[str] = "The CA is not available"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "Usually nothing: the order goes on by itself when the CA is back. If it lasts, check DNS, routing and "
        "TLS trust from this host to the directory URL, and the CA's status page."
    )

    def __init__(self, detail: str, retry_after: float | None = None, *, turned_away: bool = False) -> None:
        """`turned_away`: the CA said so itself (503), so that it has not done what it was asked."""
        super().__init__(detail)
        self.retry_after = retry_after
        self.turned_away = turned_away


class CertificatePending(CaUnavailable):
    """The certificate URL answers 404 although the order is valid; on the wire it is `ca_unavailable`."""


class BackendRateLimited(CaRefused):
    """The CA asks us to slow down (RFC 8555 section 6.6)."""

    code: ClassVar[str] = "backend_rate_limited"
    status: ClassVar[int] = 429
    title: ClassVar[str] = "The CA's rate limit is reached"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "Wait until `retry_at`; asking earlier does not help. `limit` names the limit in the CA's words; its "
        "documentation is linked in `acme.help_url` where the CA gives one."
    )

    def __init__(
        self,
        detail: str,
        problem: Problem | None = None,
        *,
        retry_after: float | None = None,
        retry_at: datetime | None = None,
    ) -> None:
        super().__init__(detail, problem)
        self.retry_after = retry_after
        self.retry_at = retry_at


class Timeout(ScaivaultError):
    """A deadline passed before the work was done."""

    code: ClassVar[str] = "timeout"
    status: ClassVar[int] = 504
    title: ClassVar[str] = "A deadline passed"
    retryable: ClassVar[bool] = True
    remedy: ClassVar[str] = "Look at the order's last `error`: it says what it was waiting for. Then ask again."


class Internal(ScaivaultError):
    """A fault of ours. The text stays in the log under the correlation id."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    remedy: ClassVar[str] = "Search the daemon's log for the `request_id` in this answer and report what stands there."


class RevisionConflict(Exception):
    """A commit expected another revision of `key`; nothing of the commit was applied."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} was changed meanwhile")
        self.key = key


class StartupError(Exception):
    """The daemon cannot start; the text is for the administrator's terminal and tells what to do.

    `exit_code` 78 (EX_CONFIG): the configuration or what it points to must be changed first.
    """

    def __init__(self, message: str, exit_code: int = 78) -> None:
        super().__init__(message)
        self.exit_code = exit_code


WIRE_ERRORS: tuple[type[ScaivaultError], ...] = (
    InvalidRequest,
    UnsupportedChallenge,
    NotFound,
    Conflict,
    AccountUnusable,
    Cancelled,
    PreflightFailed,
    Unauthenticated,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    Standby,
    Sealed,
    StorageUnavailable,
    SecretNotFound,
    DnsError,
    DnsProviderError,
    DnsPropagationTimeout,
    ChallengeFailed,
    CaRefused,
    CaUnavailable,
    BackendRateLimited,
    Timeout,
    Internal,
)
"""Every code a caller can meet: the closed list behind the reference and `scaivaultctl explain`."""
