"""Documents by kind: where each lives in the store, how it is encoded, what it can be found by."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from scaivaultd.model.access import StoredPolicy, Token, TokenName
from scaivaultd.model.errors import Internal
from scaivaultd.model.names import name_set_key
from scaivaultd.model.resources import (
    Account,
    AccountName,
    BulkRenewal,
    Certificate,
    CertificateVersion,
    CompromisedKey,
    Deployment,
    DnsProvider,
    DnsProviderName,
    IdempotentResult,
    NamePointer,
    Order,
    Renewal,
    RevocationRequest,
    SealedKey,
    StoredSecret,
    TxtRecord,
)
from scaivaultd.model.storage import ABSENT, Put

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.model.names import Identifier
    from scaivaultd.model.principals import Principal
    from scaivaultd.model.resources import KeyType
    from scaivaultd.model.storage import Stored
    from scaivaultd.services.ports import Store

T = TypeVar("T", bound=msgspec.Struct)
T_contra = TypeVar("T_contra", contravariant=True)

IDEMPOTENCY_SECONDS = 24 * 3600.0
PAGE_BYTES = 400 << 10
"""A page ends here: an ordinary NATS server takes 1 MiB, and a reply is no larger than its documents."""


SCANS_MAX = 10
"""A page of what few may see is filled up from so many pages of the store at most."""
_SCANNED = 200

# Ids come from callers; a key must stay one word below its prefix.
_WORD = re.compile(r"[A-Za-z0-9._-]{1,200}")


class Versioned(msgspec.Struct, Generic[T], frozen=True):
    """A document and the revision it was read or written at."""

    value: T
    revision: int


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """One page of documents; `next_cursor` is the id to go on behind, None at the end.

    `unreadable` are the keys of documents that do not decode: one of them must not hide the others.
    """

    items: tuple[Versioned[T], ...]
    next_cursor: str | None
    unreadable: tuple[str, ...] = ()


class Sees(Protocol[T_contra]):
    """Whether somebody may see an item of a list."""

    def __call__(self, value: T_contra, /) -> Awaitable[bool]: ...


class Shelf(Generic[T]):
    """All documents of one kind."""

    def __init__(
        self, prefix: str, kind: type[T], id_of: Callable[[T], str], index_of: Callable[[T], Mapping[str, str]]
    ) -> None:
        self._prefix = f"{prefix}/"
        self._decoder = msgspec.json.Decoder(kind)
        self._encoder = msgspec.json.Encoder()
        self._id_of = id_of
        self._index_of = index_of

    def key(self, resource_id: str) -> str:
        """Where the document of that id lives."""
        return f"{self._prefix}{resource_id}"

    def put(self, value: T, expect_revision: int | None = ABSENT, *, ttl_seconds: float | None = None) -> Put:
        """The change that writes it; by default it must be new."""
        return Put(
            key=self.key(self._id_of(value)),
            document=self._encoder.encode(value),
            expect_revision=expect_revision,
            ttl_seconds=ttl_seconds,
            index=self._index_of(value),
        )

    def put_at(self, resource_id: str, value: T, expect_revision: int, ttl_seconds: float | None = None) -> Put:
        """The same for kinds whose documents do not carry their own id."""
        return Put(
            key=self.key(resource_id),
            document=self._encoder.encode(value),
            expect_revision=expect_revision,
            ttl_seconds=ttl_seconds,
        )

    async def get(self, store: Store, resource_id: str) -> Versioned[T] | None:
        """Read one document."""
        if _WORD.fullmatch(resource_id) is None:
            return None
        stored = await store.get(self.key(resource_id))
        if stored is None:
            return None
        if (read := self._read(stored)) is None:
            raise Internal(f"the document {stored.key} does not decode")
        return read

    async def page(
        self, store: Store, *, where: Mapping[str, str | None], cursor: str | None, limit: int
    ) -> Listing[T]:
        """Read a page; pairs of `where` whose value is None do not filter."""
        page = await store.scan(
            self._prefix,
            where={name: value for name, value in where.items() if value is not None},
            after=None if cursor is None else self.key(cursor),
            limit=limit,
        )
        fitting = _fitting(page.items)
        items: list[Versioned[T]] = []
        unreadable: list[str] = []
        for stored in fitting:
            if (read := self._read(stored)) is None:
                unreadable.append(stored.key)
            else:
                items.append(read)
        last = page.next_cursor if len(fitting) == len(page.items) else fitting[-1].key
        return Listing(
            items=tuple(items),
            next_cursor=None if last is None else last.removeprefix(self._prefix),
            unreadable=tuple(unreadable),
        )

    async def page_seen(
        self, store: Store, sees: Sees[T] | None, *, where: Mapping[str, str | None], cursor: str | None, limit: int
    ) -> Listing[T]:
        """Read a page of what `sees` lets through; None lets all through.

        It is filled up from further pages of the store. One that is not full after `SCANS_MAX` of them has a
        `next_cursor` all the same, behind what was looked at.
        """
        if sees is None:
            return await self.page(store, where=where, cursor=cursor, limit=limit)
        found: list[Versioned[T]] = []
        size = 0
        for scan in range(SCANS_MAX):
            page = await store.scan(
                self._prefix,
                where={name: value for name, value in where.items() if value is not None},
                after=None if cursor is None else self.key(cursor),
                limit=max(limit, _SCANNED) if scan else limit,
            )
            for stored in page.items:
                read = self._read(stored)
                if read is not None and await sees(read.value):
                    size += len(stored.document)
                    if len(found) == limit or (found and size > PAGE_BYTES):
                        return Listing(items=tuple(found), next_cursor=cursor)
                    found.append(read)
                cursor = stored.key.removeprefix(self._prefix)
            if page.next_cursor is None:
                return Listing(items=tuple(found), next_cursor=None)
            if len(found) == limit:
                break
        return Listing(items=tuple(found), next_cursor=cursor)

    def _read(self, stored: Stored) -> Versioned[T] | None:
        try:
            return Versioned(self._decoder.decode(stored.document), stored.revision)
        except (msgspec.DecodeError, UnicodeError):
            return None

    async def all(self, store: Store, log: FilteringBoundLogger, **where: str) -> Sequence[Versioned[T]]:
        """Read every document that matches, page by page; what does not decode is logged and left out."""
        found: list[Versioned[T]] = []
        cursor: str | None = None
        while True:
            page = await self.page(store, where=where, cursor=cursor, limit=500)
            found.extend(page.items)
            for key in page.unreadable:
                log.error("document.unreadable", key=key)
            if (cursor := page.next_cursor) is None:
                return found


ACCOUNTS: Shelf[Account] = Shelf(
    "account",
    Account,
    lambda each: each.id,
    lambda each: {"status": each.status, "thumbprint": each.key_thumbprint},
)
KEYS: Shelf[SealedKey] = Shelf("key", SealedKey, lambda each: each.id, lambda _: {})
ORDERS: Shelf[Order] = Shelf("order", Order, lambda each: each.id, lambda each: _order_index(each))
CERTIFICATES: Shelf[Certificate] = Shelf(
    "certificate",
    Certificate,
    lambda each: each.id,
    lambda each: {
        "status": each.status,
        "account": each.account_id,
        "serial": each.serial_number,
        **({} if each.requested_by is None else {"requested_by": owner_key(each.requested_by)}),
        **{f"domain:{name}": "yes" for name in each.identifiers},
    },
)
VERSIONS: Shelf[CertificateVersion] = Shelf(
    "version",
    CertificateVersion,
    lambda each: version_id(each.certificate_id, each.version),
    lambda each: {"certificate": each.certificate_id, "serial": each.serial_number},
)
RENEWALS: Shelf[Renewal] = Shelf("renewal", Renewal, lambda each: each.certificate_id, lambda _: {})
BULK_RENEWALS: Shelf[BulkRenewal] = Shelf(
    "bulk_renewal", BulkRenewal, lambda each: each.id, lambda each: {"status": each.status}
)
DEPLOYMENTS: Shelf[Deployment] = Shelf(
    "deployment",
    Deployment,
    lambda each: deployment_id(each.certificate_id, each.host),
    lambda each: {"certificate": each.certificate_id},
)
REVOCATIONS: Shelf[RevocationRequest] = Shelf(
    "revocation",
    RevocationRequest,
    lambda each: each.id,
    lambda each: {"status": each.status, "certificate": each.certificate_id},
)
COMPROMISED_KEYS: Shelf[CompromisedKey] = Shelf(
    "compromised_key", CompromisedKey, lambda each: each.spki_sha256, lambda _: {}
)
ACCOUNT_NAMES: Shelf[AccountName] = Shelf("account_name", AccountName, lambda each: digest(each.name), lambda _: {})
NAME_POINTERS: Shelf[NamePointer] = Shelf("name", NamePointer, lambda _: "", lambda _: {})
DNS_PROVIDERS: Shelf[DnsProvider] = Shelf("dns_provider", DnsProvider, lambda each: each.id, lambda _: {})
DNS_PROVIDER_NAMES: Shelf[DnsProviderName] = Shelf(
    "dns_provider_name", DnsProviderName, lambda each: digest(each.name), lambda _: {}
)
TXT_RECORDS: Shelf[TxtRecord] = Shelf(
    "txt_record",
    TxtRecord,
    lambda each: txt_record_id(each.provider_id, each.record_name, each.value),
    lambda each: {"provider": each.provider_id, **{f"user:{digest(user)}": "yes" for user in each.users}},
)
SECRETS: Shelf[StoredSecret] = Shelf("secret", StoredSecret, lambda each: digest(each.path), lambda _: {})
POLICIES: Shelf[StoredPolicy] = Shelf("policy", StoredPolicy, lambda each: each.policy.name, lambda _: {})
TOKENS: Shelf[Token] = Shelf("token", Token, lambda each: each.id, lambda _: {})
TOKEN_NAMES: Shelf[TokenName] = Shelf("token_name", TokenName, lambda each: digest(each.name), lambda _: {})
IDEMPOTENCY: Shelf[IdempotentResult] = Shelf("idempotency", IdempotentResult, lambda _: "", lambda _: {})


def _order_index(order: Order) -> dict[str, str]:
    index: dict[str, str] = {"status": order.status, "account": order.account_id}
    if order.url:
        index["url"] = digest(order.url)
    if order.bulk_id:
        index["bulk"] = order.bulk_id
    if order.requested_by is not None and order.cause == "issue":
        # Those for new certificates only: quotas count them.
        index["requested_by"] = owner_key(order.requested_by)
    if order.has_open_authorizations:
        index["open"] = "yes"
    return index


def version_id(certificate_id: str, version: int) -> str:
    """Where an earlier version lives: in key order the versions of a certificate are in theirs."""
    return f"{certificate_id}.{version:08d}"


def txt_record_id(provider_id: str, record_name: str, value: str) -> str:
    """Where the journal of one TXT value lives."""
    return digest(provider_id, record_name, value)


def deployment_id(certificate_id: str, host: str) -> str:
    """Where the document of a host that uses a certificate lives."""
    return f"{certificate_id}.{digest(host)}"


def digest(*parts: str | bytes) -> str:
    """A short key for texts of any length and alphabet."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "big") + data)
    return hasher.hexdigest()[:40]


def owner_key(owner: Principal) -> str:
    """What somebody's own are found by, whatever its name, policies and scopes are by now."""
    return digest(str(owner))


def name_pointer_id(identifiers: Sequence[Identifier], key_type: KeyType) -> str:
    """Where the pointer to the current certificate of a name set lives; each key type has its own."""
    return f"{name_set_key(identifiers)}.{key_type}"


def _fitting(items: Sequence[Stored]) -> Sequence[Stored]:
    """As many as fit into one answer, at least one: a message on the bus has a largest size."""
    size = 0
    for place, stored in enumerate(items):
        size += len(stored.document)
        if size > PAGE_BYTES and place > 0:
            return items[:place]
    return items
