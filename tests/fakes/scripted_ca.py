"""A CA in memory behind our own `CaClient` Protocol, with a clock that jumps and a store that can be watched.

The CA is honest until a test scripts single answers; everything it is asked is written down in `calls`.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import random
from collections import defaultdict, deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from scaivaultd.acme.exchange import NotOffered
from scaivaultd.acme.wire import Directory
from scaivaultd.acme.x509 import DownloadedChain
from scaivaultd.model.errors import CaRefused, InvalidRequest, Problem, StorageUnavailable
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from scaivaultd.acme.signing import AccountKey
    from scaivaultd.model.names import Identifier
    from scaivaultd.model.storage import Change, Changed, OutboxEvent, Page, Stored
    from scaivaultd.services.ports import CaClient, Lease


class FakeClock:
    """Time moves only when somebody sleeps, and then at once."""

    def __init__(self) -> None:
        self._now = datetime(2026, 1, 1, tzinfo=UTC)
        self._monotonic = 0.0
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(max(0.0, seconds))
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds


class SeededRandomness:
    def __init__(self) -> None:
        self._random = random.Random(7)

    def token_bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def fraction(self) -> float:
        return self._random.random()


class WatchedStore:
    """The real store; `before_commit` may look, act or fail at any commit, `is_down` fails all of it.

    `after_get` acts between a read and whoever asked for it, as any other task may.
    """

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.before_commit: Callable[[Sequence[Change]], Awaitable[None]] | None = None
        self.after_get: Callable[[str], Awaitable[None]] | None = None
        self.is_down = False

    async def get(self, key: str) -> Stored | None:
        self._check()
        stored = await self._store.get(key)
        if self.after_get is not None:
            await self.after_get(key)
        return stored

    async def scan(
        self, prefix: str, *, where: Mapping[str, str] | None = None, after: str | None = None, limit: int = 100
    ) -> Page:
        self._check()
        return await self._store.scan(prefix, where=where, after=after, limit=limit)

    async def commit(self, changes: Sequence[Change], events: Sequence[OutboxEvent] = ()) -> Mapping[str, int]:
        self._check()
        if self.before_commit is not None:
            await self.before_commit(changes)
        return await self._store.commit(changes, events)

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[Changed]]:
        return self._store.watch(prefix)

    async def lease(self, name: str, holder: str, ttl_seconds: float) -> Lease | None:
        return await self._store.lease(name, holder, ttl_seconds)

    def _check(self) -> None:
        if self.is_down:
            raise StorageUnavailable("the disk is full")


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    body: bytes
    retry_after: float | None = None


class LostAnswer(msgspec.Struct, frozen=True):
    """The CA acts, but what comes back is this error."""

    error: Exception


Scripted = Exception | LostAnswer | bytes | Any | None


def refused(name: str, status: int = 403, detail: str = "no") -> CaRefused:
    problem = Problem(type=f"urn:ietf:params:acme:error:{name}", detail=detail, status=status)
    return CaRefused(f"the CA refused: {name}", problem)


@dataclass
class Issuer:
    """Root and intermediate in one: signs leaves for whatever a CSR asks."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    lifetime: timedelta = timedelta(days=90, hours=1)
    backdated: timedelta = timedelta(hours=1)

    def chain(self, csr_der: bytes, now: datetime) -> bytes:
        csr = x509.load_der_x509_csr(csr_der)
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - self.backdated)
            .not_valid_after(now - self.backdated + self.lifetime)
            .add_extension(names.value, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        return leaf.public_bytes(pem) + self.certificate.public_bytes(pem)


class ScriptedCa:
    """An honest CA in memory. `script[method]` holds what its next answers are instead, None for honest ones."""

    def __init__(self, clock: FakeClock, issuer: Issuer) -> None:
        self._clock = clock
        self._issuer = issuer
        self.script: defaultdict[str, deque[Scripted]] = defaultdict(deque)
        self.calls: list[tuple[str, str]] = []
        self.accounts: dict[str, str] = {}
        self.registrations: list[dict[str, Any]] = []
        self.orders: dict[str, dict[str, Any]] = {}
        self.authorizations: dict[str, dict[str, Any]] = {}
        self.certificates: dict[str, bytes] = {}
        self.directory = Directory(
            new_nonce="https://ca.test/n", new_account="https://ca.test/a", new_order="https://ca.test/o"
        )
        self.asked_for: list[dict[str, Any]] = []
        """What each newOrder said: replaces, profile, not_after, and whose key signed it."""
        self.windows: dict[str, dict[str, Any]] = {}
        """ARI answers by certificate id; the CA has ARI as soon as its directory says so."""
        self.revoked: set[str] = set()
        """SHA-256 fingerprints of the leaves."""
        self.retry_after: float | None = None
        self.processing_reads = 0
        """How often an order is shown as processing after finalize."""
        self.slow_reads = 0
        """How often an order is shown as pending after all its names are proven."""
        self.refuses: dict[str, str] = {}
        """Names that are never proven, and what the CA says of them."""
        self.sees: Callable[[str], str | None] = lambda token: None

    def asked(self, method: str) -> list[str]:
        """The URLs that method was asked for, in order."""
        return [url for name, url in self.calls if name == method]

    async def act(self, method: str, url: str, honest: Callable[[], Any]) -> Any:
        self.calls.append((method, url))
        scripted = self.script[method].popleft() if self.script[method] else None
        while callable(scripted):
            scripted = scripted()
            if inspect.isawaitable(scripted):
                scripted = await scripted
        await asyncio.sleep(0)
        match scripted:
            case Exception():
                raise scripted
            case LostAnswer(error):
                honest()
                raise error
            case None:
                return honest()
            case _:
                return scripted

    def shown(self, url: str, document: Mapping[str, Any]) -> Fetched:
        return Fetched(url=url, body=json.dumps(document).encode(), retry_after=self.retry_after)

    def register(self, thumbprint: str, asked: dict[str, Any]) -> Fetched:
        self.registrations.append(asked)
        url = self.accounts.setdefault(thumbprint, f"https://ca.test/account/{len(self.accounts) + 1}")
        return self.shown(url, {"status": "valid"})

    def make_order(self, identifiers: Sequence[Identifier]) -> Fetched:
        number = len(self.orders) + 1
        urls = [self._make_authorization(f"{number}-{place}", each) for place, each in enumerate(identifiers)]
        url = f"https://ca.test/order/{number}"
        self.orders[url] = {
            "status": "pending",
            "identifiers": [{"type": each.type, "value": each.value} for each in identifiers],
            "authorizations": urls,
            "finalize": f"{url}/finalize",
        }
        return self.shown(url, self.orders[url])

    def _make_authorization(self, number: str, identifier: Identifier) -> str:
        url = f"https://ca.test/authorization/{number}"
        challenge = {
            "type": "http-01",
            "url": f"https://ca.test/challenge/{number}",
            "status": "pending",
            "token": f"token-{number}-".ljust(43, "x"),
        }
        self.authorizations[url] = {
            "status": "pending",
            "identifier": {"type": identifier.type, "value": identifier.value},
            "challenges": [challenge],
        }
        return url

    def order(self, url: str) -> Fetched:
        order = self.orders.get(url)
        if order is None:
            raise refused("malformed", 404, "no such order")
        if order["status"] == "pending":
            self._settle(order)
        elif order["status"] == "processing":
            order["reads"] = order.get("reads", 0) + 1
            if order["reads"] >= self.processing_reads:
                order["status"] = "valid"
        return self.shown(url, order)

    def _settle(self, order: dict[str, Any]) -> None:
        states = [self.authorizations[url]["status"] for url in order["authorizations"]]
        if "invalid" in states:
            order["status"] = "invalid"
        elif all(state == "valid" for state in states):
            order["reads"] = order.get("reads", 0) + 1
            if order["reads"] > self.slow_reads:
                order["status"], order["reads"] = "ready", 0

    def respond(self, url: str) -> Fetched:
        for authorization in self.authorizations.values():
            (challenge,) = authorization["challenges"]
            if challenge["url"] == url:
                self.validate(authorization)
                return self.shown(url, challenge)
        raise refused("malformed", 404, "no such challenge")

    def validate(self, authorization: dict[str, Any]) -> None:
        """Look, as a CA does, at what is in place right now."""
        (challenge,) = authorization["challenges"]
        name = authorization["identifier"]["value"]
        seen = self.sees(challenge["token"])
        if seen is not None and seen.startswith(f"{challenge['token']}.") and name not in self.refuses:
            authorization["status"] = challenge["status"] = "valid"
            return
        detail = self.refuses.get(name, "nothing there")
        authorization["status"] = challenge["status"] = "invalid"
        challenge["error"] = {"type": "urn:ietf:params:acme:error:unauthorized", "detail": detail}

    def finalize(self, url: str, csr_der: bytes) -> Fetched:
        order_url = url.removesuffix("/finalize")
        order = self.orders[order_url]
        if order["status"] != "ready":
            raise refused("orderNotReady", 403, f"the order is {order['status']}")
        certificate_url = f"{order_url}/certificate"
        self.certificates[certificate_url] = self._issuer.chain(csr_der, self._clock.now())
        order["certificate"] = certificate_url
        order["status"] = "processing" if self.processing_reads else "valid"
        return self.shown(order_url, order)


class ScriptedClient:
    """One account's view of the scripted CA."""

    def __init__(self, ca: ScriptedCa, key: AccountKey, kid: str | None) -> None:
        self._ca = ca
        self._kid = kid
        self.key = key

    async def register(
        self,
        *,
        contacts: Sequence[str],
        terms_of_service_agreed: bool,
        eab_key_id: str | None = None,
        eab_hmac_key: bytes | None = None,
    ) -> Fetched:
        asked = {
            "contacts": list(contacts),
            "agreed": terms_of_service_agreed,
            "eab_key_id": eab_key_id,
            "eab_hmac_key": eab_hmac_key,
        }
        thumbprint = self.key.thumbprint
        fetched: Fetched = await self._ca.act("register", thumbprint, lambda: self._ca.register(thumbprint, asked))
        return fetched

    async def directory(self) -> Directory:
        return self._ca.directory

    async def find_account(self) -> str | None:
        thumbprint = self.key.thumbprint
        url: str | None = await self._ca.act("find_account", thumbprint, lambda: self._ca.accounts.get(thumbprint))
        return url

    async def update_contacts(self, contacts: Sequence[str]) -> Fetched:
        return await self._updated("update_contacts", {"status": "valid", "contact": list(contacts)})

    async def agree_to_terms(self) -> Fetched:
        return await self._updated("agree_to_terms", {"status": "valid"})

    async def deactivate_account(self) -> Fetched:
        return await self._updated("deactivate_account", {"status": "deactivated"})

    async def _updated(self, method: str, account: Mapping[str, Any]) -> Fetched:
        url = self._kid or ""
        fetched: Fetched = await self._ca.act(method, url, lambda: self._ca.shown(url, account))
        return fetched

    async def key_change(self, new_key: AccountKey) -> None:
        thumbprint, new_thumbprint = self.key.thumbprint, new_key.thumbprint
        accounts = self._ca.accounts
        await self._ca.act(
            "key_change", new_thumbprint, lambda: accounts.update({new_thumbprint: accounts.pop(thumbprint)})
        )

    async def new_order(
        self,
        identifiers: Sequence[Identifier],
        *,
        replaces: str | None = None,
        profile: str | None = None,
        not_after: datetime | None = None,
    ) -> Fetched:
        names = ",".join(each.value for each in identifiers)
        said = {"replaces": replaces, "profile": profile, "not_after": not_after, "key": self.key.thumbprint}
        self._ca.asked_for.append(said)
        fetched: Fetched = await self._ca.act("new_order", names, lambda: self._ca.make_order(identifiers))
        return fetched

    async def order_urls(self) -> Sequence[str]:
        urls: Sequence[str] = await self._ca.act("order_urls", self._kid or "", lambda: list(self._ca.orders))
        return urls

    async def order(self, url: str) -> Fetched:
        fetched: Fetched = await self._ca.act("order", url, lambda: self._ca.order(url))
        return fetched

    async def authorization(self, url: str) -> Fetched:
        shown: Fetched = await self._ca.act(
            "authorization", url, lambda: self._ca.shown(url, self._ca.authorizations[url])
        )
        return shown

    async def deactivate_authorization(self, url: str) -> Fetched:
        def deactivate() -> Fetched:
            self._ca.authorizations[url]["status"] = "deactivated"
            return self._ca.shown(url, self._ca.authorizations[url])

        fetched: Fetched = await self._ca.act("deactivate_authorization", url, deactivate)
        return fetched

    async def respond(self, challenge_url: str) -> Fetched:
        fetched: Fetched = await self._ca.act("respond", challenge_url, lambda: self._ca.respond(challenge_url))
        return fetched

    async def finalize(self, url: str, csr_der: bytes) -> Fetched:
        fetched: Fetched = await self._ca.act("finalize", url, lambda: self._ca.finalize(url, csr_der))
        return fetched

    async def certificate(self, url: str) -> bytes:
        body: bytes = await self._ca.act("certificate", url, lambda: self._ca.certificates[url])
        return body

    async def chain(self, url: str) -> DownloadedChain:
        return DownloadedChain(body=await self.certificate(url))

    async def chains(self, url: str) -> Sequence[bytes]:
        return [await self.certificate(url)]

    async def revoke(
        self, certificate_der: bytes, reason: int | None = None, *, certificate_key: AccountKey | None = None
    ) -> bool:
        fingerprint = hashlib.sha256(certificate_der).hexdigest()
        is_new: bool = await self._ca.act("revoke", fingerprint, lambda: fingerprint not in self._ca.revoked)
        self._ca.revoked.add(fingerprint)
        return is_new

    async def renewal_info(self, certificate_id: str) -> Fetched:
        def answer() -> Fetched:
            if certificate_id not in self._ca.windows:
                raise refused("malformed", 404, "no such certificate")
            return self._ca.shown(f"https://ca.test/renewal/{certificate_id}", self._ca.windows[certificate_id])

        if self._ca.directory.renewal_info is None:
            raise NotOffered("the CA does not offer renewal information")
        fetched: Fetched = await self._ca.act("renewal_info", certificate_id, answer)
        return fetched


class ScriptedCas:
    """The way to the scripted CA; addresses in `forbidden` are refused."""

    def __init__(self, ca: ScriptedCa) -> None:
        self._ca = ca
        self.forbidden: set[str] = set()

    def client(self, directory_url: str, ca_certificates_pem: str | None, key: AccountKey, kid: str | None) -> CaClient:
        return ScriptedClient(self._ca, key, kid)

    def roots(self, directory_url: str, ca_certificates_pem: str | None) -> Sequence[bytes]:
        return ()

    async def check_directory(self, url: str) -> None:
        if url in self.forbidden:
            raise InvalidRequest("a private address")
