"""The gate between a request and its handler: who may pass, and what is written down of it.

Dispatch and handlers know these Protocols only; `services/gatekeeping.py` judges, by policies and with an audit record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from scaivaultd.api.commands import Command
    from scaivaultd.model.access import AccountRef, CertificateTerms, Quota
    from scaivaultd.model.principals import Principal


class Permits(Protocol):
    """What the principal of one request may do, for handlers that judge one thing after another."""

    def allows(
        self,
        action: str,
        *,
        certificate: CertificateTerms | None = None,
        account: AccountRef | None = None,
        secret: str | None = None,
    ) -> bool:
        """Whether it may, for filtering lists; leaves no record."""
        ...

    def require(
        self,
        action: str,
        *,
        certificate: CertificateTerms | None = None,
        account: AccountRef | None = None,
        secret: str | None = None,
        pointer: str = "",
    ) -> None:
        """Go on only if it may; the request's record says so.

        Raises:
            PermissionDenied: it may not; `pointer` is the member of the request that stands in the way.
        """
        ...

    def quota(self) -> Quota | None:
        """How much the rule that let this request in allows; None where it sets no bound."""
        ...


class Admission(Protocol):
    """A request that was let in, until it is answered."""

    @property
    def permits(self) -> Permits:
        """What its principal may do."""
        ...

    async def settle(self, result: str) -> None:
        """Write down how it ended: `ok`, or the code of the error. At most once.

        Raises:
            StorageUnavailable: it cannot be written down, and must not leave without (a private key was read).
        """
        ...


class Gate(Protocol):
    """Judges requests before their handlers see them."""

    async def admit(
        self, command: Command[Any, Any], request: Any, *, principal: Principal, request_id: str, source: str | None
    ) -> Admission:
        """Let a request in.

        Raises:
            PermissionDenied: no policy allows it; that is written down.
            NotFound: what it is about is not there, or not for these eyes.
            InvalidRequest: what it is about cannot be told.
            StorageUnavailable: it cannot be judged, or, where that must come first, not be written down.
        """
        ...


class Unlimited:
    """Permits of whoever may do everything: the daemon itself."""

    def allows(self, action: str, **about: object) -> bool:
        """Always."""
        return True

    def require(self, action: str, **about: object) -> None:
        """Never raises."""

    def quota(self) -> Quota | None:
        """None."""
        return None


UNLIMITED: Permits = Unlimited()


class OpenGate:
    """Lets everything in and writes nothing down: for tests of what lies behind."""

    permits = UNLIMITED

    async def admit(
        self, command: Command[Any, Any], request: Any, *, principal: Principal, request_id: str, source: str | None
    ) -> OpenGate:
        """Always."""
        return self

    async def settle(self, result: str) -> None:
        """Nothing to do."""
