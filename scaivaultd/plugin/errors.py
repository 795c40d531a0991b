"""What a DNS provider raises. The host decides by the class whether it tries again, and shows the text as it is.

    ProviderError
    +-- ProviderAuthError    the credentials are refused, or lack a right: somebody must act
    +-- ZoneNotFound         the provider has no zone for the name
    +-- PermanentError       asking again in the same way will not help
    `-- TransientError       it may work in a moment
        |-- RateLimited          asked too much; `retry_after` in seconds where the service says so
        |-- LostAnswer           nobody knows whether the request was carried out
        `-- Conflict             another writer was faster; read again and repeat (handled inside a provider)

Texts help the person who has to act, in the service's own words where it has some, with its error
code and request id, and never hold a secret, an `Authorization` header, or a request body.
"""

from __future__ import annotations


class ProviderError(Exception):
    """Something a DNS provider could not do."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class ProviderAuthError(ProviderError):
    """The credentials are wrong, expired, or lack a right."""


class ZoneNotFound(ProviderError):
    """No zone here holds the name; say how many zones there are, if that is known."""


class PermanentError(ProviderError):
    """Asking again in the same way will not help. `code` is the service's own, if it has one."""

    def __init__(self, detail: str, code: str | None = None) -> None:
        super().__init__(detail)
        self.code = code


class TransientError(ProviderError):
    """It may work in a moment: the service is down, slow, or busy."""

    def __init__(self, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class RateLimited(TransientError):
    """The service asks to slow down."""


class LostAnswer(TransientError):
    """A request that must not simply be repeated had no clear answer: look whether it was carried out."""


class Conflict(TransientError):
    """Another writer changed the record set between reading and writing."""
