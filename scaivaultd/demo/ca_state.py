"""What the development CA remembers. Records are frozen; a change puts a new record in the old one's place."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from cryptography import x509

from scaivaultd.demo.ca_conduct import Conduct
from scaivaultd.demo.ca_identifiers import Identifier
from scaivaultd.demo.ca_jws import Jwk, PublicKey, b64url

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scaivaultd.demo.ca_misbehaviour import Misbehaviour
    from scaivaultd.demo.ca_settings import CaSettings
    from scaivaultd.model.clock import Clock, Randomness

T = TypeVar("T")

PATHS = {
    "directory": "/directory",
    "newNonce": "/new-nonce",
    "newAccount": "/new-account",
    "newOrder": "/new-order",
    "revokeCert": "/revoke-cert",
    "keyChange": "/key-change",
    "account": "/account/",
    "orders": "/orders/",
    "order": "/order/",
    "authorization": "/authorization/",
    "challenge": "/challenge/",
    "finalize": "/finalize/",
    "certificate": "/certificate/",
    "renewalInfo": "/renewal-info/",
}
"""Where each resource lives; those ending in a slash are followed by an id."""

MOVABLE = {"newNonce", "newAccount", "newOrder", "revokeCert", "keyChange", "renewalInfo"}
"""Those the directory names. All others are named by answers, and stay where they are for good."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A registered key."""

    id: str
    url: str
    jwk: Jwk
    status: str = "valid"
    contact: tuple[str, ...] = ()
    eab_key_id: str | None = None
    created_at: datetime
    terms_version: int = 1
    """Which terms it has agreed to."""

    @property
    def thumbprint(self) -> str:
        """Of its present key."""
        return self.jwk.thumbprint


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """One way to prove; `extra` are members only its type has."""

    url: str
    type: str
    token: str | None
    status: str = "pending"
    error: dict[str, object] | None = None
    validated_at: datetime | None = None
    extra: dict[str, object] = {}


class Authorization(msgspec.Struct, frozen=True, kw_only=True):
    """Proof for one identifier."""

    url: str
    account_url: str
    identifier: Identifier
    status: str = "pending"
    expires_at: datetime
    challenges: tuple[Challenge, ...]


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a certificate. `finishes_at` is when `processing` ends, `replaces` a CertID."""

    id: str
    url: str
    account_url: str
    identifiers: tuple[Identifier, ...]
    authorizations: tuple[str, ...]
    status: str = "pending"
    number: int
    """How many orders there were before it."""
    placed_at: datetime
    expires_at: datetime
    lifetime: timedelta
    profile: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    replaces: str | None = None
    error: dict[str, object] | None = None
    public_key: PublicKey | None = None
    finishes_at: datetime | None = None
    certificate_url: str | None = None


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """An issued certificate; `revocation_reason` is None until it is revoked (0 when none was given)."""

    serial: int
    url: str
    account_url: str
    identifiers: tuple[Identifier, ...]
    certificate: x509.Certificate
    chain_pem: str
    profile: str | None = None
    downloaded_at: int | None = None
    """How many orders there were when it was first downloaded: a sequence that stands still with no clock."""
    revocation_reason: int | None = None
    revoked_at: datetime | None = None
    is_client_revoked: bool = False
    """Revoked because a client asked, so that the client knows."""
    replaced_by: str | None = None
    """The order that named it in `replaces` last."""


class Ledger:
    """All records, and what every room needs to write them: clock, chance, settings, addresses."""

    def __init__(
        self, base_url: str, settings: CaSettings, misbehaviour: Misbehaviour, clock: Clock, randomness: Randomness
    ) -> None:
        self.base_url = base_url
        self.settings = settings
        self.misbehaviour = misbehaviour
        self.clock = clock
        self.conduct = Conduct(clock)
        self.generation = 0
        """How often the addresses in the directory have moved."""
        self.terms_version = 1
        self.compromised_keys: set[bytes] = set()
        self.certified_keys: set[bytes] = set()
        self.accounts: dict[str, Account] = {}
        self.authorizations: dict[str, Authorization] = {}
        self.orders: dict[str, Order] = {}
        self.issued: dict[int, Issued] = {}
        self._randomness = randomness
        self._drawn = 0
        self._odd = 0

    def url(self, resource: str, id_: str = "") -> str:
        """The present address of a resource."""
        moved = f"/v{self.generation}" if self.generation and resource in MOVABLE else ""
        return f"{self.base_url}{moved}{PATHS[resource]}{id_}"

    @property
    def terms_url(self) -> str:
        """Where the present terms of service would be read; only the address matters."""
        return f"{self.base_url}/terms/{self.terms_version}"

    def account_by_thumbprint(self, thumbprint: str) -> Account | None:
        """The account whose present key that is, whatever its status."""
        return next((each for each in self.accounts.values() if each.thumbprint == thumbprint), None)

    def chance(self, rate: float) -> bool:
        """True in that share of calls; a rate of zero draws nothing."""
        return rate > 0 and self._randomness.fraction() < rate

    def shuffled(self, items: Iterable[T]) -> tuple[T, ...]:
        """In another sequence each time, if the settings say so."""
        if not self.settings.shuffle:
            return tuple(items)
        return tuple(item for _, item in sorted(((self._randomness.fraction(), item) for item in items), key=_first))

    def new_id(self) -> str:
        """For a URL: unique by its counter, not to be guessed by the rest."""
        return self._draw(8)

    def new_token(self, *, odd: bool = False) -> str:
        """A nonce or token of at least 128 random bits (RFC 8555 section 8.3).

        Odd ones are by turns of a length that does not decode, and of a spelling that no encoder produces.
        """
        plain = self._draw(28)
        if not odd:
            return plain
        # 32 octets make 43 characters, the last of which has two unused bits: "B" sets one of them.
        self._odd += 1
        return f"{plain}AA" if self._odd % 2 else f"{plain[:-1]}B"

    def _draw(self, length: int) -> str:
        self._drawn += 1
        return b64url(self._drawn.to_bytes(4) + self._randomness.token_bytes(length))


def _first(pair: tuple[float, Any]) -> float:
    return pair[0]
