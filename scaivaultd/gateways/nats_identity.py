"""Who sent a request over NATS: what the server vouches for, by the way that its subject root is configured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from scaivaultd.model.principals import Principal
    from scaivaultd.plugin import Secret

IdentityMode = Literal["auth_callout", "subject_token", "account_import", "trusted", "local"]
"""`local` is the plain root of the embedded server, which only the login in `client.json` may use."""


class Ingress(msgspec.Struct, frozen=True, kw_only=True):
    """One subject root; `account` stands in `nats:ACCOUNT/USER`. `keys_to_any`: any reply subject may get a key."""

    root: str
    identity: IdentityMode
    account: str = "$G"
    keys_to_any: bool = False


class KnownTokens(Protocol):
    """Who has a token."""

    def by_token(self, token: Secret, address: str | None) -> Principal | None:
        """The principal; raises RateLimited when too many wrong ones came from this address."""
        ...

    def by_token_id(self, token_id: str) -> Principal | None:
        """The principal, as long as its token is good; the server has seen the token itself."""
        ...
