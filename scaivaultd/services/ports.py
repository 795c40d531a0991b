"""What services need of their neighbours, as Protocols; `daemon.py` plugs the real ones in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from scaivaultd.acme.signing import AccountKey
    from scaivaultd.acme.wire import Directory
    from scaivaultd.acme.x509 import DownloadedChain
    from scaivaultd.model.access import Decision
    from scaivaultd.model.dns import CaaSet, Delegation, Route, ServerVerdict
    from scaivaultd.model.names import Identifier
    from scaivaultd.model.resources import Certificate, Sighting
    from scaivaultd.model.storage import Change, Changed, LogBounds, LogPage, LogScan, OutboxEvent, Page, Stored


class Lease(Protocol):
    """A name held for a while by one holder; only for liveness, the fence is the revision of a document."""

    @property
    def name(self) -> str:
        """What is held."""
        ...

    async def renew(self) -> bool:
        """Hold it for another full `ttl_seconds` from now; False when somebody else has it meanwhile."""
        ...

    async def release(self) -> None:
        """Give it up at once. A lease that is no longer ours is left alone."""
        ...


class Store(Protocol):
    """The store contract. Keys are `/`-separated words of `[A-Za-z0-9._-]`; documents are bytes.

    Every method raises `StorageUnavailable` when the medium fails; the store recovers by itself
    when the medium does.
    """

    async def get(self, key: str) -> Stored | None:
        """The document at `key` as last committed, or None."""
        ...

    async def scan(
        self,
        prefix: str,
        *,
        where: Mapping[str, str] | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """Documents whose key starts with `prefix`, in key order, all pairs of `where` among their index.

        `after` is a `next_cursor` of an earlier page (or any key): the page starts behind it.
        """
        ...

    async def commit(self, changes: Sequence[Change], events: Sequence[OutboxEvent] = ()) -> Mapping[str, int]:
        """Apply all changes and queue all events, or nothing; returns the new revision of each key put.

        When this returns, everything is on stable storage. A caller that is cancelled while it
        waits does not know whether the commit happened; it either did as a whole or not at all.

        Raises:
            RevisionConflict: a change expected another revision. Nothing was applied.
            StorageUnavailable: the medium failed (full, I/O error). Nothing was applied.
        """
        ...

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Changed]]:
        """Changes under `prefix` from the moment the context is entered, in commit order, without gaps
        except: a watcher that lags far behind sees only the latest state of each key.
        """
        ...

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> Lease | None:
        """Take the lease `name`; None while another holder has it. The same holder gets it again."""
        ...


class EventLog(Protocol):
    """The events of a store, kept for a while after they were told."""

    def next_events(self) -> asyncio.Event:
        """What is set when events are committed from now on; ask for it before looking, and nothing is missed."""
        ...

    async def log_bounds(self) -> LogBounds:
        """Where the log begins and ends."""
        ...

    async def logged_events(self, scan: LogScan) -> LogPage:
        """Events in commit order, as far as one look goes; it went to the end if `reached` is the newest there was."""
        ...


class Sealer(Protocol):
    """Seals private keys and other secrets before they reach any store (AES-256-GCM envelope).

    `place` says where the value lives (`key/key_01...` and a field): it is bound into the seal, so
    a sealed value copied to another record does not open.
    """

    def seal(self, plaintext: bytes, place: str, field: str) -> bytes:
        """Encrypt under a fresh data key."""
        ...

    def open(self, sealed: bytes, place: str, field: str) -> bytes:
        """Decrypt what `seal` made for the same place.

        Raises:
            Internal: wrong place, wrong master key, or damaged data; the text never holds plaintext.
        """
        ...


class Fetched(Protocol):
    """A resource of a CA as read: where it lives, its bytes, when to ask again."""

    @property
    def url(self) -> str:
        """Its Location, else the URL that was asked."""
        ...

    @property
    def body(self) -> bytes:
        """The document, not judged yet."""
        ...

    @property
    def retry_after(self) -> float | None:
        """Seconds the CA wants us to wait before asking about it again."""
        ...


class CaClient(Protocol):
    """One account's view of its CA. Errors: CaRefused, CaMisbehaved, CaUnavailable, BackendRateLimited.

    What is not said to be never repeated may be, and sits short weather out by itself.
    """

    @property
    def key(self) -> AccountKey:
        """The account key."""
        ...

    async def register(
        self,
        *,
        contacts: Sequence[str],
        terms_of_service_agreed: bool,
        eab_key_id: str | None = None,
        eab_hmac_key: bytes | None = None,
    ) -> Fetched:
        """newAccount; finds the account this key has already."""
        ...

    async def directory(self) -> Directory:
        """What the CA says of itself."""
        ...

    async def find_account(self) -> str | None:
        """The URL of the account this key has already, or None."""
        ...

    async def update_contacts(self, contacts: Sequence[str]) -> Fetched:
        """Replace the account's contacts; none at all clears them."""
        ...

    async def agree_to_terms(self) -> Fetched:
        """Agree to the terms of service that the CA has now."""
        ...

    async def deactivate_account(self) -> Fetched:
        """End the account for good; never repeated by itself. Doubtful: ask again, `unauthorized` means it is done."""
        ...

    async def key_change(self, new_key: AccountKey) -> None:
        """Give the account another key; never repeated by itself.

        After a doubtful outcome `find_account` by the new key tells: this account's URL, it worked; another's, that
        one has the key; None, it did not work.

        Raises:
            CaConflict: the new key has an account already, at `location`.
            NotOffered: this CA does not change keys.
            CaUnavailable, CaMisbehaved: doubtful; all other errors mean that nothing was changed.
        """
        ...

    async def new_order(
        self,
        identifiers: Sequence[Identifier],
        *,
        replaces: str | None = None,
        profile: str | None = None,
        not_after: datetime | None = None,
    ) -> Fetched:
        """newOrder, never repeated by itself; `exchange.is_about_replaces` tells a refusal of `replaces` only."""
        ...

    async def order_urls(self) -> Sequence[str]:
        """The account's orders as far as the CA lists them."""
        ...

    async def order(self, url: str) -> Fetched:
        """Read an order."""
        ...

    async def authorization(self, url: str) -> Fetched:
        """Read an authorization."""
        ...

    async def deactivate_authorization(self, url: str) -> Fetched:
        """Give an authorization up; refused if it has ended already."""
        ...

    async def respond(self, challenge_url: str) -> Fetched:
        """Tell the CA to validate."""
        ...

    async def finalize(self, url: str, csr_der: bytes) -> Fetched:
        """Send the CSR, never repeated by itself."""
        ...

    async def certificate(self, url: str) -> bytes:
        """Download one chain, unjudged."""
        ...

    async def chain(self, url: str) -> DownloadedChain:
        """Download one chain with the URLs of its alternates, unjudged."""
        ...

    async def chains(self, url: str) -> Sequence[bytes]:
        """Download the default chain and, behind it, every alternate that can be had; for `x509.choose_chain`."""
        ...

    async def revoke(
        self, certificate_der: bytes, reason: int | None = None, *, certificate_key: AccountKey | None = None
    ) -> bool:
        """Revoke by the account or by the certificate's own key; False if it was revoked already.

        Raises:
            NotOffered: this CA revokes nothing by ACME.
            CaRefused: `problem.name` is `badRevocationReason` if the CA takes no such reason.
        """
        ...

    async def renewal_info(self, certificate_id: str) -> Fetched:
        """The CA's suggestion when to renew (ARI), unjudged; raises NotOffered where the CA has no ARI."""
        ...


class Cas(Protocol):
    """The CAs, as far as this process talks to them."""

    def client(self, directory_url: str, ca_certificates_pem: str | None, key: AccountKey, kid: str | None) -> CaClient:
        """An account's client."""
        ...

    def roots(self, directory_url: str, ca_certificates_pem: str | None) -> Sequence[bytes]:
        """The root certificates that are trusted for this CA's HTTPS, as DER: its chains may lead to one of them."""
        ...

    async def check_directory(self, url: str) -> None:
        """Refuse a directory URL at an address that is not open to callers; raises InvalidRequest."""
        ...


class SecretSource(Protocol):
    """Reads secrets that are kept outside the store: `cred:`, `file:`, `env:`."""

    def check(self, reference: str, pointer: str) -> None:
        """Refuse a reference that is malformed or not allowed; raises InvalidRequest naming `pointer`."""
        ...

    async def read(self, reference: str) -> str:
        """The secret's text; raises SecretNotFound naming the reference only."""
        ...


class OwnAnswer(Protocol):
    """Looks at a name's addresses as a CA would, from here. Never follows where it should not, never raises."""

    async def http01(self, host: str, token: str, expected: str) -> str | None:
        """What stands in the way of the key authorization at `host`, in words; None when it is there."""
        ...

    async def tlsalpn01(self, host: str, expected_digest: bytes) -> str | None:
        """The same for the `acme-tls/1` certificate; `host` is a name or an address."""
        ...


class OwnSight(Protocol):
    """Tells place by place what is seen of an answer of ours, as far as a few seconds suffice. Never raises."""

    async def see_http01(self, host: str, token: str, expected: str) -> Sequence[Sighting]:
        """What each address of `host` has at the challenge's path."""
        ...

    async def see_tlsalpn01(self, host: str, expected_digest: bytes) -> Sequence[Sighting]:
        """What each address of `host` shows to whoever speaks `acme-tls/1`."""
        ...


class EabSource(Protocol):
    """Fetches external account bindings where a CA gives them away by an API of its own (ZeroSSL)."""

    async def by_access_key(self, access_key: str) -> tuple[str, str]:
        """Key identifier and MAC key (base64url); raises CaRefused, CaUnavailable, CaMisbehaved."""
        ...

    async def by_email(self, email: str) -> tuple[str, str]:
        """The same for an e-mail address."""
        ...


class NameServers(Protocol):
    """DNS as it is served: asked at the authoritative servers, because caches remember what was not there yet."""

    async def route(self, name: str, *, follow_cname: bool = True) -> Route:
        """Follow the CNAMEs of `name` to where its TXT records have to be, and find the zone there.

        Raises:
            DnsError: a loop, too many hops, no zone, a lame or bogus one, or nobody to ask.
        """
        ...

    async def look(self, delegation: Delegation, name: str, values: Collection[str]) -> Sequence[ServerVerdict]:
        """Ask every address of every server once for the TXT values of `name`; at most about 10 s."""
        ...

    async def look_at_resolvers(
        self, resolvers: Sequence[str], name: str, values: Collection[str]
    ) -> Sequence[ServerVerdict]:
        """The same at recursive servers (`address` or `address:port`)."""
        ...

    async def caa(self, name: str) -> CaaSet:
        """The relevant CAA record set (RFC 8659 section 3); raises DnsError."""
        ...

    async def bogus(self, zone: str) -> str | None:
        """Why a validating resolver refuses `zone` (DNSSEC), or None when none of ours does."""
        ...


class AuditFile(Protocol):
    """The files of the audit log: lines, appended and read. Each call may block, and raises OSError when it fails.

    One at a time: `resume`, `disturbance`, `append`, `sync`, `close`. The others may run beside them.
    """

    def resume(self) -> int:
        """Make the place, and cut off a line whose end is missing; returns how many bytes that were."""
        ...

    def disturbance(self) -> str | None:
        """What somebody else has done to the newest file since it was written to; the next line goes into a new one."""
        ...

    def append(self, lines: Sequence[bytes], *, sequence: int, durably: bool) -> None:
        """Write lines behind the last one: all of them or, with an OSError, none.

        `sequence` is the first one's; `durably` waits for stable storage.
        """
        ...

    def sync(self) -> None:
        """Bring all that was appended to stable storage."""
        ...

    def close(self) -> None:
        """Let go of the newest file."""
        ...

    def read(self) -> Iterator[bytes]:
        """Every line there is at the time of the call, oldest first, over all files."""
        ...

    def read_back(self, cursor: str | None = None) -> Iterator[tuple[str, bytes]]:
        """Lines, newest first, each with the cursor that leads to the next older one.

        Raises:
            ValueError: at the first line, if `cursor` is none of ours.
        """
        ...

    def surplus(self) -> tuple[str, bytes] | None:
        """What the oldest file is called that is to be kept, and its first line; None: no file is too many."""
        ...

    def delete_before(self, name: str) -> int:
        """Delete the files older than that one; returns how many."""
        ...


class RenewalJudge(Protocol):
    """Judges renewals that nobody asks for at the moment: whether whoever owns the certificate still may."""

    async def judge_renewal(self, certificate: Certificate) -> Decision:
        """Whether `certificate.requested_by` may renew it, by the policies there are now; nobody's may be renewed.

        Leaves no record.
        """
        ...
